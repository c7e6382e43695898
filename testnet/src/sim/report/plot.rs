//! Plots as inline SVG.

use std::fmt::Write;

/// Samples of one run.
pub(crate) struct Line<'a> {
    pub(crate) name: String,
    pub(crate) ascending: &'a [f64],
}

/// For each line, which share of its samples is at most as large as what the axis says. Nothing if
/// no line has samples.
pub(crate) fn curves(title: &str, unit: &str, lines: &[Line<'_>]) -> String {
    let ends = lines.iter().filter_map(|line| line.ascending.last());
    let most = ends.fold(0.0f64, |most, end| most.max(*end));
    if most <= 0.0 {
        return String::new();
    }
    let mut svg = open(title);
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let y = BOTTOM - share * (BOTTOM - TOP);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{share}</text>",
            LEFT - 6.0,
            y + 4.0
        );
        let x = LEFT + share * (RIGHT - LEFT);
        let _ = write!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.3}</text>",
            BOTTOM + 18.0,
            share * most
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{RIGHT}\" y=\"{:.1}\" text-anchor=\"end\">{unit}</text>",
        BOTTOM + 34.0
    );
    for (number, line) in lines.iter().enumerate() {
        let points = points(line.ascending, most);
        let (name, colour) = (&line.name, COLOURS[number % COLOURS.len()]);
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{points}\">\
             <title>{name}</title></polyline>"
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// A step up at every sample.
fn points(ascending: &[f64], most: f64) -> String {
    let mut points = format!("{LEFT:.1},{BOTTOM:.1}");
    for (number, value) in ascending.iter().enumerate() {
        let x = LEFT + value / most * (RIGHT - LEFT);
        for done in [number, number + 1] {
            let y = BOTTOM - done as f64 / ascending.len() as f64 * (BOTTOM - TOP);
            let _ = write!(points, " {x:.1},{y:.1}");
        }
    }
    points
}

/// One bar for each host, of as many parts as there are kinds.
pub(crate) fn bars(title: &str, kinds: &[&str; 3], hosts: &[[u64; 3]]) -> String {
    let most = hosts.iter().map(|kinds| kinds.iter().sum()).max();
    let most: u64 = most.unwrap_or(0);
    if most == 0 {
        return String::new();
    }
    let mut svg = open(title);
    let width = (RIGHT - LEFT) / hosts.len() as f64;
    for (number, parts) in hosts.iter().enumerate() {
        let x = LEFT + width * number as f64;
        let mut y = BOTTOM;
        for (part, colour) in parts.iter().zip(COLOURS) {
            let height = *part as f64 / most as f64 * (BOTTOM - TOP);
            y -= height;
            let _ = write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" \
                 fill=\"{colour}\"><title>host {number}: {part} bytes</title></rect>",
                (width - 1.0).max(0.5)
            );
        }
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{TOP}\" text-anchor=\"end\">{:.1} MB</text>",
        LEFT - 6.0,
        most as f64 / 1e6
    );
    for (number, (kind, colour)) in kinds.iter().zip(COLOURS).enumerate() {
        let x = LEFT + 160.0 * number as f64;
        let _ = write!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{kind}</text>",
            BOTTOM + 10.0,
            x + 16.0,
            BOTTOM + 20.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn open(title: &str) -> String {
    format!(
        "<h2>{title}</h2>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
    )
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 840.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 250.0;
const COLOURS: [&str; 6] = [
    "#1f6f8b", "#d9822b", "#5a8f29", "#8b3a62", "#6b5b95", "#3d3d3d",
];

//! Shows what came of runs: a table for people, JSON for scripts, HTML with plots.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use crate::sim::outcome::Outcome;
use crate::sim::report::plot::{Line, bars, curves};
use crate::sim::scenario::Scenario;
use crate::sim::tally::percentile;

mod plot;

/// A Markdown table of all figures: the median over the runs, and the worst.
pub fn table(scenario: &Scenario, outcomes: &[Outcome]) -> String {
    let mut text = format!("{}: {}\n\n", scenario.name, scenario.about);
    let bad = outcomes.iter().filter(|outcome| !outcome.is_good()).count();
    if let Some(first) = outcomes.first() {
        let _ = writeln!(
            text,
            "{} nodes, {} seeds from {}, {bad} of them with a violation\n",
            first.nodes,
            outcomes.len(),
            first.seed
        );
    }
    text.push_str("| figure | median | least | most |\n|---|---|---|---|\n");
    for (name, values) in figures(outcomes) {
        let of = |share| percentile(&values, share).unwrap_or_default();
        let (median, least, most) = (of(0.5), of(0.0), of(1.0));
        let _ = writeln!(text, "| {name} | {median:.3} | {least:.3} | {most:.3} |");
    }
    text
}

/// Each run that went wrong, why, and the command that repeats it.
pub fn failures(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes.iter().filter(|outcome| !outcome.is_good()) {
        let _ = writeln!(text, "seed {}: {}", outcome.seed, outcome.replay());
        for violation in &outcome.violations {
            let host = violation
                .host
                .map_or(String::new(), |host| format!("host {host} "));
            let (claim, at, what) = (violation.claim, violation.at, &violation.what);
            let _ = writeln!(text, "  {claim} at {at:.3} s: {host}{what}");
        }
    }
    text
}

/// Writes `<scenario>.json` and `<scenario>.html` into `dir`.
///
/// # Errors
/// What the file system says.
pub fn write(dir: &Path, scenario: &Scenario, outcomes: &[Outcome]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let json = serde_json::to_string_pretty(outcomes)?;
    fs::write(dir.join(format!("{}.json", scenario.name)), json)?;
    let page = html(scenario, outcomes);
    fs::write(dir.join(format!("{}.html", scenario.name)), page)
}

/// A page that needs nothing beside itself.
pub fn html(scenario: &Scenario, outcomes: &[Outcome]) -> String {
    let name = escape(&scenario.name);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{name}</h1>\n<p>{}</p>\n<p>Shows: {}.</p>\n",
        escape(&scenario.about),
        escape(&scenario.shows.join(", "))
    );
    page.push_str(&runs(outcomes));
    page.push_str(&figure_rows(outcomes));
    if let Some(first) = outcomes.first() {
        let all = |samples: fn(&Outcome) -> &Vec<f64>| lines(outcomes, samples);
        let completion = all(|outcome| &outcome.samples.completion);
        let title = "Hosts that are through, by time over the ideal one";
        page.push_str(&curves(title, "× ideal", &completion));
        let visible = all(|outcome| &outcome.samples.visible_ms);
        let title = "Pairs of path and host that know each other, by time after the push";
        page.push_str(&curves(title, "ms", &visible));
        let title = format!("Bytes sent by each host, seed {}", first.seed);
        let kinds = ["gossip", "log comparison", "exchange"];
        page.push_str(&bars(&title, &kinds, &first.samples.sent));
    }
    page.push_str("</body></html>\n");
    page
}

/// The values of each figure, ascending.
fn figures(outcomes: &[Outcome]) -> BTreeMap<&str, Vec<f64>> {
    let mut all = BTreeMap::<&str, Vec<f64>>::new();
    for (name, value) in outcomes.iter().flat_map(|outcome| &outcome.figures) {
        all.entry(name).or_default().push(*value);
    }
    all.values_mut()
        .for_each(|values| values.sort_unstable_by(f64::total_cmp));
    all
}

fn runs(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "<table><tr><th>seed<th>nodes<th>virtual s<th>events<th>trace<th>violations</tr>\n",
    );
    let bad_first = |outcome: &&Outcome| outcome.is_good();
    let mut shown: Vec<&Outcome> = outcomes.iter().collect();
    shown.sort_by_key(bad_first);
    for outcome in shown.into_iter().take(ROWS_MAX) {
        let wrong = outcome.violations.iter();
        let wrong = wrong.map(|violation| format!("{}: {}", violation.claim, violation.what));
        let _ = writeln!(
            text,
            "<tr><td>{}<td>{}<td>{:.3}<td>{}<td><code>{}</code><td>{}</tr>",
            outcome.seed,
            outcome.nodes,
            outcome.seconds,
            outcome.events,
            outcome.trace,
            escape(&wrong.collect::<Vec<_>>().join("; "))
        );
    }
    text.push_str("</table>\n");
    text
}

fn figure_rows(outcomes: &[Outcome]) -> String {
    let mut text = String::from("<table><tr><th>figure<th>median<th>least<th>most</tr>\n");
    for (name, values) in figures(outcomes) {
        let of = |share| percentile(&values, share).unwrap_or_default();
        let (median, least, most) = (of(0.5), of(0.0), of(1.0));
        let _ = writeln!(
            text,
            "<tr><td>{name}<td>{median:.3}<td>{least:.3}<td>{most:.3}</tr>"
        );
    }
    text.push_str("</table>\n");
    text
}

/// One line for each of the first few runs.
fn lines(outcomes: &[Outcome], samples: fn(&Outcome) -> &Vec<f64>) -> Vec<Line<'_>> {
    let some = outcomes.iter().take(LINES_MAX);
    some.map(|outcome| Line {
        name: format!("seed {}", outcome.seed),
        ascending: samples(outcome),
    })
    .collect()
}

fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

const ROWS_MAX: usize = 50;
const LINES_MAX: usize = 10;
const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#222}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;text-align:left;\
border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}svg{display:block;margin:1.5rem 0}\
svg text{font:12px sans-serif;fill:#444}h2{font-size:1rem;margin:2rem 0 0}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::mutant::Mutant;
    use crate::sim::outcome::{Options, Samples};
    use crate::sim::scenario::Scale;

    #[test]
    fn a_page_needs_nothing_beside_itself_and_escapes_what_it_shows() {
        let text = "about = \"<b>\"\n[cluster]\nnodes = 2\n[[step]]\nat = \"1s\"\nheal = {}";
        let scenario = Scenario::parse("x", text).unwrap();
        let options = Options {
            seed: 3,
            scale: Scale::Small,
            nodes: None,
            mutant: Some(Mutant::NeverCompares),
        };
        let mut outcome = Outcome::panicked(&scenario, &options, "<oh>".to_owned());
        outcome.figures.insert("bans".to_owned(), 1.0);
        outcome.samples = Samples {
            completion: vec![1.0, 2.0],
            visible_ms: vec![5.0],
            sent: vec![[1, 2, 3], [4, 5, 6]],
        };
        let page = html(&scenario, std::slice::from_ref(&outcome));
        assert!(page.contains("&lt;b&gt;") && page.contains("&lt;oh&gt;"));
        assert!(!page.contains("http") && !page.contains("src="));
        assert_eq!(page.matches("<svg").count(), 3);
        let replay = "--scenario x --size small --nodes 2 --seed 3 --mutant never-compares";
        assert!(failures(&[outcome]).contains(replay));
    }
}

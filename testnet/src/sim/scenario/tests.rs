use super::*;
use crate::seed::Seed;

const SMALLEST: &str = r#"
about = "nothing"
[cluster]
nodes = 3
[[step]]
at = "1s"
push = { by = "0", paths = { small = 1, full = 10 } }
"#;

#[test]
fn a_number_may_depend_on_the_scale() {
    let scenario = Scenario::parse("x", SMALLEST).unwrap();
    let push = scenario.steps[0].push.clone().unwrap();
    let at = |scale| push.paths.at(scale);
    assert_eq!(
        [Scale::Small, Scale::Full, Scale::Long].map(at),
        [1, 10, 10]
    );
    assert_eq!(scenario.nodes(Scale::Long), 3);
}

#[test]
fn what_is_not_known_is_refused() {
    for (text, why) in [
        ("[cluster]\nnodes = 3\nnods = 4", "nods"),
        ("colour = 1", "colour"),
        ("[expect.at_most]\nbeauty = 1.0", "beauty"),
        ("[[step]]\nat = \"1s\"", "0 verbs"),
        ("[[step]]\nat = \"1s\"\nheal = {}\nmeasure = {}", "2 verbs"),
        ("[[step]]\nat = \"1s\"\nheal = { all = true }", "all"),
        ("[[step]]\nat = \"soon\"\nheal = {}", "soon"),
        ("[network]\nlatency = \"1 mile\"", "mile"),
    ] {
        let whole = match text.starts_with("[cluster]") {
            true => format!("about = \"x\"\n{text}\n[[step]]\nat = \"1s\"\nheal = {{}}"),
            false if text.starts_with("colour") => format!("{text}\n{SMALLEST}"),
            false => format!("{SMALLEST}\n{text}"),
        };
        let error = Scenario::parse("x", &whole).unwrap_err();
        assert!(error.contains(why), "{whole}: {error}");
    }
}

#[test]
fn units_are_those_people_write() {
    let span = |text: &str| text.parse::<Span>().map(|span| span.0);
    assert_eq!(span("200us"), Ok(Duration::from_micros(200)));
    assert_eq!(span("1.5s"), Ok(Duration::from_millis(1500)));
    assert_eq!(span("10min"), Ok(Duration::from_secs(600)));
    assert_eq!("64KiB".parse(), Ok(Size(65_536)));
    assert_eq!("1Gbit/s".parse(), Ok(Rate(125_000_000)));
    for text in ["", "5", "ms", "-1s", "1 parsec"] {
        assert!(span(text).is_err(), "{text}");
    }
}

#[test]
fn hosts_are_named_in_several_ways() {
    let mut random = Seed::new(1);
    for (text, expected) in [
        ("all", vec![0, 1, 2, 3, 4]),
        ("none", vec![]),
        ("2", vec![2]),
        ("1..3", vec![1, 2]),
        ("3..", vec![3, 4]),
        ("odd", vec![1, 3]),
        ("even", vec![0, 2, 4]),
        ("7", vec![]),
    ] {
        let hosts: Hosts = text.parse().unwrap();
        assert_eq!(hosts.among(5, &mut random), expected, "{text}");
    }
    let some: Hosts = "40%".parse().unwrap();
    assert_eq!(some.among(5, &mut random).len(), 2);
    for text in ["", "3..1", "x", "1..x", "ten%"] {
        assert!(text.parse::<Hosts>().is_err(), "{text}");
    }
}

#[test]
fn every_scenario_can_be_read_and_says_what_it_shows() {
    let all = Scenario::all().unwrap();
    assert!(all.len() >= 19, "{} scenarios", all.len());
    for scenario in all {
        assert!(!scenario.about.is_empty(), "{}", scenario.name);
        assert!(!scenario.shows.is_empty(), "{}", scenario.name);
    }
}

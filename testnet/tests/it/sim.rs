//! Simulated clusters: what must hold under fifty seeds of every scenario, what an oracle must
//! notice, and downloads whose time is known.

mod exchange;
mod mutants;
mod scenarios;

use std::path::Path;

use testnet::sim::{self, Options, Outcome, Scale, Scenario, report};

/// Seeds of each scenario.
const SEEDS: u64 = 50;

fn options(seed: u64) -> Options {
    Options {
        seed,
        scale: Scale::Small,
        nodes: None,
        mutant: None,
    }
}

/// Runs a scenario under [`SEEDS`] seeds at its small size; shows the figures, and fails with the
/// commands that repeat what went wrong.
#[track_caller]
fn holds(name: &str) -> Vec<Outcome> {
    let scenario = Scenario::load(name).expect("the scenario can be read");
    all_good(&scenario, SEEDS)
}

#[track_caller]
fn all_good(scenario: &Scenario, seeds: u64) -> Vec<Outcome> {
    let outcomes = sim::run_seeds(scenario, &options(1), seeds, 1);
    println!("{}", report::table(scenario, &outcomes));
    let failures = report::failures(&outcomes);
    assert!(failures.is_empty(), "{failures}");
    outcomes
}

/// A scenario's file, with one text in the place of another.
fn altered(name: &str, from: &str, to: &str) -> Scenario {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let text = std::fs::read_to_string(dir.join(format!("{name}.toml"))).expect("read a scenario");
    assert!(text.contains(from), "{name} has no {from:?}");
    Scenario::parse(name, &text.replace(from, to)).expect("the scenario can be read")
}

/// The largest value of a figure.
#[track_caller]
fn most(outcomes: &[Outcome], figure: &str) -> f64 {
    let values = outcomes.iter().map(|outcome| outcome.figures.get(figure));
    let values = values.map(|value| value.copied().expect("it was measured"));
    values.fold(f64::NEG_INFINITY, f64::max)
}

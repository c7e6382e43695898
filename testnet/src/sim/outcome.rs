//! What comes of a run.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::Serialize;

use crate::sim::mutant::Mutant;
use crate::sim::oracle::Violation;
use crate::sim::scenario::{Scale, Scenario};

/// How to run a scenario.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Of everything that is left to chance.
    pub seed: u64,
    /// How large.
    pub scale: Scale,
    /// How many nodes, if not as many as the scenario says.
    pub nodes: Option<usize>,
    /// How all nodes are broken, if they are.
    pub mutant: Option<Mutant>,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Name of the scenario.
    pub scenario: String,
    /// Of everything that was left to chance.
    pub seed: u64,
    /// How large it was.
    pub scale: Scale,
    /// How many nodes took part.
    pub nodes: usize,
    /// How all of them were broken, if they were.
    pub mutant: Option<Mutant>,
    /// Hash of all that happened.
    pub trace: String,
    /// How much happened.
    pub events: u64,
    /// Virtual time that passed.
    pub seconds: f64,
    /// What was measured, by name.
    pub figures: BTreeMap<String, f64>,
    /// What must not be and was.
    pub violations: Vec<Violation>,
    /// For plots.
    pub samples: Samples,
}

/// Samples behind the figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples {
    /// Of each host that fetched, its time by the ideal one, ascending.
    pub completion: Vec<f64>,
    /// From a push until a host shows the path, milliseconds, ascending; at most a thousand.
    pub visible_ms: Vec<f64>,
    /// Of each host: bytes of gossip, of log comparison, and of the exchange that it sent.
    pub sent: Vec<[u64; 3]>,
}

impl Outcome {
    /// Whether nothing was wrong.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }

    /// The command that repeats the run.
    pub fn replay(&self) -> String {
        let value = self.mutant.and_then(|mutant| mutant.to_possible_value());
        let mutant = value.map_or(String::new(), |value| {
            format!(" --mutant {}", value.get_name())
        });
        format!(
            "cargo run -p testnet -- sim --scenario {} --size {} --nodes {} --seed {}{mutant}",
            self.scenario,
            self.scale.name(),
            self.nodes,
            self.seed
        )
    }

    pub(crate) fn panicked(scenario: &Scenario, options: &Options, text: String) -> Outcome {
        let violation = Violation {
            claim: "panic",
            at: 0.0,
            host: None,
            what: text,
        };
        Outcome {
            scenario: scenario.name.clone(),
            seed: options.seed,
            scale: options.scale,
            nodes: options
                .nodes
                .unwrap_or_else(|| scenario.nodes(options.scale)),
            mutant: options.mutant,
            trace: String::new(),
            events: 0,
            seconds: 0.0,
            figures: BTreeMap::new(),
            violations: vec![violation],
            samples: Samples::default(),
        }
    }
}

//! Scenarios: what happens to a cluster, when, and what must come of it.
//!
//! One TOML file each, in `testnet/scenarios`. A key that is not known is an error. A number may be
//! given three times, `{ small = 8, full = 32, long = 128 }`: for tests, for the figures that are
//! published, and for a run over night.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attic_p2p::membership::scopes::Scopes;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use crate::sim::scenario::units::{Rate, Size, Span};

pub(crate) use crate::sim::scenario::step::{Churn, Crash, Skew, Step, Who};

use crate::sim::scenario::units::Hosts;

mod step;
pub(crate) mod units;

/// How large a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Seconds for fifty seeds.
    Small,
    /// What the figures are about.
    Full,
    /// What a machine does while nobody waits.
    Long,
}

impl Scale {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Scale::Small => "small",
            Scale::Full => "full",
            Scale::Long => "long",
        }
    }
}

/// A value, or one for each [`Scale`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Scaled<T> {
    /// The same for all.
    One(T),
    /// What is not given is as the next smaller.
    Each(Scales<T>),
}

/// One value for each [`Scale`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scales<T> {
    small: T,
    full: Option<T>,
    long: Option<T>,
}

impl Default for Scaled<Span> {
    fn default() -> Self {
        Scaled::One(Span::default())
    }
}

impl<T: Copy> Scaled<T> {
    /// The value at `scale`.
    pub fn at(&self, scale: Scale) -> T {
        match self {
            Scaled::One(value) => *value,
            Scaled::Each(each) => match scale {
                Scale::Small => each.small,
                Scale::Full => each.full.unwrap_or(each.small),
                Scale::Long => each.long.or(each.full).unwrap_or(each.small),
            },
        }
    }
}

/// A scenario as its file has it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Of the file, without `.toml`.
    #[serde(skip)]
    pub name: String,
    /// What it is about, in a sentence.
    pub about: String,
    /// Rows and figures of the design that it shows.
    #[serde(default)]
    pub shows: Vec<String>,
    pub(crate) cluster: Cluster,
    #[serde(default)]
    pub(crate) network: Network,
    #[serde(rename = "step")]
    pub(crate) steps: Vec<Step>,
    #[serde(default)]
    pub(crate) expect: Expect,
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cluster {
    pub(crate) nodes: Scaled<usize>,
    /// Not started until a step starts them.
    #[serde(default)]
    pub(crate) absent: Hosts,
    /// Who is not as it should be.
    #[serde(default)]
    pub(crate) manners: BTreeMap<Hosts, Manner>,
    /// Bytes per second each host can send; and receive, if `down` is not given.
    #[serde(default = "gigabit")]
    pub(crate) up: Rate,
    pub(crate) down: Option<Rate>,
    /// Downloads a host does at a time: as many as Nix has substitutions.
    #[serde(default = "sixteen")]
    pub(crate) jobs: usize,
    /// Bytes fetched ahead of a reading client; everything goes to disk if it is not given.
    pub(crate) read_ahead: Option<Size>,
    /// Copies kept of what is pushed.
    #[serde(default = "one")]
    pub(crate) copies: usize,
}

/// What lies between them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    pub(crate) latency: Span,
    pub(crate) jitter: f64,
    pub(crate) loss: f64,
    pub(crate) gossip_loss: f64,
    pub(crate) twice: f64,
}

impl Default for Network {
    /// An office.
    fn default() -> Network {
        Network {
            latency: Span(Duration::from_micros(200)),
            jitter: 0.5,
            loss: 0.0,
            gossip_loss: 0.0,
            twice: 0.0,
        }
    }
}

/// How a host behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Manner {
    /// As it should.
    Honest,
    /// Sends bytes that are not the chunk.
    Lies,
    /// Says it holds everything and has nothing.
    Boasts,
    /// Sends forged, altered, replayed, oversized and unreadable records, claims and removes what is
    /// not its to claim or remove.
    Forges,
    /// Tells different hosts different things.
    Equivocates,
    /// Sends as much of all that as goes through the line.
    Floods,
}

impl Manner {
    pub(crate) fn is_honest(self) -> bool {
        self == Manner::Honest
    }

    /// Whoever forges has no right to write, or it could do what it wants without forging.
    pub(crate) fn scopes(self) -> Scopes {
        match self {
            Manner::Forges | Manner::Floods => Scopes::read_all(),
            Manner::Honest | Manner::Lies | Manner::Boasts | Manner::Equivocates => Scopes::all(),
        }
    }
}

/// What must come of it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Expect {
    /// After the last step everything is as it should be within so long.
    pub(crate) settled: Scaled<Span>,
    /// And goes on for so long.
    pub(crate) linger: Span,
    /// Figures with a bound, in virtual time.
    pub(crate) at_most: BTreeMap<String, Scaled<f64>>,
    pub(crate) at_least: BTreeMap<String, Scaled<f64>>,
}

impl Default for Expect {
    fn default() -> Expect {
        Expect {
            settled: Scaled::One(Span(Duration::from_secs(30))),
            linger: Span(Duration::from_secs(2)),
            at_most: BTreeMap::new(),
            at_least: BTreeMap::new(),
        }
    }
}

impl Scenario {
    /// The scenario of this name in `testnet/scenarios`, or in the file of this name.
    ///
    /// # Errors
    /// In words: the file cannot be read, or is no scenario.
    pub fn load(name: &str) -> Result<Scenario, String> {
        let file = match name.ends_with(".toml") {
            true => PathBuf::from(name),
            false => Scenario::dir().join(format!("{name}.toml")),
        };
        let text = fs::read_to_string(&file);
        let text = text.map_err(|error| format!("read {}: {error}", file.display()))?;
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        Scenario::parse(&stem, &text).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// All scenarios in `testnet/scenarios`, by name.
    ///
    /// # Errors
    /// Those of [`Scenario::load`].
    pub fn all() -> Result<Vec<Scenario>, String> {
        let dir = Scenario::dir();
        let entries = fs::read_dir(&dir);
        let entries = entries.map_err(|error| format!("read {}: {error}", dir.display()))?;
        let files = entries.flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = files.collect();
        files.sort();
        let names = files.iter().filter_map(|file| file.to_str());
        let names = names.filter(|name| name.ends_with(".toml"));
        names.map(Scenario::load).collect()
    }

    /// Reads a scenario.
    ///
    /// # Errors
    /// What is wrong with `text`, and where.
    pub fn parse(name: &str, text: &str) -> Result<Scenario, String> {
        let mut scenario: Scenario = toml::from_str(text).map_err(|error| error.to_string())?;
        name.clone_into(&mut scenario.name);
        for step in &scenario.steps {
            let verbs = step.verbs();
            if verbs != 1 {
                let at = step.at.at(Scale::Full).0;
                return Err(format!("step at {at:?} has {verbs} verbs, not one"));
            }
        }
        for figure in scenario
            .expect
            .at_most
            .keys()
            .chain(scenario.expect.at_least.keys())
        {
            if !crate::sim::tally::FIGURES.contains(&figure.as_str()) {
                return Err(format!("there is no figure {figure}"));
            }
        }
        Ok(scenario)
    }

    fn dir() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
    }

    /// How many nodes it has.
    pub fn nodes(&self, scale: Scale) -> usize {
        self.cluster.nodes.at(scale)
    }
}

fn gigabit() -> Rate {
    Rate(125_000_000)
}

fn sixteen() -> usize {
    16
}

fn one() -> usize {
    1
}

#[cfg(test)]
mod tests;

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

use crate::sim::scenario::units::Hosts;

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

/// Something that is done: exactly one of the verbs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// Since the begin.
    pub(crate) at: Scaled<Span>,
    pub(crate) push: Option<Push>,
    pub(crate) fetch: Option<Fetch>,
    pub(crate) remove: Option<Remove>,
    pub(crate) partition: Option<Partition>,
    pub(crate) heal: Option<Heal>,
    pub(crate) crash: Option<Crash>,
    pub(crate) start: Option<Who>,
    pub(crate) image: Option<Who>,
    pub(crate) restore: Option<Who>,
    pub(crate) fill: Option<Who>,
    pub(crate) space: Option<Who>,
    pub(crate) sleep: Option<Sleep>,
    pub(crate) clock: Option<Skew>,
    pub(crate) revoke: Option<Revoke>,
    pub(crate) churn: Option<Churn>,
    pub(crate) network: Option<Network>,
    pub(crate) measure: Option<Measure>,
}

/// Paths are pushed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Push {
    /// One of these each.
    pub(crate) by: Hosts,
    pub(crate) paths: Scaled<usize>,
    /// Of each NAR, as it travels.
    #[serde(default = "small_nar")]
    pub(crate) size: Scaled<Size>,
    /// Spread evenly over so long.
    #[serde(default)]
    pub(crate) within: Scaled<Span>,
}

/// Clients want all that was pushed so far.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fetch {
    /// All of these.
    pub(crate) by: Hosts,
    /// At random moments within so long.
    #[serde(default)]
    pub(crate) within: Span,
}

/// Paths that were pushed are removed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remove {
    /// One of these each.
    pub(crate) by: Hosts,
    /// How many.
    pub(crate) paths: Scaled<usize>,
    #[serde(default)]
    pub(crate) within: Scaled<Span>,
}

/// Nothing gets through from one side to the other.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Partition {
    pub(crate) side: Hosts,
    /// Only what this side sends is lost.
    #[serde(default)]
    pub(crate) one_way: bool,
}

/// Everything gets through.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Heal {}

/// Programs end.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Crash {
    pub(crate) who: Hosts,
    /// With the power: what was not flushed may be gone, and nobody is told.
    #[serde(default)]
    pub(crate) power: bool,
}

/// Some hosts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Who {
    pub(crate) who: Hosts,
}

/// Hosts stop for a while, as a laptop that is closed does, or a process that is sent a signal.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sleep {
    pub(crate) who: Hosts,
    /// How long; to the end if not given.
    #[serde(rename = "for")]
    pub(crate) span: Option<Scaled<Span>>,
}

/// Clocks are wrong from now on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Skew {
    pub(crate) who: Hosts,
    /// How far ahead.
    #[serde(default)]
    pub(crate) ahead: Span,
    /// How far behind.
    #[serde(default)]
    pub(crate) behind: Span,
}

/// Hosts are taken out of the cluster.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Revoke {
    pub(crate) who: Hosts,
    pub(crate) by: Hosts,
}

/// Hosts come and go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Churn {
    pub(crate) who: Hosts,
    /// Share of them that goes each minute, to come back half a minute later.
    pub(crate) per_minute: f64,
    #[serde(rename = "for")]
    pub(crate) span: Scaled<Span>,
}

/// Figures are about what happens from now on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measure {}

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

impl Step {
    fn verbs(&self) -> usize {
        [
            self.push.is_some(),
            self.fetch.is_some(),
            self.remove.is_some(),
            self.partition.is_some(),
            self.heal.is_some(),
            self.crash.is_some(),
            self.start.is_some(),
            self.image.is_some(),
            self.restore.is_some(),
            self.fill.is_some(),
            self.space.is_some(),
            self.sleep.is_some(),
            self.clock.is_some(),
            self.revoke.is_some(),
            self.churn.is_some(),
            self.network.is_some(),
            self.measure.is_some(),
        ]
        .into_iter()
        .filter(|is| *is)
        .count()
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

fn small_nar() -> Scaled<Size> {
    Scaled::One(Size(50_000))
}

#[cfg(test)]
mod tests;

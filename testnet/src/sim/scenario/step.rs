//! What can be done to a cluster.

use serde::Deserialize;

use crate::sim::scenario::units::{Hosts, Size, Span};
use crate::sim::scenario::{Network, Scaled};

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

impl Step {
    /// How many verbs it has.
    pub(super) fn verbs(&self) -> usize {
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

fn small_nar() -> Scaled<Size> {
    Scaled::One(Size(50_000))
}

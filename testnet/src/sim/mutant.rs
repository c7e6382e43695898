//! Nodes that are broken on purpose. An oracle that catches none of them proves nothing.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How all nodes of a run are broken.
///
/// The machines are what they are; what is broken is what the simulator's drivers do around them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mutant {
    /// Takes every chunk for the one it was asked for.
    AcceptsWrongBytes,
    /// Believes path records without looking at signatures or rights.
    BelievesAnyRecord,
    /// Loses its memory of removed paths when it starts, and shows them again.
    ForgetsRemovals,
    /// Never compares logs with a peer.
    NeverCompares,
    /// Lets anybody in, also those who were taken out, and keeps them.
    AdmitsAnybody,
    /// Writes to its log after its disk was set back, without asking how far it went.
    WritesBeforeAsking,
    /// Goes back to an older copy of its logs when it starts.
    StartsFromOldView,
    /// Remembers the name of every gossiped message for ever.
    RemembersAllGossip,
    /// Folds what it receives in a way that depends on when it came.
    FoldsByArrival,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 9] = [
        Mutant::AcceptsWrongBytes,
        Mutant::BelievesAnyRecord,
        Mutant::ForgetsRemovals,
        Mutant::NeverCompares,
        Mutant::AdmitsAnybody,
        Mutant::WritesBeforeAsking,
        Mutant::StartsFromOldView,
        Mutant::RemembersAllGossip,
        Mutant::FoldsByArrival,
    ];
}

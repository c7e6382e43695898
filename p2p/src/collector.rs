//! Makes paths durable in the cluster's bucket, and takes out of it what nothing refers to.
//!
//! Pure: what is to be asked of the bucket comes out, its answers go in. Every state says what is to be
//! done next, and only the answer to that leads to the next state; so the order, from which all safety
//! follows, cannot be got wrong:
//!
//! - a [`Writer`] writes a reference *and then* looks for condemnations and for the packs;
//! - a [`Collector`] condemns packs *and then* looks for references, deletes the packs that have none
//!   *and then* looks whether they are gone before it stops naming them.
//!
//! So one of the two always sees the other, without clocks, locks or conditional writes, with any number
//! of keepers at once, and whatever becomes of their requests. It takes that names of packs are never used
//! again ([`attic_store::PackId`]) and that no upload is repeated under its name.
//!
//! [`References`] says what refers to which packs, and a [`Plan`] which of them go, and why. A plan may be
//! wrong or old: what is safe does not depend on it.
//!
//! # Versions
//!
//! What a keeper condemns is the content of its highest version ([`Condemnations`]); where there are
//! several of that number, what any of them names is named. A number is one more than the highest that is
//! there or was answered, so a version that comes late – its answer was lost, and its keeper has begun
//! again since – is at most one ahead of what a listing shows. A keeper that begins again therefore writes
//! one version that says what is there already. From the second on, no late one can stand above its own
//! or beside them; nothing is saved or deleted before that. Nothing needs to be remembered outside the
//! bucket.

use std::collections::BTreeSet;

use attic_store::PackId;

pub use crate::collector::plan::{
    Blocked, Clocks, Fate, Limits, Listed, Plan, PlanInput, Repack, Stop, Totals,
};
pub use crate::collector::references::{Life, References, ReferencesFull};
pub use crate::collector::writer::{Done, List, Read, Refer, Seek, Unreadable, Writer};

use crate::ids::NodeId;
use crate::journal::{Condemnations, condemnations_key, newest_condemnations};

mod plan;
mod references;
mod writer;

/// One keeper that collects, between two requests.
///
/// When a request fails in a way that leaves open whether it took effect, or at all, the collector is
/// dropped, and begins again with [`Collector::resume`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Collector {
    /// Nothing is condemned.
    Idle(Idle),
    /// A version is to be written.
    Write(Write),
    /// Journals are to be read for references to what is condemned.
    Look(Look),
    /// Packs are to be deleted.
    Delete(Delete),
}

/// Nothing is condemned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Idle {
    version: u64,
}

/// A version is to be written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    version: u64,
    sets: Condemnations,
    then: Then,
}

/// What follows a version that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Then {
    Look,
    Delete,
    Idle,
}

/// Journals are to be read for references to what is condemned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Look {
    version: u64,
    sets: Condemnations,
}

/// Packs are to be deleted. Nothing saves them any more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Delete {
    version: u64,
    doomed: BTreeSet<PackId>,
    left: BTreeSet<PackId>,
}

impl Collector {
    /// Begins, or begins again, with what the bucket has of this keeper: the number of its highest
    /// version, 0 if there is none, and what all keys of that number say.
    pub fn resume<'a>(
        version: u64,
        newest: impl IntoIterator<Item = &'a Condemnations>,
    ) -> Collector {
        let mut sets = Condemnations::default();
        for one in newest {
            sets.condemned.extend(&one.condemned);
            sets.doomed.extend(&one.doomed);
        }
        // Of versions of one number none was acted upon, so what one of them may yet save is not doomed.
        sets.doomed.retain(|pack| !sets.condemned.contains(pack));
        if sets == Condemnations::default() {
            return Collector::Idle(Idle { version });
        }
        Collector::Write(Write {
            version: version + 1,
            sets,
            then: Then::Look,
        })
    }
}

impl Idle {
    /// Condemns packs, [`CONDEMNED_MAX`] at most; no more are taken from `packs`.
    ///
    /// A listing must have shown each of them, some time: of a pack that never was there nobody can see that
    /// it is gone for good, as its upload may be on its way still.
    ///
    /// What the logs say, as far as the plan followed from it, must be in a journal: otherwise a removal
    /// could get lost, and the path come back without its packs.
    pub fn condemn(self, packs: impl IntoIterator<Item = PackId>) -> Collector {
        let condemned: BTreeSet<PackId> = packs.into_iter().take(CONDEMNED_MAX).collect();
        if condemned.is_empty() {
            return Collector::Idle(self);
        }
        Collector::Write(Write {
            version: self.version + 1,
            sets: Condemnations {
                condemned,
                doomed: BTreeSet::new(),
            },
            then: Then::Look,
        })
    }
}

impl Write {
    /// The key to write it under, in one attempt. `random` must differ each time.
    pub fn key(&self, keeper: &NodeId, random: u32) -> String {
        condemnations_key(keeper, self.version, random)
    }

    /// Its number.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What it says.
    pub fn condemnations(&self) -> &Condemnations {
        &self.sets
    }

    /// The bucket said that it was written.
    pub fn written(self) -> Collector {
        let Write {
            version,
            sets,
            then,
        } = self;
        match then {
            Then::Look if sets.condemned.is_empty() => Look { version, sets }.doom(),
            Then::Look => Collector::Look(Look { version, sets }),
            Then::Delete => Collector::Delete(Delete {
                version,
                left: sets.doomed.clone(),
                doomed: sets.doomed,
            }),
            Then::Idle => Collector::Idle(Idle { version }),
        }
    }
}

impl Look {
    /// The packs of which is asked whether something refers to them.
    pub fn condemned(&self) -> &BTreeSet<PackId> {
        &self.sets.condemned
    }

    /// Dooms what nothing refers to. `referred` are the packs that references of records name that live, or
    /// may live, in all journals, as listings said that began after the version was written.
    pub fn looked(mut self, referred: &BTreeSet<PackId>) -> Collector {
        self.sets.condemned.retain(|pack| !referred.contains(pack));
        self.doom()
    }

    fn doom(self) -> Collector {
        let Condemnations {
            condemned,
            mut doomed,
        } = self.sets;
        doomed.extend(condemned);
        let then = match doomed.is_empty() {
            true => Then::Idle,
            false => Then::Delete,
        };
        Collector::Write(Write {
            version: self.version + 1,
            sets: Condemnations {
                condemned: BTreeSet::new(),
                doomed,
            },
            then,
        })
    }
}

impl Delete {
    /// What is to be deleted, any number at a time; that a pack is not there is success.
    pub fn left(&self) -> &BTreeSet<PackId> {
        &self.left
    }

    /// Everything that was doomed, gone or not.
    pub fn doomed(&self) -> &BTreeSet<PackId> {
        &self.doomed
    }

    /// Goes on to what is still there by a look that began after the deletions were answered. Once nothing
    /// is, the packs need not be named any more.
    pub fn looked(mut self, is_there: impl Fn(&PackId) -> bool) -> Collector {
        self.left.retain(is_there);
        if !self.left.is_empty() {
            return Collector::Delete(self);
        }
        Collector::Write(Write {
            version: self.version + 1,
            sets: Condemnations::default(),
            then: Then::Idle,
        })
    }
}

/// The keys, of a listing, of versions of `keeper` that nobody looks at any more. The highest and the one
/// before stay: somebody may have listed them and be about to read.
pub fn outdated<'a>(keeper: &NodeId, keys: &[&'a str]) -> Vec<&'a str> {
    let own = |key: &&&'a str| {
        crate::journal::read_condemnations_key(key).is_some_and(|(whose, _)| whose == *keeper)
    };
    let own: Vec<&'a str> = keys.iter().filter(own).copied().collect();
    let mut old = own.clone();
    for _ in 0..KEPT_VERSIONS {
        let newest = newest_condemnations(old.iter().copied());
        let Some(newest) = newest.get(keeper) else {
            return Vec::new();
        };
        let newest = newest.keys.clone();
        old.retain(|key| !newest.contains(key));
    }
    old
}

/// Packs that a keeper condemns at once. Whoever writes reads them all before each batch.
pub const CONDEMNED_MAX: usize = 16_384;

/// Versions of a keeper that stay.
const KEPT_VERSIONS: usize = 2;

#[cfg(test)]
mod tests;

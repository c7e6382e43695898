//! Which packs go, which stay, and why.

use std::collections::HashMap;
use std::time::Duration;

use attic_store::PackId;
use thiserror::Error;

use crate::collector::references::{Life, Need, References};
use crate::ids::{Dot, NodeId};
use crate::journal::Condemnations;
use crate::membership::time::UnixTime;

/// What is known of every pack of the bucket, and what follows.
///
/// A plan saves work and waste; whether it is right decides nothing about safety.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// All packs, ascending, and what becomes of each.
    pub packs: Vec<(Listed, Fate)>,
    /// Living records, ascending, that have no reference of which all packs are there. They are not in the
    /// bucket, or not yet; of one that was called durable something is lost.
    pub broken: Vec<Dot>,
    /// Reasons to collect nothing.
    pub stops: Vec<Stop>,
    /// Sums.
    pub totals: Totals,
}

/// What a plan follows from.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    /// The packs of the bucket, by a listing that began after the journals were read.
    pub listed: &'a [Listed],
    /// What all journals say.
    pub references: &'a References,
    /// Keys of objects among the journals that could not be read as entries.
    pub damaged: &'a [String],
    /// What other keepers that are at work condemn. Those of who is no keeper any more are left out, so
    /// that another takes the packs over.
    pub others: &'a [(NodeId, Condemnations)],
    /// The time by the server's clock, and by this machine's.
    pub now: Clocks,
    /// When not to go on.
    pub limits: Limits,
}

/// The time by two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// By the server's, which dates objects.
    pub server: UnixTime,
    /// By this machine's, which dates what people do.
    pub own: UnixTime,
}

/// A pack, as a listing shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub pack: PackId,
    /// Bytes of the object.
    pub len: u64,
    /// When it was written, by the server's clock.
    pub modified: UnixTime,
}

/// When not to go on, and how long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most of the bucket's packs that may go at once, in percent; 100 when the operator said so.
    pub share_max_percent: u8,
    /// How old a pack must be that no journal ever named. It may be that one is about to.
    pub unnamed_age: Duration,
    /// How far the two clocks may be apart.
    pub clocks_apart_max: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            share_max_percent: 20,
            unnamed_age: Duration::from_secs(48 * 60 * 60),
            clocks_apart_max: Duration::from_secs(60 * 60),
        }
    }
}

/// What becomes of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Stays(Blocked),
    /// It goes: every record that needed it is dead.
    Dead,
    /// It goes: no journal ever named it, and it is old.
    Unnamed,
}

impl Fate {
    /// Whether the pack goes.
    pub fn goes(self) -> bool {
        matches!(self, Fate::Dead | Fate::Unnamed)
    }
}

/// Why a pack stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// Records that live need it.
    Live {
        /// The bytes that they need of it. What several need counts several times, so it is this at most.
        len_max: u64,
        /// Whether other records need it, too, which linger or are not known.
        mixed: bool,
    },
    /// Records need it that are gone, but not for long enough.
    Lingering,
    /// Records need it of which is not known whether they live.
    Unknown,
    /// Nothing ever named it, and it is too young for that to mean something.
    Young,
    /// Another keeper sees to it.
    Condemned(NodeId),
}

/// Why a pack is worth being written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repack {
    /// Less than half of it is needed.
    Sparse,
    /// It is small.
    Small,
}

/// Why nothing is collected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Stop {
    /// More would go than is plausible.
    #[error("{going} of {packs} packs would go, more than {max_percent} %")]
    TooMany {
        /// Packs that would go.
        going: usize,
        /// Packs of the bucket.
        packs: usize,
        /// The most that may, in percent.
        max_percent: u8,
    },
    /// An object among the journals cannot be read: what it refers to is not known.
    #[error("object {key} among the journals cannot be read")]
    Damaged {
        /// Its key.
        key: String,
    },
    /// The server's clock and this machine's are too far apart: one of them is wrong.
    #[error("the bucket's clock and this machine's are {} s apart", apart.as_secs())]
    Clocks {
        /// How far.
        apart: Duration,
    },
    /// Something is lost already, so there is a mistake somewhere.
    #[error("packs of {records} durable records are not in the bucket")]
    Lost {
        /// Durable records of which packs are not there.
        records: usize,
    },
}

/// Sums over all packs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packs of the bucket.
    pub packs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that go.
    pub going: usize,
    /// Their bytes.
    pub freed: u64,
}

impl Plan {
    /// Plans. Whether a record lives is asked once for each that a journal names.
    pub fn new(input: PlanInput<'_>, life: impl FnMut(&Dot) -> Life) -> Plan {
        let mut listed = input.listed.to_vec();
        listed.sort_unstable_by_key(|listed| listed.pack);
        listed.dedup_by_key(|listed| listed.pack);
        let tallies = Tallies::new(&listed, input.references, life);
        let others = others(input.others);
        let fates = listed.iter().zip(&tallies.packs).map(|(listed, tally)| {
            let other = others.get(&listed.pack).copied();
            (*listed, fate(listed, tally, other, &input))
        });
        let packs: Vec<(Listed, Fate)> = fates.collect();
        let totals = totals(&packs);
        Plan {
            stops: stops(&input, totals, tallies.lost),
            packs,
            broken: tallies.broken,
            totals,
        }
    }

    /// The packs to condemn, ascending.
    ///
    /// **Errors**: the first reason to collect nothing.
    pub fn going(&self) -> Result<impl Iterator<Item = PackId>, &Stop> {
        match self.stops.first() {
            Some(stop) => Err(stop),
            None => Ok(self.would_go()),
        }
    }

    /// The packs that go once nothing stops it, ascending.
    pub fn would_go(&self) -> impl Iterator<Item = PackId> {
        let going = self.packs.iter().filter(|(_, fate)| fate.goes());
        going.map(|(listed, _)| listed.pack)
    }

    /// The packs that are worth being written anew, ascending. All that needs them is known to live.
    pub fn repack(&self) -> impl Iterator<Item = (PackId, Repack)> {
        self.packs.iter().filter_map(|(listed, fate)| {
            let Fate::Stays(Blocked::Live {
                len_max,
                mixed: false,
            }) = fate
            else {
                return None;
            };
            let why = match () {
                () if len_max.saturating_mul(2) < listed.len => Repack::Sparse,
                () if listed.len < SMALL_LEN => Repack::Small,
                () => return None,
            };
            Some((listed.pack, why))
        })
    }
}

/// What is needed of one pack.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    live_len: u64,
    is_named: bool,
    is_live: bool,
    is_lingering: bool,
    is_unknown: bool,
}

/// What is needed of all packs, in the order of the listing.
struct Tallies {
    packs: Vec<Tally>,
    broken: Vec<Dot>,
    /// How many of these are durable.
    lost: usize,
}

impl Tallies {
    fn new(
        listed: &[Listed],
        references: &References,
        mut life: impl FnMut(&Dot) -> Life,
    ) -> Tallies {
        let place = |pack: &PackId| listed.binary_search_by_key(pack, |listed| listed.pack).ok();
        let places: Vec<Option<usize>> = references.packs().iter().map(place).collect();
        let mut tallies = Tallies {
            packs: vec![Tally::default(); listed.len()],
            broken: Vec::new(),
            lost: 0,
        };
        for place in places.iter().flatten() {
            tallies.packs[*place].is_named = true;
        }
        let mut needs = Vec::new();
        references.each_record(|dot, all| {
            let life = life(&dot);
            if life.is_over() {
                return;
            }
            let is_there = |need: &Need| places[need.pack as usize].is_some();
            let is_whole = all.iter().any(|needs| needs.iter().all(is_there));
            if !is_whole && matches!(life, Life::Live | Life::Durable) {
                tallies.broken.push(dot);
                tallies.lost += usize::from(life == Life::Durable);
            }
            needs.clear();
            needs.extend(all.iter().flat_map(|needs| needs.iter()).copied());
            tallies.count(&mut needs, &places, life);
        });
        tallies.broken.sort_unstable();
        tallies
    }

    /// Counts what one record needs, by all references to it; of each pack once.
    fn count(&mut self, needs: &mut [Need], places: &[Option<usize>], life: Life) {
        needs.sort_unstable_by_key(|need| (need.pack, need.len));
        for same in needs.chunk_by(|one, next| one.pack == next.pack) {
            let Some((need, place)) = same.last().and_then(|need| {
                let place = places[need.pack as usize]?;
                Some((need, place))
            }) else {
                continue;
            };
            let tally = &mut self.packs[place];
            match life {
                Life::Live | Life::Durable => {
                    tally.is_live = true;
                    tally.live_len += u64::from(need.len);
                }
                Life::Lingering => tally.is_lingering = true,
                Life::Unknown => tally.is_unknown = true,
                Life::Dead => {}
            }
        }
    }
}

fn fate(listed: &Listed, tally: &Tally, other: Option<NodeId>, input: &PlanInput<'_>) -> Fate {
    let Tally {
        live_len,
        is_named,
        is_live,
        is_lingering,
        is_unknown,
    } = *tally;
    if is_live {
        return Fate::Stays(Blocked::Live {
            len_max: live_len.min(listed.len),
            mixed: is_lingering || is_unknown,
        });
    }
    if is_unknown {
        return Fate::Stays(Blocked::Unknown);
    }
    if is_lingering {
        return Fate::Stays(Blocked::Lingering);
    }
    let age = input.now.server.since(listed.modified);
    if !is_named && age < input.limits.unnamed_age {
        return Fate::Stays(Blocked::Young);
    }
    match (other, is_named) {
        (Some(keeper), _) => Fate::Stays(Blocked::Condemned(keeper)),
        (None, true) => Fate::Dead,
        (None, false) => Fate::Unnamed,
    }
}

/// Which other keeper names a pack; of several the lowest.
fn others(others: &[(NodeId, Condemnations)]) -> HashMap<PackId, NodeId> {
    let mut by_pack = HashMap::new();
    for (keeper, sets) in others {
        for pack in sets.condemned.iter().chain(&sets.doomed) {
            let known = by_pack.entry(*pack).or_insert(*keeper);
            *known = (*known).min(*keeper);
        }
    }
    by_pack
}

fn totals(packs: &[(Listed, Fate)]) -> Totals {
    let mut totals = Totals::default();
    for (listed, fate) in packs {
        totals.packs += 1;
        totals.bytes = totals.bytes.saturating_add(listed.len);
        if fate.goes() {
            totals.going += 1;
            totals.freed = totals.freed.saturating_add(listed.len);
        }
    }
    totals
}

fn stops(input: &PlanInput<'_>, totals: Totals, lost: usize) -> Vec<Stop> {
    let damaged = input.damaged.iter().cloned();
    let mut stops: Vec<Stop> = damaged.map(|key| Stop::Damaged { key }).collect();
    let Clocks { server, own } = input.now;
    let apart = server.since(own).max(own.since(server));
    if apart > input.limits.clocks_apart_max {
        stops.push(Stop::Clocks { apart });
    }
    if lost > 0 {
        stops.push(Stop::Lost { records: lost });
    }
    let Totals { packs, going, .. } = totals;
    let max_percent = input.limits.share_max_percent;
    if going * 100 > packs * usize::from(max_percent) {
        stops.push(Stop::TooMany {
            going,
            packs,
            max_percent,
        });
    }
    stops
}

/// Bytes below which a pack is small.
const SMALL_LEN: u64 = 4 << 20;

#[cfg(test)]
mod tests;

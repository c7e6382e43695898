//! What must hold, whatever happens. What can be is looked at in the step that could break it; sizes
//! and standings once a second, whole states every ten seconds and in the end.
//!
//! | claim | |
//! |---|---|
//! | I3 | a path is shown only if a signature of its cache stands behind it |
//! | I4 | no chunk is taken for another |
//! | I5 | what was removed does not come back; no view of a log goes back |
//! | L2 | who has the same logs has the same state |
//! | revoked | who is known to be out is sent nothing, not heard, and its later words do not count |
//! | honest | no honest node is taken for a liar, refused its own records or put in quarantine |
//! | bounds | everything that peers can fill has a bound |
//! | settled | in the end all who can talk to each other know the same, have what they wanted, and show exactly what was pushed and not removed |

use std::collections::BTreeMap;
use std::time::Duration;

use attic_p2p::directory::{Directory, LogTip};
use attic_p2p::ids::{Dot, NodeId};
use attic_p2p::peer_stats::PEERS_MAX;
use attic_p2p::provider::{REQUESTS_MAX, SLOTS_MAX};
use attic_p2p::replica::Backlog;
use attic_store::StorePathHash;
use serde::Serialize;

use crate::sim::content::ThingIndex;
use crate::sim::gossip::SEEN_FOR;
use crate::sim::host::{Host, Index};
use crate::sim::logs::ASKED_MAX;
use crate::sim::mutant::Mutant;
use crate::sim::sources::FETCHING_MAX;
use crate::sim::world::{Happening, World};

mod settled;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Violation {
    /// Which claim does not hold.
    pub claim: &'static str,
    /// Virtual seconds since the begin.
    pub at: f64,
    /// At which host; none if it is about several.
    pub host: Option<usize>,
    /// What was seen.
    pub what: String,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) violations: Vec<Violation>,
    /// Who was taken out, and the last segment of theirs that counts.
    pub(crate) revoked: BTreeMap<Index, u64>,
    /// How far each host was in each log.
    floors: BTreeMap<Index, BTreeMap<NodeId, u64>>,
    /// Since when everything is as it should be.
    pub(crate) settled_at: Option<Duration>,
    whole_at: Duration,
}

impl Oracle {
    /// The disk of a host lost something: its views may be older than they were.
    pub(crate) fn forgive(&mut self, who: Index) {
        self.floors.remove(&who);
    }
}

impl World {
    pub(crate) fn violated(&mut self, claim: &'static str, host: Option<Index>, what: String) {
        if self.oracle.violations.len() < VIOLATIONS_MAX {
            let at = self.now().as_secs_f64();
            let violation = Violation {
                claim,
                at,
                host,
                what,
            };
            self.oracle.violations.push(violation);
        }
    }

    pub(super) fn is_honest(&self, at: Index) -> bool {
        self.hosts[at].manner.is_honest() && !self.oracle.revoked.contains_key(&at)
    }

    /// I5: a host's logs never become shorter.
    pub(crate) fn oracle_view(&mut self, at: Index) {
        let host = &self.hosts[at];
        let Some(directory) = host.directory() else {
            return;
        };
        let floors = self.oracle.floors.entry(at).or_default();
        let mut shorter = Vec::new();
        for other in &self.hosts {
            let floor = floors.entry(other.node).or_default();
            let seq = directory.seq(other.node);
            let excused = directory.is_quarantined(other.node) || directory.is_revoked(other.node);
            if seq < *floor && !excused {
                shorter.push(format!("log of {} went from {floor} to {seq}", other.node));
            }
            *floor = seq;
        }
        for what in shorter {
            self.violated("I5", Some(at), what);
        }
    }

    /// I3 and I5: what a host shows it may show.
    pub(crate) fn oracle_shown(&mut self, at: Index, hash: StorePathHash) {
        if !self.hosts[at].manner.is_honest() {
            return;
        }
        let Some(thing) = self.content.by_hash(&hash) else {
            return self.violated("I3", Some(at), format!("shows {hash}, which nobody pushed"));
        };
        if self.is_gone_for(at, thing) {
            self.violated(
                "I5",
                Some(at),
                format!("shows thing {thing}, which it knows removed"),
            );
        }
        let Some(replica) = &self.hosts[at].replica else {
            return;
        };
        let found = replica
            .directory()
            .path(replica.log(), self.charter.cache(), hash);
        if let Ok(Some((_, path))) = found
            && path != self.content.thing(thing).path
        {
            let what = format!("shows thing {thing} with another content than was pushed");
            self.violated("I3", Some(at), what);
        }
    }

    /// Whether all records of a thing that a host knows are removed by records that it knows.
    pub(crate) fn is_gone_for(&self, at: Index, thing: ThingIndex) -> bool {
        let host = &self.hosts[at];
        let Some(directory) = host.directory() else {
            return false;
        };
        if host.store.unsaid.contains(&thing) {
            return false;
        }
        let hash = self.content.thing(thing).hash();
        let said = self.ledger.said.get(&hash).into_iter().flatten();
        let mut newest = BTreeMap::<NodeId, Dot>::new();
        for dot in said.filter(|dot| counts(directory, dot)) {
            let kept = newest.entry(dot.node).or_insert(*dot);
            *kept = (*kept).max(*dot);
        }
        !newest.is_empty()
            && newest
                .values()
                .all(|dot| self.is_removed_for(directory, dot))
    }

    fn is_removed_for(&self, directory: &Directory, dot: &Dot) -> bool {
        let removals = self.ledger.removed.get(dot).into_iter().flatten();
        removals
            .into_iter()
            .any(|removal| counts(directory, removal))
    }

    /// I4: a chunk is put into the store.
    pub(crate) fn oracle_chunk(&mut self, at: Index, thing: ThingIndex, chunk: u32, right: bool) {
        if !right {
            let what = format!("takes other bytes for chunk {chunk} of thing {thing}");
            self.violated("I4", Some(at), what);
        }
    }

    /// Who is known to be out is sent nothing.
    pub(crate) fn oracle_sent(&mut self, from: Index, to: Index) {
        let sender = &self.hosts[from];
        if sender.manner.is_honest() && sender.door.is_revoked(self.hosts[to].node) {
            self.violated("revoked", Some(from), format!("sends to {to}, who is out"));
        }
    }

    /// Nor heard.
    pub(crate) fn oracle_heard(&mut self, from: Index, to: Index) {
        let receiver = &self.hosts[to];
        if receiver.manner.is_honest() && receiver.door.is_revoked(self.hosts[from].node) {
            self.violated("revoked", Some(to), format!("hears {from}, who is out"));
        }
    }

    /// No honest node is blamed by another.
    pub(crate) fn oracle_blamed(&mut self, by: Index, whom: Index, why: &str) {
        if self.is_honest(by) && self.is_honest(whom) {
            self.violated("honest", Some(by), format!("blames {whom}: {why}"));
        }
    }

    pub(crate) fn oracle_rejected(&mut self, at: Index, count: usize) {
        if self.is_honest(at) {
            self.violated(
                "honest",
                Some(at),
                format!("{count} own records are not taken"),
            );
        }
    }

    /// Looks at everything that has no moment of its own, and plans the next look.
    pub(crate) fn inspect(&mut self) {
        for at in 0..self.hosts.len() {
            if self.hosts[at].replica.is_some() {
                self.inspect_bounds(at);
                self.inspect_standing(at);
            }
        }
        let now = self.now();
        if now >= self.oracle.whole_at + WHOLE_EVERY {
            self.oracle.whole_at = now;
            self.inspect_all();
            for host in &self.hosts {
                if let Some(replica) = &host.replica {
                    replica.log().flush();
                }
            }
        }
        let ends = now >= self.script.last_act;
        if ends {
            self.look_whether_settled();
        }
        let next = if ends { LOOK_EVERY } else { INSPECT_EVERY };
        self.agenda.after(next, Happening::Inspect);
    }

    fn inspect_bounds(&mut self, at: Index) {
        let now = self.now();
        let host = &self.hosts[at];
        let stats = host.provider.stats();
        let backlog = host.replica.as_ref().map(|replica| replica.backlog());
        let backlog = backlog.unwrap_or_default();
        let sizes = [
            ("slots", stats.slots, SLOTS_MAX),
            ("requests", stats.requests, SLOTS_MAX * REQUESTS_MAX),
            ("peers", host.peers.summaries(now).count(), PEERS_MAX),
            ("asked", host.asked.len(), ASKED_MAX),
            ("fetching", host.fetching.len(), FETCHING_MAX),
            ("outbox", backlog.outbox_bytes, Backlog::OUTBOX_BYTES_MAX),
            ("waiting", backlog.waiting_bytes, Backlog::WAITING_BYTES_MAX),
            ("sessions", backlog.sessions, Backlog::SESSIONS_MAX),
            (
                "seconds of gossip",
                host.gossip.memory().as_secs() as usize,
                GOSSIP_SECONDS_MAX,
            ),
        ];
        for (what, size, max) in sizes {
            if size > max {
                self.violated("bounds", Some(at), format!("{size} {what}, not {max}"));
            }
        }
    }

    /// Nobody honest is in quarantine, and of who is out nothing counts that came later.
    fn inspect_standing(&mut self, at: Index) {
        let Some(directory) = self.hosts[at].directory() else {
            return;
        };
        let mut found = Vec::new();
        for (other, host) in self.hosts.iter().enumerate() {
            if host.manner.is_honest() && directory.is_quarantined(host.node) {
                found.push(("honest", format!("has {other} in quarantine")));
            }
        }
        for (other, upto) in &self.oracle.revoked {
            let node = self.hosts[*other].node;
            if directory.is_revoked(node) && directory.seq(node) > *upto {
                let what = format!(
                    "counts segment {} of {other}, who is out",
                    directory.seq(node)
                );
                found.push(("revoked", what));
            }
        }
        for (claim, what) in found {
            self.violated(claim, Some(at), what);
        }
    }

    /// The expensive part: what each host shows, and whether equal logs are equal states.
    pub(super) fn inspect_all(&mut self) {
        for at in 0..self.hosts.len() {
            for hash in self.hosts[at].shown.clone() {
                if self.ledger.said.contains_key(&hash) || self.content.by_hash(&hash).is_none() {
                    self.oracle_removed(at, hash);
                }
            }
        }
        let mut states = Vec::<(Vec<LogTip>, [u8; 32], Index)>::new();
        let mut differing = Vec::new();
        for (at, host) in self.hosts.iter().enumerate() {
            let Some(directory) = host.directory() else {
                continue;
            };
            let (tips, digest) = (directory.tips(), self.digest(host, directory));
            match states.iter().find(|(known, ..)| *known == tips) {
                Some((_, known, other)) if *known != digest => differing.push((at, *other)),
                Some(_) => {}
                None => states.push((tips, digest, at)),
            }
        }
        for (at, other) in differing {
            let what = format!("has the logs of {other} and another state");
            self.violated("L2", Some(at), what);
        }
    }

    fn digest(&self, host: &Host, directory: &Directory) -> [u8; 32] {
        match self.is(Mutant::FoldsByArrival) {
            true => *blake3::hash(&host.traffic.gossip.to_le_bytes()).as_bytes(),
            false => directory.digest(),
        }
    }

    fn oracle_removed(&mut self, at: Index, hash: StorePathHash) {
        match self.content.by_hash(&hash) {
            Some(thing) if self.hosts[at].manner.is_honest() && self.is_gone_for(at, thing) => {
                let what = format!("still shows thing {thing}, which it knows removed");
                self.violated("I5", Some(at), what);
            }
            Some(_) | None => {}
        }
    }
}

/// Whether a record is among those that a directory has folded.
pub(super) fn counts(directory: &Directory, dot: &Dot) -> bool {
    directory.seq(dot.node) >= dot.seq && !directory.is_quarantined(dot.node)
}

const INSPECT_EVERY: Duration = Duration::from_secs(1);
/// Once nothing more is to happen.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const WHOLE_EVERY: Duration = Duration::from_secs(10);
const VIOLATIONS_MAX: usize = 10;
const GOSSIP_SECONDS_MAX: usize = SEEN_FOR.as_secs() as usize + 1;

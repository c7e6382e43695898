//! Whether everything is as it should be in the end: who can talk knows the same, has what it wanted,
//! and shows exactly what was pushed and not removed.

use std::collections::{BTreeMap, BTreeSet};

use attic_p2p::directory::Directory;
use attic_p2p::ids::NodeId;
use attic_p2p::log::Log;

use crate::sim::content::ThingIndex;
use crate::sim::host::{Host, Index, State};
use crate::sim::oracle::counts;
use crate::sim::world::World;

impl World {
    pub(super) fn look_whether_settled(&mut self) {
        let settled = self.unsettled().is_none();
        let now = self.now();
        match (settled, self.oracle.settled_at) {
            (true, None) => {
                self.oracle.settled_at = Some(now);
                self.tally.settled = Some((self.script.last_act, now));
            }
            (false, Some(_)) => self.oracle.settled_at = None,
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Why not everything is as it should be in the end.
    fn unsettled(&self) -> Option<String> {
        let taking_part: Vec<Index> = (0..self.hosts.len())
            .filter(|at| self.takes_part(*at))
            .collect();
        for at in &taking_part {
            let host = &self.hosts[*at];
            let Some(replica) = &host.replica else {
                continue;
            };
            let backlog = replica.backlog();
            let busy = [
                (replica.is_starting(), "does not write its log yet"),
                (backlog.outbox_bytes > 0, "has something to say"),
                (
                    !host.store.unsaid.is_empty(),
                    "has pushed what it has not said",
                ),
                (self.wants_what_is_there(*at), "has not got what is there"),
            ];
            if let Some((_, what)) = busy.iter().find(|(is, _)| *is) {
                return Some(format!("{at} {what}"));
            }
        }
        for group in self.groups(&taking_part) {
            let tips = |at: Index| self.hosts[at].directory().map(Directory::tips);
            let first = tips(group[0]);
            if let Some(other) = group.iter().find(|at| tips(**at) != first) {
                return Some(format!("{} and {other} know different things", group[0]));
            }
        }
        None
    }

    /// Whether a client waits for something, or it is being fetched, that somebody in reach holds.
    fn wants_what_is_there(&self, at: Index) -> bool {
        let held = |thing: &ThingIndex| {
            let others = (0..self.hosts.len()).filter(|other| self.takes_part(*other));
            let mut others = others.filter(|other| *other != at && self.links.connects(at, *other));
            others.any(|other| self.hosts[other].store.held.contains(thing))
        };
        let shown = |thing: &&ThingIndex| {
            let hash = self.content.thing(**thing).hash();
            self.hosts[at].shown.contains(&hash)
        };
        let host = &self.hosts[at];
        let wanted = host.wants.iter().filter(shown);
        !host.disk_is_full() && wanted.chain(host.flights.keys()).any(held)
    }

    /// Whether a host must be as it should be in the end: honest, awake, in the cluster, and with a
    /// clock by which certificates are valid.
    fn takes_part(&self, at: Index) -> bool {
        let host = &self.hosts[at];
        let wall = host.clock.wall(self.now());
        let sane = wall <= host.certificate.value().not_after.0;
        host.state == State::Running && self.is_honest(at) && sane && !host.disk_is_full()
    }

    /// Those who can reach each other.
    fn groups(&self, hosts: &[Index]) -> Vec<Vec<Index>> {
        let mut left: BTreeSet<Index> = hosts.iter().copied().collect();
        let mut groups = Vec::new();
        while let Some(first) = left.pop_first() {
            let mut group = vec![first];
            let mut next = 0;
            while let Some(at) = group.get(next).copied() {
                let near = left
                    .iter()
                    .copied()
                    .filter(|other| self.links.connects(at, *other));
                let near: Vec<Index> = near.collect();
                left.retain(|other| !near.contains(other));
                group.extend(near);
                next += 1;
            }
            groups.push(group);
        }
        groups
    }

    /// It should be settled by now.
    pub(crate) fn oracle_deadline(&mut self) {
        if self.oracle.settled_at.is_some() {
            return self.oracle_end();
        }
        let why = self.unsettled();
        let why = why.unwrap_or_else(|| "settled too late".to_owned());
        let after = self.script.patience;
        self.violated(
            "settled",
            None,
            format!("{after:?} after the last step, {why}"),
        );
        self.inspect_all();
    }

    /// The last look: everybody shows what was pushed and not removed, and nothing else.
    pub(crate) fn oracle_end(&mut self) {
        self.inspect_all();
        let taking_part = (0..self.hosts.len()).filter(|at| self.takes_part(*at));
        for at in taking_part.collect::<Vec<_>>() {
            for thing in 0..self.content.len() {
                let hash = self.content.thing(thing).hash();
                let shows = self.hosts[at].shown.contains(&hash);
                let wrong = match self.must_show(at, thing) {
                    Some(must) if must != shows => format!("must show thing {thing}: {must}"),
                    Some(_) | None => continue,
                };
                self.violated("settled", Some(at), wrong);
            }
        }
    }

    /// Whether a host must show a thing, by what it knows; `None` where nothing follows.
    fn must_show(&self, at: Index, thing: ThingIndex) -> Option<bool> {
        let directory = self.hosts[at].directory()?;
        let hash = self.content.thing(thing).hash();
        let said = self.ledger.said.get(&hash).into_iter().flatten();
        let mut known = said.filter(|dot| counts(directory, dot)).peekable();
        known.peek()?;
        Some(!self.is_gone_for(at, thing))
    }

    /// What each host lacks of what others have, in bytes.
    pub(crate) fn missing_bytes(&self) -> Vec<u64> {
        let mut farthest = BTreeMap::<NodeId, (u64, Index)>::new();
        for (at, host) in self.hosts.iter().enumerate() {
            for tip in host.directory().map(Directory::tips).unwrap_or_default() {
                let best = farthest.entry(tip.node).or_insert((tip.seq, at));
                *best = (*best).max((tip.seq, at));
            }
        }
        let len = |node: NodeId, seq: u64, at: Index| {
            let replica = self.hosts[at].replica.as_ref()?;
            let bytes = replica.log().read(node, seq).ok().flatten()?;
            Some(bytes.len() as u64)
        };
        let missing = |host: &Host| {
            let Some(directory) = host.directory() else {
                return 0;
            };
            let ends = farthest.iter();
            let lacking = ends.flat_map(|(node, (last, at))| {
                (directory.seq(*node) + 1..=*last).filter_map(|seq| len(*node, seq, *at))
            });
            lacking.sum()
        };
        self.hosts.iter().map(missing).collect()
    }
}

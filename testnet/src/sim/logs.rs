//! Drives the replica of each host: events in, what it says is to be done.

use std::time::Duration;

use attic_p2p::directory::Change;
use attic_p2p::ids::NodeId;
use attic_p2p::log::Log;
use attic_p2p::record::{Del, DelReason, NarTag, Record};
use attic_p2p::replica::{Action, Event, Verdict};
use attic_p2p::segment::Segment;
use attic_store::StorePathHash;
use bytes::Bytes;

use crate::sim::agenda::Note;
use crate::sim::content::ThingIndex;
use crate::sim::host::Index;
use crate::sim::mutant::Mutant;
use crate::sim::world::{Happening, Message, World};

impl World {
    /// Tells a running host's replica what happened; returns its verdict on what was gossiped.
    pub(crate) fn tell_replica(&mut self, at: Index, event: Event) -> Option<Verdict> {
        let now = self.now();
        let host = &mut self.hosts[at];
        let replica = host.replica.as_mut()?;
        let actions = replica.handle(host.clock.millis(now), event);
        let is_starting = replica.is_starting();
        let mut verdict = None;
        for action in actions {
            match action {
                Action::Judge(given) => verdict = Some(given),
                other => self.act(at, other),
            }
        }
        if self.hosts[at].was_starting && !is_starting && self.hosts[at].replica.is_some() {
            self.hosts[at].was_starting = false;
            self.writable(at);
        }
        verdict
    }

    fn act(&mut self, at: Index, action: Action) {
        match action {
            Action::Publish(bytes) => self.written(at, bytes),
            Action::Request { to, id, bytes } => self.ask(at, to, id, bytes),
            Action::Respond { id, bytes } => {
                if let Some((asker, id)) = self.hosts[at].asked.remove(&id) {
                    self.send(at, asker, Message::Answer { id, bytes });
                }
            }
            Action::Changed(changes) => self.changed(at, &changes),
            Action::Misbehaved { node, why } => {
                if let Some(other) = self.index(node) {
                    self.oracle_blamed(at, other, &why);
                    self.ban(at, other, BANNED_FOR);
                }
            }
            Action::Rejected(records) => self.oracle_rejected(at, records.len()),
            Action::LogFailed(_) => self.tally.log_failures += 1,
            Action::Wake(when) => {
                let host = &mut self.hosts[at];
                let (now, life) = (self.agenda.now(), host.life);
                let when = host.clock.when(now, when);
                host.wake = Some(when);
                self.agenda
                    .at(when, Happening::ReplicaWake { at, life, when });
            }
            Action::Judge(_) => {}
        }
    }

    /// An own segment is in the log: the world takes note, and others shall know.
    fn written(&mut self, at: Index, bytes: Bytes) {
        self.note(Note::Written, [at as u64, bytes.len() as u64, 0]);
        if let Ok(segment) = Segment::decode(bytes.clone()) {
            self.enter(at, &segment);
        }
        self.publish(at, bytes);
    }

    /// Enters what an honest node said into the ledger.
    pub(crate) fn enter(&mut self, at: Index, segment: &Segment) {
        if !self.hosts[at].manner.is_honest() {
            return;
        }
        let author = segment.head().node;
        for entry in segment.entries() {
            let dot = entry.dot(author);
            match entry.record.read() {
                Record::Path(path) => {
                    let hash = *path.info.path.hash();
                    self.ledger.said.entry(hash).or_default().push(dot);
                    if let Some(thing) = self.content.by_hash(&hash) {
                        self.hosts[at].store.unsaid.remove(&thing);
                    }
                }
                Record::Del(del) => {
                    for removed in del.dots {
                        self.ledger.removed.entry(removed).or_default().push(dot);
                    }
                }
                _ => {}
            }
        }
    }

    fn ask(&mut self, at: Index, to: NodeId, id: u64, bytes: Bytes) {
        let life = self.hosts[at].life;
        if self.is(Mutant::NeverCompares) {
            return;
        }
        let to = self
            .index(to)
            .filter(|to| self.hosts[at].links.contains_key(to));
        let Some(to) = to else {
            return;
        };
        self.send(at, to, Message::Ask { id, bytes });
        let unanswered = Happening::Unanswered { at, life, to, id };
        self.agenda.after(REQUEST_DEADLINE, unanswered);
    }

    pub(crate) fn asked(&mut self, from: Index, at: Index, their_id: u64, bytes: Bytes) {
        let host = &mut self.hosts[at];
        host.next_asked += 1;
        let id = host.next_asked;
        if host.asked.len() >= ASKED_MAX {
            host.asked.pop_first();
        }
        host.asked.insert(id, (from, their_id));
        let from = self.hosts[from].node;
        self.tell_replica(at, Event::Request { from, id, bytes });
    }

    pub(crate) fn answered(&mut self, from: Index, at: Index, id: u64, bytes: Option<Bytes>) {
        let from = self.hosts[from].node;
        self.tell_replica(at, Event::Response { from, id, bytes });
    }

    pub(crate) fn replica_wake(&mut self, at: Index, life: u64, when: Duration) {
        let host = &mut self.hosts[at];
        if host.life == life && host.wake == Some(when) && host.is_running() {
            host.wake = None;
            self.tell_replica(at, Event::Tick);
        }
    }

    /// The directory of a host is different: what follows for what it shows, wants and trusts.
    fn changed(&mut self, at: Index, changes: &[Change]) {
        self.oracle_view(at);
        let mut everything = false;
        let mut members = false;
        for change in changes {
            match change {
                Change::Path { hash, .. } => self.look_again(at, *hash),
                Change::Holders(tag) => self.holders_changed(at, *tag),
                Change::Member(_) => members = true,
                Change::Cache(_) | Change::Everything => everything = true,
                Change::Grant(_) | Change::Pins(_) | Change::Durable(_) => {}
            }
        }
        if members || everything {
            self.members_changed(at);
        }
        if everything {
            self.look_at_everything(at);
        }
    }

    /// Who was taken out is out.
    fn members_changed(&mut self, at: Index) {
        let host = &self.hosts[at];
        if let Some(directory) = host.directory() {
            host.door.take_revocations(directory);
        }
        if self.is(Mutant::AdmitsAnybody) {
            return;
        }
        let linked = host.links.keys().copied();
        let out = linked.filter(|other| host.door.is_revoked(self.hosts[*other].node));
        for other in out.collect::<Vec<_>>() {
            self.ban(at, other, REVOKED_FOR);
        }
    }

    pub(crate) fn look_at_everything(&mut self, at: Index) {
        let cache = self.charter.cache();
        let Some(directory) = self.hosts[at].directory() else {
            return;
        };
        let mut hashes = self.hosts[at].shown.clone();
        hashes.extend(directory.paths(cache, None, usize::MAX));
        let rows = self.hosts[at].store.rows.iter();
        hashes.extend(rows.map(|thing| self.content.thing(*thing).hash()));
        for hash in hashes {
            self.look_again(at, hash);
        }
    }

    /// What a host answers for one path, after something about it may have changed.
    pub(crate) fn look_again(&mut self, at: Index, hash: StorePathHash) {
        let thing = self.content.by_hash(&hash);
        let said = self.believes(at, hash);
        if !said && let Some(thing) = thing {
            self.prune(at, thing);
        }
        let host = &mut self.hosts[at];
        let row = thing.is_some_and(|thing| host.store.rows.contains(&thing));
        let shows = said || row;
        let changed = match shows {
            true => host.shown.insert(hash),
            false => host.shown.remove(&hash),
        };
        if changed {
            let note = if shows { Note::Shown } else { Note::Hidden };
            self.note(note, [at as u64, thing.unwrap_or(usize::MAX) as u64, 0]);
            self.tally.shown(self.agenda.now(), at, thing, shows);
        }
        if shows {
            self.oracle_shown(at, hash);
            if let Some(thing) = thing {
                self.may_begin(at, thing);
            }
        }
    }

    /// Whether the directory answers for a path.
    fn believes(&self, at: Index, hash: StorePathHash) -> bool {
        let Some(replica) = &self.hosts[at].replica else {
            return false;
        };
        let (directory, cache) = (replica.directory(), self.charter.cache());
        if self.is(Mutant::BelievesAnyRecord) {
            let said = self.said_at_all(at, hash);
            return said;
        }
        let found = directory.path(replica.log(), cache, hash);
        found.expect("a simulated log can be read").is_some()
    }

    /// Whether any log has a record of the path, whoever wrote it.
    fn said_at_all(&self, at: Index, hash: StorePathHash) -> bool {
        let Some(replica) = &self.hosts[at].replica else {
            return false;
        };
        let log = replica.log();
        let of = |node: NodeId| {
            let (first, last) = log.range(node).unwrap_or((1, 0));
            (first..=last).filter_map(move |seq| log.read(node, seq).ok().flatten())
        };
        let mut segments = log.nodes().into_iter().flat_map(of);
        segments.any(|bytes| {
            let segment = Segment::decode(bytes);
            let says = |segment: Segment| {
                segment.entries().any(|entry| match entry.record.read() {
                    Record::Path(path) => *path.info.path.hash() == hash,
                    _ => false,
                })
            };
            segment.is_ok_and(says)
        })
    }

    /// Takes a path off the local rows that nobody says any more.
    fn prune(&mut self, at: Index, thing: ThingIndex) {
        if self.is(Mutant::ForgetsRemovals) && self.hosts[at].life > 1 {
            return;
        }
        let hash = self.content.thing(thing).hash();
        let cache = self.charter.cache();
        let host = &mut self.hosts[at];
        let is_said = host
            .replica
            .as_ref()
            .is_some_and(|replica| !replica.directory().dots(cache, hash).is_empty());
        if !is_said && !host.store.unsaid.contains(&thing) {
            host.store.rows.remove(&thing);
        }
    }

    /// The log takes records now: what was not said yet is said, and what is held.
    fn writable(&mut self, at: Index) {
        let Some(directory) = self.hosts[at].directory() else {
            return;
        };
        let me = self.hosts[at].node;
        let said = directory.held_by(me);
        let held = self.hosts[at].store.held.iter();
        let held = held.map(|thing| self.content.thing(*thing).tag());
        let mut held: Vec<NarTag> = held.collect();
        held.sort_unstable();
        let mut records = Vec::new();
        let unsaid = self.hosts[at].store.unsaid.iter();
        records.extend(unsaid.map(|thing| Record::Path(self.content.thing(*thing).path.clone())));
        let new = held.iter().filter(|tag| said.binary_search(tag).is_err());
        let new: Vec<NarTag> = new.copied().collect();
        let gone = said.iter().filter(|tag| held.binary_search(tag).is_err());
        let gone: Vec<NarTag> = gone.copied().collect();
        records.extend(new.chunks(TAGS_MAX).map(|tags| Record::Hold(tags.to_vec())));
        if self.hosts[at].manner.is_honest() {
            records.extend(
                gone.chunks(TAGS_MAX)
                    .map(|tags| Record::Release(tags.to_vec())),
            );
        }
        if directory.member(me).is_none() {
            records.push(Record::Member(self.hosts[at].certificate.clone()));
        }
        if !records.is_empty() {
            self.tell_replica(at, Event::Local(records));
        }
    }

    /// A path is pushed at a host: it is published there at once, and announced.
    pub(crate) fn push(&mut self, at: Index, thing: ThingIndex) {
        let store = &mut self.hosts[at].store;
        store.held.insert(thing);
        store.rows.insert(thing);
        store.unsaid.insert(thing);
        let (hash, tag) = (
            self.content.thing(thing).hash(),
            self.content.thing(thing).tag(),
        );
        let now = self.now();
        self.tally.pushed(now, thing);
        self.look_again(at, hash);
        let path = self.content.thing(thing).path.clone();
        let records = vec![Record::Path(path), Record::Hold(vec![tag])];
        self.tell_replica(at, Event::Local(records));
    }

    /// A path is removed at a host: all records of it that it knows.
    pub(crate) fn remove(&mut self, at: Index, thing: ThingIndex) {
        let hash = self.content.thing(thing).hash();
        let Some(directory) = self.hosts[at].directory() else {
            return;
        };
        let dots = directory.dots(self.charter.cache(), hash);
        if dots.is_empty() || !self.hosts[at].shown.contains(&hash) {
            return;
        }
        let now = self.now();
        self.tally.removed(now, thing);
        let store = &mut self.hosts[at].store;
        store.rows.remove(&thing);
        store.unsaid.remove(&thing);
        let reason = DelReason::Removed;
        let del = Record::Del(Del { dots, reason });
        self.tell_replica(at, Event::Local(vec![del]));
    }

    /// Somebody with the cluster's key takes `who` out, at the host `at`.
    pub(crate) fn revoke(&mut self, at: Index, who: Index) {
        let node = self.hosts[who].node;
        let upto = self.hosts[at].last_seq(node);
        let revocation = self.charter.revocation(node, upto);
        self.oracle.revoked.insert(who, upto);
        self.tell_replica(at, Event::Local(vec![Record::Revoke(revocation)]));
    }
}

/// As a node does with members that misbehave, and with those that are out.
const BANNED_FOR: Duration = Duration::from_secs(600);
const REVOKED_FOR: Duration = Duration::from_secs(3600);
/// As a node's control protocol has it.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Requests of peers that wait for the replica: it answers each at once.
pub(crate) const ASKED_MAX: usize = 64;
/// Tags in one record.
const TAGS_MAX: usize = 1024;

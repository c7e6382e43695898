//! Whom to send what, and in which order: the answering side of the bulk stream.
//!
//! A [`Provider`] is a value: frames of askers, answers of the store and progress of the streams go
//! in; look-ups, reads and frames to send come out. It holds no bytes of its own but those of
//! manifests being sent.
//!
//! - At most [`SLOTS_MAX`] peers are served at a time. Others are told when to ask again rather than
//!   queued, and a peer that has had its [`TURN_LEN`] makes room when others wait.
//! - Peers are served in turn, a like number of bytes each; whoever fetches for a client comes
//!   before whoever replicates.
//! - Whoever asks what is held of an object is fetching it, and hears who else is: so those who fetch
//!   the same at the same time meet at its holders and trade. Nothing of it is told to anybody who
//!   does not ask for that very object, or who must not know of it.
//! - What is read for a peer and has not left for it is bounded by [`UNSENT_MAX`], what it has not
//!   yet consumed by the credit it gave.
//!
//! Times are durations since any fixed moment.

mod asker;
mod event;
mod watches;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::ids::NodeId;
use crate::wire::{
    ChunkRange, ErrorCode, Frame, Have, MANIFEST_PART_LEN_MAX, Object, Priority, RequestNumber,
};

use asker::{Asker, Item, Job};

pub use event::{Action, Event, Holding, JobId, ProviderStats};

/// The most peers served at a time.
///
/// About as many as a download asks ([`ACTIVE_MAX`](crate::fetch::ACTIVE_MAX)), so that demand fits
/// supply and a refused peer finds an idle one. With more, a crowd crowds around the nodes that were
/// first: in the simulated flash crowd of 32 the median is 1.6 of the ideal with 16 slots, 1.3 with
/// 8, 1.2 with 6.
pub const SLOTS_MAX: usize = 6;
/// Of these, how many may be replicating; the rest is kept for clients.
pub const BACKGROUND_SLOTS_MAX: usize = 3;
/// The most unanswered requests of one peer; more are refused as busy.
pub const REQUESTS_MAX: usize = 64 + crate::wire::OBJECTS_MAX;
/// The most objects one peer may watch; more are answered as not found.
pub const WATCHES_MAX: usize = 256;
/// Bytes read for one peer that have not left for it, beyond one chunk.
pub const UNSENT_MAX: u64 = 512 << 10;
/// Bytes after which a peer makes room for others that wait.
pub const TURN_LEN: u64 = 64 << 20;
/// The largest NAR that is sent whole for a [`Frame::GetMany`], in bytes of frames.
pub const SMALL_LEN_MAX: u64 = 4 << 20;
/// When a refused peer should ask again.
pub const RETRY: Duration = Duration::from_millis(100);

/// Serves all peers of a node.
#[derive(Debug, Default)]
pub struct Provider {
    askers: BTreeMap<NodeId, Asker>,
    /// Whom to serve next, first to last; every peer with requests, once.
    turns: VecDeque<NodeId>,
    lookups: BTreeMap<JobId, Lookup>,
    reads: BTreeMap<JobId, ReadUnderWay>,
    watchers: BTreeMap<Object, BTreeSet<(NodeId, RequestNumber)>>,
    next_job: u64,
    /// When somebody was last refused a slot.
    refused_at: Option<Duration>,
    stats: ProviderStats,
}

#[derive(Debug)]
struct Lookup {
    peer: NodeId,
    req: RequestNumber,
    object: Object,
    wanted: Wanted,
}

#[derive(Debug)]
enum Wanted {
    Have,
    Manifest,
    Whole,
    Chunks {
        ranges: Vec<ChunkRange>,
        priority: Priority,
        expires: Duration,
    },
}

#[derive(Debug)]
struct ReadUnderWay {
    peer: NodeId,
    req: RequestNumber,
    chunk: u32,
    len: u64,
}

impl Provider {
    /// Serves nobody yet.
    pub fn new() -> Provider {
        Provider::default()
    }

    /// Takes in what happened; returns what to do, in order.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Frame { peer, frame } => self.frame(now, peer, frame, &mut actions),
            Event::Gone { peer } => self.gone(peer),
            Event::Found { job, holding } => self.found(now, job, &holding, &mut actions),
            Event::Absent { job } => self.absent(job, &mut actions),
            Event::Forbidden { job } => self.forbidden(job, &mut actions),
            Event::Begun { object } => self.begun(&object, &mut actions),
            Event::Read { job, bytes } => self.read(job, bytes, &mut actions),
            Event::Sent { peer, bytes } => {
                if let Some(asker) = self.askers.get_mut(&peer) {
                    asker.unsent = asker.unsent.saturating_sub(bytes);
                }
            }
            Event::Gained { object, segments } => self.gained(object, &segments, &mut actions),
            Event::Tick => self.expire(now, &mut actions),
        }
        self.serve(now, &mut actions);
        actions
    }

    /// How busy it is.
    pub fn stats(&self) -> ProviderStats {
        ProviderStats {
            slots: self.slots(),
            requests: self.askers.values().map(Asker::requests).sum(),
            ..self.stats
        }
    }

    fn frame(&mut self, now: Duration, peer: NodeId, frame: Frame, actions: &mut Vec<Action>) {
        match frame {
            Frame::HaveQuery { req, object } => self.watch(peer, req, object, actions),
            Frame::ManifestQuery { req, object } => {
                self.admit(now, peer, req, object, Wanted::Manifest, actions);
            }
            Frame::Get {
                req,
                object,
                ranges,
                priority,
                deadline,
            } => {
                let expires = now + deadline;
                let wanted = Wanted::Chunks {
                    ranges,
                    priority,
                    expires,
                };
                self.admit(now, peer, req, object, wanted, actions);
            }
            Frame::GetMany { req, objects } => {
                for (index, object) in (0..).zip(objects) {
                    let req = req.wrapping_add(index);
                    self.admit(now, peer, req, object, Wanted::Whole, actions);
                }
            }
            Frame::Cancel { req } => self.cancel(peer, req),
            Frame::Credit { bytes } => self.asker(peer).credited(bytes),
            Frame::Hello(_)
            | Frame::Have { .. }
            | Frame::HaveDelta { .. }
            | Frame::Others { .. }
            | Frame::Data { .. }
            | Frame::Busy { .. }
            | Frame::NotFound { .. }
            | Frame::Error { .. }
            | Frame::Manifest { .. } => {}
        }
    }

    fn asker(&mut self, peer: NodeId) -> &mut Asker {
        self.askers.entry(peer).or_default()
    }

    /// Peers with requests under way.
    fn slots(&self) -> usize {
        self.askers
            .values()
            .filter(|asker| asker.requests() > 0)
            .count()
    }

    /// Looks a requested object up, or refuses.
    fn admit(
        &mut self,
        now: Duration,
        peer: NodeId,
        req: RequestNumber,
        object: Object,
        wanted: Wanted,
        actions: &mut Vec<Action>,
    ) {
        let background = matches!(
            &wanted,
            Wanted::Chunks {
                priority: Priority::Background,
                ..
            }
        );
        if !self.has_slot(now, peer, background) {
            self.stats.refused += 1;
            let frame = Frame::Busy { req, retry: RETRY };
            actions.push(Action::Send { peer, frame });
            return;
        }
        self.asker(peer).looked_up += 1;
        self.look_up(peer, req, object, wanted, actions);
    }

    /// Whether one more request of a peer is taken on.
    fn has_slot(&mut self, now: Duration, peer: NodeId, background: bool) -> bool {
        let slots = self.slots();
        let contested = self.refused_at.is_some_and(|at| now < at + CONTESTED_FOR);
        let asker = self.asker(peer);
        let serving = asker.requests() > 0;
        if serving {
            let turn_over = contested && asker.sent_in_turn >= TURN_LEN;
            return !turn_over && asker.requests() < REQUESTS_MAX;
        }
        asker.sent_in_turn = 0;
        let free = slots
            < if background {
                BACKGROUND_SLOTS_MAX
            } else {
                SLOTS_MAX
            };
        if !free && !background {
            self.refused_at = Some(now);
        }
        free
    }

    fn look_up(
        &mut self,
        peer: NodeId,
        req: RequestNumber,
        object: Object,
        wanted: Wanted,
        actions: &mut Vec<Action>,
    ) {
        let job = self.job();
        self.lookups.insert(
            job,
            Lookup {
                peer,
                req,
                object,
                wanted,
            },
        );
        actions.push(Action::LookUp { job, peer, object });
    }

    fn job(&mut self) -> JobId {
        self.next_job += 1;
        JobId(self.next_job)
    }

    fn cancel(&mut self, peer: NodeId, req: RequestNumber) {
        let Some(asker) = self.askers.get_mut(&peer) else {
            return;
        };
        asker.jobs.retain(|job| job.req != req);
        if let Some(object) = asker.unwatch(req) {
            self.unwatch(peer, req, &object);
        }
        let cancelled = |lookup: &Lookup| lookup.peer == peer && lookup.req == req;
        let of = self.lookups.iter().filter(|(_, lookup)| cancelled(lookup));
        for job in of.map(|(job, _)| *job).collect::<Vec<_>>() {
            self.take_lookup(job);
        }
    }

    fn gone(&mut self, peer: NodeId) {
        for (req, object) in self
            .askers
            .remove(&peer)
            .into_iter()
            .flat_map(Asker::watches)
        {
            self.unwatch(peer, req, &object);
        }
        self.lookups.retain(|_, lookup| lookup.peer != peer);
        self.reads.retain(|_, read| read.peer != peer);
        self.turns.retain(|turn| *turn != peer);
    }

    fn absent(&mut self, job: JobId, actions: &mut Vec<Action>) {
        let Some(lookup) = self.take_lookup(job) else {
            return;
        };
        let (peer, req) = (lookup.peer, lookup.req);
        match lookup.wanted {
            // More follows if this node begins to fetch it.
            Wanted::Have => self.answer_watch(peer, req, Have::Nothing, actions),
            Wanted::Manifest | Wanted::Whole | Wanted::Chunks { .. } => {
                not_found(peer, req, actions);
            }
        }
    }

    /// Answers as if there were no such thing; nothing is told later either.
    fn forbidden(&mut self, job: JobId, actions: &mut Vec<Action>) {
        let Some(lookup) = self.take_lookup(job) else {
            return;
        };
        let (peer, req) = (lookup.peer, lookup.req);
        if let Wanted::Have = lookup.wanted {
            self.asker(peer).unwatch(req);
            self.unwatch(peer, req, &lookup.object);
        }
        not_found(peer, req, actions);
    }

    fn take_lookup(&mut self, job: JobId) -> Option<Lookup> {
        let lookup = self.lookups.remove(&job)?;
        if lookup.is_request() {
            self.asker(lookup.peer).looked_up -= 1;
        }
        Some(lookup)
    }

    fn found(&mut self, now: Duration, job: JobId, holding: &Holding, actions: &mut Vec<Action>) {
        let Some(lookup) = self.take_lookup(job) else {
            return;
        };
        let (peer, req) = (lookup.peer, lookup.req);
        let everything = [ChunkRange {
            first: 0,
            count: holding.layout.chunks(),
        }];
        let small = holding.layout.bytes() <= SMALL_LEN_MAX;
        let in_bounds = |range: &ChunkRange| {
            let end = range.first.checked_add(range.count);
            end.is_some_and(|end| end <= holding.layout.chunks())
        };
        let job = |priority, expires| {
            let layout = holding.layout.clone();
            Job::new(req, lookup.object, layout, priority, expires)
        };
        let client = || job(Priority::Client, now + UNHURRIED);
        let job = match lookup.wanted {
            Wanted::Have => {
                let have = holding.have.clone();
                return self.answer_watch(peer, req, have, actions);
            }
            Wanted::Manifest => client().with_manifest(holding.manifest.clone()),
            Wanted::Whole if small => client()
                .with_manifest(holding.manifest.clone())
                .with_chunks(&everything),
            Wanted::Chunks {
                ranges,
                priority,
                expires,
            } if ranges.iter().all(in_bounds) => job(priority, expires).with_chunks(&ranges),
            Wanted::Whole | Wanted::Chunks { .. } => {
                let code = ErrorCode::Malformed;
                let frame = Frame::Error { req, code };
                actions.push(Action::Send { peer, frame });
                return;
            }
        };
        self.asker(peer).jobs.push_back(job);
        if !self.turns.contains(&peer) {
            self.turns.push_back(peer);
        }
    }

    fn read(&mut self, id: JobId, bytes: Option<Bytes>, actions: &mut Vec<Action>) {
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        let (peer, req, chunk) = (read.peer, read.req, read.chunk);
        let asker = self.asker(peer);
        let wanted = asker.read_done(req);
        let frame = match (wanted, bytes) {
            (Some(last), Some(bytes)) => {
                // The store says how long it really was.
                asker.unsent = (asker.unsent + bytes.len() as u64).saturating_sub(read.len);
                asker.sent_in_turn += bytes.len() as u64;
                self.stats.sent += bytes.len() as u64;
                Frame::Data {
                    req,
                    chunk,
                    last,
                    bytes,
                }
            }
            (wanted, _) => {
                asker.refund(read.len);
                match wanted {
                    Some(_) => Frame::NotFound {
                        req,
                        chunk: Some(chunk),
                    },
                    None => return,
                }
            }
        };
        actions.push(Action::Send { peer, frame });
    }

    fn expire(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for (peer, asker) in &mut self.askers {
            for job in asker.jobs.extract_if_expired(now) {
                let (req, code) = (job.req, ErrorCode::Expired);
                let frame = Frame::Error { req, code };
                actions.push(Action::Send { peer: *peer, frame });
            }
        }
        self.turns.retain(|peer| {
            self.askers
                .get(peer)
                .is_some_and(|asker| !asker.jobs.is_empty())
        });
    }

    /// Reads for whoever is next, until nobody can be sent more.
    fn serve(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for priority in [Priority::Client, Priority::Background] {
            let mut blocked = 0;
            while blocked < self.turns.len() {
                let Some(peer) = self.turns.pop_front() else {
                    return;
                };
                match self.serve_one(now, peer, priority, actions) {
                    true => blocked = 0,
                    false => blocked += 1,
                }
                if self
                    .askers
                    .get(&peer)
                    .is_some_and(|asker| !asker.jobs.is_empty())
                {
                    self.turns.push_back(peer);
                }
            }
        }
    }

    /// A quantum for one peer; whether anything was done.
    fn serve_one(
        &mut self,
        now: Duration,
        peer: NodeId,
        priority: Priority,
        actions: &mut Vec<Action>,
    ) -> bool {
        let mut given = 0;
        while given < QUANTUM {
            let Some(asker) = self.askers.get_mut(&peer) else {
                break;
            };
            let Some((req, object, item)) = asker.next(now, priority) else {
                break;
            };
            match item {
                Item::Part {
                    offset,
                    total,
                    bytes,
                } => {
                    given += bytes.len() as u64;
                    let frame = Frame::Manifest {
                        req,
                        offset,
                        total,
                        bytes,
                    };
                    actions.push(Action::Send { peer, frame });
                }
                Item::Chunk { chunk, len } => {
                    given += len;
                    let job = self.job();
                    let read = ReadUnderWay {
                        peer,
                        req,
                        chunk,
                        len,
                    };
                    self.reads.insert(job, read);
                    actions.push(Action::Read { job, object, chunk });
                }
            }
        }
        given > 0
    }
}

impl Lookup {
    /// Whether it counts as a request: one that will move bytes.
    fn is_request(&self) -> bool {
        !matches!(self.wanted, Wanted::Have)
    }
}

/// Says that an object is not held, whether or not the peer may know.
fn not_found(peer: NodeId, req: RequestNumber, actions: &mut Vec<Action>) {
    let frame = Frame::NotFound { req, chunk: None };
    actions.push(Action::Send { peer, frame });
}

/// Bytes for one peer before the next is served.
const QUANTUM: u64 = 128 << 10;
/// How long after a refusal slots count as contested.
const CONTESTED_FOR: Duration = Duration::from_secs(1);
/// Deadline of requests that state none.
const UNHURRIED: Duration = Duration::from_secs(30);
/// Longest piece of a manifest that is sent at a time.
const PART_LEN: usize = MANIFEST_PART_LEN_MAX / 4;

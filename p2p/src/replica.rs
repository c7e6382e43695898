//! A node's copy of everybody's logs: writes its own, spreads it, and fetches what it lacks.
//!
//! A value without clock, randomness or network: [`Replica::handle`] takes an [`Event`] and says
//! in [`Action`]s what is to be done. It writes to its [`Log`] itself, for what is folded must
//! be in the log.
//!
//! Gossip makes it fast and is not relied upon. On connecting, three times a minute with a random
//! peer, whenever something arrives whose predecessors are missing, and when a peer could not be sent
//! all gossip, it compares log ends with a peer and fetches the difference ([`crate::reconcile`]).
//!
//! **The own log.** To write two segments of one number is to be taken for a forger by everybody,
//! for ever. A node whose disk was set back would do so unknowingly. Therefore it first asks a
//! peer how far its own log goes, and fetches what it has forgotten; see [`Replica::is_starting`].
//!
//! **How much one node may say.** Everybody keeps what a member says, so a member could fill
//! everybody's disk. Of a log longer than [`Setup::log_len_max`] nothing more is taken until its author
//! has restated it shorter; this node keeps its own below that. What was taken until then counts.
//!
//! **Damage.** Disks and memory fail. The log is verified now and then, and what is folded is
//! compared with what others have folded; both are mended from signed segments alone, see
//! [`Replica::repairs`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::directory::{Change, Directory, Refused, Unseal};
use crate::identity::Identity;
use crate::ids::NodeId;
use crate::log::{Log, LogError};
use crate::membership::certificate::Certificate;
use crate::membership::genesis::Genesis;
use crate::record::Record;
use crate::replica::lag::Lags;
use crate::replica::outbox::Outbox;
use crate::replica::repair::Repair;
use crate::replica::sync::Sync;
use crate::replica::waiting::Waiting;
use crate::segment::{ForkProof, Segment, SegmentKind};
use crate::signed::Signed;
use crate::time::Millis;

pub use crate::replica::lag::Lag;

mod checkpoint;
mod lag;
mod outbox;
mod repair;
mod sync;
mod waiting;

pub use crate::replica::repair::Repairs;

/// A node's copy of everybody's logs.
pub struct Replica<L> {
    me: NodeId,
    identity: Identity,
    certificate: Signed<Certificate>,
    directory: Directory,
    log: L,
    phase: Phase,
    outbox: Outbox,
    waiting: Waiting,
    sync: Sync,
    lags: Lags,
    log_len_max: u64,
    /// Of whom something was refused because the log is too long, and until when they are not asked
    /// about.
    too_long: BTreeMap<NodeId, Millis>,
    repair: Repair,
    /// Whether this value has written to the own log.
    has_written: bool,
    /// Bytes of own segments since the log was last looked through for what is obsolete.
    unexamined_bytes: usize,
    /// How many of them are worth looking through it again.
    examine_after: usize,
    wake: Option<Millis>,
}

/// What a replica is made of.
pub struct Setup<L> {
    /// Signs the own log.
    pub identity: Identity,
    /// The cluster.
    pub genesis: Genesis,
    /// Of this node: the first record of its log.
    pub certificate: Signed<Certificate>,
    /// Opens records of private caches.
    pub unseal: Arc<dyn Unseal>,
    /// What was received so far.
    pub log: L,
    /// Most bytes of one node's log; while it restates itself twice as many.
    pub log_len_max: u64,
    /// Of all random choices.
    pub seed: u64,
}

/// What happens to a replica.
#[derive(Clone, Debug)]
pub enum Event {
    /// The node has something to say.
    Local(Vec<Record>),
    /// A segment came by gossip.
    Gossip {
        /// Who forwarded it.
        from: NodeId,
        /// The message.
        bytes: Bytes,
    },
    /// A peer asks; to be answered with [`Action::Respond`] of this id.
    Request {
        /// Who asks.
        from: NodeId,
        /// Chosen by the caller.
        id: u64,
        /// The message.
        bytes: Bytes,
    },
    /// A peer answered an [`Action::Request`].
    Response {
        /// Who answers.
        from: NodeId,
        /// Of the request.
        id: u64,
        /// The message; `None` if there will be none.
        bytes: Option<Bytes>,
    },
    /// A member is connected.
    PeerUp(NodeId),
    /// It is not any more.
    PeerDown(NodeId),
    /// Not all that was gossiped reached this peer.
    Unsent(NodeId),
    /// The time of the last [`Action::Wake`] has come; any other time does no harm.
    Tick,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Gossip this.
    Publish(Bytes),
    /// Say this to the one who forwarded the message of the last [`Event::Gossip`].
    Judge(Verdict),
    /// Send this request.
    Request {
        /// To whom.
        to: NodeId,
        /// To name the response by.
        id: u64,
        /// At most [`crate::reconcile::ASK_LEN_MAX`].
        bytes: Bytes,
    },
    /// Answer a request.
    Respond {
        /// Of the request.
        id: u64,
        /// At most [`crate::reconcile::ANSWER_LEN_MAX`]; empty if there is no answer.
        bytes: Bytes,
    },
    /// Something may be different now.
    Changed(Vec<Change>),
    /// A peer did what an honest one does not.
    Misbehaved {
        /// Who.
        node: NodeId,
        /// For people.
        why: String,
    },
    /// Records of [`Event::Local`] that were not taken, because they cannot be written or too
    /// many wait already.
    Rejected(Vec<Record>),
    /// The log does not do as asked. What could not be written is tried again.
    LogFailed(LogError),
    /// Send [`Event::Tick`] then. Replaces all earlier ones.
    Wake(Millis),
}

/// What becomes of a gossiped message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Forward it.
    Accept,
    /// Do not forward it.
    Ignore,
    /// Nor trust who sent it.
    Reject,
}

/// What waits in a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Bytes of records that are not written yet.
    pub outbox_bytes: usize,
    /// Bytes of segments that came before their predecessors.
    pub waiting_bytes: usize,
    /// Conversations with peers that this node leads.
    pub sessions: usize,
}

impl Backlog {
    /// Most bytes of records that wait to be written; more are rejected.
    pub const OUTBOX_BYTES_MAX: usize = outbox::WAITING_BYTES_MAX;
    /// Most bytes of segments that wait for others; when they are reached, all are dropped.
    pub const WAITING_BYTES_MAX: usize = waiting::BYTES_MAX;
    /// Most conversations at a time.
    pub const SESSIONS_MAX: usize = sync::SESSIONS_MAX;
}

/// Whether this node may write its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not yet: peers may know more of it.
    Starting {
        /// When that was first asked.
        since: Option<Millis>,
        /// How far it is known to go, by what the disk had or peers say.
        goes_to: u64,
        /// Whether the disk lost a part.
        damaged: bool,
    },
    /// Yes.
    Running,
    /// Never again: two logs were written with its key.
    Retired,
}

impl<L: Log> Replica<L> {
    /// Folds what the log has.
    ///
    /// **Errors**: the log cannot be read.
    pub fn new(setup: Setup<L>) -> Result<Replica<L>, LogError> {
        let Setup {
            identity,
            genesis,
            certificate,
            unseal,
            mut log,
            log_len_max,
            seed,
        } = setup;
        let me = identity.node_id();
        let last = log.range(me).map_or(0, |(_, last)| last);
        let directory = Directory::load(genesis, unseal, &mut log)?;
        let phase = Phase::Starting {
            since: None,
            goes_to: last,
            damaged: directory.seq(me) < last,
        };
        Ok(Replica {
            me,
            identity,
            certificate,
            directory,
            log,
            phase,
            outbox: Outbox::default(),
            waiting: Waiting::default(),
            sync: Sync::new(seed),
            lags: Lags::default(),
            log_len_max,
            too_long: BTreeMap::new(),
            repair: Repair::default(),
            has_written: false,
            unexamined_bytes: 0,
            examine_after: checkpoint::EXAMINE_BYTES_MIN,
            wake: None,
        })
    }

    /// Takes what happened `now` and says what to do.
    ///
    /// May block on the log. Each call does a bounded amount of work, except that a checkpoint of
    /// the own log is written in one go, and that everything is folded anew, at most once an hour,
    /// where a difference to a peer demands it.
    pub fn handle(&mut self, now: Millis, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Local(records) => self.say(now, records, &mut actions),
            Event::Gossip { from, bytes } => self.hear(now, from, bytes, &mut actions),
            Event::Request { from, id, bytes } => {
                self.answer(now, from, id, &bytes, &mut actions);
            }
            Event::Response { from, id, bytes } => {
                self.learn(now, from, id, bytes, &mut actions);
            }
            Event::PeerUp(node) => self.sync.peer_up(node),
            Event::PeerDown(node) => {
                self.sync.peer_down(node);
                self.lags.peer_down(node);
            }
            Event::Unsent(node) => self.sync.unsent(now, node),
            Event::Tick => self.wake = None,
        }
        self.proceed(now, &mut actions);
        actions
    }

    /// The state.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The log, to read bodies of records with.
    pub fn log(&self) -> &L {
        &self.log
    }

    /// The log again, for a restart.
    pub fn into_log(self) -> L {
        self.log
    }

    /// Whether nothing is written yet because peers may know more of this node's log than it does.
    ///
    /// Lasts until one peer was asked, or for three seconds when there is none. A disk that is
    /// known to have lost a part of the log is not trusted alone however long that takes.
    pub fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    /// Whether, at some time since the start, this node had all that a peer had, or as much of it as it
    /// takes.
    pub fn has_caught_up(&self) -> bool {
        self.sync.has_caught_up()
    }

    /// Whether nothing is written any more because two logs were written with this node's key. It
    /// needs a new identity.
    pub fn is_retired(&self) -> bool {
        self.phase == Phase::Retired
    }

    /// Whether something that `node` said was not taken because its log is too long.
    pub fn is_too_long(&self, node: NodeId) -> bool {
        self.too_long.contains_key(&node)
    }

    /// How many logs are too long.
    pub fn too_long(&self) -> usize {
        self.too_long.len()
    }

    /// What waits in it, for metrics.
    pub fn backlog(&self) -> Backlog {
        Backlog {
            outbox_bytes: self.outbox.bytes(),
            waiting_bytes: self.waiting.bytes(),
            sessions: self.sync.sessions(),
        }
    }

    /// Opens with these keys what could not be opened before, and says what may be different now.
    ///
    /// **Errors**: the log cannot be read; the replica must not be used then.
    pub fn set_keys(&mut self, unseal: Arc<dyn Unseal>) -> Result<Vec<Change>, LogError> {
        self.directory.unseal_with(unseal, &mut self.log)
    }

    /// Does what is due.
    fn proceed(&mut self, now: Millis, actions: &mut Vec<Action>) {
        self.settle(now);
        if self.phase == Phase::Running {
            self.say_uncarried(now);
            self.flush(now, actions);
            self.compact(now, actions);
        }
        self.repair(now, actions);
        self.start_sessions(now, actions);
        let starting = match self.phase {
            Phase::Starting { since, damaged, .. } if !damaged => {
                since.map(|since| since.plus(self.start_patience()))
            }
            Phase::Starting { .. } | Phase::Running | Phase::Retired => None,
        };
        let flush = (self.phase == Phase::Running)
            .then(|| self.outbox.due_at())
            .flatten();
        let next = [
            starting,
            flush,
            self.sync.next_wake(),
            self.repair.next_wake(self.sync.has_peers()),
        ];
        let next = next.into_iter().flatten().min();
        if next.is_some() && next != self.wake {
            actions.extend(next.map(Action::Wake));
        }
        self.wake = next;
    }

    /// Begins to write the own log as soon as it is known how far it goes.
    fn settle(&mut self, now: Millis) {
        if self.directory.is_quarantined(self.me) {
            self.phase = Phase::Retired;
        }
        let last = self.log.range(self.me).map_or(0, |(_, last)| last);
        if self.phase == Phase::Running && last > self.directory.seq(self.me) {
            // It decayed, and was folded anew: what would be written next has been written.
            self.phase = Phase::Starting {
                since: None,
                goes_to: last,
                damaged: true,
            };
        }
        let Phase::Starting {
            since,
            goes_to,
            damaged,
        } = self.phase
        else {
            return;
        };
        let since = since.unwrap_or(now);
        let complete = self.directory.seq(self.me) >= goes_to;
        let waited = now >= since.plus(self.start_patience());
        let asked = self.sync.has_asked();
        self.phase = match (complete && asked) || (waited && !damaged) {
            true => Phase::Running,
            false => Phase::Starting {
                since: Some(since),
                goes_to,
                damaged,
            },
        };
    }

    fn start_patience(&self) -> Duration {
        match self.sync.has_peers() {
            true => START_AMONG_PEERS,
            false => START_ALONE,
        }
    }

    /// A peer says how far it knows the own log.
    ///
    /// As long as nothing was written it is not too late to fetch what was forgotten.
    fn hear_of_own_log(&mut self, now: Millis, seq: u64) {
        let is_news = seq > self.directory.seq(self.me);
        match &mut self.phase {
            Phase::Starting { goes_to, .. } => *goes_to = seq.max(*goes_to),
            Phase::Running if is_news && !self.has_written => {
                self.phase = Phase::Starting {
                    since: Some(now),
                    goes_to: seq,
                    damaged: false,
                };
            }
            Phase::Running | Phase::Retired => {}
        }
    }

    fn say(&mut self, now: Millis, records: Vec<Record>, actions: &mut Vec<Action>) {
        let mut rejected = Vec::new();
        for record in records {
            let may = self.phase != Phase::Retired && self.has_room_for(&record);
            if !may || !self.directory.can_say(self.me, &record) {
                rejected.push(record);
                continue;
            }
            if let Record::Member(certificate) = &record
                && certificate.value().node == self.me
            {
                self.certificate = certificate.clone();
            }
            if let Err(record) = self.outbox.push(now, record) {
                rejected.push(*record);
            }
        }
        if !rejected.is_empty() {
            actions.push(Action::Rejected(rejected));
        }
    }

    /// Whether the own log does not become too long by this record. The last eighth is for what
    /// makes it shorter again, and for what is about the cluster.
    fn has_room_for(&self, record: &Record) -> bool {
        match record {
            Record::Path(_)
            | Record::Hold(_)
            | Record::Touch(_)
            | Record::Pin(_)
            | Record::Sealed(_) => {
                let waits = self.outbox.bytes() as u64;
                self.log.len_bytes(self.me) + waits < self.log_len_max / 8 * 7
            }
            _ => true,
        }
    }

    /// Repeats what must not be forgotten and nobody's log says any more.
    fn say_uncarried(&mut self, now: Millis) {
        if !self.outbox.is_empty() || !self.directory.has_uncarried() {
            return;
        }
        for record in self.directory.uncarried() {
            // A full outbox is not empty, so this is tried again.
            let _ = self.outbox.push(now, record);
        }
    }

    fn hear(&mut self, now: Millis, from: NodeId, bytes: Bytes, actions: &mut Vec<Action>) {
        let outcome = self.receive(now, from, bytes, actions);
        let verdict = match &outcome {
            Ok(()) => Verdict::Accept,
            // From somebody who has shown no certificate here yet.
            Err(Refused::Gap { next: 1 }) => {
                self.sync.ask_soon(from);
                Verdict::Ignore
            }
            Err(Refused::Gap { .. } | Refused::Waiting(_)) => {
                self.sync.ask_soon(from);
                Verdict::Accept
            }
            Err(refused) if refused.is_misbehaviour() => Verdict::Reject,
            Err(_) => Verdict::Ignore,
        };
        actions.push(Action::Judge(verdict));
    }

    /// Takes in a segment, and whatever waited for it.
    fn receive(
        &mut self,
        now: Millis,
        from: NodeId,
        bytes: Bytes,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refused> {
        let outcome = self.receive_one(now, from, bytes, actions);
        match &outcome {
            Ok(()) => self.retry_waiting(actions),
            Err(refused) if refused.is_misbehaviour() => {
                let why = refused.to_string();
                actions.push(Action::Misbehaved { node: from, why });
            }
            Err(_) => {}
        }
        outcome
    }

    fn receive_one(
        &mut self,
        now: Millis,
        from: NodeId,
        bytes: Bytes,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refused> {
        let segment = Segment::decode(bytes)?;
        // Known ones are many, and cost no signature check.
        match self.directory.check(&segment, &self.log) {
            Err(refused @ (Refused::Known | Refused::Cluster)) => return Err(refused),
            Ok(()) | Err(_) => segment.verify()?,
        }
        let author = segment.head().node;
        if author == self.me && self.phase == Phase::Running && !self.is_contradiction(&segment) {
            // Nobody but this node appends to its log once it writes itself.
            return Err(Refused::Known);
        }
        if author != self.me && self.exceeds(&segment) {
            self.too_long.insert(author, now.plus(TOO_LONG_PAUSE));
            return Err(Refused::TooLong);
        }
        let outcome = self.take(&segment, actions);
        match &outcome {
            Err(Refused::Gap { next: 1 }) => {}
            Err(Refused::Gap { .. } | Refused::Waiting(_)) => {
                self.lags.has(from, author, segment.head().seq);
                self.waiting.add(from, segment);
            }
            Err(Refused::Fork(proof)) => {
                let proof = ForkProof::clone(proof);
                match self.directory.quarantine(proof, &mut self.log) {
                    Ok(changes) => actions.push(Action::Changed(changes)),
                    Err(error) => actions.push(Action::LogFailed(error)),
                }
            }
            Ok(()) | Err(_) => {}
        }
        outcome
    }

    /// Whether the log of a segment's author would become too long by it. A restatement has room of
    /// its own, for it comes before what it replaces is forgotten.
    fn exceeds(&self, segment: &Segment) -> bool {
        let max = match segment.head().kind {
            SegmentKind::Append => self.log_len_max,
            SegmentKind::Checkpoint { .. } => self.log_len_max.saturating_mul(2),
        };
        let len = self.log.len_bytes(segment.head().node);
        len + segment.bytes().len() as u64 > max
    }

    fn is_contradiction(&self, segment: &Segment) -> bool {
        let outcome = self.directory.check(segment, &self.log);
        matches!(outcome, Err(Refused::Fork(_)))
    }

    fn take(&mut self, segment: &Segment, actions: &mut Vec<Action>) -> Result<(), Refused> {
        let folded = self.directory.take(segment, &mut self.log)?;
        self.too_long.remove(&segment.head().node);
        if !folded.changes.is_empty() {
            actions.push(Action::Changed(folded.changes));
        }
        for (node, seq) in folded.needless_before {
            let outcome = self.log.forget_before(node, seq);
            actions.extend(outcome.err().map(Action::LogFailed));
        }
        Ok(())
    }

    fn retry_waiting(&mut self, actions: &mut Vec<Action>) {
        let mut progress = true;
        while progress {
            progress = false;
            for (sender, segment) in self.waiting.take_fitting(&self.directory) {
                match self.take(&segment, actions) {
                    Ok(()) => progress = true,
                    Err(Refused::Waiting(_)) => self.waiting.add(sender, segment),
                    // It is fetched again, and judged, if anybody needs it.
                    Err(_) => {}
                }
            }
        }
    }
}

/// Until a log that is too long is asked about again.
const TOO_LONG_PAUSE: Duration = Duration::from_secs(5 * 60);

/// How long to wait for a first peer.
const START_ALONE: Duration = Duration::from_secs(3);

/// How long to wait for a first answer when there are peers.
const START_AMONG_PEERS: Duration = Duration::from_secs(30);

//! The world: hosts, what lies between them, and the loop that lets things happen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use attic_p2p::ids::NodeId;
use attic_p2p::provider;
use attic_p2p::wire::Frame;
use bytes::Bytes;

use crate::seed::Seed;
use crate::sim::agenda::{Agenda, Note, Trace};
use crate::sim::charter::Charter;
use crate::sim::content::{Content, Ledger, ThingIndex, Truth};
use crate::sim::gossip::MessageId;
use crate::sim::host::{Host, Index, State};
use crate::sim::link::Links;
use crate::sim::mutant::Mutant;
use crate::sim::oracle::Oracle;
use crate::sim::script::{Act, Script};
use crate::sim::tally::Tally;

/// Everything there is.
pub(crate) struct World {
    pub(crate) agenda: Agenda<Happening>,
    pub(crate) random: Seed,
    pub(crate) charter: Charter,
    pub(crate) links: Links,
    pub(crate) hosts: Vec<Host>,
    pub(crate) by_node: BTreeMap<NodeId, Index>,
    pub(crate) content: Content,
    pub(crate) ledger: Ledger,
    pub(crate) script: Script,
    pub(crate) oracle: Oracle,
    pub(crate) tally: Tally,
    pub(crate) trace: Trace,
    pub(crate) mutant: Option<Mutant>,
    /// Pairs that are about to try to connect.
    pub(crate) seeking: BTreeSet<(Index, Index)>,
    pub(crate) next_session: u64,
    /// Until when hosts that a wall parted look for each other.
    pub(crate) parted_until: Duration,
    /// Downloads a host does at a time.
    pub(crate) jobs: usize,
    pub(crate) read_ahead: u64,
    pub(crate) copies: usize,
}

/// Something that is going to happen.
pub(crate) enum Happening {
    Act(Act),
    Dial {
        one: Index,
        other: Index,
    },
    Connected {
        one: Index,
        other: Index,
    },
    Notice {
        at: Index,
        other: Index,
        session: u64,
    },
    /// The last byte left the sender.
    Left(Box<Envelope>),
    /// The last byte is at the receiver's end of the wire.
    Reached(Box<Envelope>),
    Arrived(Box<Envelope>),
    Unanswered {
        at: Index,
        life: u64,
        to: Index,
        id: u64,
    },
    ReplicaWake {
        at: Index,
        life: u64,
        when: Duration,
    },
    FetchWake {
        at: Index,
        life: u64,
        thing: ThingIndex,
    },
    ReadDone {
        at: Index,
        life: u64,
        event: provider::Event,
    },
    Sweep {
        at: Index,
        life: u64,
    },
    Retry {
        at: Index,
        life: u64,
    },
    GossipRound {
        at: Index,
        life: u64,
    },
    Replicate {
        at: Index,
        life: u64,
        thing: ThingIndex,
    },
    Mischief {
        at: Index,
        life: u64,
    },
    Inspect,
}

/// A message and its way.
pub(crate) struct Envelope {
    pub(crate) from: Index,
    pub(crate) to: Index,
    /// Of the connection it was sent over.
    pub(crate) session: u64,
    pub(crate) message: Message,
}

/// What hosts say to each other.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Gossip {
        id: MessageId,
        bytes: Bytes,
    },
    /// These messages can be had.
    IHave(Vec<MessageId>),
    /// These messages, please.
    IWant(Vec<MessageId>),
    /// A request of a replica.
    Ask {
        id: u64,
        bytes: Bytes,
    },
    /// What another replica answers.
    Answer {
        id: u64,
        bytes: Bytes,
    },
    /// A frame of the bulk stream. A chunk's bytes are all zero; what they stand for is its truth.
    Frame {
        frame: Frame,
        truth: Truth,
    },
    /// The sender begins to fetch, or is through.
    Fetching {
        thing: ThingIndex,
        begun: bool,
    },
    /// Asks for a copy to be kept.
    Keep {
        thing: ThingIndex,
    },
}

impl Message {
    /// Bytes on the wire.
    pub(crate) fn len(&self) -> u64 {
        let len = match self {
            Message::Gossip { bytes, .. } => bytes.len(),
            Message::IHave(ids) | Message::IWant(ids) => ids.len() * size_of::<MessageId>(),
            Message::Ask { bytes, .. } | Message::Answer { bytes, .. } => bytes.len(),
            Message::Frame { frame, .. } => match frame {
                Frame::Data { bytes, .. } => bytes.len() + DATA_HEAD_LEN,
                small => small.encode().len(),
            },
            Message::Fetching { .. } | Message::Keep { .. } => OBJECT_LEN,
        };
        len as u64
    }

    /// Whether it fills the line; what is small slips in between.
    fn is_large(&self) -> bool {
        match self {
            Message::Frame { frame, .. } => matches!(frame, Frame::Data { .. }),
            Message::Answer { bytes, .. } => bytes.len() > SMALL_LEN_MAX,
            _ => false,
        }
    }
}

impl World {
    /// Time since the begin.
    pub(crate) fn now(&self) -> Duration {
        self.agenda.now()
    }

    /// Whether all nodes are broken like this.
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(crate) fn index(&self, node: NodeId) -> Option<Index> {
        self.by_node.get(&node).copied()
    }

    pub(crate) fn note(&mut self, what: Note, numbers: [u64; 3]) {
        self.trace.note(self.agenda.now(), what, numbers);
    }

    /// Runs until everything is settled and has stayed so, until it should be and is not, or until
    /// the oracle has seen enough.
    pub(crate) fn run(&mut self) {
        self.agenda.after(Duration::ZERO, Happening::Inspect);
        while !self.is_over() {
            let end = self.script.deadline();
            let Some(happening) = self.agenda.next(end) else {
                self.oracle_deadline();
                return;
            };
            self.happen(happening);
        }
        self.oracle_end();
    }

    fn is_over(&self) -> bool {
        let now = self.now();
        let stayed = self
            .oracle
            .settled_at
            .is_some_and(|at| now >= at + self.script.linger);
        stayed || !self.oracle.violations.is_empty()
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Act(act) => self.act_out(act),
            Happening::Dial { one, other } => self.dial(one, other),
            Happening::Connected { one, other } => self.connected(one, other),
            Happening::Notice { at, other, session } => self.notice(at, other, session),
            Happening::Left(envelope) => self.left(envelope),
            Happening::Reached(envelope) => self.reached(envelope),
            Happening::Arrived(envelope) => self.arrived(*envelope),
            Happening::Inspect => self.inspect(),
            Happening::ReplicaWake { at, life, when } => self.replica_wake(at, life, when),
            Happening::Unanswered { at, life, to, id } if self.lives(at, life) => {
                self.answered(to, at, id, None);
            }
            Happening::FetchWake { at, life, thing } if self.lives(at, life) => {
                self.fetch_wake(at, thing);
            }
            Happening::ReadDone { at, life, event } if self.lives(at, life) => {
                self.tell_provider(at, event);
            }
            Happening::Sweep { at, life } if self.lives(at, life) => self.sweep(at),
            Happening::Retry { at, life } if self.lives(at, life) => self.retry(at),
            Happening::GossipRound { at, life } if self.lives(at, life) => self.gossip_round(at),
            Happening::Replicate { at, life, thing } if self.lives(at, life) => {
                self.replicate(at, thing, self.copies);
            }
            Happening::Mischief { at, life } if self.lives(at, life) => self.mischief(at),
            // Of an earlier life, or while it sleeps; who wakes looks at everything anew.
            Happening::Unanswered { .. }
            | Happening::FetchWake { .. }
            | Happening::ReadDone { .. }
            | Happening::Sweep { .. }
            | Happening::Retry { .. }
            | Happening::GossipRound { .. }
            | Happening::Replicate { .. }
            | Happening::Mischief { .. } => {}
        }
    }

    fn lives(&self, at: Index, life: u64) -> bool {
        self.hosts[at].life == life && self.hosts[at].is_running()
    }

    /// Sends something over a connection; without one it goes nowhere.
    pub(crate) fn send(&mut self, from: Index, to: Index, message: Message) {
        let Some(session) = self.hosts[from].links.get(&to).copied() else {
            return;
        };
        let len = message.len();
        self.count(from, &message, len);
        self.oracle_sent(from, to);
        let now = self.now();
        if message.is_large() {
            let at = self.hosts[from].up.pass(now, len);
            let envelope = Envelope {
                from,
                to,
                session,
                message,
            };
            self.agenda.at(at, Happening::Left(Box::new(envelope)));
        } else if self.links.reaches(from, to) {
            let at = self.links.arrival(now, (from, to), &mut self.random);
            self.arrive(at, (from, to), session, message);
        }
    }

    fn count(&mut self, from: Index, message: &Message, len: u64) {
        let traffic = &mut self.hosts[from].traffic;
        match message {
            Message::Ask { .. } | Message::Answer { .. } => traffic.sync += len,
            Message::Frame { frame, .. } => {
                traffic.bulk += len;
                if let Frame::Data { bytes, .. } = frame {
                    traffic.chunks += bytes.len() as u64;
                }
            }
            Message::Fetching { .. } | Message::Keep { .. } => traffic.bulk += len,
            Message::Gossip { .. } | Message::IHave(_) | Message::IWant(_) => {
                traffic.gossip += len;
            }
        }
    }

    pub(crate) fn arrive(
        &mut self,
        at: Duration,
        (from, to): (Index, Index),
        session: u64,
        message: Message,
    ) {
        let envelope = Envelope {
            from,
            to,
            session,
            message,
        };
        self.agenda.at(at, Happening::Arrived(Box::new(envelope)));
    }

    fn left(&mut self, envelope: Box<Envelope>) {
        let Envelope { from, to, .. } = *envelope;
        let stands = self.hosts[from].links.get(&to) == Some(&envelope.session);
        if let Message::Frame {
            frame: Frame::Data { bytes, .. },
            ..
        } = &envelope.message
            && stands
            && self.hosts[from].is_running()
        {
            let (peer, bytes) = (self.hosts[to].node, bytes.len() as u64);
            self.tell_provider(from, provider::Event::Sent { peer, bytes });
        }
        if self.links.reaches(from, to) {
            let transit = self.links.transit(&mut self.random);
            self.agenda.after(transit, Happening::Reached(envelope));
        }
    }

    fn reached(&mut self, envelope: Box<Envelope>) {
        let len = envelope.message.len();
        let now = self.now();
        let at = self.hosts[envelope.to].down.pass(now, len);
        self.agenda.at(at, Happening::Arrived(envelope));
    }

    fn arrived(&mut self, envelope: Envelope) {
        let Envelope {
            from,
            to,
            session,
            message,
        } = envelope;
        if self.hosts[to].links.get(&from) != Some(&session) {
            return self.note(Note::Lost, [from as u64, to as u64, session]);
        }
        if self.hosts[to].state == State::Asleep {
            return self.hosts[to].keep_for_later(from, session, message);
        }
        self.note(Note::Arrived, [from as u64, to as u64, message.len()]);
        self.oracle_heard(from, to);
        match message {
            Message::Gossip { id, bytes } => self.gossip_arrived(from, to, id, bytes),
            Message::IHave(ids) => self.offered(from, to, ids),
            Message::IWant(ids) => self.wanted(from, to, &ids),
            Message::Ask { id, bytes } => self.asked(from, to, id, bytes),
            Message::Answer { id, bytes } => self.answered(from, to, id, Some(bytes)),
            Message::Frame { frame, truth } => self.frame_arrived(from, to, frame, truth),
            Message::Fetching { thing, begun } => self.heard_of_fetch(from, to, thing, begun),
            Message::Keep { thing } => self.asked_to_keep(to, thing),
        }
    }
}

/// A chunk's frame without the chunk.
const DATA_HEAD_LEN: usize = 14;
const OBJECT_LEN: usize = 64;
/// An answer that is longer has its place in the queue.
const SMALL_LEN_MAX: usize = 2048;

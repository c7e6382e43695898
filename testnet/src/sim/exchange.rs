//! Drives the downloads of each host: frames over links, chunks to the store.

use std::collections::BTreeSet;
use std::time::Duration;

use attic_p2p::fetch::{self, Fetch, FetchOptions, FetchStats, RequestId, Tier};
use attic_p2p::ids::NodeId;
use attic_p2p::provider;
use attic_p2p::record::Record;
use attic_p2p::replica::Event as ReplicaEvent;
use attic_p2p::wire::{Frame, Priority};

use crate::sim::agenda::Note;
use crate::sim::content::{ThingIndex, Truth};
use crate::sim::host::Index;
use crate::sim::mutant::Mutant;
use crate::sim::world::{Happening, Message, World};

/// The download of one NAR.
pub(crate) struct Flight {
    pub(crate) fetch: Fetch,
    /// Chunks that are in the store.
    pub(crate) chunks: Vec<bool>,
    /// Its place in the host's slots.
    pub(crate) slot: u32,
    /// When the fetch wants to be woken, as planned.
    wake: Option<Duration>,
    priority: Priority,
    /// The chunk a client that reads in order waits for, since when, and its longest wait.
    reader: u32,
    reader_since: Duration,
    reader_wait: Duration,
    /// Who was asked what it holds, and goes on telling.
    pub(crate) watched: BTreeSet<Index>,
}

/// How a download went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Landing {
    pub(crate) thing: ThingIndex,
    pub(crate) ended: Duration,
    pub(crate) stats: FetchStats,
    pub(crate) reader_wait: Duration,
    pub(crate) complete: bool,
}

impl World {
    /// A client wants a path. It is fetched as soon as the host knows of it.
    pub(crate) fn want(&mut self, at: Index, thing: ThingIndex) {
        let now = self.now();
        let host = &mut self.hosts[at];
        if host.store.held.contains(&thing) {
            self.tally.has(now, at, thing);
        } else if !host.flights.contains_key(&thing) {
            host.wants.insert(thing);
            self.may_begin(at, thing);
        }
    }

    /// Begins a download that is wanted, if its path is known and there is room for it.
    pub(crate) fn may_begin(&mut self, at: Index, thing: ThingIndex) {
        let host = &self.hosts[at];
        let hash = self.content.thing(thing).hash();
        let room = host.flights.len() < self.jobs && !host.disk_is_full() && host.is_running();
        if room && host.wants.contains(&thing) && host.shown.contains(&hash) {
            self.hosts[at].wants.remove(&thing);
            self.begin(at, thing, Priority::Client);
        }
    }

    fn begin_more(&mut self, at: Index) {
        for thing in self.hosts[at].wants.clone() {
            self.may_begin(at, thing);
        }
    }

    pub(crate) fn begin(&mut self, at: Index, thing: ThingIndex, priority: Priority) {
        let seed = self.random.bits();
        let (now, about) = (self.now(), self.content.thing(thing));
        let host = &mut self.hosts[at];
        let options = FetchOptions {
            me: host.node,
            nar: about.object.nar,
            layout: about.layout.clone(),
            read_ahead: self.read_ahead,
            seed,
        };
        let slot = host.slots.len() as u32;
        host.slots.push(thing);
        let flight = Flight {
            fetch: Fetch::new(host.clock.monotonic(now), options),
            chunks: vec![false; about.layout.chunks() as usize],
            slot,
            wake: None,
            priority,
            reader: 0,
            reader_since: now,
            reader_wait: Duration::ZERO,
            watched: BTreeSet::new(),
        };
        host.flights.insert(thing, flight);
        self.announce(at, thing, true);
        self.find_sources(at, thing);
        self.tell_fetch(at, thing, fetch::Event::Tick);
        self.sweep_soon(at);
    }

    /// A connection is gone, with all that went over it.
    pub(crate) fn lost_peer(&mut self, at: Index, other: Index) {
        let (node, peer) = (self.hosts[other].node, self.hosts[other].node);
        for thing in self.hosts[at].flights.keys().copied().collect::<Vec<_>>() {
            self.tell_fetch(at, thing, fetch::Event::Gone { node });
        }
        self.hosts[at].fetching.retain(|_, who| {
            who.remove(&other);
            !who.is_empty()
        });
        self.tell_provider(at, provider::Event::Gone { peer });
    }

    /// A frame came.
    pub(crate) fn frame_arrived(&mut self, from: Index, at: Index, frame: Frame, truth: Truth) {
        let node = self.hosts[from].node;
        match frame {
            Frame::HaveQuery { .. }
            | Frame::Get { .. }
            | Frame::Cancel { .. }
            | Frame::Credit { .. } => {
                if matches!(frame, Frame::Get { .. }) {
                    self.tally.requests += 1;
                }
                let asks = !matches!(frame, Frame::Credit { .. });
                self.tell_provider(at, provider::Event::Frame { peer: node, frame });
                if asks {
                    self.sweep_soon(at);
                }
            }
            Frame::Have { req, have } => {
                let tier = Tier::Lan;
                self.tell_flight(at, req, fetch::Event::Source { node, tier, have });
            }
            Frame::HaveDelta { req, segments } => {
                self.tell_flight(at, req, fetch::Event::Gained { node, segments });
            }
            Frame::Data {
                req, chunk, bytes, ..
            } => {
                let bytes = bytes.len() as u32;
                self.send_frame(at, from, Frame::Credit { bytes }, Truth::Junk);
                self.chunk_arrived(at, from, (req, chunk), truth);
            }
            Frame::Busy { req, retry } => {
                let request = request(req);
                let event = fetch::Event::Busy {
                    node,
                    request,
                    retry,
                };
                self.tell_flight(at, req, event);
            }
            Frame::NotFound { req, chunk } => {
                let request = request(req);
                let event = fetch::Event::NotFound {
                    node,
                    request,
                    chunk,
                };
                self.tell_flight(at, req, event);
            }
            Frame::Error { req, .. } => {
                let request = request(req);
                self.tell_flight(at, req, fetch::Event::Error { node, request });
            }
            // Who fetches something is told to all connected peers here.
            Frame::Others { .. }
            | Frame::Hello(_)
            | Frame::GetMany { .. }
            | Frame::ManifestQuery { .. }
            | Frame::Manifest { .. } => {}
        }
    }

    /// A chunk came: it is verified before anything is done with it.
    fn chunk_arrived(&mut self, at: Index, from: Index, (req, chunk): (u32, u32), truth: Truth) {
        let (node, request) = (self.hosts[from].node, request(req));
        let Some(thing) = self.hosts[at].slots.get(slot(req)).copied() else {
            return;
        };
        let right = truth == Truth::Chunk(thing, chunk);
        if !right && !self.is(Mutant::AcceptsWrongBytes) {
            return self.tell_fetch(at, thing, fetch::Event::Bad { node });
        }
        let now = self.now();
        let host = &mut self.hosts[at];
        let Some(flight) = host.flights.get_mut(&thing) else {
            return;
        };
        let Some(place) = flight.chunks.get_mut(chunk as usize) else {
            return;
        };
        *place = true;
        if !right {
            host.store.wrong.insert((thing, chunk));
        }
        self.note(Note::Chunk, [at as u64, from as u64, chunk.into()]);
        self.oracle_chunk(at, thing, chunk, right);
        let event = fetch::Event::Arrived {
            node,
            request,
            chunk,
        };
        self.tell_fetch(at, thing, event);
        self.read_on(now, at, thing, chunk);
    }

    /// Lets the client read, if it waited for this chunk.
    fn read_on(&mut self, now: Duration, at: Index, thing: ThingIndex, chunk: u32) {
        let Some(flight) = self.hosts[at].flights.get_mut(&thing) else {
            return;
        };
        if flight.reader != chunk {
            return;
        }
        while flight.chunks.get(flight.reader as usize) == Some(&true) {
            flight.reader += 1;
        }
        let waited = now - flight.reader_since;
        flight.reader_wait = flight.reader_wait.max(waited);
        flight.reader_since = now;
        let chunk = flight.reader;
        self.tell_fetch(at, thing, fetch::Event::Reader { chunk });
    }

    fn tell_flight(&mut self, at: Index, req: u32, event: fetch::Event) {
        if let Some(thing) = self.hosts[at].slots.get(slot(req)).copied() {
            self.tell_fetch(at, thing, event);
        }
    }

    /// Tells a download what happened and does what it says.
    pub(crate) fn tell_fetch(&mut self, at: Index, thing: ThingIndex, event: fetch::Event) {
        let now = self.now();
        let host = &mut self.hosts[at];
        let Some(flight) = host.flights.get_mut(&thing) else {
            return;
        };
        let local = host.clock.monotonic(now);
        let actions = flight.fetch.handle(local, event, &mut host.peers);
        let wake = flight.fetch.next_wake();
        let wake = wake.map(|wake| now + wake.saturating_sub(local));
        if let Some(wake) = wake
            && flight
                .wake
                .is_none_or(|planned| wake < planned || planned < now)
        {
            flight.wake = Some(wake);
            let life = host.life;
            self.agenda
                .at(wake, Happening::FetchWake { at, life, thing });
        }
        for action in actions {
            self.do_fetch(at, thing, action);
        }
    }

    fn do_fetch(&mut self, at: Index, thing: ThingIndex, action: fetch::Action) {
        let Some(flight) = self.hosts[at].flights.get(&thing) else {
            return;
        };
        let (slot, priority) = (flight.slot, flight.priority);
        let object = self.content.thing(thing).object;
        match action {
            fetch::Action::Request {
                node,
                request,
                ranges,
                deadline,
            } => {
                let frame = Frame::Get {
                    req: number(slot, request.number()),
                    object,
                    ranges,
                    priority,
                    deadline,
                };
                self.send_frame_to(at, node, frame);
            }
            fetch::Action::Cancel { node, request } => {
                let req = number(slot, request.number());
                self.send_frame_to(at, node, Frame::Cancel { req });
            }
            fetch::Action::Ban { node, time, .. } => {
                if let Some(other) = self.index(node) {
                    self.oracle_blamed(at, other, "wrong bytes");
                    self.ban(at, other, time);
                }
            }
            fetch::Action::Complete { segment } => {
                let segments = vec![segment];
                self.tell_provider(at, provider::Event::Gained { object, segments });
            }
            fetch::Action::FindSources => self.find_sources(at, thing),
            fetch::Action::Done => self.land(at, thing, true),
            fetch::Action::Failed(_) => self.land(at, thing, false),
        }
    }

    /// A download is over.
    fn land(&mut self, at: Index, thing: ThingIndex, complete: bool) {
        let now = self.now();
        let Some(flight) = self.hosts[at].flights.remove(&thing) else {
            return;
        };
        self.note(Note::Done, [at as u64, thing as u64, complete.into()]);
        let landing = Landing {
            thing,
            ended: now,
            stats: flight.fetch.stats(),
            reader_wait: flight.reader_wait,
            complete,
        };
        self.tally.landed(at, landing);
        let req = number(flight.slot, HAVE);
        for other in flight.watched {
            self.send_frame(at, other, Frame::Cancel { req }, Truth::Junk);
        }
        self.announce(at, thing, false);
        if complete {
            let (hash, tag) = (
                self.content.thing(thing).hash(),
                self.content.thing(thing).tag(),
            );
            let said = self.hosts[at].shown.contains(&hash);
            self.hosts[at].store.held.insert(thing);
            if said {
                self.hosts[at].store.rows.insert(thing);
            }
            let hold = Record::Hold(vec![tag]);
            self.tell_replica(at, ReplicaEvent::Local(vec![hold]));
        } else if flight.priority == Priority::Client {
            self.hosts[at].wants.insert(thing);
            let life = self.hosts[at].life;
            self.agenda
                .after(RETRY_AFTER, Happening::Retry { at, life });
        }
        self.begin_more(at);
    }

    pub(crate) fn retry(&mut self, at: Index) {
        self.begin_more(at);
    }

    /// The disk is full: what is on its way cannot be kept.
    pub(crate) fn abandon_flights(&mut self, at: Index) {
        for thing in self.hosts[at].flights.keys().copied().collect::<Vec<_>>() {
            let host = &mut self.hosts[at];
            let Some(flight) = host.flights.get_mut(&thing) else {
                continue;
            };
            let actions = flight.fetch.stop(&mut host.peers);
            for action in actions {
                self.do_fetch(at, thing, action);
            }
            self.land(at, thing, false);
        }
    }

    pub(crate) fn fetch_wake(&mut self, at: Index, thing: ThingIndex) {
        let now = self.now();
        if let Some(flight) = self.hosts[at].flights.get_mut(&thing)
            && flight.wake == Some(now)
        {
            flight.wake = None;
            self.tell_fetch(at, thing, fetch::Event::Tick);
        }
    }

    fn send_frame_to(&mut self, at: Index, node: NodeId, frame: Frame) {
        if let Some(to) = self.index(node) {
            self.send_frame(at, to, frame, Truth::Junk);
        }
    }

    pub(crate) fn send_frame(&mut self, at: Index, to: Index, frame: Frame, truth: Truth) {
        self.send(at, to, Message::Frame { frame, truth });
    }
}

/// One number space for all downloads of a host.
pub(crate) fn number(slot: u32, request: u32) -> u32 {
    debug_assert!(request <= HAVE, "a download makes fewer requests");
    slot << REQUEST_BITS | request
}

pub(crate) fn slot(req: u32) -> usize {
    (req >> REQUEST_BITS) as usize
}

fn request(req: u32) -> RequestId {
    RequestId::from_number(req & HAVE)
}

const REQUEST_BITS: u32 = 18;
/// The number of every query for what is held: the last of a slot.
pub(crate) const HAVE: u32 = (1 << REQUEST_BITS) - 1;
/// When a client asks again for what failed.
const RETRY_AFTER: Duration = Duration::from_secs(2);

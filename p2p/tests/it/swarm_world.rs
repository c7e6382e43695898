//! A network of nodes in virtual time: fetch and provider of every node, joined by links.
//!
//! Every node has an uplink and a downlink of a given rate, each a queue, and every pair a latency.
//! Nothing here depends on the machine: one seed gives one run, and one trace hash. It is one file
//! because it is to move, whole, into the simulator of `testnet`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use attic_p2p::fetch::{self, Fetch, FetchOptions, FetchStats, RequestId, Tier};
use attic_p2p::ids::{ManifestId, NodeId};
use attic_p2p::peer_stats::PeerTable;
use attic_p2p::provider::{self, Holding, Provider};
use attic_p2p::wire::{Frame, Have, Layout, Object, Priority, SegmentSet};
use attic_store::NarHash;
use bytes::Bytes;

/// Bytes per second of a gigabit link.
pub(crate) const GIGABIT: u64 = 125_000_000;

/// A node's place in the world.
pub(crate) type Index = usize;

/// How a node behaves towards those who ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As it should.
    Honest,
    /// Sends bytes that are not the chunk.
    Lying,
    /// Says nothing from a moment on, in either direction.
    SilentFrom(Duration),
    /// Claims to hold everything and has nothing.
    Boasting,
}

/// One node: what the driver of a real one would hold.
pub(crate) struct Node {
    id: NodeId,
    provider: Provider,
    peers: PeerTable,
    fetch: Option<Fetch>,
    /// Chunks held, for the provider.
    held: Vec<bool>,
    segments: SegmentSet,
    manner: Manner,
    up: Link,
    down: Link,
    /// When the fetch wants to be woken, as scheduled.
    wake: Option<Duration>,
    started: Duration,
    /// In what chunk order bytes could be handed on.
    reader: u32,
    /// When the reader last got something, and its longest wait.
    reader_at: Duration,
    pub(crate) reader_wait_max: Duration,
    pub(crate) finished: Option<Duration>,
    pub(crate) failed: bool,
    pub(crate) sent: u64,
    pub(crate) asked: u32,
    pub(crate) banned: Vec<NodeId>,
}

#[derive(Clone, Copy)]
struct Link {
    rate: u64,
    free_at: Duration,
}

impl Link {
    /// When `bytes` that come at `now` have passed.
    fn pass(&mut self, now: Duration, bytes: u64) -> Duration {
        let time = Duration::from_nanos(bytes * 1_000_000_000 / self.rate);
        self.free_at = self.free_at.max(now) + time;
        self.free_at
    }
}

enum Happening {
    Start(Index),
    /// The last byte left the sender.
    Left {
        from: Index,
        to: Index,
        frame: Frame,
        lie: bool,
    },
    /// The last byte is at the receiver's end of the wire.
    Reached {
        from: Index,
        to: Index,
        frame: Frame,
        lie: bool,
    },
    /// The last byte was taken off the downlink.
    Arrived {
        from: Index,
        to: Index,
        frame: Frame,
        lie: bool,
    },
    ReadDone {
        at: Index,
        event: provider::Event,
    },
    Wake(Index),
    Sweep(Index),
    Gone {
        at: Index,
        who: Index,
    },
}

/// All nodes, and what is going to happen.
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    layout: Arc<Layout>,
    object: Object,
    latency: Duration,
    now: Duration,
    agenda: BinaryHeap<Reverse<(Duration, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    next: u64,
    trace: blake3::Hasher,
    random: u64,
    read_ahead: u64,
}

/// What a world is made of.
pub(crate) struct Setting {
    pub(crate) seed: u64,
    pub(crate) bytes: u64,
    pub(crate) latency: Duration,
    pub(crate) read_ahead: u64,
}

impl World {
    pub(crate) fn new(setting: Setting) -> World {
        let mut random = setting.seed;
        let mut lens = Vec::new();
        let mut left = setting.bytes;
        while left > 0 {
            // As chunks of 32 to 512 KiB are, compressed: about 80 KiB.
            let len = 24_000 + draw(&mut random) % 120_000;
            lens.push(left.min(len) as u32);
            left -= left.min(len);
        }
        let layout = Layout::new(lens).expect("chunks are not empty");
        World {
            nodes: Vec::new(),
            layout: Arc::new(layout),
            object: Object {
                nar: NarHash::from_bytes([1; 32]),
                manifest: ManifestId::from_bytes([2; 32]),
            },
            latency: setting.latency,
            now: Duration::ZERO,
            agenda: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            next: 0,
            trace: blake3::Hasher::new(),
            random,
            read_ahead: setting.read_ahead,
        }
    }

    /// Adds a node that holds everything, or nothing.
    pub(crate) fn add(&mut self, holds: bool, up: u64, manner: Manner) -> Index {
        let index = self.nodes.len();
        let link = |rate| Link {
            rate,
            free_at: Duration::ZERO,
        };
        let mut id = [0; 32];
        for part in id.chunks_mut(8) {
            part.copy_from_slice(&draw(&mut self.random).to_le_bytes());
        }
        let segments = match holds || manner == Manner::Boasting {
            true => SegmentSet::full(self.layout.segments()),
            false => SegmentSet::empty(self.layout.segments()),
        };
        self.nodes.push(Node {
            id: NodeId::from_bytes(id),
            provider: Provider::new(),
            peers: PeerTable::new(),
            fetch: None,
            held: vec![holds && manner != Manner::Boasting; self.layout.chunks() as usize],
            segments,
            manner,
            up: link(up),
            down: link(GIGABIT),
            wake: None,
            started: Duration::ZERO,
            reader: 0,
            reader_at: Duration::ZERO,
            reader_wait_max: Duration::ZERO,
            finished: None,
            failed: false,
            sent: 0,
            asked: 0,
            banned: Vec::new(),
        });
        index
    }

    /// The node begins to fetch at `at`.
    pub(crate) fn start(&mut self, node: Index, at: Duration) {
        self.plan(at, Happening::Start(node));
    }

    /// Everybody notices at `at` that `who` is gone.
    pub(crate) fn close(&mut self, who: Index, at: Duration) {
        for node in (0..self.nodes.len()).filter(|node| *node != who) {
            self.plan(at, Happening::Gone { at: node, who });
        }
    }

    /// Runs until nothing happens any more or until `end`; returns the hash of all that happened.
    pub(crate) fn run(&mut self, end: Duration) -> blake3::Hash {
        while let Some(Reverse((at, number))) = self.agenda.pop() {
            let fetching = |node: &Node| node.fetch.is_some() && node.finished.is_none();
            let waiting = self.nodes.iter().any(|node| fetching(node) && !node.failed);
            if at > end || number > STARTS_MAX && !waiting && self.now > at_least(self) {
                break;
            }
            self.now = at;
            let happening = self.happenings.remove(&number).expect("planned once");
            self.happen(happening);
        }
        self.trace.finalize()
    }

    pub(crate) fn ideal(&self) -> Duration {
        Duration::from_nanos(self.layout.bytes() * 1_000_000_000 / GIGABIT)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.layout.bytes()
    }

    pub(crate) fn id(&self, node: Index) -> NodeId {
        self.nodes[node].id
    }

    pub(crate) fn fetch_stats(&self, node: Index) -> FetchStats {
        self.nodes[node]
            .fetch
            .as_ref()
            .map(Fetch::stats)
            .unwrap_or_default()
    }

    /// How long the node took.
    pub(crate) fn took(&self, node: Index) -> Option<Duration> {
        let node = &self.nodes[node];
        node.finished.map(|finished| finished - node.started)
    }

    fn plan(&mut self, at: Duration, happening: Happening) {
        self.next += 1;
        self.happenings.insert(self.next, happening);
        self.agenda.push(Reverse((at, self.next)));
    }

    fn note(&mut self, what: &[u64]) {
        self.trace
            .update(&(self.now.as_nanos() as u64).to_le_bytes());
        for number in what {
            self.trace.update(&number.to_le_bytes());
        }
    }

    fn silent(&self, node: Index) -> bool {
        matches!(self.nodes[node].manner, Manner::SilentFrom(from) if self.now >= from)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Start(node) => self.begin(node),
            Happening::Left {
                from,
                to,
                frame,
                lie,
            } => {
                if let Frame::Data { bytes, .. } | Frame::Manifest { bytes, .. } = &frame {
                    let bytes = bytes.len() as u64;
                    self.nodes[from].sent += bytes;
                    let peer = self.id(to);
                    self.provide(from, provider::Event::Sent { peer, bytes });
                }
                let at = self.now + self.latency;
                self.plan(
                    at,
                    Happening::Reached {
                        from,
                        to,
                        frame,
                        lie,
                    },
                );
            }
            Happening::Reached {
                from,
                to,
                frame,
                lie,
            } => {
                let len = wire_len(&frame);
                let at = match is_small(&frame) {
                    // Small frames slip in between large ones: their way is short of queues.
                    true => self.now,
                    false => self.nodes[to].down.pass(self.now, len),
                };
                self.plan(
                    at,
                    Happening::Arrived {
                        from,
                        to,
                        frame,
                        lie,
                    },
                );
            }
            Happening::Arrived {
                from,
                to,
                frame,
                lie,
            } => {
                if !self.silent(to) {
                    self.receive(from, to, frame, lie);
                }
            }
            Happening::ReadDone { at, event } => self.provide(at, event),
            Happening::Wake(node) => {
                if self.nodes[node].wake == Some(self.now) {
                    self.nodes[node].wake = None;
                    self.tell(node, fetch::Event::Tick);
                }
            }
            Happening::Sweep(node) => {
                self.provide(node, provider::Event::Tick);
                let at = self.now + Duration::from_secs(1);
                if self.nodes[node].provider.stats().requests > 0 {
                    self.plan(at, Happening::Sweep(node));
                }
            }
            Happening::Gone { at, who } => {
                let (node, peer) = (self.id(who), self.id(who));
                self.tell(at, fetch::Event::Gone { node });
                self.provide(at, provider::Event::Gone { peer });
            }
        }
    }

    /// The node makes its fetch known and asks everybody what they hold.
    fn begin(&mut self, index: Index) {
        let seed = draw(&mut self.random);
        let options = FetchOptions {
            me: self.id(index),
            nar: self.object.nar,
            layout: self.layout.clone(),
            read_ahead: self.read_ahead,
            seed,
        };
        let node = &mut self.nodes[index];
        node.fetch = Some(Fetch::new(self.now, options));
        (node.started, node.reader_at) = (self.now, self.now);
        self.plan(self.now, Happening::Wake(index));
        self.nodes[index].wake = Some(self.now);
        for other in (0..self.nodes.len()).filter(|other| *other != index) {
            let object = self.object;
            self.send(
                index,
                other,
                Frame::HaveQuery {
                    req: HAVE_REQ,
                    object,
                },
                false,
            );
            // Its announcement makes those ask it that are fetching already.
            if self.nodes[other].fetch.is_some() && self.nodes[other].finished.is_none() {
                self.send(
                    other,
                    index,
                    Frame::HaveQuery {
                        req: HAVE_REQ,
                        object,
                    },
                    false,
                );
            }
        }
        self.plan(self.now + Duration::from_secs(1), Happening::Sweep(index));
    }

    fn receive(&mut self, from: Index, to: Index, frame: Frame, lie: bool) {
        let node = self.id(from);
        let event = match frame {
            Frame::HaveQuery { .. }
            | Frame::Get { .. }
            | Frame::Cancel { .. }
            | Frame::Credit { .. } => {
                if matches!(frame, Frame::Get { .. }) {
                    self.nodes[to].asked += 1;
                    self.note(&[1, from as u64, to as u64]);
                }
                let (peer, credit) = (node, matches!(frame, Frame::Credit { .. }));
                self.provide(to, provider::Event::Frame { peer, frame });
                if !credit {
                    self.plan(self.now + Duration::from_secs(1), Happening::Sweep(to));
                }
                return;
            }
            Frame::Have { have, .. } => fetch::Event::Source {
                node,
                tier: Tier::Lan,
                have,
            },
            Frame::HaveDelta { segments, .. } => fetch::Event::Gained { node, segments },
            Frame::Data {
                req, chunk, bytes, ..
            } => {
                let credit = Frame::Credit {
                    bytes: bytes.len() as u32,
                };
                self.send(to, from, credit, false);
                match lie {
                    true => fetch::Event::Bad { node },
                    false => return self.deliver(from, to, req, chunk),
                }
            }
            Frame::Busy { req, retry } => {
                let request = self.request(to, req);
                fetch::Event::Busy {
                    node,
                    request,
                    retry,
                }
            }
            Frame::NotFound { req, chunk } => {
                let request = self.request(to, req);
                fetch::Event::NotFound {
                    node,
                    request,
                    chunk,
                }
            }
            Frame::Error { req, .. } => {
                let request = self.request(to, req);
                fetch::Event::Error { node, request }
            }
            // All know of all here.
            Frame::Others { .. } => return,
            other => panic!("nobody sends {other:?} here"),
        };
        self.tell(to, event);
    }

    /// A verified chunk.
    fn deliver(&mut self, from: Index, to: Index, req: u32, chunk: u32) {
        self.note(&[2, from as u64, to as u64, chunk.into()]);
        let (node, request) = (self.id(from), self.request(to, req));
        self.nodes[to].held[chunk as usize] = true;
        self.tell(
            to,
            fetch::Event::Arrived {
                node,
                request,
                chunk,
            },
        );
        let reading = &mut self.nodes[to];
        if reading.reader == chunk {
            while reading.held.get(reading.reader as usize) == Some(&true) {
                reading.reader += 1;
            }
            let waited = self.now - reading.reader_at;
            reading.reader_wait_max = reading.reader_wait_max.max(waited);
            reading.reader_at = self.now;
            let chunk = reading.reader;
            self.tell(to, fetch::Event::Reader { chunk });
        }
    }

    /// The fetch's own number, as a driver would keep it per stream.
    fn request(&self, node: Index, req: u32) -> RequestId {
        let requests = self.nodes[node].fetch.as_ref();
        let request = requests.map(|_| RequestId::from_number(req));
        request.expect("only fetching nodes get answers")
    }

    fn tell(&mut self, index: Index, event: fetch::Event) {
        let node = &mut self.nodes[index];
        let Some(fetch) = &mut node.fetch else {
            return;
        };
        let actions = fetch.handle(self.now, event, &mut node.peers);
        let wake = fetch.next_wake();
        for action in actions {
            self.act(index, action);
        }
        let node = &mut self.nodes[index];
        if let Some(wake) = wake.filter(|wake| node.wake.is_none_or(|planned| *wake < planned)) {
            let wake = wake.max(self.now);
            node.wake = Some(wake);
            self.plan(wake, Happening::Wake(index));
        }
    }

    fn act(&mut self, index: Index, action: fetch::Action) {
        match action {
            fetch::Action::Request {
                node,
                request,
                ranges,
                deadline,
            } => {
                let frame = Frame::Get {
                    req: request.number(),
                    object: self.object,
                    ranges,
                    priority: Priority::Client,
                    deadline,
                };
                let to = self.index(node);
                self.send(index, to, frame, false);
            }
            fetch::Action::Cancel { node, request } => {
                let to = self.index(node);
                self.send(
                    index,
                    to,
                    Frame::Cancel {
                        req: request.number(),
                    },
                    false,
                );
            }
            fetch::Action::Ban { node, .. } => self.nodes[index].banned.push(node),
            fetch::Action::Complete { segment } => {
                self.nodes[index].segments.insert(segment);
                let (object, segments) = (self.object, vec![segment]);
                self.provide(index, provider::Event::Gained { object, segments });
            }
            fetch::Action::FindSources => {}
            fetch::Action::Done => self.nodes[index].finished = Some(self.now),
            fetch::Action::Failed(_) => self.nodes[index].failed = true,
        }
    }

    fn provide(&mut self, index: Index, event: provider::Event) {
        if self.silent(index) {
            return;
        }
        let actions = self.nodes[index].provider.handle(self.now, event);
        for action in actions {
            match action {
                provider::Action::LookUp { job, .. } => {
                    let event = self.look_up(index, job);
                    self.plan(self.now, Happening::ReadDone { at: index, event });
                }
                provider::Action::Read { job, chunk, .. } => {
                    let held = self.nodes[index].held[chunk as usize];
                    let bytes = held.then(|| zeros(self.layout.chunk_len(chunk)));
                    let event = provider::Event::Read { job, bytes };
                    self.plan(
                        self.now + READ_TIME,
                        Happening::ReadDone { at: index, event },
                    );
                }
                provider::Action::Send { peer, frame } => {
                    let lie = self.nodes[index].manner == Manner::Lying;
                    let to = self.index(peer);
                    self.send(index, to, frame, lie);
                }
            }
        }
    }

    fn look_up(&self, index: Index, job: provider::JobId) -> provider::Event {
        let node = &self.nodes[index];
        if node.fetch.is_none() && node.segments.is_empty() {
            return provider::Event::Absent { job };
        }
        let have = match node.segments.is_full() {
            true => Have::Complete,
            false => Have::Partial(node.segments.clone()),
        };
        let holding = Holding {
            layout: self.layout.clone(),
            have,
            manifest: Bytes::new(),
        };
        provider::Event::Found { job, holding }
    }

    fn send(&mut self, from: Index, to: Index, frame: Frame, lie: bool) {
        if self.silent(from) {
            return;
        }
        let len = wire_len(&frame);
        let at = match is_small(&frame) {
            true => self.now,
            false => self.nodes[from].up.pass(self.now, len),
        };
        self.plan(
            at,
            Happening::Left {
                from,
                to,
                frame,
                lie,
            },
        );
    }

    fn index(&self, node: NodeId) -> Index {
        let found = self.nodes.iter().position(|other| other.id == node);
        found.expect("nodes are never removed")
    }
}

/// Part of `values` from the least, in thousandths; sorts them.
pub(crate) fn percentile(values: &mut [Duration], per_mille: usize) -> Duration {
    values.sort_unstable();
    values[(values.len() * per_mille / 1000).min(values.len() - 1)]
}

pub(crate) fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn at_least(world: &World) -> Duration {
    world
        .nodes
        .iter()
        .map(|node| node.started)
        .max()
        .unwrap_or_default()
}

fn wire_len(frame: &Frame) -> u64 {
    match frame {
        Frame::Data { bytes, .. } => bytes.len() as u64 + 14,
        other => other.encode().len() as u64,
    }
}

fn is_small(frame: &Frame) -> bool {
    !matches!(frame, Frame::Data { .. } | Frame::Manifest { .. })
}

fn zeros(len: u64) -> Bytes {
    static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
    Bytes::from_static(&ZEROS[..len as usize])
}

const READ_TIME: Duration = Duration::from_micros(100);
/// Number of every query for what is held; requests count from 0 far below.
const HAVE_REQ: u32 = u32::MAX;
/// Happenings planned before the first run are starts.
const STARTS_MAX: u64 = 1_000;

//! One host: what the drivers of a real node would hold around the same machines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use attic_p2p::directory::{Directory, NoKeys};
use attic_p2p::identity::Identity;
use attic_p2p::ids::NodeId;
use attic_p2p::log::{Log, MemoryLog};
use attic_p2p::membership::certificate::Certificate;
use attic_p2p::peer_stats::PeerTable;
use attic_p2p::provider::Provider;
use attic_p2p::replica::{Replica, Setup};
use attic_p2p::signed::Signed;
use attic_p2p::time::Millis;
use attic_store::StorePathHash;

use crate::sim::charter::{Charter, EPOCH};
use crate::sim::content::ThingIndex;
use crate::sim::disk::Disk;
use crate::sim::door::Door;
use crate::sim::exchange::Flight;
use crate::sim::gossip::Gossip;
use crate::sim::link::Pipe;
use crate::sim::scenario::Manner;
use crate::sim::world::Message;

/// A host's place in the world.
pub(crate) type Index = usize;

/// What a host is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Never started.
    Absent,
    Running,
    /// Its connections stand, but nothing is taken from them and no time passes on it.
    Asleep,
    /// Its disk is all there is of it.
    Down,
}

/// One host.
pub(crate) struct Host {
    pub(crate) node: NodeId,
    pub(crate) identity: Identity,
    pub(crate) certificate: Signed<Certificate>,
    pub(crate) door: Door,
    pub(crate) manner: Manner,
    pub(crate) state: State,
    /// Counts starts: what was planned in an earlier life does not happen.
    pub(crate) life: u64,
    pub(crate) clock: Clock,
    /// While it runs or sleeps.
    pub(crate) replica: Option<Replica<Disk>>,
    /// While it does not.
    disk: Option<Disk>,
    image: Option<Image>,
    pub(crate) store: Store,
    /// Who is connected, and under which session.
    pub(crate) links: BTreeMap<Index, u64>,
    /// Who is kept out, and until when.
    pub(crate) bans: BTreeMap<Index, Duration>,
    pub(crate) gossip: Gossip,
    /// Who waits for the replica's answer to a request, and under which number of theirs.
    pub(crate) asked: BTreeMap<u64, (Index, u64)>,
    pub(crate) next_asked: u64,
    /// The latest time the replica wished to be woken.
    pub(crate) wake: Option<Duration>,
    pub(crate) was_starting: bool,
    pub(crate) provider: Provider,
    pub(crate) sweeping: bool,
    pub(crate) peers: PeerTable,
    pub(crate) flights: BTreeMap<ThingIndex, Flight>,
    /// Things that flights of this life are about: requests name them by their place here.
    pub(crate) slots: Vec<ThingIndex>,
    /// Who is known to be fetching what.
    pub(crate) fetching: BTreeMap<ThingIndex, BTreeSet<Index>>,
    /// What a client wants as soon as its path is known.
    pub(crate) wants: BTreeSet<ThingIndex>,
    /// Paths whose narinfo it would answer.
    pub(crate) shown: BTreeSet<StorePathHash>,
    pub(crate) up: Pipe,
    pub(crate) down: Pipe,
    pub(crate) traffic: Traffic,
    /// What came while it slept: from whom, over which connection.
    pub(crate) inbox: Vec<(Index, u64, Message)>,
}

/// What survives a restart beside the logs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    /// Paths that are published here: pushed, or landed.
    pub(crate) rows: BTreeSet<ThingIndex>,
    /// NARs that are complete.
    pub(crate) held: BTreeSet<ThingIndex>,
    /// Pushed here, and not known to be in the own log.
    pub(crate) unsaid: BTreeSet<ThingIndex>,
    /// Chunks that are not what they are stored as. No honest node has any.
    pub(crate) wrong: BTreeSet<(ThingIndex, u32)>,
}

/// A copy of a whole disk.
#[derive(Clone, Debug)]
struct Image {
    log: MemoryLog,
    store: Store,
}

/// Bytes sent, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) gossip: u64,
    pub(crate) sync: u64,
    /// Frames, chunks included.
    pub(crate) bulk: u64,
    /// Of these, chunks.
    pub(crate) chunks: u64,
}

/// A host's idea of the time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// Of the wall clock against true time, in milliseconds.
    pub(crate) skew: i64,
    /// Of the replica's clock: it was right, or wrong, when the program started.
    started_with: i64,
    /// How long the host slept in this life: no clock of a program runs meanwhile.
    slept: Duration,
}

impl Clock {
    /// What the replica is told.
    pub(crate) fn millis(&self, now: Duration) -> Millis {
        let awake = now.saturating_sub(self.slept).as_millis() as i64;
        let start = EPOCH as i64 * 1_000 + self.started_with;
        Millis((start + awake).max(0) as u64)
    }

    /// When the replica's clock will show `at`.
    pub(crate) fn when(&self, now: Duration, at: Millis) -> Duration {
        let after = at.0.saturating_sub(self.millis(now).0);
        now + Duration::from_millis(after.min(WAKE_MAX))
    }

    /// Seconds since 1970 by the wall clock.
    pub(crate) fn wall(&self, now: Duration) -> u64 {
        let millis = (EPOCH as i64 * 1_000 + self.skew).saturating_add(now.as_millis() as i64);
        millis.max(0) as u64 / 1_000
    }

    /// What downloads count in.
    pub(crate) fn monotonic(&self, now: Duration) -> Duration {
        now.saturating_sub(self.slept)
    }

    pub(crate) fn sleep(&mut self, span: Duration) {
        self.slept += span;
    }
}

impl Host {
    pub(crate) fn new(charter: &Charter, number: Index, setup: HostSetup) -> Host {
        let identity = charter.identity(number);
        let scopes = setup.manner.scopes();
        let certificate = charter.certificate(&identity, scopes);
        Host {
            node: identity.node_id(),
            door: Door::new(&identity, &charter.genesis, &certificate),
            certificate,
            manner: setup.manner,
            state: State::Absent,
            life: 0,
            clock: Clock::default(),
            replica: None,
            disk: Some(Disk::new(identity.node_id(), setup.log)),
            identity,
            image: None,
            store: Store::default(),
            links: BTreeMap::new(),
            bans: BTreeMap::new(),
            gossip: Gossip::default(),
            asked: BTreeMap::new(),
            next_asked: 0,
            wake: None,
            was_starting: true,
            provider: Provider::new(),
            sweeping: false,
            peers: PeerTable::new(),
            flights: BTreeMap::new(),
            slots: Vec::new(),
            fetching: BTreeMap::new(),
            wants: BTreeSet::new(),
            shown: BTreeSet::new(),
            up: Pipe::new(setup.up),
            down: Pipe::new(setup.down),
            traffic: Traffic::default(),
            inbox: Vec::new(),
        }
    }

    /// Starts the program on the disk as it is.
    pub(crate) fn boot(&mut self, charter: &Charter, seed: u64) {
        let disk = self.disk.take().expect("only what is down is started");
        self.clock = Clock {
            skew: self.clock.skew,
            started_with: self.clock.skew,
            slept: Duration::ZERO,
        };
        let replica = Replica::new(Setup {
            identity: self.identity.clone(),
            genesis: charter.genesis.clone(),
            certificate: self.certificate.clone(),
            unseal: Arc::new(NoKeys),
            log: disk,
            log_len_max: LOG_LEN_MAX,
            seed,
        });
        let replica = replica.expect("a simulated log can be read");
        self.door.take_revocations(replica.directory());
        self.replica = Some(replica);
        self.state = State::Running;
        self.life += 1;
        self.was_starting = true;
    }

    /// Ends the program; what it had in memory is gone.
    pub(crate) fn halt(&mut self) {
        if let Some(replica) = self.replica.take() {
            self.disk = Some(replica.into_log());
        }
        self.state = State::Down;
        self.links.clear();
        self.bans.clear();
        self.gossip = Gossip::default();
        self.asked.clear();
        self.wake = None;
        self.provider = Provider::new();
        self.sweeping = false;
        self.peers = PeerTable::new();
        let interrupted = std::mem::take(&mut self.flights).into_keys();
        self.wants.extend(interrupted);
        self.slots.clear();
        self.fetching.clear();
        self.shown.clear();
        self.inbox.clear();
    }

    /// Keeps what came while it sleeps, as the system does, until its buffers are full.
    pub(crate) fn keep_for_later(&mut self, from: Index, session: u64, message: Message) {
        if self.inbox.len() < INBOX_MAX {
            self.inbox.push((from, session, message));
        }
    }

    /// Keeps a copy of the disk.
    pub(crate) fn take_image(&mut self) {
        let log = match (&self.replica, &self.disk) {
            (Some(replica), _) => replica.log().image(),
            (None, Some(disk)) => disk.image(),
            (None, None) => unreachable!("a host has a disk, in use or not"),
        };
        let store = self.store.clone();
        self.image = Some(Image { log, store });
    }

    /// Puts the copy back. The host must be down.
    pub(crate) fn restore_image(&mut self) {
        if let Some(image) = self.image.clone() {
            self.disk = Some(Disk::new(self.node, image.log));
            self.store = image.store;
        }
    }

    /// The disk of a host that is down.
    pub(crate) fn disk_mut(&mut self) -> Option<&mut Disk> {
        self.disk.as_mut()
    }

    pub(crate) fn directory(&self) -> Option<&Directory> {
        self.replica.as_ref().map(Replica::directory)
    }

    /// The number of its last segment of `node`, from the disk if it is down.
    pub(crate) fn last_seq(&self, node: NodeId) -> u64 {
        match (&self.replica, &self.disk) {
            (Some(replica), _) => replica.directory().seq(node),
            (None, Some(disk)) => disk.range(node).map_or(0, |(_, last)| last),
            (None, None) => 0,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    pub(crate) fn disk_is_full(&self) -> bool {
        let running = self.replica.as_ref().map(|replica| replica.log().is_full());
        running.unwrap_or(false)
    }
}

/// What a host is made of.
pub(crate) struct HostSetup {
    pub(crate) manner: Manner,
    pub(crate) log: MemoryLog,
    /// Bytes per second, sending and receiving.
    pub(crate) up: u64,
    pub(crate) down: u64,
}

const INBOX_MAX: usize = 256;
/// Nothing that a scenario says is as long.
const LOG_LEN_MAX: u64 = 512 << 20;
/// Later wishes are forgotten ones.
const WAKE_MAX: u64 = 365 * 24 * 3600 * 1000;

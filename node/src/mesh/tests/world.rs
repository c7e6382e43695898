//! Nodes in one process, on loopback: networks and stores are real, membership and directory are not.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use attic_p2p::bulk::BulkStream;
use attic_p2p::fetch::Tier;
use attic_p2p::gate::{Answer, Gate, Refusal};
use attic_p2p::identity::Identity;
use attic_p2p::ids::{ClusterId, ManifestId, NodeId};
use attic_p2p::network::{Network, NetworkEvent, NetworkOptions};
use attic_p2p::provider::ProviderStats;
use attic_p2p::wire::Priority;
use attic_store::nar::NarWriter;
use attic_store::{NarHash, Options, Store};
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::mesh::exchange::Exchange;
use crate::mesh::flight::body::FlightReader;
use crate::mesh::flight::{FlightError, Flights, Follower, Sources, Wanted, gains};
use crate::mesh::offer::{Offer, OfferParts, Pace, Permission};

pub(super) const CLUSTER: ClusterId = ClusterId::from_bytes([7; 16]);

/// A node that fetches and offers.
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) network: Network,
    pub(super) store: Store,
    pub(super) exchange: Exchange,
    pub(super) flights: Flights,
    pub(super) sources: Arc<Listed>,
    pub(super) doors: Arc<Doors>,
    offered: watch::Receiver<ProviderStats>,
    _tasks: JoinSet<()>,
    _dir: TempDir,
}

/// What streams of others are answered by.
pub(super) enum Serving {
    Honestly,
    /// At most so many bytes a second.
    Slowly(u64),
    /// By this.
    By(fn(BulkStream, Store) -> BoxFuture<'static, ()>),
}

impl Peer {
    pub(super) async fn start(seed: u8, serving: Serving) -> Peer {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let identity = Identity::from_seed([seed; 32]);
        let node = identity.node_id();
        let options = NetworkOptions {
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
            seed: seed.into(),
            ..NetworkOptions::default()
        };
        let (network, events) = Network::start(options, Arc::new(AllIn), identity).unwrap();
        let exchange = Exchange::new(network.clone(), node, CLUSTER);
        let (sources, doors) = (Arc::new(Listed::default()), Arc::new(Doors::default()));
        let (gains, gained) = gains();
        let flights = Flights::new(
            store.clone(),
            exchange.clone(),
            Arc::clone(&sources) as Arc<dyn Sources>,
            gains,
        );
        let rate = match serving {
            Serving::Slowly(rate) => NonZeroU64::new(rate),
            Serving::Honestly | Serving::By(_) => None,
        };
        let offer = Offer::start(OfferParts {
            cluster: CLUSTER,
            store: store.clone(),
            flights: flights.clone(),
            exchange: exchange.clone(),
            permission: Arc::clone(&doors) as Arc<dyn Permission>,
            pace: Arc::new(Pace::new(rate)),
            gained,
        });
        let (told, offered) = watch::channel(ProviderStats::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(events, offer, serving, store.clone(), told));
        Peer {
            node,
            network,
            store,
            exchange,
            flights,
            sources,
            doors,
            offered,
            _tasks: tasks,
            _dir: dir,
        }
    }

    /// Connects to another peer.
    pub(super) async fn meet(&self, other: &Peer) {
        let mut addresses = Vec::new();
        while addresses.is_empty() {
            addresses = other.network.listen_addresses();
            sleep(Duration::from_millis(5)).await;
        }
        self.network.dial(addresses.remove(0)).await.unwrap();
        self.sources.near.lock().unwrap().insert(other.node);
        other.sources.near.lock().unwrap().insert(self.node);
    }

    /// Stores the NAR of a file; returns what others want to fetch it.
    pub(super) fn import(&self, contents: &[u8]) -> Wanted {
        let mut nar = Vec::new();
        let mut writer = NarWriter::new(|bytes: &[u8]| nar.extend_from_slice(bytes));
        writer.regular(false, contents.len() as u64).unwrap();
        writer.contents(contents).unwrap();
        writer.finish().unwrap();
        let imported = self
            .store
            .import(&self.store.lease(), &mut &nar[..])
            .unwrap();
        let manifest = self.store.manifest(&imported.nar_hash).unwrap().unwrap();
        Wanted {
            nar: imported.nar_hash,
            manifest: ManifestId::of(&manifest.encode()),
            nar_size: imported.nar_size,
            file: Some((imported.file_hash, imported.file_size)),
        }
    }

    /// The `.nar.zst` of a NAR in its store.
    pub(super) fn frames(&self, wanted: &Wanted) -> Vec<u8> {
        let nar = self.store.open_nar(&wanted.nar).unwrap().unwrap();
        let mut blocks = nar.frames(0..u64::MAX);
        let mut out = Vec::new();
        while let Some(block) = blocks.next_block().unwrap() {
            out.extend_from_slice(&block);
        }
        out
    }

    pub(super) fn follow(&self, wanted: &Wanted) -> Follower {
        self.flights
            .follow(wanted.clone(), Priority::Client)
            .unwrap()
    }

    /// Reads a whole NAR through a flight.
    pub(super) async fn fetch(&self, wanted: &Wanted) -> Result<Vec<u8>, FlightError> {
        let flight = self.follow(wanted);
        flight.ready(soon()).await?;
        read(FlightReader::new(flight, 0..u64::MAX).unwrap())
            .await
            .1
    }

    /// Bytes of chunks it sent.
    pub(super) fn sent(&self) -> u64 {
        self.offered.borrow().sent
    }
}

/// All that a reader yields: the bytes until the end or the error, and all of them if there is none.
pub(super) async fn read(mut reader: FlightReader) -> (Vec<u8>, Result<Vec<u8>, FlightError>) {
    let mut out = Vec::new();
    loop {
        match reader.next().await {
            Ok(Some(bytes)) => out.extend_from_slice(&bytes),
            Ok(None) => return (out.clone(), Ok(out)),
            Err(error) => return (out, Err(error)),
        }
    }
}

/// Time enough for anything.
pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Waits until something is so.
pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    // What gossip did not bring is fetched once in up to 90 s.
    let waited = timeout(Duration::from_secs(120), waiting).await;
    assert!(waited.is_ok(), "{what}");
}

/// Bytes that hardly compress and follow from a seed.
pub(super) fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(seed.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

async fn serve(
    mut events: mpsc::Receiver<NetworkEvent>,
    offer: Offer,
    serving: Serving,
    store: Store,
    told: watch::Sender<ProviderStats>,
) {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            event = events.recv() => match (event, &serving) {
                (Some(NetworkEvent::Bulk { stream, .. }), Serving::By(serve)) => {
                    streams.spawn(serve(stream, store.clone()));
                }
                (Some(NetworkEvent::Bulk { stream, .. }), _) => offer.accept(stream).await,
                (Some(_), _) => {}
                (None, _) => return,
            },
            () = sleep(Duration::from_millis(50)) => {
                told.send_replace(offer.stats());
            }
        }
    }
}

/// A gate that lets everybody in.
struct AllIn;

impl Gate for AllIn {
    fn hello(&self, _: NodeId) -> Vec<u8> {
        Vec::new()
    }

    fn answer(&self, _: NodeId, _: &[u8]) -> BoxFuture<'_, Answer> {
        Box::pin(async {
            Answer {
                reply: Vec::new(),
                admit: true,
            }
        })
    }

    fn accept(&self, _: NodeId, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A directory that says what it was told.
#[derive(Default)]
pub(super) struct Listed {
    nodes: Mutex<BTreeMap<NarHash, Vec<(NodeId, Tier)>>>,
    changes: watch::Sender<()>,
    near: Mutex<BTreeSet<NodeId>>,
}

impl Listed {
    pub(super) fn add(&self, wanted: &Wanted, peer: &Peer) {
        let mut nodes = self.nodes.lock().unwrap();
        let of = nodes.entry(wanted.nar).or_default();
        of.push((peer.node, Tier::Lan));
        drop(nodes);
        self.changes.send_replace(());
    }
}

impl Sources for Listed {
    fn tier(&self, node: &NodeId) -> Option<Tier> {
        let near = self.near.lock().unwrap();
        near.contains(node).then_some(Tier::Lan)
    }

    fn of(&self, nar: &NarHash) -> Vec<(NodeId, Tier)> {
        let nodes = self.nodes.lock().unwrap();
        nodes.get(nar).cloned().unwrap_or_default()
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

/// Permission for all, or for none.
#[derive(Default)]
pub(super) struct Doors {
    pub(super) closed: AtomicBool,
}

impl Permission for Doors {
    fn may_read(&self, _: NodeId, _: &NarHash) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }
}

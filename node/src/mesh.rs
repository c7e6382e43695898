//! What a node in a cluster has beyond a lone one.
//!
//! A [`Mesh`] exists while the node is in a cluster and runs: it can come and go at run time. It
//! owns the network, this node's copy of the cluster's logs, and the tasks between them:
//!
//! - the [`runtime`] drives the replica;
//! - the reactor (here) takes its news: what others said is done here ([`announce`]), questions of
//!   peers are answered, streams go to the [`offer`];
//! - the keeper looks after what needs time: certificates, remembered addresses, what was noted
//!   and not said, copies on other nodes ([`replicate`](mod@replicate)), members that this node is not
//!   connected to ([`peer_exchange`]).

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::Duration;

use attic_p2p::Multiaddr;
use attic_p2p::directory::{Change, Unseal};
use attic_p2p::fetch::Tier;
use attic_p2p::identity::Identity;
use attic_p2p::ids::{ClusterId, NodeId};
use attic_p2p::membership::gate::MemberGate;
use attic_p2p::membership::sealing::OpeningKey;
use attic_p2p::network::{Direction, Network, NetworkOptions, PeerInfo, StartError, Topic};
use attic_p2p::placement::rank;
use attic_p2p::record::{PathRecord, Record};
use attic_p2p::replica::{Replica, Setup as ReplicaSetup};
use attic_p2p::signed::Signed;
use attic_p2p::wire::Priority;
use attic_store::NarHash;
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::auth::random;
use crate::config::MeshConfig;
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::mesh::announce::{Announcer, Parts as AnnouncerParts, ShareError};
use crate::mesh::audience::Audience;
use crate::mesh::bucket::collect::Collection;
use crate::mesh::bucket::source::BUCKET;
use crate::mesh::bucket::write_behind::{Backlog, write_behind};
use crate::mesh::bucket::{SharedBucket, tend};
use crate::mesh::exchange::{BanCause, Exchange};
use crate::mesh::files::{Charter, ClusterFileError, ClusterFiles};
use crate::mesh::flight::{FlightError, Flights, Follower, Sources, Wanted};
use crate::mesh::log::LogFiles;
use crate::mesh::members::{Door, Members};
use crate::mesh::names::{Names, agent};
use crate::mesh::offer::{Offer, OfferParts, Pace, Permission};
use crate::mesh::outbox::Outbox;
use crate::mesh::peer_exchange::{exchange_peers, peers_for};
use crate::mesh::private::{Parts as PrivateParts, PrivateKeys};
use crate::mesh::query::{Query, Reply};
use crate::mesh::renewal::renew;
use crate::mesh::replicate::{Replicas, replicate};
use crate::mesh::runtime::{Counters, News, Runtime, Setup};
use crate::mesh::substitute::Finder;
use crate::mesh::view::DirectoryView;
use crate::metrics::MESH_NUMBERS;

pub(crate) mod announce;
pub(crate) mod audience;
pub(crate) mod bucket;
pub(crate) mod exchange;
pub(crate) mod farewell;
pub(crate) mod files;
pub(crate) mod flight;
pub(crate) mod join;
pub(crate) mod link;
pub(crate) mod log;
pub(crate) mod members;
pub(crate) mod names;
pub(crate) mod offer;
pub(crate) mod outbox;
pub(crate) mod peer_exchange;
pub(crate) mod private;
pub(crate) mod pull;
pub(crate) mod query;
pub(crate) mod renewal;
pub(crate) mod replicate;
pub(crate) mod runtime;
pub(crate) mod substitute;
pub(crate) mod view;

#[cfg(test)]
pub(crate) use self::members::founder;

/// The node's part of its cluster.
pub(crate) struct Mesh {
    pub(crate) me: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) name: String,
    pub(crate) members: Arc<Members>,
    pub(crate) names: Names,
    pub(crate) network: Network,
    pub(crate) view: DirectoryView,
    pub(crate) announcer: Arc<Announcer>,
    pub(crate) finder: Arc<Finder>,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) flights: Flights,
    pub(crate) exchange: Exchange,
    pub(crate) offer: tokio::sync::Mutex<Option<Offer>>,
    /// The rate at which chunks may leave this node.
    pace: Arc<Pace>,
    /// Turns to ask peers for what they have of upstreams.
    pulls: Mutex<BTreeMap<NodeId, Arc<Semaphore>>>,
    pub(crate) counters: watch::Receiver<Counters>,
    /// The cluster's bucket, where this node was told of one.
    pub(crate) bucket: Option<Arc<SharedBucket>>,
    /// What this node, a keeper, is to make durable.
    pub(crate) backlog: Backlog,
    /// What this node, a keeper, learnt to collect the bucket.
    pub(crate) collection: Collection,
    /// Told when a keeper called something durable.
    pub(crate) durable_changed: Notify,
    /// Marked when somebody may hold more than before.
    sources_changed: watch::Sender<()>,
    /// What to publish here once its NAR has landed.
    landing: Arc<Mutex<Landing>>,
    /// Told when caches appeared or changed.
    pub(crate) caches_changed: Notify,
    /// Told when a peer came.
    peer_came: Notify,
    /// Told when a peer came whose name is to be remembered.
    name_due: Notify,
    /// Told when a peer came, or somebody became a member or is none any more.
    peers_changed: Notify,
    addresses: Mutex<BTreeMap<NodeId, Multiaddr>>,
    tasks: Mutex<JoinSet<()>>,
}

/// Paths whose NARs are on their way.
type Landing = BTreeMap<NarHash, Vec<Arc<PathRecord>>>;

/// Where the mesh is, when there is one.
#[derive(Default)]
pub(crate) struct MeshSlot(RwLock<Option<Arc<Mesh>>>);

impl MeshSlot {
    /// The mesh, while the node is in a cluster.
    pub(crate) fn get(&self) -> Option<Arc<Mesh>> {
        self.0.read().expect("no panic under this lock").clone()
    }

    /// Puts a mesh there, or takes it away; returns what was there.
    pub(crate) fn set(&self, mesh: Option<Arc<Mesh>>) -> Option<Arc<Mesh>> {
        std::mem::replace(
            &mut *self.0.write().expect("no panic under this lock"),
            mesh,
        )
    }
}

impl Mesh {
    /// Starts this node's part of a cluster. One that was let in just now is told addresses of
    /// members, and caches whose name is taken here wait for [`Announcer::settle`].
    ///
    /// **Errors**: [`MeshError`]; nothing runs then.
    pub(crate) async fn start(
        app: &Arc<App>,
        identity: &Identity,
        files: ClusterFiles,
        charter: Charter,
        newcomer: Option<Vec<Multiaddr>>,
    ) -> Result<Arc<Mesh>, MeshError> {
        let is_settled = newcomer.is_none();
        let known = newcomer.unwrap_or_default();
        let (genesis, certificate) = (charter.genesis.clone(), charter.certificate.clone());
        let cluster = genesis.cluster_id();
        let name = genesis.name.to_string();
        let me = identity.node_id();
        let setup = {
            let (identity, files, app) = (identity.clone(), files.clone(), Arc::clone(app));
            let log_len_max = app.config.mesh.log_max;
            move || -> Result<_, MeshError> {
                let log = LogFiles::open(&files.log(), me).map_err(MeshError::Log)?;
                let keyring = Arc::new(private::load(&files, cluster)?);
                let replica = Replica::new(ReplicaSetup {
                    identity,
                    genesis,
                    certificate,
                    unseal: Arc::clone(&keyring) as Arc<dyn Unseal>,
                    log,
                    log_len_max,
                    seed: u64::from_le_bytes(random()),
                });
                let replica = replica.map_err(|error| MeshError::Log(error.source))?;
                let end = replica.directory().seq(me);
                let outbox = Outbox::open(&files.outbox(), end).map_err(MeshError::Log)?;
                let remembered = files.peers();
                let names = Names::read(&files.names());
                let bucket = bucket::configured(&app, cluster, &files.bucket())?;
                Ok((replica, outbox, keyring, remembered, names, bucket))
            }
        };
        let (replica, outbox, keyring, remembered, names, bucket) =
            joined(spawn_blocking(setup).await)?;
        let members = Arc::new(Members::of_member(identity, files.clone(), charter)?);
        members.take_revocations(replica.directory());
        // An issuer that slept for long would be refused by all others.
        let renewing = Arc::clone(&members);
        joined(spawn_blocking(move || renewing.renew_own()).await)?;
        let topic = Topic::new(format!("attic-node/{cluster}/log"));
        let options = network_options(&app.config.mesh, &topic, known, remembered)?;
        let gate = Arc::new(MemberGate::new(Door(Arc::clone(&members))));
        let (network, events) = Network::start(options, gate, identity.clone())?;
        let replica = Arc::new(Mutex::new(replica));
        let view = DirectoryView::new(Arc::clone(&replica), me);
        let (records, said) = mpsc::channel(RECORDS_MAX);
        let (news, told) = mpsc::channel(NEWS_MAX);
        let (counted, counters) = watch::channel(Counters::default());
        let replicas = Arc::new(Replicas::default());
        let keys = PrivateKeys::new(PrivateParts {
            me,
            opening_key: OpeningKey::of(identity),
            files: files.clone(),
            view: view.clone(),
            members: Arc::clone(&members),
            keyring,
        });
        let announcer = Announcer::new(AnnouncerParts {
            me,
            files,
            opening_key: OpeningKey::of(identity),
            view: view.clone(),
            members: Arc::clone(&members),
            keys,
            replicas: Arc::clone(&replicas),
            records,
            outbox,
            is_settled,
        });
        let deadline = app.config.mesh.deadline;
        let audience = Audience::new(Arc::downgrade(app), view.clone());
        let finder = Finder::new(
            view.clone(),
            network.clone(),
            audience,
            deadline,
            bucket.clone(),
        );
        let finder = Arc::new(finder);
        let (sources_changed, changes) = watch::channel(());
        let exchange = Exchange::new(network.clone(), me, cluster);
        if let Some(bucket) = &bucket {
            exchange.add_bucket(Arc::clone(bucket));
        }
        let upload_rate_max = app.config.mesh.upload_rate_max;
        let pace = Arc::new(Pace::new(upload_rate_max.and_then(NonZeroU64::new)));
        let (gains, gained) = flight::gains();
        let landing = Arc::default();
        let sources = Arc::new(ClusterSources {
            finder: Arc::clone(&finder),
            view: view.clone(),
            landing: Arc::clone(&landing),
            bucket: bucket.clone(),
            changes,
        });
        let flights = Flights::new(app.store.clone(), exchange.clone(), sources, gains);
        let mesh = Arc::new(Mesh {
            me,
            cluster,
            name,
            members,
            names,
            finder,
            flights: flights.clone(),
            exchange: exchange.clone(),
            offer: tokio::sync::Mutex::new(None),
            pace: Arc::clone(&pace),
            pulls: Mutex::default(),
            bucket: bucket.clone(),
            backlog: Backlog::default(),
            collection: Collection::default(),
            durable_changed: Notify::new(),
            sources_changed,
            landing,
            network: network.clone(),
            view,
            announcer: Arc::new(announcer),
            replicas,
            counters,
            caches_changed: Notify::new(),
            peer_came: Notify::new(),
            name_due: Notify::new(),
            peers_changed: Notify::new(),
            addresses: Mutex::default(),
            tasks: Mutex::default(),
        });
        let permission = ScopePermission {
            app: Arc::downgrade(app),
            mesh: Arc::downgrade(&mesh),
        };
        *mesh.offer.lock().await = Some(Offer::start(OfferParts {
            cluster,
            store: app.store.clone(),
            flights,
            exchange: exchange.clone(),
            permission: Arc::new(permission),
            pace,
            gained,
        }));
        let runtime = Runtime::new(Setup {
            replica,
            network,
            exchange,
            topic,
            events,
            records: said,
            news,
            counters: counted,
        });
        let mut tasks = mesh.tasks.lock().expect("no panic under this lock");
        tasks.spawn(runtime.run());
        tasks.spawn(react(Arc::clone(app), Arc::clone(&mesh), told));
        tasks.spawn(keep(Arc::clone(app), Arc::clone(&mesh)));
        tasks.spawn(keep_names(Arc::clone(app), Arc::clone(&mesh)));
        tasks.spawn(land(Arc::clone(app), Arc::clone(&mesh)));
        tasks.spawn(renew(Arc::clone(&mesh)));
        tasks.spawn(exchange_peers(Arc::clone(&mesh)));
        tasks.spawn(replicate(Arc::clone(app), Arc::clone(&mesh)));
        if let Some(bucket) = bucket {
            tasks.spawn(tend(Arc::clone(&mesh), Arc::clone(&bucket)));
            tasks.spawn(write_behind(Arc::clone(app), Arc::clone(&mesh), bucket));
        }
        drop(tasks);
        Ok(mesh)
    }

    /// Stops everything and waits for it.
    pub(crate) async fn stop(&self) {
        self.flights.shutdown().await;
        if let Some(offer) = self.offer.lock().await.take() {
            offer.shutdown().await;
        }
        self.exchange.shutdown().await;
        self.network.shutdown().await;
        let mut tasks = {
            let mut tasks = self.tasks.lock().expect("no panic under this lock");
            std::mem::take(&mut *tasks)
        };
        tasks.shutdown().await;
    }

    /// Runs something until it is over or the mesh is stopped.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("no panic under this lock");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Stops everything, without waiting.
    pub(crate) fn abort(&self) {
        let mut tasks = self.tasks.lock().expect("no panic under this lock");
        tasks.abort_all();
    }

    /// For metrics, in the order of [`MESH_NUMBERS`].
    pub(crate) fn numbers(&self) -> [u64; MESH_NUMBERS.len()] {
        let (stats, segments, bytes) = self.view.sizes();
        let counters = *self.counters.borrow();
        let status = self.network.status();
        let flights = self.flights.stats();
        let offer = self.offer.try_lock().ok();
        let offer = offer.and_then(|offer| offer.as_ref().map(Offer::stats));
        let offer = offer.unwrap_or_default();
        let lags = status
            .peers
            .iter()
            .filter_map(|peer| self.view.lag(peer.node));
        let lag = lags.map(|lag| lag.behind).max().unwrap_or(0);
        let repairs = self.view.repairs();
        [
            status.peers.len() as u64,
            stats.logs as u64,
            stats.paths as u64,
            segments,
            bytes,
            self.view.too_long(),
            counters.gossip_sent,
            counters.gossip_received,
            counters.gossip_rejected,
            lag,
            self.announcer.noted() as u64,
            self.replicas.waiting() as u64,
            counters.sync_sent_bytes,
            counters.sync_received_bytes,
            counters.misbehaved,
            counters.rejected_records,
            self.exchange.bans(BanCause::WrongBytes),
            self.exchange.bans(BanCause::Protocol),
            self.exchange.bans(BanCause::Records),
            self.exchange.bans(BanCause::Flood),
            status.bans.len() as u64,
            status.counters.gossip_limited,
            status.counters.gossip_dropped,
            status.counters.gossip_unsent,
            status.counters.requests_limited,
            status.counters.requests_dropped,
            status.counters.bulk_dropped,
            status.counters.inbound_failed,
            status.counters.restarts,
            self.exchange.traffic().all().received,
            self.exchange.traffic().all().sent,
            offer.refused,
            flights.flying as u64,
            flights.landed,
            flights.failed,
            flights.hedged,
            repairs.damaged as u64,
            repairs.mended,
            repairs.healed,
            status.counters.dials_failed,
            status.counters.confirmed,
            status.counters.circuits_carried,
            status.counters.punched,
        ]
    }

    /// Addresses at which other nodes can reach this one, the best first: what was configured, what
    /// it listens at, and through which relays.
    pub(crate) fn addresses(&self, config: &MeshConfig) -> Vec<Multiaddr> {
        let announced = config.announce.iter().filter_map(|text| text.parse().ok());
        let announced: Vec<Multiaddr> = announced.collect();
        // What is announced is among those the network knows.
        let mut others = self.network.listen_addresses();
        others.retain(|address| !announced.contains(address));
        reachable(announced.into_iter().chain(others).collect())
    }

    /// Addresses of this node and, in turn, of connected ones, with and without a relay: any of them
    /// can let somebody in who has an open ticket.
    pub(crate) fn addresses_of_all(&self, config: &MeshConfig) -> Vec<(NodeId, Multiaddr)> {
        let own = self.addresses(config).into_iter().take(1);
        let own = own.map(|address| (self.me, address));
        let peers = self.network.peers();
        let others = peers.iter().flat_map(|peer| {
            let addresses = addresses_of(peer);
            let direct = addresses.iter().find(|address| !is_circuit(address));
            let circuit = addresses.iter().find(|address| is_circuit(address));
            let both = [direct, circuit].into_iter().flatten();
            both.map(|address| (peer.node, address.clone()))
                .collect::<Vec<_>>()
        });
        own.chain(others).collect()
    }

    fn remember(&self, node: NodeId, address: Multiaddr) {
        let mut addresses = self.addresses.lock().expect("no panic under this lock");
        if addresses.len() < ADDRESSES_MAX || addresses.contains_key(&node) {
            addresses.insert(node, address);
        }
    }

    /// Where a node was reached last, since this one's start.
    pub(crate) fn address_of(&self, node: &NodeId) -> Option<String> {
        let addresses = self.addresses.lock().expect("no panic under this lock");
        addresses.get(node).map(ToString::to_string)
    }

    /// When this node's certificate ends.
    pub(crate) fn certificate_expires(&self) -> u64 {
        let certificate = self.members.certificate();
        certificate.map_or(0, |signed| signed.value().not_after.0)
    }

    fn remembered(&self) -> Vec<Multiaddr> {
        let addresses = self.addresses.lock().expect("no panic under this lock");
        let named = addresses.iter().filter_map(|(node, address)| {
            let peer = node.peer_id()?;
            format!("{address}/p2p/{peer}").parse().ok()
        });
        named.collect()
    }
}

/// Addresses at which others can reach a peer, the best first.
fn addresses_of(peer: &PeerInfo) -> Vec<Multiaddr> {
    // The first is that of the connection, which is none to dial when the peer made it.
    let not_dialed = usize::from(peer.direction == Direction::Inbound);
    reachable(peer.addresses.iter().skip(not_dialed).cloned().collect())
}

/// The addresses in the order in which they should be tried, each once. Those that only this machine
/// or this link reaches are left out where there are others.
fn reachable(mut addresses: Vec<Multiaddr>) -> Vec<Multiaddr> {
    addresses.sort_by_key(Reach::of);
    addresses.dedup();
    let widest = addresses.first().map_or(Reach::Routed, Reach::of);
    addresses.retain(|address| Reach::of(address) == widest);
    addresses
}

/// From where an address leads to its node, the widest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Routed,
    Link,
    Host,
}

impl Reach {
    fn of(address: &Multiaddr) -> Reach {
        let text = address.to_string();
        match text.as_str() {
            local if local.starts_with("/ip4/127.") || local.starts_with("/ip6/::1/") => {
                Reach::Host
            }
            link if link.starts_with("/ip6/fe80:") || link.starts_with("/ip4/169.254.") => {
                Reach::Link
            }
            _ => Reach::Routed,
        }
    }
}

/// Whether an address leads through a relay.
fn is_circuit(address: &Multiaddr) -> bool {
    address.to_string().contains("/p2p-circuit")
}

fn network_options(
    config: &MeshConfig,
    topic: &Topic,
    known: Vec<Multiaddr>,
    remembered: Vec<Multiaddr>,
) -> Result<NetworkOptions, MeshError> {
    let configured = config.bootstrap.iter();
    let configured = configured.filter_map(|text| text.parse::<Multiaddr>().ok());
    let mut listen = Vec::new();
    if let Some(address) = config.listen {
        // A socket of one family each: whether the other comes along differs between systems.
        if address.ip().is_unspecified() {
            listen.push(multiaddr(&format!("/ip4/0.0.0.0/tcp/{}", address.port()))?);
        }
        if address.is_ipv6() && address.ip().is_unspecified() {
            if std::path::Path::new("/proc/net/if_inet6").exists() {
                listen.push(multiaddr(&format!("/ip6/::/tcp/{}", address.port()))?);
            }
        } else if !address.ip().is_unspecified() {
            let family = if address.is_ipv6() { "ip6" } else { "ip4" };
            let text = format!("/{family}/{}/tcp/{}", address.ip(), address.port());
            listen.push(multiaddr(&text)?);
        }
    }
    Ok(NetworkOptions {
        listen,
        peers: configured.chain(known).collect(),
        remembered,
        mdns: config.mdns,
        external: (config.announce.iter())
            .filter_map(|text| text.parse().ok())
            .collect(),
        relay_server: config.relay_server,
        relay_client: config.relay_client,
        relays: (config.relays.iter())
            .filter_map(|text| text.parse().ok())
            .collect(),
        hole_punching: config.hole_punching,
        autonat: config.autonat,
        topics: vec![topic.clone()],
        agent: agent(config.name.as_deref()),
        seed: u64::from_le_bytes(random()),
        ..NetworkOptions::default()
    })
}

fn multiaddr(text: &str) -> Result<Multiaddr, MeshError> {
    text.parse()
        .map_err(|_| MeshError::Address(text.to_owned()))
}

/// Takes the runtime's news until there are none any more.
async fn react(app: Arc<App>, mesh: Arc<Mesh>, mut news: mpsc::Receiver<News>) {
    while let Some(next) = news.recv().await {
        match next {
            News::Changed(changes) => changed(&app, &mesh, changes).await,
            News::PeerUp(node) => {
                tracing::info!(%node, "connected");
                mesh.sources_changed.send_replace(());
                mesh.peer_came.notify_one();
                mesh.name_due.notify_one();
                mesh.peers_changed.notify_one();
                blocking(&app, &mesh, |app, mesh| mesh.announcer.grant_to_all(app)).await;
            }
            News::PeerDown(node) => {
                tracing::info!(%node, "disconnected");
                mesh.sources_changed.send_replace(());
            }
            News::Reached(node, address) => mesh.remember(node, address),
            News::Asked { from, query, reply } => {
                let (app, mesh) = (Arc::clone(&app), Arc::clone(&mesh));
                // Bounded by the requests that peers may have open.
                tokio::spawn(async move { answer(&app, &mesh, from, query, reply).await });
            }
            News::Bulk(stream) => {
                if let Some(offer) = &*mesh.offer.lock().await {
                    offer.accept(stream).await;
                }
            }
            News::Writable => {
                blocking(&app, &mesh, |app, mesh| {
                    mesh.announcer.introduce();
                    mesh.announcer.take_reader_keys()?;
                    mesh.announcer.found_again(app)?;
                    mesh.announcer.adopt_caches(app)?;
                    mesh.announcer.finish_coming_back(app)?;
                    mesh.announcer.announce_noted(app)?;
                    Ok(mesh.announcer.tell_holdings(app)?)
                })
                .await;
            }
        }
    }
}

async fn changed(app: &Arc<App>, mesh: &Arc<Mesh>, changes: Vec<Change>) {
    blocking(app, mesh, move |app, mesh| {
        let announcer = &mesh.announcer;
        let mut caches = false;
        let mut members = false;
        let mut holders = false;
        let mut everything = false;
        for change in changes {
            match change {
                Change::Path { cache, hash } => {
                    mesh.finder.forget(cache, &hash);
                    announcer.path_changed(app, cache, &hash);
                    if mesh.is_writing_behind() {
                        let dots = mesh.view.dots_not_durable(cache, hash);
                        if !dots.is_empty() {
                            mesh.want_durable((cache, hash), &dots);
                        }
                    }
                }
                Change::Durable(node) => {
                    mesh.durable_changed.notify_waiters();
                    if let Some(bucket) = mesh.bucket.as_ref().filter(|_| node != mesh.me) {
                        bucket.news.notify_one();
                    }
                }
                Change::Cache(_) | Change::Grant(_) => caches = true,
                Change::Member(_) => members = true,
                Change::Holders(_) => holders = true,
                Change::Pins(_) => {}
                Change::Everything => everything = true,
            }
        }
        if holders || everything {
            mesh.sources_changed.send_replace(());
        }
        if members || everything {
            mesh.members_changed();
            mesh.peers_changed.notify_one();
            announcer.grant_to_all(app)?;
        }
        if caches || members || everything {
            everything |= announcer.take_reader_keys()?;
            if everything {
                mesh.sources_changed.send_replace(());
            }
            announcer.adopt_caches(app)?;
            announcer.take_keys(app)?;
            app.narinfos.clear();
        }
        announcer.finish_coming_back(app)?;
        if everything {
            announcer.prune_all(app)?;
            mesh.backlog.rescan();
            mesh.durable_changed.notify_waiters();
        }
        mesh.caches_changed.notify_waiters();
        Ok::<_, ShareError>(())
    })
    .await;
}

impl Mesh {
    /// Whether it is this node's business to make paths durable.
    pub(crate) fn is_writing_behind(&self) -> bool {
        self.bucket.is_some() && self.view.is_keeper(self.me)
    }

    /// Drops those who were taken out of the cluster, and forgets where those were who left.
    fn members_changed(&self) {
        for peer in self.network.peers() {
            if self.view.is_revoked(peer.node) {
                let network = self.network.clone();
                let node = peer.node;
                tokio::spawn(async move {
                    network.ban(node, REVOKED_BAN, "revoked").await;
                });
            }
        }
        for (member, _) in self.view.members_left() {
            let mut addresses = self.addresses.lock().expect("no panic under this lock");
            addresses.remove(&member.node);
        }
        self.view
            .with_directory(|directory| self.members.take_revocations(directory));
    }
}

/// Does something that may wait for the disk, and logs if it fails.
async fn blocking<F>(app: &Arc<App>, mesh: &Arc<Mesh>, work: F)
where
    F: FnOnce(&App, &Mesh) -> Result<(), ShareError> + Send + 'static,
{
    let (app, mesh) = (Arc::clone(app), Arc::clone(mesh));
    let runtime = tokio::runtime::Handle::current();
    let done = spawn_blocking(move || {
        let _entered = runtime.enter();
        work(&app, &mesh)
    });
    if let Err(error) = joined(done.await) {
        tracing::error!(
            cause = chain(&error),
            "what the cluster says could not be done here"
        );
    }
}

/// Answers a question of a peer.
async fn answer(
    app: &Arc<App>,
    mesh: &Arc<Mesh>,
    from: NodeId,
    query: Query,
    reply: oneshot::Sender<Bytes>,
) {
    if let Query::Hold { cache, hashes } = &query {
        let accepted = match mesh.view.may_write(from, *cache) {
            true => mesh.hold(app, *cache, hashes).await,
            false => 0,
        };
        let _ = reply.send(Reply::Hold { accepted }.encode());
        return;
    }
    if let Query::Pull(pull) = query {
        let pulled = mesh.pulled(app, from, pull).await;
        let _ = reply.send(Reply::Pull(pulled).encode());
        return;
    }
    let (app, mesh) = (Arc::clone(app), Arc::clone(mesh));
    let answered = spawn_blocking(move || match query {
        Query::Paths { cache, hashes } => {
            let may = mesh.view.may_read(from, cache);
            let found = hashes.iter().map(|hash| {
                let local = app.caches.find_shared(&cache).filter(|_| may)?;
                let record = mesh
                    .announcer
                    .path_record(&app.store, &local, cache, hash)
                    .ok()??;
                Record::Path(record).encode().ok().map(Bytes::from)
            });
            Some(Reply::Paths(found.collect()))
        }
        Query::Renew { certificate } => {
            let shown = Signed::decode(&certificate).ok();
            let next = shown.and_then(|shown| mesh.members.renew(from, &shown));
            Some(Reply::Renew(next.map(|next| next.encode().into())))
        }
        Query::Peers => {
            let peers = peers_for(from, &mesh.network.peers(), peer_exchange::lot());
            Some(Reply::Peers(peers))
        }
        // Answered above, and by the replica.
        Query::Hold { .. } | Query::Pull(_) | Query::Sync(_) => None,
    });
    if let Some(answer) = joined(answered.await) {
        // Whoever asked may be gone.
        let _ = reply.send(answer.encode());
    }
}

impl Mesh {
    /// Whether the NAR of a path of the cluster can be had through this node: it stores what it
    /// fetches, and a response that has begun must not fail for want of space. In doubt not.
    pub(crate) async fn has_room_for(&self, record: &PathRecord) -> bool {
        let flights = self.flights.clone();
        let (nar, len) = (record.info.nar_hash, record.file_size);
        let has_room = spawn_blocking(move || flights.has_room_for(&nar, len));
        joined(has_room.await).unwrap_or_else(|error| {
            tracing::error!(
                cause = chain(&error),
                "it is not known what there is room for"
            );
            false
        })
    }

    /// Begins to fetch, or joins in fetching, the NAR of a path of the cluster. When it has landed
    /// the path is published here.
    ///
    /// **Errors**: the flight's; nothing is fetched then.
    pub(crate) fn fetch(
        &self,
        record: Arc<PathRecord>,
        who: Priority,
    ) -> Result<Follower, FlightError> {
        let wanted = Wanted {
            nar: record.info.nar_hash,
            manifest: record.manifest,
            nar_size: record.info.nar_size,
            file: Some((record.file_hash, record.file_size)),
        };
        {
            let mut landing = self.landing.lock().expect("no panic under this lock");
            if landing.len() >= LANDING_MAX {
                // Kept without a name, these are fetched again when they are asked for again.
                landing.clear();
            }
            let records = landing.entry(wanted.nar).or_default();
            if !records.contains(&record) {
                records.push(record);
            }
        }
        self.flights.follow(wanted, who)
    }
}

/// Publishes here what has landed, until the mesh is stopped.
async fn land(app: Arc<App>, mesh: Arc<Mesh>) {
    let mut landings = mesh.flights.landings();
    loop {
        let nars = match landings.recv().await {
            Ok(nar) => vec![nar],
            // Missed some: look at all that is waited for.
            Err(RecvError::Lagged(_)) => {
                let landing = mesh.landing.lock().expect("no panic under this lock");
                landing.keys().copied().collect()
            }
            Err(RecvError::Closed) => return,
        };
        let (app, mesh) = (Arc::clone(&app), Arc::clone(&mesh));
        let kept = spawn_blocking(move || {
            for nar in nars {
                mesh.keep_landed(&app, &nar);
            }
        });
        joined(kept.await);
    }
}

impl Mesh {
    fn keep_landed(&self, app: &App, nar: &NarHash) {
        if !matches!(app.store.nar(nar), Ok(Some(_))) {
            return;
        }
        let records = {
            let mut landing = self.landing.lock().expect("no panic under this lock");
            landing.remove(nar).unwrap_or_default()
        };
        for record in records {
            let Some(cache) = app.caches.find_shared(&record.cache) else {
                continue;
            };
            // It may have been removed while it was on its way.
            if !self.view.is_said(record.cache, record.info.path.hash())
                && !self.finder.has_heard(&record)
            {
                continue;
            }
            match app.publisher.keep(&cache, record.info.clone()) {
                Ok(true) => self.announcer.hold(&cache, record.cache, nar),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(cause = chain(&error), "a fetched path is not kept");
                }
            }
        }
    }
}

/// Who holds a NAR, for flights.
struct ClusterSources {
    finder: Arc<Finder>,
    view: DirectoryView,
    landing: Arc<Mutex<Landing>>,
    bucket: Option<Arc<SharedBucket>>,
    changes: watch::Receiver<()>,
}

impl Sources for ClusterSources {
    fn of(&self, nar: &NarHash) -> Vec<(NodeId, Tier)> {
        let sources = self.finder.sources(nar).into_iter();
        let origin = self.bucket.as_ref().filter(|bucket| bucket.is_reachable());
        sources
            .map(|node| (node, Tier::Lan))
            .chain(origin.map(|_| (BUCKET, Tier::Origin)))
            .collect()
    }

    fn tier(&self, node: &NodeId) -> Option<Tier> {
        if *node == BUCKET {
            return self.bucket.as_ref().map(|_| Tier::Origin);
        }
        self.finder.is_connected(node).then_some(Tier::Lan)
    }

    fn fellows(&self, nar: &NarHash) -> Vec<(NodeId, Tier)> {
        if self.bucket.is_none() {
            return Vec::new();
        }
        let cache = {
            let landing = self.landing.lock().expect("no panic under this lock");
            let records = landing.get(nar);
            records.and_then(|records| Some(records.last()?.cache))
        };
        let Some(cache) = cache else {
            return Vec::new();
        };
        // All nodes ask the same ones first. Who may not know of the NAR is not asked.
        let fellows = rank(nar.as_bytes(), self.finder.connected()).into_iter();
        fellows
            .filter(|node| self.view.may_read(*node, cache))
            .take(FELLOWS_MAX)
            .map(|node| (node, Tier::Lan))
            .collect()
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changes.clone()
    }
}

/// Who may read a NAR: whoever may read a cache of the cluster that has it.
struct ScopePermission {
    app: Weak<App>,
    mesh: Weak<Mesh>,
}

impl Permission for ScopePermission {
    fn may_read(&self, peer: NodeId, nar: &NarHash) -> bool {
        let (Some(app), Some(mesh)) = (self.app.upgrade(), self.mesh.upgrade()) else {
            return false;
        };
        let snapshot = app.caches.snapshot();
        let mut shared = snapshot
            .values()
            .filter_map(|cache| Some((cache.settings.shared_as?, cache)));
        shared.any(|(id, cache)| {
            let shows = || {
                let here = app.store.shows_nar(&cache.name, nar);
                here.unwrap_or(false)
                    || mesh.view.nar(id, nar).is_some()
                    || mesh.finder.has_heard_of_nar(id, nar)
            };
            mesh.view.may_read(peer, id) && shows()
        })
    }
}

/// Looks after what needs time, until it is stopped.
async fn keep(app: Arc<App>, mesh: Arc<Mesh>) {
    let mut remembered = Vec::new();
    loop {
        // A revocation is for the log at once: whoever is told of its own may be alone after a start.
        let _ = timeout(KEEP_EVERY, mesh.members.learnt_news.notified()).await;
        let now = mesh.remembered();
        let changed = now != remembered;
        remembered.clone_from(&now);
        blocking(&app, &mesh, move |app, mesh| {
            if changed {
                mesh.announcer.files.write_peers(&now)?;
            }
            mesh.members.renew_own()?;
            mesh.announcer.introduce();
            let learnt = mesh.members.take_learnt();
            if !learnt.is_empty() {
                mesh.announcer
                    .say_all(learnt.into_iter().map(Record::Revoke).collect());
            }
            mesh.announcer.finish_coming_back(app)?;
            mesh.announcer.announce_noted(app)
        })
        .await;
    }
}

/// Remembers what peers call themselves, soon after they came: they may be away when this node starts
/// again. Until it is stopped.
async fn keep_names(app: Arc<App>, mesh: Arc<Mesh>) {
    loop {
        let _ = timeout(KEEP_EVERY, mesh.name_due.notified()).await;
        for _ in 0..NAME_TRIES {
            // They say it a moment after they came.
            sleep(NAME_PAUSE).await;
            mesh.names.note(&mesh.network.peers());
            if let Some(names) = mesh.names.take_unwritten() {
                blocking(&app, &mesh, move |_, mesh| {
                    Ok(mesh.announcer.files.write_names(&names)?)
                })
                .await;
            }
        }
    }
}

/// Why a mesh does not start.
#[derive(Debug, Error)]
pub enum MeshError {
    /// A log cannot be read.
    #[error("read the cluster's logs")]
    Log(#[source] std::io::Error),
    /// A file of the cluster cannot be used.
    #[error(transparent)]
    File(#[from] ClusterFileError),
    /// The network does not start.
    #[error(transparent)]
    Network(#[from] StartError),
    /// Not an address.
    #[error("{0} is not an address")]
    Address(String),
    /// What is known of the cluster's bucket cannot be kept.
    #[error("keep what is known of the bucket")]
    Bucket(#[from] attic_store::LocatorError),
}

/// Batches of records that wait for the replica.
const RECORDS_MAX: usize = 64;
/// News that wait for the reactor.
const NEWS_MAX: usize = 256;
/// Nodes whose address is remembered.
const ADDRESSES_MAX: usize = 1024;
/// Nodes that are asked whether they fetch the same NAR.
const FELLOWS_MAX: usize = 32;
/// NARs on their way whose paths are remembered.
const LANDING_MAX: usize = 4096;
const KEEP_EVERY: Duration = Duration::from_secs(15);
/// How often, and how long apart, peers that came are asked for their names.
const NAME_TRIES: u32 = 10;
const NAME_PAUSE: Duration = Duration::from_millis(200);
/// A revoked node is refused by the gate anyway.
const REVOKED_BAN: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;

//! What every request handler may use: the parts of a running node.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use attic_p2p::identity::{Identity, IdentityError};
use attic_store::bucket::Bucket;
use attic_store::{BLOCK_LEN, Store, StoreError};
use tokio::sync::Semaphore;

use crate::api::StoreUsage;
use crate::auth::AdminToken;
use crate::caches::Caches;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::http::error::chain;
use crate::http::host::AllowedHosts;
use crate::http::refused::RefusedLately;
use crate::mesh::MeshSlot;
use crate::mesh::bucket::prefixed::Prefixed;
use crate::metrics::Metrics;
use crate::narinfo_memory::{Key, NarinfoMemory, Rendered};
use crate::publish::Publisher;
use crate::push::Sessions;
use crate::upstream::Upstreams;

/// The parts of a running node. Shared behind an `Arc`.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) caches: Caches,
    pub(crate) narinfos: Arc<NarinfoMemory>,
    pub(crate) publisher: Publisher,
    pub(crate) sessions: Sessions,
    pub(crate) token: AdminToken,
    pub(crate) hosts: AllowedHosts,
    pub(crate) metrics: Metrics,
    /// One permit per large request body that is taken in.
    pub(crate) uploads: Semaphore,
    /// One permit per narinfo that is taken in: they do not wait behind NARs.
    pub(crate) narinfo_uploads: Semaphore,
    /// Uploads that there was no space for.
    pub(crate) refused_lately: RefusedLately,
    /// One permit per NAR body that reads ahead of its socket.
    pub(crate) read_ahead: Arc<Semaphore>,
    /// NAR bodies under way.
    pub(crate) nar_bodies: AtomicUsize,
    /// One permit per commit: each reads and hashes whole NARs.
    pub(crate) commits: Semaphore,
    identity: RwLock<Identity>,
    pub(crate) data: DataDir,
    /// The cluster, while this node is in one.
    pub(crate) mesh: Arc<MeshSlot>,
    /// The bucket that nodes share, and what it is called; set before the node is in a cluster.
    pub(crate) bucket: OnceLock<(Arc<dyn Bucket>, String)>,
    /// What is asked for what is not here.
    pub(crate) upstreams: Upstreams,
    /// Held while the node enters or leaves a cluster.
    pub(crate) membership: tokio::sync::Mutex<()>,
    pub(crate) started_at: u64,
    /// Where it listens; set once it does.
    pub(crate) addresses: OnceLock<Vec<String>>,
    stopping: AtomicBool,
}

/// What [`App::new`] puts together.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) caches: Caches,
    pub(crate) token: AdminToken,
    pub(crate) identity: Identity,
    pub(crate) data: DataDir,
    pub(crate) started_at: u64,
}

impl App {
    pub(crate) fn new(parts: Parts) -> App {
        let Parts {
            config,
            store,
            caches,
            token,
            identity,
            data,
            started_at,
        } = parts;
        let mesh = Arc::new(MeshSlot::default());
        let narinfos = Arc::new(NarinfoMemory::new(config.http.narinfo_memory));
        let publisher = Publisher {
            store: store.clone(),
            narinfos: Arc::clone(&narinfos),
            mesh: Arc::clone(&mesh),
        };
        let mut metrics = Metrics::new();
        let urls = config
            .upstreams
            .iter()
            .map(|upstream| upstream.url.to_string());
        let upstream_metrics = metrics.add_upstreams(&urls.collect::<Vec<_>>());
        App {
            upstreams: Upstreams::new(&config, publisher.clone(), upstream_metrics),
            publisher,
            sessions: Sessions::new(config.push.sessions_max, config.push.session_idle),
            hosts: AllowedHosts::new(config.http.allowed_hosts.clone()),
            metrics,
            uploads: Semaphore::new(config.push.uploads_max),
            narinfo_uploads: Semaphore::new(NARINFO_UPLOADS_MAX),
            refused_lately: RefusedLately::default(),
            read_ahead: Arc::new(Semaphore::new(READ_AHEAD_MAX)),
            nar_bodies: AtomicUsize::new(0),
            commits: Semaphore::new(config.store.threads),
            addresses: OnceLock::new(),
            bucket: OnceLock::new(),
            stopping: AtomicBool::new(false),
            config,
            store,
            caches,
            narinfos,
            token,
            identity: RwLock::new(identity),
            data,
            mesh,
            membership: tokio::sync::Mutex::new(()),
            started_at,
        }
    }

    /// The part of the bucket below a prefix, and what it is called; `None` without a bucket.
    pub(crate) fn open_bucket(&self, prefix: &str) -> Option<(Arc<dyn Bucket>, String)> {
        let (whole, name) = self.bucket.get()?;
        let part = Prefixed::new(Arc::clone(whole), prefix.to_owned());
        Some((Arc::new(part), format!("{name}{prefix}")))
    }

    /// Whether requests should be sent here: it listens and is not about to stop.
    pub(crate) fn is_ready(&self) -> bool {
        self.addresses.get().is_some() && !self.stopping.load(Ordering::Relaxed)
    }

    /// This node's key pair.
    pub(crate) fn identity(&self) -> Identity {
        let identity = self.identity.read().expect("no panic under this lock");
        identity.clone()
    }

    /// Makes this node another one, durably. Blocks on the disk.
    ///
    /// **Errors**: the key cannot be written; the node is who it was.
    pub(crate) fn replace_identity(&self, identity: Identity) -> Result<(), IdentityError> {
        identity.replace(&self.data.identity())?;
        *self.identity.write().expect("no panic under this lock") = identity;
        Ok(())
    }

    /// Makes `/readyz` say no from now on.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// How long the next block of a NAR body may be: the more bodies there are the shorter, so that
    /// thousands of clients that do not read what they asked for hold little.
    pub(crate) fn block_len(&self) -> usize {
        let bodies = self.nar_bodies.load(Ordering::Relaxed).max(1);
        (BLOCK_BYTES / bodies).clamp(BLOCK_LEN_MIN, BLOCK_LEN)
    }

    /// The answer to a narinfo request that is ready to send, if there is one.
    pub(crate) fn remembered(&self, key: &Key) -> Option<Arc<Rendered>> {
        self.narinfos.follow(self.store.evicted_paths());
        self.narinfos.find(key)
    }

    /// Notes that stored bytes could not be read: paths that need them are hidden by the store, and
    /// what is remembered about them is forgotten.
    pub(crate) fn read_failed(&self, what: &'static str, error: &StoreError) {
        tracing::error!(cause = chain(error), "read {what}");
        self.metrics.store.read_errors.inc();
        self.narinfos.clear();
    }

    /// What the store holds. Asks the file system for its free space; otherwise cheap.
    pub(crate) fn usage(&self) -> StoreUsage {
        let usage = self.store.usage();
        StoreUsage {
            disk_bytes: usage.pack_bytes + usage.derived_bytes,
            size_cap: usage.size_cap,
            free_bytes: free_bytes(&self.config.data_dir),
            packs: usage.packs,
            chunks: usage.chunks,
            damaged_nars: usage.damaged_nars,
        }
    }
}

fn free_bytes(dir: &PathBuf) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bodies that read a block ahead of their socket; others read when the socket asks.
const READ_AHEAD_MAX: usize = 32;
/// Bytes that the blocks of all bodies share, as far as a chunk each leaves them the choice.
const BLOCK_BYTES: usize = 32 << 20;
/// Shorter blocks save nothing: a chunk is about this long.
const BLOCK_LEN_MIN: usize = 64 << 10;
/// Narinfos, of at most a MiB each, read and published at once.
const NARINFO_UPLOADS_MAX: usize = 64;

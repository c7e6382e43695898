//! A running node: everything put together, and taken apart again.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use attic_p2p::identity::{Identity, IdentityError};
use attic_store::{CacheName, Options, Store, StoreError};
use axum::serve::ListenerExt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};

use crate::api::CachePatch;
use crate::app::{App, Parts};
use crate::auth::AdminToken;
use crate::caches::{CacheError, Caches};
use crate::clock::unix_now;
use crate::collect::{Collector, Maintainer, SessionReaper};
use crate::config::{Config, HttpConfig, StoreConfig, UnixSocket};
use crate::data_dir::{
    DataDir, FileError, Lock, Secrecy, overwrite_file, remove_file, replace_file,
};
use crate::http::connection::Timeouts;
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::http::serve::{ServeOptions, serve};
use crate::http::{Door, Wall, cluster};
use crate::mesh::MeshError;
use crate::resign::Resigner;
use crate::retire::KeyRetirer;
use crate::s3::S3Error;
use crate::worker::Workers;

/// A running node. Dropping it closes all connections at once; [`Node::shutdown`] is kinder.
pub struct Node {
    app: Arc<App>,
    data: DataDir,
    tcp: SocketAddr,
    unix: Option<PathBuf>,
    first_start: Option<FirstStart>,
    stop: watch::Sender<bool>,
    servers: JoinSet<()>,
    workers: Workers,
    _mesh: MeshGuard,
    _lock: Lock,
}

/// Ends the mesh with its node: its tasks hold what they work with, and would go on without one.
struct MeshGuard(Arc<App>);

impl Drop for MeshGuard {
    fn drop(&mut self) {
        if let Some(mesh) = self.0.mesh.set(None) {
            mesh.abort();
        }
    }
}

/// What the first start that serves has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstStart {
    /// The cache that was made, now or by a start that ended before it served.
    pub cache: CacheName,
    /// The public half of its key, for `trusted-public-keys`.
    pub public_key: String,
}

impl Node {
    /// Starts a node: it serves when this returns.
    ///
    /// The first start makes the data directory, the node's identity, the admin token and a cache
    /// called `main`. Dropping the future leaves what was made by then; the next start goes on.
    ///
    /// **Errors**: [`StartError`]; nothing listens then.
    pub async fn start(config: Config) -> Result<Node, StartError> {
        let open_files = raise_open_files();
        let Prepared {
            parts,
            data,
            lock,
            first_start,
        } = joined(spawn_blocking(move || prepare(config)).await)?;
        let http = parts.config.http.clone();
        let app = Arc::new(App::new(parts));
        if let Some(s3) = app.config.s3.clone() {
            let opened = joined(spawn_blocking(move || crate::s3::open(&s3)).await)?;
            let _ = app.bucket.set(opened);
        }
        let tcp = bind_tcp(http.listen).await?;
        let tcp_address = tcp
            .local_addr()
            .map_err(|source| StartError::listen(http.listen, source))?;
        let unix = unix_path(&http.unix_socket, &data)
            .map(bind_unix)
            .transpose()?;
        let (stop, stopped) = watch::channel(false);
        let mut node = Node {
            data,
            tcp: tcp_address,
            unix: unix.as_ref().map(|(path, _)| path.clone()),
            first_start,
            stop,
            servers: JoinSet::new(),
            workers: Workers::new(stopped),
            _mesh: MeshGuard(Arc::clone(&app)),
            _lock: lock,
            app,
        };
        if let Err(error) = node.write_address() {
            tracing::warn!(
                cause = chain(&error),
                "programs on this machine must be told where to find the node"
            );
        }
        let connections_max = http.connections_max.min(connections_possible(open_files));
        let http = HttpConfig {
            connections_max,
            ..http
        };
        node.serve(tcp, unix.map(|(_, listener)| listener), &http);
        node.work();
        node.app.upstreams.start();
        cluster::resume(&node.app).await?;
        node.app.upstreams.warn_of_unknown_caches(&node.app.caches);
        node.note_served();
        Ok(node)
    }

    #[cfg(test)]
    pub(crate) fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Where it listens: `127.0.0.1:7745`, `unix:/path`.
    pub fn addresses(&self) -> Vec<String> {
        let unix = self
            .unix
            .iter()
            .map(|path| format!("unix:{}", path.display()));
        [self.tcp.to_string()].into_iter().chain(unix).collect()
    }

    /// The TCP address it listens on.
    pub fn tcp_address(&self) -> SocketAddr {
        self.tcp
    }

    /// What the first start made, if none has served before this one.
    pub fn first_start(&self) -> Option<&FirstStart> {
        self.first_start.as_ref()
    }

    /// Stops accepting, finishes requests and work under way within the configured bounds, and makes
    /// everything durable. Dropping the future midway is like dropping the node.
    ///
    /// **Errors**: what could not be made durable; nothing acknowledged is lost.
    pub async fn shutdown(mut self) -> Result<(), StopError> {
        // First: when nobody listens there any more, others may.
        let address_removed = remove_file(&self.data.address());
        self.app.stop();
        self.app.upstreams.close();
        // Nobody receives when everything has stopped already.
        let _ = self.stop.send(true);
        while let Some(done) = self.servers.join_next().await {
            if let Err(error) = done {
                tracing::error!(cause = chain(&error), "server ended");
            }
        }
        if let Some(mesh) = self.app.mesh.set(None) {
            if mesh.is_writing_behind() {
                mesh.backlog.finish().await;
            }
            mesh.stop().await;
        }
        self.app.upstreams.shutdown().await;
        self.workers.finish(WORK_PATIENCE).await;
        address_removed?;
        if let Some(path) = &self.unix {
            remove_file(path)?;
        }
        let store = self.app.store.clone();
        joined(spawn_blocking(move || store.close()).await)?;
        Ok(())
    }

    fn serve(&mut self, tcp: TcpListener, unix: Option<UnixListener>, http: &HttpConfig) {
        let options = ServeOptions {
            connections_max: http.connections_max,
            timeouts: Timeouts {
                head: http.header_timeout,
                idle: http.idle_timeout,
                send: http.send_idle_timeout,
            },
            shutdown: http.shutdown_timeout,
        };
        // Small answers on kept connections would otherwise wait for the client's acknowledgement.
        let tcp = tcp.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        let stopped = || self.stop.subscribe();
        self.servers.spawn(serve(
            tcp,
            Door::new(&self.app, Wall::Tcp),
            options,
            stopped(),
        ));
        if let Some(unix) = unix {
            self.servers.spawn(serve(
                unix,
                Door::new(&self.app, Wall::Unix),
                options,
                stopped(),
            ));
        }
        // Set once: the node is made once.
        let _ = self.app.addresses.set(self.addresses());
    }

    fn work(&mut self) {
        self.workers.spawn(Collector::new(Arc::clone(&self.app)));
        self.workers.spawn(Maintainer::new(Arc::clone(&self.app)));
        self.workers.spawn(KeyRetirer::new(Arc::clone(&self.app)));
        self.workers.spawn(Resigner::new(Arc::clone(&self.app)));
        self.workers
            .spawn(SessionReaper::new(Arc::clone(&self.app)));
    }

    /// Notes for later starts that one has served.
    fn note_served(&self) {
        if self.data.served().exists() {
            return;
        }
        if let Err(error) = replace_file(&self.data.served(), "", Secrecy::Public) {
            tracing::warn!(
                cause = chain(&error),
                "the next start will pass for the first"
            );
        }
    }

    /// Tells programs on this machine where to find the node.
    fn write_address(&self) -> Result<(), FileError> {
        let (path, text) = (self.data.address(), format!("{}\n", self.tcp));
        // A full disk still takes what fits into the file that is there.
        replace_file(&path, &text, Secrecy::Public)
            .or_else(|error| overwrite_file(&path, &text).map_err(|_| error))
    }
}

/// Everything that needs no network.
struct Prepared {
    parts: Parts,
    data: DataDir,
    lock: Lock,
    first_start: Option<FirstStart>,
}

fn prepare(config: Config) -> Result<Prepared, StartError> {
    let data = DataDir::new(&config.data_dir);
    data.create()?;
    let lock = data.lock()?;
    let is_new = !data.identity().exists();
    let token = AdminToken::load_or_create(&data.admin_token())?;
    let caches = Caches::load(data.clone())?;
    let store = Store::open(&data.store(), store_options(&config.store))?;
    if is_new {
        make_first_cache(&caches)?;
    }
    let first_start = match data.served().exists() {
        true => None,
        false => first_cache(&caches),
    };
    // Last: when it exists, everything a first start makes exists.
    let identity = Identity::load_or_create(&data.identity())?;
    let started_at = unix_now();
    let parts = Parts {
        config,
        store,
        caches,
        token,
        identity,
        data: data.clone(),
        started_at,
    };
    Ok(Prepared {
        parts,
        data,
        lock,
        first_start,
    })
}

/// Makes the cache `main`, unless an interrupted first start or the owner made one.
fn make_first_cache(caches: &Caches) -> Result<(), CacheError> {
    if caches.snapshot().is_empty() {
        let name: CacheName = FIRST_CACHE.parse().expect("the name is well-formed");
        caches.create(&name, &CachePatch::default(), None)?;
    }
    Ok(())
}

/// The cache `main`, if it is there.
fn first_cache(caches: &Caches) -> Option<FirstStart> {
    let cache = caches.find(FIRST_CACHE)?;
    Some(FirstStart {
        cache: cache.name.clone(),
        public_key: cache.view().public_key,
    })
}

pub(crate) fn store_options(config: &StoreConfig) -> Options {
    Options {
        pack_len_target: config.pack_size,
        size_cap: config.size_cap,
        upload_grace: config.upload_grace,
        nar_size_max: config.nar_size_max,
        threads: config.threads,
        compact_below: config.compact_below,
    }
}

async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::listen(address, source))
}

/// Where to put the unix socket, if anywhere.
fn unix_path(wanted: &UnixSocket, data: &DataDir) -> Option<PathBuf> {
    match wanted {
        UnixSocket::Off => None,
        UnixSocket::At(path) => Some(path.clone()),
        UnixSocket::InDataDir if data.socket().as_os_str().len() > SOCKET_PATH_LEN_MAX => {
            tracing::warn!("no unix socket: the data directory's path is too long for one");
            None
        }
        UnixSocket::InDataDir => Some(data.socket()),
    }
}

/// Binds a unix socket in place of one that a stopped node left behind. Everybody may connect, as
/// to the TCP port; the directory it is in may say otherwise.
fn bind_unix(path: PathBuf) -> Result<(PathBuf, UnixListener), StartError> {
    let bind = |path: &Path| -> io::Result<UnixListener> {
        if UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let is_socket = |path: &Path| {
            use std::os::unix::fs::FileTypeExt;
            fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        };
        if is_socket(path) {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        Ok(listener)
    };
    match bind(&path) {
        Ok(listener) => Ok((path, listener)),
        Err(source) => Err(StartError::Listen {
            address: format!("unix:{}", path.display()),
            source,
        }),
    }
}

/// Raises the soft limit on open files to the hard one, and returns what it is then: every
/// connection takes one. `None` is no limit.
fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit on open files stays as it is");
            limit.current
        }
    }
}

/// Connections that each of the two listeners may hold without taking the store's files away.
fn connections_possible(open_files: Option<u64>) -> usize {
    let files = usize::try_from(open_files.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    (files.saturating_sub(FILES_OF_THE_STORE) / 2).max(16)
}

/// A node cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory or a file in it cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The node's key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The store cannot be opened.
    #[error("open store")]
    Store(#[from] StoreError),
    /// The bucket that is configured cannot be used.
    #[error(transparent)]
    S3(#[from] S3Error),
    /// The node's part of its cluster cannot start.
    #[error("start the mesh")]
    Mesh(#[from] MeshError),
    /// An address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// Which.
        address: String,
        /// Why not.
        source: io::Error,
    },
}

impl StartError {
    fn listen(address: SocketAddr, source: io::Error) -> StartError {
        StartError::Listen {
            address: address.to_string(),
            source,
        }
    }
}

/// A node stopped, but not cleanly.
#[derive(Debug, Error)]
pub enum StopError {
    /// A file could not be removed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store could not be closed; the next start recovers.
    #[error("close store")]
    Store(#[from] StoreError),
}

const FIRST_CACHE: &str = "main";
/// Files that packs, index and everything else may take.
const FILES_OF_THE_STORE: usize = 512;
/// `sun_path` without its NUL.
const SOCKET_PATH_LEN_MAX: usize = 107;
/// Time that background work gets to finish at shutdown.
const WORK_PATIENCE: Duration = Duration::from_secs(60);

//! Reading a NAR from another node of the cluster, which has it of an upstream or gets it there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attic_p2p::ids::{CacheId, NodeId};
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Found, Inner};
use crate::caches::Cache;
use crate::http::ingest::Piece;
use crate::mesh::exchange::BanCause;
use crate::mesh::pull::{Pull, Pulled};

/// Who is asked for a NAR before upstreams are.
pub(super) struct Delegates {
    cache: CacheId,
    nodes: VecDeque<NodeId>,
}

impl Delegates {
    /// Those for a path of a cache; `None` if nobody else has the cache. Blocks.
    pub(super) fn find(inner: &Inner, cache: &Cache, found: &Found) -> Option<Delegates> {
        let (cache, mesh) = cache.settings.shared_as.zip(inner.publisher.mesh.get())?;
        let info = &found.info;
        let nodes = mesh.delegates(cache, *info.path.hash(), &info.nar_hash);
        let now = Instant::now();
        let state = inner.state();
        let is_helpful = |node: &NodeId| state.unhelpful.find(&(*node, cache), now).is_none();
        let nodes = nodes.into_iter().filter(is_helpful).collect();
        Some(Delegates { cache, nodes })
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Option<NodeId> {
        self.nodes.pop_front()
    }

    pub(super) fn cache(&self) -> CacheId {
        self.cache
    }
}

impl Inner {
    /// Keeps out a peer that gave wrong bytes.
    pub(super) fn ban(&self, node: NodeId) {
        if let Some(mesh) = self.publisher.mesh.get() {
            let why = "gave a wrong NAR of an upstream";
            mesh.exchange.ban(node, BanCause::WrongBytes, why);
        }
    }

    /// Does not ask a peer for a while.
    pub(super) fn avoid(&self, node: NodeId, cache: CacheId) {
        let now = Instant::now();
        self.state().unhelpful.keep((node, cache), (), 1, now);
    }
}

/// Brings the frames of a NAR from a peer to its reader.
pub(super) struct PeerPump {
    pub(super) inner: Arc<Inner>,
    pub(super) node: NodeId,
    pub(super) cache: CacheId,
    pub(super) found: Arc<Found>,
    pub(super) pieces: Sender<Piece>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) received: Arc<AtomicU64>,
    /// Why it broke off, if it did.
    pub(super) broken: Arc<Mutex<Option<String>>>,
}

impl PeerPump {
    /// Until the NAR is there, its reader has gone, or nobody wants it any more.
    pub(super) async fn run(self) {
        let mut stop = self.stop.clone();
        let outcome = tokio::select! {
            outcome = self.all() => outcome,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        if let Err(why) = outcome {
            self.inner.avoid(self.node, self.cache);
            tracing::debug!(peer = %self.node, nar = %self.found.info.nar_hash, why, "not from a peer");
            // Before the channel ends: the reader looks for it then.
            *self.broken.lock().expect("no panic under this lock") = Some(why.to_owned());
        }
    }

    async fn all(&self) -> Result<(), &'static str> {
        let info = &self.found.info;
        let mut pull = Pull {
            cache: self.cache,
            hash: *info.path.hash(),
            nar: info.nar_hash,
            from: 0,
        };
        let (mut failures, mut moved) = (0, Instant::now());
        while pull.from < info.nar_size {
            let mesh = self.inner.publisher.mesh.get();
            let mesh = mesh.ok_or("the node left the cluster")?;
            match mesh.pull(self.node, pull).await {
                None if failures == FAILURES_MAX => return Err("it does not answer"),
                None => {
                    failures += 1;
                    sleep(PAUSE).await;
                }
                Some(Pulled::Nothing) => return Err("it does not have it"),
                Some(Pulled::Chunks(chunks)) if chunks.is_empty() => {
                    if moved.elapsed() > PATIENCE {
                        return Err("nothing comes from it");
                    }
                    failures = 0;
                    sleep(PAUSE).await;
                }
                Some(Pulled::Chunks(chunks)) => {
                    for chunk in chunks {
                        pull.from += u64::from(chunk.raw_len);
                        let len = chunk.frame.len() as u64;
                        self.received.fetch_add(len, Ordering::Relaxed);
                        if self.pieces.send(Piece::Data(chunk.frame)).await.is_err() {
                            return Ok(());
                        }
                    }
                    (failures, moved) = (0, Instant::now());
                }
            }
        }
        let _ = self.pieces.send(Piece::End).await;
        Ok(())
    }
}

/// Questions in a row without an answer: the peer is asked no more.
const FAILURES_MAX: u32 = 2;
/// Between questions that brought nothing.
const PAUSE: Duration = Duration::from_millis(100);
/// A peer from which nothing comes for so long is left. Less than clients wait for a first byte.
const PATIENCE: Duration = Duration::from_secs(20);

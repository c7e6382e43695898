//! Reading a NAR from another node of the cluster, which has it of an upstream or gets it there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attic_p2p::ids::{CacheId, NodeId};
use attic_store::chunker::CHUNK_LEN_MAX;
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Found, Inner};
use crate::caches::Cache;
use crate::http::ingest::Piece;
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

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
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
            // It may have been given up because nothing came.
            _ = stop.wait_for(|stop| *stop) => Err("it was not quick enough"),
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
        let begun = Instant::now();
        let (mut failures, mut moved) = (0, begun);
        while pull.from < info.nar_size {
            if is_too_slow(begun.elapsed(), pull.from, info.nar_size) {
                return Err("it would take too long");
            }
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
                        let is_chunk = (1..=CHUNK_LEN_MAX).contains(&(chunk.raw_len as usize));
                        pull.from += u64::from(chunk.raw_len);
                        if !is_chunk || pull.from > info.nar_size {
                            return Err("it gives what is no chunk of it");
                        }
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

/// Whether a NAR of which so much came in this time is not to be waited for: nobody gets any of it before
/// all is there. Pure.
fn is_too_slow(took: Duration, came: u64, size: u64) -> bool {
    let needed = took.as_secs_f64() * size as f64 / (came.max(1)) as f64;
    took > PATIENCE && needed > WHOLE_MAX.as_secs_f64()
}

/// Questions in a row without an answer: the peer is asked no more.
const FAILURES_MAX: u32 = 2;
/// Between questions that brought nothing.
const PAUSE: Duration = Duration::from_millis(100);
/// A peer from which nothing comes for so long is left.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the whole may take. Less than clients wait for a first byte.
const WHOLE_MAX: Duration = Duration::from_secs(150);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nar_that_comes_too_slowly_is_noticed_once_that_is_certain() {
        let (mib, seconds) = (1 << 20, Duration::from_secs);
        assert!(!is_too_slow(seconds(5), 0, mib), "it may yet come");
        assert!(is_too_slow(seconds(21), 0, mib));
        assert!(!is_too_slow(seconds(21), 200 * mib, 1000 * mib));
        assert!(is_too_slow(seconds(21), 100 * mib, 1000 * mib));
        assert!(!is_too_slow(seconds(140), 990 * mib, 1000 * mib));
    }
}

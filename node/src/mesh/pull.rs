//! One download from an upstream for the whole cluster.
//!
//! Nodes that want the same NAR of an upstream at once rank themselves for it
//! ([`rank`]), and each reads it from the first in rank that has it or fetches it, as it lands there;
//! the first of all asks the upstream. Whoever is asked is higher in rank than who asks, so nobody waits
//! for himself, whatever each knows of the others. A node whose delegates do not deliver asks the
//! upstream: that costs a download, and nothing else.
//!
//! Chunks travel as the frames they are stored as, and are believed as little as the upstream is: the
//! reader hashes the whole. The last chunk is held back until the sender has done so.
//!
//! It is for NARs whose manifest nobody knows yet. When a path is published, it is fetched from all who
//! hold it ([`flight`](crate::mesh::flight)).

use std::sync::Arc;
use std::time::Duration;

use attic_p2p::control::{REQUEST_DEADLINE, REQUESTS_PER_PEER_MAX, RESPONSE_LEN_MAX};
use attic_p2p::ids::{CacheId, NodeId};
use attic_p2p::network::RequestError;
use attic_p2p::placement::rank;
use attic_store::chunker::CHUNK_LEN_MAX;
use attic_store::frame::frame_len_max;
use attic_store::{ChunkId, NarHash, Store, StoreError, StorePathHash};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use crate::app::App;
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::mesh::Mesh;
use crate::mesh::query::{Query, Reply};
use crate::upstream::PullError;

/// Asks for chunks of a NAR that an upstream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pull {
    pub(crate) cache: CacheId,
    /// The path whose NAR it is.
    pub(crate) hash: StorePathHash,
    pub(crate) nar: NarHash,
    /// Where in the NAR the first chunk begins.
    pub(crate) from: u64,
}

/// What there is of a NAR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pulled {
    /// Nothing will come from here.
    Nothing,
    /// Chunks side by side; none if none has landed by now.
    Chunks(Vec<PulledChunk>),
}

/// A chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PulledChunk {
    /// Bytes of the NAR.
    pub(crate) raw_len: u32,
    /// The chunk's zstd frame.
    pub(crate) frame: Bytes,
}

impl Mesh {
    /// Who is to be asked for a NAR of an upstream before the upstream is, the best first. Blocks.
    pub(crate) fn delegates(
        &self,
        cache: CacheId,
        hash: StorePathHash,
        nar: &NarHash,
    ) -> Vec<NodeId> {
        let peers = self.network.peers();
        let direct = peers.into_iter().filter(|peer| !peer.relayed);
        let direct = direct.map(|peer| peer.node).collect();
        let mut nodes = self.finder.audience().of((cache, hash), direct);
        nodes.push(self.me);
        let ranked = rank(nar.as_bytes(), nodes).into_iter();
        let before = ranked.take_while(|node| *node != self.me);
        before.take(DELEGATES_MAX).collect()
    }

    /// Asks a peer for the next chunks of a NAR, once not too many others are asked of it. The answer takes
    /// [`REQUEST_DEADLINE`] at most.
    ///
    /// `None` if there is no answer.
    pub(crate) async fn pull(&self, node: NodeId, pull: Pull) -> Option<Pulled> {
        let turns = self.pull_turns(node);
        let _turn = turns.acquire().await;
        let answer = self.network.request(node, Query::Pull(pull).encode()).await;
        let answer = match answer {
            // Others had something to ask.
            Err(RequestError::TooMany) => return Some(Pulled::Chunks(Vec::new())),
            answer => answer.ok()?,
        };
        match Reply::decode(&answer)? {
            Reply::Pull(pulled) => {
                if let Pulled::Chunks(chunks) = &pulled {
                    let bytes = chunks.iter().map(|chunk| chunk.frame.len() as u64).sum();
                    self.exchange.traffic().received(node, bytes);
                }
                Some(pulled)
            }
            _ => None,
        }
    }

    /// Turns to ask one peer: what else is asked of it must find room, too.
    fn pull_turns(&self, node: NodeId) -> Arc<Semaphore> {
        let mut turns = self.pulls.lock().expect("no panic under this lock");
        turns.retain(|_, turns| Arc::strong_count(turns) > 1);
        let new = || Arc::new(Semaphore::new(PULLS_PER_PEER));
        Arc::clone(turns.entry(node).or_insert_with(new))
    }

    /// Answers a peer: with chunks that are here, or have landed within [`PATIENCE`]. Begins to fetch
    /// the NAR if that is not begun.
    pub(crate) async fn pulled(&self, app: &Arc<App>, from: NodeId, pull: Pull) -> Pulled {
        let deadline = Instant::now() + PATIENCE;
        let Some(chunks) = self.chunks_for(app, from, pull, deadline).await else {
            return Pulled::Nothing;
        };
        let bytes = chunks.iter().map(|chunk| chunk.frame.len() as u64).sum();
        self.pace.wait(bytes).await;
        self.exchange.traffic().sent(from, bytes);
        Pulled::Chunks(chunks)
    }

    async fn chunks_for(
        &self,
        app: &Arc<App>,
        from: NodeId,
        pull: Pull,
        deadline: Instant,
    ) -> Option<Vec<PulledChunk>> {
        let may_read = self.view.may_read(from, pull.cache);
        let cache = app.caches.find_shared(&pull.cache).filter(|_| may_read)?;
        let known = app.upstreams.nar(&cache, &pull.nar);
        let known = known.filter(|found| *found.info.path.hash() == pull.hash);
        // That the asker knows the hash of a NAR says nothing: an upstream of the cache must have it.
        let found = match known {
            Some(found) => found,
            None => {
                let found = app.upstreams.path_with_nar(&cache, pull.hash, &pull.nar);
                match timeout_at(deadline, found).await {
                    Ok(found) => found?,
                    Err(_) => return Some(Vec::new()),
                }
            }
        };
        let room = self.pace.per_second().min(CHUNKS_LEN_MAX as u64);
        let flight = match app.upstreams.join(&pull.nar) {
            Some(flight) => flight,
            None => {
                let (store, nar) = (app.store.clone(), pull.nar);
                let whole = move || whole(&store, &nar, pull.from, room);
                match logged(joined(spawn_blocking(whole).await))? {
                    Some(chunks) => return chunks,
                    None if app.upstreams.has_room_for(&found).await => {
                        app.upstreams.fetch(&cache, found).ok()?
                    }
                    None => return None,
                }
            }
        };
        match flight.ready(pull.from, deadline).await {
            Ok(()) => {}
            Err(PullError::Late) => return Some(Vec::new()),
            Err(_) => return None,
        }
        let landed = flight.landed_from(pull.from).ok()?;
        let store = app.store.clone();
        let read = move || frames(&store, landed.into_iter(), room);
        let chunks = logged(joined(spawn_blocking(read).await))?;
        // Only now may what it holds be collected.
        drop(flight);
        chunks
    }
}

fn logged<T>(outcome: Result<T, StoreError>) -> Option<T> {
    let log = |error: &StoreError| tracing::error!(cause = chain(error), "read NAR for a peer");
    outcome.inspect_err(log).ok()
}

/// Chunks of a NAR that is in the store, if one begins at `from`; `None` if it is not there. Blocks.
fn whole(
    store: &Store,
    nar: &NarHash,
    from: u64,
    room: u64,
) -> Result<Option<Option<Vec<PulledChunk>>>, StoreError> {
    let Some(reader) = store.open_nar(nar)? else {
        return Ok(None);
    };
    let mut begin = 0;
    let after = reader.manifest().chunks().iter().skip_while(|entry| {
        let is_before = begin < from;
        begin += if is_before {
            u64::from(entry.raw_len)
        } else {
            0
        };
        is_before
    });
    let after = after.map(|entry| (entry.id, entry.raw_len));
    let after: Vec<_> = after.take(CHUNKS_MAX).collect();
    match begin == from {
        true => Ok(Some(frames(store, after.into_iter(), room)?)),
        false => Ok(Some(None)),
    }
}

/// Frames of chunks side by side: as many as there is room for, and one at least. `None` if one is
/// lost. Blocks.
fn frames(
    store: &Store,
    chunks: impl Iterator<Item = (ChunkId, u32)>,
    mut room: u64,
) -> Result<Option<Vec<PulledChunk>>, StoreError> {
    let mut read = Vec::new();
    for (chunk, raw_len) in chunks.take(CHUNKS_MAX) {
        let Some(frame) = store.frame(&chunk)? else {
            return Ok(None);
        };
        let left = room.checked_sub(frame.len() as u64);
        if left.is_none() && !read.is_empty() {
            break;
        }
        room = left.unwrap_or(0);
        read.push(PulledChunk { raw_len, frame });
    }
    Ok(Some(read))
}

/// Questions to one peer at a time; other questions are asked of it besides.
const PULLS_PER_PEER: usize = REQUESTS_PER_PEER_MAX / 2;
/// How long an answer waits for something to tell.
const PATIENCE: Duration = Duration::from_secs(2);
const _: () = assert!(PATIENCE.as_secs() * 2 < REQUEST_DEADLINE.as_secs());
/// Peers that are asked, one after the other, before the upstream is.
const DELEGATES_MAX: usize = 2;
/// Bytes of frames in one answer, and how many. One of any chunk fits.
const CHUNKS_LEN_MAX: usize = frame_len_max(CHUNK_LEN_MAX);
const CHUNKS_MAX: usize = 512;
const _: () = assert!(CHUNKS_LEN_MAX + 16 * CHUNKS_MAX <= RESPONSE_LEN_MAX);

//! Damage on the disk made good by peers and the bucket, when it is met in the middle of a response and
//! when a verification finds it.

use std::sync::Arc;

use attic_p2p::ids::CacheId;
use attic_p2p::wire::Priority;
use attic_store::{BlockReader, FileHash, NarHash, NarReader, StoreError};
use futures::{StreamExt, stream};
use tokio::task::spawn_blocking;

use crate::app::App;
use crate::http::body::Block;
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::http::nar::ServedForm;

/// Reads on where a block turned out to have decayed, once its NAR was fetched again.
///
/// Of the NAR only chunks that are damaged are fetched. The client waits until the whole is known to
/// be right, and sees nothing of it: a NAR has one sequence of bytes, wherever they come from.
pub(crate) struct Mender {
    pub(super) app: Arc<App>,
    pub(super) cache: CacheId,
    pub(super) nar_hash: NarHash,
    /// Of the frames whose beginning was sent.
    pub(super) file_hash: FileHash,
    pub(super) form: ServedForm,
    /// Where the response ends in the file.
    pub(super) end: u64,
}

impl Mender {
    /// The next block with `left` bytes to go; the old reader and its error, if no peer helps.
    pub(super) async fn read_on(self, left: u64, reader: BlockReader, error: StoreError) -> Block {
        let Some(nar) = self.fetch().await else {
            return (reader, Err(error));
        };
        tracing::info!(nar = %self.nar_hash, "damage was made good");
        let range = self.end - left..self.end;
        let read = spawn_blocking(move || {
            let mut reader = self.form.read(&nar, range);
            let block = reader.next_block();
            (reader, block)
        });
        joined(read.await)
    }

    /// The NAR, whole again; `None` if nobody has it, or framed in another way.
    async fn fetch(&self) -> Option<NarReader> {
        let nar = fetch(&self.app, self.cache, self.nar_hash, Priority::Client).await?;
        (nar.row().file_hash == self.file_hash).then_some(nar)
    }
}

/// Fetches NARs that are damaged here, of which only chunks that are; how many came.
pub(super) async fn fetch_all(app: &Arc<App>, nars: Vec<NarHash>) -> u64 {
    let caches = app.caches.snapshot();
    let shared = caches.values().filter_map(|cache| cache.settings.shared_as);
    let shared: Vec<CacheId> = shared.collect();
    let fetched = stream::iter(nars).map(|nar| {
        let shared = &shared;
        async move {
            for cache in shared {
                if fetch(app, *cache, nar, Priority::Background)
                    .await
                    .is_some()
                {
                    return true;
                }
            }
            false
        }
    });
    let mut fetched = fetched.buffer_unordered(FETCHED_AT_ONCE);
    let mut count = 0;
    while let Some(came) = fetched.next().await {
        count += u64::from(came);
    }
    count
}

/// A NAR of a cache, fetched from peers or the bucket; `None` if nobody has it.
async fn fetch(
    app: &Arc<App>,
    cache: CacheId,
    nar_hash: NarHash,
    who: Priority,
) -> Option<NarReader> {
    let mesh = app.mesh.get()?;
    let record = mesh.finder.nar(cache, nar_hash).await?;
    let bucket = mesh.bucket.as_ref();
    let is_in_bucket = || bucket.is_some_and(|bucket| bucket.has(&record.manifest));
    if mesh.finder.sources(&nar_hash).is_empty() && !is_in_bucket() {
        return None;
    }
    let fetched = match mesh.fetch(record, who) {
        Ok(flight) => flight.landed().await,
        Err(error) => Err(error),
    };
    if let Err(error) = fetched {
        tracing::warn!(nar = %nar_hash, cause = chain(&error), "damage stays");
        return None;
    }
    let store = app.store.clone();
    let opened = joined(spawn_blocking(move || store.open_nar(&nar_hash)).await);
    opened.ok().flatten()
}

/// NARs that a verification has fetched at a time.
const FETCHED_AT_ONCE: usize = 4;

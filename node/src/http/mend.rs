//! Damage on the disk that is met in the middle of a response, made good by peers.

use std::sync::Arc;

use attic_p2p::ids::CacheId;
use attic_p2p::wire::Priority;
use attic_store::{BlockReader, FileHash, NarHash, NarReader, StoreError};
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
        tracing::info!(nar = %self.nar_hash, "damage was made good by peers");
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
        let mesh = self.app.mesh.get()?;
        if mesh.finder.sources(&self.nar_hash).is_empty() {
            return None;
        }
        let record = mesh.finder.nar(self.cache, self.nar_hash).await?;
        let fetched = match mesh.fetch(record, Priority::Client) {
            Ok(flight) => flight.landed().await,
            Err(error) => Err(error),
        };
        if let Err(error) = fetched {
            tracing::warn!(nar = %self.nar_hash, cause = chain(&error), "damage stays");
            return None;
        }
        let (store, nar_hash) = (self.app.store.clone(), self.nar_hash);
        let opened = joined(spawn_blocking(move || store.open_nar(&nar_hash)).await);
        let nar = opened.ok().flatten()?;
        (nar.row().file_hash == self.file_hash).then_some(nar)
    }
}

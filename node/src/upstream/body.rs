//! Reading a plain NAR while it comes from an upstream.

use std::collections::VecDeque;
use std::ops::Range;

use attic_store::Store;
use attic_store::frame::FrameDecoder;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};

use super::flight::{Follower, Landed, PullError, Stage};
use crate::http::ingest::joined;

/// A range of a NAR in flight.
///
/// Yields what is stored, as soon as it is and everything before it. The last chunk of the NAR is
/// held back until the whole is known to be what was announced: who gets to the end has the right
/// bytes. Reads a block ahead. What a slow reader has not asked for waits on the disk.
pub(crate) struct PullReader {
    follower: Follower,
    store: Store,
    stages: watch::Receiver<Stage>,
    /// What is yet to be yielded.
    range: Range<u64>,
    /// Where the next block begins: what is before it is read, or being read.
    next: u64,
    ready: VecDeque<Bytes>,
    ahead: Option<JoinHandle<Block>>,
}

/// Chunks side by side, with where each begins.
type Block = Result<Vec<(u64, Bytes)>, PullError>;

impl PullReader {
    /// A reader of the bytes `range`, clipped to what there is.
    pub(crate) fn new(store: Store, follower: Follower, range: Range<u64>) -> PullReader {
        let size = follower.flight.size;
        let range = range.start.min(size)..range.end.min(size);
        PullReader {
            stages: follower.flight.stages(),
            follower,
            store,
            next: range.start,
            range,
            ready: VecDeque::new(),
            ahead: None,
        }
    }

    /// The next bytes; `None` at the end of the range. Waits for them as long as the flight goes on.
    ///
    /// **Cancellation**: may be dropped and called again.
    ///
    /// **Errors**: why the flight ended; [`PullError::Lost`] if a chunk cannot be read back.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        while self.ready.is_empty() {
            if self.range.is_empty() {
                return Ok(None);
            }
            if self.ahead.is_none() {
                let chunks = self.landed().await?;
                self.read(chunks);
            }
            if let Some(ahead) = &mut self.ahead {
                let block = joined(ahead.await);
                self.ahead = None;
                self.take(block?);
            }
            // The next block is read while this one is sent.
            let chunks = self.here()?;
            if !chunks.is_empty() {
                self.read(chunks);
            }
        }
        Ok(self.ready.pop_front())
    }

    /// Waits until the next chunk may be read; returns those that may.
    async fn landed(&mut self) -> Result<Vec<Landed>, PullError> {
        loop {
            self.stages.mark_unchanged();
            let chunks = self.here()?;
            if !chunks.is_empty() {
                return Ok(chunks);
            }
            let changed = self.stages.changed().await;
            changed.map_err(|_| PullError::Ended)?;
        }
    }

    /// The chunks of the next block that may be read now.
    fn here(&self) -> Result<Vec<Landed>, PullError> {
        match self.range.end.saturating_sub(self.next) {
            0 => Ok(Vec::new()),
            left => self
                .follower
                .flight
                .readable(self.next, left.min(BLOCK_LEN)),
        }
    }

    /// Begins to read chunks.
    fn read(&mut self, chunks: Vec<Landed>) {
        self.next = chunks.last().map_or(self.next, |last| last.end);
        let store = self.store.clone();
        self.ahead = Some(spawn_blocking(move || read_all(&store, &chunks)));
    }

    /// Takes a block, cut to the range.
    fn take(&mut self, block: Vec<(u64, Bytes)>) {
        for (begin, chunk) in block {
            let from = self.range.start.saturating_sub(begin) as usize;
            let to = (self.range.end - begin).min(chunk.len() as u64) as usize;
            self.range.start = begin + to as u64;
            self.ready.push_back(chunk.slice(from..to));
        }
    }
}

/// Plain bytes of chunks. Blocks.
fn read_all(store: &Store, chunks: &[Landed]) -> Block {
    let mut decoder = FrameDecoder::new();
    let mut plain = |landed: &Landed| {
        let frame = store.frame(&landed.chunk)?;
        let raw_len = (landed.end - landed.begin) as usize;
        let chunk = frame.and_then(|frame| decoder.decode(&frame, raw_len).ok());
        let chunk = chunk.ok_or(PullError::Lost(landed.chunk))?;
        Ok((landed.begin, Bytes::from(chunk)))
    };
    chunks.iter().map(&mut plain).collect()
}

/// Plain bytes read at a time, up to one chunk more.
const BLOCK_LEN: u64 = 1 << 20;

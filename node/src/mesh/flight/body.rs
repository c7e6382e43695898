//! Reading a NAR while it lands.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use attic_store::StoreError;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};

use super::state::{Plan, Shared, Stage};
use super::{FlightError, Follower};
use crate::http::ingest::joined;

/// A range of the `.nar.zst` of a NAR in flight.
///
/// Yields the frames as the manifest pins them, each as soon as it has landed and all before it have.
/// The last chunk of the NAR is held back until the whole is known to be what was announced: who
/// gets to the end has the right bytes. Reads a block ahead.
pub(crate) struct FlightReader {
    follower: Follower,
    plan: Arc<Plan>,
    landings: watch::Receiver<()>,
    /// This reader's number.
    number: u64,
    /// What is yet to be yielded.
    range: Range<u64>,
    /// The next chunk to read.
    chunk: u32,
    ready: VecDeque<Bytes>,
    ahead: Option<JoinHandle<Block>>,
}

/// Frames of consecutive chunks.
type Block = Result<Vec<Bytes>, FlightError>;

impl FlightReader {
    /// A reader of the bytes `range`, clipped to what there is; `None` as long as the manifest is not
    /// known.
    pub(crate) fn new(follower: Follower, range: Range<u64>) -> Option<FlightReader> {
        let flight = &follower.flight;
        let plan = Arc::clone(flight.plan()?);
        let size = plan.layout.bytes();
        let range = range.start.min(size)..range.end.min(size);
        let chunk = chunk_at(&plan, range.start);
        let (number, landings) = (flight.reads(chunk), flight.landings());
        Some(FlightReader {
            follower,
            plan,
            landings,
            number,
            range,
            chunk,
            ready: VecDeque::new(),
            ahead: None,
        })
    }

    /// The next bytes; `None` at the end of the range. Waits for them as long as the flight goes on.
    ///
    /// **Cancellation**: may be dropped and called again.
    ///
    /// **Errors**: why the flight ended; [`FlightError::Lost`] if a chunk cannot be read back. The
    /// bytes before were right.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, FlightError> {
        while self.ready.is_empty() {
            if self.range.is_empty() {
                return Ok(None);
            }
            if self.ahead.is_none() {
                let count = self.landed().await?;
                self.read(count);
            }
            if let Some(ahead) = &mut self.ahead {
                let block = joined(ahead.await);
                self.ahead = None;
                self.take(block?);
            }
            // The next block is read while this one is sent.
            let count = self.here()?;
            if count > 0 {
                self.read(count);
            }
        }
        Ok(self.ready.pop_front())
    }

    /// Waits until the next chunk may be read; returns how many may.
    async fn landed(&mut self) -> Result<u32, FlightError> {
        loop {
            self.landings.mark_unchanged();
            match self.here()? {
                0 => self
                    .landings
                    .changed()
                    .await
                    .map_err(|_| FlightError::Ended)?,
                count => return Ok(count),
            }
        }
    }

    /// How many chunks may be read now, up to a block.
    fn here(&self) -> Result<u32, FlightError> {
        let all = self.plan.layout.chunks();
        let readable = match self.follower.flight.stage() {
            Stage::Failed(error) => return Err(error),
            Stage::Landed(_) => all,
            Stage::Searching | Stage::Promised => all - 1,
        };
        let end = self.end().min(readable);
        let offset = |chunk| self.plan.layout.offset(chunk);
        let in_block = |chunk: &u32| offset(*chunk) - offset(self.chunk) < BLOCK_LEN;
        let wanted = (self.chunk..end).take_while(in_block).count() as u32;
        Ok(match wanted {
            0 => 0,
            wanted => self.follower.flight.held_run(self.chunk, wanted),
        })
    }

    /// One past the last chunk of the range.
    fn end(&self) -> u32 {
        match self.range.end {
            0 => 0,
            end => chunk_at(&self.plan, end - 1) + 1,
        }
    }

    /// Begins to read the next chunks.
    fn read(&mut self, count: u32) {
        let chunks = self.chunk..self.chunk + count;
        self.chunk = chunks.end;
        let next = (chunks.end < self.end()).then_some(chunks.end);
        self.follower.flight.reads_on(self.number, next);
        let (flight, plan) = (Arc::clone(&self.follower.flight), Arc::clone(&self.plan));
        self.ahead = Some(spawn_blocking(move || frames(&flight, &plan, chunks)));
    }

    /// Takes a block, cut to the range.
    fn take(&mut self, block: Vec<Bytes>) {
        let first = self.chunk - block.len() as u32;
        for (chunk, frame) in (first..).zip(block) {
            let begin = self.plan.layout.offset(chunk);
            let from = (self.range.start - begin) as usize;
            let to = (self.range.end - begin).min(frame.len() as u64) as usize;
            self.range.start = begin + to as u64;
            self.ready.push_back(frame.slice(from..to));
        }
    }
}

impl Drop for FlightReader {
    fn drop(&mut self) {
        self.follower.flight.reads_on(self.number, None);
    }
}

fn frames(flight: &Shared, plan: &Plan, chunks: Range<u32>) -> Block {
    let frame = |chunk| {
        let entry = plan.entry(chunk);
        let frame: Result<Option<Bytes>, StoreError> = flight.frame(entry);
        frame?.ok_or(FlightError::Lost(entry.id))
    };
    chunks.map(frame).collect()
}

/// The chunk in which a byte lies; the last one beyond the end.
fn chunk_at(plan: &Plan, position: u64) -> u32 {
    let layout = &plan.layout;
    let (mut low, mut high) = (0, layout.chunks() - 1);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match layout.offset(middle) <= position {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    low
}

/// Frames read at a time, up to one more than this many bytes.
const BLOCK_LEN: u64 = 1 << 20;

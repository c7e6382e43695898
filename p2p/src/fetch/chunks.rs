//! Which chunks are held, asked for, or open.

use std::sync::Arc;

use crate::wire::{ChunkRange, Layout, RANGES_MAX, SegmentSet};

/// The state of every chunk of one NAR.
///
/// A chunk is held, or asked for by some requests, or open.
#[derive(Debug)]
pub(super) struct ChunkMap {
    layout: Arc<Layout>,
    /// Requests that ask for each chunk, or [`HELD`].
    asked: Vec<u8>,
    /// Chunks of each segment that are not held.
    missing: Vec<u32>,
    /// Chunks of each segment that are open.
    open: Vec<u32>,
    held: SegmentSet,
}

/// What became of a chunk that was marked as held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It was before.
    Before,
    /// It was not.
    Now,
    /// It was not, and this segment was waiting for nothing else.
    Segment(u32),
}

impl ChunkMap {
    pub(super) fn new(layout: Arc<Layout>) -> ChunkMap {
        let counts: Vec<u32> = (0..layout.segments())
            .map(|segment| layout.chunks_of(segment).len() as u32)
            .collect();
        ChunkMap {
            asked: vec![0; layout.chunks() as usize],
            missing: counts.clone(),
            open: counts,
            held: SegmentSet::empty(layout.segments()),
            layout,
        }
    }

    pub(super) fn held(&self) -> &SegmentSet {
        &self.held
    }

    pub(super) fn all_held(&self) -> bool {
        self.held.is_full()
    }

    pub(super) fn is_held(&self, chunk: u32) -> bool {
        self.asked[chunk as usize] == HELD
    }

    /// Whether some request asks for it.
    pub(super) fn is_asked(&self, chunk: u32) -> bool {
        self.asks(chunk) > 0
    }

    /// How many requests ask for it.
    pub(super) fn asks(&self, chunk: u32) -> u8 {
        match self.asked[chunk as usize] {
            HELD => 0,
            asks => asks,
        }
    }

    /// How many chunks of a segment are open.
    pub(super) fn open_in(&self, segment: u32) -> u32 {
        self.open[segment as usize]
    }

    /// Whether some chunks of a segment are held or asked for.
    pub(super) fn is_started(&self, segment: u32) -> bool {
        (self.open_in(segment) as usize) < self.layout.chunks_of(segment).len()
    }

    /// Marks a chunk as held; one that does not exist counts as held before.
    pub(super) fn hold(&mut self, chunk: u32) -> Held {
        match self.asked.get(chunk as usize).copied() {
            None | Some(HELD) => return Held::Before,
            Some(0) => self.open[self.layout.segment_of(chunk) as usize] -= 1,
            Some(_) => {}
        }
        self.asked[chunk as usize] = HELD;
        let segment = self.layout.segment_of(chunk);
        let missing = &mut self.missing[segment as usize];
        *missing -= 1;
        match *missing {
            0 => {
                self.held.insert(segment);
                Held::Segment(segment)
            }
            _ => Held::Now,
        }
    }

    /// One more request asks for the chunk, which is not held.
    pub(super) fn ask(&mut self, chunk: u32) {
        let asked = &mut self.asked[chunk as usize];
        if *asked == 0 {
            self.open[self.layout.segment_of(chunk) as usize] -= 1;
        }
        *asked = (*asked + 1).min(HELD - 1);
    }

    /// One request less asks for it; nothing if it is held.
    pub(super) fn release(&mut self, chunk: u32) {
        let asked = &mut self.asked[chunk as usize];
        match *asked {
            0 | HELD => {}
            1 => {
                *asked = 0;
                self.open[self.layout.segment_of(chunk) as usize] += 1;
            }
            _ => *asked -= 1,
        }
    }

    /// The first open chunks of a segment, as many as fit into `bytes` but at least one, in at most
    /// [`RANGES_MAX`] runs.
    pub(super) fn block(&self, segment: u32, bytes: u64) -> Vec<u32> {
        let mut block: Vec<u32> = Vec::new();
        let (mut len, mut runs) = (0, 0);
        for chunk in self.layout.chunks_of(segment) {
            if self.asked[chunk as usize] != 0 {
                continue;
            }
            runs += usize::from(block.last().is_none_or(|last| last + 1 != chunk));
            len += self.layout.chunk_len(chunk);
            if len > bytes && !block.is_empty() || runs > RANGES_MAX {
                break;
            }
            block.push(chunk);
        }
        block
    }
}

/// Ascending chunks as runs.
pub(super) fn ranges(chunks: &[u32]) -> Vec<ChunkRange> {
    let mut ranges: Vec<ChunkRange> = Vec::new();
    for &chunk in chunks {
        match ranges.last_mut() {
            Some(range) if range.first + range.count == chunk => range.count += 1,
            _ => ranges.push(ChunkRange {
                first: chunk,
                count: 1,
            }),
        }
    }
    ranges
}

const HELD: u8 = u8::MAX;

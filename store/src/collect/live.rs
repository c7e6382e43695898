//! The set of live chunks, small enough for millions.

use crate::hash::ChunkId;

/// Chunk ids by their first eight bytes.
///
/// Two ids that agree there count as one: a dead chunk may pass for live, never the reverse. Eight
/// bytes a chunk: 80 MB for ten million.
#[derive(Default)]
pub(crate) struct LiveSet {
    prefixes: Vec<u64>,
    sealed: bool,
}

impl LiveSet {
    /// Adds a chunk.
    pub(super) fn insert(&mut self, id: &ChunkId) {
        debug_assert!(!self.sealed);
        self.prefixes.push(prefix(id));
    }

    /// Ends adding.
    pub(super) fn seal(mut self) -> LiveSet {
        self.prefixes.sort_unstable();
        self.prefixes.dedup();
        self.sealed = true;
        self
    }

    /// Whether the chunk is live.
    pub(super) fn contains(&self, id: &ChunkId) -> bool {
        debug_assert!(self.sealed);
        self.prefixes.binary_search(&prefix(id)).is_ok()
    }
}

fn prefix(id: &ChunkId) -> u64 {
    let (first, _) = id
        .as_bytes()
        .split_first_chunk::<8>()
        .expect("an id has 32 bytes");
    u64::from_be_bytes(*first)
}

//! The table as benchmarks see it.

use std::path::Path;

use crate::hash::ChunkId;
use crate::locator::{Location, Locator, LocatorError, LocatorOptions};
use crate::pack_id::PackId;

/// Pack, and offset, raw length and frame length.
type ProbedLocation = ([u8; 16], [u32; 3]);

/// A locator table to measure; not for any other use.
#[derive(Debug)]
pub struct LocatorProbe(Locator);

impl LocatorProbe {
    /// Opens the table in `dir` as the store does.
    ///
    /// # Errors
    /// [`LocatorError`] if the directory or a run cannot be read.
    pub fn open(dir: &Path) -> Result<LocatorProbe, LocatorError> {
        Locator::open(dir, LocatorOptions::default()).map(LocatorProbe)
    }

    /// Inserts all entries of one pack – id, offset, raw length, frame length – and does one step of
    /// upkeep.
    ///
    /// # Errors
    /// [`LocatorError`] if a run cannot be read or written.
    pub fn insert_pack(
        &self,
        pack: [u8; 16],
        entries: impl IntoIterator<Item = ([u8; 32], [u32; 3])>,
    ) -> Result<(), LocatorError> {
        let pack = PackId::from_bytes(pack);
        for (id, [offset, raw_len, frame_len]) in entries {
            self.0.insert(
                ChunkId::from_bytes(id),
                Location {
                    pack,
                    offset,
                    raw_len,
                    frame_len,
                },
            );
        }
        self.0.pack_complete(pack);
        self.0.maintain().map(drop)
    }

    /// Does all upkeep that is due and writes what is in memory.
    ///
    /// # Errors
    /// [`LocatorError`] if a run cannot be read or written.
    pub fn settle(&self) -> Result<(), LocatorError> {
        self.0.flush()?;
        while self.0.maintain()? {}
        Ok(())
    }

    /// Finds a chunk.
    ///
    /// # Errors
    /// [`LocatorError`] if a run cannot be read.
    pub fn lookup(&self, id: [u8; 32]) -> Result<Option<ProbedLocation>, LocatorError> {
        let found = self.0.lookup(&ChunkId::from_bytes(id))?;
        Ok(found.map(|at| (*at.pack.as_bytes(), [at.offset, at.raw_len, at.frame_len])))
    }

    /// Number of entries.
    pub fn len_estimate(&self) -> u64 {
        self.0.len_estimate()
    }
}

//! Pages of a run: sorted entries of fixed width and a checksum.
//!
//! **Shape** 4096 bytes (little endian): 85 entries of 48 bytes – chunk id (32), number of the pack
//! within the run, offset, raw length, frame length (4 each) –, XXH3 of them seeded with the run's
//! [seed](super::run::Span::seed) (8), 8 zero bytes. The last page of a run is filled up with zeros.

use std::ops::Range;

use twox_hash::XxHash3_64;

use crate::hash::ChunkId;

/// One copy of a chunk, its pack named by its number within the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: ChunkId,
    pub(super) pack: u32,
    pub(super) offset: u32,
    pub(super) raw_len: u32,
    pub(super) frame_len: u32,
}

impl Entry {
    fn decode(bytes: &[u8; ENTRY_LEN]) -> Entry {
        let number =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of 4"));
        Entry {
            id: ChunkId::from_bytes(bytes[..32].try_into().expect("a slice of 32")),
            pack: number(32),
            offset: number(36),
            raw_len: number(40),
            frame_len: number(44),
        }
    }

    fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..32].copy_from_slice(self.id.as_bytes());
        let numbers = [self.pack, self.offset, self.raw_len, self.frame_len];
        for (part, number) in bytes[32..].chunks_exact_mut(4).zip(numbers) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

/// The page of these entries, of which there are at most [`ENTRIES_PER_PAGE`].
pub(super) fn encode(entries: &[Entry], seed: u64) -> [u8; PAGE_LEN] {
    let mut bytes = [0; PAGE_LEN];
    for (part, entry) in bytes[..CHECK_AT].chunks_exact_mut(ENTRY_LEN).zip(entries) {
        part.copy_from_slice(&entry.encode());
    }
    let check = XxHash3_64::oneshot_with_seed(seed, &bytes[..CHECK_AT]);
    bytes[CHECK_AT..CHECK_AT + 8].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// An undamaged page.
pub(super) struct Page<'a> {
    entries: &'a [[u8; ENTRY_LEN]],
}

impl<'a> Page<'a> {
    /// The page in `bytes` with `len` entries; `None` if it is damaged.
    pub(super) fn check(bytes: &'a [u8; PAGE_LEN], len: usize, seed: u64) -> Option<Page<'a>> {
        let (body, rest) = bytes.split_at(CHECK_AT);
        let check = XxHash3_64::oneshot_with_seed(seed, body);
        let (entries, _) = body.as_chunks::<ENTRY_LEN>();
        (rest[..8] == check.to_le_bytes()).then_some(Page {
            entries: entries.get(..len)?,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The `n`-th entry; `n` is below [`len`](Self::len).
    pub(super) fn entry(&self, n: usize) -> Entry {
        Entry::decode(&self.entries[n])
    }

    /// The numbers of the entries of a chunk.
    pub(super) fn find(&self, id: &ChunkId) -> Range<usize> {
        let start = self
            .entries
            .partition_point(|entry| entry[..32] < id.as_bytes()[..]);
        let copies = self.entries[start..]
            .iter()
            .take_while(|entry| entry[..32] == id.as_bytes()[..]);
        start..start + copies.count()
    }
}

/// Bytes of a page.
pub(super) const PAGE_LEN: usize = 4096;
/// Entries of a page that is full.
pub(super) const ENTRIES_PER_PAGE: usize = 85;
const ENTRY_LEN: usize = 48;
const CHECK_AT: usize = ENTRIES_PER_PAGE * ENTRY_LEN;

#[cfg(test)]
mod tests {
    use super::{ENTRIES_PER_PAGE, Entry, Page, encode};
    use crate::hash::ChunkId;

    fn entries() -> Vec<Entry> {
        let entry = |n: u32| Entry {
            id: ChunkId::from_bytes([(n / 3 * 2) as u8; 32]),
            pack: n,
            offset: n * 1000,
            raw_len: u32::MAX - n,
            frame_len: 7,
        };
        (0..ENTRIES_PER_PAGE as u32).map(entry).collect()
    }

    #[test]
    fn page_gives_back_its_entries() {
        for len in [0, 1, 84, 85] {
            let bytes = encode(&entries()[..len], 9);
            let page = Page::check(&bytes, len, 9).expect("undamaged");
            let read: Vec<Entry> = (0..page.len()).map(|n| page.entry(n)).collect();
            assert_eq!(read, entries()[..len]);
        }
    }

    #[test]
    fn page_finds_all_copies_of_a_chunk_and_only_those() {
        let bytes = encode(&entries(), 9);
        let page = Page::check(&bytes, ENTRIES_PER_PAGE, 9).expect("undamaged");
        for (byte, copies) in [(0, 0..3), (1, 3..3), (2, 3..6), (56, 84..85), (57, 85..85)] {
            assert_eq!(
                page.find(&ChunkId::from_bytes([byte; 32])),
                copies,
                "{byte}"
            );
        }
    }

    #[test]
    fn page_with_any_entry_changed_or_of_another_run_is_refused() {
        let bytes = encode(&entries(), 9);
        assert!(Page::check(&bytes, ENTRIES_PER_PAGE, 10).is_none());
        for at in 0..4088 {
            let mut bad = bytes;
            bad[at] ^= 0x10;
            assert!(
                Page::check(&bad, ENTRIES_PER_PAGE, 9).is_none(),
                "byte {at}"
            );
        }
    }
}

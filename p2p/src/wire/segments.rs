//! Segments: runs of chunks, the unit of scheduling and of saying who holds what.
//!
//! Never a unit of trust: chunks alone are verified.

use std::ops::Range;

use attic_store::manifest::{CHUNKS_MAX, Manifest};
use thiserror::Error;

/// Where the chunks and segments of one NAR lie, in bytes of its concatenated frames.
///
/// Both ends derive it from the manifest, so segment numbers mean the same everywhere. A segment is
/// a run of chunks of at least a 256th of the NAR, but at least [`SEGMENT_LEN_MIN`] and at most
/// [`SEGMENT_LEN_MAX`] bytes up to the chunk that crosses the mark; the last may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where each chunk begins, and where the last one ends.
    offsets: Vec<u64>,
    /// First chunk of each segment, and one past the last chunk.
    firsts: Vec<u32>,
    /// The segment of each chunk.
    segments: Vec<u32>,
}

/// Small enough for several peers to share a NAR of a few megabytes.
pub const SEGMENT_LEN_MIN: u64 = 512 << 10;
/// Large enough for the bitmap of a large NAR to stay small: 32 bytes for a gigabyte.
pub const SEGMENT_LEN_MAX: u64 = 4 << 20;
const SEGMENTS_WANTED: u64 = 256;

/// Frame lengths that are no NAR's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// No chunk at all, or one of no bytes.
    #[error("empty chunk")]
    Empty,
    /// More chunks than [`CHUNKS_MAX`].
    #[error("more than {CHUNKS_MAX} chunks")]
    Chunks,
}

impl Layout {
    /// The layout of chunks whose frames have these lengths.
    ///
    /// # Errors
    /// Any [`LayoutError`].
    pub fn new(frame_lens: impl IntoIterator<Item = u32>) -> Result<Layout, LayoutError> {
        let mut offsets = vec![0];
        let mut end = 0;
        for len in frame_lens {
            if len == 0 {
                return Err(LayoutError::Empty);
            }
            if offsets.len() > CHUNKS_MAX {
                return Err(LayoutError::Chunks);
            }
            end += u64::from(len);
            offsets.push(end);
        }
        if end == 0 {
            return Err(LayoutError::Empty);
        }
        let mark = (end / SEGMENTS_WANTED).clamp(SEGMENT_LEN_MIN, SEGMENT_LEN_MAX);
        let mut firsts = vec![0];
        let mut segments = Vec::with_capacity(offsets.len() - 1);
        let mut start = 0;
        for (chunk, end) in (0u32..).zip(&offsets[1..]) {
            segments.push(firsts.len() as u32 - 1);
            if end - start >= mark {
                start = *end;
                firsts.push(chunk + 1);
            }
        }
        let chunks = segments.len() as u32;
        if firsts.last() != Some(&chunks) {
            firsts.push(chunks);
        }
        Ok(Layout {
            offsets,
            firsts,
            segments,
        })
    }

    /// The layout of a NAR.
    ///
    /// # Errors
    /// [`LayoutError::Empty`] for a manifest without chunks.
    pub fn of(manifest: &Manifest) -> Result<Layout, LayoutError> {
        Layout::new(manifest.chunks().iter().map(|entry| entry.frame_len))
    }

    /// Number of chunks; at least one.
    pub fn chunks(&self) -> u32 {
        self.segments.len() as u32
    }

    /// Number of segments; at least one.
    pub fn segments(&self) -> u32 {
        self.firsts.len() as u32 - 1
    }

    /// Bytes of all frames.
    pub fn bytes(&self) -> u64 {
        self.offset(self.chunks())
    }

    /// Where a chunk's frame begins; for the number of chunks, where the last one ends.
    ///
    /// # Panics
    /// Beyond that.
    pub fn offset(&self, chunk: u32) -> u64 {
        self.offsets[chunk as usize]
    }

    /// Bytes of a chunk's frame.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn chunk_len(&self, chunk: u32) -> u64 {
        self.offset(chunk + 1) - self.offset(chunk)
    }

    /// The segment of a chunk.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn segment_of(&self, chunk: u32) -> u32 {
        self.segments[chunk as usize]
    }

    /// The chunks of a segment.
    ///
    /// # Panics
    /// If there is no such segment.
    pub fn chunks_of(&self, segment: u32) -> Range<u32> {
        self.firsts[segment as usize]..self.firsts[segment as usize + 1]
    }
}

/// A set of segments of one NAR.
///
/// Invariant: no member is at or beyond [`SegmentSet::len`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentSet {
    words: Vec<u64>,
    len: u32,
    count: u32,
}

impl SegmentSet {
    /// None of `len` segments.
    pub fn empty(len: u32) -> SegmentSet {
        SegmentSet {
            words: vec![0; len.div_ceil(WORD) as usize],
            len,
            count: 0,
        }
    }

    /// All of `len` segments.
    pub fn full(len: u32) -> SegmentSet {
        let mut set = SegmentSet::empty(len);
        for segment in 0..len {
            set.insert(segment);
        }
        set
    }

    /// How many segments there are, members or not.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// How many are members.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether none is a member.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether every one is a member.
    pub fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// Whether `segment` is a member; those that do not exist are not.
    pub fn contains(&self, segment: u32) -> bool {
        let word = self.words.get((segment / WORD) as usize);
        word.is_some_and(|word| word >> (segment % WORD) & 1 == 1)
    }

    /// Adds `segment`; `false` if it was a member already or does not exist.
    pub fn insert(&mut self, segment: u32) -> bool {
        if segment >= self.len || self.contains(segment) {
            return false;
        }
        self.words[(segment / WORD) as usize] |= 1 << (segment % WORD);
        self.count += 1;
        true
    }

    /// Removes `segment`; `false` if it was no member.
    pub fn remove(&mut self, segment: u32) -> bool {
        if !self.contains(segment) {
            return false;
        }
        self.words[(segment / WORD) as usize] &= !(1 << (segment % WORD));
        self.count -= 1;
        true
    }

    /// The members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len).filter(|&segment| self.contains(segment))
    }

    /// **Shape**: one bit each, lowest bit of the first byte first, zeros to the end of the last.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let bytes = self.words.iter().flat_map(|word| word.to_le_bytes());
        bytes.take(bitmap_len(self.len)).collect()
    }

    /// Reads what [`SegmentSet::to_bytes`] wrote; `None` for another length or a bit too many.
    pub(crate) fn from_bytes(len: u32, bytes: &[u8]) -> Option<SegmentSet> {
        if bytes.len() != bitmap_len(len) {
            return None;
        }
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        };
        let words: Vec<u64> = bytes.chunks(8).map(word).collect();
        let beyond = match len % WORD {
            0 => 0,
            used => words.last()? >> used,
        };
        let count = words.iter().map(|word| word.count_ones()).sum();
        (beyond == 0).then_some(SegmentSet { words, len, count })
    }
}

/// Bytes of the bitmap of `len` segments.
pub(crate) fn bitmap_len(len: u32) -> usize {
    len.div_ceil(8) as usize
}

const WORD: u32 = u64::BITS;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gigabyte_has_about_256_segments() {
        let layout = Layout::new(vec![165 << 10; 6_355]).unwrap();
        assert!((240..=256).contains(&layout.segments()), "{layout:?}");
    }

    #[test]
    fn impossible_lengths_are_refused() {
        assert_eq!(Layout::new([]), Err(LayoutError::Empty));
        assert_eq!(Layout::new([1, 0]), Err(LayoutError::Empty));
        let many = std::iter::repeat_n(1, CHUNKS_MAX);
        assert!(Layout::new(many.clone()).is_ok());
        assert_eq!(Layout::new(many.chain([1])), Err(LayoutError::Chunks));
    }

    #[test]
    fn a_bit_beyond_the_last_segment_is_refused() {
        assert!(SegmentSet::from_bytes(9, &[0xff, 1]).is_some());
        assert!(SegmentSet::from_bytes(9, &[0xff, 2]).is_none());
        assert!(SegmentSet::from_bytes(9, &[0xff]).is_none());
        assert!(SegmentSet::from_bytes(8, &[0xff, 0]).is_none());
    }

    proptest! {
        #[test]
        fn segments_partition_the_chunks(lens in prop::collection::vec(1u32..600_000, 1..400)) {
            let layout = Layout::new(lens.iter().copied()).unwrap();
            let mut next = 0;
            for segment in 0..layout.segments() {
                let chunks = layout.chunks_of(segment);
                prop_assert_eq!(chunks.start, next);
                prop_assert!(!chunks.is_empty());
                for chunk in chunks.clone() {
                    prop_assert_eq!(layout.segment_of(chunk), segment);
                    prop_assert_eq!(layout.chunk_len(chunk), u64::from(lens[chunk as usize]));
                }
                next = chunks.end;
            }
            prop_assert_eq!(next as usize, lens.len());
        }

        #[test]
        fn bitmaps_round_trip(len in 0u32..300, members in prop::collection::vec(0u32..300, 0..99)) {
            let mut set = SegmentSet::empty(len);
            for &member in &members {
                let new = member < len && !set.contains(member);
                prop_assert_eq!(set.insert(member), new);
            }
            prop_assert_eq!(set.iter().count() as u32, set.count());
            prop_assert_eq!(SegmentSet::from_bytes(len, &set.to_bytes()), Some(set));
        }
    }
}

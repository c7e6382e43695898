//! Content-defined chunking of a NAR stream.
//!
//! [`Chunker`] is FastCDC (Xia et al., 2020, normalisation level 1) over the plain NAR, fed in
//! pieces of any size. [`ChunkerParams`] are versioned and named in every manifest: a change of the
//! parameters is a new version, and what was cut by an old one stays readable.
//!
//! See the crate documentation for the measurement that chose the parameters.

use fastcdc::v2020::FastCDC;
use serde::{Deserialize, Serialize};

/// The most bytes a chunk of any version can have; a bound for buffers and for untrusted lengths.
pub const CHUNK_LEN_MAX: usize = 1 << 20;

/// A version of the chunking parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum ChunkerParams {
    /// FastCDC 2020, minimum 32, average 128, maximum 512 KiB.
    V1 = 1,
}

impl ChunkerParams {
    /// The parameters new NARs are cut with.
    pub const CURRENT: ChunkerParams = ChunkerParams::V1;

    /// The parameters a stored byte names, if they are known.
    pub fn from_byte(byte: u8) -> Option<ChunkerParams> {
        (byte == ChunkerParams::V1 as u8).then_some(ChunkerParams::V1)
    }

    /// Minimum, average and maximum chunk length in bytes.
    pub fn lens(self) -> (usize, usize, usize) {
        match self {
            ChunkerParams::V1 => (32 << 10, 128 << 10, 512 << 10),
        }
    }
}

/// Cuts a byte stream into chunks.
///
/// The cuts depend on the bytes and the parameters alone, never on how the bytes were split over
/// calls. Holds at most four maximum chunks of input.
pub struct Chunker {
    params: ChunkerParams,
    pending: Vec<u8>,
    start: usize,
}

impl Chunker {
    /// A chunker at the start of a stream.
    pub fn new(params: ChunkerParams) -> Chunker {
        Chunker {
            params,
            pending: Vec::new(),
            start: 0,
        }
    }

    /// Takes the next bytes and passes every chunk they complete to `emit`, in order.
    pub fn push(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(&[u8])) {
        let window = self.window_len();
        while !bytes.is_empty() {
            let room = window - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == window {
                self.cut_while_longer_than(self.params.lens().2 - 1, emit);
                self.compact();
            }
        }
    }

    /// Ends the stream: passes the remaining chunks to `emit`.
    pub fn finish(mut self, emit: &mut impl FnMut(&[u8])) {
        self.cut_while_longer_than(0, emit);
    }

    /// Cuts as long as more than `len` bytes are pending.
    fn cut_while_longer_than(&mut self, len: usize, emit: &mut impl FnMut(&[u8])) {
        let (min, avg, max) = self.params.lens();
        let cutter = FastCDC::new(&self.pending, min, avg, max);
        while self.pending.len() - self.start > len {
            let (_, end) = cutter.cut(self.start, self.pending.len() - self.start);
            emit(&self.pending[self.start..end]);
            self.start = end;
        }
    }

    fn compact(&mut self) {
        self.pending.drain(..self.start);
        self.start = 0;
    }

    fn window_len(&self) -> usize {
        self.params.lens().2 * 4
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ChunkId;

    fn noise(seed: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new()
            .update(&[seed])
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    fn cut(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        let mut chunker = Chunker::new(ChunkerParams::CURRENT);
        for piece in pieces {
            chunker.push(piece, &mut |chunk| chunks.push(chunk.to_vec()));
        }
        chunker.finish(&mut |chunk| chunks.push(chunk.to_vec()));
        chunks
    }

    #[test]
    fn an_empty_stream_has_no_chunks() {
        assert!(cut(&[]).is_empty());
        assert!(cut(&[b""]).is_empty());
    }

    #[test]
    fn chunks_keep_to_their_bounds_and_lose_nothing() {
        let data = noise(1, 5_000_000);
        let chunks = cut(&[&data]);
        let (min, _, max) = ChunkerParams::CURRENT.lens();
        let (last, rest) = chunks.split_last().expect("chunks");
        assert!(rest.iter().all(|chunk| (min..=max).contains(&chunk.len())));
        assert!(last.len() <= max);
        assert_eq!(chunks.concat(), data);
    }

    /// An insertion near the start changes the chunks around it and no others.
    #[test]
    fn an_edit_changes_few_chunks() {
        let data = noise(2, 8_000_000);
        let edited = [&data[..1_000_000], b"edit", &data[1_000_000..]].concat();
        let before: std::collections::BTreeSet<_> = cut(&[&data])
            .iter()
            .map(|chunk| ChunkId::of(chunk))
            .collect();
        let fresh = cut(&[&edited])
            .iter()
            .filter(|chunk| !before.contains(&ChunkId::of(chunk)))
            .count();
        assert!(fresh <= 3, "{fresh} of {} chunks changed", before.len());
    }

    /// G1: the same input gives the same chunk ids on every node and architecture.
    #[test]
    fn g1_same_input_gives_the_same_chunk_ids_everywhere() {
        let chunks = cut(&[&noise(3, 3_000_000)]);
        let lens: Vec<usize> = chunks.iter().map(Vec::len).collect();
        assert_eq!(lens, GOLDEN_LENS);
        let mut ids = blake3::Hasher::new();
        chunks.iter().for_each(|chunk| {
            ids.update(ChunkId::of(chunk).as_bytes());
        });
        assert_eq!(ids.finalize().to_hex().as_str(), GOLDEN_IDS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn cuts_do_not_depend_on_how_the_bytes_arrive(
            len in 0usize..4_000_000,
            splits in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
        ) {
            let data = noise(4, len);
            let mut at: Vec<usize> = splits.iter().map(|split| split.index(len + 1)).collect();
            at.extend([0, len]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &data[pair[0]..pair[1]]).collect();
            prop_assert_eq!(cut(&pieces), cut(&[&data]));
        }
    }

    const GOLDEN_LENS: &[usize] = &[
        198932, 196113, 154577, 162056, 39122, 286498, 203641, 205209, 79945, 272621, 150912,
        197000, 81288, 299968, 134780, 73441, 145113, 118784,
    ];
    const GOLDEN_IDS: &str = "583ee981acd36df1a05024c75003f27d46a065c74468fd4b94d99b887e0b6bf8";
}

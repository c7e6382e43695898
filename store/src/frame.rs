//! Frames: how one chunk is stored and travels.
//!
//! A frame is exactly one zstd frame that decodes to exactly one chunk. Because each carries its own
//! length and no dictionary, frames laid end to end are a valid `.nar.zst`: a node serves a NAR by
//! concatenating what it stores, without decompressing or recompressing anything.
//!
//! Frames are deterministic. [`Codec`] pins the compressor's level and flags, and `Cargo.lock` its
//! version, so every node turns a chunk into the same bytes and a download begun at one node can be
//! resumed at another. A golden vector in the tests fails when an update would change the bytes.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use twox_hash::XxHash3_64;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::find_frame_compressed_size;

use crate::chunker::CHUNK_LEN_MAX;

/// The versioned rule that turns a chunk into its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Codec {
    /// zstd level 2 with the content size and without checksum; a chunk that shrinks by less than
    /// 1/32 is kept as raw blocks, which decode at memory speed.
    V1 = 1,
}

impl Codec {
    /// The codec new frames are made with.
    pub const CURRENT: Codec = Codec::V1;

    /// The codec a stored byte names, if it is known.
    pub fn from_byte(byte: u8) -> Option<Codec> {
        (byte == Codec::V1 as u8).then_some(Codec::V1)
    }

    fn level(self) -> i32 {
        match self {
            Codec::V1 => 2,
        }
    }
}

/// What is wrong with a frame.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The chunk is empty or longer than [`CHUNK_LEN_MAX`].
    #[error("chunk of {0} bytes, allowed are 1 to {CHUNK_LEN_MAX}")]
    ChunkLen(usize),
    /// The frame is longer than any frame of a chunk of this length.
    #[error("frame of {frame_len} bytes for a chunk of {raw_len} bytes")]
    FrameLen {
        /// Bytes of the frame.
        frame_len: usize,
        /// Bytes of the chunk it claims to hold.
        raw_len: usize,
    },
    /// The bytes are not exactly one zstd frame of the stated length.
    #[error("not one zstd frame of {raw_len} bytes")]
    Corrupt {
        /// Bytes of the chunk it claims to hold.
        raw_len: usize,
    },
}

/// Turns chunks into frames; keeps the compressor's tables between calls.
pub struct FrameEncoder {
    /// `None` leaves every chunk as it is.
    compressor: Option<Compressor<'static>>,
}

impl FrameEncoder {
    /// An encoder for [`Codec::CURRENT`].
    pub fn new() -> FrameEncoder {
        FrameEncoder::of_level(Codec::CURRENT.level())
    }

    /// An encoder for sending chunks to a store, which makes its own frames of them: quick rather
    /// than small.
    pub fn for_sending() -> FrameEncoder {
        FrameEncoder::of_level(SENDING_LEVEL)
    }

    /// An encoder for sending chunks to a store on the same machine: frames of raw blocks, which
    /// cost a copy where compressing and decompressing would cost as much as all else in a push.
    pub fn uncompressed() -> FrameEncoder {
        FrameEncoder { compressor: None }
    }

    fn of_level(level: i32) -> FrameEncoder {
        let compressor =
            Compressor::new(level).expect("allocating a zstd context fails only without memory");
        FrameEncoder {
            compressor: Some(compressor),
        }
    }

    /// The frame of one chunk.
    ///
    /// # Errors
    /// [`FrameError::ChunkLen`] for an empty or oversized chunk.
    pub fn encode(&mut self, chunk: &[u8]) -> Result<Vec<u8>, FrameError> {
        check_chunk_len(chunk.len())?;
        Ok(self.compress(chunk).unwrap_or_else(|| {
            let mut frame = Vec::new();
            raw_block_frame(chunk, &mut frame);
            frame
        }))
    }

    /// Appends the frame of one chunk to `out`, and gives its length.
    ///
    /// # Errors
    /// As [`FrameEncoder::encode`]; `out` is then as it was.
    pub fn encode_into(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<usize, FrameError> {
        check_chunk_len(chunk.len())?;
        let start = out.len();
        match self.compress(chunk) {
            Some(frame) => out.extend_from_slice(&frame),
            None => raw_block_frame(chunk, out),
        }
        Ok(out.len() - start)
    }

    /// A compressed frame, if that is worthwhile.
    fn compress(&mut self, chunk: &[u8]) -> Option<Vec<u8>> {
        let len_max = chunk.len() - chunk.len() / 32;
        let frame = self.compressor.as_mut()?.compress(chunk).ok()?;
        (frame.len() <= len_max).then_some(frame)
    }
}

impl Default for FrameEncoder {
    fn default() -> Self {
        FrameEncoder::new()
    }
}

/// Turns frames back into chunks; keeps the decompressor's tables between calls.
pub struct FrameDecoder {
    decompressor: Decompressor<'static>,
}

impl FrameDecoder {
    /// A decoder for every known codec.
    pub fn new() -> FrameDecoder {
        let decompressor =
            Decompressor::new().expect("allocating a zstd context fails only without memory");
        FrameDecoder { decompressor }
    }

    /// Appends the chunk of `raw_len` bytes that `frame` holds to `out`.
    ///
    /// Never writes more than `raw_len` bytes, whatever the frame claims.
    ///
    /// # Errors
    /// Any [`FrameError`]; `out` is then as it was.
    pub fn decode_into(
        &mut self,
        frame: &[u8],
        raw_len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        check_frame(frame, raw_len)?;
        let start = out.len();
        out.resize(start + raw_len, 0);
        match self
            .decompressor
            .decompress_to_buffer(frame, &mut out[start..])
        {
            Ok(len) if len == raw_len => Ok(()),
            Ok(_) | Err(_) => {
                out.truncate(start);
                Err(FrameError::Corrupt { raw_len })
            }
        }
    }

    /// The chunk of `raw_len` bytes that `frame` holds.
    ///
    /// # Errors
    /// As [`FrameDecoder::decode_into`].
    pub fn decode(&mut self, frame: &[u8], raw_len: usize) -> Result<Vec<u8>, FrameError> {
        check_frame(frame, raw_len)?;
        // The decompressor fills no more than the capacity, which needs no zeroes first.
        let mut chunk = Vec::with_capacity(raw_len);
        match self.decompressor.decompress_to_buffer(frame, &mut chunk) {
            Ok(len) if len == raw_len => Ok(chunk),
            Ok(_) | Err(_) => Err(FrameError::Corrupt { raw_len }),
        }
    }
}

impl Default for FrameDecoder {
    fn default() -> Self {
        FrameDecoder::new()
    }
}

/// The 64-bit check of a frame: XXH3, seed 0.
///
/// It guards against decay and against serving a differently compressed twin under a name whose
/// bytes are promised to be stable. It is no defence against an author of frames: that is the
/// [`ChunkId`](crate::ChunkId)'s part.
pub fn check(frame: &[u8]) -> u64 {
    XxHash3_64::oneshot(frame)
}

/// The most bytes the frame of a chunk of `raw_len` bytes can have.
pub const fn frame_len_max(raw_len: usize) -> usize {
    raw_len + RAW_HEADER_LEN + BLOCK_HEADER_LEN * raw_len.div_ceil(BLOCK_LEN_MAX)
}

fn check_chunk_len(len: usize) -> Result<(), FrameError> {
    if (1..=CHUNK_LEN_MAX).contains(&len) {
        Ok(())
    } else {
        Err(FrameError::ChunkLen(len))
    }
}

/// Checks what can be seen from outside: lengths within bounds, and one frame and nothing else.
fn check_frame(frame: &[u8], raw_len: usize) -> Result<(), FrameError> {
    check_chunk_len(raw_len)?;
    let frame_len = frame.len();
    if frame_len > frame_len_max(raw_len) {
        return Err(FrameError::FrameLen { frame_len, raw_len });
    }
    match find_frame_compressed_size(frame) {
        Ok(len) if len == frame_len => Ok(()),
        Ok(_) | Err(_) => Err(FrameError::Corrupt { raw_len }),
    }
}

/// Appends a zstd frame of raw blocks (RFC 8878, sections 3.1.1.1 and 3.1.1.2): single segment, four
/// bytes of content size, no checksum.
fn raw_block_frame(chunk: &[u8], frame: &mut Vec<u8>) {
    frame.reserve(frame_len_max(chunk.len()));
    frame.extend_from_slice(&MAGIC.to_le_bytes());
    frame.push(SINGLE_SEGMENT_SIZE_4);
    frame.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
    let blocks = chunk.len().div_ceil(BLOCK_LEN_MAX);
    for (index, block) in chunk.chunks(BLOCK_LEN_MAX).enumerate() {
        let last = u32::from(index + 1 == blocks);
        let header = (block.len() as u32) << 3 | last;
        frame.extend_from_slice(&header.to_le_bytes()[..BLOCK_HEADER_LEN]);
        frame.extend_from_slice(block);
    }
}

/// About a fifth of the time of level 2, for half as much again on the wire.
const SENDING_LEVEL: i32 = -5;
const MAGIC: u32 = 0xFD2F_B528;
const SINGLE_SEGMENT_SIZE_4: u8 = 0b1010_0000;
const RAW_HEADER_LEN: usize = 9;
const BLOCK_HEADER_LEN: usize = 3;
const BLOCK_LEN_MAX: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut reader = blake3::Hasher::new().finalize_xof();
        let mut bytes = vec![0; len];
        reader.fill(&mut bytes);
        bytes
    }

    fn round_trip(chunk: &[u8]) -> Vec<u8> {
        let frame = FrameEncoder::new().encode(chunk).expect("encodes");
        assert!(frame.len() <= frame_len_max(chunk.len()));
        assert_eq!(
            FrameDecoder::new().decode(&frame, chunk.len()).as_deref(),
            Ok(chunk)
        );
        assert_eq!(
            zstd::decode_all(&frame[..]).expect("plain zstd reads it"),
            chunk
        );
        frame
    }

    #[test]
    fn an_encoder_may_leave_chunks_as_they_are() {
        for len in [1, BLOCK_LEN_MAX, BLOCK_LEN_MAX + 1, CHUNK_LEN_MAX] {
            let chunk = vec![7; len];
            let frame = FrameEncoder::uncompressed()
                .encode(&chunk)
                .expect("encodes");
            assert_eq!(frame.len(), frame_len_max(len));
            let decoded = FrameDecoder::new().decode(&frame, len);
            assert_eq!(decoded.as_ref(), Ok(&chunk));
        }
    }

    #[test]
    fn incompressible_chunks_are_raw_blocks() {
        for len in [
            1,
            100,
            BLOCK_LEN_MAX - 1,
            BLOCK_LEN_MAX,
            BLOCK_LEN_MAX + 1,
            CHUNK_LEN_MAX,
        ] {
            assert_eq!(round_trip(&noise(len)).len(), frame_len_max(len));
        }
    }

    /// G1, G2: one input, one frame, on every machine. A change here is a change of the format and
    /// needs a new [`Codec`].
    #[test]
    fn g2_same_chunk_gives_the_same_frame_bytes_everywhere() {
        let text: Vec<u8> = (0u32..20_000)
            .flat_map(|i| i.to_string().into_bytes())
            .collect();
        let frame = round_trip(&text);
        assert_eq!((frame.len(), check(&frame)), GOLDEN_TEXT);
        let frame = round_trip(&noise(200_000));
        assert_eq!((frame.len(), check(&frame)), GOLDEN_NOISE);
    }

    #[test]
    fn lying_frames_are_refused() {
        let chunk = vec![7u8; 5_000];
        let frame = FrameEncoder::new().encode(&chunk).expect("encodes");
        let mut decoder = FrameDecoder::new();
        let corrupt = |raw_len| Err(FrameError::Corrupt { raw_len });
        assert_eq!(decoder.decode(&frame, 4_999), corrupt(4_999));
        assert_eq!(decoder.decode(&frame, 5_001), corrupt(5_001));
        assert_eq!(
            decoder.decode(&frame[..frame.len() - 1], 5_000),
            corrupt(5_000)
        );
        assert_eq!(
            decoder.decode(&[&frame[..], &frame[..]].concat(), 10_000),
            corrupt(10_000)
        );
        assert_eq!(decoder.decode(b"", 1), corrupt(1));
        assert_eq!(decoder.decode(&frame, 0), Err(FrameError::ChunkLen(0)));
        let long = vec![0; frame_len_max(10) + 1];
        assert_eq!(
            decoder.decode(&long, 10),
            Err(FrameError::FrameLen {
                frame_len: long.len(),
                raw_len: 10
            })
        );
        assert_eq!(
            FrameEncoder::new().encode(b""),
            Err(FrameError::ChunkLen(0))
        );
    }

    proptest! {
        #[test]
        fn any_chunk_round_trips(chunk in proptest::collection::vec(any::<u8>(), 1..5_000)) {
            round_trip(&chunk);
        }

        #[test]
        fn any_bytes_decode_or_fail_cleanly(
            frame in proptest::collection::vec(any::<u8>(), 0..300), raw_len in 0usize..10_000,
        ) {
            let _ = FrameDecoder::new().decode(&frame, raw_len);
        }
    }

    const GOLDEN_TEXT: (usize, u64) = (39_120, 9_898_880_560_741_152_868);
    const GOLDEN_NOISE: (usize, u64) = (200_015, 13_333_773_466_946_905_412);
}

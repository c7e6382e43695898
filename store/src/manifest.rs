//! Manifests: which chunks a NAR is made of.
//!
//! A manifest lists, in NAR order, every chunk with its length and the length and check of its
//! frame. It pins the served bytes: the `.nar.zst` of a NAR is the concatenation of exactly these
//! frames, so its size and hash are known before the first byte is read.
//!
//! **Shape** (little endian, version 1): a 128-byte head, `chunks` entries of 48 bytes for the NAR,
//! then `listing_chunks` entries for its `.ls` listing.
//!
//! | head offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `AMF1` |
//! | 4 | 1 | [`ChunkerParams`] |
//! | 5 | 1 | [`Codec`] |
//! | 6 | 2 | zero |
//! | 8 | 32 | NarHash |
//! | 40 | 8 | NAR bytes |
//! | 48 | 32 | FileHash: SHA-256 of the concatenated frames |
//! | 80 | 8 | bytes of the concatenated frames |
//! | 88 | 4 | chunks |
//! | 92 | 4 | listing chunks |
//! | 96 | 32 | zero |
//!
//! | entry offset | bytes | field |
//! |---|---|---|
//! | 0 | 32 | [`ChunkId`] |
//! | 32 | 4 | chunk bytes |
//! | 36 | 4 | frame bytes |
//! | 40 | 8 | [frame check](crate::frame::check) |

use thiserror::Error;

use crate::chunker::{CHUNK_LEN_MAX, ChunkerParams};
use crate::frame::{Codec, frame_len_max};
use crate::hash::{ChunkId, FileHash, NarHash};

/// The most chunks a NAR can have: 256 GiB at the average chunk length.
pub const CHUNKS_MAX: usize = 1 << 21;

/// One chunk of a NAR, as a manifest names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// The chunk's content address.
    pub id: ChunkId,
    /// Bytes of the chunk.
    pub raw_len: u32,
    /// Bytes of its frame.
    pub frame_len: u32,
    /// Check of its frame.
    pub frame_check: u64,
}

/// Everything needed to rebuild one NAR from chunks.
///
/// Invariant: lengths add up to [`nar_size`](Manifest::nar_size) and
/// [`file_size`](Manifest::file_size), and every entry is within the bounds of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    params: ChunkerParams,
    codec: Codec,
    nar_hash: NarHash,
    nar_size: u64,
    file_hash: FileHash,
    file_size: u64,
    chunks: Vec<ManifestEntry>,
    listing: Vec<ManifestEntry>,
}

/// What is wrong with an encoded or assembled manifest.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ManifestError {
    /// Neither a manifest nor one of a known version.
    #[error("manifest of an unknown version")]
    Version,
    /// The encoding is shorter or longer than its counts say.
    #[error("manifest of {0} bytes does not hold what its head says")]
    Len(usize),
    /// More chunks than [`CHUNKS_MAX`].
    #[error("manifest of {0} chunks, allowed are {CHUNKS_MAX}")]
    Chunks(usize),
    /// An entry's lengths are outside of what a frame can have.
    #[error("manifest entry {0} has impossible lengths")]
    Entry(usize),
    /// The entries do not add up to the sizes in the head.
    #[error("manifest entries do not add up to its sizes")]
    Sizes,
}

impl Manifest {
    /// A manifest cut and framed by the current versions; sizes are the sums of the entries.
    ///
    /// # Errors
    /// [`ManifestError::Chunks`] and [`ManifestError::Entry`].
    pub fn new(
        nar_hash: NarHash,
        file_hash: FileHash,
        chunks: Vec<ManifestEntry>,
        listing: Vec<ManifestEntry>,
    ) -> Result<Manifest, ManifestError> {
        let manifest = Manifest {
            params: ChunkerParams::CURRENT,
            codec: Codec::CURRENT,
            nar_hash,
            nar_size: chunks.iter().map(|entry| u64::from(entry.raw_len)).sum(),
            file_hash,
            file_size: chunks.iter().map(|entry| u64::from(entry.frame_len)).sum(),
            chunks,
            listing,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// The SHA-256 of the NAR.
    pub fn nar_hash(&self) -> &NarHash {
        &self.nar_hash
    }

    /// Bytes of the NAR.
    pub fn nar_size(&self) -> u64 {
        self.nar_size
    }

    /// The SHA-256 of the concatenated frames.
    pub fn file_hash(&self) -> &FileHash {
        &self.file_hash
    }

    /// Bytes of the concatenated frames.
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// The chunks of the NAR, in order.
    pub fn chunks(&self) -> &[ManifestEntry] {
        &self.chunks
    }

    /// The chunks of the listing, in order; empty if the NAR has none (see
    /// [`NarLimits`](crate::nar::NarLimits)).
    pub fn listing(&self) -> &[ManifestEntry] {
        &self.listing
    }

    /// Every chunk the manifest keeps alive.
    pub fn all_chunks(&self) -> impl Iterator<Item = &ManifestEntry> {
        self.chunks.iter().chain(&self.listing)
    }

    /// The encoding described in the module documentation; equal manifests encode equally.
    pub fn encode(&self) -> Vec<u8> {
        let entries = self.chunks.len() + self.listing.len();
        let mut out = Vec::with_capacity(HEAD_LEN + entries * ENTRY_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[self.params as u8, self.codec as u8, 0, 0]);
        out.extend_from_slice(self.nar_hash.as_bytes());
        out.extend_from_slice(&self.nar_size.to_le_bytes());
        out.extend_from_slice(self.file_hash.as_bytes());
        out.extend_from_slice(&self.file_size.to_le_bytes());
        out.extend_from_slice(&(self.chunks.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.listing.len() as u32).to_le_bytes());
        out.resize(HEAD_LEN, 0);
        self.all_chunks()
            .for_each(|entry| encode_entry(entry, &mut out));
        out
    }

    /// Reads an encoding; accepts only what [`Manifest::encode`] writes.
    ///
    /// # Errors
    /// Any [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let (head, entries) = bytes
            .split_at_checked(HEAD_LEN)
            .ok_or(ManifestError::Version)?;
        let (params, codec) = decode_version(head)?;
        let chunks = u32_at(head, 88) as usize;
        let listing = u32_at(head, 92) as usize;
        if chunks.max(listing) > CHUNKS_MAX {
            return Err(ManifestError::Chunks(chunks.max(listing)));
        }
        if entries.len() != (chunks + listing) * ENTRY_LEN {
            return Err(ManifestError::Len(bytes.len()));
        }
        let (chunks, listing) = entries.split_at(chunks * ENTRY_LEN);
        let manifest = Manifest {
            params,
            codec,
            nar_hash: NarHash::from_bytes(array_at(head, 8)),
            nar_size: u64_at(head, 40),
            file_hash: FileHash::from_bytes(array_at(head, 48)),
            file_size: u64_at(head, 80),
            chunks: chunks.chunks_exact(ENTRY_LEN).map(decode_entry).collect(),
            listing: listing.chunks_exact(ENTRY_LEN).map(decode_entry).collect(),
        };
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let count = self.chunks.len().max(self.listing.len());
        if count > CHUNKS_MAX {
            return Err(ManifestError::Chunks(count));
        }
        if let Some(index) = self.all_chunks().position(|entry| !possible(entry)) {
            return Err(ManifestError::Entry(index));
        }
        let raw: u64 = self
            .chunks
            .iter()
            .map(|entry| u64::from(entry.raw_len))
            .sum();
        let framed: u64 = self
            .chunks
            .iter()
            .map(|entry| u64::from(entry.frame_len))
            .sum();
        if (raw, framed) == (self.nar_size, self.file_size) {
            Ok(())
        } else {
            Err(ManifestError::Sizes)
        }
    }
}

fn possible(entry: &ManifestEntry) -> bool {
    let (raw_len, frame_len) = (entry.raw_len as usize, entry.frame_len as usize);
    (1..=CHUNK_LEN_MAX).contains(&raw_len) && (1..=frame_len_max(raw_len)).contains(&frame_len)
}

fn decode_version(head: &[u8]) -> Result<(ChunkerParams, Codec), ManifestError> {
    let known = head.starts_with(MAGIC) && head[6..8] == [0, 0] && head[96..] == [0; 32];
    let params = ChunkerParams::from_byte(head[4]);
    let codec = Codec::from_byte(head[5]);
    match (known, params, codec) {
        (true, Some(params), Some(codec)) => Ok((params, codec)),
        (_, _, _) => Err(ManifestError::Version),
    }
}

fn encode_entry(entry: &ManifestEntry, out: &mut Vec<u8>) {
    out.extend_from_slice(entry.id.as_bytes());
    out.extend_from_slice(&entry.raw_len.to_le_bytes());
    out.extend_from_slice(&entry.frame_len.to_le_bytes());
    out.extend_from_slice(&entry.frame_check.to_le_bytes());
}

fn decode_entry(bytes: &[u8]) -> ManifestEntry {
    ManifestEntry {
        id: ChunkId::from_bytes(array_at(bytes, 0)),
        raw_len: u32_at(bytes, 32),
        frame_len: u32_at(bytes, 36),
        frame_check: u64_at(bytes, 40),
    }
}

/// `N` bytes at `at`; the caller has checked that they are there.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

const MAGIC: &[u8; 4] = b"AMF1";
const HEAD_LEN: usize = 128;
const ENTRY_LEN: usize = 48;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(seed: u8, raw_len: u32, frame_len: u32) -> ManifestEntry {
        ManifestEntry {
            id: ChunkId::of(&[seed]),
            raw_len,
            frame_len,
            frame_check: u64::from(seed),
        }
    }

    fn sample() -> Manifest {
        let chunks = vec![entry(1, 70_000, 30_000), entry(2, 50, 59)];
        let listing = vec![entry(3, 120, 90)];
        Manifest::new(
            NarHash::from_bytes([1; 32]),
            FileHash::from_bytes([2; 32]),
            chunks,
            listing,
        )
        .expect("valid")
    }

    #[test]
    fn round_trips() {
        let manifest = sample();
        assert_eq!(
            (manifest.nar_size(), manifest.file_size()),
            (70_050, 30_059)
        );
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }

    /// G1: the encoding is an on-disk format; changing it needs a new magic.
    #[test]
    fn g1_encoded_manifests_never_change() {
        let digest = blake3::hash(&sample().encode());
        assert_eq!(digest.to_hex().as_str(), GOLDEN);
    }

    #[test]
    fn damage_is_named() {
        let good = sample().encode();
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            Manifest::decode(&bad)
        };
        assert_eq!(
            Manifest::decode(&good[..HEAD_LEN - 1]),
            Err(ManifestError::Version)
        );
        assert_eq!(
            Manifest::decode(&good[..good.len() - 1]),
            Err(ManifestError::Len(271))
        );
        assert_eq!(with(0, b'x'), Err(ManifestError::Version));
        assert_eq!(with(4, 9), Err(ManifestError::Version));
        assert_eq!(with(5, 9), Err(ManifestError::Version));
        assert_eq!(with(6, 1), Err(ManifestError::Version));
        assert_eq!(with(100, 1), Err(ManifestError::Version));
        assert_eq!(with(40, 1), Err(ManifestError::Sizes));
        assert_eq!(with(88, 3), Err(ManifestError::Len(272)));
        assert_eq!(with(90, 0xff), Err(ManifestError::Chunks(0xff_0002)));
        assert_eq!(with(HEAD_LEN + 35, 1), Err(ManifestError::Entry(0)));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_cleanly(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..600), forge: bool,
        ) {
            if forge && bytes.len() >= HEAD_LEN {
                bytes[..HEAD_LEN].copy_from_slice(&sample().encode()[..HEAD_LEN]);
            }
            if let Ok(manifest) = Manifest::decode(&bytes) {
                prop_assert_eq!(manifest.encode(), bytes);
            }
        }
    }

    const GOLDEN: &str = "53115083dd2fe63b2c640d0127a918e22f03c4aff59cc4f2111e9bec10caa000";
}

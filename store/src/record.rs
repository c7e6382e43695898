//! The records that packs are made of.
//!
//! A pack is a run of records, each a 64-byte header and a body, and, once sealed, a footer that
//! lists them. Every record describes itself, so a pack without a footer is read by walking it.
//!
//! **Shape** of the header (little endian):
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `ANR1` |
//! | 4 | 1 | [`RecordKind`] |
//! | 5 | 3 | zero |
//! | 8 | 32 | key: chunk id, NarHash, or zero |
//! | 40 | 4 | raw length: bytes of the chunk; otherwise equal to the body length |
//! | 44 | 4 | body length |
//! | 48 | 8 | XXH3 of the body |
//! | 56 | 8 | tag: BLAKE3 of bytes 0 to 55, keyed with the pack's salt |
//!
//! The salt ([`PackSalt`]) is a secret of the pack's writer. Bodies hold what strangers send: without
//! the salt nobody can make bytes that a recovery, walking a torn pack, would take for a record.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cache_name::CacheName;
use crate::hash::{ChunkId, FileHash, NarHash};
use crate::narinfo::PathInfo;
use crate::store_path::{StorePath, StorePathHash};

/// Bytes of a record header.
pub const HEADER_LEN: usize = 64;

/// The most bytes a record body can have: a manifest of the most chunks, twice over.
pub const BODY_LEN_MAX: usize = 128 << 20;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RecordKind {
    /// A frame; the key is its [`ChunkId`].
    Chunk = 1,
    /// An [`ImportedManifest`]; the key is the NarHash.
    Manifest = 2,
    /// A [`Row`]; the key is zero.
    Row = 3,
    /// The list of a sealed pack's records; the key is zero.
    Footer = 4,
}

impl RecordKind {
    /// The kind a stored byte names, if it is known.
    pub fn from_byte(byte: u8) -> Option<RecordKind> {
        [
            RecordKind::Chunk,
            RecordKind::Manifest,
            RecordKind::Row,
            RecordKind::Footer,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// The secret that makes a pack's record headers unforgeable.
///
/// **Shape**: 8 random bytes, kept in the pack's head and, once it is sealed, in its tail.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PackSalt([u8; 8]);

impl PackSalt {
    /// The salt with these bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> PackSalt {
        PackSalt(bytes)
    }

    /// The salt's bytes.
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }

    fn tag(&self, header: &[u8]) -> [u8; 8] {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.0);
        let tag = blake3::keyed_hash(&key, header);
        *tag.as_bytes().first_chunk().expect("a hash has 32 bytes")
    }
}

impl std::fmt::Debug for PackSalt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PackSalt(..)")
    }
}

/// A record header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the body is.
    pub kind: RecordKind,
    /// Chunk id, NarHash, or zero.
    pub key: [u8; 32],
    /// Bytes of the chunk, or of the body.
    pub raw_len: u32,
    /// Bytes of the body.
    pub body_len: u32,
    /// [Check](crate::frame::check) of the body.
    pub body_check: u64,
}

/// The header is no header, or a damaged one.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("damaged record header")]
pub struct BadHeader;

impl RecordHeader {
    /// The header of a body.
    pub fn new(kind: RecordKind, key: [u8; 32], raw_len: u32, body: &[u8]) -> RecordHeader {
        let (body_len, body_check) = (body.len() as u32, crate::frame::check(body));
        RecordHeader {
            kind,
            key,
            raw_len,
            body_len,
            body_check,
        }
    }

    /// Bytes of header and body together.
    pub fn record_len(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.body_len)
    }

    /// The header's bytes in a pack with this salt.
    pub fn encode(&self, salt: &PackSalt) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(MAGIC);
        out[4] = self.kind as u8;
        out[8..40].copy_from_slice(&self.key);
        out[40..44].copy_from_slice(&self.raw_len.to_le_bytes());
        out[44..48].copy_from_slice(&self.body_len.to_le_bytes());
        out[48..56].copy_from_slice(&self.body_check.to_le_bytes());
        let tag = salt.tag(&out[..56]);
        out[56..].copy_from_slice(&tag);
        out
    }

    /// Reads a header of a pack with this salt.
    ///
    /// # Errors
    /// [`BadHeader`] unless every byte is as [`RecordHeader::encode`] wrote it.
    pub fn decode(bytes: &[u8; HEADER_LEN], salt: &PackSalt) -> Result<RecordHeader, BadHeader> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let intact = bytes.starts_with(MAGIC)
            && bytes[5..8] == [0; 3]
            && bytes[56..] == salt.tag(&bytes[..56]);
        let header = RecordHeader {
            kind: RecordKind::from_byte(bytes[4]).ok_or(BadHeader)?,
            key: bytes[8..40].try_into().expect("32 bytes"),
            raw_len: u32_at(40),
            body_len: u32_at(44),
            body_check: u64_at(48),
        };
        if intact && header.body_len as usize <= BODY_LEN_MAX {
            Ok(header)
        } else {
            Err(BadHeader)
        }
    }
}

/// The body of a [`RecordKind::Manifest`] record.
///
/// **Shape**: sequence number (8 bytes, little endian), import time (8 bytes), encoded
/// [`Manifest`](crate::manifest::Manifest).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedManifest<'a> {
    /// Orders this import among all rows of the store.
    pub seq: u64,
    /// When the NAR was imported, in seconds since 1970.
    pub imported_at: u64,
    /// The encoded manifest.
    pub manifest: &'a [u8],
}

impl<'a> ImportedManifest<'a> {
    /// The body's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.manifest.len());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.imported_at.to_le_bytes());
        out.extend_from_slice(self.manifest);
        out
    }

    /// Reads a body; `None` if it is too short.
    pub fn decode(body: &'a [u8]) -> Option<ImportedManifest<'a>> {
        let (seq, rest) = body.split_first_chunk::<8>()?;
        let (imported_at, manifest) = rest.split_first_chunk::<8>()?;
        let (seq, imported_at) = (u64::from_le_bytes(*seq), u64::from_le_bytes(*imported_at));
        Some(ImportedManifest {
            seq,
            imported_at,
            manifest,
        })
    }
}

/// A change of the store's metadata; what the index is rebuilt from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Orders the row among all rows of the store: of two rows for one key the higher wins.
    pub seq: u64,
    /// The change.
    pub change: Change,
}

/// What a [`Row`] changes. Variants are never reordered or removed, only added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A path appears in a cache, or is replaced.
    Path(PathRow),
    /// A path leaves a cache.
    RemovePath(CacheName, StorePathHash),
    /// A small object appears in a cache, or is replaced.
    Blob(BlobRow),
    /// A pin is set.
    Pin(Pin),
    /// A generation of a pin is dropped.
    Unpin(CacheName, String, StorePath),
    /// A NAR was uploaded under a file name.
    UploadName(UploadName),
    /// Everything of a cache is dropped.
    PurgeCache(CacheName),
}

impl Change {
    /// About how many bytes it takes in an index.
    #[cfg(feature = "backends")]
    pub(crate) fn len_estimate(&self) -> u64 {
        const KEYS: u64 = 256;
        KEYS + match self {
            Change::Path(row) => {
                let (references, signatures) = (&row.info.references, &row.info.signatures);
                256 + 64 * references.len() as u64 + 128 * signatures.len() as u64
            }
            Change::Blob(row) => row.key.len() as u64 + 40 * row.chunks.len() as u64,
            Change::Pin(_) | Change::Unpin(..) | Change::RemovePath(..) => 128,
            Change::UploadName(_) => 256,
            Change::PurgeCache(_) => 64 << 10,
        }
    }

    /// Whether it takes something away and adds nothing.
    #[cfg(feature = "backends")]
    pub(crate) fn removes(&self) -> bool {
        match self {
            Change::RemovePath(..) | Change::Unpin(..) | Change::PurgeCache(_) => true,
            Change::Path(_) | Change::Blob(_) | Change::Pin(_) | Change::UploadName(_) => false,
        }
    }
}

/// A path as a cache publishes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRow {
    /// The cache.
    pub cache: CacheName,
    /// What is signed and served.
    pub info: PathInfo,
    /// When it was published, in seconds since 1970.
    pub published_at: u64,
}

/// A small object of a cache: a build log, a build trace, debug information.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRow {
    /// The cache.
    pub cache: CacheName,
    /// Its path below the cache's URL, such as `log/<drv>`.
    pub key: String,
    /// Bytes of the object.
    pub len: u64,
    /// Its chunks, in order.
    pub chunks: Vec<ChunkId>,
}

/// A named root: its path and everything it refers to stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The cache.
    pub cache: CacheName,
    /// The pin's name.
    pub name: String,
    /// The path it protects.
    pub path: StorePath,
    /// How many generations under this name are kept; at least 1.
    pub keep: u32,
    /// When it was set, in seconds since 1970.
    pub created_at: u64,
}

/// The file name a NAR was uploaded under, for `HEAD` before a narinfo refers to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadName {
    /// The cache.
    pub cache: CacheName,
    /// The file name, such as `<nix32>.nar.xz`.
    pub file: String,
    /// The NAR.
    pub nar_hash: NarHash,
    /// The SHA-256 of the body as it was uploaded.
    pub body_hash: FileHash,
    /// Bytes of the body as it was uploaded.
    pub body_len: u64,
}

impl Row {
    /// The row's bytes (postcard).
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a row is made of plain data, which always encodes")
    }

    /// Reads a row; `None` for bytes that are no row.
    pub fn decode(bytes: &[u8]) -> Option<Row> {
        postcard::from_bytes(bytes).ok()
    }
}

pub(crate) const MAGIC: &[u8; 4] = b"ANR1";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SALT: PackSalt = PackSalt([7; 8]);

    fn sample() -> RecordHeader {
        RecordHeader::new(RecordKind::Chunk, [7; 32], 5, b"frame")
    }

    #[test]
    fn headers_round_trip() {
        assert_eq!(
            RecordHeader::decode(&sample().encode(&SALT), &SALT),
            Ok(sample())
        );
        assert_eq!(sample().record_len(), 69);
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        for bit in 0..HEADER_LEN * 8 {
            let mut bytes = sample().encode(&SALT);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                RecordHeader::decode(&bytes, &SALT),
                Err(BadHeader),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_header_of_another_pack_is_no_header() {
        let other = PackSalt([8; 8]);
        assert_eq!(
            RecordHeader::decode(&sample().encode(&other), &SALT),
            Err(BadHeader)
        );
    }

    #[test]
    fn rows_round_trip() {
        let cache: CacheName = "main".parse().expect("cache name");
        let row = Row {
            seq: 9,
            change: Change::PurgeCache(cache),
        };
        assert_eq!(Row::decode(&row.encode()), Some(row));
    }

    #[test]
    fn imported_manifests_round_trip() {
        let body = ImportedManifest {
            seq: 3,
            imported_at: 4,
            manifest: b"abc",
        };
        assert_eq!(ImportedManifest::decode(&body.encode()), Some(body));
        assert_eq!(ImportedManifest::decode(&[0; 15]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_a_row_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Row::decode(&bytes);
        }
    }
}

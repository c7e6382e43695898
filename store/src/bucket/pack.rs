//! Packs in a bucket: made in memory, found by their footer, read in ranges.
//!
//! **Shape**: as [on disk](crate::record), chunks and manifests only; a manifest is its encoding
//! alone, and its key is the BLAKE3 of that. A pack is an object of its own
//! ([`PackId::object_key`]), which is written once.

use std::ops::Range;

use bytes::Bytes;

use crate::frame;
use crate::hash::ChunkId;
use crate::pack::{self, FooterEntry, HEAD_LEN};
use crate::pack_id::PackId;
use crate::record::{HEADER_LEN, PackSalt, RecordHeader, RecordKind};

/// Bytes of content from which on a pack is full.
pub const PACK_LEN_TARGET: usize = 16 << 20;

/// Where the keys of all packs begin.
pub const PACKS: &str = "pack/";

impl PackId {
    /// The key of the object: `pack/<first 2 hex digits>/<id>`.
    pub fn object_key(&self) -> String {
        let name = self.to_string();
        format!("{PACKS}{}/{name}", &name[..2])
    }

    /// The pack that an object is, by its key; `None` if it is none.
    pub fn of_object_key(key: &str) -> Option<PackId> {
        let id: PackId = key.rsplit_once('/')?.1.parse().ok()?;
        (id.object_key() == key).then_some(id)
    }
}

/// Where something lies in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// In which pack.
    pub pack: PackId,
    /// Bytes of the pack before it.
    pub offset: u32,
    /// Its bytes: of a chunk's frame, of a manifest's encoding.
    pub len: u32,
    /// Of a chunk, its bytes without compression.
    pub raw_len: u32,
}

impl Place {
    /// The bytes of the pack's object that it is.
    pub fn range(&self) -> Range<u64> {
        let start = u64::from(self.offset);
        start..start + u64::from(self.len)
    }
}

/// A pack that is being made.
pub struct PackBuilder {
    id: PackId,
    salt: PackSalt,
    bytes: Vec<u8>,
    entries: Vec<FooterEntry>,
}

/// A pack to be written.
#[derive(Clone, Debug)]
pub struct BuiltPack {
    /// Its name.
    pub id: PackId,
    /// The whole object.
    pub bytes: Bytes,
    /// Its records.
    pub contents: PackContents,
}

/// What a pack holds, as its footer lists it.
#[derive(Clone, Debug)]
pub struct PackContents {
    pub(crate) entries: Vec<FooterEntry>,
}

impl PackContents {
    /// Number of chunks and manifests.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl PackBuilder {
    /// An empty pack; `random` makes its name and salt, which must never have been used.
    pub fn new(random: [u8; 24]) -> PackBuilder {
        let (id, salt) = random.split_first_chunk().expect("16 of 24 bytes");
        let salt = salt.first_chunk().expect("the other 8");
        let (id, salt) = (PackId::from_bytes(*id), PackSalt::from_bytes(*salt));
        let bytes = pack::head(id, salt).to_vec();
        let entries = Vec::new();
        PackBuilder {
            id,
            salt,
            bytes,
            entries,
        }
    }

    /// Its name.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes it will have at least.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has reached [`PACK_LEN_TARGET`].
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= PACK_LEN_TARGET
    }

    /// Adds a chunk. That `frame` is one of it, the caller has checked.
    pub fn add_chunk(&mut self, id: &ChunkId, raw_len: u32, frame: &[u8]) {
        self.add(RecordKind::Chunk, *id.as_bytes(), raw_len, frame);
    }

    /// Adds an encoded manifest.
    pub fn add_manifest(&mut self, encoded: &[u8]) {
        let key = *blake3::hash(encoded).as_bytes();
        self.add(RecordKind::Manifest, key, encoded.len() as u32, encoded);
    }

    fn add(&mut self, kind: RecordKind, key: [u8; 32], raw_len: u32, body: &[u8]) {
        let header = RecordHeader::new(kind, key, raw_len, body);
        // Far below 4 GiB: a pack is full at 16 MiB, and the longest record has 128.
        self.entries
            .push(FooterEntry::new(&header, self.bytes.len() as u32));
        self.bytes.extend_from_slice(&header.encode(&self.salt));
        self.bytes.extend_from_slice(body);
    }

    /// The whole pack, with its footer.
    pub fn finish(mut self) -> BuiltPack {
        let end = pack::footer(&self.entries, self.bytes.len() as u64, &self.salt);
        self.bytes.extend_from_slice(&end);
        BuiltPack {
            id: self.id,
            bytes: self.bytes.into(),
            contents: PackContents {
                entries: self.entries,
            },
        }
    }
}

/// What the end of a pack says.
#[derive(Clone, Debug)]
pub enum PackEnd {
    /// All of it.
    Whole(PackContents),
    /// The footer begins here, before the bytes that were looked at.
    Longer(u64),
    /// It is no pack, or a damaged one.
    Damaged,
}

/// Reads the footer of a pack of `len` bytes of which `end` are the last, at best
/// [`PACK_END_LEN`].
pub fn read_pack_end(len: u64, end: &[u8]) -> PackEnd {
    let Some(start) = len.checked_sub(end.len() as u64) else {
        return PackEnd::Damaged;
    };
    let Some((footer_at, salt, tail_len)) = pack::footer_place(end, len) else {
        return PackEnd::Damaged;
    };
    let Some(from) = footer_at.checked_sub(start) else {
        return match footer_at >= HEAD_LEN {
            true => PackEnd::Longer(footer_at),
            false => PackEnd::Damaged,
        };
    };
    let record = &end[from as usize..end.len() - tail_len];
    let whole = pack::read_footer_record(record, footer_at, &salt);
    let known =
        |entry: &FooterEntry| matches!(entry.kind, RecordKind::Chunk | RecordKind::Manifest);
    match whole {
        Some(entries) if entries.iter().all(known) => PackEnd::Whole(PackContents { entries }),
        Some(_) | None => PackEnd::Damaged,
    }
}

/// Bytes at the end of a pack that nearly always hold all of its footer.
pub const PACK_END_LEN: u64 = 32 << 10;

pub(super) fn places(
    pack: PackId,
    contents: &PackContents,
) -> impl Iterator<Item = ([u8; 32], Place)> {
    contents.entries.iter().map(move |entry| {
        let place = Place {
            pack,
            offset: entry.offset + HEADER_LEN as u32,
            len: entry.body_len,
            raw_len: entry.raw_len,
        };
        (entry.key, place)
    })
}

/// Whether bytes read from a bucket are the encoded manifest of this key.
pub fn is_manifest(key: &[u8; 32], bytes: &[u8]) -> bool {
    blake3::hash(bytes).as_bytes() == key
}

/// Whether a frame holds the chunk it is said to hold. Decompresses it.
pub fn holds_chunk(id: &ChunkId, raw_len: u32, bytes: &[u8]) -> bool {
    let mut raw = Vec::new();
    let decoded = frame::FrameDecoder::new().decode_into(bytes, raw_len as usize, &mut raw);
    decoded.is_ok() && ChunkId::of(&raw) == *id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built() -> (BuiltPack, ChunkId, Vec<u8>) {
        let mut builder = PackBuilder::new([7; 24]);
        let chunk = vec![3; 5000];
        let id = ChunkId::of(&chunk);
        let frame = frame::FrameEncoder::new().encode(&chunk).unwrap();
        builder.add_chunk(&id, 5000, &frame);
        builder.add_manifest(b"a manifest");
        (builder.finish(), id, frame)
    }

    #[test]
    fn what_the_end_lists_lies_where_it_says() {
        let (pack, id, frame) = built();
        let len = pack.bytes.len() as u64;
        let PackEnd::Whole(contents) = read_pack_end(len, &pack.bytes) else {
            panic!("a whole pack");
        };
        let found: Vec<_> = places(pack.id, &contents).collect();
        let manifest = blake3::hash(b"a manifest");
        assert_eq!(found[0].0, *id.as_bytes());
        assert_eq!(found[1].0, *manifest.as_bytes());
        let at =
            |place: &Place| &pack.bytes[place.range().start as usize..place.range().end as usize];
        assert_eq!(at(&found[0].1), frame);
        assert_eq!(at(&found[1].1), b"a manifest");
        assert!(holds_chunk(&id, 5000, at(&found[0].1)));
        assert!(!holds_chunk(
            &ChunkId::of(b"another"),
            5000,
            at(&found[0].1)
        ));
    }

    #[test]
    fn an_end_that_is_too_short_says_where_the_footer_begins() {
        let (pack, ..) = built();
        let len = pack.bytes.len();
        let PackEnd::Longer(from) = read_pack_end(len as u64, &pack.bytes[len - 40..]) else {
            panic!("too short");
        };
        let end = &pack.bytes[from as usize..];
        assert!(matches!(read_pack_end(len as u64, end), PackEnd::Whole(_)));
    }

    #[test]
    fn any_damage_to_the_end_is_noticed() {
        let (pack, ..) = built();
        let len = pack.bytes.len();
        let PackEnd::Longer(from) = read_pack_end(len as u64, &pack.bytes[len - 32..]) else {
            panic!("too short");
        };
        for at in from as usize..len {
            let mut bytes = pack.bytes.to_vec();
            bytes[at] ^= 1;
            let end = read_pack_end(len as u64, &bytes);
            assert!(!matches!(end, PackEnd::Whole(_)), "byte {at}");
        }
        for cut in 1..100 {
            let end = &pack.bytes[..len - cut];
            let end = read_pack_end(end.len() as u64, end);
            assert!(!matches!(end, PackEnd::Whole(_)), "cut {cut}");
        }
    }

    #[test]
    fn keys_name_packs() {
        let id = PackId::from_bytes([0xab; 16]);
        let key = id.object_key();
        assert_eq!(key, format!("pack/ab/{}", "ab".repeat(16)));
        assert_eq!(PackId::of_object_key(&key), Some(id));
        assert_eq!(PackId::of_object_key(&key.replacen("ab", "ac", 1)), None);
        assert_eq!(PackId::of_object_key("pack/ab/x"), None);
    }
}

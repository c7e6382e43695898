//! Keys of the index.
//!
//! A key of a cache's row starts with the cache's name and a zero byte, which no name contains, so
//! a prefix scan finds exactly one cache's rows.

use crate::cache_name::CacheName;
use crate::hash::NarHash;
use crate::pack_id::PackId;
use crate::record::PathRow;
use crate::store_path::{StorePath, StorePathHash};

/// The prefix of a cache's keys.
pub(super) fn cache(cache: &CacheName) -> Vec<u8> {
    let mut key = cache.to_string().into_bytes();
    key.push(0);
    key
}

/// A path of a cache. Keys order as the text of the hash does: nix32 begins with the last byte.
pub(super) fn path(name: &CacheName, hash: &StorePathHash) -> Vec<u8> {
    let mut key = cache(name);
    key.extend(hash.as_bytes().iter().rev());
    key
}

/// The prefix of the paths of a cache that have a NAR.
pub(super) fn nar(name: &CacheName, nar: &NarHash) -> Vec<u8> {
    let mut key = cache(name);
    key.extend_from_slice(nar.as_bytes());
    key
}

/// A path of a cache, by its NAR.
pub(super) fn nar_of(path: &PathRow) -> Vec<u8> {
    let mut key = nar(&path.cache, &path.info.nar_hash);
    key.extend_from_slice(path.info.path.hash().as_bytes());
    key
}

/// A named thing of a cache.
pub(super) fn named(cache_name: &CacheName, name: &str) -> Vec<u8> {
    let mut key = cache(cache_name);
    key.extend_from_slice(name.as_bytes());
    key
}

/// A generation of a pin.
pub(super) fn pin(cache: &CacheName, name: &str, path: &StorePath) -> Vec<u8> {
    let mut key = named(cache, name);
    key.push(0);
    key.extend_from_slice(path.hash().as_bytes());
    key
}

/// The removal of a row with this key; `kind` tells the trees apart.
pub(super) fn removal(kind: u8, key: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(key);
    out
}

/// A record in a pack.
pub(super) fn copy(pack: PackId, offset: u32) -> Vec<u8> {
    let mut key = pack.as_bytes().to_vec();
    key.extend_from_slice(&offset.to_be_bytes());
    key
}

/// Reads what [`copy`] wrote.
pub(super) fn parse_copy(key: &[u8]) -> Option<(PackId, u32)> {
    let (pack, offset) = key.split_first_chunk::<16>()?;
    Some((
        PackId::from_bytes(*pack),
        u32::from_be_bytes(offset.try_into().ok()?),
    ))
}

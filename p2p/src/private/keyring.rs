//! The keys a node has, and the seals made with them.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::directory::Unseal;
use crate::ids::{CacheId, ClusterId, NodeId};
use crate::membership::sealing::{NONCE_LEN, RecordContext};
use crate::private::EpochKey;
use crate::record::{Record, RecordError, SealedRecord};

/// The newest key of every private cache that a node may read. A value: a node that learns a key
/// makes the next keyring.
#[derive(Clone, Debug)]
pub struct Keyring {
    cluster: ClusterId,
    keys: BTreeMap<CacheId, EpochKey>,
}

impl Keyring {
    /// Most caches with a key; more are not taken.
    pub const CACHES_MAX: usize = 1024;

    /// Without any key.
    pub fn new(cluster: ClusterId) -> Keyring {
        Keyring {
            cluster,
            keys: BTreeMap::new(),
        }
    }

    /// Adds a key. False if it opens nothing that could not be opened before: another of this epoch
    /// or a later one is there, or there are too many.
    pub fn insert(&mut self, cache: CacheId, key: EpochKey) -> bool {
        let known = self.keys.get(&cache).map(EpochKey::epoch);
        let is_full = known.is_none() && self.keys.len() >= Keyring::CACHES_MAX;
        if is_full || known >= Some(key.epoch()) {
            return false;
        }
        self.keys.insert(cache, key);
        true
    }

    /// The newest key of a cache.
    pub fn newest(&self, cache: CacheId) -> Option<&EpochKey> {
        self.keys.get(&cache)
    }

    /// Seals a record that `author` will say for the readers of `cache`, under the newest key.
    ///
    /// `nonce` must be random, and fresh for every call.
    ///
    /// **Errors**: [`SealRecordError`].
    pub fn seal(
        &self,
        author: NodeId,
        cache: CacheId,
        record: &Record,
        nonce: [u8; NONCE_LEN],
    ) -> Result<Record, SealRecordError> {
        let newest = self.newest(cache).ok_or(SealRecordError::NoKey(cache))?;
        let encoded = record.encode()?;
        let epoch = newest.epoch();
        let context = self.context(author, cache, epoch);
        let ciphertext = newest.key().seal(&context, &nonce, &encoded);
        Ok(Record::Sealed(SealedRecord {
            cache,
            epoch,
            nonce,
            ciphertext,
        }))
    }

    fn context(&self, author: NodeId, cache: CacheId, epoch: u32) -> RecordContext {
        RecordContext {
            cluster: self.cluster,
            cache,
            epoch: epoch.into(),
            author,
        }
    }
}

impl Unseal for Keyring {
    fn unseal(&self, author: NodeId, sealed: &SealedRecord) -> Option<Vec<u8>> {
        let key = self.newest(sealed.cache)?.at(sealed.epoch)?;
        let context = self.context(author, sealed.cache, sealed.epoch);
        key.open(&context, &sealed.nonce, &sealed.ciphertext).ok()
    }
}

/// Why a record was not sealed.
#[derive(Debug, Error)]
pub enum SealRecordError {
    /// This node was not given the key of the cache.
    #[error("no key of cache {0}")]
    NoKey(CacheId),
    /// The record has no wire form.
    #[error(transparent)]
    Record(#[from] RecordError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::NarTag;

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
    const CACHE: CacheId = CacheId::from_bytes([2; 16]);
    const AUTHOR: NodeId = NodeId::from_bytes([3; 32]);

    fn keyring(epoch: u32) -> Keyring {
        let mut keyring = Keyring::new(CLUSTER);
        let key = EpochKey::derive(&[4; 32], epoch).unwrap();
        assert!(keyring.insert(CACHE, key));
        keyring
    }

    fn sealed(keyring: &Keyring) -> SealedRecord {
        let hold = Record::Hold(vec![NarTag::from_bytes(*b"theirtag")]);
        match keyring.seal(AUTHOR, CACHE, &hold, [5; 24]) {
            Ok(Record::Sealed(sealed)) => sealed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn readers_open_what_was_said_before_their_key_and_nothing_said_after() {
        let (old, new) = (keyring(1), keyring(2));
        assert!(new.unseal(AUTHOR, &sealed(&old)).is_some());
        assert!(new.unseal(AUTHOR, &sealed(&new)).is_some());
        assert!(old.unseal(AUTHOR, &sealed(&new)).is_none());
    }

    #[test]
    fn a_seal_shows_nothing_and_opens_in_its_place_alone() {
        let keyring = keyring(1);
        let good = sealed(&keyring);
        let encoded = Record::Sealed(good.clone()).encode().unwrap();
        assert!(!encoded.windows(8).any(|window| window == b"theirtag"));
        let plain = keyring.unseal(AUTHOR, &good).unwrap();
        assert!(plain.windows(8).any(|window| window == b"theirtag"));
        assert!(keyring.unseal(NodeId::from_bytes([9; 32]), &good).is_none());
        let other_cache = SealedRecord {
            cache: CacheId::from_bytes([9; 16]),
            ..good.clone()
        };
        let other_epoch = SealedRecord { epoch: 0, ..good };
        for elsewhere in [other_cache, other_epoch] {
            assert!(keyring.unseal(AUTHOR, &elsewhere).is_none());
        }
    }

    #[test]
    fn only_newer_keys_are_taken_and_not_for_too_many_caches() {
        let key = |epoch| EpochKey::derive(&[4; 32], epoch).unwrap();
        let mut keyring = keyring(2);
        assert!(!keyring.insert(CACHE, key(1)));
        assert!(!keyring.insert(CACHE, key(2)));
        assert!(keyring.insert(CACHE, key(3)));
        for number in 1..Keyring::CACHES_MAX as u128 {
            let cache = CacheId::from_bytes(number.to_be_bytes());
            assert!(keyring.insert(cache, key(1)));
        }
        assert!(!keyring.insert(CacheId::from_bytes([8; 16]), key(1)));
        assert!(keyring.insert(CACHE, key(4)));
    }

    #[test]
    fn without_a_key_nothing_is_sealed_in_the_open() {
        let keyring = Keyring::new(CLUSTER);
        let hold = Record::Hold(Vec::new());
        let outcome = keyring.seal(AUTHOR, CACHE, &hold, [5; 24]);
        assert!(matches!(outcome, Err(SealRecordError::NoKey(CACHE))));
    }
}

//! The keys of a private cache, one after the other.

use std::fmt::{Debug, Formatter, Result as FmtResult};

use zeroize::Zeroizing;

use crate::membership::sealing::ScopeKey;

/// The key of one epoch, which gives those of all earlier epochs and none of a later one.
///
/// Made from the end: the owner's seed gives the last key, and each key the one before it, by a
/// function that cannot be turned around. `Debug` shows the number only; wiped when dropped.
#[derive(Clone)]
pub struct EpochKey {
    epoch: u32,
    key: ScopeKey,
}

impl EpochKey {
    /// The last epoch there can be. The first is 1.
    pub const EPOCH_MAX: u32 = 4096;

    /// The key of an epoch of the cache whose owner has this seed; `None` where there is no such
    /// epoch. Takes a hash for every epoch that may follow.
    pub fn derive(owner_seed: &[u8; 32], epoch: u32) -> Option<EpochKey> {
        let last = EpochKey {
            epoch: EpochKey::EPOCH_MAX,
            key: ScopeKey::from_bytes(blake3::derive_key(LAST_CONTEXT, owner_seed)),
        };
        let key = last.at(epoch)?;
        Some(EpochKey { epoch, key })
    }

    /// The key of this epoch; `None` where there is no such epoch.
    pub fn new(epoch: u32, key: ScopeKey) -> Option<EpochKey> {
        let is_one = (1..=EpochKey::EPOCH_MAX).contains(&epoch);
        is_one.then_some(EpochKey { epoch, key })
    }

    /// Which epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Its key.
    pub fn key(&self) -> &ScopeKey {
        &self.key
    }

    /// The key of this or an earlier epoch; `None` for a later one, and for 0.
    pub fn at(&self, epoch: u32) -> Option<ScopeKey> {
        let steps = self.epoch.checked_sub(epoch).filter(|_| epoch > 0)?;
        Some((0..steps).fold(self.key.clone(), |key, _| before(&key)))
    }

    /// For a file that nobody else reads.
    ///
    /// **Shape**: the epoch in 4 bytes, big endian, then the 32 of the key.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let epoch = self.epoch.to_be_bytes();
        Zeroizing::new([&epoch[..], self.key.as_bytes()].concat())
    }

    /// Reads what [`EpochKey::to_bytes`] wrote; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<EpochKey> {
        let (epoch, key) = bytes.split_first_chunk()?;
        let key = ScopeKey::from_bytes(key.try_into().ok()?);
        EpochKey::new(u32::from_be_bytes(*epoch), key)
    }
}

impl Debug for EpochKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_struct("EpochKey")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

fn before(key: &ScopeKey) -> ScopeKey {
    ScopeKey::from_bytes(blake3::derive_key(BEFORE_CONTEXT, key.as_bytes()))
}

const LAST_CONTEXT: &str = "attic-node last epoch of a cache 1";
const BEFORE_CONTEXT: &str = "attic-node epoch before 1";

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: [u8; 32] = [7; 32];

    fn key(epoch: u32) -> EpochKey {
        EpochKey::derive(&SEED, epoch).unwrap()
    }

    #[test]
    fn a_key_gives_the_earlier_ones_and_no_later_one() {
        let third = key(3);
        for epoch in [1, 2, 3] {
            let earlier = third.at(epoch).unwrap();
            assert_eq!(earlier.as_bytes(), key(epoch).key().as_bytes(), "{epoch}");
        }
        for epoch in [0, 4, EpochKey::EPOCH_MAX, u32::MAX] {
            assert!(third.at(epoch).is_none(), "{epoch}");
        }
        assert_ne!(key(1).key().as_bytes(), key(2).key().as_bytes());
    }

    #[test]
    fn epochs_are_bounded() {
        for (epoch, is_one) in [(0, false), (1, true), (4096, true), (4097, false)] {
            assert_eq!(EpochKey::derive(&SEED, epoch).is_some(), is_one, "{epoch}");
            let key = ScopeKey::from_bytes(SEED);
            assert_eq!(EpochKey::new(epoch, key).is_some(), is_one, "{epoch}");
        }
    }

    #[test]
    fn a_file_reads_back_and_nothing_else_is_a_key() {
        let bytes = key(2).to_bytes();
        let read = EpochKey::from_bytes(&bytes).unwrap();
        assert_eq!(read.to_bytes(), bytes);
        for len in 0..bytes.len() {
            assert!(EpochKey::from_bytes(&bytes[..len]).is_none(), "{len} bytes");
        }
        assert!(EpochKey::from_bytes(&[0; 36]).is_none());
        assert!(EpochKey::from_bytes(&[1; 37]).is_none());
    }

    #[test]
    fn debug_shows_no_key() {
        let shown = format!("{:?}", EpochKey::new(2, ScopeKey::from_bytes([0xab; 32])));
        assert_eq!(shown, "Some(EpochKey { epoch: 2, .. })");
    }
}

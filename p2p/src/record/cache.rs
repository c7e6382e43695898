//! What a cache's owner says about it.

use attic_store::{CacheName, PublicKey, StoreDir, TrustedKeys};
use serde::{Deserialize, Serialize};

use crate::ids::{CacheId, NodeId};
use crate::signed::{Signed, SignedError, Statement};

/// The record that founds a cache. It never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheGenesis {
    /// The name it was founded under.
    pub name: CacheName,
    /// Public half of the key that signs its configuration and grants; not a node's.
    pub owner: NodeId,
    /// Makes two caches of one name and owner differ.
    pub nonce: [u8; 16],
}

impl CacheGenesis {
    /// The cache's id.
    ///
    /// **Shape**: the first 16 bytes of BLAKE3 over `attic-node cache 1` and the record.
    pub fn cache_id(&self) -> CacheId {
        let encoded = postcard::to_stdvec(self).expect("plain data");
        let hash = blake3::hash(&[CACHE_ID_CONTEXT, &encoded].concat());
        let bytes = hash.as_bytes().first_chunk().expect("16 of 32 bytes");
        CacheId::from_bytes(*bytes)
    }
}

/// How a cache is set up. The highest version counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheConfig {
    /// What the cache is.
    pub genesis: CacheGenesis,
    /// Grows with every change.
    pub version: u64,
    /// A path is in the cache if one of these signed it. First the one that is signed with, then those
    /// before it, the newest last.
    pub public_keys: Vec<PublicKey>,
    /// Clients ask the lowest first.
    pub priority: u32,
    /// Whether its records are in the open.
    pub public: bool,
    /// Where its paths lie.
    pub store_dir: StoreDir,
    /// Seconds that a path stays after it was last read; for ever if `None`.
    pub retention: Option<u64>,
    /// Whether the cache is gone for good.
    pub destroyed: bool,
}

impl CacheConfig {
    /// The keys a path's signature is checked against.
    pub fn trusted_keys(&self) -> TrustedKeys {
        TrustedKeys::new(self.public_keys.iter().cloned())
    }
}

impl Signed<CacheConfig> {
    /// The configuration, if the owner that its genesis names signed it.
    ///
    /// **Errors**: [`SignedError::Signature`].
    pub fn verify_owner(&self) -> Result<&CacheConfig, SignedError> {
        self.verify(&self.value().genesis.owner)
    }
}

impl Statement for CacheConfig {
    const DOMAIN: &'static str = "attic-node cache config 1";
    const LEN_MAX: usize = 8 * 1024;
}

/// A right to a cache, given to a node. The highest epoch counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Which cache.
    pub cache: CacheId,
    /// To whom.
    pub node: NodeId,
    /// To do what.
    pub right: Right,
    /// Grows when the key changes.
    pub epoch: u32,
    /// The key that the right needs, sealed to the node.
    pub sealed: Vec<u8>,
}

/// What a grant allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Right {
    /// To read a private cache.
    Read,
    /// To sign for a cache.
    Sign,
}

impl Statement for Grant {
    const DOMAIN: &'static str = "attic-node grant 1";
    const LEN_MAX: usize = 1024;
}

const CACHE_ID_CONTEXT: &[u8] = b"attic-node cache 1";

//! What the node asks its copy of the cluster's directory.
//!
//! Every call may wait for the disk: bodies of records are read back from the logs.

use attic_p2p::directory::Directory;
use attic_p2p::ids::{CacheId, NodeId};
use attic_p2p::membership::certificate::Certificate;
use attic_p2p::record::{CacheConfig, NarTag, PathRecord, Right};
use attic_p2p::replica::Lag;
use attic_store::{CacheName, NarHash, StorePathHash};

use crate::http::error::chain;
use crate::mesh::runtime::{SharedReplica, lock};

/// The directory, to be asked.
#[derive(Clone)]
pub(crate) struct DirectoryView {
    replica: SharedReplica,
    me: NodeId,
}

impl DirectoryView {
    pub(crate) fn new(replica: SharedReplica, me: NodeId) -> DirectoryView {
        DirectoryView { replica, me }
    }

    /// Runs `work` with the directory.
    pub(crate) fn with_directory<T>(&self, work: impl FnOnce(&Directory) -> T) -> T {
        work(lock(&self.replica).directory())
    }

    /// The path that the cluster's cache has under this hash part. A log that cannot be read has
    /// nothing.
    pub(crate) fn path(&self, cache: CacheId, hash: &StorePathHash) -> Option<PathRecord> {
        let replica = lock(&self.replica);
        let found = replica.directory().path(replica.log(), cache, *hash);
        logged(found).map(|(_, record)| record)
    }

    /// A path of the cluster's cache with this NAR.
    pub(crate) fn nar(&self, cache: CacheId, nar: &NarHash) -> Option<PathRecord> {
        let replica = lock(&self.replica);
        let found = replica.directory().nar(replica.log(), cache, nar);
        logged(found).map(|(_, record)| record)
    }

    /// Whether anybody says that the cache has something under this hash part.
    pub(crate) fn is_said(&self, cache: CacheId, hash: &StorePathHash) -> bool {
        !lock(&self.replica)
            .directory()
            .dots(cache, *hash)
            .is_empty()
    }

    /// The records to name to remove a path.
    pub(crate) fn dots(&self, cache: CacheId, hash: &StorePathHash) -> Vec<attic_p2p::ids::Dot> {
        lock(&self.replica).directory().dots(cache, *hash)
    }

    /// Who else says to hold a NAR.
    pub(crate) fn holders(&self, nar: &NarHash) -> Vec<NodeId> {
        let mut holders = lock(&self.replica).directory().holders(NarTag::of(nar));
        holders.retain(|node| *node != self.me);
        holders
    }

    /// What this node says to hold.
    pub(crate) fn held_here(&self) -> Vec<NarTag> {
        lock(&self.replica).directory().held_by(self.me)
    }

    /// The cluster's caches, each with the name it goes by.
    pub(crate) fn caches(&self) -> Vec<(CacheId, CacheName, CacheConfig)> {
        let replica = lock(&self.replica);
        let caches = replica.directory().caches().into_iter();
        caches
            .map(|view| (view.id, view.name, view.config.clone()))
            .collect()
    }

    /// How a cache is set up.
    pub(crate) fn cache(&self, cache: CacheId) -> Option<CacheConfig> {
        lock(&self.replica).directory().cache(cache).cloned()
    }

    /// What a node may do.
    pub(crate) fn member(&self, node: NodeId) -> Option<Certificate> {
        lock(&self.replica).directory().member(node).cloned()
    }

    /// All members, this node among them.
    pub(crate) fn members(&self) -> Vec<Certificate> {
        let replica = lock(&self.replica);
        let members = replica.directory().members();
        members
            .filter(|member| !replica.directory().is_revoked(member.node))
            .cloned()
            .collect()
    }

    /// Whether a node was given the key of a cache, of this epoch or a later one.
    pub(crate) fn has_key(&self, cache: CacheId, node: NodeId, epoch: u32) -> bool {
        let replica = lock(&self.replica);
        let grants = replica.directory().grants(cache, node, Right::Sign);
        grants.iter().any(|grant| grant.value().epoch >= epoch)
    }

    /// The key of a cache that a node was given last, sealed to it.
    pub(crate) fn key_for(&self, cache: CacheId, node: NodeId) -> Option<Vec<u8>> {
        let replica = lock(&self.replica);
        let grants = replica.directory().grants(cache, node, Right::Sign);
        let grant = grants.into_iter().next()?;
        Some(grant.value().sealed.clone())
    }

    /// How far apart this node and a connected peer are; `None` until they have compared.
    pub(crate) fn lag(&self, peer: NodeId) -> Option<Lag> {
        lock(&self.replica).lag(peer)
    }

    /// Whether a node wrote two logs.
    pub(crate) fn is_quarantined(&self, node: NodeId) -> bool {
        lock(&self.replica).directory().is_quarantined(node)
    }

    /// Whether a node was taken out of the cluster.
    pub(crate) fn is_revoked(&self, node: NodeId) -> bool {
        lock(&self.replica).directory().is_revoked(node)
    }

    /// Sizes of the state, segments and bytes of the logs.
    pub(crate) fn sizes(&self) -> (attic_p2p::directory::Stats, u64, u64) {
        let replica = lock(&self.replica);
        let log = replica.log();
        (replica.directory().stats(), log.count(), log.len_bytes())
    }
}

fn logged<T>(outcome: Result<Option<T>, attic_p2p::log::LogError>) -> Option<T> {
    outcome.unwrap_or_else(|error| {
        tracing::error!(cause = chain(&error), "a log cannot be read");
        None
    })
}

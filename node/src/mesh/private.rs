//! Private caches of the cluster on this node: their keys, and who else gets them.
//!
//! What is said of a private cache is sealed ([`attic_p2p::private`]). The node that made the cache
//! makes its keys, from the seed of the key that owns the cache; it gives the newest to every member
//! whose scopes say that it may read or write the cache, and makes the next one when somebody who
//! has it may not any more. All others find theirs in the log, sealed to them.
//!
//! Each key is in a file before it is used, so that a restart opens what was sealed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use attic_p2p::directory::Change;
use attic_p2p::identity::Identity;
use attic_p2p::ids::{CacheId, ClusterId, NodeId};
use attic_p2p::log::LogError;
use attic_p2p::membership::certificate::Certificate;
use attic_p2p::membership::revocation::Subject;
use attic_p2p::membership::scopes::Scopes;
use attic_p2p::membership::sealing::OpeningKey;
use attic_p2p::private::{EpochKey, Keyring, SealRecordError, grant_read, open_read_grant};
use attic_p2p::record::{CacheGenesis, Record, Right};
use attic_store::CacheName;
use thiserror::Error;

use crate::auth::random;
use crate::mesh::files::{ClusterFileError, ClusterFiles};
use crate::mesh::members::Members;
use crate::mesh::view::DirectoryView;

/// The keys of the private caches that this node may read. All of it blocks.
pub(crate) struct PrivateKeys {
    me: NodeId,
    cluster: ClusterId,
    opening_key: OpeningKey,
    files: ClusterFiles,
    view: DirectoryView,
    members: Arc<Members>,
    /// Held while keys change; the directory has the same or is about to.
    keyring: Mutex<Arc<Keyring>>,
    /// Whom keys were given since the start: the log may not show it yet.
    given: Mutex<BTreeSet<(CacheId, NodeId, u32)>>,
}

/// What [`PrivateKeys`] are made of.
pub(crate) struct Parts {
    pub(crate) me: NodeId,
    pub(crate) opening_key: OpeningKey,
    pub(crate) files: ClusterFiles,
    pub(crate) view: DirectoryView,
    pub(crate) members: Arc<Members>,
    /// As the directory has it.
    pub(crate) keyring: Arc<Keyring>,
}

/// The keys that are on disk.
///
/// **Errors**: a file cannot be read or is damaged.
pub(crate) fn load(files: &ClusterFiles, cluster: ClusterId) -> Result<Keyring, ClusterFileError> {
    let mut keyring = Keyring::new(cluster);
    for (cache, key) in files.epoch_keys()? {
        keyring.insert(cache, key);
    }
    Ok(keyring)
}

impl PrivateKeys {
    pub(crate) fn new(parts: Parts) -> PrivateKeys {
        PrivateKeys {
            me: parts.me,
            cluster: parts.members.view().genesis.cluster_id(),
            opening_key: parts.opening_key,
            files: parts.files,
            view: parts.view,
            members: parts.members,
            keyring: Mutex::new(parts.keyring),
            given: Mutex::default(),
        }
    }

    /// Whether this node can speak of a private cache.
    pub(crate) fn has(&self, cache: CacheId) -> bool {
        self.keyring().newest(cache).is_some()
    }

    /// The records as the readers of a private cache are told them.
    ///
    /// **Errors**: the first that cannot be sealed; nothing may be said then.
    pub(crate) fn seal(
        &self,
        cache: CacheId,
        records: &[Record],
    ) -> Result<Vec<Record>, SealRecordError> {
        let keyring = Arc::clone(&self.keyring());
        let seal = |record| keyring.seal(self.me, cache, record, random());
        records.iter().map(seal).collect()
    }

    /// Makes the first key of a cache that this node founds.
    ///
    /// **Errors**: [`PrivateKeyError`]; there is no key then.
    pub(crate) fn found(
        &self,
        cache: CacheId,
        owner_seed: &[u8; 32],
    ) -> Result<(), PrivateKeyError> {
        let first = EpochKey::derive(owner_seed, 1).ok_or(PrivateKeyError::UsedUp(cache))?;
        self.take(cache, first).map(drop)
    }

    /// Takes the keys that this node was given. What they open may have changed everything.
    ///
    /// **Errors**: [`PrivateKeyError`].
    pub(crate) fn take_granted(&self) -> Result<Vec<Change>, PrivateKeyError> {
        let keyring = Arc::clone(&self.keyring());
        let grants = self.view.read_grants(self.me);
        let news = grants.iter().filter(|grant| {
            let known = keyring.newest(grant.value().cache).map(EpochKey::epoch);
            known < Some(grant.value().epoch)
        });
        let mut changes = Vec::new();
        for grant in news {
            let opened = open_read_grant(grant, &self.opening_key, self.cluster);
            let Some((genesis, key)) = opened else {
                continue;
            };
            let own = self.members.certificate();
            if own.is_some_and(|own| may_know(&own.value().scopes, &genesis.name)) {
                tracing::info!(cache = %genesis.name, "was given the key to read a private cache");
                changes.extend(self.take(genesis.cache_id(), key)?);
            }
        }
        Ok(changes)
    }

    /// The grants that a cache of this node is short of. Makes the next key first when one who has
    /// the newest may not read the cache any more.
    ///
    /// **Errors**: [`PrivateKeyError`].
    pub(crate) fn grants(
        &self,
        genesis: &CacheGenesis,
        owner_seed: &[u8; 32],
    ) -> Result<Vec<Record>, PrivateKeyError> {
        let (cache, owner) = (genesis.cache_id(), Identity::from_seed(*owner_seed));
        let key = self.current_key(genesis, owner_seed)?;
        let readers = self
            .view
            .members()
            .into_iter()
            .filter(|member| member.node != self.me && self.is_reader(member, &genesis.name));
        let mut records = Vec::new();
        for reader in readers {
            if self.was_given(cache, reader.node, key.epoch()) {
                continue;
            }
            match grant_read(&owner, genesis, &key, &reader, random()) {
                Ok(grant) => {
                    tracing::info!(node = %reader.node, cache = %genesis.name, "made a node a reader");
                    self.given().insert((cache, reader.node, key.epoch()));
                    records.push(Record::Grant(grant));
                }
                Err(error) => {
                    tracing::warn!(node = %reader.node, %error, "a member cannot be given a key");
                }
            }
        }
        Ok(records)
    }

    /// The key that readers are to have: the newest, or the next.
    fn current_key(
        &self,
        genesis: &CacheGenesis,
        owner_seed: &[u8; 32],
    ) -> Result<EpochKey, PrivateKeyError> {
        let cache = genesis.cache_id();
        let granted = self.view.granted(cache, Right::Read);
        let said = granted.iter().map(|grant| grant.value().epoch);
        let on_disk = self.keyring().newest(cache).map(EpochKey::epoch);
        let epoch = said.chain(on_disk).max().unwrap_or(1);
        let in_log = granted.iter().filter(|grant| grant.value().epoch == epoch);
        let mut given: BTreeSet<NodeId> = in_log.map(|grant| grant.value().node).collect();
        let newest = |(of, _, at): &&(CacheId, NodeId, u32)| (*of, *at) == (cache, epoch);
        given.extend(self.given().iter().filter(newest).map(|(_, node, _)| *node));
        let lost = given
            .iter()
            .any(|node| self.is_shut_out(*node, &genesis.name));
        let next = EpochKey::derive(owner_seed, epoch + u32::from(lost));
        let key = next.ok_or(PrivateKeyError::UsedUp(cache))?;
        if lost {
            tracing::info!(cache = %genesis.name, "a reader is none any more: the cache has a new key");
        }
        self.take(cache, key.clone())?;
        Ok(key)
    }

    /// Keeps a key, if it is news, and opens with it what can be opened.
    fn take(&self, cache: CacheId, key: EpochKey) -> Result<Vec<Change>, PrivateKeyError> {
        let mut current = self.keyring();
        let mut next = Keyring::clone(&current);
        if !next.insert(cache, key.clone()) {
            return Ok(Vec::new());
        }
        self.files.write_epoch_key(&cache, &key)?;
        let next = Arc::new(next);
        *current = Arc::clone(&next);
        Ok(self.view.set_keys(next)?)
    }

    fn was_given(&self, cache: CacheId, node: NodeId, epoch: u32) -> bool {
        self.given().contains(&(cache, node, epoch))
            || self.view.has_grant(cache, node, Right::Read, epoch)
    }

    fn is_reader(&self, member: &Certificate, name: &CacheName) -> bool {
        may_know(&member.scopes, name) && !self.is_shut_out(member.node, name)
    }

    /// Whether it is certain that a node may not read a cache. Of one without a certificate it is
    /// not: its log may be on its way.
    pub(crate) fn is_shut_out(&self, node: NodeId, name: &CacheName) -> bool {
        let revocations = &self.members.view().revocations;
        revocations.of(Subject::Node(node)).is_some()
            || self.view.is_out(node)
            || self
                .view
                .member(node)
                .is_some_and(|member| !may_know(&member.scopes, name))
    }

    fn keyring(&self) -> MutexGuard<'_, Arc<Keyring>> {
        self.keyring.lock().expect("no panic under this lock")
    }

    fn given(&self) -> MutexGuard<'_, BTreeSet<(CacheId, NodeId, u32)>> {
        self.given.lock().expect("no panic under this lock")
    }
}

/// Whether scopes let a node know what is in a private cache: who writes it has to.
pub(crate) fn may_know(scopes: &Scopes, name: &CacheName) -> bool {
    scopes.may_read(name) || scopes.may_write(name)
}

/// Keys could not be taken or made.
#[derive(Debug, Error)]
pub(crate) enum PrivateKeyError {
    /// Its readers changed too often.
    #[error("cache {0} has no keys left: make another")]
    UsedUp(CacheId),
    /// A file of the cluster cannot be used.
    #[error(transparent)]
    File(#[from] ClusterFileError),
    /// The logs cannot be read again.
    #[error("open what is sealed")]
    Log(#[from] LogError),
}

//! What the node asks its copy of the cluster's directory.
//!
//! Every call may wait for the disk: bodies of records are read back from the logs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use attic_p2p::collector::Life;
use attic_p2p::directory::{Change, Directory};
use attic_p2p::ids::{CacheId, Dot, ManifestId, NodeId};
use attic_p2p::log::{Log, LogError};
use attic_p2p::membership::certificate::Certificate;
use attic_p2p::membership::scopes::Scopes;
use attic_p2p::membership::time::UnixTime;
use attic_p2p::private::Keyring;
use attic_p2p::record::{CacheConfig, Grant, NarTag, PathRecord, Record, Right};
use attic_p2p::replica::Lag;
use attic_p2p::signed::Signed;
use attic_store::{CacheName, NarHash, StorePathHash};

use crate::http::error::chain;
use crate::mesh::bucket::write_behind::Beyond;
use crate::mesh::private::may_know;
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

    /// Whether a path was removed, and nobody says that the cache has it.
    pub(crate) fn is_removed_path(&self, cache: CacheId, hash: &StorePathHash) -> bool {
        lock(&self.replica)
            .directory()
            .is_removed_path(cache, *hash)
    }

    /// Whether there are private caches that this node has no key of, or not yet.
    pub(crate) fn has_unopened_caches(&self) -> bool {
        !lock(&self.replica).directory().unopened_caches().is_empty()
    }

    /// Whether this node has had all that a peer had, at some time since the mesh started.
    pub(crate) fn has_caught_up(&self) -> bool {
        lock(&self.replica).has_caught_up()
    }

    /// The records to name to remove a path.
    pub(crate) fn dots(&self, cache: CacheId, hash: &StorePathHash) -> Vec<Dot> {
        lock(&self.replica).directory().dots(cache, *hash)
    }

    /// What this node says of a path, unless it was removed. A log that cannot be read has nothing.
    pub(crate) fn said_here(&self, cache: CacheId, hash: &StorePathHash) -> Option<PathRecord> {
        let replica = lock(&self.replica);
        let directory = replica.directory();
        let mut dots = directory.dots(cache, *hash).into_iter();
        let dot = dots.find(|dot| dot.node == self.me)?;
        match logged(directory.record(replica.log(), dot))? {
            Record::Path(record) => Some(record),
            _ => None,
        }
    }

    /// Number of the last segment of this node's log.
    pub(crate) fn log_end(&self) -> u64 {
        lock(&self.replica).directory().seq(self.me)
    }

    /// Number of the segment in which this node said a path last, removed since or not.
    pub(crate) fn said_at(&self, cache: CacheId, hash: &StorePathHash) -> Option<u64> {
        let replica = lock(&self.replica);
        replica.directory().said_at(self.me, cache, *hash)
    }

    /// The keepers, this node among them if it is one; none that left.
    pub(crate) fn keepers(&self) -> Vec<NodeId> {
        let replica = lock(&self.replica);
        let directory = replica.directory();
        let members = directory.members().map(|member| member.node);
        members
            .filter(|node| directory.is_keeper(*node) && directory.left_at(*node).is_none())
            .collect()
    }

    /// Whether a node is a keeper.
    pub(crate) fn is_keeper(&self, node: NodeId) -> bool {
        lock(&self.replica).directory().is_keeper(node)
    }

    /// Paths of a cache of which a record is not durable, by hash part.
    pub(crate) fn not_durable(
        &self,
        cache: CacheId,
        after: Option<StorePathHash>,
        limit: usize,
    ) -> Vec<(StorePathHash, Vec<Dot>)> {
        let replica = lock(&self.replica);
        replica.directory().not_durable(cache, after, limit)
    }

    /// The records of a path that are not durable.
    pub(crate) fn dots_not_durable(&self, cache: CacheId, hash: StorePathHash) -> Vec<Dot> {
        let replica = lock(&self.replica);
        let mut dots = replica.directory().dots(cache, hash);
        dots.retain(|dot| !replica.directory().is_durable(*dot));
        dots
    }

    /// The manifest of the path that a record says there is.
    pub(crate) fn manifest_of(&self, dot: Dot) -> Option<ManifestId> {
        let replica = lock(&self.replica);
        match logged(replica.directory().record(replica.log(), dot)) {
            Some(Record::Path(path)) => Some(path.manifest),
            Some(_) | None => None,
        }
    }

    /// A node of whose log there is more than was heard here; none whose log ended against its will.
    pub(crate) fn behind(&self, logs: &BTreeMap<NodeId, u64>) -> Option<NodeId> {
        let replica = lock(&self.replica);
        let directory = replica.directory();
        let is_behind = |(node, seq): &(&NodeId, &u64)| {
            directory.seq(**node) < **seq
                && !directory.is_revoked(**node)
                && !directory.is_quarantined(**node)
        };
        logs.iter().find(is_behind).map(|(node, _)| *node)
    }

    /// Whether the record of a path lives. In doubt that is not known.
    pub(crate) fn life(&self, dot: Dot) -> Life {
        let replica = lock(&self.replica);
        let life = logged(replica.directory().life(replica.log(), dot).map(Some));
        life.unwrap_or(Life::Unknown)
    }

    /// All records of paths that live, and whether they are durable.
    pub(crate) fn living(&self) -> HashMap<Dot, bool> {
        let mut living = HashMap::new();
        self.with_directory(|directory| {
            directory.each_living(|dot, is_durable| {
                living.insert(dot, is_durable);
            });
        });
        living
    }

    /// Whether the bucket has a path as this node said it; as anybody said it, if this one did not.
    pub(crate) fn is_durable(&self, cache: CacheId, hash: StorePathHash) -> bool {
        let replica = lock(&self.replica);
        let dots = replica.directory().dots(cache, hash);
        let is_durable = |dot: &Dot| replica.directory().is_durable(*dot);
        let mut own = dots.iter().filter(|dot| dot.node == self.me).peekable();
        match own.peek() {
            Some(_) => own.all(is_durable),
            None => dots.iter().any(is_durable),
        }
    }

    /// Segments of all logs beyond what is `carried`, of about `len_max` bytes at most.
    pub(crate) fn segments_beyond(
        &self,
        carried: &BTreeMap<NodeId, u64>,
        len_max: usize,
    ) -> Beyond {
        let replica = lock(&self.replica);
        let log = replica.log();
        let mut beyond = Beyond {
            segments: Vec::new(),
            carried: carried.clone(),
            is_all: true,
        };
        let mut len = 0;
        for node in log.nodes() {
            let Some((first, last)) = log.range(node) else {
                continue;
            };
            let next = carried.get(&node).map_or(first, |seq| first.max(seq + 1));
            for seq in next..=last {
                if len >= len_max {
                    beyond.is_all = false;
                    return beyond;
                }
                // What decayed here is carried when it has come again.
                let Some(bytes) = logged(log.read(node, seq)) else {
                    break;
                };
                len += bytes.len();
                beyond.segments.push(bytes.to_vec());
                beyond.carried.insert(node, seq);
            }
        }
        beyond
    }

    /// Looks at every path that a cache has.
    pub(crate) fn each_path(&self, cache: CacheId, mut look: impl FnMut(&PathRecord)) {
        let mut after = None;
        loop {
            let page = lock(&self.replica).directory().paths(cache, after, PAGE);
            let Some(last) = page.last() else {
                return;
            };
            after = Some(*last);
            for hash in page {
                if let Some(record) = self.path(cache, &hash) {
                    look(&record);
                }
            }
        }
    }

    /// Who else says to hold a NAR.
    pub(crate) fn holders(&self, nar: &NarHash) -> Vec<NodeId> {
        let mut holders = lock(&self.replica).directory().holders(NarTag::of(nar));
        holders.retain(|node| *node != self.me);
        holders
    }

    /// What this node says to hold, to everybody or to the readers of a private cache.
    pub(crate) fn held_here(&self, private: Option<CacheId>) -> Vec<NarTag> {
        let replica = lock(&self.replica);
        match private {
            None => replica.directory().held_by(self.me),
            Some(cache) => replica.directory().held_by_under(cache, self.me),
        }
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

    /// Whether a cache is gone for good: its owner destroyed it, or the cluster key ended it.
    pub(crate) fn is_gone(&self, cache: CacheId) -> bool {
        let replica = lock(&self.replica);
        let directory = replica.directory();
        let destroyed = directory
            .cache(cache)
            .is_some_and(|config| config.destroyed);
        destroyed || directory.is_ended(cache)
    }

    /// The nodes that say how a cache is set up.
    pub(crate) fn makers(&self, cache: CacheId) -> BTreeSet<NodeId> {
        lock(&self.replica).directory().makers(cache)
    }

    /// The living caches that a node made.
    pub(crate) fn made_by(&self, node: NodeId) -> Vec<(CacheId, CacheName)> {
        let replica = lock(&self.replica);
        let directory = replica.directory();
        let caches = directory.caches().into_iter();
        let made = caches.filter(|view| directory.makers(view.id).contains(&node));
        made.map(|view| (view.id, view.name)).collect()
    }

    /// What a node may do.
    pub(crate) fn member(&self, node: NodeId) -> Option<Certificate> {
        lock(&self.replica).directory().member(node).cloned()
    }

    /// All members, this node among them; none that left.
    pub(crate) fn members(&self) -> Vec<Certificate> {
        let replica = lock(&self.replica);
        let directory = replica.directory();
        let members = directory.members();
        members
            .filter(|member| is_in(directory, member.node))
            .cloned()
            .collect()
    }

    /// Who was a member and left, and when, as they said.
    pub(crate) fn members_left(&self) -> Vec<(Certificate, UnixTime)> {
        let replica = lock(&self.replica);
        let directory = replica.directory();
        let members = directory.members();
        let left = members.filter_map(|member| {
            let at = directory.left_at(member.node)?;
            (!directory.is_revoked(member.node)).then(|| (member.clone(), at))
        });
        left.collect()
    }

    /// When a node said that it leaves, if it has shown no certificate since.
    pub(crate) fn left_at(&self, node: NodeId) -> Option<UnixTime> {
        lock(&self.replica).directory().left_at(node)
    }

    /// Whether a node was given a right to a cache, of this epoch or a later one.
    pub(crate) fn has_grant(&self, cache: CacheId, node: NodeId, right: Right, epoch: u32) -> bool {
        let replica = lock(&self.replica);
        let mut grants = replica.directory().grants(cache, node, right).into_iter();
        grants.any(|grant| grant.value().epoch >= epoch)
    }

    /// The newest grants of a right to a cache, one for each node that was given it.
    pub(crate) fn granted(&self, cache: CacheId, right: Right) -> Vec<Signed<Grant>> {
        let replica = lock(&self.replica);
        let granted = replica.directory().granted(cache, right).into_iter();
        granted.cloned().collect()
    }

    /// Grants by which somebody claims to make a node a reader of private caches.
    pub(crate) fn read_grants(&self, node: NodeId) -> Vec<Signed<Grant>> {
        let replica = lock(&self.replica);
        replica.directory().read_grants(node).cloned().collect()
    }

    /// The key of a cache that a node was given last, sealed to it.
    pub(crate) fn key_for(&self, cache: CacheId, node: NodeId) -> Option<Vec<u8>> {
        let replica = lock(&self.replica);
        let grants = replica.directory().grants(cache, node, Right::Sign);
        let grant = grants.into_iter().next()?;
        Some(grant.value().sealed.clone())
    }

    /// How many paths a cache of the cluster has. Looks at all of them, a page at a time so that
    /// nobody waits long for the directory.
    pub(crate) fn count_paths(&self, cache: CacheId) -> u64 {
        let mut count = 0;
        let mut after = None;
        loop {
            let page = self.with_directory(|directory| directory.paths(cache, after, PAGE));
            count += page.len() as u64;
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(*last),
                _ => return count,
            }
        }
    }

    /// How far apart this node and a connected peer are; `None` until they have compared.
    pub(crate) fn lag(&self, peer: NodeId) -> Option<Lag> {
        lock(&self.replica).lag(peer)
    }

    /// Whether it is known what this node's log says.
    pub(crate) fn is_writable(&self) -> bool {
        !lock(&self.replica).is_starting()
    }

    /// Whether this node has all that one of the peers connected now had when they compared.
    pub(crate) fn has_all_of_a_peer(&self) -> bool {
        lock(&self.replica).has_all_of_a_peer()
    }

    /// Whether a node wrote two logs.
    pub(crate) fn is_quarantined(&self, node: NodeId) -> bool {
        lock(&self.replica).directory().is_quarantined(node)
    }

    /// Whether a node said more than is kept of it.
    pub(crate) fn is_too_long(&self, node: NodeId) -> bool {
        lock(&self.replica).is_too_long(node)
    }

    /// How many nodes said more than is kept of them.
    pub(crate) fn too_long(&self) -> u64 {
        lock(&self.replica).too_long() as u64
    }

    /// Opens what is sealed with these keys, and says what may be different now.
    ///
    /// **Errors**: the logs cannot be read; the mesh must be started anew then.
    pub(crate) fn set_keys(&self, keyring: Arc<Keyring>) -> Result<Vec<Change>, LogError> {
        lock(&self.replica).set_keys(keyring)
    }

    /// Whether a node was taken out of the cluster.
    pub(crate) fn is_revoked(&self, node: NodeId) -> bool {
        lock(&self.replica).directory().is_revoked(node)
    }

    /// Whether a node was taken out of the cluster, or took itself out by writing two logs.
    pub(crate) fn is_out(&self, node: NodeId) -> bool {
        let replica = lock(&self.replica);
        let directory = replica.directory();
        directory.is_revoked(node) || directory.is_quarantined(node)
    }

    /// Whether a member may read a cache of the cluster.
    pub(crate) fn may_read(&self, node: NodeId, cache: CacheId) -> bool {
        self.with_scopes(node, cache, may_know)
    }

    /// Whether a member may write a cache of the cluster.
    pub(crate) fn may_write(&self, node: NodeId, cache: CacheId) -> bool {
        self.with_scopes(node, cache, Scopes::may_write)
    }

    /// How many members may read a cache of the cluster.
    pub(crate) fn readers(&self, cache: CacheId) -> u64 {
        let replica = lock(&self.replica);
        let directory = replica.directory();
        let Some(config) = directory.cache(cache) else {
            return 0;
        };
        let members = directory.members();
        let readers = members.filter(|member| {
            is_in(directory, member.node) && may_know(&member.scopes, &config.genesis.name)
        });
        readers.count() as u64
    }

    fn with_scopes(
        &self,
        node: NodeId,
        cache: CacheId,
        may: impl FnOnce(&Scopes, &CacheName) -> bool,
    ) -> bool {
        let replica = lock(&self.replica);
        let directory = replica.directory();
        let (Some(member), Some(config)) = (directory.member(node), directory.cache(cache)) else {
            return false;
        };
        !directory.is_revoked(node) && may(&member.scopes, &config.genesis.name)
    }

    /// What was found damaged, and mended.
    pub(crate) fn repairs(&self) -> attic_p2p::replica::Repairs {
        lock(&self.replica).repairs()
    }

    /// Sizes of the state, segments and bytes of the logs.
    pub(crate) fn sizes(&self) -> (attic_p2p::directory::Stats, u64, u64) {
        let replica = lock(&self.replica);
        let log = replica.log();
        (
            replica.directory().stats(),
            log.count(),
            log.total_len_bytes(),
        )
    }
}

/// Whether a member is still one: neither taken out nor gone by itself.
fn is_in(directory: &Directory, node: NodeId) -> bool {
    !directory.is_revoked(node) && directory.left_at(node).is_none()
}

fn logged<T>(outcome: Result<Option<T>, LogError>) -> Option<T> {
    outcome.unwrap_or_else(|error| {
        tracing::error!(cause = chain(&error), "a log cannot be read");
        None
    })
}

/// Hash parts read at a time.
const PAGE: usize = 1 << 12;

//! What the cluster has, folded from everybody's logs.
//!
//! Every node writes a log of signed segments and hands on everybody else's. The directory is what
//! follows from them: which caches there are, which paths they have, who holds which NAR. It is a
//! function of the logs alone – not of the order in which they came, not of time, not of which node
//! folds them ([`Directory::digest`] compares two).
//!
//! - A record is named for ever by its [`Dot`]. A path is removed by naming the dots of its
//!   records, so what somebody pushed again meanwhile survives, and no replay brings back what was
//!   removed.
//! - Each log is taken in order, without gaps. Where it names records of another log it must wait
//!   until these were said ([`Refused::Waiting`]); checkpoints that name each other come into force
//!   together.
//! - Trust is asked when a question is asked: the fold keeps what was said, and a query looks at
//!   the certificates and keys that are valid then. A certificate counts in its node's own log only.
//! - A node that wrote two logs is quarantined: no record of either counts. Of a revoked node the
//!   revocation says how much of its log counts.
//! - Records of private caches are folded by who has the keys ([`crate::private`]). What is folded
//!   from sealed records is kept apart: the digests, and who holds what in the open, are the same
//!   with keys and without.
//!
//! **Memory**: what grows with the number of paths is kept as an index only, 70 to 125 bytes measured
//! for a path of ten holders; the records themselves are read back from the [`Log`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use attic_store::StorePathHash;

pub use crate::directory::check::Refused;
pub use crate::directory::digest::{SHARDS, Terms};
pub use crate::directory::fold::Folded;
pub use crate::directory::live::{Live, LiveRecord};
pub use crate::directory::query::{CacheView, PinView, told_apart};

use crate::directory::author::{Author, Spot, Tip};
use crate::directory::holders::Holders;
use crate::directory::statements::{Sticky, Versions};
use crate::directory::table::Table;
use crate::directory::trust::Verified;
use crate::ids::{CacheId, ClusterId, Dot, NodeId};
use crate::log::{Log, LogError};
use crate::membership::certificate::Certificate;
use crate::membership::genesis::Genesis;
use crate::membership::revocation::{Revocation, Subject};
use crate::record::{CacheConfig, Grant, NarTag, Pin, Right, SealedRecord};
use crate::segment::{ForkProof, SegmentId};
use crate::signed::Signed;

mod author;
mod check;
mod digest;
mod fold;
mod holders;
mod live;
mod query;
mod statements;
mod table;
mod trust;

/// The state that follows from all logs.
pub struct Directory {
    genesis: Genesis,
    cluster: ClusterId,
    unseal: Arc<dyn Unseal>,
    nodes: Numbers<NodeId>,
    cache_numbers: Numbers<CacheId>,
    authors: BTreeMap<u16, Author>,
    paths: Table<PathRow>,
    by_nar: Table<NarRow>,
    holders: Holders,
    /// Of NARs of private caches, as sealed records say.
    sealed_holders: BTreeMap<CacheId, Holders>,
    removals: Table<Removal>,
    durable: Table<Durable>,
    members: Versions<NodeId, Signed<Certificate>>,
    caches: Versions<CacheId, Signed<CacheConfig>>,
    grants: Versions<(CacheId, NodeId, Right), Signed<Grant>>,
    pins: BTreeMap<(u16, Spot), Pin>,
    forks: Sticky<NodeId, ForkProof>,
    revocations: Sticky<(Subject, [u8; 32]), Signed<Revocation>>,
    /// Whether a log may have to be taken out since that was last looked at.
    has_new_cut: bool,
    /// Nodes of which a checkpoint came into force since that was last asked.
    enacted: BTreeSet<NodeId>,
    ignored: u64,
    /// Nodes whose logs go on beyond what could be folded of them: a segment in between is damaged,
    /// or another log comes first.
    unfolded: BTreeSet<NodeId>,
    verified: Mutex<Verified>,
}

/// Opens records of private caches.
pub trait Unseal: Send + Sync {
    /// The record in `sealed`, which `author` said, in its wire form; `None` without the key.
    fn unseal(&self, author: NodeId, sealed: &SealedRecord) -> Option<Vec<u8>>;
}

/// Opens nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoKeys;

impl Unseal for NoKeys {
    fn unseal(&self, _author: NodeId, _sealed: &SealedRecord) -> Option<Vec<u8>> {
        None
    }
}

/// Something that may be different now. What it has become, a query says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A path of a cache appeared, changed or was removed.
    Path {
        /// In which cache.
        cache: CacheId,
        /// Its hash part.
        hash: StorePathHash,
    },
    /// The configuration of a cache.
    Cache(CacheId),
    /// A grant to this node.
    Grant(NodeId),
    /// What this node may do; or that it was revoked or quarantined.
    Member(NodeId),
    /// Who holds this NAR.
    Holders(NarTag),
    /// Pins of a cache.
    Pins(CacheId),
    /// That this node said which paths the bucket has.
    Durable(NodeId),
    /// More than could be listed: ask anew for all that matters.
    Everything,
}

/// How far a log has been folded, and with which segment it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogTip {
    /// Whose log.
    pub node: NodeId,
    /// Number of its last segment.
    pub seq: u64,
    /// Its last segment.
    pub id: SegmentId,
}

/// Sizes, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Logs that count.
    pub logs: usize,
    /// Path records that are not superseded; removed ones included until their author compacts.
    pub paths: usize,
    /// NARs somebody holds.
    pub held_nars: usize,
    /// Removals that are kept.
    pub removals: usize,
    /// Words of keepers that a record is durable.
    pub durable: usize,
    /// Caches that were ever named.
    pub caches: usize,
    /// Nodes in quarantine.
    pub quarantined: usize,
    /// Records that were kept in the log but not folded: of an unknown kind, damaged, beyond a
    /// bound, or sealed for others.
    pub ignored: u64,
}

impl Directory {
    /// An empty one.
    pub fn new(genesis: Genesis, unseal: Arc<dyn Unseal>) -> Directory {
        Directory {
            cluster: genesis.cluster_id(),
            genesis,
            unseal,
            nodes: Numbers::default(),
            cache_numbers: Numbers::default(),
            authors: BTreeMap::new(),
            paths: Table::default(),
            by_nar: Table::default(),
            holders: Holders::default(),
            sealed_holders: BTreeMap::new(),
            removals: Table::default(),
            durable: Table::default(),
            members: Versions::default(),
            caches: Versions::default(),
            grants: Versions::default(),
            pins: BTreeMap::new(),
            forks: Sticky::default(),
            revocations: Sticky::default(),
            has_new_cut: false,
            enacted: BTreeSet::new(),
            ignored: 0,
            unfolded: BTreeSet::new(),
            verified: Mutex::default(),
        }
    }

    /// Folds everything that `log` has.
    ///
    /// Signatures are not verified again: what the log has was verified when it came. A log of which
    /// a segment cannot be read is folded up to there; what follows stays where it is, and is folded
    /// when that segment has come from somebody else.
    ///
    /// **Errors**: the log cannot be read or cut.
    pub fn load<L: Log>(
        genesis: Genesis,
        unseal: Arc<dyn Unseal>,
        log: &mut L,
    ) -> Result<Directory, LogError> {
        let mut directory = Directory::new(genesis, unseal);
        directory.reload(log)?;
        Ok(directory)
    }

    /// Folds everything anew, with the keys it has. What no log carries stays known. False, and all
    /// is as it was, if the logs cannot be folded as far as they were: there is no way back.
    ///
    /// **Errors**: the log cannot be read; all is as it was.
    pub(crate) fn refold<L: Log>(&mut self, log: &mut L) -> Result<bool, LogError> {
        let unseal = Arc::clone(&self.unseal);
        let mut anew = Directory::load(self.genesis.clone(), unseal, log)?;
        anew.take_uncarried(self, log)?;
        let is_whole = anew.tips() == self.tips();
        if is_whole {
            *self = anew;
        }
        Ok(is_whole)
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// How far the log of `node` is folded; 0 if not at all.
    pub fn seq(&self, node: NodeId) -> u64 {
        self.author(node).map_or(0, |author| author.head().seq)
    }

    /// The segment with which the log of `node` ends.
    pub fn tip(&self, node: NodeId) -> LogTip {
        let tip = self
            .author(node)
            .map_or(Tip::before_first(&self.cluster), Author::head);
        LogTip {
            node,
            seq: tip.seq,
            id: tip.id,
        }
    }

    /// The number of the next segment of `node` to fetch.
    ///
    /// It is beyond the end of the log while a checkpoint arrives whose predecessors are not here,
    /// and while one waits for the logs it names.
    pub fn next_wanted(&self, node: NodeId) -> u64 {
        self.author(node)
            .map_or(1, |author| author.received().seq + 1)
    }

    /// The first segment of `node` that another node needs to fold what counts of its log.
    pub fn first_needed(&self, node: NodeId) -> u64 {
        let base = self.author(node).and_then(Author::base);
        base.map_or(1, |run| run.start)
    }

    /// How far every log that counts is folded, by node, ascending. Empty and quarantined ones are
    /// not among them.
    pub fn tips(&self) -> Vec<LogTip> {
        let known = self.authors.keys().map(|number| self.nodes.name(*number));
        let mut tips: Vec<LogTip> = known
            .filter(|node| !self.forks.contains(node))
            .map(|node| self.tip(node))
            .filter(|tip| tip.seq > 0)
            .collect();
        tips.sort_by_key(|tip| tip.node);
        tips
    }

    /// The latest hybrid logical clock in the log of `node`, in milliseconds.
    pub fn hlc(&self, node: NodeId) -> u64 {
        self.author(node).map_or(0, |author| author.hlc)
    }

    /// Sizes, for metrics.
    pub fn stats(&self) -> Stats {
        Stats {
            logs: self.authors.len(),
            paths: self.paths.len(),
            held_nars: self.holders.len()
                + self
                    .sealed_holders
                    .values()
                    .map(Holders::len)
                    .sum::<usize>(),
            removals: self.removals.len(),
            durable: self.durable.len(),
            caches: self.cache_numbers.names.len(),
            quarantined: self.forks.len(),
            ignored: self.ignored,
        }
    }

    fn author(&self, node: NodeId) -> Option<&Author> {
        self.authors.get(&self.nodes.number(&node)?)
    }

    /// The last segment of `node` that counts, if a revocation says so.
    fn cut(&self, node: NodeId) -> Option<u64> {
        let revocations = self.revocations_of(Subject::Node(node));
        revocations
            .filter_map(|revocation| revocation.upto_seq)
            .min()
    }

    fn dot(&self, author: u16, spot: Spot) -> Dot {
        Dot {
            node: self.nodes.name(author),
            seq: u64::from(spot.seq),
            index: spot.index,
        }
    }
}

/// A path of a cache, as its author's newest record has it.
///
/// **Order**: by cache, then as hash parts order, then by author: a look-up is a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PathRow {
    cache: u16,
    /// Last byte first, see [`StorePathHash`].
    hash: [u8; 20],
    author: u16,
    spot: Spot,
    tag: NarTag,
}

impl PathRow {
    fn first_of(cache: u16, hash: [u8; 20]) -> PathRow {
        let spot = Spot { seq: 0, index: 0 };
        PathRow {
            cache,
            hash,
            author: 0,
            spot,
            tag: NarTag::from_bytes([0; 8]),
        }
    }

    fn nar_row(&self) -> NarRow {
        let [a, b, c, d, ..] = self.hash;
        NarRow {
            tag: self.tag,
            cache: self.cache,
            hash_prefix: [a, b, c, d],
        }
    }

    fn store_path_hash(&self) -> StorePathHash {
        StorePathHash::from_bytes(reversed(&self.hash))
    }
}

fn reversed(hash: &[u8; 20]) -> [u8; 20] {
    let mut reversed = *hash;
    reversed.reverse();
    reversed
}

/// That a cache has a path with this NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct NarRow {
    tag: NarTag,
    cache: u16,
    /// Of [`PathRow::hash`].
    hash_prefix: [u8; 4],
}

/// That `by` removed the record at `spot` of `author`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Removal {
    author: u16,
    spot: Spot,
    by: u16,
}

/// That `by` says that what the record at `spot` of `author` needs is in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Durable {
    author: u16,
    spot: Spot,
    by: u16,
}

/// Small numbers for long names, in the order in which they were met.
#[derive(Clone, Debug)]
struct Numbers<N> {
    names: Vec<N>,
    numbers: BTreeMap<N, u16>,
}

impl<N> Default for Numbers<N> {
    fn default() -> Numbers<N> {
        Numbers {
            names: Vec::new(),
            numbers: BTreeMap::new(),
        }
    }
}

impl<N: Copy + Ord> Numbers<N> {
    fn number(&self, name: &N) -> Option<u16> {
        self.numbers.get(name).copied()
    }

    fn name(&self, number: u16) -> N {
        self.names[usize::from(number)]
    }

    fn is_full(&self) -> bool {
        self.names.len() > usize::from(u16::MAX)
    }

    /// The number of `name`, given now if it has none; `None` when all are used up.
    fn give(&mut self, name: N) -> Option<u16> {
        if let Some(number) = self.number(&name) {
            return Some(number);
        }
        let number = u16::try_from(self.names.len()).ok()?;
        self.names.push(name);
        self.numbers.insert(name, number);
        Some(number)
    }
}

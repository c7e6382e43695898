//! What the directory answers.

use std::collections::{BTreeMap, BTreeSet};

use attic_store::{CacheName, NarHash, StorePathHash};

use crate::collector::Life;
use crate::directory::author::{Author, Spot};
use crate::directory::fold::Opened;
use crate::directory::{Directory, Durable, NarRow, PathRow, Removal};
use crate::ids::{CacheId, Dot, NodeId};
use crate::log::{Log, LogError};
use crate::record::{CacheConfig, Grant, NarTag, PathRecord, Pin, Record, Right};
use crate::segment::Segment;
use crate::signed::Signed;

/// A cache and the name it goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheView<'a> {
    /// Which cache.
    pub id: CacheId,
    /// Unique among living caches: of several that were founded under one name the one with the
    /// lowest id has it, the others are [`told_apart`].
    pub name: CacheName,
    /// How it is set up.
    pub config: &'a CacheConfig,
}

/// A pin that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinView<'a> {
    /// The record, to withdraw it by.
    pub dot: Dot,
    /// What is pinned.
    pub pin: &'a Pin,
}

impl Directory {
    /// All living caches, by name: neither destroyed by their owner nor ended by the cluster key.
    pub fn caches(&self) -> Vec<CacheView<'_>> {
        let mut views = BTreeMap::new();
        // Ids ascend, so the first of a name has it.
        for id in self.caches.subjects() {
            let Some((_, config)) = self.living(*id) else {
                continue;
            };
            let founded = &config.genesis.name;
            let id = *id;
            let mut names = std::iter::once(founded.clone()).chain(told_apart(founded, id));
            if let Some(name) = names.find(|name| !views.contains_key(name)) {
                views.insert(name.clone(), CacheView { id, name, config });
            }
        }
        views.into_values().collect()
    }

    /// The living cache that goes by `name`.
    pub fn cache_by_name(&self, name: &CacheName) -> Option<CacheView<'_>> {
        self.caches().into_iter().find(|view| view.name == *name)
    }

    /// The path with this hash part, if the cache has it: said by somebody who may write the
    /// cache, signed with a key of the cache, and not removed. Of several the one with the lowest
    /// dot, so all nodes answer alike.
    ///
    /// **Errors**: the log cannot be read.
    pub fn path<L: Log>(
        &self,
        log: &L,
        cache: CacheId,
        hash: StorePathHash,
    ) -> Result<Option<(Dot, PathRecord)>, LogError> {
        let Some((number, config)) = self.living(cache) else {
            return Ok(None);
        };
        let rows: Vec<PathRow> = self.rows_of(number, hash).copied().collect();
        self.first_trusted(log, config, rows, |_| true)
    }

    /// A path of the cache with this NAR, as [`Directory::path`] would answer it.
    ///
    /// **Errors**: the log cannot be read.
    pub fn nar<L: Log>(
        &self,
        log: &L,
        cache: CacheId,
        nar: &NarHash,
    ) -> Result<Option<(Dot, PathRecord)>, LogError> {
        let Some((number, config)) = self.living(cache) else {
            return Ok(None);
        };
        let tag = NarTag::of(nar);
        let first = NarRow {
            tag,
            cache: number,
            hash_prefix: [0; 4],
        };
        let links = self.by_nar.from(&first);
        let links = links.take_while(|link| link.tag == tag && link.cache == number);
        let rows = links.flat_map(|link| self.rows_linked_by(*link)).copied();
        self.first_trusted(log, config, rows.collect(), |path| {
            path.info.nar_hash == *nar
        })
    }

    /// Up to `limit` hash parts of paths somebody said the cache has and nobody removed, in order,
    /// from the one after `after`. Whether they are signed is not looked at: ask
    /// [`Directory::path`].
    pub fn paths(
        &self,
        cache: CacheId,
        after: Option<StorePathHash>,
        limit: usize,
    ) -> Vec<StorePathHash> {
        let Some((number, config)) = self.living(cache) else {
            return Vec::new();
        };
        let said = self.rows_after(number, after);
        let said = said.filter(|row| self.is_said(row, &config.genesis.name));
        let mut hashes = Vec::new();
        for row in said {
            let hash = row.store_path_hash();
            if hashes.last() == Some(&hash) {
                continue;
            }
            if hashes.len() >= limit {
                break;
            }
            hashes.push(hash);
        }
        hashes
    }

    /// Whether somebody who may said that the cache does not have this path any more, and nobody says
    /// that it has.
    pub fn is_removed_path(&self, cache: CacheId, hash: StorePathHash) -> bool {
        let Some((number, config)) = self.living(cache) else {
            return false;
        };
        let name = &config.genesis.name;
        let mut removed = false;
        for row in self.rows_of(number, hash) {
            if self.is_said(row, name) {
                return false;
            }
            removed |= self.is_removed(row.author, row.spot, name);
        }
        removed
    }

    /// Private caches of which something is said that could not be opened: this node has no key of
    /// them, or not yet.
    pub fn unopened_caches(&self) -> BTreeSet<CacheId> {
        let authors = self.authors.values();
        let sealed = authors.flat_map(|author| &author.sealed_caches).copied();
        sealed.filter(|id| self.cache(*id).is_none()).collect()
    }

    /// Rows of a cache in order, from the path after `after`.
    fn rows_after(
        &self,
        cache: u16,
        after: Option<StorePathHash>,
    ) -> impl Iterator<Item = &PathRow> {
        let start = after.map_or([0; 20], |hash| super::reversed(hash.as_bytes()));
        let from = self.paths.from(&PathRow::first_of(cache, start));
        let of_cache = from.take_while(move |row| row.cache == cache);
        of_cache.filter(move |row| Some(row.store_path_hash()) != after)
    }

    /// Who says to hold this NAR completely, in no order that means something. Members only, and
    /// none that was revoked or has left.
    pub fn holders(&self, tag: NarTag) -> Vec<NodeId> {
        let all = std::iter::once(&self.holders).chain(self.sealed_holders.values());
        let named: BTreeSet<u16> = all.flat_map(|holders| holders.of(tag)).copied().collect();
        let nodes = named.into_iter().map(|number| self.nodes.name(number));
        nodes
            .filter(|node| !self.is_revoked(*node) && self.left_at(*node).is_none())
            .collect()
    }

    /// The NARs that `node` says in the open to hold, ascending. Looks through all of them.
    pub fn held_by(&self, node: NodeId) -> Vec<NarTag> {
        let number = self.nodes.number(&node);
        number.map_or(Vec::new(), |number| self.holders.held_by(number))
    }

    /// The NARs that `node` says to hold to the readers of a private cache, ascending. Looks through
    /// all of them.
    pub fn held_by_under(&self, cache: CacheId, node: NodeId) -> Vec<NarTag> {
        let of_cache = self.sealed_holders.get(&cache);
        let number = self.nodes.number(&node);
        let held = of_cache.zip(number);
        held.map_or(Vec::new(), |(holders, number)| holders.held_by(number))
    }

    /// The living dots of one path, trusted or not: what to name to remove it.
    pub fn dots(&self, cache: CacheId, hash: StorePathHash) -> Vec<Dot> {
        let Some((number, config)) = self.living(cache) else {
            return Vec::new();
        };
        let rows = self.rows_of(number, hash);
        let living =
            rows.filter(|row| !self.is_removed(row.author, row.spot, &config.genesis.name));
        living.map(|row| self.dot(row.author, row.spot)).collect()
    }

    /// Whether a keeper says that the bucket has what the record `dot` needs.
    pub fn is_durable(&self, dot: Dot) -> bool {
        let place = self.nodes.number(&dot.node).zip(Spot::of(&dot));
        place.is_some_and(|(author, spot)| self.is_spot_durable(author, spot))
    }

    /// Up to `limit` hash parts of paths of a cache of which a living record is not durable, in order,
    /// from the one after `after`, each with these records. Whether they are signed is not looked at.
    pub fn not_durable(
        &self,
        cache: CacheId,
        after: Option<StorePathHash>,
        limit: usize,
    ) -> Vec<(StorePathHash, Vec<Dot>)> {
        let Some((number, config)) = self.living(cache) else {
            return Vec::new();
        };
        let name = &config.genesis.name;
        let wanted = self
            .rows_after(number, after)
            .filter(|row| !self.is_spot_durable(row.author, row.spot) && self.is_said(row, name));
        let mut found: Vec<(StorePathHash, Vec<Dot>)> = Vec::new();
        for row in wanted {
            let (hash, dot) = (row.store_path_hash(), self.dot(row.author, row.spot));
            let is_full = found.len() >= limit;
            match found.last_mut().filter(|(last, _)| *last == hash) {
                Some((_, dots)) => dots.push(dot),
                None if is_full => break,
                None => found.push((hash, vec![dot])),
            }
        }
        found
    }

    fn is_spot_durable(&self, author: u16, spot: Spot) -> bool {
        let first = Durable {
            author,
            spot,
            by: 0,
        };
        let of_spot = self.durable.from(&first);
        let mut of_spot = of_spot.take_while(|other| (other.author, other.spot) == (author, spot));
        of_spot.any(|durable| self.is_keeper(self.nodes.name(durable.by)))
    }

    /// Number of the segment in which `node` said last that a cache has a path, whether that was
    /// removed since or not; `None` if its log does not say so.
    pub fn said_at(&self, node: NodeId, cache: CacheId, hash: StorePathHash) -> Option<u64> {
        let (author, cache) = (
            self.nodes.number(&node)?,
            self.cache_numbers.number(&cache)?,
        );
        let mut rows = self.rows_of(cache, hash);
        let row = rows.find(|row| row.author == author)?;
        Some(u64::from(row.spot.seq))
    }

    /// Pins of a cache that count, by dot.
    pub fn pins(&self, cache: CacheId) -> Vec<PinView<'_>> {
        let Some((_, config)) = self.known(cache) else {
            return Vec::new();
        };
        let name = &config.genesis.name;
        let counts = |(author, spot): &(u16, Spot)| {
            self.may_write(self.nodes.name(*author), name) && !self.is_removed(*author, *spot, name)
        };
        let pins = self.pins.iter().filter(|(_, pin)| pin.cache == cache);
        let mut views: Vec<PinView<'_>> = pins
            .filter(|(place, _)| counts(place))
            .map(|((author, spot), pin)| PinView {
                dot: self.dot(*author, *spot),
                pin,
            })
            .collect();
        views.sort_by_key(|view| view.dot);
        views
    }

    /// Grants of a right to `node` that the cache's owner signed, highest epoch first.
    pub fn grants(&self, cache: CacheId, node: NodeId, right: Right) -> Vec<&Signed<Grant>> {
        let Some(config) = self.cache(cache) else {
            return Vec::new();
        };
        let versions = self.grants.of(&(cache, node, right));
        let signed = versions.map(|(_, carried)| &carried.value);
        signed
            .filter(|grant| grant.verify(&config.genesis.owner).is_ok())
            .collect()
    }

    /// The newest grant of a right that the cache's owner signed, for every node that has one.
    pub fn granted(&self, cache: CacheId, right: Right) -> Vec<&Signed<Grant>> {
        let subjects = self.grants.subjects();
        let nodes = subjects.filter(|(of, _, what)| (*of, *what) == (cache, right));
        let newest = |(_, node, _): &(CacheId, NodeId, Right)| {
            let grants = self.grants(cache, *node, right);
            grants.into_iter().next()
        };
        nodes.filter_map(newest).collect()
    }

    /// Grants by which somebody claims to make `node` a reader, highest epoch of each cache first.
    /// Who signed them is not looked at: see [`open_read_grant`](crate::private::open_read_grant).
    pub fn read_grants(&self, node: NodeId) -> impl Iterator<Item = &Signed<Grant>> {
        let subjects = self.grants.subjects();
        let of_node = subjects.filter(move |(_, to, right)| (*to, *right) == (node, Right::Read));
        of_node.flat_map(|subject| self.grants.of(subject).map(|(_, carried)| &carried.value))
    }

    /// Whether a record of a path lives, as far as that is certain.
    ///
    /// **Errors**: the log cannot be read.
    pub fn life<L: Log>(&self, log: &L, dot: Dot) -> Result<Life, LogError> {
        let (Some(author), Some(spot)) = (self.nodes.number(&dot.node), Spot::of(&dot)) else {
            return Ok(Life::Unknown);
        };
        let known = self.authors.get(&author);
        let Some(known) = known.filter(|_| dot.seq <= self.seq(dot.node)) else {
            return Ok(Life::Unknown);
        };
        if self.is_quarantined(dot.node) {
            return Ok(Life::Unknown);
        }
        let Some(seq) = known.segment_of(spot) else {
            return Ok(Life::Dead);
        };
        // What the disk damaged is no less alive for that.
        let Some(Ok(segment)) = log.read(dot.node, seq)?.map(Segment::decode) else {
            return Ok(Life::Unknown);
        };
        let mut entries = segment.entries();
        let Some(entry) = entries.find(|entry| (entry.seq, entry.index) == (dot.seq, dot.index))
        else {
            // A checkpoint is in the place of what said it, and does not say it any more.
            return Ok(Life::Dead);
        };
        // Nor is what cannot be read here.
        let Some(Record::Path(path)) = self.open(author, &entry.record).record() else {
            return Ok(Life::Unknown);
        };
        let Some((number, config)) = self.known(path.cache) else {
            return Ok(Life::Unknown);
        };
        if self.living(path.cache).is_none() {
            return Ok(Life::Dead);
        }
        if self.member(dot.node).is_none() && !self.is_revoked(dot.node) {
            return Ok(Life::Unknown);
        }
        let hash = *path.info.path.hash();
        let mut rows = self.rows_of(number, hash);
        let row = rows.find(|row| (row.author, row.spot) == (author, spot));
        let is_said = row.is_some_and(|row| self.is_said(row, &config.genesis.name));
        Ok(match (is_said, self.is_spot_durable(author, spot)) {
            (true, true) => Life::Durable,
            (true, false) => Life::Live,
            (false, _) => Life::Dead,
        })
    }

    /// Looks at every record of a path that lives, by [`life`](Directory::life), and whether it is durable.
    /// Quicker than to ask for each.
    pub fn each_living(&self, mut look: impl FnMut(Dot, bool)) {
        for view in self.caches() {
            let Some((number, config)) = self.living(view.id) else {
                continue;
            };
            let rows = self.rows_after(number, None);
            for row in rows.filter(|row| self.is_said(row, &config.genesis.name)) {
                let is_durable = self.is_spot_durable(row.author, row.spot);
                look(self.dot(row.author, row.spot), is_durable);
            }
        }
    }

    /// What the record `dot` says, if its author's log still says it; removed or not.
    ///
    /// **Errors**: the log cannot be read.
    pub fn record<L: Log>(&self, log: &L, dot: Dot) -> Result<Option<Record>, LogError> {
        match (self.nodes.number(&dot.node), Spot::of(&dot)) {
            (Some(author), Some(spot)) => self.read_spot(author, spot, log),
            (_, _) => Ok(None),
        }
    }

    fn living(&self, cache: CacheId) -> Option<(u16, &CacheConfig)> {
        let known = self.known(cache).filter(|(_, config)| !config.destroyed);
        known.filter(|_| !self.is_ended(cache))
    }

    fn known(&self, cache: CacheId) -> Option<(u16, &CacheConfig)> {
        // A cache without paths has no number; then any number without rows will do.
        let number = self.cache_numbers.number(&cache).unwrap_or(u16::MAX);
        Some((number, self.cache(cache)?))
    }

    fn first_trusted<L: Log>(
        &self,
        log: &L,
        config: &CacheConfig,
        mut rows: Vec<PathRow>,
        wanted: impl Fn(&PathRecord) -> bool,
    ) -> Result<Option<(Dot, PathRecord)>, LogError> {
        rows.retain(|row| self.is_said(row, &config.genesis.name));
        rows.sort_by_key(|row| self.dot(row.author, row.spot));
        for row in rows {
            let record = self.read_spot(row.author, row.spot, log)?;
            let Some(Record::Path(path)) = record else {
                continue;
            };
            if wanted(&path) && self.is_signed(&path, config) {
                return Ok(Some((self.dot(row.author, row.spot), path)));
            }
        }
        Ok(None)
    }

    /// Whether somebody says it who may, and nobody removed it who may.
    fn is_said(&self, row: &PathRow, name: &CacheName) -> bool {
        self.may_write(self.nodes.name(row.author), name)
            && !self.is_removed(row.author, row.spot, name)
    }

    /// Whether its author removed it, or somebody who may write the cache called `name`.
    pub(super) fn is_removed(&self, author: u16, spot: Spot, name: &CacheName) -> bool {
        let first = Removal {
            author,
            spot,
            by: 0,
        };
        let of_spot = self.removals.from(&first);
        let mut of_spot = of_spot.take_while(|other| (other.author, other.spot) == (author, spot));
        of_spot.any(|removal| {
            removal.by == author || self.may_write(self.nodes.name(removal.by), name)
        })
    }

    /// The record at `spot`, opened if it is sealed.
    pub(super) fn read_spot<L: Log>(
        &self,
        author: u16,
        spot: Spot,
        log: &L,
    ) -> Result<Option<Record>, LogError> {
        let opened = self.open_spot(author, spot, log)?;
        Ok(opened.and_then(Opened::record))
    }

    /// What is at `spot`; `None` if its author's log does not say it any more.
    pub(super) fn open_spot<L: Log>(
        &self,
        author: u16,
        spot: Spot,
        log: &L,
    ) -> Result<Option<Opened>, LogError> {
        let seq = self
            .authors
            .get(&author)
            .and_then(|known: &Author| known.segment_of(spot));
        let Some(seq) = seq else {
            return Ok(None);
        };
        let Some(bytes) = log.read(self.nodes.name(author), seq)? else {
            return Ok(None);
        };
        // A segment that the disk damaged is as good as none.
        let Ok(segment) = Segment::decode(bytes) else {
            return Ok(None);
        };
        let mut entries = segment.entries();
        let entry =
            entries.find(|entry| entry.seq == u64::from(spot.seq) && entry.index == spot.index);
        Ok(entry.map(|entry| self.open(author, &entry.record)))
    }
}

/// Names of a cache that was founded as `name`, where another cache has that: `<name>-<8 hex digits of
/// its id>`, with 16 and with all 32 digits where that is taken, too. The name is cut where the result
/// would be too long. The same everywhere.
pub fn told_apart(name: &CacheName, id: CacheId) -> impl Iterator<Item = CacheName> + use<> {
    let (name, digits) = (name.clone(), id.to_string());
    DIGITS.into_iter().filter_map(move |count| {
        let kept = CacheName::LEN_MAX - count - 1;
        let stem = &name.as_str()[..name.as_str().len().min(kept)];
        format!("{stem}-{}", &digits[..count]).parse().ok()
    })
}

/// How many digits of an id tell caches of one name apart.
const DIGITS: [usize; 3] = [8, 16, 32];

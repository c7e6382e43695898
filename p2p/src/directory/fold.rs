//! How segments become state.
//!
//! What one log contributes is a function of that log; what the directory shows is a function of
//! the contributions. So a log can be taken out and folded anew at any time, which is what
//! checkpoints, quarantine and revocation come to.

use std::collections::BTreeSet;
use std::sync::Arc;

use attic_store::StorePathHash;

use crate::directory::author::{Author, Spot, Step};
use crate::directory::holders::Holders;
use crate::directory::{Change, Directory, Durable, PathRow, Refused, Removal, Unseal, reversed};
use crate::ids::{CacheId, Dot, NodeId};
use crate::log::{Log, LogError};
use crate::membership::certificate::Certificate;
use crate::membership::revocation::{Revocation, Subject};
use crate::membership::time::UnixTime;
use crate::record::{CacheConfig, Grant, Left, NarTag, PathRecord, Pin, RawRecord, Record};
use crate::segment::{ForkProof, Segment, SegmentKind};
use crate::signed::Signed;

mod pending;
mod unfolded;

/// What folding a segment did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// What may be different now; not in any order that means something.
    pub changes: Vec<Change>,
    /// Checkpoints came into force: segments of these nodes below these numbers are not needed any
    /// more.
    pub needless_before: Vec<(NodeId, u64)>,
}

impl Directory {
    /// Puts `segment`, whose signature was verified, into `log` and folds it.
    ///
    /// **Errors**: why it was not; as [`Directory::check`]. After [`Refused::Log`] the directory
    /// may lag behind the log, and is to be loaded anew.
    pub fn take<L: Log>(&mut self, segment: &Segment, log: &mut L) -> Result<Folded, Refused> {
        self.check(segment, log)?;
        let node = segment.head().node;
        self.put(segment, log)?;
        let mut changes = Changes::default();
        let number = self.nodes.give(node).ok_or(Refused::Full)?;
        self.advance(number, segment, log, &mut changes)?;
        let needless_before = self.settle(log, &mut changes)?;
        Ok(Folded {
            changes: changes.list(),
            needless_before,
        })
    }

    /// Takes in a proof that was found here, not in a log. Somebody must say it in a log:
    /// see [`Directory::uncarried`].
    ///
    /// **Errors**: the log cannot be read.
    pub fn quarantine<L: Log>(
        &mut self,
        proof: ForkProof,
        log: &mut L,
    ) -> Result<Vec<Change>, LogError> {
        let mut changes = Changes::default();
        self.fold_fork(proof, None);
        self.settle(log, &mut changes)?;
        Ok(changes.list())
    }

    /// What is known and must not be forgotten, but that no log carries: proofs that were found
    /// here, and what only a log carried that does not count any more.
    pub fn uncarried(&self) -> Vec<Record> {
        let forks = self.forks.uncarried().cloned().map(Record::Fork);
        let revocations = self.revocations.uncarried().cloned().map(Record::Revoke);
        forks.chain(revocations).take(UNCARRIED_MAX).collect()
    }

    /// Whether there is anything that no log carries.
    pub(crate) fn has_uncarried(&self) -> bool {
        self.forks.uncarried().next().is_some() || self.revocations.uncarried().next().is_some()
    }

    /// Opens with other keys what could not be opened with those before.
    ///
    /// The logs it stands in are folded anew; those of which everything was opened are not looked at.
    ///
    /// **Errors**: the log cannot be read; the directory must not be used then.
    pub fn unseal_with<L: Log>(
        &mut self,
        unseal: Arc<dyn Unseal>,
        log: &mut L,
    ) -> Result<Vec<Change>, LogError> {
        self.unseal = unseal;
        let mut changes = Changes::default();
        let shut = self.authors.iter().filter(|(_, author)| author.has_shut);
        for number in shut.map(|(number, _)| *number).collect::<Vec<_>>() {
            let node = self.nodes.name(number);
            self.clear(number, &mut changes);
            self.authors.remove(&number);
            self.replay(node, log, &mut changes)?;
            let last = log.range(node).map_or(0, |(_, last)| last);
            if self.next_wanted(node) <= last {
                self.unfolded.insert(node);
            }
        }
        self.settle(log, &mut changes)?;
        Ok(changes.list())
    }

    /// Folds all of `log` into an empty directory.
    pub(super) fn reload<L: Log>(&mut self, log: &mut L) -> Result<(), LogError> {
        let mut changes = Changes::default();
        let mut waiting = log.nodes();
        // A log may have to wait for another's certificates or records; each round folds one more.
        while !waiting.is_empty() {
            let before: u64 = waiting.iter().map(|node| self.seq(*node)).sum();
            for node in &waiting {
                self.replay(*node, log, &mut changes)?;
            }
            self.enact_pending(log, &mut changes)?;
            let after: u64 = waiting.iter().map(|node| self.seq(*node)).sum();
            waiting.retain(|node| {
                let last = log.range(*node).map_or(0, |(_, last)| last);
                self.next_wanted(*node) <= last
            });
            if after == before {
                break;
            }
        }
        for node in waiting {
            // What does not count, however long it waits.
            if self.forks.contains(&node) || self.cut(node).is_some() {
                log.forget_after(node, self.next_wanted(node) - 1)?;
            } else {
                self.unfolded.insert(node);
            }
        }
        self.settle(log, &mut changes)?;
        Ok(())
    }

    /// Folds what `log` has of `node` beyond what is folded, as far as it fits.
    fn replay<L: Log>(
        &mut self,
        node: NodeId,
        log: &L,
        changes: &mut Changes,
    ) -> Result<(), LogError> {
        // Numbers of which nothing is kept are passed over: an author chooses how many there are.
        let mut next = Some(self.next_wanted(node));
        while let Some(seq) = next.and_then(|from| log.first_from(node, from)) {
            next = seq.checked_add(1);
            let Some(bytes) = log.read(node, seq)? else {
                continue;
            };
            let Ok(segment) = Segment::decode(bytes) else {
                return Ok(());
            };
            match self.check(&segment, log) {
                Ok(()) => {}
                Err(Refused::Log(error)) => return Err(error),
                Err(_) => return Ok(()),
            }
            let Some(number) = self.nodes.give(node) else {
                return Ok(());
            };
            self.advance(number, &segment, log, changes)?;
        }
        Ok(())
    }

    /// Removes parts of a checkpoint that is overtaken by `segment`, or was void.
    fn forget_abandoned<L: Log>(&self, segment: &Segment, log: &mut L) -> Result<(), LogError> {
        let (node, seq) = (segment.head().node, segment.head().seq);
        let last = log.range(node).map_or(0, |(_, last)| last);
        let author = self.author(node);
        let head = author.map_or(0, |author| author.head().seq);
        let restarts = matches!(segment.head().kind, SegmentKind::Checkpoint { part: 0, .. });
        let is_beyond = author.is_some_and(|author| author.received().seq > head);
        if last > head && (restarts || last >= seq || !is_beyond) {
            log.forget_after(node, head)?;
        }
        Ok(())
    }

    fn advance<L: Log>(
        &mut self,
        number: u16,
        segment: &Segment,
        log: &L,
        changes: &mut Changes,
    ) -> Result<(), LogError> {
        let cluster = self.cluster;
        let author = self.authors.entry(number);
        let author = author.or_insert_with(|| Author::new(&cluster));
        let step = author.advance(segment);
        match step {
            Step::Nothing => Ok(()),
            Step::Append => self.fold_segment(number, segment, log, changes),
            Step::Complete if self.can_enact_alone(number) => self.enact(&[number], log, changes),
            // It is looked at with the others.
            Step::Complete => Ok(()),
        }
    }

    /// Puts the checkpoint that is in force now in the place of all that its author said.
    fn fold_checkpoint<L: Log>(
        &mut self,
        number: u16,
        log: &L,
        changes: &mut Changes,
    ) -> Result<(), LogError> {
        self.clear(number, changes);
        let base = self.authors.get(&number).and_then(Author::base);
        let seqs = base.map(|run| run.seqs()).into_iter().flatten();
        let node = self.nodes.name(number);
        for seq in seqs {
            let bytes = log.read(node, seq)?;
            if let Some(Ok(segment)) = bytes.map(Segment::decode) {
                self.fold_segment(number, &segment, log, changes)?;
            }
        }
        Ok(())
    }

    fn fold_segment<L: Log>(
        &mut self,
        number: u16,
        segment: &Segment,
        log: &L,
        changes: &mut Changes,
    ) -> Result<(), LogError> {
        for entry in segment.entries() {
            let Ok(seq) = u32::try_from(entry.seq) else {
                continue;
            };
            let index = entry.index;
            let spot = Spot { seq, index };
            match self.open(number, &entry.record) {
                Opened::Open(record) => {
                    self.fold_record((number, None), spot, record, log, changes)?
                }
                Opened::Sealed(cache, inside) if self.notes_seal(number, cache, &inside) => {
                    match inside {
                        Inside::Record(record) => {
                            let by = (number, Some(cache));
                            self.fold_record(by, spot, record, log, changes)?;
                        }
                        Inside::Shut | Inside::Void => self.ignored += 1,
                    }
                }
                Opened::Sealed(..) | Opened::Unknown => self.ignored += 1,
            }
        }
        Ok(())
    }

    /// Notes that `author` says something of `cache` under a seal. False if it may not: of too many.
    fn notes_seal(&mut self, author: u16, cache: CacheId, inside: &Inside) -> bool {
        let Some(author) = self.authors.get_mut(&author) else {
            return false;
        };
        author.has_shut |= matches!(inside, Inside::Shut);
        let has_room = author.sealed_caches.len() < CACHES_PER_AUTHOR_MAX;
        if has_room {
            author.sealed_caches.insert(cache);
        }
        has_room || author.sealed_caches.contains(&cache)
    }

    /// What a record of `author` turns out to be.
    pub(super) fn open(&self, author: u16, raw: &RawRecord<'_>) -> Opened {
        match raw.read() {
            Record::Unknown { .. } => Opened::Unknown,
            Record::Sealed(sealed) => {
                let plain = self.unseal.unseal(self.nodes.name(author), &sealed);
                let inside = match plain.map(|plain| Record::decode(&plain)) {
                    None => Inside::Shut,
                    Some(Ok(record)) if fits_seal(&record, sealed.cache) => Inside::Record(record),
                    Some(_) => Inside::Void,
                };
                Opened::Sealed(sealed.cache, inside)
            }
            record => Opened::Open(record),
        }
    }

    /// Folds what was said `by` an author, under the seal of a cache or in the open.
    fn fold_record<L: Log>(
        &mut self,
        by: (u16, Seal),
        spot: Spot,
        record: Record,
        log: &L,
        changes: &mut Changes,
    ) -> Result<(), LogError> {
        let (author, seal) = by;
        match record {
            Record::Path(path) => self.fold_path(author, spot, &path, changes),
            Record::Hold(tags) => {
                let holders = self.holders_under(seal);
                let new = tags.into_iter().filter(|tag| holders.insert(*tag, author));
                new.for_each(|tag| changes.add(Change::Holders(tag)));
            }
            Record::Release(tags) => {
                let holders = self.holders_under(seal);
                let gone = tags.into_iter().filter(|tag| holders.remove(*tag, author));
                gone.for_each(|tag| changes.add(Change::Holders(tag)));
            }
            Record::Del(del) => self.fold_removals(author, &del.dots, log, changes)?,
            Record::Unpin(dots) => self.fold_removals(author, &dots, log, changes)?,
            Record::Member(signed) => self.fold_member(author, signed, changes),
            Record::Revoke(signed) => self.fold_revocation(author, signed, changes),
            Record::Cache(signed) => self.fold_cache(by, signed, changes),
            Record::Grant(signed) => self.fold_grant(author, signed, changes),
            Record::Pin(pin) => self.fold_pin(by, spot, pin, changes),
            Record::Left(left) => self.fold_left(author, left, changes),
            Record::Durable(dots) => self.fold_durable(author, &dots, changes),
            Record::Fork(proof) => {
                if self.has_room((author, None)) {
                    self.fold_fork(proof, Some(author));
                }
            }
            // Decide nothing here: access times are for collectors, contexts for the order.
            Record::Touch(_) | Record::After(_) => {}
            Record::Sealed(_) | Record::Unknown { .. } => self.ignored += 1,
        }
        Ok(())
    }

    fn fold_path(&mut self, author: u16, spot: Spot, path: &PathRecord, changes: &mut Changes) {
        let Some(cache) = self.cache_number(author, path.cache) else {
            self.ignored += 1;
            return;
        };
        let hash = *path.info.path.hash();
        let row = PathRow {
            cache,
            hash: reversed(hash.as_bytes()),
            author,
            spot,
            tag: NarTag::of(&path.info.nar_hash),
        };
        let older = self.rows_of(cache, hash).find(|row| row.author == author);
        if let Some(older) = older.copied() {
            self.paths.remove(&older);
            self.unlink(&older);
        }
        self.by_nar.insert(row.nar_row());
        self.paths.insert(row);
        let cache = path.cache;
        changes.add(Change::Path { cache, hash });
    }

    /// All authors' rows of one path.
    pub(super) fn rows_of(
        &self,
        cache: u16,
        hash: StorePathHash,
    ) -> impl Iterator<Item = &PathRow> {
        let hash = reversed(hash.as_bytes());
        let from = self.paths.from(&PathRow::first_of(cache, hash));
        from.take_while(move |row| row.cache == cache && row.hash == hash)
    }

    /// Removes the way from the NAR to a path that is gone, unless another path needs it.
    fn unlink(&mut self, gone: &PathRow) {
        let link = gone.nar_row();
        if !self.rows_linked_by(link).any(|_| true) {
            self.by_nar.remove(&link);
        }
    }

    /// The paths that a NAR row may mean.
    pub(super) fn rows_linked_by(&self, link: super::NarRow) -> impl Iterator<Item = &PathRow> {
        let mut hash = [0; 20];
        let (prefix, _) = hash.split_at_mut(link.hash_prefix.len());
        prefix.copy_from_slice(&link.hash_prefix);
        let from = self.paths.from(&PathRow::first_of(link.cache, hash));
        let same = from.take_while(move |row| {
            row.cache == link.cache && row.hash.starts_with(&link.hash_prefix)
        });
        same.filter(move |row| row.tag == link.tag)
    }

    fn holders_under(&mut self, seal: Seal) -> &mut Holders {
        match seal {
            None => &mut self.holders,
            Some(cache) => self.sealed_holders.entry(cache).or_default(),
        }
    }

    fn fold_removals<L: Log>(
        &mut self,
        by: u16,
        dots: &[Dot],
        log: &L,
        changes: &mut Changes,
    ) -> Result<(), LogError> {
        for dot in dots {
            let Some(removal) = self.removal(by, dot) else {
                self.ignored += 1;
                continue;
            };
            self.removals.insert(removal);
            if changes.is_everything() {
                continue;
            }
            match self.read_spot(removal.author, removal.spot, log)? {
                Some(Record::Path(path)) => changes.add(Change::Path {
                    cache: path.cache,
                    hash: *path.info.path.hash(),
                }),
                Some(Record::Pin(pin)) => changes.add(Change::Pins(pin.cache)),
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    /// Whose word counts is asked later; of a log that does not count, it means nothing and stays.
    fn fold_durable(&mut self, by: u16, dots: &[Dot], changes: &mut Changes) {
        for dot in dots {
            let spot = Spot::of(dot);
            let Some((spot, author)) = spot.zip(self.nodes.give(dot.node)) else {
                self.ignored += 1;
                continue;
            };
            self.durable.insert(Durable { author, spot, by });
        }
        changes.add(Change::Durable(self.nodes.name(by)));
    }

    /// `None` if it can have no effect: of a log that does not count, or not so far.
    fn removal(&mut self, by: u16, dot: &Dot) -> Option<Removal> {
        let spot = Spot::of(dot)?;
        let counts =
            !self.forks.contains(&dot.node) && self.cut(dot.node).is_none_or(|cut| dot.seq <= cut);
        let author = counts.then(|| self.nodes.give(dot.node))??;
        Some(Removal { author, spot, by })
    }

    fn fold_member(&mut self, author: u16, signed: Signed<Certificate>, changes: &mut Changes) {
        let node = self.nodes.name(author);
        if !self.is_certificate(node, &signed) {
            self.ignored += 1;
            return;
        }
        if self.set_left(author, None) {
            changes.add(Change::Member(node));
        }
        if !self.has_room((author, None)) {
            self.ignored += 1;
            return;
        }
        let rank = (signed.value().issued_at.0, hash(&signed.encode()));
        self.members.insert(node, rank, signed, author);
        changes.add(Change::Member(node));
    }

    /// Nobody says of another that it left: a log speaks of its author.
    fn fold_left(&mut self, author: u16, left: Left, changes: &mut Changes) {
        if self.set_left(author, Some(left.at)) {
            changes.add(Change::Member(self.nodes.name(author)));
        }
    }

    /// Notes when an author left, or that it is here; whether that changes anything.
    fn set_left(&mut self, author: u16, left: Option<UnixTime>) -> bool {
        let author = self.authors.get_mut(&author);
        author.is_some_and(|author| std::mem::replace(&mut author.left, left) != left)
    }

    fn fold_revocation(&mut self, author: u16, signed: Signed<Revocation>, changes: &mut Changes) {
        let Ok(subject) = signed.check(&self.genesis).map(|found| found.subject) else {
            self.ignored += 1;
            return;
        };
        let key = (subject, hash(&signed.encode()));
        if self.revocations.insert(key, signed, Some(author)) {
            self.has_new_cut = true;
            match subject {
                Subject::Node(node) => changes.add(Change::Member(node)),
                // Whoever came with this ticket may have lost its rights.
                Subject::Invite(_) => changes.everything(),
                Subject::Cache(cache) => changes.add(Change::Cache(cache)),
            }
        }
    }

    fn fold_cache(&mut self, by: (u16, Seal), signed: Signed<CacheConfig>, changes: &mut Changes) {
        if signed.verify_owner().is_err() || !self.has_room(by) {
            self.ignored += 1;
            return;
        }
        let (author, _) = by;
        let cache = signed.value().genesis.cache_id();
        let rank = (signed.value().version, hash(&signed.encode()));
        self.caches.insert(cache, rank, signed, author);
        changes.add(Change::Cache(cache));
    }

    fn fold_grant(&mut self, author: u16, signed: Signed<Grant>, changes: &mut Changes) {
        if !self.has_room((author, None)) {
            self.ignored += 1;
            return;
        }
        let grant = signed.value();
        let subject = (grant.cache, grant.node, grant.right);
        let rank = (u64::from(grant.epoch), hash(&signed.encode()));
        self.grants.insert(subject, rank, signed, author);
        changes.add(Change::Grant(subject.1));
    }

    fn fold_pin(&mut self, by: (u16, Seal), spot: Spot, pin: Pin, changes: &mut Changes) {
        if !self.has_room(by) {
            self.ignored += 1;
            return;
        }
        let (author, _) = by;
        changes.add(Change::Pins(pin.cache));
        self.pins.insert((author, spot), pin);
    }

    fn fold_fork(&mut self, proof: ForkProof, carrier: Option<u16>) {
        if self.forks.len() >= FORKS_MAX {
            self.ignored += 1;
            return;
        }
        match proof.culprit(&self.cluster) {
            Some(culprit) => {
                self.has_new_cut |= self.forks.insert(culprit, proof, carrier);
            }
            None => self.ignored += 1,
        }
    }

    /// Counts one more record of an author that is kept in memory, if it may have one. What is
    /// sealed counts apart: not every node can tell what it is.
    fn has_room(&mut self, (author, seal): (u16, Seal)) -> bool {
        let Some(author) = self.authors.get_mut(&author) else {
            return false;
        };
        let statements = match seal {
            None => &mut author.statements,
            Some(_) => &mut author.sealed_statements,
        };
        let has_room = *statements < STATEMENTS_MAX;
        *statements += u32::from(has_room);
        has_room
    }

    fn cache_number(&mut self, author: u16, cache: CacheId) -> Option<u16> {
        let author = self.authors.get_mut(&author)?;
        // Those under a seal were counted, and not every node can open them.
        if author.sealed_caches.contains(&cache) {
            return self.cache_numbers.give(cache);
        }
        let known = self.cache_numbers.number(&cache);
        let of_author = &mut author.caches;
        if known.is_some_and(|number| of_author.contains(&number)) {
            return known;
        }
        if of_author.len() >= CACHES_PER_AUTHOR_MAX {
            return None;
        }
        let number = self.cache_numbers.give(cache)?;
        of_author.insert(number);
        Some(number)
    }

    /// Takes out what `author` contributed.
    fn clear(&mut self, author: u16, changes: &mut Changes) {
        let mut gone = Vec::new();
        self.paths.retain(|row| {
            if row.author == author {
                gone.push(*row);
            }
            row.author != author
        });
        for row in gone {
            self.unlink(&row);
            changes.add(Change::Path {
                cache: self.cache_numbers.name(row.cache),
                hash: row.store_path_hash(),
            });
        }
        let sealed = self.sealed_holders.values_mut();
        for holders in std::iter::once(&mut self.holders).chain(sealed) {
            let released = holders.remove_node(author).into_iter();
            released.for_each(|tag| changes.add(Change::Holders(tag)));
        }
        self.sealed_holders.retain(|_, holders| holders.len() > 0);
        self.clear_removals(author, changes);
        self.durable.retain(|durable| durable.by != author);
        self.clear_statements(author, changes);
        if let Some(author) = self.authors.get_mut(&author) {
            author.clear();
        }
    }

    fn clear_removals(&mut self, by: u16, changes: &mut Changes) {
        let before = self.removals.len();
        self.removals.retain(|removal| removal.by != by);
        if self.removals.len() < before {
            // Which paths these were is not in memory.
            changes.everything();
        }
    }

    fn clear_statements(&mut self, author: u16, changes: &mut Changes) {
        for node in self.members.remove_carrier(author) {
            changes.add(Change::Member(node));
        }
        for cache in self.caches.remove_carrier(author) {
            changes.add(Change::Cache(cache));
        }
        for (_, node, _) in self.grants.remove_carrier(author) {
            changes.add(Change::Grant(node));
        }
        let of_author = |number: u16, index| {
            (
                number,
                Spot {
                    seq: index,
                    index: 0,
                },
            )
        };
        let end = author.checked_add(1).map(|next| of_author(next, 0));
        let mut pins = self.pins.split_off(&of_author(author, 0));
        if let Some(end) = end {
            self.pins.append(&mut pins.split_off(&end));
        }
        for pin in pins.into_values() {
            changes.add(Change::Pins(pin.cache));
        }
        self.forks.remove_carrier(author);
        self.revocations.remove_carrier(author);
    }

    /// Takes out logs that do not count, or not so far.
    ///
    /// To take one out may change nothing about another: proofs and revocations stay once known.
    fn enforce<L: Log>(&mut self, log: &mut L, changes: &mut Changes) -> Result<(), LogError> {
        while std::mem::take(&mut self.has_new_cut) {
            self.drop_void_removals();
            self.drop_void_logs(log, changes)?;
        }
        Ok(())
    }

    fn drop_void_logs<L: Log>(
        &mut self,
        log: &mut L,
        changes: &mut Changes,
    ) -> Result<(), LogError> {
        loop {
            let known: Vec<u16> = self.authors.keys().copied().collect();
            let wrong = known.into_iter().find(|number| self.exceeds(*number));
            let Some(number) = wrong else {
                return Ok(());
            };
            let node = self.nodes.name(number);
            changes.add(Change::Member(node));
            self.clear(number, changes);
            self.authors.remove(&number);
            if !self.forks.contains(&node) {
                let cut = self.cut(node).unwrap_or(u64::MAX);
                log.forget_after(node, cut)?;
                self.replay(node, log, changes)?;
            }
        }
    }

    fn exceeds(&self, number: u16) -> bool {
        let node = self.nodes.name(number);
        let received = self
            .authors
            .get(&number)
            .map(|author| author.received().seq);
        self.forks.contains(&node) || self.cut(node).is_some_and(|cut| received > Some(cut))
    }

    fn drop_void_removals(&mut self) {
        let authors: BTreeSet<u16> = self.removals.iter().map(|removal| removal.author).collect();
        for author in authors {
            let node = self.nodes.name(author);
            let cut = match self.forks.contains(&node) {
                true => Some(0),
                false => self.cut(node),
            };
            if let Some(cut) = cut {
                let counts = |removal: &Removal| {
                    removal.author != author || u64::from(removal.spot.seq) <= cut
                };
                self.removals.retain(counts);
            }
        }
    }
}

/// The cache under whose seal something was said; none in the open.
pub(super) type Seal = Option<CacheId>;

/// What a record turned out to be.
pub(super) enum Opened {
    /// Readable by everybody.
    Open(Record),
    /// Under the seal of a cache.
    Sealed(CacheId, Inside),
    /// Of a newer version, or damaged.
    Unknown,
}

/// What is under a seal.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, on the stack, and it is nearly always a record"
)]
pub(super) enum Inside {
    Record(Record),
    /// Not known: the key is not here.
    Shut,
    /// Nothing that belongs under a seal.
    Void,
}

impl Opened {
    /// What it says, if that can be known here.
    pub(super) fn record(self) -> Option<Record> {
        match self {
            Opened::Open(record) | Opened::Sealed(_, Inside::Record(record)) => Some(record),
            Opened::Sealed(_, Inside::Shut | Inside::Void) | Opened::Unknown => None,
        }
    }
}

/// What is sealed for a cache speaks of that cache, and is nothing others must be able to read.
fn fits_seal(inside: &Record, cache: CacheId) -> bool {
    match inside {
        Record::Cache(signed) => {
            let config = signed.value();
            config.genesis.cache_id() == cache && !config.public
        }
        Record::Path(path) => path.cache == cache,
        Record::Pin(pin) => pin.cache == cache,
        Record::Hold(_) | Record::Release(_) | Record::Touch(_) => true,
        _ => false,
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// A list of changes that gives up when it gets long.
#[derive(Default)]
pub(super) struct Changes {
    list: Vec<Change>,
    everything: bool,
}

impl Changes {
    fn add(&mut self, change: Change) {
        if self.list.len() >= CHANGES_MAX {
            self.everything();
        }
        if !self.everything && self.list.last() != Some(&change) {
            self.list.push(change);
        }
    }

    fn everything(&mut self) {
        self.everything = true;
        self.list = Vec::new();
    }

    fn is_everything(&self) -> bool {
        self.everything
    }

    fn list(self) -> Vec<Change> {
        match self.everything {
            true => vec![Change::Everything],
            false => self.list,
        }
    }
}

/// Most changes that are listed one by one.
const CHANGES_MAX: usize = 4096;

/// Most records of one author that are kept in memory: certificates, configurations, grants, pins
/// and proofs. What is beyond is ignored, the same on every node.
const STATEMENTS_MAX: u32 = 4096;

/// Most caches one author can name.
const CACHES_PER_AUTHOR_MAX: usize = 1024;

/// Most nodes in quarantine; there are no more nodes than that.
const FORKS_MAX: usize = 1 << 16;

/// Most records that [`Directory::uncarried`] lists at a time.
const UNCARRIED_MAX: usize = 256;

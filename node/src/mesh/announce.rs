//! From what happens here to records, and from others' records to what is here.
//!
//! Published here: noted in the outbox, committed, said, crossed out once the log has it. Removed
//! here: said as a removal of exactly the records this node knows. Said by others: caches appear
//! and change, removed paths go from the local rows, keys that were granted are taken on.
//!
//! Pushed here again while it is here: said again, also where this node has said it. A removal is of
//! the records that its author knew, so one that crosses the push may be of all there were, and must
//! not be of this one. Hence there is a record for every push; only pushes that come before that of an
//! earlier one is written share it. One is 300 to 500 bytes in the log and in gossip, and takes the
//! place of this node's record before it, which the next checkpoint drops. A plan is one note in the
//! outbox, synced before its answer, and its records fill segments together; who pushes faster than
//! the log is written waits. A node that may not write the cache says nothing: nobody would heed it.
//!
//! What is said of a private cache is said under its seal ([`private`](crate::mesh::private)), and not
//! at all as long as its key is not here: the outbox keeps it.
//!
//! A local row of a shared cache that nobody says any more is one that was removed, unless the
//! outbox has it. That is looked at when the directory says that a path changed, and never without
//! such a word: a node that lost its logs must not take its paths for removed ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use attic_p2p::directory::told_apart;
use attic_p2p::identity::Identity;
use attic_p2p::ids::{CacheId, ManifestId, NodeId};
use attic_p2p::membership::revocation::Subject;
use attic_p2p::membership::sealing::{OpeningKey, SecretContext};
use attic_p2p::record::{
    CacheConfig, CacheGenesis, Del, DelReason, Grant, Left, NarTag, PathRecord, RECORD_LEN_MAX,
    Record, Right,
};
use attic_p2p::signed::Signed;
use attic_store::record::PathRow;
use attic_store::{CacheName, NarHash, PublicKey, SecretKey, Store, StoreError, StorePathHash};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::app::App;
use crate::auth::random;
use crate::caches::settings::Settings;
use crate::caches::{Cache, CacheError};
use crate::http::error::chain;
use crate::mesh::files::{ClusterFileError, ClusterFiles};
use crate::mesh::members::{Members, now};
use crate::mesh::outbox::Outbox;
use crate::mesh::private::{PrivateKeyError, PrivateKeys, may_know};
use crate::mesh::replicate::Replicas;
use crate::mesh::view::DirectoryView;
use crate::publish::Publisher;

/// Says what happens here, and does here what others say. All of it blocks.
pub(crate) struct Announcer {
    pub(crate) me: NodeId,
    pub(crate) files: ClusterFiles,
    pub(crate) opening_key: OpeningKey,
    pub(crate) view: DirectoryView,
    members: Arc<Members>,
    keys: PrivateKeys,
    replicas: Arc<Replicas>,
    records: mpsc::Sender<Vec<Record>>,
    outbox: Mutex<Outbox>,
    /// Those of the noted paths that the cluster cannot be told of, since the start: their records are
    /// too long. They stay noted, so that they are not taken for removed ones.
    untold: Mutex<BTreeSet<(CacheId, StorePathHash)>>,
    /// Whether this node has said that it leaves.
    is_leaving: AtomicBool,
    /// Whether caches of the cluster whose name is taken here get another one. Until then those of this
    /// node may still make way.
    is_settled: AtomicBool,
    /// Told when something was crossed out.
    crossed_out: Condvar,
    /// Held while local caches are made what the cluster says: of two that did so at a time, the one
    /// that has looked first would undo what the other one has done.
    adopting: Mutex<()>,
    /// The highest version said of each cache that this node owns, since the start: the directory shows
    /// them a moment later, and of two of one version not the newer counts.
    versions: Mutex<BTreeMap<CacheId, u64>>,
    /// Told when the directory shows another version of a cache.
    version_shown: Condvar,
}

/// A cache of the cluster whose local side was there, before and after it was looked at.
type Adopted = (CacheId, Arc<Cache>, Arc<Cache>);

/// What an [`Announcer`] is made of.
pub(crate) struct Parts {
    pub(crate) me: NodeId,
    pub(crate) files: ClusterFiles,
    pub(crate) opening_key: OpeningKey,
    pub(crate) view: DirectoryView,
    pub(crate) members: Arc<Members>,
    pub(crate) keys: PrivateKeys,
    pub(crate) replicas: Arc<Replicas>,
    /// To the replica.
    pub(crate) records: mpsc::Sender<Vec<Record>>,
    pub(crate) outbox: Outbox,
    /// Whether this node was a member before: see [`Announcer::settle`].
    pub(crate) is_settled: bool,
}

impl Announcer {
    pub(crate) fn new(parts: Parts) -> Announcer {
        Announcer {
            me: parts.me,
            files: parts.files,
            opening_key: parts.opening_key,
            view: parts.view,
            members: parts.members,
            keys: parts.keys,
            replicas: parts.replicas,
            records: parts.records,
            outbox: Mutex::new(parts.outbox),
            untold: Mutex::default(),
            is_leaving: AtomicBool::new(false),
            is_settled: AtomicBool::new(parts.is_settled),
            crossed_out: Condvar::new(),
            adopting: Mutex::new(()),
            versions: Mutex::default(),
            version_shown: Condvar::new(),
        }
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().expect("no panic under this lock")
    }

    /// Notes, before they are committed or looked for, paths that will have to be announced. Returns
    /// those of which no announcement is under way.
    ///
    /// **Errors**: it could not be written down; they must not be committed then.
    pub(crate) fn note(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> std::io::Result<Vec<StorePathHash>> {
        let end = self.view.log_end();
        self.outbox().note(cache, hashes, end)
    }

    /// Whether it is of use to say what is in a cache: whether this node may write it, as far as
    /// that is known.
    pub(crate) fn is_heeded(&self, cache: CacheId) -> bool {
        let config = self.view.cache(cache);
        config.is_none_or(|config| self.may_found(&config.genesis.name))
    }

    /// How many noted paths were not announced yet, and are still to be.
    pub(crate) fn noted(&self) -> usize {
        let noted = self.outbox().len();
        noted.saturating_sub(self.untold().len())
    }

    /// How many paths the cluster cannot be told of, as far as that was tried.
    pub(crate) fn untold_paths(&self) -> u64 {
        self.untold().len() as u64
    }

    /// Whether the cluster cannot be told of a path.
    pub(crate) fn is_untold(&self, cache: CacheId, hash: &StorePathHash) -> bool {
        self.untold().contains(&(cache, *hash))
    }

    fn untold(&self) -> MutexGuard<'_, BTreeSet<(CacheId, StorePathHash)>> {
        self.untold.lock().expect("no panic under this lock")
    }

    /// Whether a path is noted and may not be said yet.
    pub(crate) fn is_noted(&self, cache: CacheId, hash: &StorePathHash) -> bool {
        self.outbox().contains(cache, hash)
    }

    /// Announces noted paths that were committed.
    pub(crate) fn announce(
        &self,
        store: &Store,
        local: &Cache,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) {
        if !local.settings.public && !self.keys.has(cache) {
            tracing::debug!(cache = %local.name, "paths wait for the key of their cache");
            return;
        }
        for group in hashes.chunks(GROUP) {
            let (mut records, mut told) = (Vec::new(), Vec::new());
            for hash in group {
                match self.path_record(store, local, cache, hash) {
                    Ok(Some(record)) => {
                        let tag = NarTag::of(&record.info.nar_hash);
                        let path = Record::Path(record);
                        if !self.can_be_told(local, cache, &path) {
                            if self.untold().insert((cache, *hash)) {
                                let cache = &local.name;
                                tracing::warn!(%hash, %cache, "a path has too many references to be told of");
                            }
                            continue;
                        }
                        self.untold().remove(&(cache, *hash));
                        told.push(*hash);
                        records.extend([Record::Hold(vec![tag]), path]);
                    }
                    // Gone again: nothing to announce.
                    Ok(None) => self.cross_out(cache, &[*hash]),
                    Err(error) => {
                        tracing::error!(cause = chain(&error), "a path cannot be announced yet");
                    }
                }
            }
            self.say_of(local, cache, records);
            self.replicas.add(cache, &told);
        }
    }

    /// Whether a record of a cache is short enough to be said, under its seal if it has one.
    fn can_be_told(&self, local: &Cache, cache: CacheId, record: &Record) -> bool {
        match record.encode() {
            Err(_) => false,
            // Others fit with any seal.
            Ok(encoded) if local.settings.public || encoded.len() < RECORD_LEN_MAX / 2 => true,
            Ok(_) => {
                let sealed = self.keys.seal(cache, std::slice::from_ref(record));
                sealed.is_ok_and(|sealed| sealed.iter().all(|record| record.encode().is_ok()))
            }
        }
    }

    /// What is said of a path that is here; `None` if it is not.
    pub(crate) fn path_record(
        &self,
        store: &Store,
        local: &Cache,
        cache: CacheId,
        hash: &StorePathHash,
    ) -> Result<Option<PathRecord>, StoreError> {
        let Some(row) = store.path(&local.name, hash)? else {
            return Ok(None);
        };
        let Some(nar) = store.nar(&row.info.nar_hash)? else {
            return Ok(None);
        };
        let Some(manifest) = store.manifest(&row.info.nar_hash)? else {
            return Ok(None);
        };
        Ok(Some(PathRecord {
            cache,
            file_hash: nar.file_hash,
            file_size: nar.file_size,
            manifest: ManifestId::of(&manifest.encode()),
            info: row.info,
        }))
    }

    /// Says that this node holds a NAR, to those who may read this cache.
    pub(crate) fn hold(&self, local: &Cache, cache: CacheId, nar: &NarHash) {
        self.say_of(local, cache, vec![Record::Hold(vec![NarTag::of(nar)])]);
    }

    /// Says that paths were removed here. Waits for what is being said of them, which would outlive
    /// their removal.
    pub(crate) fn removed(&self, cache: CacheId, hashes: &[StorePathHash]) {
        let is_noted = |outbox: &mut Outbox| {
            let mut told = hashes.iter().filter(|hash| !self.is_untold(cache, hash));
            told.any(|hash| outbox.noted_at(cache, hash).is_some())
        };
        let outbox = self.outbox();
        let waited = self
            .crossed_out
            .wait_timeout_while(outbox, WRITE_PATIENCE, is_noted);
        drop(waited.expect("no panic under this lock"));
        // What could not be said must not be said later.
        self.cross_out(cache, hashes);
        let dots: Vec<_> = hashes
            .iter()
            .flat_map(|hash| self.view.dots(cache, hash))
            .collect();
        for dots in dots.chunks(DOTS_MAX) {
            let reason = DelReason::Removed;
            let dots = dots.to_vec();
            self.say(vec![Record::Del(Del { dots, reason })]);
        }
    }

    /// Says these records.
    pub(crate) fn say_all(&self, records: Vec<Record>) {
        self.say(records);
    }

    /// Says what is known of a cache, to those who may read it.
    fn say_of(&self, local: &Cache, cache: CacheId, records: Vec<Record>) {
        if local.settings.public {
            return self.say(records);
        }
        match self.keys.seal(cache, &records) {
            Ok(sealed) => self.say(sealed),
            Err(error) => {
                tracing::error!(cause = chain(&error), "what is private is not said");
            }
        }
    }

    fn say(&self, records: Vec<Record>) {
        if !records.is_empty() && self.records.blocking_send(records).is_err() {
            tracing::debug!("the mesh has stopped");
        }
    }

    /// Makes a local cache one of the cluster's, a private one for those who may read it. All its
    /// paths will be announced.
    ///
    /// **Errors**: [`ShareError`]; a second attempt finishes the work.
    pub(crate) fn share(&self, app: &App, cache: &Cache) -> Result<CacheId, ShareError> {
        let seed = random();
        let genesis = genesis_of(&cache.name, &seed);
        let id = genesis.cache_id();
        self.files.write_owner_seed(&id, &seed)?;
        if !cache.settings.public {
            self.keys.found(id, &seed)?;
        }
        self.outbox().note_all(id).map_err(ShareError::Outbox)?;
        let shared = app.caches.share_as(&cache.name, id)?;
        self.say_founded(&shared, id, genesis, &seed)?;
        self.announce_all(app, id, &shared)?;
        Ok(id)
    }

    /// Says that there is a cache that this node founded, and gives its key to those who write it.
    fn say_founded(
        &self,
        cache: &Cache,
        id: CacheId,
        genesis: CacheGenesis,
        seed: &[u8; 32],
    ) -> Result<(), ShareError> {
        let config = config_of(cache, genesis, 1);
        let owner = Identity::from_seed(*seed);
        let signed = Record::Cache(Signed::new(config.clone(), &owner));
        self.say_of(cache, id, vec![signed]);
        self.give_keys(cache, &config, seed)
    }

    /// Says once more which caches this node founded of which no log says it: a crash came before the
    /// log took it. All their paths are announced.
    ///
    /// **Errors**: [`ShareError`]; the next start goes on with it.
    pub(crate) fn found_again(&self, app: &App) -> Result<(), ShareError> {
        for cache in app.caches.snapshot().values() {
            let Some(id) = cache.settings.shared_as else {
                continue;
            };
            let Some(seed) = self.files.owner_seed(&id)? else {
                continue;
            };
            let founded = cache.settings.founded_as.as_ref().unwrap_or(&cache.name);
            let genesis = genesis_of(founded, &seed);
            if self.view.cache(id).is_some() || genesis.cache_id() != id {
                continue;
            }
            tracing::warn!(cache = %cache.name, "the cluster had not heard of a cache; it is told again");
            self.outbox().note_all(id).map_err(ShareError::Outbox)?;
            self.say_founded(cache, id, genesis, &seed)?;
        }
        Ok(())
    }

    /// Whether this node may make a cache of this name one of the cluster's.
    pub(crate) fn may_found(&self, name: &CacheName) -> bool {
        let own = self.members.certificate();
        own.is_some_and(|own| own.value().scopes.may_write(name))
    }

    /// Announces all paths of a cache, and crosses it out.
    fn announce_all(&self, app: &App, id: CacheId, cache: &Cache) -> Result<(), ShareError> {
        each_page(app, cache, |page| {
            let hashes: Vec<_> = page.iter().map(|row| *row.info.path.hash()).collect();
            self.note(id, &hashes).map_err(ShareError::Outbox)?;
            self.announce(&app.store, cache, id, &hashes);
            Ok::<_, ShareError>(())
        })?;
        self.outbox().cross_out_all(id).map_err(ShareError::Outbox)
    }

    /// Announces what was noted and is not said yet: after a start, and now and then, because the
    /// log does not take records at all times.
    pub(crate) fn announce_noted(&self, app: &App) -> Result<(), ShareError> {
        let caches = self.outbox().caches();
        for id in caches {
            if let Some(cache) = app.caches.find_shared(&id) {
                match self.owns(&id)? {
                    true => self.announce_all(app, id, &cache)?,
                    false => self.announce_own(app, id, &cache)?,
                }
            }
        }
        let noted = self.outbox().paths();
        for (id, hash) in noted {
            if self.is_untold(id, &hash) {
                self.forget_untold(app, id, &hash)?;
                continue;
            }
            match app.caches.find_shared(&id) {
                Some(cache) if self.is_unsaid(id, &hash) => {
                    self.announce(&app.store, &cache, id, &[hash]);
                }
                Some(_) | None => self.cross_out(id, &[hash]),
            }
        }
        Ok(())
    }

    /// Crosses out a path that the cluster was not told of, if it is not here any more.
    fn forget_untold(
        &self,
        app: &App,
        id: CacheId,
        hash: &StorePathHash,
    ) -> Result<(), StoreError> {
        let is_here = match app.caches.find_shared(&id) {
            Some(cache) => app.store.path(&cache.name, hash)?.is_some(),
            None => false,
        };
        if !is_here {
            self.cross_out(id, &[*hash]);
        }
        Ok(())
    }

    /// Whether a path is noted, and the log has not said it since.
    fn is_unsaid(&self, cache: CacheId, hash: &StorePathHash) -> bool {
        let noted_at = self.outbox().noted_at(cache, hash);
        noted_at.is_some_and(|end| self.view.said_at(cache, hash) <= Some(end))
    }

    /// Whether a path is noted by itself: it was pushed here, and the log may not say so yet.
    pub(crate) fn is_noted_by_itself(&self, cache: CacheId, hash: &StorePathHash) -> bool {
        self.outbox().noted_at(cache, hash).is_some() && !self.is_untold(cache, hash)
    }

    fn is_said_by_me(&self, cache: CacheId, hash: &StorePathHash) -> bool {
        let dots = self.view.dots(cache, hash);
        dots.iter().any(|dot| dot.node == self.me)
    }

    fn cross_out(&self, cache: CacheId, hashes: &[StorePathHash]) {
        let mut untold = self.untold();
        for hash in hashes {
            untold.remove(&(cache, *hash));
        }
        drop(untold);
        if let Err(error) = self.outbox().cross_out(cache, hashes) {
            tracing::error!(%error, "the outbox cannot be written");
        }
        self.crossed_out.notify_all();
    }

    /// Whether this node made a cache of the cluster, and so may change it.
    ///
    /// **Errors**: a file is damaged.
    pub(crate) fn owns(&self, id: &CacheId) -> Result<bool, ClusterFileError> {
        Ok(self.files.owner_seed(id)?.is_some())
    }

    /// Says anew how a cache that this node owns is set up, and gives its key to those who write it.
    /// Waits until that is in the log, if it is soon: who joins after this hears of it.
    ///
    /// **Errors**: [`ShareError::NotOwner`] if another node owns it.
    pub(crate) fn reconfigure(
        &self,
        app: &App,
        cache: &Cache,
        destroyed: bool,
    ) -> Result<(), ShareError> {
        let Some(id) = cache.settings.shared_as else {
            return Ok(());
        };
        let version = self.say_settings(app, id, cache, destroyed)?;
        let is_awaited = |_: &mut _| {
            let shown = self.view.cache(id);
            shown.is_some_and(|config| config.version < version)
        };
        let versions = self.versions();
        let waited =
            { &self.version_shown }.wait_timeout_while(versions, WRITE_PATIENCE, is_awaited);
        drop(waited.expect("no panic under this lock"));
        Ok(())
    }

    /// Ends a cache for all with the cluster's key. For one whose makers are all revoked: nobody else
    /// can change it, and they may sign for it still. Waits until that is in the log, if it is soon.
    ///
    /// **Errors**: [`ShareError::NotOwner`] if it is not orphaned, [`ShareError::Orphaned`] if the
    /// cluster's key is not here.
    pub(crate) fn end_cache(&self, id: CacheId) -> Result<(), ShareError> {
        if !self.is_orphaned(id) {
            return Err(ShareError::NotOwner);
        }
        let revocation = self.members.sign_revocation(Subject::Cache(id));
        let revocation = revocation.map_err(|_| ShareError::Orphaned)?;
        self.say(vec![Record::Revoke(revocation)]);
        let versions = self.versions();
        let is_awaited = |_: &mut _| !self.view.is_gone(id);
        let waited =
            { &self.version_shown }.wait_timeout_while(versions, WRITE_PATIENCE, is_awaited);
        drop(waited.expect("no panic under this lock"));
        Ok(())
    }

    /// Whether all who made a cache are revoked, so that nobody can change it.
    fn is_orphaned(&self, id: CacheId) -> bool {
        let makers = self.view.makers(id);
        // The log may not say yet what was revoked here.
        let revocations = &self.members.view().revocations;
        let is_out = |node: &NodeId| {
            revocations.of(Subject::Node(*node)).is_some() || self.view.is_revoked(*node)
        };
        !makers.is_empty() && makers.iter().all(is_out)
    }

    /// Why this node, which does not own a cache, cannot change it.
    pub(crate) fn why_not(&self, id: CacheId) -> ShareError {
        match self.is_orphaned(id) {
            true => ShareError::Orphaned,
            false => ShareError::NotOwner,
        }
    }

    /// Says how a cache that this node owns is set up. Returns the version said.
    fn say_settings(
        &self,
        app: &App,
        id: CacheId,
        cache: &Cache,
        destroyed: bool,
    ) -> Result<u64, ShareError> {
        let seed = self.files.owner_seed(&id)?.ok_or(ShareError::NotOwner)?;
        let current = self.view.cache(id).ok_or(ShareError::NotOwner)?;
        let (version, newest) = {
            let mut versions = self.versions();
            let said = versions.get(&id).copied().unwrap_or(0);
            let version = said.max(current.version).saturating_add(1);
            versions.insert(id, version);
            // Who gets the higher version says the newer settings.
            (version, app.caches.find_shared(&id))
        };
        let cache = newest.as_deref().unwrap_or(cache);
        let next = CacheConfig {
            destroyed,
            ..config_of(cache, current.genesis, version)
        };
        let owner = Identity::from_seed(seed);
        let signed = Record::Cache(Signed::new(next.clone(), &owner));
        self.say_of(cache, id, vec![signed]);
        self.give_keys(cache, &next, &seed)?;
        Ok(version)
    }

    fn versions(&self) -> MutexGuard<'_, BTreeMap<CacheId, u64>> {
        self.versions.lock().expect("no panic under this lock")
    }

    /// Announces all paths of a cache once more, because their signatures changed.
    ///
    /// **Errors**: [`ShareError`]; a restart goes on with it.
    pub(crate) fn announce_again(&self, app: &App, cache: &Cache) -> Result<(), ShareError> {
        let Some(id) = cache.settings.shared_as else {
            return Ok(());
        };
        self.outbox().note_all(id).map_err(ShareError::Outbox)?;
        self.announce_all(app, id, cache)
    }

    /// Changes signatures of a cache's paths, and announces once more those that this node announced.
    ///
    /// **Errors**: [`ShareError`]; a restart goes on with it.
    fn sign_anew(
        &self,
        app: &App,
        (id, cache): (CacheId, &Cache),
        change: impl FnOnce(&Publisher) -> Result<u64, StoreError>,
    ) -> Result<(), ShareError> {
        self.outbox().note_all(id).map_err(ShareError::Outbox)?;
        match change(&app.publisher)? {
            0 => self.outbox().cross_out_all(id).map_err(ShareError::Outbox),
            _ => self.announce_own(app, id, cache),
        }
    }

    /// Announces all paths of a cache that this node announced before, and crosses it out. What others
    /// pushed is not this node's to say: who says a path is taken to have had it pushed there.
    fn announce_own(&self, app: &App, id: CacheId, cache: &Cache) -> Result<(), ShareError> {
        let mut own = Vec::new();
        each_row(app, cache, |row| {
            let hash = *row.info.path.hash();
            own.extend(self.is_said_by_me(id, &hash).then_some(hash));
            Ok(())
        })?;
        for page in own.chunks(PAGE) {
            self.note(id, page).map_err(ShareError::Outbox)?;
            self.announce(&app.store, cache, id, page);
        }
        self.outbox().cross_out_all(id).map_err(ShareError::Outbox)
    }

    /// Shows this node's certificate in its log, when the log does not show it yet: others count it
    /// as a member from then on, again if it had left.
    pub(crate) fn introduce(&self) {
        let Some(certificate) = self.members.certificate() else {
            return;
        };
        if self.is_leaving.load(Ordering::Relaxed) {
            return;
        }
        let is_shown = self.view.member(self.me).as_ref() == Some(certificate.value());
        if !is_shown || self.view.left_at(self.me).is_some() {
            self.say(vec![Record::Member(certificate)]);
        }
    }

    /// Says that this node is no member from now on.
    pub(crate) fn say_leaving(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.say(vec![Record::Left(Left { at: now() })]);
    }

    /// Gives the keys of the caches this node owns to every member that may have them and has not:
    /// those to sign with to writers, those of private caches to readers.
    pub(crate) fn grant_to_all(&self, app: &App) -> Result<(), ShareError> {
        for cache in app.caches.snapshot().values() {
            self.grant_all(cache)?;
        }
        Ok(())
    }

    fn grant_all(&self, cache: &Cache) -> Result<(), ShareError> {
        let Some(id) = cache.settings.shared_as else {
            return Ok(());
        };
        let Some(seed) = self.files.owner_seed(&id)? else {
            return Ok(());
        };
        match self.view.cache(id) {
            Some(config) => self.give_keys(cache, &config, &seed),
            // Its keys were given when it was shared, as far as they could be.
            None => Ok(()),
        }
    }

    /// Gives the keys of a cache, which this node owns, to those who are to have them.
    fn give_keys(
        &self,
        cache: &Cache,
        config: &CacheConfig,
        seed: &[u8; 32],
    ) -> Result<(), ShareError> {
        let id = config.genesis.cache_id();
        if !cache.settings.public {
            self.say(self.keys.grants(&config.genesis, seed)?);
        }
        let Some(secret) = &cache.secret else {
            return Ok(());
        };
        let owner = Identity::from_seed(*seed);
        // Grows with every change of the key, and with others: then the same key is given again.
        let epoch = u32::try_from(config.version).unwrap_or(u32::MAX);
        for member in self.view.members() {
            let may = member.scopes.may_write(&config.genesis.name) && member.node != self.me;
            let may = may && !self.keys.is_shut_out(member.node, &config.genesis.name);
            if !may || self.view.has_grant(id, member.node, Right::Sign, epoch) {
                continue;
            }
            let context = SecretContext {
                cluster: member.cluster,
                cache: id,
                recipient: member.node,
            };
            let text = secret.to_text();
            let sealed = member.sealing_key.seal(&context, text.as_bytes(), random());
            let Ok(sealed) = sealed else {
                tracing::warn!(node = %member.node, "a member's key to seal to is of no use");
                continue;
            };
            let grant = Grant {
                cache: id,
                node: member.node,
                right: Right::Sign,
                epoch,
                sealed,
            };
            tracing::info!(node = %member.node, cache = %cache.name, "gave the key of a cache");
            self.say(vec![Record::Grant(Signed::new(grant, &owner))]);
        }
        Ok(())
    }

    /// Takes on the keys of private caches that this node was given. Says whether they opened
    /// anything.
    ///
    /// **Errors**: [`ShareError`]; the next attempt takes the others.
    pub(crate) fn take_reader_keys(&self) -> Result<bool, ShareError> {
        Ok(!self.keys.take_granted()?.is_empty())
    }

    /// Takes on the keys to sign with that this node was given. What is there is signed with them soon
    /// after: see [`resign`](crate::resign).
    pub(crate) fn take_keys(&self, app: &App) -> Result<(), ShareError> {
        for cache in app.caches.snapshot().values() {
            let Some(id) = cache.settings.shared_as else {
                continue;
            };
            let Some(sealed) = self.view.key_for(id, self.me) else {
                continue;
            };
            let cluster = self.members.view().genesis.cluster_id();
            let context = SecretContext {
                cluster,
                cache: id,
                recipient: self.me,
            };
            let opened = self.opening_key.open(&context, &sealed);
            let text = opened
                .ok()
                .and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
            let secret = text.and_then(|text| text.parse::<SecretKey>().ok());
            // Only the key that the cache's configuration names: anything else would sign for
            // nobody.
            let fits = |secret: &SecretKey| Some(secret.public()) == cache.settings.public_key;
            match secret.filter(fits) {
                Some(secret)
                    if cache
                        .secret
                        .as_ref()
                        .is_none_or(|old| old.public() != secret.public()) =>
                {
                    app.caches.give_key(&cache.name, secret)?;
                    tracing::info!(cache = %cache.name, "was given the key of a cache");
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    /// Makes the local caches be what the cluster says.
    ///
    /// A cache whose name another one has here gets one that tells it apart ([`told_apart`]), and keeps
    /// it. One that this node left with its cluster is that cache again.
    ///
    /// **Errors**: [`ShareError`]; what was done until then stays.
    pub(crate) fn adopt_caches(&self, app: &App) -> Result<(), ShareError> {
        // Whoever waits for it holds this while looking, or waits already.
        drop(self.versions());
        self.version_shown.notify_all();
        self.destroy_gone(app)?;
        let mut changed = Vec::new();
        let adopted = self.adopt_all(app, &mut changed);
        // Not under the lock: this waits for the log.
        for (id, before, now) in changed {
            self.give_up_keys(app, id, &before, &now)?;
        }
        adopted
    }

    /// Destroys the local side of caches that are gone: others may have their names then.
    fn destroy_gone(&self, app: &App) -> Result<(), CacheError> {
        let _adopting = self.adopting.lock().expect("no panic under this lock");
        for cache in app.caches.snapshot().values() {
            if cache
                .settings
                .shared_as
                .is_some_and(|id| self.view.is_gone(id))
            {
                match app.caches.destroy(&cache.name, &app.store) {
                    // By whoever had it destroyed.
                    Err(CacheError::Absent(_)) => {}
                    destroyed => drop(destroyed?),
                }
                app.narinfos.clear();
            }
        }
        Ok(())
    }

    /// Gives the local caches the settings that the cluster says. Adds those that were there, before and
    /// after.
    fn adopt_all(&self, app: &App, changed: &mut Vec<Adopted>) -> Result<(), ShareError> {
        let _adopting = self.adopting.lock().expect("no panic under this lock");
        for (id, name, config) in self.readable_caches() {
            let known = app.caches.find_shared(&id);
            let is_left_alone = match &known {
                Some(_) => self.owns(&id)?,
                None => !self.knows_names(),
            };
            if is_left_alone {
                continue;
            }
            let (before, now) = match (known, self.left_behind(app, id, &config)?) {
                (None, Some(left)) => {
                    let now = self.bring_back(app, &left, &config)?;
                    (Some(left), Some(now))
                }
                (known, _) => {
                    let now = self.adopt(app, (id, &name), &config)?;
                    (known, now)
                }
            };
            changed.extend(before.zip(now).map(|(before, now)| (id, before, now)));
        }
        Ok(())
    }

    /// The living caches of the cluster that this node may read, with the name each goes by there.
    pub(crate) fn readable_caches(&self) -> Vec<(CacheId, CacheName, CacheConfig)> {
        let me = self.members.certificate();
        let Some(me) = me else {
            return Vec::new();
        };
        let mut caches = self.view.caches();
        caches.retain(|(_, _, config)| may_know(&me.value().scopes, &config.genesis.name));
        caches
    }

    /// Whether names of the cluster's caches are worth keeping. A newcomer that knows one of several of
    /// one name would take it for the one that has the name.
    fn knows_names(&self) -> bool {
        self.is_settled.load(Ordering::Relaxed) || self.view.has_caught_up()
    }

    /// From now on a cache of the cluster whose name is taken here is adopted under another one.
    pub(crate) fn settle(&self) {
        self.is_settled.store(true, Ordering::Relaxed);
    }

    /// `None` if all its names are taken here.
    fn adopt(
        &self,
        app: &App,
        (id, name): (CacheId, &CacheName),
        config: &CacheConfig,
    ) -> Result<Option<Arc<Cache>>, ShareError> {
        let is_new = app.caches.find_shared(&id).is_none();
        let founded = &config.genesis.name;
        let others = self.is_settled.load(Ordering::Relaxed);
        let others = others
            .then(|| told_apart(founded, id))
            .into_iter()
            .flatten();
        let adopted = app.caches.adopt(id, (name, others), |here, settings| {
            follow_config(settings, config);
            settings.founded_as = (here != founded).then(|| founded.clone());
        });
        match adopted {
            Ok(cache) => {
                if let Some(founded) = cache.settings.founded_as.as_ref().filter(|_| is_new) {
                    let here = &cache.name;
                    tracing::warn!(cache = %founded, %here, "a cache of the cluster has another name here: its own is taken");
                }
                Ok(Some(cache))
            }
            Err(CacheError::Exists(name)) => {
                tracing::debug!(%name, "the name of a cache of the cluster is taken here");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The cache of this node that was this one of the cluster when this node left, if it can be that
    /// again: nobody changed meanwhile who may see it, where its paths lie, or its key, unless by a
    /// change that its owner can say.
    ///
    /// **Errors**: a file is damaged.
    pub(crate) fn left_behind(
        &self,
        app: &App,
        id: CacheId,
        config: &CacheConfig,
    ) -> Result<Option<Arc<Cache>>, ClusterFileError> {
        let cluster = self.members.view().genesis.cluster_id();
        let left = app.caches.find_left(cluster, id);
        if left.is_empty() {
            return Ok(None);
        }
        let owns = self.owns(&id)?;
        let current = config.public_keys.first();
        let fits = |cache: &Arc<Cache>| {
            let settings = &cache.settings;
            let key_fits = match owns {
                // Its secret key may be in another cache: one that could not be this one again.
                true => current.is_some_and(|key| {
                    cache.public_key().as_ref() == Some(key)
                        || settings.old_public_keys.contains(key)
                }),
                false => {
                    let own = cache.secret.as_ref().map(SecretKey::public);
                    own.is_none() || own.as_ref() == current
                }
            };
            key_fits && settings.public == config.public && settings.store_dir == config.store_dir
        };
        Ok(left.into_iter().find(fits))
    }

    /// Makes a cache that this node left one of the cluster's again. What is in it is looked at later:
    /// see [`Announcer::finish_coming_back`].
    fn bring_back(
        &self,
        app: &App,
        left: &Cache,
        config: &CacheConfig,
    ) -> Result<Arc<Cache>, ShareError> {
        let owns = self.owns(&config.genesis.cache_id())?;
        let founded = &config.genesis.name;
        let cache = app.caches.come_back(&left.name, |here, settings| {
            if !owns {
                follow_config(settings, config);
            }
            settings.founded_as = (here != founded).then(|| founded.clone());
        })?;
        tracing::info!(cache = %cache.name, "a cache that this node left is the cluster's again");
        app.narinfos.clear();
        Ok(cache)
    }

    /// Compares what is in caches that came back with what the cluster says since, once this node has
    /// heard all that another member has to say: what was removed goes, what nobody knows is
    /// announced.
    ///
    /// **Errors**: [`ShareError`]; the next attempt begins again.
    pub(crate) fn finish_coming_back(&self, app: &App) -> Result<(), ShareError> {
        let snapshot = app.caches.snapshot();
        let back = snapshot.values().filter(|cache| is_coming_back(cache));
        let back: Vec<_> = back
            .filter_map(|cache| Some((cache.settings.shared_as?, cache)))
            .collect();
        if back.is_empty() || !self.view.has_caught_up() {
            return Ok(());
        }
        for (id, cache) in back {
            let Some(config) = self.view.cache(id) else {
                continue;
            };
            let mine = config_of(cache, config.genesis.clone(), config.version);
            let is_changed = self.owns(&id)? && mine != config;
            if is_changed {
                // Not waited for: who does this also passes on what the log shows.
                self.say_settings(app, id, cache, false)?;
            }
            self.compare(app, id, cache)?;
            if is_changed {
                self.announce_again(app, cache)?;
            }
            app.caches.finish_coming_back(&cache.name)?;
        }
        Ok(self.tell_holdings(app)?)
    }

    /// Prunes what the cluster said something of, and announces what it did not, if that is of use.
    fn compare(&self, app: &App, id: CacheId, cache: &Cache) -> Result<(), ShareError> {
        let is_heeded = self.is_heeded(id);
        let (mut removed, mut announced) = (0, 0);
        each_page(app, cache, |page| {
            let mut unsaid = Vec::new();
            for row in page {
                let hash = row.info.path.hash();
                if self.view.is_said(id, hash) || self.view.is_removed_path(id, hash) {
                    removed += u64::from(self.prune_row(app, id, cache, hash)?);
                } else if is_heeded && is_vouched_for(cache, row) {
                    unsaid.push(*hash);
                }
            }
            if !unsaid.is_empty() {
                announced += unsaid.len();
                self.note(id, &unsaid).map_err(ShareError::Outbox)?;
                self.announce(&app.store, cache, id, &unsaid);
            }
            Ok::<_, ShareError>(())
        })?;
        tracing::info!(cache = %cache.name, removed, announced, "a cache came back to the cluster");
        Ok(())
    }

    /// Takes off the signatures of keys that a cache does not have any more.
    fn give_up_keys(
        &self,
        app: &App,
        id: CacheId,
        before: &Cache,
        cache: &Cache,
    ) -> Result<(), ShareError> {
        let (before, now) = (before.own_keys.keys(), cache.own_keys.keys());
        let gone = before.iter().filter(|key| !now.contains(key));
        let gone: Vec<PublicKey> = gone.cloned().collect();
        if gone.is_empty() {
            return Ok(());
        }
        self.sign_anew(app, (id, cache), |publisher| {
            publisher.drop_signatures(cache, &gone)
        })
    }

    /// Looks at one path after the directory changed: what was removed goes from the local rows, and
    /// what was signed anew is signed anew in them.
    pub(crate) fn path_changed(&self, app: &App, id: CacheId, hash: &StorePathHash) {
        let is_noted = self.outbox().noted_at(id, hash).is_some();
        if is_noted && !self.is_unsaid(id, hash) {
            self.cross_out(id, &[*hash]);
        }
        if self.is_said_by_me(id, hash) {
            return;
        }
        if let Err(error) = self.prune(app, id, hash) {
            tracing::error!(
                cause = chain(&error),
                "a removed path could not be removed here"
            );
        }
    }

    fn prune(&self, app: &App, id: CacheId, hash: &StorePathHash) -> Result<(), StoreError> {
        match app.caches.find_shared(&id) {
            // What it has may not be known yet.
            Some(cache) if is_coming_back(&cache) => Ok(()),
            Some(cache) => self.prune_row(app, id, &cache, hash).map(drop),
            None => Ok(()),
        }
    }

    /// Whether the row went.
    fn prune_row(
        &self,
        app: &App,
        id: CacheId,
        cache: &Cache,
        hash: &StorePathHash,
    ) -> Result<bool, StoreError> {
        let Some(row) = app.store.path(&cache.name, hash)? else {
            return Ok(false);
        };
        // Held until the row is gone: what is pushed again is noted first, and looked for then.
        let outbox = self.outbox();
        if outbox.contains(id, hash) {
            return Ok(false);
        }
        let said = self.view.path(id, hash);
        let stays = match &said {
            Some(record) => record.info.nar_hash == row.info.nar_hash,
            // Said, but not believed yet: a key or a certificate may still be on its way.
            None => self.view.is_said(id, hash),
        };
        if !stays {
            app.store.remove(&cache.name, &[*hash])?;
            app.narinfos.forget(&(cache.id, *hash));
            return Ok(true);
        }
        drop(outbox);
        match said.filter(|record| record.info.signatures != row.info.signatures) {
            Some(record) => app.publisher.follow(cache, &record.info).map(|()| false),
            None => Ok(false),
        }
    }

    /// Looks at all local rows of shared caches: more changed than could be listed.
    ///
    /// **Errors**: the store's; what was done until then stays.
    pub(crate) fn prune_all(&self, app: &App) -> Result<(), StoreError> {
        each_shared(app, |id, _, row| self.prune(app, id, row.info.path.hash()))
    }

    /// Paths of shared caches whose NAR nobody else says to hold.
    ///
    /// **Errors**: the store's.
    pub(crate) fn sole_holdings(
        &self,
        app: &App,
    ) -> Result<Vec<(CacheId, StorePathHash)>, StoreError> {
        let mut sole = Vec::new();
        each_shared(app, |id, _, row| {
            if self.view.holders(&row.info.nar_hash).is_empty() {
                sole.push((id, *row.info.path.hash()));
            }
            Ok(())
        })?;
        Ok(sole)
    }

    /// Says anew what this node holds, as far as that is not what it said; and sees to the copies of
    /// what it said itself.
    ///
    /// **Errors**: the store's; what was done until then stays.
    pub(crate) fn tell_holdings(&self, app: &App) -> Result<(), StoreError> {
        // What is held for public caches is said to everybody, once.
        let mut held = BTreeMap::from([(None, BTreeSet::new())]);
        let snapshot = app.caches.snapshot();
        let private = snapshot.values().filter(|cache| !cache.settings.public);
        let private = private.filter_map(|cache| cache.settings.shared_as);
        held.extend(private.map(|id| (Some(id), BTreeSet::new())));
        each_shared(app, |id, cache, row| {
            let hash = row.info.path.hash();
            // Rows of damaged NARs are hidden, and not held.
            if app.store.path(&cache.name, hash)?.is_some() {
                let to = (!cache.settings.public).then_some(id);
                let of_cache = held.entry(to).or_default();
                of_cache.insert(NarTag::of(&row.info.nar_hash));
            }
            if self.is_said_by_me(id, hash) {
                self.replicas.add(id, &[*hash]);
            }
            Ok(())
        })?;
        for (private, held) in held {
            let local = private.map(|id| app.caches.find_shared(&id));
            let records = self.difference(private, &held);
            match (private, local.flatten()) {
                (Some(id), Some(cache)) if self.keys.has(id) => self.say_of(&cache, id, records),
                (Some(_), _) => {}
                (None, _) => self.say(records),
            }
        }
        Ok(())
    }

    /// What is to be said so that what this node says to hold is what it holds.
    fn difference(&self, private: Option<CacheId>, held: &BTreeSet<NarTag>) -> Vec<Record> {
        let said: BTreeSet<NarTag> = self.view.held_here(private).into_iter().collect();
        let new: Vec<NarTag> = held.difference(&said).copied().collect();
        let gone: Vec<NarTag> = said.difference(held).copied().collect();
        let holds = new.chunks(TAGS_MAX).map(|tags| Record::Hold(tags.to_vec()));
        let releases = gone.chunks(TAGS_MAX);
        let releases = releases.map(|tags| Record::Release(tags.to_vec()));
        holds.chain(releases).collect()
    }
}

/// Runs `work` for every row of every shared cache.
fn each_shared(
    app: &App,
    mut work: impl FnMut(CacheId, &Cache, &PathRow) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for cache in app.caches.snapshot().values() {
        if let Some(id) = cache.settings.shared_as {
            each_row(app, cache, |row| work(id, cache, row))?;
        }
    }
    Ok(())
}

/// Runs `work` for every row of a cache.
pub(crate) fn each_row(
    app: &App,
    cache: &Cache,
    mut work: impl FnMut(&PathRow) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    each_page(app, cache, |page| page.iter().try_for_each(&mut work))
}

/// Runs `work` for the rows of a cache, some at a time.
fn each_page<E: From<StoreError>>(
    app: &App,
    cache: &Cache,
    mut work: impl FnMut(&[PathRow]) -> Result<(), E>,
) -> Result<(), E> {
    let mut after = None;
    loop {
        let page = app.store.paths(&cache.name, after, PAGE)?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(*last.info.path.hash());
        work(&page)?;
    }
}

/// Whether a cache came back with this node, and what is in it was not looked at since.
fn is_coming_back(cache: &Cache) -> bool {
    cache.settings.shared_as.is_some() && cache.settings.left.is_some()
}

/// Whether a key of the cache signed what is in a row.
fn is_vouched_for(cache: &Cache, row: &PathRow) -> bool {
    let fingerprint = row.info.fingerprint(&cache.settings.store_dir);
    let signed = cache.own_keys.verify(&fingerprint, &row.info.signatures);
    signed.is_some()
}

/// What the cluster says of a cache, in its settings here.
fn follow_config(settings: &mut Settings, config: &CacheConfig) {
    settings.public = config.public;
    settings.priority = config.priority;
    settings.store_dir = config.store_dir.clone();
    let mut keys = config.public_keys.iter().cloned();
    settings.public_key = keys.next();
    settings.old_public_keys = keys.collect();
}

/// What founds the cache that belongs to a seed: the same whenever it is made.
fn genesis_of(name: &CacheName, seed: &[u8; 32]) -> CacheGenesis {
    let nonce = blake3::derive_key("attic-node nonce of a cache 1", seed);
    CacheGenesis {
        name: name.clone(),
        owner: Identity::from_seed(*seed).node_id(),
        nonce: *nonce.first_chunk().expect("16 of 32 bytes"),
    }
}

/// A cache's settings as the cluster is told.
fn config_of(cache: &Cache, genesis: CacheGenesis, version: u64) -> CacheConfig {
    let current = cache.public_key().into_iter();
    let old = cache.settings.old_public_keys.iter().cloned();
    CacheConfig {
        genesis,
        version,
        public_keys: current.chain(old).collect(),
        priority: cache.settings.priority,
        public: cache.settings.public,
        store_dir: cache.settings.store_dir.clone(),
        retention: None,
        destroyed: false,
    }
}

/// Why a cache was not shared or changed.
#[derive(Debug, Error)]
pub(crate) enum ShareError {
    /// Another node made the cache.
    #[error("another node of the cluster owns this cache: change it there")]
    NotOwner,
    /// Nobody can change the cache any more.
    #[error(
        "the node that made this cache is revoked, and nobody else can change it: destroy it on the node \
         that holds the cluster's key, and create another"
    )]
    Orphaned,
    /// The outbox cannot be written.
    #[error("write the outbox")]
    Outbox(#[source] std::io::Error),
    /// A file of the cluster cannot be used.
    #[error(transparent)]
    File(#[from] ClusterFileError),
    /// The keys of a private cache.
    #[error(transparent)]
    Keys(#[from] PrivateKeyError),
    /// The local side of the cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Paths announced at a time: about a segment.
pub(crate) const GROUP: usize = 16;
/// How long a removal waits for the log to take what was pushed before.
const WRITE_PATIENCE: Duration = Duration::from_secs(2);
/// Rows read at a time.
const PAGE: usize = 512;
/// Removed records named in one record.
const DOTS_MAX: usize = 64;
/// NARs named in one record.
const TAGS_MAX: usize = 512;

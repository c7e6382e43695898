//! The caches of a node: their settings, their keys, and who may change them.
//!
//! A cache exists when its settings file exists. Readers see an immutable snapshot and never wait;
//! changes go through one writer, are durable before they are visible, and replace the snapshot.
//!
//! All changes block on disk; call them on a blocking thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use attic_p2p::directory::told_apart;
use attic_p2p::ids::{CacheId, ClusterId};
use attic_store::signature::KeyError;
use attic_store::store_path::StorePathError;
use attic_store::{CacheInfo, CacheName, PublicKey, SecretKey, Store, StoreError, TrustedKeys};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use thiserror::Error;

use crate::api::{CachePatch, CacheView, RetiringKey};
use crate::auth::random;
use crate::caches::settings::{KEYS_MAX, Left, Retiring, Settings};
use crate::data_dir::{
    DataDir, FileError, Secrecy, read_file, read_secret, remove_file, replace_file,
};
use crate::publish::PathLocks;

pub(crate) mod settings;

/// All caches. Cheap to share behind an `Arc`.
pub(crate) struct Caches {
    dir: DataDir,
    snapshot: RwLock<Arc<Snapshot>>,
    /// Held while files change; whoever holds it may replace the snapshot.
    writer: Mutex<()>,
    next_id: AtomicU32,
}

/// The caches at one moment, by name.
pub(crate) type Snapshot = BTreeMap<Box<str>, Arc<Cache>>;

/// One cache as of one moment. A change makes a new value.
pub(crate) struct Cache {
    /// Differs between two caches of one name, one destroyed before the other was made.
    pub(crate) id: u32,
    pub(crate) name: CacheName,
    pub(crate) settings: Settings,
    /// Absent when this node was not given the key, or gave it up when it left the cluster: then it
    /// serves the cache, but signs nothing.
    pub(crate) secret: Option<SecretKey>,
    /// The body of `nix-cache-info`.
    pub(crate) info_text: Bytes,
    /// Every key whose signatures this node can check: its own, old and new, and those that the
    /// settings name. A signature under one of these names must be good.
    pub(crate) known_keys: TrustedKeys,
    /// Its own, old and new.
    pub(crate) own_keys: TrustedKeys,
    /// When not empty, a path needs a signature of one of these.
    pub(crate) required_keys: TrustedKeys,
    /// What outlives a change of settings.
    pub(crate) life: Arc<Life>,
}

/// What all values of one cache share, from its making to its end.
pub(crate) struct Life {
    /// Held shared while paths are published, exclusively when the cache ends: after that no row
    /// can appear any more.
    alive: RwLock<bool>,
    /// Serialise reading, merging and writing of one path.
    pub(crate) paths: PathLocks,
}

impl Life {
    fn new() -> Arc<Life> {
        Arc::new(Life {
            alive: RwLock::new(true),
            paths: PathLocks::default(),
        })
    }

    /// Runs `publish` unless the cache has ended; it does not end before `publish` returns.
    pub(crate) fn while_alive<T>(&self, publish: impl FnOnce() -> T) -> Option<T> {
        let alive = self.alive.read().expect("no panic under this lock");
        alive.then(publish)
    }

    fn end(&self) {
        *self.alive.write().expect("no panic under this lock") = false;
    }
}

impl Cache {
    fn new(
        id: u32,
        name: CacheName,
        settings: Settings,
        secret: Option<SecretKey>,
        life: Arc<Life>,
    ) -> Cache {
        let info = CacheInfo {
            store_dir: settings.store_dir.clone(),
            want_mass_query: true,
            priority: settings.priority,
        };
        let public_key = secret.as_ref().map(SecretKey::public);
        let own = public_key
            .into_iter()
            .chain(settings.public_key.clone())
            .chain(settings.old_public_keys.iter().cloned());
        let own_keys: TrustedKeys = own.clone().collect();
        let named = settings
            .skip_signed_by
            .iter()
            .chain(&settings.require_signed_by)
            .cloned();
        Cache {
            id,
            name,
            info_text: info.to_string().into(),
            known_keys: own.chain(named).collect(),
            own_keys,
            required_keys: TrustedKeys::new(settings.require_signed_by.clone()),
            settings,
            secret,
            life,
        }
    }

    /// The key its paths are signed with now.
    ///
    /// Where another node chooses it that is not always the one that this node was given: the next one
    /// may be on its way, and the one before be given up.
    pub(crate) fn public_key(&self) -> Option<PublicKey> {
        let named = self.settings.public_key.clone();
        named.or_else(|| self.secret.as_ref().map(SecretKey::public))
    }

    /// What the API says about it.
    pub(crate) fn view(&self) -> CacheView {
        let texts = |keys: &[PublicKey]| keys.iter().map(PublicKey::to_string).collect();
        let settings = &self.settings;
        let old_keys = settings.old_public_keys.iter().rev();
        CacheView {
            name: self.name.clone(),
            public: settings.public,
            priority: settings.priority,
            store_dir: settings.store_dir.to_string(),
            public_key: self
                .public_key()
                .map_or_else(String::new, |key| key.to_string()),
            old_public_keys: old_keys.map(PublicKey::to_string).collect(),
            skip_signed_by: texts(&settings.skip_signed_by),
            cache_everything: settings.cache_everything,
            require_signed_by: texts(&settings.require_signed_by),
            shared: settings.shared_as.is_some(),
            founded_as: settings.founded_as.clone(),
            unshared_because: None,
            retiring_keys: settings.retiring.iter().map(retiring_view).collect(),
        }
    }
}

impl Caches {
    /// Reads all settings and keys below `dir`.
    ///
    /// **Errors**: the first cache that cannot be read. A file that does not look like settings
    /// is one too: better not to start than to serve without a cache that was there.
    pub(crate) fn load(dir: DataDir) -> Result<Caches, CacheError> {
        let caches = Caches {
            snapshot: RwLock::default(),
            writer: Mutex::default(),
            next_id: AtomicU32::new(0),
            dir,
        };
        let mut snapshot = Snapshot::new();
        for name in caches.names_on_disk()? {
            let (settings, secret) = caches.read(&name)?;
            let cache = Cache::new(caches.new_id(), name.clone(), settings, secret, Life::new());
            snapshot.insert(name.as_str().into(), Arc::new(cache));
        }
        caches.replace_snapshot(snapshot);
        Ok(caches)
    }

    /// The caches now. Never waits for a change.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().expect("no panic under this lock"))
    }

    /// The cache called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Cache>> {
        self.snapshot
            .read()
            .expect("no panic under this lock")
            .get(name)
            .cloned()
    }

    /// Makes a cache, signing with `secret` or a fresh key.
    ///
    /// **Errors**: [`CacheError::Exists`], [`CacheError::Reserved`], or a setting or file error; then
    /// there is no cache.
    pub(crate) fn create(
        &self,
        name: &CacheName,
        patch: &CachePatch,
        secret: Option<SecretKey>,
    ) -> Result<Arc<Cache>, CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        if RESERVED.contains(&name.as_str()) {
            return Err(CacheError::Reserved(name.clone()));
        }
        if self.find(name.as_str()).is_some() {
            return Err(CacheError::Exists(name.clone()));
        }
        let settings = Settings::default().patched(patch)?;
        let secret = match secret {
            Some(secret) => secret,
            None => self
                .key_left_behind(name)?
                .map_or_else(|| fresh_key(name), Ok)?,
        };
        self.write_key(name, &secret)?;
        self.write_settings(name, &settings)?;
        Ok(self.insert(Cache::new(
            self.new_id(),
            name.clone(),
            settings,
            Some(secret),
            Life::new(),
        )))
    }

    /// Changes settings.
    ///
    /// **Errors**: [`CacheError::NotEmpty`] for a new store directory once a path is published;
    /// otherwise as [`Caches::create`]. Nothing is changed then.
    pub(crate) fn patch(
        &self,
        name: &CacheName,
        patch: &CachePatch,
        store: &Store,
    ) -> Result<Arc<Cache>, CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let old = self.existing(name)?;
        let settings = old.settings.clone().patched(patch)?;
        if settings.store_dir != old.settings.store_dir && !store.paths(name, None, 1)?.is_empty() {
            return Err(CacheError::NotEmpty(name.clone()));
        }
        self.write_settings(name, &settings)?;
        Ok(self.insert(successor(&old, settings, old.secret.clone())))
    }

    /// Signs with `secret`, or a fresh key, from now on. The old key goes on being known, up to the
    /// time `old_until` (seconds since 1970) if there is one.
    ///
    /// Paths published before keep only their old signatures until they are signed again.
    ///
    /// **Errors**: file errors; the old key stays in use then.
    pub(crate) fn replace_key(
        &self,
        name: &CacheName,
        secret: Option<SecretKey>,
        old_until: Option<u64>,
    ) -> Result<Arc<Cache>, CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let old = self.existing(name)?;
        let secret = secret.map_or_else(|| fresh_key(name), Ok)?;
        let public = secret.public();
        let mut settings = old.settings.clone();
        settings.public_key = None;
        if let Some(old_public) = old.public_key() {
            settings.old_public_keys.retain(|key| *key != old_public);
            settings.retiring.retain(|old| old.key != old_public);
            if let (Some(until), true) = (old_until, old_public != public) {
                let key = old_public.clone();
                settings.retiring.push(Retiring { key, until });
            }
            settings.old_public_keys.push(old_public);
        }
        settings.old_public_keys.retain(|key| *key != public);
        settings.retiring.retain(|old| old.key != public);
        if settings.old_public_keys.len() > KEYS_MAX {
            return Err(CacheError::TooManyKeys(settings.old_public_keys.len()));
        }
        // The list may name the current key for a moment: a crash in between loses neither key.
        self.write_settings(name, &settings)?;
        self.write_key(name, &secret)?;
        Ok(self.insert(successor(&old, settings, Some(secret))))
    }

    /// Gives up the old keys of a cache whose time is over at `now`; says which. Nothing is changed
    /// when there are none.
    ///
    /// **Errors**: file errors; they stay known then.
    pub(crate) fn retire_keys(
        &self,
        name: &CacheName,
        now: u64,
    ) -> Result<(Arc<Cache>, Vec<PublicKey>), CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let old = self.existing(name)?;
        let mut settings = old.settings.clone();
        let due = settings.retiring.extract_if(.., |old| old.until <= now);
        let gone: Vec<PublicKey> = due.map(|old| old.key).collect();
        if gone.is_empty() {
            return Ok((old, gone));
        }
        settings.old_public_keys.retain(|key| !gone.contains(key));
        self.write_settings(name, &settings)?;
        Ok((
            self.insert(successor(&old, settings, old.secret.clone())),
            gone,
        ))
    }

    /// Gives a cache a name that is free: `<name>-local`, or with a number; the name that the cluster
    /// `joined` would tell it apart by, if it is one of another cluster that this node left. All its
    /// paths, pins and objects go along.
    ///
    /// **Errors**: file and store errors; both names may exist then, and a second attempt finishes
    /// the work.
    pub(crate) fn rename(
        &self,
        name: &CacheName,
        joined: ClusterId,
        store: &Store,
    ) -> Result<CacheName, CacheError> {
        let to = {
            let _writer = self.writer.lock().expect("no panic under this lock");
            let old = self.existing(name)?;
            let elsewhere = old.settings.left.filter(|left| left.cluster != joined);
            let to = self.free_name(name, elsewhere.map(|left| left.cache))?;
            old.life.end();
            if let Some(secret) = &old.secret {
                self.write_key(&to, secret)?;
            }
            self.write_settings(&to, &old.settings)?;
            store.rename_cache(name, &to)?;
            let (settings, secret) = (old.settings.clone(), old.secret.clone());
            self.insert(Cache::new(
                self.new_id(),
                to.clone(),
                settings,
                secret,
                Life::new(),
            ));
            to
        };
        self.destroy(name, store)?;
        Ok(to)
    }

    fn free_name(&self, name: &CacheName, left: Option<CacheId>) -> Result<CacheName, CacheError> {
        let by_id = left.into_iter().flat_map(|id| told_apart(name, id));
        let numbered = (2..1000).map(|number| format!("{name}-local-{number}"));
        let texts = std::iter::once(format!("{name}-local")).chain(numbered);
        let by_number = texts.filter_map(|text| text.parse::<CacheName>().ok());
        by_id
            .chain(by_number)
            .find(|free| self.find(free.as_str()).is_none())
            .ok_or_else(|| CacheError::Exists(name.clone()))
    }

    /// Ends a cache: first for readers and publishers, then its paths, then its files.
    ///
    /// **Errors**: file and store errors; the cache is then still there after a restart, and a
    /// second attempt finishes the work.
    pub(crate) fn destroy(
        &self,
        name: &CacheName,
        store: &Store,
    ) -> Result<Arc<Cache>, CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let cache = self.existing(name)?;
        cache.life.end();
        store.purge_cache(name)?;
        remove_file(&self.dir.cache_settings(name))?;
        remove_file(&self.dir.cache_key(name))?;
        let mut snapshot = Snapshot::clone(&self.snapshot());
        snapshot.remove(name.as_str());
        self.replace_snapshot(snapshot);
        Ok(cache)
    }

    /// The cache of this cluster-wide id.
    pub(crate) fn find_shared(&self, id: &CacheId) -> Option<Arc<Cache>> {
        let snapshot = self.snapshot();
        snapshot
            .values()
            .find(|cache| cache.settings.shared_as == Some(*id))
            .cloned()
    }

    /// The caches that were this one of `cluster` when this node left that, and are its own now, by
    /// name.
    pub(crate) fn find_left(&self, cluster: ClusterId, cache: CacheId) -> Vec<Arc<Cache>> {
        let wanted = Some(Left { cluster, cache });
        let snapshot = self.snapshot();
        let own = snapshot
            .values()
            .filter(|cache| cache.settings.shared_as.is_none());
        own.filter(|cache| cache.settings.left == wanted)
            .cloned()
            .collect()
    }

    /// Makes or changes the local side of a cluster's cache: the settings as given, the key as it
    /// is. One that is not here yet takes its `name`, or the first of `others` that is free. Other
    /// caches stay untouched.
    ///
    /// **Errors**: [`CacheError::Exists`] when all names belong to other caches; file errors.
    pub(crate) fn adopt(
        &self,
        id: CacheId,
        (name, others): (&CacheName, impl IntoIterator<Item = CacheName>),
        change: impl FnOnce(&CacheName, &mut Settings),
    ) -> Result<Arc<Cache>, CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let old = self.find_shared(&id);
        let name = match &old {
            Some(cache) => cache.name.clone(),
            None => {
                let mut names = std::iter::once(name.clone()).chain(others);
                let free = names.find(|name| self.is_free(name));
                free.ok_or_else(|| CacheError::Exists(name.clone()))?
            }
        };
        let mut settings = match &old {
            Some(cache) => cache.settings.clone(),
            None => Settings::default(),
        };
        settings.shared_as = Some(id);
        change(&name, &mut settings);
        let cache = match old {
            Some(cache) if cache.settings == settings => return Ok(cache),
            Some(cache) => successor(&cache, settings, cache.secret.clone()),
            None => Cache::new(self.new_id(), name.clone(), settings, None, Life::new()),
        };
        self.write_settings(&name, &cache.settings)?;
        Ok(self.insert(cache))
    }

    /// Whether no cache has this name, and no key lies there under it: after a restart that would be
    /// taken for the key of a cache that is called so.
    fn is_free(&self, name: &CacheName) -> bool {
        self.find(name.as_str()).is_none() && !self.dir.cache_key(name).exists()
    }

    /// Makes a cache of this node again the one of a cluster that it was before this node left that,
    /// under the name that it has here. It stays marked until [`Caches::finish_coming_back`].
    ///
    /// **Errors**: file errors; it stays this node's own then.
    pub(crate) fn come_back(
        &self,
        name: &CacheName,
        change: impl FnOnce(&CacheName, &mut Settings),
    ) -> Result<Arc<Cache>, CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let old = self.existing(name)?;
        let mut settings = old.settings.clone();
        settings.shared_as = settings.left.map(|left| left.cache);
        change(name, &mut settings);
        self.write_settings(name, &settings)?;
        Ok(self.insert(successor(&old, settings, old.secret.clone())))
    }

    /// Takes the mark off a cache that came back, unless it was left again.
    ///
    /// **Errors**: file errors; it stays marked then.
    pub(crate) fn finish_coming_back(&self, name: &CacheName) -> Result<(), CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let old = self.existing(name)?;
        if old.settings.shared_as.is_none() {
            return Ok(());
        }
        let mut settings = old.settings.clone();
        settings.left = None;
        self.write_settings(name, &settings)?;
        self.insert(successor(&old, settings, old.secret.clone()));
        Ok(())
    }

    /// Marks a local cache as the cluster's cache `id`.
    ///
    /// **Errors**: as [`Caches::patch`].
    pub(crate) fn share_as(&self, name: &CacheName, id: CacheId) -> Result<Arc<Cache>, CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let old = self.existing(name)?;
        let mut settings = old.settings.clone();
        settings.shared_as = Some(id);
        settings.founded_as = None;
        settings.left = None;
        self.write_settings(name, &settings)?;
        Ok(self.insert(successor(&old, settings, old.secret.clone())))
    }

    /// Makes a cache that this node owns in `cluster` one of this node alone. The key stays.
    ///
    /// **Errors**: as [`Caches::patch`].
    pub(crate) fn unshare(
        &self,
        name: &CacheName,
        cluster: ClusterId,
    ) -> Result<Arc<Cache>, CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let old = self.existing(name)?;
        let mut settings = old.settings.clone();
        settings.leave(cluster);
        self.write_settings(name, &settings)?;
        Ok(self.insert(successor(&old, settings, old.secret.clone())))
    }

    /// Makes a cache of `cluster` that another node owns one of this node alone, without the secret
    /// key.
    ///
    /// **Errors**: file errors; the cache is the cluster's after a restart, and a second attempt
    /// finishes the work.
    pub(crate) fn unshare_without_key(
        &self,
        name: &CacheName,
        cluster: ClusterId,
    ) -> Result<Arc<Cache>, CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let old = self.existing(name)?;
        let mut settings = old.settings.clone();
        // Without a secret key the settings must name the public one, or the cache cannot be read.
        if settings.public_key.is_none() {
            settings.public_key = old.public_key();
            self.write_settings(name, &settings)?;
        }
        // First, so that no crash leaves a cache that is not the cluster's and has its key.
        remove_file(&self.dir.cache_key(name))?;
        settings.leave(cluster);
        self.write_settings(name, &settings)?;
        Ok(self.insert(successor(&old, settings, None)))
    }

    /// Signs with `secret` from now on, in a cache whose settings name its public half. Notes that what
    /// is there may have to be signed with it, too.
    ///
    /// **Errors**: file errors; the old key stays in use then.
    pub(crate) fn give_key(
        &self,
        name: &CacheName,
        secret: SecretKey,
    ) -> Result<Arc<Cache>, CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let old = self.existing(name)?;
        let mut settings = old.settings.clone();
        let held = &mut settings.signing.get_or_insert_default().held_keys;
        if let Some(before) = old.secret.as_ref().map(SecretKey::public) {
            held.retain(|key| *key != before);
            held.push(before);
            let most = held.len().saturating_sub(KEYS_MAX);
            held.drain(..most);
        }
        // First: a crash in between leaves a note that is made again.
        self.write_settings(name, &settings)?;
        self.write_key(name, &secret)?;
        Ok(self.insert(successor(&old, settings, Some(secret))))
    }

    /// Notes that all paths of a cache were looked through for those that `key` has to sign. Nothing is
    /// changed if the cache has another key by now.
    ///
    /// **Errors**: file errors; they are looked through again then.
    pub(crate) fn signed_with(&self, name: &CacheName, key: &PublicKey) -> Result<(), CacheError> {
        let _writer = self.writer.lock().expect("no panic under this lock");
        let old = self.existing(name)?;
        if old.secret.as_ref().map(SecretKey::public).as_ref() != Some(key) {
            return Ok(());
        }
        let mut settings = old.settings.clone();
        settings.signing = None;
        self.write_settings(name, &settings)?;
        self.insert(successor(&old, settings, old.secret.clone()));
        Ok(())
    }

    fn existing(&self, name: &CacheName) -> Result<Arc<Cache>, CacheError> {
        self.find(name.as_str())
            .ok_or_else(|| CacheError::Absent(name.clone()))
    }

    fn names_on_disk(&self) -> Result<BTreeSet<CacheName>, CacheError> {
        let dir = self.dir.caches();
        let io = |source: io::Error| FileError::new("list", &dir, source);
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&dir).map_err(io)? {
            let file = entry.map_err(io)?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".toml"));
            match name.map(str::parse) {
                Some(Ok(name)) => drop(names.insert(name)),
                Some(Err(_)) => return Err(CacheError::StrayFile(dir.join(&file))),
                // Drafts of an interrupted write.
                None => {}
            }
        }
        Ok(names)
    }

    fn read(&self, name: &CacheName) -> Result<(Settings, Option<SecretKey>), CacheError> {
        let path = self.dir.cache_settings(name);
        let settings: Settings =
            toml::from_str(&read_file(&path)?).map_err(|source| CacheError::Settings {
                path,
                source: Box::new(source),
            })?;
        let text = match read_secret(&self.dir.cache_key(name)) {
            Err(error) if error.is_not_found() && settings.public_key.is_some() => {
                return Ok((settings, None));
            }
            text => text?,
        };
        let secret = text.trim().parse().map_err(|source| CacheError::KeyFile {
            cache: name.clone(),
            source,
        })?;
        Ok((settings, Some(secret)))
    }

    /// A key without settings: of a cache whose making was interrupted, or put there by the owner.
    fn key_left_behind(&self, name: &CacheName) -> Result<Option<SecretKey>, CacheError> {
        match read_secret(&self.dir.cache_key(name)) {
            Err(error) if error.is_not_found() => Ok(None),
            text => {
                let secret = text?.trim().parse();
                let cache = name.clone();
                secret
                    .map(Some)
                    .map_err(|source| CacheError::KeyFile { cache, source })
            }
        }
    }

    fn write_key(&self, name: &CacheName, secret: &SecretKey) -> Result<(), FileError> {
        replace_file(
            &self.dir.cache_key(name),
            &(secret.to_text() + "\n"),
            Secrecy::Secret,
        )
    }

    fn write_settings(&self, name: &CacheName, settings: &Settings) -> Result<(), FileError> {
        let text = toml::to_string(settings).expect("settings are plain texts, numbers and lists");
        replace_file(&self.dir.cache_settings(name), &text, Secrecy::Public)
    }

    fn insert(&self, cache: Cache) -> Arc<Cache> {
        let cache = Arc::new(cache);
        let mut snapshot = Snapshot::clone(&self.snapshot());
        snapshot.insert(cache.name.as_str().into(), Arc::clone(&cache));
        self.replace_snapshot(snapshot);
        cache
    }

    fn replace_snapshot(&self, snapshot: Snapshot) {
        *self.snapshot.write().expect("no panic under this lock") = Arc::new(snapshot);
    }

    fn new_id(&self) -> u32 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

fn successor(old: &Cache, settings: Settings, secret: Option<SecretKey>) -> Cache {
    Cache::new(
        old.id,
        old.name.clone(),
        settings,
        secret,
        Arc::clone(&old.life),
    )
}

fn retiring_view(old: &Retiring) -> RetiringKey {
    RetiringKey {
        key: old.key.to_string(),
        until: old.until,
    }
}

/// A key whose name no other key has: clients tell keys apart by name alone.
fn fresh_key(name: &CacheName) -> Result<SecretKey, CacheError> {
    let unique = HEXLOWER.encode(&random::<4>());
    SecretKey::generate(&format!("{name}-{unique}"), random()).map_err(CacheError::Key)
}

/// Names that are not given to new caches: `/<name>` is not the cache's URL but tells of the node.
///
/// A cache that has such a name already is served, since all that it has lies below that.
pub(crate) const RESERVED: [&str; 3] = ["healthz", "metrics", "readyz"];

/// A cache could not be read or changed.
#[derive(Debug, Error)]
pub enum CacheError {
    /// No cache of this name.
    #[error("cache {0} does not exist")]
    Absent(CacheName),
    /// The name is taken.
    #[error("cache {0} exists already")]
    Exists(CacheName),
    /// The node answers at that URL itself.
    #[error("no cache can be called {0}: /{0} is an address of the node itself")]
    Reserved(CacheName),
    /// The store directory of a cache with paths does not change.
    #[error("cache {0} holds paths of its store directory")]
    NotEmpty(CacheName),
    /// A key given by the user is malformed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Longer lists are not taken.
    #[error("{0} keys in one list, at most {KEYS_MAX} are allowed")]
    TooManyKeys(usize),
    /// A store directory given by the user is malformed.
    #[error(transparent)]
    StoreDir(#[from] StorePathError),
    /// A settings file is malformed.
    #[error("read {}", path.display())]
    Settings {
        /// The file.
        path: std::path::PathBuf,
        /// Line and reason.
        source: Box<toml::de::Error>,
    },
    /// A key file is malformed.
    #[error("read secret key of cache {cache}")]
    KeyFile {
        /// The cache.
        cache: CacheName,
        /// What is wrong; does not contain the key.
        source: KeyError,
    },
    /// A file in the settings directory that is named after no possible cache.
    #[error("{} is not named after a cache", .0.display())]
    StrayFile(std::path::PathBuf),
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        _tmp: tempfile::TempDir,
        dir: DataDir,
        store: Store,
    }

    impl Fixture {
        fn new() -> Fixture {
            let tmp = tempfile::tempdir().unwrap();
            let dir = DataDir::new(tmp.path());
            dir.create().unwrap();
            let store = Store::open(&dir.store(), attic_store::Options::default()).unwrap();
            Fixture {
                _tmp: tmp,
                dir,
                store,
            }
        }

        fn caches(&self) -> Caches {
            Caches::load(self.dir.clone()).unwrap()
        }
    }

    fn main() -> CacheName {
        "main".parse().unwrap()
    }

    #[test]
    fn a_created_cache_is_there_after_a_restart() {
        let fixture = Fixture::new();
        let patch = CachePatch {
            public: Some(false),
            priority: Some(7),
            ..CachePatch::default()
        };
        let made = fixture.caches().create(&main(), &patch, None).unwrap();
        let again = fixture.caches().find("main").unwrap();
        assert_eq!(made.view(), again.view());
        assert!(!again.settings.public);
        assert_eq!(
            &again.info_text[..],
            b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 7\n"
        );
        assert!(again.view().skip_signed_by[0].starts_with("cache.nixos.org-1:"));
        assert!(matches!(
            fixture.caches().create(&main(), &patch, None),
            Err(CacheError::Exists(_))
        ));
    }

    /// G16: a patch changes what it names and nothing else.
    #[test]
    fn g16_a_patch_changes_only_what_it_names() {
        let fixture = Fixture::new();
        let caches = fixture.caches();
        let before = caches
            .create(&main(), &CachePatch::default(), None)
            .unwrap()
            .view();
        let patch = CachePatch {
            priority: Some(10),
            ..CachePatch::default()
        };
        let after = caches
            .patch(&main(), &patch, &fixture.store)
            .unwrap()
            .view();
        assert_eq!(
            after,
            CacheView {
                priority: 10,
                ..before
            }
        );
        assert_eq!(fixture.caches().find("main").unwrap().view(), after);
        let bad = CachePatch {
            require_signed_by: Some(vec!["x".into()]),
            ..patch
        };
        assert!(matches!(
            caches.patch(&main(), &bad, &fixture.store),
            Err(CacheError::Key(_))
        ));
        assert_eq!(fixture.caches().find("main").unwrap().view(), after);
    }

    #[test]
    fn a_replaced_key_stays_known() {
        let fixture = Fixture::new();
        let caches = fixture.caches();
        let first = caches
            .create(&main(), &CachePatch::default(), None)
            .unwrap();
        let second = caches.replace_key(&main(), None, None).unwrap();
        assert_ne!(
            first.public_key().unwrap().name(),
            second.public_key().unwrap().name(),
            "clients tell keys apart by name"
        );
        assert_eq!(
            second.settings.old_public_keys,
            [first.public_key().unwrap()]
        );
        let reloaded = fixture.caches().find("main").unwrap();
        assert_eq!(reloaded.view(), second.view());
        let back = caches
            .replace_key(&main(), first.secret.clone(), None)
            .unwrap();
        assert_eq!(
            back.settings.old_public_keys,
            [second.public_key().unwrap()]
        );
    }

    /// So a node that stops in between goes on.
    #[test]
    fn c11_that_paths_are_to_be_signed_is_known_until_they_are() {
        let fixture = Fixture::new();
        let caches = fixture.caches();
        let first = caches
            .create(&main(), &CachePatch::default(), None)
            .unwrap();
        let keys = [1, 2].map(|seed| SecretKey::generate("next", [seed; 32]).unwrap());
        for key in &keys {
            caches.give_key(&main(), key.clone()).unwrap();
        }
        let held = |caches: &Caches| {
            let signing = caches.find("main").unwrap().settings.signing.clone();
            signing.map(|signing| signing.held_keys)
        };
        let wanted = [first.public_key().unwrap(), keys[0].public()];
        assert_eq!(held(&fixture.caches()).unwrap(), wanted);
        caches.signed_with(&main(), &keys[0].public()).unwrap();
        assert_eq!(held(&caches).unwrap(), wanted, "another key came meanwhile");
        caches.signed_with(&main(), &keys[1].public()).unwrap();
        assert_eq!(held(&fixture.caches()), None);
    }

    #[test]
    fn c11_an_old_key_is_given_up_when_its_time_is_over() {
        let fixture = Fixture::new();
        let caches = fixture.caches();
        let first = caches
            .create(&main(), &CachePatch::default(), None)
            .unwrap();
        let second = caches.replace_key(&main(), None, Some(100)).unwrap();
        let third = caches.replace_key(&main(), None, None).unwrap();
        let first_key = first.public_key().unwrap();
        let second_key = second.public_key().unwrap();
        assert_eq!(third.view().retiring_keys.len(), 1);
        let (same, gone) = caches.retire_keys(&main(), 99).unwrap();
        assert_eq!((same.view(), gone), (third.view(), Vec::new()));
        let (after, gone) = fixture.caches().retire_keys(&main(), 100).unwrap();
        assert_eq!(gone, std::slice::from_ref(&first_key));
        assert_eq!(after.settings.old_public_keys, [second_key]);
        assert!(!after.own_keys.keys().contains(&first_key));
        assert_eq!(fixture.caches().find("main").unwrap().view(), after.view());
        // One that is in use again is not given up.
        let back = fixture.caches();
        back.replace_key(&main(), None, Some(200)).unwrap();
        back.replace_key(&main(), third.secret.clone(), None)
            .unwrap();
        assert!(back.retire_keys(&main(), 300).unwrap().1.is_empty());
    }

    #[test]
    fn a_cache_of_another_node_is_left_without_its_key() {
        let fixture = Fixture::new();
        let caches = fixture.caches();
        let id = CacheId::from_bytes([7; 16]);
        let cluster = ClusterId::from_bytes([8; 16]);
        let made = caches
            .create(&main(), &CachePatch::default(), None)
            .unwrap();
        caches.share_as(&main(), id).unwrap();
        let own = caches.unshare(&main(), cluster).unwrap();
        assert!(own.settings.shared_as.is_none() && own.secret.is_some());
        assert!(fixture.caches().find("main").unwrap().secret.is_some());
        // A second attempt meets a cache that has lost its key already.
        for _ in 0..2 {
            caches.share_as(&main(), id).unwrap();
            caches.unshare_without_key(&main(), cluster).unwrap();
            for cache in [caches.find("main"), fixture.caches().find("main")] {
                let cache = cache.unwrap();
                assert!(cache.settings.shared_as.is_none() && cache.secret.is_none());
                assert_eq!(cache.public_key(), made.public_key());
            }
            assert!(!fixture.dir.cache_key(&main()).exists());
        }
    }

    #[test]
    fn a_destroyed_cache_publishes_nothing_more_and_its_name_is_free() {
        let fixture = Fixture::new();
        let caches = fixture.caches();
        let first = caches
            .create(&main(), &CachePatch::default(), None)
            .unwrap();
        caches.destroy(&main(), &fixture.store).unwrap();
        assert!(caches.find("main").is_none());
        assert_eq!(first.life.while_alive(|| ()), None);
        let second = caches
            .create(&main(), &CachePatch::default(), None)
            .unwrap();
        assert_ne!(first.id, second.id);
        assert_ne!(first.public_key(), second.public_key());
        assert!(second.life.while_alive(|| ()).is_some());
    }

    #[test]
    fn what_is_not_a_cache_keeps_the_node_from_starting() {
        let rows = [
            ("a.b.toml", "", "is not named after a cache"),
            ("main.toml", "colour = 1", "main.toml"),
            ("main.toml", "", "main.key"),
        ];
        for (file, text, wanted) in rows {
            let fixture = Fixture::new();
            fs::write(fixture.dir.caches().join(file), text).unwrap();
            let error = Caches::load(fixture.dir.clone()).err().unwrap().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let fixture = Fixture::new();
        fs::write(fixture.dir.caches().join("main.toml.tmp"), "torn").unwrap();
        assert!(fixture.caches().snapshot().is_empty());
    }
}

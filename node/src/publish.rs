//! Making paths visible: check, sign, commit.
//!
//! The last step of every push, whichever way the NAR came. A path is published only when its NAR
//! is here under the very hash and size the path claims. Signatures that came with it are kept;
//! one under the name of a key this node knows must be good, because signing beside a forged one
//! would lend it our word.
//!
//! Everything here blocks; call it on a blocking thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use attic_store::narinfo::Compression;
use attic_store::record::PathRow;
use attic_store::{
    CacheName, NarHash, NarInfo, PathInfo, PublicKey, SecretKey, Signature, Store, StoreError,
    StorePathHash, TrustedKeys,
};
use thiserror::Error;

use crate::caches::Cache;
use crate::clock::unix_now;
use crate::content_path;
use crate::mesh::MeshSlot;
use crate::mesh::announce::GROUP;
use crate::nar_file::{NarFile, NarSuffix};
use crate::narinfo_memory::NarinfoMemory;

/// Publishes into caches.
#[derive(Clone)]
pub(crate) struct Publisher {
    pub(crate) store: Store,
    pub(crate) narinfos: Arc<NarinfoMemory>,
    pub(crate) mesh: Arc<MeshSlot>,
}

/// How a path comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// By itself, with the `PUT` of its narinfo. Other contents that the cache has stay, and only
    /// signatures are added to the same; what it refers to must not have been evicted lately.
    Put,
    /// From an upstream, when somebody asked for it. As [`Arrival::Put`], but what it refers to comes
    /// when that is asked for.
    Pulled,
    /// With all that comes with it, in a push session or from the cluster. Its contents take the
    /// place of others.
    Pushed,
}

impl Publisher {
    /// Publishes paths into a cache with one commit. Results are in the order of `infos`; those
    /// that are `Ok` are durable and visible, the others changed nothing.
    ///
    /// The lease that holds the NARs must live until this returns.
    pub(crate) fn publish(
        &self,
        cache: &Cache,
        infos: Vec<PathInfo>,
        arrival: Arrival,
    ) -> Vec<Result<(), PublishError>> {
        let hashes: Vec<_> = infos.iter().map(|info| *info.path.hash()).collect();
        let outcome = cache.life.while_alive(|| {
            let _locks = cache.life.paths.lock(&hashes);
            let rows = self.checked_rows(cache, infos, arrival);
            self.commit_and_announce(cache, rows, arrival)
        });
        outcome.unwrap_or_else(|| {
            hashes
                .iter()
                .map(|_| Err(PublishError::CacheGone))
                .collect()
        })
    }

    /// Tells the cluster again of paths that are pushed and in the cache already: a removal whose
    /// author has not heard of it spares them. Noted durably before this returns. To be called before
    /// they are looked for: what is gone is passed over.
    ///
    /// Those that no key of the cache vouches for any more are signed, as who pushes them vouches for
    /// them now.
    ///
    /// **Errors**: the cache is gone, or it could not be written down.
    pub(crate) fn say_again(
        &self,
        cache: &Cache,
        hashes: &[StorePathHash],
    ) -> Result<(), PublishError> {
        let mesh = cache.settings.shared_as.zip(self.mesh.get());
        let Some((id, mesh)) = mesh.filter(|(id, mesh)| mesh.announcer.is_heeded(*id)) else {
            return Ok(());
        };
        let outcome = cache.life.while_alive(|| {
            let noted = mesh.announcer.note(id, hashes);
            let noted = noted.map_err(|error| PublishError::Outbox(Arc::new(error)))?;
            for group in noted.chunks(GROUP) {
                if let Some(secret) = &cache.secret {
                    let vouch = |info: &mut PathInfo| {
                        if !is_signed(cache, info) {
                            sign(secret, cache, info);
                        }
                    };
                    let signed = self.change_page(cache, group, vouch);
                    signed.map_err(|error| PublishError::Store(Arc::new(error)))?;
                }
                // So that two records of a path are said in the order of its rows.
                let _locks = cache.life.paths.lock(group);
                mesh.announcer.announce(&self.store, cache, id, group);
            }
            Ok(())
        });
        outcome.unwrap_or(Err(PublishError::CacheGone))
    }

    /// Signs with the cache's key, of up to 512 paths after `after`, those that it is to sign, and tells
    /// the cluster of those that were pushed here.
    ///
    /// Signed is what another key in force vouches for, and what was pushed here while this node had one
    /// of the `held` keys, with that alone, whose signature goes: the cluster does not believe it any more.
    /// What others pushed with a key that is given up stays as it is. The key may have been given up
    /// because of just that.
    ///
    /// **Errors**: the store's, or it could not be written down; a repeat is safe.
    pub(crate) fn sign_page(
        &self,
        cache: &Cache,
        held: &TrustedKeys,
        after: Option<StorePathHash>,
    ) -> Result<SignedPage, PublishError> {
        let mut signed = SignedPage::default();
        let mesh = cache.settings.shared_as.zip(self.mesh.get());
        let (Some((id, mesh)), Some(secret)) = (mesh, &cache.secret) else {
            return Ok(signed);
        };
        let rows = self.store.paths(&cache.name, after, SIGN_PAGE)?;
        signed.last = rows.last().map(|row| *row.info.path.hash());
        let store_dir = &cache.settings.store_dir;
        let current = TrustedKeys::new([secret.public()]);
        let in_force = cache.own_keys.keys();
        let given_up = held.keys().iter().filter(|key| !in_force.contains(key));
        let given_up: Vec<PublicKey> = given_up.cloned().collect();
        let is_by = |keys: &TrustedKeys, info: &PathInfo| {
            let fingerprint = info.fingerprint(store_dir);
            keys.verify(&fingerprint, &info.signatures).is_some()
        };
        let (mut others, mut own) = (Vec::new(), BTreeMap::new());
        for row in rows.into_iter().filter(|row| !is_by(&current, &row.info)) {
            let hash = *row.info.path.hash();
            let is_believed = is_signed(cache, &row.info);
            if !is_believed && !is_by(held, &row.info) {
                continue;
            }
            let Some(said) = mesh.view.said_here(id, &hash) else {
                match is_believed {
                    true => others.push(hash),
                    false => signed.undecided |= mesh.announcer.is_noted_by_itself(id, &hash),
                }
                continue;
            };
            // It may be of something else than what was pushed here.
            let said = said.info.fingerprint(store_dir);
            if is_believed || row.info.fingerprint(store_dir) == said {
                own.insert(hash, said);
            }
        }
        let sign_other = |info: &mut PathInfo| {
            if is_signed(cache, info) {
                sign(secret, cache, info);
            }
        };
        let sign_own = |info: &mut PathInfo| {
            let fingerprint = info.fingerprint(store_dir);
            let is_said = own.get(info.path.hash()) == Some(&fingerprint);
            if is_signed(cache, info) || (is_said && is_by(held, info)) {
                *info = without_signatures(cache, info, &given_up);
                sign(secret, cache, info);
            }
        };
        let work = || -> Result<(), PublishError> {
            self.change_page(cache, &others, sign_other)?;
            let own: Vec<StorePathHash> = own.keys().copied().collect();
            if !mesh.announcer.is_heeded(id) {
                return Ok(());
            }
            let noted = mesh.announcer.note(id, &own);
            noted.map_err(|error| PublishError::Outbox(Arc::new(error)))?;
            for group in own.chunks(GROUP) {
                self.change_page(cache, group, sign_own)?;
                let _locks = cache.life.paths.lock(group);
                mesh.announcer.announce(&self.store, cache, id, group);
            }
            Ok(())
        };
        cache.life.while_alive(work).unwrap_or(Ok(()))?;
        Ok(signed)
    }

    /// Keeps a path that another node of the cluster published, with the signatures it came with.
    /// True if it was not here before.
    ///
    /// **Errors**: as [`Publisher::publish`].
    pub(crate) fn keep(&self, cache: &Cache, info: PathInfo) -> Result<bool, PublishError> {
        let hash = *info.path.hash();
        let outcome = cache.life.while_alive(|| {
            let _locks = cache.life.paths.lock(&[hash]);
            let row = self.checked_row(cache, info, Arrival::Pushed)?.new_row();
            let is_new = row.is_some();
            let mut results = self.commit(cache, vec![Ok(row)], Arrival::Pushed);
            results.pop().unwrap_or(Ok(())).map(|()| is_new)
        });
        outcome.unwrap_or(Err(PublishError::CacheGone))
    }

    /// Gives a copy of a path the signatures that the cluster says it has. Those that the copy has
    /// beyond them were taken off, or came with an older word.
    ///
    /// Changes nothing where the copy is of something else, or no key of the cache would vouch for it.
    ///
    /// **Errors**: the store's.
    pub(crate) fn follow(&self, cache: &Cache, said: &PathInfo) -> Result<(), StoreError> {
        let store_dir = &cache.settings.store_dir;
        let fingerprint = said.fingerprint(store_dir);
        let follow = |info: &mut PathInfo| {
            let mut followed = info.clone();
            followed.signatures = said.signatures.clone();
            if let Some(secret) = &cache.secret {
                sign(secret, cache, &mut followed);
            }
            let followed = sorted(followed);
            let is_same = info.fingerprint(store_dir).as_ref() == fingerprint.as_ref();
            if is_same && is_signed(cache, &followed) && check_signatures(cache, &followed).is_ok()
            {
                *info = followed;
            }
        };
        let change = || self.change_page(cache, &[*said.path.hash()], follow);
        cache.life.while_alive(change).unwrap_or(Ok(0)).map(|_| ())
    }

    /// Checks that a narinfo sent by `PUT` describes a body that was uploaded to this cache, or a
    /// NAR that the cache holds already.
    ///
    /// Knowing the hash of a NAR that others pushed elsewhere is not enough.
    pub(crate) fn check_upload(
        &self,
        cache: &Cache,
        narinfo: &NarInfo,
    ) -> Result<(), PublishError> {
        let wrong = |field| Err(PublishError::Mismatch(field));
        let file = narinfo.url.strip_prefix("nar/").and_then(NarFile::parse);
        let file = file.ok_or(PublishError::Mismatch("URL"))?;
        if !fits(narinfo.compression, file.suffix) {
            return wrong("Compression");
        }
        let body = self
            .uploaded_body(cache, narinfo, &file)?
            .ok_or(PublishError::NarAbsent)?;
        if body.nar_hash != narinfo.info.nar_hash {
            return wrong("NarHash");
        }
        if narinfo
            .file_hash
            .is_some_and(|hash| *hash.as_bytes() != body.hash)
        {
            return wrong("FileHash");
        }
        if narinfo.file_size.is_some_and(|size| size != body.len) {
            return wrong("FileSize");
        }
        Ok(())
    }

    /// Adds the cache's signature to all its paths, a page at a time. Returns how many it signed.
    ///
    /// **Errors**: the store's; paths before the failing page are signed, a repeat is safe.
    pub(crate) fn sign_all(&self, cache: &Cache) -> Result<u64, StoreError> {
        let Some(secret) = &cache.secret else {
            return Ok(0);
        };
        self.for_each_page(cache, |hashes| {
            self.change_page(cache, hashes, |info| sign(secret, cache, info))
        })
    }

    /// Does `work` with the paths of a cache, a page at a time; the sum of what it returns.
    fn for_each_page(
        &self,
        cache: &Cache,
        work: impl Fn(&[StorePathHash]) -> Result<u64, StoreError>,
    ) -> Result<u64, StoreError> {
        let (mut changed, mut after) = (0, None);
        loop {
            let page = self.store.paths(&cache.name, after, SIGN_PAGE)?;
            let Some(last) = page.last() else {
                return Ok(changed);
            };
            after = Some(*last.info.path.hash());
            let hashes: Vec<_> = page.iter().map(|row| *row.info.path.hash()).collect();
            let outcome = cache.life.while_alive(|| work(&hashes));
            changed += outcome.unwrap_or(Ok(0))?;
        }
    }

    /// Takes the signatures of old keys off all paths of a cache that a key it still has vouches for.
    /// Returns of how many.
    ///
    /// **Errors**: the store's; a repeat is safe.
    pub(crate) fn drop_signatures(
        &self,
        cache: &Cache,
        old: &[PublicKey],
    ) -> Result<u64, StoreError> {
        self.for_each_page(cache, |hashes| {
            self.change_page(cache, hashes, |info| {
                let rest = without_signatures(cache, info, old);
                if is_signed(cache, &rest) {
                    *info = rest;
                }
            })
        })
    }

    /// Applies `change` to paths of a cache with one commit; returns how many it changed.
    fn change_page(
        &self,
        cache: &Cache,
        hashes: &[StorePathHash],
        change: impl Fn(&mut PathInfo),
    ) -> Result<u64, StoreError> {
        let _locks = cache.life.paths.lock(hashes);
        let mut rows = Vec::new();
        for hash in hashes {
            // Read again under the lock: it may have changed or gone since the page was read.
            let Some(mut row) = self.store.path(&cache.name, hash)? else {
                continue;
            };
            let before = row.info.clone();
            change(&mut row.info);
            if row.info != before {
                rows.push(row);
            }
        }
        let count = rows.len() as u64;
        self.store.publish(rows)?;
        hashes
            .iter()
            .for_each(|hash| self.narinfos.forget(&(cache.id, *hash)));
        Ok(count)
    }

    fn checked_rows(
        &self,
        cache: &Cache,
        infos: Vec<PathInfo>,
        arrival: Arrival,
    ) -> Vec<Result<Checked, PublishError>> {
        let mut seen = BTreeSet::new();
        let check = |info: PathInfo| {
            if !seen.insert(*info.path.hash()) {
                return Err(PublishError::Duplicate);
            }
            self.checked_row(cache, info, arrival)
        };
        infos.into_iter().map(check).collect()
    }

    fn checked_row(
        &self,
        cache: &Cache,
        info: PathInfo,
        arrival: Arrival,
    ) -> Result<Checked, PublishError> {
        let nar = self
            .store
            .nar(&info.nar_hash)?
            .ok_or(PublishError::NarAbsent)?;
        if nar.nar_size != info.nar_size {
            return Err(PublishError::Mismatch("NarSize"));
        }
        let info = sorted(info);
        if !content_path::is_consistent(&info, &cache.settings.store_dir) {
            return Err(PublishError::Mismatch("CA"));
        }
        check_signatures(cache, &info)?;
        let old = self.store.path(&cache.name, info.path.hash())?;
        let mut merged = match &old {
            Some(row) => merge(cache, &row.info, info, arrival)?,
            None => info,
        };
        match &cache.secret {
            Some(secret) => sign(secret, cache, &mut merged),
            // Vouched for by another node that has the key, or by nobody.
            None if is_signed(cache, &merged) => {}
            None => return Err(PublishError::NoKey(cache.name.clone())),
        }
        if merged.signatures.len() > SIGNATURES_MAX {
            return Err(PublishError::TooManySignatures(merged.signatures.len()));
        }
        if let Some(row) = old.filter(|row| row.info == merged) {
            return Ok(Checked::Same(row));
        }
        let (cache, published_at) = (cache.name.clone(), unix_now());
        Ok(Checked::New(PathRow {
            cache,
            info: merged,
            published_at,
        }))
    }

    /// Commits the rows that passed, and tells the cluster of them.
    fn commit_and_announce(
        &self,
        cache: &Cache,
        checked: Vec<Result<Checked, PublishError>>,
        arrival: Arrival,
    ) -> Vec<Result<(), PublishError>> {
        let checked = checked.into_iter();
        let mesh = cache.settings.shared_as.zip(self.mesh.get());
        let Some((id, mesh)) = mesh else {
            let rows = checked.map(|row| row.map(Checked::new_row)).collect();
            return self.commit(cache, rows, arrival);
        };
        // What is here is said again, and written again: until it was noted, a removal that comes
        // from elsewhere may have taken its row.
        let checked: Vec<_> = match mesh.announcer.is_heeded(id) {
            true => checked.map(|row| row.map(Checked::row)).collect(),
            false => checked.map(|row| row.map(Checked::new_row)).collect(),
        };
        let rows = checked.iter().flatten().flatten();
        let hashes: Vec<_> = rows.map(|row| *row.info.path.hash()).collect();
        if let Err(error) = mesh.announcer.note(id, &hashes) {
            let error = Arc::new(error);
            let refuse = |row: Result<Option<PathRow>, PublishError>| match row? {
                None => Ok(()),
                Some(_) => Err(PublishError::Outbox(Arc::clone(&error))),
            };
            return checked.into_iter().map(refuse).collect();
        }
        let results = self.commit(cache, checked, arrival);
        mesh.announcer.announce(&self.store, cache, id, &hashes);
        results
    }

    /// Commits the rows that passed; a failing store fails all of them.
    fn commit(
        &self,
        cache: &Cache,
        checked: Vec<Result<Option<PathRow>, PublishError>>,
        arrival: Arrival,
    ) -> Vec<Result<(), PublishError>> {
        let rows: Vec<_> = checked.iter().flatten().flatten().cloned().collect();
        let keys: Vec<_> = rows
            .iter()
            .map(|row| (cache.id, *row.info.path.hash()))
            .collect();
        let committed = match arrival {
            _ if rows.is_empty() => Ok(()),
            Arrival::Put => {
                let is_elsewhere = |hash: &StorePathHash| self.is_elsewhere(cache, hash);
                self.store.publish_with_references(rows, is_elsewhere)
            }
            Arrival::Pulled | Arrival::Pushed => self.store.publish(rows),
        };
        keys.iter().for_each(|key| self.narinfos.forget(key));
        let failed = committed.map_err(Arc::new);
        let outcome = |row: Result<Option<PathRow>, PublishError>| match row? {
            None => Ok(()),
            Some(_) => failed.clone().map_err(PublishError::Commit),
        };
        checked.into_iter().map(outcome).collect()
    }

    /// Whether another node of the cluster holds a path that is not here.
    fn is_elsewhere(&self, cache: &Cache, hash: &StorePathHash) -> bool {
        let shared = cache.settings.shared_as.zip(self.mesh.get());
        shared.is_some_and(|(id, mesh)| {
            let record = mesh.view.path(id, hash);
            record.is_some_and(|record| !mesh.view.holders(&record.info.nar_hash).is_empty())
        })
    }

    /// What lies under the file a narinfo points to: an upload to this cache, or our own name for
    /// a NAR that a path of this cache has.
    fn uploaded_body(
        &self,
        cache: &Cache,
        narinfo: &NarInfo,
        file: &NarFile,
    ) -> Result<Option<Body>, StoreError> {
        if let Some(upload) = self.store.upload_name(&cache.name, &file.to_string())? {
            let (nar_hash, hash) = (upload.nar_hash, *upload.body_hash.as_bytes());
            return Ok(Some(Body {
                nar_hash,
                hash,
                len: upload.body_len,
            }));
        }
        let nar_hash = NarHash::from_bytes(file.hash);
        let known = self.store.path(&cache.name, narinfo.info.path.hash())?;
        if known.is_none_or(|row| row.info.nar_hash != nar_hash) {
            return Ok(None);
        }
        let Some(nar) = self.store.nar(&nar_hash)? else {
            return Ok(None);
        };
        Ok(match file.suffix {
            NarSuffix::Zstd => Some(Body {
                nar_hash,
                hash: *nar.file_hash.as_bytes(),
                len: nar.file_size,
            }),
            NarSuffix::Plain => Some(Body {
                nar_hash,
                hash: file.hash,
                len: nar.nar_size,
            }),
            NarSuffix::Xz | NarSuffix::Bzip2 | NarSuffix::Br => None,
        })
    }
}

/// What [`Publisher::sign_page`] came across.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SignedPage {
    /// The last path; `None` if there was none.
    pub(crate) last: Option<StorePathHash>,
    /// Whether it is not certain of some path yet that it was pushed here: the log is about to say so.
    pub(crate) undecided: bool,
}

/// The row of a path that passed.
enum Checked {
    /// To be written.
    New(PathRow),
    /// As the cache holds it.
    Same(PathRow),
}

impl Checked {
    fn new_row(self) -> Option<PathRow> {
        match self {
            Checked::New(row) => Some(row),
            Checked::Same(_) => None,
        }
    }

    fn row(self) -> Option<PathRow> {
        match self {
            Checked::New(row) | Checked::Same(row) => Some(row),
        }
    }
}

/// Bytes that a client sent or may fetch under a file name.
struct Body {
    nar_hash: NarHash,
    hash: [u8; 32],
    len: u64,
}

/// Whether a file of this name can be compressed like this. Nix has no ending for gzip.
fn fits(compression: Compression, suffix: NarSuffix) -> bool {
    match compression {
        Compression::None | Compression::Gzip => suffix == NarSuffix::Plain,
        Compression::Zstd => suffix == NarSuffix::Zstd,
        Compression::Xz => suffix == NarSuffix::Xz,
        Compression::Bzip2 => suffix == NarSuffix::Bzip2,
        Compression::Br => suffix == NarSuffix::Br,
    }
}

/// Whether a path that comes with its signatures may be in a cache: a narinfo that would not be
/// published must not be shown either.
pub(crate) fn may_show(cache: &Cache, info: &PathInfo) -> bool {
    content_path::is_consistent(info, &cache.settings.store_dir)
        && check_signatures(cache, info).is_ok()
}

/// Refuses forged signatures, and a path without one that the cache demands.
fn check_signatures(cache: &Cache, info: &PathInfo) -> Result<(), PublishError> {
    let fingerprint = info.fingerprint(&cache.settings.store_dir);
    for signature in &info.signatures {
        let name = signature.key_name();
        let mut named = cache
            .known_keys
            .keys()
            .iter()
            .filter(|key| key.name() == name)
            .peekable();
        if named.peek().is_some() && !named.any(|key| key.verify(fingerprint.as_ref(), signature)) {
            return Err(PublishError::BadSignature(name.to_owned()));
        }
    }
    let required = &cache.required_keys;
    if !required.keys().is_empty() && required.verify(&fingerprint, &info.signatures).is_none() {
        return Err(PublishError::Unsigned);
    }
    Ok(())
}

/// What the cache holds after `new` comes to where `old` is.
fn merge(
    cache: &Cache,
    old: &PathInfo,
    new: PathInfo,
    arrival: Arrival,
) -> Result<PathInfo, PublishError> {
    let store_dir = &cache.settings.store_dir;
    if old.fingerprint(store_dir) == new.fingerprint(store_dir) {
        let mut merged = old.clone();
        merged.deriver = merged.deriver.or(new.deriver);
        merged.ca = merged.ca.or(new.ca);
        new.signatures
            .into_iter()
            .for_each(|signature| merged.add_signature(signature));
        return Ok(merged);
    }
    match arrival {
        Arrival::Put | Arrival::Pulled => Err(PublishError::Differs),
        // Signatures of the old contents say nothing about the new.
        Arrival::Pushed => Ok(new),
    }
}

/// The same with its signatures in order, each once.
fn sorted(mut info: PathInfo) -> PathInfo {
    let signatures = std::mem::take(&mut info.signatures);
    signatures
        .into_iter()
        .for_each(|signature| info.add_signature(signature));
    info
}

/// The same without the signatures of these keys.
fn without_signatures(cache: &Cache, info: &PathInfo, keys: &[PublicKey]) -> PathInfo {
    let fingerprint = info.fingerprint(&cache.settings.store_dir);
    let is_theirs = |signature: &Signature| {
        let mut named = keys.iter().filter(|key| key.name() == signature.key_name());
        named.any(|key| key.verify(fingerprint.as_ref(), signature))
    };
    let mut rest = info.clone();
    rest.signatures.retain(|signature| !is_theirs(signature));
    rest
}

fn sign(secret: &SecretKey, cache: &Cache, info: &mut PathInfo) {
    let fingerprint = info.fingerprint(&cache.settings.store_dir);
    info.add_signature(secret.sign(fingerprint.as_ref()));
}

/// Whether a key of the cache itself, old or new, vouches for a path.
fn is_signed(cache: &Cache, info: &PathInfo) -> bool {
    let fingerprint = info.fingerprint(&cache.settings.store_dir);
    cache
        .own_keys
        .verify(&fingerprint, &info.signatures)
        .is_some()
}

/// Locks on paths: striped, so that a batch takes a handful of them at once.
pub(crate) struct PathLocks {
    stripes: [Mutex<()>; STRIPES],
}

impl Default for PathLocks {
    fn default() -> PathLocks {
        PathLocks {
            stripes: std::array::from_fn(|_| Mutex::new(())),
        }
    }
}

impl PathLocks {
    /// Locks all of `paths`. Stripes are taken in order, so that two batches cannot deadlock.
    pub(crate) fn lock(&self, paths: &[StorePathHash]) -> Vec<MutexGuard<'_, ()>> {
        let stripe = |path: &StorePathHash| usize::from(path.as_bytes()[0]) % STRIPES;
        let stripes: BTreeSet<usize> = paths.iter().map(stripe).collect();
        let lock = |stripe: usize| {
            self.stripes[stripe]
                .lock()
                .expect("no panic under this lock")
        };
        stripes.into_iter().map(lock).collect()
    }
}

const STRIPES: usize = 64;
/// Paths signed again per commit.
const SIGN_PAGE: usize = 512;
/// Most signatures a path may gather.
const SIGNATURES_MAX: usize = 64;

/// Why a path is not published.
#[derive(Clone, Debug, Error)]
pub(crate) enum PublishError {
    /// The NAR was not uploaded, or is damaged.
    #[error("its NAR was not uploaded")]
    NarAbsent,
    /// A field contradicts the path or the bytes that were uploaded.
    #[error("{0} does not match the path and its NAR")]
    Mismatch(&'static str),
    /// A signature under a known key's name does not verify.
    #[error("signature of {0} is not valid")]
    BadSignature(String),
    /// The cache demands a signature that is not there.
    #[error("it has no signature that this cache requires")]
    Unsigned,
    /// This node does not have the key of the cache, and nobody who has it signed the path.
    #[error("this node does not have the key of cache {0}")]
    NoKey(CacheName),
    /// More signatures than are kept.
    #[error("{0} signatures are too many")]
    TooManySignatures(usize),
    /// The path is in the cache with other contents.
    #[error("the cache holds this path with other contents")]
    Differs,
    /// The same path twice in one batch.
    #[error("it is listed twice")]
    Duplicate,
    /// The cache was destroyed meanwhile.
    #[error("the cache does not exist any more")]
    CacheGone,
    /// It could not be written down that the path has to be announced.
    #[error("write the outbox")]
    Outbox(#[source] Arc<std::io::Error>),
    /// The store failed while checking.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The store failed to commit the batch.
    #[error(transparent)]
    Commit(Arc<StoreError>),
}

impl From<StoreError> for PublishError {
    fn from(error: StoreError) -> PublishError {
        PublishError::Store(Arc::new(error))
    }
}

//! What a node keeps on disk of its cluster.
//!
//! ```text
//! cluster/genesis        the record that founded the cluster
//! cluster/cluster.key    the cluster's key, 0600; only where it was founded
//! cluster/invites        open invitations of this node, 0600
//! cluster/owners/<id>    keys of caches this node owns, 0600
//! cluster/readers/<id>   keys to read private caches, 0600
//! cluster/peers          addresses under which others were reached
//! cluster/names          what others call themselves
//! cluster/outbox         paths that are not announced yet
//! cluster/log/           what the nodes of the cluster said
//! cluster/bucket/        what is known of the cluster's bucket; learnt again when it is lost
//! cluster/certificate    this node's certificate; the node is in a cluster when it is there
//! ```
//!
//! The keys of caches that this node owns exist nowhere else. A node that leaves keeps them, and those to
//! read these caches, in `left/<cluster id>/owners` and `readers`, and has them again when it comes back.
//!
//! Small files hold one line of base64 each. The certificate is written last and removed first: a
//! crash in between leaves a node that is in no cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use attic_p2p::Multiaddr;
use attic_p2p::ids::{CacheId, ClusterId};
use attic_p2p::membership::certificate::Certificate;
use attic_p2p::membership::genesis::{ClusterKey, Genesis};
use attic_p2p::membership::invite::Invites;
use attic_p2p::private::EpochKey;
use attic_p2p::signed::Signed;
use data_encoding::BASE64;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::data_dir::{
    DataDir, FileError, Secrecy, make_dir, read_file, read_secret, remove_file, replace_file,
};

/// The cluster's directory.
#[derive(Clone, Debug)]
pub(crate) struct ClusterFiles {
    dir: PathBuf,
    left: PathBuf,
}

/// What makes a node a member.
#[derive(Clone, Debug)]
pub(crate) struct Charter {
    pub(crate) genesis: Genesis,
    pub(crate) certificate: Signed<Certificate>,
    pub(crate) cluster_key: Option<ClusterKey>,
}

impl ClusterFiles {
    /// The files below a data directory. Does not touch disk.
    pub(crate) fn new(data: &DataDir) -> ClusterFiles {
        ClusterFiles {
            dir: data.cluster(),
            left: data.left(),
        }
    }

    /// What is kept of a cluster that this node left.
    fn left(&self, cluster: ClusterId) -> ClusterFiles {
        ClusterFiles {
            dir: self.left.join(cluster.to_string()),
            left: self.left.clone(),
        }
    }

    /// What makes this node a member; `None` if it is in no cluster.
    ///
    /// **Errors**: a file is missing or damaged. The node must not start then: it would be taken for
    /// another.
    pub(crate) fn load(&self) -> Result<Option<Charter>, ClusterFileError> {
        let Some(certificate) = absent_is_none(read_file(&self.certificate()))? else {
            return Ok(None);
        };
        let certificate = decode(&certificate)
            .and_then(|bytes| Signed::decode(&bytes).ok())
            .ok_or_else(|| ClusterFileError::Damaged(self.certificate()))?;
        let genesis = decode(&read_file(&self.genesis())?)
            .and_then(|bytes| Genesis::decode(&bytes).ok())
            .ok_or_else(|| ClusterFileError::Damaged(self.genesis()))?;
        let cluster_key = absent_is_none(read_secret(&self.cluster_key()))?
            .map(|text| text.trim().parse())
            .transpose()
            .map_err(|_| ClusterFileError::Damaged(self.cluster_key()))?;
        Ok(Some(Charter {
            genesis,
            certificate,
            cluster_key,
        }))
    }

    /// Makes this node a member, durably.
    pub(crate) fn found(&self, charter: &Charter) -> Result<(), ClusterFileError> {
        for dir in [&self.dir, &self.owners(), &self.readers(), &self.log()] {
            make_dir(dir)?;
        }
        replace_file(
            &self.genesis(),
            &line(&charter.genesis.encode()),
            Secrecy::Public,
        )?;
        if let Some(key) = &charter.cluster_key {
            let text = key.to_text() + "\n";
            replace_file(&self.cluster_key(), &text, Secrecy::Secret)?;
        }
        self.write_certificate(&charter.certificate)
    }

    /// Replaces this node's certificate, durably.
    pub(crate) fn write_certificate(
        &self,
        certificate: &Signed<Certificate>,
    ) -> Result<(), ClusterFileError> {
        let text = line(&certificate.encode());
        Ok(replace_file(&self.certificate(), &text, Secrecy::Public)?)
    }

    /// Keeps for later what owns caches of the cluster, before this node leaves it.
    ///
    /// **Errors**: a file cannot be read or written; nothing is removed then.
    pub(crate) fn keep_owned(&self, cluster: ClusterId) -> Result<(), ClusterFileError> {
        self.copy_owned(&self.left(cluster))
    }

    /// Takes back what [`ClusterFiles::keep_owned`] kept, when this node is a member again.
    ///
    /// **Errors**: a file cannot be read or written; what was kept stays then.
    pub(crate) fn take_back_owned(&self, cluster: ClusterId) -> Result<(), ClusterFileError> {
        let left = self.left(cluster);
        left.copy_owned(self)?;
        remove_dir(&left.dir)
    }

    fn copy_owned(&self, to: &ClusterFiles) -> Result<(), ClusterFileError> {
        let owned = self.owned()?;
        if owned.is_empty() {
            return Ok(());
        }
        make_dir(&to.owners())?;
        for (cache, seed) in &owned {
            to.write_owner_seed(cache, seed)?;
        }
        let mut keys = self.epoch_keys()?.into_iter();
        keys.try_for_each(|(cache, key)| match owned.contains_key(&cache) {
            true => to.write_epoch_key(&cache, &key),
            false => Ok(()),
        })
    }

    /// The seeds of the keys that own caches. What is named after no cache is left alone.
    fn owned(&self) -> Result<BTreeMap<CacheId, Zeroizing<[u8; 32]>>, ClusterFileError> {
        let mut owned = BTreeMap::new();
        for cache in caches_in(&self.owners())? {
            if let Some(seed) = self.owner_seed(&cache)? {
                owned.insert(cache, Zeroizing::new(seed));
            }
        }
        Ok(owned)
    }

    /// Makes this node a member of nothing. Everything about the cluster is removed.
    pub(crate) fn leave(&self) -> Result<(), ClusterFileError> {
        remove_file(&self.certificate())?;
        remove_dir(&self.dir)
    }

    /// The open invitations.
    pub(crate) fn invites(&self) -> Result<Invites, ClusterFileError> {
        let Some(text) = absent_is_none(read_secret(&self.invites_file()))? else {
            return Ok(Invites::default());
        };
        decode(&text)
            .and_then(|bytes| postcard::from_bytes(&bytes).ok())
            .ok_or_else(|| ClusterFileError::Damaged(self.invites_file()))
    }

    /// Replaces the open invitations, durably.
    pub(crate) fn write_invites(&self, invites: &Invites) -> Result<(), ClusterFileError> {
        let bytes = postcard::to_stdvec(invites).expect("plain data");
        let text = line(&bytes);
        Ok(replace_file(&self.invites_file(), &text, Secrecy::Secret)?)
    }

    /// The seed of the key that owns a cache; `None` if another node owns it.
    pub(crate) fn owner_seed(&self, cache: &CacheId) -> Result<Option<[u8; 32]>, ClusterFileError> {
        let path = self.owners().join(cache.to_string());
        let Some(text) = absent_is_none(read_secret(&path))? else {
            return Ok(None);
        };
        let seed = decode(&text).and_then(|bytes| bytes.try_into().ok());
        seed.map(Some).ok_or(ClusterFileError::Damaged(path))
    }

    /// Keeps the seed of the key that owns a cache, durably.
    pub(crate) fn write_owner_seed(
        &self,
        cache: &CacheId,
        seed: &[u8; 32],
    ) -> Result<(), ClusterFileError> {
        let path = self.owners().join(cache.to_string());
        Ok(replace_file(&path, &line(seed), Secrecy::Secret)?)
    }

    /// The keys to read private caches, the newest of each.
    ///
    /// **Errors**: one is damaged. What is named after no cache is left alone.
    pub(crate) fn epoch_keys(&self) -> Result<Vec<(CacheId, EpochKey)>, ClusterFileError> {
        let dir = self.readers();
        let mut keys = Vec::new();
        for cache in caches_in(&dir)? {
            let path = dir.join(cache.to_string());
            let text = Zeroizing::new(read_secret(&path)?);
            let bytes = decode(&text).map(Zeroizing::new);
            let key = bytes.and_then(|bytes| EpochKey::from_bytes(&bytes));
            keys.push((cache, key.ok_or(ClusterFileError::Damaged(path))?));
        }
        Ok(keys)
    }

    /// Keeps the newest key to read a private cache, durably.
    pub(crate) fn write_epoch_key(
        &self,
        cache: &CacheId,
        key: &EpochKey,
    ) -> Result<(), ClusterFileError> {
        // A cluster that was joined by an older version has no such directory.
        make_dir(&self.readers())?;
        let path = self.readers().join(cache.to_string());
        let text = Zeroizing::new(line(&key.to_bytes()));
        Ok(replace_file(&path, &text, Secrecy::Secret)?)
    }

    /// Addresses under which others were reached, most recent first. What is no address is left
    /// out: these are hints.
    pub(crate) fn peers(&self) -> Vec<Multiaddr> {
        let text = read_file(&self.peers_file()).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Replaces the remembered addresses.
    pub(crate) fn write_peers(&self, peers: &[Multiaddr]) -> Result<(), ClusterFileError> {
        let text: String = peers.iter().map(|peer| format!("{peer}\n")).collect();
        Ok(replace_file(&self.peers_file(), &text, Secrecy::Public)?)
    }

    /// What others called themselves, as it was written. Nothing if it cannot be read.
    pub(crate) fn names(&self) -> String {
        read_file(&self.names_file()).unwrap_or_default()
    }

    /// Replaces what others call themselves.
    pub(crate) fn write_names(&self, text: &str) -> Result<(), ClusterFileError> {
        Ok(replace_file(&self.names_file(), text, Secrecy::Public)?)
    }

    /// Removes all logs of a cluster that this node is not in.
    pub(crate) fn forget_logs(&self) -> Result<(), ClusterFileError> {
        match fs::remove_dir_all(self.log()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::new("remove", &self.log(), error).into())
            }
            _ => Ok(()),
        }
    }

    /// Directory of the logs.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Directory of what is known of the cluster's bucket.
    pub(crate) fn bucket(&self) -> PathBuf {
        self.dir.join("bucket")
    }

    /// File of the paths that are not announced yet.
    pub(crate) fn outbox(&self) -> PathBuf {
        self.dir.join("outbox")
    }

    fn certificate(&self) -> PathBuf {
        self.dir.join("certificate")
    }

    fn genesis(&self) -> PathBuf {
        self.dir.join("genesis")
    }

    fn cluster_key(&self) -> PathBuf {
        self.dir.join("cluster.key")
    }

    fn invites_file(&self) -> PathBuf {
        self.dir.join("invites")
    }

    fn owners(&self) -> PathBuf {
        self.dir.join("owners")
    }

    fn names_file(&self) -> PathBuf {
        self.dir.join("names")
    }

    fn readers(&self) -> PathBuf {
        self.dir.join("readers")
    }

    fn peers_file(&self) -> PathBuf {
        self.dir.join("peers")
    }
}

/// The caches that files in `dir` are named after, ascending. None if there is no such directory.
fn caches_in(dir: &Path) -> Result<BTreeSet<CacheId>, FileError> {
    let list = |source| FileError::new("list", dir, source);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.map_err(list)?,
    };
    let mut caches = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(list)?.file_name();
        caches.extend(name.to_str().and_then(|name| name.parse::<CacheId>().ok()));
    }
    Ok(caches)
}

/// Removes a directory and what is in it; none is fine.
fn remove_dir(dir: &Path) -> Result<(), ClusterFileError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove", dir, error).into())
        }
        _ => Ok(()),
    }
}

fn line(bytes: &[u8]) -> String {
    BASE64.encode(bytes) + "\n"
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.trim().as_bytes()).ok()
}

fn absent_is_none(read: Result<String, FileError>) -> Result<Option<String>, FileError> {
    match read {
        Err(error) if error.is_not_found() => Ok(None),
        read => read.map(Some),
    }
}

/// A file of the cluster cannot be used.
#[derive(Debug, Error)]
pub enum ClusterFileError {
    /// It does not hold what it should.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
    /// The system refused.
    #[error(transparent)]
    File(#[from] FileError),
}

#[cfg(test)]
mod tests {
    use attic_p2p::identity::Identity;
    use attic_p2p::membership::Role;
    use attic_p2p::membership::certificate::Issuer;
    use attic_p2p::membership::scopes::Scopes;

    use super::*;

    #[test]
    fn a_member_is_one_after_a_restart_and_none_after_leaving() {
        let tmp = tempfile::tempdir().unwrap();
        let data = DataDir::new(tmp.path());
        let files = ClusterFiles::new(&data);
        assert!(files.load().unwrap().is_none());
        let key = ClusterKey::from_seed([1; 32]);
        let genesis = key.found("office".parse().unwrap(), [2; 16]);
        let charter = crate::mesh::founder(&Identity::from_seed([3; 32]), genesis, key);
        files.found(&charter).unwrap();
        let read = files.load().unwrap().unwrap();
        assert_eq!(read.genesis, charter.genesis);
        assert_eq!(read.certificate, charter.certificate);
        assert!(read.cluster_key.is_some());
        assert_eq!(read.certificate.value().role, Role::Keeper);
        assert_eq!(read.certificate.value().scopes, Scopes::all());
        assert_eq!(read.certificate.value().issuer, Issuer::Cluster);
        files.leave().unwrap();
        assert!(files.load().unwrap().is_none());
        files.leave().unwrap();
    }

    /// Whoever leaves keeps what nobody else has: what owns its caches.
    #[test]
    fn what_owns_caches_is_there_again_after_a_return_and_nothing_else() {
        let tmp = tempfile::tempdir().unwrap();
        let files = ClusterFiles::new(&DataDir::new(tmp.path()));
        let [one, other] = [1, 2].map(|n| ClusterId::from_bytes([n; 16]));
        let [own, foreign] = [7, 8].map(|n| CacheId::from_bytes([n; 16]));
        make_dir(&files.owners()).unwrap();
        files.write_owner_seed(&own, &[5; 32]).unwrap();
        for (cache, epoch) in [(own, 3), (foreign, 1)] {
            let key = EpochKey::derive(&[5; 32], epoch).unwrap();
            files.write_epoch_key(&cache, &key).unwrap();
        }
        files.keep_owned(one).unwrap();
        files.leave().unwrap();
        assert_eq!(files.owner_seed(&own).unwrap(), None);
        files.take_back_owned(other).unwrap();
        assert_eq!(files.owner_seed(&own).unwrap(), None, "of another cluster");
        // A second attempt finds that the first has done it.
        for _ in 0..2 {
            files.take_back_owned(one).unwrap();
            assert_eq!(files.owner_seed(&own).unwrap(), Some([5; 32]));
            let keys = files.epoch_keys().unwrap();
            let keys: Vec<_> = keys.iter().map(|(of, key)| (*of, key.epoch())).collect();
            assert_eq!(keys, [(own, 3)]);
        }
        assert!(!files.left(one).dir.exists());
    }

    #[test]
    fn keys_of_private_caches_are_kept_and_nobody_else_reads_them() {
        use std::os::unix::fs::PermissionsExt;
        let tmp = tempfile::tempdir().unwrap();
        let files = ClusterFiles::new(&DataDir::new(tmp.path()));
        assert!(files.epoch_keys().unwrap().is_empty());
        make_dir(&files.dir).unwrap();
        let cache = CacheId::from_bytes([7; 16]);
        for epoch in [1, 2] {
            let key = EpochKey::derive(&[1; 32], epoch).unwrap();
            files.write_epoch_key(&cache, &key).unwrap();
            let [(of, read)] = &files.epoch_keys().unwrap()[..] else {
                panic!("not one key");
            };
            assert_eq!((*of, read.to_bytes()), (cache, key.to_bytes()));
        }
        let file = files.readers().join(cache.to_string());
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&file, "x").unwrap();
        assert!(matches!(files.epoch_keys(), Err(ClusterFileError::Damaged(path)) if path == file));
    }

    #[test]
    fn damage_is_an_error_and_not_a_lone_node() {
        let tmp = tempfile::tempdir().unwrap();
        let data = DataDir::new(tmp.path());
        let files = ClusterFiles::new(&data);
        let key = ClusterKey::from_seed([1; 32]);
        let genesis = key.found("office".parse().unwrap(), [2; 16]);
        let charter = crate::mesh::founder(&Identity::from_seed([3; 32]), genesis, key);
        for file in ["certificate", "genesis", "cluster.key"] {
            files.found(&charter).unwrap();
            fs::write(files.dir.join(file), "x").unwrap();
            assert!(
                matches!(files.load(), Err(ClusterFileError::Damaged(path)) if path.ends_with(file))
            );
        }
    }
}

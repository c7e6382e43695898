//! Who may say what, asked when somebody wants to know.

use std::collections::BTreeSet;

use attic_store::CacheName;

use crate::directory::Directory;
use crate::ids::{CacheId, NodeId};
use crate::membership::Role;
use crate::membership::certificate::{Certificate, Issuer};
use crate::membership::revocation::{Revocation, Subject};
use crate::membership::time::UnixTime;
use crate::record::{CacheConfig, PathRecord};
use crate::signed::Signed;

/// Paths whose signature was found good.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    /// Hashes of path and keys together: no change of keys can make one of them wrong.
    good: BTreeSet<[u8; 16]>,
}

/// How many are kept; then all are forgotten, and verified again when they are asked for.
const VERIFIED_MAX: usize = 65_536;

impl Directory {
    /// The newest certificate that `node` has shown in its own log and that still stands.
    ///
    /// Whether it has expired is not looked at, and decides nothing about records.
    pub fn member(&self, node: NodeId) -> Option<&Certificate> {
        let shown = self.members.of(&node).map(|(_, carried)| &carried.value);
        shown
            .map(Signed::value)
            .find(|certificate| !self.has_revoked_issuer(certificate))
    }

    /// All nodes with a certificate, ascending.
    pub fn members(&self) -> impl Iterator<Item = &Certificate> {
        let nodes = self.members.subjects();
        nodes.filter_map(|node| self.member(*node))
    }

    /// Whether the cluster key took `node` out.
    pub fn is_revoked(&self, node: NodeId) -> bool {
        self.is_subject_revoked(Subject::Node(node))
    }

    /// When `node` left the cluster, as it said itself; `None` if it did not, or came again since.
    pub fn left_at(&self, node: NodeId) -> Option<UnixTime> {
        self.author(node)?.left
    }

    /// Whether `node` wrote two logs.
    pub fn is_quarantined(&self, node: NodeId) -> bool {
        self.forks.contains(&node)
    }

    /// Whether `node` may write the cache called `name`.
    pub fn may_write(&self, node: NodeId, name: &CacheName) -> bool {
        self.member(node)
            .is_some_and(|certificate| certificate.scopes.may_write(name))
    }

    /// Whether `node` is a keeper, and was not taken out.
    pub fn is_keeper(&self, node: NodeId) -> bool {
        !self.is_revoked(node)
            && (self.member(node)).is_some_and(|certificate| certificate.role == Role::Keeper)
    }

    pub(crate) fn is_certificate(&self, author: NodeId, signed: &Signed<Certificate>) -> bool {
        let certificate = signed.verify_chain(&self.genesis);
        certificate.is_ok_and(|certificate| certificate.node == author)
    }

    fn is_subject_revoked(&self, subject: Subject) -> bool {
        self.revocations_of(subject).next().is_some()
    }

    /// Every revocation that was said, by subject.
    pub fn revocations(&self) -> impl Iterator<Item = &Signed<Revocation>> {
        self.revocations.iter().map(|(_, revocation)| revocation)
    }

    pub(crate) fn revocations_of(&self, subject: Subject) -> impl Iterator<Item = &Revocation> {
        let from = self.revocations.from((subject, [0; 32]));
        let of_subject = from.take_while(move |((other, _), _)| *other == subject);
        of_subject.map(|(_, revocation)| revocation.value())
    }

    fn has_revoked_issuer(&self, certificate: &Certificate) -> bool {
        match &certificate.issuer {
            Issuer::Cluster => false,
            Issuer::Delegate(delegation) => {
                let key = delegation.value().key;
                self.is_subject_revoked(Subject::Node(key))
                    || self.is_subject_revoked(Subject::Invite(key))
            }
        }
    }

    /// The configuration of a cache: the newest that its owner signed and that somebody with the
    /// right to write a cache of this name carries. Destroyed caches have one too.
    pub fn cache(&self, cache: CacheId) -> Option<&CacheConfig> {
        let versions = self.caches.of(&cache);
        let trusted = versions.map(|(_, carried)| carried).find(|carried| {
            let name = &carried.value.value().genesis.name;
            let may = |number: &u16| self.may_write(self.nodes.name(*number), name);
            carried.carriers.iter().any(may)
        });
        trusted.map(|carried| carried.value.value())
    }

    /// Whether the cluster key ended a cache. It has no paths any more, for good.
    pub fn is_ended(&self, cache: CacheId) -> bool {
        self.is_subject_revoked(Subject::Cache(cache))
    }

    /// The nodes that say how a cache is set up: who has the key that owns it, or had it.
    pub fn makers(&self, cache: CacheId) -> BTreeSet<NodeId> {
        let versions = self.caches.of(&cache);
        let carriers = versions.flat_map(|(_, carried)| &carried.carriers);
        carriers.map(|number| self.nodes.name(*number)).collect()
    }

    /// Whether `path` is signed with a key of its cache.
    ///
    /// That it is not is no misbehaviour, neither of who sent it nor of its author, though that one
    /// signed the log it stands in. The keys are those of the newest configuration that is here: a
    /// newer one may be on its way, and what was signed well under an older one is wrong from the next
    /// on. Whoever owns a cache chooses them, and by a change of keys, under one name even, could have
    /// everybody kept out who wrote to it.
    pub(crate) fn is_signed(&self, path: &PathRecord, config: &CacheConfig) -> bool {
        let fingerprint = path.info.fingerprint(&config.store_dir);
        let mark = mark(fingerprint.as_ref(), path, config);
        let lock = || {
            let guard = self.verified.lock();
            guard.unwrap_or_else(|poisoned| poisoned.into_inner())
        };
        if lock().good.contains(&mark) {
            return true;
        }
        let keys = config.trusted_keys();
        if keys.verify(&fingerprint, &path.info.signatures).is_none() {
            return false;
        }
        let mut verified = lock();
        if verified.good.len() >= VERIFIED_MAX {
            verified.good.clear();
        }
        verified.good.insert(mark);
        true
    }
}

/// Of everything that the verdict follows from.
fn mark(fingerprint: &[u8], path: &PathRecord, config: &CacheConfig) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(fingerprint);
    for signature in &path.info.signatures {
        part(signature.key_name().as_bytes());
        part(signature.as_bytes());
    }
    for key in &config.public_keys {
        part(key.name().as_bytes());
        part(key.as_bytes());
    }
    let hash = hasher.finalize();
    *hash.as_bytes().first_chunk().expect("16 of 32 bytes")
}

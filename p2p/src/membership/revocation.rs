//! Taking nodes, tickets and caches out again.
//!
//! A revocation is signed by the cluster key and is for ever: the set of them only grows, so any
//! two nodes that exchange theirs agree, in whatever order they heard of them. Nobody is ever
//! un-revoked; a node that was revoked by mistake joins again under a new key.
//!
//! A revoked key taints what it signed for others too. Certificates made with the key of a revoked
//! ticket or by a revoked issuer are refused, because who held the key can have dated them at will.
//! Members that came in by an open ticket outlive its revocation once an issuer renewed them: then
//! the cluster itself stands behind them.
//!
//! A cache is changed and ended by the key that owns it, which only the node that made it has. When that
//! node is out nobody is left who could, while it still has the keys that sign for the cache. So the
//! cluster key can end a cache too. It gains no more by that than it has: it could take out all who
//! write the cache. And nobody is made to believe a path by it. A cache that takes its place has another
//! id and other keys. Whether its owner is out is for who holds the cluster key to look at; were it a
//! condition here, what is ended could come back when another log turns up.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::VERSION;
use super::certificate::{Certificate, DelegationUse, Issuer};
use super::genesis::Genesis;
use super::time::UnixTime;
use crate::ids::{CacheId, ClusterId, NodeId};
use crate::signed::{Signed, Statement};

/// Takes `subject` out of `cluster`. Signed by the cluster key alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// [`VERSION`] of this record.
    pub version: u8,
    /// Out of which cluster.
    pub cluster: ClusterId,
    /// Who or what is out.
    pub subject: Subject,
    /// Of a node: the last segment of its log that still counts. `None` cuts nothing off.
    pub upto_seq: Option<u64>,
    /// When, for people. Decides nothing.
    pub at: UnixTime,
}

impl Revocation {
    /// A revocation of `subject` that leaves its log as it is.
    pub fn new(cluster: ClusterId, subject: Subject, at: UnixTime) -> Revocation {
        Revocation {
            version: VERSION,
            cluster,
            subject,
            upto_seq: None,
            at,
        }
    }
}

/// What can be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// A node, as member and as issuer.
    Node(NodeId),
    /// A ticket, by the public half of its key.
    Invite(NodeId),
    /// A cache, for all.
    Cache(CacheId),
}

impl Statement for Revocation {
    const DOMAIN: &'static str = "attic-node revocation 1";
    const LEN_MAX: usize = 96;
}

impl Signed<Revocation> {
    /// The revocation, if the cluster key of `genesis` made it.
    ///
    /// **Errors**: every [`RevocationError`].
    pub fn check(&self, genesis: &Genesis) -> Result<&Revocation, RevocationError> {
        let revocation = self.value();
        if revocation.version != VERSION {
            return Err(RevocationError::Version {
                found: revocation.version,
            });
        }
        if revocation.cluster != genesis.cluster_id() {
            return Err(RevocationError::Cluster {
                found: revocation.cluster,
            });
        }
        self.verify(&genesis.cluster_key)
            .map_err(|_| RevocationError::Signature)
    }
}

/// Every revocation that decides who is let in, as far as a node knows: verified, grow-only, one per
/// subject. Those of caches are none of them; the logs alone carry these.
///
/// Of several for one subject the strictest stays: the one that leaves the least of the log, then
/// the one of lowest encoding. At [`Revocations::COUNT_MAX`] the lowest subjects stay; only who
/// holds the cluster key can get there. So the set is a function of what was inserted, whatever the
/// order, and a union is inserting the one into the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    by_subject: BTreeMap<Subject, Signed<Revocation>>,
}

impl Revocations {
    /// Most subjects that are kept; about 300 bytes each.
    pub const COUNT_MAX: usize = 16_384;

    /// Takes in `revocation`, and says whether that changed the set.
    ///
    /// **Errors** when it is not one of the cluster's; the set is as before.
    pub fn insert(
        &mut self,
        revocation: Signed<Revocation>,
        genesis: &Genesis,
    ) -> Result<bool, RevocationError> {
        let subject = revocation.check(genesis)?.subject;
        if matches!(subject, Subject::Cache(_)) {
            return Ok(false);
        }
        match self.by_subject.entry(subject) {
            Entry::Occupied(known) if strictness(known.get()) <= strictness(&revocation) => {
                return Ok(false);
            }
            Entry::Occupied(mut known) => {
                known.insert(revocation);
            }
            Entry::Vacant(place) => {
                place.insert(revocation);
            }
        }
        if self.by_subject.len() > Revocations::COUNT_MAX {
            let dropped = self.by_subject.pop_last();
            return Ok(dropped.is_none_or(|(last, _)| last != subject));
        }
        Ok(true)
    }

    /// What is known of `subject`.
    pub fn of(&self, subject: Subject) -> Option<&Revocation> {
        self.signed(subject).map(Signed::value)
    }

    /// The same, with the signature that proves it.
    pub fn signed(&self, subject: Subject) -> Option<&Signed<Revocation>> {
        self.by_subject.get(&subject)
    }

    /// The revocation that `certificate` falls under: its node's, or its delegate's.
    pub fn concerning(&self, certificate: &Certificate) -> Option<&Signed<Revocation>> {
        let own = self.signed(Subject::Node(certificate.node));
        own.or_else(|| match &certificate.issuer {
            Issuer::Cluster => None,
            Issuer::Delegate(delegation) => {
                let delegation = delegation.value();
                self.signed(match delegation.usage {
                    DelegationUse::Invite => Subject::Invite(delegation.key),
                    DelegationUse::Issuer => Subject::Node(delegation.key),
                })
            }
        })
    }

    /// All of them, ordered by subject.
    pub fn iter(&self) -> impl Iterator<Item = &Signed<Revocation>> {
        self.by_subject.values()
    }

    /// The latest `count`, by the date they bear: what a peer most likely lacks.
    pub fn latest(&self, count: usize) -> Vec<Signed<Revocation>> {
        let mut all: Vec<_> = self.by_subject.values().collect();
        all.sort_by_key(|revocation| std::cmp::Reverse(revocation.value().at));
        all.into_iter().take(count).cloned().collect()
    }

    /// How many subjects are revoked.
    pub fn len(&self) -> usize {
        self.by_subject.len()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.by_subject.is_empty()
    }

    /// Equal on two nodes exactly if they know the same revocations. Hashes all of them.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for revocation in self.by_subject.values() {
            let bytes = revocation.encode();
            // Lengths keep two lists of equal concatenation apart.
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
        }
        *hasher.finalize().as_bytes()
    }
}

/// Orders revocations of one subject, strictest first.
fn strictness(revocation: &Signed<Revocation>) -> (u64, Vec<u8>) {
    let kept = revocation.value().upto_seq.unwrap_or(u64::MAX);
    (kept, revocation.encode())
}

/// Why a revocation counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RevocationError {
    /// Of a version this program does not know.
    #[error("revocation has version {found}, known is {VERSION}")]
    Version {
        /// The version it claims.
        found: u8,
    },
    /// Of another cluster.
    #[error("revocation of another cluster, {found}")]
    Cluster {
        /// The cluster it names.
        found: ClusterId,
    },
    /// Not signed by the cluster key.
    #[error("revocation not signed by the cluster")]
    Signature,
}

#[cfg(test)]
mod tests;

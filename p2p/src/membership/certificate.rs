//! What makes a node a member: a certificate, and the chain from it to the cluster key.
//!
//! A chain has one link or two. Directly, the cluster key signs the certificate. Through a
//! delegation, it signs a statement about another key, and that key signs the certificate; a
//! delegate's word never reaches further than its own: role, scopes and end of life of the
//! certificate must lie within the delegation's. There is no third link, so checking anything a
//! stranger shows takes two signatures at most.
//!
//! [`Signed::<Certificate>::verify_chain`] asks whether a certificate was ever right, which is the
//! same on every node at every time; [`Signed::<Certificate>::check`] also asks whether it is right
//! now. Whether it was revoked is for [`super::revocation::Revocations`] to say.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::genesis::Genesis;
use super::scopes::Scopes;
use super::sealing::SealingKey;
use super::time::UnixTime;
use super::{Role, VERSION};
use crate::ids::{ClusterId, NodeId};
use crate::signed::{Signed, Statement};

/// A random number that tells two statements of equal content apart.
pub type Serial = [u8; 16];

/// Makes `node` a member of `cluster`. Worth nothing unless its chain is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// [`VERSION`] of this record.
    pub version: u8,
    /// Of which cluster.
    pub cluster: ClusterId,
    /// Whom it makes a member.
    pub node: NodeId,
    /// What secrets for this node are sealed to. The node's own word, see [`super`].
    pub sealing_key: SealingKey,
    /// What the node is.
    pub role: Role,
    /// What the node may do.
    pub scopes: Scopes,
    /// Random.
    pub serial: Serial,
    /// When it was made, by its maker's clock.
    pub issued_at: UnixTime,
    /// The last second it is good for.
    pub not_after: UnixTime,
    /// Who made it.
    pub issuer: Issuer,
}

/// Whose signature a certificate bears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Issuer {
    /// The cluster key's.
    Cluster,
    /// That of the key named in this delegation.
    Delegate(Box<Signed<Delegation>>),
}

/// Whom a certificate is for and what it allows: all of it that its issuer chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The node.
    pub node: NodeId,
    /// What secrets for it are sealed to.
    pub sealing_key: SealingKey,
    /// What it will be.
    pub role: Role,
    /// What it may do.
    pub scopes: Scopes,
}

impl Certificate {
    /// How long a certificate lives; it may be less under a delegation, but never more.
    pub const LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

    /// A certificate from `now` on, to be signed with the issuer's key. `serial` must be random.
    ///
    /// Under a delegation it ends with the delegation, if that comes first.
    pub fn new(
        cluster: ClusterId,
        holder: Holder,
        issuer: Issuer,
        now: UnixTime,
        serial: Serial,
    ) -> Certificate {
        let full = now.plus(Certificate::LIFETIME);
        let not_after = match &issuer {
            Issuer::Cluster => full,
            Issuer::Delegate(delegation) => full.min(delegation.value().not_after),
        };
        Certificate {
            version: VERSION,
            cluster,
            node: holder.node,
            sealing_key: holder.sealing_key,
            role: holder.role,
            scopes: holder.scopes,
            serial,
            issued_at: now,
            not_after,
            issuer,
        }
    }

    /// From when on the node should ask for the next one: two thirds of the lifetime.
    pub fn renew_after(&self) -> UnixTime {
        let lifetime = self.not_after.since(self.issued_at);
        self.issued_at.plus(lifetime - lifetime / 3)
    }

    /// Whom it is for and what it allows.
    pub fn holder(&self) -> Holder {
        Holder {
            node: self.node,
            sealing_key: self.sealing_key,
            role: self.role,
            scopes: self.scopes.clone(),
        }
    }
}

impl Statement for Certificate {
    const DOMAIN: &'static str = "attic-node certificate 1";
    const LEN_MAX: usize = 4096;
}

impl Signed<Certificate> {
    /// The certificate, if the cluster of `genesis` stood behind it when it was made.
    ///
    /// Looks at no clock and no revocation: the answer never changes.
    ///
    /// **Errors**: every [`CertificateError`] but [`CertificateError::Expired`].
    pub fn verify_chain(&self, genesis: &Genesis) -> Result<&Certificate, CertificateError> {
        let certificate = self.value();
        require_ours(certificate.version, certificate.cluster, genesis)?;
        let signer = match &certificate.issuer {
            Issuer::Cluster => genesis.cluster_key,
            Issuer::Delegate(delegation) => {
                let delegation = delegation.verify_chain(genesis)?;
                delegation.require_covers(certificate)?;
                delegation.key
            }
        };
        if certificate.issued_at.plus(Certificate::LIFETIME) < certificate.not_after {
            return Err(CertificateError::Lifetime);
        }
        self.verify(&signer)
            .map_err(|_| CertificateError::Signature)
    }

    /// The certificate, if the cluster of `genesis` stands behind it `now`.
    ///
    /// Its begin is not looked at: the issuer's clock may run ahead.
    ///
    /// **Errors**: every [`CertificateError`]; an expired certificate is otherwise right.
    pub fn check(
        &self,
        genesis: &Genesis,
        now: UnixTime,
    ) -> Result<&Certificate, CertificateError> {
        let certificate = self.verify_chain(genesis)?;
        if now > certificate.not_after {
            return Err(CertificateError::Expired {
                not_after: certificate.not_after,
            });
        }
        Ok(certificate)
    }
}

/// Lets `key` make certificates within these bounds. Signed by the cluster key alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegation {
    /// [`VERSION`] of this record.
    pub version: u8,
    /// For which cluster.
    pub cluster: ClusterId,
    /// Whose certificates count.
    pub key: NodeId,
    /// What the key is for.
    pub usage: DelegationUse,
    /// The highest role it may give.
    pub role: Role,
    /// The widest scopes it may give.
    pub scopes: Scopes,
    /// Random.
    pub serial: Serial,
    /// The last second that its certificates may be good for.
    pub not_after: UnixTime,
}

/// What a delegated key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DelegationUse {
    /// It is the key of an open ticket, known to whoever holds the ticket.
    Invite,
    /// It is the key of a node that redeems tickets and renews certificates.
    Issuer,
}

impl Delegation {
    fn require_covers(&self, certificate: &Certificate) -> Result<(), CertificateError> {
        if certificate.role > self.role || !certificate.scopes.within(&self.scopes) {
            return Err(CertificateError::Rights);
        }
        if certificate.not_after > self.not_after {
            return Err(CertificateError::Lifetime);
        }
        Ok(())
    }
}

impl Statement for Delegation {
    const DOMAIN: &'static str = "attic-node delegation 1";
    const LEN_MAX: usize = 2048;
}

impl Signed<Delegation> {
    /// The delegation, if the cluster key of `genesis` made it. Looks at no clock.
    ///
    /// **Errors**: [`CertificateError::Version`], [`CertificateError::Cluster`],
    /// [`CertificateError::Signature`].
    pub fn verify_chain(&self, genesis: &Genesis) -> Result<&Delegation, CertificateError> {
        let delegation = self.value();
        require_ours(delegation.version, delegation.cluster, genesis)?;
        self.verify(&genesis.cluster_key)
            .map_err(|_| CertificateError::Signature)
    }
}

fn require_ours(
    version: u8,
    cluster: ClusterId,
    genesis: &Genesis,
) -> Result<(), CertificateError> {
    if version != VERSION {
        return Err(CertificateError::Version { found: version });
    }
    if cluster != genesis.cluster_id() {
        return Err(CertificateError::Cluster { found: cluster });
    }
    Ok(())
}

/// Why a certificate or delegation counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// Of a version this program does not know.
    #[error("certificate has version {found}, known is {VERSION}")]
    Version {
        /// The version it claims.
        found: u8,
    },
    /// Of another cluster.
    #[error("certificate of another cluster, {found}")]
    Cluster {
        /// The cluster it names.
        found: ClusterId,
    },
    /// A signature in the chain is not the right key's.
    #[error("certificate not signed by the cluster or its delegate")]
    Signature,
    /// A delegate gave a role or scopes that it does not have.
    #[error("certificate allows more than its issuer may give")]
    Rights,
    /// It lives longer than a certificate may, or than its delegation.
    #[error("certificate lives longer than its issuer may make it")]
    Lifetime,
    /// Its time is over; all else is in order.
    #[error("certificate expired at {not_after}")]
    Expired {
        /// The last second it was good for.
        not_after: UnixTime,
    },
}

#[cfg(test)]
mod tests;

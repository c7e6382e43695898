//! A small cluster for this module's tests.

use super::certificate::{Certificate, Delegation, DelegationUse, Holder, Issuer};
use super::genesis::{ClusterKey, Genesis};
use super::invite::{InviteKey, Terms};
use super::revocation::{Revocation, Subject};
use super::scopes::Scopes;
use super::sealing::OpeningKey;
use super::time::UnixTime;
use super::{Role, VERSION};
use crate::identity::Identity;
use crate::ids::NodeId;
use crate::signed::{Signed, Signer};

pub(super) const NOW: UnixTime = UnixTime(1_800_000_000);
pub(super) const DAY: u64 = 86_400;

pub(super) fn cluster_key() -> ClusterKey {
    ClusterKey::from_seed([1; 32])
}

pub(super) fn genesis() -> Genesis {
    cluster_key().found("office".parse().unwrap(), [2; 16])
}

pub(super) fn identity(number: u8) -> Identity {
    Identity::from_seed([number; 32])
}

pub(super) fn node(number: u8) -> NodeId {
    identity(number).node_id()
}

pub(super) fn invite_key() -> InviteKey {
    InviteKey::from_seed([77; 32])
}

pub(super) fn holder(number: u8, scopes: Scopes) -> Holder {
    Holder {
        node: node(number),
        sealing_key: OpeningKey::of(&identity(number)).sealing_key(),
        role: Role::Member,
        scopes,
    }
}

/// A plain member's certificate, directly from the cluster.
pub(super) fn certificate(number: u8) -> Certificate {
    let holder = holder(number, Scopes::read_all());
    Certificate::new(
        genesis().cluster_id(),
        holder,
        Issuer::Cluster,
        NOW,
        [4; 16],
    )
}

/// Reads everything, writes `team-*`, for ten days.
pub(super) fn delegation(key: NodeId, usage: DelegationUse) -> Delegation {
    Delegation {
        version: VERSION,
        cluster: genesis().cluster_id(),
        key,
        usage,
        role: Role::Member,
        scopes: Scopes::new(vec!["*".parse().unwrap()], vec!["team-*".parse().unwrap()]).unwrap(),
        serial: [6; 16],
        not_after: UnixTime(NOW.0 + 10 * DAY),
    }
}

/// A certificate under [`delegation`], with all the rights it can give.
pub(super) fn delegated(number: u8, delegation: Signed<Delegation>) -> Certificate {
    let holder = holder(number, delegation.value().scopes.clone());
    let issuer = Issuer::Delegate(Box::new(delegation));
    Certificate::new(genesis().cluster_id(), holder, issuer, NOW, [8; 16])
}

pub(super) fn terms() -> Terms {
    Terms {
        role: Role::Member,
        scopes: Scopes::read_all(),
        not_after: UnixTime(NOW.0 + DAY),
    }
}

pub(super) fn revocation(subject: Subject) -> Signed<Revocation> {
    let revocation = Revocation::new(genesis().cluster_id(), subject, NOW);
    Signed::new(revocation, &cluster_key())
}

/// The widest scopes there are: as many and as long patterns as may be.
pub(super) fn widest_scopes() -> Scopes {
    let patterns = |right: &str| {
        let text = |i| format!("{right}{i:02}{}", "x".repeat(47));
        (0..Scopes::PATTERNS_MAX)
            .map(|i| text(i).parse().unwrap())
            .collect()
    };
    Scopes::new(patterns("r"), patterns("w")).unwrap()
}

/// The widest delegation to `signer`.
pub(super) fn widest_delegation(signer: &impl Signer) -> Signed<Delegation> {
    let widest = Delegation {
        role: Role::Keeper,
        scopes: widest_scopes(),
        not_after: UnixTime(u64::MAX),
        ..delegation(signer.public(), DelegationUse::Issuer)
    };
    Signed::new(widest, &cluster_key())
}

/// The longest certificate there is.
pub(super) fn longest_certificate(number: u8) -> Signed<Certificate> {
    let issuer = identity(200);
    let mut longest = delegated(number, widest_delegation(&issuer));
    longest.issued_at = UnixTime(u64::MAX - 1);
    longest.not_after = UnixTime(u64::MAX);
    Signed::new(longest, &issuer)
}

//! What an issuer remembers of the counted tickets it handed out.
//!
//! A ticket is a bearer's secret: counting its uses takes one place where they are counted. That
//! place is the table here, kept in a file by the node that made the ticket. The table knows who
//! redeemed, not only how many did: a newcomer whose answer was lost on the way asks again and is
//! given what it was promised, at no further use.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Formatter, Result as FmtResult};

use ed25519_dalek::{Signer as _, SigningKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::hello::Refusal;
use super::scopes::Scopes;
use super::time::UnixTime;
use super::{Role, bounded};
use crate::ids::NodeId;
use crate::signed::Signer;

/// The key of a ticket, known to whoever holds it. `Debug` shows the public half only; wiped when
/// dropped.
#[derive(Clone)]
pub struct InviteKey(SigningKey);

impl InviteKey {
    /// The key that grows from `seed`, which must be random.
    pub fn from_seed(seed: [u8; 32]) -> InviteKey {
        InviteKey(SigningKey::from_bytes(&seed))
    }

    /// The public half: the name of the invitation.
    pub fn id(&self) -> NodeId {
        NodeId::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// What [`InviteKey::from_seed`] takes: the ticket's secret.
    pub fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl Signer for InviteKey {
    fn public(&self) -> NodeId {
        self.id()
    }

    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }
}

impl Debug for InviteKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_tuple("InviteKey").field(&self.id()).finish()
    }
}

/// What an invitation offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// What the newcomer becomes.
    pub role: Role,
    /// What it may do.
    pub scopes: Scopes,
    /// The last second of the offer.
    pub not_after: UnixTime,
}

/// One counted invitation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    key: NodeId,
    terms: Terms,
    uses: u32,
    redeemed: BTreeSet<NodeId>,
}

impl Invite {
    /// Most nodes that one invitation is good for. For more, an open ticket.
    pub const USES_MAX: u32 = 1024;

    /// An invitation by the key `key`, good for `uses` nodes, of which none came yet.
    ///
    /// **Errors**: [`InviteError::Uses`].
    pub fn new(key: NodeId, terms: Terms, uses: u32) -> Result<Invite, InviteError> {
        if !(1..=Invite::USES_MAX).contains(&uses) {
            return Err(InviteError::Uses { found: uses });
        }
        Ok(Invite {
            key,
            terms,
            uses,
            redeemed: BTreeSet::new(),
        })
    }

    /// The public half of the ticket's key.
    pub fn key(&self) -> NodeId {
        self.key
    }

    /// What it offers.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// How many more nodes it is good for.
    pub fn uses_left(&self) -> u32 {
        let used = u32::try_from(self.redeemed.len()).unwrap_or(u32::MAX);
        self.uses.saturating_sub(used)
    }

    /// Who came by it.
    pub fn redeemed(&self) -> &BTreeSet<NodeId> {
        &self.redeemed
    }
}

/// The invitations of one issuer.
///
/// **Shape** when serialised: a list of at most [`Invites::COUNT_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawInvites", into = "RawInvites")]
pub struct Invites {
    by_key: BTreeMap<NodeId, Invite>,
}

impl Invites {
    /// Most invitations that are remembered.
    pub const COUNT_MAX: usize = 1024;

    /// Remembers `invite`. A full table drops expired ones first; until then they are kept, so
    /// that a late newcomer hears the true reason.
    ///
    /// **Errors**: [`InviteError::Full`], [`InviteError::Known`]; no open invitation is lost.
    pub fn add(&mut self, invite: Invite, now: UnixTime) -> Result<(), InviteError> {
        if self.by_key.len() >= Invites::COUNT_MAX {
            self.by_key.retain(|_, known| now <= known.terms.not_after);
        }
        if self.by_key.len() >= Invites::COUNT_MAX {
            return Err(InviteError::Full);
        }
        match self.by_key.entry(invite.key) {
            Entry::Occupied(_) => Err(InviteError::Known),
            Entry::Vacant(place) => {
                place.insert(invite);
                Ok(())
            }
        }
    }

    /// Counts `node` as one that came by the invitation `key`, and says what it was offered.
    ///
    /// A node that was counted before is not counted again. The answer must not leave this node
    /// before the table is durable.
    ///
    /// **Errors**: [`Refusal::TicketUnknown`], [`Refusal::TicketExpired`],
    /// [`Refusal::TicketUsedUp`]; the table is as before.
    pub fn redeem(&mut self, key: NodeId, node: NodeId, now: UnixTime) -> Result<&Terms, Refusal> {
        let invite = self.by_key.get_mut(&key).ok_or(Refusal::TicketUnknown)?;
        let not_after = invite.terms.not_after;
        if now > not_after {
            return Err(Refusal::TicketExpired { not_after });
        }
        if !invite.redeemed.contains(&node) {
            if invite.uses_left() == 0 {
                return Err(Refusal::TicketUsedUp);
            }
            invite.redeemed.insert(node);
        }
        Ok(&invite.terms)
    }

    /// All of them, ordered by key.
    pub fn list(&self) -> impl Iterator<Item = &Invite> {
        self.by_key.values()
    }

    /// Forgets the invitation `key`; `false` if it is unknown. Who came by it stays a member.
    pub fn revoke(&mut self, key: NodeId) -> bool {
        self.by_key.remove(&key).is_some()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct RawInvites(
    #[serde(deserialize_with = "bounded::list::<_, _, { Invites::COUNT_MAX }>")] Vec<Invite>,
);

impl From<Invites> for RawInvites {
    fn from(invites: Invites) -> RawInvites {
        RawInvites(invites.by_key.into_values().collect())
    }
}

impl TryFrom<RawInvites> for Invites {
    type Error = InviteError;

    fn try_from(raw: RawInvites) -> Result<Invites, InviteError> {
        let mut by_key = BTreeMap::new();
        for invite in raw.0 {
            if !(1..=Invite::USES_MAX).contains(&invite.uses) {
                return Err(InviteError::Uses { found: invite.uses });
            }
            if by_key.insert(invite.key, invite).is_some() {
                return Err(InviteError::Known);
            }
        }
        Ok(Invites { by_key })
    }
}

/// Why an invitation is not remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InviteError {
    /// Good for nobody, or for more than can be counted.
    #[error("invitation for {found} nodes, not 1 to {max}", max = Invite::USES_MAX)]
    Uses {
        /// The number asked for.
        found: u32,
    },
    /// Every place is taken by an invitation that still holds.
    #[error("{max} invitations are open already: revoke some", max = Invites::COUNT_MAX)]
    Full,
    /// One with this key is there already.
    #[error("invitation is known already")]
    Known,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: NodeId = NodeId::from_bytes([1; 32]);
    const DAY: UnixTime = UnixTime(86_400);

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    fn invite(key: NodeId, uses: u32) -> Invite {
        let terms = Terms {
            role: Role::Member,
            scopes: Scopes::read_all(),
            not_after: DAY,
        };
        Invite::new(key, terms, uses).unwrap()
    }

    fn table(uses: u32) -> Invites {
        let mut invites = Invites::default();
        invites.add(invite(KEY, uses), UnixTime(0)).unwrap();
        invites
    }

    #[test]
    fn a_use_is_counted_once_per_node() {
        let mut invites = table(2);
        for (who, expected) in [
            (node(10), Ok(())),
            (node(10), Ok(())),
            (node(11), Ok(())),
            (node(12), Err(Refusal::TicketUsedUp)),
            (node(10), Ok(())),
        ] {
            let outcome = invites.redeem(KEY, who, DAY).map(|_| ());
            assert_eq!(outcome, expected, "{who}");
        }
        assert_eq!(invites.list().next().unwrap().uses_left(), 0);
    }

    #[test]
    fn unknown_and_expired_tickets_are_told_apart() {
        let mut invites = table(1);
        let after = UnixTime(DAY.0 + 1);
        let unknown = invites.redeem(node(9), node(10), after);
        assert_eq!(unknown, Err(Refusal::TicketUnknown));
        let expired = invites.redeem(KEY, node(10), after);
        assert_eq!(expired, Err(Refusal::TicketExpired { not_after: DAY }));
        assert_eq!(invites, table(1), "a refusal counts nothing");
    }

    #[test]
    fn a_revoked_invite_is_unknown() {
        let mut invites = table(1);
        assert!(invites.revoke(KEY));
        assert!(!invites.revoke(KEY));
        let outcome = invites.redeem(KEY, node(10), UnixTime(0));
        assert_eq!(outcome, Err(Refusal::TicketUnknown));
    }

    #[test]
    fn a_full_table_drops_expired_invites_alone() {
        let key = |number: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
            NodeId::from_bytes(bytes)
        };
        let mut invites = Invites::default();
        for number in 0..Invites::COUNT_MAX {
            invites.add(invite(key(number), 1), DAY).unwrap();
        }
        let one_more = invite(key(Invites::COUNT_MAX), 1);
        assert_eq!(invites.add(one_more.clone(), DAY), Err(InviteError::Full));
        assert_eq!(invites.list().count(), Invites::COUNT_MAX);
        assert_eq!(invites.add(one_more, UnixTime(DAY.0 + 1)), Ok(()));
        assert_eq!(invites.list().count(), 1);
    }

    #[test]
    fn a_key_is_added_once() {
        let again = table(1).add(invite(KEY, 5), UnixTime(0));
        assert_eq!(again, Err(InviteError::Known));
    }

    #[test]
    fn uses_are_bounded() {
        let terms = invite(KEY, 1).terms;
        for uses in [0, Invite::USES_MAX + 1] {
            let outcome = Invite::new(KEY, terms.clone(), uses);
            assert_eq!(outcome, Err(InviteError::Uses { found: uses }));
        }
    }

    #[test]
    fn a_table_survives_its_file() {
        let mut invites = table(2);
        invites.redeem(KEY, node(10), DAY).unwrap();
        let bytes = postcard::to_stdvec(&invites).unwrap();
        assert_eq!(postcard::from_bytes::<Invites>(&bytes), Ok(invites));
    }

    #[test]
    fn a_file_with_a_key_twice_is_refused() {
        let bytes = postcard::to_stdvec(&[invite(KEY, 1), invite(KEY, 2)].to_vec()).unwrap();
        assert!(postcard::from_bytes::<Invites>(&bytes).is_err());
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let key = InviteKey::from_seed([5; 32]);
        assert_eq!(format!("{key:?}"), format!("InviteKey({})", key.id()));
    }
}

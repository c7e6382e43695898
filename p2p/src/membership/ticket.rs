//! What a newcomer is handed: everything it takes to join, in one line of text.
//!
//! A ticket holds the founding record of the cluster, so its holder can check every certificate it
//! is shown; some addresses, so that it finds somebody to show it to; and the seed of a key, which
//! is the actual secret. There are two kinds, and what they allow follows from who can count:
//!
//! - a **counted** ticket is good for so many nodes. Somebody has to count, so it is redeemed with
//!   an issuer, and the key only proves that the newcomer holds the ticket.
//! - an **open** ticket is good until it expires, for whoever holds it. Its key is delegated by the
//!   cluster key, so the newcomer writes its own certificate and any member admits it.
//!
//! **Shape** of the text: `attic1`, then the payload and four bytes of its hash in base 32 of lower
//! case (`a-z2-7`, no padding). Double-clicking selects all of it. The hash is there for people: it
//! tells a damaged ticket from a refused one. Nothing is trusted because of it.

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::address::Address;
use super::certificate::{Certificate, Delegation, DelegationUse, Holder, Issuer, Serial};
use super::genesis::Genesis;
use super::invite::{InviteKey, Terms};
use super::sealing::SealingKey;
use super::time::UnixTime;
use super::{VERSION, bounded};
use crate::ids::NodeId;
use crate::signed::Signed;

/// An invitation in the hands of whom it is for. `Debug` leaves the key out; there is no `Display`.
#[derive(Clone)]
pub struct Ticket {
    genesis: Genesis,
    addresses: Vec<Address>,
    key: InviteKey,
    kind: TicketKind,
}

/// Who can let the holder of a ticket in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TicketKind {
    /// An issuer, who has the last word on the terms: these are for people to see.
    Counted(Terms),
    /// Any member, on the terms of this delegation to the ticket's key.
    Open(Box<Signed<Delegation>>),
}

impl Ticket {
    /// Most addresses in a ticket.
    pub const ADDRESSES_MAX: usize = 4;
    /// Longest text that is read, in bytes.
    pub const TEXT_LEN_MAX: usize = 8192;

    /// The ticket with this key. Of `addresses`, the first [`Ticket::ADDRESSES_MAX`] are kept.
    ///
    /// **Errors**: [`TicketError::Forged`] unless an open ticket's delegation is the cluster's, to
    /// this key, for this use.
    pub fn new(
        genesis: Genesis,
        mut addresses: Vec<Address>,
        key: InviteKey,
        kind: TicketKind,
    ) -> Result<Ticket, TicketError> {
        addresses.truncate(Ticket::ADDRESSES_MAX);
        if let TicketKind::Open(delegation) = &kind {
            let delegation = delegation.verify_chain(&genesis);
            let delegation = delegation.map_err(|_| TicketError::Forged)?;
            if delegation.key != key.id() || delegation.usage != DelegationUse::Invite {
                return Err(TicketError::Forged);
            }
        }
        Ok(Ticket {
            genesis,
            addresses,
            key,
            kind,
        })
    }

    /// The cluster it leads into.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Where members can be found.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The key that is the ticket's secret.
    pub fn key(&self) -> &InviteKey {
        &self.key
    }

    /// Who can let its holder in.
    pub fn kind(&self) -> &TicketKind {
        &self.kind
    }

    /// What its holder becomes.
    pub fn terms(&self) -> Terms {
        match &self.kind {
            TicketKind::Counted(terms) => terms.clone(),
            TicketKind::Open(delegation) => {
                let delegation = delegation.value();
                Terms {
                    role: delegation.role,
                    scopes: delegation.scopes.clone(),
                    not_after: delegation.not_after,
                }
            }
        }
    }

    /// Whether it can still be used.
    ///
    /// **Errors**: [`TicketError::Expired`].
    pub fn check(&self, now: UnixTime) -> Result<(), TicketError> {
        let not_after = self.terms().not_after;
        if now > not_after {
            return Err(TicketError::Expired { not_after });
        }
        Ok(())
    }

    /// The certificate that an open ticket gives its holder `node`; `None` for a counted one.
    ///
    /// `serial` must be random. An expired ticket gives an expired certificate: see
    /// [`Ticket::check`].
    pub fn certify(
        &self,
        node: NodeId,
        sealing_key: SealingKey,
        now: UnixTime,
        serial: Serial,
    ) -> Option<Signed<Certificate>> {
        let TicketKind::Open(delegation) = &self.kind else {
            return None;
        };
        let terms = self.terms();
        let holder = Holder {
            node,
            sealing_key,
            role: terms.role,
            scopes: terms.scopes,
        };
        let issuer = Issuer::Delegate(delegation.clone());
        let cluster = self.genesis.cluster_id();
        let certificate = Certificate::new(cluster, holder, issuer, now, serial);
        Some(Signed::new(certificate, &self.key))
    }

    /// The text form: a secret, for the newcomer alone.
    pub fn to_text(&self) -> String {
        let payload = Payload {
            version: VERSION,
            genesis: self.genesis.clone(),
            addresses: self.addresses.clone(),
            seed: *self.key.seed(),
            kind: self.kind.clone(),
        };
        let mut bytes = postcard::to_stdvec(&payload).expect("a ticket is plain data");
        bytes.extend(checksum(&bytes));
        format!("{PREFIX}{}", BASE32.encode(&bytes))
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    /// Blanks around the text are skipped; within it, one character too many is an error.
    fn from_str(text: &str) -> Result<Ticket, TicketError> {
        let text = text.trim_ascii();
        let digits = strip_prefix(text)?;
        if text.len() > Ticket::TEXT_LEN_MAX {
            return Err(TicketError::NotATicket);
        }
        let bytes = BASE32.decode(digits.as_bytes());
        let bytes = bytes.map_err(|_| TicketError::Damaged)?;
        let (payload, sum) = bytes.split_last_chunk().ok_or(TicketError::Damaged)?;
        if checksum(payload) != *sum {
            return Err(TicketError::Damaged);
        }
        if payload.first().is_some_and(|version| *version > VERSION) {
            return Err(TicketError::Newer);
        }
        // Bytes after the payload are fields of a newer program that one can join without.
        let payload = postcard::take_from_bytes(payload);
        let (payload, _): (Payload, _) = payload.map_err(|_| TicketError::Forged)?;
        if payload.version != VERSION || payload.genesis.version != VERSION {
            return Err(TicketError::Forged);
        }
        let key = InviteKey::from_seed(payload.seed);
        Ticket::new(payload.genesis, payload.addresses, key, payload.kind)
    }
}

impl Debug for Ticket {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_struct("Ticket")
            .field("genesis", &self.genesis)
            .field("addresses", &self.addresses)
            .field("key", &self.key)
            .field("kind", &self.kind)
            .finish()
    }
}

#[derive(Serialize, Deserialize)]
struct Payload {
    version: u8,
    genesis: Genesis,
    #[serde(deserialize_with = "bounded::list::<_, _, { Ticket::ADDRESSES_MAX }>")]
    addresses: Vec<Address>,
    seed: [u8; 32],
    kind: TicketKind,
}

/// The digits of a ticket of this version.
fn strip_prefix(text: &str) -> Result<&str, TicketError> {
    if let Some(digits) = text.strip_prefix(PREFIX) {
        return Ok(digits);
    }
    let other = text.strip_prefix(PREFIX_OF_ALL).unwrap_or_default();
    match other.as_bytes().first() {
        Some(b'2'..=b'9') => Err(TicketError::Newer),
        _ => Err(TicketError::NotATicket),
    }
}

fn checksum(payload: &[u8]) -> [u8; 4] {
    let mut sum = [0; 4];
    let mut hasher = blake3::Hasher::new_derive_key(CHECKSUM_CONTEXT);
    hasher.update(payload).finalize_xof().fill(&mut sum);
    sum
}

/// Why a text is no ticket one can join with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TicketError {
    /// Something else entirely.
    #[error("not a ticket: one begins with `{PREFIX}`")]
    NotATicket,
    /// A ticket once, but characters changed or are missing.
    #[error("ticket is damaged or incomplete: copy all of it")]
    Damaged,
    /// A ticket that this program is too old for.
    #[error("ticket was made by a newer version of attic-node")]
    Newer,
    /// Undamaged, but what it says does not hold together.
    #[error("ticket is forged: its cluster does not stand behind it")]
    Forged,
    /// Its time is over.
    #[error("ticket expired at {not_after}: ask for a new one")]
    Expired {
        /// The last second it was good for.
        not_after: UnixTime,
    },
}

const PREFIX_OF_ALL: &str = "attic";
const PREFIX: &str = "attic1";
const CHECKSUM_CONTEXT: &str = "attic-node ticket 1";

/// RFC 4648's alphabet in lower case. Upper case is not read, so a ticket has one text.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification: Specification = BASE32_NOPAD.specification();
    specification.symbols.make_ascii_lowercase();
    specification
        .encoding()
        .expect("lower case has no doubles either")
});

#[cfg(test)]
mod tests;

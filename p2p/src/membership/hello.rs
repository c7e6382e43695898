//! What two nodes say to each other before anything else.
//!
//! One message each way, after the handshake has proved both keys and before any protocol exists.
//! The dialer shows a certificate, or proves that it holds a counted ticket; the listener shows its
//! own certificate and hands over what the dialer lacks, or says why not. Both messages begin with
//! a version byte that is read before the rest, and a listener answers in the version it was spoken
//! to: so of two programs, the older one always understands that it is the older one.
//!
//! The proof names both ends of the channel. The handshake has tied their keys to it, so there is
//! no nonce: sent on by anybody else, or to anybody else, the proof proves nothing.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::address::Address;
use super::certificate::{Certificate, CertificateError};
use super::invite::InviteKey;
use super::revocation::Revocation;
use super::sealing::SealingKey;
use super::time::UnixTime;
use super::{VERSION, bounded};
use crate::gate::GATE_MESSAGE_LEN_MAX;
use crate::ids::{ClusterId, NodeId};
use crate::signed::{Signed, Statement};

/// The dialer's message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Why it should be let in.
    pub credential: Credential,
    /// [`super::revocation::Revocations::digest`] of those it knows.
    pub revocations_digest: [u8; 32],
}

/// Why a dialer should be let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credential {
    /// It is a member. Holders of an open ticket are: they wrote their certificate themselves.
    Member(Signed<Certificate>),
    /// It wants to become one.
    Join(Join),
}

/// A counted ticket, shown to an issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The public half of the ticket's key.
    pub invite: NodeId,
    /// Signed with that key.
    pub proof: Signed<JoinProof>,
}

impl Join {
    /// The proof of `joiner`, who holds the ticket with this key, for `listener` alone.
    pub fn new(
        key: &InviteKey,
        cluster: ClusterId,
        joiner: NodeId,
        listener: NodeId,
        sealing_key: SealingKey,
    ) -> Join {
        let proof = JoinProof {
            cluster,
            joiner,
            listener,
            sealing_key,
        };
        Join {
            invite: key.id(),
            proof: Signed::new(proof, key),
        }
    }
}

/// What the key of a counted ticket signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinProof {
    /// Into which cluster.
    pub cluster: ClusterId,
    /// Who wants in, the dialer.
    pub joiner: NodeId,
    /// Who is asked, the listener.
    pub listener: NodeId,
    /// The dialer's sealing key, for its certificate.
    pub sealing_key: SealingKey,
}

impl Statement for JoinProof {
    const DOMAIN: &'static str = "attic-node join proof 1";
    const LEN_MAX: usize = 128;
}

impl Hello {
    /// **Shape**: a version byte, then postcard; at most [`GATE_MESSAGE_LEN_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads what [`Hello::encode`] wrote. No signature is verified.
    ///
    /// **Errors**: [`Refusal::VersionTooNew`], [`Refusal::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Hello, Refusal> {
        decode(bytes)
    }
}

/// The listener's message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The dialer may come in, if it wants to.
    Admitted(Box<Admission>),
    /// It may not.
    Refused(Refusal),
}

/// What a dialer that is let in is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// The listener's own certificate.
    pub certificate: Signed<Certificate>,
    /// A new one for the dialer: it redeemed a ticket, or its own is near its end.
    pub granted: Option<Signed<Certificate>>,
    /// The latest revocations, if the dialer does not know the same ones.
    #[serde(deserialize_with = "bounded::list::<_, _, { Admission::REVOCATIONS_MAX }>")]
    pub revocations: Vec<Signed<Revocation>>,
}

impl Admission {
    /// Most revocations in one message. The rest come with the logs.
    pub const REVOCATIONS_MAX: usize = 48;
}

impl Reply {
    /// **Shape**: a version byte, then postcard; at most [`GATE_MESSAGE_LEN_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// [`Refusal::Revoked`] with the revocation behind it, so that the dialer need not believe the
    /// listener. An earlier version passes over what is behind.
    pub fn encode_revoked(revocation: &Signed<Revocation>) -> Vec<u8> {
        encode(&(Reply::Refused(Refusal::Revoked), revocation))
    }

    /// What [`Reply::encode_revoked`] put behind a refusal; `None` in all other messages. The
    /// signature is not verified.
    pub fn revocation_in(bytes: &[u8]) -> Option<Signed<Revocation>> {
        let (reply, revocation) = decode::<(Reply, Signed<Revocation>)>(bytes).ok()?;
        (reply == Reply::Refused(Refusal::Revoked)).then_some(revocation)
    }

    /// Reads what [`Reply::encode`] wrote. No signature is verified.
    ///
    /// **Errors**: [`Refusal::VersionTooNew`], [`Refusal::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Reply, Refusal> {
        decode(bytes)
    }
}

/// Why a node is not let in.
///
/// The text says what is so, not whom it is about: who tells it puts "… refused us:" or "we
/// refused …:" before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Refusal {
    /// The certificate does not lead back to the cluster's key, or is another node's.
    #[error("not a member: the cluster does not stand behind this certificate")]
    NotAMember,
    /// A member, but of another cluster.
    #[error("member of another cluster")]
    OtherCluster,
    /// Was a member, and too long ago to be renewed here.
    #[error("certificate expired at {not_after}: connect to an issuer or join again")]
    Expired {
        /// The last second it was good for.
        not_after: UnixTime,
    },
    /// The node, or who let it in, was taken out of the cluster.
    #[error("revoked: this key is out of the cluster for good")]
    Revoked,
    /// The ticket's time is over.
    #[error("ticket expired at {not_after}: ask for a new one")]
    TicketExpired {
        /// The last second it was good for.
        not_after: UnixTime,
    },
    /// As many nodes came by the ticket as it was good for.
    #[error("ticket is used up: ask for a new one")]
    TicketUsedUp,
    /// Not a ticket of this issuer, or one it took back.
    #[error("ticket is unknown here: withdrawn, or made by another issuer")]
    TicketUnknown,
    /// The ticket's key was taken out of the cluster.
    #[error("ticket is revoked: ask for a new one")]
    TicketRevoked,
    /// The proof is not by the ticket's key, or for another pair of nodes.
    #[error("proof of the ticket is wrong")]
    BadProof,
    /// Counted tickets are redeemed elsewhere.
    #[error("not an issuer, who alone redeems this ticket{}", ask(issuers))]
    NotAnIssuer {
        /// Where issuers can be found, if that is known; at most [`Refusal::ISSUERS_MAX`].
        #[serde(deserialize_with = "bounded::list::<_, _, { Refusal::ISSUERS_MAX }>")]
        issuers: Vec<Address>,
    },
    /// The listener has no certificate itself yet.
    #[error("has not joined the cluster yet: try another member")]
    NotJoined,
    /// An issuer could not write down what it was about to promise.
    #[error("issuer cannot record this now: try again later")]
    Unavailable,
    /// Spoken to in a version that it does not know.
    #[error("too new for a node that knows version {known}: update that node")]
    VersionTooNew {
        /// The highest version it knows.
        known: u8,
    },
    /// The message cannot be read, or breaks the rules.
    #[error("message of membership is malformed")]
    Malformed,
}

impl Refusal {
    /// Most issuers that are named.
    pub const ISSUERS_MAX: usize = 4;
}

impl From<CertificateError> for Refusal {
    fn from(error: CertificateError) -> Refusal {
        match error {
            CertificateError::Version { found } if found > VERSION => {
                Refusal::VersionTooNew { known: VERSION }
            }
            CertificateError::Version { .. } => Refusal::Malformed,
            CertificateError::Cluster { .. } => Refusal::OtherCluster,
            CertificateError::Expired { not_after } => Refusal::Expired { not_after },
            CertificateError::Signature | CertificateError::Rights | CertificateError::Lifetime => {
                Refusal::NotAMember
            }
        }
    }
}

fn ask(issuers: &[Address]) -> String {
    let addresses: Vec<_> = issuers.iter().map(Address::to_string).collect();
    match addresses.is_empty() {
        true => String::new(),
        false => format!(": ask {}", addresses.join(" or ")),
    }
}

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_stdvec(&(VERSION, message)).expect("messages are plain data")
}

/// Bytes after the message are fields of a newer program that speaks our version.
fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, Refusal> {
    let (version, message) = bytes.split_first().ok_or(Refusal::Malformed)?;
    if bytes.len() > GATE_MESSAGE_LEN_MAX || *version == 0 {
        return Err(Refusal::Malformed);
    }
    if *version > VERSION {
        return Err(Refusal::VersionTooNew { known: VERSION });
    }
    let (message, _) = postcard::take_from_bytes(message).map_err(|_| Refusal::Malformed)?;
    Ok(message)
}

/// The longest admission that is ever written fits a message of the gate.
const _: () = {
    const fn signed(body: usize) -> usize {
        3 + 64 + body
    }
    let certificates = 2 * signed(Certificate::LEN_MAX);
    let revocations = Admission::REVOCATIONS_MAX * signed(Revocation::LEN_MAX);
    let framing = 8;
    assert!(framing + certificates + revocations <= GATE_MESSAGE_LEN_MAX);
};

#[cfg(test)]
mod tests;

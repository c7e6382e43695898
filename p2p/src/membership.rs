//! Who belongs to a cluster, and with which rights.
//!
//! A cluster is a key pair. Its public half stands in the [`genesis`] record, and the hash of that
//! record is the cluster's id: who knows the id knows whose word counts. Everything else is a
//! signed statement that leads back to this key in one or two steps, so any node can judge any
//! other alone, offline, without asking who else is there:
//!
//! ```text
//! cluster key ── certificate                    a founder, a renewal, a counted ticket
//! cluster key ── delegation ── certificate      an open ticket, a delegated issuer
//! cluster key ── revocation                     takes a node or a ticket out again
//! ```
//!
//! Words to know:
//!
//! - a [`certificate`] names a node, its role and [`scopes`], for 30 days; a **delegation** lets
//!   another key make certificates, never with more rights or a longer life than its own;
//! - a [`ticket`] is the text that people hand on; an [`invite`] is what its issuer remembers of it;
//! - a [`revocation`] is for ever: who was revoked comes back under a new key or not at all;
//! - the [`gate`] is what two nodes say to each other before anything else, in the messages of
//!   [`hello`];
//! - [`sealing`] hides a cache's secrets from everybody but the nodes they are for.
//!
//! **What a certificate proves.** That somebody entitled let this key in – not that the key's owner
//! agreed. The holder of an open ticket can write a certificate for any node, naming a sealing key
//! of its own. So a certificate counts only where its node itself shows it: over a channel the
//! node's key opened, or in a log that key signed.
//!
//! **Time.** Expiry is looked at when nodes meet and nowhere else: two nodes with the same records
//! hold the same members, whatever their clocks say. Everything here is pure: the time, random
//! bytes and the files are the caller's. Only [`gate::MemberGate`] awaits, and only its caller.

use serde::{Deserialize, Serialize};

pub mod address;
mod bounded;
pub mod certificate;
#[cfg(test)]
mod fixture;
pub mod gate;
pub mod genesis;
pub mod hello;
pub mod invite;
pub mod revocation;
pub mod scopes;
pub mod sealing;
pub mod ticket;
pub mod time;

/// The version of every statement of this module. Higher ones are refused, not guessed at.
pub const VERSION: u8 = 1;

/// What a node is in its cluster. Ordered: a later role has every right of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Reads and writes what its scopes say. Trusted for nothing but its own words.
    Member,
    /// Also makes pushes durable and collects garbage. Trusted but for crashes and partitions.
    Keeper,
}

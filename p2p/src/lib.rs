//! What nodes say to each other: who belongs to a cluster, who has what, and the bytes.
//!
//! The crate has two halves. The *machines* are values: events go in, actions come out, time and
//! randomness are arguments; a simulator runs the same code as a node. The *network* moves their
//! messages over libp2p.
//!
//! Words to know:
//!
//! - a node's **identity** is its ed25519 key ([`identity`]); its public half names it everywhere;
//! - a **certificate** makes it a member of a cluster, with scopes ([`membership`]); without one it
//!   does not get past the handshake ([`gate`]);
//! - every node writes a signed **log** ([`segment`], [`record`]); the [`directory`] is what follows
//!   from all of them, and a [`replica`] keeps them, by gossip and by comparing ([`reconcile`]);
//! - what keepers write into a bucket is their **journal** ([`journal`]), and what nothing refers to any
//!   more a **collector** ([`collector`]) takes out of it;
//! - what logs say of a **private** cache only its readers can open ([`private`]);
//! - a **fetch** ([`mod@fetch`]) gets one NAR from several peers at once, a [`provider`] serves such
//!   requests, in the frames of [`wire`];
//! - the [`network`] is the one task that owns all connections.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! use attic_p2p::identity::Identity;
//!
//! let file = dir.path().join("identity.key");
//! let first = Identity::load_or_create(&file)?;
//! let again = Identity::load(&file)?;
//! assert_eq!(first.peer_id(), again.peer_id());
//! # Ok(())
//! # }
//! ```

mod behaviour;
pub mod bulk;
pub mod collector;
pub mod control;
pub mod dialer;
pub mod directory;
pub mod fetch;
pub mod gate;
pub mod identity;
pub mod ids;
pub mod journal;
pub mod log;
pub mod membership;
pub mod network;
pub mod peer_stats;
pub mod placement;
pub mod private;
mod probe;
pub mod provider;
pub mod reconcile;
pub mod record;
pub mod replica;
pub mod segment;
pub mod signed;
mod supervisor;
mod swarm;
pub mod time;
pub mod upgrade;
pub mod wire;

pub use libp2p::Multiaddr;

//! Who a node is among its peers.
//!
//! Today this crate holds a node's identity and nothing that talks to the network: the key that
//! every later conversation between nodes is bound to exists from a node's first start, so its
//! name never changes.
//!
//! Words to know:
//!
//! - **identity**: the node's ed25519 key pair, kept in one file that only its owner may read.
//! - **peer id**: the node's public name, a hash of its public key in libp2p's text form
//!   (`12D3KooW…`). Two nodes never share one.
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

pub mod identity;
pub mod ids;
pub mod signed;

//! Names of nodes, clusters, caches, manifests and records.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};
use std::str::FromStr;

use data_encoding::HEXLOWER;
use libp2p_identity::{PeerId, PublicKey, ed25519};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A node: its ed25519 public key, the one libp2p knows it by.
///
/// **Shape**: 32 bytes; the text form is libp2p's peer id (`12D3KooW…`). Not every value is a
/// point on the curve: what such a node is said to have signed never verifies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// The node with this public key.
    pub const fn from_bytes(bytes: [u8; 32]) -> NodeId {
        NodeId(bytes)
    }

    /// The public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The node libp2p calls `peer`; `None` unless its id holds an ed25519 key.
    pub fn from_peer_id(peer: &PeerId) -> Option<NodeId> {
        let bytes = peer.to_bytes();
        let key = bytes.strip_prefix(&PEER_ID_PREFIX)?;
        key.try_into().ok().map(NodeId)
    }

    /// What libp2p calls it; `None` if the bytes are not a public key.
    pub fn peer_id(&self) -> Option<PeerId> {
        let key = ed25519::PublicKey::try_from_bytes(&self.0).ok()?;
        Some(PublicKey::from(key).to_peer_id())
    }
}

impl Display for NodeId {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self.peer_id() {
            Some(peer) => Display::fmt(&peer, f),
            None => write!(f, "no-key-{}", HEXLOWER.encode(&self.0)),
        }
    }
}

impl Debug for NodeId {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<NodeId, IdError> {
        let peer: PeerId = text.parse().map_err(|_| IdError("node"))?;
        NodeId::from_peer_id(&peer).ok_or(IdError("node"))
    }
}

/// Of an identity multihash that holds an ed25519 key in protobuf.
const PEER_ID_PREFIX: [u8; 6] = [0, 36, 8, 1, 18, 32];

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name([u8; $len]);

        impl $name {
            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> $name {
                $name(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl Display for $name {
            fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
                f.write_str(&HEXLOWER.encode(&self.0))
            }
        }

        impl Debug for $name {
            fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
                Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<$name, IdError> {
                let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| IdError($what))?;
                bytes.try_into().map($name).map_err(|_| IdError($what))
            }
        }
    };
}

hex_id!(
    /// A cluster: hash of the record that founded it.
    ///
    /// **Shape**: 16 bytes, 32 lower-case hex digits in text.
    ClusterId,
    16,
    "cluster"
);
hex_id!(
    /// A cache: hash of the record that founded it. Two caches of one name differ.
    ///
    /// **Shape**: 16 bytes, 32 lower-case hex digits in text.
    CacheId,
    16,
    "cache"
);
hex_id!(
    /// A manifest: BLAKE3 of its encoding.
    ///
    /// **Shape**: 32 bytes, 64 lower-case hex digits in text.
    ManifestId,
    32,
    "manifest"
);

impl ManifestId {
    /// The id of a manifest with this encoding.
    pub fn of(encoded: &[u8]) -> ManifestId {
        ManifestId(*blake3::hash(encoded).as_bytes())
    }
}

/// Names one record for ever: the `index`-th of the `seq`-th segment of a node's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// Whose log.
    pub node: NodeId,
    /// Number of the segment, from 1.
    pub seq: u64,
    /// Position in the segment, from 0.
    pub index: u16,
}

/// Text that is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not the id of a {0}")]
pub struct IdError(&'static str);

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;

    #[test]
    fn a_node_id_is_the_peer_id_and_back() {
        let peer = Keypair::generate_ed25519().public().to_peer_id();
        let node = NodeId::from_peer_id(&peer).unwrap();
        assert_eq!(node.peer_id(), Some(peer));
        assert_eq!(node.to_string(), peer.to_string());
        assert_eq!(node.to_string().parse(), Ok(node));
    }

    #[test]
    fn foreign_text_is_no_id() {
        // A hash of a larger key, bad base58, hex of a wrong length.
        for text in [
            "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
            "12D3",
            "",
            "0",
        ] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
        assert!("00".parse::<ClusterId>().is_err());
        assert!("0".repeat(32).parse::<ClusterId>().is_ok());
        assert!("G".repeat(32).parse::<CacheId>().is_err());
    }

    #[test]
    fn bytes_off_the_curve_have_no_peer_id() {
        let off = NodeId::from_bytes([0xee; 32]);
        assert!(off.peer_id().is_some() || off.to_string().starts_with("no-key-"));
    }
}

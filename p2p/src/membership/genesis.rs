//! The founding record of a cluster and the key behind it.
//!
//! Founding a cluster is choosing a key and writing down its public half, a name for people and a
//! nonce. The id is the hash of exactly that, so nobody can pass another key off under a known id,
//! and two clusters of one name are never confused. The record needs no signature: it is the thing
//! that signatures are checked against, and it travels in tickets, beside the id it hashes to.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};
use std::str::FromStr;

use data_encoding::BASE64;
use ed25519_dalek::{Signer as _, SigningKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::VERSION;
use crate::ids::{ClusterId, NodeId};
use crate::signed::Signer;

/// What founds a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// [`VERSION`] of this record.
    pub version: u8,
    /// The key whose word is final.
    pub cluster_key: NodeId,
    /// Random: tells apart clusters founded with one key and name.
    pub nonce: [u8; 16],
    /// What people call the cluster.
    pub name: ClusterName,
}

impl Genesis {
    /// Longest encoding, in bytes.
    pub const LEN_MAX: usize = 1 + 32 + 16 + 1 + ClusterName::LEN_MAX;

    /// The id: the first half of a BLAKE3 over a fixed prefix and the encoding.
    pub fn cluster_id(&self) -> ClusterId {
        let hash = blake3::Hasher::new()
            .update(CLUSTER_ID_PREFIX)
            .update(&self.encode())
            .finalize();
        let (half, _) = hash.as_bytes().split_first_chunk().expect("32 is over 16");
        ClusterId::from_bytes(*half)
    }

    /// **Shape**: postcard, at most [`Genesis::LEN_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a genesis is plain data")
    }

    /// Reads what [`Genesis::encode`] wrote, and nothing else: one record has one encoding, or it
    /// would have two ids.
    ///
    /// **Errors**: [`GenesisError::Version`], [`GenesisError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Genesis, GenesisError> {
        match bytes.first() {
            Some(&found) if found > VERSION => return Err(GenesisError::Version { found }),
            _ => {}
        }
        let genesis: Genesis = postcard::from_bytes(bytes).map_err(|_| GenesisError::Malformed)?;
        if genesis.version != VERSION || genesis.encode() != bytes {
            return Err(GenesisError::Malformed);
        }
        Ok(genesis)
    }
}

/// What people call a cluster.
///
/// **Shape**: a letter or digit, then up to 63 of `[a-zA-Z0-9 ._-]`. Serialised as this text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(Box<str>);

impl ClusterName {
    /// Longest name, in characters, which are bytes.
    pub const LEN_MAX: usize = 64;

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for ClusterName {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(&self.0)
    }
}

impl Debug for ClusterName {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        Debug::fmt(&self.0, f)
    }
}

impl FromStr for ClusterName {
    type Err = GenesisError;

    fn from_str(text: &str) -> Result<ClusterName, GenesisError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '.' | '_' | '-');
        let named = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !named || text.len() > ClusterName::LEN_MAX || !text.chars().all(allowed) {
            return Err(GenesisError::Name);
        }
        Ok(ClusterName(text.into()))
    }
}

impl TryFrom<String> for ClusterName {
    type Error = GenesisError;

    fn try_from(text: String) -> Result<ClusterName, GenesisError> {
        text.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> String {
        name.0.into()
    }
}

/// The secret key of a cluster. Whoever has it decides who belongs.
///
/// **Shape** of the text form: `attic-node-cluster-key-1:` and the 32 bytes of the seed in padded
/// base64. `Debug` shows the public half only, there is no `Display`, and the bytes are wiped when
/// dropped.
#[derive(Clone)]
pub struct ClusterKey(SigningKey);

impl ClusterKey {
    /// The key that grows from `seed`, which must be random.
    pub fn from_seed(seed: [u8; 32]) -> ClusterKey {
        ClusterKey(SigningKey::from_bytes(&seed))
    }

    /// The text form: a secret, to be written to a private file and nowhere else.
    pub fn to_text(&self) -> String {
        format!("{KEY_TEXT_PREFIX}{}", BASE64.encode(self.0.as_bytes()))
    }

    /// Founds the cluster `name` under this key. `nonce` must be random.
    pub fn found(&self, name: ClusterName, nonce: [u8; 16]) -> Genesis {
        Genesis {
            version: VERSION,
            cluster_key: self.public(),
            nonce,
            name,
        }
    }
}

impl Signer for ClusterKey {
    fn public(&self) -> NodeId {
        NodeId::from_bytes(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }
}

impl Debug for ClusterKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_tuple("ClusterKey").field(&self.public()).finish()
    }
}

impl FromStr for ClusterKey {
    type Err = GenesisError;

    /// Takes exactly what [`ClusterKey::to_text`] gives: no spaces, no line end, no other padding.
    fn from_str(text: &str) -> Result<ClusterKey, GenesisError> {
        let digits = text
            .strip_prefix(KEY_TEXT_PREFIX)
            .ok_or(GenesisError::Key)?;
        let seed = BASE64
            .decode(digits.as_bytes())
            .map_err(|_| GenesisError::Key)?;
        let seed: [u8; 32] = seed.try_into().map_err(|_| GenesisError::Key)?;
        let key = ClusterKey::from_seed(seed);
        // The decoder takes several padded texts one after another.
        if key.to_text() != text {
            return Err(GenesisError::Key);
        }
        Ok(key)
    }
}

/// Why this founds no cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GenesisError {
    /// Written by a newer version of the program.
    #[error("genesis record has version {found}, newer than {VERSION}")]
    Version {
        /// The version it claims.
        found: u8,
    },
    /// Not the encoding of a genesis record.
    #[error("not a genesis record")]
    Malformed,
    /// Not the name of a cluster.
    #[error(
        "cluster name must be 1 to 64 letters, digits, spaces and `._-`, first a letter or digit"
    )]
    Name,
    /// Not the text of a cluster key. Never says more: the text may be a secret.
    #[error("not a cluster key")]
    Key,
}

const CLUSTER_ID_PREFIX: &[u8] = b"attic-node cluster 1";
const KEY_TEXT_PREFIX: &str = "attic-node-cluster-key-1:";

#[cfg(test)]
mod tests {
    use super::*;

    fn genesis() -> Genesis {
        ClusterKey::from_seed([1; 32]).found("office".parse().unwrap(), [2; 16])
    }

    #[test]
    fn the_id_covers_every_field() {
        let base = genesis();
        let key = NodeId::from_bytes([9; 32]);
        let others = [
            Genesis {
                cluster_key: key,
                ..base.clone()
            },
            Genesis {
                nonce: [3; 16],
                ..base.clone()
            },
            Genesis {
                name: "Office".parse().unwrap(),
                ..base.clone()
            },
        ];
        for other in others {
            assert_ne!(other.cluster_id(), base.cluster_id(), "{other:?}");
        }
    }

    #[test]
    fn the_id_is_stable() {
        assert_eq!(genesis().cluster_id(), genesis().cluster_id());
        let expected = {
            let mut bytes = b"attic-node cluster 1".to_vec();
            bytes.push(1);
            bytes.extend(genesis().cluster_key.as_bytes());
            bytes.extend([2; 16]);
            bytes.push(6);
            bytes.extend(b"office");
            blake3::hash(&bytes)
        };
        assert_eq!(
            genesis().cluster_id().as_bytes()[..],
            expected.as_bytes()[..16]
        );
    }

    #[test]
    fn a_record_has_one_encoding() {
        let bytes = genesis().encode();
        assert_eq!(Genesis::decode(&bytes), Ok(genesis()));
        // The length of the name as a varint of two bytes.
        let at = 1 + 32 + 16;
        let padded = [&bytes[..at], &[0x86, 0], &bytes[at + 1..]].concat();
        assert_eq!(Genesis::decode(&padded), Err(GenesisError::Malformed));
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(Genesis::decode(&longer), Err(GenesisError::Malformed));
        for len in 0..bytes.len() {
            assert_eq!(Genesis::decode(&bytes[..len]), Err(GenesisError::Malformed));
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = genesis().encode();
        bytes[0] = 2;
        assert_eq!(
            Genesis::decode(&bytes),
            Err(GenesisError::Version { found: 2 })
        );
    }

    #[test]
    fn names_are_short_and_plain() {
        let (longest, long) = ("x".repeat(64), "x".repeat(65));
        for (text, good) in [
            ("a", true),
            ("Berlin office 2.0_b-c", true),
            (&*longest, true),
            (&*long, false),
            ("", false),
            (" a", false),
            ("-a", false),
            ("a\n", false),
            ("büro", false),
        ] {
            assert_eq!(text.parse::<ClusterName>().is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn a_key_survives_its_text() {
        let key = ClusterKey::from_seed([5; 32]);
        let again: ClusterKey = key.to_text().parse().unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(again.sign(b"x"), key.sign(b"x"));
    }

    #[test]
    fn no_other_text_is_a_key() {
        let text = ClusterKey::from_seed([5; 32]).to_text();
        let digits = text.strip_prefix(KEY_TEXT_PREFIX).unwrap();
        for wrong in [
            "",
            digits,
            &format!("{text}\n"),
            &format!(" {text}"),
            &text.replace("-1:", "-2:"),
            &text[..text.len() - 1],
            &format!("{KEY_TEXT_PREFIX}QQ==QUJD"),
            &format!("{text}QUJD"),
        ] {
            assert_eq!(
                wrong.parse::<ClusterKey>().err(),
                Some(GenesisError::Key),
                "{wrong}"
            );
        }
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let key = ClusterKey::from_seed([5; 32]);
        assert_eq!(format!("{key:?}"), format!("ClusterKey({})", key.public()));
    }
}

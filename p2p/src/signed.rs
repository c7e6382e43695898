//! Signed statements: exact bytes, who said them, and what for.
//!
//! A statement is stored and forwarded as the bytes that were signed and never encoded anew, so a
//! newer version's unknown fields survive the trip. The signature covers a domain that differs for
//! every kind of statement: one kind can never be passed off as another.

use std::fmt::{Debug, Formatter, Result as FmtResult};

use ed25519_dalek::{Signature, VerifyingKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::ids::NodeId;

/// Something that can be signed.
pub trait Statement: Serialize + DeserializeOwned {
    /// What the signature is for, unique to this kind and version.
    const DOMAIN: &'static str;
    /// Longest encoding that is read.
    const LEN_MAX: usize;
}

/// Whoever can sign: a node, a cluster, an invitation, a cache's owner.
pub trait Signer {
    /// The public key that verifies.
    fn public(&self) -> NodeId;
    /// Signs these bytes as they are.
    fn sign(&self, bytes: &[u8]) -> [u8; 64];
}

/// A statement with its signature, in the bytes that were signed.
///
/// Having one says nothing about who signed it: ask [`Signed::verify`].
#[derive(Clone, PartialEq, Eq)]
pub struct Signed<T> {
    value: T,
    body: Box<[u8]>,
    signature: [u8; 64],
}

impl<T: Statement> Signed<T> {
    /// Signs `value`.
    pub fn new(value: T, signer: &impl Signer) -> Signed<T> {
        let body = postcard::to_stdvec(&value).expect("statements are plain data");
        let signature = signer.sign(&covered::<T>(&body));
        Signed {
            value,
            body: body.into(),
            signature,
        }
    }

    /// What is stated. Not verified.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// What is stated, if `signer` signed it.
    ///
    /// **Errors**: [`SignedError::Signature`]. Weak keys verify nothing.
    pub fn verify(&self, signer: &NodeId) -> Result<&T, SignedError> {
        let key = VerifyingKey::from_bytes(signer.as_bytes());
        let key = key.map_err(|_| SignedError::Signature)?;
        let signature = Signature::from_bytes(&self.signature);
        key.verify_strict(&covered::<T>(&self.body), &signature)
            .map_err(|_| SignedError::Signature)?;
        Ok(&self.value)
    }

    /// **Shape**: the 64 bytes of the signature, then the statement in postcard.
    pub fn encode(&self) -> Vec<u8> {
        [&self.signature[..], &self.body].concat()
    }

    /// Reads what [`Signed::encode`] wrote. Nothing is verified.
    ///
    /// **Errors**: [`SignedError::Length`], [`SignedError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Signed<T>, SignedError> {
        let (signature, body) = bytes.split_first_chunk().ok_or(SignedError::Length)?;
        if body.len() > T::LEN_MAX {
            return Err(SignedError::Length);
        }
        // Bytes after the value are fields of a newer version; the signature covers them.
        let (value, _) = postcard::take_from_bytes(body).map_err(|_| SignedError::Malformed)?;
        Ok(Signed {
            value,
            body: body.into(),
            signature: *signature,
        })
    }
}

impl<T: Debug> Debug for Signed<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_tuple("Signed").field(&self.value).finish()
    }
}

impl<T: Statement> Serialize for Signed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.encode())
    }
}

impl<'de, T: Statement> Deserialize<'de> for Signed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Signed<T>, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        Signed::decode(&bytes).map_err(serde::de::Error::custom)
    }
}

/// What a signature covers: the domain with its length, then the body.
fn covered<T: Statement>(body: &[u8]) -> Vec<u8> {
    let domain = T::DOMAIN.as_bytes();
    let len = u8::try_from(domain.len()).expect("domains are short");
    [&[len], domain, body].concat()
}

/// Why bytes are no signed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SignedError {
    /// Shorter than a signature, or longer than its kind may be.
    #[error("length out of bounds")]
    Length,
    /// Not the encoding of this kind of statement.
    #[error("malformed")]
    Malformed,
    /// Not signed by that key.
    #[error("bad signature")]
    Signature,
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;
    use crate::identity::Identity;

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Promise(String);

    impl Statement for Promise {
        const DOMAIN: &'static str = "test promise 1";
        const LEN_MAX: usize = 64;
    }

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Threat(String);

    impl Statement for Threat {
        const DOMAIN: &'static str = "test threat 1";
        const LEN_MAX: usize = 64;
    }

    fn identity() -> Identity {
        Identity::from_keypair(Keypair::generate_ed25519()).unwrap()
    }

    #[test]
    fn a_statement_verifies_under_its_signer_alone() {
        let (me, other) = (identity(), identity());
        let promise = Signed::new(Promise("cake".into()), &me);
        let read = Signed::<Promise>::decode(&promise.encode()).unwrap();
        assert_eq!(read, promise);
        assert_eq!(read.verify(&me.node_id()), Ok(&Promise("cake".into())));
        assert_eq!(read.verify(&other.node_id()), Err(SignedError::Signature));
    }

    #[test]
    fn one_kind_is_never_another() {
        let me = identity();
        let promise = Signed::new(Promise("cake".into()), &me);
        let threat = Signed::<Threat>::decode(&promise.encode()).unwrap();
        assert_eq!(threat.verify(&me.node_id()), Err(SignedError::Signature));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let me = identity();
        let bytes = Signed::new(Promise("cake".into()), &me).encode();
        for bit in 0..bytes.len() * 8 {
            let mut bent = bytes.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            let outcome = Signed::<Promise>::decode(&bent)
                .and_then(|signed| signed.verify(&me.node_id()).cloned());
            assert!(outcome.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let long = [0; 64 + 64 + 1];
        assert_eq!(Signed::<Promise>::decode(&long), Err(SignedError::Length));
        assert_eq!(
            Signed::<Promise>::decode(&long[..63]),
            Err(SignedError::Length)
        );
        assert_eq!(
            Signed::<Promise>::decode(&long[..64]),
            Err(SignedError::Malformed)
        );
    }

    #[test]
    fn fields_of_a_newer_version_survive() {
        let me = identity();
        let mut body = postcard::to_stdvec(&Promise("cake".into())).unwrap();
        body.push(7);
        let signature = me.sign(&covered::<Promise>(&body));
        let bytes = [&signature[..], &body].concat();
        let read = Signed::<Promise>::decode(&bytes).unwrap();
        assert!(read.verify(&me.node_id()).is_ok());
        assert_eq!(read.encode(), bytes);
    }
}

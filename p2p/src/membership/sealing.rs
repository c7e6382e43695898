//! Secrets for one node, and records for those who share a secret.
//!
//! Two kinds of envelope, both with their context under the seal, so that one cut out of its place
//! and put elsewhere does not open:
//!
//! - a **sealed secret** is for one node. The sender makes an X25519 key pair for this one message
//!   and agrees on a key with the recipient's [`SealingKey`]; only the recipient can agree on the
//!   same one. It says nothing about who sealed it: that is the signature's job, around it.
//! - a **sealed record** is for everybody who holds the [`ScopeKey`] of a private cache. The author
//!   is part of the context: who cannot read a record cannot republish it as its own either.
//!
//! The cipher is XChaCha20-Poly1305. Its nonce of 24 bytes may be random, which needs no state that
//! a restored disk would wind back. Random bytes are arguments; using one value twice for a key
//! gives the contents away.

use std::fmt::{Debug, Formatter, Result as FmtResult};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::Zeroizing;

use crate::identity::Identity;
use crate::ids::{CacheId, ClusterId, NodeId};

/// What secrets for a node are sealed to: public, part of its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealingKey([u8; 32]);

impl SealingKey {
    /// The key with these bytes, an X25519 public key.
    pub const fn from_bytes(bytes: [u8; 32]) -> SealingKey {
        SealingKey(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Seals `secret` for the owner of this key. `random` must be fresh for every call.
    ///
    /// **Shape**: 32 bytes of the message's own public key, the secret encrypted, 16 bytes of tag.
    /// **Errors**: [`SealError::Length`] beyond [`SECRET_LEN_MAX`]; [`SealError::Key`] for a key
    /// with which everybody would agree on the same secret.
    pub fn seal(
        &self,
        context: &SecretContext,
        secret: &[u8],
        random: [u8; 32],
    ) -> Result<Vec<u8>, SealError> {
        if secret.len() > SECRET_LEN_MAX {
            return Err(SealError::Length);
        }
        let message_key = StaticSecret::from(random);
        let message_public = PublicKey::from(&message_key);
        let shared = message_key.diffie_hellman(&PublicKey::from(self.0));
        let cipher = agreed_cipher(&shared, message_public.as_bytes(), self)?;
        let encrypted = encrypt(&cipher, &ONLY_NONCE, secret, &context.encode());
        Ok([&message_public.as_bytes()[..], &encrypted].concat())
    }
}

/// What opens secrets sealed to a node. `Debug` shows nothing; wiped when dropped.
#[derive(Clone)]
pub struct OpeningKey(StaticSecret);

impl OpeningKey {
    /// The key of the node with this identity.
    pub fn of(identity: &Identity) -> OpeningKey {
        OpeningKey(StaticSecret::from(
            identity.derive_secret(OPENING_KEY_CONTEXT),
        ))
    }

    /// Its public half, for the certificate.
    pub fn sealing_key(&self) -> SealingKey {
        SealingKey(PublicKey::from(&self.0).to_bytes())
    }

    /// Opens what was sealed to [`OpeningKey::sealing_key`] in the same context.
    ///
    /// **Errors**: [`SealError::Length`], [`SealError::Key`]; [`SealError::Opens`] for another
    /// recipient, another context and damage alike.
    pub fn open(
        &self,
        context: &SecretContext,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (message_public, encrypted) =
            sealed.split_first_chunk::<32>().ok_or(SealError::Length)?;
        if encrypted.len() > SECRET_LEN_MAX + TAG_LEN {
            return Err(SealError::Length);
        }
        let shared = self.0.diffie_hellman(&PublicKey::from(*message_public));
        let cipher = agreed_cipher(&shared, message_public, &self.sealing_key())?;
        decrypt(&cipher, &ONLY_NONCE, encrypted, &context.encode()).map(Zeroizing::new)
    }
}

impl Debug for OpeningKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("OpeningKey(…)")
    }
}

/// Where a sealed secret belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretContext {
    /// In which cluster.
    pub cluster: ClusterId,
    /// Of which cache.
    pub cache: CacheId,
    /// For whom.
    pub recipient: NodeId,
}

impl SecretContext {
    fn encode(&self) -> Vec<u8> {
        [
            &self.cluster.as_bytes()[..],
            self.cache.as_bytes(),
            self.recipient.as_bytes(),
        ]
        .concat()
    }
}

/// The key that the readers of a private cache share for one epoch. `Debug` shows nothing; wiped
/// when dropped.
#[derive(Clone)]
pub struct ScopeKey(Zeroizing<[u8; 32]>);

impl ScopeKey {
    /// The key with these bytes, which must be random.
    pub fn from_bytes(bytes: [u8; 32]) -> ScopeKey {
        ScopeKey(Zeroizing::new(bytes))
    }

    /// Its bytes, to be sealed to a reader and given to nobody else.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Encrypts the body of a record. `nonce` must be fresh for every call.
    ///
    /// **Shape**: the body encrypted, 16 bytes of tag. The nonce is not part of it.
    pub fn seal(&self, context: &RecordContext, nonce: &[u8; NONCE_LEN], body: &[u8]) -> Vec<u8> {
        encrypt(&self.cipher(), nonce, body, &context.encode())
    }

    /// Decrypts the body of a record.
    ///
    /// Allocates as much as `encrypted` is long: the caller bounds that.
    ///
    /// **Errors**: [`SealError::Opens`] for another key, another context and damage alike.
    pub fn open(
        &self,
        context: &RecordContext,
        nonce: &[u8; NONCE_LEN],
        encrypted: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        decrypt(&self.cipher(), nonce, encrypted, &context.encode())
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        let key = Zeroizing::new(blake3::derive_key(RECORD_KEY_CONTEXT, &self.0[..]));
        cipher(&key)
    }
}

impl Debug for ScopeKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("ScopeKey(…)")
    }
}

/// Where a sealed record belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordContext {
    /// In which cluster.
    pub cluster: ClusterId,
    /// To which cache.
    pub cache: CacheId,
    /// Which of the cache's keys it is.
    pub epoch: u64,
    /// In whose log it stands.
    pub author: NodeId,
}

impl RecordContext {
    fn encode(&self) -> Vec<u8> {
        [
            &self.cluster.as_bytes()[..],
            self.cache.as_bytes(),
            &self.epoch.to_be_bytes(),
            self.author.as_bytes(),
        ]
        .concat()
    }
}

/// Why something was not sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// Shorter than an envelope, or longer than a secret may be.
    #[error("sealed secret has a length out of bounds")]
    Length,
    /// A public key that gives no secret.
    #[error("sealing key gives no secret")]
    Key,
    /// Not sealed to this key, not in this place, or damaged.
    #[error("seal does not open")]
    Opens,
}

/// Longest secret that is sealed to a node, in bytes.
pub const SECRET_LEN_MAX: usize = 4096;
/// Length of the nonce of a sealed record, in bytes.
pub const NONCE_LEN: usize = 24;

const TAG_LEN: usize = 16;
/// Every agreed key encrypts one message, so its nonce need not vary.
const ONLY_NONCE: [u8; NONCE_LEN] = [0; NONCE_LEN];
const OPENING_KEY_CONTEXT: &str = "attic-node sealing key 1";
const AGREED_KEY_CONTEXT: &str = "attic-node sealed secret 1";
const RECORD_KEY_CONTEXT: &str = "attic-node sealed record 1";

/// The cipher of one message. Both public keys go into its key, so it belongs to this pair alone.
fn agreed_cipher(
    shared: &SharedSecret,
    message_public: &[u8; 32],
    recipient: &SealingKey,
) -> Result<XChaCha20Poly1305, SealError> {
    if !shared.was_contributory() {
        return Err(SealError::Key);
    }
    let mut hasher = blake3::Hasher::new_derive_key(AGREED_KEY_CONTEXT);
    hasher.update(shared.as_bytes());
    hasher.update(message_public);
    hasher.update(&recipient.0);
    Ok(cipher(&Zeroizing::new(*hasher.finalize().as_bytes())))
}

fn cipher(key: &[u8; 32]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.into())
}

fn encrypt(cipher: &XChaCha20Poly1305, nonce: &[u8; NONCE_LEN], msg: &[u8], aad: &[u8]) -> Vec<u8> {
    cipher
        .encrypt(&XNonce::from(*nonce), Payload { msg, aad })
        .expect("messages are far below the cipher's 256 GiB")
}

fn decrypt(
    cipher: &XChaCha20Poly1305,
    nonce: &[u8; NONCE_LEN],
    msg: &[u8],
    aad: &[u8],
) -> Result<Vec<u8>, SealError> {
    cipher
        .decrypt(&XNonce::from(*nonce), Payload { msg, aad })
        .map_err(|_| SealError::Opens)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SecretContext = SecretContext {
        cluster: ClusterId::from_bytes([1; 16]),
        cache: CacheId::from_bytes([2; 16]),
        recipient: NodeId::from_bytes([3; 32]),
    };
    const RECORD: RecordContext = RecordContext {
        cluster: HERE.cluster,
        cache: HERE.cache,
        epoch: 1,
        author: NodeId::from_bytes([3; 32]),
    };

    fn opening_key(seed: u8) -> OpeningKey {
        OpeningKey::of(&Identity::from_seed([seed; 32]))
    }

    #[test]
    fn the_recipient_alone_opens_a_secret() {
        let (mine, other) = (opening_key(1), opening_key(2));
        let sealed = mine.sealing_key().seal(&HERE, b"secret", [7; 32]).unwrap();
        assert_eq!(mine.open(&HERE, &sealed).unwrap()[..], *b"secret");
        assert_eq!(other.open(&HERE, &sealed), Err(SealError::Opens));
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
    }

    #[test]
    fn a_secret_opens_in_its_place_alone() {
        let mine = opening_key(1);
        let sealed = mine.sealing_key().seal(&HERE, b"secret", [7; 32]).unwrap();
        for elsewhere in [
            SecretContext {
                cluster: ClusterId::from_bytes([9; 16]),
                ..HERE
            },
            SecretContext {
                cache: CacheId::from_bytes([9; 16]),
                ..HERE
            },
            SecretContext {
                recipient: NodeId::from_bytes([9; 32]),
                ..HERE
            },
        ] {
            assert_eq!(mine.open(&elsewhere, &sealed), Err(SealError::Opens));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let mine = opening_key(1);
        let sealed = mine.sealing_key().seal(&HERE, b"secret", [7; 32]).unwrap();
        for bit in 0..sealed.len() * 8 {
            // X25519 ignores the highest bit of a public key; the key derivation does not.
            let mut bent = sealed.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert!(mine.open(&HERE, &bent).is_err(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(mine.open(&HERE, &sealed[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn keys_without_a_secret_are_refused() {
        let zero = SealingKey::from_bytes([0; 32]);
        assert_eq!(zero.seal(&HERE, b"secret", [7; 32]), Err(SealError::Key));
        let sealed = [0; 32 + 6 + TAG_LEN];
        assert_eq!(opening_key(1).open(&HERE, &sealed), Err(SealError::Key));
    }

    #[test]
    fn secrets_are_bounded() {
        let mine = opening_key(1);
        let key = mine.sealing_key();
        let longest = vec![1; SECRET_LEN_MAX];
        let sealed = key.seal(&HERE, &longest, [7; 32]).unwrap();
        assert_eq!(mine.open(&HERE, &sealed).unwrap()[..], longest);
        let long = vec![1; SECRET_LEN_MAX + 1];
        assert_eq!(key.seal(&HERE, &long, [7; 32]), Err(SealError::Length));
        let long = [sealed, vec![0]].concat();
        assert_eq!(mine.open(&HERE, &long), Err(SealError::Length));
    }

    #[test]
    fn a_record_opens_with_its_key_in_its_place_alone() {
        let key = ScopeKey::from_bytes([5; 32]);
        let sealed = key.seal(&RECORD, &[6; 24], b"record");
        assert_eq!(key.open(&RECORD, &[6; 24], &sealed), Ok(b"record".to_vec()));
        assert_eq!(key.open(&RECORD, &[7; 24], &sealed), Err(SealError::Opens));
        let other = ScopeKey::from_bytes([8; 32]);
        assert_eq!(
            other.open(&RECORD, &[6; 24], &sealed),
            Err(SealError::Opens)
        );
        for elsewhere in [
            RecordContext {
                cluster: ClusterId::from_bytes([9; 16]),
                ..RECORD
            },
            RecordContext {
                cache: CacheId::from_bytes([9; 16]),
                ..RECORD
            },
            RecordContext { epoch: 2, ..RECORD },
            RecordContext {
                author: NodeId::from_bytes([9; 32]),
                ..RECORD
            },
        ] {
            assert_eq!(
                key.open(&elsewhere, &[6; 24], &sealed),
                Err(SealError::Opens)
            );
        }
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", opening_key(1)), "OpeningKey(…)");
        assert_eq!(
            format!("{:?}", ScopeKey::from_bytes([5; 32])),
            "ScopeKey(…)"
        );
    }
}

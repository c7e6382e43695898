//! Ed25519 signatures in Nix's text forms, and the decision whom to trust.
//!
//! A signature covers a [`Fingerprint`]: the store path, its NAR hash and size and its references.
//! Where the NAR lies and how it is compressed is not covered, so a cache may re-point and
//! recompress what others signed.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use crate::base64;
use crate::hash::NarHash;
use crate::store_path::{StoreDir, StorePath};
use crate::text_form::serde_as_text;

/// The signing key of a cache.
///
/// **Shape** text is `<name>:<base64 of 32 bytes seed and 32 bytes public key>`, as
/// `nix-store --generate-binary-cache-key` writes it. `Debug` shows the name only, there is no
/// `Display`, and the bytes are wiped when dropped.
#[derive(Clone)]
pub struct SecretKey {
    name: KeyName,
    key: SigningKey,
}

impl SecretKey {
    /// The key called `name` that grows from `seed`, which must be random.
    ///
    /// **Errors** when `name` is not a key name.
    pub fn generate(name: &str, seed: [u8; 32]) -> Result<Self, KeyError> {
        Ok(Self {
            name: name.parse()?,
            key: SigningKey::from_bytes(&seed),
        })
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name.0
    }

    /// The text form: a secret, to be written to a private file and nowhere else.
    pub fn to_text(&self) -> String {
        named(&self.name, &self.key.to_keypair_bytes())
    }

    /// Signs `message` under this key's name.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let bytes = self.key.sign(message).to_bytes();
        Signature {
            key_name: self.name.clone(),
            bytes,
        }
    }

    /// The key others verify with.
    pub fn public(&self) -> PublicKey {
        PublicKey {
            name: self.name.clone(),
            key: self.key.verifying_key(),
        }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({}:…)", self.name.0)
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    /// **Errors** also when the public half does not belong to the seed.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = parse_named::<64>(text)?;
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| KeyError::Halves)?;
        Ok(Self { name, key })
    }
}

/// A key that signatures are checked against: one word of `trusted-public-keys`.
///
/// **Shape** text is `<name>:<base64 of 32 bytes>`. Serialised as this text.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: KeyName,
    key: VerifyingKey,
}

impl PublicKey {
    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name.0
    }

    /// The 32 bytes of the key itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Whether `signature` is this key's over `message`.
    ///
    /// Names must be equal too, as Nix demands. Weak keys and malleable signatures are refused.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        let bytes = ed25519_dalek::Signature::from_bytes(&signature.bytes);
        self.name == signature.key_name && self.key.verify_strict(message, &bytes).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&named(&self.name, self.key.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = parse_named(text)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::Point)?;
        Ok(Self { name, key })
    }
}

serde_as_text!(PublicKey, "a public key as name:base64");

/// A signature with the name of its key.
///
/// **Shape** text is `<name>:<base64 of 64 bytes>`. Serialised as this text. Orders as its text
/// does, which is the order Nix writes signatures in.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Signature {
    key_name: KeyName,
    bytes: [u8; 64],
}

impl Signature {
    /// Name of the key that claims to have signed.
    pub fn key_name(&self) -> &str {
        &self.key_name.0
    }

    /// The 64 bytes.
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.bytes
    }
}

impl Ord for Signature {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.to_string().cmp(&other.to_string())
    }
}

impl PartialOrd for Signature {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&named(&self.key_name, &self.bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Signature {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (key_name, bytes) = parse_named(text)?;
        Ok(Self { key_name, bytes })
    }
}

serde_as_text!(Signature, "a signature as name:base64");

/// The keys whose word is believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys(Vec<PublicKey>);

impl TrustedKeys {
    /// Trusts exactly `keys`; two of one name are both tried.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self(keys.into_iter().collect())
    }

    /// The keys, in the order given.
    pub fn keys(&self) -> &[PublicKey] {
        &self.0
    }

    /// The first key that made one of `signatures` over `fingerprint`; one good signature
    /// suffices, bad ones beside it do no harm.
    ///
    /// At most [`TrustedKeys::CHECKS_MAX`] pairs of equal name are tried, so that a stranger's long
    /// list costs little.
    pub fn verify(
        &self,
        fingerprint: &Fingerprint,
        signatures: &[Signature],
    ) -> Option<&PublicKey> {
        let same_name = self.0.iter().flat_map(|key| {
            signatures
                .iter()
                .filter(|s| s.key_name == key.name)
                .map(move |s| (key, s))
        });
        same_name
            .take(Self::CHECKS_MAX)
            .find(|(key, signature)| key.verify(fingerprint.as_ref(), signature))
            .map(|(key, _)| key)
    }

    /// Most signature checks that one call of [`TrustedKeys::verify`] makes.
    pub const CHECKS_MAX: usize = 64;
}

impl FromIterator<PublicKey> for TrustedKeys {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        Self::new(keys)
    }
}

/// What a signature over a store path covers.
///
/// **Shape** `1;<full path>;sha256:<Nix base 32>;<NAR size>;<full references>`, references sorted
/// and joined by commas.
///
/// **Source** `ValidPathInfo::fingerprint` in `src/libstore/path-info.cc` of Nix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of a path with these properties.
    pub fn new(
        store_dir: &StoreDir,
        path: &StorePath,
        nar_hash: &NarHash,
        nar_size: u64,
        references: &BTreeSet<StorePath>,
    ) -> Self {
        let references: Vec<String> = references.iter().map(|r| r.full(store_dir)).collect();
        let path = path.full(store_dir);
        Self(format!(
            "1;{path};{nar_hash};{nar_size};{}",
            references.join(",")
        ))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<[u8]> for Fingerprint {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What is wrong with the text of a key or signature. The text itself is never in the message: it
/// may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No `:` between name and base64.
    #[error("key has no : after its name")]
    Colon,
    /// The name is empty, too long, or has a colon, a space, a control or a non-ASCII character.
    #[error("key name is not 1 to {NAME_LEN_MAX} visible ASCII characters without :")]
    Name,
    /// What follows the name is not base64.
    #[error("key is not base64 after its name")]
    Base64,
    /// The base64 holds another number of bytes than this kind of key or signature has.
    #[error("key holds {found} bytes, not {expected}")]
    Length {
        /// Bytes that would have been right.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// The public half of a secret key does not belong to its seed.
    #[error("halves of secret key do not belong together")]
    Halves,
    /// The bytes of a public key are no point of the curve.
    #[error("public key is not a point of the curve")]
    Point,
}

/// Name of a key: visible ASCII without `:`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct KeyName(Box<str>);

impl FromStr for KeyName {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let visible = text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b':');
        if text.is_empty() || text.len() > NAME_LEN_MAX || !visible {
            return Err(KeyError::Name);
        }
        Ok(Self(text.into()))
    }
}

fn named(name: &KeyName, bytes: &[u8]) -> String {
    let mut text = format!("{}:", name.0);
    BASE64.encode_append(bytes, &mut text);
    text
}

fn parse_named<const N: usize>(text: &str) -> Result<(KeyName, [u8; N]), KeyError> {
    let (name, digits) = text.split_once(':').ok_or(KeyError::Colon)?;
    let name = name.parse()?;
    let bytes = base64::decode(digits).ok_or(KeyError::Base64)?;
    let found = bytes.len();
    let bytes = bytes
        .try_into()
        .map_err(|_| KeyError::Length { expected: N, found })?;
    Ok((name, bytes))
}

/// Names are host names and a number in practice; longer than any host name is a mistake.
const NAME_LEN_MAX: usize = 256;

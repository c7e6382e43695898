//! Content addresses: how a store path follows from what is in it.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;

use crate::base64;
use crate::nixbase32;
use crate::text_form::serde_as_text;

/// A content address, well-formed but not checked against any contents.
///
/// **Shape** `text:sha256:<hash>` or `fixed:[r:|git:]<algorithm>:<hash>`, algorithm one of md5,
/// sha1, sha256, sha512, blake3. Reads hashes in Nix base 32, hex or base64, always prints Nix
/// base 32. Serialised as this text.
///
/// **Source** `src/libstore/content-address.cc` in Nix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentAddress(Box<str>);

impl ContentAddress {
    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ContentAddress {
    type Err = ContentAddressError;

    fn from_str(text: &str) -> Result<Self, ContentAddressError> {
        let (method, hash) = split_method(text).ok_or(ContentAddressError::Method)?;
        let (algorithm, digits) = hash.split_once(':').ok_or(ContentAddressError::Algorithm)?;
        let hash_len = hash_len(algorithm).ok_or(ContentAddressError::Algorithm)?;
        if method == "text:" && algorithm != "sha256" {
            return Err(ContentAddressError::Algorithm);
        }
        let bytes = decode(digits, hash_len).ok_or(ContentAddressError::Hash)?;
        let digits = nixbase32::encode(&bytes);
        Ok(Self(format!("{method}{algorithm}:{digits}").into()))
    }
}

serde_as_text!(ContentAddress, "a content address");

/// What is wrong with the text of a content address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentAddressError {
    /// It does not begin with `text:` or `fixed:`.
    #[error("content address begins with neither text: nor fixed:")]
    Method,
    /// The algorithm is not known, or not allowed with this method.
    #[error("content address has no hash algorithm known for its method")]
    Algorithm,
    /// The digits are no hash of this algorithm.
    #[error("content address has no well-formed hash")]
    Hash,
}

/// The method with its colons, and the rest.
fn split_method(text: &str) -> Option<(&'static str, &str)> {
    let methods = ["text:", "fixed:r:", "fixed:git:", "fixed:"];
    methods
        .into_iter()
        .find_map(|method| Some((method, text.strip_prefix(method)?)))
}

fn hash_len(algorithm: &str) -> Option<usize> {
    match algorithm {
        "md5" => Some(16),
        "sha1" => Some(20),
        "sha256" | "blake3" => Some(32),
        "sha512" => Some(64),
        _ => None,
    }
}

/// The bytes of a hash whose form shows in the number of digits.
fn decode(digits: &str, len: usize) -> Option<Vec<u8>> {
    let bytes = if digits.len() == len * 2 {
        HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?
    } else if digits.len() == nixbase32::encoded_len(len) {
        nixbase32::decode(digits, len).ok()?
    } else {
        base64::decode(digits)?
    };
    (bytes.len() == len).then_some(bytes)
}

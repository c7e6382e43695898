//! Hashes as types that cannot be mistaken for one another.
//!
//! [`NarHash`] names the plain NAR, [`FileHash`] the bytes that travel (compressed or not), both
//! SHA-256 in Nix's text forms. [`ChunkId`] is BLAKE3 over a plain chunk and never leaves this
//! project.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use sha2::{Digest, Sha256};

use crate::base64;
use crate::nixbase32;
use crate::text_form::serde_as_text_or_bytes;

/// Defines one SHA-256 newtype; two types, so that the compiler tells them apart.
macro_rules! sha256_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// **Shape** 32 bytes; text is `sha256:` and 52 characters of Nix base 32. Parses
        /// `sha256:` followed by Nix base 32, hex or base64, and SRI `sha256-<base64>`.
        /// In postcard 32 bytes, in JSON the text.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The hash with these bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Hash of `data`.
            pub fn of(data: &[u8]) -> Self {
                Self(Sha256::digest(data).into())
            }

            /// 52 characters of Nix base 32, without `sha256:`: the form in file names.
            pub fn nix32(&self) -> String {
                nixbase32::encode(&self.0)
            }

            /// Reads the form [`nix32`](Self::nix32) writes.
            pub fn from_nix32(text: &str) -> Result<Self, HashError> {
                nixbase32::decode_array(text).map(Self).map_err(HashError::Nixbase32)
            }

            /// SRI form: `sha256-` and 44 characters of base64.
            pub fn sri(&self) -> String {
                format!("sha256-{}", BASE64.encode(&self.0))
            }

            /// 64 lower-case hex characters.
            pub fn hex(&self) -> String {
                HEXLOWER.encode(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("sha256:")?;
                f.write_str(&self.nix32())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = HashError;

            fn from_str(text: &str) -> Result<Self, HashError> {
                parse_sha256(text).map(Self)
            }
        }

        serde_as_text_or_bytes!($name, 32);
    };
}

sha256_newtype! {
    /// SHA-256 of a plain NAR: the identity of contents.
    NarHash
}

sha256_newtype! {
    /// SHA-256 of a NAR as it travels, after compression.
    FileHash
}

/// BLAKE3 of a plain chunk.
///
/// **Shape** 32 bytes; text is 64 lower-case hex characters, and only that is parsed.
/// In postcard 32 bytes, in JSON the text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId([u8; 32]);

impl ChunkId {
    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Id of the chunk `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(*blake3::hash(data).as_bytes())
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ChunkId {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        if text.len() != 64 {
            return Err(HashError::Length { found: text.len() });
        }
        exact(HEXLOWER.decode(text.as_bytes()).ok(), "hex").map(Self)
    }
}

serde_as_text_or_bytes!(ChunkId, 32);

/// What is wrong with the text of a hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The text names no algorithm, or another one than is wanted here.
    #[error("hash does not start with sha256: or sha256-")]
    Algorithm,
    /// The digits are neither Nix base 32, hex nor base64 of a 32-byte hash, by their number.
    #[error("hash has {found} digits, which no form of a 32-byte hash has")]
    Length {
        /// Bytes of text after the prefix.
        found: usize,
    },
    /// The number of digits is that of Nix base 32, but they are not.
    #[error("hash is not Nix base 32: {0}")]
    Nixbase32(nixbase32::Nixbase32Error),
    /// The number of digits is that of hex or base64, but they are not.
    #[error("hash is not {form}")]
    Digits {
        /// The form the number of digits stands for.
        form: &'static str,
    },
}

fn parse_sha256(text: &str) -> Result<[u8; 32], HashError> {
    if let Some(digits) = text.strip_prefix("sha256-") {
        return decode_base64(digits);
    }
    let digits = text.strip_prefix("sha256:").ok_or(HashError::Algorithm)?;
    match digits.len() {
        52 => nixbase32::decode_array(digits).map_err(HashError::Nixbase32),
        64 => exact(HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok(), "hex"),
        _ => decode_base64(digits),
    }
}

fn decode_base64(digits: &str) -> Result<[u8; 32], HashError> {
    if digits.len() != 44 {
        let found = digits.len();
        return Err(HashError::Length { found });
    }
    exact(base64::decode(digits), "base64")
}

/// The bytes that digits in `form` stand for, if they were digits and of 32 bytes.
fn exact(bytes: Option<Vec<u8>>, form: &'static str) -> Result<[u8; 32], HashError> {
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(HashError::Digits { form })
}

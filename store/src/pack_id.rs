//! Names of packs.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The name of a pack: random, never derived from content, never reused.
///
/// **Shape**: 16 bytes; 32 lower-case hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PackId([u8; 16]);

/// The text is not 32 lower-case hex digits.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("pack id is not 32 lower-case hex digits")]
pub struct BadPackId;

impl PackId {
    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> PackId {
        PackId(bytes)
    }

    /// The id's bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PackId {
    type Err = BadPackId;

    fn from_str(text: &str) -> Result<PackId, BadPackId> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| BadPackId)?;
        bytes.try_into().map(PackId).map_err(|_| BadPackId)
    }
}

//! `nix-cache-info`: what a cache says about itself.

use std::fmt;

use crate::store_path::{StoreDir, StorePathError};

/// The contents of `nix-cache-info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// The store directory its paths belong to.
    pub store_dir: StoreDir,
    /// Whether clients may ask about many paths at once without need.
    pub want_mass_query: bool,
    /// Rank among caches: the lowest is asked first.
    pub priority: u32,
}

impl CacheInfo {
    /// Longest text that [`CacheInfo::parse`] reads, in bytes.
    pub const LEN_MAX: usize = 64 << 10;

    /// Reads the text as Nix does: unknown lines are skipped, values are trimmed, the last of equal
    /// names counts. An absent `StoreDir` is `client`'s own, an absent `WantMassQuery` is no, an
    /// absent `Priority` is 0.
    pub fn parse(text: &[u8], client: &StoreDir) -> Result<Self, CacheInfoError> {
        if text.len() > Self::LEN_MAX {
            return Err(CacheInfoError::TooLong { len: text.len() });
        }
        let text = std::str::from_utf8(text).map_err(|_| CacheInfoError::NotUtf8)?;
        let mut info = Self {
            store_dir: client.clone(),
            want_mass_query: false,
            priority: PRIORITY_ABSENT,
        };
        for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
            info.field(name, value.trim())?;
        }
        Ok(info)
    }

    fn field(&mut self, name: &str, value: &str) -> Result<(), CacheInfoError> {
        match name {
            "StoreDir" => self.store_dir = value.parse().map_err(CacheInfoError::StoreDir)?,
            "WantMassQuery" => self.want_mass_query = value == "1",
            "Priority" => self.priority = value.parse().map_err(|_| CacheInfoError::Priority)?,
            _ => {}
        }
        Ok(())
    }
}

impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StoreDir: {}", self.store_dir)?;
        writeln!(f, "WantMassQuery: {}", u8::from(self.want_mass_query))?;
        writeln!(f, "Priority: {}", self.priority)
    }
}

/// Why a text is not a `nix-cache-info`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheInfoError {
    /// Longer than [`CacheInfo::LEN_MAX`]; nothing was looked at.
    #[error("nix-cache-info has {len} bytes, more than {max}", max = CacheInfo::LEN_MAX)]
    TooLong {
        /// Bytes given.
        len: usize,
    },
    /// Not UTF-8.
    #[error("nix-cache-info is not UTF-8")]
    NotUtf8,
    /// `StoreDir` is not a store directory.
    #[error("nix-cache-info: StoreDir: {0}")]
    StoreDir(StorePathError),
    /// `Priority` is not a number from 0.
    #[error("nix-cache-info: Priority is not a number")]
    Priority,
}

/// What Nix takes when the cache names no priority.
const PRIORITY_ABSENT: u32 = 0;

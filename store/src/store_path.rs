//! Names of things in the Nix store.
//!
//! A [`StorePath`] is the base name `<hash>-<name>`; the directory it lies in is a [`StoreDir`] and
//! is joined only where text meets Nix. Caches look paths up by the hash part alone, the
//! [`StorePathHash`].

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::nixbase32;
use crate::text_form::{serde_as_text, serde_as_text_or_bytes};

/// The hash part of a store path: what a narinfo is looked up by.
///
/// **Shape** 20 bytes; text is 32 characters of Nix base 32, lower case. In postcard 20 bytes, in
/// JSON the text. Orders as its text does, which is not the order of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StorePathHash([u8; 20]);

impl StorePathHash {
    /// The hash part with these bytes.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The 20 bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl Ord for StorePathHash {
    /// The text is the bytes as one little-endian number, so the last byte weighs most.
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.iter().rev().cmp(other.0.iter().rev())
    }
}

impl PartialOrd for StorePathHash {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&nixbase32::encode(&self.0))
    }
}

impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StorePathHash {
    type Err = StorePathError;

    fn from_str(text: &str) -> Result<Self, StorePathError> {
        nixbase32::decode_array(text)
            .map(Self)
            .map_err(StorePathError::Hash)
    }
}

serde_as_text_or_bytes!(StorePathHash, 20);

/// A store path without its directory: `<hash>-<name>`.
///
/// **Shape** the hash part, `-`, and a name of 1 to 211 characters of `[0-9A-Za-z+-._?=]` that is
/// not `.` or `..` and does not begin with `.-` or `..-`. Serialised as this text everywhere.
/// Orders as its text does, which is the order Nix writes references in.
///
/// **Source** `src/libstore/path.cc` in Nix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    hash: StorePathHash,
    name: Box<str>,
}

impl StorePath {
    /// The path of these two parts.
    ///
    /// **Errors** when `name` is not a name.
    pub fn new(hash: StorePathHash, name: &str) -> Result<Self, StorePathError> {
        check_name(name)?;
        Ok(Self {
            hash,
            name: name.into(),
        })
    }

    /// The hash part.
    pub fn hash(&self) -> &StorePathHash {
        &self.hash
    }

    /// The name part.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads a full path: `store_dir`, `/` and a base name, nothing below it.
    ///
    /// **Errors** [`StorePathError::Foreign`] when it lies elsewhere.
    pub fn parse_full(store_dir: &StoreDir, text: &str) -> Result<Self, StorePathError> {
        text.strip_prefix(store_dir.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| StorePathError::Foreign {
                store_dir: store_dir.clone(),
            })?
            .parse()
    }

    /// The full path below `store_dir`.
    pub fn full(&self, store_dir: &StoreDir) -> String {
        format!("{store_dir}/{self}")
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.hash, self.name)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StorePath {
    type Err = StorePathError;

    fn from_str(text: &str) -> Result<Self, StorePathError> {
        if text.contains('/') {
            return Err(StorePathError::Slash);
        }
        let (hash, name) = text.split_once('-').ok_or(StorePathError::Dash)?;
        Self::new(hash.parse()?, name)
    }
}

serde_as_text!(StorePath, "a store path's base name");

/// The directory store paths lie in; `/nix/store` nearly everywhere.
///
/// **Shape** an absolute path of at most 1024 bytes in normal form: no empty, `.` or `..`
/// component, no trailing `/`, no control character. Serialised as this text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreDir(Box<str>);

impl StoreDir {
    /// The path's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for StoreDir {
    fn default() -> Self {
        Self("/nix/store".into())
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StoreDir {
    type Err = StorePathError;

    fn from_str(text: &str) -> Result<Self, StorePathError> {
        let components = text.strip_prefix('/').ok_or(StorePathError::Directory)?;
        let normal = components
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
        if !normal || text.len() > DIR_LEN_MAX || text.contains(char::is_control) {
            return Err(StorePathError::Directory);
        }
        Ok(Self(text.into()))
    }
}

serde_as_text!(StoreDir, "an absolute directory");

/// What is wrong with the text of a store path or store directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// The hash part is not 32 characters of Nix base 32.
    #[error("hash part of store path: {0}")]
    Hash(nixbase32::Nixbase32Error),
    /// No `-` between hash part and name.
    #[error("store path has no - after its hash part")]
    Dash,
    /// A base name was wanted and the text has a `/`.
    #[error("store path's base name contains /")]
    Slash,
    /// The name is empty or longer than 211 characters.
    #[error("store path's name has {found} characters, not 1 to {NAME_LEN_MAX}")]
    NameLength {
        /// Length of the name in bytes.
        found: usize,
    },
    /// The name has a character outside `[0-9A-Za-z+-._?=]`.
    #[error("store path's name contains {found:?}")]
    NameCharacter {
        /// The first such character.
        found: char,
    },
    /// The name is `.` or `..`, or begins with `.-` or `..-`.
    #[error("store path's name begins with . or .. as a word")]
    NameDots,
    /// The path is not directly below the store directory.
    #[error("store path is not in {store_dir}")]
    Foreign {
        /// Where it should lie.
        store_dir: StoreDir,
    },
    /// A store directory that is not an absolute path in normal form.
    #[error("store directory is not an absolute path in normal form")]
    Directory,
}

fn check_name(name: &str) -> Result<(), StorePathError> {
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        return Err(StorePathError::NameLength { found: name.len() });
    }
    if let Some(found) = name.chars().find(|c| !is_name_character(*c)) {
        return Err(StorePathError::NameCharacter { found });
    }
    let first_word = name.split('-').next().unwrap_or_default();
    if matches!(first_word, "." | "..") {
        return Err(StorePathError::NameDots);
    }
    Ok(())
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_' | '?' | '=')
}

/// A base name is a file name, 255 bytes, and builders append `.lock` and the like to it.
const NAME_LEN_MAX: usize = 211;

const DIR_LEN_MAX: usize = 1024;

//! Names of caches.

use std::fmt;
use std::str::FromStr;

use crate::text_form::serde_as_text;

/// The name of a cache: one segment of its URL.
///
/// **Shape** a letter or digit, then up to 49 of `[A-Za-z0-9-_+]`: attic's rule, so that names move
/// between the two. Serialised as this text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheName(Box<str>);

impl CacheName {
    /// Longest name, in characters, which are bytes.
    pub const LEN_MAX: usize = 50;

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl AsRef<str> for CacheName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for CacheName {
    type Err = CacheNameError;

    fn from_str(text: &str) -> Result<Self, CacheNameError> {
        if text.is_empty() || text.len() > Self::LEN_MAX {
            return Err(CacheNameError::Length { found: text.len() });
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(CacheNameError::Start);
        }
        match text
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '+'))
        {
            Some(found) => Err(CacheNameError::Character { found }),
            None => Ok(Self(text.into())),
        }
    }
}

serde_as_text!(CacheName, "a cache name");

/// What is wrong with the text of a cache name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheNameError {
    /// Empty or longer than [`CacheName::LEN_MAX`].
    #[error("cache name has {found} characters, not 1 to {max}", max = CacheName::LEN_MAX)]
    Length {
        /// Length in bytes.
        found: usize,
    },
    /// The first character is neither a letter nor a digit.
    #[error("cache name does not begin with a letter or digit")]
    Start,
    /// A character outside `[A-Za-z0-9-_+]`.
    #[error("cache name contains {found:?}")]
    Character {
        /// The first such character.
        found: char,
    },
}

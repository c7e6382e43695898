//! Names that are parsed once, on the command line.

use std::str::FromStr;
use std::time::Duration;

use attic_node_core::config::duration;
use attic_store::store_path::{StorePath, StorePathHash};

/// A path in a cache, as a person writes it.
///
/// **Shape**: a full store path, a base name, or a hash part; a file inside a path stands for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathName {
    /// As it was written.
    pub text: String,
    /// The hash part it begins with.
    pub hash: StorePathHash,
    /// The whole base name, unless only the hash part was written.
    pub path: Option<StorePath>,
}

impl FromStr for PathName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<PathName, &'static str> {
        let path = text
            .split('/')
            .find_map(|part| part.parse::<StorePath>().ok());
        let hash = path
            .as_ref()
            .map(|path| *path.hash())
            .or_else(|| text.parse().ok());
        let hash = hash.ok_or("neither a store path nor the hash part of one")?;
        Ok(PathName {
            text: text.to_owned(),
            hash,
            path,
        })
    }
}

/// Name of a pin.
///
/// **Shape**: 1 to 128 of `[0-9A-Za-z+-._]`, not beginning with `.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinName(String);

impl PinName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PinName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<PinName, &'static str> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_');
        let fits = (1..=128).contains(&text.len()) && !text.starts_with('.');
        if fits && text.chars().all(allowed) {
            return Ok(PinName(text.to_owned()));
        }
        Err("a pin's name is 1 to 128 letters, digits, +, -, . or _, and does not begin with .")
    }
}

/// How long a ticket is good: at least a second.
///
/// **Shape**: a whole number and a unit, `90s`, `15m`, `24h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry(Duration);

impl Expiry {
    /// In whole seconds.
    pub fn seconds(self) -> u64 {
        self.0.as_secs()
    }
}

impl FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Expiry, String> {
        let wanted = |phrase: String| format!("wanted {phrase}");
        let expiry = Expiry(duration(text).map_err(wanted)?);
        match expiry.seconds() {
            0 => Err(wanted("at least \"1s\"".to_owned())),
            _ => Ok(expiry),
        }
    }
}

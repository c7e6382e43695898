//! What can be set about a cache, and its file.

use attic_store::{PublicKey, StoreDir};
use serde::{Deserialize, Serialize};

use crate::api::CachePatch;
use crate::caches::CacheError;

/// Settings as they are in `caches/<name>.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Settings {
    pub(crate) public: bool,
    pub(crate) priority: u32,
    pub(crate) store_dir: StoreDir,
    pub(crate) skip_signed_by: Vec<PublicKey>,
    pub(crate) cache_everything: bool,
    pub(crate) require_signed_by: Vec<PublicKey>,
    pub(crate) old_public_keys: Vec<PublicKey>,
}

impl Default for Settings {
    fn default() -> Settings {
        let upstream = UPSTREAM_KEY
            .parse()
            .expect("the key of cache.nixos.org is well-formed");
        Settings {
            public: true,
            priority: PRIORITY,
            store_dir: StoreDir::default(),
            skip_signed_by: vec![upstream],
            cache_everything: false,
            require_signed_by: Vec::new(),
            old_public_keys: Vec::new(),
        }
    }
}

/// Lower than cache.nixos.org's 40, so that Nix asks the node next door first.
const PRIORITY: u32 = 30;
const UPSTREAM_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
/// Most keys in one list of settings.
pub(super) const KEYS_MAX: usize = 64;

impl Settings {
    /// These settings with what `patch` says changed.
    pub(super) fn patched(mut self, patch: &CachePatch) -> Result<Settings, CacheError> {
        if let Some(public) = patch.public {
            self.public = public;
        }
        if let Some(priority) = patch.priority {
            self.priority = priority;
        }
        if let Some(store_dir) = &patch.store_dir {
            self.store_dir = store_dir.parse()?;
        }
        if let Some(keys) = &patch.skip_signed_by {
            self.skip_signed_by = parse_keys(keys)?;
        }
        if let Some(everything) = patch.cache_everything {
            self.cache_everything = everything;
        }
        if let Some(keys) = &patch.require_signed_by {
            self.require_signed_by = parse_keys(keys)?;
        }
        Ok(self)
    }
}

fn parse_keys(texts: &[String]) -> Result<Vec<PublicKey>, CacheError> {
    if texts.len() > KEYS_MAX {
        return Err(CacheError::TooManyKeys(texts.len()));
    }
    texts
        .iter()
        .map(|text| text.trim().parse().map_err(CacheError::Key))
        .collect()
}

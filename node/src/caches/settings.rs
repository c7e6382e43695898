//! What can be set about a cache, and its file.

use attic_p2p::ids::{CacheId, ClusterId};
use attic_store::{CacheName, PublicKey, StoreDir};
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
    /// The newest last.
    pub(crate) old_public_keys: Vec<PublicKey>,
    /// The key others sign with, where this node has no secret key of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) public_key: Option<PublicKey>,
    /// What the cluster calls it; none for a cache of this node alone.
    #[serde(skip_serializing_if = "Option::is_none", with = "text_id")]
    pub(crate) shared_as: Option<CacheId>,
    /// The name that the cluster's cache was founded under, where another cache has that here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) founded_as: Option<CacheName>,
    /// Which cache of which cluster it was when this node left that. In a cache that is shared: what
    /// is here is yet to be compared with what the cluster says since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) left: Option<Left>,
    /// Those of the old keys that are not kept for ever.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) retiring: Vec<Retiring>,
    /// Present until all paths were looked through for those that the key given last has to sign.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signing: Option<Signing>,
}

/// What is to be signed with a key that this node was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Signing {
    /// The keys that this node had before, the newest last, as far as what it published with them may
    /// not be signed with a newer one.
    pub(crate) held_keys: Vec<PublicKey>,
}

/// A cache of a cluster that this node left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Left {
    #[serde(with = "text")]
    pub(crate) cluster: ClusterId,
    #[serde(with = "text")]
    pub(crate) cache: CacheId,
}

/// An old key that will be given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Retiring {
    pub(crate) key: PublicKey,
    /// Seconds since 1970.
    pub(crate) until: u64,
}

/// An id as the text it is shown as.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A cache's id, if there is one, as the text it is shown as.
mod text_id {
    use attic_p2p::ids::CacheId;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        id: &Option<CacheId>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => serializer.collect_str(id),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<CacheId>, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Some).map_err(Error::custom)
    }
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
            public_key: None,
            shared_as: None,
            founded_as: None,
            left: None,
            retiring: Vec::new(),
            signing: None,
        }
    }
}

/// Lower than cache.nixos.org's 40, so that Nix asks the node next door first.
const PRIORITY: u32 = 30;
const UPSTREAM_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
/// Most keys in one list of settings.
pub(super) const KEYS_MAX: usize = 64;

impl Settings {
    /// Of this node alone from now on, which leaves `cluster`.
    pub(super) fn leave(&mut self, cluster: ClusterId) {
        let cache = self.shared_as.take();
        self.left = cache.map(|cache| Left { cluster, cache }).or(self.left);
        self.founded_as = None;
        self.signing = None;
    }

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

//! Signing with a key that this node was given what is in a cache already.
//!
//! The node that owns a cache makes its next key and signs everything that it has. The others are given
//! the key and do so with what they have: what they pushed behind a partition that the old key did not
//! outlast is believed by nobody until then.
//!
//! Which caches are to be looked through is in their settings, so it goes on after a restart; where
//! there is none nothing is read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use attic_store::{CacheName, PublicKey, StorePathHash, TrustedKeys};
use thiserror::Error;
use tokio::task::spawn_blocking;

use crate::app::App;
use crate::caches::{Cache, CacheError};
use crate::http::ingest::joined;
use crate::publish::PublishError;
use crate::worker::Worker;

/// Signs with keys that were given to this node.
pub(crate) struct Resigner {
    app: Arc<App>,
    walks: BTreeMap<CacheName, Walk>,
}

/// How far a cache is looked through.
#[derive(Clone)]
struct Walk {
    /// With which key.
    key: PublicKey,
    after: Option<StorePathHash>,
    /// Whether it has to be looked through once more.
    again: bool,
}

impl Resigner {
    pub(crate) fn new(app: Arc<App>) -> Resigner {
        Resigner {
            app,
            walks: BTreeMap::new(),
        }
    }
}

impl Worker for Resigner {
    const NAME: &'static str = "resigner";
    type Error = ResignError;

    /// Looks through one page of each cache.
    async fn step(&mut self) -> Result<Duration, ResignError> {
        let mut walks = std::mem::take(&mut self.walks);
        let mut rest = LOOK_INTERVAL;
        for (cache, key) in due(&self.app) {
            let name = cache.name.clone();
            let known = walks.remove(&name).filter(|walk| walk.key == key);
            let walk = known.unwrap_or(Walk {
                key,
                after: None,
                again: false,
            });
            let app = Arc::clone(&self.app);
            let next = joined(spawn_blocking(move || proceed(&app, &cache, walk)).await)?;
            if let Some(walk) = next {
                rest = PAGE_PAUSE;
                self.walks.insert(name, walk);
            }
        }
        Ok(rest)
    }
}

/// The caches that are to be looked through, and the keys they have.
fn due(app: &App) -> Vec<(Arc<Cache>, PublicKey)> {
    // What this node said must be known, to tell what was pushed here.
    if !app.mesh.get().is_some_and(|mesh| mesh.view.is_writable()) {
        return Vec::new();
    }
    let snapshot = app.caches.snapshot();
    // One that came back with this node may have paths that were removed meanwhile: not before these
    // are gone.
    let waiting = snapshot.values().filter(|cache| {
        let settings = &cache.settings;
        settings.shared_as.is_some() && settings.left.is_none() && settings.signing.is_some()
    });
    let with_key = waiting.filter_map(|cache| {
        let key = cache.secret.as_ref()?.public();
        // Where it is not the one in force another is on its way.
        let is_in_force = cache.settings.public_key.as_ref() == Some(&key);
        is_in_force.then(|| (Arc::clone(cache), key))
    });
    with_key.collect()
}

/// Looks through the next page, and says how the walk goes on; `None` at its end.
fn proceed(app: &App, cache: &Cache, walk: Walk) -> Result<Option<Walk>, ResignError> {
    let signing = cache.settings.signing.as_ref();
    let held = signing.map_or(&[][..], |signing| &signing.held_keys);
    let held = TrustedKeys::new(held.iter().cloned());
    let page = app.publisher.sign_page(cache, &held, walk.after)?;
    let again = walk.again || page.undecided;
    if page.last.is_some() {
        return Ok(Some(Walk {
            after: page.last,
            again,
            ..walk
        }));
    }
    if !again {
        app.caches.signed_with(&cache.name, &walk.key)?;
        tracing::info!(cache = %cache.name, key = walk.key.name(), "all paths were looked through");
    }
    Ok(None)
}

/// Something could not be signed.
#[derive(Debug, Error)]
pub(crate) enum ResignError {
    /// A path.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// What is to be signed could not be written down.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// How often is looked for keys that were given, and for what was not certain.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two pages: people push meanwhile.
const PAGE_PAUSE: Duration = Duration::from_millis(10);

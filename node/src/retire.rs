//! Giving up old signing keys when their time is over.

use std::sync::Arc;
use std::time::Duration;

use attic_store::PublicKey;
use thiserror::Error;
use tokio::task::spawn_blocking;

use crate::app::App;
use crate::caches::{Cache, CacheError};
use crate::clock::unix_now;
use crate::http::ingest::joined;
use crate::mesh::announce::ShareError;
use crate::worker::Worker;

/// Gives up old keys of caches, with the signatures made with them.
pub(crate) struct KeyRetirer {
    app: Arc<App>,
}

impl KeyRetirer {
    pub(crate) fn new(app: Arc<App>) -> KeyRetirer {
        KeyRetirer { app }
    }
}

impl Worker for KeyRetirer {
    const NAME: &'static str = "key retirer";
    type Error = RetireError;

    async fn step(&mut self) -> Result<Duration, RetireError> {
        let app = Arc::clone(&self.app);
        joined(spawn_blocking(move || retire_due(&app)).await)?;
        Ok(LOOK_INTERVAL)
    }
}

fn retire_due(app: &App) -> Result<(), RetireError> {
    let now = unix_now();
    for cache in app.caches.snapshot().values() {
        let due = cache
            .settings
            .retiring
            .iter()
            .filter(|old| old.until <= now);
        let due: Vec<PublicKey> = due.map(|old| old.key.clone()).collect();
        if !due.is_empty() {
            retire(app, cache, &due, now)?;
        }
    }
    Ok(())
}

/// Signatures first: were it interrupted, the keys would still be known, and due.
fn retire(app: &App, cache: &Cache, due: &[PublicKey], now: u64) -> Result<(), RetireError> {
    let dropped = app.publisher.drop_signatures(cache, due);
    dropped.map_err(CacheError::Store)?;
    let (cache, gone) = app.caches.retire_keys(&cache.name, now)?;
    if let Some(mesh) = app.mesh.get() {
        mesh.announcer.reconfigure(app, &cache, false)?;
        mesh.announcer.announce_again(app, &cache)?;
    }
    for key in gone {
        tracing::info!(cache = %cache.name, key = key.name(), "an old key was given up");
    }
    Ok(())
}

/// An old key could not be given up, or not everywhere.
#[derive(Debug, Error)]
pub(crate) enum RetireError {
    /// On this node.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// In the cluster.
    #[error(transparent)]
    Share(#[from] ShareError),
}

const LOOK_INTERVAL: Duration = Duration::from_secs(1);

//! Working on a node's store while no node runs.

use std::time::Instant;

use attic_store::{CollectOptions, Store, VerifyOptions, VerifyProgress};

use crate::api::{GcReply, VerifyReply};
use crate::config::Config;
use crate::data_dir::{DataDir, Lock};
use crate::node::{StartError, store_options};
use crate::report::{gc_reply, verify_reply};

/// The store of a node that is not running. Everything here blocks.
pub struct Offline {
    store: Store,
    _lock: Lock,
}

impl Offline {
    /// Opens the store in the configured data directory, which must exist.
    ///
    /// **Errors**: [`FileError::Locked`](crate::data_dir::FileError::Locked) inside
    /// [`StartError::File`] when a node runs; others when it cannot be opened.
    pub fn open(config: &Config) -> Result<Offline, StartError> {
        let data = DataDir::new(&config.data_dir);
        let lock = data.lock()?;
        let store = Store::open(&data.store(), store_options(&config.store))?;
        Ok(Offline { store, _lock: lock })
    }

    /// Throws away everything that can be rebuilt from the packs, rebuilds it, and opens the store.
    ///
    /// Access times are lost: every path counts as last used when it was published.
    ///
    /// **Errors**: as [`Offline::open`]; a repeat is safe.
    pub fn rebuild_index(config: &Config) -> Result<Offline, StartError> {
        let data = DataDir::new(&config.data_dir);
        let lock = data.lock()?;
        Store::forget_index(&data.store())?;
        let store = Store::open(&data.store(), store_options(&config.store))?;
        Ok(Offline { store, _lock: lock })
    }

    /// Re-hashes everything; `repair` hides what is damaged.
    ///
    /// **Errors**: what cannot be read at all.
    pub fn verify(
        &self,
        repair: bool,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<VerifyReply, StartError> {
        let start = Instant::now();
        let report = self.store.verify(&VerifyOptions { repair }, progress)?;
        Ok(verify_reply(&report, start.elapsed()))
    }

    /// Collects garbage.
    ///
    /// **Errors**: the store's; what was done until then is complete in itself.
    pub fn gc(&self, dry_run: bool, full: bool) -> Result<GcReply, StartError> {
        let start = Instant::now();
        let report = self.store.collect(&CollectOptions { dry_run, full })?;
        Ok(gc_reply(&report, dry_run, start.elapsed()))
    }

    /// Makes everything durable and lets go of the directory.
    ///
    /// **Errors**: the store's; the next open recovers.
    pub fn close(self) -> Result<(), StartError> {
        Ok(self.store.close()?)
    }
}

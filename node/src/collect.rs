//! Housekeeping of the store, by itself: collection on time and near the size cap, maintenance,
//! and the end of push sessions nobody uses.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attic_store::{CollectOptions, CollectReport, StoreError};
use tokio::task::spawn_blocking;

use crate::app::App;
use crate::http::ingest::joined;
use crate::worker::Worker;

/// Collects garbage now. Blocks.
pub(crate) fn collect(app: &App, options: &CollectOptions) -> Result<CollectReport, StoreError> {
    let outcome = app.store.collect(options);
    let gc = &app.metrics.gc;
    match &outcome {
        Ok(_) if options.dry_run => {}
        Ok(report) => {
            gc.runs.inc();
            gc.dropped_nars.inc_by(report.dropped_nars);
        }
        Err(_) => drop(gc.failures.inc()),
    }
    // Whatever was evicted, also by a run that failed later, must not be remembered.
    app.narinfos.clear();
    outcome
}

/// Collects every `gc.interval`, and when the store comes near its size cap.
pub(crate) struct Collector {
    app: Arc<App>,
    due: Instant,
    /// Bytes on disk after the last run: near the cap, another one pays only after growth.
    bytes_after: u64,
}

impl Collector {
    pub(crate) fn new(app: Arc<App>) -> Collector {
        let due = Instant::now() + app.config.gc.interval;
        Collector {
            app,
            due,
            bytes_after: 0,
        }
    }

    fn is_pressed(&self) -> bool {
        let usage = self.app.store.usage();
        let bytes = usage.pack_bytes + usage.derived_bytes;
        usage
            .size_cap
            .is_some_and(|cap| bytes > cap / 100 * HIGH_WATER_PERCENT)
            && bytes > self.bytes_after
    }
}

impl Worker for Collector {
    const NAME: &'static str = "collector";
    type Error = StoreError;

    async fn step(&mut self) -> Result<Duration, StoreError> {
        if Instant::now() >= self.due || self.is_pressed() {
            let app = Arc::clone(&self.app);
            let report =
                joined(spawn_blocking(move || collect(&app, &CollectOptions::default())).await)?;
            tracing::info!(
                evicted_paths = report.evicted_paths,
                dropped_nars = report.dropped_nars,
                freed_bytes = report.freed_bytes,
                "collected garbage"
            );
            let usage = self.app.store.usage();
            self.bytes_after = usage.pack_bytes + usage.derived_bytes;
            self.due = Instant::now() + self.app.config.gc.interval;
        }
        Ok(self
            .due
            .saturating_duration_since(Instant::now())
            .min(LOOK_INTERVAL))
    }
}

/// Merges, writes out and measures, whenever the store has something of the kind to do.
pub(crate) struct Maintainer {
    app: Arc<App>,
}

impl Maintainer {
    pub(crate) fn new(app: Arc<App>) -> Maintainer {
        Maintainer { app }
    }
}

impl Worker for Maintainer {
    const NAME: &'static str = "maintainer";
    type Error = StoreError;

    async fn step(&mut self) -> Result<Duration, StoreError> {
        let store = self.app.store.clone();
        let more = joined(spawn_blocking(move || store.maintain()).await)?;
        Ok(if more { Duration::ZERO } else { LOOK_INTERVAL })
    }
}

/// Ends push sessions that are not used.
pub(crate) struct SessionReaper {
    app: Arc<App>,
}

impl SessionReaper {
    pub(crate) fn new(app: Arc<App>) -> SessionReaper {
        SessionReaper { app }
    }
}

impl Worker for SessionReaper {
    const NAME: &'static str = "session reaper";
    type Error = Infallible;

    async fn step(&mut self) -> Result<Duration, Infallible> {
        let (now, sessions) = (Instant::now(), &self.app.sessions);
        let expired = match is_near_cap(&self.app) {
            true => sessions.expire_abandoned(now),
            false => sessions.expire(now),
        };
        self.app
            .metrics
            .push
            .sessions_expired
            .inc_by(expired as u64);
        let often = self.app.config.push.session_idle / 4;
        Ok(often.clamp(Duration::from_millis(10), LOOK_INTERVAL))
    }
}

/// Whether space is so short that a session nobody uses is to go before paths do.
fn is_near_cap(app: &App) -> bool {
    let usage = app.store.usage();
    let bytes = usage.pack_bytes + usage.derived_bytes;
    usage
        .size_cap
        .is_some_and(|cap| bytes > cap / 100 * SHORT_OF_SPACE_PERCENT)
}

const LOOK_INTERVAL: Duration = Duration::from_secs(30);
const HIGH_WATER_PERCENT: u64 = 95;
const SHORT_OF_SPACE_PERCENT: u64 = 75;

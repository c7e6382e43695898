//! What a cache holds beside its paths: build logs, and where debug information is.
//!
//! They are sent before the paths, so that who sees a path finds its log. One that cannot be sent is
//! told to the observer and keeps no path from being pushed.

use std::collections::BTreeSet;
use std::sync::Arc;

use attic_store::cache_name::CacheName;
use attic_store::store_path::StorePath;
use reqwest::StatusCode;
use tokio::task::{JoinSet, spawn_blocking};

use super::debug_info::debug_files;
use super::{Event, Observer};
use crate::client::{Client, ClientError};
use crate::nix::LocalPath;
use crate::nix::build_log::{BuildLogError, BuildLogs};
use crate::ui::chain;

/// The objects that belong to some paths.
pub(super) struct Objects {
    sender: Sender,
    sources: Vec<Source>,
}

/// What may have objects; that is found out when it is its turn.
#[derive(Clone)]
enum Source {
    /// A derivation that was perhaps built here.
    Derivation(BuildLogs, StorePath),
    /// A path that perhaps holds debug information.
    Path(Arc<LocalPath>),
}

impl Objects {
    /// Those of `paths`; without `logs`, no build logs.
    pub(super) fn of(
        paths: &[Arc<LocalPath>],
        logs: Option<&BuildLogs>,
        client: Client,
        cache: CacheName,
    ) -> Objects {
        let derivers: BTreeSet<_> = paths
            .iter()
            .filter_map(|path| path.info.deriver.clone())
            .collect();
        let of_derivers = logs.into_iter().flat_map(|logs| {
            derivers
                .iter()
                .map(|deriver| Source::Derivation(logs.clone(), deriver.clone()))
        });
        let of_paths = paths.iter().cloned().map(Source::Path);
        Objects {
            sources: of_derivers.chain(of_paths).collect(),
            sender: Sender { client, cache },
        }
    }

    /// Sends them, [`SENDING_MAX`] at a time, and gives up at the first failure that the next one
    /// would only repeat.
    ///
    /// Dropping it is safe.
    pub(super) async fn send(self, observer: &dyn Observer) {
        let mut sending = JoinSet::new();
        let mut sources = self.sources.into_iter();
        loop {
            while sending.len() < SENDING_MAX
                && let Some(source) = sources.next()
            {
                sending.spawn(self.sender.clone().send(source));
            }
            let Some(sent) = sending.join_next().await else {
                return;
            };
            let Err(unsent) = sent.expect("senders do not panic") else {
                continue;
            };
            let reason = unsent.cause.reason();
            observer.event(&Event::ObjectFailed {
                object: &unsent.object,
                reason: &reason,
            });
            if unsent.cause.is_lasting() {
                return;
            }
        }
    }
}

#[derive(Clone)]
struct Sender {
    client: Client,
    cache: CacheName,
}

impl Sender {
    async fn send(self, source: Source) -> Result<(), Unsent> {
        match source {
            Source::Derivation(logs, derivation) => self.send_log(logs, derivation).await,
            Source::Path(path) => self.send_debug_info(path).await,
        }
    }

    async fn send_log(&self, logs: BuildLogs, derivation: StorePath) -> Result<(), Unsent> {
        let object = format!("log/{derivation}");
        let unsent = |cause| Unsent { object, cause };
        let read = spawn_blocking(move || logs.zstd(&derivation).map(|log| (derivation, log)));
        match read.await {
            Ok(Ok((_, None))) => Ok(()),
            Ok(Ok((derivation, Some(log)))) => {
                let put = self.client.put_log(&self.cache, &derivation, log);
                put.await.map_err(|error| unsent(Cause::Client(error)))
            }
            Ok(Err(error)) => Err(unsent(Cause::Log(error))),
            Err(_) => Err(unsent(Cause::Stopping)),
        }
    }

    async fn send_debug_info(&self, path: Arc<LocalPath>) -> Result<(), Unsent> {
        let location = path.location.clone();
        let files = spawn_blocking(move || debug_files(&location)).await;
        for file in files.unwrap_or_default() {
            let (id, nar_hash) = (&file.build_id, &path.info.nar_hash);
            let put = self
                .client
                .put_debug_info(&self.cache, id, nar_hash, &file.member);
            put.await.map_err(|error| Unsent {
                object: format!("debuginfo/{id}.debug"),
                cause: Cause::Client(error),
            })?;
        }
        Ok(())
    }
}

/// One object that did not arrive.
struct Unsent {
    object: String,
    cause: Cause,
}

enum Cause {
    Log(BuildLogError),
    Client(ClientError),
    Stopping,
}

impl Cause {
    fn reason(&self) -> String {
        match self {
            Cause::Log(error) => chain(error),
            Cause::Client(error) => chain(error),
            Cause::Stopping => "the program is stopping".to_owned(),
        }
    }

    /// Whether the next object would fare no better.
    fn is_lasting(&self) -> bool {
        match self {
            Cause::Log(_) => false,
            Cause::Client(ClientError::Refused { status, .. }) => !matches!(
                *status,
                StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE
            ),
            Cause::Client(_) | Cause::Stopping => true,
        }
    }
}

/// Objects under way at once; a log takes memory, compressed.
const SENDING_MAX: usize = 4;

//! Pushing: from paths of the local store to paths in a cache. Never prints.
//!
//! [`Plan::make`] asks the node once which paths it lacks and decides about each; [`Plan::push`] sends
//! what is left and tells an [`Observer`] how it goes. A NAR is read once, in windows of a few MiB:
//! cut into chunks, named, asked about, compressed and sent while the next window is read. The node
//! checks every hash; this side only proves that it holds what it does not send.
//!
//! | part | does |
//! |---|---|
//! | [`plan`] | which paths, and why not the others (pure) |
//! | [`batch`] | which paths together, and in which order (pure) |
//! | `window` | NARs from disk into chunks in bounded memory |
//! | `session` | what was sent, what must be proved |
//! | `encode` | chunks into request bodies, on bounded threads |
//! | `upload` | one batch: rounds, commits |
//! | `board` | what the workers know of each other |
//! | `objects` | build logs, and where debug information is (found by `debug_info`) |

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use attic_node_core::api::{PLAN_PATHS_MAX, PlanPath, PushPlan, PushSession, SessionGrant};
use attic_store::cache_name::CacheName;
use attic_store::chunker::ChunkerParams;
use attic_store::frame::FrameEncoder;
use attic_store::store_path::{StoreDir, StorePath};
use thiserror::Error;
use tokio::sync::Semaphore;

use self::board::Board;
use self::encode::Encoders;
use self::objects::Objects;
use self::plan::{Filter, Planned, Tally, Verdict, decide};
use self::session::{Session, Sessions, bad_challenge};
use self::upload::Upload;
pub use self::window::ReadError;
use self::window::WindowPool;
use crate::client::{Client, ClientError, Patience};
use crate::nix::build_log::BuildLogs;
use crate::nix::{Closure, LocalPath};

pub mod batch;
mod board;
mod debug_info;
mod encode;
mod objects;
pub mod plan;
mod session;
mod upload;
mod window;

/// How to send.
#[derive(Clone, Debug)]
pub struct Options {
    /// Batches under way at once; more than [`JOBS_MAX`] are that many.
    pub jobs: NonZeroUsize,
    /// Threads that compress, for a node elsewhere, or copy, for one on this machine; `None` is one
    /// per processor.
    pub compress_threads: Option<NonZeroUsize>,
    /// Where the build logs of the paths are; `None` sends none.
    pub logs: Option<BuildLogs>,
}

/// Which of the missing paths to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Not those that the cache says are signed upstream.
    Skip,
    /// All.
    Send,
}

/// What to make of paths that the cache says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// They are there.
    Trust,
    /// They are there if the node can read them back.
    Recheck,
}

/// What is to come of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is carried out.
    Push,
    /// It is looked at, and given up.
    DryRun,
}

/// What happens to a path. One that is sent begins, advances, and ends once; if it is tried again it
/// begins again. The others end at once.
#[derive(Debug)]
pub enum Event<'a> {
    /// Its NAR is being read.
    Started {
        /// Which.
        path: &'a StorePath,
        /// Bytes of its NAR.
        nar_size: u64,
    },
    /// So much of its NAR has been read.
    Advanced {
        /// Which.
        path: &'a StorePath,
        /// Bytes from its beginning.
        bytes: u64,
    },
    /// It is in the cache.
    Pushed {
        /// Which.
        path: &'a StorePath,
        /// Bytes of its NAR.
        nar_size: u64,
        /// Plain bytes of the chunks that had to be sent; the others were there.
        sent_bytes: u64,
        /// From its beginning until all its chunks were with the node.
        elapsed: Duration,
    },
    /// It was in the cache already.
    Cached {
        /// Which.
        path: &'a StorePath,
        /// Bytes of its NAR.
        nar_size: u64,
    },
    /// The cache does not want it, as this key has signed it.
    Upstream {
        /// Which.
        path: &'a StorePath,
        /// Bytes of its NAR.
        nar_size: u64,
        /// Name of the key.
        key: &'a str,
    },
    /// It is in the cache, and the node cannot tell its cluster of it. Comes once, after the path has
    /// ended, or where nothing had to be done for it.
    Untold {
        /// Which.
        path: &'a StorePath,
    },
    /// It could not be pushed.
    Failed {
        /// Which.
        path: &'a StorePath,
        /// Why.
        reason: &'a str,
    },
    /// An argument names no valid path of the local store.
    Unusable {
        /// The path meant, or the argument as it was given.
        argument: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// Something small that goes along with the paths could not be sent. No path fails for it.
    ObjectFailed {
        /// Its name in the cache, as `log/<derivation>`.
        object: &'a str,
        /// Why.
        reason: &'a str,
    },
}

/// Watches a push. Called from several tasks, in the order of events for each path; must not block
/// for long.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: &Event<'_>);
}

/// Why a push cannot begin. Nothing has been sent.
#[derive(Debug, Error)]
pub enum PushError {
    /// The node cannot be asked, or says no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The cache is for another store directory.
    #[error("cache {cache} is for paths in {theirs}, not {ours}")]
    StoreDir {
        /// The cache.
        cache: CacheName,
        /// Its store directory.
        theirs: String,
        /// That of the paths.
        ours: StoreDir,
    },
    /// The node cuts chunks in a way this program does not know.
    #[error("node cuts chunks by rule {0}, which this program does not know")]
    Chunker(u32),
}

/// What a push would do, decided and not yet done.
#[derive(Debug)]
pub struct Plan {
    client: Client,
    cache: CacheName,
    /// The node's answer.
    terms: PushSession,
    params: ChunkerParams,
    paths: Vec<Planned>,
}

impl Plan {
    /// Asks the node about all paths of `closure`, in one request unless they are very many.
    ///
    /// Dropping it, or the plan, is safe: the session it opened at the node ends by itself.
    ///
    /// **Errors**: any [`PushError`].
    pub async fn make(
        client: &Client,
        cache: &CacheName,
        closure: Closure,
        upstream: Upstream,
        held: Held,
        purpose: Purpose,
    ) -> Result<Plan, PushError> {
        let client = client.clone();
        let mut request = request(cache, closure.paths.iter());
        request.recheck = held == Held::Recheck;
        request.dry_run = purpose == Purpose::DryRun;
        let terms = ask(&client, &request).await?;
        if terms.store_dir != closure.store_dir.as_str() {
            let (theirs, ours) = (terms.store_dir, closure.store_dir);
            return Err(PushError::StoreDir {
                cache: cache.clone(),
                theirs,
                ours,
            });
        }
        let version = u8::try_from(terms.chunker_version).ok();
        let params = version
            .and_then(ChunkerParams::from_byte)
            .ok_or(PushError::Chunker(terms.chunker_version))?;
        let filter = Filter::new(&terms, upstream);
        let paths = decide(closure.paths, &closure.store_dir, &terms, &filter);
        Ok(Plan {
            client,
            cache: cache.clone(),
            terms,
            params,
            paths,
        })
    }

    /// Every path and what is to be done about it, in the order of the closure.
    pub fn paths(&self) -> &[Planned] {
        &self.paths
    }

    /// How many paths got which verdict.
    pub fn tally(&self) -> Tally {
        Tally::of(&self.paths)
    }

    /// Gives the plan up and ends its session.
    ///
    /// **Errors**: when the node cannot be told; the session then ends by itself.
    pub async fn abandon(self) -> Result<(), PushError> {
        match &self.terms.session {
            Some(session) => Ok(self.client.end_session(&session.id).await?),
            None => Ok(()),
        }
    }

    /// Sends what the plan says, and gives the paths that did not arrive, with reasons, in order.
    ///
    /// Dropping it stops the push; what was sent stays with the node for a while, so that the same
    /// push made again goes on from there.
    ///
    /// **Errors**: [`PushError::Client`] when the node's terms make no sense.
    pub async fn push(
        self,
        options: &Options,
        observer: Arc<dyn Observer>,
    ) -> Result<Vec<(StorePath, String)>, PushError> {
        let (mut paths, mut lacking) = (Vec::new(), BTreeSet::new());
        for Planned { path, verdict } in self.paths {
            match verdict {
                Verdict::Send { .. } => paths.push(Arc::new(path)),
                Verdict::TooLarge { .. } | Verdict::NoRoom { .. } => {
                    lacking.insert(path.info.path);
                }
                Verdict::Cached if self.terms.untold.contains(path.info.path.hash()) => {
                    let path = &path.info.path;
                    observer.event(&Event::Untold { path });
                }
                Verdict::Cached | Verdict::Upstream { .. } => {}
            }
        }
        let Some(grant) = &self.terms.session else {
            return Ok(Vec::new());
        };
        if paths.is_empty() {
            self.client.end_session(&grant.id).await?;
            return Ok(Vec::new());
        }
        let first = Session::new(grant, 0).ok_or_else(bad_challenge)?;
        let client = self.client.with_patience(Patience::STEADY);
        let logs = options.logs.as_ref();
        Objects::of(&paths, logs, client.clone(), self.cache.clone())
            .send(&*observer)
            .await;
        let plan = request(&self.cache, paths.iter().map(Arc::as_ref));
        let jobs = options.jobs.get().min(JOBS_MAX);
        let batches = batch::batches(&paths.iter().map(|path| &path.info).collect::<Vec<_>>());
        let encoder = match client.stays_on_this_machine() {
            true => FrameEncoder::uncompressed,
            false => FrameEncoder::for_sending,
        };
        let upload = Arc::new(Upload {
            sessions: Sessions::new(client.clone(), plan, first),
            client,
            paths,
            batches,
            params: self.params,
            body_max: usize::try_from(self.terms.body_max)
                .unwrap_or(usize::MAX)
                .min(BODY_LEN_MAX),
            windows: WindowPool::new(jobs),
            encoders: Encoders::new(
                options.compress_threads.map_or_else(cores, usize::from),
                encoder,
            ),
            requests: Semaphore::new((self.terms.requests_max as usize).clamp(1, JOBS_MAX)),
            observer,
            board: Board::without(lacking),
        });
        let failed = upload.run(jobs).await;
        // After a failure the session is left to end by itself: until then it keeps what was sent
        // for the paths that are still to come. On a full node that would only take space.
        if failed.is_empty() || upload.board.starved() {
            let _ = upload.sessions.end().await;
        }
        Ok(failed)
    }
}

fn request<'a>(cache: &CacheName, paths: impl Iterator<Item = &'a LocalPath>) -> PushPlan {
    let path = |path: &LocalPath| PlanPath {
        hash: *path.info.path.hash(),
        nar_hash: path.info.nar_hash,
        nar_size: Some(path.info.nar_size),
    };
    PushPlan::new(cache.clone(), paths.map(path).collect())
}

/// Asks the node about all paths of `plan`, in as many requests as that takes. They share one
/// session.
async fn ask(client: &Client, plan: &PushPlan) -> Result<PushSession, ClientError> {
    let mut parts = plan.paths.chunks(PLAN_PATHS_MAX);
    let part = |paths: &[PlanPath], session: Option<&SessionGrant>| PushPlan {
        paths: paths.to_vec(),
        session: session.map(|grant| grant.id.clone()),
        recheck: plan.recheck,
        dry_run: plan.dry_run,
        ..PushPlan::new(plan.cache.clone(), Vec::new())
    };
    let first = part(parts.next().unwrap_or_default(), None);
    let mut terms = client.plan(&first).await?;
    for paths in parts {
        let next = part(paths, terms.session.as_ref());
        let more = client.plan(&next).await?;
        terms.session = more.session.or(terms.session);
        terms.missing.extend(more.missing);
        terms.untold.extend(more.untold);
        terms.room = terms.room.into_iter().chain(more.room).min();
    }
    Ok(terms)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Most batches under way at once.
pub const JOBS_MAX: usize = 64;
/// Plain bytes of one batch that are sent and not yet answered: what is sent again, at most, when
/// either side dies while a single large path is pushed.
pub const BATCH_UNANSWERED_LEN_MAX: usize = upload::SENDING_MAX * window::WINDOW_LEN;
/// The same for all batches together.
pub const UNANSWERED_LEN_MAX: usize = window::WINDOWS_MAX * window::WINDOW_LEN;
/// A request body that is filled by two windows at most, so that a lost one costs little.
const BODY_LEN_MAX: usize = 8 << 20;

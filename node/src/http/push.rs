//! The push API: which paths, which chunks, and then all at once.
//!
//! A push is a plan (one request, and the last one if nothing is missing), questions about chunks,
//! bodies of chunks, and commits. Every body is bounded, everything but the commit is idempotent,
//! and a commit is too: whoever lost an answer sends the request again.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::time::Instant;

use attic_store::chunker::{CHUNK_LEN_MAX, ChunkerParams};
use attic_store::frame::frame_len_max;
use attic_store::{Assembled, ChunkId, ImportError, StoreError, StorePathHash};
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::routing::{delete, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use hyper::StatusCode;
use serde::Deserialize;

use crate::api::wire::{
    CHUNK_HEADER_LEN, ChunkHeader, IDS_MAX, Possession, bitmap, parse_commit, parse_ids,
};
use crate::api::{
    COMMIT_PATHS_MAX, ChunksReply, CommitOutcome, CommitPath, CommitReply, CommitResult,
    PLAN_PATHS_MAX, PlanPath, PushPlan, PushSession, SessionGrant,
};
use crate::app::App;
use crate::caches::Cache;
use crate::clock::unix_now;
use crate::http::admin::{blocking, find_cache, json_body};
use crate::http::error::{Failure, Kind, chain};
use crate::http::ingest::{BodyReader, Limits, check_announced, ingest, read_small};
use crate::publish::{Arrival, PublishError};
use crate::push::Session;

/// The routes, below the prefix of the API.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/push", post(plan))
        .route("/push/{session}", delete(close))
        .route("/push/{session}/missing", post(missing))
        .route("/push/{session}/chunks", put(chunks))
        .route("/push/{session}/list/{path}", put(list))
        .route("/push/{session}/commit", post(commit))
}

async fn plan(State(app): State<Arc<App>>, request: Request) -> Result<Json<PushSession>, Failure> {
    let plan: PushPlan = json_body(&app, request, app.config.push.body_max).await?;
    if plan.paths.len() > PLAN_PATHS_MAX {
        let message = format!("a plan of more than {PLAN_PATHS_MAX} paths");
        return Err(Failure::new(Kind::TooLarge, message));
    }
    let cache = find_cache(&app, &plan.cache)?;
    let opened = plan.session.clone();
    // What is read again is as much work as a commit.
    let _permit = match plan.recheck {
        true => Some(app.commits.acquire().await.expect("it stays open")),
        false => None,
    };
    let (for_lookup, of) = (Arc::clone(&app), Arc::clone(&cache));
    let planned: Vec<_> = plan.paths.iter().map(|path| path.hash).collect();
    let look_up = move || {
        let app = for_lookup;
        let mut absent = absent_paths(&app, &plan, plan.recheck)?;
        let room = room(&app, &plan, &absent)?;
        if absent.is_empty() {
            absent = say_present(&app, &of, &plan, &absent)?;
        }
        if absent.is_empty() {
            return Ok((absent, room, None));
        }
        let (session, grant) = grant(&app, &of, opened.as_deref())?;
        if absent.len() < plan.paths.len() {
            hold_present(&app, &plan, &absent, &session);
            // And what was evicted before that.
            absent = say_present(&app, &of, &plan, &absent)?;
        }
        Ok((absent, room, Some(grant)))
    };
    let (missing, room, session) = blocking(look_up).await?;
    let absent: BTreeSet<_> = missing.iter().collect();
    let present = planned.into_iter().filter(|hash| !absent.contains(hash));
    let untold = present
        .filter(|hash| is_untold(&app, &cache, hash))
        .collect();
    let view = cache.view();
    Ok(Json(PushSession {
        session,
        missing,
        untold,
        skip_signed_by: view.skip_signed_by,
        cache_everything: view.cache_everything,
        store_dir: view.store_dir,
        public_key: view.public_key,
        chunker_version: ChunkerParams::CURRENT as u32,
        body_max: app.config.push.body_max,
        requests_max: u32::try_from(app.config.push.uploads_max).unwrap_or(u32::MAX),
        nar_size_max: app.config.store.nar_size_max,
        room,
    }))
}

/// Whether the cluster that has a cache cannot be told of a path.
fn is_untold(app: &App, cache: &Cache, hash: &StorePathHash) -> bool {
    let shared = cache.settings.shared_as.zip(app.mesh.get());
    shared.is_some_and(|(id, mesh)| mesh.announcer.is_untold(id, hash))
}

/// The paths of a plan that the cache lacks, or holds with another NAR.
fn absent_paths(
    app: &App,
    plan: &PushPlan,
    recheck: bool,
) -> Result<Vec<StorePathHash>, StoreError> {
    let mut absent = Vec::new();
    for PlanPath { hash, nar_hash, .. } in &plan.paths {
        let row = app.store.path(&plan.cache, hash)?;
        if row.is_none_or(|row| row.info.nar_hash != *nar_hash) {
            absent.push(*hash);
        } else if recheck && !app.store.recheck(nar_hash)? {
            app.narinfos.clear();
            absent.push(*hash);
        }
    }
    Ok(absent)
}

/// Keeps what the client need not send, and what that refers to, from being evicted for what it does
/// send: the session holds it, and it counts as used now.
fn hold_present(app: &App, plan: &PushPlan, absent: &[StorePathHash], session: &Session) {
    let absent: BTreeSet<_> = absent.iter().collect();
    let paths = plan.paths.iter();
    let present: Vec<_> = paths.filter(|path| !absent.contains(&path.hash)).collect();
    let nars = present.iter().map(|path| path.nar_hash);
    app.store.hold(&session.lease, nars);
    let now = unix_now();
    for path in present {
        app.store.touch(&plan.cache, &path.hash, now);
    }
}

/// Says to the cluster once more what the client need not send, and looks again for what is absent. A
/// plan that nothing will be sent for says nothing.
fn say_present(
    app: &App,
    cache: &Cache,
    plan: &PushPlan,
    absent: &[StorePathHash],
) -> Result<Vec<StorePathHash>, Failure> {
    if !plan.dry_run {
        let absent: BTreeSet<_> = absent.iter().collect();
        let hashes = plan.paths.iter().map(|path| path.hash);
        let present: Vec<_> = hashes.filter(|hash| !absent.contains(hash)).collect();
        app.publisher.say_again(cache, &present)?;
    }
    Ok(absent_paths(app, plan, false)?)
}

/// The length of NAR that fits, if a path of the plan is longer, whatever is evicted for it. Refuses a
/// plan of which nothing fits.
fn room(app: &App, plan: &PushPlan, absent: &[StorePathHash]) -> Result<Option<u64>, StoreError> {
    let absent: BTreeSet<_> = absent.iter().collect();
    let sizes = plan.paths.iter().filter(|path| absent.contains(&path.hash));
    let sizes: BTreeSet<u64> = sizes.filter_map(|path| path.nar_size).collect();
    let (Some(smallest), Some(largest)) = (sizes.first(), sizes.last()) else {
        return Ok(None);
    };
    app.store.check_fits(*smallest)?;
    let room = app.store.room_for(*largest)?;
    Ok((room < *largest).then_some(room))
}

/// The session called `opened`, if it is one of this cache and has not ended; a new one otherwise.
fn grant(
    app: &App,
    cache: &Cache,
    opened: Option<&str>,
) -> Result<(Arc<Session>, SessionGrant), Failure> {
    let now = Instant::now();
    let found = opened.and_then(|id| Some((id.to_owned(), app.sessions.find(id, now).ok()?)));
    let found = found.filter(|(_, session)| session.cache == cache.name);
    let open = || {
        app.sessions
            .open(cache.name.clone(), app.store.lease(), now)
    };
    let (id, session) = match found {
        Some(found) => found,
        None => open()?,
    };
    let challenge = HEXLOWER.encode(&session.challenge);
    Ok((session, SessionGrant { id, challenge }))
}

async fn close(
    State(app): State<Arc<App>>,
    Path(session): Path<String>,
) -> Result<StatusCode, Failure> {
    app.sessions.close(&session)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn missing(
    State(app): State<Arc<App>>,
    Path(session): Path<String>,
    request: Request,
) -> Result<Vec<u8>, Failure> {
    let session = app.sessions.find(&session, Instant::now())?;
    let body = small_body(request, limits(&app, (IDS_MAX * 32) as u64)).await?;
    let ids = parse_ids(&body)?;
    let store = app.store.clone();
    let missing = blocking(move || Ok(store.missing(&session.lease, &ids)?)).await?;
    app.metrics.push.chunks_asked.inc_by(missing.len() as u64);
    let known = missing.iter().filter(|missing| !**missing).count();
    app.metrics.push.chunks_known.inc_by(known as u64);
    Ok(bitmap(&missing))
}

/// Which part of a list.
#[derive(Deserialize)]
struct ListQuery {
    from: usize,
}

async fn list(
    State(app): State<Arc<App>>,
    Path((session, path)): Path<(String, String)>,
    Query(part): Query<ListQuery>,
    request: Request,
) -> Result<StatusCode, Failure> {
    let session = app.sessions.find(&session, Instant::now())?;
    let path: StorePathHash = path.parse().map_err(Failure::bad_request)?;
    let body = small_body(request, limits(&app, app.config.push.body_max)).await?;
    session.list(path, part.from, &parse_ids(&body)?)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn small_body(request: Request, limits: Limits) -> Result<Bytes, Failure> {
    let (head, mut body) = request.into_parts();
    check_announced(&head.headers, &mut body, limits.len_max).await?;
    Ok(read_small(body, limits).await?)
}

fn limits(app: &App, len_max: u64) -> Limits {
    Limits {
        len_max,
        idle: app.config.http.body_idle_timeout,
    }
}

async fn chunks(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<ChunksReply>, Failure> {
    let session = app.sessions.find(&id, Instant::now())?;
    let limits = limits(&app, app.config.push.body_max);
    let (head, mut body) = request.into_parts();
    check_announced(&head.headers, &mut body, limits.len_max).await?;
    let _permit = app
        .uploads
        .acquire()
        .await
        .expect("the semaphore stays open");
    let (for_storing, filled) = (Arc::clone(&app), Arc::clone(&session));
    let work = move |body: &mut BodyReader| store_chunks(&for_storing, &filled, body);
    let stored = ingest::<Body, _>(body, limits, work).await?;
    let chunks = stored.inspect_err(|failure| starve_if_full(&session, failure))?;
    app.metrics.push.chunks.inc_by(u64::from(chunks));
    Ok(Json(ChunksReply { chunks }))
}

/// Stores the records of a body as they come, a batch at a time.
fn store_chunks(app: &App, session: &Session, body: &mut BodyReader) -> Result<u32, Failure> {
    let mut count = 0;
    let mut batch = Batch::default();
    while !body.fill_buf().map_err(broken)?.is_empty() {
        batch.read_record(body)?;
        count += 1;
        if batch.bytes.len() >= BATCH_LEN {
            batch.store(app, session)?;
        }
    }
    batch.store(app, session)?;
    session.used(Instant::now());
    Ok(count)
}

/// Records read and not yet stored.
#[derive(Default)]
struct Batch {
    headers: Vec<ChunkHeader>,
    /// Their frames, one after the other.
    bytes: Vec<u8>,
}

impl Batch {
    fn read_record(&mut self, body: &mut BodyReader) -> Result<(), Failure> {
        let mut head = [0; CHUNK_HEADER_LEN];
        body.read_exact(&mut head).map_err(broken)?;
        let header = ChunkHeader::from_bytes(&head);
        let raw_len = header.raw_len as usize;
        if raw_len > CHUNK_LEN_MAX || header.frame_len as usize > frame_len_max(raw_len) {
            return Err(Failure::bad_request(format!(
                "record of chunk {} is too long",
                header.id
            )));
        }
        let start = self.bytes.len();
        self.bytes.resize(start + header.frame_len as usize, 0);
        body.read_exact(&mut self.bytes[start..]).map_err(broken)?;
        self.headers.push(header);
        Ok(())
    }

    fn store(&mut self, app: &App, session: &Session) -> Result<(), Failure> {
        let mut rest = &self.bytes[..];
        let mut records = Vec::with_capacity(self.headers.len());
        for header in &self.headers {
            let (frame, after) = rest.split_at(header.frame_len as usize);
            records.push((header.id, header.raw_len, frame));
            rest = after;
        }
        match app.store.put_frames(&session.lease, &records) {
            // Sessions whose clients are gone or found no space themselves hold some.
            Err(ImportError::Store(StoreError::NoSpace { .. }))
                if app.sessions.make_way(Instant::now()) > 0 =>
            {
                app.store.put_frames(&session.lease, &records)?;
            }
            stored => stored?,
        }
        app.metrics
            .push
            .received_bytes
            .inc_by(self.bytes.len() as u64);
        for header in &self.headers {
            session.uploaded(&header.id, header.frame_len)?;
        }
        self.headers.clear();
        self.bytes.clear();
        Ok(())
    }
}

fn broken(_: io::Error) -> Failure {
    Failure::bad_request("the body ends inside a record")
}

async fn commit(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<CommitReply>, Failure> {
    let session = app.sessions.find(&id, Instant::now())?;
    let body = small_body(request, limits(&app, app.config.push.body_max)).await?;
    let (commit, chunk_lists) = parse_commit(&body)?;
    drop(body);
    if commit.paths.len() > COMMIT_PATHS_MAX {
        let message = format!("a commit of more than {COMMIT_PATHS_MAX} paths");
        return Err(Failure::new(Kind::TooLarge, message));
    }
    let cache = find_cache(&app, &session.cache)?;
    let _permit = app
        .commits
        .acquire()
        .await
        .expect("the semaphore stays open");
    let for_commit = Arc::clone(&app);
    let results = blocking(move || {
        let results = commit_all(&for_commit, &session, &cache, commit.paths, &chunk_lists);
        session.used(Instant::now());
        results.inspect_err(|failure| starve_if_full(&session, failure))
    });
    Ok(Json(CommitReply {
        results: results.await?,
    }))
}

/// Has a session for which there was no space give way: what it holds is the space of others.
fn starve_if_full(session: &Session, failure: &Failure) {
    if failure.is_disk_full() {
        session.starve();
    }
}

/// Assembles every path, then publishes those that hold in one commit. A path for which there is no
/// space costs those that refer to it, and not those before it.
fn commit_all(
    app: &App,
    session: &Session,
    cache: &Cache,
    paths: Vec<CommitPath>,
    chunk_lists: &[Vec<ChunkId>],
) -> Result<Vec<CommitResult>, Failure> {
    let mut results = Vec::with_capacity(paths.len());
    let (mut infos, mut places) = (Vec::new(), Vec::new());
    let mut refused = BTreeSet::new();
    for (path, chunks) in paths.into_iter().zip(chunk_lists) {
        let mut references = path.info.references.iter();
        let outcome = match references.find(|reference| refused.contains(*reference)) {
            Some(reference) => rejected(format!("it refers to {reference}, which was not taken")),
            None => judge(app, session, &path, chunks)?,
        };
        if is_rejected(&outcome) {
            refused.insert(path.info.path.clone());
        }
        if let CommitOutcome::Ok { .. } = outcome {
            places.push(results.len());
            infos.push(path.info.clone());
        }
        results.push(CommitResult {
            path: *path.info.path.hash(),
            outcome,
        });
    }
    let nar_sizes: Vec<u64> = infos.iter().map(|info| info.nar_size).collect();
    let published = app.publisher.publish(cache, infos, Arrival::Pushed);
    for ((place, nar_size), published) in places.into_iter().zip(nar_sizes).zip(published) {
        let result: &mut CommitResult = &mut results[place];
        match (published, &mut result.outcome) {
            (
                Ok(()),
                CommitOutcome::Ok {
                    new_bytes, untold, ..
                },
            ) => {
                *untold = is_untold(app, cache, &result.path);
                session.unlist(&result.path);
                app.metrics.push.paths.inc();
                app.metrics.push.nar_bytes.inc_by(nar_size);
                app.metrics.push.new_bytes.inc_by(*new_bytes);
            }
            (Ok(()), _) => {}
            (Err(error @ (PublishError::Store(_) | PublishError::Commit(_))), _) => {
                return Err(error.into());
            }
            (Err(error), _) => result.outcome = rejected(error.to_string()),
        }
    }
    let refused = results
        .iter()
        .filter(|result| is_rejected(&result.outcome))
        .count();
    app.metrics.push.paths_refused.inc_by(refused as u64);
    Ok(results)
}

/// What becomes of one path, as far as its NAR decides that.
///
/// **Errors**: the store's, except for want of space.
fn judge(
    app: &App,
    session: &Session,
    path: &CommitPath,
    chunks: &[ChunkId],
) -> Result<CommitOutcome, Failure> {
    let Some(chunks) = with_listed(session, path, chunks) else {
        let reason = format!("{} chunks of it were not listed", path.listed);
        return Ok(rejected(reason));
    };
    match assemble(app, session, path, &chunks) {
        Err(failure) if failure.is_disk_full() => {
            session.starve();
            Ok(rejected(failure.into_message()))
        }
        outcome => outcome,
    }
}

/// All chunks of a path: the listed ones, then those of the commit. `None` if too few are listed.
fn with_listed<'a>(
    session: &Session,
    path: &CommitPath,
    chunks: &'a [ChunkId],
) -> Option<Cow<'a, [ChunkId]>> {
    if path.listed == 0 {
        return Some(Cow::Borrowed(chunks));
    }
    let mut all = session.listed(path.info.path.hash(), path.listed as usize)?;
    all.extend_from_slice(chunks);
    Some(Cow::Owned(all))
}

fn is_rejected(outcome: &CommitOutcome) -> bool {
    matches!(outcome, CommitOutcome::Rejected { .. })
}

/// Puts one path's NAR together and checks it against what the client claims and must prove.
///
/// **Errors**: only the store's; what is wrong with the path is its outcome.
fn assemble(
    app: &App,
    session: &Session,
    path: &CommitPath,
    chunks: &[ChunkId],
) -> Result<CommitOutcome, Failure> {
    let mut possession = Possession::new(&session.challenge);
    let mut owes_proof = false;
    let (mut counted, mut new_bytes) = (BTreeSet::new(), 0);
    let assembled =
        app.store.assemble(
            &session.lease,
            chunks,
            &mut |id, plain| match session.upload_of(id) {
                Some(frame_len) if counted.insert(*id) => new_bytes += u64::from(frame_len),
                Some(_) => {}
                None => {
                    owes_proof = true;
                    possession.update(plain);
                }
            },
        );
    let imported = match assembled {
        Ok(Assembled::Done(imported)) => imported,
        Ok(Assembled::Missing(missing)) => return Ok(CommitOutcome::MissingChunks { missing }),
        Err(ImportError::Store(error)) => return Err(error.into()),
        Err(error) => return Ok(rejected(chain(&error))),
    };
    let proven = path
        .proof
        .as_deref()
        .is_some_and(|proof| possession.matches(proof));
    if owes_proof && !proven {
        return Ok(rejected(
            "possession of chunks that were not uploaded is not proven".to_owned(),
        ));
    }
    if imported.nar_hash != path.info.nar_hash {
        return Ok(rejected("NarHash does not match the chunks".to_owned()));
    }
    Ok(CommitOutcome::Ok {
        file_size: imported.file_size,
        new_bytes,
        // That is known once it is published.
        untold: false,
    })
}

fn rejected(message: String) -> CommitOutcome {
    CommitOutcome::Rejected { message }
}

/// Frame bytes stored per batch.
const BATCH_LEN: usize = 1 << 20;

//! `<hash>.narinfo`, the request of which there are most.
//!
//! Answers are kept rendered in memory. A `GET` or `HEAD` of one that is there is answered without
//! awaiting, allocating a task or parsing more than the target ([`remembered`]); everything else
//! takes the long way ([`get`]), with the same answer.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use attic_p2p::record::PathRecord;
use attic_store::narinfo::Compression;
use attic_store::record::PathRow;
use attic_store::{FileHash, NarInfo, PathInfo, StoreError, StorePathHash};
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::app::App;
use crate::caches::Cache;
use crate::clock::unix_now;
use crate::http::body::Body;
use crate::http::ingest::joined;
use crate::http::object::{is_known, revalidated};
use crate::http::target::{Object, Target};
use crate::http::{Wall, check_request, not_found};
use crate::metrics::{Route, Source};
use crate::nar_file::{NarFile, NarSuffix};
use crate::narinfo_memory::Rendered;
use crate::upstream::Found;

/// The answer, if it is a remembered narinfo of a public cache; `None` for everything else.
pub(crate) fn remembered<B>(app: &App, request: &Request<B>, wall: Wall) -> Option<Response<Body>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return None;
    }
    let target = Target::parse(request.uri().path_and_query()?.as_str())?;
    let Object::NarInfo(hash) = target.object? else {
        return None;
    };
    let headers = request.headers();
    if headers.contains_key(AUTHORIZATION) || check_request(app, wall, request).is_err() {
        return None;
    }
    let cache = app
        .caches
        .find(target.cache)
        .filter(|cache| cache.settings.public)?;
    let rendered = app.remembered(&(cache.id, hash))?;
    let response = found(app, &cache, &hash, &rendered, headers);
    app.metrics
        .answered(Route::Narinfo, response.status().as_u16());
    Some(response)
}

/// Answers from the store, and remembers the answer. Dropping the future abandons the request.
pub(crate) async fn get(
    app: &Arc<App>,
    cache: Arc<Cache>,
    hash: StorePathHash,
    head: &Parts,
) -> Response<Body> {
    let key = (cache.id, hash);
    let rendered = match app.remembered(&key) {
        Some(rendered) => Ok(Some(rendered)),
        None => {
            let (app, cache) = (Arc::clone(app), Arc::clone(&cache));
            joined(spawn_blocking(move || render_and_keep(&app, &cache, &hash)).await)
        }
    };
    match rendered {
        Ok(Some(rendered)) => found(app, &cache, &hash, &rendered, &head.headers),
        Ok(None) => elsewhere(app, &cache, &hash, head).await,
        Err(error) => {
            app.read_failed("narinfo", &error);
            elsewhere(app, &cache, &hash, head).await
        }
    }
}

/// Answers with what the cluster has, if somebody who is connected has it, or with what an upstream
/// has.
///
/// The cluster is asked alone at first: what the office has is not to come over the internet again.
/// Where it takes long to say no, both are asked.
async fn elsewhere(
    app: &Arc<App>,
    cache: &Arc<Cache>,
    hash: &StorePathHash,
    head: &Parts,
) -> Response<Body> {
    let mut peers = pin!(peers(app, cache, hash));
    let first = timeout(HEAD_START, &mut peers).await;
    let (record, found) = match first {
        Ok(Some(record)) => (Some(record), None),
        Ok(None) => (None, upstream(app, cache, hash).await),
        Err(_) => {
            let mut found = pin!(upstream(app, cache, hash));
            let answered = tokio::select! {
                record = &mut peers => Ok(record),
                found = &mut found => Err(found),
            };
            match answered {
                Ok(Some(record)) => (Some(record), None),
                Ok(None) => (None, found.await),
                Err(found) => (peers.await, found),
            }
        }
    };
    let (narinfo, source) = match (record, found) {
        (Some(record), _) => {
            let transport = offered(&record.file_hash, record.file_size);
            let narinfo = narinfo_of(app, cache, record.info.clone(), transport);
            (narinfo, Source::Peer)
        }
        (None, Some(found)) => (plain_narinfo(found.info.clone()), Source::Upstream),
        (None, None) => {
            app.metrics.narinfo_misses.inc();
            return not_found();
        }
    };
    let rendered = Rendered::new(narinfo.print(&cache.settings.store_dir));
    app.metrics.narinfo_hits(source).inc();
    answered(app, cache, &rendered, &head.headers, source)
}

/// The path in the cluster, if its NAR can be had here.
async fn peers(app: &App, cache: &Cache, hash: &StorePathHash) -> Option<Arc<PathRecord>> {
    let (id, mesh) = cache.settings.shared_as.zip(app.mesh.get())?;
    let record = mesh.finder.path(id, *hash).await;
    fitting(app, record).await
}

/// The path at an upstream, if there is room for its NAR.
async fn upstream(app: &App, cache: &Arc<Cache>, hash: &StorePathHash) -> Option<Arc<Found>> {
    let found = app.upstreams.path(cache, *hash).await?;
    if app.upstreams.has_room_for(&found).await {
        return Some(found);
    }
    tracing::info!(path = %found.info.path, "not here: there is no room for it");
    None
}

/// The path, if there is room for its NAR.
async fn fitting(app: &App, record: Option<Arc<PathRecord>>) -> Option<Arc<PathRecord>> {
    let (record, mesh) = record.zip(app.mesh.get())?;
    if mesh.has_room_for(&record).await {
        return Some(record);
    }
    tracing::info!(path = %record.info.path, "not here: there is no room for it");
    None
}

fn render_and_keep(
    app: &App,
    cache: &Cache,
    hash: &StorePathHash,
) -> Result<Option<Arc<Rendered>>, StoreError> {
    let key = (cache.id, *hash);
    let epoch = app.narinfos.epoch(&key);
    let Some(row) = app.store.path(&cache.name, hash)? else {
        return Ok(None);
    };
    let Some(rendered) = render(app, cache, row)? else {
        return Ok(None);
    };
    let rendered = Arc::new(rendered);
    app.narinfos.keep(key, Arc::clone(&rendered), epoch);
    Ok(Some(rendered))
}

/// The narinfo of a row; `None` when its NAR is not here.
fn render(app: &App, cache: &Cache, row: PathRow) -> Result<Option<Rendered>, StoreError> {
    let Some(nar) = app.store.nar(&row.info.nar_hash)? else {
        return Ok(None);
    };
    let transport = offered(&nar.file_hash, nar.file_size);
    let narinfo = narinfo_of(app, cache, row.info, transport);
    Ok(Some(Rendered::new(
        narinfo.print(&cache.settings.store_dir),
    )))
}

fn narinfo_of(app: &App, cache: &Cache, info: PathInfo, transport: Transport) -> NarInfo {
    let file = NarFile::canonical(&info.nar_hash);
    NarInfo {
        url: match app.upstreams.are_asked_for(cache) {
            true => file.url_for(info.path.hash()),
            false => file.url(),
        },
        compression: transport.compression,
        file_hash: Some(transport.file_hash),
        file_size: Some(transport.file_size),
        info,
    }
}

/// The narinfo of a path whose frames are not known yet: the plain NAR is what can be promised.
fn plain_narinfo(info: PathInfo) -> NarInfo {
    let file = NarFile {
        hash: *info.nar_hash.as_bytes(),
        suffix: NarSuffix::Plain,
    };
    NarInfo {
        url: file.url_for(info.path.hash()),
        compression: Compression::None,
        file_hash: Some(FileHash::from_bytes(*info.nar_hash.as_bytes())),
        file_size: Some(info.nar_size),
        info,
    }
}

/// How long the cluster is asked before upstreams are asked as well.
const HEAD_START: Duration = Duration::from_millis(20);

/// The form in which a narinfo offers its NAR.
struct Transport {
    compression: Compression,
    file_hash: FileHash,
    file_size: u64,
}

/// Always the stored frames: fewer bytes through the socket, and nothing to decompress here.
fn offered(file_hash: &FileHash, file_size: u64) -> Transport {
    Transport {
        compression: Compression::Zstd,
        file_hash: *file_hash,
        file_size,
    }
}

fn found(
    app: &App,
    cache: &Cache,
    hash: &StorePathHash,
    rendered: &Rendered,
    request: &HeaderMap,
) -> Response<Body> {
    let now = unix_now();
    if rendered.due_for_touch(now) {
        app.store.touch(&cache.name, hash, now);
    }
    app.metrics.narinfo_hits(Source::Local).inc();
    answered(app, cache, rendered, request, Source::Local)
}

fn answered(
    app: &App,
    cache: &Cache,
    rendered: &Rendered,
    request: &HeaderMap,
    source: Source,
) -> Response<Body> {
    let mut response = if is_known(request, rendered.etag.as_bytes()) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        app.metrics.sent(source).inc_by(rendered.body.len() as u64);
        Response::new(Body::full(rendered.body.clone()))
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/x-nix-narinfo"));
    headers.insert(CACHE_CONTROL, revalidated(cache));
    headers.insert(ETAG, rendered.etag.clone());
    response
}

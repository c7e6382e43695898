//! `nar/<hash>.nar.zst` and `nar/<hash>.nar`: the bytes themselves.
//!
//! `.nar.zst` is the stored frames one after the other, so a given range is the same bytes on every
//! node that holds the NAR, today and after a restart: a download cut anywhere resumes anywhere.
//!
//! Before the status line every chunk is located, every pack that holds one is there and long
//! enough, and the first block is read, and thereby checked. A NAR that turns out to have decayed on
//! the disk is fetched from the cluster again as far as it is damaged, be it in the middle of a
//! response ([`Mender`]). When nobody has it, later blocks that decayed break the connection, never
//! end it as if it were whole: nothing wrong is sent, and from then on the NAR is a 404 until it is
//! pushed again. So decay costs at most a truncated 200 to those who are reading at that moment.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use attic_p2p::wire::Priority;
use attic_store::{BlockReader, NarHash, NarReader, NarRow, Store, StoreError, StorePathHash};
use hyper::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue,
    IF_RANGE, RANGE,
};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::app::App;
use crate::caches::Cache;
use crate::http::body::{Body, FlightBody, NarBody, Reader};
use crate::http::condition::{Selection, select};
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::http::mend::Mender;
use crate::http::not_found;
use crate::http::object::{immutable, is_known};
use crate::mesh::flight::body::FlightReader;
use crate::mesh::flight::{FlightError, Follower};
use crate::nar_file::{NarFile, NarSuffix};
use crate::upstream::body::PullReader;
use crate::upstream::{Follower as Pull, Found, PullError};

/// What is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) file: NarFile,
    /// The path for which it was named, if that was told.
    pub(crate) path: Option<StorePathHash>,
}

/// Answers `GET` and `HEAD` of a NAR. Dropping the future abandons the request.
pub(crate) async fn get(
    app: &Arc<App>,
    cache: Arc<Cache>,
    wanted: Wanted,
    head: &Parts,
) -> Response<Body> {
    let file = wanted.file;
    let (store, in_cache) = (app.store.clone(), Arc::clone(&cache));
    let reads = head.method != Method::HEAD;
    let entry = joined(spawn_blocking(move || find(&store, &in_cache, &file, reads)).await);
    let entry = match entry {
        Ok(Some(entry)) => entry,
        Ok(None) => return fetch(app, &cache, wanted, head).await,
        Err(error) => {
            app.read_failed("nar", &error);
            return not_found();
        }
    };
    match entry.form {
        Form::Served(form) => {
            let nar = entry.nar_hash;
            match serve(app, &cache, entry, form, head).await {
                Some(response) => response,
                None if is_held_elsewhere(app, &cache, &nar) => {
                    fetch(app, &cache, wanted, head).await
                }
                None => not_found(),
            }
        }
        Form::Recompressed if head.method == Method::HEAD => {
            dressed(Response::new(Body::empty()), &cache, &entry, 0..entry.len)
        }
        Form::Recompressed => not_found(),
    }
}

/// Answers with a NAR that is not here, if the cluster or an upstream has it.
async fn fetch(app: &Arc<App>, cache: &Arc<Cache>, wanted: Wanted, head: &Parts) -> Response<Body> {
    let from_peers = fetch_from_peers(app, cache, wanted.file, head).await;
    if let Some(response) = from_peers.filter(|found| found.status() != StatusCode::NOT_FOUND) {
        return response;
    }
    let pulled = pull(app, cache, wanted, head).await;
    pulled.unwrap_or_else(not_found)
}

/// Answers with a NAR that is not here; `None` or 404 if the cluster does not have it.
async fn fetch_from_peers(
    app: &Arc<App>,
    cache: &Cache,
    file: NarFile,
    head: &Parts,
) -> Option<Response<Body>> {
    let (id, mesh) = cache.settings.shared_as.zip(app.mesh.get())?;
    let nar = NarHash::from_bytes(file.hash);
    let record = mesh.finder.nar(id, nar).await?;
    if !mesh.has_room_for(&record).await {
        return None;
    }
    let deadline = Instant::now() + READY_MAX;
    match mesh.fetch(record, Priority::Client) {
        Ok(flight) => Some(serve_flight(app, cache, flight, file.suffix, head, deadline).await),
        Err(error) => {
            tracing::warn!(cause = chain(&error), "NAR not fetched from peers");
            None
        }
    }
}

/// Answers with a NAR that an upstream has, as far as its name is one of ours.
///
/// Whoever was told of it long ago names the path: upstreams are asked for that again.
async fn pull(
    app: &Arc<App>,
    cache: &Arc<Cache>,
    wanted: Wanted,
    head: &Parts,
) -> Option<Response<Body>> {
    let Wanted { file, path } = wanted;
    let nar = NarHash::from_bytes(file.hash);
    let found = match app.upstreams.nar(cache, &nar) {
        Some(found) => found,
        None => app.upstreams.path_with_nar(cache, path?, &nar).await?,
    };
    match file.suffix {
        NarSuffix::Plain => {}
        NarSuffix::Zstd => return pull_frames(app, cache, found, file, head).await,
        NarSuffix::Xz | NarSuffix::Bzip2 | NarSuffix::Br => return None,
    }
    let (nar_hash, len) = (found.info.nar_hash, found.info.nar_size);
    let entry = Entry {
        nar_hash,
        form: Form::Served(ServedForm::Plain),
        len,
        etag: etag(&nar_hash.nix32()),
    };
    let selection = match chosen(cache, &entry, head) {
        Ok(selection) => selection,
        Err(response) => return Some(*response),
    };
    if head.method == Method::HEAD {
        let response = Response::new(Body::empty());
        return Some(selected(response, cache, &entry, &selection));
    }
    if app.upstreams.adopt(cache, &found).await {
        return serve(app, cache, entry, ServedForm::Plain, head).await;
    }
    let range = selection.range(&entry);
    let pull = begin_pull(app, cache, &found, range.start).await?;
    let len = range.end - range.start;
    let reader = PullReader::new(app.store.clone(), pull, range);
    let body = flying(app, Reader::Upstream(reader), len);
    Some(selected(Response::new(body), cache, &entry, &selection))
}

/// A NAR from an upstream whose byte at `position` is here. An upstream that gave something else is
/// not asked a second time, so another one may be.
async fn begin_pull(
    app: &Arc<App>,
    cache: &Arc<Cache>,
    found: &Arc<Found>,
    position: u64,
) -> Option<Pull> {
    if !app.upstreams.has_room_for(found).await {
        return None;
    }
    let deadline = Instant::now() + PULL_READY_MAX;
    for _ in 0..PULLS_MAX {
        let pull = app.upstreams.fetch(cache, Arc::clone(found)).ok()?;
        match pull.ready(position, deadline).await {
            Ok(()) => return Some(pull),
            Err(PullError::WrongNar) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Answers with the frames of a NAR that an upstream has, once it is here: for who was told of them
/// before they were collected.
async fn pull_frames(
    app: &Arc<App>,
    cache: &Arc<Cache>,
    found: Arc<Found>,
    file: NarFile,
    head: &Parts,
) -> Option<Response<Body>> {
    if !app.upstreams.adopt(cache, &found).await {
        let pull = begin_pull(app, cache, &found, 0).await?;
        pull.landed(Instant::now() + PULL_READY_MAX).await.ok()?;
    }
    let (store, in_cache) = (app.store.clone(), Arc::clone(cache));
    let entry = joined(spawn_blocking(move || find(&store, &in_cache, &file, true)).await);
    let entry = entry.ok()??;
    serve(app, cache, entry, ServedForm::Frames, head).await
}

fn flying(app: &Arc<App>, reader: Reader, len: u64) -> Body {
    Body::flight(FlightBody::new(Arc::clone(app), reader, len))
}

/// Answers `GET` and `HEAD` of a NAR that peers have, while it comes from them.
///
/// The status line waits, up to `deadline`, until every chunk is here or has a source that is
/// connected. Only frames can be sent as they land: a plain NAR is sent once it has landed.
/// Dropping the future, or the response, leaves the flight.
pub(crate) async fn serve_flight(
    app: &Arc<App>,
    cache: &Cache,
    flight: Follower,
    suffix: NarSuffix,
    head: &Parts,
    deadline: Instant,
) -> Response<Body> {
    let entry = match suffix {
        NarSuffix::Zstd => flight.ready(deadline).await.map(|manifest| {
            let digits = manifest.file_hash().nix32();
            Entry {
                nar_hash: *manifest.nar_hash(),
                form: Form::Served(ServedForm::Frames),
                len: manifest.file_size(),
                etag: etag(&digits),
            }
        }),
        NarSuffix::Plain => match flight.ready(deadline).await.map(|_| ()) {
            Ok(()) => flight.landed().await.map(|landed| Entry {
                nar_hash: landed.nar_hash,
                form: Form::Served(ServedForm::Plain),
                len: landed.nar_size,
                etag: etag(&landed.nar_hash.nix32()),
            }),
            Err(error) => Err(error),
        },
        NarSuffix::Xz | NarSuffix::Bzip2 | NarSuffix::Br => return not_found(),
    };
    let entry = match entry {
        Ok(entry) => entry,
        Err(error) => {
            unavailable(&flight, &error);
            return not_found();
        }
    };
    match suffix {
        NarSuffix::Plain => serve(app, cache, entry, ServedForm::Plain, head)
            .await
            .unwrap_or_else(not_found),
        _ => serve_landing(app, cache, flight, &entry, head),
    }
}

/// Answers with the frames of a flight that is ready.
fn serve_landing(
    app: &Arc<App>,
    cache: &Cache,
    flight: Follower,
    entry: &Entry,
    head: &Parts,
) -> Response<Body> {
    let selection = match chosen(cache, entry, head) {
        Ok(selection) => selection,
        Err(response) => return *response,
    };
    let range = selection.range(entry);
    let len = range.end - range.start;
    let body = match head.method {
        Method::HEAD => Some(Body::empty()),
        _ => FlightReader::new(flight, range.clone())
            .map(|reader| flying(app, Reader::Peers(reader), len)),
    };
    match body {
        Some(body) => selected(Response::new(body), cache, entry, &selection),
        None => not_found(),
    }
}

fn unavailable(flight: &Follower, error: &FlightError) {
    let nar = flight.wanted().nar;
    tracing::info!(%nar, cause = chain(error), "NAR not to be had from peers");
}

/// Whether a connected node is said to hold a NAR of a cache.
fn is_held_elsewhere(app: &App, cache: &Cache, nar: &NarHash) -> bool {
    let mesh = cache.settings.shared_as.and_then(|_| app.mesh.get());
    mesh.is_some_and(|mesh| !mesh.finder.sources(nar).is_empty())
}

/// What a file name stands for in a cache.
struct Entry {
    nar_hash: NarHash,
    form: Form,
    /// Bytes of the file.
    len: u64,
    /// Quoted strong entity tag.
    etag: HeaderValue,
}

/// Whether the bytes of a file can be had here.
#[derive(Clone, Copy)]
enum Form {
    /// From the store as it is.
    Served(ServedForm),
    /// It was uploaded in a compression the store does not keep: that it came is known, its bytes
    /// are gone. Uploading clients ask before they send it once more.
    Recompressed,
}

/// How the bytes of a NAR are sent.
#[derive(Clone, Copy)]
pub(super) enum ServedForm {
    Frames,
    Plain,
}

impl ServedForm {
    pub(super) fn read(self, nar: &NarReader, range: Range<u64>) -> BlockReader {
        match self {
            ServedForm::Frames => nar.frames(range),
            ServedForm::Plain => nar.plain(range),
        }
    }
}

/// Looks up a file of a cache: our own name for a NAR, or a name that one was uploaded under.
///
/// Until a path of the cache has it, an upload is there for those who ask whether it came, and not
/// for those who want to have its bytes.
fn find(
    store: &Store,
    cache: &Cache,
    file: &NarFile,
    reads: bool,
) -> Result<Option<Entry>, StoreError> {
    let nar_hash = NarHash::from_bytes(file.hash);
    if let Some(row) = visible_nar(store, cache, &nar_hash)? {
        match file.suffix {
            NarSuffix::Zstd => return Ok(Some(frames_entry(nar_hash, &row))),
            NarSuffix::Plain => return Ok(Some(plain_entry(nar_hash, &row))),
            NarSuffix::Xz | NarSuffix::Bzip2 | NarSuffix::Br => {}
        }
    }
    let Some(upload) = store.shown_upload(&cache.name, &file.to_string())? else {
        return Ok(None);
    };
    if reads && !store.shows_nar(&cache.name, &upload.nar_hash)? {
        return Ok(None);
    }
    let Some(row) = store.nar(&upload.nar_hash)? else {
        return Ok(None);
    };
    Ok(Some(match file.suffix {
        NarSuffix::Zstd => frames_entry(upload.nar_hash, &row),
        NarSuffix::Plain if upload.body_len == row.nar_size => plain_entry(upload.nar_hash, &row),
        // A plain name over a shorter body was gzip.
        NarSuffix::Plain | NarSuffix::Xz | NarSuffix::Bzip2 | NarSuffix::Br => Entry {
            nar_hash: upload.nar_hash,
            form: Form::Recompressed,
            len: upload.body_len,
            etag: etag(&upload.body_hash.nix32()),
        },
    }))
}

/// The NAR, if a path of this cache has it. NARs are stored once for all caches: the hash of one
/// that only another cache has, or that this one had, opens nothing here.
fn visible_nar(store: &Store, cache: &Cache, hash: &NarHash) -> Result<Option<NarRow>, StoreError> {
    let Some(row) = store.nar(hash)? else {
        return Ok(None);
    };
    Ok(store.shows_nar(&cache.name, hash)?.then_some(row))
}

fn frames_entry(nar_hash: NarHash, row: &NarRow) -> Entry {
    let (form, etag) = (
        Form::Served(ServedForm::Frames),
        etag(&row.file_hash.nix32()),
    );
    Entry {
        nar_hash,
        form,
        len: row.file_size,
        etag,
    }
}

fn plain_entry(nar_hash: NarHash, row: &NarRow) -> Entry {
    let (form, etag) = (Form::Served(ServedForm::Plain), etag(&nar_hash.nix32()));
    Entry {
        nar_hash,
        form,
        len: row.nar_size,
        etag,
    }
}

fn etag(digits: &str) -> HeaderValue {
    HeaderValue::try_from(format!("\"{digits}\"")).expect("digits make a header value")
}

/// `None` when the NAR was just found not to be whole.
async fn serve(
    app: &Arc<App>,
    cache: &Cache,
    entry: Entry,
    form: ServedForm,
    head: &Parts,
) -> Option<Response<Body>> {
    let selection = match chosen(cache, &entry, head) {
        Ok(selection) => selection,
        Err(response) => return Some(*response),
    };
    let body = match head.method {
        Method::HEAD => {
            let (store, hash) = (app.store.clone(), entry.nar_hash);
            let here = joined(spawn_blocking(move || store.open_nar(&hash)).await);
            here.map(|reader| reader.map(|_| Body::empty()))
        }
        _ => open(app, cache, &entry, form, selection.range(&entry)).await,
    };
    match body {
        Ok(Some(body)) => Some(selected(Response::new(body), cache, &entry, &selection)),
        Ok(None) => {
            // It was just looked up: it is hidden now, and so are its narinfos.
            app.narinfos.clear();
            None
        }
        Err(error) => {
            app.read_failed("nar", &error);
            let decayed = matches!(error, StoreError::Chunk(_));
            (!decayed).then(not_found)
        }
    }
}

/// What of a file is wanted; or the answer, if it takes no bytes.
fn chosen(cache: &Cache, entry: &Entry, head: &Parts) -> Result<Selection, Box<Response<Body>>> {
    if is_known(&head.headers, entry.etag.as_bytes()) {
        let response = dressed(Response::new(Body::empty()), cache, entry, 0..0);
        return Err(Box::new(with_status(response, StatusCode::NOT_MODIFIED)));
    }
    let header = |name| head.headers.get(name).map(HeaderValue::as_bytes);
    // Ranges are defined for GET alone.
    let range = header(RANGE).filter(|_| head.method == Method::GET);
    match select(range, header(IF_RANGE), entry.etag.as_bytes(), entry.len) {
        Selection::Beyond => Err(Box::new(beyond(cache, entry))),
        selection => Ok(selection),
    }
}

impl Selection {
    /// The bytes it selects of a file.
    fn range(&self, entry: &Entry) -> Range<u64> {
        match self {
            Selection::Whole => 0..entry.len,
            Selection::Part(range) => range.clone(),
            Selection::Beyond => 0..0,
        }
    }
}

/// A response with what was selected.
fn selected(
    response: Response<Body>,
    cache: &Cache,
    entry: &Entry,
    selection: &Selection,
) -> Response<Body> {
    let response = dressed(response, cache, entry, selection.range(entry));
    match selection {
        Selection::Part(range) => with_range(response, range, entry),
        Selection::Whole | Selection::Beyond => response,
    }
}

/// A body whose first block is here. `None` when the NAR cannot be read whole.
async fn open(
    app: &Arc<App>,
    cache: &Cache,
    entry: &Entry,
    form: ServedForm,
    range: Range<u64>,
) -> Result<Option<Body>, StoreError> {
    let (store, hash) = (app.store.clone(), entry.nar_hash);
    let (len, end) = (range.end - range.start, range.end);
    let len_max = app.block_len();
    let first_block = move || -> Result<_, StoreError> {
        let Some(nar) = store.open_nar(&hash)? else {
            return Ok(None);
        };
        let mut blocks = form.read(&nar, range);
        let first = blocks
            .next_block_within(len_max)?
            .map(|block| (block, blocks));
        Ok(first.map(|first| (first, nar.row().file_hash)))
    };
    let first = joined(spawn_blocking(first_block).await)?;
    Ok(first.map(|(first, file_hash)| {
        let mender = cache.settings.shared_as.map(|cache| Mender {
            app: Arc::clone(app),
            cache,
            nar_hash: hash,
            file_hash,
            form,
            end,
        });
        Body::nar(NarBody::new(Arc::clone(app), first, len, mender))
    }))
}

/// How long a client waits for the status line of a NAR that peers have.
const READY_MAX: Duration = Duration::from_secs(20);

/// The same of one that comes from an upstream, of which the wanted part may be the last: an upstream
/// that is silent is given up long before. Nix gives up after 300 s.
const PULL_READY_MAX: Duration = Duration::from_secs(240);
/// How often a NAR is begun anew because what came was wrong from its first chunk on.
const PULLS_MAX: usize = 3;

/// A response with the headers of a NAR. `Accept-Ranges` is on every one of them, partial ones too:
/// Nix resumes only if the last answer had it.
fn dressed(
    mut response: Response<Body>,
    cache: &Cache,
    entry: &Entry,
    range: Range<u64>,
) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-nix-nar"),
    );
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_CONTROL, immutable(cache));
    headers.insert(ETAG, entry.etag.clone());
    if !range.is_empty() {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    }
    response
}

fn with_range(mut response: Response<Body>, range: &Range<u64>, entry: &Entry) -> Response<Body> {
    let value = format!("bytes {}-{}/{}", range.start, range.end - 1, entry.len);
    let value = HeaderValue::try_from(value).expect("numbers make a header value");
    response.headers_mut().insert(CONTENT_RANGE, value);
    with_status(response, StatusCode::PARTIAL_CONTENT)
}

fn with_status(mut response: Response<Body>, status: StatusCode) -> Response<Body> {
    *response.status_mut() = status;
    response
}

fn beyond(cache: &Cache, entry: &Entry) -> Response<Body> {
    let mut response = dressed(Response::new(Body::empty()), cache, entry, 0..0);
    let value = HeaderValue::try_from(format!("bytes */{}", entry.len));
    response
        .headers_mut()
        .insert(CONTENT_RANGE, value.expect("numbers make a header value"));
    with_status(response, StatusCode::RANGE_NOT_SATISFIABLE)
}

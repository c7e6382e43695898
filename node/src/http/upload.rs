//! `PUT` by plain `nix copy --to http://…`.
//!
//! A NAR is stored under the hash of its contents as it streams in, whatever it is compressed with,
//! and stays invisible; that it came under some file name is noted, because Nix asks for that name
//! before it sends. Its narinfo, which may come hours later, is parsed, compared with the stored
//! bytes, signed and published. Nothing that a client wrote is passed on as it was.

use std::io::{BufRead, Read};
use std::sync::Arc;

use attic_store::record::UploadName;
use attic_store::{FileHash, ImportError, NarInfo, Store, StorePathHash};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use crate::app::App;
use crate::caches::Cache;
use crate::decode::{Decoder, Encoding, MAGIC_LEN};
use crate::http::body::Body;
use crate::http::error::{Failure, Kind};
use crate::http::ingest::{
    BodyReader, Limits, announced_len, check_announced, ingest, joined, read_decoded,
};
use crate::http::refused::PATIENCE;
use crate::http::target::{BlobKey, BlobKind, Object, Target};
use crate::nar_file::{NarFile, NarSuffix, unknown_ending};
use crate::publish::Arrival;

/// Answers a `PUT` of the admin. Dropping the future abandons it; what is not answered is not
/// visible.
pub(crate) async fn put(
    app: &Arc<App>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    let (head, mut body) = request.into_parts();
    let target = head
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    let name = target;
    let target = Target::parse(name).ok_or_else(no_such_object)?;
    let cache = app.caches.find(target.cache);
    let cache = cache.ok_or_else(|| Failure::new(Kind::NoSuchCache, "no such cache"))?;
    let object = target.object.ok_or_else(|| misnamed(name))?;
    if object == Object::CacheInfo {
        let message = "nix-cache-info is made by the node; use `cache configure`";
        return Err(Failure::new(Kind::MethodNotAllowed, message));
    }
    let len_max = body_len_max(app, &object);
    check_announced(&head.headers, &mut body, len_max).await?;
    let refused = app.refused_lately.find(name);
    let idle = app.config.http.body_idle_timeout;
    let limits = Limits {
        len_max,
        idle: refused.as_ref().map_or(idle, |_| idle.min(PATIENCE)),
    };
    let taken = take(app, cache, object, &head, body, limits).await;
    match (taken, refused) {
        (Ok(()), _) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::CREATED;
            Ok(response)
        }
        (Err(failure), Some(refused)) if failure.kind() == Kind::Timeout => Err(refused),
        (Err(failure), _) => {
            if failure.is_disk_full() {
                let (kind, message) = (failure.kind(), failure.message());
                app.refused_lately.note(name, kind, message);
            }
            Err(failure)
        }
    }
}

/// Takes an object in, when it is its turn.
async fn take(
    app: &Arc<App>,
    cache: Arc<Cache>,
    object: Object,
    head: &Parts,
    body: Incoming,
    limits: Limits,
) -> Result<(), Failure> {
    let permits = match object {
        Object::NarInfo(_) => &app.narinfo_uploads,
        _ => &app.uploads,
    };
    let _permit = permits.acquire().await.expect("the semaphore stays open");
    match object {
        Object::NarInfo(hash) => {
            let text = small(app, head, body, limits).await?;
            put_narinfo(app, cache, hash, text).await
        }
        Object::Nar { file, .. } => put_nar(app, cache, file, head, body, limits).await,
        Object::Listing(_) => put_listing(small(app, head, body, limits).await?).await,
        Object::Blob(key) => {
            let bytes = small(app, head, body, limits).await?;
            put_blob(app, cache, key, bytes).await
        }
        Object::CacheInfo => Ok(()),
    }
}

/// Bytes that the body of an object may have.
fn body_len_max(app: &App, object: &Object) -> u64 {
    match object {
        Object::NarInfo(_) => NarInfo::LEN_MAX as u64,
        // The bound that matters is on the decompressed NAR; no sane compressor expands it by half.
        Object::Nar { .. } => app.config.store.nar_size_max.saturating_mul(3) / 2,
        Object::Listing(_) => LISTING_LEN_MAX,
        Object::Blob(key) => match key.kind {
            BlobKind::Log => LOG_LEN_MAX,
            BlobKind::Realisation | BlobKind::BuildTrace => TRACE_LEN_MAX,
            BlobKind::DebugInfo => DEBUG_INFO_LEN_MAX,
        },
        Object::CacheInfo => 0,
    }
}

fn no_such_object() -> Failure {
    Failure::new(Kind::NotFound, "a cache has no object of this name")
}

/// What is wrong with the name of an object that no cache can have. Reading it is answered 404 as
/// ever; who writes learns what to change.
fn misnamed(target: &str) -> Failure {
    let path = target.split('?').next().unwrap_or(target);
    let name = path.splitn(3, '/').nth(2).unwrap_or_default();
    if let Some(file) = name.strip_prefix("nar/") {
        return match unknown_ending(file) {
            Some(ending) => Failure::new(
                Kind::Unsupported,
                format_args!("compression {ending} is not supported; {COMPRESSIONS} are"),
            ),
            None => Failure::bad_request(
                "a NAR's file is named by 52 digits of Nix's base 32 and .nar, .nar.zst, .nar.xz, \
                 .nar.bz2 or .nar.br",
            ),
        };
    }
    if name.ends_with(".narinfo") || name.ends_with(".ls") {
        return Failure::bad_request("the file is not named by 32 digits of Nix's base 32");
    }
    no_such_object()
}

async fn put_narinfo(
    app: &Arc<App>,
    cache: Arc<Cache>,
    hash: StorePathHash,
    text: Bytes,
) -> Result<(), Failure> {
    let app = Arc::clone(app);
    let outcome = spawn_blocking(move || publish_narinfo(&app, &cache, &hash, &text)).await;
    joined(outcome)
}

fn publish_narinfo(
    app: &App,
    cache: &Cache,
    hash: &StorePathHash,
    text: &[u8],
) -> Result<(), Failure> {
    let narinfo = NarInfo::parse(text, &cache.settings.store_dir).map_err(Failure::bad_request)?;
    if narinfo.info.path.hash() != hash {
        return Err(Failure::bad_request(
            "StorePath is not that of the file name",
        ));
    }
    app.publisher
        .check_upload(cache, &narinfo)
        .inspect_err(|_| app.refused())?;
    let nar_size = narinfo.info.nar_size;
    let results = app
        .publisher
        .publish(cache, vec![narinfo.info], Arrival::Put);
    results
        .into_iter()
        .collect::<Result<(), _>>()
        .inspect_err(|_| app.refused())?;
    app.metrics.push.paths.inc();
    app.metrics.push.nar_bytes.inc_by(nar_size);
    Ok(())
}

impl App {
    fn refused(&self) {
        self.metrics.push.paths_refused.inc();
    }
}

async fn put_nar(
    app: &Arc<App>,
    cache: Arc<Cache>,
    file: NarFile,
    head: &Parts,
    body: Incoming,
    limits: Limits,
) -> Result<(), Failure> {
    if head.headers.contains_key(hyper::header::CONTENT_ENCODING) {
        let message = "a NAR is compressed by its file name, not by Content-Encoding";
        return Err(Failure::new(Kind::Unsupported, message));
    }
    let store = app.store.clone();
    if let Some(len) = announced_len(&head.headers) {
        let store = store.clone();
        joined(spawn_blocking(move || store.check_fits(len)).await)?;
    }
    let stored = ingest(body, limits, move |body| {
        store_nar(&store, &cache, &file, body)
    })
    .await??;
    app.metrics.push.received_bytes.inc_by(stored.received);
    app.metrics.push.new_bytes.inc_by(stored.new_bytes);
    Ok(())
}

struct Stored {
    received: u64,
    new_bytes: u64,
}

/// Imports a NAR from the body of its upload, and notes the file name once the body is whole and
/// hashes to that name.
fn store_nar(
    store: &Store,
    cache: &Cache,
    file: &NarFile,
    body: &mut BodyReader,
) -> Result<Stored, Failure> {
    let mut body = Hashing {
        inner: body,
        hasher: Sha256::new(),
        len: 0,
    };
    let mut start = [0; MAGIC_LEN];
    let start = read_up_to(&mut body, &mut start)?;
    let encoding = recognise(start, file.suffix)?;
    let lease = store.lease();
    let imported = {
        let whole = std::io::BufReader::with_capacity(READ_LEN, start.chain(&mut body));
        let mut plain = Decoder::new(encoding, whole).map_err(Failure::internal)?;
        store.import(&lease, &mut plain)?
    };
    // Brotli does not look beyond its end; the hash must cover what follows.
    std::io::copy(&mut body, &mut std::io::sink()).map_err(ImportError::Source)?;
    let body_hash = FileHash::from_bytes(body.hasher.finalize().into());
    if *body_hash.as_bytes() != file.hash {
        return Err(Failure::bad_request(
            "the file's hash is not that of its name",
        ));
    }
    store.set_upload_name(UploadName {
        cache: cache.name.clone(),
        file: file.to_string(),
        nar_hash: imported.nar_hash,
        body_hash,
        body_len: body.len,
    })?;
    Ok(Stored {
        received: body.len,
        new_bytes: imported.new_bytes,
    })
}

/// How a body is compressed: by its first bytes, since Nix names gzip files like plain ones.
fn recognise(start: &[u8], suffix: NarSuffix) -> Result<Encoding, Failure> {
    if let Some(encoding) = Encoding::sniff(start) {
        return Ok(encoding);
    }
    if start.starts_with(b"LZIP") || start.starts_with(b"\x04\x22\x4d\x18") {
        return Err(Failure::new(
            Kind::Unsupported,
            format_args!("compressions lzip and lz4 are not supported; {COMPRESSIONS} are"),
        ));
    }
    match suffix {
        NarSuffix::Br => Ok(Encoding::Br),
        NarSuffix::Plain => Ok(Encoding::Identity),
        NarSuffix::Zstd | NarSuffix::Xz | NarSuffix::Bzip2 => Err(Failure::bad_request(
            "the file is not compressed as its name says",
        )),
    }
}

fn read_up_to<'a>(input: &mut impl Read, buffer: &'a mut [u8]) -> Result<&'a [u8], Failure> {
    let mut len = 0;
    while len < buffer.len() {
        match input
            .read(&mut buffer[len..])
            .map_err(ImportError::Source)?
        {
            0 => break,
            read => len += read,
        }
    }
    Ok(&buffer[..len])
}

/// Hashes and counts what is read through it.
struct Hashing<'a> {
    inner: &'a mut BodyReader,
    hasher: Sha256,
    len: u64,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let available = self.inner.fill_buf()?;
        let len = available.len().min(buffer.len());
        buffer[..len].copy_from_slice(&available[..len]);
        self.hasher.update(&buffer[..len]);
        self.len += len as u64;
        self.inner.consume(len);
        Ok(len)
    }
}

/// Listings are made by the node from the NAR itself; one that is sent is looked at and dropped, so
/// that clients which send them are content.
async fn put_listing(text: Bytes) -> Result<(), Failure> {
    let checked = spawn_blocking(move || check_json(&text)).await;
    joined(checked)
}

async fn put_blob(
    app: &Arc<App>,
    cache: Arc<Cache>,
    key: BlobKey,
    bytes: Bytes,
) -> Result<(), Failure> {
    let store = app.store.clone();
    let put = move || {
        key.check(&bytes).map_err(Failure::bad_request)?;
        let put = cache
            .life
            .while_alive(|| store.put_blob(&cache.name, &key.text, &bytes));
        Ok(put.ok_or_else(|| Failure::new(Kind::NoSuchCache, "no such cache"))??)
    };
    joined(spawn_blocking(put).await)
}

async fn small(app: &App, head: &Parts, body: Incoming, limits: Limits) -> Result<Bytes, Failure> {
    let bytes = read_decoded(&head.headers, body, limits).await?;
    app.metrics.push.received_bytes.inc_by(bytes.len() as u64);
    Ok(bytes)
}

fn check_json(text: &[u8]) -> Result<(), Failure> {
    let checked = serde_json::from_slice::<IgnoredAny>(text);
    checked
        .map(drop)
        .map_err(|error| Failure::bad_request(format!("not JSON: {error}")))
}

const READ_LEN: usize = 128 << 10;
const LISTING_LEN_MAX: u64 = 64 << 20;
const LOG_LEN_MAX: u64 = 64 << 20;
/// Old clients list all realisations that one depends on.
const TRACE_LEN_MAX: u64 = 256 << 10;
const DEBUG_INFO_LEN_MAX: u64 = 8 << 10;
/// As `?compression=` has them.
const COMPRESSIONS: &str = "zstd, xz, bzip2, br, gzip and none";

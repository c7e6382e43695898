//! Small objects of a cache: `nix-cache-info`, listings, logs, build traces, debug information.

use std::sync::Arc;

use attic_store::StorePathHash;
use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use tokio::task::spawn_blocking;

use crate::app::App;
use crate::caches::Cache;
use crate::http::body::Body;
use crate::http::condition::none_match;
use crate::http::ingest::joined;
use crate::http::not_found;
use crate::http::target::{BlobKey, BlobKind};
use crate::metrics::Source;

/// `nix-cache-info`.
pub(crate) fn cache_info(cache: &Cache, head: &Parts) -> Response<Body> {
    small(
        cache,
        cache.info_text.clone(),
        "text/x-nix-cache-info",
        head,
    )
}

/// `<hash>.ls`: what is in the NAR of a path. Dropping the future abandons it.
pub(crate) async fn listing(
    app: &Arc<App>,
    cache: Arc<Cache>,
    hash: StorePathHash,
    head: &Parts,
) -> Response<Body> {
    let (store, name) = (app.store.clone(), cache.name.clone());
    let read = move || match store.path(&name, &hash)? {
        Some(row) => store.listing(&row.info.nar_hash),
        None => Ok(None),
    };
    let found = joined(spawn_blocking(read).await);
    found_or_not(app, &cache, found, "application/json", head)
}

/// A blob. Dropping the future abandons it.
pub(crate) async fn blob(
    app: &Arc<App>,
    cache: Arc<Cache>,
    key: BlobKey,
    head: &Parts,
) -> Response<Body> {
    let (store, name) = (app.store.clone(), cache.name.clone());
    let found = joined(spawn_blocking(move || store.blob(&name, &key.text)).await);
    found_or_not(app, &cache, found, content_type(key.kind), head)
}

fn content_type(kind: BlobKind) -> &'static str {
    match kind {
        BlobKind::Log => "text/plain; charset=utf-8",
        BlobKind::Realisation | BlobKind::BuildTrace | BlobKind::DebugInfo => "application/json",
    }
}

fn found_or_not(
    app: &App,
    cache: &Cache,
    found: Result<Option<Bytes>, attic_store::StoreError>,
    content_type: &'static str,
    head: &Parts,
) -> Response<Body> {
    match found {
        Ok(Some(bytes)) => {
            app.metrics.sent(Source::Local).inc_by(bytes.len() as u64);
            small(cache, bytes, content_type, head)
        }
        Ok(None) => not_found(),
        Err(error) => {
            app.read_failed("object", &error);
            not_found()
        }
    }
}

/// A whole object with its tag, or 304 when the client has it.
fn small(cache: &Cache, bytes: Bytes, content_type: &'static str, head: &Parts) -> Response<Body> {
    let digest = blake3::hash(&bytes).to_hex();
    let etag = HeaderValue::try_from(format!("\"{}\"", &digest[..32]))
        .expect("hexadecimal digits make a header value");
    let mut response = if is_known(&head.headers, etag.as_bytes()) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        Response::new(Body::full(bytes))
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, revalidated(cache));
    headers.insert(ETAG, etag);
    response
}

/// Whether the client says it has the representation with this tag.
pub(crate) fn is_known(headers: &HeaderMap, etag: &[u8]) -> bool {
    headers
        .get(IF_NONE_MATCH)
        .is_some_and(|known| none_match(known.as_bytes(), etag))
}

/// Freshness of what may change or go: whoever keeps it asks each time whether it still holds, so that
/// a removal or another push is seen at once. That costs a round trip without a body.
pub(crate) fn revalidated(cache: &Cache) -> HeaderValue {
    HeaderValue::from_static(match cache.settings.public {
        true => "public, no-cache",
        false => "private, no-cache",
    })
}

/// Freshness of what never changes under its name.
pub(crate) fn immutable(cache: &Cache) -> HeaderValue {
    HeaderValue::from_static(match cache.settings.public {
        true => "public, max-age=31536000, immutable",
        false => "private, max-age=31536000, immutable",
    })
}

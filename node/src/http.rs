//! The node's HTTP doors.
//!
//! A request passes, in this order: the limits of its connection ([`serve`], [`connection`]); the
//! check that it addresses this node ([`host`]); then, by its path, the routes for people and
//! programs (`/`, `/_node/`, `/healthz` …) or the objects of a cache, which Nix asks for.
//!
//! What Nix depends on, and what is therefore kept here:
//!
//! - Reading an object is answered 200, 206, 304 or 416, and in every other case 404: an answer of
//!   another kind can end a build. A failing store is logged and answered 404.
//! - Who may do something is decided before anything is looked up. A private cache is answered,
//!   byte for byte, like a cache that does not exist.
//! - Writing is answered with one line that says why not.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderValue,
    TRANSFER_ENCODING,
};
use hyper::service::Service;
use hyper::{Method, Request, Response, Version};
use tower::ServiceExt;

use crate::app::App;
use crate::auth::Caller;
use crate::caches::{Cache, RESERVED};
use crate::http::body::Body;
use crate::http::connection::{Activity, Busy};
use crate::http::error::{Failure, Kind};
use crate::http::target::{Object, Target};
use crate::metrics::Route;

pub(crate) mod admin;
pub(crate) mod blob;
pub(crate) mod body;
pub(crate) mod bucket;
pub(crate) mod cluster;
pub(crate) mod condition;
pub(crate) mod connection;
pub(crate) mod error;
pub(crate) mod host;
pub(crate) mod ingest;
pub(crate) mod mend;
pub(crate) mod nar;
pub(crate) mod narinfo;
pub(crate) mod object;
pub(crate) mod probe;
pub(crate) mod push;
pub(crate) mod refused;
pub(crate) mod serve;
pub(crate) mod target;
pub(crate) mod upload;

/// What a listener leads to. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) app: Arc<App>,
    /// Everything that is not an object of a cache.
    routes: Router,
    wall: Wall,
}

/// Which side a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wall {
    /// TCP, where a web page could send a browser.
    Tcp,
    /// A unix socket, where no browser comes and `Host` means nothing.
    Unix,
}

impl Door {
    pub(crate) fn new(app: &Arc<App>, wall: Wall) -> Door {
        let routes = probe::routes().nest("/_node/v1", admin::routes(app));
        let routes = routes.with_state(Arc::clone(app));
        Door {
            app: Arc::clone(app),
            routes,
            wall,
        }
    }
}

/// Answers the requests of one connection.
pub(crate) struct ConnectionService {
    door: Door,
    activity: Arc<Activity>,
}

impl ConnectionService {
    pub(crate) fn new(door: Door, activity: &Arc<Activity>) -> ConnectionService {
        ConnectionService {
            door,
            activity: Arc::clone(activity),
        }
    }
}

impl Service<Request<Incoming>> for ConnectionService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let busy = self.activity.begin();
        match narinfo::remembered(&self.door.app, &request, self.door.wall) {
            Some(response) => Answer::Now(ready(Ok(held(response, busy)))),
            None => {
                let door = self.door.clone();
                let answer = async move { held(answer(door, request).await, busy) };
                Answer::Later(Box::pin(answer))
            }
        }
    }
}

/// An answer: there, or on its way. Dropping it abandons the request.
pub(crate) enum Answer {
    Now(Ready<Result<Response<Body>, Infallible>>),
    Later(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Answer::Now(answer) => Pin::new(answer).poll(cx),
            Answer::Later(answer) => answer.as_mut().poll(cx).map(Ok),
        }
    }
}

fn held(response: Response<Body>, busy: Busy) -> Response<Body> {
    response.map(|body| body.held(busy))
}

/// Answers a request and counts the answer.
async fn answer(door: Door, request: Request<Incoming>) -> Response<Body> {
    let app = Arc::clone(&door.app);
    let chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let (route, mut response) = match check_request(&app, door.wall, &request) {
        Ok(()) => dispatch(door, request).await,
        Err(failure) => (Route::Other, failure.into_text()),
    };
    if chunked {
        // A length beside the chunks, which hyper drops, may have meant another end to a proxy.
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    app.metrics.answered(route, response.status().as_u16());
    response
}

/// Refuses what is ambiguous or meant for somebody else.
pub(crate) fn check_request<B>(app: &App, wall: Wall, request: &Request<B>) -> Result<(), Failure> {
    if wall == Wall::Unix {
        return Ok(());
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (request.uri().authority(), hosts.next(), hosts.next()) {
        (_, _, Some(_)) => return Err(Failure::bad_request("more than one Host")),
        (Some(authority), _, None) => authority.as_str().as_bytes(),
        (None, Some(host), None) => host.as_bytes(),
        (None, None, None) if request.version() < Version::HTTP_11 => return Ok(()),
        (None, None, None) => return Err(Failure::bad_request("no Host")),
    };
    if !app.hosts.allow(host) {
        let message = "this node does not answer to that host name (see http.allowed-hosts)";
        return Err(Failure::new(Kind::Misdirected, message));
    }
    Ok(())
}

async fn dispatch(door: Door, request: Request<Incoming>) -> (Route, Response<Body>) {
    let path = request.uri().path();
    let routed = if path.starts_with("/_node/") {
        Some(if path.starts_with("/_node/v1/push") {
            Route::Push
        } else {
            Route::Admin
        })
    } else {
        let name = path.strip_prefix('/');
        let is_probe = name.is_some_and(|name| name.is_empty() || RESERVED.contains(&name));
        is_probe.then_some(Route::Probe)
    };
    match routed {
        Some(route) => {
            let Ok(response) = door
                .routes
                .oneshot(request.map(axum::body::Body::new))
                .await;
            (route, response.map(Body::routed))
        }
        None => cache_request(&door.app, request).await,
    }
}

/// A request for an object of a cache.
async fn cache_request(app: &Arc<App>, request: Request<Incoming>) -> (Route, Response<Body>) {
    let caller = caller(app, &request);
    match *request.method() {
        Method::GET | Method::HEAD => read(app, caller, request).await,
        Method::PUT => (Route::Upload, write(app, caller, request).await),
        _ => {
            let failure = Failure::new(Kind::MethodNotAllowed, "only GET, HEAD and PUT");
            (Route::Other, failure.into_text())
        }
    }
}

pub(crate) fn caller<B>(app: &App, request: &Request<B>) -> Caller {
    app.token.judge(
        request
            .headers()
            .get(AUTHORIZATION)
            .map(|value| value.as_bytes()),
    )
}

async fn read(
    app: &Arc<App>,
    caller: Caller,
    request: Request<Incoming>,
) -> (Route, Response<Body>) {
    let head = request.into_parts().0;
    let target = head
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    let Some(Target { cache, object }) = Target::parse(target) else {
        return (Route::Other, not_found());
    };
    let cache = app
        .caches
        .find(cache)
        .filter(|cache| may_read(cache, caller));
    let (Some(cache), Some(object)) = (cache, object) else {
        return (Route::Other, not_found());
    };
    match object {
        Object::CacheInfo => (Route::CacheInfo, object::cache_info(&cache, &head)),
        Object::NarInfo(hash) => (Route::Narinfo, narinfo::get(app, cache, hash, &head).await),
        Object::Nar { file, path } => {
            let wanted = nar::Wanted { file, path };
            (Route::Nar, nar::get(app, cache, wanted, &head).await)
        }
        Object::Listing(hash) => (
            Route::Listing,
            object::listing(app, cache, hash, &head).await,
        ),
        Object::Blob(key) => (Route::Blob, object::blob(app, cache, key, &head).await),
    }
}

fn may_read(cache: &Cache, caller: Caller) -> bool {
    cache.settings.public || caller == Caller::Admin
}

async fn write(app: &Arc<App>, caller: Caller, request: Request<Incoming>) -> Response<Body> {
    let outcome = match admitted(caller) {
        Ok(()) => upload::put(app, request).await,
        Err(failure) => {
            drain_small(request).await;
            Err(failure)
        }
    };
    outcome.unwrap_or_else(Failure::into_text)
}

/// Only the admin may write.
pub(crate) fn admitted(caller: Caller) -> Result<(), Failure> {
    match caller {
        Caller::Admin => Ok(()),
        Caller::Anonymous => Err(Failure::new(
            Kind::Unauthorized,
            "this needs the admin token",
        )),
        Caller::Stranger => Err(Failure::new(
            Kind::WrongToken,
            "this is not the admin token",
        )),
    }
}

/// Takes in a small body that nobody wants, so that its sender gets to see the answer. One that
/// waits for leave to send is not given it.
async fn drain_small(request: Request<Incoming>) {
    let headers = request.headers();
    let len = headers
        .get(CONTENT_LENGTH)
        .and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
    if len.is_some_and(|len| len <= DRAINED_LEN_MAX) && !headers.contains_key(EXPECT) {
        ingest::drain(&mut request.into_body()).await;
    }
}

const DRAINED_LEN_MAX: u64 = 1 << 20;

/// The one answer for everything that is not there, or not for the caller. Nobody keeps it: what is
/// not there may be pushed the next moment.
pub(crate) fn not_found() -> Response<Body> {
    let mut response = Failure::new(Kind::NotFound, "not found").into_text();
    let unkept = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, unkept);
    response
}

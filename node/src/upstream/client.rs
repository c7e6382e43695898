//! Asking an upstream over HTTP: bounded in time, in size and in redirects.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderValue, IF_RANGE, LOCATION, RANGE,
    USER_AGENT,
};
use hyper::{Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use thiserror::Error;
use tokio::time::timeout;
use url::Url;

use super::health::Trouble;

/// Requests to one upstream. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    pool: Connections,
    silence_max: Duration,
}

#[derive(Clone)]
enum Connections {
    Tls(Pool<HttpsConnector<HttpConnector>, Empty<Bytes>>),
    /// Where the machine has no certificates to trust.
    Plain(Pool<HttpConnector, Empty<Bytes>>),
}

/// Why there is no answer that can be used.
#[derive(Debug, Error)]
pub(crate) enum FetchError {
    #[error("no answer for {0:?}")]
    Silent(Duration),
    #[error("connect")]
    Connect(#[source] hyper_util::client::legacy::Error),
    #[error("request")]
    Request(#[source] hyper_util::client::legacy::Error),
    #[error("the answer broke off")]
    Broken(#[source] hyper::Error),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("the answer is longer than {0} bytes")]
    TooLong(u64),
    #[error("the answer has a content encoding")]
    Encoded,
    #[error("redirected in a way that is not followed")]
    Redirect,
    #[error("{0} cannot be asked for")]
    Url(Box<str>),
    /// What was asked for the rest of is not the same any more.
    #[error("it changed while it was read")]
    Changed,
}

impl FetchError {
    /// What it cost.
    pub(crate) fn trouble(&self) -> Trouble {
        let timed_out = match self {
            FetchError::Silent(_) => true,
            FetchError::Connect(error) => is_time_out(error),
            _ => false,
        };
        match timed_out {
            true => Trouble::Silent,
            false => Trouble::Broken,
        }
    }

    /// Whether what was asked for is not there.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, FetchError::Status(status) if is_absent(*status))
    }

    /// Whether asking the same again may help.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            FetchError::Silent(_)
            | FetchError::Connect(_)
            | FetchError::Request(_)
            | FetchError::Broken(_) => true,
            FetchError::Status(status) => status.is_server_error(),
            FetchError::TooLong(_)
            | FetchError::Encoded
            | FetchError::Redirect
            | FetchError::Url(_)
            | FetchError::Changed => false,
        }
    }
}

/// Stores of objects answer 403 for what is not there, and Nix reads it so.
fn is_absent(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN
    )
}

fn is_time_out(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let io: Option<&io::Error> = error.downcast_ref();
        if io.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return true;
        }
        next = error.source();
    }
    false
}

/// From where on the rest of a file is wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resume {
    /// Bytes that are here.
    pub(crate) at: u64,
    /// Strong tag of the file.
    pub(crate) etag: Option<HeaderValue>,
    /// Bytes of the whole, if they are known.
    pub(crate) len: Option<u64>,
}

/// A body that can be read from [`Opened::at`] on.
pub(crate) struct Opened {
    pub(crate) body: Incoming,
    /// Where in the file the body begins.
    pub(crate) at: u64,
    pub(crate) etag: Option<HeaderValue>,
    /// Bytes of the whole file, if they are known.
    pub(crate) len: Option<u64>,
}

impl Client {
    /// A client that waits for so long for a connection, and for what comes over it.
    ///
    /// Reads the certificates of the machine, so it may block.
    pub(crate) fn new(connect_timeout: Duration, silence_max: Duration) -> Client {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(connect_timeout));
        let mut pool = Pool::builder(TokioExecutor::new());
        pool.pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_MAX);
        let connections = match HttpsConnectorBuilder::new().with_native_roots() {
            Ok(builder) => {
                let connector = builder.https_or_http().enable_http1().wrap_connector(http);
                Connections::Tls(pool.build(connector))
            }
            Err(error) => {
                tracing::warn!(%error, "upstreams can be reached by http alone");
                http.enforce_http(true);
                Connections::Plain(pool.build(http))
            }
        };
        Client {
            pool: connections,
            silence_max,
        }
    }

    /// A small file; `None` if it is not there. Dropping the future abandons the request.
    pub(crate) async fn small(
        &self,
        url: &Url,
        len_max: usize,
    ) -> Result<Option<Bytes>, FetchError> {
        let response = self.get(url, None).await?;
        match response.status() {
            StatusCode::OK => {}
            status if is_absent(status) => return Ok(None),
            status => return Err(FetchError::Status(status)),
        }
        check_plain(&response)?;
        let (mut body, mut whole) = (response.into_body(), BytesMut::new());
        while let Some(piece) = self.next_piece(&mut body).await? {
            if whole.len() + piece.len() > len_max {
                return Err(FetchError::TooLong(len_max as u64));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(Some(whole.freeze()))
    }

    /// Opens a file to read it, or the rest of one of which something is here.
    pub(crate) async fn open(&self, url: &Url, resume: &Resume) -> Result<Opened, FetchError> {
        let response = self.get(url, Some(resume)).await?;
        check_plain(&response)?;
        let header = |name| response.headers().get(name);
        let number = |value: &HeaderValue| value.to_str().ok()?.parse().ok();
        let etag = header(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"));
        let etag = etag.cloned();
        let (at, len) = match response.status() {
            StatusCode::OK => (0, header(CONTENT_LENGTH).and_then(number)),
            StatusCode::PARTIAL_CONTENT if resume.at > 0 => {
                let range = header(CONTENT_RANGE).and_then(content_range);
                range.ok_or(FetchError::Changed)?
            }
            status => return Err(FetchError::Status(status)),
        };
        let differs = |was: Option<u64>| was.zip(len).is_some_and(|(was, is)| was != is);
        let retagged = resume.etag.is_some() && etag != resume.etag;
        if resume.at > 0 && (at > resume.at || differs(resume.len) || retagged) {
            return Err(FetchError::Changed);
        }
        let body = response.into_body();
        Ok(Opened {
            body,
            at,
            etag,
            len,
        })
    }

    /// The next bytes of a body, never empty; `None` at its end.
    pub(crate) async fn next_piece(
        &self,
        body: &mut Incoming,
    ) -> Result<Option<Bytes>, FetchError> {
        loop {
            let frame = timeout(self.silence_max, body.frame()).await;
            let frame = frame.map_err(|_| FetchError::Silent(self.silence_max))?;
            let Some(frame) = frame else { return Ok(None) };
            let data = frame.map_err(FetchError::Broken)?.into_data();
            if let Some(data) = data.ok().filter(|data| !data.is_empty()) {
                return Ok(Some(data));
            }
        }
    }

    /// The head of the answer, after redirects.
    async fn get(
        &self,
        url: &Url,
        resume: Option<&Resume>,
    ) -> Result<Response<Incoming>, FetchError> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send(request(&url, resume)?).await?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED
            {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION);
            let location = location.and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            url = next.ok_or(FetchError::Redirect)?;
        }
        Err(FetchError::Redirect)
    }

    async fn send(&self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, FetchError> {
        let answer = match &self.pool {
            Connections::Tls(pool) => pool.request(request),
            Connections::Plain(pool) => pool.request(request),
        };
        let answer = timeout(self.silence_max, answer).await;
        let answer = answer.map_err(|_| FetchError::Silent(self.silence_max))?;
        answer.map_err(|error| match error.is_connect() {
            true => FetchError::Connect(error),
            false => FetchError::Request(error),
        })
    }
}

fn request(url: &Url, resume: Option<&Resume>) -> Result<Request<Empty<Bytes>>, FetchError> {
    let refused = || FetchError::Url(url.to_string().into());
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused());
    }
    let mut request = Request::get(url.as_str()).header(USER_AGENT, AGENT);
    if let Some(resume) = resume.filter(|resume| resume.at > 0) {
        request = request.header(RANGE, format!("bytes={}-", resume.at));
        if let Some(etag) = &resume.etag {
            request = request.header(IF_RANGE, etag);
        }
    }
    request.body(Empty::new()).map_err(|_| refused())
}

/// Nothing was asked to be encoded: what is has another length than it says, and other ranges.
fn check_plain(response: &Response<Incoming>) -> Result<(), FetchError> {
    let encoding = response.headers().get(CONTENT_ENCODING);
    match encoding.is_none_or(|encoding| encoding == "identity") {
        true => Ok(()),
        false => Err(FetchError::Encoded),
    }
}

/// Begin, and bytes of the whole if they are told, of `bytes 5-9/10`.
fn content_range(value: &HeaderValue) -> Option<(u64, Option<u64>)> {
    let range = value.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, len) = range.split_once('/')?;
    let (begin, _) = range.split_once('-')?;
    Some((begin.parse().ok()?, len.parse().ok()))
}

const AGENT: &str = concat!("attic-node/", env!("CARGO_PKG_VERSION"));
const REDIRECTS_MAX: usize = 5;
/// Idle connections kept to an upstream, and for how long.
const POOL_MAX: usize = 32;
const POOL_IDLE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let rows = [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes */10", None),
            ("5-9/10", None),
            ("bytes x-9/10", None),
            ("bytes 5-9", None),
        ];
        for (text, wanted) in rows {
            let value = HeaderValue::from_static(text);
            assert_eq!(content_range(&value), wanted, "{text}");
        }
    }
}

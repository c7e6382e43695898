//! From what went wrong to a status and a phrase.
//!
//! A stranger gets the status, a stable name and one line; causes and paths go to the log.

use std::error::Error;
use std::fmt::{Display, Write};
use std::io;
use std::sync::Arc;

use attic_store::{ImportError, StoreError};
use axum::response::IntoResponse;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

use crate::api::ErrorBody;
use crate::api::wire::WireError;
use crate::caches::CacheError;
use crate::http::body::Body;
use crate::http::ingest::BodyFault;
use crate::mesh::announce::ShareError;
use crate::publish::PublishError;
use crate::push::SessionError;

/// A request that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    /// For the log only.
    cause: Option<Box<dyn Error + Send + Sync>>,
}

/// What went wrong, as far as the client is concerned. Each has one status and one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    BadRequest,
    Unauthorized,
    /// The token is not the admin's; what a token cannot help is [`Kind::Forbidden`].
    WrongToken,
    Forbidden,
    NoSuchCache,
    NotFound,
    MethodNotAllowed,
    Timeout,
    Conflict,
    LengthRequired,
    TooLarge,
    Unsupported,
    Misdirected,
    Internal,
    Busy,
    DiskFull,
    CapReached,
    NoCluster,
    NoBucket,
    NoSuchPeer,
    InCluster,
    HoldsClusterKey,
    NotIssuer,
    NotAdmitted,
    Revoked,
    BadTicket,
    TicketExpired,
    TicketUsedUp,
    NobodyReached,
}

impl Kind {
    fn status(self) -> StatusCode {
        match self {
            Kind::BadRequest => StatusCode::BAD_REQUEST,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::WrongToken | Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NoSuchCache | Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Kind::Timeout => StatusCode::REQUEST_TIMEOUT,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::LengthRequired => StatusCode::LENGTH_REQUIRED,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Unsupported => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Kind::DiskFull | Kind::CapReached => StatusCode::INSUFFICIENT_STORAGE,
            Kind::NoCluster | Kind::NoBucket | Kind::NoSuchPeer => StatusCode::NOT_FOUND,
            Kind::InCluster | Kind::HoldsClusterKey => StatusCode::CONFLICT,
            Kind::NotIssuer | Kind::NotAdmitted | Kind::Revoked => StatusCode::FORBIDDEN,
            Kind::BadTicket => StatusCode::BAD_REQUEST,
            Kind::TicketExpired | Kind::TicketUsedUp => StatusCode::GONE,
            Kind::NobodyReached => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::BadRequest => "BadRequest",
            Kind::Unauthorized => "Unauthorized",
            Kind::WrongToken => "WrongToken",
            Kind::Forbidden => "Forbidden",
            Kind::NoSuchCache => "NoSuchCache",
            Kind::NotFound => "NotFound",
            Kind::MethodNotAllowed => "MethodNotAllowed",
            Kind::Timeout => "Timeout",
            Kind::Conflict => "Conflict",
            Kind::LengthRequired => "LengthRequired",
            Kind::TooLarge => "TooLarge",
            Kind::Unsupported => "Unsupported",
            Kind::Misdirected => "Misdirected",
            Kind::Internal => "Internal",
            Kind::Busy => "Busy",
            Kind::DiskFull => "DiskFull",
            Kind::CapReached => "CapReached",
            Kind::NoCluster => "NoCluster",
            Kind::NoBucket => "NoBucket",
            Kind::NoSuchPeer => "NoSuchPeer",
            Kind::InCluster => "InCluster",
            Kind::HoldsClusterKey => "HoldsClusterKey",
            Kind::NotIssuer => "NotIssuer",
            Kind::NotAdmitted => "NotAdmitted",
            Kind::Revoked => "Revoked",
            Kind::BadTicket => "BadTicket",
            Kind::TicketExpired => "TicketExpired",
            Kind::TicketUsedUp => "TicketUsedUp",
            Kind::NobodyReached => "NobodyReached",
        }
    }

    /// Whether the rest of the connection is not worth reading.
    fn closes(self) -> bool {
        matches!(
            self,
            Kind::Timeout | Kind::LengthRequired | Kind::Misdirected
        )
    }
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Display) -> Failure {
        Failure {
            kind,
            message: message.to_string(),
            cause: None,
        }
    }

    pub(crate) fn bad_request(message: impl Display) -> Failure {
        Failure::new(Kind::BadRequest, message)
    }

    /// For a cause that the client cannot help: it goes to the log. A full disk has an answer of its
    /// own, whichever file did not fit.
    pub(crate) fn internal(cause: impl Error + Send + Sync + 'static) -> Failure {
        if comes_from_a_full_disk(&cause) {
            return Failure::no_space(None, cause);
        }
        let message = "the node failed; its log says why".to_owned();
        Failure {
            kind: Kind::Internal,
            message,
            cause: Some(Box::new(cause)),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// What the client is told.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Whether there was no space.
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self.kind, Kind::DiskFull | Kind::CapReached)
    }

    /// For want of space: below the size cap, if there is one that was reached, else on the disk.
    fn no_space(cap: Option<u64>, cause: impl Error + Send + Sync + 'static) -> Failure {
        let (kind, message) = match cap {
            Some(cap) => (
                Kind::CapReached,
                format!("no space below the node's size cap of {cap} bytes (store.size-cap)"),
            ),
            None => (Kind::DiskFull, "the node has no space left".to_owned()),
        };
        Failure {
            kind,
            message,
            cause: Some(Box::new(cause)),
        }
    }

    /// For a path whose references were evicted: both do not fit below the size cap, or the client's
    /// memory of the cache is older than that.
    fn torn(refused: &StoreError) -> Failure {
        Failure::new(
            Kind::CapReached,
            format_args!(
                "no space: {refused} (store.size-cap); to send it again, copy with --option \
                 narinfo-cache-positive-ttl 0, as Nix remembers what it sent before"
            ),
        )
    }

    /// What the client is told; the cause goes to the log.
    pub(crate) fn into_message(self) -> String {
        self.log();
        self.message
    }

    /// One line of text, which is what Nix shows to its user.
    pub(crate) fn into_text(self) -> Response<Body> {
        self.log();
        let mut response = Response::new(Body::full(format!("{}\n", self.message)));
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
        if self.kind == Kind::MethodNotAllowed {
            let allowed = HeaderValue::from_static("GET, HEAD, PUT");
            response.headers_mut().insert(ALLOW, allowed);
        }
        self.dress(&mut response);
        response
    }

    fn into_json(self) -> Response<axum::body::Body> {
        self.log();
        let body = ErrorBody {
            code: self.kind.status().as_u16(),
            error: self.kind.name().to_owned(),
            message: self.message.clone(),
        };
        let mut response = axum::Json(body).into_response();
        self.dress(&mut response);
        response
    }

    fn dress<B>(&self, response: &mut Response<B>) {
        *response.status_mut() = self.kind.status();
        let headers = response.headers_mut();
        if self.kind.closes() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.kind == Kind::Busy {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.kind == Kind::Unauthorized {
            let basic = HeaderValue::from_static("Basic realm=\"attic-node\"");
            headers.insert(WWW_AUTHENTICATE, basic);
        }
    }

    fn log(&self) {
        let Some(cause) = &self.cause else { return };
        let cause = chain(cause.as_ref());
        match self.kind {
            Kind::Internal => tracing::error!(cause, "request failed"),
            _ => tracing::warn!(cause, "request refused: {}", self.message),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response<axum::body::Body> {
        self.into_json()
    }
}

fn comes_from_a_full_disk(error: &(dyn Error + 'static)) -> bool {
    let is_full = |error: &(dyn Error + 'static)| {
        let shared = || error.downcast_ref::<Arc<io::Error>>().map(AsRef::as_ref);
        let io = error.downcast_ref().or_else(shared);
        matches!(
            io.map(io::Error::kind),
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        )
    };
    let mut next = Some(error);
    while let Some(error) = next {
        if is_full(error) {
            return true;
        }
        next = error.source();
    }
    false
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        match error {
            StoreError::NoSpace { cap, .. } => Failure::no_space(cap, error),
            StoreError::ReferenceEvicted { .. } => Failure::torn(&error),
            error => Failure::internal(error),
        }
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Failure {
        match error {
            ImportError::Store(error) => error.into(),
            ImportError::TooLarge(_) => Failure::new(Kind::TooLarge, error),
            ImportError::Nar(_)
            | ImportError::Source(_)
            | ImportError::Frame { .. }
            | ImportError::WrongChunk(_)
            | ImportError::Manifest(_) => Failure::bad_request(chain(&error)),
        }
    }
}

impl From<BodyFault> for Failure {
    fn from(fault: BodyFault) -> Failure {
        let kind = match fault {
            BodyFault::Idle => Kind::Timeout,
            BodyFault::TooLarge(_) => Kind::TooLarge,
            BodyFault::Unframed => Kind::LengthRequired,
            BodyFault::Broken => Kind::BadRequest,
            BodyFault::Encoding(_) => Kind::Unsupported,
        };
        Failure::new(kind, fault)
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Failure {
        match error {
            CacheError::Absent(_) => Failure::new(Kind::NoSuchCache, error),
            CacheError::Exists(_) | CacheError::NotEmpty(_) => Failure::new(Kind::Conflict, error),
            CacheError::Key(_)
            | CacheError::TooManyKeys(_)
            | CacheError::StoreDir(_)
            | CacheError::Reserved(_) => Failure::bad_request(error),
            CacheError::Store(error) => error.into(),
            CacheError::Settings { .. }
            | CacheError::KeyFile { .. }
            | CacheError::StrayFile(_)
            | CacheError::File(_) => Failure::internal(error),
        }
    }
}

impl From<ShareError> for Failure {
    fn from(error: ShareError) -> Failure {
        match error {
            ShareError::NotOwner | ShareError::Orphaned => Failure::new(Kind::Forbidden, error),
            ShareError::Cache(error) => error.into(),
            ShareError::Store(error) => error.into(),
            ShareError::Outbox(_) | ShareError::File(_) | ShareError::Keys(_) => {
                Failure::internal(error)
            }
        }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Failure {
        match &error {
            PublishError::Store(cause) | PublishError::Commit(cause) => match **cause {
                StoreError::NoSpace { cap, .. } => Failure::no_space(cap, error),
                StoreError::ReferenceEvicted { .. } => Failure::torn(cause),
                _ => Failure::internal(error),
            },
            PublishError::Differs => Failure::new(Kind::Conflict, error),
            PublishError::NoKey(_) => Failure::new(Kind::Forbidden, error),
            PublishError::Outbox(_) => Failure::internal(error),
            PublishError::CacheGone => Failure::new(Kind::NoSuchCache, error),
            PublishError::NarAbsent
            | PublishError::Mismatch(_)
            | PublishError::BadSignature(_)
            | PublishError::Unsigned
            | PublishError::TooManySignatures(_)
            | PublishError::Duplicate => Failure::bad_request(error),
        }
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Failure {
        match error {
            SessionError::Unknown => Failure::new(Kind::NotFound, error),
            SessionError::Busy(_) => Failure::new(Kind::Busy, error),
            SessionError::Full | SessionError::FullOfIds => Failure::new(Kind::TooLarge, error),
            SessionError::Gap(_) => Failure::new(Kind::Conflict, error),
        }
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Failure {
        Failure::bad_request(chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use crate::data_dir::FileError;

    use super::*;

    #[test]
    fn causes_stay_out_of_answers() {
        let source = std::io::Error::other("/secret/path");
        let error = StoreError::Io {
            action: "read",
            path: "/secret/pack".into(),
            source,
        };
        let response = Failure::from(error).into_text();
        assert_eq!(response.status(), 500);
        let full = StoreError::NoSpace {
            what: "/secret/pack".into(),
            cap: None,
            source: None,
        };
        let failure = Failure::from(full);
        assert!(!failure.message.contains("secret"));
        assert_eq!(failure.into_text().status(), 507);
    }

    /// `cache create` and `key rotate` called a full disk a failure of the node.
    #[test]
    fn a_full_disk_is_no_failure_of_the_node_whichever_file_does_not_fit() {
        let file = |kind: io::ErrorKind| FileError::new("write", "/secret".as_ref(), kind.into());
        let (full, quota) = (io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded);
        let rows: [(Failure, u16); 7] = [
            (CacheError::File(file(full)).into(), 507),
            (CacheError::File(file(quota)).into(), 507),
            (CacheError::File(file(io::ErrorKind::Other)).into(), 500),
            (ShareError::Outbox(full.into()).into(), 507),
            (PublishError::Outbox(Arc::new(full.into())).into(), 507),
            (ShareError::File(file(full).into()).into(), 507),
            (ShareError::Cache(file(full).into()).into(), 507),
        ];
        for (failure, status) in rows {
            assert!(!failure.message.contains("secret"));
            assert_eq!(failure.into_text().status(), status);
        }
    }

    #[test]
    fn strangers_learn_how_to_authenticate() {
        let response = Failure::new(Kind::Unauthorized, "x").into_text();
        assert_eq!(
            response.headers()[WWW_AUTHENTICATE],
            "Basic realm=\"attic-node\""
        );
    }
}

//! Why a node gave no answer.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use attic_node_core::api::ErrorBody;
use attic_node_core::data_dir::FileError;
use reqwest::StatusCode;

use super::Endpoint;

/// Why a request brought no answer, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No HTTP client can be made here.
    #[error("set up HTTP")]
    Setup(#[source] reqwest::Error),
    /// Nothing answers at that address.
    #[error("connect to {endpoint}")]
    Unreachable {
        /// The address.
        endpoint: Endpoint,
        /// What the system said.
        source: HttpCause,
    },
    /// The node whose token this is does not run; nothing was sent.
    #[error("no node runs in {}", .0.display())]
    NotRunning(PathBuf),
    /// Something uses the data directory, and does not serve or no longer serves where it did;
    /// nothing was sent.
    #[error("what uses {} does not serve there", .0.display())]
    NotServing(PathBuf),
    /// The node was started again at another address; nothing was sent there.
    #[error("the node serves at {now}, and no longer at {before}")]
    Moved {
        /// Where it was when the client was made.
        before: SocketAddr,
        /// Where it is.
        now: SocketAddr,
    },
    /// The data directory cannot be looked at; nothing was sent.
    #[error(transparent)]
    DataFile(#[from] FileError),
    /// The connection broke before the answer was complete.
    #[error("{what}: connection broke")]
    Broken {
        /// Method and path.
        what: String,
        /// What broke.
        source: HttpCause,
    },
    /// Nothing moved for too long.
    #[error("{what}: no answer for {} s", limit.as_secs())]
    Silent {
        /// Method and path.
        what: String,
        /// For how long.
        limit: Duration,
    },
    /// The node said no.
    #[error("{}", error.message)]
    Refused {
        /// Method and path.
        what: String,
        /// The status.
        status: StatusCode,
        /// What the node said.
        error: ErrorBody,
        /// When the node asks to be left alone until.
        retry_after: Option<Duration>,
    },
    /// The answer is not what this version of the API says.
    #[error("{what}: answer not understood")]
    Unintelligible {
        /// Method and path.
        what: String,
        /// Why, when it is not merely too long.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
}

impl ClientError {
    /// Whether the node does not know what the path names: the session, where it names one.
    pub(crate) fn is_unknown(&self) -> bool {
        let by_name = |name: &str| matches!(name, "NoSuchSession" | "NotFound");
        matches!(self, ClientError::Refused { status, error, .. }
            if *status == StatusCode::NOT_FOUND && by_name(&error.error))
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            ClientError::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// An error of the HTTP library, which says only what it comes from in the end: its own layers mean
/// nothing to a person.
#[derive(Debug)]
pub struct HttpCause(pub(super) reqwest::Error);

impl Display for HttpCause {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut innermost: &dyn Error = &self.0;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        Display::fmt(innermost, f)
    }
}

impl Error for HttpCause {}

/// The node's own words, or some for an answer that did not come from a node.
pub(super) fn error_body(status: StatusCode, body: &[u8]) -> ErrorBody {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&body[..body.len().min(FOREIGN_TEXT_MAX)]);
        let first_line = text.lines().next().unwrap_or_default().trim().to_owned();
        let message = if first_line.is_empty() {
            status.to_string()
        } else {
            first_line
        };
        ErrorBody {
            code: status.as_u16(),
            error: String::new(),
            message,
        }
    })
}

/// Characters of an answer that did not come from a node which are worth showing.
const FOREIGN_TEXT_MAX: usize = 200;

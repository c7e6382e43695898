//! Talks to a node's admin and push API: bounded retries, time limits on silence, typed answers.
//!
//! [`Client::call`] is the one way out. A request that fails for a passing reason (no connection, a
//! reset, 408, 429, 500, 502, 503, 504) is repeated after a random pause, as often as its
//! [`Patience`] allows. There is no limit on how long a request takes as long as bytes move; one
//! that stays silent for its `silence_max` counts as failed. The routes are in [`routes`].

use std::time::Duration;

use attic_node_core::api::PREFIX;
use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Response};
use tokio::time::sleep;

pub use self::address::{Endpoint, EndpointError, Token, TokenError};
use self::error::error_body;
pub use self::error::{ClientError, HttpCause};
pub use self::owner::Owner;
pub(crate) use self::owner::reachable;
use self::pace::{Paced, Pulse};
pub use self::retry::Patience;

mod address;
mod error;
mod owner;
mod pace;
mod retry;
pub mod routes;

/// A handle on one node; clones share its connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    endpoint: Endpoint,
    token: Option<Token>,
    /// Who alone may be sent the token; `None` is whoever listens at the endpoint.
    owner: Option<Owner>,
    patience: Patience,
}

impl Client {
    /// A client of the node at `endpoint`. Does not connect yet.
    ///
    /// **Errors**: [`ClientError::Setup`] when the system's proxy settings are unusable.
    pub fn new(endpoint: Endpoint, token: Option<Token>) -> Result<Client, ClientError> {
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT);
        if endpoint.is_loopback() {
            builder = builder.no_proxy();
        }
        if let Some(socket) = endpoint.unix_socket() {
            builder = builder.unix_socket(socket);
        }
        let http = builder.build().map_err(ClientError::Setup)?;
        Ok(Client {
            http,
            endpoint,
            token,
            owner: None,
            patience: Patience::PROMPT,
        })
    }

    /// The same client, which makes sure before each request that `owner` runs, and sends nothing
    /// while it does not.
    pub fn only_to(self, owner: Owner) -> Client {
        Client {
            owner: Some(owner),
            ..self
        }
    }

    /// The same client, which repeats failed requests as `patience` says.
    pub fn with_patience(&self, patience: Patience) -> Client {
        Client {
            patience,
            ..self.clone()
        }
    }

    /// Whether the node is known to run on this machine. A loopback address alone does not say so:
    /// a tunnel may begin there.
    pub fn stays_on_this_machine(&self) -> bool {
        self.owner.is_some()
    }

    /// The node's address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends `call`, again if need be, and gives the body of the successful answer.
    ///
    /// Dropping it abandons the request; the node may or may not have carried it out.
    ///
    /// **Errors**: any [`ClientError`] but `Setup`, of the last attempt.
    pub async fn call(&self, call: &Call) -> Result<Bytes, ClientError> {
        let mut failed = 0;
        loop {
            // The first attempt is made without asking.
            let question = call.asks_first.as_deref().filter(|_| failed > 0);
            let error = match self.attempt_after(question, call).await {
                Ok(body) => return Ok(body),
                Err(error) => error,
            };
            failed += 1;
            if failed >= self.attempts(call, &error) {
                return Err(error);
            }
            sleep(retry::pause(failed, random(), error.retry_after())).await;
        }
    }

    /// How often to try in all, in view of the last failure.
    fn attempts(&self, call: &Call, error: &ClientError) -> u32 {
        let Patience {
            attempts_max,
            connects_max,
        } = self.patience;
        match error {
            ClientError::Unreachable { .. }
            | ClientError::NotRunning(_)
            | ClientError::NotServing(_) => connects_max,
            ClientError::Refused { status, .. } => match status.as_u16() {
                429 | 503 => attempts_max,
                408 | 500 | 502 | 504 if call.repeatable => attempts_max,
                _ => 1,
            },
            ClientError::Broken { .. } if call.repeatable => attempts_max,
            ClientError::Silent { .. } if call.repeatable => attempts_max.min(SILENCES_MAX),
            ClientError::Broken { .. } | ClientError::Silent { .. } => 1,
            ClientError::Setup(_)
            | ClientError::Moved { .. }
            | ClientError::DataFile(_)
            | ClientError::Unintelligible { .. } => 1,
        }
    }

    async fn attempt_after(
        &self,
        question: Option<&Call>,
        call: &Call,
    ) -> Result<Bytes, ClientError> {
        if let Some(question) = question {
            self.attempt(question).await?;
        }
        self.attempt(call).await
    }

    async fn attempt(&self, call: &Call) -> Result<Bytes, ClientError> {
        if let Some(owner) = &self.owner {
            owner.check()?;
        }
        let pulse = Pulse::new();
        let url = format!("{}{}{}", self.endpoint.base_url(), call.prefix, call.path);
        let mut request = self.http.request(call.method.clone(), url);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.header());
        }
        if let Some(kind) = call.payload.content_type() {
            let body = reqwest::Body::wrap(Paced::new(call.payload.segments(), pulse.clone()));
            request = request.header(CONTENT_TYPE, kind).body(body);
            if let Some(encoding) = call.payload.content_encoding() {
                request = request.header(CONTENT_ENCODING, encoding);
            }
        }
        let exchange = async {
            let response = request
                .send()
                .await
                .map_err(|error| self.broken(call, error))?;
            self.read(call, response, &pulse).await
        };
        match call.silence_max {
            None => exchange.await,
            Some(limit) => tokio::select! {
                answer = exchange => answer,
                () = pulse.silent_for(limit) => {
                    Err(ClientError::Silent { what: call.describe(), limit })
                }
            },
        }
    }

    async fn read(
        &self,
        call: &Call,
        mut response: Response,
        pulse: &Pulse,
    ) -> Result<Bytes, ClientError> {
        let status = response.status();
        let retry_after = seconds(response.headers().get(RETRY_AFTER));
        let mut body = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(|e| self.broken(call, e))? {
            pulse.beat();
            if body.len() + piece.len() > ANSWER_LEN_MAX {
                return Err(ClientError::Unintelligible {
                    what: call.describe(),
                    source: None,
                });
            }
            body.extend_from_slice(&piece);
        }
        if status.is_success() {
            return Ok(body.freeze());
        }
        let error = error_body(status, &body);
        Err(ClientError::Refused {
            what: call.describe(),
            status,
            error,
            retry_after,
        })
    }

    fn broken(&self, call: &Call, error: reqwest::Error) -> ClientError {
        let source = HttpCause(error);
        if source.0.is_connect() {
            ClientError::Unreachable {
                endpoint: self.endpoint.clone(),
                source,
            }
        } else {
            ClientError::Broken {
                what: call.describe(),
                source,
            }
        }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    /// [`PREFIX`], or `/` for an object of a cache.
    prefix: &'static str,
    path: String,
    payload: Payload,
    /// Whether carrying it out twice is as good as once.
    repeatable: bool,
    silence_max: Option<Duration>,
    /// A small request that is made before each repetition: while it fails, the large one is not
    /// sent in vain.
    asks_first: Option<Box<Call>>,
}

impl Call {
    /// A repeatable request without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Call {
        Call {
            method,
            prefix: PREFIX,
            path: path.into(),
            payload: Payload::None,
            repeatable: true,
            silence_max: Some(SILENCE_MAX),
            asks_first: None,
        }
    }

    /// A repeatable `PUT` of an object of a cache, as Nix itself makes it.
    pub fn put_object(path: impl Into<String>, payload: Payload) -> Call {
        Call {
            prefix: "/",
            ..Call::new(Method::PUT, path).payload(payload)
        }
    }

    /// With this body.
    pub fn payload(self, payload: Payload) -> Call {
        Call { payload, ..self }
    }

    /// Not to be sent again once the node may have seen it.
    pub fn once(self) -> Call {
        Call {
            repeatable: false,
            ..self
        }
    }

    /// To be repeated only after asking `question`.
    pub fn asks_first(self, question: Call) -> Call {
        Call {
            asks_first: Some(Box::new(question)),
            ..self
        }
    }

    /// May stay silent for this long, or for as long as it takes.
    pub fn silence_max(self, silence_max: Option<Duration>) -> Call {
        Call {
            silence_max,
            ..self
        }
    }

    fn describe(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// Body of a request.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Nothing.
    None,
    /// JSON text.
    Json([Bytes; 1]),
    /// One of the binary bodies, in segments.
    Binary(Vec<Bytes>),
    /// Text, as a zstd frame.
    ZstdText([Bytes; 1]),
}

impl Payload {
    fn content_type(&self) -> Option<HeaderValue> {
        match self {
            Payload::None => None,
            Payload::Json(_) => Some(HeaderValue::from_static("application/json")),
            Payload::Binary(_) => Some(HeaderValue::from_static("application/octet-stream")),
            Payload::ZstdText(_) => Some(HeaderValue::from_static("text/plain; charset=utf-8")),
        }
    }

    fn content_encoding(&self) -> Option<HeaderValue> {
        match self {
            Payload::ZstdText(_) => Some(HeaderValue::from_static("zstd")),
            Payload::None | Payload::Json(_) | Payload::Binary(_) => None,
        }
    }

    fn segments(&self) -> &[Bytes] {
        match self {
            Payload::None => &[],
            Payload::Json(text) | Payload::ZstdText(text) => text,
            Payload::Binary(segments) => segments,
        }
    }
}

fn seconds(header: Option<&HeaderValue>) -> Option<Duration> {
    header?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_secs)
}

/// Uniform in 0..1; one half when the system has no randomness, which only costs spread.
fn random() -> f64 {
    getrandom::u32().map_or(0.5, |bits| f64::from(bits) / (f64::from(u32::MAX) + 1.0))
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const SILENCE_MAX: Duration = Duration::from_secs(60);
const SILENCES_MAX: u32 = 3;
/// A page of 4096 paths with a thousand references each fits.
const ANSWER_LEN_MAX: usize = 512 << 20;

//! A bucket on a real server, by the SDK of S3.
//!
//! What the SDK would do by itself is off: its retries, its time-outs but that of connecting, and the
//! checksums that servers other than AWS's may not know. In their place:
//!
//! - a [`Policy`] repeats everything but writes, with pauses of full jitter, for a bounded time;
//! - a limiter has 4 to 64 requests under way, more while all goes well, half when the server is busy;
//! - a breaker leaves a server alone that failed five times in a row, but for one request every 5 s;
//!   meanwhile everything is [`BucketError::Unreachable`] at once.
//!
//! An answer is held against what was asked, and against itself: lengths, ranges, the order of
//! listings. Of a body no more is kept than was asked for.

mod breaker;
mod clock;
mod credentials;
mod failure;
mod limiter;
mod policy;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::time::{sleep, timeout, timeout_at};

use super::{
    Answer, Bucket, BucketError, Counters, Health, Object, Operation, Page, is_key, is_key_prefix,
};
use breaker::Breaker;
use clock::{ClockReader, ServerClock};
use failure::{Asked, Failure, lied};
use limiter::{Limiter, Place};

pub use credentials::{Credentials, CredentialsError};
pub use policy::Policy;

/// Where a bucket is, and how it is asked.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// URL of the server, `http://` or `https://`; `None` is AWS's for the region.
    pub endpoint: Option<String>,
    /// The region that requests are signed for; `None` is `us-east-1`.
    pub region: Option<String>,
    /// Name of the bucket.
    pub bucket: String,
    /// What all keys begin with; no slash is added. Empty, or made as keys are.
    pub prefix: String,
    /// Whether the bucket is named in the path of URLs and not in their host; `None` is yes for an
    /// endpoint that is given, and no for AWS's.
    pub path_style: Option<bool>,
    /// Who asks.
    pub credentials: Credentials,
    /// Most objects on a page of a listing; `None` is the server's, usually 1000.
    pub page_len: Option<u16>,
    /// Patience.
    pub policy: Policy,
}

/// A bucket that cannot be asked, whatever the server does.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum S3OptionsError {
    /// Not the URL of a server.
    #[error("endpoint {0:?} is not http:// or https:// and a host")]
    Endpoint(String),
    /// Not the name of a bucket.
    #[error("{0:?} is not the name of a bucket: 3 to 63 of a-z, 0-9, \"-\" and \".\"")]
    Bucket(String),
    /// Not what keys may begin with.
    #[error(
        "prefix {0:?} has other characters than letters, digits, \"-\", \".\", \"_\" and \"/\", begins with \"/\", or is too long"
    )]
    Prefix(String),
    /// Not a region.
    #[error("{0:?} is not a region")]
    Region(String),
}

/// A bucket of a server that speaks S3.
pub struct S3Bucket {
    client: Client,
    bucket: String,
    prefix: String,
    page_len: Option<u16>,
    /// What errors call it.
    name: String,
    policy: Policy,
    limiter: Limiter,
    clock: Arc<ServerClock>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    breaker: Breaker,
    /// Why the server is not worth asking.
    outage: String,
    counters: Counters,
    last_error: Option<String>,
    failing_since: Option<SystemTime>,
}

impl S3Bucket {
    /// A bucket, which is asked nothing yet: whether it is there, nobody knows.
    ///
    /// Reads the certificates of the machine, if the endpoint is `https://`.
    ///
    /// **Errors**: the options are wrong in themselves.
    pub fn new(options: S3Options) -> Result<S3Bucket, S3OptionsError> {
        options.check()?;
        let clock = Arc::new(ServerClock::default());
        let name = match &options.endpoint {
            Some(endpoint) => format!("{} at {endpoint}", options.bucket),
            None => options.bucket.clone(),
        };
        Ok(S3Bucket {
            client: client(&options, &clock),
            bucket: options.bucket,
            prefix: options.prefix,
            page_len: options.page_len,
            name,
            policy: options.policy,
            limiter: Limiter::new(),
            clock,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    fn asked<'a>(&'a self, operation: Operation, key: &'a str) -> Asked<'a> {
        Asked {
            operation,
            key,
            bucket: &self.name,
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Reads an error of the SDK.
    fn failure<E>(&self, asked: Asked<'_>, error: SdkError<E, HttpResponse>) -> Failure
    where
        E: Error + ProvideErrorMetadata + 'static,
    {
        failure::read(asked, self.clock.ahead_seconds(), error)
    }

    /// Asks once.
    async fn once<T>(
        &self,
        asked: Asked<'_>,
        bytes: u64,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, BucketError> {
        let deadline = Instant::now() + self.policy.operation_time(bytes);
        let outcome = self
            .attempt(asked.operation, bytes, deadline, request)
            .await;
        self.heard(
            asked,
            outcome.map_err(|failure| {
                let may_be_done = failure.may_be_done();
                failure.error(asked, may_be_done)
            }),
        )
    }

    /// Asks until there is an answer, or patience ends.
    async fn repeated<T, F>(
        &self,
        asked: Asked<'_>,
        bytes: u64,
        request: impl Fn() -> F,
    ) -> Result<T, BucketError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let deadline = Instant::now() + self.policy.operation_time(bytes);
        let mut may_be_done = false;
        let mut attempt = 1;
        loop {
            let outcome = self
                .attempt(asked.operation, bytes, deadline, request())
                .await;
            let failure = match outcome {
                Ok(value) => return self.heard(asked, Ok(value)),
                Err(failure) => failure,
            };
            may_be_done |= failure.may_be_done();
            let pause = self.policy.pause(attempt, share(), failure.pause());
            let is_last = attempt >= self.policy.tries_max
                || !failure.is_worth_repeating()
                || Instant::now() + pause >= deadline;
            if is_last {
                return self.heard(asked, Err(failure.error(asked, may_be_done)));
            }
            sleep(pause).await;
            self.state().counters.of_mut(asked.operation).retries += 1;
            attempt += 1;
        }
    }

    /// One attempt, in its place among those under way.
    async fn attempt<T>(
        &self,
        operation: Operation,
        bytes: u64,
        deadline: Instant,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.refuse_while_open()?;
        let Ok(place) = timeout_at(deadline.into(), self.limiter.place()).await else {
            // All places are taken by requests that take long.
            let (pause, is_certain) = (None, true);
            return Err(Failure::Busy { pause, is_certain });
        };
        let began = self.begin(operation)?;
        let left = deadline.saturating_duration_since(began);
        let time = self.policy.attempt_time(bytes).min(left);
        let outcome = timeout(time, request).await.unwrap_or_else(|_| {
            let reason = format!("no answer in {} ms", time.as_millis());
            Err(Failure::TooLate(reason))
        });
        self.note(operation, began, &place, outcome.as_ref().err());
        outcome
    }

    /// Refuses at once while the breaker is open.
    fn refuse_while_open(&self) -> Result<(), Failure> {
        let state = self.state();
        match state.breaker.open_until() {
            Some(until) if Instant::now() < until => {
                Err(Failure::BreakerOpen(state.outage.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Counts an attempt that is about to be sent, unless the breaker keeps it.
    fn begin(&self, operation: Operation) -> Result<Instant, Failure> {
        let now = Instant::now();
        let mut state = self.state();
        if !state.breaker.admits(now) {
            return Err(Failure::BreakerOpen(state.outage.clone()));
        }
        state.counters.of_mut(operation).requests += 1;
        Ok(now)
    }

    /// Tells the limiter and the breaker how an attempt ended.
    fn note(
        &self,
        operation: Operation,
        began: Instant,
        place: &Place<'_>,
        failure: Option<&Failure>,
    ) {
        let mut state = self.state();
        match failure.and_then(|failure| Some((failure, failure.outage()?))) {
            Some((failure, reason)) => {
                let now = Instant::now();
                // Each that waited for nothing counts; those that fail at once, together.
                let is_late = matches!(failure, Failure::TooLate(_));
                state.breaker.failed(now, if is_late { now } else { began });
                state.outage = reason.to_owned();
            }
            None => state.breaker.answered(),
        }
        match failure {
            Some(Failure::Busy { .. }) => {
                state.counters.of_mut(operation).throttled += 1;
                place.throttled();
            }
            Some(failure) if failure.outage().is_some() => {}
            _ => place.answered(),
        }
    }

    /// Notes how an operation ended.
    fn heard<T>(
        &self,
        asked: Asked<'_>,
        outcome: Result<T, BucketError>,
    ) -> Result<T, BucketError> {
        let mut state = self.state();
        let error = outcome.as_ref().err();
        match error.filter(|error| !error.is_of_object()) {
            Some(_) => {
                state.failing_since.get_or_insert_with(SystemTime::now);
            }
            None => state.failing_since = None,
        }
        if let Some(error) = error.filter(|error| !matches!(error, BucketError::NotFound { .. })) {
            state.counters.of_mut(asked.operation).failures += 1;
            state.last_error = Some(error.to_string());
        }
        outcome
    }

    fn count_bytes(&self, operation: Operation, len: usize) {
        self.state().counters.of_mut(operation).bytes += len as u64;
    }

    async fn put_once(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        let asked = self.asked(Operation::Put, key);
        let len = body.len();
        let request = async {
            let put = self
                .client
                .put_object()
                .bucket(&self.bucket)
                .key(self.full(key));
            let sent = put
                .content_type(CONTENT_TYPE)
                .body(ByteStream::from(body))
                .send()
                .await;
            sent.map(|_| ()).map_err(|error| self.failure(asked, error))
        };
        self.once(asked, len as u64, request).await?;
        self.count_bytes(Operation::Put, len);
        Ok(())
    }

    async fn read_range(&self, key: &str, range: &Range<u64>) -> Result<Bytes, Failure> {
        let asked = self.asked(Operation::Get, key);
        let get = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.full(key));
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let sent = get.range(header).send().await;
        let output = sent.map_err(|error| beyond(self.failure(asked, error), range))?;
        held_against(asked, range, &output).map_err(Failure::Said)?;
        let body = collect(asked, output.body, range.end - range.start).await?;
        self.count_bytes(Operation::Get, body.len());
        Ok(body)
    }

    async fn read_whole(&self, key: &str, len_max: u64) -> Result<Bytes, Failure> {
        let asked = self.asked(Operation::Get, key);
        let get = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.full(key));
        let output = get
            .send()
            .await
            .map_err(|error| self.failure(asked, error))?;
        let len = content_length(output.content_length())
            .ok_or_else(|| Failure::Said(lied(asked, "it does not say how long the object is")))?;
        if len > len_max {
            let key = key.to_owned();
            return Err(Failure::Said(BucketError::TooLong { key, len, len_max }));
        }
        let body = collect(asked, output.body, len).await?;
        self.count_bytes(Operation::Get, body.len());
        Ok(body)
    }

    async fn read_len(&self, key: &str) -> Result<Option<u64>, Failure> {
        let asked = self.asked(Operation::Head, key);
        let head = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.full(key));
        match head
            .send()
            .await
            .map_err(|error| self.failure(asked, error))
        {
            Ok(output) => match content_length(output.content_length()) {
                Some(len) => Ok(Some(len)),
                None => Err(Failure::Said(lied(
                    asked,
                    "it does not say how long the object is",
                ))),
            },
            Err(Failure::Said(BucketError::NotFound { .. })) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn read_page(&self, prefix: &str, after: Option<&str>) -> Result<Page, Failure> {
        let asked = self.asked(Operation::List, prefix);
        let full = self.full(prefix);
        let list = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(&full);
        let list = list.set_max_keys(self.page_len.map(i32::from));
        let list = list.set_start_after(after.map(|after| self.full(after)));
        let output = list
            .send()
            .await
            .map_err(|error| self.failure(asked, error))?;
        let page = self
            .page(&output, &full)
            .map_err(|reason| lied(asked, reason));
        let page = page.map_err(Failure::Said)?;
        let keys = after
            .into_iter()
            .chain(page.objects.iter().map(|object| object.key.as_str()));
        if !keys.is_sorted_by(|a, b| a < b) {
            let reason = "its listing is not in the order of keys, or not after the one asked for";
            return Err(Failure::Said(lied(asked, reason)));
        }
        Ok(page)
    }

    /// A page as the server sent it; `full` is what its keys begin with.
    fn page(&self, output: &ListObjectsV2Output, full: &str) -> Result<Page, &'static str> {
        let mut objects = Vec::with_capacity(output.contents().len());
        for object in output.contents() {
            let key = object.key().filter(|key| key.starts_with(full));
            let key = key.and_then(|key| key.strip_prefix(&self.prefix));
            let modified = object
                .last_modified()
                .and_then(|at| SystemTime::try_from(*at).ok());
            objects.push(Object {
                key: key
                    .ok_or("its listing has a key without the prefix")?
                    .to_owned(),
                len: content_length(object.size()).ok_or("its listing has no length")?,
                modified: modified.ok_or("its listing has no date")?,
            });
        }
        let is_last = !output.is_truncated().unwrap_or(false);
        if objects.is_empty() && !is_last {
            return Err("its listing has an empty page that is not the last");
        }
        Ok(Page { objects, is_last })
    }

    async fn delete_once(&self, key: &str) -> Result<(), Failure> {
        let asked = self.asked(Operation::Delete, key);
        let delete = self
            .client
            .delete_object()
            .bucket(&self.bucket)
            .key(self.full(key));
        match delete
            .send()
            .await
            .map_err(|error| self.failure(asked, error))
        {
            Ok(_) | Err(Failure::Said(BucketError::NotFound { .. })) => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}

impl Bucket for S3Bucket {
    fn put<'a>(&'a self, key: &'a str, body: Bytes) -> Answer<'a, ()> {
        Box::pin(async move {
            right_key(key)?;
            self.put_once(key, body).await
        })
    }

    fn get_range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        Box::pin(async move {
            right_key(key)?;
            if range.is_empty() {
                return Ok(Bytes::new());
            }
            let asked = self.asked(Operation::Get, key);
            let request = || self.read_range(key, &range);
            self.repeated(asked, range.end - range.start, request).await
        })
    }

    fn get<'a>(&'a self, key: &'a str, len_max: u64) -> Answer<'a, Bytes> {
        Box::pin(async move {
            right_key(key)?;
            let asked = self.asked(Operation::Get, key);
            self.repeated(asked, len_max, || self.read_whole(key, len_max))
                .await
        })
    }

    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<u64>> {
        Box::pin(async move {
            right_key(key)?;
            let asked = self.asked(Operation::Head, key);
            self.repeated(asked, 0, || self.read_len(key)).await
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> Answer<'a, Page> {
        Box::pin(async move {
            if let Some(wrong) = [Some(prefix), after]
                .into_iter()
                .flatten()
                .find(|text| !is_key_prefix(text))
            {
                let key = wrong.to_owned();
                return Err(BucketError::Key { key });
            }
            let asked = self.asked(Operation::List, prefix);
            self.repeated(asked, 0, || self.read_page(prefix, after))
                .await
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            right_key(key)?;
            let asked = self.asked(Operation::Delete, key);
            self.repeated(asked, 0, || self.delete_once(key)).await
        })
    }

    fn counters(&self) -> Counters {
        self.state().counters.clone()
    }

    fn health(&self) -> Health {
        let state = self.state();
        let now = Instant::now();
        let left = state
            .breaker
            .open_until()
            .map(|until| until.saturating_duration_since(now));
        Health {
            last_error: state.last_error.clone(),
            failing_since: state.failing_since,
            breaker_open_until: left.map(|left| SystemTime::now() + left),
            clock_ahead_seconds: self.clock.ahead_seconds(),
        }
    }
}

impl fmt::Debug for S3Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("S3Bucket");
        shown
            .field("name", &self.name)
            .field("prefix", &self.prefix);
        shown.finish_non_exhaustive()
    }
}

impl S3Options {
    /// Whether they are right in themselves.
    ///
    /// **Errors**: what is not.
    pub fn check(&self) -> Result<(), S3OptionsError> {
        if let Some(endpoint) = self
            .endpoint
            .as_ref()
            .filter(|endpoint| !is_endpoint(endpoint))
        {
            return Err(S3OptionsError::Endpoint(endpoint.clone()));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        let is_name = |text: &str, lens: Range<usize>| {
            lens.contains(&text.len()) && text.bytes().all(is_plain)
        };
        if !is_name(&self.bucket, 3..64) {
            return Err(S3OptionsError::Bucket(self.bucket.clone()));
        }
        if !is_key_prefix(&self.prefix) || self.prefix.starts_with('/') {
            return Err(S3OptionsError::Prefix(self.prefix.clone()));
        }
        match self
            .region
            .as_ref()
            .filter(|region| !is_name(region, 1..64))
        {
            Some(region) => Err(S3OptionsError::Region(region.clone())),
            None => Ok(()),
        }
    }
}

fn is_endpoint(text: &str) -> bool {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'@' | b'?' | b'#');
    rest.is_some_and(|rest| {
        !rest.is_empty() && !rest.starts_with('/') && rest.bytes().all(is_plain)
    })
}

fn client(options: &S3Options, clock: &Arc<ServerClock>) -> Client {
    let region = options.region.clone().unwrap_or_else(|| REGION.to_owned());
    let Credentials {
        key_id,
        secret,
        session_token,
    } = &options.credentials;
    let token = session_token.as_ref().map(|token| token.to_string());
    let credentials =
        aws_sdk_s3::config::Credentials::new(key_id, secret.as_str(), token, None, "attic-node");
    let times = TimeoutConfig::builder().connect_timeout(options.policy.connect_time_max);
    let mut config = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region))
        .credentials_provider(credentials)
        .force_path_style(options.path_style.unwrap_or(options.endpoint.is_some()))
        .disable_s3_express_session_auth(true)
        .retry_config(RetryConfig::disabled())
        .timeout_config(times.build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .http_client(http_client(options))
        .interceptor(ClockReader(Arc::clone(clock)));
    config.set_endpoint_url(options.endpoint.clone());
    Client::from_conf(config.build())
}

/// The client of the SDK. Without TLS it needs no certificates, which a machine may not have.
fn http_client(options: &S3Options) -> SharedHttpClient {
    let is_plain = options
        .endpoint
        .as_ref()
        .is_some_and(|url| url.starts_with("http://"));
    let roots = TrustStore::empty().with_native_roots(!is_plain);
    let context = TlsContext::builder().with_trust_store(roots).build();
    aws_smithy_http_client::Builder::new()
        .pool_idle_timeout(IDLE_TIME_MAX)
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(context.expect("it is valid without certificates of our own"))
        .build_https()
}

fn right_key(key: &str) -> Result<(), BucketError> {
    match is_key(key) {
        true => Ok(()),
        false => Err(BucketError::Key {
            key: key.to_owned(),
        }),
    }
}

/// Fills in the range that an object has no byte of.
fn beyond(failure: Failure, range: &Range<u64>) -> Failure {
    match failure {
        Failure::Said(BucketError::Truncated { key, len, .. }) => {
            let (len, wanted) = (len.min(range.start), range.end);
            Failure::Said(BucketError::Truncated { key, len, wanted })
        }
        failure => failure,
    }
}

/// Whether the head of an answer is that of exactly this range.
fn held_against(
    asked: Asked<'_>,
    range: &Range<u64>,
    output: &GetObjectOutput,
) -> Result<(), BucketError> {
    let len = content_length(output.content_length());
    let Some(sent) = output.content_range() else {
        // It sends the whole object, which may be what was asked for.
        if range.start == 0 && len == Some(range.end) {
            return Ok(());
        }
        return Err(lied(
            asked,
            "it sends something else than the range asked for",
        ));
    };
    let Some((first, end, total)) = parse_content_range(sent) else {
        return Err(lied(asked, "its Content-Range is none"));
    };
    if first == range.start && end < range.end && total == Some(end) {
        let key = asked.key.to_owned();
        let wanted = range.end;
        return Err(BucketError::Truncated {
            key,
            len: end,
            wanted,
        });
    }
    if (first, end) != (range.start, range.end) {
        return Err(lied(asked, "its Content-Range is not the one asked for"));
    }
    if len.is_some_and(|len| len != range.end - range.start) {
        return Err(lied(
            asked,
            "its Content-Length does not fit its Content-Range",
        ));
    }
    Ok(())
}

/// First byte, end and total of `bytes 0-3/10`; the total may be `*`.
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    let end = last.checked_add(1)?;
    (first < end && total.is_none_or(|total| end <= total)).then_some((first, end, total))
}

/// All bytes of a body that is exactly `len` long.
async fn collect(asked: Asked<'_>, mut body: ByteStream, len: u64) -> Result<Bytes, Failure> {
    let cut = |read: usize, reason: &str| {
        Failure::Cut(format!("it announced {len} bytes and sent {read}{reason}"))
    };
    let mut read = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece =
            piece.map_err(|error| cut(read.len(), &format!(": {}", failure::innermost(&error))))?;
        if (read.len() + piece.len()) as u64 > len {
            return Err(Failure::Said(lied(
                asked,
                "it sends more than it announced",
            )));
        }
        if read.is_empty() {
            if piece.len() as u64 == len {
                return Ok(piece);
            }
            // It fits: the caller wants that much in one piece.
            read.reserve(usize::try_from(len).unwrap_or(0).min(RESERVE_MAX));
        }
        read.extend_from_slice(&piece);
    }
    match read.len() as u64 == len {
        true => Ok(read.freeze()),
        false => Err(cut(read.len(), "")),
    }
}

fn content_length(len: Option<i64>) -> Option<u64> {
    len.and_then(|len| u64::try_from(len).ok())
}

/// A random share, for jitter.
fn share() -> f64 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the system's random source works");
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// What AWS's tools assume as well.
const REGION: &str = "us-east-1";
const CONTENT_TYPE: &str = "application/octet-stream";
/// Shorter than servers keep connections open, so that few requests meet one that is just closed.
const IDLE_TIME_MAX: Duration = Duration::from_secs(30);
/// Memory that is taken before the bytes for it have come.
const RESERVE_MAX: usize = 16 << 20;

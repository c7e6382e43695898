//! A proxy that breaks what passes through it, as told, and keeps the books.
//!
//! It forwards HTTP requests one by one, streaming both bodies. What is broken is decided per
//! request by a function of its head, so a test says exactly what it needs; [`FaultProxy::seeded`]
//! is the ready-made one that fails a share of all requests.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HOST, RANGE};
use hyper::service::service_fn;
use hyper::{Request, Response, client, server};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use crate::program::eventually;
use crate::seed::Seed;

/// How long a cut connection stays open after its last byte.
const LINGER: Duration = Duration::from_millis(100);

/// What the proxy knows when it decides about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Position among all requests of this proxy, from 0.
    pub number: usize,
    /// `GET`, `PUT` …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The `Range` header.
    pub range: Option<String>,
}

/// What to do to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Answer with this status without asking the node.
    Status(u16),
    /// Close the connection without asking the node.
    Close,
    /// Let the node do what is asked, then close the connection instead of answering.
    LoseAnswer,
    /// Close the connection after this many bytes of the answer's body.
    CutAnswer(u64),
    /// Close both connections after this many bytes of the request's body.
    CutRequest(u64),
    /// Wait until [`FaultProxy::release`], then pass it on.
    Hold,
}

/// One request and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The request.
    pub head: Head,
    /// What the proxy did to it.
    pub fault: Fault,
    /// Status the client saw, if it saw one.
    pub status: Option<u16>,
    /// Bytes of its body that passed.
    pub request_bytes: u64,
    /// Bytes of the answer's body that passed.
    pub answer_bytes: u64,
}

/// A proxy on a port of its own, gone when dropped.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Holds every task of the proxy; ends them when dropped.
    _runtime: Runtime,
}

struct Shared {
    upstream: Mutex<SocketAddr>,
    decide: Decide,
    body_len_max: Option<u64>,
    /// How long each request waits before it is passed on.
    delay: Duration,
    requests: Mutex<Vec<Arc<Record>>>,
    /// True once held requests may go on.
    released: watch::Sender<bool>,
}

type Decide = Box<dyn Fn(&Head) -> Fault + Send + Sync>;
type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// An exchange under way.
struct Record {
    head: Head,
    fault: Fault,
    /// 0 while the client has seen none.
    status: AtomicU64,
    request_bytes: AtomicU64,
    answer_bytes: AtomicU64,
}

impl FaultProxy {
    /// A proxy that breaks nothing.
    pub fn clean(upstream: SocketAddr) -> FaultProxy {
        FaultProxy::new(upstream, |_| Fault::None)
    }

    /// A proxy that fails this share of all requests, in every way a network has: an error status,
    /// a closed connection, a request cut short, an answer lost after the work was done.
    pub fn seeded(upstream: SocketAddr, seed: Seed, share: f64) -> FaultProxy {
        let seed = Mutex::new(seed);
        FaultProxy::new(upstream, move |_| {
            let mut seed = lock(&seed);
            if !seed.chance(share) {
                return Fault::None;
            }
            match seed.below(5) {
                0 => Fault::Status(502),
                1 => Fault::Status(503),
                2 => Fault::Close,
                3 => Fault::LoseAnswer,
                _ => Fault::CutRequest(seed.below(1 << 20)),
            }
        })
    }

    /// A proxy that breaks what `decide` says.
    pub fn new(
        upstream: SocketAddr,
        decide: impl Fn(&Head) -> Fault + Send + Sync + 'static,
    ) -> FaultProxy {
        FaultProxy::build(upstream, Box::new(decide), None, Duration::ZERO)
    }

    /// A proxy that answers 413 to every request body longer than `body_len_max`, as the proxies
    /// of hosting services do.
    pub fn limiting(upstream: SocketAddr, body_len_max: u64) -> FaultProxy {
        let decide = Box::new(|_: &Head| Fault::None);
        FaultProxy::build(upstream, decide, Some(body_len_max), Duration::ZERO)
    }

    /// A proxy through which everything takes so much longer.
    pub fn delaying(upstream: SocketAddr, delay: Duration) -> FaultProxy {
        FaultProxy::build(upstream, Box::new(|_| Fault::None), None, delay)
    }

    fn build(
        upstream: SocketAddr,
        decide: Decide,
        body_len_max: Option<u64>,
        delay: Duration,
    ) -> FaultProxy {
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            decide,
            body_len_max,
            delay,
            requests: Mutex::default(),
            released: watch::Sender::new(false),
        });
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.expect("start a runtime");
        let listener = runtime
            .block_on(TcpListener::bind(("127.0.0.1", 0)))
            .expect("bind");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        FaultProxy {
            address,
            shared,
            _runtime: runtime,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// URL of a cache behind it.
    pub fn url(&self, cache: &str) -> String {
        format!("http://{}/{cache}", self.address)
    }

    /// From now on forwards to `upstream`: the node was restarted on another port.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        *lock(&self.shared.upstream) = upstream;
    }

    /// Lets all held requests go on, and those to come.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }

    /// All requests so far, in the order in which they came.
    pub fn log(&self) -> Vec<Exchange> {
        lock(&self.shared.requests)
            .iter()
            .map(|record| record.exchange())
            .collect()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        lock(&self.shared.requests).clear();
    }

    /// Bytes of request bodies that passed so far.
    pub fn request_bytes(&self) -> u64 {
        self.log()
            .iter()
            .map(|exchange| exchange.request_bytes)
            .sum()
    }

    /// Waits until this many bytes of request bodies have passed.
    #[track_caller]
    pub fn wait_for_request_bytes(&self, bytes: u64) {
        let what = format!("{bytes} bytes of request bodies");
        eventually(&what, Duration::from_secs(60), || {
            (self.request_bytes() >= bytes).then_some(())
        });
    }

    /// Waits until a request is held.
    #[track_caller]
    pub fn wait_for_held_request(&self) {
        eventually("a request to be held", Duration::from_secs(60), || {
            self.log()
                .iter()
                .any(|exchange| exchange.fault == Fault::Hold)
                .then_some(())
        });
    }

    /// How many requests there were of each method and route, for messages.
    pub fn summary(&self) -> BTreeMap<String, usize> {
        let mut summary = BTreeMap::new();
        for Exchange { head, .. } in self.log() {
            *summary
                .entry(format!("{} {}", head.method, route(&head.target)))
                .or_default() += 1;
        }
        summary
    }
}

impl Debug for FaultProxy {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_struct("FaultProxy")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Record {
    fn exchange(&self) -> Exchange {
        let status = self.status.load(Ordering::Relaxed);
        Exchange {
            head: self.head.clone(),
            fault: self.fault,
            status: u16::try_from(status).ok().filter(|&status| status != 0),
            request_bytes: self.request_bytes.load(Ordering::Relaxed),
            answer_bytes: self.answer_bytes.load(Ordering::Relaxed),
        }
    }

    fn saw(&self, status: u16) {
        self.status.store(u64::from(status), Ordering::Relaxed);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        let _ = stream.set_nodelay(true);
        let serve = service_fn(move |request| handle(request, Arc::clone(&shared)));
        let connection = server::conn::http1::Builder::new()
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(stream), serve);
        // It ends with an error whenever a fault closes it: that is the point.
        tokio::spawn(async move { drop(connection.await) });
    }
}

/// Answers one request. An error closes the client's connection.
async fn handle(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<BoxBody<Bytes, AnyError>>, AnyError> {
    let record = shared.record(&request);
    let declared = request.body().size_hint().exact().unwrap_or(0);
    if shared.body_len_max.is_some_and(|max| declared > max) {
        return Ok(plain(&record, 413));
    }
    if !shared.delay.is_zero() {
        sleep(shared.delay).await;
    }
    match record.fault {
        Fault::Status(status) => return Ok(plain(&record, status)),
        Fault::Close => return Err("closed on purpose".into()),
        Fault::Hold => drop(
            shared
                .released
                .subscribe()
                .wait_for(|released| *released)
                .await?,
        ),
        Fault::None | Fault::LoseAnswer | Fault::CutAnswer(_) | Fault::CutRequest(_) => {}
    }
    let answer = forward(request, &shared, &record).await?;
    let (head, body) = answer.into_parts();
    if record.fault == Fault::LoseAnswer {
        // The node has done its work once its whole answer is here.
        body.collect().await?;
        return Err("answer lost on purpose".into());
    }
    record.saw(head.status.as_u16());
    let cut = match record.fault {
        Fault::CutAnswer(after) => Some(after),
        _ => None,
    };
    let body = Metered::new(
        body,
        Arc::clone(&record),
        |record| &record.answer_bytes,
        cut,
        None,
    );
    Ok(Response::from_parts(head, body.boxed()))
}

/// Sends the request to the node over a connection of its own.
async fn forward(
    request: Request<Incoming>,
    shared: &Shared,
    record: &Arc<Record>,
) -> Result<Response<Incoming>, AnyError> {
    let upstream = *lock(&shared.upstream);
    let stream = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(async move { drop(connection.await) });
    let cut = match record.fault {
        Fault::CutRequest(after) => Some(after),
        _ => None,
    };
    let max = shared.body_len_max;
    let (mut head, body) = request.into_parts();
    head.headers.entry(HOST).or_insert_with(|| {
        upstream
            .to_string()
            .parse()
            .expect("an address is a header value")
    });
    let body = Metered::new(
        body,
        Arc::clone(record),
        |record| &record.request_bytes,
        cut,
        max,
    );
    Ok(sender.send_request(Request::from_parts(head, body)).await?)
}

impl Shared {
    fn record(&self, request: &Request<Incoming>) -> Arc<Record> {
        let target = request
            .uri()
            .path_and_query()
            .map_or("", |target| target.as_str());
        let range = request
            .headers()
            .get(RANGE)
            .and_then(|range| range.to_str().ok());
        let mut requests = lock(&self.requests);
        let head = Head {
            number: requests.len(),
            method: request.method().to_string(),
            target: target.to_owned(),
            range: range.map(str::to_owned),
        };
        let fault = (self.decide)(&head);
        let record = Arc::new(Record {
            head,
            fault,
            status: AtomicU64::new(0),
            request_bytes: AtomicU64::new(0),
            answer_bytes: AtomicU64::new(0),
        });
        requests.push(Arc::clone(&record));
        record
    }
}

/// A body that is counted on its way, and ends with an error where it is to be cut.
struct Metered {
    inner: Incoming,
    record: Arc<Record>,
    counter: fn(&Record) -> &AtomicU64,
    cut_after: Option<u64>,
    len_max: Option<u64>,
    passed: u64,
    /// Set once something was held back: when it is over, the body ends with an error. hyper
    /// sends what it was given meanwhile, and would forget it otherwise.
    cut: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    fn new(
        inner: Incoming,
        record: Arc<Record>,
        counter: fn(&Record) -> &AtomicU64,
        cut_after: Option<u64>,
        len_max: Option<u64>,
    ) -> Metered {
        Metered {
            inner,
            record,
            counter,
            cut_after,
            len_max,
            passed: 0,
            cut: None,
        }
    }

    /// The part of `data` that may still pass.
    fn meter(&mut self, mut data: Bytes) -> Result<Bytes, AnyError> {
        let left = self.cut_after.map_or(u64::MAX, |limit| limit - self.passed);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        if data.len() > left {
            self.cut = Some(Box::pin(sleep(LINGER)));
        }
        data.truncate(left);
        self.passed += data.len() as u64;
        (self.counter)(&self.record).fetch_add(data.len() as u64, Ordering::Relaxed);
        match self.len_max {
            Some(max) if self.passed > max => Err("body too long".into()),
            _ => Ok(data),
        }
    }
}

impl Body for Metered {
    type Data = Bytes;
    type Error = AnyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnyError>>> {
        if let Some(linger) = &mut self.cut {
            return linger
                .as_mut()
                .poll(context)
                .map(|()| Some(Err("cut on purpose".into())));
        }
        let frame = match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        Poll::Ready(Some(match frame.into_data() {
            Ok(data) => self.meter(data).map(Frame::data),
            Err(trailers) => Ok(trailers),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.cut.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn plain(record: &Record, status: u16) -> Response<BoxBody<Bytes, AnyError>> {
    record.saw(status);
    let body = Full::from("injected by the test\n").map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = status.try_into().expect("a status code");
    response
}

/// A target without what is particular to one path or session.
fn route(target: &str) -> String {
    let particular = |part: &&str| !(part.len() >= 32 && part.is_ascii());
    target
        .split('/')
        .filter(particular)
        .collect::<Vec<_>>()
        .join("/")
}

/// The value of a lock that a failed test may have left poisoned: the books stay readable.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

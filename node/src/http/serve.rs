//! The accept loop: connections come, are watched, and finish.
//!
//! Each listener has one loop that owns its connections. At the limit, the connection that waits for
//! longest makes way for a new one: whoever parks connections cannot keep a build's client out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::http::connection::{Activity, Timeouts, Verdict, Watched};
use crate::http::error::chain;
use crate::http::{ConnectionService, Door};

/// How a listener treats its connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServeOptions {
    pub(crate) connections_max: usize,
    pub(crate) timeouts: Timeouts,
    /// Time that requests under way get after the stop.
    pub(crate) shutdown: Duration,
}

/// Serves until `stop` turns true, then finishes what was accepted.
///
/// Dropping the future closes all connections at once.
pub(crate) async fn serve<L: Listener>(
    mut listener: L,
    door: Door,
    options: ServeOptions,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = Connections::new(door, options);
    let mut sweep = interval(sweep_period(&options.timeouts));
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            (stream, _) = listener.accept() => connections.admit(stream),
            done = connections.next_done() => connections.forget(done),
            _ = sweep.tick() => connections.sweep(),
        }
    }
    drop(listener);
    connections.finish().await;
}

/// Often enough that no time-out is late by more than a quarter.
fn sweep_period(timeouts: &Timeouts) -> Duration {
    let shortest = timeouts.head.min(timeouts.idle).min(timeouts.send);
    (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
}

/// The connections of one listener.
struct Connections {
    door: Door,
    options: ServeOptions,
    http: http1::Builder,
    start: Instant,
    tasks: JoinSet<()>,
    table: HashMap<Id, (Arc<Activity>, AbortHandle)>,
    graceful: GracefulShutdown,
}

type Done = Result<(Id, ()), JoinError>;

impl Connections {
    fn new(door: Door, options: ServeOptions) -> Connections {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            // Heads are timed by the sweep, which costs nothing per request.
            .header_read_timeout(None)
            .max_header_size(HEAD_LEN_MAX)
            .max_buf_size(BUFFER_LEN_MAX)
            // A client may end its sending side once it has asked.
            .half_close(true);
        Connections {
            door,
            options,
            http,
            start: Instant::now(),
            tasks: JoinSet::new(),
            table: HashMap::new(),
            graceful: GracefulShutdown::new(),
        }
    }

    /// Serves a new connection, or closes it when the limit is reached and none waits.
    fn admit<S>(&mut self, stream: S)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        if self.table.len() >= self.options.connections_max && !self.close_longest_waiting() {
            self.door.app.metrics.connections_refused.inc();
            return;
        }
        let activity = Arc::new(Activity::new(self.start));
        let service = ConnectionService::new(self.door.clone(), &activity);
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
        let connection = self.graceful.watch(self.http.serve_connection(io, service));
        let handle = self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(cause = chain(&error), "connection ended");
            }
        });
        self.table.insert(handle.id(), (activity, handle));
        self.door.app.metrics.connections.inc();
    }

    /// The next connection that ended; never, if there is none.
    async fn next_done(&mut self) -> Done {
        match self.tasks.join_next_with_id().await {
            Some(done) => done,
            None => std::future::pending().await,
        }
    }

    fn forget(&mut self, done: Done) {
        let id = match &done {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        if let Err(error) = done
            && error.is_panic()
        {
            tracing::error!(cause = chain(&error), "a connection's task panicked");
        }
        if self.table.remove(&id).is_some() {
            self.door.app.metrics.connections.dec();
        }
    }

    /// Closes what takes too long.
    fn sweep(&mut self) {
        let now = Instant::now();
        for (activity, handle) in self.table.values() {
            if let Verdict::Close(reason) = activity.judge(now, &self.options.timeouts) {
                tracing::debug!(reason, "connection closed");
                handle.abort();
            }
        }
    }

    /// Makes room by closing the connection that waits for longest, rather one between requests
    /// than one inside a head; false if none waits.
    fn close_longest_waiting(&mut self) -> bool {
        let now = Instant::now();
        let waiting = self.table.iter().filter_map(|(id, (activity, _))| {
            match activity.judge(now, &self.options.timeouts) {
                Verdict::Close(_) => Some((0, 0, *id)),
                Verdict::Idle(since) => Some((1, since, *id)),
                Verdict::Head(since) => Some((2, since, *id)),
                Verdict::Busy => None,
            }
        });
        let longest = waiting.min_by_key(|(rank, since, _)| (*rank, *since));
        let Some((_, _, id)) = longest else {
            return false;
        };
        if let Some((_, handle)) = self.table.remove(&id) {
            handle.abort();
            self.door.app.metrics.connections.dec();
        }
        true
    }

    /// Lets requests under way finish, up to the bound; idle connections close at once.
    async fn finish(mut self) {
        // Taken out: shutting down consumes it, and it waits for every watched connection.
        let graceful = std::mem::take(&mut self.graceful);
        if timeout(self.options.shutdown, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = self.table.len(),
                "closing connections still in use"
            );
        }
        self.tasks.shutdown().await;
        let left = i64::try_from(self.table.len()).unwrap_or(i64::MAX);
        self.door.app.metrics.connections.dec_by(left);
    }
}

/// Longest head of a request.
const HEAD_LEN_MAX: usize = 32 << 10;
/// Bytes hyper buffers in each direction of a connection: as many, and a block, wait for a client that
/// does not read.
const BUFFER_LEN_MAX: usize = 128 << 10;

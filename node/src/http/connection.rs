//! What one connection is doing, and for how long it may.
//!
//! The connection's task notes reads, writes and requests in atomics; the accept loop looks at all
//! of them from time to time and closes those that take too long. Nothing is armed per request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Marks of one connection. Times are milliseconds since `start`, plus one: 0 means never.
#[derive(Debug)]
pub(crate) struct Activity {
    start: Instant,
    /// Requests whose answer is not wholly handed over.
    requests: AtomicU32,
    /// When the first byte of a request head came that is not complete.
    head_since: AtomicU64,
    /// When the last byte moved.
    moved_at: AtomicU64,
    /// When the client stopped taking bytes.
    blocked_since: AtomicU64,
}

/// How long a connection may take for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// To send the head of a request, from its first byte; for the first one, from connecting.
    pub(crate) head: Duration,
    /// To begin another request.
    pub(crate) idle: Duration,
    /// To take some bytes of an answer.
    pub(crate) send: Duration,
}

/// What to do about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is at work.
    Busy,
    /// It waits for a request since then (comparable between connections of one server).
    Idle(u64),
    /// It waits for the rest of a request's head since then.
    Head(u64),
    /// It took too long.
    Close(&'static str),
}

impl Activity {
    /// A connection that came just now, on a server that began at `start`.
    pub(crate) fn new(start: Instant) -> Activity {
        let now = mark(start, Instant::now());
        Activity {
            start,
            requests: AtomicU32::new(0),
            head_since: AtomicU64::new(now),
            moved_at: AtomicU64::new(now),
            blocked_since: AtomicU64::new(0),
        }
    }

    /// Notes that a request came; it is under way until the result is dropped.
    pub(crate) fn begin(self: &Arc<Activity>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        Busy {
            activity: Arc::clone(self),
        }
    }

    /// Judges the connection at `now`.
    pub(crate) fn judge(&self, now: Instant, timeouts: &Timeouts) -> Verdict {
        let now = mark(self.start, now);
        let expired = |since: u64, limit: Duration| {
            since != 0 && u128::from(now.saturating_sub(since)) > limit.as_millis()
        };
        let blocked = self.blocked_since.load(Ordering::Relaxed);
        if expired(blocked, timeouts.send) {
            return Verdict::Close("client takes no more bytes");
        }
        if blocked != 0 || self.requests.load(Ordering::Relaxed) > 0 {
            return Verdict::Busy;
        }
        let head = self.head_since.load(Ordering::Relaxed);
        if head != 0 {
            let slow = expired(head, timeouts.head);
            return if slow {
                Verdict::Close("request head takes too long")
            } else {
                Verdict::Head(head)
            };
        }
        let moved = self.moved_at.load(Ordering::Relaxed);
        if expired(moved, timeouts.idle) {
            Verdict::Close("idle")
        } else {
            Verdict::Idle(moved)
        }
    }

    fn now(&self) -> u64 {
        mark(self.start, Instant::now())
    }

    fn read_some(&self) {
        let now = self.now();
        self.moved_at.store(now, Ordering::Relaxed);
        let between_requests = self.requests.load(Ordering::Relaxed) == 0;
        if between_requests && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(now, Ordering::Relaxed);
        }
    }

    fn wrote_some(&self) {
        self.moved_at.store(self.now(), Ordering::Relaxed);
        self.blocked_since.store(0, Ordering::Relaxed);
    }

    fn blocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) == 0 {
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }
}

fn mark(start: Instant, now: Instant) -> u64 {
    let millis = now.saturating_duration_since(start).as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX - 1) + 1
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Busy {
    activity: Arc<Activity>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.activity
            .moved_at
            .store(self.activity.now(), Ordering::Relaxed);
        self.activity.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that notes what moves.
pub(crate) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S> Watched<S> {
    pub(crate) fn new(stream: S, activity: Arc<Activity>) -> Watched<S> {
        Watched { stream, activity }
    }

    fn note_write(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(_) => self.activity.wrote_some(),
            Poll::Pending => self.activity.blocked(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.read_some();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(90),
        send: Duration::from_secs(600),
    };

    /// A connection made at the start of its server, judged after so many seconds.
    fn judge(activity: &Activity, seconds: u64) -> Verdict {
        activity.judge(activity.start + Duration::from_secs(seconds), &TIMEOUTS)
    }

    fn connection() -> Arc<Activity> {
        Arc::new(Activity::new(Instant::now()))
    }

    #[test]
    fn a_client_that_sends_no_head_is_closed() {
        let activity = connection();
        assert!(matches!(judge(&activity, 9), Verdict::Head(_)));
        assert_eq!(
            judge(&activity, 12),
            Verdict::Close("request head takes too long")
        );
    }

    #[test]
    fn slow_bytes_do_not_extend_the_time_for_a_head() {
        let activity = connection();
        drop(activity.begin());
        assert!(matches!(judge(&activity, 1), Verdict::Idle(_)));
        activity.read_some();
        activity.read_some();
        assert!(matches!(judge(&activity, 9), Verdict::Head(_)));
        assert_eq!(
            judge(&activity, 12),
            Verdict::Close("request head takes too long")
        );
    }

    #[test]
    fn a_request_may_take_long_but_a_client_that_stops_reading_may_not() {
        let activity = connection();
        let busy = activity.begin();
        assert_eq!(judge(&activity, 100_000), Verdict::Busy);
        activity.blocked();
        assert_eq!(judge(&activity, 599), Verdict::Busy);
        assert_eq!(
            judge(&activity, 602),
            Verdict::Close("client takes no more bytes")
        );
        activity.wrote_some();
        assert_eq!(judge(&activity, 100_000), Verdict::Busy);
        drop(busy);
        assert!(matches!(judge(&activity, 89), Verdict::Idle(_)));
        assert_eq!(judge(&activity, 92), Verdict::Close("idle"));
    }
}

//! Notices when a request stands still: a pulse that beats with every piece that moves.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::sleep;

/// When something last moved; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Pulse {
    start: Instant,
    /// Milliseconds after `start`.
    last: Arc<AtomicU64>,
}

impl Pulse {
    /// Beats for the first time.
    pub(super) fn new() -> Pulse {
        Pulse {
            start: Instant::now(),
            last: Arc::default(),
        }
    }

    /// Something moved.
    pub(super) fn beat(&self) {
        self.last.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// Returns once nothing has moved for `limit`. Dropping it is safe.
    pub(super) async fn silent_for(&self, limit: Duration) {
        loop {
            let still = self
                .elapsed_ms()
                .saturating_sub(self.last.load(Ordering::Relaxed));
            let left = limit.saturating_sub(Duration::from_millis(still));
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A body of known length that beats whenever the connection takes a piece of it.
#[derive(Debug)]
pub(super) struct Paced {
    segments: VecDeque<Bytes>,
    len: u64,
    pulse: Pulse,
}

impl Paced {
    pub(super) fn new(segments: &[Bytes], pulse: Pulse) -> Paced {
        let len = segments.iter().map(|segment| segment.len() as u64).sum();
        let segments = segments
            .iter()
            .filter(|segment| !segment.is_empty())
            .cloned()
            .collect();
        Paced {
            segments,
            len,
            pulse,
        }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(segment) = self.segments.front_mut() else {
            return Poll::Ready(None);
        };
        let piece = segment.split_to(segment.len().min(PIECE_LEN));
        if segment.is_empty() {
            self.segments.pop_front();
        }
        self.len -= piece.len() as u64;
        self.pulse.beat();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.len == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len)
    }
}

/// At a link of 10 kB/s a piece still moves every few seconds.
const PIECE_LEN: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_body_is_its_segments_in_pieces() {
        let segments = [vec![1; PIECE_LEN + 5], vec![], vec![2; 7]].map(Bytes::from);
        let mut body = Paced::new(&segments, Pulse::new());
        let (mut lens, mut left) = (Vec::new(), PIECE_LEN as u64 + 12);
        loop {
            assert_eq!(body.size_hint().exact(), Some(left));
            match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Ok(frame))) => {
                    let piece = frame.into_data().unwrap();
                    left -= piece.len() as u64;
                    lens.push(piece.len());
                }
                Poll::Ready(None) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(body.is_end_stream());
        assert_eq!(lens, [PIECE_LEN, 5, 7]);
    }
}

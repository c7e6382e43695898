//! One stream of an asking peer.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attic_p2p::bulk::{BulkReceiver, BulkSender, BulkStream};
use attic_p2p::ids::ClusterId;
use attic_p2p::wire::{Decoder, Frame};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Incoming, StreamId};
use crate::http::error::chain;
use crate::mesh::exchange::{BanCause, Exchange};
use crate::mesh::link::{
    HELLO_DEADLINE, LinkError, Misdeed, SEND_DEADLINE, check_greeting, greeting,
};

/// What a stream needs of the rest.
pub(super) struct StreamParts {
    pub(super) id: StreamId,
    pub(super) cluster: ClusterId,
    pub(super) exchange: Exchange,
    pub(super) pace: Arc<Pace>,
    pub(super) inbox: mpsc::Sender<Incoming>,
}

/// Serves a stream to its end, and says so.
pub(super) async fn serve_stream(
    stream: BulkStream,
    frames: mpsc::Receiver<Frame>,
    parts: StreamParts,
) {
    let (sender, receiver) = stream.split();
    let outcome = tokio::select! {
        outcome = write(sender, frames, &parts) => outcome,
        outcome = read(receiver, &parts) => outcome,
    };
    let peer = parts.id.peer;
    match outcome {
        Ok(()) => {}
        Err(LinkError::Misdeed(misdeed)) => {
            parts
                .exchange
                .ban(peer, BanCause::Protocol, &misdeed.to_string());
        }
        Err(error) => tracing::debug!(%peer, cause = chain(&error), "stream ended"),
    }
    let _ = parts.inbox.send(Incoming::Over(parts.id)).await;
}

/// Hands questions to the provider until there are no more.
async fn read(mut receiver: BulkReceiver, parts: &StreamParts) -> Result<(), LinkError> {
    let mut decoder = Decoder::new();
    let mut greeted = false;
    loop {
        let bytes = if greeted {
            receiver.receive().await?
        } else {
            let greeting = timeout(HELLO_DEADLINE, receiver.receive()).await;
            greeting.map_err(|_| LinkError::Stuck)??
        };
        let Some(bytes) = bytes else {
            return Ok(());
        };
        decoder.feed(&bytes);
        while let Some(frame) = decoder.next().map_err(Misdeed::Wire)? {
            if let Frame::Hello(hello) = frame {
                check_greeting(&hello, parts.cluster, greeted)?;
                greeted = true;
                continue;
            }
            if !greeted {
                return Err(Misdeed::Greeting.into());
            }
            let told = parts.inbox.send(Incoming::Frame(parts.id, frame)).await;
            if told.is_err() {
                return Ok(());
            }
        }
    }
}

/// Sends what the provider wants sent, until it wants no more.
async fn write(
    mut sender: BulkSender,
    mut frames: mpsc::Receiver<Frame>,
    parts: &StreamParts,
) -> Result<(), LinkError> {
    send(&mut sender, &greeting(parts.cluster)).await?;
    while let Some(frame) = frames.recv().await {
        let bytes = match &frame {
            Frame::Data { bytes, .. } | Frame::Manifest { bytes, .. } => bytes.len() as u64,
            _ => 0,
        };
        if bytes > 0 {
            parts.pace.wait(bytes).await;
        }
        send(&mut sender, &frame).await?;
        if bytes > 0 {
            parts.exchange.traffic().sent(parts.id.peer, bytes);
            let sent = Incoming::Sent(parts.id, bytes);
            if parts.inbox.send(sent).await.is_err() {
                break;
            }
        }
    }
    Ok(())
}

async fn send(sender: &mut BulkSender, frame: &Frame) -> Result<(), LinkError> {
    let frame = frame.encode();
    let sent = timeout(SEND_DEADLINE, sender.send(&frame.head, &frame.body)).await;
    Ok(sent.map_err(|_| LinkError::Stuck)??)
}

/// The rate at which all streams together send.
///
/// Everybody takes a slice of time in the order they come; time not used for a while is lost but for
/// a [`BURST`].
pub(crate) struct Pace {
    rate: Option<NonZeroU64>,
    /// When the next bytes may leave.
    free_at: Mutex<Instant>,
}

impl Pace {
    /// At most `rate` bytes a second; `None`: as fast as can be.
    pub(crate) fn new(rate: Option<NonZeroU64>) -> Pace {
        let free_at = Mutex::new(Instant::now());
        Pace { rate, free_at }
    }

    /// Bytes that may leave in a second, at most.
    pub(crate) fn per_second(&self) -> u64 {
        self.rate.map_or(u64::MAX, NonZeroU64::get)
    }

    /// Waits until `bytes` may leave. Dropping it wastes the slice.
    pub(crate) async fn wait(&self, bytes: u64) {
        if let Some(rate) = self.rate {
            sleep_until(self.slice(Instant::now(), bytes, rate)).await;
        }
    }

    fn slice(&self, now: Instant, bytes: u64, rate: NonZeroU64) -> Instant {
        let micros = bytes.saturating_mul(1_000_000) / rate;
        let mut free_at = self.free_at.lock().expect("no panic under this lock");
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let begin = (*free_at).max(earliest);
        *free_at = begin + Duration::from_micros(micros);
        begin
    }
}

/// Time saved up at most.
const BURST: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pace_holds_on_average_and_allows_a_short_burst() {
        let rate = NonZeroU64::new(1_000_000).unwrap();
        let pace = Pace::new(Some(rate));
        let now = Instant::now() + Duration::from_secs(1);
        // 50 ms are saved up, and the next second takes a million bytes.
        let last = (0..105).map(|_| pace.slice(now, 10_000, rate)).last();
        let wait = last.unwrap() - now;
        assert_eq!(wait.as_millis(), 990, "{wait:?}");
    }
}

//! Questions and answers about logs, and false answers.

use attic_p2p::identity::Identity;
use attic_p2p::log::{Log, MemoryLog};
use attic_p2p::reconcile::{Answer, Ask, BUCKETS, TipHint};
use bytes::Bytes;

use super::Mode;

/// A question or answer about logs, as nodes wrap them among others.
///
/// **Shape**: postcard of an enum's first variant with bytes in it.
pub(super) fn wrap(bytes: &[u8]) -> Bytes {
    postcard::to_stdvec(&(0u8, bytes))
        .expect("plain data")
        .into()
}

/// What [`wrap`] wrapped; `None` for other messages.
pub(super) fn unwrap(bytes: &[u8]) -> Option<Bytes> {
    match postcard::from_bytes::<(u8, &[u8])>(bytes) {
        Ok((0, inner)) => Some(Bytes::copy_from_slice(inner)),
        Ok(_) | Err(_) => None,
    }
}

/// Makes whoever gets it ask back.
pub(super) fn hello() -> Bytes {
    let (summary, ask_back) = (0x0bad, true);
    Ask::Hello { summary, ask_back }.encode()
}

/// A false answer, if that is what the mode is about.
pub(super) fn lie(mode: Mode, ask: &Bytes, log: &MemoryLog, me: &Identity) -> Option<Bytes> {
    let ask = Ask::decode(ask).ok()?;
    match (mode, ask) {
        (Mode::GarbageSync, _) => Some(Bytes::from(vec![0xa5; 200_000])),
        (Mode::OversizedSync | Mode::ReplaySync, Ask::Hello { .. }) => Some(differs()),
        (Mode::OversizedSync | Mode::ReplaySync, Ask::Tips { .. }) => Some(boast(log, me)),
        (Mode::OversizedSync, Ask::Pull { .. }) => {
            // The most that a length can say, and then bytes of a segment that is none.
            let long = Bytes::from(vec![7; usize::from(u16::MAX)]);
            Some(Answer::Segments(vec![long]).encode())
        }
        (Mode::ReplaySync, Ask::Pull { .. }) => {
            let oldest = log.nodes().into_iter().filter_map(|node| {
                let (first, _) = log.range(node)?;
                log.read(node, first).ok().flatten()
            });
            Some(Answer::Segments(oldest.collect()).encode())
        }
        _ => None,
    }
}

fn differs() -> Bytes {
    let buckets = Some(vec![0x0bad; BUCKETS]);
    Answer::Hello { yours: 0, buckets }.encode()
}

/// Every log goes further than it does.
fn boast(log: &MemoryLog, me: &Identity) -> Bytes {
    let others = log.nodes().into_iter().filter(|node| *node != me.node_id());
    let tips = others.map(|node| TipHint {
        node,
        seq: log.range(node).map_or(1, |(_, last)| last) + 1000,
        id: [0xbd; 8],
    });
    let tips = tips.collect();
    Answer::Tips { tips, left: 0 }.encode()
}

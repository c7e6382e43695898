//! Whatever frames two peers send, a provider answers within its bounds and stays of use: no frame
//! makes it panic, and nothing is read that was not asked for.
//!
//! The first byte of each piece says whose frame it is, and whether what waits is done before.
//!
//! In `p2p/`: `cargo +nightly fuzz run provider`.

#![no_main]

use std::sync::Arc;
use std::time::Duration;

use attic_p2p::ids::NodeId;
use attic_p2p::provider::{Action, Event, Holding, Provider};
use attic_p2p::wire::{Decoder, Frame, Have, Layout, Object};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut desk = Desk::new();
    for (number, piece) in input.chunks(PIECE_LEN).enumerate() {
        let Some((first, bytes)) = piece.split_first() else {
            continue;
        };
        let peer = NodeId::from_bytes([first % 2; 32]);
        let mut decoder = Decoder::new();
        decoder.feed(bytes);
        while let Ok(Some(frame)) = decoder.next() {
            desk.step(number, Event::Frame { peer, frame });
        }
        match first % 5 {
            0 => desk.work(number),
            1 => desk.step(number, Event::Gone { peer }),
            _ => desk.step(number, Event::Tick),
        }
    }
    desk.work(input.len());
});

/// A provider and what it waits for.
struct Desk {
    provider: Provider,
    layout: Arc<Layout>,
    waiting: Vec<Action>,
}

impl Desk {
    fn new() -> Desk {
        let layout = Layout::new([CHUNK_LEN; CHUNKS]).expect("a possible layout");
        Desk {
            provider: Provider::new(),
            layout: Arc::new(layout),
            waiting: Vec::new(),
        }
    }

    fn step(&mut self, seconds: usize, event: Event) {
        let now = Duration::from_secs(seconds as u64);
        for action in self.provider.handle(now, event) {
            match action {
                Action::LookUp { .. } | Action::Read { .. } => self.waiting.push(action),
                Action::Send { peer, frame } => self.sent(seconds, peer, &frame),
            }
        }
    }

    fn sent(&mut self, seconds: usize, peer: NodeId, frame: &Frame) {
        let bytes = match frame {
            Frame::Data { bytes, chunk, .. } => {
                assert!((*chunk as usize) < CHUNKS);
                bytes.len()
            }
            Frame::Manifest { bytes, .. } => bytes.len(),
            _ => return,
        };
        let bytes = bytes as u64;
        self.step(seconds, Event::Sent { peer, bytes });
    }

    /// Does everything that waits.
    fn work(&mut self, seconds: usize) {
        for _ in 0..WORK_MAX {
            let Some(action) = self.waiting.pop() else {
                return;
            };
            let event = match action {
                Action::LookUp { job, object, .. } => match self.holding(&object) {
                    Some(holding) => Event::Found { job, holding },
                    None => Event::Absent { job },
                },
                Action::Read { job, chunk, .. } => {
                    assert!((chunk as usize) < CHUNKS);
                    let bytes = Some(Bytes::from_static(&[7; CHUNK_LEN as usize]));
                    Event::Read { job, bytes }
                }
                Action::Send { .. } => continue,
            };
            self.step(seconds, event);
        }
    }

    /// Half of all objects are there.
    fn holding(&self, object: &Object) -> Option<Holding> {
        let manifest = Bytes::from_static(&[1; 3000]);
        let is_there = object.nar.as_bytes()[0] % 2 == 0;
        is_there.then(|| Holding {
            layout: Arc::clone(&self.layout),
            have: Have::Complete,
            manifest,
        })
    }
}

const CHUNKS: usize = 40;
const CHUNK_LEN: u32 = 1000;
/// Long enough for the longest frames of an asker.
const PIECE_LEN: usize = 700;
/// Each look-up and read leads to others; a provider asks for no more than it was asked for.
const WORK_MAX: usize = 100_000;

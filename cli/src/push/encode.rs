//! Compresses chunks into request bodies on a bounded number of threads.

use std::sync::{Arc, Mutex};

use attic_node_core::api::wire::{CHUNK_HEADER_LEN, ChunkHeader};
use attic_store::frame::{FrameEncoder, frame_len_max};
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use super::window::{Piece, Window};

/// The compressing threads of a push.
#[derive(Clone)]
pub(super) struct Encoders {
    permits: Arc<Semaphore>,
    /// Encoders at rest, at most one per permit: their tables are large.
    spare: Arc<Mutex<Vec<FrameEncoder>>>,
}

impl Encoders {
    /// At most `threads` chunks are compressed at once.
    pub(super) fn new(threads: usize) -> Encoders {
        Encoders {
            permits: Arc::new(Semaphore::new(threads)),
            spare: Arc::default(),
        }
    }

    /// Bodies of `chunks` requests with the records of `pieces`, each in segments to be sent one
    /// after the other. None is longer than `body_max` as long as every single record is shorter.
    ///
    /// Dropping it stops after the groups that are being compressed.
    ///
    /// **Errors**: when the runtime stops.
    pub(super) async fn encode(
        &self,
        window: &Arc<Window>,
        pieces: Vec<Piece>,
        body_max: usize,
    ) -> Result<Vec<Vec<Bytes>>, JoinError> {
        let mut groups = Vec::new();
        for group in split(pieces, GROUP_LEN.min(body_max / 2)) {
            groups.push(self.spawn(Arc::clone(window), group).await);
        }
        let mut bodies: Vec<Vec<Bytes>> = Vec::new();
        let mut len = 0;
        for group in groups {
            let records = group.await?;
            len += records.len();
            match bodies.last_mut() {
                Some(body) if len <= body_max => body.push(records),
                _ => {
                    len = records.len();
                    bodies.push(vec![records]);
                }
            }
        }
        Ok(bodies)
    }

    async fn spawn(&self, window: Arc<Window>, pieces: Vec<Piece>) -> JoinHandle<Bytes> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let spare = Arc::clone(&self.spare);
        spawn_blocking(move || {
            let resting = spare.lock().expect("no panic under this lock").pop();
            let mut encoder = resting.unwrap_or_else(FrameEncoder::for_sending);
            let records = encode(&mut encoder, &window, &pieces);
            spare
                .lock()
                .expect("no panic under this lock")
                .push(encoder);
            drop(permit);
            records
        })
    }
}

fn encode(encoder: &mut FrameEncoder, window: &Window, pieces: &[Piece]) -> Bytes {
    let record_len_max = |piece| CHUNK_HEADER_LEN + frame_len_max(window.plain(piece).len());
    let mut records = Vec::with_capacity(pieces.iter().map(record_len_max).sum());
    for piece in pieces {
        let plain = window.plain(piece);
        let frame = encoder
            .encode(plain)
            .expect("the chunker keeps to a frame's bounds");
        let header = ChunkHeader {
            id: piece.id,
            raw_len: plain.len() as u32,
            frame_len: frame.len() as u32,
        };
        records.extend_from_slice(&header.to_bytes());
        records.extend_from_slice(&frame);
    }
    records.shrink_to_fit();
    records.into()
}

/// Groups of at most `len_max` plain bytes, or of one piece.
fn split(pieces: Vec<Piece>, len_max: usize) -> Vec<Vec<Piece>> {
    let mut groups: Vec<Vec<Piece>> = Vec::new();
    let mut len = 0;
    for piece in pieces {
        let piece_len = piece.len() as usize;
        match groups.last_mut() {
            Some(group) if len + piece_len <= len_max => {
                group.push(piece);
                len += piece_len;
            }
            _ => {
                groups.push(vec![piece]);
                len = piece_len;
            }
        }
    }
    groups
}

/// Plain bytes one thread compresses at a time.
const GROUP_LEN: usize = 1 << 20;

//! Puts chunks into request bodies, compressed if they leave the machine, on a bounded number of
//! threads.

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
    make: fn() -> FrameEncoder,
    /// Encoders at rest, at most one per permit: their tables are large.
    spare: Arc<Mutex<Vec<FrameEncoder>>>,
}

impl Encoders {
    /// At most `threads` chunks are encoded at once, each by an encoder of `make`'s.
    pub(super) fn new(threads: usize, make: fn() -> FrameEncoder) -> Encoders {
        Encoders {
            permits: Arc::new(Semaphore::new(threads)),
            make,
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
        let (spare, make) = (Arc::clone(&self.spare), self.make);
        spawn_blocking(move || {
            let resting = spare.lock().expect("no panic under this lock").pop();
            let mut encoder = resting.unwrap_or_else(make);
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
        let start = records.len();
        records.resize(start + CHUNK_HEADER_LEN, 0);
        let frame_len = encoder
            .encode_into(plain, &mut records)
            .expect("the chunker keeps to a frame's bounds");
        let header = ChunkHeader {
            id: piece.id,
            raw_len: plain.len() as u32,
            frame_len: frame_len as u32,
        };
        records[start..start + CHUNK_HEADER_LEN].copy_from_slice(&header.to_bytes());
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use attic_store::chunker::ChunkerParams;
    use attic_store::hash::NarHash;
    use attic_store::narinfo::PathInfo;
    use attic_store::store_path::{StorePath, StorePathHash};

    use super::*;
    use crate::nix::LocalPath;
    use crate::push::window::{WINDOW_LEN, WindowPool, read};

    /// P4: an encoder is made only when none is at rest, so their number is that of the chunks that
    /// were ever compressed at once.
    async fn encoders_used(threads: usize) -> usize {
        let dir = tempfile::tempdir().unwrap();
        let location = dir.path().join("text");
        let text: Vec<u8> = (0..400_000u32)
            .flat_map(|n| n.to_string().into_bytes())
            .cycle()
            .take(3 * WINDOW_LEN)
            .collect();
        fs::write(&location, &text).unwrap();
        let info = PathInfo {
            path: StorePath::new(StorePathHash::from_bytes([0; 20]), "text").unwrap(),
            nar_hash: NarHash::from_bytes([0; 32]),
            nar_size: text.len() as u64 + 112,
            references: [].into(),
            deriver: None,
            ca: None,
            signatures: Vec::new(),
        };
        let path = Arc::new(LocalPath { info, location });
        let encoders = Encoders::new(threads, FrameEncoder::for_sending);
        let mut windows = read(vec![path], ChunkerParams::CURRENT, WindowPool::new(1));
        let mut encoding = Vec::new();
        while let Some(window) = windows.recv().await {
            let (window, encoders) = (Arc::new(window.unwrap()), encoders.clone());
            encoding.push(tokio::spawn(async move {
                let pieces = window.pieces.clone();
                encoders.encode(&window, pieces, usize::MAX).await.unwrap()
            }));
        }
        for encoding in encoding {
            assert!(!encoding.await.unwrap().is_empty());
        }
        encoders.spare.lock().unwrap().len()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p4_no_more_threads_compress_than_are_allowed() {
        assert_eq!(encoders_used(1).await, 1);
        assert!((1..=2).contains(&encoders_used(2).await));
        assert!((1..=3).contains(&encoders_used(3).await));
    }
}

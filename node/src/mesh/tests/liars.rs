//! Peers that answer, but not honestly.

use attic_p2p::bulk::{BulkReceiver, BulkSender, BulkStream};
use attic_p2p::wire::{Decoder, Frame, Have, Object};
use attic_store::Store;
use bytes::Bytes;
use futures::future::BoxFuture;

use super::world::CLUSTER;
use crate::mesh::link::greeting;

/// One bit of every frame is wrong.
pub(super) fn flips(stream: BulkStream, store: Store) -> BoxFuture<'static, ()> {
    Box::pin(lie(stream, store, |frames, chunk| {
        let mut frame = frames[chunk].to_vec();
        let middle = frame.len() / 2;
        frame[middle] ^= 1;
        vec![frame.into()]
    }))
}

/// Every chunk is another one of the NAR.
pub(super) fn swaps(stream: BulkStream, store: Store) -> BoxFuture<'static, ()> {
    Box::pin(lie(stream, store, |frames, chunk| {
        vec![frames[(chunk + 1) % frames.len()].clone()]
    }))
}

/// Every frame is cut.
pub(super) fn cuts(stream: BulkStream, store: Store) -> BoxFuture<'static, ()> {
    Box::pin(lie(stream, store, |frames, chunk| {
        vec![frames[chunk].slice(..frames[chunk].len() - 1)]
    }))
}

/// Every chunk is sent, and sent, and sent.
pub(super) fn floods(stream: BulkStream, store: Store) -> BoxFuture<'static, ()> {
    Box::pin(lie(stream, store, |frames, chunk| {
        vec![frames[chunk].clone(); 1_000]
    }))
}

/// The manifest is not the one that is asked for.
pub(super) fn invents(stream: BulkStream, _: Store) -> BoxFuture<'static, ()> {
    Box::pin(async {
        let mut asker = Asker::greet(stream).await;
        while let Some(frame) = asker.next().await {
            let answer = match frame {
                Frame::HaveQuery { req, .. } => Frame::Have {
                    req,
                    have: Have::Complete,
                },
                Frame::ManifestQuery { req, .. } => Frame::Manifest {
                    req,
                    offset: 0,
                    total: 1_000,
                    bytes: vec![1; 1_000].into(),
                },
                _ => continue,
            };
            asker.send(answer).await;
        }
    })
}

/// Answers honestly but for the frames of chunks.
async fn lie(stream: BulkStream, store: Store, answer: fn(&[Bytes], usize) -> Vec<Bytes>) {
    let mut asker = Asker::greet(stream).await;
    while let Some(frame) = asker.next().await {
        match frame {
            Frame::HaveQuery { req, .. } => {
                let have = Have::Complete;
                asker.send(Frame::Have { req, have }).await;
            }
            Frame::ManifestQuery { req, object } => {
                let manifest = store.manifest(&object.nar).unwrap().unwrap().encode();
                let total = manifest.len() as u32;
                let bytes = manifest.into();
                let offset = 0;
                asker
                    .send(Frame::Manifest {
                        req,
                        offset,
                        total,
                        bytes,
                    })
                    .await;
            }
            Frame::Get {
                req,
                object,
                ranges,
                ..
            } => {
                let frames = frames(&store, &object);
                let chunks = ranges
                    .iter()
                    .flat_map(|range| range.first..range.first + range.count);
                for chunk in chunks {
                    for bytes in answer(&frames, chunk as usize) {
                        let last = false;
                        let data = Frame::Data {
                            req,
                            chunk,
                            last,
                            bytes,
                        };
                        asker.send(data).await;
                    }
                }
            }
            _ => {}
        }
    }
}

fn frames(store: &Store, object: &Object) -> Vec<Bytes> {
    let manifest = store.manifest(&object.nar).unwrap().unwrap();
    let frame = |id| store.frame(id).unwrap().unwrap();
    let entries = manifest.chunks().iter();
    entries.map(|entry| frame(&entry.id)).collect()
}

/// The other end of a stream.
struct Asker {
    sender: BulkSender,
    receiver: BulkReceiver,
    decoder: Decoder,
}

impl Asker {
    async fn greet(stream: BulkStream) -> Asker {
        let (sender, receiver) = stream.split();
        let decoder = Decoder::new();
        let mut asker = Asker {
            sender,
            receiver,
            decoder,
        };
        asker.send(greeting(CLUSTER)).await;
        asker
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return Some(frame);
            }
            let bytes = self.receiver.receive().await.ok()??;
            self.decoder.feed(&bytes);
        }
    }

    async fn send(&mut self, frame: Frame) {
        let frame = frame.encode();
        let _ = self.sender.send(&frame.head, &frame.body).await;
    }
}

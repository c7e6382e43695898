//! Streams on which chunks are asked for, and what a villain sends on them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use attic_p2p::bulk::{BulkError, BulkReceiver, BulkSender, BulkStream};
use attic_p2p::ids::{ClusterId, ManifestId, NodeId};
use attic_p2p::network::Network;
use attic_p2p::wire::{
    CREDIT_WINDOW, ChunkRange, Decoder, Frame, Have, Hello, Layout, Object, PROTOCOL,
};
use attic_store::manifest::Manifest;
use bytes::{Bytes, BytesMut};
use tokio::time::timeout;

use super::Mode;

/// Answers streams.
pub(super) struct Server {
    network: Network,
    cluster: ClusterId,
    mode: Mode,
    /// Manifests that honest nodes gave: who asks for chunks wants to see one first.
    manifests: Mutex<BTreeMap<Object, Bytes>>,
}

impl Server {
    pub(super) fn new(network: Network, cluster: ClusterId, mode: Mode) -> Server {
        Server {
            network,
            cluster,
            mode,
            manifests: Mutex::default(),
        }
    }

    /// Answers one stream to its end.
    pub(super) async fn serve(&self, stream: BulkStream) {
        let asker = stream.node();
        let (sender, receiver) = stream.split();
        let mut wire = Wire::new(sender, receiver);
        // The asker may be gone, or have had enough.
        let _ = self.converse(&mut wire, asker).await;
    }

    async fn converse(&self, wire: &mut Wire, asker: NodeId) -> Result<(), BulkError> {
        wire.send(self.greeting()).await?;
        while let Some(frame) = wire.next().await? {
            match frame {
                Frame::HaveQuery { req, .. } => {
                    let have = Have::Complete;
                    wire.send(Frame::Have { req, have }).await?;
                }
                Frame::ManifestQuery { req, object } => {
                    let manifest = match self.mode {
                        Mode::WrongManifest => Some(Bytes::from(vec![1; 1000])),
                        _ => self.manifest(object, asker).await,
                    };
                    self.send_manifest(wire, req, manifest).await?;
                }
                Frame::Get {
                    req,
                    object,
                    ranges,
                    ..
                } => self.send_chunks(wire, req, object, &ranges).await?,
                _ => {}
            }
        }
        Ok(())
    }

    async fn send_manifest(
        &self,
        wire: &mut Wire,
        req: u32,
        manifest: Option<Bytes>,
    ) -> Result<(), BulkError> {
        let Some(bytes) = manifest else {
            return wire.send(Frame::NotFound { req, chunk: None }).await;
        };
        let total = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut offset = 0;
        for part in bytes.chunks(MANIFEST_PART_LEN) {
            let bytes = Bytes::copy_from_slice(part);
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let frame = Frame::Manifest {
                req,
                offset,
                total,
                bytes,
            };
            wire.send(frame).await?;
            offset += len;
        }
        Ok(())
    }

    async fn send_chunks(
        &self,
        wire: &mut Wire,
        req: u32,
        object: Object,
        ranges: &[ChunkRange],
    ) -> Result<(), BulkError> {
        match self.mode {
            Mode::Silent => return Ok(()),
            Mode::NotFound => return wire.send(Frame::NotFound { req, chunk: None }).await,
            Mode::GarbageFrames => return wire.send_raw(&[0xee; 4096]).await,
            _ => {}
        }
        let layout = self.layout(&object);
        let chunks = { ranges }
            .iter()
            .flat_map(|range| range.first..range.first + range.count);
        for chunk in chunks {
            let len = layout.as_ref().map_or(1 << 16, |layout| match chunk {
                chunk if chunk < layout.chunks() => layout.chunk_len(chunk),
                _ => 1,
            });
            let len = match self.mode {
                Mode::WrongLengths => (len - 1).max(1),
                _ => len,
            };
            let bytes = Bytes::from(vec![0x66; usize::try_from(len).unwrap_or(1)]);
            loop {
                let frame = Frame::Data {
                    req,
                    chunk,
                    last: false,
                    bytes: bytes.clone(),
                };
                wire.send(frame).await?;
                if self.mode != Mode::Endless {
                    break;
                }
            }
        }
        Ok(())
    }

    fn layout(&self, object: &Object) -> Option<Layout> {
        let manifests = self.manifests.lock().expect("no panic under this lock");
        let manifest = Manifest::decode(manifests.get(object)?).ok()?;
        Layout::of(&manifest).ok()
    }

    /// The manifest of an object, from somebody else than who asks for it.
    async fn manifest(&self, object: Object, asker: NodeId) -> Option<Bytes> {
        let known = |object| {
            let manifests = self.manifests.lock().expect("no panic under this lock");
            manifests.get(object).cloned()
        };
        if let Some(manifest) = known(&object) {
            return Some(manifest);
        }
        for peer in self.network.peers() {
            let fetched = timeout(FETCH_TIME, self.fetch(peer.node, object));
            if peer.node != asker
                && let Ok(Some(manifest)) = fetched.await
            {
                let mut manifests = self.manifests.lock().expect("no panic under this lock");
                manifests.insert(object, manifest.clone());
                return Some(manifest);
            }
        }
        None
    }

    async fn fetch(&self, from: NodeId, object: Object) -> Option<Bytes> {
        let (sender, receiver) = self.network.open_bulk(from).await.ok()?.split();
        let mut wire = Wire::new(sender, receiver);
        wire.send(self.greeting()).await.ok()?;
        let req = 1;
        wire.send(Frame::ManifestQuery { req, object }).await.ok()?;
        let mut whole = BytesMut::new();
        while let Some(frame) = wire.next().await.ok()? {
            match frame {
                Frame::Manifest { total, bytes, .. } => {
                    whole.extend_from_slice(&bytes);
                    if whole.len() >= total as usize {
                        let whole = whole.freeze();
                        return (ManifestId::of(&whole) == object.manifest).then_some(whole);
                    }
                }
                Frame::NotFound { .. } | Frame::Error { .. } | Frame::Busy { .. } => return None,
                _ => {}
            }
        }
        None
    }

    fn greeting(&self) -> Frame {
        Frame::Hello(Hello {
            protocol: PROTOCOL,
            capabilities: 0,
            window: CREDIT_WINDOW,
            cluster: self.cluster,
        })
    }
}

/// Frames in both directions.
struct Wire {
    sender: BulkSender,
    receiver: BulkReceiver,
    decoder: Decoder,
}

impl Wire {
    fn new(sender: BulkSender, receiver: BulkReceiver) -> Wire {
        Wire {
            sender,
            receiver,
            decoder: Decoder::new(),
        }
    }

    /// The next frame; `None` at the end, also when what comes is no frame.
    async fn next(&mut self) -> Result<Option<Frame>, BulkError> {
        loop {
            match self.decoder.next() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(_) => return Ok(None),
            }
            let Some(bytes) = self.receiver.receive().await? else {
                return Ok(None);
            };
            self.decoder.feed(&bytes);
        }
    }

    async fn send(&mut self, frame: Frame) -> Result<(), BulkError> {
        let frame = frame.encode();
        self.sender.send(&frame.head, &frame.body).await
    }

    async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), BulkError> {
        self.sender.send(bytes, &[]).await
    }
}

/// As honest nodes cut them.
const MANIFEST_PART_LEN: usize = 64 << 10;
const FETCH_TIME: Duration = Duration::from_secs(3);

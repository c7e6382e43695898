//! From frames to bytes.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::{FLAG_LAST, Frame, HEADER_LEN, Have, Object, kind};

/// A frame as it is sent: first `head`, then `body`, which is shared and not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Header and all fields.
    pub head: Bytes,
    /// Bytes of a chunk or a manifest; empty for other frames.
    pub body: Bytes,
}

impl Encoded {
    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Never: a frame has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Both parts in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        [&self.head[..], &self.body[..]].concat()
    }
}

impl Frame {
    /// The frame's bytes. A frame beyond the bounds of its type encodes to what nobody reads:
    /// whoever builds one keeps them.
    pub fn encode(&self) -> Encoded {
        let mut out = BytesMut::zeroed(HEADER_LEN);
        let mut body = Bytes::new();
        let (kind, flags, req) = self.put(&mut out, &mut body);
        let len = out.len() - HEADER_LEN + body.len();
        let mut header = &mut out[..HEADER_LEN];
        header.put_u8(kind);
        header.put_u8(flags);
        header.put_u32(req);
        header.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        Encoded {
            head: out.freeze(),
            body,
        }
    }

    /// Appends the payload; returns type, flags and number.
    fn put(&self, out: &mut BytesMut, body: &mut Bytes) -> (u8, u8, u32) {
        match self {
            Frame::Hello(hello) => {
                out.put_u16(hello.protocol);
                out.put_u32(hello.capabilities);
                out.put_u32(hello.window);
                out.put_slice(hello.cluster.as_bytes());
                (kind::HELLO, 0, 0)
            }
            Frame::HaveQuery { req, object } => {
                put_object(out, object);
                (kind::HAVE_QUERY, 0, *req)
            }
            Frame::Have { req, have } => {
                put_have(out, have);
                (kind::HAVE, 0, *req)
            }
            Frame::HaveDelta { req, segments } => {
                segments.iter().for_each(|segment| out.put_u32(*segment));
                (kind::HAVE_DELTA, 0, *req)
            }
            Frame::Others { req, nodes } => {
                nodes.iter().for_each(|node| out.put_slice(node.as_bytes()));
                (kind::OTHERS, 0, *req)
            }
            Frame::Get {
                req,
                object,
                ranges,
                priority,
                deadline,
            } => {
                put_object(out, object);
                out.put_u8(*priority as u8);
                put_millis(out, *deadline);
                for range in ranges {
                    out.put_u32(range.first);
                    out.put_u32(range.count);
                }
                (kind::GET, 0, *req)
            }
            Frame::GetMany { req, objects } => {
                objects.iter().for_each(|object| put_object(out, object));
                (kind::GET_MANY, 0, *req)
            }
            Frame::Data {
                req,
                chunk,
                last,
                bytes,
            } => {
                out.put_u32(*chunk);
                *body = bytes.clone();
                (kind::DATA, if *last { FLAG_LAST } else { 0 }, *req)
            }
            Frame::Manifest {
                req,
                offset,
                total,
                bytes,
            } => {
                out.put_u32(*offset);
                out.put_u32(*total);
                *body = bytes.clone();
                (kind::MANIFEST, 0, *req)
            }
            Frame::Busy { .. }
            | Frame::NotFound { .. }
            | Frame::Cancel { .. }
            | Frame::Error { .. }
            | Frame::Credit { .. }
            | Frame::ManifestQuery { .. } => self.put_short(out),
        }
    }

    /// The frames of at most one number.
    fn put_short(&self, out: &mut BytesMut) -> (u8, u8, u32) {
        match self {
            Frame::Busy { req, retry } => {
                put_millis(out, *retry);
                (kind::BUSY, 0, *req)
            }
            Frame::NotFound { req, chunk } => {
                chunk.iter().for_each(|chunk| out.put_u32(*chunk));
                (kind::NOT_FOUND, 0, *req)
            }
            Frame::Error { req, code } => {
                out.put_u16(code.number());
                (kind::ERROR, 0, *req)
            }
            Frame::Credit { bytes } => {
                out.put_u32(*bytes);
                (kind::CREDIT, 0, 0)
            }
            Frame::ManifestQuery { req, object } => {
                put_object(out, object);
                (kind::MANIFEST_QUERY, 0, *req)
            }
            Frame::Cancel { req } => (kind::CANCEL, 0, *req),
            Frame::Hello(_)
            | Frame::HaveQuery { .. }
            | Frame::Have { .. }
            | Frame::HaveDelta { .. }
            | Frame::Others { .. }
            | Frame::Get { .. }
            | Frame::GetMany { .. }
            | Frame::Data { .. }
            | Frame::Manifest { .. } => self.put(out, &mut Bytes::new()),
        }
    }
}

fn put_object(out: &mut BytesMut, object: &Object) {
    out.put_slice(object.nar.as_bytes());
    out.put_slice(object.manifest.as_bytes());
}

fn put_have(out: &mut BytesMut, have: &Have) {
    match have {
        Have::Nothing => out.put_slice(&[0, 0, 0, 0, 0]),
        Have::Complete => out.put_slice(&[1, 0, 0, 0, 0]),
        Have::Partial(segments) => {
            out.put_u8(2);
            out.put_u32(segments.len());
            out.put_slice(&segments.to_bytes());
        }
    }
}

fn put_millis(out: &mut BytesMut, duration: Duration) {
    out.put_u32(u32::try_from(duration.as_millis()).unwrap_or(u32::MAX));
}

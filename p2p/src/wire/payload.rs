//! What each type of frame carries, and how much of it.

use std::time::Duration;

use attic_store::NarHash;
use attic_store::frame::frame_len_max;
use attic_store::{chunker::CHUNK_LEN_MAX, manifest::CHUNKS_MAX};
use bytes::{Buf, Bytes};

use super::decoder::Header;
use super::segments::bitmap_len;
use super::{
    ChunkRange, DELTA_MAX, ErrorCode, FLAG_LAST, Frame, GET_HEAD_LEN, HAVE_HEAD_LEN, HELLO_LEN,
    Have, Hello, MANIFEST_LEN_MAX, MANIFEST_PART_LEN_MAX, NODE_LEN, OBJECT_LEN, OBJECTS_MAX,
    OTHERS_MAX, Object, Priority, RANGE_LEN, RANGES_MAX, SegmentSet, kind,
};
use crate::ids::{ClusterId, ManifestId, NodeId};

/// The longest payload of a type; `None` if the type is unknown.
pub(super) fn len_max(kind: u8) -> Option<usize> {
    match kind {
        kind::HELLO => Some(HELLO_LEN),
        kind::HAVE_QUERY | kind::MANIFEST_QUERY => Some(OBJECT_LEN),
        kind::HAVE => Some(HAVE_HEAD_LEN + bitmap_len(CHUNKS_MAX as u32)),
        kind::HAVE_DELTA => Some(4 * DELTA_MAX),
        kind::GET => Some(GET_HEAD_LEN + RANGE_LEN * RANGES_MAX),
        kind::GET_MANY => Some(OBJECT_LEN * OBJECTS_MAX),
        kind::DATA => Some(4 + frame_len_max(CHUNK_LEN_MAX)),
        kind::BUSY | kind::NOT_FOUND | kind::CREDIT => Some(4),
        kind::CANCEL => Some(0),
        kind::ERROR => Some(2),
        kind::MANIFEST => Some(8 + MANIFEST_PART_LEN_MAX),
        kind::OTHERS => Some(NODE_LEN * OTHERS_MAX),
        _ => None,
    }
}

/// The frame of a known type; `None` if the payload does not fit it exactly.
pub(super) fn read(header: Header, mut payload: Bytes) -> Option<Frame> {
    let req = header.req;
    let frame = match header.kind {
        kind::HELLO => Frame::Hello(hello(&mut payload)?),
        kind::HAVE_QUERY => Frame::HaveQuery {
            req,
            object: object(&mut payload)?,
        },
        kind::HAVE => Frame::Have {
            req,
            have: have(&mut payload)?,
        },
        kind::HAVE_DELTA => Frame::HaveDelta {
            req,
            segments: list(&mut payload, |bytes| bytes.try_get_u32().ok())?,
        },
        kind::GET => get(req, &mut payload)?,
        kind::GET_MANY => Frame::GetMany {
            // Every object has a number of its own.
            req: req.checked_add(OBJECTS_MAX as u32).map(|_| req)?,
            objects: list(&mut payload, object)?,
        },
        kind::DATA => Frame::Data {
            req,
            chunk: payload.try_get_u32().ok()?,
            last: header.flags & FLAG_LAST != 0,
            bytes: rest(&mut payload)?,
        },
        kind::BUSY => Frame::Busy {
            req,
            retry: millis(&mut payload)?,
        },
        kind::NOT_FOUND if payload.is_empty() => Frame::NotFound { req, chunk: None },
        kind::NOT_FOUND => Frame::NotFound {
            req,
            chunk: Some(payload.try_get_u32().ok()?),
        },
        kind::CANCEL => Frame::Cancel { req },
        kind::ERROR => Frame::Error {
            req,
            code: ErrorCode::from_number(payload.try_get_u16().ok()?),
        },
        kind::CREDIT => Frame::Credit {
            bytes: payload.try_get_u32().ok()?,
        },
        kind::MANIFEST_QUERY => Frame::ManifestQuery {
            req,
            object: object(&mut payload)?,
        },
        kind::MANIFEST => manifest(req, &mut payload)?,
        kind::OTHERS => Frame::Others {
            req,
            nodes: list(&mut payload, |bytes| {
                Some(NodeId::from_bytes(array(bytes)?))
            })?,
        },
        _ => return None,
    };
    payload.is_empty().then_some(frame)
}

fn hello(payload: &mut Bytes) -> Option<Hello> {
    Some(Hello {
        protocol: payload.try_get_u16().ok()?,
        capabilities: payload.try_get_u32().ok()?,
        window: payload.try_get_u32().ok()?,
        cluster: ClusterId::from_bytes(array(payload)?),
    })
}

fn get(req: u32, payload: &mut Bytes) -> Option<Frame> {
    Some(Frame::Get {
        req,
        object: object(payload)?,
        priority: Priority::from_byte(payload.try_get_u8().ok()?)?,
        deadline: millis(payload)?,
        ranges: list(payload, range)?,
    })
}

fn manifest(req: u32, payload: &mut Bytes) -> Option<Frame> {
    let offset = payload.try_get_u32().ok()?;
    let total = payload.try_get_u32().ok()?;
    let bytes = rest(payload)?;
    let end = u64::from(offset) + bytes.len() as u64;
    let fits = end <= u64::from(total) && total as usize <= MANIFEST_LEN_MAX;
    fits.then_some(Frame::Manifest {
        req,
        offset,
        total,
        bytes,
    })
}

fn have(payload: &mut Bytes) -> Option<Have> {
    let state = payload.try_get_u8().ok()?;
    let len = payload.try_get_u32().ok()?;
    match (state, len) {
        (0, 0) => Some(Have::Nothing),
        (1, 0) => Some(Have::Complete),
        (2, _) if len as usize <= CHUNKS_MAX => {
            let bitmap = payload.split_to(payload.len());
            SegmentSet::from_bytes(len, &bitmap).map(Have::Partial)
        }
        (_, _) => None,
    }
}

fn range(payload: &mut Bytes) -> Option<ChunkRange> {
    let first = payload.try_get_u32().ok()?;
    let count = payload.try_get_u32().ok()?;
    first.checked_add(count)?;
    (count > 0).then_some(ChunkRange { first, count })
}

fn object(payload: &mut Bytes) -> Option<Object> {
    Some(Object {
        nar: NarHash::from_bytes(array(payload)?),
        manifest: ManifestId::from_bytes(array(payload)?),
    })
}

fn millis(payload: &mut Bytes) -> Option<Duration> {
    let millis = payload.try_get_u32().ok()?;
    Some(Duration::from_millis(millis.into()))
}

/// One or more of something, to the end. Its length is bounded by the payload's.
fn list<T>(payload: &mut Bytes, item: impl Fn(&mut Bytes) -> Option<T>) -> Option<Vec<T>> {
    let mut items = vec![item(payload)?];
    while !payload.is_empty() {
        items.push(item(payload)?);
    }
    Some(items)
}

/// All that is left, which is something.
fn rest(payload: &mut Bytes) -> Option<Bytes> {
    (!payload.is_empty()).then(|| payload.split_to(payload.len()))
}

fn array<const N: usize>(payload: &mut Bytes) -> Option<[u8; N]> {
    let array = *payload.first_chunk()?;
    payload.advance(N);
    Some(array)
}

//! Frames of the bulk stream: how nodes ask one another for chunks.
//!
//! Two nodes share one long-lived stream. Either may ask; an asker numbers its own requests, and
//! every answer repeats the number, so many requests are under way at once and answers mix freely.
//! Whether a number is the asker's or the answerer's follows from the frame's type.
//!
//! **Shape** of a frame, big endian: type `u8`, flags `u8`, request `u32`, payload length `u32`,
//! payload. A payload is at most [`PAYLOAD_LEN_MAX`] bytes, and each type has a narrower bound that
//! is checked before a byte of it is kept. Frames of an unknown type are skipped, unknown flags are
//! ignored, bytes after a payload's last known field are an error: new fields get a new type.
//!
//! | type | frame | sent by | payload |
//! |---|---|---|---|
//! | 1 | [`Hello`] | both, once, first | protocol `u16`, capabilities `u32`, window `u32`, cluster 16 |
//! | 2 | [`Frame::HaveQuery`] | asker | object |
//! | 3 | [`Frame::Have`] | answerer | [`Have`] |
//! | 4 | [`Frame::HaveDelta`] | answerer | segments, `u32` each |
//! | 5 | [`Frame::Get`] | asker | object, priority `u8`, deadline `u32` ms, ranges (`u32`, `u32`) |
//! | 6 | [`Frame::GetMany`] | asker | objects |
//! | 7 | [`Frame::Data`] | answerer | chunk `u32`, the chunk's frame; flag 1: last of the request |
//! | 8 | [`Frame::Busy`] | answerer | retry `u32` ms |
//! | 9 | [`Frame::NotFound`] | answerer | chunk `u32`, or nothing: the whole object |
//! | 10 | [`Frame::Cancel`] | asker | – |
//! | 11 | [`Frame::Error`] | answerer | code `u16` |
//! | 12 | [`Frame::Credit`] | asker | bytes `u32` |
//! | 13 | [`Frame::ManifestQuery`] | asker | object |
//! | 14 | [`Frame::Manifest`] | answerer | offset `u32`, total `u32`, part |
//! | 15 | [`Frame::Others`] | answerer | nodes, 32 bytes each |
//!
//! An object is a NarHash and a manifest's id, 64 bytes.

mod credit;
mod decoder;
mod encode;
mod payload;
mod segments;

#[cfg(test)]
mod tests;

use std::time::Duration;

use attic_store::NarHash;
use bytes::Bytes;
use thiserror::Error;

use crate::ids::{ClusterId, ManifestId, NodeId};

pub use credit::{CREDIT_WINDOW, CreditMeter};
pub use decoder::Decoder;
pub use encode::Encoded;
pub use segments::{Layout, LayoutError, SEGMENT_LEN_MAX, SEGMENT_LEN_MIN, SegmentSet};

/// The version of the stream that [`Hello`] states.
pub const PROTOCOL: u16 = 1;
/// Bytes of a frame before its payload.
pub const HEADER_LEN: usize = 10;
/// The longest payload of any frame, known or not.
pub const PAYLOAD_LEN_MAX: usize = (1 << 20) + 64;
/// The most ranges of one [`Frame::Get`].
pub const RANGES_MAX: usize = 64;
/// The most objects of one [`Frame::GetMany`].
pub const OBJECTS_MAX: usize = 256;
/// The most segments of one [`Frame::HaveDelta`].
pub const DELTA_MAX: usize = 1024;
/// The most nodes of one [`Frame::Others`].
pub const OTHERS_MAX: usize = 64;
/// The longest part of a manifest in one [`Frame::Manifest`].
pub const MANIFEST_PART_LEN_MAX: usize = 1 << 20;
/// The longest manifest that is asked for or assembled.
pub const MANIFEST_LEN_MAX: usize = 64 << 20;

/// An asker's number of one of its requests on one stream.
pub type RequestNumber = u32;

/// What can be asked for: one NAR, cut and framed in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object {
    /// The NAR.
    pub nar: NarHash,
    /// How it is cut.
    pub manifest: ManifestId,
}

/// The first frame of either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender's newest protocol; both sides speak the lower of the two.
    pub protocol: u16,
    /// Bits for optional features; unknown ones are ignored.
    pub capabilities: u32,
    /// Bytes of [`Frame::Data`] the sender is ready to take before it gives credit.
    pub window: u32,
    /// The cluster the sender is in.
    pub cluster: ClusterId,
}

/// Which segments of an object a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Have {
    /// None of it, and none is on its way.
    Nothing,
    /// All of it.
    Complete,
    /// Some of it; more will follow.
    Partial(SegmentSet),
}

/// A run of chunks of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRange {
    /// Index of the first.
    pub first: u32,
    /// How many; not zero, and `first + count` does not overflow.
    pub count: u32,
}

/// Who is waiting for the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A client.
    Client,
    /// Nobody: replication.
    Background,
}

/// Why a request was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// Its deadline passed.
    Expired,
    /// The asker may not read the object.
    Forbidden,
    /// It makes no sense: a range beyond the object.
    Malformed,
    /// The answerer's own fault; another attempt may succeed.
    Internal,
    /// A reason of a newer version.
    Other(u16),
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The sender's version and window.
    Hello(Hello),
    /// Asks what the other side holds of an object, now and from now on: answered by [`Frame::Have`],
    /// then by deltas until the request is cancelled. Asked again under the same number, it is
    /// answered again.
    HaveQuery {
        /// Number of the request.
        req: RequestNumber,
        /// Of what.
        object: Object,
    },
    /// What is held. Replaces whatever was said before.
    Have {
        /// Number of the request.
        req: RequestNumber,
        /// What is held.
        have: Have,
    },
    /// Segments held in addition.
    HaveDelta {
        /// Number of the request.
        req: RequestNumber,
        /// At most [`DELTA_MAX`].
        segments: Vec<u32>,
    },
    /// Nodes that asked the same, and so are fetching the object: they will hold some of it. A hint
    /// that binds nobody.
    Others {
        /// Number of the request.
        req: RequestNumber,
        /// 1 to [`OTHERS_MAX`].
        nodes: Vec<NodeId>,
    },
    /// Asks for chunks: one [`Frame::Data`] or [`Frame::NotFound`] each, or one answer for all of
    /// [`Frame::Busy`] or [`Frame::Error`].
    Get {
        /// Number of the request.
        req: RequestNumber,
        /// Of what.
        object: Object,
        /// 1 to [`RANGES_MAX`].
        ranges: Vec<ChunkRange>,
        /// Who waits.
        priority: Priority,
        /// After this long the answer is of no use; whole milliseconds.
        deadline: Duration,
    },
    /// Asks for small NARs whole. Object `i` is answered under number `req + i` by its manifest and
    /// all its chunks, or by [`Frame::NotFound`]; one missing object leaves the others alone.
    GetMany {
        /// Number of the first.
        req: RequestNumber,
        /// 1 to [`OBJECTS_MAX`].
        objects: Vec<Object>,
    },
    /// One chunk, as its stored zstd frame. Worth nothing until verified.
    Data {
        /// Number of the request.
        req: RequestNumber,
        /// Index of the chunk.
        chunk: u32,
        /// Whether the request is answered completely with it.
        last: bool,
        /// The frame.
        bytes: Bytes,
    },
    /// The other side has no free slot; nothing of the request will be answered.
    Busy {
        /// Number of the request.
        req: RequestNumber,
        /// When to ask again; whole milliseconds.
        retry: Duration,
    },
    /// Not held, whatever was said before.
    NotFound {
        /// Number of the request.
        req: RequestNumber,
        /// Which chunk; `None`: the object as a whole, and the request is over.
        chunk: Option<u32>,
    },
    /// Ends a request or the deltas of a [`Frame::HaveQuery`]. Answers may still be on their way.
    Cancel {
        /// Number of the request.
        req: RequestNumber,
    },
    /// The request is over, unanswered.
    Error {
        /// Number of the request.
        req: RequestNumber,
        /// Why.
        code: ErrorCode,
    },
    /// So many more bytes of [`Frame::Data`] may be sent.
    Credit {
        /// How many.
        bytes: u32,
    },
    /// Asks for an encoded manifest.
    ManifestQuery {
        /// Number of the request.
        req: RequestNumber,
        /// Of what.
        object: Object,
    },
    /// A part of an encoded manifest. Parts come in order.
    Manifest {
        /// Number of the request.
        req: RequestNumber,
        /// Where the part begins.
        offset: u32,
        /// Bytes of the whole, at most [`MANIFEST_LEN_MAX`].
        total: u32,
        /// At most [`MANIFEST_PART_LEN_MAX`].
        bytes: Bytes,
    },
}

/// Why bytes are no frames. The stream is of no further use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// A payload longer than its type allows.
    #[error("frame of type {kind} with {len} bytes of payload")]
    Length {
        /// Type of the frame.
        kind: u8,
        /// Bytes it claims.
        len: u32,
    },
    /// A payload that does not hold what its type says.
    #[error("malformed frame of type {kind}")]
    Malformed {
        /// Type of the frame.
        kind: u8,
    },
}

impl Priority {
    fn from_byte(byte: u8) -> Option<Priority> {
        match byte {
            0 => Some(Priority::Client),
            1 => Some(Priority::Background),
            _ => None,
        }
    }
}

impl ErrorCode {
    fn from_number(number: u16) -> ErrorCode {
        match number {
            1 => ErrorCode::Expired,
            2 => ErrorCode::Forbidden,
            3 => ErrorCode::Malformed,
            4 => ErrorCode::Internal,
            other => ErrorCode::Other(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            ErrorCode::Expired => 1,
            ErrorCode::Forbidden => 2,
            ErrorCode::Malformed => 3,
            ErrorCode::Internal => 4,
            ErrorCode::Other(number) => number,
        }
    }
}

/// The types of the table above.
mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const HAVE_QUERY: u8 = 2;
    pub(super) const HAVE: u8 = 3;
    pub(super) const HAVE_DELTA: u8 = 4;
    pub(super) const GET: u8 = 5;
    pub(super) const GET_MANY: u8 = 6;
    pub(super) const DATA: u8 = 7;
    pub(super) const BUSY: u8 = 8;
    pub(super) const NOT_FOUND: u8 = 9;
    pub(super) const CANCEL: u8 = 10;
    pub(super) const ERROR: u8 = 11;
    pub(super) const CREDIT: u8 = 12;
    pub(super) const MANIFEST_QUERY: u8 = 13;
    pub(super) const MANIFEST: u8 = 14;
    pub(super) const OTHERS: u8 = 15;
}

/// Flag of [`Frame::Data`].
const FLAG_LAST: u8 = 1;
const OBJECT_LEN: usize = 64;
const NODE_LEN: usize = 32;
const HELLO_LEN: usize = 2 + 4 + 4 + 16;
const RANGE_LEN: usize = 8;
const GET_HEAD_LEN: usize = OBJECT_LEN + 1 + 4;
/// State of a [`Have`] and its number of segments, before the bitmap.
const HAVE_HEAD_LEN: usize = 5;

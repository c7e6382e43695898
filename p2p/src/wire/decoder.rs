//! From bytes to frames.

use bytes::{Buf, BytesMut};

use super::payload::{len_max, read};
use super::{Frame, HEADER_LEN, WireError};

/// Reads frames from a stream that arrives in pieces.
///
/// Holds at most one incomplete frame beside what was fed since [`Decoder::next`] last returned
/// `None`: drain it after each piece. After an error it stays in error; close the stream.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// Bytes still to come of a frame of an unknown type.
    skip: usize,
    broken: Option<WireError>,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.buffer.extend_from_slice(&bytes[skipped..]);
    }

    /// The next whole frame; `None` until more bytes are fed.
    ///
    /// Payloads share the read buffer and are not copied.
    ///
    /// # Errors
    /// Any [`WireError`], again on every later call.
    // Not an iterator: `None` means "not yet".
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Frame>, WireError> {
        match self.broken {
            Some(error) => Err(error),
            None => self.read_known().inspect_err(|error| {
                self.broken = Some(*error);
                self.buffer = BytesMut::new();
            }),
        }
    }

    /// Whether part of a frame has arrived: a peer that stays so for long is not sending but
    /// holding the stream.
    pub fn is_partial(&self) -> bool {
        self.skip > 0 || !self.buffer.is_empty()
    }

    fn read_known(&mut self) -> Result<Option<Frame>, WireError> {
        loop {
            let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else {
                return Ok(None);
            };
            let header = Header::read(header);
            let known = len_max(header.kind);
            if header.len as usize > known.unwrap_or(super::PAYLOAD_LEN_MAX) {
                return Err(WireError::Length {
                    kind: header.kind,
                    len: header.len,
                });
            }
            if known.is_none() {
                self.buffer.advance(HEADER_LEN);
                self.skip = header.len as usize;
                let here = self.skip.min(self.buffer.len());
                self.buffer.advance(here);
                self.skip -= here;
                continue;
            }
            let len = HEADER_LEN + header.len as usize;
            if self.buffer.len() < len {
                self.buffer.reserve(len - self.buffer.len());
                return Ok(None);
            }
            let payload = self.buffer.split_to(len).split_off(HEADER_LEN).freeze();
            let kind = header.kind;
            return read(header, payload)
                .map_or(Err(WireError::Malformed { kind }), |frame| Ok(Some(frame)));
        }
    }
}

/// What precedes every payload.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) req: u32,
    pub(super) len: u32,
}

impl Header {
    fn read(bytes: &[u8; HEADER_LEN]) -> Header {
        let [kind, flags, r0, r1, r2, r3, l0, l1, l2, l3] = *bytes;
        Header {
            kind,
            flags,
            req: u32::from_be_bytes([r0, r1, r2, r3]),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        }
    }
}

//! Questions after NARs of upstreams, and false answers.

use attic_store::frame::FrameEncoder;
use bytes::Bytes;

/// Whether a question is after a NAR of an upstream.
///
/// **Shape**: postcard of an enum's sixth variant.
pub(super) fn is_question(bytes: &[u8]) -> bool {
    bytes.first() == Some(&PULL)
}

/// One chunk, sound and of something else.
pub(super) fn lie() -> Bytes {
    let chunk = [0x5a; 1 << 16];
    let frame = FrameEncoder::new().encode(&chunk).expect("a chunk");
    let chunks: [(u32, &[u8]); 1] = [(chunk.len() as u32, &frame)];
    let answer = (PULL, CHUNKS, &chunks[..]);
    postcard::to_stdvec(&answer).expect("plain data").into()
}

/// The variant of question and answer.
const PULL: u8 = 5;
/// The variant of an answer that has something.
const CHUNKS: u8 = 1;

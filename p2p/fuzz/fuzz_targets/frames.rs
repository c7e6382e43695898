//! Any bytes are frames of a bulk stream that are written as they were read, or an error that lasts,
//! however they are split. Their number chooses the split.
//!
//! In `p2p/`: `cargo +nightly fuzz run frames`.

#![no_main]

use attic_p2p::wire::{Decoder, Frame, WireError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes.len(), bytes);
    assert_eq!(decode(bytes.len() % 61, bytes), whole);
    let (frames, _) = whole;
    for frame in frames {
        let written = frame.encode();
        assert_eq!(written.len(), written.to_vec().len());
        let (again, error) = decode(written.len(), &written.to_vec());
        assert_eq!((again, error), (vec![frame], None));
    }
});

/// The frames up to the first error, and the error.
fn decode(piece_len: usize, bytes: &[u8]) -> (Vec<Frame>, Option<WireError>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece_len.max(1)) {
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next(), Err(error));
                    return (frames, Some(error));
                }
            }
        }
    }
    (frames, None)
}

//! Any bytes are a question and an answer about logs within their bounds, or an error.
//!
//! In `p2p/`: `cargo +nightly fuzz run reconcile`.

#![no_main]

use attic_p2p::reconcile::{Answer, Ask, BUCKETS, RANGES_MAX, SHARDS_PER_ASK, Summary};
use attic_p2p::segment::SEGMENT_LEN_MAX;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(ask) = Ask::decode(bytes) {
        if let Ask::Pull { ranges } = &ask {
            assert!(ranges.len() <= RANGES_MAX);
        }
        assert_eq!(Ask::decode(&ask.encode()), Ok(ask));
    }
    if let Ok(answer) = Answer::decode(&Bytes::copy_from_slice(bytes)) {
        match &answer {
            Answer::Hello { buckets, .. } => {
                let buckets = buckets.as_deref().unwrap_or(&[0; BUCKETS]);
                assert_eq!(buckets.len(), BUCKETS);
                let _ = Summary::of(&[]).differing(buckets);
            }
            Answer::Tips { .. } => {}
            Answer::Segments(segments) => {
                assert!(segments.iter().all(|segment| segment.len() <= SEGMENT_LEN_MAX));
            }
            Answer::Shards(digests) => {
                let whole = usize::from(SHARDS_PER_ASK);
                assert!(digests.as_ref().is_none_or(|digests| digests.len() == whole));
            }
        }
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
});

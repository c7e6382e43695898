//! Any bytes are a segment in the form it is forwarded in, or an error; so is each record in it, and
//! any bytes as a record. What has a valid form and a bent head is put right first, so that the
//! records are reached: the hash of the body is the last thing a fuzzer guesses.
//!
//! In `p2p/`: `cargo +nightly fuzz run segments`.

#![no_main]

use attic_p2p::identity::Identity;
use attic_p2p::ids::ClusterId;
use attic_p2p::record::{RawRecord, Record};
use attic_p2p::segment::{Place, Segment, SegmentId};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(segment) = Segment::decode(Bytes::copy_from_slice(bytes)) {
        assert_eq!(segment.bytes(), bytes);
        let _ = segment.verify();
        look_at(&segment);
    }
    if let Ok(record) = Record::decode(bytes) {
        same_again(&record);
    }
    let signer = Identity::from_seed([1; 32]);
    let cluster = ClusterId::from_bytes([1; 16]);
    let place = Place {
        cluster,
        seq: 1000,
        prev: SegmentId::before_first(&cluster),
        hlc: 1,
    };
    let append = Segment::append(&signer, place, bytes);
    let checkpoint = Segment::checkpoint(&signer, place, (0, 1), bytes);
    for segment in [append, checkpoint].into_iter().flatten() {
        assert_eq!(segment.verify(), Ok(()));
        look_at(&segment);
    }
});

fn look_at(segment: &Segment) {
    for entry in segment.entries() {
        let raw: RawRecord<'_> = entry.record;
        let read = raw.read();
        assert_eq!(read.kind(), raw.kind);
        same_again(&read);
    }
}

/// What is written of a record is read as the same record.
fn same_again(record: &Record) {
    if let Ok(encoded) = record.encode() {
        assert_eq!(Record::decode(&encoded).as_ref(), Ok(record));
    }
}

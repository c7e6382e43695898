use proptest::prelude::*;

use super::*;

fn object(seed: u8) -> Object {
    Object {
        nar: NarHash::from_bytes([seed; 32]),
        manifest: ManifestId::from_bytes([!seed; 32]),
    }
}

fn millis() -> impl Strategy<Value = Duration> {
    any::<u32>().prop_map(|millis| Duration::from_millis(millis.into()))
}

fn have() -> impl Strategy<Value = Have> {
    let partial = prop::collection::vec(any::<bool>(), 0..300).prop_map(|members| {
        let mut set = SegmentSet::empty(members.len() as u32);
        for (segment, _) in (0u32..).zip(members).filter(|(_, member)| *member) {
            set.insert(segment);
        }
        Have::Partial(set)
    });
    prop_oneof![Just(Have::Nothing), Just(Have::Complete), partial]
}

fn short_frame() -> impl Strategy<Value = Frame> {
    let req = || any::<u32>();
    prop_oneof![
        (any::<(u16, u32, u32, [u8; 16])>()).prop_map(|(protocol, capabilities, window, id)| {
            let cluster = ClusterId::from_bytes(id);
            Frame::Hello(Hello {
                protocol,
                capabilities,
                window,
                cluster,
            })
        }),
        (req(), any::<u8>()).prop_map(|(req, seed)| Frame::HaveQuery {
            req,
            object: object(seed)
        }),
        (req(), any::<u8>()).prop_map(|(req, seed)| Frame::ManifestQuery {
            req,
            object: object(seed)
        }),
        (req(), millis()).prop_map(|(req, retry)| Frame::Busy { req, retry }),
        (req(), any::<Option<u32>>()).prop_map(|(req, chunk)| Frame::NotFound { req, chunk }),
        req().prop_map(|req| Frame::Cancel { req }),
        (req(), any::<u16>()).prop_map(|(req, code)| Frame::Error {
            req,
            code: ErrorCode::from_number(code)
        }),
        any::<u32>().prop_map(|bytes| Frame::Credit { bytes }),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let range = (0u32..1 << 20, 1u32..99).prop_map(|(first, count)| ChunkRange { first, count });
    let ranges = prop::collection::vec(range, 1..=RANGES_MAX);
    let bytes = prop::collection::vec(any::<u8>(), 1..2_000).prop_map(Bytes::from);
    let priority = prop_oneof![Just(Priority::Client), Just(Priority::Background)];
    let objects = prop::collection::vec(any::<u8>().prop_map(object), 1..=OBJECTS_MAX);
    let part = (any::<u32>(), 0u32..1 << 20, 0u32..1 << 20, bytes.clone());
    prop_oneof![
        short_frame(),
        (any::<u32>(), have()).prop_map(|(req, have)| Frame::Have { req, have }),
        (
            any::<u32>(),
            prop::collection::vec(any::<u32>(), 1..=DELTA_MAX)
        )
            .prop_map(|(req, segments)| Frame::HaveDelta { req, segments }),
        (
            any::<u32>(),
            prop::collection::vec(
                any::<[u8; 32]>().prop_map(NodeId::from_bytes),
                1..=OTHERS_MAX
            )
        )
            .prop_map(|(req, nodes)| Frame::Others { req, nodes }),
        (any::<u32>(), any::<u8>(), ranges, priority, millis()).prop_map(
            |(req, seed, ranges, priority, deadline)| {
                Frame::Get {
                    req,
                    object: object(seed),
                    ranges,
                    priority,
                    deadline,
                }
            }
        ),
        (0u32..1 << 31, objects).prop_map(|(req, objects)| Frame::GetMany { req, objects }),
        (any::<(u32, u32, bool)>(), bytes).prop_map(|((req, chunk, last), bytes)| Frame::Data {
            req,
            chunk,
            last,
            bytes
        }),
        part.prop_map(|(req, offset, more, bytes)| {
            let total = offset + bytes.len() as u32 + more;
            Frame::Manifest {
                req,
                offset,
                total,
                bytes,
            }
        }),
    ]
}

/// Everything the decoder makes of `bytes`, fed in pieces of `step`.
fn decode(bytes: &[u8], step: usize) -> Result<Vec<Frame>, WireError> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for piece in bytes.chunks(step) {
        decoder.feed(piece);
        while let Some(frame) = decoder.next()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

fn header(kind: u8, len: u32) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0, 0, 1];
    bytes.extend(len.to_be_bytes());
    bytes
}

#[test]
fn unknown_types_are_skipped_by_length() {
    let cancel = Frame::Cancel { req: 7 };
    for kind in [0, 16, 200, 255] {
        let mut bytes = header(kind, 1_000);
        bytes.resize(HEADER_LEN + 1_000, kind);
        bytes.extend(cancel.encode().to_vec());
        for step in [1, 9, 500, 5_000] {
            assert_eq!(
                decode(&bytes, step),
                Ok(vec![cancel.clone()]),
                "{kind} {step}"
            );
        }
    }
}

#[test]
fn a_length_is_refused_before_its_bytes_arrive() {
    for kind in 0..=255 {
        let len = payload::len_max(kind).unwrap_or(PAYLOAD_LEN_MAX);
        let len = u32::try_from(len + 1).unwrap();
        let error = WireError::Length { kind, len };
        assert_eq!(decode(&header(kind, len), 1), Err(error));
        assert!(payload::len_max(kind).unwrap_or(0) <= PAYLOAD_LEN_MAX);
    }
    let error = WireError::Length {
        kind: 7,
        len: u32::MAX,
    };
    assert_eq!(decode(&header(7, u32::MAX), 3), Err(error));
}

#[test]
fn an_error_lasts() {
    let mut decoder = Decoder::new();
    decoder.feed(&header(kind::CANCEL, 1));
    assert!(decoder.next().is_err());
    decoder.feed(&Frame::Cancel { req: 1 }.encode().to_vec());
    assert!(decoder.next().is_err());
}

#[test]
fn fields_out_of_bounds_are_malformed() {
    let get = |first, count| Frame::Get {
        req: 1,
        object: object(1),
        ranges: vec![ChunkRange { first, count }],
        priority: Priority::Client,
        deadline: Duration::ZERO,
    };
    let part = |offset, total| Frame::Manifest {
        req: 1,
        offset,
        total,
        bytes: Bytes::from_static(b"1234"),
    };
    let wrong = [
        get(0, 0),
        get(u32::MAX, 1),
        part(0, 3),
        part(u32::MAX, u32::MAX),
        part(0, MANIFEST_LEN_MAX as u32 + 1),
        Frame::HaveDelta {
            req: 1,
            segments: vec![],
        },
        Frame::Others {
            req: 1,
            nodes: vec![],
        },
        Frame::GetMany {
            req: 1,
            objects: vec![],
        },
        Frame::GetMany {
            req: u32::MAX - 3,
            objects: vec![object(1)],
        },
        Frame::Data {
            req: 1,
            chunk: 1,
            last: true,
            bytes: Bytes::new(),
        },
    ];
    for frame in wrong {
        let outcome = decode(&frame.encode().to_vec(), 1 << 20);
        assert!(
            matches!(outcome, Err(WireError::Malformed { .. })),
            "{frame:?} {outcome:?}"
        );
    }
}

#[test]
fn credit_is_given_in_quarters() {
    let mut meter = CreditMeter::default();
    assert_eq!(meter.consumed(CREDIT_WINDOW / 4 - 1), None);
    assert_eq!(meter.consumed(2), Some(CREDIT_WINDOW / 4 + 1));
    assert_eq!(meter.consumed(1), None);
}

proptest! {
    #[test]
    fn frames_round_trip_in_any_pieces(
        frames in prop::collection::vec(frame(), 1..6), step in 1usize..3_000,
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().to_vec()).collect();
        prop_assert_eq!(decode(&bytes, step), Ok(frames));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode(&bytes, 7);
        // And behind a header that fits, so that payloads are reached.
        for kind in 1..=15 {
            let mut framed = header(kind, bytes.len() as u32);
            framed.extend(&bytes);
            let _ = decode(&framed, 600);
        }
    }

    #[test]
    fn bent_and_cut_frames_never_panic(frame in frame(), at: prop::sample::Index, bit in 0u32..8) {
        let mut bytes = frame.encode().to_vec();
        let at = at.index(bytes.len());
        prop_assert_eq!(decode(&bytes[..at], 100), Ok(vec![]));
        bytes[at] ^= 1 << bit;
        let _ = decode(&bytes, 100);
    }
}

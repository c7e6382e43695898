//! Import, assemble, publish, read.

use attic_store::frame::{FrameDecoder, FrameEncoder};
use attic_store::manifest::ManifestEntry;
use attic_store::record::Pin;
use attic_store::{Assembled, ChunkId, ImportError, StoreError};
use sha2::{Digest, Sha256};

use super::*;

#[test]
fn what_is_imported_reads_back_in_both_forms() {
    let fixture = Fixture::new();
    let mixed = [noise(1, 700_000), vec![b'x'; 2_000_000], noise(2, 10)].concat();
    for contents in [Vec::new(), b"hello".to_vec(), mixed] {
        let nar = nar_of(&contents);
        let lease = fixture.store().lease();
        let imported = fixture.import(&lease, &nar);
        assert_eq!(
            (imported.nar_hash, imported.nar_size),
            (hash_of(&nar), nar.len() as u64)
        );
        fixture.assert_reads_back(&nar);
        let (frames, _) = fixture.read(&imported.nar_hash).expect("here");
        assert_eq!(imported.file_size, frames.len() as u64);
        assert_eq!(
            imported.file_hash.as_bytes(),
            &<[u8; 32]>::from(Sha256::digest(&frames))
        );
    }
    fixture.verify_is_clean();
}

/// S9: what a client is sent while it is imported: every chunk, in order, as soon as it is stored.
#[test]
fn s9_an_import_tells_of_chunks_that_can_be_read_then() {
    let fixture = Fixture::new();
    let nar = nar_of(&noise(5, 5_000_000));
    let (store, lease) = (fixture.store(), fixture.store().lease());
    let (mut decoder, mut seen) = (FrameDecoder::new(), Vec::new());
    let mut landed = |entry: &ManifestEntry| {
        let frame = store.frame(&entry.id).expect("reads").expect("is stored");
        let chunk = decoder.decode(&frame, entry.raw_len as usize);
        seen.extend(chunk.expect("decodes"));
    };
    let mut source = &nar[..];
    let imported = store
        .import_watched(&lease, &mut source, &mut landed)
        .expect("imports");
    assert!(seen == nar, "{} of {} bytes", seen.len(), nar.len());
    assert_eq!(imported.nar_hash, hash_of(&nar));

    // A stream that breaks off has told of some, and is no NAR.
    let cut = nar_of(&noise(6, 5_000_000));
    let mut told = 0;
    let mut source = &cut[..cut.len() - 100];
    let outcome = store.import_watched(&lease, &mut source, &mut |_| told += 1);
    assert!(outcome.is_err() && told > 0, "{told} {outcome:?}");
    assert!(fixture.read(&hash_of(&cut)).is_none());
}

/// S4: every range of both forms is the same bytes as in the whole.
#[test]
fn ranges_are_slices_of_the_whole() {
    let fixture = Fixture::new();
    let nar = nar_of(&noise(3, 3_000_000));
    let row = fixture.publish(1, &nar, &[]);
    let (frames, plain) = fixture.read(&row.info.nar_hash).expect("here");
    let reader = fixture
        .store()
        .open_nar(&row.info.nar_hash)
        .expect("opens")
        .expect("here");
    let size = frames.len() as u64;
    for (start, end) in [
        (0, 1),
        (0, size),
        (1, size - 1),
        (size - 1, size),
        (65_536, 65_537),
        (500_000, 2_500_000),
        (size, size + 5),
        (7, 7),
        (0, u64::MAX),
    ] {
        let clip = |bytes: &[u8]| {
            let len = bytes.len() as u64;
            bytes[start.min(len) as usize..end.min(len) as usize].to_vec()
        };
        assert!(drain(reader.frames(start..end)).expect("frames") == clip(&frames));
        assert!(drain(reader.plain(start..end)).expect("plain") == clip(&plain));
    }
}

#[test]
fn the_second_import_stores_nothing_new() {
    let fixture = Fixture::new();
    let nar = nar_of(&noise(4, 2_000_000));
    let lease = fixture.store().lease();
    let first = fixture.import(&lease, &nar);
    assert_eq!(first.new_raw_bytes, nar.len() as u64);
    let second = fixture.import(&lease, &nar);
    assert_eq!((second.new_raw_bytes, second.new_bytes), (0, 0));
    assert_eq!(
        (second.file_hash, second.file_size),
        (first.file_hash, first.file_size)
    );
}

/// G1: an edit in the middle costs the chunks around it.
#[test]
fn versions_share_chunks() {
    let fixture = Fixture::new();
    let lease = fixture.store().lease();
    let mut contents = noise(5, 8_000_000);
    fixture.import(&lease, &nar_of(&contents));
    contents[4_000_000] ^= 1;
    let second = fixture.import(&lease, &nar_of(&contents));
    assert!(second.new_raw_bytes < 1_600_000, "{second:?}");
}

/// G1, G2: a store filled chunk by chunk serves the same bytes as one filled by stream.
#[test]
fn both_ways_in_give_the_same_frames() {
    let streamed = Fixture::new();
    let assembled = Fixture::new();
    let nar = nar_of(&[noise(6, 900_000), vec![0; 900_000]].concat());
    let expected = streamed.import(&streamed.store().lease(), &nar);
    let store = assembled.store();
    let lease = store.lease();
    let mut encoder = FrameEncoder::new();
    let mut ids = Vec::new();
    for chunk in chunks_of(&nar) {
        let id = ChunkId::of(&chunk);
        let frame = encoder.encode(&chunk).expect("encodes");
        store
            .put_frame(&lease, id, chunk.len() as u32, &frame)
            .expect("stores");
        ids.push(id);
    }
    assert_eq!(
        store.missing(&lease, &ids).expect("looks"),
        vec![false; ids.len()]
    );
    let mut seen = Vec::new();
    let outcome = store.assemble(&lease, &ids, &mut |_, chunk| seen.extend_from_slice(chunk));
    let Assembled::Done(done) = outcome.expect("assembles") else {
        panic!("chunks missing")
    };
    assert!(seen == nar);
    assert_eq!(
        (done.nar_hash, done.file_hash),
        (expected.nar_hash, expected.file_hash)
    );
    assert_eq!(
        streamed.read(&done.nar_hash),
        assembled.read(&done.nar_hash)
    );
}

#[test]
fn assemble_names_what_is_missing_and_stores_nothing() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let lease = store.lease();
    let ids = [ChunkId::of(b"a"), ChunkId::of(b"b")];
    let frame = FrameEncoder::new().encode(b"b").expect("encodes");
    store.put_frame(&lease, ids[1], 1, &frame).expect("stores");
    let outcome = store
        .assemble(&lease, &ids, &mut |_, _| {})
        .expect("assembles");
    assert_eq!(outcome, Assembled::Missing(vec![0]));
    assert_eq!(store.missing(&lease, &ids).expect("looks"), [true, false]);
}

#[test]
fn bad_uploads_are_refused_and_invisible() {
    let fixture = Fixture::with(Options {
        nar_size_max: 1_000_000,
        ..Options::default()
    });
    let store = fixture.store();
    let lease = store.lease();
    let import = |bytes: &[u8]| store.import(&lease, &mut &bytes[..]);
    let nar = nar_of(b"content");
    assert!(matches!(import(b"no nar"), Err(ImportError::Nar(_))));
    assert!(matches!(
        import(&nar[..nar.len() - 8]),
        Err(ImportError::Nar(_))
    ));
    assert!(matches!(
        import(&[&nar[..], b"trailing"].concat()),
        Err(ImportError::Nar(_))
    ));
    assert!(matches!(
        import(&nar_of(&noise(7, 1_000_001))),
        Err(ImportError::TooLarge(1_000_000))
    ));
    let id = ChunkId::of(b"right");
    let frame = FrameEncoder::new().encode(b"wrong").expect("encodes");
    assert!(matches!(
        store.put_frame(&lease, id, 5, &frame),
        Err(ImportError::WrongChunk(_))
    ));
    assert!(matches!(
        store.put_frame(&lease, id, 6, &frame),
        Err(ImportError::Frame { .. })
    ));
    assert_eq!(store.missing(&lease, &[id]).expect("looks"), [true]);
    let garbage = FrameEncoder::new().encode(b"not a nar").expect("encodes");
    let id = ChunkId::of(b"not a nar");
    store
        .put_frame(&lease, id, 9, &garbage)
        .expect("a chunk need not be a NAR");
    let outcome = store.assemble(&lease, &[id], &mut |_, _| {});
    assert!(matches!(outcome, Err(ImportError::Nar(_))));
    let absent = attic_store::Imported {
        nar_hash: hash_of(b"absent"),
        nar_size: 1,
        ..fixture.import(&lease, &nar)
    };
    let outcome = store.publish(vec![path_row(1, &absent, &[], 0)]);
    assert!(matches!(outcome, Err(StoreError::NarAbsent(_))));
    assert_eq!(store.path(&cache(), path(1).hash()).expect("reads"), None);
}

#[test]
fn rows_survive_a_restart() {
    let mut fixture = Fixture::new();
    let nar = nar_of(b"row");
    let row = fixture.publish(1, &nar, &[1, 2]);
    fixture
        .store()
        .put_blob(&cache(), "log/x.drv", &noise(8, 400_000))
        .expect("blob");
    let pin = Pin {
        cache: cache(),
        name: "app".into(),
        path: path(1),
        keep: 1,
        created_at: 5,
    };
    fixture.store().pin(pin.clone()).expect("pins");
    fixture.publish(2, &nar_of(b"gone"), &[]);
    assert_eq!(
        fixture
            .store()
            .remove(&cache(), &[*path(2).hash(), *path(3).hash()])
            .expect("removes"),
        1
    );
    for restart in [Fixture::crash, Fixture::reopen] {
        restart(&mut fixture);
        let store = fixture.store();
        assert_eq!(
            store.paths(&cache(), None, 10).expect("lists"),
            std::slice::from_ref(&row)
        );
        assert_eq!(
            store
                .blob(&cache(), "log/x.drv")
                .expect("reads")
                .expect("here"),
            noise(8, 400_000)
        );
        assert_eq!(
            store.pins(&cache()).expect("pins"),
            std::slice::from_ref(&pin)
        );
        let listing = store
            .listing(&row.info.nar_hash)
            .expect("reads")
            .expect("has one");
        assert!(listing.starts_with(br#"{"version":1,"root":{"type":"regular","size":3"#));
    }
    fixture.store().close().expect("closes");
}

#[test]
fn a_pin_keeps_as_many_generations_as_it_was_told() {
    let fixture = Fixture::new();
    let pin = |index: u8, keep: u32| {
        // All in one second: the order is that of setting, not of the clock.
        let created_at = 7;
        let pin = Pin {
            cache: cache(),
            name: "app".into(),
            path: path(index),
            keep,
            created_at,
        };
        fixture.store().pin(pin).expect("pins");
        let pins = fixture.store().pins(&cache()).expect("pins");
        pins.iter()
            .map(|pin| pin.path.hash().as_bytes()[0])
            .collect::<Vec<_>>()
    };
    assert_eq!(pin(1, 2), [1]);
    assert_eq!(pin(2, 2), [2, 1]);
    assert_eq!(pin(0, 2), [0, 2]);
    assert_eq!(pin(4, 1), [4]);
    assert_eq!(fixture.store().unpin(&cache(), "app").expect("unpins"), 1);
    assert_eq!(fixture.store().unpin(&cache(), "app").expect("unpins"), 0);
}

#[test]
fn a_purged_cache_can_be_filled_again() {
    let mut fixture = Fixture::new();
    fixture.publish(1, &nar_of(b"one"), &[]);
    fixture.store().purge_cache(&cache()).expect("purges");
    assert!(
        fixture
            .store()
            .paths(&cache(), None, 10)
            .expect("lists")
            .is_empty()
    );
    let row = fixture.publish(2, &nar_of(b"two"), &[]);
    fixture.crash();
    assert_eq!(
        fixture.store().paths(&cache(), None, 10).expect("lists"),
        [row]
    );
}

/// G9: many publish at once; every one is durable when it returns.
#[test]
fn five_hundred_concurrent_publishes_all_hold() {
    let mut fixture = Fixture::new();
    let store = fixture.store();
    std::thread::scope(|scope| {
        for worker in 0u64..20 {
            scope.spawn(move || {
                for index in 0..25 {
                    let nar = nar_of(&noise(1_000 + worker * 25 + index, 3_000));
                    let lease = store.lease();
                    let imported = store.import(&lease, &mut &nar[..]).expect("imports");
                    let mut row = path_row(0, &imported, &[], 0);
                    let mut hash = [0; 20];
                    hash[..8].copy_from_slice(&(worker * 25 + index).to_le_bytes());
                    let hash = StorePathHash::from_bytes(hash);
                    row.info.path = format!("{hash}-p").parse().expect("store path");
                    store.publish(vec![row]).expect("publishes");
                }
            });
        }
    });
    fixture.crash();
    let rows = fixture.store().paths(&cache(), None, 1_000).expect("lists");
    assert_eq!(rows.len(), 500);
    for row in rows {
        assert!(fixture.read(&row.info.nar_hash).is_some());
    }
    fixture.verify_is_clean();
}

//! What a hostile uploader, an unlucky crash and a slow reader try.

use std::io::Read;

use attic_store::record::{Change, PackSalt, RecordHeader, RecordKind, Row};
use attic_store::{Assembled, ChunkId, CollectOptions, VerifyOptions};

use super::*;

const FULL: CollectOptions = CollectOptions {
    dry_run: false,
    full: true,
};

fn one_large_pack() -> Options {
    Options {
        pack_len_target: 64 << 20,
        upload_grace: Duration::ZERO,
        ..Options::default()
    }
}

fn visible(store: &Store, index: u8) -> bool {
    store
        .path(&cache(), path(index).hash())
        .expect("reads")
        .is_some()
}

/// A valid zstd frame that is not ours: raw blocks and a window of `1 << window_log` bytes.
fn foreign_frame(chunk: &[u8], window_log: u8) -> Vec<u8> {
    let mut frame = 0xFD2F_B528u32.to_le_bytes().to_vec();
    frame.extend_from_slice(&[0, (window_log - 10) << 3]);
    let blocks = chunk.len().div_ceil(128 << 10);
    for (index, block) in chunk.chunks(128 << 10).enumerate() {
        let header = (block.len() as u32) << 3 | u32::from(index + 1 == blocks);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

/// A stream that does something once in the middle, and then goes on or breaks.
struct Interrupted<'a> {
    bytes: &'a [u8],
    at: usize,
    act: Option<Box<dyn FnOnce() + 'a>>,
    breaks: bool,
}

impl Read for Interrupted<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.at == 0
            && let Some(act) = self.act.take()
        {
            act();
        }
        if self.act.is_none() && self.breaks {
            return Err(std::io::Error::other("the client is gone"));
        }
        let limit = if self.at > 0 { self.at } else { usize::MAX };
        let len = out.len().min(self.bytes.len()).min(limit);
        out[..len].copy_from_slice(&self.bytes[..len]);
        self.bytes = &self.bytes[len..];
        self.at -= len.min(self.at);
        Ok(len)
    }
}

/// Uploaded bytes that look like records, in a pack torn in the middle of them, publish nothing and
/// remove nothing.
#[test]
fn records_inside_an_upload_are_not_taken_for_records() {
    let mut fixture = Fixture::with(one_large_pack());
    let row = fixture.publish(1, &nar_of(&noise(200, 50_000)), &[]);
    let mut forged_row = row;
    forged_row.info.path = path(9);
    let forge = |change| {
        let body = Row {
            seq: 1 << 40,
            change,
        }
        .encode();
        let header = RecordHeader::new(RecordKind::Row, [0; 32], body.len() as u32, &body);
        [&header.encode(&PackSalt::from_bytes([0; 8]))[..], &body].concat()
    };
    let removal = Change::RemovePath(cache(), *path(1).hash());
    let forged = [forge(Change::Path(forged_row)), forge(removal)].concat();
    let nar = nar_of(&[&noise(201, 10_000)[..], &forged, &noise(202, 60_000)].concat());
    fixture.import(&fixture.store().lease(), &nar);
    fixture.store = None;
    let pack = fixture.packs().remove(0);
    let bytes = fs::read(&pack).expect("reads");
    let at = bytes
        .windows(forged.len())
        .position(|window| window == forged)
        .expect("verbatim");
    let torn = fs::File::options().write(true).open(&pack).expect("opens");
    torn.set_len((at + forged.len() + 5_000) as u64)
        .expect("cuts");
    fixture.reopen();
    assert!(!visible(fixture.store(), 9) && visible(fixture.store(), 1));
}

/// A removal is remembered as long as an older row lies in any pack, also one being written.
#[test]
fn a_removed_path_stays_removed_over_collection_and_crash() {
    let mut fixture = Fixture::with(one_large_pack());
    fixture.publish(1, &nar_of(&noise(203, 50_000)), &[]);
    let slow = nar_of(&noise(204, 4_000_000));
    {
        let store = fixture.store();
        // The slow import has the pack with the row checked out while the path is removed.
        let act = Box::new(|| {
            store.remove(&cache(), &[*path(1).hash()]).expect("removes");
            store.collect(&FULL).expect("collects");
            store.collect(&FULL).expect("collects");
        });
        let mut nar = Interrupted {
            bytes: &slow,
            at: 3_500_000,
            act: Some(act),
            breaks: true,
        };
        assert!(store.import(&store.lease(), &mut nar).is_err());
    }
    assert!(!visible(fixture.store(), 1));
    fixture.crash();
    assert!(!visible(fixture.store(), 1));
}

/// A kill right after a collection: the index must not lag behind the deleted packs.
#[test]
fn a_publish_after_collection_and_kill_holds() {
    let fixture = Fixture::with(one_large_pack());
    let nar = nar_of(&noise(205, 50_000));
    for _ in 0..5 {
        fixture.publish(1, &nar, &[]);
    }
    fixture
        .store()
        .remove(&cache(), &[*path(1).hash()])
        .expect("removes");
    fixture.store().collect(&FULL).expect("collects");
    fixture.store().collect(&FULL).expect("collects");
    let image = tempfile::tempdir().expect("temporary folder");
    copy_dir(fixture.dir.path(), image.path());
    let store = Store::open(image.path(), one_large_pack()).expect("opens");
    assert!(!visible(&store, 1));
    assert_eq!(store.nar(&hash_of(&nar)).expect("reads"), None);
    let lease = store.lease();
    let imported = store.import(&lease, &mut &nar[..]).expect("imports");
    store
        .publish(vec![path_row(1, &imported, &[], 5)])
        .expect("publishes");
    assert!(visible(&store, 1));
    let reader = store
        .open_nar(&hash_of(&nar))
        .expect("opens")
        .expect("here");
    assert!(drain(reader.plain(0..u64::MAX)).expect("reads") == nar);
}

/// G2: what is stored and served does not depend on how an uploader framed a chunk.
#[test]
fn foreign_frames_become_ours() {
    let theirs = Fixture::with(one_large_pack());
    let ours = Fixture::with(one_large_pack());
    let nar = nar_of(&noise(206, 2_300_000));
    let chunks = chunks_of(&nar);
    let store = theirs.store();
    let put = |chunk: &[u8], window_log| {
        let frame = foreign_frame(chunk, window_log);
        let lease = store.lease();
        store
            .put_frame(&lease, ChunkId::of(chunk), chunk.len() as u32, &frame)
            .expect("stores");
    };
    // One with an absurd window before the import, one that races with it.
    put(&chunks[0], 31);
    let act = Box::new(|| put(&chunks[1], 20));
    let mut racing = Interrupted {
        bytes: &nar,
        at: 2_200_000,
        act: Some(act),
        breaks: false,
    };
    let lease = store.lease();
    let imported = store.import(&lease, &mut racing).expect("imports");
    store
        .publish(vec![path_row(1, &imported, &[], 5)])
        .expect("publishes");
    theirs.assert_reads_back(&nar);
    assert_eq!(
        ours.import(&ours.store().lease(), &nar).file_hash,
        imported.file_hash
    );
}

/// G8: a download that began before the damage was healed does not hide the healed NAR.
#[test]
fn a_slow_reader_does_not_hide_a_healed_nar() {
    let mut fixture = Fixture::with(Options {
        pack_len_target: 512 << 10,
        ..one_large_pack()
    });
    let nar = nar_of(&noise(207, 3_000_000));
    fixture.publish(1, &nar, &[]);
    fixture.store().close().expect("closes");
    fixture.store = None;
    let chunks = chunks_of(&nar);
    let late = &chunks[chunks.len() - 2];
    for pack in fixture.packs() {
        let mut bytes = fs::read(&pack).expect("reads");
        if let Some(at) = bytes.windows(64).position(|window| window == &late[..64]) {
            bytes[at] ^= 1;
            fs::write(&pack, bytes).expect("writes");
        }
    }
    fixture.reopen();
    let store = fixture.store();
    let reader = store
        .open_nar(&hash_of(&nar))
        .expect("opens")
        .expect("here");
    let mut slow = reader.plain(0..u64::MAX);
    slow.next_block().expect("reads");
    store
        .verify(&VerifyOptions { repair: true }, &mut |_| {})
        .expect("verifies");
    assert!(!visible(store, 1));
    let lease = store.lease();
    let frame = foreign_frame(late, 20);
    store
        .put_frame(&lease, ChunkId::of(late), late.len() as u32, &frame)
        .expect("stores");
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| ChunkId::of(chunk)).collect();
    let assembled = store
        .assemble(&lease, &ids, &mut |_, _| {})
        .expect("assembles");
    let Assembled::Done(imported) = assembled else {
        panic!("chunks missing")
    };
    store
        .publish(vec![path_row(1, &imported, &[], 5)])
        .expect("publishes");
    while let Ok(Some(_)) = slow.next_block() {}
    assert!(visible(store, 1));
    fixture.assert_reads_back(&nar);
}

#[test]
fn a_store_can_be_opened_again_right_after_a_broken_import() {
    for seed in 0..10 {
        let mut fixture = Fixture::with(one_large_pack());
        let nar = nar_of(&noise(210 + seed, 1_500_000));
        let mut broken = Interrupted {
            bytes: &nar,
            at: 1_200_000,
            act: Some(Box::new(|| ())),
            breaks: true,
        };
        let store = fixture.store();
        assert!(store.import(&store.lease(), &mut broken).is_err());
        fixture.reopen();
    }
}

#[test]
fn a_first_start_cut_short_is_started_again() {
    let dir = tempfile::tempdir().expect("temporary folder");
    fs::write(dir.path().join("format"), "").expect("writes");
    Store::open(dir.path(), Options::default()).expect("opens");
}

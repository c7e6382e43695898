//! Packs that an earlier version wrote. The files are never edited: what is read here must be
//! readable for as long as somebody may have such a store.

use attic_store::FileHash;
use attic_store::record::{Pin, UploadName};

use super::*;

/// What [`fill`] writes.
fn nars() -> [Vec<u8>; 3] {
    [
        nar_of(b"hello\n"),
        nar_of(&noise(7, 40_000)),
        // Many chunks, and few bytes of them.
        nar_of(&[noise(8, 9_000), vec![b'x'; 1_500_000], noise(8, 9_000)].concat()),
    ]
}

fn pin() -> Pin {
    Pin {
        cache: cache(),
        name: "app".into(),
        path: path(2),
        keep: 3,
        created_at: 5,
    }
}

fn upload() -> UploadName {
    UploadName {
        cache: cache(),
        file: "x.nar.xz".into(),
        nar_hash: hash_of(&nars()[0]),
        body_hash: FileHash::from_bytes([9; 32]),
        body_len: 77,
    }
}

/// Every kind of record and of change.
fn fill(fixture: &Fixture) {
    let [first, second, third] = nars();
    fixture.publish(1, &first, &[]);
    fixture.publish(2, &second, &[1, 2]);
    fixture.publish(3, &third, &[2]);
    fixture.publish(4, &first, &[]);
    let store = fixture.store();
    store.remove(&cache(), &[*path(4).hash()]).expect("removes");
    store
        .put_blob(&cache(), "log/x.drv", b"built")
        .expect("blob");
    store.set_upload_name(upload()).expect("upload name");
    store.pin(pin()).expect("pins");
    let gone = Pin {
        name: "gone".into(),
        ..pin()
    };
    store.pin(gone).expect("pins");
    store.unpin(&cache(), "gone").expect("unpins");
    let other: CacheName = "other".parse().expect("cache name");
    store.put_blob(&other, "log/y.drv", b"gone").expect("blob");
    store.purge_cache(&other).expect("purges");
}

fn assert_holds_all(fixture: &Fixture) {
    for nar in nars() {
        fixture.assert_reads_back(&nar);
    }
    fixture.verify_is_clean();
    let store = fixture.store();
    let rows = store.paths(&cache(), None, 10).expect("lists");
    let shape = |row: &PathRow| {
        let info = &row.info;
        let references: Vec<_> = info.references.iter().cloned().collect();
        (
            info.path.clone(),
            info.nar_hash,
            references,
            row.published_at,
        )
    };
    let [first, second, third] = nars().map(|nar| hash_of(&nar));
    assert_eq!(
        rows.iter().map(shape).collect::<Vec<_>>(),
        [
            (path(1), first, vec![], 1_001),
            (path(2), second, vec![path(1), path(2)], 1_002),
            (path(3), third, vec![path(2)], 1_003),
        ]
    );
    let blob = store.blob(&cache(), "log/x.drv").expect("reads");
    assert_eq!(blob.as_deref(), Some(&b"built"[..]));
    assert_eq!(store.pins(&cache()).expect("pins"), [pin()]);
    let named = store.upload_name(&cache(), "x.nar.xz").expect("reads");
    assert_eq!(named, Some(upload()));
    let other = "other".parse().expect("cache name");
    assert_eq!(store.blob(&other, "log/y.drv").expect("reads"), None);
}

/// G1: a store that was written in this form opens, reads back and is whole.
#[test]
fn packs_of_version_1_read_back() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pack-v1");
    let dir = tempfile::tempdir().expect("temporary folder");
    copy_dir(&golden, dir.path());
    let options = Fixture::new().options;
    let mut fixture = Fixture {
        store: Some(Store::open(dir.path(), options.clone()).expect("opens")),
        dir,
        options,
    };
    assert_eq!(fixture.packs().len(), 1);
    assert_holds_all(&fixture);
    fixture.reopen();
    assert_holds_all(&fixture);
}

/// The files hold what today's store is given here: they can be made anew for the next version.
#[test]
fn a_store_filled_alike_holds_the_same() {
    let mut fixture = Fixture::new();
    fill(&fixture);
    fixture.store().close().expect("closes");
    fixture.reopen();
    assert_holds_all(&fixture);
}

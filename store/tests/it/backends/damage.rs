//! Decay of packs, loss of the index: nothing wrong is served, a re-push heals.

use attic_store::VerifyOptions;

use super::*;

/// Flips one bit of a file.
fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).expect("read pack");
    bytes[at as usize] ^= 0x10;
    fs::write(path, bytes).expect("write pack");
}

/// G8: whatever byte of a pack decays, a NAR reads back right or not at all, and pushing it again
/// heals it.
#[test]
fn a_flipped_bit_is_never_served_and_a_re_push_heals() {
    let contents = noise(20, 1_200_000);
    let nar = nar_of(&contents);
    for step in 0..24u64 {
        let mut fixture = Fixture::new();
        fixture.publish(1, &nar, &[]);
        // Half of the time the pack has no footer to be found by.
        if step % 2 == 0 {
            fixture.store().close().expect("closes");
        }
        fixture.store = None;
        let pack = &fixture.packs()[(step % fixture.packs().len() as u64) as usize];
        let len = fs::metadata(pack).expect("stat").len();
        flip(pack, 40 + (len - 41) * step / 24);
        fixture.reopen();
        if let Some((_, plain)) = fixture.read(&hash_of(&nar)) {
            assert!(plain == nar, "wrong bytes served");
        }
        fixture.publish(1, &nar, &[]);
        fixture.assert_reads_back(&nar);
        assert!(
            fixture
                .store()
                .path(&cache(), path(1).hash())
                .expect("reads")
                .is_some()
        );
        fixture.reopen();
        fixture.assert_reads_back(&nar);
    }
}

/// G8: a damaged NAR disappears from its cache until it is healed.
#[test]
fn verify_finds_damage_and_repair_hides_it() {
    let mut fixture = Fixture::new();
    let nar = nar_of(&noise(21, 300_000));
    fixture.publish(1, &nar, &[]);
    fixture.publish(2, &nar_of(b"sound"), &[]);
    fixture.store().close().expect("closes");
    let large = |pack: &PathBuf| fs::metadata(pack).expect("stat").len() > 100_000;
    flip(
        fixture
            .packs()
            .iter()
            .find(|pack| large(pack))
            .expect("a large pack"),
        50_000,
    );
    fixture.reopen();
    let look = fixture
        .store()
        .verify(&VerifyOptions::default(), &mut |_| {})
        .expect("verifies");
    assert!(
        look.damaged_records >= 1 && look.damaged_nars.len() == 1,
        "{look:?}"
    );
    assert_eq!(look.damaged_nars[0].paths, [format!("main/{}", path(1))]);
    let repair = VerifyOptions { repair: true };
    fixture
        .store()
        .verify(&repair, &mut |_| {})
        .expect("verifies");
    assert_eq!(
        fixture
            .store()
            .path(&cache(), path(1).hash())
            .expect("reads"),
        None
    );
    assert!(
        fixture
            .store()
            .path(&cache(), path(2).hash())
            .expect("reads")
            .is_some()
    );
    fixture.publish(1, &nar, &[]);
    fixture.assert_reads_back(&nar);
    let full = attic_store::CollectOptions {
        full: true,
        ..Default::default()
    };
    fixture.store().close().expect("closes");
    fixture.store().collect(&full).expect("collects");
    fixture.verify_is_clean();
    fixture.assert_reads_back(&nar);
}

/// C7 (local part): packs alone are the truth.
#[test]
fn everything_is_rebuilt_from_packs() {
    let mut fixture = Fixture::new();
    let nars: Vec<Vec<u8>> = (0..6)
        .map(|seed| nar_of(&noise(30 + seed, 150_000)))
        .collect();
    for (index, nar) in nars.iter().enumerate() {
        fixture.publish(index as u8, nar, &[]);
    }
    fixture
        .store()
        .remove(&cache(), &[*path(3).hash()])
        .expect("removes");
    fixture
        .store()
        .put_blob(&cache(), "log/a.drv", b"log")
        .expect("blob");
    let full = attic_store::CollectOptions {
        full: true,
        ..Default::default()
    };
    fixture.store().collect(&full).expect("collects");
    let before = fixture.store().paths(&cache(), None, 100).expect("lists");
    assert_eq!(before.len(), 5);
    fixture.store = None;
    Store::forget_index(fixture.dir.path()).expect("forgets");
    fixture.reopen();
    assert_eq!(
        fixture.store().paths(&cache(), None, 100).expect("lists"),
        before
    );
    assert_eq!(
        fixture
            .store()
            .blob(&cache(), "log/a.drv")
            .expect("reads")
            .expect("here"),
        "log"
    );
    for (index, nar) in nars.iter().enumerate().filter(|(index, _)| *index != 3) {
        assert_eq!(
            before
                .iter()
                .filter(|row| row.info.nar_hash == hash_of(nar))
                .count(),
            1,
            "{index}"
        );
        fixture.assert_reads_back(nar);
    }
    fixture.verify_is_clean();
}

/// A damaged header in a pack without a footer hides its own record, not those after it.
#[test]
fn records_after_a_damaged_header_are_found() {
    let mut fixture = Fixture::with(Options {
        pack_len_target: 64 << 20,
        ..Options::default()
    });
    let nars: Vec<Vec<u8>> = (0..3)
        .map(|seed| nar_of(&noise(35 + seed, 60_000)))
        .collect();
    for (index, nar) in nars.iter().enumerate() {
        fixture.publish(index as u8, nar, &[]);
    }
    fixture.store = None;
    // The first record starts behind the 32-byte head.
    flip(&fixture.packs()[0].clone(), 40);
    fixture.reopen();
    assert_eq!(
        fixture
            .store()
            .paths(&cache(), None, 10)
            .expect("lists")
            .len(),
        3
    );
    assert!(fixture.read(&hash_of(&nars[0])).is_none());
    fixture.assert_reads_back(&nars[1]);
    fixture.assert_reads_back(&nars[2]);
}

#[test]
fn a_broken_index_is_rebuilt_at_open() {
    let mut fixture = Fixture::new();
    let nar = nar_of(&noise(22, 100_000));
    let row = fixture.publish(1, &nar, &[]);
    fixture.store = None;
    for file in ["conf", "db"] {
        fs::write(fixture.dir.path().join("index").join(file), b"garbage").expect("writes");
    }
    fixture.reopen();
    assert_eq!(
        fixture.store().paths(&cache(), None, 10).expect("lists"),
        [row]
    );
    fixture.assert_reads_back(&nar);
}

#[test]
fn a_second_process_and_a_foreign_format_are_refused() {
    let fixture = Fixture::new();
    let again = Store::open(fixture.dir.path(), Options::default());
    assert!(matches!(
        again.err(),
        Some(attic_store::StoreError::Locked(_))
    ));
    let other = tempfile::tempdir().expect("temporary folder");
    fs::write(other.path().join("format"), "attic-node store 99\n").expect("writes");
    let outcome = Store::open(other.path(), Options::default());
    assert!(matches!(
        outcome.err(),
        Some(attic_store::StoreError::Format { .. })
    ));
}

/// The locator table is derived too: a damaged run costs a second look at the packs, no chunk.
#[test]
fn a_damaged_locator_run_is_made_good_from_the_packs() {
    let mut fixture = Fixture::new();
    let nars: Vec<Vec<u8>> = (0..4)
        .map(|seed| nar_of(&noise(90 + seed, 600_000)))
        .collect();
    for (index, nar) in nars.iter().enumerate() {
        fixture.publish(index as u8, nar, &[]);
    }
    fixture.store().close().expect("closes");
    fixture.store = None;
    let folder = fixture.dir.path().join("locator");
    let runs: Vec<PathBuf> = fs::read_dir(folder)
        .expect("lists")
        .map(|file| file.expect("file").path())
        .collect();
    assert!(!runs.is_empty(), "closing writes a run");
    for run in runs {
        for at in [4_200, 4_300] {
            flip(&run, at);
        }
    }
    fixture.reopen();
    nars.iter().for_each(|nar| fixture.assert_reads_back(nar));
    fixture.verify_is_clean();
}

//! Crashes: the folder as a dying process or machine leaves it.

use super::*;

/// Order law: chunks, manifest, row. Wherever the last pack is cut, what remains is whole: a path
/// whose row survived has its NAR, and the store goes on.
#[test]
fn a_torn_tail_loses_only_what_was_last() {
    let fixture = Fixture::with(Options {
        pack_len_target: 64 << 20,
        ..Options::default()
    });
    let nars: Vec<Vec<u8>> = (0..4)
        .map(|seed| nar_of(&noise(40 + seed, 60_000)))
        .collect();
    for (index, nar) in nars.iter().enumerate() {
        fixture.publish(index as u8, nar, &[]);
    }
    let pack = fixture.packs().remove(0);
    let relative = pack.strip_prefix(fixture.dir.path()).expect("below");
    let len = fs::metadata(&pack).expect("stat").len();
    let mut visible_before = 0;
    for cut in (0..=40).map(|step| len * step / 40) {
        let image = tempfile::tempdir().expect("temporary folder");
        copy_dir(
            &fixture.dir.path().join("packs"),
            &image.path().join("packs"),
        );
        let torn = image.path().join(relative);
        fs::File::options()
            .write(true)
            .open(&torn)
            .expect("opens")
            .set_len(cut)
            .expect("cuts");
        let store = Store::open(image.path(), Options::default()).expect("recovers");
        let rows = store.paths(&cache(), None, 10).expect("lists");
        for row in &rows {
            let reader = store
                .open_nar(&row.info.nar_hash)
                .expect("opens")
                .expect("NAR of a row");
            let plain = drain(reader.plain(0..u64::MAX)).expect("reads");
            assert_eq!(hash_of(&plain), row.info.nar_hash);
        }
        assert!(
            rows.len() >= visible_before,
            "a longer pack has no fewer paths"
        );
        visible_before = rows.len();
        assert!(
            store
                .verify(&Default::default(), &mut |_| {})
                .expect("verifies")
                .is_clean()
        );
    }
    assert_eq!(visible_before, nars.len());
}

/// G9: an image of the folder taken at any moment of a busy store opens, verifies, and has every
/// path that was acknowledged before.
#[test]
fn an_image_taken_at_any_moment_has_all_that_was_acknowledged() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let acknowledged = std::sync::Mutex::new(Vec::new());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 0..60u8 {
                let nar = nar_of(&noise(100 + u64::from(index), 80_000));
                fixture.publish(index, &nar, &[]);
                acknowledged.lock().expect("lock").push(hash_of(&nar));
                if index % 5 == 4 {
                    let full = attic_store::CollectOptions {
                        full: true,
                        ..Default::default()
                    };
                    store
                        .remove(&cache(), &[*path(index - 2).hash()])
                        .expect("removes");
                    acknowledged.lock().expect("lock").retain(|hash| {
                        *hash != hash_of(&nar_of(&noise(100 + u64::from(index - 2), 80_000)))
                    });
                    store.collect(&full).expect("collects");
                }
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        let mut images = 0;
        while !done.load(std::sync::atomic::Ordering::SeqCst) || images == 0 {
            images += 1;
            image_holds(&fixture, &acknowledged);
        }
    });
}

/// Copies packs while they are written. A copy is not atomic, so what was collected while it ran may
/// be missing from it; such an image proves nothing and is skipped.
fn image_holds(fixture: &Fixture, acknowledged: &std::sync::Mutex<Vec<NarHash>>) {
    let image = tempfile::tempdir().expect("temporary folder");
    // What is promised first, so that its packs are among those listed.
    let promised = acknowledged.lock().expect("lock").clone();
    let before = fixture.packs();
    for pack in &before {
        let target = image
            .path()
            .join(pack.strip_prefix(fixture.dir.path()).expect("below"));
        fs::create_dir_all(target.parent().expect("folder")).expect("creates");
        if fs::copy(pack, target).is_err() {
            return;
        }
    }
    let after = fixture.packs();
    let still = acknowledged.lock().expect("lock").clone();
    if !before.iter().all(|pack| after.contains(pack)) {
        return;
    }
    let store = Store::open(image.path(), Options::default()).expect("recovers");
    for hash in promised.iter().filter(|hash| still.contains(hash)) {
        let reader = store
            .open_nar(hash)
            .expect("opens")
            .expect("an acknowledged NAR");
        assert_eq!(
            hash_of(&drain(reader.plain(0..u64::MAX)).expect("reads")),
            *hash
        );
    }
}

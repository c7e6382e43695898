//! A disk without space.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use testnet::mount::Tmpfs;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::{eventually, is_root};
use testnet::seed::Seed;
use testnet::served::Served;
use testnet::upload::Upload;

#[test]
fn a_full_disk_refuses_writes_and_goes_on_reading() {
    if !is_root("full disk") {
        return;
    }
    let disk = Tmpfs::new(96 << 20);
    let mut node = TestNode::at(
        &disk.path().join("data"),
        "[store]\npack-size = \"8 MiB\"\n",
    );
    let mut seed = Seed::for_test("full_disk");
    let kept = Upload::random(&mut seed, "kept", 4 << 20);
    let doomed = Upload::random(&mut seed, "doomed", 24 << 20);
    for upload in [&kept, &doomed] {
        upload.publish(node.address(), "main", &node.token());
    }
    fill(&node, &mut seed);
    let large = NixClient::host().add_file("full-disk-large", &Seed::new(77).bytes(128 << 20));
    node.push(&[&large]).exits_with(1).says("space");
    assert_eq!(node.read(&large), Served::Absent);
    assert_eq!(node.read(&kept.path()), Served::Whole(kept.nar.clone()));
    assert_eq!(node.get("/healthz").expect("an answer").status, 200);

    // A full disk is no reason not to start.
    node.kill();
    node.start_again();
    assert_eq!(node.read(&kept.path()), Served::Whole(kept.nar.clone()));

    // Removing and collecting need no space, and make some.
    node.cli().run(&["rm", "main", &doomed.path()]).succeeds();
    node.cli().run(&["gc", "--full"]).succeeds();
    let after = Upload::random(&mut seed, "after", 8 << 20);
    after.publish(node.address(), "main", &node.token());
    for upload in [&after, &kept] {
        assert_eq!(node.read(&upload.path()), Served::Whole(upload.nar.clone()));
    }
}

/// Paths that are all there are pushed once more while there is not a byte on the disk. A node that is
/// alone has nothing to write down. One of a cluster has: that they are still wanted, so that a removal
/// which is on its way spares them; when it cannot, it says so.
#[test]
fn p5_a_push_of_what_is_there_fails_on_a_full_disk_only_in_a_cluster() {
    if !is_root("full disk, pushed again") {
        return;
    }
    let disk = Tmpfs::new(96 << 20);
    let node = TestNode::at(
        &disk.path().join("data"),
        "[mesh]\nlisten = \"127.0.0.1:0\"\nmdns = false\n[store]\npack-size = \"8 MiB\"\n",
    );
    // As many as do not fit what is left of a page of a file.
    let files: Vec<(String, Vec<u8>)> = (0..200)
        .map(|n| (format!("full-again-{n}"), Seed::new(8000 + n).bytes(1000)))
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, contents)| (name.as_str(), contents.as_slice()))
        .collect();
    let paths = NixClient::host().add_files(&files);
    let foreign = disk.path().join("foreign");
    node.push(&paths).succeeds();
    fill_to_the_last_byte(&foreign);
    node.push(&paths).succeeds().says("200 already cached");
    std::fs::remove_file(&foreign).expect("make space");

    node.cli().run(&["invite", "--write", "main"]).succeeds();
    node.push(&paths).succeeds().says("200 already cached");
    // What is noted already need not be noted once more.
    let outbox = node.data_dir().join("cluster/outbox");
    eventually("the log to have it", Duration::from_secs(60), || {
        let noted = std::fs::metadata(&outbox).expect("there is an outbox");
        (noted.len() == 0).then_some(())
    });
    fill_to_the_last_byte(&foreign);
    let refused = node.push(&paths).exits_with(1);
    refused.says("the node has no space left");
    let is_there = |path: &String| matches!(node.read(path), Served::Whole(_));
    assert!(paths.iter().all(is_there));
    std::fs::remove_file(&foreign).expect("make space");
    node.push(&paths).succeeds().says("200 already cached");
}

/// Somebody else fills the disk to the last byte, in the middle of uploads: reads are 200 or 404,
/// writes 507, nothing acknowledged is lost, and when there is space again writes go on, all without
/// a restart.
#[test]
fn s1_a_disk_that_others_fill_costs_writes_and_nothing_else() {
    if !is_root("foreign full disk") {
        return;
    }
    let disk = Tmpfs::new(96 << 20);
    let mut node = TestNode::at(
        &disk.path().join("data"),
        "[store]\npack-size = \"8 MiB\"\n",
    );
    let mut seed = Seed::for_test("foreign_full");
    let kept = Upload::random(&mut seed, "kept", 4 << 20);
    kept.publish(node.address(), "main", &node.token());
    let large = NixClient::host().add_file("foreign-full-large", &Seed::new(78).bytes(1 << 20));
    let foreign = disk.path().join("foreign");
    for round in 0..4 {
        let uploads: Vec<Upload> = (0..60)
            .map(|n| Upload::random(&mut seed, &format!("meanwhile-{round}-{n}"), 20_000))
            .collect();
        let published = thread::scope(|scope| {
            let publishing = scope.spawn(|| uploads.iter().map(|up| offer(&node, up)).collect());
            fill_to_the_last_byte(&foreign);
            let published: Vec<bool> = publishing.join().expect("uploads end");
            published
        });
        for upload in &uploads {
            assert_eq!(
                node.get(&upload.narinfo_target("absent"))
                    .expect("answer")
                    .status,
                404
            );
        }
        for (upload, published) in uploads.iter().zip(&published) {
            match node.read(&upload.path()) {
                Served::Whole(nar) => assert_eq!(nar, upload.nar),
                other => assert!(!published, "{}: {other:?}", upload.name),
            }
        }
        assert_eq!(node.read(&kept.path()), Served::Whole(kept.nar.clone()));
        let late = Upload::random(&mut seed, "late", 1 << 20);
        assert!(!offer(&node, &late), "there is no space");
        node.push(&[&large]).exits_with(1).says("space");
        assert_eq!(node.get("/healthz").expect("an answer").status, 200);

        // Killed and started while there is not a byte: it reads, refuses, removes and collects.
        node.kill();
        fill_to_the_last_byte(&disk.path().join(format!("foreign-{round}")));
        node.start_again();
        assert_eq!(node.read(&kept.path()), Served::Whole(kept.nar.clone()));
        assert!(!offer(&node, &late), "there is no space");
        let removed = uploads.iter().zip(&published).find(|(_, taken)| **taken);
        if let Some((upload, _)) = removed {
            node.cli().run(&["rm", "main", &upload.path()]).succeeds();
        }
        node.cli().run(&["gc"]).succeeds();
        assert_eq!(node.read(&kept.path()), Served::Whole(kept.nar.clone()));
        std::fs::remove_file(disk.path().join(format!("foreign-{round}"))).expect("make space");

        std::fs::remove_file(&foreign).expect("make space");
        late.publish(node.address(), "main", &node.token());
        assert_eq!(node.read(&late.path()), Served::Whole(late.nar.clone()));
        node.cli().run(&["rm", "main", &late.path()]).succeeds();
        node.cli().run(&["gc", "--full"]).succeeds();
    }
    node.push(&[&large]).succeeds();
    node.cli().run(&["verify"]).succeeds();
}

/// Publishes if the node takes it; whether it did. Refusals are 507.
fn offer(node: &TestNode, upload: &Upload) -> bool {
    let (address, token) = (node.address(), node.token());
    let taken = |status: u16| {
        assert!(matches!(status, 201 | 507), "{status}");
        status == 201
    };
    let nar = upload.put_nar(address, "main", &token).expect("an answer");
    taken(nar.status)
        && taken(
            upload
                .put_narinfo(address, "main", &token, &upload.narinfo())
                .expect("an answer")
                .status,
        )
}

/// Writes a file until not a byte more fits.
fn fill_to_the_last_byte(path: &Path) {
    let mut file = File::create(path).expect("create a file");
    for len in [1 << 20, 4096, 1] {
        let piece = vec![7; len];
        while file.write(&piece).is_ok_and(|written| written > 0) {}
    }
}

/// Uploads NARs that nothing refers to until three in a row find no space.
#[track_caller]
fn fill(node: &TestNode, seed: &mut Seed) {
    let mut refused = 0;
    for number in 0..60 {
        let upload = Upload::random(seed, &format!("filler-{number}"), 4 << 20);
        let answer = upload
            .put_nar(node.address(), "main", &node.token())
            .expect("an answer");
        if matches!(answer.status, 200 | 201 | 204) {
            continue;
        }
        assert_eq!(answer.status, 507, "{}", answer.text());
        refused += 1;
        if refused == 3 {
            return;
        }
    }
    panic!("the disk was never full");
}

//! A disk without space.

use testnet::mount::Tmpfs;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::is_root;
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

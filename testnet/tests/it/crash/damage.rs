//! Row G8: flipped bytes are found, never served, and healed by the next push.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;
use testnet::node::TestNode;
use testnet::seed::Seed;
use testnet::served::Served;
use testnet::upload::Upload;

/// A node with forty paths in several packs.
struct Rotten {
    node: TestNode,
    uploads: Vec<Upload>,
}

impl Rotten {
    fn new(seed: &mut Seed) -> Rotten {
        let node = TestNode::with_config("[store]\npack-size = \"2 MiB\"\n");
        let make = |n| Upload::random(seed, &format!("rotten-{n}"), 300_000);
        let rotten = Rotten {
            uploads: (0..40).map(make).collect(),
            node,
        };
        rotten.push_all();
        rotten
    }

    /// Flips three bits in every pack.
    fn rot(&self, seed: &mut Seed) {
        self.node
            .packs()
            .iter()
            .for_each(|pack| flip(pack, 3, seed));
    }

    fn push_all(&self) {
        let (address, token) = (self.node.address(), self.node.token());
        self.uploads
            .iter()
            .for_each(|upload| upload.publish(address, "main", &token));
    }

    /// Reads every path; says how many were not whole. Wrong bytes end the test.
    #[track_caller]
    fn missing(&self) -> usize {
        let whole = |upload: &&Upload| match self.node.read(&upload.path()) {
            Served::Whole(nar) => nar == upload.nar,
            Served::Absent | Served::Cut => false,
        };
        self.uploads.len() - self.uploads.iter().filter(whole).count()
    }
}

/// Flips one bit at each of `count` random places of a file.
fn flip(file: &Path, count: u64, seed: &mut Seed) {
    let len = fs::metadata(file).expect("a pack").len();
    let file = File::options()
        .read(true)
        .write(true)
        .open(file)
        .expect("open a pack");
    for _ in 0..count {
        let (at, mut byte) = (seed.below(len), [0]);
        file.read_exact_at(&mut byte, at).expect("read a byte");
        byte[0] ^= 1 << seed.below(8);
        file.write_all_at(&byte, at).expect("write a byte");
    }
}

fn flipped_bytes_are_never_served(test: &str, restart: bool) {
    let mut seed = Seed::for_test(test);
    let mut rotten = Rotten::new(&mut seed);
    if restart {
        rotten.node.kill();
        rotten.rot(&mut seed);
        rotten.node.start_again();
    } else {
        rotten.rot(&mut seed);
    }
    assert!(rotten.missing() > 0, "three flips in each pack hit nobody");
    // What was once found damaged is not offered again: 404, no cut bodies.
    for upload in &rotten.uploads {
        assert_ne!(
            rotten.node.read(&upload.path()),
            Served::Cut,
            "{}",
            upload.name
        );
    }
    rotten.push_all();
    assert_eq!(rotten.missing(), 0, "a push heals everything");
}

#[test]
fn g8_bytes_flipped_under_a_running_node_are_never_served() {
    flipped_bytes_are_never_served("g8_running", false);
}

#[test]
fn g8_bytes_flipped_under_a_stopped_node_are_never_served() {
    flipped_bytes_are_never_served("g8_stopped", true);
}

#[test]
fn g8_verify_finds_what_is_damaged_and_what_was_healed() {
    let mut seed = Seed::for_test("g8_verify");
    let rotten = Rotten::new(&mut seed);
    let cli = rotten.node.cli();
    cli.run(&["verify"]).succeeds();
    rotten.rot(&mut seed);
    let found = cli.run(&["verify", "--repair", "--json"]).exits_with(1);
    let found: Value = serde_json::from_str(&found.stdout).expect("JSON");
    let damaged = found["damaged_nars"].as_u64().expect("a number");
    let listed = found["damaged"].as_array().expect("a list");
    assert!(damaged > 0 && listed.len() as u64 == damaged, "{found}");
    assert_eq!(
        rotten.missing() as u64,
        damaged,
        "exactly these are not served"
    );
    rotten.push_all();
    assert_eq!(rotten.missing(), 0, "a push heals everything");
    // The damaged copies are garbage now.
    cli.run(&["gc", "--full"]).succeeds();
    cli.run(&["verify"]).succeeds();
}

/// Packs alone are the truth: everything else can be lost.
#[test]
fn a_lost_index_is_rebuilt_from_packs() {
    let mut rotten = Rotten::new(&mut Seed::for_test("rebuild"));
    assert!(rotten.node.stop().success());
    rotten
        .node
        .cli()
        .run(&["verify", "--rebuild-index"])
        .succeeds();
    rotten.node.start_again();
    assert_eq!(rotten.missing(), 0);

    rotten.node.kill();
    delete_all_but_packs(&rotten.node);
    rotten
        .node
        .cli()
        .run(&["verify", "--rebuild-index"])
        .succeeds();
    rotten.node.start_again();
    assert_eq!(rotten.missing(), 0);
}

/// A pack that ends in the middle of a record, as after a power failure.
#[test]
fn a_torn_pack_loses_only_what_is_torn() {
    let mut seed = Seed::for_test("torn");
    let mut rotten = Rotten::new(&mut seed);
    rotten.node.kill();
    let packs = rotten.node.packs();
    let torn = usize::try_from(seed.below(packs.len() as u64)).expect("an index");
    let len = fs::metadata(&packs[torn]).expect("a pack").len();
    let file = File::options()
        .write(true)
        .open(&packs[torn])
        .expect("open a pack");
    file.set_len(len / 2).expect("cut it");
    rotten.node.start_again();
    let missing = rotten.missing();
    assert!(
        (1..rotten.uploads.len()).contains(&missing),
        "{missing} are missing"
    );
    rotten.push_all();
    assert_eq!(rotten.missing(), 0, "a push heals everything");
}

/// Removes the index and whatever else stands beside the packs in the store.
fn delete_all_but_packs(node: &TestNode) {
    let packs = node.packs();
    let dirs = packs.first().expect("there are packs").ancestors();
    let pack_dir = dirs
        .into_iter()
        .find(|dir| dir.ends_with("packs"))
        .expect("a pack directory");
    let store_dir = pack_dir.parent().expect("packs lie in the store");
    for entry in fs::read_dir(store_dir).expect("list the store").flatten() {
        if entry.path() != pack_dir && entry.path().is_dir() {
            fs::remove_dir_all(entry.path()).expect("delete a directory");
        }
    }
}

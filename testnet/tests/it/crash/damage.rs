//! Row G8: flipped bytes are found, never served, and healed by the next push.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::is_root;
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

/// Row G8 with the node's own push: what has decayed and was read by nobody is found and healed by a
/// push that rechecks.
#[test]
fn g8_a_native_push_heals_undiscovered_damage() {
    if !is_root("g8 native") {
        return;
    }
    let mut node = TestNode::start();
    let contents = Seed::new(81).bytes(6 << 20);
    let path = NixClient::host().add_file("g8-native", &contents);
    node.push(&[&path]).succeeds();
    for round in 0..3 {
        node.kill();
        let mut seed = Seed::new(round);
        node.packs()
            .iter()
            .for_each(|pack| flip(pack, 2, &mut seed));
        node.start_again();
        let args = ["push", "main", &path, "--recheck"];
        node.cli().run(&args).succeeds();
        assert!(
            matches!(node.read(&path), Served::Whole(_)),
            "round {round}"
        );
        // Read, and found damaged, by somebody: the next push heals without being told to look.
        node.kill();
        node.packs()
            .iter()
            .for_each(|pack| flip(pack, 2, &mut seed));
        node.start_again();
        let _ = node.read(&path);
        node.push(&[&path]).succeeds();
        assert!(
            matches!(node.read(&path), Served::Whole(_)),
            "round {round}"
        );
    }
}

/// What `verify` finds, the next plain push heals; the bad copies that nothing needs any more are no
/// damage after that, and `--repair` drops them.
#[test]
fn g8_a_plain_push_heals_what_verify_found() {
    if !is_root("g8 verify push") {
        return;
    }
    let node = TestNode::start();
    let path = NixClient::host().add_file("g8-verify-push", &Seed::new(82).bytes(6 << 20));
    node.push(&[&path]).succeeds();
    for round in 0..3 {
        let mut seed = Seed::new(100 + round);
        node.packs()
            .iter()
            .for_each(|pack| flip(pack, 3, &mut seed));
        let found = node.cli().run(&["verify", "--json"]).exits_with(1);
        let found: Value = serde_json::from_str(&found.stdout).expect("JSON");
        assert_eq!(found["damaged_nars"], 1, "{found}");
        assert_eq!(node.read(&path), Served::Absent, "round {round}");
        node.push(&[&path]).succeeds();
        assert!(
            matches!(node.read(&path), Served::Whole(_)),
            "round {round}"
        );
        let healed = node.cli().run(&["verify", "--json"]).succeeds();
        let healed: Value = serde_json::from_str(&healed.stdout).expect("JSON");
        assert!(
            healed["spare_records"].as_u64() > Some(0),
            "round {round}: {healed}"
        );
        node.cli().run(&["verify", "--repair"]).succeeds();
        let clean = node.cli().run(&["verify", "--json"]).succeeds();
        let clean: Value = serde_json::from_str(&clean.stdout).expect("JSON");
        assert_eq!(clean["spare_records"], 0, "round {round}: {clean}");
    }
}

/// Row S3: whatever happens to a pack, a NAR is whole or 404. A pack that is deleted or cut is
/// noticed before the status line. Only bytes that rot in place can cut a body short, once: after
/// that the NAR is 404 until it is pushed again.
///
/// `ATTIC_NODE_TEST_DAMAGES` sets how often it is damaged; 30 without it.
#[test]
fn s3_a_large_nar_is_whole_or_404_and_cut_at_most_once() {
    let damages = env::var("ATTIC_NODE_TEST_DAMAGES").map_or(30, |text| {
        text.parse().expect("ATTIC_NODE_TEST_DAMAGES is a number")
    });
    let mut seed = Seed::for_test("s3_large");
    let mut node = TestNode::with_config("[store]\npack-size = \"1 MiB\"\n");
    let uploads: Vec<Upload> = (0..3)
        .map(|n| Upload::random(&mut seed, &format!("large-{n}"), 4 << 20))
        .collect();
    let (mut reads, mut cuts, mut absent) = (0, 0, 0);
    let mut history = String::new();
    for round in 0..damages {
        for upload in &uploads {
            upload.publish(node.address(), "main", &node.token());
            let whole = Served::Whole(upload.nar.clone());
            assert_eq!(
                node.read(&upload.path()),
                whole,
                "round {round}: a push heals"
            );
        }
        let restart = seed.below(2) == 0;
        let rot = seed.below(3) == 0;
        if restart {
            node.kill();
        }
        let packs = node.packs();
        let pack = &packs[seed.below(packs.len() as u64) as usize];
        let len = fs::metadata(pack).expect("a pack").len();
        let what = if rot {
            flip(pack, 1, &mut seed);
            "a byte flipped".to_owned()
        } else if seed.below(2) == 0 {
            fs::remove_file(pack).expect("remove a pack");
            "removed".to_owned()
        } else {
            let file = File::options().write(true).open(pack).expect("open a pack");
            let cut = seed.below(len);
            file.set_len(cut).expect("cut it");
            format!("cut at {cut}")
        };
        history += &format!(
            "round {round}: restart {restart}, {} of {len} bytes {what}\n",
            pack.display()
        );
        if restart {
            node.start_again();
        }
        for upload in &uploads {
            match node.read(&upload.path()) {
                Served::Whole(nar) => assert_eq!(nar, upload.nar),
                Served::Absent => absent += 1,
                Served::Cut => {
                    assert!(rot, "cut although no byte rots in this round\n{history}");
                    cuts += 1;
                }
            }
            assert_ne!(node.read(&upload.path()), Served::Cut, "{history}");
            reads += 1;
        }
    }
    println!("{reads} first reads: {absent} absent, {cuts} cut");
    assert!(absent > 0, "nothing was ever hit");
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

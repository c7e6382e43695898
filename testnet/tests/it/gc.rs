//! Garbage collection: what nothing needs goes, what something needs stays.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use testnet::native;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::{eventually, is_root};
use testnet::seed::Seed;
use testnet::served::{Served, hash_part, narinfo_fields};
use testnet::upload::Upload;

/// Removing a path frees its own chunks and leaves those that another path needs.
#[test]
fn g6_only_unshared_chunks_are_reclaimed() {
    for config in ["", "[store]\npack-size = \"1 MiB\"\n"] {
        only_unshared_chunks_are_reclaimed(&TestNode::with_config(config));
    }
}

fn only_unshared_chunks_are_reclaimed(node: &TestNode) {
    let mut seed = Seed::for_test("g6");
    let (shared, own, other) = (
        seed.bytes(6 << 20),
        seed.bytes(6 << 20),
        seed.bytes(6 << 20),
    );
    let doomed = Upload::file(&mut seed, "doomed", [shared.as_slice(), &own].concat());
    let kept = Upload::file(&mut seed, "kept", [shared.as_slice(), &other].concat());
    for upload in [&doomed, &kept] {
        upload.publish(node.address(), "main", &node.token());
    }
    node.cli().run(&["rm", "main", &doomed.path()]).succeeds();
    let before = node.pack_bytes();
    assert_eq!(node.read(&doomed.path()), Served::Absent);

    let dry = node.cli().json(&["gc", "--full", "--dry-run"]);
    assert_eq!(node.pack_bytes(), before, "a dry run changes nothing");
    assert_eq!(node.metric("attic_node_gc_runs_total"), Some(0.0));

    let done = node.cli().json(&["gc", "--full"]);
    let freed = before - node.pack_bytes();
    let [foreseen, told] = [&dry, &done].map(|run| run["freed_bytes"].as_u64().expect("bytes"));
    assert!(foreseen.abs_diff(told) < told / 10, "{dry} and {done}");
    assert_eq!(dry["dropped_nars"], done["dropped_nars"]);
    let counters = ["runs", "dropped_nars", "freed_bytes", "evicted_paths"]
        .map(|name| node.metric(&format!("attic_node_gc_{name}_total")));
    assert_eq!(
        counters,
        [Some(1.0), Some(1.0), Some(told as f64), Some(0.0)]
    );
    assert!(
        (5 << 20..=7 << 20).contains(&freed),
        "{freed} bytes were freed: {done}"
    );
    assert_eq!(node.read(&kept.path()), Served::Whole(kept.nar.clone()));
    let again = node.cli().json(&["gc", "--full"]);
    // The record of the removal itself may go only now, when nothing older is left.
    assert!(
        again["freed_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes < 4096),
        "{again}"
    );
}

/// A collection that finds files gone goes on: gone is gone.
#[test]
fn g6_a_collection_survives_files_that_are_gone() {
    let node = &TestNode::with_config("[store]\npack-size = \"1 MiB\"\n");
    let mut seed = Seed::for_test("g6_gone");
    let uploads: Vec<Upload> = (0..30)
        .map(|n| Upload::random(&mut seed, &format!("gone-{n}"), 400_000))
        .collect();
    uploads
        .iter()
        .for_each(|upload| upload.publish(node.address(), "main", &node.token()));
    let packs = node.packs();
    assert!(packs.len() > 5, "{packs:?}");
    std::fs::remove_file(&packs[1]).expect("remove a pack");
    let all: Vec<String> = uploads.iter().map(Upload::path).collect();
    let args: Vec<&str> = ["rm", "main"]
        .into_iter()
        .chain(all.iter().map(String::as_str))
        .collect();
    node.cli().run(&args).succeeds();
    node.cli().run(&["gc", "--full"]).succeeds();
    let left = node.pack_bytes();
    assert!(left < 64 << 10, "{left} bytes are left");
}

/// Collections and uploads of the same chunks at once: nothing that is acknowledged is lost.
#[test]
fn g6_collections_do_not_take_what_is_being_uploaded() {
    let node = &TestNode::with_config("[store]\npack-size = \"1 MiB\"\n");
    let (address, token) = (node.address(), node.token());
    let mut seed = Seed::for_test("g6_race");
    let shared = seed.bytes(2 << 20);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(node.api("gc", Some("{\"full\":true}")).status, 200);
            }
        });
        for _ in 0..30 {
            // Its chunks become garbage, and are wanted again a moment later.
            let upload = Upload::file(&mut seed, "race", shared.as_slice());
            upload.publish(address, "main", &token);
            assert_eq!(node.read(&upload.path()), Served::Whole(upload.nar.clone()));
            let body = format!("{{\"paths\":[\"{}\"]}}", upload.hash);
            assert_eq!(node.api("caches/main/remove", Some(&body)).status, 200);
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// A pin protects its path with everything that the path refers to.
#[test]
fn a_pin_protects_its_closure_from_removal_and_eviction() {
    if !is_root("pins") {
        return;
    }
    let node = &TestNode::with_config("[store]\nsize-cap = \"24 MiB\"\npack-size = \"1 MiB\"\n");
    let expression = "let leaf = run \"pin-leaf\" ''head -c 1000000 /dev/urandom > $out''; \
                      middle = run \"pin-middle\" ''echo ${leaf} > $out''; in \
                      run \"pin-root\" ''echo ${middle} > $out''";
    let host = NixClient::host();
    let root = host.build(expression).remove(0);
    let closure = host
        .run("nix-store", &["--query", "--requisites", &root])
        .succeeds();
    let closure: Vec<&str> = closure.lines().collect();
    assert_eq!(closure.len(), 3);
    node.push(&[&root]).succeeds();
    let cli = node.cli();
    cli.run(&["pin", "add", "main", "keep-this", &root])
        .succeeds();
    cli.run(&["pin", "list", "main"])
        .succeeds()
        .says("keep-this");

    let removed = cli.run(&["rm", "main", closure[0]]);
    removed.fails().says("keep-this");
    assert!(matches!(node.read(closure[0]), Served::Whole(_)));

    let mut seed = Seed::for_test("pins");
    for number in 0..40 {
        let upload = Upload::random(&mut seed, &format!("filler-{number}"), 1 << 20);
        upload.publish(node.address(), "main", &node.token());
    }
    cli.run(&["gc", "--full"]).succeeds();
    for path in &closure {
        assert!(
            matches!(node.read(path), Served::Whole(_)),
            "{path} was evicted"
        );
    }
    cli.run(&["pin", "rm", "main", "keep-this"]).succeeds();
    cli.run(&["rm", "main", &root]).succeeds();
    assert_eq!(node.read(&root), Served::Absent);
}

/// Only the newest revisions of a pin are kept.
#[test]
fn a_pin_keeps_as_many_revisions_as_it_is_told() {
    let node = &TestNode::start();
    let mut seed = Seed::for_test("revisions");
    let uploads: Vec<Upload> = (0..4)
        .map(|n| Upload::random(&mut seed, &format!("revision-{n}"), 9000))
        .collect();
    for upload in &uploads {
        upload.publish(node.address(), "main", &node.token());
        node.cli()
            .run(&["pin", "add", "main", "app", &upload.path(), "--keep", "2"])
            .succeeds();
    }
    for (number, upload) in uploads.iter().enumerate() {
        let outcome = node.cli().run(&["rm", "main", &upload.path()]);
        assert_eq!(
            outcome.status.success(),
            number < 2,
            "revision {number}: {outcome}"
        );
    }
}

/// Row G7: the cap holds while many upload at once and what was evicted is collected.
#[test]
fn g7_the_size_cap_holds_at_every_moment_under_concurrent_uploads() {
    const CAP: u64 = 64 << 20;
    let node = &TestNode::with_config("[store]\nsize-cap = \"64 MiB\"\npack-size = \"4 MiB\"\n");
    let (address, token) = (node.address(), &node.token());
    let done = AtomicBool::new(false);
    let highest = thread::scope(|scope| {
        let sampling = scope.spawn(|| {
            let mut highest = 0;
            while !done.load(Ordering::Relaxed) {
                highest = node.disk_bytes().max(highest);
                thread::sleep(Duration::from_millis(3));
            }
            highest
        });
        let uploading: Vec<_> = (0..4)
            .map(|worker| {
                scope.spawn(move || {
                    let mut refusals = Vec::new();
                    for number in 0..25 {
                        let mut seed = Seed::new(worker * 1000 + number);
                        let len = if number == 12 { 8 << 20 } else { 1 << 20 };
                        let upload = Upload::random(&mut seed, "filler", len);
                        if let Err(refusal) = native::push(address, token, &upload) {
                            refusals.push(refusal.to_string());
                        }
                    }
                    refusals
                })
            })
            .collect();
        let refusals: Vec<_> = uploading.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        for refusals in refusals {
            let refusals = refusals.expect("a worker ends");
            // What uploads under way hold cannot be evicted: then there is no space for a moment.
            assert!(
                refusals.iter().all(|refusal| refusal.contains("space")) && refusals.len() < 5,
                "{refusals:?}"
            );
        }
        sampling.join().expect("sampling ends")
    });
    assert!(
        highest > CAP / 2 && highest <= CAP + CAP / 100,
        "{highest} bytes on disk"
    );
    assert!(
        node.metric("attic_node_store_bytes")
            .is_some_and(|bytes| bytes <= CAP as f64)
    );
}

/// Row G7: the cap is kept at every moment, and what was used longest ago goes first.
#[test]
fn g7_the_size_cap_is_never_exceeded_by_more_than_one_percent() {
    const CAP: u64 = 64 << 20;
    let node = &TestNode::with_config("[store]\nsize-cap = \"64 MiB\"\npack-size = \"4 MiB\"\n");
    let mut seed = Seed::for_test("g7");
    let mut highest = 0;
    let mut uploads = Vec::new();
    for number in 0..200 {
        let upload = Upload::random(&mut seed, &format!("filler-{number}"), 1 << 20);
        upload.publish(node.address(), "main", &node.token());
        match node.read(&upload.path()) {
            Served::Whole(_) => {}
            other => panic!("the newest, {number}, is there: {other:?}"),
        }
        highest = highest.max(node.disk_bytes());
        uploads.push(upload.path());
    }
    assert!(highest <= CAP + CAP / 100, "{highest} bytes on disk");
    let left = node.disk_bytes();
    assert!(
        left > CAP / 2,
        "evicts no more than it must: {left} bytes are left"
    );
    // Times count in seconds, so the order is that of seconds too.
    assert!(
        uploads[..100]
            .iter()
            .all(|path| node.read(path) == Served::Absent),
        "the oldest go"
    );
}

/// A path larger than the cap is refused and costs nobody else anything; one that says so only by
/// its bytes has its session give way, and with it what it held.
#[test]
fn g7_a_path_larger_than_the_cap_leaves_the_cache_as_it_was() {
    const CAP: u64 = 40 << 20;
    let node = TestNode::with_config("[store]\nsize-cap = \"40 MiB\"\n");
    let (address, token) = (node.address(), &node.token());
    let mut seed = Seed::for_test("g7_larger");
    let small: Vec<Upload> = (0..8)
        .map(|number| Upload::random(&mut seed, &format!("small-{number}"), 1 << 20))
        .collect();
    for upload in &small {
        native::push(address, token, upload).expect("it fits");
    }
    let large = Upload::random(&mut seed, "large", 40_000_000);
    let refused = native::push(address, token, &large).expect_err("it cannot fit");
    assert!(refused.to_string().contains("space"), "{refused}");
    let put = large.put_nar(address, "main", token).expect("an answer");
    assert_eq!(put.status, 507, "{}", put.text());
    for upload in &small {
        assert_eq!(
            node.read(&upload.path()),
            Served::Whole(upload.nar.clone()),
            "{} is still there",
            upload.name
        );
    }
    let further = Upload::random(&mut seed, "further", 4 << 20);
    native::push(address, token, &further).expect("there is space at once");

    let refused = native::push_unannounced(address, token, &large).expect_err("it cannot fit");
    assert!(refused.to_string().contains("space"), "{refused}");
    assert!(
        node.disk_bytes() <= CAP + CAP / 100,
        "{}",
        node.disk_bytes()
    );
    let last = Upload::random(&mut seed, "last", 4 << 20);
    native::push(address, token, &last).expect("the session gives its space back");
    assert!(
        node.disk_bytes() <= CAP + CAP / 100,
        "{}",
        node.disk_bytes()
    );
}

/// Closures by plain `nix copy --to`, which sends path by path: one that fits is taken, one larger
/// than the cap fails, also when it is tried again, and nothing that is served lacks a reference.
#[test]
fn g7_nix_copy_of_a_closure_larger_than_the_cap_fails() {
    if !is_root("g7 nix copy") {
        return;
    }
    let node = &TestNode::with_config("[store]\nsize-cap = \"32 MiB\"\npack-size = \"1 MiB\"\n");
    let host = NixClient::host();
    let nix = NixClient::host().authorised(node);
    let url = format!("{}?compression=none", node.url("main"));
    let copy = |options: &[&str], path: &str| {
        nix.run("nix", &[&["copy", "--to", &url], options, &[path]].concat())
    };
    let none: &[&str] = &[];
    // Each refers to the one before it.
    let chain = |name: &str, paths: usize| {
        let mut expression = "builtins.storeDir".to_owned();
        for number in 0..paths {
            expression = format!(
                "run \"g7-copy-{name}-{number}\" ''echo ${{{expression}}} > $out; \
                 head -c 4000000 /dev/urandom >> $out''"
            );
        }
        let root = host.build(&expression).remove(0);
        let closure = host.run("nix-store", &["--query", "--requisites", &root]);
        let closure: Vec<String> = closure.succeeds().lines().map(str::to_owned).collect();
        assert_eq!(closure.len(), paths);
        (root, closure)
    };
    let is_served = |path: &str| node.read(path) != Served::Absent;

    // More than fits all together.
    for turn in 0..4 {
        let (root, closure) = chain(&format!("fits-{turn}"), 4);
        copy(none, &root).succeeds();
        for path in &closure {
            assert!(matches!(node.read(path), Served::Whole(_)), "{path}");
        }
        // Times count in seconds: what follows must be newer.
        let seconds = || UNIX_EPOCH.elapsed().expect("a clock").as_secs();
        let used = seconds();
        eventually("the next second", Duration::from_secs(10), || {
            (seconds() > used).then_some(())
        });
    }
    let evicted = node.metric("attic_node_gc_evicted_paths_total");
    assert!(evicted > Some(0.0), "{evicted:?}");

    let (root, closure) = chain("larger", 12);
    let again = ["--option", "narinfo-cache-positive-ttl", "0"];
    for options in [none, none, &again] {
        let refused = copy(options, &root);
        refused.fails().says("507").says("no space");
        assert!(!is_served(&root));
        for path in closure.iter().filter(|path| is_served(path)) {
            let target = format!("/main/{}.narinfo", hash_part(path));
            let narinfo = node.get(&target).expect("an answer").text();
            let references = narinfo_fields(&narinfo)["References"].clone();
            for reference in references.split_whitespace() {
                let reference = format!("/nix/store/{reference}");
                assert!(is_served(&reference), "{path} refers to {reference}");
            }
        }
    }
}

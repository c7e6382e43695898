//! Caches, their paths and their keys.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use testnet::http::Request;
use testnet::nix::{KeyPair, NixClient};
use testnet::node::TestNode;
use testnet::program::{self, Outcome, is_root};
use testnet::seed::Seed;
use testnet::served::{self, Served, narinfo_fields};
use testnet::upload::Upload;

/// Row P15: what is there can be listed and measured, and goes when told.
#[test]
fn p15_paths_are_listed_measured_and_removed() {
    let node = &TestNode::start();
    let mut seed = Seed::for_test("p15");
    let uploads: Vec<Upload> = (0..5)
        .map(|n| Upload::random(&mut seed, &format!("listed-{n}"), 50_000))
        .collect();
    uploads
        .iter()
        .for_each(|upload| upload.publish(node.address(), "main", &node.token()));
    let cli = node.cli();
    let listed = cli.run(&["ls", "main"]).succeeds();
    uploads
        .iter()
        .for_each(|upload| assert!(listed.stdout.contains(&upload.path()), "{listed}"));
    measured(node, &uploads);

    let doomed = uploads[2].path();
    cli.run(&["rm", "--dry-run", "main", &doomed])
        .succeeds()
        .says("listed-2");
    assert!(
        matches!(node.read(&doomed), Served::Whole(_)),
        "a dry run removes nothing"
    );
    cli.run(&["rm", "main", &doomed]).succeeds();
    assert_eq!(node.read(&doomed), Served::Absent, "gone at once");
    let listed = cli.run(&["ls", "main"]).succeeds();
    assert!(!listed.stdout.contains(&doomed), "{listed}");
    assert_eq!(
        listed
            .lines()
            .filter(|line| line.contains("listed-"))
            .count(),
        4
    );
    cli.run(&["rm", "main", &doomed]).says("listed-2");
}

/// What changes a cache can be read by programs.
#[test]
fn p15_changes_are_said_in_json() {
    let node = &TestNode::start();
    let cli = node.cli();
    let made = cli.json(&["cache", "create", "other", "--priority", "30"]);
    assert_eq!(
        (&made["name"], &made["priority"]),
        (&json!("other"), &json!(30))
    );
    let set = cli.json(&["cache", "configure", "other", "--priority", "31"]);
    assert_eq!(set["priority"], 31);
    let key = cli.json(&["key", "show", "other"]);
    assert_eq!(key["public_key"], made["public_key"]);
    let key = cli.json(&["key", "rotate", "other", "--no-confirm"]);
    assert_eq!(key["old_public_keys"][0], made["public_key"]);
    let upload = Upload::random(&mut Seed::for_test("p15_json"), "pinned", 5_000);
    upload.publish(node.address(), "main", &node.token());
    let pin = cli.json(&["pin", "add", "main", "keep", &upload.path()]);
    assert!(
        upload
            .path()
            .ends_with(pin["path"].as_str().unwrap_or("none"))
    );
    let gone = cli.json(&["pin", "rm", "main", "keep"]);
    assert_eq!(gone, json!([pin]));
    let gone = cli.json(&["cache", "destroy", "other", "--no-confirm"]);
    assert_eq!(gone["name"], "other");
    assert_eq!(
        cli.json(&["cache", "list"]).as_array().map(Vec::len),
        Some(1)
    );
}

/// `du` counts what was uploaded, byte for byte.
#[track_caller]
fn measured(node: &TestNode, uploads: &[Upload]) {
    let cli = node.cli();
    let file_bytes: u64 = uploads.iter().map(|upload| file_size(node, upload)).sum();
    let nar_bytes: usize = uploads.iter().map(|upload| upload.nar.len()).sum();
    let usage = cli.json(&["du"]);
    let wanted = json!([{
        "name": "main", "paths": uploads.len(), "nar_bytes": nar_bytes, "file_bytes": file_bytes,
    }]);
    assert_eq!(usage["caches"], wanted);
    assert_eq!(usage["store"]["disk_bytes"], node.usage().store.disk_bytes);
    let on_disk = usage["store"]["disk_bytes"].as_u64().expect("a number");
    assert!(
        on_disk >= nar_bytes as u64,
        "random bytes do not shrink: {usage}"
    );

    cli.run(&["cache", "create", "empty"]).succeeds();
    let empty = json!({ "name": "empty", "paths": 0, "nar_bytes": 0, "file_bytes": 0 });
    assert_eq!(cli.json(&["du"])["caches"], json!([empty, wanted[0]]));
    assert_eq!(cli.json(&["du", "empty"])["caches"], json!([empty]));
    let row = format!("main       {}", uploads.len());
    cli.run(&["du", "main"]).succeeds().says(&row);
    cli.run(&["du", "absent"]).exits_with(1).says("absent");
    cli.run(&["cache", "destroy", "empty", "--no-confirm"])
        .succeeds();
}

fn file_size(node: &TestNode, upload: &Upload) -> u64 {
    let narinfo = node.get(&upload.narinfo_target("main")).expect("an answer");
    narinfo_fields(&narinfo.text())["FileSize"]
        .parse()
        .expect("a number")
}

/// What refers to what: root -> (leaf, shared), other -> shared.
fn family(node: &TestNode) -> [Upload; 4] {
    let mut seed = Seed::for_test("family");
    let mut make = |name: &str, references: &[&Upload]| {
        let mut upload = Upload::random(&mut seed, name, 10_000);
        upload.references = references.iter().map(|upload| upload.base_name()).collect();
        upload.references.sort();
        upload.publish(node.address(), "main", &node.token());
        upload
    };
    let (leaf, shared) = (make("family-leaf", &[]), make("family-shared", &[]));
    let root = make("family-root", &[&leaf, &shared]);
    let other = make("family-other", &[&shared]);
    [root, leaf, shared, other]
}

/// Names of the members of [`family`] in what a command listed, sorted.
fn members(outcome: &Outcome) -> Vec<&str> {
    let name = |line: &'_ str| {
        line.rsplit_once("-family-")
            .map_or("?", |(_, name)| name)
            .len()
    };
    let mut names: Vec<&str> = outcome
        .lines()
        .map(|line| &line[line.len() - name(line)..])
        .collect();
    names.sort_unstable();
    names
}

/// P15: `rm --closure` takes what nobody else needs, and a pin keeps its closure unless forced.
#[test]
fn p15_rm_takes_the_closure_and_forces_pins() {
    let node = &TestNode::start();
    let [root, leaf, shared, other] = family(node);
    let cli = node.cli();
    let closure = ["rm", "main", "--closure", &root.path()];
    let dry = cli.run(&[&closure[..], &["--dry-run"]].concat()).succeeds();
    assert_eq!(members(&dry), ["leaf", "root"], "{dry}");
    assert_eq!(members(&cli.run(&["ls", "main"])).len(), 4);

    cli.run(&["pin", "add", "main", "keep", &root.path()])
        .succeeds();
    let kept = cli.run(&closure).exits_with(1);
    assert_eq!(members(&kept), [""; 0], "{kept}");
    let kept = kept.says(&format!("kept {}: pin keep needs it", root.base_name()));
    kept.says("error: 1 path kept by a pin; see `pin rm` and --force");
    let reply = cli.json(&[&closure[..], &["--force"]].concat());
    let removed: Vec<&str> = reply["removed"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|path| path.as_str().expect("a path"))
        .collect();
    let mut wanted = [root.base_name(), leaf.base_name()];
    wanted.sort();
    assert_eq!(removed, wanted);
    assert_eq!(
        (&reply["absent"], &reply["pinned"]),
        (&json!([]), &json!([]))
    );
    for (upload, whole) in [
        (&root, false),
        (&leaf, false),
        (&shared, true),
        (&other, true),
    ] {
        let served = matches!(node.read(&upload.path()), Served::Whole(_));
        assert_eq!(served, whole, "{}", upload.name);
    }
}

/// P15: what `ls` says about a path, in both forms, and about paths that are named.
#[test]
fn p15_ls_says_sizes_and_times() {
    let node = &TestNode::start();
    let uploads = family(node);
    let cli = node.cli();
    let (root, leaf) = (&uploads[0], &uploads[1]);
    let listed = cli
        .run(&["ls", "main", &root.hash, &leaf.base_name()])
        .succeeds();
    assert_eq!(members(&listed), ["leaf", "root"], "{listed}");
    let listed = cli.run(&["ls", "main", "--closure", &root.hash]).succeeds();
    assert_eq!(members(&listed), ["leaf", "root", "shared"], "{listed}");
    let absent = format!("{}-absent", "0".repeat(32));
    cli.run(&["ls", "main", &leaf.hash, &absent])
        .exits_with(1)
        .says(&leaf.path())
        .says(&absent);

    let long = cli.run(&["ls", "main", "--long", &root.hash]).succeeds();
    let words: Vec<&str> = long.stdout.split_whitespace().collect();
    let sizes = [words[0], words[1], words[2], words[3]];
    assert_eq!(sizes, ["9.88", "KiB", "9.89", "KiB"], "{long}");
    assert_eq!(
        (words[6], words[7]),
        ("UTC", root.path().as_str()),
        "{long}"
    );

    let before = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let lines = cli.run(&["ls", "main", "--json", &root.hash]).succeeds();
    let view: Value = serde_json::from_str(lines.stdout.trim_end()).expect("one line of JSON");
    assert_eq!(view["info"]["path"], root.base_name());
    assert_eq!(view["info"]["nar_size"], root.nar.len());
    let mut references = [uploads[1].base_name(), uploads[2].base_name()];
    references.sort();
    assert_eq!(view["info"]["references"], json!(references));
    assert_eq!(view["file_size"], file_size(node, root));
    let published = view["published_at"].as_u64().expect("a time");
    assert!(before.as_secs().abs_diff(published) < 300, "{view}");
}

/// P15: with its closure, a listing follows references.
#[test]
fn p15_ls_follows_references() {
    if !is_root("p15 closure") {
        return;
    }
    let node = TestNode::start();
    let expression = "let leaf = run \"ls-leaf\" ''echo x > $out''; in \
                      run \"ls-root\" ''echo ${leaf} > $out''";
    let root = NixClient::host().build(expression).remove(0);
    let other = NixClient::host().add_file("ls-other", b"x");
    node.push(&[&root, &other]).succeeds();
    let listed = node
        .cli()
        .run(&["ls", "main", "--closure", &root])
        .succeeds();
    assert!(
        listed.stdout.contains("ls-leaf") && listed.stdout.contains("ls-root"),
        "{listed}"
    );
    assert!(!listed.stdout.contains("ls-other"), "{listed}");
}

#[test]
fn caches_are_created_configured_and_destroyed() {
    let node = &TestNode::start();
    let cli = node.cli();
    cli.run(&["cache", "create", "second", "--priority", "41"])
        .succeeds();
    cli.run(&["cache", "create", "second"]).fails();
    cli.run(&["cache", "create", "../up"]).exits_with(2);
    cli.run(&["cache", "list"])
        .succeeds()
        .says("main")
        .says("second");
    let info = node
        .get("/second/nix-cache-info")
        .expect("an answer")
        .text();
    assert!(info.contains("Priority: 41\n"), "{info}");

    let upload = Upload::file(&mut Seed::for_test("caches"), "second", b"x".as_slice());
    upload.publish(node.address(), "second", &node.token());
    assert_eq!(
        node.read(&upload.path()),
        Served::Absent,
        "caches do not share paths"
    );

    cli.run(&["cache", "configure", "second", "--priority", "12"])
        .succeeds();
    let info = node
        .get("/second/nix-cache-info")
        .expect("an answer")
        .text();
    assert!(info.contains("Priority: 12\n"), "{info}");
    cli.run(&["cache", "configure", "second", "--private"])
        .succeeds();
    assert_ne!(
        node.get("/second/nix-cache-info")
            .expect("an answer")
            .status,
        200
    );
    cli.run(&["cache", "info", "second"]).succeeds().says("12");

    cli.run(&["cache", "destroy", "second"]).fails();
    cli.run(&["cache", "destroy", "second", "--no-confirm"])
        .succeeds();
    let listed = cli.run(&["cache", "list"]).succeeds();
    assert!(!listed.stdout.contains("second"), "{listed}");
}

/// G16: a change of one setting leaves the others as they are.
#[test]
fn g16_configuring_one_thing_changes_one_thing() {
    let node = &TestNode::start();
    let cli = node.cli();
    cli.run(&["cache", "configure", "main", "--priority", "7", "--private"])
        .succeeds();
    let before = cli.json(&["cache", "info", "main"]);
    cli.run(&["cache", "configure", "main", "--public"])
        .succeeds();
    let after = cli.json(&["cache", "info", "main"]);
    let mut wanted = before.clone();
    wanted["public"] = true.into();
    assert_eq!(after, wanted);
    assert_eq!(after["priority"], 7);
}

/// What a crash may not lose: settings and keys.
#[test]
fn caches_and_keys_outlive_a_crash() {
    let mut node = TestNode::start();
    node.cli()
        .run(&["cache", "create", "second", "--priority", "3", "--private"])
        .succeeds();
    let before = (
        node.public_key("main"),
        node.cli().json(&["cache", "list"]),
        node.token(),
    );
    node.kill();
    node.start_again();
    assert_eq!(
        before,
        (
            node.public_key("main"),
            node.cli().json(&["cache", "list"]),
            node.token()
        )
    );
}

#[test]
fn keys_are_shown_imported_and_rotated() {
    let node = &TestNode::start();
    let cli = node.cli();
    cli.run(&["key", "show", "main"])
        .succeeds()
        .says(&node.public_key("main"));
    let mut seed = Seed::for_test("keys");
    let mut publish = || {
        let upload = Upload::random(&mut seed, "signed", 1000);
        upload.publish(node.address(), "main", &node.token());
        upload
    };
    let signatures = |upload: &Upload| {
        let narinfo = node
            .get(&upload.narinfo_target("main"))
            .expect("an answer")
            .text();
        narinfo_fields(&narinfo)["Sig"].clone()
    };
    let first = publish();
    let by_first_key = signatures(&first);

    let imported = KeyPair::generate("imported-1");
    cli.run(&["key", "import", "main", &imported.secret_file()])
        .succeeds();
    assert_eq!(node.public_key("main"), imported.public);
    assert!(
        signatures(&publish()).starts_with("imported-1:"),
        "new paths get the new key"
    );
    assert!(
        signatures(&first).contains(&by_first_key),
        "old paths keep what they have"
    );

    cli.run(&["key", "rotate", "main"])
        .fails()
        .says("hint: pass --no-confirm");
    assert_eq!(node.public_key("main"), imported.public, "nobody agreed");
    cli.run(&["key", "rotate", "main", "--no-confirm"])
        .succeeds();
    assert_ne!(node.public_key("main"), imported.public);
    cli.run(&["key", "show", "main"])
        .succeeds()
        .says(&imported.public);
}

/// Everything that a cache can be given when it is made.
#[test]
fn a_cache_is_created_with_a_key_and_rules_of_its_own() {
    if !is_root("cache create") {
        return;
    }
    let node = TestNode::start();
    let cli = node.cli();
    let (own, required) = (KeyPair::generate("own-1"), KeyPair::generate("required-1"));
    let create = [
        "cache",
        "create",
        "strict",
        "--key-file",
        &own.secret_file(),
    ];
    cli.run(&[&create[..], &["--require-signed-by", &required.public]].concat())
        .succeeds();
    assert_eq!(node.public_key("strict"), own.public);
    let info = cli.json(&["cache", "info", "strict"]);
    assert_eq!(info["require_signed_by"], json!([required.public]));

    let host = NixClient::host();
    // New at each run: signatures stay in the store, and those of an earlier key are forged now.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_nanos();
    let build = |name: &str| {
        host.build(&format!("run \"{name}\" ''echo {now} > $out''"))
            .remove(0)
    };
    let (signed, unsigned) = (build("required-signed"), build("required-unsigned"));
    let sign = [
        "store",
        "sign",
        "--key-file",
        &required.secret_file(),
        &signed,
    ];
    host.run("nix", &sign).succeeds();
    cli.run(&["push", "strict", &signed, &unsigned])
        .exits_with(1)
        .says("error: 1 of 2 paths not pushed")
        .says("-required-unsigned: ");
    let nix = NixClient::host().authorised(&node);
    let url = format!("{}?compression=none", node.url("strict"));
    nix.run("nix", &["copy", "--to", &url, &unsigned]).fails();
    nix.run("nix", &["copy", "--to", &url, &signed]).succeeds();
    let fresh = NixClient::fresh(&node, "strict");
    fresh.run("nix-store", &["--realise", &signed]).succeeds();
    fresh.run("nix-store", &["--realise", &unsigned]).fails();

    cli.run(&["cache", "create", "elsewhere", "--store-dir", "/gnu/store"])
        .succeeds();
    let info = node
        .get("/elsewhere/nix-cache-info")
        .expect("an answer")
        .text();
    assert!(info.contains("StoreDir: /gnu/store\n"), "{info}");
    cli.run(&["push", "elsewhere", &signed])
        .exits_with(1)
        .says("cache elsewhere is for paths in /gnu/store, not /nix/store");

    let bad = node.data_dir().join("bad-key");
    std::fs::write(&bad, "no key").expect("write a file");
    let bad = bad.display().to_string();
    cli.run(&["cache", "create", "bad", "--key-file", &bad])
        .fails();
    cli.run(&["cache", "info", "bad"]).exits_with(1);
}

/// A secret key may come through a pipe, and is in no message.
#[test]
fn a_key_is_imported_from_standard_input() {
    let node = TestNode::start();
    let imported = KeyPair::generate("piped-1");
    let mut import = node.cli().command(&["key", "import", "main", "-"]);
    let file = File::open(imported.secret_file()).expect("open a key");
    let outcome = program::start_reading(&mut import, file.into())
        .wait()
        .succeeds();
    assert_eq!(outcome.lines().next(), Some(imported.public.as_str()));
    assert_eq!(node.public_key("main"), imported.public);
    let secret = imported.secret();
    let secret = secret.split(':').nth(1).expect("name:secret");
    assert!(!outcome.to_string().contains(secret), "{outcome}");

    let mut import = node.cli().command(&["key", "import", "main", "-"]);
    program::run(&mut import).exits_with(1);
    assert_eq!(node.public_key("main"), imported.public);
}

/// Secrets are for the owner of the data directory alone, and appear nowhere else.
#[test]
fn secrets_are_readable_by_their_owner_only() {
    let node = &TestNode::start();
    for name in ["admin-token", "identity.key", "keys/main.key"] {
        let meta = std::fs::metadata(node.data_dir().join(name)).expect(name);
        assert_eq!(meta.permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert!(!node.log().contains(&node.token()), "the token is logged");
    let key = std::fs::read_to_string(node.data_dir().join("keys/main.key")).expect("the key");
    let secret = key.trim().split(':').nth(1).expect("name:secret");
    for output in [
        node.cli().run(&["key", "show", "main"]),
        node.cli().run(&["cache", "info", "main"]),
    ] {
        assert!(!output.stdout.contains(secret), "{output}");
    }
    assert!(!node.log().contains(secret), "the key is logged");
}

/// The admin API takes the token from everybody, in every route.
#[test]
fn the_admin_api_needs_the_token() {
    let node = &TestNode::start();
    let routes = [
        ("GET", "status"),
        ("GET", "caches"),
        ("POST", "caches"),
        ("GET", "caches/main"),
        ("PATCH", "caches/main"),
        ("DELETE", "caches/main"),
        ("POST", "caches/main/key/import"),
        ("POST", "caches/main/key/rotate"),
        ("GET", "caches/main/paths"),
        ("POST", "caches/main/remove"),
        ("GET", "caches/main/pins"),
        ("PUT", "caches/main/pins/x"),
        ("DELETE", "caches/main/pins/x"),
        ("GET", "usage"),
        ("POST", "gc"),
        ("POST", "verify"),
        ("POST", "push"),
        ("GET", "no-such-route"),
    ];
    for (method, route) in routes {
        let target = format!("/_node/v1/{route}");
        for token in [None, Some("wrong")] {
            let mut request = Request::new(method, &target).header("Content-Length", "0");
            if let Some(token) = token {
                request = request.token(token);
            }
            let response = request.send(node.address()).expect("an answer");
            let status = response.status;
            assert!(
                matches!(status, 401 | 403),
                "{method} {route} with {token:?}: {status}"
            );
        }
    }
    let upload = Upload::file(&mut Seed::for_test("admin"), "admin", b"x".as_slice());
    upload.publish(node.address(), "main", &node.token());
    assert!(matches!(
        served::read(node.address(), "main", &upload.hash),
        Ok(Served::Whole(_))
    ));
}

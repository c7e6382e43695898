//! Caches, their paths and their keys.

use std::os::unix::fs::PermissionsExt;

use testnet::http::Request;
use testnet::nix::{KeyPair, NixClient};
use testnet::node::TestNode;
use testnet::program::is_root;
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
    cli.run(&["du"]).succeeds().says("main");

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

    cli.run(&["key", "rotate", "main"]).succeeds();
    assert_ne!(node.public_key("main"), imported.public);
    cli.run(&["key", "show", "main"])
        .succeeds()
        .says(&imported.public);
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

//! Row P13: two words, and Nix substitutes from the node.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use testnet::cli::Cli;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::{eventually, is_root};

fn nix_conf(cli: &Cli) -> Option<String> {
    fs::read_to_string(cli.user_config().join("nix/nix.conf")).ok()
}

#[test]
fn p13_use_makes_nix_substitute_from_the_node() {
    if !is_root("p13") {
        return;
    }
    let node = TestNode::start();
    let path = NixClient::host()
        .build("run \"p13\" ''echo x > $out''")
        .remove(0);
    node.push(&[&path]).succeeds();
    node.cli().run(&["use", "main"]).succeeds();

    // Nothing but the file that `use` wrote tells this Nix where to look and whom to trust.
    let nix = NixClient::empty()
        .unset("substituters")
        .unset("trusted-public-keys");
    let mut command = nix.command("nix-store", &["--realise", &path]);
    command.env("XDG_CONFIG_HOME", node.cli().user_config());
    testnet::program::run(&mut command).succeeds();
    assert!(nix.has(&path));
}

#[test]
fn p13_use_is_idempotent_and_unuse_restores_the_file() {
    let node = TestNode::start();
    for before in [
        None,
        Some("# mine\nmax-jobs = 2\n"),
        Some("substituters = https://a.example\n"),
    ] {
        let cli = node.another_user();
        let file = cli.user_config().join("nix/nix.conf");
        if let Some(text) = before {
            fs::create_dir_all(file.parent().expect("a directory")).expect("make a directory");
            fs::write(&file, text).expect("write nix.conf");
        }
        cli.run(&["use", "main"]).succeeds();
        let once = nix_conf(&cli).expect("use writes nix.conf");
        assert!(once.contains(&node.url("main")), "{once}");
        assert!(once.contains(&node.public_key("main")), "{once}");
        before.iter().for_each(|text| {
            text.lines()
                .for_each(|line| assert!(once.contains(line), "{line} is lost: {once}"));
        });
        cli.run(&["use", "main"]).succeeds();
        assert_eq!(
            nix_conf(&cli).as_deref(),
            Some(once.as_str()),
            "use is idempotent"
        );
        cli.run(&["unuse", "main"]).succeeds();
        let after = nix_conf(&cli).unwrap_or_default();
        assert_eq!(
            after,
            before.unwrap_or_default(),
            "unuse leaves what was there before"
        );
        cli.run(&["unuse", "main"]).succeeds();
    }
}

/// The caches called main of two nodes: each is used and unused by itself, whichever way the node is
/// named.
#[test]
fn p13_caches_of_one_name_at_two_nodes_are_both_used() {
    let (node, other) = (TestNode::start(), TestNode::start());
    let cli = node.another_user();
    let [here, there] = [&node, &other].map(|node| node.url("main"));
    let endpoint = format!("http://{}", other.address());
    cli.run(&["use", "main"]).succeeds();
    let alone = nix_conf(&cli).expect("use writes nix.conf");
    // The other node's token is in the other's data directory.
    let at_other = other.another_user();
    let mut second = at_other.command(&["use", "main"]);
    second.env("XDG_CONFIG_HOME", cli.user_config());
    let second = testnet::program::run(&mut second);
    second.succeeds().says(&format!("from {here} as well"));
    let both = nix_conf(&cli).expect("a nix.conf");
    for node in [&node, &other] {
        assert!(both.contains(&node.url("main")), "{both}");
        assert!(both.contains(&node.public_key("main")), "{both}");
    }
    // Of a node that is neither of them it is not said which is meant.
    let stranger = TestNode::start();
    let nowhere = stranger.data_dir().display().to_string();
    let which = cli.run(&["unuse", "main", "--data-dir", &nowhere]);
    which.exits_with(2).says(&format!("{here} and {there}"));
    assert_eq!(nix_conf(&cli).as_ref(), Some(&both));
    let unuse = ["unuse", "main", "--endpoint", &endpoint];
    cli.run(&unuse).succeeds();
    assert_eq!(nix_conf(&cli).as_ref(), Some(&alone));
    cli.run(&unuse).exits_with(2).says(&here);
    let mut second = at_other.command(&["use", "main"]);
    second.env("XDG_CONFIG_HOME", cli.user_config());
    testnet::program::run(&mut second).succeeds();
    assert_eq!(nix_conf(&cli).as_ref(), Some(&both));
    let elsewhere = other.data_dir().display().to_string();
    cli.run(&["unuse", "main", "--data-dir", &elsewhere])
        .succeeds();
    assert_eq!(nix_conf(&cli).as_ref(), Some(&alone));
    cli.run(&["unuse", "main"]).succeeds();
    assert_eq!(nix_conf(&cli), None);
}

/// With `NIX_USER_CONF_FILES` Nix reads no other file of the user.
#[test]
fn p13_the_file_that_nix_reads_is_edited() {
    let node = TestNode::start();
    let cli = node.another_user();
    let dir = tempfile::tempdir().expect("make a directory");
    let [first, second] = ["one.conf", "two.conf"].map(|name| dir.path().join(name));
    let files = format!("{}:{}", first.display(), second.display());
    for (command, is_there) in [("use", true), ("unuse", false)] {
        let mut command = cli.command(&[command, "main"]);
        command.env("NIX_USER_CONF_FILES", &files);
        testnet::program::run(&mut command).succeeds();
        let text = std::fs::read_to_string(&first).unwrap_or_default();
        assert_eq!(text.contains(&node.url("main")), is_there, "{text}");
        assert!(!second.exists());
        assert_eq!(nix_conf(&cli), None);
    }
}

#[test]
fn p13_print_changes_nothing() {
    let node = TestNode::start();
    let cli = node.another_user();
    let printed = cli.run(&["use", "main", "--print"]).succeeds();
    let printed = printed
        .says(&node.url("main"))
        .says(&node.public_key("main"));
    assert!(printed.stdout.contains("substituters"), "{printed}");
    assert_eq!(nix_conf(&cli), None);
}

/// The first start prints the two lines that a `nix.conf` needs.
#[test]
fn p13_the_first_start_says_what_nix_conf_needs() {
    let node = TestNode::start();
    // Others may notice that it serves a moment before it says so.
    let log = eventually("the node to say that it serves", SAID_MAX, || {
        Some(node.log()).filter(|log| log.contains("Serving on"))
    });
    let (url, key) = (node.url("main"), node.public_key("main"));
    assert!(log.contains(&format!("substituters = {url}")), "{log}");
    assert!(
        log.contains(&format!("trusted-public-keys = {key}")),
        "{log}"
    );
}

/// So does the first that serves, when one before it found its port taken.
#[test]
fn p13_the_first_start_that_serves_says_what_nix_conf_needs() {
    let node = TestNode::start();
    let cli = node.another_user();
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let address = taken.local_addr().expect("an address").to_string();
    let data_dir = cli.home().join("data").display().to_string();
    let up = ["up", "--listen", &address, "--data-dir", &data_dir];
    let failed = cli.run(&up).exits_with(1);
    assert!(!failed.stdout.contains("substituters"), "{failed}");
    drop(taken);
    for is_told in [true, false] {
        let up = cli.start(&up);
        up.wait_until_it_says("Serving on", SAID_MAX);
        kill_process(up.pid(), Signal::TERM).expect("signal the node");
        let served = up.wait().succeeds();
        let url = format!("extra-substituters = http://{address}/main\n");
        assert_eq!(served.stdout.contains(&url), is_told, "{served}");
        let key = "extra-trusted-public-keys = main-";
        assert_eq!(served.stdout.contains(key), is_told, "{served}");
    }
}

/// The module that `--nixos` prints is a Nix expression with the same two settings.
#[test]
fn p13_nixos_prints_a_module_and_changes_nothing() {
    let node = TestNode::start();
    let cli = node.another_user();
    let printed = cli.run(&["use", "main", "--nixos"]).succeeds();
    assert_eq!(nix_conf(&cli), None);
    let nix = NixClient::empty();
    let strict = ["--eval", "--strict", "--json", "--expr", &printed.stdout];
    let module = nix.run("nix-instantiate", &strict).succeeds();
    let module: Value = serde_json::from_str(&module.stdout).expect("JSON");
    let wanted = json!({ "nix": { "settings": {
        "extra-substituters": [node.url("main")],
        "extra-trusted-public-keys": [node.public_key("main")],
    } } });
    assert_eq!(module, wanted);
}

/// Nix reads a private cache with the node's token in its netrc, and finds nothing there without.
#[test]
fn p13_a_private_cache_is_read_with_a_netrc() {
    if !is_root("p13 private") {
        return;
    }
    let node = TestNode::start();
    node.cli()
        .run(&["cache", "create", "private", "--private"])
        .succeeds();
    let path = NixClient::host()
        .build("run \"p13-private\" ''echo x > $out''")
        .remove(0);
    node.cli().run(&["push", "private", &path]).succeeds();
    node.another_user()
        .run(&["use", "private"])
        .succeeds()
        .says("warning: the cache is private: Nix needs the node's token in its netrc-file");
    let stranger = NixClient::fresh(&node, "private");
    stranger.run("nix-store", &["--realise", &path]).fails();
    assert!(!stranger.has(&path));
    let nix = NixClient::fresh(&node, "private").authorised(&node);
    nix.run("nix-store", &["--realise", &path]).succeeds();
    nix.verify_store();
    nix.run(
        "nix",
        &["path-info", "--store", &node.url("private"), &path],
    )
    .succeeds();
}

/// How long after it serves a node may take to say so.
const SAID_MAX: Duration = Duration::from_secs(10);

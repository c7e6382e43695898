//! Row G16: a wrong setting is found before it does harm. Row G11: the node says how it is.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;

use serde_json::Value;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::{self, is_root};
use testnet::seed::Seed;
use testnet::served::Served;

#[test]
fn g16_config_check_says_what_is_wrong_by_its_exit_code() {
    let node = TestNode::start();
    let dir = tempfile::TempDir::new().expect("make a directory");
    let file = dir.path().join("config.toml");
    let check = |text: &str| {
        fs::write(&file, text).expect("write a configuration");
        node.cli()
            .run(&["config", "check", "--config", &file.display().to_string()])
    };
    check("").succeeds();
    check("[http]\nlisten = \"127.0.0.1:0\"\n").succeeds();
    check("[http]\nlisen = \"127.0.0.1:0\"\n")
        .exits_with(2)
        .says("did you mean `http.listen`");
    check("[http]\nlisten = \"nowhere\"\n")
        .exits_with(2)
        .says("http.listen");
    check("[http\n").exits_with(2).says("config.toml:1");
    let defaults = node.cli().run(&["config", "show", "--defaults"]).succeeds();
    check(&defaults.stdout).succeeds();
}

#[test]
fn g16_a_node_with_a_wrong_configuration_does_not_start() {
    let node = TestNode::start();
    let mut up = node.up_command();
    up.env("ATTIC_NODE_HTTP_LISTN", "127.0.0.1:0");
    program::run(&mut up)
        .exits_with(2)
        .says("ATTIC_NODE_HTTP_LISTEN");
}

/// Two nodes on one data directory would destroy it.
#[test]
fn a_second_node_on_the_same_data_directory_does_not_start() {
    let node = TestNode::start();
    program::run(&mut node.up_command()).fails();
    assert_eq!(node.get("/readyz").expect("an answer").status, 200);
}

#[test]
fn g11_status_tells_a_program_what_it_tells_a_person() {
    let node = TestNode::start();
    let status = node.cli().json(&["status"]);
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["store"]["chunks"], 0, "{status}");
    node.cli()
        .run(&["status"])
        .succeeds()
        .says(&node.address().to_string());
}

/// Over the unix socket the command line reaches the node without its address.
#[test]
fn the_command_line_speaks_over_the_unix_socket() {
    let node = TestNode::start();
    let socket = node.data_dir().join("node.sock");
    let endpoint = format!("unix:{}", socket.display());
    let over = |args: &[&str]| node.cli().run(&[args, &["--endpoint", &endpoint]].concat());
    let status = over(&["status", "--json"]).succeeds();
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(status["ready"], true, "{status}");
    over(&["cache", "create", "second", "--priority", "9"]).succeeds();
    let info = over(&["cache", "info", "second"])
        .succeeds()
        .says("Priority: 9");
    assert!(!info.stdout.contains("URL:"), "{info}");
    over(&["use", "main"])
        .exits_with(2)
        .says("Nix cannot substitute over unix:");
    if is_root("push over the unix socket") {
        let contents = Seed::new(71).bytes(20 << 20);
        let path = NixClient::host().add_file("unix-socket", &contents);
        over(&["push", "main", &path])
            .succeeds()
            .says("on \"local\"");
        assert!(matches!(node.read(&path), Served::Whole(_)));
    }
    fs::remove_file(&socket).expect("remove the socket");
    over(&["status"])
        .exits_with(1)
        .says(&format!("connect to {endpoint}"));
    node.cli()
        .run(&["status", "--endpoint", "unix:relative"])
        .exits_with(2)
        .says("not of the form http://host:port or unix:/path");
}

#[test]
fn verbs_without_a_node_say_how_to_start_one() {
    let mut node = TestNode::start();
    assert!(node.stop().success(), "{}", node.log());
    // Nobody listens on a privileged port; on the default one somebody's own node might.
    node.cli()
        .run(&["status", "--endpoint", "http://127.0.0.1:1"])
        .fails()
        .says("hint:")
        .says("attic-node up");
}

/// A killed node's address may be somebody else's by now: the token stays at home.
#[test]
fn the_port_of_a_killed_node_is_not_sent_the_token() {
    let mut node = TestNode::start();
    node.kill();
    let stranger = TcpListener::bind(node.address()).expect("the port is free");
    stranger.set_nonblocking(true).expect("a listener");
    let no_node = format!("no node runs in {}", node.data_dir().display());
    assert!(node.data_dir().join("address").exists(), "it is stale");
    for args in [&["status"][..], &["cache", "list"], &["gc"]] {
        let outcome = node.cli().run(args);
        outcome.exits_with(1).says(&no_node).says("attic-node up");
        let accepted = stranger.accept().map_err(|error| error.kind());
        assert_eq!(
            accepted.map(|_| ()),
            Err(ErrorKind::WouldBlock),
            "{args:?} connected"
        );
    }
    node.start_again();
    node.cli().run(&["status"]).succeeds();
}

/// A node that stops says so before its port is free.
#[test]
fn a_stopped_node_leaves_no_address() {
    let mut node = TestNode::start();
    assert!(node.stop().success(), "{}", node.log());
    assert!(!node.data_dir().join("address").exists());
    let no_node = format!("no node runs in {}", node.data_dir().display());
    node.cli().run(&["status"]).exits_with(1).says(&no_node);
}

#[test]
fn completions_are_for_every_shell() {
    let node = TestNode::start();
    for shell in ["bash", "zsh", "fish"] {
        let script = node.cli().run(&["completions", shell]).succeeds();
        assert!(script.stdout.contains("attic-node"), "{shell}");
    }
}

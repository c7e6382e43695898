//! Row P6: what a push says, to people and to programs.

use std::fs::File;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::{self, is_root};
use testnet::seed::Seed;
use testnet::served::Served;

fn two_paths(name: &str) -> Vec<String> {
    let contents = Seed::new(66).bytes(200_000);
    let (one, two) = (format!("{name}-one"), format!("{name}-two"));
    NixClient::host().add_files(&[(&one, &contents), (&two, b"two")])
}

fn base_name(path: &str) -> &str {
    path.trim_start_matches("/nix/store/")
}

#[test]
fn p6_without_a_terminal_the_words_are_plain_and_those_of_attic() {
    if !is_root("p6 words") {
        return;
    }
    let node = TestNode::start();
    let paths = two_paths("p6-words");
    let first = node.push(&paths).succeeds();
    assert!(
        !first.stderr.contains('\x1b') && !first.stderr.contains('\r'),
        "{first}"
    );
    assert_eq!(first.stdout, "", "stdout is for data");
    let first = first
        .says("Pushing 2 paths to \"main\"")
        .says("0 already cached, 0 in upstream");
    paths
        .iter()
        .for_each(|path| assert!(first.stderr.contains(base_name(path)), "{path}: {first}"));
    node.push(&paths)
        .succeeds()
        .says("2 already cached, 0 in upstream");
}

#[test]
fn p6_json_events_name_every_path() {
    if !is_root("p6 json") {
        return;
    }
    let node = TestNode::start();
    let paths = two_paths("p6-json");
    let outcome = node
        .cli()
        .run(&["push", "--json", "main", &paths[0], &paths[1]])
        .succeeds();
    let events: Vec<Value> = outcome
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let [plan, ends @ .., done] = events.as_slice() else {
        panic!("a plan, and how it ended: {outcome}")
    };
    let wanted = json!({
        "event": "plan", "cache": "main", "send": 2, "cached": 0, "upstream": 0, "too_large": 0,
    });
    assert_eq!(*plan, wanted);
    let wanted = json!({
        "event": "done", "pushed": 2, "failed": 0, "cached": 0, "upstream": 0,
    });
    assert_eq!(*done, wanted);
    assert_eq!(ends.len(), 2, "{outcome}");
    for (path, size) in paths.iter().zip([200_000, 3]) {
        let end = ends.iter().find(|end| end["path"] == base_name(path));
        let end = end.unwrap_or_else(|| panic!("{path}: {outcome}"));
        assert_eq!(
            (&end["event"], &end["status"]),
            (&json!("path"), &json!("pushed"))
        );
        let nar_size = end["nar_size"].as_u64().expect("a number");
        assert!((size..size + 200).contains(&nar_size), "{end}");
        assert_eq!(end["sent_bytes"], nar_size, "{end}");
        assert!(end["millis"].is_u64(), "{end}");
    }

    let again = node
        .cli()
        .run(&["push", "--json", "main", &paths[0], &paths[1]])
        .succeeds();
    let events: Vec<Value> = again
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let [plan, ends @ .., done] = events.as_slice() else {
        panic!("a plan, and what was there: {again}")
    };
    assert_eq!(
        (&plan["event"], &plan["cached"]),
        (&json!("plan"), &json!(2))
    );
    assert_eq!(
        (&done["event"], &done["cached"]),
        (&json!("done"), &json!(2))
    );
    assert_eq!(ends.len(), 2, "{again}");
    for path in &paths {
        let end = ends.iter().find(|end| end["path"] == base_name(path));
        let end = end.unwrap_or_else(|| panic!("{path}: {again}"));
        assert_eq!(
            (&end["event"], &end["status"]),
            (&json!("path"), &json!("cached"))
        );
    }
}

/// What others have pushed already is named as deduplicated, with its share.
#[test]
fn p6_the_deduplicated_share_is_said() {
    if !is_root("p6 share") {
        return;
    }
    let node = TestNode::start();
    let (shared, own) = (Seed::new(67).bytes(6 << 20), Seed::new(68).bytes(2 << 20));
    let host = NixClient::host();
    let whole = host.add_file("p6-share-all", &shared);
    let same = host.build(&format!("run \"p6-share-same\" ''cp {whole} $out''"));
    let part = host.add_file("p6-share-part", &[shared.as_slice(), &own].concat());
    node.push(&[&whole]).succeeds();
    let name = base_name(&same[0]);
    node.cli()
        .run(&["push", "main", "--no-closure", &same[0]])
        .succeeds()
        .says(&format!("✅ {name} (deduplicated)"));
    let outcome = node.push(&[&part]).succeeds();
    let line = outcome
        .stderr
        .lines()
        .find(|line| line.contains("p6-share-part"));
    let share = line
        .and_then(|line| {
            line.strip_suffix("% deduplicated)")?
                .rsplit(' ')
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or_else(|| panic!("{outcome}"));
    assert!((65.0..75.1f64).contains(&share), "{outcome}");
}

/// On a terminal, bars move and the words stay.
#[test]
fn p6_on_a_terminal_bars_are_drawn() {
    if !is_root("p6 terminal") {
        return;
    }
    let node = TestNode::start();
    let large = NixClient::host().add_file("p6-terminal", &Seed::new(69).bytes(64 << 20));
    let push = node.cli().push_command(&[&large]);
    let words: Vec<String> = [push.get_program()]
        .into_iter()
        .chain(push.get_args())
        .map(|word| format!("'{}'", word.to_str().expect("UTF-8")))
        .collect();
    let mut script = Command::new("script");
    script.args([
        "--quiet",
        "--return",
        "--command",
        &words.join(" "),
        "/dev/null",
    ]);
    for (name, value) in push.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let outcome = program::run(script.env("TERM", "xterm")).succeeds();
    let drawn = &outcome.stdout;
    assert!(
        drawn.contains('\x1b') && drawn.contains("MiB/s"),
        "{outcome}"
    );
    // The bar names the path without its hash, before the line that ends it.
    let bar = drawn.find("p6-terminal").expect("the path is named");
    let done = drawn.find(&format!("✅ {}", base_name(&large)));
    assert!(done.is_some_and(|done| bar < done), "no bar: {outcome}");
    let outcome = outcome.says("All done!");
    assert!(!outcome.stdout.contains("panicked"), "{outcome}");
}

/// Every skip has its reason, and the node keeps nothing open for a dry run.
#[test]
fn p6_a_dry_run_explains_every_path() {
    if !is_root("p6 reasons") {
        return;
    }
    let node = TestNode::with_config("[store]\nnar-size-max = \"1 MiB\"\n");
    let paths = two_paths("p6-reasons");
    let large = NixClient::host().add_file("p6-reasons-large", &Seed::new(70).bytes(2 << 20));
    node.push(&paths[..1]).succeeds();
    let names = [&paths[0], &paths[1], &large].map(|path| base_name(path));
    let push = ["push", "main", "--dry-run", &paths[0], &paths[1], &large];
    // As the push itself will end.
    let dry = node.cli().run(&push).exits_with(1);
    let mut lines: Vec<&str> = dry.lines().collect();
    lines.sort_unstable();
    let mut wanted = [
        format!("skip {} (195.42 KiB): already in cache main", names[0]),
        format!("push {} (120 B): not in cache main", names[1]),
        format!(
            "fail {} (2.00 MiB): larger than the 1.00 MiB that the node takes",
            names[2]
        ),
    ];
    wanted.sort_unstable();
    assert_eq!(lines, wanted, "{dry}");
    let dry = dry.says("1 path to push, 1 to skip; nothing was pushed");
    dry.says("1 path cannot be pushed");

    let dry = node
        .cli()
        .run(&[&push[..], &["--json"]].concat())
        .exits_with(1);
    let events: Vec<Value> = dry
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let wanted = json!({
        "event": "plan", "cache": "main", "send": 1, "cached": 1, "upstream": 0, "too_large": 1,
    });
    assert_eq!(events[0], wanted);
    let reason = |name: &str| {
        let event = events.iter().find(|event| event["path"] == name);
        let event = event.unwrap_or_else(|| panic!("{name}: {dry}"));
        format!("{} {}", event["status"], event["reason"])
    };
    assert_eq!(reason(names[0]), "\"skip\" \"already in cache main\"");
    assert_eq!(reason(names[1]), "\"push\" \"not in cache main\"");
    assert!(
        reason(names[2]).starts_with("\"fail\" \"larger than"),
        "{dry}"
    );
    assert_eq!(events.len(), 4, "{dry}");
    assert_eq!(node.metric("attic_node_push_sessions"), Some(0.0));
    assert_eq!(node.usage().caches[0].paths, 1);
}

#[test]
fn p6_a_dry_run_sends_nothing() {
    if !is_root("p6 dry run") {
        return;
    }
    let node = TestNode::start();
    let paths = two_paths("p6-dry");
    let dry = node
        .cli()
        .run(&["push", "--dry-run", "main", &paths[0], &paths[1]])
        .succeeds();
    paths
        .iter()
        .for_each(|path| assert!(dry.stdout.contains(base_name(path)), "{path}: {dry}"));
    assert_eq!(node.read(&paths[0]), Served::Absent);
    assert_eq!(node.usage().store.chunks, 0);
}

#[test]
fn p6_paths_may_come_on_standard_input() {
    if !is_root("p6 stdin") {
        return;
    }
    let node = TestNode::start();
    let paths = two_paths("p6-stdin");
    let dir = tempfile::TempDir::new().expect("make a directory");
    let list = dir.path().join("list");
    let lines = format!("  {}\r\n\n{}", paths[0], paths[1]);
    std::fs::write(&list, lines).expect("write a list");
    let mut command = node.cli().command(&["push", "--stdin", "main"]);
    let list = Stdio::from(File::open(list).expect("open the list"));
    program::start_reading(&mut command, list).wait().succeeds();
    paths
        .iter()
        .for_each(|path| assert!(matches!(node.read(path), Served::Whole(_)), "{path}"));
}

#[test]
fn p6_without_closure_only_what_is_named_is_pushed() {
    if !is_root("p6 no closure") {
        return;
    }
    let node = TestNode::start();
    let expression = "let leaf = run \"p6-leaf\" ''echo x > $out''; in \
                      run \"p6-root\" ''echo ${leaf} > $out''";
    let root = NixClient::host().build(expression).remove(0);
    node.cli()
        .run(&["push", "--no-closure", "main", &root])
        .succeeds();
    assert_eq!(node.usage().caches[0].paths, 1);
    node.push(&[&root]).succeeds();
    assert_eq!(node.usage().caches[0].paths, 2);
}

//! Row S6: a narinfo says everything that Nix knows about a path, in a form that strict parsers
//! take.

use std::collections::BTreeMap;

use attic_store::hash::NarHash;
use serde_json::Value;
use testnet::corpus::Closure;
use testnet::nix::{KeyPair, NixClient};
use testnet::node::TestNode;
use testnet::odd_paths;
use testnet::program::is_root;
use testnet::served::hash_part;

/// A narinfo as ncps before 0.10 reads it: every line known and complete, none twice but `Sig`.
fn parse_strictly(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let known = [
        "StorePath",
        "URL",
        "Compression",
        "FileHash",
        "FileSize",
        "NarHash",
        "NarSize",
        "References",
        "Deriver",
        "CA",
        "Sig",
    ];
    let mut fields: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in text
        .strip_suffix('\n')
        .expect("ends with a line")
        .split('\n')
    {
        let (name, value) = line
            .split_once(": ")
            .unwrap_or_else(|| panic!("{line:?} is not a field: {text}"));
        assert!(known.contains(&name), "{name} is not known: {text}");
        assert_eq!(value.trim(), value, "{name}: {text}");
        assert!(!value.is_empty() || name == "References", "{name}: {text}");
        fields.entry(name).or_default().push(value);
    }
    for name in &known[..8] {
        assert_eq!(fields.get(name).map(Vec::len), Some(1), "{name}: {text}");
    }
    for (name, values) in &fields {
        assert!(values.len() == 1 || *name == "Sig", "{name} twice: {text}");
    }
    for name in ["FileHash", "NarHash"] {
        let digits = fields[name][0].strip_prefix("sha256:");
        assert_eq!(digits.map(str::len), Some(52), "{name}: {text}");
    }
    for name in ["FileSize", "NarSize"] {
        assert!(
            fields[name][0].parse::<u64>().is_ok_and(|size| size > 0),
            "{name}: {text}"
        );
    }
    assert!(fields.contains_key("Sig"), "no Sig: {text}");
    fields
}

fn base_name(path: &str) -> &str {
    path.strip_prefix("/nix/store/").expect("a store path")
}

/// Compares what is served for a path with what `nix path-info --json` said about it.
#[track_caller]
fn compare(node: &TestNode, known: &Value) {
    let path = known["path"].as_str().expect("a path");
    let target = format!("/main/{}.narinfo", hash_part(path));
    let text = node.get(&target).expect("an answer").text();
    let fields = parse_strictly(&text);
    let strings = |value: &Value| -> Vec<String> {
        let values = value.as_array().into_iter().flatten();
        values
            .map(|value| value.as_str().expect("text").to_owned())
            .collect()
    };
    assert_eq!(fields["StorePath"], [path]);
    let nar_hash: NarHash = known["narHash"]
        .as_str()
        .expect("a hash")
        .parse()
        .expect("SRI");
    assert_eq!(fields["NarHash"], [nar_hash.to_string()], "{path}");
    assert_eq!(fields["NarSize"], [known["narSize"].to_string()], "{path}");
    let mut references = strings(&known["references"]);
    references.sort();
    let references: Vec<&str> = references.iter().map(|path| base_name(path)).collect();
    assert_eq!(fields["References"], [references.join(" ")], "{path}");
    let deriver = known["deriver"].as_str().map(base_name);
    assert_eq!(fields.get("Deriver").map(|d| d[0]), deriver, "{path}");
    let ca = known["ca"].as_str();
    assert_eq!(fields.get("CA").map(|ca| ca[0]), ca, "{path}");
    for signature in strings(&known["signatures"]) {
        assert!(
            fields["Sig"].contains(&signature.as_str()),
            "{signature}: {text}"
        );
    }
    assert!(
        fields["Sig"].iter().any(|sig| sig.starts_with("main-")),
        "{text}"
    );
}

#[test]
fn s6_every_field_of_every_path_is_the_one_that_nix_knows() {
    if !is_root("s6 fields") {
        return;
    }
    let host = NixClient::host();
    let closure = Closure::load("S");
    let signed = host.build("run \"s6-fields\" ''echo x > $out''").remove(0);
    let key = KeyPair::generate("s6-upstream-1");
    let sign = ["store", "sign", "--key-file", &key.secret_file(), &signed];
    host.run("nix", &sign).succeeds();
    let odd = odd_paths::add(&host);
    let mut roots: Vec<&str> = odd.iter().map(String::as_str).collect();
    roots.extend([closure.root.as_str(), &signed]);
    let with = |words: &[&'static str]| [words, &roots].concat();
    let known = host.run("nix", &with(&["path-info", "--json", "--recursive"]));
    let known: Vec<Value> = serde_json::from_str(&known.succeeds().stdout).expect("a list");
    let count = |field: &str| {
        known
            .iter()
            .filter(|info| info.get(field).is_some())
            .count()
    };
    assert!(count("deriver") > 200, "{}", count("deriver"));
    assert!(count("ca") >= 8, "{}", count("ca"));
    assert!(count("signatures") >= 1);

    let pushed = TestNode::start();
    pushed.push(&roots).succeeds();
    let copied = TestNode::start();
    let url = format!("{}?compression=zstd", copied.url("main"));
    let nix = NixClient::host().authorised(&copied);
    nix.run("nix", &[&["copy", "--to", &url], &roots[..]].concat())
        .succeeds();
    for node in [&pushed, &copied] {
        known.iter().for_each(|info| compare(node, info));
    }
}

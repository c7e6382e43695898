//! What `nix path-info --json` printed over the years.

use attic_node_cli::nix::path_info::{Answer, PathInfoError, parse};
use attic_store::narinfo::PathInfo;
use serde_json::{Value, json};

const FOO: &str = "n5wkd9frr45pa74if5gpz9j7mifg27fh-foo";
const BAR: &str = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-bar";
const SRI: &str = "sha256-FePFYIlMuycIXPZbWi7LGEiMmZSX9FMbaQenWBzm1Sc=";
const HEX: &str = "15e3c560894cbb27085cf65b5a2ecb18488c999497f4531b6907a7581ce6d527";
const SIG: &str =
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";
const CA: &str = "fixed:r:sha256:1lr187v6dck1rjh2j6svpikcfz53wyl3qrlcbb405zlh13x0khhh";

fn full(base_name: &str) -> String {
    format!("/nix/store/{base_name}")
}

fn read(document: &Value) -> Answer {
    parse(document.to_string().as_bytes()).unwrap()
}

/// What every version says about `foo`, each in its own way.
fn foo() -> PathInfo {
    PathInfo {
        path: FOO.parse().unwrap(),
        nar_hash: SRI.parse().unwrap(),
        nar_size: 34878,
        references: [BAR, FOO].map(|path| path.parse().unwrap()).into(),
        deriver: Some(format!("{BAR}.drv").parse().unwrap()),
        ca: Some(CA.parse().unwrap()),
        signatures: vec![format!("asdf:{SIG}").parse().unwrap()],
    }
}

/// An entry as versions before the structured formats print it.
fn plain_entry() -> Value {
    json!({
        "ca": CA, "deriver": full(&format!("{BAR}.drv")), "narHash": SRI, "narSize": 34878,
        "references": [full(BAR), full(FOO)], "registrationTime": 23423,
        "signatures": [format!("asdf:{SIG}"), "qwer"], "ultimate": true,
    })
}

/// An entry with base names and a structured content address.
fn structured_entry(version: u8, nar_hash: Value, ca_hash: Value, signature: Value) -> Value {
    json!({
        "ca": {"method": "nar", "hash": ca_hash}, "deriver": format!("{BAR}.drv"),
        "narHash": nar_hash, "narSize": 34878, "references": [BAR, FOO],
        "registrationTime": 23423, "signatures": [signature], "storeDir": "/nix/store",
        "ultimate": true, "version": version,
    })
}

#[test]
fn lists_of_nix_2_8_and_lix() {
    let mut entry = plain_entry();
    entry["path"] = full(FOO).into();
    let answer = read(&json!([entry, {"path": full(BAR), "valid": false}]));
    assert_eq!(answer.valid, [foo()]);
    assert_eq!(answer.invalid, [full(BAR)]);
    assert_eq!(answer.store_dir.as_str(), "/nix/store");
}

#[test]
fn maps_of_nix_2_19() {
    let answer = read(&json!({ full(FOO): plain_entry(), full(BAR): null }));
    assert_eq!(answer.valid, [foo()]);
    assert_eq!(answer.invalid, [full(BAR)]);
}

#[test]
fn json_format_1_says_its_version_and_store_directory() {
    let mut entry = plain_entry();
    entry["version"] = 1.into();
    entry["storeDir"] = "/nix/store".into();
    let document = json!({ full(FOO): entry, "storeDir": "/nix/store", "version": 1 });
    assert_eq!(read(&document).valid, [foo()]);
}

#[test]
fn json_formats_2_and_3_have_base_names_and_structured_hashes() {
    let sri = || json!("sha256-EMIJ+giQ/gLIWoxmPKjno3zHZrxbGymgzGGyZvZBIdM=");
    let hex = |hash: &str| json!({"algorithm": "sha256", "format": "base16", "hash": hash});
    let base64 = json!({
        "algorithm": "sha256", "format": "base64",
        "hash": "EMIJ+giQ/gLIWoxmPKjno3zHZrxbGymgzGGyZvZBIdM=",
    });
    let text = || json!(format!("asdf:{SIG}"));
    let object = || json!({"keyName": "asdf", "sig": SIG});
    for entry in [
        structured_entry(2, json!(SRI), sri(), text()),
        structured_entry(2, hex(HEX), base64, text()),
        structured_entry(3, hex(HEX), sri(), object()),
        structured_entry(3, json!(SRI), sri(), object()),
    ] {
        let version = &entry["version"];
        let document = json!({
            "version": version, "storeDir": "/nix/store", "info": { FOO: entry, BAR: null },
        });
        let answer = read(&document);
        assert_eq!(answer.valid, [foo()], "{document}");
        assert_eq!(answer.invalid, [BAR]);
    }
}

#[test]
fn content_addresses_of_every_method() {
    let sri = "sha256-EMIJ+giQ/gLIWoxmPKjno3zHZrxbGymgzGGyZvZBIdM=";
    let digits = CA.rsplit(':').next().unwrap();
    for (method, prefix) in [
        ("text", "text:"),
        ("flat", "fixed:"),
        ("nar", "fixed:r:"),
        ("git", "fixed:git:"),
    ] {
        let mut entry = structured_entry(3, json!(SRI), json!(sri), json!("x"));
        entry["ca"]["method"] = method.into();
        let answer = read(&json!({ "info": { FOO: entry } }));
        let ca = answer.valid[0].ca.as_ref().unwrap().to_string();
        assert_eq!(ca, format!("{prefix}sha256:{digits}"));
    }
}

#[test]
fn absent_deriver_address_and_signatures_are_none() {
    let entry = json!({
        "ca": null, "deriver": null, "narHash": SRI, "narSize": 1, "references": [],
    });
    let answer = read(&json!({ full(FOO): entry }));
    let info = &answer.valid[0];
    assert_eq!(
        (&info.deriver, &info.ca, info.signatures.len()),
        (&None, &None, 0)
    );
}

#[test]
fn other_store_directories_are_recognised() {
    let entry =
        json!({ "narHash": SRI, "narSize": 1, "references": [format!("/gnu/store/{BAR}")] });
    let answer = read(&json!({ format!("/gnu/store/{FOO}"): entry }));
    assert_eq!(answer.store_dir.as_str(), "/gnu/store");
}

#[test]
fn paths_that_are_named_twice_are_listed_once() {
    let mut entry = plain_entry();
    entry["path"] = full(FOO).into();
    assert_eq!(read(&json!([entry, entry])).valid.len(), 1);
}

#[test]
fn what_cannot_be_understood_is_an_error_that_names_the_path() {
    let check = |document: Value, wanted: &str| {
        let error = parse(document.to_string().as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains(wanted), "{error} should say {wanted}");
    };
    let with = |field: &str, value: Value| {
        let mut entry = plain_entry();
        entry[field] = value;
        json!({ full(FOO): entry })
    };
    check(json!(1), "neither a list nor an object");
    check(json!({"info": 1}), "neither a list nor an object");
    check(json!([{"narSize": 1}]), "neither a list nor an object");
    check(
        with("narHash", json!("sha1:x")),
        &format!("narHash of {}", full(FOO)),
    );
    check(with("narHash", json!(1)), "narHash of");
    check(with("narSize", json!(-1)), "narSize of");
    check(with("narSize", Value::Null), "narSize of");
    check(with("references", json!([1])), "references of");
    check(
        with("references", json!(["/nix/store/x"])),
        "\"/nix/store/x\"",
    );
    check(
        with("references", json!([format!("/other/{BAR}")])),
        "/nix/store and in /other",
    );
    check(with("ca", json!("fixed:sha256:x")), "ca of");
    check(json!({ "/nix/store/foo": plain_entry() }), "/nix/store/foo");
    assert!(matches!(parse(b"warning: x"), Err(PathInfoError::Json(_))));
    assert!(matches!(parse(b""), Err(PathInfoError::Json(_))));
}

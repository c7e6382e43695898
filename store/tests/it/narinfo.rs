//! Narinfos: parsed strictly, printed as Nix prints them.

use std::collections::BTreeSet;

use attic_store::hash::{FileHash, NarHash};
use attic_store::narinfo::{Compression, ContentAddress, NarInfo, PathInfo};
use attic_store::signature::{SecretKey, Signature};
use attic_store::store_path::{StoreDir, StorePath, StorePathHash};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::select;

use crate::golden;

const BASE: &str = "\
StorePath: /nix/store/3xyv3iyj2f7ll4ddv6z8gzxn3kh05fd3-dep
URL: nar/x.nar.zst
Compression: zstd
FileHash: sha256:133dryinshbf691q9xcln5ri4zgcvkv8amwj6n82bx82gv406wd5
FileSize: 141
NarHash: sha256:1hcry1l4ks4cjaxf19jliraw6lv3ka3apb8601l4pq91gn1byr5w
NarSize: 288
References: 3xyv3iyj2f7ll4ddv6z8gzxn3kh05fd3-dep
Deriver: ma5mcslkb94vgzbpmh0ag7b7lnnb4137-dep.drv
Sig: other-2:dIukPNqCyilzB/qSsO2FGgcJOoI3SaEH9tx4EliymsLlyIloTqHmS2I7l4NC1lv5C8bZQ+iTOLr8JvvrdD+BBg==
CA: fixed:r:sha256:1hcry1l4ks4cjaxf19jliraw6lv3ka3apb8601l4pq91gn1byr5w
";

fn parse(text: &str) -> Result<NarInfo, String> {
    let parsed = NarInfo::parse(text.as_bytes(), &StoreDir::default());
    parsed.map_err(|error| error.to_string())
}

/// [`BASE`] with the line of `field` replaced by `line`, or removed when that is empty.
fn with(field: &str, line: &str) -> String {
    let prefix = format!("{field}: ");
    let lines = BASE.split_inclusive('\n');
    let changed = lines
        .map(|old| if old.starts_with(&prefix) { line } else { old })
        .collect();
    assert_ne!(changed, BASE, "{field} is in the base text");
    changed
}

/// S6: complete narinfos, byte for byte what Nix writes.
#[test]
fn s6_golden_files_print_back_byte_for_byte() {
    for name in golden::names("narinfo", ".narinfo") {
        let text = golden::text(&name);
        let info = parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(info.print(&StoreDir::default()), text, "{name}");
    }
}

#[test]
fn every_field_of_a_golden_file_is_understood() {
    let info = parse(&golden::text("narinfo/app-zstd.narinfo")).unwrap();
    assert_eq!(
        info.url,
        "nar/1sl6ma6afcm3z3cmlkr7fag74dbksikf8b64v3ljv12lid7ns53j.nar.zst"
    );
    assert_eq!(info.compression, Compression::Zstd);
    assert_eq!(
        info.file_hash.unwrap().nix32(),
        "1sl6ma6afcm3z3cmlkr7fag74dbksikf8b64v3ljv12lid7ns53j"
    );
    assert_eq!(info.file_size, Some(472));
    let info = info.info;
    assert_eq!(info.path.name(), "app-2.0");
    assert_eq!(info.nar_hash, NarHash::of(&golden::bytes("nar/app.nar")));
    assert_eq!(info.nar_size, 1640);
    assert_eq!(info.references.len(), 4);
    assert!(info.references.contains(&info.path), "it refers to itself");
    assert_eq!(
        info.deriver.unwrap().to_string(),
        "iq09hndkimz82wyif7gjhxxvhzj8s8fj-app-2.0.drv"
    );
    let keys: Vec<&str> = info.signatures.iter().map(Signature::key_name).collect();
    assert_eq!(keys, ["golden.test-1", "other-2"]);
    assert_eq!(info.ca, None);
}

#[test]
fn what_nix_tolerates_is_read_in_its_sense() {
    type Holds = fn(&NarInfo) -> bool;
    let rows: &[(String, Holds)] = &[
        (BASE.to_owned(), |info| info.info.nar_size == 288),
        (BASE.split_inclusive('\n').rev().collect(), |info| {
            info.info.nar_size == 288
        }),
        (
            format!("{BASE}Novelty: 1: 2\nSystem: x86_64-linux\n"),
            |_| true,
        ),
        (with("Compression", ""), |info| {
            info.compression == Compression::Bzip2
        }),
        (with("Compression", "Compression: \n"), |info| {
            info.compression == Compression::Bzip2
        }),
        (with("Deriver", "Deriver: unknown-deriver\n"), |info| {
            info.info.deriver.is_none()
        }),
        (with("Deriver", ""), |info| info.info.deriver.is_none()),
        (with("FileHash", ""), |info| info.file_hash.is_none()),
        (with("FileSize", ""), |info| info.file_size.is_none()),
        (with("References", "References: \n"), |info| {
            info.info.references.is_empty()
        }),
        (with("References", ""), |info| {
            info.info.references.is_empty()
        }),
        (with("Sig", ""), |info| info.info.signatures.is_empty()),
        (with("CA", ""), |info| info.info.ca.is_none()),
        (with("CA", "CA: \n"), |info| info.info.ca.is_none()),
        (with("URL", "URL: https://elsewhere/nar/x?y=z\n"), |info| {
            info.url.ends_with("x?y=z")
        }),
        (
            with(
                "NarHash",
                "NarHash: sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
            ),
            |info| info.info.nar_hash == NarHash::of(b""),
        ),
        (
            BASE.replace("Sig: other-2:d", "Sig: a:d") + BASE.split_inclusive('\n').nth(9).unwrap(),
            |info| info.info.signatures.len() == 2,
        ),
    ];
    for (text, holds) in rows {
        let info = parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert!(holds(&info), "{text}");
    }
}

#[test]
fn what_would_break_a_client_is_refused_with_line_field_and_reason() {
    let sig = BASE.split_inclusive('\n').nth(9).unwrap();
    let nix_store = "store path is not in /nix/store";
    let rows = [
        (String::new(), "narinfo has no StorePath".to_owned()),
        (with("StorePath", ""), "narinfo has no StorePath".to_owned()),
        (with("URL", ""), "narinfo has no URL".to_owned()),
        (with("NarHash", ""), "narinfo has no NarHash".to_owned()),
        (with("NarSize", ""), "narinfo has no NarSize".to_owned()),
        (
            BASE.trim_end().to_owned(),
            "narinfo line 11: no newline at the end".to_owned(),
        ),
        (
            BASE.replace('\n', "\r\n"),
            "narinfo line 1: carriage return".to_owned(),
        ),
        (
            format!("{BASE}\n"),
            "narinfo line 12: not of the form `Name: value`".to_owned(),
        ),
        (
            format!("\n{BASE}"),
            "narinfo line 1: not of the form `Name: value`".to_owned(),
        ),
        (
            format!("{BASE}: x\n"),
            "narinfo line 12: not of the form `Name: value`".to_owned(),
        ),
        (
            with("NarSize", "NarSize:288\n"),
            "narinfo line 7: not of the form `Name: value`".to_owned(),
        ),
        (
            with("References", "References:\n"),
            "narinfo line 8: not of the form `Name: value`".to_owned(),
        ),
        (
            "<!doctype html>\n<html></html>\n".to_owned(),
            "narinfo line 1: not of the form `Name: value`".to_owned(),
        ),
        (
            with(
                "StorePath",
                "StorePath: /gnu/store/3xyv3iyj2f7ll4ddv6z8gzxn3kh05fd3-dep\n",
            ),
            format!("narinfo line 1: StorePath: {nix_store}"),
        ),
        (
            with(
                "StorePath",
                "StorePath: 3xyv3iyj2f7ll4ddv6z8gzxn3kh05fd3-dep\n",
            ),
            format!("narinfo line 1: StorePath: {nix_store}"),
        ),
        (
            with("URL", "URL: \n"),
            "narinfo line 2: URL: not a URL".to_owned(),
        ),
        (
            with("URL", "URL: a b\n"),
            "narinfo line 2: URL: not a URL".to_owned(),
        ),
        (
            with("URL", "URL: a\u{7f}\n"),
            "narinfo line 2: URL: not a URL".to_owned(),
        ),
        (
            with("Compression", "Compression: lz4\n"),
            "narinfo line 3: Compression: unknown compression \"lz4\"".to_owned(),
        ),
        (
            with("Compression", "Compression: ZSTD\n"),
            "narinfo line 3: Compression: unknown compression \"ZSTD\"".to_owned(),
        ),
        (
            with(
                "Compression",
                &format!("Compression: {}\n", "x".repeat(1000)),
            ),
            format!(
                "narinfo line 3: Compression: unknown compression {:?}",
                "x".repeat(32)
            ),
        ),
        (
            with("FileHash", "FileHash: sha256:x\n"),
            "narinfo line 4: FileHash: hash has 1 digits, which no form of a 32-byte hash has"
                .to_owned(),
        ),
        (
            with("FileHash", "FileHash: md5:56cxf1akjnr3sk904c4rhy9m4x\n"),
            "narinfo line 4: FileHash: hash does not start with sha256: or sha256-".to_owned(),
        ),
        (
            with("FileSize", "FileSize: 1e3\n"),
            "narinfo line 5: FileSize: not a number".to_owned(),
        ),
        (
            with(
                "NarHash",
                "NarHash: sha256:hcry1l4ks4cjaxf19jliraw6lv3ka3apb8601l4pq91gn1byr5w\n",
            ),
            "narinfo line 6: NarHash: hash has 51 digits, which no form of a 32-byte hash has"
                .to_owned(),
        ),
        (
            with("NarSize", "NarSize: 0\n"),
            "narinfo line 7: NarSize: must not be 0".to_owned(),
        ),
        (
            with("NarSize", "NarSize: -1\n"),
            "narinfo line 7: NarSize: not a number".to_owned(),
        ),
        (
            with("NarSize", "NarSize: +1\n"),
            "narinfo line 7: NarSize: not a number".to_owned(),
        ),
        (
            with("NarSize", "NarSize: \n"),
            "narinfo line 7: NarSize: not a number".to_owned(),
        ),
        (
            with("NarSize", "NarSize:  1\n"),
            "narinfo line 7: NarSize: not a number".to_owned(),
        ),
        (
            with("NarSize", "NarSize: 18446744073709551616\n"),
            "narinfo line 7: NarSize: not a number".to_owned(),
        ),
        (
            with(
                "References",
                "References: /nix/store/3xyv3iyj2f7ll4ddv6z8gzxn3kh05fd3-dep\n",
            ),
            "narinfo line 8: References: store path's base name contains /".to_owned(),
        ),
        (
            with(
                "References",
                "References: 3xyv3iyj2f7ll4ddv6z8gzxn3kh05fd3-dep,x\n",
            ),
            "narinfo line 8: References: store path's name contains ','".to_owned(),
        ),
        (
            with("Deriver", "Deriver: \n"),
            "narinfo line 9: Deriver: store path has no - after its hash part".to_owned(),
        ),
        (
            with("Sig", "Sig: garbage\n"),
            "narinfo line 10: Sig: key has no : after its name".to_owned(),
        ),
        (
            with("Sig", "Sig: k:AAAA\n"),
            "narinfo line 10: Sig: key holds 3 bytes, not 64".to_owned(),
        ),
        (
            with("CA", "CA: sha256:x\n"),
            "narinfo line 11: CA: content address begins with neither text: nor fixed:".to_owned(),
        ),
        (
            format!("{BASE}{sig}NarSize: 5\n"),
            "narinfo line 13: NarSize: given twice".to_owned(),
        ),
    ];
    for (text, expected) in rows {
        assert_eq!(parse(&text).unwrap_err(), expected, "{text}");
    }
}

#[test]
fn a_second_line_of_any_name_but_sig_is_refused() {
    for (index, line) in BASE.split_inclusive('\n').enumerate() {
        let field = line.split(':').next().unwrap();
        let twice = format!("{BASE}{line}");
        match field {
            "Sig" => assert_eq!(parse(&twice), parse(BASE), "the same signature counts once"),
            field => {
                let expected = format!("narinfo line 12: {field}: given twice");
                assert_eq!(parse(&twice).unwrap_err(), expected, "line {}", index + 1);
            }
        }
    }
}

#[test]
fn text_that_is_not_utf8_or_too_long_is_refused() {
    let dir = StoreDir::default();
    let error = NarInfo::parse(b"A: b\nC: \xff\n", &dir).unwrap_err();
    assert_eq!(error.to_string(), "narinfo line 2: not UTF-8");
    let filler = format!("X: {}\n", "x".repeat(NarInfo::LEN_MAX - BASE.len() - 4));
    assert!(parse(&format!("{BASE}{filler}")).is_ok());
    let error = parse(&format!("{BASE}{filler} ")).unwrap_err();
    assert_eq!(error, "narinfo has 1048577 bytes, more than 1048576");
}

#[test]
fn content_addresses_are_read_in_every_form_and_printed_in_one() {
    let sha256 = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
    let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let base64 = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    for method in ["text:", "fixed:", "fixed:r:", "fixed:git:"] {
        let canonical = format!("{method}sha256:{sha256}");
        for digits in [sha256, hex, base64] {
            let ca: ContentAddress = format!("{method}sha256:{digits}").parse().unwrap();
            assert_eq!(ca.to_string(), canonical);
        }
    }
    let sha1 = "f8h5qy03cm8knz7xmamq8a9aqn7avxhi";
    assert!(
        format!("fixed:git:sha1:{sha1}")
            .parse::<ContentAddress>()
            .is_ok()
    );
    assert!(
        format!("fixed:blake3:{sha256}")
            .parse::<ContentAddress>()
            .is_ok()
    );
    let wrong = [
        String::new(),
        "text:".to_owned(),
        format!("text:sha1:{sha1}"),
        format!("text:{sha256}"),
        format!("fixed:r:text:sha256:{sha256}"),
        format!("fixed:x:sha256:{sha256}"),
        format!("fixed:sha3:{sha256}"),
        format!("fixed:sha1:{sha256}"),
        format!("fixed:sha256-{base64}"),
        format!("fixed:sha256:{}", &sha256[1..]),
        format!("recursive:sha256:{sha256}"),
    ];
    for text in wrong {
        assert!(text.parse::<ContentAddress>().is_err(), "{text}");
    }
}

#[test]
fn adding_a_signature_keeps_them_sorted_and_each_once() {
    let mut info = parse(&with("Sig", "")).unwrap().info;
    let sign = |name: &str, seed| SecretKey::generate(name, [seed; 32]).unwrap().sign(b"x");
    for signature in [
        sign("b", 1),
        sign("a", 2),
        sign("b", 1),
        sign("b", 3),
        sign("a-", 4),
    ] {
        info.add_signature(signature);
    }
    let texts: Vec<String> = info.signatures.iter().map(Signature::to_string).collect();
    assert_eq!(texts.len(), 4, "two keys may share a name");
    assert!(texts.is_sorted(), "{texts:?}");
}

#[test]
fn unsorted_signatures_are_printed_as_nix_sorts_them() {
    let mut info = parse(&golden::text("narinfo/app-zstd.narinfo")).unwrap();
    info.info.signatures.reverse();
    let text = info.print(&StoreDir::default());
    assert_eq!(text, golden::text("narinfo/app-zstd.narinfo"));
}

#[test]
fn compression_names_round_trip_and_are_text_in_json() {
    for compression in Compression::ALL {
        assert_eq!(compression.to_string().parse(), Ok(compression));
        let json = serde_json::to_string(&compression).unwrap();
        assert_eq!(json, format!("\"{compression}\""));
    }
}

fn any_path() -> impl Strategy<Value = StorePath> {
    let name = "[a-z0-9+._?=][a-z0-9+._?=-]{0,20}";
    (any::<[u8; 20]>(), name).prop_filter_map("a name of dots", |(hash, name)| {
        StorePath::new(StorePathHash::from_bytes(hash), &name).ok()
    })
}

fn any_signature() -> impl Strategy<Value = Signature> {
    ("[a-z.0-9-]{1,12}", vec(any::<u8>(), 64)).prop_map(|(name, bytes)| {
        let base64 = data_encoding::BASE64.encode(&bytes);
        format!("{name}:{base64}").parse().unwrap()
    })
}

fn any_ca() -> impl Strategy<Value = ContentAddress> {
    let method = select(vec!["text", "fixed", "fixed:r", "fixed:git"]);
    (method, any::<[u8; 32]>()).prop_map(|(method, hash)| {
        format!("{method}:{}", NarHash::from_bytes(hash))
            .parse()
            .unwrap()
    })
}

fn any_info() -> impl Strategy<Value = PathInfo> {
    (
        any_path(),
        any::<[u8; 32]>(),
        1..=u64::MAX,
        btree_set(any_path(), 0..5),
        option::of(any_path()),
        option::of(any_ca()),
        btree_set(any_signature(), 0..4),
    )
        .prop_map(
            |(path, nar_hash, nar_size, references, deriver, ca, signatures)| PathInfo {
                path,
                nar_hash: NarHash::from_bytes(nar_hash),
                nar_size,
                references,
                deriver,
                ca,
                signatures: signatures.into_iter().collect(),
            },
        )
}

fn any_narinfo() -> impl Strategy<Value = NarInfo> {
    (
        any_info(),
        "[!-~]{1,40}",
        select(Compression::ALL.to_vec()),
        option::of(any::<[u8; 32]>()),
        option::of(any::<u64>()),
    )
        .prop_map(|(info, url, compression, file_hash, file_size)| NarInfo {
            info,
            url,
            compression,
            file_hash: file_hash.map(FileHash::from_bytes),
            file_size,
        })
}

/// Golden texts with some bytes replaced, removed or repeated.
fn damaged_golden() -> impl Strategy<Value = Vec<u8>> {
    let texts: Vec<Vec<u8>> = golden::names("narinfo", ".narinfo")
        .iter()
        .map(|name| golden::bytes(name))
        .collect();
    let byte = prop_oneof![any::<u8>(), select(b": \n\r/-+=0eA".to_vec())];
    let damage = vec((any::<proptest::sample::Index>(), option::of(byte)), 1..4);
    (select(texts), damage).prop_map(|(mut text, damage)| {
        for (at, byte) in damage {
            let at = at.index(text.len());
            match byte {
                Some(byte) => text[at] = byte,
                None => drop(text.remove(at)),
            }
        }
        text
    })
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(info in any_narinfo(), dir in prop_oneof![Just("/nix/store"), Just("/a b/s")]) {
        let dir: StoreDir = dir.parse().unwrap();
        let text = info.print(&dir);
        prop_assert_eq!(NarInfo::parse(text.as_bytes(), &dir), Ok(info));
    }

    #[test]
    fn serialised_forms_round_trip(info in any_narinfo()) {
        let json = serde_json::to_string(&info).unwrap();
        prop_assert_eq!(&serde_json::from_str::<NarInfo>(&json).unwrap(), &info);
        let bytes = postcard::to_stdvec(&info).unwrap();
        prop_assert_eq!(&postcard::from_bytes::<NarInfo>(&bytes).unwrap(), &info);
    }

    #[test]
    fn damaged_text_is_refused_or_means_what_it_prints(text in damaged_golden()) {
        let dir = StoreDir::default();
        if let Ok(info) = NarInfo::parse(&text, &dir) {
            let printed = info.print(&dir);
            prop_assert_eq!(NarInfo::parse(printed.as_bytes(), &dir), Ok(info));
        }
    }

    #[test]
    fn fingerprint_does_not_depend_on_the_order_of_references(info in any_info()) {
        let reversed: BTreeSet<StorePath> = info.references.iter().rev().cloned().collect();
        let other = PathInfo { references: reversed, ..info.clone() };
        let dir = StoreDir::default();
        prop_assert_eq!(info.fingerprint(&dir), other.fingerprint(&dir));
    }
}

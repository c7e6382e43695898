//! Store paths, their hash parts and their directory.

use attic_store::store_path::{StoreDir, StorePath, StorePathHash};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

const HASH: &str = "3xyv3iyj2f7ll4ddv6z8gzxn3kh05fd3";

#[test]
fn base_names_that_nix_takes_round_trip() {
    let longest = "x".repeat(211);
    for name in [
        "a",
        "dep-1.0+a_b?c=d",
        "-",
        "...",
        ".hidden",
        "..x-y",
        ".x",
        "0",
        &longest,
    ] {
        let text = format!("{HASH}-{name}");
        let path: StorePath = text
            .parse()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(path.to_string(), text);
        assert_eq!(
            (path.hash().to_string().as_str(), path.name()),
            (HASH, name)
        );
    }
}

#[test]
fn base_names_that_nix_refuses_are_refused_by_their_reason() {
    let too_long = format!("{HASH}-{}", "x".repeat(212));
    let hash_reason = "hash part of store path";
    let rows = [
        ("".to_owned(), "no - after its hash part"),
        (HASH.to_owned(), "no - after its hash part"),
        (format!("{HASH}-"), "0 characters"),
        (too_long, "212 characters"),
        (format!("{}-x", &HASH[1..]), hash_reason),
        (format!("0{HASH}-x"), hash_reason),
        (format!("{}-x", HASH.to_uppercase()), hash_reason),
        (format!("e{}-x", &HASH[1..]), hash_reason),
        (format!("{HASH}-a b"), "contains ' '"),
        (format!("{HASH}-a/b"), "contains /"),
        (format!("{HASH}-ä"), "contains 'ä'"),
        (format!("{HASH}-a\n"), r"contains '\n'"),
        (format!("{HASH}-a\0"), r"contains '\0'"),
        (format!("{HASH}-."), "as a word"),
        (format!("{HASH}-.."), "as a word"),
        (format!("{HASH}-.-a"), "as a word"),
        (format!("{HASH}-..-a"), "as a word"),
        (format!("/nix/store/{HASH}-a"), "contains /"),
    ];
    for (text, reason) in rows {
        let error = text.parse::<StorePath>().unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn full_paths_must_lie_directly_in_the_store_directory() {
    let dir = StoreDir::default();
    let full = format!("/nix/store/{HASH}-a");
    let path = StorePath::parse_full(&dir, &full).unwrap();
    assert_eq!(path.full(&dir), full);
    let foreign = [
        format!("/gnu/store/{HASH}-a"),
        format!("/nix/store{HASH}-a"),
        format!("/nix/storex/{HASH}-a"),
        format!("{HASH}-a"),
        format!("/nix/store//{HASH}-a"),
        format!("/nix/store/{HASH}-a/bin"),
        format!("/nix/store/../store/{HASH}-a"),
    ];
    for text in foreign {
        assert!(StorePath::parse_full(&dir, &text).is_err(), "{text}");
    }
}

#[test]
fn store_directories_are_absolute_and_in_normal_form() {
    for text in ["/nix/store", "/s", "/home/x y/nix/store", "/a/...", "/ä"] {
        assert_eq!(text.parse::<StoreDir>().unwrap().as_str(), text);
    }
    let long = format!("/{}", "x".repeat(1024));
    for text in [
        "",
        "/",
        "nix/store",
        "/nix/store/",
        "/nix//store",
        "/a/../b",
        "/./a",
        "/a\n",
        &long,
    ] {
        assert!(text.parse::<StoreDir>().is_err(), "{text}");
    }
}

#[test]
fn paths_are_text_in_every_format_and_hash_parts_are_bytes_in_postcard() {
    let path: StorePath = format!("{HASH}-a").parse().unwrap();
    assert_eq!(
        serde_json::to_string(&path).unwrap(),
        format!("\"{HASH}-a\"")
    );
    let bytes = postcard::to_stdvec(&path).unwrap();
    assert_eq!(bytes[1..], *format!("{HASH}-a").as_bytes());
    assert_eq!(postcard::from_bytes::<StorePath>(&bytes).unwrap(), path);
    assert_eq!(
        postcard::to_stdvec(path.hash()).unwrap(),
        path.hash().as_bytes()
    );
    assert!(serde_json::from_str::<StorePath>("\"../../etc/passwd\"").is_err());
}

proptest! {
    #[test]
    fn order_is_that_of_the_text(a in any::<[u8; 20]>(), b in any::<[u8; 20]>(), m in "[a-c-]{1,3}", n in "[a-c-]{1,3}") {
        let a = StorePath::new(StorePathHash::from_bytes(a), &m).unwrap();
        let b = StorePath::new(StorePathHash::from_bytes(b), &n).unwrap();
        prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        let same_hash = StorePath::new(*a.hash(), &n).unwrap();
        prop_assert_eq!(a.cmp(&same_hash), a.to_string().cmp(&same_hash.to_string()));
    }

    #[test]
    fn any_text_is_a_path_that_prints_back_or_an_error(text in "[0-9a-z]{31,33}-?[ -~é/]{0,8}") {
        if let Ok(path) = text.parse::<StorePath>() {
            prop_assert_eq!(path.to_string(), text);
        }
    }

    #[test]
    fn a_hash_part_prints_as_it_was_read(text in "[0-9a-df-np-sv-z]{32}") {
        prop_assert!(text.parse::<StorePathHash>().unwrap().to_string() == text);
    }
}

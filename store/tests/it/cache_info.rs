//! `nix-cache-info`.

use attic_store::cache_info::CacheInfo;
use attic_store::store_path::StoreDir;
use proptest::prelude::{any, proptest};

use crate::golden;

#[test]
fn what_nix_writes_is_read() {
    let dir: StoreDir = "/elsewhere".parse().unwrap();
    let info = CacheInfo::parse(&golden::bytes("nix-cache-info"), &dir).unwrap();
    let expected = CacheInfo {
        store_dir: StoreDir::default(),
        want_mass_query: false,
        priority: 0,
    };
    assert_eq!(info, expected);
}

#[test]
fn text_has_the_three_lines_nix_reads() {
    let info = CacheInfo {
        store_dir: StoreDir::default(),
        want_mass_query: true,
        priority: 30,
    };
    assert_eq!(
        info.to_string(),
        "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"
    );
}

#[test]
fn values_are_trimmed_and_unknown_lines_skipped_as_nix_does() {
    let rows: &[(&str, &str)] = &[
        ("", "/own/store 0 0"),
        ("\n\nnothing\n", "/own/store 0 0"),
        ("StoreDir:/s\nWantMassQuery:1\nPriority:7", "/s 1 7"),
        ("StoreDir:  /s  \r\nPriority: 40 \r\n", "/s 0 40"),
        ("WantMassQuery: true\n", "/own/store 0 0"),
        (
            "Priority: 1\nPriority: 2\nPublisher: me\n",
            "/own/store 0 2",
        ),
    ];
    for (text, expected) in rows {
        let info = CacheInfo::parse(text.as_bytes(), &"/own/store".parse().unwrap()).unwrap();
        let found = format!(
            "{} {} {}",
            info.store_dir,
            u8::from(info.want_mass_query),
            info.priority
        );
        assert_eq!(found, *expected, "{text:?}");
    }
}

#[test]
fn what_would_kill_or_mislead_a_client_is_refused() {
    let long = vec![b'\n'; CacheInfo::LEN_MAX + 1];
    let rows: &[(&[u8], &str)] = &[
        (
            b"Priority: high\n",
            "nix-cache-info: Priority is not a number",
        ),
        (
            b"Priority: -1\n",
            "nix-cache-info: Priority is not a number",
        ),
        (
            b"Priority: 99999999999\n",
            "nix-cache-info: Priority is not a number",
        ),
        (b"Priority:\n", "nix-cache-info: Priority is not a number"),
        (
            b"StoreDir: nix/store\n",
            "nix-cache-info: StoreDir: store directory is not an absolute path in normal form",
        ),
        (b"StoreDir: /nix/\xff\n", "nix-cache-info is not UTF-8"),
        (&long, "nix-cache-info has 65537 bytes, more than 65536"),
    ];
    for (text, reason) in rows {
        let error = CacheInfo::parse(text, &StoreDir::default()).unwrap_err();
        assert_eq!(error.to_string(), *reason);
    }
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(want_mass_query in any::<bool>(), priority in any::<u32>()) {
        let info = CacheInfo { store_dir: "/s".parse().unwrap(), want_mass_query, priority };
        let text = info.to_string();
        assert_eq!(CacheInfo::parse(text.as_bytes(), &StoreDir::default()), Ok(info));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>()) {
        let _ = CacheInfo::parse(&bytes, &StoreDir::default());
    }
}

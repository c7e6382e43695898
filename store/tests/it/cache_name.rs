//! Names of caches.

use attic_store::cache_name::CacheName;

#[test]
fn names_that_attic_takes_round_trip() {
    let longest = "x".repeat(50);
    for text in ["main", "a", "0", "Team-1_x+y", "a-", &longest] {
        let name: CacheName = text.parse().unwrap();
        assert_eq!(name.to_string(), text);
        assert_eq!(serde_json::to_string(&name).unwrap(), format!("{text:?}"));
    }
}

#[test]
fn names_that_attic_refuses_are_refused() {
    let too_long = "x".repeat(51);
    let wrong = [
        "", "-a", "_a", "+a", "a.b", "a/b", "..", "a b", "ä", "a\n", "a%2e", "a:b", &too_long,
    ];
    for text in wrong {
        assert!(text.parse::<CacheName>().is_err(), "{text}");
        assert!(
            serde_json::from_str::<CacheName>(&format!("{text:?}")).is_err(),
            "{text}"
        );
    }
}

//! Any bytes are a `nix-cache-info` that means what it prints, or an error.
//!
//! In `store/`: `cargo +nightly fuzz run cache_info`.

#![no_main]

use attic_store::cache_info::CacheInfo;
use attic_store::store_path::StoreDir;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = StoreDir::default();
    let Ok(info) = CacheInfo::parse(bytes, &dir) else {
        return;
    };
    assert_eq!(
        CacheInfo::parse(info.to_string().as_bytes(), &dir),
        Ok(info)
    );
});

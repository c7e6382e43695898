//! Any bytes are a narinfo that means what it prints, or an error.
//!
//! In `store/`: `cargo +nightly fuzz run narinfo <corpus folder> tests/golden/narinfo`; new
//! inputs go to the first folder.

#![no_main]

use attic_store::narinfo::NarInfo;
use attic_store::store_path::StoreDir;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = StoreDir::default();
    let Ok(info) = NarInfo::parse(bytes, &dir) else {
        return;
    };
    let text = info.print(&dir);
    let again = NarInfo::parse(text.as_bytes(), &dir).expect("what we print we read");
    assert_eq!(again, info);
    assert_eq!(again.print(&dir), text);
    assert!(info.info.signatures.is_sorted());
});

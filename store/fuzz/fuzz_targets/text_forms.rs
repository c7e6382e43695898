//! Any text is a value that prints back, or an error, for every type with a text form.
//!
//! In `store/`: `cargo +nightly fuzz run text_forms <corpus folder> tests/golden/keys`; new
//! inputs go to the first folder.

#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use attic_store::cache_name::CacheName;
use attic_store::hash::{ChunkId, FileHash, NarHash};
use attic_store::narinfo::{Compression, ContentAddress};
use attic_store::signature::{PublicKey, SecretKey, Signature};
use attic_store::store_path::{StoreDir, StorePath, StorePathHash};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    exact::<CacheName>(text);
    exact::<ChunkId>(text);
    exact::<Compression>(text);
    exact::<PublicKey>(text);
    exact::<Signature>(text);
    exact::<StoreDir>(text);
    exact::<StorePath>(text);
    exact::<StorePathHash>(text);
    several::<ContentAddress>(text);
    several::<FileHash>(text);
    several::<NarHash>(text);
    if let Ok(key) = text.parse::<SecretKey>() {
        assert_eq!(key.to_text(), text);
    }
    let dir = StoreDir::default();
    if let Ok(path) = StorePath::parse_full(&dir, text) {
        assert_eq!(path.full(&dir), text);
    }
});

/// Types of which each value has one text.
fn exact<T: FromStr + Display>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), text);
    }
}

/// Types of which a value has several texts and prints one of them.
fn several<T: FromStr + Display + Debug + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse().ok(), Some(value));
    }
}

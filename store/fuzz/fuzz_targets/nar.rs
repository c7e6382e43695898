//! Any bytes are the one NAR of the tree they list, or an error, however they are split. Their
//! number chooses the split.
//!
//! In `store/`: `cargo +nightly fuzz run nar <corpus folder> tests/golden/nar`; new
//! inputs go to the first folder.

#![no_main]

use attic_store::nar::{Listing, NarError, NarLimits, NarParser, NarWriteError, NarWriter};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|nar: &[u8]| {
    let whole = parse(nar.len(), nar);
    assert_eq!(parse(nar.len() % 61, nar), whole);
    if let Ok(listing) = whole
        && let Ok(json) = listing.into_json()
    {
        let listing: Value = serde_json::from_str(&json).expect("a listing is JSON");
        assert_eq!(rebuilt(&listing["root"], nar), nar);
    }
});

fn parse(piece_len: usize, nar: &[u8]) -> Result<Listing, NarError> {
    // serde_json reads 128 levels, and a directory takes two.
    let limits = NarLimits {
        depth_max: 50,
        boundary_len_min: 1,
        ..NarLimits::default()
    };
    let mut parser = NarParser::new(limits);
    let mut end = 0;
    for piece in nar.chunks(piece_len.max(1)) {
        parser.push(piece)?;
        end += piece.len() as u64;
        assert!(parser.take_boundaries().into_iter().all(|at| at <= end));
    }
    parser.finish()
}

/// The NAR again, made from its listing and its contents.
fn rebuilt(root: &Value, nar: &[u8]) -> Vec<u8> {
    let mut again = Vec::new();
    let mut writer = NarWriter::new(|bytes: &[u8]| again.extend_from_slice(bytes));
    write(&mut writer, root, nar).expect("a listing is in order");
    writer.finish().expect("a listing is whole");
    again
}

fn write<S: FnMut(&[u8])>(
    writer: &mut NarWriter<S>,
    node: &Value,
    nar: &[u8],
) -> Result<(), NarWriteError> {
    match node["type"].as_str() {
        Some("regular") => {
            let number = |key: &str| node[key].as_u64().expect("a number") as usize;
            writer.regular(node.get("executable").is_some(), number("size") as u64)?;
            writer.contents(&nar[number("narOffset")..][..number("size")])
        }
        Some("symlink") => writer.symlink(node["target"].as_str().expect("a target").as_bytes()),
        Some("directory") => {
            writer.directory_begin()?;
            for (name, node) in node["entries"].as_object().expect("entries") {
                writer.entry(name.as_bytes())?;
                write(writer, node, nar)?;
            }
            writer.directory_end()
        }
        other => panic!("type {other:?}"),
    }
}

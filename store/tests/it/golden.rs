//! Files made by real Nix; see `tests/golden/README.md`.

use std::fs;
use std::path::PathBuf;

/// Contents of one golden file.
pub(crate) fn bytes(name: &str) -> Vec<u8> {
    let path = folder("").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Contents of one golden file that is text.
pub(crate) fn text(name: &str) -> String {
    String::from_utf8(bytes(name)).expect("golden text is UTF-8")
}

/// Names of the golden files in `below` that end in `extension`, sorted, never none.
pub(crate) fn names(below: &str, extension: &str) -> Vec<String> {
    let entries = fs::read_dir(folder(below)).expect("golden folder exists");
    let names = entries.map(|entry| entry.expect("golden folder is readable").file_name());
    let names = names.map(|name| format!("{below}/{}", name.to_string_lossy()));
    let mut names: Vec<String> = names.filter(|name| name.ends_with(extension)).collect();
    names.sort();
    assert!(!names.is_empty(), "no golden files in {below}");
    names
}

fn folder(below: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", below]
        .iter()
        .collect()
}

//! Trees of files with everything a NAR can hold, made afresh in a temporary directory.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(len);
    bytes
}

/// Writes a file and its directories.
pub(crate) fn file(root: &Path, name: impl AsRef<OsStr>, contents: &[u8]) {
    let path = root.join(name.as_ref());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}

/// Every oddity: names, modes, links, depths and sizes.
pub(crate) fn odd_tree(root: &Path) {
    fs::create_dir(root).unwrap();
    for name in [
        "a", "a-b", "a.b", "a0", "ab", "B", "+-._?=", "\n", " ", "é", ".hidden", "~",
    ] {
        file(root, name, name.as_bytes());
    }
    file(root, OsStr::from_bytes(b"\xff\xfe not UTF-8"), b"x");
    file(root, OsStr::from_bytes(&[b'n'; 255]), b"longest name");
    for (name, mode) in [
        ("none", 0o444),
        ("owner", 0o744),
        ("group", 0o454),
        ("all", 0o555),
    ] {
        file(root, format!("modes/{name}"), b"#!/bin/sh\n");
        let path = root.join("modes").join(name);
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    for len in [
        0,
        1,
        7,
        8,
        9,
        (256 << 10) - 1,
        256 << 10,
        (256 << 10) + 1,
        1_000_003,
    ] {
        file(root, format!("sizes/{len}"), &noise(len as u64, len));
    }
    file(root, vec!["d"; 60].join("/"), b"deep");
    fs::create_dir(root.join("empty")).unwrap();
    fs::create_dir(root.join("links")).unwrap();
    symlink("../a", root.join("links/file")).unwrap();
    symlink("/nonexistent", root.join("links/dangling")).unwrap();
    symlink("..", root.join("links/directory")).unwrap();
    symlink(OsStr::from_bytes(b"\xff"), root.join("links/not UTF-8")).unwrap();
}

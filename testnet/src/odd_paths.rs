//! Store paths that hold what file systems and Nix allow and few programs expect.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::nix::NixClient;

/// The environment variable that adds what takes long: a NAR of more than 4 GiB.
pub const LARGE: &str = "ATTIC_NODE_TEST_LARGE";

/// Adds odd paths to the store of `nix` and gives their names.
///
/// The same each time, so that a store holds them once however often tests run.
#[track_caller]
pub fn add(nix: &NixClient) -> Vec<String> {
    let dir = TempDir::new().expect("make a directory");
    let mut paths = nix.add(&sources(dir.path()));
    // Refers to itself; refers to forty others; its name is as long as names may be.
    paths.extend(nix.build("run \"odd-self\" ''echo $out > $out''"));
    paths.extend(nix.build(
        "let leaf = n: run \"odd-leaf-${toString n}\" ''echo ${toString n} > $out''; in \
         run \"odd-forty\" ''echo ${toString (builtins.genList leaf 40)} > $out''",
    ));
    paths
}

/// Whether the environment asks for what takes long.
pub fn large() -> bool {
    env::var_os(LARGE).is_some()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let file = |name: &str, contents: &[u8], mode: u32| {
        let path = dir.join(name);
        fs::write(&path, contents).expect("write a source");
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("set a mode");
        path
    };
    let mut sources = vec![
        file("odd-empty", b"", 0o644),
        file("odd-executable", b"#!/bin/sh\n", 0o755),
        file("odd+name-with._every?sign=", b"x", 0o644),
        file(&"n".repeat(211), b"x", 0o644),
        empty_directory(&dir.join("odd-empty-directory")),
        deep_tree(&dir.join("odd-deep")),
        odd_members(&dir.join("odd-members")),
        dangling(&dir.join("odd-symlink")),
    ];
    if large() {
        sources.push(sparse(&dir.join("odd-sparse")));
    }
    sources
}

fn empty_directory(path: &Path) -> PathBuf {
    fs::create_dir(path).expect("make a directory");
    path.to_owned()
}

fn deep_tree(path: &Path) -> PathBuf {
    let leaf_dir = (0..60).fold(path.to_owned(), |path, depth| {
        path.join(format!("level-{depth}"))
    });
    fs::create_dir_all(&leaf_dir).expect("make a deep tree");
    fs::write(leaf_dir.join("leaf"), b"deep").expect("write a leaf");
    path.to_owned()
}

fn odd_members(path: &Path) -> PathBuf {
    fs::create_dir(path).expect("make a directory");
    let longest = [b'l'; 255];
    let names: [&[u8]; 8] = [
        b"empty",
        b"new\nline",
        b"not \xff\xfe UTF-8",
        b" ",
        b"...",
        b"a",
        b"A",
        &longest,
    ];
    for name in names {
        let contents: &[u8] = if name == b"empty" { b"" } else { name };
        fs::write(path.join(OsStr::from_bytes(name)), contents).expect("write a member");
    }
    let script = path.join("script");
    fs::write(&script, b"#!/bin/sh\n").expect("write a script");
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("make it executable");
    for (name, target) in [
        ("absolute", "/etc/passwd"),
        ("up", "../../.."),
        ("self", "self"),
    ] {
        symlink(target, path.join(name)).expect("make a symlink");
    }
    path.to_owned()
}

fn dangling(path: &Path) -> PathBuf {
    symlink("nowhere/at all", path).expect("make a symlink");
    path.to_owned()
}

fn sparse(path: &Path) -> PathBuf {
    let file = File::create(path).expect("make a sparse file");
    file.set_len((4 << 30) + 1).expect("extend a sparse file");
    path.to_owned()
}

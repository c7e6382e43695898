//! Our NARs against those of the real `nix-store --dump`.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use attic_node_cli::dump::{DumpError, dump};

use crate::tree::{file, noise, odd_tree};

fn dumped(path: &Path) -> Result<Vec<u8>, DumpError> {
    let mut nar = Vec::new();
    let len = dump(path, |bytes| {
        nar.extend_from_slice(bytes);
        ControlFlow::Continue(())
    })?;
    assert_eq!(len, nar.len() as u64);
    Ok(nar)
}

fn check(path: &Path) {
    let real = Command::new("nix-store")
        .arg("--dump")
        .arg(path)
        .output()
        .unwrap();
    assert!(
        real.status.success(),
        "{}",
        String::from_utf8_lossy(&real.stderr)
    );
    let ours = dumped(path).unwrap();
    let differ = ours.iter().zip(&real.stdout).position(|(a, b)| a != b);
    assert_eq!(differ, None, "first difference in {}", path.display());
    assert_eq!(ours.len(), real.stdout.len(), "{}", path.display());
}

#[test]
fn odd_trees_are_archived_as_nix_does() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    odd_tree(&root);
    check(&root);
    for part in [
        "a",
        "empty",
        "links",
        "links/dangling",
        "modes",
        "modes/owner",
        "sizes/0",
        "d",
    ] {
        check(&root.join(part));
    }
}

#[test]
fn files_larger_than_the_read_buffer_are_archived_whole() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "large", &noise(1, 9_000_001));
    check(&dir.path().join("large"));
}

#[test]
fn a_sparse_file_reads_as_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    fs::File::create(&path).unwrap().set_len(5_000_000).unwrap();
    check(&path);
}

#[test]
fn what_no_nar_can_hold_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    let error = dumped(dir.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("socket is a socket, which no NAR can hold"),
        "{error}"
    );
    let error = dumped(Path::new("/dev/null")).unwrap_err().to_string();
    assert_eq!(
        error,
        "/dev/null is a character device, which no NAR can hold"
    );
    let error = dumped(&dir.path().join("absent")).unwrap_err();
    assert!(matches!(error, DumpError::Read { .. }));
}

/// The system says this file is empty, and it is not: as if it grew while it was read.
#[test]
fn a_file_that_is_longer_than_it_was_is_an_error() {
    let error = dumped(Path::new("/proc/self/status")).unwrap_err();
    assert!(matches!(error, DumpError::Changed { .. }), "{error}");
}

#[test]
fn a_sink_that_breaks_is_not_called_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    odd_tree(&root);
    let whole = dumped(&root).unwrap().len();
    for limit in [0, 24, 1000, whole / 2] {
        let (mut taken, mut broken) = (0, false);
        let ended = dump(&root, |bytes| {
            assert!(!broken);
            taken += bytes.len();
            broken = taken > limit;
            if broken {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(matches!(ended, Err(DumpError::Stopped)));
    }
}

#[test]
fn links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    check(&dir.path().join("loop"));
}

//! The local store through the real `nix`, in a chroot store of the test's own.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use attic_node_cli::dump::dump;
use attic_node_cli::nix::{Extent, LocalStore, NixError};
use attic_store::StorePath;
use tempfile::TempDir;

use crate::tree::odd_tree;

/// A store with one path in it.
struct Fixture {
    dir: TempDir,
    path: StorePath,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        odd_tree(&tree);
        let text = nix(dir.path(), &["store", "add-path", tree.to_str().unwrap()]);
        let path = text
            .trim()
            .strip_prefix("/nix/store/")
            .unwrap()
            .parse()
            .unwrap();
        Fixture { dir, path }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn store(&self) -> LocalStore {
        LocalStore::chroot(&self.root()).unwrap()
    }

    fn physical(&self) -> PathBuf {
        self.root().join("nix/store").join(self.path.to_string())
    }
}

fn nix(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("nix");
    command.args(["--extra-experimental-features", "nix-command", "--store"]);
    let output = command
        .arg(dir.join("root"))
        .args(arguments)
        .env("HOME", dir)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_chroot_store_tells_what_a_path_is_and_where() {
    let fixture = Fixture::new();
    for extent in [Extent::Paths, Extent::Closure] {
        let closure = fixture
            .store()
            .query(&[fixture.path.clone()].into(), extent)
            .unwrap();
        assert_eq!(closure.store_dir.as_str(), "/nix/store");
        let [path] = &closure.paths[..] else {
            panic!("one path: {closure:?}")
        };
        assert_eq!(path.info.path, fixture.path);
        assert_eq!(path.location, fixture.physical());
        assert!(path.info.ca.is_some());
        let dumped = dump(&path.location, |_| ControlFlow::Continue(()));
        assert_eq!(dumped.unwrap(), path.info.nar_size);
    }
}

#[test]
fn arguments_are_resolved_to_the_path_they_mean() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path();
    let logical = PathBuf::from(format!("/nix/store/{}", fixture.path));
    symlink(&logical, dir.join("result")).unwrap();
    symlink("result", dir.join("result-2")).unwrap();
    symlink(fixture.physical(), dir.join("physical")).unwrap();
    symlink(dir, dir.join("here")).unwrap();
    for argument in [
        logical.clone(),
        logical.join("modes/owner"),
        logical.join("does/not/exist"),
        fixture.physical(),
        fixture.physical().join("links/file"),
        dir.join("result"),
        dir.join("result-2"),
        dir.join("here/here/result"),
        dir.join("physical"),
        dir.join("physical/modes/owner"),
    ] {
        let resolved = fixture.store().resolve(&argument);
        assert_eq!(resolved.unwrap(), fixture.path, "{}", argument.display());
    }
}

#[test]
fn what_is_not_a_store_path_is_refused() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path();
    symlink("loop", dir.join("loop")).unwrap();
    let store = fixture.store();
    for argument in [
        "/",
        "/etc",
        "/nix",
        "/nix/store",
        "/nix/store/.links",
        "/nix/store/x",
    ] {
        let refused = store.resolve(Path::new(argument));
        assert!(
            matches!(refused, Err(NixError::NotInStore { .. })),
            "{argument}: {refused:?}"
        );
    }
    assert!(matches!(
        store.resolve(&dir.join("loop")),
        Err(NixError::NotInStore { .. })
    ));
    assert!(matches!(
        store.resolve(&dir.join("absent")),
        Err(NixError::Read { .. })
    ));
    fs::write(dir.join("file"), "").unwrap();
    assert!(matches!(
        store.resolve(&dir.join("file")),
        Err(NixError::NotInStore { .. })
    ));
}

/// P5: what Nix does not know is named, not fetched, and keeps nothing else from being known.
#[test]
fn p5_paths_that_are_not_valid_are_set_apart() {
    let fixture = Fixture::new();
    let absent = ["x", "x.drv"].map(|name| {
        let path = format!("00000000000000000000000000000000-{name}");
        path.parse::<StorePath>().unwrap()
    });
    for extent in [Extent::Paths, Extent::Closure] {
        let mut asked = BTreeSet::from(absent.clone());
        let none = fixture.store().query(&asked, extent).unwrap();
        assert_eq!((none.paths.len(), &none.invalid), (0, &asked));
        asked.insert(fixture.path.clone());
        let closure = fixture.store().query(&asked, extent).unwrap();
        assert_eq!(closure.invalid, BTreeSet::from(absent.clone()));
        let [path] = &closure.paths[..] else {
            panic!("one path: {closure:?}")
        };
        assert_eq!(path.info.path, fixture.path);
    }
}

#[test]
fn nothing_asked_is_nothing_answered() {
    let fixture = Fixture::new();
    let closure = fixture
        .store()
        .query(&BTreeSet::new(), Extent::Closure)
        .unwrap();
    assert!(closure.paths.is_empty());
}

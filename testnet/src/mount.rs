//! A file system so small that a test can fill it.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::program;

/// A tmpfs of fixed size, unmounted when dropped. Making one needs root.
#[derive(Debug)]
pub struct Tmpfs {
    dir: TempDir,
}

impl Tmpfs {
    /// Mounts one that holds `size_bytes`.
    #[track_caller]
    pub fn new(size_bytes: u64) -> Tmpfs {
        let dir = TempDir::new().expect("make a mount point");
        let size = format!("size={size_bytes}");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &size, "attic-node-test"])
            .arg(dir.path());
        program::run(&mut mount).succeeds();
        Tmpfs { dir }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process that a failing test left behind may still hold files open.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.dir.path())
            .status();
    }
}

//! Real store paths: closures made from Debian packages by `testnet/scripts/make-corpus.sh`.

use std::env;
use std::fs;
use std::path::PathBuf;

/// Store paths that belong together.
#[derive(Clone, Debug)]
pub struct Closure {
    /// Refers to all the others, so that naming it names the whole closure.
    pub root: String,
    /// The others.
    pub paths: Vec<String>,
}

impl Closure {
    /// The corpus `S`, `L1` or `L2` of this machine. Panics, saying how to make it, when it is not
    /// there: tests use no network.
    #[track_caller]
    pub fn load(name: &str) -> Closure {
        let read = |extension: &str| {
            let file = directory().join(format!("{name}.{extension}"));
            fs::read_to_string(&file).unwrap_or_else(|error| {
                panic!(
                    "{}: {error}\nhint: testnet/scripts/prepare.sh, with `bench` for more than S",
                    file.display()
                )
            })
        };
        let root = read("env").trim().to_owned();
        let paths = read("paths").lines().map(str::to_owned).collect();
        Closure { root, paths }
    }

    /// All its paths, the root last.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().chain([&self.root]).map(String::as_str)
    }
}

/// Where corpora lie: `ATTIC_NODE_CORPUS`, else `attic-node-corpus` in the user's cache directory.
pub fn directory() -> PathBuf {
    if let Some(dir) = env::var_os("ATTIC_NODE_CORPUS") {
        return PathBuf::from(dir);
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            PathBuf::from(env::var_os("HOME").expect("HOME or ATTIC_NODE_CORPUS is set"))
                .join(".cache")
        });
    cache.join("attic-node-corpus")
}

//! What the local Nix knows: which store path an argument means, and the closure of some paths.
//!
//! Nix is asked through its command line, the one interface that has stayed since 2.8. Nothing is
//! fetched or built: a path that is not valid in the local store is told apart from the others.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use attic_store::narinfo::PathInfo;
use attic_store::store_path::{StoreDir, StorePath, StorePathError};
use thiserror::Error;

use self::build_log::BuildLogs;
use self::path_info::{Answer, PathInfoError};

pub mod build_log;
pub mod path_info;

/// A valid path of the local store, and where its files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPath {
    /// What Nix's database says about it.
    pub info: PathInfo,
    /// The file, link or directory itself; differs from the store path in a chroot store.
    pub location: PathBuf,
}

/// Some paths of the local store, usually with all they refer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closure {
    /// Directory that the paths lie in.
    pub store_dir: StoreDir,
    /// Ordered by path, each once.
    pub paths: Vec<LocalPath>,
    /// Paths that were asked for and are not valid in the local store.
    pub invalid: BTreeSet<StorePath>,
}

/// The local store.
#[derive(Clone, Debug, Default)]
pub struct LocalStore {
    /// Directory that stands for `/` in a chroot store (`nix --store ROOT`).
    root: Option<PathBuf>,
    store_dir: StoreDir,
}

/// How much of what is named to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Only the paths themselves.
    Paths,
    /// The paths and all they refer to, directly or not.
    Closure,
}

/// Why the local store gives no answer.
#[derive(Debug, Error)]
pub enum NixError {
    /// The argument does not exist, or a link on the way to it is broken.
    #[error("read {}", path.display())]
    Read {
        /// The argument.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The argument is outside the store, or its name is not that of a store path.
    #[error("{} is not in {store_dir}", path.display())]
    NotInStore {
        /// The argument.
        path: PathBuf,
        /// The store.
        store_dir: StoreDir,
        /// What is wrong with its name, when it is in the store's directory.
        source: Option<StorePathError>,
    },
    /// Nix does not know these paths, which it knew a moment ago.
    #[error("path {} is not valid in the local store", .0.join(", "))]
    Invalid(Vec<String>),
    /// `nix` cannot be started.
    #[error("run nix")]
    Run(#[source] io::Error),
    /// `nix` failed.
    #[error("nix path-info: {0}")]
    Failed(String),
    /// Its answer cannot be understood.
    #[error(transparent)]
    Answer(#[from] PathInfoError),
}

impl LocalStore {
    /// The store that `nix` uses by itself.
    pub fn system() -> LocalStore {
        LocalStore::default()
    }

    /// The chroot store in `root`.
    ///
    /// **Errors**: [`NixError::Read`] when `root` does not exist.
    pub fn chroot(root: &Path) -> Result<LocalStore, NixError> {
        let canonical = root.canonicalize();
        let root = canonical.map_err(|source| NixError::Read {
            path: root.to_owned(),
            source,
        })?;
        Ok(LocalStore {
            root: Some(root),
            ..LocalStore::default()
        })
    }

    /// The logs of what was built in it.
    pub fn build_logs(&self) -> BuildLogs {
        match &self.root {
            Some(root) => BuildLogs::chroot(root),
            None => BuildLogs::system(),
        }
    }

    /// The store path that `argument` is, lies in, or links to.
    ///
    /// **Errors**: [`NixError::Read`], [`NixError::NotInStore`].
    pub fn resolve(&self, argument: &Path) -> Result<StorePath, NixError> {
        let read = |source| NixError::Read {
            path: argument.to_owned(),
            source,
        };
        let mut path = std::path::absolute(argument).map_err(read)?;
        for _ in 0..LINKS_MAX {
            if let Some(base_name) = self.base_name(&path) {
                return self.parse_base_name(argument, &base_name);
            }
            let Some((real, target)) = follow(&path).map_err(read)? else {
                break;
            };
            if let Some(base_name) = self.base_name(&real) {
                return self.parse_base_name(argument, &base_name);
            }
            match target {
                Some(target) => path = target,
                None => break,
            }
        }
        let store_dir = self.store_dir.clone();
        Err(NixError::NotInStore {
            path: argument.to_owned(),
            store_dir,
            source: None,
        })
    }

    /// Asks Nix about `paths`. Those that are not valid are set apart and cost the others nothing.
    /// Blocks until it answers.
    ///
    /// **Errors**: all of [`NixError`] but `Read` and `NotInStore`.
    pub fn query(&self, paths: &BTreeSet<StorePath>, extent: Extent) -> Result<Closure, NixError> {
        let refusal = match self.query_valid(paths, extent) {
            Err(refusal @ (NixError::Invalid(_) | NixError::Failed(_))) => refusal,
            answer => return answer,
        };
        // A refusal names one of the invalid paths at most.
        let invalid = self.invalid(paths).unwrap_or_default();
        if invalid.is_empty() {
            return Err(refusal);
        }
        let valid = paths - &invalid;
        Ok(Closure {
            invalid,
            ..self.query_valid(&valid, extent)?
        })
    }

    /// Asks about `paths`, which must all be valid.
    fn query_valid(
        &self,
        paths: &BTreeSet<StorePath>,
        extent: Extent,
    ) -> Result<Closure, NixError> {
        let mut infos = Vec::new();
        let mut invalid = Vec::new();
        let mut store_dir = None;
        for (questions, kind) in self.questions(paths) {
            let answer = self.ask(&questions, kind, extent)?;
            infos.extend(answer.valid);
            invalid.extend(answer.invalid);
            store_dir = Some(answer.store_dir);
        }
        if !invalid.is_empty() {
            return Err(NixError::Invalid(invalid));
        }
        infos.sort_by(|a, b| a.path.cmp(&b.path));
        infos.dedup_by(|a, b| a.path == b.path);
        let store_dir = store_dir.unwrap_or_else(|| self.store_dir.clone());
        let local = |info: PathInfo| {
            let location = self.location(&store_dir, &info.path);
            LocalPath { info, location }
        };
        Ok(Closure {
            paths: infos.into_iter().map(local).collect(),
            store_dir,
            invalid: BTreeSet::new(),
        })
    }

    /// Those of `paths` that are not valid; `None` when Nix cannot say.
    fn invalid(&self, paths: &BTreeSet<StorePath>) -> Option<BTreeSet<StorePath>> {
        let paths: Vec<_> = paths.iter().collect();
        let mut invalid = BTreeSet::new();
        for group in paths.chunks(ARGUMENTS_MAX) {
            let output = Command::new("nix-store")
                .args(["--check-validity", "--print-invalid"])
                .args(self.store_option())
                .args(group.iter().map(|path| path.full(&self.store_dir)))
                .stdin(Stdio::null())
                .output()
                .ok()
                .filter(|output| output.status.success())?;
            let printed = String::from_utf8_lossy(&output.stdout);
            let printed: BTreeSet<&str> = printed.lines().collect();
            let is_printed = |path: &&&StorePath| printed.contains(&*path.full(&self.store_dir));
            invalid.extend(group.iter().filter(is_printed).copied().cloned());
        }
        Some(invalid)
    }

    /// Command lines of bounded length, derivations apart: without `--derivation` older Nix takes
    /// one to mean its outputs.
    fn questions(&self, paths: &BTreeSet<StorePath>) -> Vec<(Vec<String>, Kind)> {
        let is_derivation = |path: &&StorePath| path.name().ends_with(".drv");
        let (derivations, outputs): (Vec<_>, Vec<_>) = paths.iter().partition(is_derivation);
        let full = |group: &[&StorePath]| group.iter().map(|p| p.full(&self.store_dir)).collect();
        let outputs = outputs
            .chunks(ARGUMENTS_MAX)
            .map(|group| (full(group), Kind::Output));
        let derivations = derivations
            .chunks(ARGUMENTS_MAX)
            .map(|group| (full(group), Kind::Derivation));
        outputs.chain(derivations).collect()
    }

    fn ask(&self, paths: &[String], kind: Kind, extent: Extent) -> Result<Answer, NixError> {
        match self.run(paths, kind, extent, &[]) {
            // Nix announced that it will one day insist on being told the format.
            Err(NixError::Failed(message)) if message.contains("json-format") => {
                self.run(paths, kind, extent, &["--json-format", "1"])
            }
            answer => answer,
        }
    }

    fn run(
        &self,
        paths: &[String],
        kind: Kind,
        extent: Extent,
        format: &[&str],
    ) -> Result<Answer, NixError> {
        let mut command = Command::new("nix");
        command.args([
            "--extra-experimental-features",
            "nix-command",
            "path-info",
            "--json",
        ]);
        command
            .args(["--option", "substitute", "false"])
            .args(format);
        command.args(self.store_option());
        if kind == Kind::Derivation {
            command.arg("--derivation");
        }
        if extent == Extent::Closure {
            command.arg("--recursive");
        }
        let output = command
            .args(paths)
            .stdin(Stdio::null())
            .output()
            .map_err(NixError::Run)?;
        if output.status.success() {
            return Ok(path_info::parse(&output.stdout)?);
        }
        Err(NixError::Failed(complaint(&output.stderr, output.status)))
    }

    /// What tells a program of Nix which store is meant.
    fn store_option(&self) -> Vec<OsString> {
        match &self.root {
            Some(root) => vec!["--store".into(), root.into()],
            None => Vec::new(),
        }
    }

    /// The first component below the store directory, if `path` is there.
    fn base_name(&self, path: &Path) -> Option<OsString> {
        let outside = self
            .root
            .as_ref()
            .and_then(|root| path.strip_prefix(root).ok());
        let below_root = outside.map(|rest| Path::new("/").join(rest));
        [below_root.as_deref(), Some(path)]
            .into_iter()
            .flatten()
            .find_map(|path| {
                let below = path.strip_prefix(self.store_dir.as_str()).ok()?;
                match below.components().next()? {
                    Component::Normal(name) => Some(name.to_owned()),
                    _ => None,
                }
            })
    }

    fn parse_base_name(&self, argument: &Path, name: &OsString) -> Result<StorePath, NixError> {
        let outside = |source| NixError::NotInStore {
            path: argument.to_owned(),
            store_dir: self.store_dir.clone(),
            source,
        };
        let name = name.to_str().ok_or_else(|| outside(None))?;
        name.parse().map_err(|source| outside(Some(source)))
    }

    fn location(&self, store_dir: &StoreDir, path: &StorePath) -> PathBuf {
        let full = path.full(store_dir);
        match &self.root {
            Some(root) => root.join(full.trim_start_matches('/')),
            None => full.into(),
        }
    }
}

/// Which of the two things a derivation's path may stand for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Output,
    Derivation,
}

/// Resolves all links above the last component of `path`. Gives the path so found and, when that is
/// itself a link, where it points; `None` for `/`.
fn follow(path: &Path) -> io::Result<Option<(PathBuf, Option<PathBuf>)>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(None);
    };
    let parent = parent.canonicalize()?;
    let real = parent.join(name);
    let is_link = real.symlink_metadata()?.is_symlink();
    let target = is_link.then(|| real.read_link()).transpose()?;
    Ok(Some((real, target.map(|target| parent.join(target)))))
}

/// The last line Nix printed, which says what went wrong.
fn complaint(stderr: &[u8], status: std::process::ExitStatus) -> String {
    let text = String::from_utf8_lossy(stderr);
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    let line = last.map(|line| line.strip_prefix("error: ").unwrap_or(line));
    line.map_or_else(|| status.to_string(), str::to_owned)
}

/// Paths of one command line: far below Linux's 2 MiB with the longest names.
const ARGUMENTS_MAX: usize = 2000;

/// As many links as Linux follows.
const LINKS_MAX: usize = 40;

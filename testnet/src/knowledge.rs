//! What a node has got to know: what lies in its files and in its memory.
//!
//! Memory holds what a process received, decrypted, and not overwritten since; so what is looked for
//! is looked for soon after it may have come.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use attic_store::{NarHash, StorePath};
use data_encoding::BASE64;
use rustix::process::Pid;

use crate::node::TestNode;

/// Things that are kept secret, each in all the forms in which it would give itself away.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    forms: Vec<(String, Vec<u8>)>,
    /// For every two bytes that a form begins with, the forms.
    starts: Vec<Vec<usize>>,
}

impl Secrets {
    /// Nothing yet.
    pub fn new() -> Secrets {
        Secrets {
            forms: Vec::new(),
            starts: vec![Vec::new(); 1 << 16],
        }
    }

    /// With one more form of the secret `name`: at least 8 bytes.
    #[track_caller]
    pub fn with(mut self, name: &str, form: &[u8]) -> Secrets {
        assert!(form.len() >= 8, "{name}: found by chance");
        let start = usize::from(u16::from_le_bytes([form[0], form[1]]));
        self.starts[start].push(self.forms.len());
        self.forms.push((name.to_owned(), form.to_owned()));
        self
    }

    /// With a store path: its hash part, its name, and the hash of its NAR.
    #[track_caller]
    pub fn with_path(self, path: &str, nar_hash: &NarHash) -> Secrets {
        let base = path.rsplit('/').next().expect("a path");
        let parsed: StorePath = base.parse().expect("a store path");
        let raw = nar_hash.as_bytes();
        let (path, nar) = (format!("hash of {base}"), format!("nar of {base}"));
        self.with(&path, parsed.hash().to_string().as_bytes())
            .with(&path, parsed.hash().as_bytes())
            .with(&format!("name of {base}"), parsed.name().as_bytes())
            .with(&nar, nar_hash.nix32().as_bytes())
            .with(&nar, nar_hash.hex().as_bytes())
            .with(&nar, BASE64.encode(raw).as_bytes())
            // All of it, and what is said of who holds it.
            .with(&nar, &raw[..8])
    }

    /// What the secrets are called, each once.
    pub fn names(&self) -> BTreeSet<String> {
        self.forms.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The secrets of which a form is in `bytes`.
    pub fn in_bytes(&self, bytes: &[u8]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (at, pair) in bytes.windows(2).enumerate() {
            let start = usize::from(u16::from_le_bytes([pair[0], pair[1]]));
            for (name, form) in self.starts[start].iter().map(|form| &self.forms[*form]) {
                if bytes[at..].starts_with(form) {
                    found.insert(name.clone());
                }
            }
        }
        found
    }

    /// The secrets of which a form is in a file below `dir`, or in the name of one.
    #[track_caller]
    pub fn in_files(&self, dir: &Path) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(dir).expect("list files").flatten() {
            found.extend(self.in_bytes(entry.file_name().as_encoded_bytes()));
            let path = entry.path();
            // A running node makes and deletes files meanwhile.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => found.extend(self.in_files(&path)),
                Ok(kind) if kind.is_file() => {
                    let bytes = fs::read(&path).unwrap_or_default();
                    found.extend(self.in_bytes(&bytes));
                }
                _ => {}
            }
        }
        found
    }

    /// The secrets of which a form is in the memory that a process can write to.
    #[track_caller]
    pub fn in_memory(&self, pid: Pid) -> BTreeSet<String> {
        let of = |file: &str| format!("/proc/{}/{file}", pid.as_raw_nonzero());
        let maps = fs::read_to_string(of("maps")).expect("the process runs");
        let memory = File::open(of("mem")).expect("memory can be read by root");
        let longest = self.forms.iter().map(|(_, form)| form.len()).max();
        let overlap = longest.unwrap_or(0) as u64;
        let mut found = BTreeSet::new();
        let mut read = 0;
        let mut buffer = vec![0; WINDOW + overlap as usize];
        for (start, end) in maps.lines().filter_map(writable) {
            for at in (start..end).step_by(WINDOW) {
                let len = (end - at).min(buffer.len() as u64) as usize;
                // A mapping may go while it is read.
                if let Ok(len) = memory.read_at(&mut buffer[..len], at) {
                    read += len;
                    found.extend(self.in_bytes(&buffer[..len]));
                }
            }
        }
        assert!(read > 1 << 20, "only {read} bytes of memory were read");
        found
    }

    /// The secrets that a running node has in its files or in its memory.
    #[track_caller]
    pub fn known_to(&self, node: &TestNode) -> BTreeSet<String> {
        let mut known = self.in_memory(node.pid());
        known.extend(self.in_files(node.data_dir()));
        known
    }
}

/// Where a mapping lies, if it can be read and written.
fn writable(line: &str) -> Option<(u64, u64)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |digits| u64::from_str_radix(digits, 16).ok();
    let range = (address(start)?, address(end)?);
    rest.starts_with("rw").then_some(range)
}

const WINDOW: usize = 1 << 20;

//! Edits a `nix.conf` so that the edit can be taken back byte for byte.
//!
//! What is added for a cache is a block between two marker comments at the end of the file:
//!
//! ```text
//! # attic-node use main: begin
//! extra-substituters = http://127.0.0.1:7745/main
//! extra-trusted-public-keys = main:…
//! # attic-node use main: end
//! ```
//!
//! Caches of several nodes may have one name: a block is that of a cache at a URL.
//!
//! `extra-` settings add to whatever is set before them, so the rest of the file stays as it is. The
//! first marker remembers what had to be changed around the block: a missing line break at the end
//! of the file, or the missing file.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use attic_store::cache_name::CacheName;

/// What Nix must know to use a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Substituter {
    /// URL of the cache.
    pub url: String,
    /// Keys its paths are signed with, text form.
    pub public_keys: Vec<String>,
}

impl Substituter {
    /// The two lines of a `nix.conf`.
    pub fn nix_conf_lines(&self) -> String {
        let keys = self.public_keys.join(" ");
        format!(
            "{URL_LINE}{}\nextra-trusted-public-keys = {keys}\n",
            self.url
        )
    }

    /// The same as a NixOS module.
    pub fn nixos_module(&self) -> String {
        let keys: Vec<_> = self
            .public_keys
            .iter()
            .map(|key| format!("\"{key}\""))
            .collect();
        format!(
            "{{\n  nix.settings = {{\n    extra-substituters = [ \"{}\" ];\n    \
             extra-trusted-public-keys = [ {} ];\n  }};\n}}\n",
            self.url,
            keys.join(" ")
        )
    }
}

/// A `nix.conf`, taken apart into our blocks and the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NixConf {
    exists: bool,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Text that is not ours, never empty.
    Other(String),
    Block {
        cache: String,
        seam: Seam,
        body: String,
    },
}

/// What was changed to put a block behind what precedes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seam {
    /// Nothing.
    Clean,
    /// A line break was added.
    Break,
    /// The file was made.
    File,
}

impl NixConf {
    /// Takes a file's text apart; `None` when there is no file.
    pub fn parse(text: Option<&str>) -> NixConf {
        let mut parts: Vec<Part> = Vec::new();
        let mut rest = text.unwrap_or_default();
        while let Some((before, block, after)) = split_block(rest) {
            push_other(&mut parts, before);
            let block = settle(block, &mut parts);
            parts.push(block);
            rest = after;
        }
        push_other(&mut parts, rest);
        NixConf {
            exists: text.is_some(),
            parts,
        }
    }

    /// Makes `substituter` the block of `cache` at its URL, in place or at the end. Whether that changed
    /// it.
    pub fn add(&mut self, cache: &CacheName, substituter: &Substituter) -> bool {
        let wanted = substituter.nix_conf_lines();
        if let Some(at) = self.position(cache, &substituter.url) {
            let Part::Block { body, .. } = &mut self.parts[at] else {
                return false;
            };
            let changed = *body != wanted;
            *body = wanted;
            return changed;
        }
        let seam = match self.parts.last() {
            None if !self.exists => Seam::File,
            Some(Part::Other(text)) if !text.ends_with('\n') => Seam::Break,
            None | Some(_) => Seam::Clean,
        };
        self.parts.push(Part::Block {
            cache: cache.to_string(),
            seam,
            body: wanted,
        });
        true
    }

    /// URLs of the blocks of `cache`, in the order of the file.
    pub fn urls(&self, cache: &CacheName) -> Vec<String> {
        let of = |part: &Part| match part {
            Part::Block { body, .. } if part.is_of(cache) => Some(url_of(body).to_owned()),
            Part::Block { .. } | Part::Other(_) => None,
        };
        self.parts.iter().filter_map(of).collect()
    }

    /// Takes the block of `cache` at `url` out. Whether there was one.
    ///
    /// What it changed around itself is changed back, or becomes the duty of the block behind it.
    pub fn remove(&mut self, cache: &CacheName, url: &str) -> bool {
        let Some(at) = self.position(cache, url) else {
            return false;
        };
        let Part::Block { seam: removed, .. } = self.parts.remove(at) else {
            return false;
        };
        match self.parts.get_mut(at) {
            Some(Part::Block { seam, .. }) => *seam = removed,
            Some(Part::Other(text)) if removed == Seam::Break => text.insert(0, '\n'),
            Some(Part::Other(_)) => {}
            None if removed == Seam::File => self.exists = !self.parts.is_empty(),
            None => {}
        }
        true
    }

    /// The file's text; `None` when there should be no file.
    pub fn render(&self) -> Option<String> {
        if !self.exists && self.parts.is_empty() {
            return None;
        }
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Other(other) => text.push_str(other),
                Part::Block { cache, seam, body } => write_block(&mut text, cache, *seam, body),
            }
        }
        Some(text)
    }

    fn position(&self, cache: &CacheName, url: &str) -> Option<usize> {
        let is_wanted = |part: &Part| {
            part.is_of(cache) && matches!(part, Part::Block { body, .. } if url_of(body) == url)
        };
        self.parts.iter().position(is_wanted)
    }
}

impl Part {
    fn is_of(&self, wanted: &CacheName) -> bool {
        matches!(self, Part::Block { cache, .. } if cache == wanted.as_str())
    }
}

/// The URL in a block; empty if somebody took it out.
fn url_of(body: &str) -> &str {
    let mut urls = body.lines().filter_map(|line| line.strip_prefix(URL_LINE));
    urls.next().unwrap_or_default().trim()
}

/// Reads, changes and replaces the file at `path`. Whether `edit` says that it changed something;
/// if not, nothing is written.
///
/// A link is followed and stays. The new text replaces the old one at once, with its permissions.
///
/// **Errors**: of the system; [`io::ErrorKind::InvalidData`] for a file that is not UTF-8,
/// [`io::ErrorKind::ReadOnlyFilesystem`] for one in the Nix store. The file is then as it was.
pub fn edit(path: &Path, edit: impl FnOnce(&mut NixConf) -> bool) -> io::Result<bool> {
    let target = real_path(path)?;
    let old = match fs::read_to_string(&target) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut conf = NixConf::parse(old.as_deref());
    if !edit(&mut conf) {
        return Ok(false);
    }
    if target.starts_with("/nix/store") {
        return Err(io::ErrorKind::ReadOnlyFilesystem.into());
    }
    match conf.render() {
        Some(text) => replace(&target, &text)?,
        None => fs::remove_file(&target)?,
    }
    Ok(true)
}

/// Where the links at `path` lead, whether or not there is a file yet.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        canonical => canonical,
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let draft = dir.join(format!(".nix.conf.{}", std::process::id()));
    let written = write_draft(&draft, path, text).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // The draft is of no use to anybody; the first error is the one to report.
        let _ = fs::remove_file(&draft);
    }
    written?;
    File::open(dir)?.sync_all()
}

fn write_draft(draft: &Path, original: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(draft)?;
    if let Ok(metadata) = fs::metadata(original) {
        file.set_permissions(metadata.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn push_other(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Other(text.to_owned()));
    }
}

/// Checks a block's seam against what really precedes it, and takes an added line break off that.
fn settle(block: Block<'_>, before: &mut Vec<Part>) -> Part {
    let seam = match (block.seam, before.last_mut()) {
        (Seam::Break, Some(Part::Other(text))) if text.ends_with('\n') => {
            text.pop();
            Seam::Break
        }
        (Seam::File, None) => Seam::File,
        (Seam::Break | Seam::File | Seam::Clean, _) => Seam::Clean,
    };
    if matches!(before.last(), Some(Part::Other(text)) if text.is_empty()) {
        before.pop();
    }
    Part::Block {
        cache: block.cache.to_owned(),
        seam,
        body: block.body.to_owned(),
    }
}

struct Block<'a> {
    cache: &'a str,
    seam: Seam,
    body: &'a str,
}

/// Splits at the first whole block: text before it, the block, text after it. A first marker whose
/// second does not follow before any other marker is not a block.
fn split_block(text: &str) -> Option<(&str, Block<'_>, &str)> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        at += line.len();
        let Some((cache, seam)) = parse_begin(line) else {
            continue;
        };
        let (body, after) = split_before_marker(&text[at..]);
        if let Some(after) = after.strip_prefix(&end_marker(cache)) {
            return Some((&text[..at - line.len()], Block { cache, seam, body }, after));
        }
    }
    None
}

/// Splits before the first line that begins as a marker does.
fn split_before_marker(text: &str) -> (&str, &str) {
    let lines = text.split_inclusive('\n');
    let len = lines
        .take_while(|line| !line.starts_with(MARKER))
        .map(str::len)
        .sum();
    text.split_at(len)
}

fn parse_begin(line: &str) -> Option<(&str, Seam)> {
    let rest = line.strip_prefix(MARKER)?.strip_suffix('\n')?;
    let (cache, note) = rest.split_once(": begin")?;
    let seams = [Seam::Clean, Seam::Break, Seam::File];
    Some((cache, seams.into_iter().find(|seam| seam.note() == note)?))
}

fn write_block(text: &mut String, cache: &str, seam: Seam, body: &str) {
    if seam == Seam::Break {
        text.push('\n');
    }
    let _ = write!(
        text,
        "{MARKER}{cache}: begin{}\n{body}{}",
        seam.note(),
        end_marker(cache)
    );
}

fn end_marker(cache: &str) -> String {
    format!("{MARKER}{cache}: end\n")
}

impl Seam {
    fn note(self) -> &'static str {
        match self {
            Seam::Clean => "",
            Seam::Break => " (after a line break)",
            Seam::File => " (in a new file)",
        }
    }
}

const URL_LINE: &str = "extra-substituters = ";
const MARKER: &str = "# attic-node use ";

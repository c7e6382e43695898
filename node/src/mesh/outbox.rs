//! Paths that were published here and that the cluster may not have heard of yet.
//!
//! A path is noted before it is committed and crossed out once the log has it. So a crash in
//! between loses no announcement; and a path that is here, was said by nobody, and is not noted,
//! is one that somebody removed.
//!
//! With a path goes the end of this node's log at that time: the log has it once a segment beyond
//! that says it. What was said before may be named in a removal that is on its way here.
//!
//! **Shape** of `cluster/outbox`: lines, `+<cache id> <hash part> <end of the log>` and
//! `-<cache id> <hash part>`; `*<cache id>` notes all paths of a cache. A torn last line is ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use attic_p2p::ids::CacheId;
use attic_store::StorePathHash;

/// The noted paths. Every call blocks on the disk.
pub(crate) struct Outbox {
    path: PathBuf,
    file: File,
    /// With the end of the log when each was noted.
    paths: BTreeMap<(CacheId, StorePathHash), u64>,
    caches: BTreeSet<CacheId>,
    /// Lines in the file.
    lines: usize,
}

impl Outbox {
    /// Reads what was noted. Notes of earlier versions, which do not say where the log ended, count
    /// as made now that it ends at `end`.
    ///
    /// **Errors**: those of the disk.
    pub(crate) fn open(path: &Path, end: u64) -> io::Result<Outbox> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let mut outbox = Outbox {
            path: path.to_owned(),
            file,
            paths: BTreeMap::new(),
            caches: BTreeSet::new(),
            lines: 0,
        };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..whole].lines() {
            outbox.lines += 1;
            outbox.apply(line, end);
        }
        if whole < text.len() {
            outbox.rewrite()?;
        }
        Ok(outbox)
    }

    /// Notes, durably, paths that the log, which ends at `end`, is to say beyond that. Returns those
    /// that were not noted so already.
    pub(crate) fn note(
        &mut self,
        cache: CacheId,
        hashes: &[StorePathHash],
        end: u64,
    ) -> io::Result<Vec<StorePathHash>> {
        let new = |hash: &&StorePathHash| self.noted_at(cache, hash) < Some(end);
        let new: Vec<_> = hashes.iter().filter(new).copied().collect();
        if new.is_empty() {
            return Ok(new);
        }
        let mut text = String::new();
        for hash in &new {
            let _ = writeln!(text, "+{cache} {hash} {end}");
        }
        self.write(&text, new.len())?;
        self.file.sync_data()?;
        let noted = new.iter().map(|hash| ((cache, *hash), end));
        self.paths.extend(noted);
        Ok(new)
    }

    /// Notes all paths of a cache, durably.
    pub(crate) fn note_all(&mut self, cache: CacheId) -> io::Result<()> {
        self.write(&format!("*{cache}\n"), 1)?;
        self.file.sync_data()?;
        self.caches.insert(cache);
        Ok(())
    }

    /// Crosses paths out. May be lost in a crash: then they are announced once more.
    pub(crate) fn cross_out(&mut self, cache: CacheId, hashes: &[StorePathHash]) -> io::Result<()> {
        for hash in hashes {
            self.paths.remove(&(cache, *hash));
        }
        if self.paths.is_empty() && self.caches.is_empty() {
            self.file.set_len(0)?;
            self.lines = 0;
            return Ok(());
        }
        let mut text = String::new();
        for hash in hashes {
            let _ = writeln!(text, "-{cache} {hash}");
        }
        self.write(&text, hashes.len())?;
        self.shrink()
    }

    /// Crosses a whole cache out.
    pub(crate) fn cross_out_all(&mut self, cache: CacheId) -> io::Result<()> {
        self.caches.remove(&cache);
        self.rewrite()
    }

    /// Whether a path is noted, by itself or with its cache.
    pub(crate) fn contains(&self, cache: CacheId, hash: &StorePathHash) -> bool {
        self.caches.contains(&cache) || self.noted_at(cache, hash).is_some()
    }

    /// Where the log ended when a path was noted by itself; `None` if it is not.
    pub(crate) fn noted_at(&self, cache: CacheId, hash: &StorePathHash) -> Option<u64> {
        self.paths.get(&(cache, *hash)).copied()
    }

    /// How many paths are noted by themselves.
    pub(crate) fn len(&self) -> usize {
        self.paths.len()
    }

    /// The noted paths.
    pub(crate) fn paths(&self) -> Vec<(CacheId, StorePathHash)> {
        self.paths.keys().copied().collect()
    }

    /// The caches of which all paths are noted.
    pub(crate) fn caches(&self) -> Vec<CacheId> {
        self.caches.iter().copied().collect()
    }

    fn apply(&mut self, line: &str, end_now: u64) {
        let (sign, rest) = match line.split_at_checked(1) {
            Some(parts) => parts,
            None => return,
        };
        if sign == "*" {
            self.caches.extend(rest.parse::<CacheId>());
            return;
        }
        let mut words = rest.split(' ');
        let (Some(cache), Some(hash)) = (words.next(), words.next()) else {
            return;
        };
        let (Ok(cache), Ok(hash)) = (cache.parse(), hash.parse()) else {
            return;
        };
        let end = words.next().and_then(|end| end.parse().ok());
        match sign {
            "+" => drop(self.paths.insert((cache, hash), end.unwrap_or(end_now))),
            _ => drop(self.paths.remove(&(cache, hash))),
        }
    }

    /// Adds lines. What was written of them when the disk was full is taken back: the next ones must not
    /// be torn by it.
    fn write(&mut self, text: &str, lines: usize) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            self.file.set_len(len)?;
            return Err(error);
        }
        self.lines += lines;
        Ok(())
    }

    fn shrink(&mut self) -> io::Result<()> {
        if self.lines > LINES_MIN + 4 * self.paths.len() {
            return self.rewrite();
        }
        Ok(())
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let draft = self.path.with_extension("tmp");
        let mut text = String::new();
        for cache in &self.caches {
            let _ = writeln!(text, "*{cache}");
        }
        for ((cache, hash), end) in &self.paths {
            let _ = writeln!(text, "+{cache} {hash} {end}");
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&draft)?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        self.file = file;
        self.lines = self.paths.len() + self.caches.len();
        Ok(())
    }
}

/// Below so many lines the file is not worth rewriting.
const LINES_MIN: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: CacheId = CacheId::from_bytes([7; 16]);

    /// Of the log, when the outbox is opened.
    const END: u64 = 9;

    fn hash(n: u8) -> StorePathHash {
        StorePathHash::from_bytes([n; 20])
    }

    #[test]
    fn what_was_noted_and_not_crossed_out_is_there_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outbox");
        let mut outbox = Outbox::open(&path, END).unwrap();
        outbox.note(CACHE, &[hash(1), hash(2), hash(3)], 3).unwrap();
        outbox.cross_out(CACHE, &[hash(2)]).unwrap();
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"-0707").unwrap();
        for _ in 0..2 {
            let outbox = Outbox::open(&path, END).unwrap();
            assert_eq!(outbox.paths(), [(CACHE, hash(1)), (CACHE, hash(3))]);
            assert!(outbox.contains(CACHE, &hash(1)) && !outbox.contains(CACHE, &hash(2)));
        }
    }

    #[test]
    fn what_is_noted_again_is_new_once_the_log_went_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outbox");
        let mut outbox = Outbox::open(&path, END).unwrap();
        let mut note = |hashes: &[StorePathHash], end| outbox.note(CACHE, hashes, end).unwrap();
        assert_eq!(note(&[hash(1), hash(2)], 3), [hash(1), hash(2)]);
        assert_eq!(note(&[hash(1), hash(3)], 3), [hash(3)]);
        assert_eq!(note(&[hash(1)], 4), [hash(1)]);
        assert_eq!(note(&[hash(1)], 3), [], "it is noted for later than that");
        drop(outbox);
        let outbox = Outbox::open(&path, END).unwrap();
        let noted = [1, 2, 3, 4].map(|n| outbox.noted_at(CACHE, &hash(n)));
        assert_eq!(noted, [Some(4), Some(3), Some(3), None]);
    }

    #[test]
    fn a_note_of_an_earlier_version_counts_as_made_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outbox");
        let (one, two) = (hash(1), hash(2));
        std::fs::write(&path, format!("+{CACHE} {one}\n+{CACHE} {two} 4\n")).unwrap();
        let outbox = Outbox::open(&path, END).unwrap();
        let noted = [one, two].map(|hash| outbox.noted_at(CACHE, &hash));
        assert_eq!(noted, [Some(END), Some(4)]);
    }

    #[test]
    fn a_whole_cache_is_noted_until_it_is_crossed_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outbox");
        let mut outbox = Outbox::open(&path, END).unwrap();
        outbox.note_all(CACHE).unwrap();
        outbox.note(CACHE, &[hash(1)], 3).unwrap();
        outbox.cross_out(CACHE, &[hash(1)]).unwrap();
        let mut outbox = Outbox::open(&path, END).unwrap();
        assert!(outbox.contains(CACHE, &hash(9)));
        assert_eq!(outbox.caches(), [CACHE]);
        outbox.cross_out_all(CACHE).unwrap();
        assert!(!Outbox::open(&path, END).unwrap().contains(CACHE, &hash(9)));
    }

    #[test]
    fn the_file_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outbox");
        let mut outbox = Outbox::open(&path, END).unwrap();
        outbox.note(CACHE, &[hash(0)], 3).unwrap();
        for round in 0..3000u32 {
            let mut bytes = [1; 20];
            bytes[..4].copy_from_slice(&round.to_le_bytes());
            let other = StorePathHash::from_bytes(bytes);
            outbox.note(CACHE, &[other], 3).unwrap();
            outbox.cross_out(CACHE, &[other]).unwrap();
        }
        assert!(std::fs::metadata(&path).unwrap().len() < 128 << 10);
        assert_eq!(
            Outbox::open(&path, END).unwrap().paths(),
            [(CACHE, hash(0))]
        );
        outbox.cross_out(CACHE, &[hash(0)]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
}

//! The logs of the cluster's nodes on disk.
//!
//! One file per node, `log/<peer id>.log`, of entries end to end.
//!
//! **Shape** of an entry: length of the segment as u32, its number as u64, both big-endian, the
//! first 8 bytes of the BLAKE3 of number and segment, the segment. A file ends where an entry is
//! torn or decayed: what followed is cut off when the file is opened, and comes again from peers.
//!
//! Segments of this node are synced before anybody hears of them; those of others can be fetched
//! again and are not.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use attic_p2p::ids::NodeId;
use attic_p2p::log::{Log, LogError};
use bytes::Bytes;

/// All logs. Every call blocks on the disk.
pub(crate) struct LogFiles {
    dir: PathBuf,
    /// Whose segments are synced.
    own: NodeId,
    logs: BTreeMap<NodeId, LogFile>,
}

/// The log of one node.
struct LogFile {
    path: PathBuf,
    file: File,
    /// Where the entries lie, by number. Numbers ascend; those of a compacted log have gaps.
    entries: BTreeMap<u64, Entry>,
    len: u64,
}

/// Where a segment lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    offset: u64,
    len: u32,
}

impl LogFiles {
    /// Opens the logs in `dir` for the node `own`. Torn ends are cut off.
    ///
    /// **Errors**: the directory or a file cannot be used. A file not named after a node is left
    /// alone.
    pub(crate) fn open(dir: &Path, own: NodeId) -> io::Result<LogFiles> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut logs = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let node = path.file_name().and_then(|name| name.to_str());
            let node = node.and_then(|name| name.strip_suffix(".log")?.parse().ok());
            if let Some(node) = node {
                logs.insert(node, LogFile::open(&path)?);
            }
        }
        Ok(LogFiles {
            dir: dir.to_owned(),
            own,
            logs,
        })
    }

    /// Bytes of all logs.
    pub(crate) fn total_len_bytes(&self) -> u64 {
        self.logs.values().map(|log| log.len).sum()
    }

    /// Segments of all logs.
    pub(crate) fn count(&self) -> u64 {
        self.logs.values().map(|log| log.entries.len() as u64).sum()
    }

    /// The log of `node`, made durable as a file when it is this node's.
    fn of(&mut self, node: NodeId) -> io::Result<&mut LogFile> {
        if !self.logs.contains_key(&node) {
            let log = LogFile::open(&self.path(&node))?;
            if node == self.own {
                File::open(&self.dir)?.sync_all()?;
            }
            self.logs.insert(node, log);
        }
        Ok(self.logs.get_mut(&node).expect("it was just put there"))
    }

    /// Rewrites the log of `node` with the segments from `first` on.
    fn keep_from(&mut self, node: NodeId, first: u64) -> io::Result<()> {
        let path = self.path(&node);
        let Some(log) = self.logs.get(&node) else {
            return Ok(());
        };
        if log.entries.range(..first).next().is_none() {
            return Ok(());
        }
        let draft = path.with_extension("tmp");
        let _ = fs::remove_file(&draft);
        let mut kept = LogFile::open(&draft)?;
        for (number, entry) in log.entries.range(first..) {
            if let Some(segment) = read_entry(&log.file, *number, *entry)? {
                kept.append(*number, &segment)?;
            }
        }
        kept.file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(&self.dir)?.sync_all()?;
        kept.path = path;
        self.logs.insert(node, kept);
        Ok(())
    }

    fn path(&self, node: &NodeId) -> PathBuf {
        self.dir.join(format!("{node}.log"))
    }
}

impl Log for LogFiles {
    fn append(&mut self, node: NodeId, seq: u64, bytes: Bytes) -> Result<(), LogError> {
        let is_own = node == self.own;
        let append = |log: &mut LogFile| {
            log.append(seq, &bytes)?;
            if is_own { log.sync_last() } else { Ok(()) }
        };
        self.of(node)
            .and_then(append)
            .map_err(|source| LogError { node, seq, source })
    }

    fn read(&self, node: NodeId, seq: u64) -> Result<Option<Bytes>, LogError> {
        let Some(log) = self.logs.get(&node) else {
            return Ok(None);
        };
        let Some(entry) = log.entries.get(&seq) else {
            return Ok(None);
        };
        read_entry(&log.file, seq, *entry).map_err(|source| LogError { node, seq, source })
    }

    /// Rewrites the file once half of it is to be forgotten.
    fn forget_before(&mut self, node: NodeId, seq: u64) -> Result<(), LogError> {
        let Some(log) = self.logs.get(&node) else {
            return Ok(());
        };
        let kept: u64 = log.entries.range(seq..).map(|(_, e)| e.whole_len()).sum();
        if kept > log.len / 2 {
            return Ok(());
        }
        self.keep_from(node, seq)
            .map_err(|source| LogError { node, seq, source })
    }

    fn forget_after(&mut self, node: NodeId, seq: u64) -> Result<(), LogError> {
        match self.logs.get_mut(&node) {
            Some(log) => log
                .cut_after(seq)
                .map_err(|source| LogError { node, seq, source }),
            None => Ok(()),
        }
    }

    fn nodes(&self) -> Vec<NodeId> {
        let with_segments = self.logs.iter().filter(|(_, log)| !log.entries.is_empty());
        with_segments.map(|(node, _)| *node).collect()
    }

    fn range(&self, node: NodeId) -> Option<(u64, u64)> {
        let entries = &self.logs.get(&node)?.entries;
        let first = *entries.first_key_value()?.0;
        let last = *entries.last_key_value()?.0;
        Some((first, last))
    }

    fn len_bytes(&self, node: NodeId) -> u64 {
        self.logs.get(&node).map_or(0, |log| log.len)
    }
}

impl Entry {
    /// With its head.
    fn whole_len(&self) -> u64 {
        HEAD_LEN as u64 + u64::from(self.len)
    }
}

impl LogFile {
    fn open(path: &Path) -> io::Result<LogFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let mut log = LogFile {
            path: path.to_owned(),
            entries: BTreeMap::new(),
            len: 0,
            file,
        };
        log.scan()?;
        Ok(log)
    }

    /// Finds the entries, and cuts off what is none.
    fn scan(&mut self) -> io::Result<()> {
        let end = self.file.metadata()?.len();
        while let Some((seq, entry)) = self.entry_at(self.len, end)? {
            let ascends = self
                .entries
                .keys()
                .next_back()
                .is_none_or(|last| *last < seq);
            if !ascends || read_entry(&self.file, seq, entry)?.is_none() {
                break;
            }
            self.len = entry.offset + u64::from(entry.len);
            self.entries.insert(seq, entry);
        }
        if self.len < end {
            let lost = end - self.len;
            tracing::warn!(file = %self.path.display(), lost, "cut off the torn end of a log");
            self.file.set_len(self.len)?;
        }
        Ok(())
    }

    /// The entry whose head is at `offset`, if head and segment fit before `end`.
    fn entry_at(&self, offset: u64, end: u64) -> io::Result<Option<(u64, Entry)>> {
        let start = offset + HEAD_LEN as u64;
        if start > end {
            return Ok(None);
        }
        let mut head = [0; HEAD_LEN];
        self.file.read_exact_at(&mut head, offset)?;
        let (len, seq, _) = split(&head);
        let fits = len <= SEGMENT_LEN_MAX && start + u64::from(len) <= end;
        Ok(fits.then_some((seq, Entry { offset: start, len })))
    }

    fn append(&mut self, seq: u64, segment: &[u8]) -> io::Result<()> {
        let len = u32::try_from(segment.len()).ok();
        let len = len.filter(|len| *len <= SEGMENT_LEN_MAX);
        let ascends = self
            .entries
            .keys()
            .next_back()
            .is_none_or(|last| *last < seq);
        let (Some(len), true) = (len, ascends) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut bytes = Vec::with_capacity(HEAD_LEN + segment.len());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&seq.to_be_bytes());
        bytes.extend_from_slice(&check(seq, segment));
        bytes.extend_from_slice(segment);
        if let Err(error) = self.file.write_all_at(&bytes, self.len) {
            // What was written of it would be cut off at the next start as well.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        let offset = self.len + HEAD_LEN as u64;
        self.entries.insert(seq, Entry { offset, len });
        self.len = offset + u64::from(len);
        Ok(())
    }

    /// Makes what was appended durable, or takes the last segment back.
    fn sync_last(&mut self) -> io::Result<()> {
        let synced = self.file.sync_data();
        if synced.is_err()
            && let Some((_, entry)) = self.entries.pop_last()
        {
            self.len = entry.offset - HEAD_LEN as u64;
            let _ = self.file.set_len(self.len);
        }
        synced
    }

    /// Forgets the segments above `seq`, durably.
    fn cut_after(&mut self, seq: u64) -> io::Result<()> {
        let Some(from) = seq.checked_add(1) else {
            return Ok(());
        };
        let beyond = self.entries.split_off(&from);
        if let Some(entry) = beyond.values().next() {
            self.len = entry.offset - HEAD_LEN as u64;
            self.file.set_len(self.len)?;
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// A segment, if it is what was written.
fn read_entry(file: &File, seq: u64, entry: Entry) -> io::Result<Option<Bytes>> {
    let mut bytes = vec![0; HEAD_LEN + entry.len as usize];
    match file.read_exact_at(&mut bytes, entry.offset - HEAD_LEN as u64) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let (head, _) = bytes.split_first_chunk().expect("it is that long");
    let (_, written_seq, written_check) = split(head);
    let segment = Bytes::from(bytes).split_off(HEAD_LEN);
    let intact = written_seq == seq && written_check == check(seq, &segment);
    Ok(intact.then_some(segment))
}

/// Length, number and check.
fn split(head: &[u8; HEAD_LEN]) -> (u32, u64, [u8; 8]) {
    let [a, b, c, d, rest @ ..] = head;
    let (seq, check) = rest.split_at(8);
    (
        u32::from_be_bytes([*a, *b, *c, *d]),
        u64::from_be_bytes(seq.try_into().expect("8 bytes")),
        check.try_into().expect("8 bytes"),
    )
}

fn check(seq: u64, segment: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seq.to_be_bytes()).update(segment);
    let mut check = [0; 8];
    hasher.finalize_xof().fill(&mut check);
    check
}

const HEAD_LEN: usize = 20;
/// Far above what a segment may be: a longer one is a damaged length.
const SEGMENT_LEN_MAX: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        attic_p2p::identity::Identity::from_seed([n; 32]).node_id()
    }

    fn open(dir: &Path) -> LogFiles {
        LogFiles::open(dir, node(1)).unwrap()
    }

    fn put(log: &mut LogFiles, who: u8, seq: u64, text: &str) {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        log.append(node(who), seq, bytes).unwrap();
    }

    fn get(log: &LogFiles, who: u8, seq: u64) -> Option<String> {
        let bytes = log.read(node(who), seq).unwrap()?;
        Some(String::from_utf8(bytes.into()).unwrap())
    }

    #[test]
    fn what_was_appended_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        (1..=3).for_each(|seq| put(&mut log, 1, seq, &format!("one {seq}")));
        put(&mut log, 2, 7, "two");
        let log = open(dir.path());
        assert_eq!(log.range(node(1)), Some((1, 3)));
        assert_eq!(log.range(node(2)), Some((7, 7)));
        assert_eq!(log.range(node(3)), None);
        assert_eq!(get(&log, 1, 2).unwrap(), "one 2");
        assert_eq!(get(&log, 2, 1), None);
        assert_eq!(log.nodes().len(), 2);
        assert_eq!(log.count(), 4);
    }

    #[test]
    fn numbers_ascend() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        put(&mut log, 1, 2, "x");
        for seq in [2, 1, 0] {
            let error = log.append(node(1), seq, Bytes::new()).unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(log.range(node(1)), Some((2, 2)));
    }

    #[test]
    fn a_torn_or_bent_end_is_cut_off_and_can_be_written_again() {
        for damage in 0..60 {
            let dir = tempfile::tempdir().unwrap();
            let mut log = open(dir.path());
            put(&mut log, 1, 1, "first segment");
            put(&mut log, 1, 2, "second segment");
            let path = log.path(&node(1));
            let mut bytes = fs::read(&path).unwrap();
            let first_len = HEAD_LEN + "first segment".len();
            // Half of the rows cut the file within the second entry, half flip a byte of it.
            let at = first_len + damage / 2 % (bytes.len() - first_len);
            if damage % 2 == 0 {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 0x40;
            }
            fs::write(&path, &bytes).unwrap();
            let mut log = open(dir.path());
            assert_eq!(log.range(node(1)), Some((1, 1)), "damage {damage}");
            assert_eq!(get(&log, 1, 1).unwrap(), "first segment");
            put(&mut log, 1, 2, "again");
            assert_eq!(get(&open(dir.path()), 1, 2).unwrap(), "again");
        }
    }

    #[test]
    fn forgetting_the_beginning_keeps_what_follows() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        (1..=9).for_each(|seq| put(&mut log, 1, seq, &seq.to_string().repeat(100)));
        let before = log.total_len_bytes();
        log.forget_before(node(1), 3).unwrap();
        assert_eq!(log.total_len_bytes(), before, "too little to be worth it");
        log.forget_before(node(1), 7).unwrap();
        assert!(log.total_len_bytes() < before / 2);
        put(&mut log, 1, 10, "ten");
        for log in [log, open(dir.path())] {
            assert_eq!(log.range(node(1)), Some((7, 10)));
            assert_eq!(get(&log, 1, 6), None);
            assert_eq!(get(&log, 1, 10).unwrap(), "ten");
        }
    }

    #[test]
    fn forgetting_the_end_frees_its_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        (1..=5).for_each(|seq| put(&mut log, 2, seq, "x"));
        log.forget_after(node(2), 2).unwrap();
        log.forget_after(node(2), u64::MAX).unwrap();
        assert_eq!(log.range(node(2)), Some((1, 2)));
        put(&mut log, 2, 3, "three");
        assert_eq!(get(&open(dir.path()), 2, 3).unwrap(), "three");
    }

    #[test]
    fn decay_after_opening_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        put(&mut log, 1, 1, "segment");
        let path = log.path(&node(1));
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(get(&log, 1, 1), None);
    }
}

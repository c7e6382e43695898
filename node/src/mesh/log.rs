//! The logs of the cluster's nodes on disk.
//!
//! One file per node, `log/<peer id>.log`; its form is in [`file`](mod@file).
//!
//! Segments of this node are synced before anybody hears of them; those of others can be fetched
//! again and are not.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use attic_p2p::ids::NodeId;
use attic_p2p::log::{Log, LogError};
use bytes::Bytes;

use self::file::LogFile;

mod file;

/// All logs. Every call blocks on the disk.
pub(crate) struct LogFiles {
    dir: PathBuf,
    /// Whose segments are synced.
    own: NodeId,
    logs: BTreeMap<NodeId, LogFile>,
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
                logs.insert(node, LogFile::open(&path, node)?);
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
            let log = LogFile::open(&self.path(&node), node)?;
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
        let kept = log.rewritten(first, None)?;
        self.replace(node, path, kept)
    }

    /// Puts a rewritten log in the place of the one there is.
    fn replace(&mut self, node: NodeId, path: PathBuf, mut log: LogFile) -> io::Result<()> {
        log.file.sync_all()?;
        fs::rename(&log.path, &path)?;
        File::open(&self.dir)?.sync_all()?;
        log.path = path;
        self.logs.insert(node, log);
        Ok(())
    }

    /// Puts a segment where one decayed or was lost.
    fn mend_in(&mut self, node: NodeId, seq: u64, segment: &[u8]) -> io::Result<()> {
        let path = self.path(&node);
        let Some(log) = self.logs.get(&node) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if log.overwrite(seq, segment)? {
            return Ok(());
        }
        let mended = log.rewritten(0, Some((seq, segment)))?;
        self.replace(node, path, mended)
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
        log.read(seq)
            .map_err(|source| LogError { node, seq, source })
    }

    /// In its place if it has the length of what is there, else by rewriting the file. Durable.
    fn mend(&mut self, node: NodeId, seq: u64, bytes: Bytes) -> Result<(), LogError> {
        self.mend_in(node, seq, &bytes)
            .map_err(|source| LogError { node, seq, source })
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

    fn first_from(&self, node: NodeId, seq: u64) -> Option<u64> {
        let entries = &self.logs.get(&node)?.entries;
        entries.range(seq..).next().map(|(seq, _)| *seq)
    }
}

#[cfg(test)]
mod tests;

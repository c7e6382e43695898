//! Where segments are kept.
//!
//! The log is the truth a [`Directory`] is folded from, on every start anew; and it is where the
//! directory reads bodies back from, so that it need not keep them in memory.
//!
//! [`Directory`]: crate::directory::Directory

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use thiserror::Error;

use crate::ids::NodeId;

/// Keeps the segments of all nodes.
///
/// **Order**: segments of one node are appended in rising order of their number. There may be one
/// gap, in front of a checkpoint whose earlier segments were never there.
///
/// **Atomicity**: an appended segment is either wholly there after a crash or not at all, and none
/// is there without every one appended before it *for the same node*. What this node says itself
/// must survive a crash once `append` returned, or it may say something else under the same number
/// and be taken for a forger; segments of others may be lost and are fetched again.
///
/// **Cancellation**: calls are not asynchronous.
pub trait Log {
    /// Appends the `seq`-th segment of `node`, which is higher than all of it that are there.
    ///
    /// **Errors**: nothing was kept.
    fn append(&mut self, node: NodeId, seq: u64, bytes: Bytes) -> Result<(), LogError>;

    /// The `seq`-th segment of `node`, if it is kept.
    ///
    /// **Errors**: it may be there but cannot be read.
    fn read(&self, node: NodeId, seq: u64) -> Result<Option<Bytes>, LogError>;

    /// Puts the `seq`-th segment of `node` where one is missing or cannot be read, below others that
    /// are kept.
    ///
    /// **Errors**: everything is as it was, or the segments above are lost as well.
    fn mend(&mut self, node: NodeId, seq: u64, bytes: Bytes) -> Result<(), LogError>;

    /// Forgets segments of `node` below `seq`. May do so later, in part or never.
    ///
    /// **Errors**: some may be left.
    fn forget_before(&mut self, node: NodeId, seq: u64) -> Result<(), LogError>;

    /// Forgets segments of `node` above `seq`, before it returns.
    ///
    /// **Errors**: some may be left.
    fn forget_after(&mut self, node: NodeId, seq: u64) -> Result<(), LogError>;

    /// All nodes of which segments are kept, ascending.
    fn nodes(&self) -> Vec<NodeId>;

    /// Numbers of the first and last segment of `node` that are kept, or of which it is known that
    /// they were.
    fn range(&self, node: NodeId) -> Option<(u64, u64)>;

    /// The lowest such number that is not below `seq`.
    fn first_from(&self, node: NodeId, seq: u64) -> Option<u64>;

    /// Bytes of the kept segments of `node`, about.
    fn len_bytes(&self, node: NodeId) -> u64;
}

/// A log that does not do as asked.
#[derive(Debug, Error)]
#[error("log of {node}, segment {seq}")]
pub struct LogError {
    /// Whose log.
    pub node: NodeId,
    /// Which segment.
    pub seq: u64,
    /// What the system said.
    pub source: io::Error,
}

/// A log in memory, for simulations and tests.
#[derive(Clone, Debug, Default)]
pub struct MemoryLog {
    segments: BTreeMap<(NodeId, u64), Bytes>,
    /// Bytes of each node's.
    lens: BTreeMap<NodeId, u64>,
}

impl MemoryLog {
    /// Replaces the bytes of a segment without a look at them, as a failing disk would.
    pub fn bend(&mut self, node: NodeId, seq: u64, bytes: Bytes) {
        self.insert(node, seq, bytes);
    }

    /// Bytes of all segments.
    pub fn total_len_bytes(&self) -> u64 {
        self.lens.values().sum()
    }

    /// In the place of what is there.
    fn insert(&mut self, node: NodeId, seq: u64, bytes: Bytes) {
        self.remove(node, seq);
        *self.lens.entry(node).or_default() += bytes.len() as u64;
        self.segments.insert((node, seq), bytes);
    }

    fn remove(&mut self, node: NodeId, seq: u64) {
        if let Some(bytes) = self.segments.remove(&(node, seq)) {
            *self.lens.entry(node).or_default() -= bytes.len() as u64;
        }
    }
}

impl Log for MemoryLog {
    fn append(&mut self, node: NodeId, seq: u64, bytes: Bytes) -> Result<(), LogError> {
        if self.range(node).is_some_and(|(_, last)| last >= seq) {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(LogError { node, seq, source });
        }
        self.insert(node, seq, bytes);
        Ok(())
    }

    fn read(&self, node: NodeId, seq: u64) -> Result<Option<Bytes>, LogError> {
        Ok(self.segments.get(&(node, seq)).cloned())
    }

    fn mend(&mut self, node: NodeId, seq: u64, bytes: Bytes) -> Result<(), LogError> {
        self.insert(node, seq, bytes);
        Ok(())
    }

    fn forget_before(&mut self, node: NodeId, seq: u64) -> Result<(), LogError> {
        while let Some((first, _)) = self.range(node)
            && first < seq
        {
            self.remove(node, first);
        }
        Ok(())
    }

    fn forget_after(&mut self, node: NodeId, seq: u64) -> Result<(), LogError> {
        while let Some((_, last)) = self.range(node)
            && last > seq
        {
            self.remove(node, last);
        }
        Ok(())
    }

    fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.segments.keys().map(|(node, _)| *node).collect();
        nodes.dedup();
        nodes
    }

    fn range(&self, node: NodeId) -> Option<(u64, u64)> {
        let mut of_node = self.segments.range((node, 0)..=(node, u64::MAX));
        let first = of_node.next()?.0.1;
        let last = of_node.next_back().map_or(first, |(key, _)| key.1);
        Some((first, last))
    }

    fn len_bytes(&self, node: NodeId) -> u64 {
        self.lens.get(&node).copied().unwrap_or(0)
    }

    fn first_from(&self, node: NodeId, seq: u64) -> Option<u64> {
        let mut rest = self.segments.range((node, seq)..=(node, u64::MAX));
        rest.next().map(|((_, seq), _)| *seq)
    }
}

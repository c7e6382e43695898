//! A node's disk: the logs, what of them a loss of power would take, and images of earlier times.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;

use attic_p2p::ids::NodeId;
use attic_p2p::log::{Log, LogError, MemoryLog};
use bytes::Bytes;

use crate::seed::Seed;

/// The logs on a disk that can be full and can lose what was not flushed.
///
/// Own segments are flushed when they are appended. Those of others are flushed now and then; a
/// loss of power leaves, of each log, any beginning of what was not flushed.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    own: NodeId,
    log: MemoryLog,
    /// Numbers of segments that a loss of power may take, by author, ascending.
    unflushed: RefCell<BTreeMap<NodeId, Vec<u64>>>,
    full: Cell<bool>,
}

impl Disk {
    pub(crate) fn new(own: NodeId, log: MemoryLog) -> Disk {
        Disk {
            own,
            log,
            unflushed: RefCell::default(),
            full: Cell::new(false),
        }
    }

    /// What is there, as an image keeps it.
    pub(crate) fn image(&self) -> MemoryLog {
        self.log.clone()
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.full.set(full);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full.get()
    }

    /// Nothing that was written so far can be lost any more.
    pub(crate) fn flush(&self) {
        self.unflushed.borrow_mut().clear();
    }

    /// Power fails: of each log a tail of what was not flushed is gone.
    pub(crate) fn lose_power(&mut self, random: &mut Seed) {
        for (node, seqs) in self.unflushed.take() {
            let kept = random.below(seqs.len() as u64 + 1) as usize;
            if let Some(first_lost) = seqs.get(kept) {
                let forgotten = self.log.forget_after(node, first_lost - 1);
                forgotten.expect("memory does not fail");
            }
        }
    }
}

impl Log for Disk {
    fn append(&mut self, node: NodeId, seq: u64, bytes: Bytes) -> Result<(), LogError> {
        if self.full.get() {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            return Err(LogError { node, seq, source });
        }
        self.log.append(node, seq, bytes)?;
        if node != self.own {
            self.unflushed.get_mut().entry(node).or_default().push(seq);
        }
        Ok(())
    }

    fn read(&self, node: NodeId, seq: u64) -> Result<Option<Bytes>, LogError> {
        self.log.read(node, seq)
    }

    fn mend(&mut self, node: NodeId, seq: u64, bytes: Bytes) -> Result<(), LogError> {
        if self.full.get() {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            return Err(LogError { node, seq, source });
        }
        self.log.mend(node, seq, bytes)
    }

    fn forget_before(&mut self, node: NodeId, seq: u64) -> Result<(), LogError> {
        self.log.forget_before(node, seq)
    }

    fn forget_after(&mut self, node: NodeId, seq: u64) -> Result<(), LogError> {
        if let Some(unflushed) = self.unflushed.get_mut().get_mut(&node) {
            unflushed.retain(|other| *other <= seq);
        }
        self.log.forget_after(node, seq)
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.log.nodes()
    }

    fn range(&self, node: NodeId) -> Option<(u64, u64)> {
        self.log.range(node)
    }

    fn len_bytes(&self, node: NodeId) -> u64 {
        self.log.len_bytes(node)
    }

    fn first_from(&self, node: NodeId, seq: u64) -> Option<u64> {
        self.log.first_from(node, seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_takes_a_tail_of_what_others_said_and_nothing_of_its_own() {
        let (own, other) = (NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]));
        for seed in 0..50 {
            let mut disk = Disk::new(own, MemoryLog::default());
            for seq in 1..=10 {
                disk.append(own, seq, Bytes::new()).unwrap();
                disk.append(other, seq, Bytes::new()).unwrap();
                if seq == 4 {
                    disk.flush();
                }
            }
            disk.lose_power(&mut Seed::new(seed));
            assert_eq!(disk.range(own), Some((1, 10)));
            let (first, last) = disk.range(other).unwrap();
            assert!(first == 1 && (4..=10).contains(&last));
        }
    }

    #[test]
    fn a_full_disk_takes_nothing() {
        let own = NodeId::from_bytes([1; 32]);
        let mut disk = Disk::new(own, MemoryLog::default());
        disk.set_full(true);
        assert!(disk.append(own, 1, Bytes::new()).is_err());
        assert_eq!(disk.range(own), None);
    }
}

//! Segments that came before their predecessors.

use std::collections::BTreeMap;

use crate::directory::Directory;
use crate::ids::NodeId;
use crate::segment::Segment;

/// Verified segments that cannot be folded yet, with who sent them.
///
/// A bounded number of bytes: when they are reached all are dropped, and fetched again in time.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    segments: BTreeMap<(NodeId, u64), (NodeId, Segment)>,
    bytes: usize,
}

impl Waiting {
    pub(super) fn add(&mut self, from: NodeId, segment: Segment) {
        let key = (segment.head().node, segment.head().seq);
        let len = segment.bytes().len();
        if self.segments.contains_key(&key) {
            return;
        }
        if self.bytes + len > BYTES_MAX {
            // So nobody can block the room for good with what never fits.
            *self = Waiting::default();
        }
        self.bytes += len;
        self.segments.insert(key, (from, segment));
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes out those that may fit now, at most one for each log. Those that are of no use any
    /// more are dropped.
    pub(super) fn take_fitting(&mut self, directory: &Directory) -> Vec<(NodeId, Segment)> {
        let segments = std::mem::take(&mut self.segments);
        let mut fitting = Vec::new();
        for ((node, seq), waiting) in segments {
            let next = directory.next_wanted(node);
            if seq > next {
                self.segments.insert((node, seq), waiting);
                continue;
            }
            self.bytes -= waiting.1.bytes().len();
            if seq == next {
                fitting.push(waiting);
            }
        }
        fitting
    }
}

/// Most bytes that wait.
pub(super) const BYTES_MAX: usize = 4 << 20;

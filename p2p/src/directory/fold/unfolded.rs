//! Logs that go on beyond what could be folded of them, and what outlives a fold.

use super::{Changes, hash};
use crate::directory::Directory;
use crate::log::{Log, LogError};
use crate::segment::Segment;

impl Directory {
    /// Folds on where a missing segment may have come; whether anything was.
    pub(super) fn fold_unfolded<L: Log>(
        &mut self,
        log: &L,
        changes: &mut Changes,
    ) -> Result<bool, LogError> {
        let mut moved = false;
        for node in self.unfolded.clone() {
            let before = self.next_wanted(node);
            self.replay(node, log, changes)?;
            moved |= self.next_wanted(node) > before;
            let last = log.range(node).map_or(0, |(_, last)| last);
            if self.next_wanted(node) > last {
                self.unfolded.remove(&node);
            }
        }
        Ok(moved)
    }

    /// Takes over what is known and no log carries.
    pub(in crate::directory) fn take_uncarried<L: Log>(
        &mut self,
        other: &Directory,
        log: &mut L,
    ) -> Result<(), LogError> {
        for proof in other.forks.uncarried() {
            self.fold_fork(proof.clone(), None);
        }
        for signed in other.revocations.uncarried() {
            let subject = signed.value().subject;
            let key = (subject, hash(&signed.encode()));
            self.has_new_cut |= self.revocations.insert(key, signed.clone(), None);
        }
        self.settle(log, &mut Changes::default())?;
        Ok(())
    }

    /// Puts `segment` into its log: at the end, or where it was missed.
    pub(super) fn put<L: Log>(&self, segment: &Segment, log: &mut L) -> Result<(), LogError> {
        let (node, seq) = (segment.head().node, segment.head().seq);
        let last = log.range(node).map_or(0, |(_, last)| last);
        if last >= seq && self.unfolded.contains(&node) {
            return match log.read(node, seq)? {
                Some(bytes) if bytes == *segment.bytes() => Ok(()),
                Some(_) | None => log.mend(node, seq, segment.bytes().clone()),
            };
        }
        self.forget_abandoned(segment, log)?;
        log.append(node, seq, segment.bytes().clone())
    }
}

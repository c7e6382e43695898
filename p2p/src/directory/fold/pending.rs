//! Checkpoints that wait for the logs they name.
//!
//! Of two checkpoints each may name what the other put in force, and what came before them nobody
//! has any more. So they come into force together: all of the largest set whose members name nothing
//! but what is folded and each other.

use std::collections::BTreeSet;

use super::Changes;
use crate::directory::Directory;
use crate::directory::author::{Author, Run};
use crate::ids::NodeId;
use crate::log::{Log, LogError};

impl Directory {
    /// Folds what was held up by something that is here now, until nothing moves any more; of which
    /// nodes checkpoints came into force, and from where on their segments are still needed.
    pub(super) fn settle<L: Log>(
        &mut self,
        log: &mut L,
        changes: &mut Changes,
    ) -> Result<Vec<(NodeId, u64)>, LogError> {
        loop {
            self.enforce(log, changes)?;
            let enacted = self.enact_pending(log, changes)?;
            let moved = self.fold_unfolded(log, changes)?;
            if !enacted && !moved {
                break;
            }
        }
        let enacted = std::mem::take(&mut self.enacted);
        let start = |node: NodeId| {
            let base = self.author(node).and_then(Author::base);
            base.map(|run| (node, run.start))
        };
        Ok(enacted.into_iter().filter_map(start).collect())
    }

    /// Puts in force all checkpoints that can be, and folds what was received after them; whether
    /// there were any.
    pub(super) fn enact_pending<L: Log>(
        &mut self,
        log: &L,
        changes: &mut Changes,
    ) -> Result<bool, LogError> {
        let ready: Vec<u16> = self.ready().into_iter().collect();
        self.enact(&ready, log, changes)?;
        for number in &ready {
            let node = self.nodes.name(*number);
            self.replay(node, log, changes)?;
            let last = log.range(node).map_or(0, |(_, last)| last);
            if self.next_wanted(node) <= last {
                self.unfolded.insert(node);
            }
        }
        Ok(!ready.is_empty())
    }

    /// Puts the pending checkpoints of these authors in force.
    pub(super) fn enact<L: Log>(
        &mut self,
        numbers: &[u16],
        log: &L,
        changes: &mut Changes,
    ) -> Result<(), LogError> {
        // All before any is folded: until then they name each other in vain.
        for number in numbers {
            if let Some(author) = self.authors.get_mut(number) {
                author.enact();
                self.enacted.insert(self.nodes.name(*number));
            }
        }
        for number in numbers {
            self.fold_checkpoint(*number, log, changes)?;
        }
        Ok(())
    }

    /// Whether the pending checkpoint of this author waits for no other.
    pub(super) fn can_enact_alone(&self, number: u16) -> bool {
        let run = self.authors.get(&number).and_then(Author::pending);
        run.is_some_and(|run| self.can_enact(run, &BTreeSet::new()))
    }

    /// Numbers of the authors whose checkpoints wait for nothing but each other.
    fn ready(&self) -> BTreeSet<u16> {
        let pending = self.authors.iter();
        let pending = pending.filter(|(_, author)| author.pending().is_some());
        let mut ready: BTreeSet<u16> = pending.map(|(number, _)| *number).collect();
        loop {
            let is_held_up = |number: &u16| {
                let run = self.authors.get(number).and_then(Author::pending);
                !run.is_some_and(|run| self.can_enact(run, &ready))
            };
            let held_up: Vec<u16> = ready.iter().copied().filter(is_held_up).collect();
            if held_up.is_empty() {
                return ready;
            }
            held_up.iter().for_each(|number| {
                ready.remove(number);
            });
        }
    }

    /// Whether all that `run` names is here, if the pending checkpoints of `with` come into force.
    fn can_enact(&self, run: &Run, with: &BTreeSet<u16>) -> bool {
        run.needs().iter().all(|(node, need)| {
            let (said, counts) = need.of(*node);
            let number = self
                .nodes
                .number(node)
                .filter(|number| with.contains(number));
            let author = number.and_then(|number| self.authors.get(&number));
            let other = author.and_then(Author::pending);
            self.has_said(&said)
                && (self.has_folded(&counts) || other.is_some_and(|run| run.end() >= counts.seq))
        })
    }
}

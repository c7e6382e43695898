//! Comparing what is folded with a peer, and finding out who is wrong.

use super::super::sync::{Session, Step};
use super::super::{Action, Replica};
use super::{COMPARE_EVERY, PATIENCE, Suspicion};
use crate::directory::{Change, Terms};
use crate::ids::NodeId;
use crate::log::Log;
use crate::reconcile::{Answer, Ask, SHARDS_PER_ASK, Summary};
use crate::time::Millis;

impl<L: Log> Replica<L> {
    /// Goes on comparing with a peer whose log ends are equal, if it is time.
    pub(in crate::replica) fn compare_on(
        &mut self,
        now: Millis,
        peer: NodeId,
        mut session: Session,
        actions: &mut Vec<Action>,
    ) {
        if self.repair.compare_at.is_none_or(|at| at > now) {
            return;
        }
        let Terms(terms) = self.directory.terms();
        let summary = Summary::of(&self.directory.tips()).all;
        let first = self.repair.shard;
        session.step = Step::Shards { summary, first };
        let ask = Ask::Shards {
            summary,
            terms,
            first,
        };
        self.ask(now, peer, session, ask, actions);
    }

    /// Answers with digests, if they mean anything to the asker and were not asked for too often.
    pub(in crate::replica) fn answer_shards(
        &mut self,
        now: Millis,
        (summary, terms): (u64, u64),
        first: u8,
    ) -> Answer {
        let comparable = Summary::of(&self.directory.tips()).all == summary
            && self.directory.terms() == Terms(terms)
            && self.repair.may_answer(now);
        Answer::Shards(comparable.then(|| self.digests_from(first)))
    }

    fn digests_from(&self, first: u8) -> Vec<u64> {
        let shards = first..=first + (SHARDS_PER_ASK - 1);
        shards.map(|shard| self.digest(shard)).collect()
    }

    /// As it goes over the wire.
    fn digest(&self, shard: u8) -> u64 {
        self.directory.shard_digest(shard) as u64
    }

    /// Compares a peer's digests, and asks on or looks into a difference.
    pub(in crate::replica) fn learn_shards(
        &mut self,
        now: Millis,
        from: NodeId,
        session: Session,
        (summary, first): (u64, u8),
        theirs: Option<Vec<u64>>,
        actions: &mut Vec<Action>,
    ) {
        let Some(theirs) = theirs else {
            return;
        };
        if Summary::of(&self.directory.tips()).all != summary {
            return;
        }
        let mine = self.digests_from(first);
        let pairs = || (first..=u8::MAX).zip(mine.iter().zip(&theirs));
        let agrees = |shard: u8| pairs().any(|(of, (mine, theirs))| of == shard && mine == theirs);
        let wrong = self.repair.wrong.get(&from);
        if wrong.is_some_and(|wrong| agrees(wrong.shard)) {
            self.repair.wrong.remove(&from);
        }
        let differing = pairs().find(|(_, (mine, theirs))| mine != theirs);
        if let Some((shard, _)) = differing {
            self.disagree(now, from, shard, actions);
        }
        // Also after a difference: it is being looked into, once.
        self.repair.shard = first.wrapping_add(SHARDS_PER_ASK);
        match self.repair.shard {
            0 => self.repair.compare_at = Some(now.plus(COMPARE_EVERY)),
            _ if differing.is_none() => self.compare_on(now, from, session, actions),
            _ => {}
        }
    }

    fn disagree(&mut self, now: Millis, peer: NodeId, shard: u8, actions: &mut Vec<Action>) {
        if let Some(wrong) = self.repair.wrong.get(&peer) {
            if now >= wrong.since.plus(PATIENCE) {
                let why = "its state does not follow from the logs".to_owned();
                actions.push(Action::Misbehaved { node: peer, why });
            }
            return;
        }
        if now < self.repair.rest_until || self.repair.suspicion.is_some() {
            return;
        }
        self.repair.rest_until = now.plus(COMPARE_EVERY);
        self.repair.suspicion = Some(Suspicion { peer, shard });
        self.repair.verification = None;
        self.begin_verification(now);
    }

    /// Folds anew once the log is known to be whole.
    pub(super) fn look_into_suspicion(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let repair = &self.repair;
        if repair.verification.is_some() || repair.more_damaged || !repair.damaged.is_empty() {
            return;
        }
        let Some(Suspicion { peer, shard }) = self.repair.suspicion.take() else {
            return;
        };
        let before = self.digest(shard);
        match self.directory.refold(&mut self.log) {
            Ok(true) => {}
            // Something decayed since it was verified: the next difference begins anew.
            Ok(false) => return,
            Err(error) => {
                actions.push(Action::LogFailed(error));
                return;
            }
        }
        self.repair.done.refolded += 1;
        if self.digest(shard) == before {
            self.repair.contradict(now, Suspicion { peer, shard });
        } else {
            self.repair.done.healed += 1;
            actions.push(Action::Changed(vec![Change::Everything]));
        }
    }
}

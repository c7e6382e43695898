//! Peers that want to hear what this node comes to hold: those who fetch the same.

use std::ops::Bound;

use super::{Action, Provider, Wanted, not_found};
use crate::ids::NodeId;
use crate::wire::{DELTA_MAX, Frame, Have, OTHERS_MAX, Object, RequestNumber};

impl Provider {
    /// Answers what is held of an object now, and from now on tells of gains.
    pub(super) fn watch(
        &mut self,
        peer: NodeId,
        req: RequestNumber,
        object: Object,
        actions: &mut Vec<Action>,
    ) {
        if self.asker(peer).early(req).is_some() {
            // Asked again before it was answered: one answer serves both.
            return;
        }
        if !self.asker(peer).watch(req, object) {
            not_found(peer, req, actions);
            return;
        }
        self.watchers.entry(object).or_default().insert((peer, req));
        self.look_up(peer, req, object, Wanted::Have, actions);
    }

    /// Tells a peer of no more gains.
    pub(super) fn unwatch(&mut self, peer: NodeId, req: RequestNumber, object: &Object) {
        if let Some(watchers) = self.watchers.get_mut(object) {
            watchers.remove(&(peer, req));
            if watchers.is_empty() {
                self.watchers.remove(object);
            }
        }
    }

    /// Says what is held, behind it what was gained while that was looked up, and who else asked.
    pub(super) fn answer_watch(
        &mut self,
        peer: NodeId,
        req: RequestNumber,
        have: Have,
        actions: &mut Vec<Action>,
    ) {
        let Some((object, stale)) = self.asker(peer).looked_up_watch(req) else {
            return;
        };
        if stale {
            return self.look_up(peer, req, object, Wanted::Have, actions);
        }
        let frame = Frame::Have { req, have };
        actions.push(Action::Send { peer, frame });
        let early = self.asker(peer).answered_watch(req);
        send_delta(peer, req, &early, actions);
        let nodes = self.others(peer, &object);
        if !nodes.is_empty() {
            let frame = Frame::Others { req, nodes };
            actions.push(Action::Send { peer, frame });
        }
    }

    /// Answers everybody who watches an object anew: this node is fetching it now.
    pub(super) fn begun(&mut self, object: &Object, actions: &mut Vec<Action>) {
        let watchers: Vec<_> = self
            .watchers
            .get(object)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        for (peer, req) in watchers {
            if self.asker(peer).begun(req) {
                self.look_up(peer, req, *object, Wanted::Have, actions);
            }
        }
    }

    /// Who else watches an object, as far as they may. Each peer is told of those behind it in the
    /// circle of all ids, so that in a large crowd not everybody turns to the same few.
    fn others(&self, peer: NodeId, object: &Object) -> Vec<NodeId> {
        let Some(watchers) = self.watchers.get(object) else {
            return Vec::new();
        };
        let behind = (
            Bound::Excluded((peer, RequestNumber::MAX)),
            Bound::Unbounded,
        );
        let circle = watchers.range(behind).chain(watchers.range(..(peer, 0)));
        let told = |(node, req): &&(NodeId, RequestNumber)| {
            let asker = self.askers.get(node);
            asker.is_some_and(|asker| asker.is_told(*req))
        };
        let mut others: Vec<NodeId> = Vec::new();
        for (node, _) in circle.filter(told) {
            if others.len() == OTHERS_MAX {
                break;
            }
            if others.last() != Some(node) {
                others.push(*node);
            }
        }
        others
    }

    /// Tells everybody who watches an object of its new segments.
    pub(super) fn gained(&mut self, object: Object, segments: &[u32], actions: &mut Vec<Action>) {
        for &(peer, req) in self.watchers.get(&object).into_iter().flatten() {
            let waiting = self
                .askers
                .get_mut(&peer)
                .and_then(|asker| asker.early(req));
            match waiting {
                Some(early) => early.extend_from_slice(segments),
                None => send_delta(peer, req, segments, actions),
            }
        }
    }
}

fn send_delta(peer: NodeId, req: RequestNumber, segments: &[u32], actions: &mut Vec<Action>) {
    for part in segments.chunks(DELTA_MAX) {
        let segments = part.to_vec();
        let frame = Frame::HaveDelta { req, segments };
        actions.push(Action::Send { peer, frame });
    }
}

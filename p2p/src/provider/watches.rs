//! Peers that want to hear what this node comes to hold.

use super::{Action, Provider, Wanted};
use crate::ids::NodeId;
use crate::wire::{DELTA_MAX, Frame, Object, RequestNumber};

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
            let frame = Frame::NotFound { req, chunk: None };
            actions.push(Action::Send { peer, frame });
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

    /// Sends an answer, and behind it what was gained while it was looked up.
    pub(super) fn told(
        &mut self,
        peer: NodeId,
        req: RequestNumber,
        frame: Frame,
        actions: &mut Vec<Action>,
    ) {
        let answers_watch = matches!(frame, Frame::Have { .. });
        actions.push(Action::Send { peer, frame });
        if answers_watch {
            let early = self.asker(peer).answered_watch(req);
            send_delta(peer, req, &early, actions);
        }
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

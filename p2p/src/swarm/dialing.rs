//! Attempts at connections: from a wish to a connection or the reason why there is none.

use std::time::Instant;

use libp2p::Multiaddr;
use libp2p::swarm::DialError as Failure;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use tokio::sync::oneshot;

use super::{TICK, Task};
use crate::behaviour::{OUTBOUND_MAX, PENDING_MAX};
use crate::dialer::{Target, is_circuit, is_dialable, split};
use crate::gate::Refusal;
use crate::ids::NodeId;
use crate::network::DialError;
use crate::swarm::resolve::{is_named, resolve};
use crate::upgrade::UpgradeError;

/// A connection that is being made.
pub(super) struct Attempt {
    /// What the dialer wants, if it was the dialer.
    pub(super) target: Option<Target>,
    /// Who must answer.
    node: Option<NodeId>,
    /// Where else to try if this fails.
    rest: Vec<Multiaddr>,
    /// Who wants to know.
    pub(super) reply: Option<oneshot::Sender<Result<NodeId, DialError>>>,
}

impl Task<'_> {
    /// Makes the attempts the dialer wants now.
    pub(super) fn dial_due(&mut self) {
        let now = Instant::now();
        let pending = self.attempts.len() + self.lookups.len();
        let room = (OUTBOUND_MAX as usize).saturating_sub(self.peers.len() + pending);
        for dial in self.durable.dialer.due(now, room) {
            let node = match &dial.target {
                Target::Node(node) => Some(*node),
                Target::Address(_) => None,
            };
            let attempt = Attempt {
                target: Some(dial.target),
                node,
                rest: Vec::new(),
                reply: None,
            };
            self.look_up(attempt, dial.addresses);
        }
        // Who is due and found no room waits a while.
        let wake = self.durable.dialer.next_wake();
        self.wake = wake.map(|at| if at <= now { now + TICK } else { at });
    }

    /// Makes an attempt the node asked for.
    pub(super) fn dial_for(
        &mut self,
        address: &Multiaddr,
        reply: oneshot::Sender<Result<NodeId, DialError>>,
    ) {
        let pending = self.attempts.len() + self.lookups.len();
        let parts = split(address).filter(|(_, address)| is_dialable(address));
        let refused = match &parts {
            None => Some(Err(DialError::Address(address.clone()))),
            Some((Some(node), _)) if *node == self.durable.me => Some(Err(DialError::Myself)),
            Some((Some(node), _)) if self.peers.contains(*node) => Some(Ok(*node)),
            Some(_) if pending >= PENDING_MAX as usize => Some(Err(DialError::Denied)),
            Some(_) => None,
        };
        match (refused, parts) {
            (None, Some((node, address))) => {
                let attempt = Attempt {
                    target: None,
                    node,
                    rest: Vec::new(),
                    reply: Some(reply),
                };
                self.look_up(attempt, vec![address]);
            }
            (Some(outcome), _) => {
                let _ = reply.send(outcome);
            }
            // Without parts it was refused.
            (None, None) => {}
        }
    }

    /// Resolves host names, if there are any, then dials.
    fn look_up(&mut self, attempt: Attempt, addresses: Vec<Multiaddr>) {
        if addresses.iter().any(is_named) {
            self.lookups.push(Box::pin(async move {
                let resolved = resolve(&addresses).await;
                (attempt, resolved)
            }));
        } else {
            self.dial(attempt, addresses);
        }
    }

    pub(super) fn dial(&mut self, mut attempt: Attempt, mut addresses: Vec<Multiaddr>) {
        if addresses.is_empty() {
            self.on_dial_failed(attempt, &Failure::NoAddresses);
            return;
        }
        if attempt.node.is_none() && self.listen_addresses.contains(&addresses[0]) {
            let address = addresses.remove(0);
            self.on_dial_failed(attempt, &Failure::LocalPeerId { address });
            return;
        }
        let peer = attempt.node.and_then(|node| node.peer_id());
        if peer.is_some() {
            // A relay only where nothing else leads there.
            let circuits;
            (addresses, circuits) = addresses
                .into_iter()
                .partition(|address| !is_circuit(address));
            let circuits = if self.durable.options.uses_relays() {
                circuits
            } else {
                Vec::new()
            };
            match addresses.is_empty() {
                true => addresses = circuits,
                false => attempt.rest = circuits,
            }
            if addresses.is_empty() {
                self.on_dial_failed(attempt, &Failure::NoAddresses);
                return;
            }
        }
        // Whom a hole is to be punched for must see the port that we listen at.
        let keep_port = self.durable.options.hole_punching
            && (attempt.node).is_some_and(|node| self.durable.is_relay(node));
        let opts = match peer {
            Some(peer) if keep_port => DialOpts::peer_id(peer)
                .condition(PeerCondition::Disconnected)
                .addresses(addresses)
                .build(),
            Some(peer) => DialOpts::peer_id(peer)
                .condition(PeerCondition::Disconnected)
                .addresses(addresses)
                .allocate_new_port()
                .build(),
            // libp2p takes one address only for whoever it is that answers.
            None => {
                let first = addresses.remove(0);
                attempt.rest = addresses;
                DialOpts::unknown_peer_id()
                    .address(first)
                    .allocate_new_port()
                    .build()
            }
        };
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.attempts.insert(id, attempt);
            }
            Err(error) => self.on_dial_failed(attempt, &error),
        }
    }

    pub(super) fn on_dial_failed(&mut self, mut attempt: Attempt, failure: &Failure) {
        let now = Instant::now();
        let error = dial_error(failure);
        tracing::debug!(target = ?attempt.target, %error, "dial");
        // Private addresses repeat: behind another router somebody else may have it, or this node.
        if let DialError::Unreachable(_) | DialError::Other(_) | DialError::Myself = &error
            && !attempt.rest.is_empty()
        {
            let rest = std::mem::take(&mut attempt.rest);
            return self.dial(attempt, rest);
        }
        let wanted = matches!(error, DialError::Unreachable(_) | DialError::Denied);
        match (&attempt.target, wanted) {
            (Some(target), true) => self.durable.dialer.failed(now, target),
            (Some(target), false) => self.durable.dialer.refused(now, target),
            (None, _) => {}
        }
        if let Some(Target::Node(node)) = attempt.target
            && self.peers.contains(node)
        {
            self.durable.dialer.connected(now, node, None);
        }
        match wanted {
            true => self.durable.counters.dials_failed += 1,
            false => self.durable.counters.dials_refused += 1,
        }
        if let Some(reply) = attempt.reply {
            let _ = reply.send(Err(error));
        }
        self.dial_due();
    }
}

/// Why nobody was reached, from what libp2p says.
fn dial_error(failure: &Failure) -> DialError {
    match failure {
        Failure::LocalPeerId { .. } => DialError::Myself,
        Failure::WrongPeerId { obtained, .. } => match NodeId::from_peer_id(obtained) {
            Some(node) => DialError::Other(node),
            None => DialError::Unreachable(failure.to_string()),
        },
        Failure::NoAddresses => DialError::Unreachable("no address is known".to_owned()),
        Failure::DialPeerConditionFalse(_) | Failure::Aborted | Failure::Denied { .. } => {
            DialError::Denied
        }
        Failure::Transport(errors) => {
            let refusal = (errors.iter()).find_map(|(_, error)| refusal(error));
            refusal.map_or_else(
                || DialError::Unreachable(unreachable_text(errors)),
                DialError::Refused,
            )
        }
    }
}

type TransportError = libp2p::core::transport::TransportError<std::io::Error>;

/// The gate's words, if it was the gate that ended the attempt.
fn refusal(error: &TransportError) -> Option<Refusal> {
    causes(error).find_map(|cause| match cause.downcast_ref::<UpgradeError>() {
        Some(UpgradeError::Refused(refusal)) => Some(refusal.clone()),
        _ => None,
    })
}

/// What went wrong at each address.
fn unreachable_text(errors: &[(Multiaddr, TransportError)]) -> String {
    let each = errors.iter().map(|(address, error)| {
        let deepest = causes(error).last().map(ToString::to_string);
        format!("{address}: {}", deepest.unwrap_or_default())
    });
    each.collect::<Vec<_>>().join(", ")
}

/// An error's causes, outermost first. libp2p wraps errors into I/O errors, whose `source` skips
/// what they wrap.
fn causes(error: &TransportError) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let outermost: Option<&(dyn std::error::Error + 'static)> = match error {
        TransportError::Other(error) => Some(error),
        TransportError::MultiaddrNotSupported(_) => None,
    };
    std::iter::successors(outermost, |error| {
        match error
            .downcast_ref::<std::io::Error>()
            .and_then(|error| error.get_ref())
        {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}

//! What is known of the cluster's other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use attic_p2p::ids::NodeId;
use attic_p2p::membership::Role as MemberRole;
use attic_p2p::membership::certificate::Certificate;
use attic_p2p::membership::hello::Refusal;
use attic_p2p::membership::time::UnixTime;
use attic_p2p::network::{BanInfo, Direction as NetworkDirection, PeerInfo};
use axum::Json;
use axum::extract::State;
use tokio::task::spawn_blocking;

use crate::api::cluster::{Direction, PeerState, PeerView};
use crate::app::App;
use crate::clock::unix_now;
use crate::http::cluster::role;
use crate::http::ingest::joined;
use crate::mesh::Mesh;
use crate::mesh::members::{Met, now};
use crate::mesh::names::Card;

/// Lists the other nodes; empty in no cluster.
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Vec<PeerView>> {
    let Some(mesh) = app.mesh.get() else {
        return Json(Vec::new());
    };
    Json(joined(spawn_blocking(move || views(&app, &mesh)).await))
}

fn views(app: &App, mesh: &Mesh) -> Vec<PeerView> {
    let members: BTreeMap<NodeId, Certificate> = {
        let members = mesh.view.members().into_iter();
        members.map(|member| (member.node, member)).collect()
    };
    // They leave the list when nobody would let them in any more.
    let left: BTreeMap<NodeId, (Certificate, UnixTime)> = {
        let left = mesh.view.members_left().into_iter();
        left.filter(|(member, _)| now() <= member.not_after)
            .map(|(member, at)| (member.node, (member, at)))
            .collect()
    };
    let status = mesh.network.status();
    let peers: BTreeMap<_, _> = status.peers.iter().map(|peer| (peer.node, peer)).collect();
    let bans: BTreeMap<_, _> = status.bans.iter().map(|ban| (ban.node, ban)).collect();
    // Who was let in and has not written into its log yet is shown all the same.
    let known = members.keys().chain(left.keys());
    let known = known.chain(peers.keys()).chain(bans.keys());
    let nodes: BTreeSet<NodeId> = known.copied().collect();
    let others = { nodes }
        .into_iter()
        .filter(|node| *node != mesh.me && !mesh.view.is_revoked(*node));
    let looker = Looker {
        app,
        mesh,
        unix: unix_now(),
        instant: Instant::now(),
    };
    let views = others.map(|node| {
        let (peer, ban) = (peers.get(&node).copied(), bans.get(&node).copied());
        let left = left.get(&node);
        let member = members.get(&node).or(left.map(|(member, _)| member));
        let mut view = looker.view(node, member, peer, ban);
        if let (Some((_, at)), PeerState::Away { .. }) = (left, &view.state) {
            view.state = PeerState::Left { left_at: at.0 };
            view.since = at.0;
        }
        view
    });
    views.collect()
}

/// What a view is made with.
struct Looker<'a> {
    app: &'a App,
    mesh: &'a Mesh,
    /// Now, by both clocks.
    unix: u64,
    instant: Instant,
}

impl Looker<'_> {
    fn view(
        &self,
        node: NodeId,
        member: Option<&Certificate>,
        peer: Option<&PeerInfo>,
        ban: Option<&BanInfo>,
    ) -> PeerView {
        let mesh = self.mesh;
        let met = mesh.members.met(&node);
        let card = mesh.names.of(&node, peer);
        let lag = mesh.view.lag(node);
        let moved = mesh.exchange.traffic().of(&node);
        let certificate_expires = certificate_end(member, met);
        let since = peer.map(|peer| {
            let connected = self.instant.duration_since(peer.since).as_secs();
            self.unix.saturating_sub(connected)
        });
        let Card { name, version } = card;
        PeerView {
            node,
            name,
            version,
            address: peer
                .and_then(|peer| peer.addresses.first().map(ToString::to_string))
                .or_else(|| mesh.address_of(&node)),
            direction: peer.map(|peer| match peer.direction {
                NetworkDirection::Inbound => Direction::Inbound,
                NetworkDirection::Outbound => Direction::Outbound,
            }),
            role: role(
                member.map(|member| member.role).or(met.map(|met| met.role))
                    == Some(MemberRole::Keeper),
            ),
            since: since.unwrap_or(self.app.started_at),
            rtt_ms: peer
                .and_then(|peer| peer.rtt)
                .map(|rtt| rtt.as_secs_f64() * 1000.0),
            sent_bytes: moved.sent,
            received_bytes: moved.received,
            behind: lag.map(|lag| lag.behind),
            lacks: lag.map(|lag| lag.lacks),
            strikes: mesh.exchange.strikes(&node),
            quarantined: mesh.view.is_quarantined(node),
            log_too_long: mesh.view.is_too_long(node),
            state: self.state(node, peer, ban, certificate_expires),
            certificate_expires: certificate_expires.0,
        }
    }

    fn state(
        &self,
        node: NodeId,
        peer: Option<&PeerInfo>,
        ban: Option<&BanInfo>,
        certificate_end: UnixTime,
    ) -> PeerState {
        match (peer, ban) {
            (Some(_), _) => PeerState::Connected,
            (None, Some(ban)) => {
                let left = ban.until.saturating_duration_since(self.instant).as_secs();
                PeerState::Banned {
                    banned_until: self.unix + left,
                    reason: ban.why.clone(),
                }
            }
            (None, None) => PeerState::Away {
                reason: self.reason(node, certificate_end),
            },
        }
    }

    /// Why a node is away: what it said, or what its certificate or this node's does.
    fn reason(&self, node: NodeId, certificate_end: UnixTime) -> Option<String> {
        let own_end = UnixTime(self.mesh.certificate_expires());
        let refusals = self.mesh.members.refusals().into_iter();
        let said = { refusals }.find(|(who, _)| *who == node);
        match said {
            Some((_, Refusal::Expired { not_after })) if not_after == own_end => {
                Some(own_expired(own_end))
            }
            Some((_, Refusal::Expired { not_after })) => Some(its_expired(not_after)),
            // Those whom this node holds for revoked are not listed.
            Some((_, Refusal::Revoked)) => Some("it says that this node is revoked".to_owned()),
            Some((_, refusal)) => Some(refusal.to_string()),
            None if own_end < now() => Some(own_expired(own_end)),
            None if certificate_end < now() => Some(its_expired(certificate_end)),
            None => None,
        }
    }
}

fn own_expired(end: UnixTime) -> String {
    format!(
        "this node's certificate expired at {end}: the node that made the cluster renews it when it \
         can be reached"
    )
}

fn its_expired(end: UnixTime) -> String {
    format!("its certificate expired at {end}: the node that made the cluster renews it")
}

/// When a node's certificate ends: it may have shown a newer one than its log has.
fn certificate_end(member: Option<&Certificate>, met: Option<Met>) -> UnixTime {
    let told = member.map(|member| member.not_after);
    let shown = met.map(|met| met.not_after);
    told.max(shown).unwrap_or(UnixTime(0))
}

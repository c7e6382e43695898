//! Members tell each other where members are.
//!
//! A ticket names a few nodes, and mDNS reaches one network. What else there is a node learns from
//! those it is connected to: while members are missing, it asks whoever came, and one peer at random
//! each minute and after members changed, whom they are connected to and where those listen. What it
//! is told it tries, as it tries what mDNS discovers; who is reached is remembered like anybody.
//!
//! A member may lie. Taken are addresses of members only, a bounded number of them since the start,
//! and none that lead to this machine or link unless the teller is on this machine. A lie costs an
//! attempt now and then, whose handshake fails; nobody is banned for one, since addresses age.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attic_p2p::Multiaddr;
use attic_p2p::ids::NodeId;
use attic_p2p::network::PeerInfo;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::auth::random;
use crate::http::ingest::joined;
use crate::mesh::query::{PEER_ADDRESSES_MAX, PEERS_MAX, PeerAddresses, Query, Reply};
use crate::mesh::{Mesh, Reach, addresses_of, is_circuit};

/// Asks peers for others until the mesh is stopped.
pub(crate) async fn exchange_peers(mesh: Arc<Mesh>) {
    let mut asked = BTreeMap::new();
    let mut told = Told::default();
    loop {
        let changed = timeout(ASK_EVERY, mesh.peers_changed.notified()).await;
        if changed.is_ok() {
            sleep(SETTLE).await;
        }
        ask(&mesh, &mut asked, &mut told).await;
    }
}

async fn ask(mesh: &Arc<Mesh>, asked: &mut BTreeMap<NodeId, Instant>, told: &mut Told) {
    let tellers = tellers(asked, &mesh.network.peers(), lot());
    for teller in tellers {
        let here = Arc::clone(mesh);
        let missing = joined(spawn_blocking(move || here.missing()).await);
        if missing.is_empty() {
            return;
        }
        let answer = mesh.network.request(teller.node, Query::Peers.encode());
        // A node of an earlier version does not answer.
        let answer = answer.await.ok().and_then(|bytes| Reply::decode(&bytes));
        let Some(Reply::Peers(peers)) = answer else {
            continue;
        };
        let addresses = told.take(&teller, &peers, &missing);
        if !addresses.is_empty() {
            mesh.network.suggest(addresses).await;
        }
    }
}

impl Mesh {
    /// The members that this node is not connected to and should be.
    fn missing(&self) -> BTreeSet<NodeId> {
        let mut missing: BTreeSet<NodeId> = self.view.with_directory(|directory| {
            let members = directory.members().map(|member| member.node);
            let is_out = |node| {
                let is_barred = directory.is_revoked(node) || directory.is_quarantined(node);
                is_barred || directory.left_at(node).is_some()
            };
            members.filter(|node| !is_out(*node)).collect()
        });
        missing.remove(&self.me);
        let status = self.network.status();
        for peer in &status.peers {
            missing.remove(&peer.node);
        }
        for ban in &status.bans {
            missing.remove(&ban.node);
        }
        missing
    }
}

/// Whom to ask: those that came since the last time, or else one of all, which `lot` chooses.
fn tellers(asked: &mut BTreeMap<NodeId, Instant>, peers: &[PeerInfo], lot: usize) -> Vec<PeerInfo> {
    let is_new = |peer: &&PeerInfo| asked.get(&peer.node) != Some(&peer.since);
    let mut tellers: Vec<_> = peers.iter().filter(is_new).cloned().collect();
    if tellers.is_empty() && !peers.is_empty() {
        tellers.push(peers[lot % peers.len()].clone());
    }
    *asked = peers.iter().map(|peer| (peer.node, peer.since)).collect();
    tellers
}

/// What to tell `asker`: other peers with the addresses at which they listen, as far as these are
/// known. Of more than [`PEERS_MAX`], `lot` chooses which.
pub(crate) fn peers_for(asker: NodeId, peers: &[PeerInfo], lot: usize) -> Vec<PeerAddresses> {
    let first = lot % peers.len().max(1);
    let turned = peers[first..].iter().chain(&peers[..first]);
    let others = turned.filter(|peer| peer.node != asker);
    let listening = others.filter_map(|peer| {
        let addresses = best(addresses_of(peer));
        (!addresses.is_empty()).then(|| PeerAddresses::new(peer.node, &addresses))
    });
    listening.take(PEERS_MAX).collect()
}

/// As many addresses as are told of one node: some through relays, if there are any.
fn best(addresses: Vec<Multiaddr>) -> Vec<Multiaddr> {
    let (circuits, direct): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_circuit);
    let circuits: Vec<_> = circuits.into_iter().take(CIRCUITS_MAX).collect();
    let direct = direct.into_iter().take(PEER_ADDRESSES_MAX - circuits.len());
    direct.chain(circuits).collect()
}

/// A number by chance.
pub(crate) fn lot() -> usize {
    usize::from(u16::from_le_bytes(random()))
}

/// Addresses that peers told since the start, each with who told it first.
#[derive(Default)]
struct Told(BTreeMap<Multiaddr, NodeId>);

impl Told {
    /// Those addresses of an answer that lead to who is missing. None beyond [`TOLD_MAX`], nor
    /// beyond [`TOLD_BY_ONE_MAX`] of one teller, is taken until this node starts anew.
    fn take(
        &mut self,
        teller: &PeerInfo,
        peers: &[PeerAddresses],
        missing: &BTreeSet<NodeId>,
    ) -> Vec<Multiaddr> {
        let place = teller.addresses.first().filter(|_| !teller.relayed);
        let is_on_this_host = place.is_some_and(|place| Reach::of(place) == Reach::Host);
        let peers = peers.iter().filter(|peer| missing.contains(&peer.node));
        { peers.flat_map(PeerAddresses::multiaddrs) }
            .filter(|address| is_on_this_host || Reach::of(address) == Reach::Routed)
            .filter(|address| self.note(address, teller.node))
            .collect()
    }

    /// Whether an address may be tried.
    fn note(&mut self, address: &Multiaddr, teller: NodeId) -> bool {
        if self.0.contains_key(address) {
            return true;
        }
        let by_teller = self.0.values().filter(|other| **other == teller).count();
        if self.0.len() >= TOLD_MAX || by_teller >= TOLD_BY_ONE_MAX {
            return false;
        }
        self.0.insert(address.clone(), teller);
        true
    }
}

/// How often one peer is asked while members are missing.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// After a change: by then peers have said where they listen, and logs were compared.
const SETTLE: Duration = Duration::from_secs(2);
/// Addresses through relays that are told of one node.
const CIRCUITS_MAX: usize = 2;
/// Addresses taken from all peers since the start.
const TOLD_MAX: usize = 4 * TOLD_BY_ONE_MAX;
/// Addresses taken from one peer: as many as are in one answer.
const TOLD_BY_ONE_MAX: usize = PEERS_MAX * PEER_ADDRESSES_MAX;

#[cfg(test)]
mod tests {
    use attic_p2p::identity::Identity;
    use attic_p2p::network::Direction;

    use super::*;

    fn node(seed: u8) -> NodeId {
        Identity::from_seed([seed; 32]).node_id()
    }

    fn peer(seed: u8, direction: Direction, addresses: &[&str]) -> PeerInfo {
        PeerInfo {
            node: node(seed),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            direction,
            since: Instant::now(),
            rtt: None,
            agent: String::new(),
            connections: 1,
            relayed: false,
        }
    }

    fn addresses(peers: &[PeerAddresses]) -> Vec<String> {
        let addresses = peers.iter().flat_map(PeerAddresses::multiaddrs);
        addresses.map(|address| address.to_string()).collect()
    }

    fn named(seed: u8, address: &str) -> String {
        format!("{address}/p2p/{}", node(seed).peer_id().unwrap())
    }

    #[test]
    fn told_are_addresses_to_dial_of_everybody_but_the_asker() {
        let listens = "/ip4/10.0.0.2/tcp/7746";
        let peers = [
            peer(1, Direction::Outbound, &["/ip4/10.0.0.1/tcp/7746"]),
            peer(2, Direction::Inbound, &["/ip4/10.0.0.2/tcp/40000", listens]),
            peer(3, Direction::Outbound, &["/ip4/10.0.0.3/tcp/7746"]),
            peer(4, Direction::Inbound, &["/ip4/10.0.0.4/tcp/40000"]),
        ];
        let told = peers_for(node(1), &peers, 0);
        let wanted = [named(2, listens), named(3, "/ip4/10.0.0.3/tcp/7746")];
        assert_eq!(addresses(&told), wanted);
        assert_eq!(peers_for(node(1), &[], 7), []);
    }

    #[test]
    fn of_many_peers_each_has_its_turn() {
        let peers: Vec<_> = (0..200)
            .map(|seed| peer(seed, Direction::Outbound, &["/ip4/10.0.0.1/tcp/7746"]))
            .collect();
        let mut told = BTreeSet::new();
        for lot in [0, 50, 100, 150] {
            let some = peers_for(node(250), &peers, lot);
            assert_eq!(some.len(), PEERS_MAX);
            told.extend(some.into_iter().map(|peer| peer.node));
        }
        assert_eq!(told.len(), peers.len());
    }

    #[test]
    fn many_direct_addresses_leave_room_for_circuits() {
        let relay = node(9).peer_id().unwrap();
        let circuit = format!("/ip4/10.0.0.9/tcp/1/p2p/{relay}/p2p-circuit");
        let direct = (1..20).map(|port| format!("/ip4/10.0.0.1/tcp/{port}"));
        let all: Vec<String> = direct.chain([circuit.clone()]).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let told = peers_for(node(2), &[peer(1, Direction::Outbound, &all)], 0);
        let told = addresses(&told);
        assert_eq!(told.len(), PEER_ADDRESSES_MAX);
        assert_eq!(told.last(), Some(&named(1, &circuit)));
    }

    #[test]
    fn who_came_is_asked_and_then_one_at_random() {
        let one = peer(1, Direction::Inbound, &[]);
        let two = peer(2, Direction::Inbound, &[]);
        let mut asked = BTreeMap::new();
        let mut ask = |peers: &[PeerInfo], lot| -> Vec<NodeId> {
            let tellers = tellers(&mut asked, peers, lot);
            tellers.into_iter().map(|peer| peer.node).collect()
        };
        let both = [one.clone(), two.clone()];
        assert_eq!(ask(&[], 7), []);
        assert_eq!(ask(&both[..1], 0), [one.node]);
        assert_eq!(ask(&both, 0), [two.node]);
        assert_eq!(ask(&both, 0), [one.node]);
        assert_eq!(ask(&both, 3), [two.node]);
        let mut again = one.clone();
        again.since += Duration::from_secs(1);
        assert_eq!(ask(&[again, two], 1), [one.node]);
    }

    #[test]
    fn only_missing_members_are_tried_and_narrow_addresses_only_from_this_host() {
        let texts = [
            "/ip4/10.0.0.1/tcp/1",
            "/ip4/127.0.0.1/tcp/1",
            "/ip6/::1/tcp/1",
            "/ip4/169.254.0.1/tcp/1",
            "/ip6/fe80::1/tcp/1",
        ];
        let all: Vec<Multiaddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let peers = [node(1), node(2)].map(|node| PeerAddresses::new(node, &all));
        let missing = BTreeSet::from([node(1)]);
        for (place, relayed, wanted) in [
            ("/ip4/10.0.0.9/tcp/1", false, 1),
            ("/ip4/127.0.0.2/tcp/1", false, texts.len()),
            ("/ip4/127.0.0.2/tcp/1", true, 1),
        ] {
            let mut teller = peer(9, Direction::Inbound, &[place]);
            teller.relayed = relayed;
            let tried = Told::default().take(&teller, &peers, &missing);
            let tried: Vec<_> = tried.iter().map(ToString::to_string).collect();
            let wanted: Vec<_> = texts[..wanted].iter().map(|text| named(1, text)).collect();
            assert_eq!(tried, wanted, "{place}");
        }
    }

    #[test]
    fn a_liar_uses_up_its_own_share_and_no_more() {
        let mut told = Told::default();
        let missing = BTreeSet::from([node(1)]);
        let mut tell = |teller: u8, port: usize| {
            let address = format!("/ip4/10.0.0.{teller}/tcp/{port}").parse().unwrap();
            let peers = [PeerAddresses::new(node(1), &[address])];
            let teller = peer(teller, Direction::Inbound, &[]);
            told.take(&teller, &peers, &missing).len()
        };
        for teller in 2..=5 {
            let taken: usize = (1..=TOLD_BY_ONE_MAX + 1)
                .map(|port| tell(teller, port))
                .sum();
            assert_eq!(taken, TOLD_BY_ONE_MAX);
            assert_eq!(tell(teller, 1), 1, "known already");
        }
        assert_eq!(tell(6, 1), 0, "enough of all");
    }
}

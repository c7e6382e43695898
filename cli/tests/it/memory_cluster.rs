//! The cluster side of a node made of memory: the routes below `cluster` and `peers`.
//!
//! It is in a cluster or not, makes tickets that say what was asked for, and takes those whose text
//! says what is to become of them.

use attic_node_core::api::{
    ClusterCache, ClusterInit, ClusterMade, ClusterView, Direction, InviteReply, InviteRequest,
    JoinReply, JoinRequest, JoinedCache, LeaveReply, LeaveRequest, LogUsage, NodeId, Nothing,
    PeerState, PeerView, RenamedCache, RevokeReply, Revoked, Role, Teller,
};

use crate::memory_node::{Answer, json};

/// Three nodes: this one, and two that are its peers in a cluster.
pub(crate) const NODES: [&str; 3] = [
    "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp",
    "12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust",
    "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X",
];

/// What it knows and has been asked.
#[derive(Default)]
pub(crate) struct Cluster {
    /// Name of the cluster it is in.
    pub(crate) name: Option<String>,
    pub(crate) invited: Vec<InviteRequest>,
    pub(crate) revoked: Vec<NodeId>,
    pub(crate) peers: Vec<PeerView>,
    /// How it knows that it was revoked.
    pub(crate) shut_out: Option<Revoked>,
}

impl Cluster {
    /// In a cluster with two others: one connected, one banned.
    pub(crate) fn of_three() -> Cluster {
        Cluster {
            name: Some("office".into()),
            peers: vec![
                peer(1, "desk", PeerState::Connected),
                peer(
                    2,
                    "laptop",
                    PeerState::Banned {
                        banned_until: 951_825_600,
                        reason: "wrong bytes".into(),
                    },
                ),
            ],
            ..Cluster::default()
        }
    }

    pub(crate) fn answer(&mut self, method: &str, segments: &[&str], body: &[u8]) -> Answer {
        match (method, segments) {
            ("POST", ["cluster", "init"]) => self.init(&parse(body)?),
            ("POST", ["cluster", "join"]) => self.join(&parse(body)?),
            ("POST", ["cluster", "invites"]) => {
                self.invited.push(parse(body)?);
                let ticket = "attic1ticket".into();
                json(&InviteReply { ticket })
            }
            ("GET", ["peers"]) => json(&self.peers),
            _ if self.name.is_none() => Err((404, "NoCluster")),
            ("GET", ["cluster"]) => self.view(),
            ("POST", ["cluster", "leave"]) => {
                parse::<LeaveRequest>(body)?;
                self.name = None;
                json(&LeaveReply {
                    handed_off: 2,
                    only_here: 1,
                })
            }
            ("POST", ["peers", node, "revoke"]) => {
                parse::<Nothing>(body)?;
                self.revoked
                    .push(node.parse().map_err(|_| (404, "NoSuchPeer"))?);
                json(&RevokeReply {
                    tickets_withdrawn: 1,
                    caches: vec!["tools".parse().unwrap()],
                })
            }
            _ => Err((404, "NotFound")),
        }
    }

    fn init(&mut self, init: &ClusterInit) -> Answer {
        if self.name.is_some() {
            return Err((409, "InCluster"));
        }
        let name = init.name.clone().unwrap_or_else(|| "host".into());
        self.name = Some(name.clone());
        json(&ClusterMade {
            cluster: cluster_id(),
            name,
        })
    }

    fn join(&mut self, request: &JoinRequest) -> Answer {
        match &*request.ticket {
            "attic1good" | "attic1slow" => {}
            "attic1expired" => return Err((410, "TicketExpired")),
            "attic1usedup" => return Err((410, "TicketUsedUp")),
            "attic1foreign" => return Err((403, "NotAdmitted")),
            "attic1nobody" => return Err((504, "NobodyReached")),
            _ => return Err((400, "BadTicket")),
        }
        if self.name.is_some() {
            return Err((409, "InCluster"));
        }
        *self = Cluster::of_three();
        let cache = |name: &str| JoinedCache {
            name: name.parse().unwrap(),
            founded_as: None,
            public_key: format!("{name}:AAAA"),
            old_public_keys: vec![format!("{name}-1:BBBB")],
            substituter: format!("http://127.0.0.1:7745/{name}"),
        };
        json(&JoinReply {
            cluster: cluster_id(),
            name: "office".into(),
            admitted_by: node(1),
            caches: ["main", "tools"].map(cache).into(),
            renamed: vec![RenamedCache {
                from: "tools".parse().unwrap(),
                to: "tools-local".parse().unwrap(),
            }],
            dropped: vec!["main".parse().unwrap()],
            new_identity: false,
            incomplete: request.ticket == "attic1slow",
        })
    }

    fn view(&self) -> Answer {
        let cache = ClusterCache {
            name: "main".parse().unwrap(),
            founded_as: None,
            public_keys: vec!["main:AAAA".into()],
            public: true,
            writable: false,
            readers: 3,
        };
        json(&ClusterView {
            bucket: None,
            cluster: cluster_id(),
            name: self.name.clone().unwrap(),
            node: node(0),
            role: Role::Keeper,
            certificate_expires: 951_825_600,
            revoked: self.shut_out.clone(),
            issuer: true,
            keeper: true,
            members: 3,
            connected: 1,
            caches: vec![cache],
            paths: 12,
            log: LogUsage {
                segments: 1,
                bytes: 2048,
            },
        })
    }
}

fn peer(number: usize, name: &str, state: PeerState) -> PeerView {
    PeerView {
        node: node(number),
        name: Some(name.into()),
        version: Some("1.0.0".into()),
        address: Some(format!("/ip4/10.0.0.{number}/tcp/7746")),
        direction: Some(Direction::Outbound),
        role: Role::Member,
        since: 1,
        rtt_ms: (state == PeerState::Connected).then_some(0.25),
        sent_bytes: 0,
        received_bytes: 3 << 20,
        behind: Some(4),
        lacks: None,
        strikes: 0,
        quarantined: false,
        log_too_long: false,
        state,
        certificate_expires: 2,
    }
}

/// Revoked, as these of its peers say.
pub(crate) fn shut_out(proven_at: Option<u64>, said_by: &[(usize, Option<&str>)]) -> Revoked {
    let teller = |(number, name): &(usize, Option<&str>)| Teller {
        node: node(*number),
        name: name.map(str::to_owned),
    };
    Revoked {
        proven_at,
        said_by: said_by.iter().map(teller).collect(),
    }
}

fn node(number: usize) -> NodeId {
    NODES[number].parse().unwrap()
}

fn cluster_id() -> attic_node_core::api::ClusterId {
    "0f".repeat(16).parse().unwrap()
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, (u16, &'static str)> {
    serde_json::from_slice(body).map_err(|_| (400, "BadRequest"))
}

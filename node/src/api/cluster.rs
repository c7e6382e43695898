//! What the admin API says about the cluster a node belongs to.
//!
//! ```text
//! GET    cluster                          -> ClusterView    404 in none
//! POST   cluster/init      ClusterInit    -> ClusterMade    201
//! POST   cluster/invites   InviteRequest  -> InviteReply    201
//! POST   cluster/join      JoinRequest    -> JoinReply
//! POST   cluster/leave     LeaveRequest   -> LeaveReply
//! GET    peers                            -> [PeerView]     empty in none
//! POST   peers/{node}/revoke  Nothing     -> RevokeReply
//! ```
//!
//! Names that an [`ErrorBody`](super::ErrorBody) carries here, besides the general ones:
//!
//! | status | name | means |
//! |---|---|---|
//! | 400 | `BadTicket` | no ticket, a damaged one, or one of a newer version |
//! | 403 | `NotIssuer` | this node holds neither the cluster key nor an issuer certificate |
//! | 403 | `NotAdmitted` | a member answered and refused; the message says why |
//! | 403 | `Revoked` | a member answered and refused: this node is out of the cluster for good |
//! | 404 | `NoCluster` | this node is in no cluster |
//! | 404 | `NoSuchPeer` | no member of the cluster has this id |
//! | 409 | `InCluster` | this node is in a cluster already |
//! | 409 | `HoldsClusterKey` | to leave would delete the cluster key |
//! | 410 | `TicketExpired` | the ticket's time is over |
//! | 410 | `TicketUsedUp` | the ticket admitted as many nodes as it may |
//! | 504 | `NobodyReached` | no member answered; the message lists the addresses tried |
//!
//! Which members have what is never said here: paths are listed per cache.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};

use attic_p2p::membership::ticket::Ticket;
use attic_store::CacheName;
use serde::{Deserialize, Serialize};

/// Ids in this API are text: a node is its libp2p peer id, a cluster 32 hexadecimal digits.
pub use attic_p2p::ids::{ClusterId, NodeId};

/// An object without fields: what there is to say is in the request line and the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Makes a cluster of this node alone. Its public caches become caches of the cluster; private ones
/// stay this node's own until they are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterInit {
    /// What people call it: 1 to 64 of `[0-9A-Za-z ._-]`; the host's name when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The cluster that [`ClusterInit`] made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMade {
    /// Names it for ever.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// What people call it.
    pub name: String,
}

/// Asks for a ticket. Makes a cluster first when the node is in none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// What the ticket's holder becomes.
    pub role: Role,
    /// Caches it may read, as name patterns with `*`; at most [`PATTERNS_MAX`].
    pub read: Vec<String>,
    /// Caches it may write, likewise.
    pub write: Vec<String>,
    /// For how long, from now; at least 1.
    pub expires_seconds: u64,
    /// How many nodes it admits, at least 1. `null`, which must be said, means any number: then
    /// every member can admit, not only a node that issues tickets.
    #[serde(deserialize_with = "Option::deserialize")]
    pub uses: Option<u32>,
}

/// A ticket.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteReply {
    /// Its text, one word. Who has it can join: `Debug` does not show it.
    pub ticket: String,
}

impl Debug for InviteReply {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_struct("InviteReply").finish_non_exhaustive()
    }
}

/// Joins the cluster of a ticket.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The ticket's text. `Debug` does not show it.
    pub ticket: String,
}

impl Debug for JoinRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_struct("JoinRequest").finish_non_exhaustive()
    }
}

/// Whether a text is a ticket at all, be it expired, used up or of a cluster that is gone.
///
/// **Errors**: what is wrong with it, as a phrase.
pub fn check_ticket(text: &str) -> Result<(), String> {
    let ticket = text.trim().parse::<Ticket>();
    ticket.map(drop).map_err(|error| error.to_string())
}

/// What joining brought. Peers come up afterwards; [`PeerView`]s show them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// The cluster.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// What people call it.
    pub name: String,
    /// The member that let this node in.
    #[serde(with = "text")]
    pub admitted_by: NodeId,
    /// Its caches that this node may read, ordered by name.
    pub caches: Vec<JoinedCache>,
    /// Caches of this node that had paths and the name of one of the cluster's. Not those that were
    /// this one of the cluster's before this node left it.
    pub renamed: Vec<RenamedCache>,
    /// Caches of this node that had no paths and gave way to one of the cluster's.
    pub dropped: Vec<CacheName>,
    /// Whether the node's id is another now: the one before was revoked, which is for ever.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_identity: bool,
    /// Whether not all came in time that a member has: there may be more caches, and other keys.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
}

/// A cache of the cluster, and what Nix needs to use it from here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedCache {
    /// Its name on this node.
    pub name: CacheName,
    /// The name it was made under, when another cache has that on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founded_as: Option<CacheName>,
    /// Key that its paths are signed with, `name:base64`.
    pub public_key: String,
    /// Keys used before that are still good, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub old_public_keys: Vec<String>,
    /// URL of it on this node.
    pub substituter: String,
}

/// A cache that goes by another name now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenamedCache {
    /// Its name before.
    pub from: CacheName,
    /// Its name from now on.
    pub to: CacheName,
}

/// How to leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveRequest {
    /// Whether to leave though the cluster key goes with it.
    #[serde(default)]
    pub delete_cluster_key: bool,
}

/// What leaving did. Paths stay; caches of the cluster stay as local ones, those that another node
/// made without the key to sign with. They are the cluster's again when this node comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveReply {
    /// NARs that only this node held and another member took over.
    pub handed_off: u64,
    /// NARs that no other member holds: they are here, and the cluster has lost them.
    #[serde(default)]
    pub only_here: u64,
}

/// The cluster, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Names it for ever.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// What people call it.
    pub name: String,
    /// This node.
    #[serde(with = "text")]
    pub node: NodeId,
    /// What it is in the cluster.
    pub role: Role,
    /// When its certificate ends; it is renewed long before, when an issuer can be reached.
    pub certificate_expires: u64,
    /// That this node is out of the cluster, as far as it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
    /// Whether it can make tickets and admit holders of counted ones.
    pub issuer: bool,
    /// Whether its role is [`Role::Keeper`].
    pub keeper: bool,
    /// Members known, this one included, and those not that left.
    pub members: u64,
    /// Members connected now, this one not included.
    pub connected: u64,
    /// Caches that this node may read, ordered by name.
    pub caches: Vec<ClusterCache>,
    /// Paths in these caches, wherever they lie.
    pub paths: u64,
    /// The logs that all of this is folded from.
    pub log: LogUsage,
    /// The bucket that its nodes share, if this one was told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<super::bucket::BucketView>,
}

/// A cache of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterCache {
    /// Its name on this node.
    pub name: CacheName,
    /// The name it was made under, when another cache has that on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founded_as: Option<CacheName>,
    /// Keys that its paths are signed with, the current one first.
    pub public_keys: Vec<String>,
    /// Whether reading it from this node needs no token.
    pub public: bool,
    /// Whether this node may write it.
    pub writable: bool,
    /// Members that may read it, this node included.
    #[serde(default)]
    pub readers: u64,
}

/// Size of the replicated logs on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogUsage {
    /// Segments, over all members.
    pub segments: u64,
    /// Their bytes on disk.
    pub bytes: u64,
}

/// The cluster in a few words, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// What people call it.
    pub name: String,
    /// Members known, this one included, and those not that left.
    pub members: u64,
    /// Members connected now, this one not included.
    pub connected: u64,
    /// Nodes kept out now because they misbehaved.
    pub banned: u64,
    /// Its caches that have another name on this node, because another cache has theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub renamed: Vec<RenamedCache>,
    /// When this node's certificate ends.
    pub certificate_expires: u64,
    /// That this node is out of the cluster, as far as it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
    /// Paths that were pushed here and that the cluster cannot be told of, for they have too many
    /// references, as far as that was tried: this node alone serves them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub untold_paths: u64,
}

/// How a node knows that it was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// When, by a revocation that the cluster's key signed and that is here: a proof. Without one,
    /// what others say may be a lie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_at: Option<u64>,
    /// Members that were dialled and did not let this node in for that reason, ordered by id.
    pub said_by: Vec<Teller>,
}

/// A member that said something of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Teller {
    /// Which node.
    #[serde(with = "text")]
    pub node: NodeId,
    /// What it calls itself, if it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What revoking a node did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeReply {
    /// Tickets by which it came and that were good for more nodes: they are good for none any more.
    pub tickets_withdrawn: u64,
    /// Caches that it made: nobody else can replace their keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<CacheName>,
}

/// Another member, or a node that was let in as one and has not said so to everybody yet, or one
/// that left. A node that was revoked is none any more and not listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// Which node.
    #[serde(with = "text")]
    pub node: NodeId,
    /// What it calls itself, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Version of its program, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Multiaddr of the connection, or the last one it was reached at; absent when it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Who made the connection; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// What it is in the cluster.
    pub role: Role,
    /// When its state began.
    pub since: u64,
    /// Round trip in milliseconds; absent until measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Bytes of NARs sent to it since this node's start.
    pub sent_bytes: u64,
    /// Bytes of NARs received from it since this node's start.
    pub received_bytes: u64,
    /// Segments of any member's log that it has, as far as known, and this node lacks; absent until
    /// they have compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<u64>,
    /// Segments that this node had and it lacked when they last compared; absent until they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<u64>,
    /// How often it misbehaved and was kept out, less one for each hour since.
    #[serde(default)]
    pub strikes: u32,
    /// Whether it wrote two logs with one key: nothing it says counts any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quarantined: bool,
    /// Whether it said more than `mesh.log-max` of this node: what is beyond is not heard.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log_too_long: bool,
    /// How it stands.
    #[serde(flatten)]
    pub state: PeerState,
    /// When its certificate ends.
    pub certificate_expires: u64,
}

/// How another member stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum PeerState {
    /// Connected.
    Connected,
    /// Not connected.
    Away {
        /// What the last attempt to reach it brought, when it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// No member any more: it said so. Listed until its certificate ends.
    Left {
        /// When, as it said.
        left_at: u64,
    },
    /// Not talked to for a while, because it misbehaved.
    Banned {
        /// Until when.
        banned_until: u64,
        /// What it did.
        reason: String,
    },
}

impl PeerState {
    /// The state in one word, as in JSON.
    pub fn word(&self) -> &'static str {
        match self {
            PeerState::Connected => "connected",
            PeerState::Away { .. } => "away",
            PeerState::Left { .. } => "left",
            PeerState::Banned { .. } => "banned",
        }
    }
}

/// Who made a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The other node.
    Inbound,
    /// This node.
    Outbound,
}

/// What a node is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads and writes what its scopes say.
    Member,
    /// Besides, keeps everything it may read for the others.
    Keeper,
}

impl Display for Role {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(match self {
            Role::Member => "member",
            Role::Keeper => "keeper",
        })
    }
}

/// Most patterns in one list of an [`InviteRequest`].
pub const PATTERNS_MAX: usize = 16;

/// Ids as text in JSON.
pub(crate) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;

    const NODE: &str = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";

    fn peer(state: Value) -> Value {
        let mut peer = json!({
            "node": NODE, "role": "member", "since": 5, "sent_bytes": 1, "received_bytes": 2,
            "strikes": 3, "certificate_expires": 9,
        });
        peer.as_object_mut()
            .unwrap()
            .append(&mut state.as_object().unwrap().clone());
        peer
    }

    #[test]
    fn a_peer_is_one_flat_object() {
        let away = PeerState::Away { reason: None };
        let banned = PeerState::Banned {
            banned_until: 7,
            reason: "wrong bytes".to_owned(),
        };
        let rows = [
            (
                json!({
                    "state": "connected", "name": "b", "address": "/ip4/10.0.0.2/tcp/7746",
                    "direction": "inbound", "rtt_ms": 0.25, "version": "1.0.0", "behind": 3,
                    "lacks": 0,
                }),
                PeerState::Connected,
            ),
            (json!({ "state": "away" }), away),
            (
                json!({ "state": "left", "left_at": 4 }),
                PeerState::Left { left_at: 4 },
            ),
            (
                json!({ "state": "banned", "banned_until": 7, "reason": "wrong bytes" }),
                banned,
            ),
        ];
        for (fields, state) in rows {
            assert_eq!(fields["state"], state.word());
            let text = peer(fields);
            let view: PeerView = from_value(text.clone()).unwrap();
            assert_eq!(view.state, state);
            assert_eq!(to_value(view).unwrap(), text);
        }
        let nameless = json!({ "state": "banned", "reason": "no time" });
        assert!(from_value::<PeerView>(peer(nameless)).is_err());
    }

    #[test]
    fn ids_are_text_and_must_be_ids() {
        let made = json!({ "cluster": "0f".repeat(16), "name": "office" });
        let parsed: ClusterMade = from_value(made.clone()).unwrap();
        assert_eq!(to_value(parsed).unwrap(), made);
        for bad in [json!("0f"), json!([1, 2]), json!(null)] {
            let made = json!({ "cluster": bad, "name": "office" });
            assert!(from_value::<ClusterMade>(made).is_err());
        }
    }

    /// A ticket for any number of nodes is never made by leaving something out.
    #[test]
    fn unlimited_uses_must_be_asked_for() {
        let mut request = json!({
            "role": "keeper", "read": ["*"], "write": [], "expires_seconds": 60, "uses": null,
        });
        assert_eq!(
            from_value::<InviteRequest>(request.clone()).unwrap().uses,
            None
        );
        request["uses"] = json!(3);
        assert_eq!(
            from_value::<InviteRequest>(request.clone()).unwrap().uses,
            Some(3)
        );
        request.as_object_mut().unwrap().remove("uses");
        assert!(from_value::<InviteRequest>(request.clone()).is_err());
    }

    #[test]
    fn tickets_stay_out_of_debug_output() {
        let ticket = "attic1secret".to_owned();
        let request = JoinRequest {
            ticket: ticket.clone(),
        };
        let reply = InviteReply { ticket };
        assert!(!format!("{request:?} {reply:?}").contains("secret"));
    }
}

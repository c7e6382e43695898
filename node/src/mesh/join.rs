//! From a ticket to a charter: finding somebody who lets this node in.
//!
//! The newcomer dials the addresses of its ticket over a network of its own that listens nowhere.
//! The whole admission happens in the handshake; when a dial succeeds the node is a member.

use std::sync::Arc;
use std::time::Duration;

use attic_p2p::Multiaddr;
use attic_p2p::identity::Identity;
use attic_p2p::ids::NodeId;
use attic_p2p::membership::address::Address;
use attic_p2p::membership::gate::{MemberGate, Standing};
use attic_p2p::membership::hello::Refusal;
use attic_p2p::membership::sealing::OpeningKey;
use attic_p2p::membership::ticket::{Ticket, TicketError};
use attic_p2p::network::{DialError, Network, NetworkOptions, StartError};
use thiserror::Error;
use tokio::time::timeout;

use crate::auth::random;
use crate::mesh::files::{Charter, ClusterFiles};
use crate::mesh::members::{Door, JOIN_PATIENCE, Members, now};

/// A node that was let in.
pub(crate) struct Admitted {
    pub(crate) charter: Charter,
    /// Who let it in.
    pub(crate) by: NodeId,
    /// Where members can be found.
    pub(crate) addresses: Vec<Multiaddr>,
}

/// Asks the nodes that `ticket` names, one after the other, to let this node in.
///
/// Dropping the future leaves nothing behind but, maybe, a counted use of the ticket, which a
/// second attempt does not count again.
///
/// **Errors**: [`JoinError`]; the node is in no cluster then.
pub(crate) async fn ask_in(
    identity: &Identity,
    files: &ClusterFiles,
    ticket: &Ticket,
) -> Result<Admitted, JoinError> {
    ticket.check(now())?;
    let sealing_key = OpeningKey::of(identity).sealing_key();
    let own = ticket.certify(identity.node_id(), sealing_key, now(), random());
    let standing = match own {
        Some(certificate) => Standing::Member(certificate),
        None => Standing::Joining(ticket.key().clone()),
    };
    let genesis = ticket.genesis().clone();
    let members = Members::of_joiner(identity, files.clone(), genesis, standing);
    let members = Arc::new(members);
    let gate = MemberGate::new(Door(Arc::clone(&members)));
    let through_relays = |address: &Address| address.multiaddr().contains("/p2p-circuit");
    let options = NetworkOptions {
        // Whoever wrote the ticket says that there is no other way.
        relay_client: ticket.addresses().iter().any(through_relays),
        seed: u64::from_le_bytes(random()),
        ..NetworkOptions::default()
    };
    // Its events wait in their queue: nobody is listened to here.
    let (network, _events) = Network::start(options, Arc::new(gate), identity.clone())?;
    let asked = timeout(
        JOIN_PATIENCE,
        ask_all(&network, &members, ticket.addresses()),
    )
    .await;
    network.shutdown().await;
    let by = asked.unwrap_or_else(|_| Err(JoinError::Nobody(texts(ticket.addresses()))))?;
    let certificate = members
        .certificate()
        .ok_or(JoinError::Refused(Refusal::Malformed))?;
    let dialable = ticket.addresses().iter().filter_map(dialable);
    Ok(Admitted {
        charter: Charter {
            genesis: ticket.genesis().clone(),
            certificate,
            cluster_key: None,
        },
        by,
        addresses: dialable.collect(),
    })
}

/// Dials until one lets us in. Those that an issuer's name is heard from are asked last.
async fn ask_all(
    network: &Network,
    members: &Members,
    addresses: &[Address],
) -> Result<NodeId, JoinError> {
    let mut queue: Vec<Address> = addresses.to_vec();
    let mut refusal = None;
    let mut tried = 0;
    while tried < queue.len() && tried < ADDRESSES_MAX {
        let address = queue[tried].clone();
        tried += 1;
        let Some(target) = dialable(&address) else {
            continue;
        };
        // One address that swallows everything must not take the time of the others.
        let dialed = timeout(DIAL_PATIENCE, network.dial(target)).await;
        match dialed.unwrap_or(Err(DialError::Unavailable)) {
            Ok(node) => return Ok(node),
            Err(DialError::Refused(reason)) => {
                let why = reason_of(members, address.node());
                if let Some(Refusal::NotAnIssuer { issuers }) = &why {
                    queue.extend(issuers.iter().cloned());
                }
                let why = why.map_or(JoinError::Unclear(reason.to_string()), JoinError::Refused);
                refusal = Some(why);
            }
            Err(error) => tracing::debug!(%error, address = %address, "not reached"),
        }
    }
    Err(refusal.unwrap_or_else(|| JoinError::Nobody(texts(&queue))))
}

fn reason_of(members: &Members, node: NodeId) -> Option<Refusal> {
    let refusals = members.refusals();
    let of_node = refusals.into_iter().find(|(who, _)| *who == node);
    of_node.map(|(_, refusal)| refusal)
}

/// The address with the name of the node that must answer there.
fn dialable(address: &Address) -> Option<Multiaddr> {
    let peer = address.node().peer_id()?;
    format!("{}/p2p/{peer}", address.multiaddr()).parse().ok()
}

fn texts(addresses: &[Address]) -> Vec<String> {
    addresses
        .iter()
        .map(|address| address.multiaddr().to_owned())
        .collect()
}

/// For one address, where [`JOIN_PATIENCE`] is for all.
const DIAL_PATIENCE: Duration = Duration::from_secs(6);

/// Most addresses that are tried for one ticket.
const ADDRESSES_MAX: usize = 12;

/// Why a node was not let in.
#[derive(Debug, Error)]
pub(crate) enum JoinError {
    /// The ticket is of no use any more.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// Somebody answered, and said no.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// Somebody answered, and said no in a way that was not understood.
    #[error("refused: {0}")]
    Unclear(String),
    /// Nobody of the cluster answers.
    #[error("nobody of the cluster answers at {}", .0.join(", "))]
    Nobody(Vec<String>),
    /// The network cannot be used.
    #[error(transparent)]
    Network(#[from] StartError),
}

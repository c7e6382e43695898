//! `peers`

use attic_node_core::api::{PeerState, PeerView};

use crate::args::JsonArgs;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::{bytes, date};

/// Lists the other nodes of the cluster.
pub(super) async fn run(context: &Context, args: JsonArgs) -> Result<(), CliError> {
    let client = context.client()?;
    let peers = client.peers().await?;
    if peers.is_empty() {
        // The list is empty on a node without a cluster as well; this tells them apart.
        client.cluster().await?;
    }
    if args.json {
        return context.ui.json(&peers);
    }
    let head = [
        "NAME", "STATE", "ROLE", "VERSION", "RTT", "SENT", "RECEIVED", "BEHIND", "LACKS",
        "STRIKES", "ADDRESS", "PEER", "NOTE",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(peers.iter().map(row));
    let right = [
        false, false, false, false, true, true, true, true, true, true, false, false, false,
    ];
    context.ui.table(right, &rows)
}

fn row(peer: &PeerView) -> [String; 13] {
    let unknown = || "-".to_owned();
    [
        peer.name.clone().unwrap_or_else(unknown),
        peer.state.word().to_owned(),
        peer.role.to_string(),
        peer.version.clone().unwrap_or_else(unknown),
        peer.rtt_ms
            .map_or_else(unknown, |millis| format!("{millis:.1} ms")),
        bytes(peer.sent_bytes),
        bytes(peer.received_bytes),
        peer.behind.map_or_else(unknown, |count| count.to_string()),
        peer.lacks.map_or_else(unknown, |count| count.to_string()),
        peer.strikes.to_string(),
        peer.address.clone().unwrap_or_else(unknown),
        peer.node.to_string(),
        note(peer),
    ]
}

fn note(peer: &PeerView) -> String {
    if peer.quarantined {
        return "in quarantine: wrote two logs with one key".to_owned();
    }
    match &peer.state {
        PeerState::Connected if peer.log_too_long => {
            "says more than is kept of one node (mesh.log-max)".to_owned()
        }
        PeerState::Connected => String::new(),
        PeerState::Away { reason } => reason.clone().unwrap_or_default(),
        PeerState::Left { left_at } => format!("at {}", date(*left_at)),
        PeerState::Banned {
            banned_until,
            reason,
        } => format!("until {}: {reason}", date(*banned_until)),
    }
}

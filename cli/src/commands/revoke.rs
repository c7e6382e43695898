//! `revoke`

use attic_node_core::api::{NodeId, PeerView};
use serde_json::json;

use crate::args::RevokeArgs;
use crate::client::Client;
use crate::context::Context;
use crate::exit::{CliError, ID_PREFIX_LEN_MIN};
use crate::ui::count;

/// Shuts a node out of the cluster, after asking.
pub(super) async fn run(context: &Context, args: &RevokeArgs) -> Result<(), CliError> {
    let client = context.client()?;
    let node = find(&client, &args.peer).await?;
    let question =
        format_args!("Shut {node} out of the cluster? Under this id it can never come back.");
    context.ui.confirm(args.confirm, question)?;
    let reply = client.revoke(&node).await?;
    if args.json.json {
        let withdrawn = reply.tickets_withdrawn;
        let said = json!({
            "node": node.to_string(), "tickets_withdrawn": withdrawn, "caches": reply.caches,
        });
        return context.ui.json(&said);
    }
    context.ui.say(format_args!(
        "✅ Revoked {node}; no node of the cluster talks to it any more"
    ));
    if reply.tickets_withdrawn > 0 {
        context.ui.say(format_args!(
            "{} by which it came, and which would let in more nodes, withdrawn",
            count(reply.tickets_withdrawn, "ticket")
        ));
    }
    for cache in &reply.caches {
        context.ui.warn(format_args!(
            "it made the cache \"{cache}\", and can sign for it still; nobody else can give that a new key"
        ));
    }
    if let Some(cache) = reply.caches.first() {
        context.ui.hint(format_args!(
            "replace such a cache by one of the same name, and push again: \
             attic-node cache destroy {cache}, then attic-node cache create {cache}"
        ));
    }
    context.ui.hint(
        "it may have the keys of other caches it could write; make new ones with: \
         attic-node key rotate CACHE",
    );
    Ok(())
}

/// The node meant by an id, which need not be known here, or by what `peers` shows.
async fn find(client: &Client, text: &str) -> Result<NodeId, CliError> {
    if let Ok(node) = text.parse() {
        return Ok(node);
    }
    let peers = client.peers().await?;
    if peers.is_empty() {
        // The list is empty on a node without a cluster as well; this tells them apart.
        client.cluster().await?;
    }
    let begins = |peer: &PeerView| peer.node.to_string().starts_with(text);
    let is_meant = |peer: &&PeerView| {
        let by_id = text.len() >= ID_PREFIX_LEN_MIN && begins(peer);
        by_id || peer.name.as_deref() == Some(text)
    };
    let meant: Vec<_> = peers.iter().filter(is_meant).map(|p| p.node).collect();
    match meant[..] {
        [node] => Ok(node),
        [] if peers.iter().any(begins) => Err(CliError::ShortId {
            text: text.to_owned(),
        }),
        _ => Err(CliError::WhichPeer {
            text: text.to_owned(),
            meant: meant.iter().map(ToString::to_string).collect(),
        }),
    }
}

//! `join`

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use attic_node_core::api::{JoinReply, JoinRequest, PeerState, PeerView, check_ticket};
use tokio::time::sleep;

use crate::args::{JoinArgs, JsonArgs};
use crate::client::{Client, ClientError};
use crate::commands::up::Up;
use crate::context::Context;
use crate::exit::CliError;
use crate::nix_conf::Substituter;
use crate::ui::Ui;

/// Makes the running node join, or starts one that does and stays.
pub(super) async fn run(context: &Context, args: &JoinArgs) -> Result<(), CliError> {
    let request = JoinRequest {
        ticket: read_ticket(&args.ticket)?,
    };
    let client = context.client()?;
    match client.join(&request).await {
        Err(ClientError::NotRunning(_)) if !context.names_endpoint() => {
            start_and_join(context, &request, args.json).await
        }
        joined => show(&context.ui, &client, &joined?, args.json).await,
    }
}

/// The ticket given, or what standard input holds for `-`. What is wrong with it the node says.
fn read_ticket(given: &str) -> Result<String, CliError> {
    let text = match given {
        "-" => io::read_to_string(io::stdin()).map_err(|source| CliError::File {
            action: "read ticket",
            path: given.into(),
            source,
        })?,
        given => given.to_owned(),
    };
    Ok(text.trim().to_owned())
}

async fn start_and_join(
    context: &Context,
    request: &JoinRequest,
    json: JsonArgs,
) -> Result<(), CliError> {
    let ui = &context.ui;
    // Not for the sake of a slip of the hand.
    check_ticket(&request.ticket).map_err(CliError::Ticket)?;
    let mut up = Up::start(context).await?;
    let client = context.client()?;
    let joined = tokio::select! {
        joined = client.join(request) => joined.map_err(CliError::from),
        () = up.signalled() => Err(CliError::Interrupted),
    };
    let shown = match joined {
        Ok(reply) => tokio::select! {
            shown = show(ui, &client, &reply, json) => shown,
            // It is a member, and a node like any other that is told to stop.
            () = up.signalled() => return up.stop_as_told(ui).await,
        },
        Err(error) => Err(error),
    };
    match shown {
        Ok(()) => up.until_signalled(ui).await,
        Err(error) => {
            if let Err(unclean) = up.stop().await {
                ui.warn(unclean);
            }
            Err(error)
        }
    }
}

/// Says what joining brought, and watches the other nodes come up for a moment; a program is only
/// told what joining brought.
async fn show(ui: &Ui, client: &Client, reply: &JoinReply, args: JsonArgs) -> Result<(), CliError> {
    if args.json {
        return ui.json(reply);
    }
    ui.say(format_args!(
        "✅ Joined cluster \"{}\", admitted by {}",
        reply.name, reply.admitted_by
    ));
    if reply.new_identity {
        ui.say("This node was revoked, which is for ever: it has another id now");
    }
    for cache in &reply.dropped {
        ui.say(format_args!(
            "Cache \"{cache}\" had no paths; the cluster's has its place and another key"
        ));
    }
    for cache in &reply.renamed {
        ui.warn(format_args!(
            "your cache \"{}\" is \"{}\" now; the cluster has one of its name",
            cache.from, cache.to
        ));
    }
    for cache in &reply.caches {
        if let Some(founded) = &cache.founded_as {
            ui.warn(format_args!(
                "the cluster's cache \"{founded}\" is \"{}\" here; this node has one of its name",
                cache.name
            ));
        }
    }
    watch_peers(ui, client).await?;
    if reply.incomplete {
        ui.warn(
            "not all that the cluster knows is here yet; `attic-node cache list` shows its caches later, \
             and `attic-node use CACHE --print` the keys of one",
        );
    }
    if reply.caches.is_empty() {
        ui.say("The cluster has no cache that this node may read");
        return Ok(());
    }
    let names: Vec<_> = reply.caches.iter().map(|c| c.name.as_str()).collect();
    ui.say(format_args!(
        "Nix uses {} with these lines in its nix.conf; `attic-node use {}` adds them to yours:",
        names.join(", "),
        names[0]
    ));
    ui.text(&substituter(reply).nix_conf_lines())
}

/// All caches of the cluster as one substituter setting, with every key that is good for them.
fn substituter(reply: &JoinReply) -> Substituter {
    let urls: Vec<_> = reply.caches.iter().map(|c| &*c.substituter).collect();
    let keys = reply.caches.iter().flat_map(|cache| {
        let current = std::iter::once(&cache.public_key);
        current.chain(&cache.old_public_keys)
    });
    Substituter {
        url: urls.join(" "),
        public_keys: keys.cloned().collect(),
    }
}

/// Says which nodes are connected, as they come, until all are or they are waited for no longer.
async fn watch_peers(ui: &Ui, client: &Client) -> Result<(), CliError> {
    let started = Instant::now();
    let mut newest = started;
    let mut connected = BTreeSet::new();
    loop {
        let mut peers = client.peers().await?;
        peers.retain(|peer| !matches!(peer.state, PeerState::Left { .. }));
        for peer in peers.iter().filter(|peer| is_connected(peer)) {
            if connected.insert(peer.node) {
                newest = Instant::now();
                let address = peer.address.as_deref().unwrap_or("unknown address");
                ui.say(format_args!("🔗 {} at {address}", called(peer)));
            }
        }
        let all = !peers.is_empty() && peers.iter().all(is_connected);
        let settled = all && newest.elapsed() >= QUIET;
        if settled || started.elapsed() >= WATCH_MAX {
            let away = peers.iter().filter(|peer| !is_connected(peer)).count();
            if away > 0 || peers.is_empty() {
                ui.say(format_args!(
                    "{} connected, {away} away; `attic-node peers` shows them",
                    connected.len()
                ));
            }
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn is_connected(peer: &PeerView) -> bool {
    peer.state == PeerState::Connected
}

fn called(peer: &PeerView) -> String {
    match &peer.name {
        Some(name) => format!("{name} ({})", peer.node),
        None => peer.node.to_string(),
    }
}

/// Longest to wait for peers that stay away.
const WATCH_MAX: Duration = Duration::from_secs(5);
/// All are there when nobody came for this long: members are learnt of one from the other.
const QUIET: Duration = Duration::from_millis(500);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

//! `cluster init | info`

use attic_node_core::api::{ClusterCache, ClusterInit, ClusterView};

use crate::args::{ClusterVerb, JsonArgs};
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::{Ui, bytes, count, standing};

/// Runs a verb on the cluster.
pub(super) async fn run(context: &Context, verb: ClusterVerb) -> Result<(), CliError> {
    match verb {
        ClusterVerb::Init { name, json } => init(context, name, json).await,
        ClusterVerb::Info(json) => info(context, json).await,
    }
}

async fn init(context: &Context, name: Option<String>, args: JsonArgs) -> Result<(), CliError> {
    let made = context
        .client()?
        .init_cluster(&ClusterInit { name })
        .await?;
    if args.json {
        return context.ui.json(&made);
    }
    context
        .ui
        .say(format_args!("✅ Made cluster \"{}\"", made.name));
    context
        .ui
        .say("Let others in with the ticket that `attic-node invite` prints");
    context.ui.data(made.cluster)
}

async fn info(context: &Context, args: JsonArgs) -> Result<(), CliError> {
    let cluster = context.client()?.cluster().await?;
    if args.json {
        return context.ui.json(&cluster);
    }
    print(&context.ui, &cluster)
}

fn print(ui: &Ui, cluster: &ClusterView) -> Result<(), CliError> {
    let issuer = if cluster.issuer {
        ", makes tickets"
    } else {
        ""
    };
    let mut lines = vec![
        ("Name", cluster.name.clone()),
        ("Cluster", cluster.cluster.to_string()),
        ("Node", cluster.node.to_string()),
        ("Role", format!("{}{issuer}", cluster.role)),
        (
            "Certificate",
            standing(cluster.certificate_expires, cluster.revoked.as_ref()),
        ),
        (
            "Members",
            format!("{} ({} connected)", cluster.members, cluster.connected),
        ),
    ];
    lines.extend(
        cluster
            .caches
            .iter()
            .map(|cache| ("Cache", describe(cache))),
    );
    let (segments, log) = (
        count(cluster.log.segments, "segment"),
        bytes(cluster.log.bytes),
    );
    lines.push(("Paths", cluster.paths.to_string()));
    lines.push(("Log", format!("{segments}, {log}")));
    lines
        .into_iter()
        .try_for_each(|(name, value)| ui.data(format_args!("{name}: {value}")))
}

fn describe(cache: &ClusterCache) -> String {
    let visibility = if cache.public { "public" } else { "private" };
    let access = if cache.writable {
        "read and write"
    } else {
        "read"
    };
    let readers = match cache.public {
        true => String::new(),
        false => format!(", {}", count(cache.readers, "reader")),
    };
    format!("{} ({visibility}, {access}{readers})", cache.name)
}

//! `cluster init | info`

use std::io;

use attic_node_core::api::bucket::{BucketView, RebuildRequest};
use attic_node_core::api::{ClusterCache, ClusterInit, ClusterView, RenamedCache};
use attic_node_core::data_dir::read_secret;

use crate::args::{ClusterVerb, JsonArgs, RebuildArgs};
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::{Ui, bytes, count, standing};

/// Runs a verb on the cluster.
pub(super) async fn run(context: &Context, verb: ClusterVerb) -> Result<(), CliError> {
    match verb {
        ClusterVerb::Init { name, json } => init(context, name, json).await,
        ClusterVerb::Info(json) => info(context, json).await,
        ClusterVerb::Rebuild(args) => rebuild(context, args).await,
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

async fn rebuild(context: &Context, args: RebuildArgs) -> Result<(), CliError> {
    let path = &args.cluster_key;
    let read = match path.as_os_str() == "-" {
        true => io::read_to_string(io::stdin()).map_err(|source| CliError::File {
            action: "read",
            path: path.clone(),
            source,
        })?,
        false => read_secret(path)?,
    };
    let request = RebuildRequest {
        cluster_key: read.trim().to_owned(),
        cluster: args.cluster,
    };
    let rebuilt = context.client()?.rebuild_cluster(&request).await?;
    if args.json.json {
        return context.ui.json(&rebuilt);
    }
    let ui = &context.ui;
    ui.say(format_args!(
        "✅ Rebuilt cluster \"{}\" on this node",
        rebuilt.name
    ));
    for cache in &rebuilt.caches {
        let lost = match cache.lost {
            0 => String::new(),
            lost => {
                format!(", {lost} more have no NAR in the bucket: never durable, or lost there")
            }
        };
        let paths = count(cache.paths, "path");
        ui.say(format_args!("{}: {paths}{lost}", cache.name));
        ui.say(format_args!("extra-substituters = {}", cache.substituter));
        ui.say(format_args!(
            "extra-trusted-public-keys = {}",
            cache.public_key
        ));
    }
    if rebuilt.refused > 0 {
        let refused = count(rebuilt.refused, "object");
        ui.say(format_args!(
            "warning: {refused} in the bucket could not be read"
        ));
    }
    for RenamedCache { from, to } in &rebuilt.renamed {
        ui.say(format_args!(
            "this node's own cache {from} is called {to} now"
        ));
    }
    for name in &rebuilt.dropped {
        ui.say(format_args!(
            "this node's own cache {name}, which had no paths, is gone"
        ));
    }
    ui.say("Let others in with the ticket that `attic-node invite` prints");
    ui.data(rebuilt.cluster)?;
    match rebuilt.refused + rebuilt.left_out {
        0 => Ok(()),
        _ => Err(CliError::Incomplete(format!(
            "the journals in the bucket are not whole: {} damaged, {} after a gap; what they said is lost",
            rebuilt.refused, rebuilt.left_out
        ))),
    }
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
    if let Some(bucket) = &cluster.bucket {
        lines.push(("Bucket", bucket_line(bucket)));
    }
    lines
        .into_iter()
        .try_for_each(|(name, value)| ui.data(format_args!("{name}: {value}")))
}

/// How a bucket does, in a line.
pub(super) fn bucket_line(bucket: &BucketView) -> String {
    let role = match bucket.writes {
        true => format!("writes, {} waiting", count(bucket.waiting, "path")),
        false => "reads".to_owned(),
    };
    let state = match (bucket.reachable, &bucket.trouble, &bucket.last_error) {
        (true, None, Some(why)) if bucket.failing_since.is_some() => format!("failing: {why}"),
        (true, None, _) => "reachable".to_owned(),
        (_, Some(why), _) => format!("in trouble: {why}"),
        (false, None, Some(why)) => format!("not reachable: {why}"),
        (false, None, None) => "not reachable".to_owned(),
    };
    let damaged = match bucket.damaged {
        0 => String::new(),
        damaged => format!(", {} found", count(damaged, "damaged object")),
    };
    format!("{} ({role}, {state}{damaged})", bucket.name)
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
    let founded = match &cache.founded_as {
        Some(founded) => format!(", the cluster's \"{founded}\""),
        None => String::new(),
    };
    format!("{} ({visibility}, {access}{readers}{founded})", cache.name)
}

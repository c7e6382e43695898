//! `status`

use attic_node_core::api::{ClusterStatus, Status, UpstreamStatus};

use crate::args::JsonArgs;
use crate::commands::cluster::bucket_line;
use crate::commands::du;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::{Ui, bytes, count, standing, unix_now};

/// Shows how the node is doing.
pub(super) async fn run(context: &Context, args: JsonArgs) -> Result<(), CliError> {
    let status = context.client()?.status().await?;
    if args.json {
        return context.ui.json(&status);
    }
    print(&context.ui, &status)
}

fn print(ui: &Ui, status: &Status) -> Result<(), CliError> {
    let hits = status.narinfo_hits as f64;
    let ratio = 100.0 * hits / (hits + status.narinfo_misses as f64).max(1.0);
    let now = unix_now();
    let lines = [
        ("Version", status.version.clone()),
        ("Peer", status.peer_id.clone()),
        ("Data", status.data_dir.clone()),
        ("Serving on", status.addresses.join(", ")),
        ("Ready", if status.ready { "yes" } else { "no" }.to_owned()),
        ("Running for", span(now.saturating_sub(status.started_at))),
        (
            "Memory",
            status.rss_bytes.map_or_else(|| "unknown".to_owned(), bytes),
        ),
        ("Connections", status.connections.to_string()),
        ("Push sessions", status.push_sessions.to_string()),
        (
            "Narinfo",
            format!(
                "{} found, {} not ({ratio:.1}% hits)",
                status.narinfo_hits, status.narinfo_misses
            ),
        ),
        ("Sent", bytes(status.nar_bytes_sent)),
    ];
    lines
        .iter()
        .try_for_each(|(name, value)| ui.data(format_args!("{name}: {value}")))?;
    if let Some(cluster) = &status.cluster {
        print_cluster(ui, cluster)?;
    }
    if let Some(bucket) = &status.bucket {
        ui.data(format_args!("Bucket: {}", bucket_line(bucket)))?;
    }
    for upstream in &status.upstreams {
        ui.data(format_args!("Upstream: {}", upstream_line(upstream, now)))?;
    }
    du::print_store(ui, &status.store)
}

fn print_cluster(ui: &Ui, cluster: &ClusterStatus) -> Result<(), CliError> {
    let banned = match cluster.banned {
        0 => String::new(),
        banned => format!(", {banned} kept out"),
    };
    let (name, members, connected) = (&cluster.name, cluster.members, cluster.connected);
    ui.data(format_args!(
        "Cluster: {name}, {members} members ({connected} connected{banned})"
    ))?;
    let standing = standing(cluster.certificate_expires, cluster.revoked.as_ref());
    ui.data(format_args!("Certificate: {standing}"))?;
    cluster.renamed.iter().try_for_each(|cache| {
        let (from, to) = (&cache.from, &cache.to);
        ui.data(format_args!("Renamed: {to} is the cluster's \"{from}\""))
    })?;
    match cluster.untold_paths {
        0 => Ok(()),
        paths => ui.data(format_args!(
            "Only here: {} with too many references to tell the cluster of",
            count(paths, "path")
        )),
    }
}

/// How an upstream is doing, in one line.
fn upstream_line(upstream: &UpstreamStatus, now: u64) -> String {
    let UpstreamStatus { url, priority, .. } = upstream;
    let state = match (upstream.healthy, upstream.latency_ms) {
        (false, _) => "left alone".to_owned(),
        (true, Some(latency)) => format!("answers in {latency} ms"),
        (true, None) => "no answer yet".to_owned(),
    };
    let (hits, received) = (upstream.narinfo_hits, bytes(upstream.received_bytes));
    let failing = upstream.failing_since.map(|since| {
        let error = upstream.last_error.as_deref().unwrap_or("unknown");
        format!("; failing for {}: {error}", span(now.saturating_sub(since)))
    });
    let failing = failing.unwrap_or_default();
    let unknown = upstream.unknown_caches.iter();
    let unknown: String = unknown
        .map(|name| format!("; there is no cache {name}"))
        .collect();
    format!(
        "{url} (priority {priority}): {state}, {hits} found, {received} received{failing}{unknown}"
    )
}

/// A time span for people: its two largest units.
fn span(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {seconds} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_one_line_that_says_what_is_wrong() {
        let mut upstream = UpstreamStatus {
            url: "https://cache.example/".to_owned(),
            priority: 40,
            healthy: true,
            failing_since: None,
            last_error: None,
            latency_ms: None,
            narinfo_hits: 0,
            received_bytes: 0,
            errors: 0,
            unknown_caches: Vec::new(),
        };
        let start = "https://cache.example/ (priority 40): ";
        let line = upstream_line(&upstream, 1000);
        assert_eq!(line, format!("{start}no answer yet, 0 found, 0 B received"));
        upstream.last_error = Some("answered 500".to_owned());
        upstream.latency_ms = Some(12);
        let line = upstream_line(&upstream, 1000);
        assert_eq!(
            line,
            format!("{start}answers in 12 ms, 0 found, 0 B received")
        );
        upstream.healthy = false;
        upstream.failing_since = Some(910);
        let line = upstream_line(&upstream, 1000);
        let wanted = "left alone, 0 found, 0 B received; failing for 1 min 30 s: answered 500";
        assert_eq!(line, format!("{start}{wanted}"));
        upstream.unknown_caches = vec!["mian".parse().unwrap()];
        let line = upstream_line(&upstream, 1000);
        let unknown = "; there is no cache mian";
        assert_eq!(line, format!("{start}{wanted}{unknown}"));
    }
}

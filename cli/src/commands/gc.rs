//! `gc`

use attic_node_core::api::GcRequest;

use crate::args::GcArgs;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::{bytes, count};

/// Collects garbage, or says what there is.
pub(super) async fn run(context: &Context, args: &GcArgs) -> Result<(), CliError> {
    let request = GcRequest {
        dry_run: args.dry_run,
        full: args.full,
    };
    let waiting = context.ui.wait(if args.dry_run {
        "Reading what is still needed"
    } else {
        "Reading what is still needed, then deleting and rewriting packs"
    });
    let reply = context.client()?.gc(&request).await;
    drop(waiting);
    let reply = reply?;
    if args.json {
        return context.ui.json(&reply);
    }
    let verb = if reply.dry_run { "Would free" } else { "Freed" };
    context
        .ui
        .data(format_args!("{verb}: {}", bytes(reply.freed_bytes)))?;
    context.ui.data(format_args!(
        "Evicted: {}; dropped: {}",
        count(reply.evicted_paths, "path"),
        count(reply.dropped_nars, "NAR"),
    ))?;
    context.ui.data(format_args!(
        "Packs: {} deleted, {} rewritten, {} in use and left alone",
        reply.deleted_packs, reply.rewritten_packs, reply.leased_packs,
    ))?;
    context
        .ui
        .data(format_args!("On disk: {}", bytes(reply.bytes_after)))
}

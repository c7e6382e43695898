//! `s3 check`, `s3 gc`

use attic_node_core::api::bucket::{BucketCheck, CollectReply, CollectRequest, Packs};

use crate::args::{JsonArgs, S3GcArgs, S3Verb};
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::{Ui, bytes, count};

/// Runs a verb on the bucket.
pub(super) async fn run(context: &Context, verb: S3Verb) -> Result<(), CliError> {
    match verb {
        S3Verb::Check(json) => check(context, json).await,
        S3Verb::Gc(args) => gc(context, args).await,
    }
}

async fn check(context: &Context, args: JsonArgs) -> Result<(), CliError> {
    let report = context.client()?.check_bucket().await?;
    if args.json {
        context.ui.json(&report)?;
    } else {
        print(&context.ui, &report)?;
    }
    match report.holds {
        true => Ok(()),
        false => Err(CliError::Incomplete(format!(
            "{} does not keep all that a bucket of attic-node must keep",
            report.name
        ))),
    }
}

fn print(ui: &Ui, report: &BucketCheck) -> Result<(), CliError> {
    for step in &report.steps {
        let mark = if step.holds { "✅" } else { "❌" };
        ui.data(format_args!(
            "{mark} {} ({} tries): {}",
            step.guarantee, step.tries, step.found
        ))?;
    }
    if let Some(left) = &report.left_behind {
        ui.data(format_args!("Left behind: {left}"))?;
    }
    Ok(())
}

async fn gc(context: &Context, args: S3GcArgs) -> Result<(), CliError> {
    let request = CollectRequest {
        dry_run: args.dry_run,
        force: args.force,
    };
    let waiting = context
        .ui
        .wait("Looking what of the bucket is still needed");
    let reply = context.client()?.collect_bucket(&request).await;
    drop(waiting);
    let reply = reply?;
    if args.json {
        context.ui.json(&reply)?;
    } else {
        print_collected(&context.ui, &reply)?;
    }
    match reply.stops.is_empty() {
        true => Ok(()),
        false => Err(CliError::Incomplete(reply.stops.join("; "))),
    }
}

fn print_collected(ui: &Ui, reply: &CollectReply) -> Result<(), CliError> {
    let packs = |packs: Packs| format!("{}, {}", count(packs.count, "pack"), bytes(packs.bytes));
    ui.data(format_args!("In the bucket: {}", packs(reply.packs)))?;
    ui.data(format_args!("Needed by nothing: {}", packs(reply.going)))?;
    if reply.in_grace.count > 0 {
        let waiting = packs(reply.in_grace);
        ui.data(format_args!(
            "… but not for long enough (s3.grace): {waiting}"
        ))?;
    }
    for (number, what) in [
        (
            reply.unknown,
            "of which it is not known here whether something needs them",
        ),
        (reply.elsewhere, "that another keeper is about to delete"),
        (reply.young, "that nothing names yet"),
        (reply.saved, "that were about to go and are needed again"),
        (
            reply.sparse,
            "that are small or needed in part only; they stay",
        ),
    ] {
        if number > 0 {
            ui.data(format_args!("{} {what}", count(number, "pack")))?;
        }
    }
    if !reply.dry_run {
        ui.data(format_args!("Deleted: {}", packs(reply.deleted)))?;
    }
    Ok(())
}

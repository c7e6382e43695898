//! `s3 check`

use attic_node_core::api::bucket::BucketCheck;

use crate::args::{JsonArgs, S3Verb};
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::Ui;

/// Runs a verb on the bucket.
pub(super) async fn run(context: &Context, verb: S3Verb) -> Result<(), CliError> {
    match verb {
        S3Verb::Check(json) => check(context, json).await,
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

//! `rm`

use std::collections::BTreeSet;

use attic_node_core::api::{REMOVE_MAX, RemoveReply, RemoveRequest};
use attic_store::store_path::StorePathHash;

use crate::args::RmArgs;
use crate::client::Client;
use crate::commands::ls::all_found;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::count;

/// Removes paths from a cache.
pub(super) async fn run(context: &Context, args: &RmArgs) -> Result<(), CliError> {
    let client = context.client()?;
    let named: BTreeSet<_> = args.paths.iter().map(|path| path.hash).collect();
    let reply = remove(&client, args, &named).await?;
    if args.json {
        context.ui.json(&reply)?;
    } else {
        reply
            .removed
            .iter()
            .try_for_each(|path| context.ui.data(path))?;
    }
    let done = if args.dry_run {
        "would be removed"
    } else {
        "removed"
    };
    context.ui.say(format_args!(
        "{} {done}",
        count(reply.removed.len() as u64, "path")
    ));
    let mut kept = 0;
    for pinned in &reply.pinned {
        context.ui.warn(format_args!(
            "kept {}: pin {} needs it",
            pinned.path, pinned.pin
        ));
        kept += u64::from(named.contains(pinned.path.hash()));
    }
    all_found(&args.cache, &args.paths, |hash| {
        !reply.absent.contains(hash)
    })?;
    if kept > 0 {
        let kept = count(kept, "path");
        return Err(CliError::Incomplete(format!(
            "{kept} kept by a pin; see `pin rm` and --force"
        )));
    }
    Ok(())
}

async fn remove(
    client: &Client,
    args: &RmArgs,
    named: &BTreeSet<StorePathHash>,
) -> Result<RemoveReply, CliError> {
    let mut whole = RemoveReply::default();
    let named: Vec<_> = named.iter().copied().collect();
    for paths in named.chunks(REMOVE_MAX) {
        let paths = paths.to_vec();
        let request = RemoveRequest {
            paths,
            closure: args.closure,
            dry_run: args.dry_run,
            force: args.force,
        };
        let reply = client.remove(&args.cache, &request).await?;
        whole.removed.extend(reply.removed);
        whole.absent.extend(reply.absent);
        whole.pinned.extend(reply.pinned);
    }
    Ok(whole)
}

//! `leave`

use attic_node_core::api::LeaveRequest;

use crate::args::LeaveArgs;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::count;

/// Takes the node out of its cluster, after asking.
pub(super) async fn run(context: &Context, args: &LeaveArgs) -> Result<(), CliError> {
    let client = context.client()?;
    let name = client.cluster().await?.name;
    let loss = match args.delete_cluster_key {
        true => "The cluster key is deleted: nobody is let in, revoked or renewed any more.",
        false => "Coming back takes a new ticket.",
    };
    let question = format_args!("Leave cluster \"{name}\"? {loss}");
    context.ui.confirm(args.confirm, question)?;
    let request = LeaveRequest {
        delete_cluster_key: args.delete_cluster_key,
    };
    let reply = client.leave(request).await?;
    if args.json.json {
        return context.ui.json(&reply);
    }
    context.ui.say(format_args!(
        "✅ Left cluster \"{name}\" ({} handed over to other nodes)",
        count(reply.handed_off, "NAR")
    ));
    if reply.only_here > 0 {
        context.ui.warn(format_args!(
            "{} on no other node: the cluster has lost what this node keeps",
            count(reply.only_here, "NAR")
        ));
    }
    Ok(())
}

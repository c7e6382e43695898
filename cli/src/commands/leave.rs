//! `leave`

use crate::args::LeaveArgs;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::count;

/// Takes the node out of its cluster, after asking.
pub(super) async fn run(context: &Context, args: &LeaveArgs) -> Result<(), CliError> {
    let client = context.client()?;
    let name = client.cluster().await?.name;
    let question = format_args!("Leave cluster \"{name}\"? Coming back takes a new ticket.");
    context.ui.confirm(args.confirm, question)?;
    let reply = client.leave().await?;
    if args.json.json {
        return context.ui.json(&reply);
    }
    context.ui.say(format_args!(
        "✅ Left cluster \"{name}\" ({} handed over to other nodes)",
        count(reply.handed_off, "NAR")
    ));
    Ok(())
}

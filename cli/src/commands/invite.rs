//! `invite`

use std::time::{SystemTime, UNIX_EPOCH};

use attic_node_core::api::InviteRequest;

use crate::args::InviteArgs;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::{Ui, count, date};

/// Prints a ticket, alone on stdout.
pub(super) async fn run(context: &Context, args: InviteArgs) -> Result<(), CliError> {
    let uses = (!args.open).then_some(args.uses.unwrap_or(1));
    let request = InviteRequest {
        role: args.role.into(),
        read: args.read,
        write: args.write,
        expires_seconds: args.expires.seconds(),
        uses,
    };
    let reply = context.client()?.invite(&request).await?;
    explain(&context.ui, &request);
    if args.json {
        return context.ui.json(&reply);
    }
    context.ui.data(&reply.ticket)
}

fn explain(ui: &Ui, request: &InviteRequest) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let whom = match request.uses {
        Some(uses) => count(uses.into(), &request.role.to_string()),
        None => format!("any number of {}s", request.role),
    };
    let until = date(now.saturating_add(request.expires_seconds));
    ui.say(format_args!(
        "✅ Made a ticket for {whom}, good until {until}"
    ));
    ui.say(format_args!(
        "Reads: {}; writes: {}",
        patterns(&request.read),
        patterns(&request.write)
    ));
    ui.say("Whoever has it can use it: hand it over like a password. On the other machine:");
    ui.say("attic-node join TICKET");
}

fn patterns(patterns: &[String]) -> String {
    match patterns {
        [] => "nothing".to_owned(),
        patterns => patterns.join(" "),
    }
}

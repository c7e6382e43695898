//! `verify`

use attic_node_core::api::{VerifyReply, VerifyRequest};
use attic_node_core::config::Config;
use attic_node_core::offline::Offline;
use indicatif::ProgressBar;
use tokio::task::spawn_blocking;

use crate::args::VerifyArgs;
use crate::client::ClientError;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::{Ui, bytes, count};

/// Verifies through the node, or on its data directory when none runs.
pub(super) async fn run(context: &Context, args: &VerifyArgs) -> Result<(), CliError> {
    let ui = &context.ui;
    let reply = match ask_node(context, args).await? {
        Some(reply) => reply,
        None => {
            let (config, ui) = (context.config()?, ui.clone());
            let (repair, rebuild_index) = (args.repair, args.rebuild_index);
            let verified =
                spawn_blocking(move || verify_offline(&config, &ui, repair, rebuild_index));
            verified.await.map_err(|_| CliError::Interrupted)??
        }
    };
    if args.json {
        ui.json(&reply)?;
    } else {
        print(ui, &reply)?;
    }
    match (reply.damaged_nars, reply.damaged_records) {
        (0, 0) => Ok(()),
        (nars, records) => Err(CliError::Damaged { nars, records }),
    }
}

/// `None` when no node runs here, or none may: then the data directory can be had.
async fn ask_node(context: &Context, args: &VerifyArgs) -> Result<Option<VerifyReply>, CliError> {
    if args.rebuild_index {
        return Ok(None);
    }
    let request = VerifyRequest {
        repair: args.repair,
    };
    let waiting = context.ui.wait("The node reads everything it stores");
    let asked = context.client()?.verify(&request).await;
    drop(waiting);
    match asked {
        Err(ClientError::NotRunning(_)) => Ok(None),
        asked => Ok(Some(asked?)),
    }
}

fn verify_offline(
    config: &Config,
    ui: &Ui,
    repair: bool,
    rebuild_index: bool,
) -> Result<VerifyReply, CliError> {
    let offline = if rebuild_index {
        Offline::rebuild_index(config)?
    } else {
        Offline::open(config)?
    };
    let bar = ui.bars().add(ProgressBar::new(0));
    let reply = offline.verify(repair, &mut |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    });
    bar.finish_and_clear();
    let reply = reply?;
    offline.close()?;
    Ok(reply)
}

fn print(ui: &Ui, reply: &VerifyReply) -> Result<(), CliError> {
    let (packs, records) = (count(reply.packs, "pack"), count(reply.records, "record"));
    ui.data(format_args!(
        "Read: {packs}, {records}, {}",
        bytes(reply.bytes)
    ))?;
    ui.data(format_args!("Checked: {}", count(reply.nars, "NAR")))?;
    ui.data(format_args!(
        "Damaged: {}, {}",
        count(reply.damaged_nars, "NAR"),
        count(reply.damaged_records, "record")
    ))?;
    if reply.spare_records > 0 {
        ui.data(format_args!(
            "Spare: {} that nothing needs, damaged; `verify --repair` drops them",
            count(reply.spare_records, "record")
        ))?;
    }
    if reply.healed_nars > 0 {
        ui.data(format_args!("Healed: {}", count(reply.healed_nars, "NAR")))?;
    }
    for damaged in &reply.damaged {
        ui.data(format_args!(
            "  {} {}",
            damaged.nar_hash,
            damaged.paths.join(" ")
        ))?;
    }
    Ok(())
}

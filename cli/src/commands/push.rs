//! `push`

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufRead};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use attic_store::cache_name::CacheName;
use attic_store::store_path::StorePath;
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::args::PushArgs;
use crate::client::Endpoint;
use crate::commands::signals::Signals;
use crate::context::Context;
use crate::exit::CliError;
use crate::nix::{Closure, Extent, LocalPath, LocalStore, NixError};
use crate::push::plan::{Planned, Tally, Verdict};
use crate::push::{Event, Held, Observer, Options, Plan, Upstream};
use crate::ui::progress::{Bars, JsonLines};
use crate::ui::{Ui, bytes, count};

/// Pushes, unless a signal comes first.
pub(super) async fn run(context: &Context, args: PushArgs) -> Result<(), CliError> {
    let mut signals = Signals::new();
    tokio::select! {
        pushed = push(context, args) => pushed,
        () = signals.next() => Err(CliError::Interrupted),
    }
}

async fn push(context: &Context, args: PushArgs) -> Result<(), CliError> {
    let ui = &context.ui;
    let client = context.client()?;
    let store = match &args.store {
        Some(root) => LocalStore::chroot(root)?,
        None => LocalStore::system(),
    };
    let logs = (!args.no_logs).then(|| store.build_logs());
    let closure = read_closure(&args, store).await?;
    if closure.paths.is_empty() {
        ui.say("🤷 Nothing selected.");
        return Ok(());
    }
    let upstream = if args.ignore_upstream_cache_filter {
        Upstream::Send
    } else {
        Upstream::Skip
    };
    let held = if args.recheck {
        Held::Recheck
    } else {
        Held::Trust
    };
    let plan = Plan::make(&client, &args.cache, closure, upstream, held).await?;
    let tally = plan.tally();
    if args.dry_run {
        explain(ui, &args, &plan)?;
        return Ok(plan.abandon().await?);
    }
    announce(ui, &args, client.endpoint(), tally)?;
    let too_large = too_large(plan.paths());
    let observer: Arc<dyn Observer> = match args.json {
        true => Arc::new(JsonLines(ui.clone())),
        false => Arc::new(Bars::new(ui.clone())),
    };
    for (path, reason) in &too_large {
        observer.event(&Event::Failed { path, reason });
    }
    let options = Options {
        jobs: args.jobs,
        compress_threads: args.compress_threads,
        logs,
    };
    let mut failed = plan.push(&options, observer).await?;
    failed.extend(too_large);
    conclude(ui, &args, tally, &failed)
}

/// The paths that are named, with what they refer to unless that is not wanted.
async fn read_closure(args: &PushArgs, store: LocalStore) -> Result<Closure, CliError> {
    let arguments = args.paths.clone();
    let from_stdin = args.stdin;
    let extent = if args.no_closure {
        Extent::Paths
    } else {
        Extent::Closure
    };
    let read = spawn_blocking(move || {
        let lines = if from_stdin {
            read_lines()?
        } else {
            Vec::new()
        };
        let named = arguments
            .iter()
            .chain(&lines)
            .map(|argument| store.resolve(argument));
        let named = named.collect::<Result<BTreeSet<_>, NixError>>()?;
        Ok(store.query(&named, extent)?)
    });
    read.await.map_err(|_| CliError::Interrupted)?
}

/// Every line that is not empty.
fn read_lines() -> Result<Vec<PathBuf>, CliError> {
    let lines = io::stdin()
        .lock()
        .split(b'\n')
        .collect::<io::Result<Vec<_>>>();
    let lines = lines.map_err(|source| CliError::File {
        action: "read",
        path: "standard input".into(),
        source,
    })?;
    let path = |line: Vec<u8>| (!line.is_empty()).then(|| OsString::from_vec(line).into());
    Ok(lines.into_iter().filter_map(path).collect())
}

fn announce(ui: &Ui, args: &PushArgs, endpoint: &Endpoint, tally: Tally) -> Result<(), CliError> {
    if args.json {
        return ui.json(&plan_event(&args.cache, tally));
    }
    let Tally {
        send,
        cached,
        upstream,
        ..
    } = tally;
    if send > 0 {
        let (cache, node) = (&args.cache, endpoint.display_name());
        ui.say(format_args!(
            "⚙️ Pushing {send} paths to \"{cache}\" on \"{node}\" \
             ({cached} already cached, {upstream} in upstream)..."
        ));
    }
    Ok(())
}

fn plan_event(cache: &CacheName, tally: Tally) -> serde_json::Value {
    let Tally {
        send,
        cached,
        upstream,
        too_large,
    } = tally;
    json!({
        "event": "plan", "cache": cache, "send": send, "cached": cached, "upstream": upstream,
        "too_large": too_large,
    })
}

/// What `--dry-run` says about every path.
fn explain(ui: &Ui, args: &PushArgs, plan: &Plan) -> Result<(), CliError> {
    if args.json {
        ui.json(&plan_event(&args.cache, plan.tally()))?;
    }
    for Planned { path, verdict } in plan.paths() {
        let (word, reason) = describe(verdict, &args.cache);
        let info = &path.info;
        if args.json {
            ui.json(&json!({
                "event": "path", "path": info.path, "status": word, "reason": reason,
                "nar_size": info.nar_size,
            }))?;
        } else {
            ui.data(format_args!(
                "{word} {} ({}): {reason}",
                info.path,
                bytes(info.nar_size)
            ))?;
        }
    }
    let Tally {
        send,
        cached,
        upstream,
        too_large,
    } = plan.tally();
    let skipped = cached + upstream + too_large;
    ui.say(format_args!(
        "{} to push, {skipped} to skip; nothing was pushed",
        count(send, "path")
    ));
    Ok(())
}

fn describe(verdict: &Verdict, cache: &CacheName) -> (&'static str, String) {
    match verdict {
        Verdict::Send { unproven: None } => ("push", format!("not in cache {cache}")),
        Verdict::Send {
            unproven: Some(key),
        } => {
            let reason = format!("not in cache {cache}; its signature by {key} does not verify");
            ("push", reason)
        }
        Verdict::Cached => ("skip", format!("already in cache {cache}")),
        Verdict::Upstream { key } => ("skip", format!("in upstream, signed by {key}")),
        Verdict::TooLarge { nar_size_max } => (
            "skip",
            format!(
                "larger than the {} that the node takes",
                bytes(*nar_size_max)
            ),
        ),
    }
}

fn too_large(plan: &[Planned]) -> Vec<(StorePath, String)> {
    let too_large = plan
        .iter()
        .filter_map(|Planned { path, verdict }| match verdict {
            Verdict::TooLarge { nar_size_max } => Some((path, nar_size_max)),
            Verdict::Send { .. } | Verdict::Cached | Verdict::Upstream { .. } => None,
        });
    let reason = |(path, max): (&LocalPath, &u64)| {
        let size = bytes(path.info.nar_size);
        (
            path.info.path.clone(),
            format!("NAR of {size}; the node takes at most {}", bytes(*max)),
        )
    };
    too_large.map(reason).collect()
}

fn conclude(
    ui: &Ui,
    args: &PushArgs,
    tally: Tally,
    failed: &[(StorePath, String)],
) -> Result<(), CliError> {
    let Tally {
        send,
        cached,
        upstream,
        too_large,
    } = tally;
    let wanted = send + too_large;
    if args.json {
        ui.json(&json!({
            "event": "done", "pushed": wanted - failed.len() as u64, "failed": failed.len(),
            "cached": cached, "upstream": upstream,
        }))?;
    }
    if failed.is_empty() {
        if !args.json {
            ui.say(format_args!(
                "✅ All done! ({cached} already cached, {upstream} in upstream)"
            ));
        }
        return Ok(());
    }
    for (path, reason) in failed {
        ui.say(format_args!("not pushed: {path}: {reason}"));
    }
    let (failed, wanted) = (failed.len(), count(wanted, "path"));
    Err(CliError::Incomplete(format!(
        "{failed} of {wanted} not pushed"
    )))
}

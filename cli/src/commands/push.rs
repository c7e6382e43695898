//! `push`

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, BufRead};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attic_node_core::api::bucket::{DURABLE_PATHS_MAX, DurableRequest};
use attic_store::cache_name::CacheName;
use attic_store::store_path::{StorePath, StorePathHash};
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::args::{PushArgs, PushWait};
use crate::client::{Client, Endpoint};
use crate::commands::signals::Signals;
use crate::context::Context;
use crate::exit::CliError;
use crate::nix::{Closure, Extent, LocalStore};
use crate::push::plan::{Planned, Tally, Verdict};
use crate::push::{Event, Held, Observer, Options, Plan, Purpose, Upstream};
use crate::ui::progress::{Bars, JsonLines};
use crate::ui::{Ui, bytes, chain, count};

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
    let Selection { closure, unusable } = select(&args, store).await?;
    if closure.paths.is_empty() && unusable.reasons.is_empty() {
        ui.say("🤷 Nothing selected.");
        // Scripts read the same events as of any push.
        if !args.json {
            return Ok(());
        }
    }
    let plan = plan(&client, &args, closure).await?;
    let planned = plan.as_ref().map_or(&[][..], Plan::paths);
    let tally = Tally::of(planned);
    if args.dry_run {
        explain(ui, &args, planned, &unusable)?;
        if let Some(plan) = plan {
            plan.abandon().await?;
        }
        return unusable.check(tally.too_large);
    }
    announce(ui, &args, client.endpoint(), tally)?;
    let too_large = too_large(planned);
    let wanted: Vec<StorePath> = planned
        .iter()
        .map(|planned| planned.path.info.path.clone())
        .collect();
    let in_upstream = |planned: &Planned| matches!(planned.verdict, Verdict::Upstream { .. });
    let elsewhere: BTreeSet<StorePath> = planned
        .iter()
        .filter(|planned| in_upstream(planned))
        .map(|planned| planned.path.info.path.clone())
        .collect();
    let observer: Arc<dyn Observer> = match args.json {
        true => Arc::new(JsonLines(ui.clone())),
        false => Arc::new(Bars::new(ui.clone())),
    };
    for (argument, reason) in &unusable.reasons {
        observer.event(&Event::Unusable { argument, reason });
    }
    for planned in planned {
        tell_skipped(&*observer, planned);
    }
    for (path, reason) in &too_large {
        observer.event(&Event::Failed { path, reason });
    }
    let options = Options {
        jobs: args.jobs,
        compress_threads: args.compress_threads,
        logs,
    };
    let mut failed = match plan {
        Some(plan) => plan.push(&options, observer).await?,
        None => Vec::new(),
    };
    failed.extend(too_large);
    let not_durable = match args.wait {
        Some(PushWait::Durable) => {
            let arrived = |path: &StorePath| {
                !elsewhere.contains(path) && failed.iter().all(|(failed, _)| failed != path)
            };
            let arrived = wanted.into_iter().filter(arrived).collect();
            wait_until_durable(ui, &client, &args, arrived).await?
        }
        None => Vec::new(),
    };
    conclude(ui, &args, tally, &failed, &unusable)?;
    match not_durable.len() as u64 {
        0 => Ok(()),
        left => {
            for path in not_durable {
                ui.say(format_args!("not durable: {path}"));
            }
            Err(CliError::Incomplete(format!(
                "{} pushed, and not durable within the time given",
                count(left, "path")
            )))
        }
    }
}

/// Waits until the bucket has these paths; returns those that it has not when the time is over.
async fn wait_until_durable(
    ui: &Ui,
    client: &Client,
    args: &PushArgs,
    paths: Vec<StorePath>,
) -> Result<Vec<StorePath>, CliError> {
    let deadline = Instant::now() + Duration::from_secs(args.wait_timeout.seconds());
    let mut left: BTreeMap<StorePathHash, StorePath> =
        paths.into_iter().map(|path| (*path.hash(), path)).collect();
    let mut trouble = None;
    while let Some(seconds) = (!left.is_empty()).then(|| {
        let rest = deadline.saturating_duration_since(Instant::now());
        rest.as_secs().min(WAIT_SECONDS)
    }) {
        let request = DurableRequest {
            cache: args.cache.clone(),
            paths: left.keys().take(DURABLE_PATHS_MAX).copied().collect(),
            timeout_seconds: seconds,
        };
        let reply = client.await_durable(&request).await?;
        for hash in &request.paths {
            if !reply.left.contains(hash) {
                left.remove(hash);
            }
        }
        if let Some(why) = reply.trouble.as_ref().filter(|_| reply.trouble != trouble) {
            ui.say(format_args!("warning: not durable yet: {why}"));
        }
        trouble = reply.trouble;
        if seconds == 0 {
            break;
        }
    }
    Ok(left.into_values().collect())
}

/// What the node wants of `closure`; `None` when there is nothing to ask about.
async fn plan(
    client: &Client,
    args: &PushArgs,
    closure: Closure,
) -> Result<Option<Plan>, CliError> {
    if closure.paths.is_empty() {
        return Ok(None);
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
    let purpose = if args.dry_run {
        Purpose::DryRun
    } else {
        Purpose::Push
    };
    let plan = Plan::make(client, &args.cache, closure, upstream, held, purpose);
    Ok(Some(plan.await?))
}

/// What the arguments name.
struct Selection {
    /// The valid paths, with what they refer to unless that is not wanted.
    closure: Closure,
    unusable: Unusable,
}

/// Arguments that name no valid path of the local store.
struct Unusable {
    /// Each with the reason.
    reasons: BTreeMap<String, String>,
    /// Whether some of them are store paths.
    invalid: bool,
}

impl Unusable {
    /// **Errors**: [`CliError::Incomplete`] when there are some, or paths that are too large.
    fn check(&self, too_large: u64) -> Result<(), CliError> {
        match self.reasons.len() as u64 + too_large {
            0 => Ok(()),
            len => Err(CliError::Incomplete(format!(
                "{} cannot be pushed",
                count(len, "path")
            ))),
        }
    }
}

async fn select(args: &PushArgs, store: LocalStore) -> Result<Selection, CliError> {
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
        let (mut named, mut reasons) = (BTreeSet::new(), BTreeMap::new());
        for argument in arguments.iter().chain(&lines) {
            match store.resolve(argument) {
                Ok(path) => drop(named.insert(path)),
                Err(error) => {
                    reasons.insert(argument.display().to_string(), chain(&error));
                }
            }
        }
        let closure = store.query(&named, extent)?;
        let invalid = closure.invalid.iter();
        reasons.extend(invalid.map(|path| (path.to_string(), INVALID.to_owned())));
        let unusable = Unusable {
            reasons,
            invalid: !closure.invalid.is_empty(),
        };
        Ok(Selection { closure, unusable })
    });
    read.await.map_err(|_| CliError::Interrupted)?
}

/// Every line that is not empty, without the blanks and carriage returns around it: no store path has
/// any.
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
    let path = |line: Vec<u8>| {
        let text = line.trim_ascii();
        (!text.is_empty()).then(|| OsString::from_vec(text.to_owned()).into())
    };
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
        let (paths, cache) = (count(send, "path"), &args.cache);
        let node = endpoint.display_name();
        ui.say(format_args!(
            "⚙️ Pushing {paths} to \"{cache}\" on \"{node}\" \
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
fn explain(
    ui: &Ui,
    args: &PushArgs,
    plan: &[Planned],
    unusable: &Unusable,
) -> Result<(), CliError> {
    let tally = Tally::of(plan);
    if args.json {
        ui.json(&plan_event(&args.cache, tally))?;
    }
    for (argument, reason) in &unusable.reasons {
        if args.json {
            ui.json(&json!({
                "event": "path", "path": argument, "status": "fail", "reason": reason,
            }))?;
        } else {
            ui.data(format_args!("fail {argument}: {reason}"))?;
        }
    }
    for Planned { path, verdict } in plan {
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
        too_large: _,
    } = tally;
    let skipped = cached + upstream;
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
            "fail",
            format!(
                "larger than the {} that the node takes",
                bytes(*nar_size_max)
            ),
        ),
        Verdict::NoRoom { room } => (
            "fail",
            format!(
                "larger than the {} that fit below the size cap of the node",
                bytes(*room)
            ),
        ),
    }
}

/// Tells of a path that is not sent because it need not be.
fn tell_skipped(observer: &dyn Observer, planned: &Planned) {
    let (path, nar_size) = (&planned.path.info.path, planned.path.info.nar_size);
    match &planned.verdict {
        Verdict::Cached => observer.event(&Event::Cached { path, nar_size }),
        Verdict::Upstream { key } => observer.event(&Event::Upstream {
            path,
            nar_size,
            key,
        }),
        Verdict::Send { .. } | Verdict::TooLarge { .. } | Verdict::NoRoom { .. } => {}
    }
}

/// The paths that the node does not take, and why not.
fn too_large(plan: &[Planned]) -> Vec<(StorePath, String)> {
    let judge = |Planned { path, verdict }: &Planned| {
        let most = match verdict {
            Verdict::TooLarge { nar_size_max } => {
                format!("the node takes at most {}", bytes(*nar_size_max))
            }
            Verdict::NoRoom { room } => format!(
                "at most {} fit below the size cap of the node (store.size-cap)",
                bytes(*room)
            ),
            Verdict::Send { .. } | Verdict::Cached | Verdict::Upstream { .. } => return None,
        };
        let reason = format!("NAR of {}; {most}", bytes(path.info.nar_size));
        Some((path.info.path.clone(), reason))
    };
    plan.iter().filter_map(judge).collect()
}

fn conclude(
    ui: &Ui,
    args: &PushArgs,
    tally: Tally,
    failed: &[(StorePath, String)],
    unusable: &Unusable,
) -> Result<(), CliError> {
    let Tally {
        send,
        cached,
        upstream,
        too_large,
    } = tally;
    let wanted = send + too_large + unusable.reasons.len() as u64;
    let missed = (failed.len() + unusable.reasons.len()) as u64;
    if args.json {
        ui.json(&json!({
            "event": "done", "pushed": wanted - missed, "failed": missed,
            "cached": cached, "upstream": upstream,
        }))?;
    }
    if missed == 0 {
        if !args.json {
            ui.say(format_args!(
                "✅ All done! ({cached} already cached, {upstream} in upstream)"
            ));
        }
        return Ok(());
    }
    for (argument, reason) in &unusable.reasons {
        ui.say(format_args!("not pushed: {argument}: {reason}"));
    }
    for (path, reason) in failed {
        ui.say(format_args!("not pushed: {path}: {reason}"));
    }
    Err(CliError::NotPushed {
        failed: missed,
        wanted,
        invalid: unusable.invalid,
    })
}

/// How long one request waits.
const WAIT_SECONDS: u64 = 20;
/// Why a store path is no path of the local store.
const INVALID: &str = "not valid in the local store";

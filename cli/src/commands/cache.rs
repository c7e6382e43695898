//! `cache create | list | info | configure | destroy`

use std::path::Path;

use attic_node_core::api::{CacheCreate, CachePatch, CacheView};
use attic_store::cache_name::CacheName;

use crate::args::{
    CacheConfigureArgs, CacheCreateArgs, CacheSettings, CacheVerb, ConfirmArgs, JsonArgs,
    OptionalKey,
};
use crate::commands::key::read_secret_key;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::Ui;

/// Runs a verb on caches.
pub(super) async fn run(context: &Context, verb: CacheVerb) -> Result<(), CliError> {
    match verb {
        CacheVerb::Create(args) => create(context, args).await,
        CacheVerb::List(json) => list(context, json).await,
        CacheVerb::Info { cache, json } => info(context, &cache, json).await,
        CacheVerb::Configure(args) => configure(context, &args).await,
        CacheVerb::Destroy {
            cache,
            confirm,
            json,
        } => destroy(context, &cache, confirm, json).await,
    }
}

async fn create(context: &Context, args: CacheCreateArgs) -> Result<(), CliError> {
    let key = args
        .key_file
        .as_deref()
        .map(Path::new)
        .map(read_secret_key)
        .transpose()?;
    let create = CacheCreate {
        name: args.cache,
        settings: CachePatch {
            shared: args.local.then_some(false),
            ..patch(&args.settings)
        },
        key,
    };
    let view = context.client()?.create_cache(&create).await?;
    if args.json.json {
        return context.ui.json(&view);
    }
    context
        .ui
        .say(format_args!("✅ Created cache \"{}\"", view.name));
    if let Some(why) = &view.unshared_because {
        context.ui.warn(format_args!(
            "the cache is on this node only, because {why}"
        ));
    }
    show(&context.ui, &view)
}

async fn list(context: &Context, json: JsonArgs) -> Result<(), CliError> {
    let caches = context.client()?.caches().await?;
    if json.json {
        return context.ui.json(&caches);
    }
    let row = |view: &CacheView| {
        [
            view.name.to_string(),
            visibility(view).to_owned(),
            view.priority.to_string(),
        ]
    };
    let mut rows = vec![["CACHE", "VISIBILITY", "PRIORITY"].map(str::to_owned)];
    rows.extend(caches.iter().map(row));
    context.ui.table([false, false, true], &rows)?;
    let renamed = caches.iter().filter_map(|view| {
        let founded = view.founded_as.as_ref()?;
        Some(format!("{} is the cluster's \"{founded}\"", view.name))
    });
    renamed.for_each(|line| context.ui.say(line));
    Ok(())
}

async fn info(context: &Context, cache: &CacheName, json: JsonArgs) -> Result<(), CliError> {
    let client = context.client()?;
    let view = client.cache(cache).await?;
    if json.json {
        return context.ui.json(&view);
    }
    if let Some(url) = client.endpoint().cache_url(cache) {
        context.ui.data(format_args!("URL: {url}"))?;
    }
    show(&context.ui, &view)
}

async fn configure(context: &Context, args: &CacheConfigureArgs) -> Result<(), CliError> {
    let patch = CachePatch {
        shared: args.share.then_some(true),
        ..patch(&args.settings)
    };
    if patch == CachePatch::default() {
        return Err(CliError::Usage(
            "nothing to change; see --help for the settings".to_owned(),
        ));
    }
    let view = context.client()?.patch_cache(&args.cache, &patch).await?;
    if args.json.json {
        return context.ui.json(&view);
    }
    context
        .ui
        .say(format_args!("✅ Configured cache \"{}\"", view.name));
    show(&context.ui, &view)
}

async fn destroy(
    context: &Context,
    cache: &CacheName,
    confirm: ConfirmArgs,
    json: JsonArgs,
) -> Result<(), CliError> {
    let client = context.client()?;
    let view = client.cache(cache).await?;
    let question = format_args!("Destroy cache \"{cache}\" with all its paths and its key?");
    context.ui.confirm(confirm, question)?;
    client.destroy_cache(cache).await?;
    if json.json {
        return context.ui.json(&view);
    }
    context
        .ui
        .say(format_args!("✅ Destroyed cache \"{cache}\""));
    Ok(())
}

fn show(ui: &Ui, view: &CacheView) -> Result<(), CliError> {
    let mut lines = vec![
        ("Name", view.name.to_string()),
        ("Visibility", visibility(view).to_owned()),
        ("Cluster", sharing(view)),
        ("Priority", view.priority.to_string()),
        ("StoreDir", view.store_dir.clone()),
        ("PublicKey", view.public_key.clone()),
    ];
    lines.extend(
        view.old_public_keys
            .iter()
            .map(|key| ("OldPublicKey", key.clone())),
    );
    lines.extend(
        view.skip_signed_by
            .iter()
            .map(|key| ("SkipSignedBy", key.clone())),
    );
    lines.push(("CacheEverything", view.cache_everything.to_string()));
    lines.extend(
        view.require_signed_by
            .iter()
            .map(|key| ("RequireSignedBy", key.clone())),
    );
    lines
        .into_iter()
        .try_for_each(|(name, value)| ui.data(format_args!("{name}: {value}")))
}

fn visibility(view: &CacheView) -> &'static str {
    if view.public { "public" } else { "private" }
}

fn sharing(view: &CacheView) -> String {
    let shared = match (view.shared, view.public) {
        (false, _) => "no, on this node alone",
        (true, true) => "shared",
        (true, false) => "shared with members that may read it",
    };
    match &view.founded_as {
        Some(founded) => format!("{shared}, as {founded}"),
        None => shared.to_owned(),
    }
}

/// Only what was given on the command line.
fn patch(settings: &CacheSettings) -> CachePatch {
    CachePatch {
        public: (settings.public || settings.private).then_some(settings.public),
        priority: settings.priority,
        store_dir: settings.store_dir.as_ref().map(ToString::to_string),
        skip_signed_by: keys(&settings.skip_signed_by),
        cache_everything: settings.cache_everything,
        require_signed_by: keys(&settings.require_signed_by),
        shared: None,
    }
}

fn keys(keys: &[OptionalKey]) -> Option<Vec<String>> {
    let given = keys.iter().flatten().map(ToString::to_string).collect();
    (!keys.is_empty()).then_some(given)
}

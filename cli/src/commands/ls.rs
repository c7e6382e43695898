//! `ls`

use std::collections::BTreeSet;

use attic_node_core::api::PathView;
use attic_store::cache_name::CacheName;
use attic_store::references::References;
use attic_store::store_path::{StoreDir, StorePathHash};

use crate::args::{LsArgs, PathName};
use crate::client::Client;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::{Ui, bytes, date};

/// Lists all paths of a cache, or those that are named.
pub(super) async fn run(context: &Context, args: &LsArgs) -> Result<(), CliError> {
    let client = context.client()?;
    let store_dir = client.cache(&args.cache).await?.store_dir;
    let store_dir: StoreDir = store_dir.parse().unwrap_or_default();
    let mut wanted = args
        .paths
        .iter()
        .map(|path| path.hash)
        .collect::<BTreeSet<_>>();
    if args.closure {
        wanted = references(&client, &args.cache).await?.closure(&wanted);
    }
    let everything = args.paths.is_empty();
    let mut found = BTreeSet::new();
    let visit = |view: PathView| {
        let hash = *view.info.path.hash();
        if everything || wanted.contains(&hash) {
            found.insert(hash);
            return print(&context.ui, args, &store_dir, &view);
        }
        Ok::<(), CliError>(())
    };
    client.for_each_path(&args.cache, visit).await?;
    all_found(&args.cache, &args.paths, |hash| found.contains(hash))
}

/// What refers to what in a cache.
pub(super) async fn references(client: &Client, cache: &CacheName) -> Result<References, CliError> {
    let mut references = References::default();
    let visit = |view: PathView| {
        references.insert(&view.info);
        Ok::<(), CliError>(())
    };
    client.for_each_path(cache, visit).await?;
    Ok(references)
}

/// **Errors**: [`CliError::NotInCache`] with those of `asked` that are not `found`.
pub(super) fn all_found(
    cache: &CacheName,
    asked: &[PathName],
    found: impl Fn(&StorePathHash) -> bool,
) -> Result<(), CliError> {
    let absent = asked.iter().filter(|path| !found(&path.hash));
    let paths: Vec<_> = absent.map(|path| path.text.clone()).collect();
    if paths.is_empty() {
        return Ok(());
    }
    Err(CliError::NotInCache {
        cache: cache.clone(),
        paths,
    })
}

fn print(ui: &Ui, args: &LsArgs, store_dir: &StoreDir, view: &PathView) -> Result<(), CliError> {
    if args.json {
        return ui.json(view);
    }
    let path = view.info.path.full(store_dir);
    if !args.long {
        return ui.data(path);
    }
    let nar_size = bytes(view.info.nar_size);
    let file_size = view.file_size.map_or_else(|| "damaged".to_owned(), bytes);
    let published = date(view.published_at);
    ui.data(format_args!(
        "{nar_size:>11} {file_size:>11}  {published}  {path}"
    ))
}

//! `du`

use attic_node_core::api::{CacheUsage, StoreUsage};

use crate::args::DuArgs;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::{Ui, bytes, count};

/// Shows what the caches hold, or one of them, and what all of it takes on disk.
pub(super) async fn run(context: &Context, args: &DuArgs) -> Result<(), CliError> {
    let client = context.client()?;
    let mut usage = client.usage().await?;
    if let Some(name) = &args.cache {
        client.cache(name).await?;
        usage.caches.retain(|cache| cache.name == *name);
    }
    if args.json {
        return context.ui.json(&usage);
    }
    let row = |cache: &CacheUsage| {
        let sizes = (bytes(cache.nar_bytes), bytes(cache.file_bytes));
        [
            cache.name.to_string(),
            cache.paths.to_string(),
            sizes.0,
            sizes.1,
        ]
    };
    let mut rows = vec![["CACHE", "PATHS", "PLAIN", "COMPRESSED"].map(str::to_owned)];
    rows.extend(usage.caches.iter().map(row));
    context.ui.table([false, true, true, true], &rows)?;
    print_store(&context.ui, &usage.store)
}

/// Prints what everything together takes on disk.
pub(super) fn print_store(ui: &Ui, store: &StoreUsage) -> Result<(), CliError> {
    let limit = store
        .size_cap
        .map_or_else(|| "no limit".into(), |cap| format!("of {}", bytes(cap)));
    let free = store
        .free_bytes
        .map(|free| format!(", {} free", bytes(free)))
        .unwrap_or_default();
    ui.data(format_args!(
        "On disk, deduplicated: {} ({limit}{free})",
        bytes(store.disk_bytes)
    ))?;
    ui.data(format_args!(
        "Chunks: {} in {}",
        store.chunks,
        count(store.packs, "pack")
    ))?;
    if store.damaged_nars > 0 {
        ui.data(format_args!(
            "Damaged and not served: {}",
            count(store.damaged_nars, "NAR")
        ))?;
    }
    Ok(())
}

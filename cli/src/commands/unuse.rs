//! `unuse`

use crate::args::UnuseArgs;
use crate::context::{Context, user_nix_conf};
use crate::exit::CliError;
use crate::nix_conf::edit;

/// Takes what `use` added out of the user's `nix.conf`. Needs no node: a cache that is in use from
/// one only is that one's. Of several the endpoint names one, or else the data directory.
pub(super) fn run(context: &Context, args: &UnuseArgs) -> Result<(), CliError> {
    let path = user_nix_conf()?;
    let endpoint = context.named_endpoint()?;
    let named = endpoint.and_then(|endpoint| endpoint.cache_url(&args.cache));
    // As every verb finds its node. Without a configuration that can be read it is none of them.
    let own = || context.own_endpoint().ok()?.cache_url(&args.cache);
    let mut others = Vec::new();
    let removed = edit(&path, |conf| {
        let urls = conf.urls(&args.cache);
        let removed = match (&named, urls.as_slice()) {
            (Some(url), _) | (None, [url]) => conf.remove(&args.cache, url),
            (None, _) => own().is_some_and(|url| conf.remove(&args.cache, &url)),
        };
        if !removed {
            others = urls;
        }
        removed
    });
    if !others.is_empty() {
        let (cache, urls) = (&args.cache, others.join(" and "));
        return Err(CliError::Usage(format!(
            "\"{cache}\" is in use from {urls}; name its node with --endpoint or --data-dir"
        )));
    }
    let removed = removed.map_err(|source| CliError::File {
        action: "edit",
        path: path.clone(),
        source,
    })?;
    let (cache, path) = (&args.cache, path.display());
    if removed {
        context.ui.say(format_args!(
            "✅ Nix no longer substitutes from \"{cache}\" ({path})"
        ));
    } else {
        context
            .ui
            .say(format_args!("\"{cache}\" was not in use ({path})"));
    }
    Ok(())
}

//! `use`

use crate::args::UseArgs;
use crate::context::{Context, user_nix_conf};
use crate::exit::CliError;
use crate::nix_conf::{Substituter, edit};

/// Adds a cache to the user's `nix.conf`, or prints what to add elsewhere.
pub(super) async fn run(context: &Context, args: &UseArgs) -> Result<(), CliError> {
    let ui = &context.ui;
    let client = context.client()?;
    let cache = client.cache(&args.cache).await?;
    let url = client.endpoint().cache_url(&cache.name).ok_or_else(|| {
        let endpoint = client.endpoint();
        CliError::Usage(format!(
            "Nix cannot substitute over {endpoint}; give an http:// endpoint"
        ))
    })?;
    let public = cache.public;
    let mut public_keys = vec![cache.public_key];
    public_keys.extend(cache.old_public_keys);
    let substituter = Substituter { url, public_keys };
    if args.print {
        return ui.text(&substituter.nix_conf_lines());
    }
    if args.nixos {
        return ui.text(&substituter.nixos_module());
    }
    let path = user_nix_conf()?;
    let mut others = Vec::new();
    let changed = edit(&path, |conf| {
        others = conf.urls(&args.cache);
        conf.add(&args.cache, &substituter)
    });
    let changed = changed.map_err(|source| CliError::File {
        action: "edit",
        path: path.clone(),
        source,
    })?;
    let (cache, path) = (&args.cache, path.display());
    if changed {
        ui.say(format_args!(
            "✅ Nix will substitute from \"{cache}\" ({path})"
        ));
        ui.say("The Nix daemon heeds this only for users in its trusted-users; for all users, put");
        ui.say(format_args!(
            "what `attic-node use {cache} --print` prints into /etc/nix/nix.conf."
        ));
    } else {
        ui.say(format_args!(
            "✅ Nix substitutes from \"{cache}\" already ({path})"
        ));
    }
    others.retain(|url| *url != substituter.url);
    if !others.is_empty() {
        let urls = others.join(" and ");
        ui.say(format_args!("\"{cache}\" is in use from {urls} as well;"));
        ui.say(format_args!(
            "`attic-node unuse {cache} --endpoint URL-OF-THE-NODE` ends that."
        ));
    }
    if !public {
        ui.warn("the cache is private: Nix needs the node's token in its netrc-file");
    }
    Ok(())
}

//! `unuse`

use crate::args::UnuseArgs;
use crate::context::{Context, user_nix_conf};
use crate::exit::CliError;
use crate::nix_conf::edit;

/// Takes what `use` added out of the user's `nix.conf`. Needs no node.
pub(super) fn run(context: &Context, args: &UnuseArgs) -> Result<(), CliError> {
    let path = user_nix_conf()?;
    let removed = edit(&path, |conf| conf.remove(&args.cache));
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

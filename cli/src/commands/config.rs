//! `config show | check`

use std::path::PathBuf;

use attic_node_core::config::{Config, Layers, defaults_text};
use attic_node_core::data_dir::DataDir;

use crate::args::ConfigVerb;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::Ui;

/// Shows or checks the configuration.
pub(super) fn run(context: &Context, verb: &ConfigVerb) -> Result<(), CliError> {
    match verb {
        ConfigVerb::Show { defaults: true } => context.ui.text(&defaults_text()),
        ConfigVerb::Show { defaults: false } => {
            context.ui.text(&Layers::read(context.sources())?.show())
        }
        ConfigVerb::Check => {
            let mut faults = Layers::faults(context.sources());
            let last = faults.pop();
            for fault in faults {
                context.ui.fail(&fault.into());
            }
            last.map_or(Ok(()), Err)?;
            let layers = Layers::read(context.sources())?;
            warn_of_unknown_caches(&context.ui, &layers.config()?);
            match layers.file() {
                Some(file) => context
                    .ui
                    .say(format_args!("✅ {} is valid", file.display())),
                None => context
                    .ui
                    .say("✅ no configuration file; the defaults are valid"),
            }
            Ok(())
        }
    }
}

/// Warns of caches that upstreams are for and that the node does not have, once it has any: they may
/// come later, or be a mistake.
fn warn_of_unknown_caches(ui: &Ui, config: &Config) {
    let data = DataDir::new(&config.data_dir);
    if !data.caches().is_dir() {
        return;
    }
    for upstream in &config.upstreams {
        let is_unknown = |path: PathBuf| path.try_exists().is_ok_and(|is_there| !is_there);
        let named = upstream.caches.iter();
        for cache in named.filter(|name| is_unknown(data.cache_settings(name))) {
            let url = &upstream.url;
            ui.warn(format_args!(
                "upstream {url} is for cache {cache}, which is not there"
            ));
        }
    }
}

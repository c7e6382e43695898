//! `config show | check`

use attic_node_core::config::{Layers, defaults_text};

use crate::args::ConfigVerb;
use crate::context::Context;
use crate::exit::CliError;

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
            layers.config()?;
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

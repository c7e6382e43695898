//! `completions`

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::args::Cli;
use crate::context::Context;
use crate::exit::CliError;

/// Prints a completion script.
pub(super) fn run(context: &Context, shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "attic-node", &mut script);
    context.ui.text(&String::from_utf8_lossy(&script))
}

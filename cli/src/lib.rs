//! The command line of attic-node.
//!
//! Each verb is a file in `commands` and speaks through [`ui`]; what can be decided or done
//! without speaking is in the other modules, so that tests need no terminal. Five words: the *node*
//! runs and stores; a *cache* is a named set of store paths in it; a *closure* is some paths with all
//! they refer to; to *push* is to bring a closure into a cache; to *use* is to make Nix
//! substitute from one.
//!
//! ```
//! use attic_node_cli::nix_conf::{NixConf, Substituter};
//!
//! let mine = "cores = 4";
//! let mut conf = NixConf::parse(Some(mine));
//! let main = "main".parse()?;
//! let url = "http://127.0.0.1:7745/main".to_owned();
//! let public_keys = vec!["main:AAAA".to_owned()];
//! conf.add(&main, &Substituter { url: url.clone(), public_keys });
//! assert!(conf.render().unwrap().contains("\nextra-substituters = http://127.0.0.1:7745/main\n"));
//! conf.remove(&main, &url);
//! assert_eq!(conf.render().as_deref(), Some(mine));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::runtime::Runtime;

use crate::args::Cli;
use crate::context::Context;
use crate::exit::{CliError, Exit};
use crate::ui::Ui;

pub mod args;
pub mod client;
mod commands;
pub mod context;
pub mod dump;
pub mod exit;
pub mod nix;
pub mod nix_conf;
pub mod push;
pub mod ui;

/// Runs the program: parses the command line, runs the verb, says why it failed.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let ui = Ui::new();
    let context = Context::new(&cli.global, ui.clone());
    let ended = Runtime::new()
        .map_err(CliError::Output)
        .and_then(|runtime| {
            let ended = runtime.block_on(commands::run(context, cli.verb));
            // Threads that still read files have nobody to read them for.
            runtime.shutdown_timeout(SHUTDOWN_MAX);
            ended
        });
    let exit = match &ended {
        Ok(()) => Exit::Ok,
        Err(error) => error.exit(),
    };
    if let Err(error) = &ended
        && exit != Exit::Ok
    {
        ui.fail(error);
    }
    exit.into()
}

const SHUTDOWN_MAX: Duration = Duration::from_secs(1);

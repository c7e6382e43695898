//! The `attic-node` program; see `attic-node --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    attic_node_cli::main()
}

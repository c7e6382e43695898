//! `up`

use attic_node_core::config::Config;
use attic_node_core::node::{FirstStart, Node};
use tracing_subscriber::EnvFilter;

use crate::args::UpArgs;
use crate::commands::signals::Signals;
use crate::context::{Context, endpoint_at};
use crate::exit::CliError;
use crate::nix_conf::Substituter;
use crate::ui::Ui;

/// Runs a node until a signal comes; a second signal does not wait for requests under way.
pub(super) async fn run(context: Context, args: UpArgs) -> Result<(), CliError> {
    let context = match args.listen {
        Some(listen) => context.with_flag("http.listen", listen),
        None => context,
    };
    let ui = &context.ui;
    let config = context.config()?;
    start_logging(ui, &config)?;
    let mut signals = Signals::new();
    let data_dir = config.data_dir.display().to_string();
    let node = Node::start(config).await?;
    if let Some(first) = node.first_start() {
        welcome(ui, &node, first, &data_dir)?;
    }
    ui.say(format_args!(
        "✅ Serving on {} ({data_dir})",
        node.addresses().join(", ")
    ));
    signals.next().await;
    ui.say("Stopping; once more stops at once");
    tokio::select! {
        stopped = node.shutdown() => Ok(stopped?),
        () = signals.next() => Err(CliError::Interrupted),
    }
}

/// Says how to use what the first start made.
fn welcome(ui: &Ui, node: &Node, first: &FirstStart, data_dir: &str) -> Result<(), CliError> {
    let Some(url) = endpoint_at(node.tcp_address())?.cache_url(&first.cache) else {
        return Ok(());
    };
    let substituter = Substituter {
        url,
        public_keys: vec![first.public_key.clone()],
    };
    let cache = &first.cache;
    ui.say(format_args!("✅ Made a cache \"{cache}\" in {data_dir}"));
    ui.say(format_args!(
        "Nix uses it with these lines in its nix.conf; `attic-node use {cache}` adds them to yours:"
    ));
    ui.text(&substituter.nix_conf_lines())
}

/// Sends the log to stderr.
fn start_logging(ui: &Ui, config: &Config) -> Result<(), CliError> {
    let level = &config.log.level;
    let filter = EnvFilter::try_new(level)
        .map_err(|error| CliError::Usage(format!("log.level is {level:?}: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ui.is_coloured())
        .init();
    Ok(())
}

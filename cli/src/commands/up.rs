//! `up`

use attic_node_core::config::Config;
use attic_node_core::node::{FirstStart, Node};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

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
    let up = Up::start(&context).await?;
    up.until_signalled(&context.ui).await
}

/// A node that this process runs.
pub(super) struct Up {
    node: Node,
    signals: Signals,
}

impl Up {
    /// Starts it, and says where it serves.
    ///
    /// **Errors**: [`CliError::Config`], [`CliError::Start`].
    pub(super) async fn start(context: &Context) -> Result<Up, CliError> {
        let ui = &context.ui;
        let config = context.config()?;
        start_logging(ui, &config)?;
        let signals = Signals::new();
        let data_dir = config.data_dir.display().to_string();
        let node = Node::start(config).await?;
        if let Some(first) = node.first_start() {
            welcome(ui, &node, first, &data_dir)?;
        }
        ui.say(format_args!(
            "✅ Serving on {} ({data_dir})",
            node.addresses().join(", ")
        ));
        Ok(Up { node, signals })
    }

    /// Returns when a signal to stop comes. Dropping it is safe.
    pub(super) async fn signalled(&mut self) {
        self.signals.next().await;
    }

    /// Serves until a signal comes, then stops.
    pub(super) async fn until_signalled(mut self, ui: &Ui) -> Result<(), CliError> {
        self.signalled().await;
        self.stop_as_told(ui).await
    }

    /// Stops because a signal came.
    pub(super) async fn stop_as_told(self, ui: &Ui) -> Result<(), CliError> {
        ui.say("Stopping; once more stops at once");
        self.stop().await
    }

    /// Stops, finishing what is under way unless a signal comes.
    pub(super) async fn stop(mut self) -> Result<(), CliError> {
        tokio::select! {
            stopped = self.node.shutdown() => Ok(stopped?),
            () = self.signals.next() => Err(CliError::Interrupted),
        }
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
    let filter = filter(level)
        .map_err(|error| CliError::Usage(format!("log.level is {level:?}: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ui.is_coloured())
        .init();
    Ok(())
}

/// The filter of the log. What a line of [`QUIET`] is about is heard more of only when `level` names it.
///
/// **Errors**: `level` is no filter.
fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    // Of two lines about the same, the later counts.
    EnvFilter::try_new(format!("{QUIET},{level}"))
}

/// It writes whole messages into its warnings: one for each that a slow peer does not take.
const QUIET: &str = "libp2p_gossipsub=error";

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn gossip_is_not_written_to_the_log_unless_somebody_asks_for_it() {
        for (level, wanted) in [
            ("info", "libp2p_gossipsub=error,info"),
            ("trace", "libp2p_gossipsub=error,trace"),
            ("libp2p_gossipsub=debug,info", "libp2p_gossipsub=debug,info"),
        ] {
            assert_eq!(filter(level).unwrap().to_string(), wanted, "{level}");
        }
        assert!(filter("info=loud").is_err());
    }
}

//! The command line. The text here is the help.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use attic_store::cache_name::CacheName;
use attic_store::signature::{KeyError, PublicKey};
use attic_store::store_path::StoreDir;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use self::cluster::{
    ClusterVerb, InviteArgs, InviteRole, JoinArgs, LeaveArgs, RebuildArgs, RevokeArgs, S3GcArgs,
    S3Verb,
};
pub use self::names::{Expiry, PathName, PinName};

mod cluster;
mod names;

/// Peer-to-peer replicated Nix binary cache
///
/// One program: `up` runs a node; the other verbs talk to it.
#[derive(Debug, Parser)]
#[command(name = "attic-node", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// What holds for every verb.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options of every verb")]
pub struct GlobalArgs {
    /// Configuration file [env: ATTIC_NODE_CONFIG] [default: $XDG_CONFIG_HOME/attic-node/config.toml,
    /// /etc/attic-node/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the node keeps everything [env: ATTIC_NODE_DATA_DIR]
    /// [default: $XDG_DATA_HOME/attic-node]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address of the node to talk to, `http://host:port` or `unix:/path` [default: that of the node on the data directory]
    ///
    /// The admin token in the data directory is sent to whoever listens there.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "ATTIC_NODE_ENDPOINT",
        hide_env_values = true
    )]
    pub endpoint: Option<String>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a node in the foreground
    ///
    /// The first start makes the data directory, the node's keys and a public cache `main`, and
    /// prints the two lines a nix.conf needs. SIGINT or SIGTERM stops it; requests under way are
    /// finished.
    Up(UpArgs),
    /// Push store paths, with all they refer to, to a cache
    Push(PushArgs),
    /// Make the local Nix substitute from a cache
    Use(UseArgs),
    /// Take back what `use` did
    ///
    /// Needs no node. Of nodes whose caches have the same name, --endpoint or --data-dir tells which is
    /// meant.
    Unuse(UnuseArgs),
    /// Create, list, show, change and destroy caches
    #[command(subcommand)]
    Cache(CacheVerb),
    /// List the paths in a cache
    ///
    /// As far as this node holds them: in a cluster, Nix is given those of the other nodes as well.
    Ls(LsArgs),
    /// Show what the caches hold and what that takes on disk
    ///
    /// On this node, not in its whole cluster.
    Du(DuArgs),
    /// Remove paths from a cache
    ///
    /// Disk space comes back with the next garbage collection. Paths that a pin keeps stay.
    Rm(RmArgs),
    /// Keep paths, with all they refer to, from being evicted or removed
    #[command(subcommand)]
    Pin(PinVerb),
    /// Collect garbage now
    Gc(GcArgs),
    /// Read everything that is stored and check its hashes
    ///
    /// Exits with 1 when something is damaged. Damaged paths are not served, and pushing them again
    /// heals them. Works without a running node too.
    Verify(VerifyArgs),
    /// Show how the node is doing
    Status(JsonArgs),
    /// Make a cluster, show the one this node is in, or rebuild one from its bucket
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Look at the bucket that nodes share
    #[command(subcommand)]
    S3(S3Verb),
    /// Print a ticket that lets another node join the cluster
    ///
    /// Makes a cluster first when the node is in none. Whoever has the ticket can use it: hand it over
    /// like a password.
    Invite(InviteArgs),
    /// Join the cluster of a ticket
    ///
    /// When no node is running here, one is started and stays in the foreground, as with `up`.
    Join(JoinArgs),
    /// Leave the cluster
    ///
    /// Paths that are here stay; caches of the cluster stay as caches of this node alone. Those that
    /// another node made lose the key to sign new paths; `key rotate` makes one of their own.
    Leave(LeaveArgs),
    /// List the other nodes of the cluster and how they stand
    ///
    /// BEHIND counts log segments that the peer has and this node lacks, LACKS those the other way
    /// round, both when they last compared. STRIKES counts how often the peer misbehaved and was kept
    /// out; one is forgiven every hour. Names are what the nodes call themselves.
    Peers(JsonArgs),
    /// Shut a node out of the cluster for good
    ///
    /// Needs the cluster key, which lies on the node that made the cluster.
    Revoke(RevokeArgs),
    /// Show, import and rotate the signing keys of caches
    #[command(subcommand)]
    Key(KeyVerb),
    /// Show and check the configuration
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Options of `up`.
#[derive(Args, Debug)]
pub struct UpArgs {
    /// Address and port to serve on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
}

/// What a push may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PushWait {
    /// The bucket of the cluster has all of it: it survives the loss of every node
    #[value(alias = "s3")]
    Durable,
}

/// Options of `push`.
#[derive(Args, Debug)]
#[command(override_usage = "attic-node push [OPTIONS] <CACHE> <PATHS>...")]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["paths", "stdin"]))]
pub struct PushArgs {
    /// Cache to push to
    pub cache: CacheName,
    /// Store paths, files in them, or links to them
    pub paths: Vec<PathBuf>,
    /// Read more paths from standard input, one a line
    #[arg(long)]
    pub stdin: bool,
    /// Push only the given paths, not what they refer to
    #[arg(long)]
    pub no_closure: bool,
    /// Push paths too that the cache says are signed by an upstream cache
    #[arg(long)]
    pub ignore_upstream_cache_filter: bool,
    /// Have the node read again what it holds of these paths, and push what has decayed there
    #[arg(long)]
    pub recheck: bool,
    /// How many uploads to run at once
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = positive)]
    pub jobs: NonZeroUsize,
    /// Threads that compress; nothing is for a node on this machine [default: one per processor]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub compress_threads: Option<NonZeroUsize>,
    /// Do not push the build logs of the paths
    #[arg(long)]
    pub no_logs: bool,
    /// Push from the chroot store in this directory, as `nix --store` names it
    #[arg(long, value_name = "ROOT")]
    pub store: Option<PathBuf>,
    /// What to wait for before the push counts as done
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with = "dry_run")]
    pub wait: Option<PushWait>,
    /// How long to wait for it
    #[arg(long, value_name = "TIME", default_value = "10m", requires = "wait")]
    pub wait_timeout: Expiry,
    /// Say for every path whether and why it would be pushed, and push nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print events as JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// Options of `use`.
#[derive(Args, Debug)]
pub struct UseArgs {
    /// Cache to use
    pub cache: CacheName,
    /// Print the lines for a nix.conf and change nothing
    #[arg(long, conflicts_with = "nixos")]
    pub print: bool,
    /// Print a NixOS module and change nothing
    #[arg(long)]
    pub nixos: bool,
}

/// Options of `unuse`.
#[derive(Args, Debug)]
pub struct UnuseArgs {
    /// Cache to use no more
    pub cache: CacheName,
}

/// Verbs of `cache`.
#[derive(Debug, Subcommand)]
pub enum CacheVerb {
    /// Create a cache
    ///
    /// In a cluster it becomes one of the cluster's, with --local it stays on this node alone. A
    /// private one is shared with those members whose invitation lets them read or write it: the
    /// others learn neither its name nor what is in it.
    Create(CacheCreateArgs),
    /// List the caches
    List(JsonArgs),
    /// Show the settings of a cache
    Info {
        /// Which cache
        cache: CacheName,
        /// How to print
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Change settings of a cache; those not given stay as they are
    ///
    /// The visibility of a cache of the cluster cannot be changed.
    Configure(CacheConfigureArgs),
    /// Destroy a cache
    ///
    /// Its paths and keys are gone at once; disk space comes back with the next garbage collection. A
    /// cache of the cluster is destroyed by the node that made it, or, once that is revoked, by the node
    /// that holds the cluster's key; all members lose it.
    Destroy {
        /// Which cache
        cache: CacheName,
        /// Whether to ask.
        #[command(flatten)]
        confirm: ConfirmArgs,
        /// How to print
        #[command(flatten)]
        json: JsonArgs,
    },
}

/// Options of `cache create`.
#[derive(Args, Debug)]
pub struct CacheCreateArgs {
    /// Name of the new cache: letters, digits, `-`, `_` and `+`
    pub cache: CacheName,
    /// Its settings.
    #[command(flatten)]
    pub settings: CacheSettings,
    /// Sign with the key in this file instead of a new one
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Do not share it with the cluster this node is in
    #[arg(long)]
    pub local: bool,
    /// How to print
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Options of `cache configure`.
#[derive(Args, Debug)]
pub struct CacheConfigureArgs {
    /// Which cache
    pub cache: CacheName,
    /// What to change.
    #[command(flatten)]
    pub settings: CacheSettings,
    /// Share it with the cluster: a private one with the members that may read it; cannot be undone
    #[arg(long)]
    pub share: bool,
    /// How to print
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Settings of a cache; what is absent is left alone.
#[derive(Args, Clone, Debug, Default)]
pub struct CacheSettings {
    /// Everybody who reaches the node may read
    #[arg(long, conflicts_with = "private")]
    pub public: bool,
    /// Reading takes the node's token; in a cluster only members that may read it know of it
    #[arg(long)]
    pub private: bool,
    /// Order in which Nix asks its caches, lower first
    #[arg(long, value_name = "N")]
    pub priority: Option<u32>,
    /// Do not push paths that carry a valid signature of this key, `name:base64` (repeatable)
    ///
    /// An empty argument empties the list.
    #[arg(long, value_name = "KEY", alias = "upstream-cache-key", value_parser = key_or_empty)]
    pub skip_signed_by: Vec<OptionalKey>,
    /// Push all paths, whoever signed them [possible values: true, false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          require_equals = true, hide_possible_values = true)]
    pub cache_everything: Option<bool>,
    /// Accept only paths that carry a valid signature of this key (repeatable)
    ///
    /// An empty argument empties the list.
    #[arg(long, value_name = "KEY", value_parser = key_or_empty)]
    pub require_signed_by: Vec<OptionalKey>,
    /// Store directory the paths lie in
    #[arg(long, value_name = "DIR")]
    pub store_dir: Option<StoreDir>,
}

/// Options of `ls`.
#[derive(Args, Debug)]
pub struct LsArgs {
    /// Which cache
    pub cache: CacheName,
    /// Only these paths: full, base name or hash part [default: all]
    pub paths: Vec<PathName>,
    /// And all they refer to
    #[arg(long, requires = "paths")]
    pub closure: bool,
    /// Print sizes and times too
    #[arg(short, long)]
    pub long: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// Options of `du`.
#[derive(Args, Debug)]
pub struct DuArgs {
    /// Only this cache
    pub cache: Option<CacheName>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    /// Which cache
    pub cache: CacheName,
    /// What to remove: full path, base name or hash part
    #[arg(required = true)]
    pub paths: Vec<PathName>,
    /// Remove what they refer to as well, as far as no other path in the cache needs it, wherever in
    /// the cluster that is
    #[arg(long)]
    pub closure: bool,
    /// Remove paths that a pin on this node keeps, too
    #[arg(long)]
    pub force: bool,
    /// Say what would be removed and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Verbs of `pin`.
#[derive(Debug, Subcommand)]
pub enum PinVerb {
    /// Pin a path; the newest revisions of a pin are kept
    Add {
        /// Which cache
        cache: CacheName,
        /// Name of the pin
        name: PinName,
        /// What to keep: full path or base name; this node must hold it in the cache
        path: PathName,
        /// How many revisions of this pin to keep
        #[arg(long, value_name = "N", default_value = "1",
              value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
        /// How to print
        #[command(flatten)]
        json: JsonArgs,
    },
    /// List the pins of a cache
    List {
        /// Which cache
        cache: CacheName,
        /// How to print
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Remove a pin, with all its revisions
    Rm {
        /// Which cache
        cache: CacheName,
        /// Name of the pin
        name: PinName,
        /// How to print
        #[command(flatten)]
        json: JsonArgs,
    },
}

/// Options of `gc`.
#[derive(Args, Debug)]
pub struct GcArgs {
    /// Say what would be freed and free nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Rewrite every file that holds garbage, however little
    #[arg(long)]
    pub full: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Take out what is damaged and fetch it from the cluster; what nobody there has is healed by
    /// pushing it again
    #[arg(long)]
    pub repair: bool,
    /// Make the index anew from the pack files first; the node must not run
    #[arg(long)]
    pub rebuild_index: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Verbs of `key`.
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Print the public keys of a cache: the current one first, then those it replaced
    Show {
        /// Which cache
        cache: CacheName,
        /// How to print
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Sign with the secret key in a file
    ///
    /// Paths in the cache are signed with it too, and keep the signatures they have. In a cluster all
    /// nodes that may write the cache are given the key, and sign with it. The file holds one line, `name:base64`, as `nix-store --generate-binary-cache-key` writes it.
    Import {
        /// Which cache
        cache: CacheName,
        /// File of the secret key; `-` reads standard input
        file: PathBuf,
        /// How long the old key stays good, with the signatures made with it [default: for ever]
        #[arg(long, value_name = "TIME")]
        keep_old: Option<Expiry>,
        /// How to print
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Sign with a new key
    ///
    /// Paths in the cache are signed with it too, and keep the signatures they have. In a cluster all
    /// nodes that may write the cache are given the key, and sign with it.
    Rotate {
        /// Which cache
        cache: CacheName,
        /// How long the old key stays good, with the signatures made with it [default: for ever]
        #[arg(long, value_name = "TIME")]
        keep_old: Option<Expiry>,
        /// Whether to ask.
        #[command(flatten)]
        confirm: ConfirmArgs,
        /// How to print
        #[command(flatten)]
        json: JsonArgs,
    },
}

/// Verbs of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Print every key with its meaning, its value and where that comes from
    Show {
        /// Print the defaults
        #[arg(long)]
        defaults: bool,
    },
    /// Check the configuration; exits with 2 when it is wrong
    Check,
}

/// How to print.
#[derive(Args, Clone, Copy, Debug)]
pub struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Whether to ask before what cannot be undone.
#[derive(Args, Clone, Copy, Debug)]
pub struct ConfirmArgs {
    /// Do not ask
    #[arg(long, alias = "yes")]
    pub no_confirm: bool,
}

/// A key, or the empty argument that empties a list of keys.
pub type OptionalKey = Option<Box<PublicKey>>;

fn positive(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .map_err(|_| "wanted a whole number, 1 or more".to_owned())
}

fn key_or_empty(text: &str) -> Result<OptionalKey, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let key = text
        .parse()
        .map_err(|error: KeyError| format!("{error}; a key is name:base64"))?;
    Ok(Some(Box::new(key)))
}

const AFTER_HELP: &str = "\
Exit codes: 0 all done, 1 something was not done, 2 wrong command line or configuration, \
130 interrupted.";

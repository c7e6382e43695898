//! Options of the verbs about clusters.

use attic_node_core::api::Role;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{ConfirmArgs, Expiry, JsonArgs};

/// Verbs of `cluster`.
#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Make a cluster of this node alone
    ///
    /// Its public caches become the cluster's. Private ones stay on this node alone until
    /// `cache configure --share` shares them.
    Init {
        /// What people call it [default: the name of this host]
        #[arg(long)]
        name: Option<String>,
        /// How to print
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Show the cluster this node is in
    Info(JsonArgs),
    /// Make this node a cluster's that has lost all its nodes, from what its bucket has
    ///
    /// The running node must be in no cluster, and its configuration must name the bucket. Caches are
    /// served again with all their durable paths, and others can join; the keys to sign new paths with
    /// are not in the bucket.
    Rebuild(RebuildArgs),
}

/// Options of `cluster rebuild`.
#[derive(Args, Debug)]
pub struct RebuildArgs {
    /// From where: there is no other place yet
    #[arg(long, required = true)]
    pub from_s3: bool,
    /// File with the cluster's key, `cluster/cluster.key` of the node that made it; `-` reads it from
    /// standard input
    #[arg(long, value_name = "FILE")]
    pub cluster_key: PathBuf,
    /// Which cluster, where the key has founded several
    #[arg(long, value_name = "ID")]
    pub cluster: Option<String>,
    /// How to print
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Verbs of `s3`.
#[derive(Debug, Subcommand)]
pub enum S3Verb {
    /// Try whether the server keeps what must be relied on
    ///
    /// Writes, lists and deletes small objects below `check/`. Exits with 1 when it does not.
    Check(JsonArgs),
    /// Delete from the bucket what nothing needs any more; only keepers can
    ///
    /// Safe while nodes push, also from several keepers at once: what somebody begins to use again
    /// meanwhile stays, or is written anew. A pack goes when it was seen to be dead for `s3.grace`.
    Gc(S3GcArgs),
}

/// Options of `s3 gc`.
#[derive(Args, Clone, Copy, Debug)]
pub struct S3GcArgs {
    /// Say what would be deleted and delete nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Let more than a fifth of the bucket go at once
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `invite`.
#[derive(Args, Debug)]
pub struct InviteArgs {
    /// What the new node becomes; a keeper keeps everything it may read
    #[arg(long, value_enum, default_value = "member")]
    pub role: InviteRole,
    /// Caches it may read, private ones too; `*` stands for any characters (repeatable)
    ///
    /// All members see these patterns: one that names a private cache tells them its name.
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    pub read: Vec<String>,
    /// Caches it may write (repeatable) [default: none]
    #[arg(long, value_name = "PATTERN")]
    pub write: Vec<String>,
    /// How long the ticket is good
    #[arg(long, value_name = "TIME", default_value = "7d")]
    pub expires: Expiry,
    /// How many nodes it lets in [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: Option<u32>,
    /// Let in any number of nodes, through any node of the cluster
    #[arg(long, conflicts_with = "uses")]
    pub open: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Roles that can be invited to.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum InviteRole {
    /// Reads and writes what it may
    Member,
    /// Keeps everything it may read
    Keeper,
}

impl From<InviteRole> for Role {
    fn from(role: InviteRole) -> Role {
        match role {
            InviteRole::Member => Role::Member,
            InviteRole::Keeper => Role::Keeper,
        }
    }
}

/// Options of `join`.
#[derive(Args, Debug)]
pub struct JoinArgs {
    /// The ticket that `invite` printed; `-` reads it from standard input
    pub ticket: String,
    /// How to print
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Options of `leave`.
#[derive(Args, Debug)]
pub struct LeaveArgs {
    /// Leave though this node holds the cluster key, and delete it: nobody is let in, revoked or
    /// renewed any more
    #[arg(long)]
    pub delete_cluster_key: bool,
    /// Whether to ask.
    #[command(flatten)]
    pub confirm: ConfirmArgs,
    /// How to print
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Options of `revoke`.
#[derive(Args, Debug)]
pub struct RevokeArgs {
    /// Its id or name, as `peers` shows them; the beginning of an id will do, from 12
    /// characters on
    pub peer: String,
    /// Whether to ask.
    #[command(flatten)]
    pub confirm: ConfirmArgs,
    /// How to print
    #[command(flatten)]
    pub json: JsonArgs,
}

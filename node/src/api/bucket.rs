//! The bucket that nodes of a cluster share.

use attic_p2p::ids::ClusterId;
use attic_store::{CacheName, StorePathHash};
use serde::{Deserialize, Serialize};

use super::cluster::text;

/// The bucket, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketView {
    /// `s3://<bucket>/<prefix>`, with the cluster's part of it if the node is in one.
    pub name: String,
    /// Whether this node makes paths durable there.
    pub writes: bool,
    /// Whether it is asked at all: not while it does not answer.
    pub reachable: bool,
    /// The last error, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Since when every request has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<u64>,
    /// Chunks and manifests that are known to be there.
    pub objects: u64,
    /// Copies of them that were found to be damaged since the start.
    pub damaged: u64,
    /// Paths that wait to be made durable by this node, some of them by another one first.
    pub waiting: u64,
    /// Records of paths that this node made durable since the start.
    pub written: u64,
    /// Why the last attempt failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Requests since the start, by operation.
    pub requests: BucketRequests,
}

/// Requests to a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRequests {
    /// That write an object.
    pub put: u64,
    /// That read one, or a part.
    pub get: u64,
    /// That ask for a length.
    pub head: u64,
    /// That ask for a page of a listing.
    pub list: u64,
    /// That delete an object.
    pub delete: u64,
    /// Bytes written.
    pub sent_bytes: u64,
    /// Bytes read.
    pub received_bytes: u64,
    /// Of all of them, how many the server put off.
    pub throttled: u64,
}

/// Waits until paths are durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DurableRequest {
    /// In which cache.
    pub cache: CacheName,
    /// Which paths; at most [`DURABLE_PATHS_MAX`].
    pub paths: Vec<StorePathHash>,
    /// How long to wait.
    pub timeout_seconds: u64,
}

/// Most paths of a [`DurableRequest`].
pub const DURABLE_PATHS_MAX: usize = 1000;

/// What became of a [`DurableRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableReply {
    /// Paths that are not durable yet.
    pub left: Vec<StorePathHash>,
    /// What keeps this node from making them durable, if it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Deletes from the bucket what nothing needs. Only keepers can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectRequest {
    /// Say what would go and change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Let more than a fifth of all packs go at once.
    #[serde(default)]
    pub force: bool,
}

/// Some packs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packs {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a [`CollectRequest`] found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectReply {
    /// Whether nothing was to be changed.
    pub dry_run: bool,
    /// Packs of the bucket, before.
    pub packs: Packs,
    /// Those that nothing needs.
    pub going: Packs,
    /// Of these, those that were seen to be so for less than `s3.grace`.
    pub in_grace: Packs,
    /// Those that were deleted.
    pub deleted: Packs,
    /// Packs that were about to go and are needed again.
    pub saved: u64,
    /// Packs of which it is not known here whether something needs them.
    pub unknown: u64,
    /// Packs that another keeper is about to delete.
    pub elsewhere: u64,
    /// Packs that nothing ever named and that are younger than two days.
    pub young: u64,
    /// Packs of which less than half is needed, or that are small.
    pub sparse: u64,
    /// Why nothing was condemned; empty if nothing spoke against it.
    pub stops: Vec<String>,
    /// How long it took.
    pub millis: u64,
}

/// Makes this node a cluster's, from what the bucket has of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebuildRequest {
    /// The cluster's key, in its text form.
    pub cluster_key: String,
    /// Which cluster, where the key has founded several.
    #[serde(default)]
    pub cluster: Option<String>,
}

/// What was found in the bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildReply {
    /// The cluster.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// What people call it.
    pub name: String,
    /// Logs of members that were found.
    pub logs: u64,
    /// Segments and entries that were damaged.
    pub refused: u64,
    /// Segments of logs that come after others that are missing: what they say is lost.
    #[serde(default)]
    pub left_out: u64,
    /// Caches of this node that go by another name now.
    #[serde(default)]
    pub renamed: Vec<super::RenamedCache>,
    /// Caches of this node, without paths, that made way.
    #[serde(default)]
    pub dropped: Vec<CacheName>,
    /// Its caches, ordered by name.
    pub caches: Vec<RebuiltCache>,
}

/// A cache of a cluster that was rebuilt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuiltCache {
    /// Its name on this node.
    pub name: CacheName,
    /// The key that its paths are signed with.
    pub public_key: String,
    /// Where Nix finds it.
    pub substituter: String,
    /// Paths whose NARs are in the bucket.
    pub paths: u64,
    /// Paths whose NARs are not in the bucket: they were never durable, or the bucket has lost packs.
    pub lost: u64,
}

/// What a server was found to guarantee.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketCheck {
    /// `s3://<bucket>/<prefix>`.
    pub name: String,
    /// Whether it keeps all that is relied on.
    pub holds: bool,
    /// What was tried.
    pub steps: Vec<BucketCheckStep>,
    /// What could not be cleared away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_behind: Option<String>,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketCheckStep {
    /// What should be so.
    pub guarantee: String,
    /// How often it was tried.
    pub tries: u32,
    /// Whether it was so each time.
    pub holds: bool,
    /// What was found, in words.
    pub found: String,
}

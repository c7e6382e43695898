//! What the node's admin and push API says: the JSON types and binary bodies of `/_node/v1/`.
//!
//! Shared by the server and its clients, so it names no HTTP library. Every request under
//! [`PREFIX`] carries the node's admin token, as `Authorization: Bearer <token>` or as the
//! password of `Basic` (any user name). A failure is an [`ErrorBody`].
//!
//! ```text
//! GET    status                       -> Status
//! GET    caches                       -> [CacheView]
//! POST   caches            CacheCreate -> CacheView      201
//! GET    caches/{name}                -> CacheView
//! PATCH  caches/{name}     CachePatch -> CacheView
//! DELETE caches/{name}                -> CacheView       as it was
//! POST   caches/{name}/key/import  KeyImport -> CacheView
//! POST   caches/{name}/key/rotate  KeyRotate -> CacheView
//! GET    caches/{name}/paths?after=<hash>&limit=<n> -> PathPage
//! POST   caches/{name}/remove  RemoveRequest -> RemoveReply
//! GET    caches/{name}/pins           -> [PinView]
//! PUT    caches/{name}/pins/{pin}   PinPut   -> PinView
//! DELETE caches/{name}/pins/{pin}            -> 204
//! GET    usage                        -> UsageReply
//! POST   gc       GcRequest           -> GcReply
//! POST   verify   VerifyRequest       -> VerifyReply
//!
//! POST   push                      PushPlan -> PushSession
//! POST   push/{session}/missing    n × 32 bytes -> ⌈n/8⌉ bytes   see `wire`
//! PUT    push/{session}/chunks     chunk records -> ChunksReply  see `wire`
//! PUT    push/{session}/list/{hash}?from=<n>  m × 32 bytes -> 204  ids n..n+m of a path to commit
//! POST   push/{session}/commit     commit body   -> CommitReply  see `wire`
//! DELETE push/{session}            -> 204; releases what the session held
//! ```
//!
//! The routes below `cluster` and `peers` are in [`cluster`].
//!
//! All times are seconds since the Unix epoch, all sizes bytes.

use std::fmt::{Debug, Formatter, Result as FmtResult};

use attic_store::{CacheName, NarHash, PathInfo, StorePath, StorePathHash};
use serde::{Deserialize, Serialize};

pub use self::cluster::{
    ClusterCache, ClusterId, ClusterInit, ClusterMade, ClusterStatus, ClusterView, Direction,
    InviteReply, InviteRequest, JoinReply, JoinRequest, JoinedCache, LeaveReply, LeaveRequest,
    LogUsage, NodeId, Nothing, PATTERNS_MAX, PeerState, PeerView, RenamedCache, RevokeReply,
    Revoked, Role, Teller, check_ticket,
};

pub mod bucket;
pub mod cluster;
pub mod wire;

/// Path prefix of every route described here.
pub const PREFIX: &str = "/_node/v1/";

/// What a running node says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the running program.
    pub version: String,
    /// The node's libp2p peer id, in its text form.
    pub peer_id: String,
    /// Absolute path of the data directory.
    pub data_dir: String,
    /// Addresses it serves on: `127.0.0.1:7745`, `unix:/path`.
    pub addresses: Vec<String>,
    /// When the process began to serve.
    pub started_at: u64,
    /// Whether `/readyz` answers 200.
    pub ready: bool,
    /// Resident memory of the process, if the system tells.
    pub rss_bytes: Option<u64>,
    /// Client connections open now.
    pub connections: u64,
    /// Push sessions open now.
    pub push_sessions: u64,
    /// Narinfo requests answered since this node's start with what it, a peer or an upstream has.
    pub narinfo_hits: u64,
    /// Narinfo requests answered 404 since its start.
    pub narinfo_misses: u64,
    /// NAR bytes sent since its start (compressed as sent).
    pub nar_bytes_sent: u64,
    /// What is stored.
    pub store: StoreUsage,
    /// The cluster it is in, if it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStatus>,
    /// The bucket that nodes share, if it was told of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<bucket::BucketView>,
    /// The upstreams it is configured with, in that order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<UpstreamStatus>,
}

/// How an upstream is doing, as this node sees it. Counts are since its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its URL, which ends in `/`.
    pub url: String,
    /// The one with the lowest is asked first.
    pub priority: u32,
    /// Whether it is asked; false while it is left alone because it failed.
    pub healthy: bool,
    /// When its failures in a row began, in Unix seconds; absent if its last request did not fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<u64>,
    /// What its last failure was, be it over or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Mean of how long its answers to narinfo requests took, recent ones counting most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// Narinfos that it had.
    pub narinfo_hits: u64,
    /// Bytes of NARs received, as they came.
    pub received_bytes: u64,
    /// Requests that failed, and answers that were not believed.
    pub errors: u64,
    /// Caches that it is configured to be asked for and that this node does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_caches: Vec<CacheName>,
}

/// One cache and its settings. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheView {
    /// The cache's name: the first segment of its URLs.
    pub name: CacheName,
    /// Whether reading needs no token.
    pub public: bool,
    /// What `nix-cache-info` says; Nix asks lower ones first.
    pub priority: u32,
    /// The store directory its paths live in.
    pub store_dir: String,
    /// Public key that new paths are signed with, `name:base64`.
    pub public_key: String,
    /// Keys used before the last rotation or import, the newest first: still good for verifying.
    pub old_public_keys: Vec<String>,
    /// Clients leave out paths that carry a valid signature of one of these keys.
    pub skip_signed_by: Vec<String>,
    /// Clients push such paths too.
    pub cache_everything: bool,
    /// When not empty, a path is accepted only with a valid signature of one of these keys.
    pub require_signed_by: Vec<String>,
    /// Whether it is a cache of the cluster the node is in: then the members that may read it have
    /// it too. A private one is known to these alone.
    #[serde(default)]
    pub shared: bool,
    /// The name that the cluster's cache was made under, when another cache has that on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founded_as: Option<CacheName>,
    /// In the answer to [`CacheCreate`]: why the cache is on this node alone though the node is in a
    /// cluster and nobody asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unshared_because: Option<String>,
    /// Those of [`CacheView::old_public_keys`] that are not kept for ever.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retiring_keys: Vec<RetiringKey>,
}

/// An old key that will be given up, with the signatures made with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiringKey {
    /// `name:base64`.
    pub key: String,
    /// When.
    pub until: u64,
}

/// Makes a cache. What is left out takes its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheCreate {
    /// Name of the new cache; must be free.
    pub name: CacheName,
    /// Settings that differ from the defaults.
    #[serde(default)]
    pub settings: CachePatch,
    /// Sign with this key instead of a fresh one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyImport>,
}

/// Changes settings of a cache: only the fields that are present.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CachePatch {
    /// See [`CacheView::public`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
    /// See [`CacheView::priority`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// See [`CacheView::store_dir`]. Refused once the cache holds a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_dir: Option<String>,
    /// Replaces [`CacheView::skip_signed_by`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_signed_by: Option<Vec<String>>,
    /// See [`CacheView::cache_everything`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_everything: Option<bool>,
    /// Replaces [`CacheView::require_signed_by`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_signed_by: Option<Vec<String>>,
    /// See [`CacheView::shared`]. Left out: a cache that is made in a cluster is shared, if the node
    /// may write one of its name; a cache that is there stays as it is. Sharing cannot be undone,
    /// and the visibility of a shared cache does not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
}

/// A secret signing key in Nix's text form, `name:base64(64 bytes)`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyImport {
    /// The key. `Debug` does not show it.
    pub secret_key: String,
    /// See [`KeyRotate::keep_old_seconds`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_old_seconds: Option<u64>,
}

/// Signs with a new key from now on, and all paths there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRotate {
    /// For how long the key before stays good, and paths keep the signatures made with it; for ever
    /// when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_old_seconds: Option<u64>,
}

impl Debug for KeyImport {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_struct("KeyImport").finish_non_exhaustive()
    }
}

/// Some paths of a cache, ordered by their hash part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathPage {
    /// At most the asked number, and at most [`PATHS_PAGE_MAX`].
    pub paths: Vec<PathView>,
    /// Ask again with `after=` this for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<StorePathHash>,
}

/// One published path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathView {
    /// Store path, signatures and all.
    pub info: PathInfo,
    /// When it became visible.
    pub published_at: u64,
    /// Length of its `.nar.zst`; absent when its NAR is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_size: Option<u64>,
}

/// Takes paths out of a cache. Space comes back with the next collection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveRequest {
    /// Which, by hash part; at most [`REMOVE_MAX`].
    pub paths: Vec<StorePathHash>,
    /// With them goes what they refer to, as far as no other path of the cache needs it; in a cluster's
    /// cache wherever that path is.
    #[serde(default)]
    pub closure: bool,
    /// Say what would happen and change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Remove paths that a pin protects too.
    #[serde(default)]
    pub force: bool,
}

/// What [`RemoveRequest`] did (or, dry, would do). Every asked hash is in exactly one list, and so is what
/// goes along.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveReply {
    /// Gone from the cache.
    pub removed: Vec<StorePath>,
    /// Were not in the cache.
    pub absent: Vec<StorePathHash>,
    /// Kept, because they belong to the closure of a pin.
    pub pinned: Vec<PinnedPath>,
}

/// A path that a pin keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedPath {
    /// The path.
    pub path: StorePath,
    /// Name of one pin whose closure holds it.
    pub pin: String,
}

/// One revision of a pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinView {
    /// Name of the pin: 1 to 128 of `[0-9A-Za-z+-._]`, not starting with `.`.
    pub name: String,
    /// What it keeps, with its whole closure.
    pub path: StorePath,
    /// How many revisions of this name are kept.
    pub keep: u32,
    /// When it was set.
    pub created_at: u64,
}

/// Sets a pin: the path becomes its newest revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinPut {
    /// Must be in the cache.
    pub path: StorePath,
    /// How many revisions stay protected, at least 1.
    #[serde(default = "one")]
    pub keep: u32,
}

/// What the node's store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreUsage {
    /// Bytes on disk: what the size cap limits.
    pub disk_bytes: u64,
    /// The size cap, if one is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_cap: Option<u64>,
    /// Bytes free on the file system of the data directory, if the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Pack files.
    pub packs: u64,
    /// Chunks, about.
    pub chunks: u64,
    /// NARs that failed verification and are not served.
    pub damaged_nars: u64,
}

/// What is stored, and for whom. Counting it takes a look at every path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReply {
    /// The whole store.
    pub store: StoreUsage,
    /// Per cache, ordered by name.
    pub caches: Vec<CacheUsage>,
}

/// What one cache holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheUsage {
    /// Its name.
    pub name: CacheName,
    /// Published paths.
    pub paths: u64,
    /// Sum of their NAR sizes, uncompressed, nothing deduplicated.
    pub nar_bytes: u64,
    /// Sum of their `.nar.zst` lengths, nothing deduplicated.
    pub file_bytes: u64,
}

/// Runs a garbage collection now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Count and change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Rewrite every pack that holds garbage, not only those that are worth it.
    #[serde(default)]
    pub full: bool,
}

/// What a collection did (or, dry, would do).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReply {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Paths taken out because of the size cap.
    pub evicted_paths: u64,
    /// NARs that no path names any more.
    pub dropped_nars: u64,
    /// Packs removed whole.
    pub deleted_packs: u64,
    /// Packs whose live part was copied into a new one.
    pub rewritten_packs: u64,
    /// Packs with garbage that was left alone because an upload or download uses them.
    pub leased_packs: u64,
    /// Bytes given back to the file system.
    pub freed_bytes: u64,
    /// Bytes of packs before.
    pub bytes_before: u64,
    /// Bytes of packs after.
    pub bytes_after: u64,
    /// How long it took.
    pub millis: u64,
}

/// Re-hashes everything that is stored. The answer comes when it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// Drop damaged records, fetch what they held from the cluster, and show what was healed.
    #[serde(default)]
    pub repair: bool,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReply {
    /// Packs read.
    pub packs: u64,
    /// Records read from them.
    pub records: u64,
    /// Bytes read from them.
    pub bytes: u64,
    /// NARs hashed.
    pub nars: u64,
    /// Records whose bytes are wrong, and that something needs.
    pub damaged_records: u64,
    /// Records whose bytes are wrong, and that nothing needs any more.
    #[serde(default)]
    pub spare_records: u64,
    /// NARs that cannot be served whole: all of them.
    pub damaged_nars: u64,
    /// Of those, the first [`DAMAGED_LISTED_MAX`].
    pub damaged: Vec<DamagedNar>,
    /// NARs that were damaged and are whole again.
    pub healed_nars: u64,
    /// How long it took.
    pub millis: u64,
}

/// One NAR that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedNar {
    /// Which.
    pub nar_hash: NarHash,
    /// Paths that need it, as `cache/path`: push them again to heal it.
    pub paths: Vec<String>,
}

/// Opens a push: what the client would like the cache to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushPlan {
    /// Destination.
    pub cache: CacheName,
    /// Closure, or part of one; at most [`PLAN_PATHS_MAX`].
    pub paths: Vec<PlanPath>,
    /// Go on in this session, which an earlier part of the same closure opened. One that has ended
    /// counts as none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Read again what the cache holds of these paths, before the answer: what has decayed unseen
    /// is missing then. Takes as long as hashing their NARs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub recheck: bool,
    /// Nothing will be sent whatever the answer. Otherwise a plan is a push of what the cache has
    /// already: the node says so to its cluster.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dry_run: bool,
}

impl PushPlan {
    /// A plan that opens its own session and believes what the cache says.
    pub fn new(cache: CacheName, paths: Vec<PlanPath>) -> PushPlan {
        PushPlan {
            cache,
            paths,
            session: None,
            recheck: false,
            dry_run: false,
        }
    }
}

/// One path of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanPath {
    /// Hash part of the store path.
    pub hash: StorePathHash,
    /// What the client's Nix says its NAR hashes to.
    pub nar_hash: NarHash,
    /// Bytes of its NAR, so that what cannot fit is refused before anything makes room for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nar_size: Option<u64>,
}

/// Answer to a plan: what to send and the rules for sending it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushSession {
    /// The session to push in. Absent when nothing is missing: then there is nothing to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionGrant>,
    /// Paths the cache lacks or holds with another NAR, in the order of the plan.
    pub missing: Vec<StorePathHash>,
    /// Those of the others that the node cannot tell its cluster of, for they have too many references:
    /// this node alone serves them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untold: Vec<StorePathHash>,
    /// Leave out a missing path that has a valid signature of one of these keys (text form),
    /// unless `cache_everything`.
    pub skip_signed_by: Vec<String>,
    /// Push paths signed by `skip_signed_by` too.
    pub cache_everything: bool,
    /// Store directory the cache is for.
    pub store_dir: String,
    /// Key the cache signs with, text form.
    pub public_key: String,
    /// Chunker parameters the server stores with; a client must cut alike.
    pub chunker_version: u32,
    /// Largest request body in bytes the server takes in this session.
    pub body_max: u64,
    /// Largest number of simultaneous requests the client should have under way.
    pub requests_max: u32,
    /// Largest NAR the server takes, in bytes.
    pub nar_size_max: u64,
    /// Largest NAR in bytes that fits below the size cap, whatever is evicted for it. Absent when no
    /// missing path is larger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<u64>,
}

/// An open push session. It ends by `DELETE`, or when unused for `push.session-idle`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionGrant {
    /// Names the session in URLs: 32 lower-case hexadecimal digits.
    pub id: String,
    /// Key of the possession proofs: 64 hexadecimal digits.
    pub challenge: String,
}

/// What became of a body of chunk records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunksReply {
    /// Records read, verified and stored. Those stored before are counted too.
    pub chunks: u32,
}

/// Head of a commit body; the chunk ids follow it, see [`wire`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitRequest {
    /// At most [`COMMIT_PATHS_MAX`]. A path's references may come later in the list; one that comes
    /// before it and is refused takes the path with it.
    pub paths: Vec<CommitPath>,
}

/// One path to make visible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitPath {
    /// What it is, with the signatures the client's Nix has.
    pub info: PathInfo,
    /// How many chunk ids at the beginning of its NAR were sent ahead with `list`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub listed: u32,
    /// How many of the chunk ids that follow belong to it, after the listed ones, in NAR order.
    pub chunks: u32,
    /// Possession proof (64 hexadecimal digits, see [`wire::Possession`]) over the chunks which
    /// this session did not upload; absent when it uploaded all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

/// Results in the order of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitReply {
    /// One per path.
    pub results: Vec<CommitResult>,
}

/// What became of one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitResult {
    /// Which.
    pub path: StorePathHash,
    /// How it went.
    #[serde(flatten)]
    pub outcome: CommitOutcome,
}

/// Outcome of one path of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum CommitOutcome {
    /// Durable and visible.
    Ok {
        /// Length of its `.nar.zst`.
        file_size: u64,
        /// Frame bytes this session uploaded for it; 0 when everything was there before.
        new_bytes: u64,
        /// Whether the node cannot tell its cluster of it, for it has too many references: then this
        /// node alone serves it.
        #[serde(default, skip_serializing_if = "is_false")]
        untold: bool,
    },
    /// The store lacks chunks: send these and commit again.
    MissingChunks {
        /// Positions in this path's chunk list.
        missing: Vec<u32>,
    },
    /// Refused; sending it again changes nothing.
    Rejected {
        /// Why.
        message: String,
    },
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The HTTP status.
    pub code: u16,
    /// Stable name: `NoSuchCache`, `Unauthorized`, `DiskFull` …
    pub error: String,
    /// One line for people.
    pub message: String,
}

/// Most paths in one [`PathPage`].
pub const PATHS_PAGE_MAX: usize = 4096;
/// Most hashes in one [`RemoveRequest`].
pub const REMOVE_MAX: usize = 65_536;
/// Most paths in one [`PushPlan`]: it stays below a MiB, the smallest `push.body-max`. A larger
/// closure takes several.
pub const PLAN_PATHS_MAX: usize = 8192;
/// Most chunk ids that a session holds in lists of paths to commit.
pub const LISTED_MAX: usize = attic_store::manifest::CHUNKS_MAX;
/// Most paths in one [`CommitRequest`].
pub const COMMIT_PATHS_MAX: usize = 4096;
/// Most entries of [`VerifyReply::damaged`].
pub const DAMAGED_LISTED_MAX: usize = 1000;

fn one() -> u32 {
    1
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

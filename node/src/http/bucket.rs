//! The admin API of the bucket: how it does, waiting for it, checking it, rebuilding a cluster from it.

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use attic_p2p::ids::{CacheId, ClusterId};
use attic_p2p::journal::{JOURNALS, Restore, Restored, read_entry_key};
use attic_p2p::membership::genesis::{ClusterKey, Genesis};
use attic_p2p::signed::Signer;
use attic_store::StorePathHash;
use attic_store::bucket::Bucket;
use attic_store::bucket::check::{Verdict, check};
use axum::extract::{Request, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::api::bucket::{
    BucketCheck, BucketCheckStep, BucketRequests, BucketView, CollectReply, CollectRequest,
    DURABLE_PATHS_MAX, DurableReply, DurableRequest, Packs, RebuildReply, RebuildRequest,
    RebuiltCache,
};
use crate::app::App;
use crate::http::admin::{JSON_LEN_MAX, blocking, json_body};
use crate::http::cluster::{local_caches, mesh_of, settle, start};
use crate::http::error::{Failure, Kind, chain};
use crate::http::ingest::joined;
use crate::mesh::Mesh;
use crate::mesh::bucket::collect::{CollectError, Order, collect};
use crate::mesh::bucket::prefixed::Prefixed;
use crate::mesh::bucket::write_behind::{GENESES, genesis_key};
use crate::mesh::bucket::{SharedBucket, keys, read_entry};
use crate::mesh::files::ClusterFiles;
use crate::mesh::log::LogFiles;
use crate::mesh::members::founder;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/bucket", get(show))
        .route("/bucket/check", post(run_check))
        .route("/bucket/collect", post(run_collect))
        .route("/bucket/durable", post(durable))
        .route("/cluster/rebuild", post(rebuild))
}

/// The bucket, as this node sees it; `None` without one.
pub(crate) fn brief(app: &App) -> Option<BucketView> {
    let (remote, name) = app.open_bucket("")?;
    let mesh = app.mesh.get();
    let shared = mesh.as_ref().and_then(|mesh| mesh.bucket.clone());
    let health = remote.health();
    let progress = mesh.as_ref().map(|mesh| mesh.backlog.progress());
    let progress = progress.unwrap_or_default();
    let seconds = |at: std::time::SystemTime| {
        at.duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    };
    let counters = remote.counters();
    let all = [
        &counters.put,
        &counters.get,
        &counters.head,
        &counters.list,
        &counters.delete,
    ];
    Some(BucketView {
        name: shared.as_ref().map_or(name, |shared| shared.name.clone()),
        writes: mesh.is_some_and(|mesh| mesh.is_writing_behind()),
        reachable: shared.as_ref().is_none_or(|shared| shared.is_reachable()),
        last_error: health.last_error,
        failing_since: health.failing_since.map(seconds),
        objects: shared.as_ref().map_or(0, |shared| shared.index().len()),
        damaged: shared
            .as_ref()
            .map_or(0, |shared| shared.damaged_count() as u64),
        waiting: progress.waiting as u64,
        written: progress.written,
        trouble: progress.trouble,
        requests: BucketRequests {
            put: counters.put.requests,
            get: counters.get.requests,
            head: counters.head.requests,
            list: counters.list.requests,
            delete: counters.delete.requests,
            sent_bytes: counters.put.bytes,
            received_bytes: counters.get.bytes,
            throttled: all.iter().map(|counters| counters.throttled).sum(),
        },
    })
}

async fn show(State(app): State<Arc<App>>) -> Result<Json<BucketView>, Failure> {
    brief(&app).map(Json).ok_or_else(no_bucket)
}

fn no_bucket() -> Failure {
    Failure::new(
        Kind::NoBucket,
        "this node was told of no bucket: set s3.bucket",
    )
}

async fn run_check(State(app): State<Arc<App>>) -> Result<Json<BucketCheck>, Failure> {
    Ok(Json(checked(&app).await?))
}

/// What the server keeps of what it must.
async fn checked(app: &App) -> Result<BucketCheck, Failure> {
    let (remote, name) = app.open_bucket("").ok_or_else(no_bucket)?;
    let mut clients = vec![remote];
    if let Some(s3) = app.config.s3.clone() {
        // Connections of their own, and pages short enough that one follows another.
        let opened = spawn_blocking(move || {
            let open = |_| crate::s3::open_for_check(&s3);
            (0..CHECK_CLIENTS).map(open).collect::<Result<Vec<_>, _>>()
        });
        clients = joined(opened.await).map_err(Failure::internal)?;
    }
    let report = check(&clients, CHECK_ROUNDS).await;
    let steps = report.steps.iter().map(|step| BucketCheckStep {
        guarantee: step.guarantee.to_string(),
        tries: step.tries,
        holds: step.verdict == Verdict::Holds,
        found: step.verdict.to_string(),
    });
    Ok(BucketCheck {
        name,
        holds: report.holds(),
        steps: steps.collect(),
        left_behind: report.left_behind.clone(),
    })
}

async fn run_collect(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<CollectReply>, Failure> {
    let CollectRequest { dry_run, force } = json_body(&app, request, JSON_LEN_MAX).await?;
    let started = Instant::now();
    let mesh = mesh_of(&app)?;
    let shared = mesh.bucket.clone().ok_or_else(no_bucket)?;
    // What is deleted by a server that does not keep its word may be what somebody needs.
    if !dry_run && !checked(&app).await?.holds {
        let message = "the bucket does not keep what collection relies on: see `s3 check`";
        return Err(Failure::new(Kind::Conflict, message));
    }
    let order = Order { dry_run, force };
    let (told, collected) = oneshot::channel();
    let (app, collecting) = (Arc::clone(&app), Arc::clone(&mesh));
    // It goes on when nobody waits for it any more, and ends with the mesh.
    mesh.spawn(async move {
        let _ = told.send(collect(&app, &collecting, &shared, order).await);
    });
    let collected = collected.await.map_err(|_| {
        Failure::new(
            Kind::Conflict,
            "the node has left the cluster or is stopping",
        )
    })?;
    let collected = collected.map_err(|error| match &error {
        CollectError::NotReady | CollectError::Behind(_) => {
            Failure::new(Kind::Conflict, error.to_string())
        }
        error => unanswered(error),
    })?;
    let packs = |(count, bytes)| Packs { count, bytes };
    Ok(Json(CollectReply {
        dry_run,
        packs: packs(collected.packs),
        going: packs(collected.going),
        in_grace: packs(collected.in_grace),
        deleted: packs(collected.deleted),
        saved: collected.saved,
        unknown: collected.unknown,
        elsewhere: collected.elsewhere,
        young: collected.young,
        sparse: collected.sparse,
        stops: collected.stops.iter().map(ToString::to_string).collect(),
        millis: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}

async fn durable(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<DurableReply>, Failure> {
    let DurableRequest {
        cache,
        paths,
        timeout_seconds,
    } = json_body(&app, request, JSON_LEN_MAX).await?;
    if paths.len() > DURABLE_PATHS_MAX {
        return Err(Failure::bad_request(format!(
            "more than {DURABLE_PATHS_MAX} paths"
        )));
    }
    let mesh = mesh_of(&app)?;
    let local = app.caches.find(cache.as_str());
    let local = local.ok_or_else(|| Failure::new(Kind::NoSuchCache, "no such cache"))?;
    let id = local.settings.shared_as.ok_or_else(|| {
        Failure::new(
            Kind::Conflict,
            format!("cache {cache} is not the cluster's: the bucket is for caches that are"),
        )
    })?;
    let deadline = Instant::now() + Duration::from_secs(timeout_seconds.min(WAIT_SECONDS_MAX));
    let mut left = paths;
    loop {
        let told = mesh.durable_changed.notified();
        let looking = Arc::clone(&mesh);
        left = joined(
            spawn_blocking(move || {
                left.retain(|hash| !looking.is_path_durable(id, *hash));
                left
            })
            .await,
        );
        let now = Instant::now();
        if left.is_empty() || now >= deadline {
            let trouble = mesh.backlog.progress().trouble;
            return Ok(Json(DurableReply { left, trouble }));
        }
        let _ = timeout((deadline - now).min(LOOK_EVERY), told).await;
    }
}

impl Mesh {
    /// Whether the bucket has a path, and nothing was said of it since that it may not have.
    fn is_path_durable(&self, cache: CacheId, hash: StorePathHash) -> bool {
        !self.announcer.is_noted(cache, &hash) && self.view.is_durable(cache, hash)
    }
}

async fn rebuild(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<RebuildReply>, Failure> {
    let RebuildRequest {
        cluster_key,
        cluster,
    } = json_body(&app, request, JSON_LEN_MAX).await?;
    let key: ClusterKey = cluster_key
        .trim()
        .parse()
        .map_err(|_| Failure::bad_request("this is not the key of a cluster"))?;
    let (remote, name) = app.open_bucket("").ok_or_else(no_bucket)?;
    let _membership = app.membership.lock().await;
    if app.mesh.get().is_some() {
        let message = "this node is in a cluster already";
        return Err(Failure::new(Kind::InCluster, message));
    }
    let genesis = find_genesis(&*remote, &name, &key, cluster.as_deref()).await?;
    let id = genesis.cluster_id();
    let part = Prefixed::new(remote, format!("{id}/"));
    let (restore, damaged) = read_journals(&part, id).await?;
    let files = ClusterFiles::new(&app.data);
    let identity = app.identity();
    let charter = founder(&identity, genesis, key);
    let restored = {
        let (files, charter, me) = (files.clone(), charter.clone(), identity.node_id());
        // The certificate comes last: until then the node is in no cluster, and this can be run again.
        let written = spawn_blocking(move || -> Result<Restored, Failure> {
            files.forget_logs().map_err(Failure::internal)?;
            let mut log = LogFiles::open(&files.log(), me).map_err(Failure::internal)?;
            let restored = restore.write(&mut log).map_err(Failure::internal)?;
            drop(log);
            files.found(&charter).map_err(Failure::internal)?;
            files
                .take_back_owned(charter.genesis.cluster_id())
                .map_err(Failure::internal)?;
            Ok(restored)
        });
        joined(written.await)?
    };
    let before = local_caches(&app);
    let mesh = start(&app, &identity, files, charter, Some(Vec::new())).await?;
    // Caches of this node give way, as they do when it joins. All that is to be known is known.
    let (renamed, dropped) = settle(&app, &mesh, &before).await?;
    if let Some(shared) = &mesh.bucket {
        shared
            .learn_all()
            .await
            .map_err(|error| unanswered(&error))?;
    }
    let caches = rebuilt_caches(&app, &mesh).await?;
    Ok(Json(RebuildReply {
        cluster: id,
        name: mesh.name.clone(),
        logs: restored.logs as u64,
        refused: restored.refused as u64 + damaged,
        left_out: restored.left_out as u64,
        renamed,
        dropped,
        caches,
    }))
}

/// The cluster in the bucket that a key founded.
async fn find_genesis(
    remote: &dyn Bucket,
    name: &str,
    key: &ClusterKey,
    wanted: Option<&str>,
) -> Result<Genesis, Failure> {
    let mut found = Vec::new();
    for key_of in list(remote, GENESES).await? {
        let bytes = remote.get(&key_of, GENESIS_LEN_MAX).await;
        let bytes = bytes.map_err(|error| unanswered(&error))?;
        let genesis = Genesis::decode(&bytes).ok();
        let fits = |genesis: &Genesis| {
            let id = genesis.cluster_id();
            genesis.cluster_key == key.public()
                && genesis_key(&id) == key_of
                && wanted.is_none_or(|wanted| wanted == id.to_string())
        };
        found.extend(genesis.filter(fits));
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Failure::new(
            Kind::NotFound,
            format!("{name} has no cluster that this key founded"),
        )),
        _ => {
            let ids: Vec<String> = found
                .iter()
                .map(|one| one.cluster_id().to_string())
                .collect();
            Err(Failure::bad_request(format!(
                "this key founded several clusters in {name}: say which of {}",
                ids.join(", ")
            )))
        }
    }
}

/// All segments that keepers' journals carry, and how many entries are damaged.
async fn read_journals(part: &Prefixed, cluster: ClusterId) -> Result<(Restore, u64), Failure> {
    let mut restore = Restore::new(cluster);
    let mut damaged = 0;
    for key in list(part, JOURNALS).await? {
        let Some((keeper, _)) = read_entry_key(&key) else {
            continue;
        };
        let entry = read_entry(part, &cluster, &keeper, &key).await;
        match entry.map_err(|error| unanswered(&error))? {
            Some(entry) => {
                let segments = entry.segments.into_iter();
                segments.for_each(|segment| restore.add(segment.into()));
            }
            None => damaged += 1,
        }
    }
    Ok((restore, damaged))
}

async fn list(remote: &dyn Bucket, prefix: &str) -> Result<Vec<String>, Failure> {
    let listed = keys(remote, prefix).await;
    listed.map_err(|error| unanswered(&error))
}

fn unanswered(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Kind::NobodyReached, chain(error))
}

async fn rebuilt_caches(app: &Arc<App>, mesh: &Arc<Mesh>) -> Result<Vec<RebuiltCache>, Failure> {
    let address = app.addresses.get().and_then(|addresses| addresses.first());
    let address = address.map_or("127.0.0.1:7745", String::as_str).to_owned();
    let (app, mesh) = (Arc::clone(app), Arc::clone(mesh));
    blocking(move || {
        let mut rebuilt = Vec::new();
        for cache in app.caches.snapshot().values() {
            let Some(id) = cache.settings.shared_as else {
                continue;
            };
            let (mut paths, mut lost) = (0, 0);
            mesh.view.each_path(id, |record| {
                let has = |shared: &Arc<SharedBucket>| shared.has(&record.manifest);
                match mesh.bucket.as_ref().is_some_and(has) {
                    true => paths += 1,
                    false => lost += 1,
                }
            });
            rebuilt.push(RebuiltCache {
                name: cache.name.clone(),
                public_key: cache.view().public_key,
                substituter: format!("http://{address}/{}", cache.name),
                paths,
                lost,
            });
        }
        Ok(rebuilt)
    })
    .await
}

/// Connections a check uses, as far as the server keeps them apart.
const CHECK_CLIENTS: usize = 3;
const CHECK_ROUNDS: u32 = 5;
/// A genesis is a few hundred bytes.
const GENESIS_LEN_MAX: u64 = 64 << 10;
/// Longest wait of one request; who wants more asks again.
const WAIT_SECONDS_MAX: u64 = 60;
const LOOK_EVERY: Duration = Duration::from_secs(1);

//! The admin API: caches, paths, pins, collection, verification. See [`crate::api`].
//!
//! Every route needs the admin token; that is decided before the route is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attic_store::record::{PathRow, Pin};
use attic_store::references::References;
use attic_store::{
    CacheName, CollectOptions, NarHash, PublicKey, SecretKey, Store, StoreError, StorePath,
    StorePathHash, VerifyOptions, VerifyReport,
};
use axum::extract::{Path, Query, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use hyper::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::task::spawn_blocking;

use crate::api::{
    CacheCreate, CachePatch, CacheUsage, CacheView, GcReply, GcRequest, KeyImport, KeyRotate,
    PATHS_PAGE_MAX, PathPage, PathView, PinPut, PinView, PinnedPath, REMOVE_MAX, RemoveReply,
    RemoveRequest, Status, UsageReply, VerifyReply, VerifyRequest,
};
use crate::app::App;
use crate::caches::{Cache, CacheError};
use crate::clock::unix_now;
use crate::collect;
use crate::http::error::{Failure, Kind};
use crate::http::ingest::{Limits, check_announced, has_body, joined, read_small};
use crate::http::mend::fetch_all;
use crate::http::{admitted, bucket, caller, cluster, push};
use crate::mesh::Mesh;
use crate::mesh::announce::each_row;
use crate::metrics::rss_bytes;
use crate::report::{gc_reply, verify_reply};

/// The routes, below the prefix of the API.
pub(crate) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    Router::new()
        .route("/status", get(status))
        .route("/caches", get(list).post(create))
        .route("/caches/{name}", get(show).patch(patch).delete(destroy))
        .route("/caches/{name}/key/import", post(import_key))
        .route("/caches/{name}/key/rotate", post(rotate_key))
        .route("/caches/{name}/paths", get(paths))
        .route("/caches/{name}/remove", post(remove))
        .route("/caches/{name}/pins", get(pins))
        .route("/caches/{name}/pins/{pin}", put(pin).delete(unpin))
        .route("/usage", get(usage))
        .route("/gc", post(gc))
        .route("/verify", post(verify))
        .merge(push::routes())
        .merge(cluster::routes())
        .merge(bucket::routes())
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(Arc::clone(app), admit))
}

async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match admitted(caller(&app, &request)) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

async fn no_such_route() -> Failure {
    Failure::new(Kind::NotFound, "no such route")
}

async fn no_such_method() -> Failure {
    Failure::new(Kind::MethodNotAllowed, "no such method on this route")
}

async fn status(State(app): State<Arc<App>>) -> Json<Status> {
    let metrics = &app.metrics;
    let asked = Arc::clone(&app);
    let cluster = joined(spawn_blocking(move || cluster::brief(&asked)).await);
    Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        peer_id: app.identity().peer_id().to_string(),
        data_dir: app.config.data_dir.display().to_string(),
        addresses: app.addresses.get().cloned().unwrap_or_default(),
        started_at: app.started_at,
        ready: app.is_ready(),
        rss_bytes: rss_bytes(),
        connections: u64::try_from(metrics.connections.get()).unwrap_or(0),
        push_sessions: app.sessions.len() as u64,
        narinfo_hits: metrics.narinfo_hits_total(),
        narinfo_misses: metrics.narinfo_misses.get(),
        nar_bytes_sent: metrics.nar_sent.get(),
        store: app.usage(),
        cluster,
        bucket: bucket::brief(&app),
        upstreams: app.upstreams.status(&app.caches),
    })
}

async fn list(State(app): State<Arc<App>>) -> Json<Vec<CacheView>> {
    Json(
        app.caches
            .snapshot()
            .values()
            .map(|cache| cache.view())
            .collect(),
    )
}

async fn create(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<(StatusCode, Json<CacheView>), Failure> {
    let CacheCreate {
        name,
        settings,
        key,
    } = json_body(&app, request, JSON_LEN_MAX).await?;
    let secret = key.map(|key| parse_secret(&key)).transpose()?;
    let view = blocking(move || {
        let mut unshared_because = None;
        let mesh = match (settings.shared, app.mesh.get()) {
            (Some(false), _) | (None, None) => None,
            (Some(true), _) => Some(mesh_to_share(&app, &name)?),
            (None, Some(mesh)) if mesh.announcer.may_found(&name) => Some(mesh),
            (None, Some(_)) => {
                unshared_because = Some(no_right_to(&name));
                None
            }
        };
        let cache = app.caches.create(&name, &settings, secret)?;
        let cache = match mesh {
            Some(mesh) => share(&app, &mesh, &cache)?,
            None => cache,
        };
        Ok(CacheView {
            unshared_because,
            ..cache.view()
        })
    });
    Ok((StatusCode::CREATED, Json(view.await?)))
}

fn no_right_to(name: &CacheName) -> String {
    format!("this node may not write a cache called {name} in its cluster")
}

async fn show(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<CacheView>, Failure> {
    Ok(Json(find_cache(&app, &parse_name(&name)?)?.view()))
}

async fn patch(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<CacheView>, Failure> {
    let patch: CachePatch = json_body(&app, request, JSON_LEN_MAX).await?;
    let name = parse_name(&name)?;
    let cache = blocking(move || {
        let current = find_cache(&app, &name)?;
        let mesh = own_or_alone(&app, &current)?;
        check_shared(&current, &patch)?;
        let to_share = match (patch.shared, current.settings.shared_as) {
            (Some(true), None) => Some(mesh_to_share(&app, &name)?),
            (_, _) => None,
        };
        let cache = app.caches.patch(&name, &patch, &app.store)?;
        if let Some(mesh) = mesh {
            mesh.announcer.reconfigure(&app, &cache, false)?;
        }
        // Narinfos depend on the store directory.
        app.narinfos.clear();
        match to_share {
            Some(mesh) => share(&app, &mesh, &cache),
            None => Ok(cache),
        }
    });
    Ok(Json(cache.await?.view()))
}

/// The mesh, if this node can make a cache of this name one of its cluster's.
///
/// **Errors**: 404 in no cluster; 403 for a name that this node may not write.
fn mesh_to_share(app: &App, name: &CacheName) -> Result<Arc<Mesh>, Failure> {
    let absent = || Failure::new(Kind::NoCluster, "this node is in no cluster");
    let mesh = app.mesh.get().ok_or_else(absent)?;
    match mesh.announcer.may_found(name) {
        true => Ok(mesh),
        false => Err(Failure::new(Kind::Forbidden, no_right_to(name))),
    }
}

/// Makes a local cache one of the cluster's, and gives it as it is then.
fn share(app: &App, mesh: &Mesh, cache: &Cache) -> Result<Arc<Cache>, Failure> {
    mesh.announcer.share(app, cache)?;
    find_cache(app, &cache.name)
}

/// Refuses to take back what the cluster was told, or to tell it what it was not to know.
fn check_shared(cache: &Cache, patch: &CachePatch) -> Result<(), Failure> {
    if cache.settings.shared_as.is_none() {
        return Ok(());
    }
    let message = match (cache.settings.public, patch.public, patch.shared) {
        (_, _, Some(false)) => "the cluster has this cache: destroy it, or leave the cluster",
        (true, Some(false), _) => {
            "the whole cluster knows what is in this cache and does not forget it: \
             create a private cache and push to that"
        }
        (false, Some(true), _) => {
            "what readers of this cache were told in private stays private: \
             create a public cache and push to that"
        }
        (_, _, _) => return Ok(()),
    };
    Err(Failure::new(Kind::Conflict, message))
}

async fn destroy(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<CacheView>, Failure> {
    let name = parse_name(&name)?;
    let cache = blocking(move || {
        let cache = find_cache(&app, &name)?;
        match (cache.settings.shared_as, app.mesh.get()) {
            (Some(id), Some(mesh)) if !mesh.announcer.owns(&id).map_err(Failure::internal)? => {
                mesh.announcer.end_cache(id)?;
            }
            (Some(_), Some(mesh)) => mesh.announcer.reconfigure(&app, &cache, true)?,
            (_, _) => {}
        }
        match app.caches.destroy(&name, &app.store) {
            // What the cluster says of it was done here meanwhile.
            Err(CacheError::Absent(_)) if cache.settings.shared_as.is_some() => {}
            destroyed => drop(destroyed?),
        }
        app.narinfos.clear();
        Ok(cache)
    });
    Ok(Json(cache.await?.view()))
}

async fn import_key(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<CacheView>, Failure> {
    let key: KeyImport = json_body(&app, request, JSON_LEN_MAX).await?;
    let secret = parse_secret(&key)?;
    replace_key(app, &name, Some(secret), key.keep_old_seconds).await
}

async fn rotate_key(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<CacheView>, Failure> {
    let rotate = match has_body(request.headers()) {
        true => json_body(&app, request, JSON_LEN_MAX).await?,
        // Nothing has to be said.
        false => KeyRotate::default(),
    };
    replace_key(app, &name, None, rotate.keep_old_seconds).await
}

/// Signs with another key from now on, and adds its signature to every path there is.
async fn replace_key(
    app: Arc<App>,
    name: &str,
    secret: Option<SecretKey>,
    keep_old_seconds: Option<u64>,
) -> Result<Json<CacheView>, Failure> {
    let name = parse_name(name)?;
    let old_until = keep_old_seconds.map(|seconds| unix_now().saturating_add(seconds));
    let cache = blocking(move || {
        let current = find_cache(&app, &name)?;
        let mesh = own_or_alone(&app, &current)?;
        let cache = app.caches.replace_key(&name, secret, old_until)?;
        let signed = app.publisher.sign_all(&cache)?;
        if let Some(mesh) = mesh {
            mesh.announcer.reconfigure(&app, &cache, false)?;
            mesh.announcer.announce_again(&app, &cache)?;
        }
        tracing::info!(cache = %cache.name, key = cache.public_key().as_ref().map(PublicKey::name), signed, "key replaced");
        Ok(cache)
    });
    Ok(Json(cache.await?.view()))
}

/// The mesh, if the cache is the cluster's and this node's to change; `None` for a local one.
///
/// **Errors**: 403 for a cache that another node owns.
fn own_or_alone(app: &App, cache: &Cache) -> Result<Option<Arc<Mesh>>, Failure> {
    let (Some(id), Some(mesh)) = (cache.settings.shared_as, app.mesh.get()) else {
        return Ok(None);
    };
    match mesh.announcer.owns(&id).map_err(Failure::internal)? {
        true => Ok(Some(mesh)),
        false => Err(mesh.announcer.why_not(id).into()),
    }
}

/// Which page of a list.
#[derive(Deserialize)]
struct PageQuery {
    after: Option<StorePathHash>,
    limit: Option<usize>,
}

async fn paths(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<PathPage>, Failure> {
    let cache = find_cache(&app, &parse_name(&name)?)?;
    let limit = page
        .limit
        .unwrap_or(PATHS_PAGE_MAX)
        .clamp(1, PATHS_PAGE_MAX);
    let page = blocking(move || {
        let rows = app.store.paths(&cache.name, page.after, limit)?;
        let next = (rows.len() == limit).then(|| rows.last().map(|row| *row.info.path.hash()));
        let view = |row| path_view(&app.store, row);
        let paths = rows
            .into_iter()
            .map(view)
            .collect::<Result<_, StoreError>>()?;
        Ok(PathPage {
            paths,
            next: next.flatten(),
        })
    });
    Ok(Json(page.await?))
}

fn path_view(store: &Store, row: PathRow) -> Result<PathView, StoreError> {
    let file_size = store.nar(&row.info.nar_hash)?.map(|nar| nar.file_size);
    Ok(PathView {
        info: row.info,
        published_at: row.published_at,
        file_size,
    })
}

async fn remove(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<RemoveReply>, Failure> {
    let request: RemoveRequest = json_body(&app, request, REMOVE_LEN_MAX).await?;
    if request.paths.len() > REMOVE_MAX {
        let message = format!("more than {REMOVE_MAX} paths");
        return Err(Failure::new(Kind::TooLarge, message));
    }
    let cache = find_cache(&app, &parse_name(&name)?)?;
    if let Some((id, mesh)) = cache.settings.shared_as.zip(app.mesh.get())
        && !mesh.view.may_write(mesh.me, id)
    {
        let message =
            format!("this node may not write {name} in its cluster: nobody would heed it");
        return Err(Failure::new(Kind::Forbidden, message));
    }
    Ok(Json(
        blocking(move || Ok(remove_paths(&app, &cache, &request)?)).await?,
    ))
}

fn remove_paths(
    app: &App,
    cache: &Cache,
    request: &RemoveRequest,
) -> Result<RemoveReply, StoreError> {
    let pinned = if request.force {
        BTreeMap::new()
    } else {
        pinned_paths(&app.store, cache)?
    };
    let mut reply = RemoveReply::default();
    let mut doomed = Vec::new();
    let mut asked: BTreeSet<_> = request.paths.iter().copied().collect();
    if request.closure {
        asked.extend(references(app, cache)?.removable(&asked));
    }
    for hash in &asked {
        match (app.store.path(&cache.name, hash)?, pinned.get(hash)) {
            (None, _) => match elsewhere(app, cache, hash) {
                Some(path) => {
                    reply.removed.push(path);
                    doomed.push(*hash);
                }
                None => reply.absent.push(*hash),
            },
            (Some(row), Some(pin)) => {
                reply.pinned.push(PinnedPath {
                    path: row.info.path,
                    pin: pin.clone(),
                });
            }
            (Some(row), None) => {
                reply.removed.push(row.info.path);
                doomed.push(*hash);
            }
        }
    }
    if !request.dry_run {
        app.store.remove(&cache.name, &doomed)?;
        doomed
            .iter()
            .for_each(|hash| app.narinfos.forget(&(cache.id, *hash)));
        if let Some((id, mesh)) = cache.settings.shared_as.zip(app.mesh.get()) {
            mesh.finder.hide(id, &doomed);
            mesh.announcer.removed(id, &doomed);
        }
    }
    Ok(reply)
}

/// What refers to what in a cache, in a cluster's on all nodes.
fn references(app: &App, cache: &Cache) -> Result<References, StoreError> {
    let mut references = References::default();
    if let Some((id, mesh)) = cache.settings.shared_as.zip(app.mesh.get()) {
        mesh.view
            .each_path(id, |record| references.insert(&record.info));
    }
    each_row(app, cache, |row| {
        references.insert(&row.info);
        Ok(())
    })?;
    Ok(references)
}

/// A path of the cluster's cache that only other nodes hold.
fn elsewhere(app: &App, cache: &Cache, hash: &StorePathHash) -> Option<StorePath> {
    let (id, mesh) = cache.settings.shared_as.zip(app.mesh.get())?;
    let started = Instant::now();
    loop {
        if let Some(record) = mesh.view.path(id, hash) {
            return Some(record.info.path);
        }
        // Only what the directory knows can be removed; what peers told of, it will know soon.
        mesh.finder.heard_of(id, hash)?;
        if started.elapsed() > GOSSIP_PATIENCE {
            return None;
        }
        std::thread::sleep(GOSSIP_PAUSE);
    }
}

/// How long a removal waits for the directory to know what a peer told of.
const GOSSIP_PATIENCE: Duration = Duration::from_secs(2);
const GOSSIP_PAUSE: Duration = Duration::from_millis(50);

/// Every path that some pin's closure holds, with the name of one such pin.
fn pinned_paths(
    store: &Store,
    cache: &Cache,
) -> Result<BTreeMap<StorePathHash, String>, StoreError> {
    let mut pinned = BTreeMap::new();
    for pin in store.pins(&cache.name)? {
        let mut todo = vec![*pin.path.hash()];
        while let Some(hash) = todo.pop() {
            if pinned.contains_key(&hash) {
                continue;
            }
            pinned.insert(hash, pin.name.clone());
            let row = store.path(&cache.name, &hash)?;
            todo.extend(
                row.iter()
                    .flat_map(|row| &row.info.references)
                    .map(|path| *path.hash()),
            );
        }
    }
    Ok(pinned)
}

async fn pins(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<PinView>>, Failure> {
    let cache = find_cache(&app, &parse_name(&name)?)?;
    let pins = blocking(move || Ok(app.store.pins(&cache.name)?)).await?;
    Ok(Json(pins.into_iter().map(pin_view).collect()))
}

fn pin_view(pin: Pin) -> PinView {
    PinView {
        name: pin.name,
        path: pin.path,
        keep: pin.keep,
        created_at: pin.created_at,
    }
}

async fn pin(
    State(app): State<Arc<App>>,
    Path((name, pin)): Path<(String, String)>,
    request: Request,
) -> Result<Json<PinView>, Failure> {
    let PinPut { path, keep } = json_body(&app, request, JSON_LEN_MAX).await?;
    let cache = find_cache(&app, &parse_name(&name)?)?;
    check_pin(&pin, keep)?;
    let pin = Pin {
        cache: cache.name.clone(),
        name: pin,
        path,
        keep,
        created_at: unix_now(),
    };
    let pin = blocking(move || {
        let row = app.store.path(&cache.name, pin.path.hash())?;
        if row.is_none_or(|row| row.info.path != pin.path) {
            let message = format!("{} is not held here in cache {}", pin.path, cache.name);
            return Err(Failure::new(Kind::NotFound, message));
        }
        app.store.pin(pin.clone())?;
        Ok(pin)
    });
    Ok(Json(pin_view(pin.await?)))
}

fn check_pin(name: &str, keep: u32) -> Result<(), Failure> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
    let length = (1..=PIN_NAME_LEN_MAX).contains(&name.len());
    if !length || name.starts_with('.') || !name.bytes().all(fits) {
        let message = "a pin's name is 1 to 128 of 0-9A-Za-z+-._ and does not begin with a dot";
        return Err(Failure::bad_request(message));
    }
    match keep {
        1..=PIN_KEEP_MAX => Ok(()),
        _ => Err(Failure::bad_request(format!(
            "a pin keeps 1 to {PIN_KEEP_MAX} revisions"
        ))),
    }
}

async fn unpin(
    State(app): State<Arc<App>>,
    Path((name, pin)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let cache = find_cache(&app, &parse_name(&name)?)?;
    let removed = blocking(move || Ok(app.store.unpin(&cache.name, &pin)?)).await?;
    match removed {
        0 => Err(Failure::new(Kind::NotFound, "no such pin")),
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

async fn usage(State(app): State<Arc<App>>) -> Result<Json<UsageReply>, Failure> {
    let reply = blocking(move || {
        let snapshot = app.caches.snapshot();
        let caches = snapshot
            .values()
            .map(|cache| cache_usage(&app.store, &cache.name));
        let caches = caches.collect::<Result<_, StoreError>>()?;
        Ok(UsageReply {
            store: app.usage(),
            caches,
        })
    });
    Ok(Json(reply.await?))
}

fn cache_usage(store: &Store, name: &CacheName) -> Result<CacheUsage, StoreError> {
    let mut usage = CacheUsage {
        name: name.clone(),
        paths: 0,
        nar_bytes: 0,
        file_bytes: 0,
    };
    let mut after = None;
    loop {
        let rows = store.paths(name, after, PATHS_PAGE_MAX)?;
        let Some(last) = rows.last() else {
            return Ok(usage);
        };
        after = Some(*last.info.path.hash());
        for row in &rows {
            usage.paths += 1;
            usage.nar_bytes += row.info.nar_size;
            usage.file_bytes += store
                .nar(&row.info.nar_hash)?
                .map_or(0, |nar| nar.file_size);
        }
    }
}

async fn gc(State(app): State<Arc<App>>, request: Request) -> Result<Json<GcReply>, Failure> {
    let GcRequest { dry_run, full } = json_body(&app, request, JSON_LEN_MAX).await?;
    let start = Instant::now();
    let options = CollectOptions { dry_run, full };
    let report = blocking(move || Ok(collect::collect(&app, &options)?)).await?;
    Ok(Json(gc_reply(&report, dry_run, start.elapsed())))
}

async fn verify(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<VerifyReply>, Failure> {
    let VerifyRequest { repair } = json_body(&app, request, JSON_LEN_MAX).await?;
    let start = Instant::now();
    let mut report = verify_store(&app, repair).await?;
    let damaged = report.damaged_nars.iter().map(|nar| nar.nar_hash);
    let damaged: Vec<NarHash> = damaged.filter(|_| repair).collect();
    let fetched = fetch_all(&app, damaged).await;
    if fetched > 0 {
        let healed = report.healed_nars + fetched;
        report = verify_store(&app, repair).await?;
        report.healed_nars += healed;
    }
    Ok(Json(verify_reply(&report, start.elapsed())))
}

async fn verify_store(app: &Arc<App>, repair: bool) -> Result<VerifyReport, Failure> {
    let app = Arc::clone(app);
    blocking(move || {
        let report = app.store.verify(&VerifyOptions { repair }, &mut |_| {})?;
        app.narinfos.clear();
        Ok(report)
    })
    .await
}

/// The cache called `name`.
pub(crate) fn find_cache(app: &App, name: &CacheName) -> Result<Arc<Cache>, Failure> {
    let cache = app.caches.find(name.as_str());
    cache.ok_or_else(|| CacheError::Absent(name.clone()).into())
}

fn parse_name(name: &str) -> Result<CacheName, Failure> {
    name.parse()
        .map_err(|error| Failure::new(Kind::NoSuchCache, error))
}

fn parse_secret(key: &KeyImport) -> Result<SecretKey, Failure> {
    key.secret_key
        .trim()
        .parse()
        .map_err(|error| Failure::from(CacheError::Key(error)))
}

/// Runs `work`, which may wait for the disk, on a blocking thread. Dropping the future does not
/// stop it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    joined(spawn_blocking(work).await)
}

/// The body of a request as JSON of at most `len_max` bytes. An empty body is an empty object.
pub(crate) async fn json_body<T: DeserializeOwned>(
    app: &App,
    request: Request,
    len_max: u64,
) -> Result<T, Failure> {
    let (head, mut body) = request.into_parts();
    check_announced(&head.headers, &mut body, len_max).await?;
    let limits = Limits {
        len_max,
        idle: app.config.http.body_idle_timeout,
    };
    let body = read_small(body, limits).await?;
    let text = if body.is_empty() {
        &b"{}"[..]
    } else {
        &body[..]
    };
    serde_json::from_slice(text).map_err(Failure::bad_request)
}

pub(crate) const JSON_LEN_MAX: u64 = 1 << 20;
const REMOVE_LEN_MAX: u64 = 4 << 20;
const PIN_NAME_LEN_MAX: usize = 128;
const PIN_KEEP_MAX: u32 = 1000;

//! `/healthz`, `/readyz`, `/metrics`: for whoever watches the node; and `/`, for whoever wonders what
//! it is. They need no token and say nothing about contents, nor which caches there are.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use prometheus_client::metrics::counter::Counter;

use crate::app::App;
use crate::metrics::MESH_NUMBERS;

/// The routes, without a prefix.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(ABOUT))
        .route("/healthz", get("ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

async fn ready(State(app): State<Arc<App>>) -> (StatusCode, &'static str) {
    match app.is_ready() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    }
}

async fn metrics(
    State(app): State<Arc<App>>,
) -> ([(hyper::header::HeaderName, &'static str); 1], String) {
    let usage = app.usage();
    let gauges = &app.metrics.store;
    gauges.bytes.set(usage.disk_bytes);
    gauges.packs.set(usage.packs);
    gauges.chunks.set(usage.chunks);
    gauges.damaged_nars.set(usage.damaged_nars);
    // Writes near the size cap evict too, in the store.
    let gc = &app.metrics.gc;
    raise(&gc.evicted_paths, app.store.evicted_paths());
    raise(&gc.freed_bytes, app.store.freed_bytes());
    let sessions = i64::try_from(app.sessions.len()).unwrap_or(i64::MAX);
    app.metrics.push.sessions.set(sessions);
    let mesh = app.mesh.get();
    let numbers = mesh.map_or([0; MESH_NUMBERS.len()], |mesh| mesh.numbers());
    app.metrics.mesh.set(numbers);
    app.upstreams.measure();
    ([(CONTENT_TYPE, CONTENT_TYPE_TEXT)], app.metrics.text())
}

const ABOUT: &str = "\
This is attic-node, a binary cache for Nix.

Have the Nix of this machine substitute from one of its caches:  attic-node use CACHE
Push a path to one, with all that it refers to:                  attic-node push CACHE PATH
";
/// Raises a counter to what was counted elsewhere.
fn raise(counter: &Counter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

const CONTENT_TYPE_TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use attic_store::{Options, Store};

    use super::*;
    use crate::app::Parts;
    use crate::auth::AdminToken;
    use crate::caches::Caches;
    use crate::config::{Config, Sources};
    use crate::data_dir::DataDir;

    /// G11: ready is who listens and is not about to stop.
    #[tokio::test]
    async fn g11_readyz_says_no_before_listening_and_while_stopping() {
        let tmp = tempfile::tempdir().unwrap();
        let data = DataDir::new(tmp.path());
        data.create().unwrap();
        let flag = ("data-dir", tmp.path().display().to_string());
        let app = Arc::new(App::new(Parts {
            config: Config::load(&Sources::only(vec![flag])).unwrap(),
            store: Store::open(&data.store(), Options::default()).unwrap(),
            caches: Caches::load(data.clone()).unwrap(),
            token: AdminToken::load_or_create(&data.admin_token()).unwrap(),
            identity: attic_p2p::identity::Identity::from_seed([1; 32]),
            data: data.clone(),
            started_at: 0,
        }));
        let status = async || ready(State(Arc::clone(&app))).await.0;
        assert_eq!(status().await, StatusCode::SERVICE_UNAVAILABLE);
        app.addresses.set(vec!["somewhere".to_owned()]).unwrap();
        assert_eq!(status().await, StatusCode::OK);
        app.stop();
        assert_eq!(status().await, StatusCode::SERVICE_UNAVAILABLE);
    }
}

//! `/healthz`, `/readyz`, `/metrics`: for whoever watches the node. They need no token and say
//! nothing about contents.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;

use crate::app::App;

/// The routes, without a prefix.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
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
    let sessions = i64::try_from(app.sessions.len()).unwrap_or(i64::MAX);
    app.metrics.push.sessions.set(sessions);
    ([(CONTENT_TYPE, CONTENT_TYPE_TEXT)], app.metrics.text())
}

const CONTENT_TYPE_TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

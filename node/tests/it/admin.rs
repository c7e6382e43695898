//! The admin API and the probes.

use attic_node_core::api::{
    CacheView, ErrorBody, GcReply, PathPage, PinView, RemoveReply, Status, UsageReply, VerifyReply,
};
use attic_store::{PublicKey, SecretKey, StoreDir, TrustedKeys};
use hyper::Method;
use serde_json::json;

use crate::harness::{Sample, TestNode, store_path};

/// G11: probes need no token, and every series is there from the start.
#[tokio::test]
async fn g11_probes_and_metrics() {
    let node = TestNode::start().await;
    assert_eq!(node.get("/healthz").await.text(), "ok\n");
    assert_eq!(node.get("/readyz").await.text(), "ready\n");
    for series in [
        "attic_node_narinfo_hits_total{source=\"local\"}",
        "attic_node_narinfo_hits_total{source=\"peer\"}",
        "attic_node_sent_bytes_total{source=\"upstream\"}",
        "attic_node_gc_runs_total",
        "attic_node_push_new_bytes_total",
        "attic_node_http_requests_total{route=\"nar\",status=\"2xx\"}",
    ] {
        assert_eq!(node.metric(series).await, 0.0, "{series}");
    }
    let sample = Sample::noise("sample", 100_000);
    node.publish("main", &sample).await;
    let url = node.narinfo("main", &sample).await.url;
    let nar = node.get(&format!("/main/{url}")).await;
    assert_eq!(
        node.metric("attic_node_narinfo_hits_total{source=\"local\"}")
            .await,
        1.0
    );
    assert_eq!(
        node.metric("attic_node_nar_sent_bytes_total").await,
        nar.body.len() as f64
    );
    assert_eq!(node.metric("attic_node_push_paths_total").await, 1.0);
    assert_eq!(
        node.metric("attic_node_http_requests_total{route=\"upload\",status=\"2xx\"}")
            .await,
        2.0
    );
    assert!(node.metric("attic_node_store_bytes").await > 100_000.0);
    assert!(
        node.metric("attic_node_process_resident_memory_bytes")
            .await
            > 1e6
    );
}

#[tokio::test]
async fn status_tells_where_and_what() {
    let node = TestNode::start().await;
    let status: Status = node.api(Method::GET, "status").ok().await;
    assert!(status.ready);
    assert_eq!(status.data_dir, node.data_dir().display().to_string());
    assert!(status.addresses.contains(&node.address().to_string()));
    assert!(status.peer_id.starts_with("12D3KooW"));
    assert!(status.connections >= 1);
}

#[tokio::test]
async fn caches_come_and_go() {
    let node = TestNode::start().await;
    let sample = Sample::file("sample", b"contents");
    let create = json!({ "name": "team", "settings": { "priority": 20 } });
    let made: CacheView = node.api(Method::POST, "caches").json(&create).ok().await;
    assert_eq!((made.priority, made.public), (20, true));
    let again = node.api(Method::POST, "caches").json(&create).send().await;
    let error: ErrorBody = serde_json::from_slice(&again.body).unwrap();
    assert_eq!((error.code, error.error.as_str()), (409, "Conflict"));
    assert!(
        node.get("/team/nix-cache-info")
            .await
            .text()
            .contains("Priority: 20")
    );
    node.publish("team", &sample).await;
    let narinfo = format!("/team/{}", sample.narinfo_name());
    assert_eq!(node.get(&narinfo).await.status, 200);
    let list: Vec<CacheView> = node.api(Method::GET, "caches").ok().await;
    assert_eq!(
        list.iter()
            .map(|cache| cache.name.as_str())
            .collect::<Vec<_>>(),
        ["main", "team"]
    );
    let _: CacheView = node.api(Method::DELETE, "caches/team").ok().await;
    assert_eq!(node.get(&narinfo).await.status, 404);
    let gone = node.api(Method::GET, "caches/team").send().await;
    let error: ErrorBody = serde_json::from_slice(&gone.body).unwrap();
    assert_eq!((error.code, error.error.as_str()), (404, "NoSuchCache"));
    let _: CacheView = node.api(Method::POST, "caches").json(&create).ok().await;
    assert_eq!(
        node.get(&narinfo).await.status,
        404,
        "a new cache of the old name is empty"
    );
    for name in ["_node", "..", "a/b", "", "a.b"] {
        let create = json!({ "name": name });
        assert_eq!(
            node.api(Method::POST, "caches")
                .json(&create)
                .send()
                .await
                .status,
            400,
            "{name}"
        );
    }
}

/// Every route of the node itself is no name for a cache, and the answer says why.
#[tokio::test]
async fn a_cache_is_not_called_as_a_route_of_the_node() {
    let node = TestNode::start().await;
    for name in ["healthz", "metrics", "readyz"] {
        assert_eq!(node.get(&format!("/{name}")).await.status, 200, "{name}");
        let create = json!({ "name": name });
        let call = node.api(Method::POST, "caches").json(&create);
        let reply = call.send().await;
        let error: ErrorBody = serde_json::from_slice(&reply.body).unwrap();
        let message =
            format!("no cache can be called {name}: /{name} is an address of the node itself");
        assert_eq!((error.code, error.message), (400, message));
    }
    let create = json!({ "name": "healthz-2" });
    let _: CacheView = node.api(Method::POST, "caches").json(&create).ok().await;
}

/// G16: a patch changes what it names, and an unknown field is refused.
#[tokio::test]
async fn g16_patch_changes_only_what_is_sent() {
    let node = TestNode::start().await;
    let before: CacheView = node.api(Method::GET, "caches/main").ok().await;
    let patch = json!({ "priority": 10 });
    let after: CacheView = node
        .api(Method::PATCH, "caches/main")
        .json(&patch)
        .ok()
        .await;
    assert_eq!(
        after,
        CacheView {
            priority: 10,
            ..before
        }
    );
    let unknown = node
        .api(Method::PATCH, "caches/main")
        .json(&json!({ "prioritty": 1 }))
        .send()
        .await;
    assert_eq!(unknown.status, 400);
    assert!(
        unknown.text().contains("expected one of"),
        "{}",
        unknown.text()
    );
    let sample = Sample::file("sample", b"x");
    node.publish("main", &sample).await;
    let moved = json!({ "store_dir": "/gnu/store" });
    assert_eq!(
        node.api(Method::PATCH, "caches/main")
            .json(&moved)
            .send()
            .await
            .status,
        409
    );
    assert_eq!(
        node.api(Method::GET, "caches/main").ok::<CacheView>().await,
        after
    );
}

#[tokio::test]
async fn a_rotated_key_signs_everything_beside_the_old_one() {
    let mut node = TestNode::start().await;
    let sample = Sample::file("sample", b"contents");
    node.publish("main", &sample).await;
    let old: CacheView = node.api(Method::GET, "caches/main").ok().await;
    let new: CacheView = node.api(Method::POST, "caches/main/key/rotate").ok().await;
    assert_eq!(new.old_public_keys, std::slice::from_ref(&old.public_key));
    node.restart().await;
    let info = node.narinfo("main", &sample).await.info;
    assert_eq!(info.signatures.len(), 2);
    let fingerprint = info.fingerprint(&StoreDir::default());
    for key in [&old.public_key, &new.public_key] {
        let key: PublicKey = key.parse().unwrap();
        assert!(
            TrustedKeys::new([key])
                .verify(&fingerprint, &info.signatures)
                .is_some()
        );
    }
    let imported = SecretKey::generate("own-1", [3; 32]).unwrap();
    let import = json!({ "secret_key": imported.to_text() });
    let view: CacheView = node
        .api(Method::POST, "caches/main/key/import")
        .json(&import)
        .ok()
        .await;
    assert_eq!(view.public_key, imported.public().to_string());
    assert_eq!(node.narinfo("main", &sample).await.info.signatures.len(), 3);
    let bad = json!({ "secret_key": "own-1:xyz" });
    let reply = node
        .api(Method::POST, "caches/main/key/import")
        .json(&bad)
        .send()
        .await;
    assert_eq!(reply.status, 400);
    assert!(!reply.text().contains("xyz"), "secrets are not repeated");
}

/// P15: list, remove, and pins that keep their closure.
#[tokio::test]
async fn p15_paths_are_listed_and_removed_unless_pinned() {
    let node = TestNode::start().await;
    let library = Sample::file("library", b"library");
    let program = Sample::file("program", b"program").referring_to(&[&library]);
    let other = Sample::file("other", b"other");
    for sample in [&library, &program, &other] {
        node.publish("main", sample).await;
    }
    let mut listed = Vec::new();
    let mut query = "limit=2".to_owned();
    loop {
        let page: PathPage = node
            .api(Method::GET, &format!("caches/main/paths?{query}"))
            .ok()
            .await;
        assert!(page.paths.len() <= 2);
        listed.extend(page.paths.into_iter().map(|path| path.info.path));
        let Some(next) = page.next else { break };
        query = format!("limit=2&after={next}");
    }
    let mut wanted: Vec<_> = [&library, &program, &other]
        .map(|sample| sample.path.clone())
        .into();
    listed.sort();
    wanted.sort();
    assert_eq!(listed, wanted, "each once");

    let pin = json!({ "path": program.path });
    let set: PinView = node
        .api(Method::PUT, "caches/main/pins/app")
        .json(&pin)
        .ok()
        .await;
    assert_eq!((set.path, set.keep), (program.path.clone(), 1));
    let pins: Vec<PinView> = node.api(Method::GET, "caches/main/pins").ok().await;
    assert_eq!(pins.len(), 1);
    let absent = store_path("absent");
    let doomed = [library.hash(), other.hash(), *absent.hash()];
    let request = json!({ "paths": doomed, "dry_run": true });
    let dry: RemoveReply = node
        .api(Method::POST, "caches/main/remove")
        .json(&request)
        .ok()
        .await;
    assert_eq!(dry.removed, std::slice::from_ref(&other.path));
    assert_eq!(
        node.get(&format!("/main/{}", other.narinfo_name()))
            .await
            .status,
        200
    );
    let request = json!({ "paths": doomed });
    let reply: RemoveReply = node
        .api(Method::POST, "caches/main/remove")
        .json(&request)
        .ok()
        .await;
    assert_eq!(reply, dry);
    assert_eq!(reply.absent, [*absent.hash()]);
    assert_eq!(
        (&reply.pinned[0].path, reply.pinned[0].pin.as_str()),
        (&library.path, "app")
    );
    assert_eq!(
        node.get(&format!("/main/{}", other.narinfo_name()))
            .await
            .status,
        404
    );
    let unpinned = node
        .api(Method::DELETE, "caches/main/pins/app")
        .send()
        .await;
    assert_eq!(unpinned.status, 204);
    assert_eq!(
        node.api(Method::DELETE, "caches/main/pins/app")
            .send()
            .await
            .status,
        404
    );
    let reply: RemoveReply = node
        .api(Method::POST, "caches/main/remove")
        .json(&request)
        .ok()
        .await;
    assert_eq!(reply.removed, std::slice::from_ref(&library.path));
    for (pin, body) in [
        (".x", json!({ "path": program.path })),
        ("x", json!({ "path": program.path, "keep": 0 })),
        ("x", json!({ "path": "nonsense" })),
    ] {
        let reply = node
            .api(Method::PUT, &format!("caches/main/pins/{pin}"))
            .json(&body)
            .send()
            .await;
        assert_eq!(reply.status, 400, "{pin} {body}");
    }
    let elsewhere = json!({ "path": absent });
    let reply = node
        .api(Method::PUT, "caches/main/pins/x")
        .json(&elsewhere)
        .send()
        .await;
    assert_eq!(reply.status, 404);
}

/// G6, P15: what was removed is gone, under the URL of its NAR too, and so are its bytes.
#[tokio::test]
async fn collection_gives_back_what_was_removed() {
    let mut node = TestNode::start().await;
    let (kept, doomed) = (
        Sample::noise("kept", 2_000_000),
        Sample::noise("doomed", 3_000_000),
    );
    node.publish("main", &kept).await;
    node.publish("main", &doomed).await;
    let doomed_url = node.narinfo("main", &doomed).await.url;
    let remove = json!({ "paths": [doomed.hash()] });
    let _: RemoveReply = node
        .api(Method::POST, "caches/main/remove")
        .json(&remove)
        .ok()
        .await;
    let dry: GcReply = node
        .api(Method::POST, "gc")
        .json(&json!({ "dry_run": true, "full": true }))
        .ok()
        .await;
    assert!(dry.dry_run);
    let before: UsageReply = node.api(Method::GET, "usage").ok().await;
    assert_eq!(before.caches[0].paths, 1);
    let gc: GcReply = node
        .api(Method::POST, "gc")
        .json(&json!({ "full": true }))
        .ok()
        .await;
    assert!(gc.freed_bytes > 2_900_000, "{gc:?}");
    let after: UsageReply = node.api(Method::GET, "usage").ok().await;
    assert!(after.store.disk_bytes + 2_900_000 < before.store.disk_bytes);
    let verify: VerifyReply = node.api(Method::POST, "verify").json(&json!({})).ok().await;
    assert_eq!((verify.damaged_records, verify.damaged_nars), (0, 0));
    assert!(dry.freed_bytes.abs_diff(gc.freed_bytes) < gc.freed_bytes / 10);
    assert_eq!(node.metric("attic_node_gc_runs_total").await, 1.0);
    assert_eq!(node.metric("attic_node_gc_dropped_nars_total").await, 1.0);
    let freed = node.metric("attic_node_gc_freed_bytes_total").await;
    assert_eq!(freed, gc.freed_bytes as f64);
    for _ in 0..2 {
        for target in [
            doomed_url.clone(),
            doomed_url.replace(".zst", ""),
            doomed.url(),
        ] {
            assert_eq!(node.get(&format!("/main/{target}")).await.status, 404);
            assert_eq!(node.head(&format!("/main/{target}")).await.status, 404);
        }
        node.restart().await;
    }
    let url = node.narinfo("main", &kept).await.url;
    assert_eq!(
        zstd::decode_all(&node.get(&format!("/main/{url}")).await.body[..]).unwrap(),
        kept.nar
    );
}

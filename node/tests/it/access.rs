//! Who may do what, and what strangers learn: nothing.

use attic_node_core::api::{CacheView, RemoveReply};
use hyper::Method;

use crate::harness::{Reply, Sample, TestNode, store_path};

/// A node with a private cache that holds a path.
async fn node_with_private(sample: &Sample) -> TestNode {
    let node = TestNode::start().await;
    let create = serde_json::json!({ "name": "private", "settings": { "public": false } });
    let _: CacheView = node.api(Method::POST, "caches").json(&create).ok().await;
    node.publish("private", sample).await;
    node
}

/// Everything of an answer but its date.
fn visible(reply: &Reply) -> (u16, Vec<(String, String)>, String) {
    let headers = reply
        .headers
        .iter()
        .filter(|(name, _)| name.as_str() != "date");
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    (reply.status.as_u16(), headers.collect(), reply.text())
}

/// P12: a private cache looks like one that does not exist, whatever is asked of it.
#[tokio::test]
async fn p12_denials_are_identical() {
    let sample = Sample::file("sample", b"contents");
    let node = node_with_private(&sample).await;
    let absent = store_path("absent");
    let objects = [
        "nix-cache-info".to_owned(),
        sample.narinfo_name(),
        format!("{}.narinfo", absent.hash()),
        format!("{}.ls", sample.hash()),
        format!("nar/{}.nar.zst", sample.nar_hash().nix32()),
        format!("nar/{}.nar", "0".repeat(52)),
        format!("log/{}", store_path("a.drv")),
        "nonsense".to_owned(),
    ];
    for method in [Method::GET, Method::HEAD] {
        for object in &objects {
            let ask = |cache: &str| node.request(method.clone(), &format!("/{cache}/{object}"));
            let wanted = visible(&ask("absent").send().await);
            assert_eq!(wanted.0, 404);
            assert_eq!(visible(&ask("private").send().await), wanted, "{object}");
            let stranger = ask("private")
                .header("authorization", "Bearer wrong")
                .send()
                .await;
            assert_eq!(visible(&stranger), wanted, "{object}");
            let elsewhere = ask("absent")
                .header("authorization", "Bearer wrong")
                .send()
                .await;
            assert_eq!(visible(&elsewhere), wanted, "{object}");
        }
    }
    let narinfo = format!("/private/{}", sample.narinfo_name());
    // Twice: remembered answers are for public caches alone.
    for _ in 0..2 {
        let reply = node.request(Method::GET, &narinfo).admin().send().await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("cache-control"), "private, no-cache");
        assert_eq!(node.get(&narinfo).await.status, 404);
    }
}

/// P12: the hash of a private cache's NAR does not open it through a public cache.
#[tokio::test]
async fn p12_a_hash_is_no_key_to_another_caches_nar() {
    let secret = Sample::noise("secret", 300_000);
    let shared = Sample::noise("shared", 300_000);
    let node = node_with_private(&secret).await;
    node.publish("private", &shared).await;
    node.publish("main", &shared).await;
    for suffix in [".zst", ""] {
        let nar = |sample: &Sample| format!("nar/{}.nar{suffix}", sample.nar_hash().nix32());
        for method in [Method::GET, Method::HEAD] {
            let through_main = format!("/main/{}", nar(&secret));
            assert_eq!(
                node.request(method.clone(), &through_main)
                    .send()
                    .await
                    .status,
                404
            );
            let shared = format!("/main/{}", nar(&shared));
            assert_eq!(node.request(method, &shared).send().await.status, 200);
        }
        let own = node
            .request(Method::GET, &format!("/private/{}", nar(&secret)))
            .admin()
            .send();
        assert_eq!(own.await.status, 200);
    }
    let put = node
        .put(
            &format!("/main/{}", secret.narinfo_name()),
            secret.narinfo(),
        )
        .await;
    assert_eq!(put.status, 400, "nor does it put it into one");
}

/// P12: a NAR can be read through a cache as long as a path there has it, and no longer, though its
/// bytes stay until they are collected.
#[tokio::test]
async fn p12_a_nar_is_shown_only_while_a_path_of_the_cache_has_it() {
    let secret = Sample::noise("secret", 300_000);
    let mut node = node_with_private(&secret).await;
    let gone = Sample::noise("gone", 300_000);
    node.publish("main", &gone).await;
    let twin = Sample {
        path: store_path("twin"),
        ..gone.clone()
    };
    node.publish("main", &twin).await;
    let remove = |sample: &Sample| serde_json::json!({ "paths": [sample.hash()] });
    let removal = remove(&gone);
    let _: RemoveReply = node
        .api(Method::POST, "caches/main/remove")
        .json(&removal)
        .ok()
        .await;
    assert_eq!(statuses(&node, &gone).await, [200; 5], "its twin has it");
    let removal = remove(&twin);
    let _: RemoveReply = node
        .api(Method::POST, "caches/main/remove")
        .json(&removal)
        .ok()
        .await;
    // From here on all caches are public, which changes nothing.
    let _: CacheView = node.api(Method::DELETE, "caches/private").ok().await;
    for _ in 0..2 {
        for sample in [&secret, &gone] {
            assert_eq!(statuses(&node, sample).await, [404; 5]);
        }
        node.restart().await;
    }
    node.publish("main", &gone).await;
    assert_eq!(statuses(&node, &gone).await, [200; 5]);
}

/// What the names of a NAR are answered through the cache `main`.
async fn statuses(node: &TestNode, sample: &Sample) -> [u16; 5] {
    let digits = sample.nar_hash().nix32();
    let zstd = format!("/main/nar/{digits}.nar.zst");
    let plain = format!("/main/nar/{digits}.nar");
    [
        node.get(&zstd).await.status.as_u16(),
        node.head(&zstd).await.status.as_u16(),
        node.get(&plain).await.status.as_u16(),
        node.head(&plain).await.status.as_u16(),
        node.get(&format!("/main/{}", sample.url()))
            .await
            .status
            .as_u16(),
    ]
}

/// S1: whoever comes with a token that is wrong, old or no token at all reads a public cache as
/// anybody does.
#[tokio::test]
async fn s1_a_bad_token_does_not_spoil_reading_a_public_cache() {
    let sample = Sample::file("sample", b"contents");
    let node = TestNode::start().await;
    node.publish("main", &sample).await;
    let absent = format!("/main/{}.narinfo", store_path("absent").hash());
    let rows = [
        ("/main/nix-cache-info".to_owned(), 200),
        (format!("/main/{}", sample.narinfo_name()), 200),
        (format!("/main/{}.ls", sample.hash()), 200),
        (
            format!("/main/nar/{}.nar.zst", sample.nar_hash().nix32()),
            200,
        ),
        (absent, 404),
    ];
    for (target, status) in rows {
        for token in ["Bearer wrong", "Basic ###", "Basic Og==", "Negotiate x", ""] {
            let reply = node
                .request(Method::GET, &target)
                .header("authorization", token)
                .send()
                .await;
            assert_eq!(reply.status, status, "{target} with {token:?}");
        }
    }
}

/// P12: writing is refused before anything is looked up.
#[tokio::test]
async fn p12_writes_are_refused_alike_for_present_and_absent() {
    let sample = Sample::file("sample", b"contents");
    let node = node_with_private(&sample).await;
    let targets = [
        format!("/private/{}", sample.narinfo_name()),
        format!("/main/{}", sample.narinfo_name()),
        format!("/absent/{}", sample.url()),
        "/main/nix-cache-info".to_owned(),
        "/nonsense".to_owned(),
    ];
    let put = |target: &str| node.request(Method::PUT, target).body("x");
    let anonymous = visible(&put("/x/y").send().await);
    let stranger = visible(
        &put("/x/y")
            .header("authorization", "Bearer wrong")
            .send()
            .await,
    );
    assert_eq!((anonymous.0, stranger.0), (401, 403));
    assert!(anonymous.1.contains(&(
        "www-authenticate".to_owned(),
        "Basic realm=\"attic-node\"".to_owned()
    )));
    for target in targets {
        assert_eq!(visible(&put(&target).send().await), anonymous, "{target}");
        let reply = put(&target)
            .header("authorization", "Bearer wrong")
            .send()
            .await;
        assert_eq!(visible(&reply), stranger, "{target}");
    }
}

#[tokio::test]
async fn the_admin_api_is_closed_to_strangers() {
    let node = TestNode::start().await;
    for route in [
        "status",
        "caches",
        "caches/main",
        "caches/absent",
        "usage",
        "nonsense",
        "push/x/missing",
    ] {
        let target = format!("/_node/v1/{route}");
        assert_eq!(node.get(&target).await.status, 401, "{route}");
        let wrong = node
            .request(Method::GET, &target)
            .header("authorization", "Bearer wrong");
        assert_eq!(wrong.send().await.status, 403, "{route}");
    }
    let basic = data_encoding::BASE64.encode(format!("any:{}", &node.bearer()[7..]).as_bytes());
    let status = node.request(Method::GET, "/_node/v1/status");
    let status = status
        .header("authorization", &format!("Basic {basic}"))
        .send()
        .await;
    assert_eq!(status.status, 200);
}

/// Who looks at the root learns what this is, and nothing about what is in it.
#[tokio::test]
async fn the_root_says_what_the_node_is_and_names_no_cache() {
    let node = node_with_private(&Sample::file("sample", b"contents")).await;
    let reply = node.get("/").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "text/plain; charset=utf-8");
    let text = reply.text();
    assert!(text.contains("attic-node use CACHE"), "{text}");
    assert!(
        !text.contains("main") && !text.contains("private"),
        "{text}"
    );
    let head = node.head("/").await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(node.request(Method::PUT, "/").send().await.status, 405);
}

#[tokio::test]
async fn foreign_hosts_are_refused() {
    let node = TestNode::with(&[("http.allowed-hosts", "cache.lan")]).await;
    let sample = Sample::file("sample", b"contents");
    node.publish("main", &sample).await;
    let narinfo = format!("/main/{}", sample.narinfo_name());
    node.get(&narinfo).await;
    for target in [
        "/main/nix-cache-info",
        narinfo.as_str(),
        "/healthz",
        "/_node/v1/status",
    ] {
        for host in [
            "evil.example",
            "evil.example:7745",
            "127.0.0.1.evil.example",
            "",
        ] {
            let reply = node.request(Method::GET, target).host(host).send().await;
            assert_eq!(reply.status, 421, "{target} {host}");
            assert_eq!(reply.header("access-control-allow-origin"), "");
        }
    }
    for host in [
        "127.0.0.1:7745",
        "[::1]",
        "localhost:1",
        "cache.lan",
        "10.0.0.1",
    ] {
        assert_eq!(
            node.request(Method::GET, &narinfo)
                .host(host)
                .send()
                .await
                .status,
            200,
            "{host}"
        );
    }
    let absolute =
        "GET http://evil.example/main/nix-cache-info HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert!(
        node.raw(absolute.as_bytes())
            .await
            .starts_with("HTTP/1.1 421 ")
    );
    let absolute = "GET http://localhost/main/nix-cache-info HTTP/1.1\r\nHost: localhost\r\n\
                    Connection: close\r\n\r\n";
    assert!(
        node.raw(absolute.as_bytes())
            .await
            .starts_with("HTTP/1.1 200 ")
    );
}

#[tokio::test]
async fn other_methods_are_refused_and_change_nothing() {
    let node = TestNode::start().await;
    let sample = Sample::file("sample", b"contents");
    node.publish("main", &sample).await;
    let target = format!("/main/{}", sample.narinfo_name());
    for method in ["POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let reply = node.request(method.clone(), &target).admin().send().await;
        assert_eq!(reply.status, 405, "{method}");
        assert_eq!(reply.header("allow"), "GET, HEAD, PUT");
    }
    assert_eq!(node.get(&target).await.status, 200);
}

/// Nothing of a target reaches the disk.
#[tokio::test]
async fn traversal_is_answered_404() {
    let node = TestNode::start().await;
    let targets = [
        "/../admin-token",
        "/main/../../admin-token",
        "/main/nar/../../../admin-token",
        "/main/nar/..%2f..%2f..%2fadmin-token",
        "/main/nar/%2e%2e/%2e%2e/admin-token",
        "/main/%2e%2e/%2e%2e/admin-token",
        "/main/..\\..\\admin-token",
        "/main/log/../../../admin-token",
        "/main/log/..%2f..%2fadmin-token",
        "/main/log/%2e%2e%2f%2e%2e%2fadmin-token",
        "/main/realisations/../../admin-token",
        "/main/build-trace-v2/../../admin-token",
        "/main/debuginfo/../../admin-token",
        "/..%2fmain/nix-cache-info",
        "/%2e%2e/main/nix-cache-info",
        "/main%00/nix-cache-info",
        "/main/nix-cache-info%00",
        "/main//etc/passwd",
        "//etc/passwd",
        "/main/./nix-cache-info",
        "/main/.git/config",
        "/.well-known/x",
        "/main/",
        "/main",
    ];
    for target in targets {
        let raw = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = node.raw(raw.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(matches!(status, "404" | "400"), "{target}: {answer}");
        assert!(!answer.contains("passwd"), "{target} is reflected");
    }
}

//! What Nix reads: narinfo, NAR, listings, logs.

use std::fs;

use hyper::Method;

use crate::harness::{Sample, TestNode, all, files_below, store_path};

async fn node_with(sample: &Sample) -> TestNode {
    let node = TestNode::start().await;
    node.publish("main", sample).await;
    node
}

#[tokio::test]
async fn cache_info_says_what_a_client_must_know() {
    let node = TestNode::start().await;
    let reply = node.get("/main/nix-cache-info").await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.text(),
        "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"
    );
    assert_eq!(reply.header("content-type"), "text/x-nix-cache-info");
    let head = node.head("/main/nix-cache-info").await;
    assert_eq!(head.header("content-length"), reply.body.len().to_string());
    assert_eq!(node.get("/main/nix-cache-info?x=1").await.status, 200);
}

/// S6: a narinfo has everything, and a signature of the cache.
#[tokio::test]
async fn s6_narinfo_is_complete_and_signed() {
    let other = Sample::file("other", b"x");
    let sample = Sample::file("sample", b"contents").referring_to(&[&other]);
    let node = node_with(&sample).await;
    let narinfo = node.narinfo("main", &sample).await;
    assert_eq!(narinfo.info.path, sample.path);
    assert_eq!(narinfo.info.nar_hash, sample.nar_hash());
    assert_eq!(narinfo.info.nar_size, sample.nar.len() as u64);
    assert_eq!(narinfo.info.references, sample.references);
    assert_eq!(narinfo.compression.as_str(), "zstd");
    assert_eq!(narinfo.info.signatures.len(), 1);
    let nar = node.get(&format!("/main/{}", narinfo.url)).await;
    assert_eq!(Some(nar.body.len() as u64), narinfo.file_size);
    assert_eq!(
        Some(attic_store::FileHash::of(&nar.body)),
        narinfo.file_hash
    );
    assert_eq!(zstd::decode_all(&nar.body[..]).unwrap(), sample.nar);
    let view = &node
        .api(Method::GET, "caches")
        .ok::<Vec<attic_node_core::api::CacheView>>()
        .await[0];
    let key: attic_store::PublicKey = view.public_key.parse().unwrap();
    let fingerprint = narinfo.info.fingerprint(&attic_store::StoreDir::default());
    assert!(key.verify(fingerprint.as_ref(), &narinfo.info.signatures[0]));
}

/// S6: what a path was pushed with comes back, each field once and well-formed, as the strictest
/// reader wants it.
#[tokio::test]
async fn s6_every_field_comes_back_as_it_was_pushed() {
    let (other, third) = (Sample::file("other", b"x"), Sample::file("third", b"y"));
    let mut sample = Sample::file("sample", b"contents").referring_to(&[&other, &third]);
    sample.references.insert(sample.path.clone());
    sample.deriver = Some(store_path("sample.drv"));
    let node = node_with(&sample).await;
    let narinfo = node.narinfo("main", &sample).await;
    let mut info = narinfo.info.clone();
    info.signatures.clear();
    assert_eq!(info, sample.info());
    let text = node
        .get(&format!("/main/{}", sample.narinfo_name()))
        .await
        .text();
    let lines: Vec<(&str, &str)> = text
        .lines()
        .map(|line| line.split_once(": ").unwrap())
        .collect();
    let keys: Vec<&str> = lines.iter().map(|(key, _)| *key).collect();
    let wanted = [
        "StorePath",
        "URL",
        "Compression",
        "FileHash",
        "FileSize",
        "NarHash",
        "NarSize",
        "References",
        "Deriver",
        "Sig",
    ];
    assert_eq!(keys, wanted, "each once, none empty");
    let value = |key| lines.iter().find(|(name, _)| *name == key).unwrap().1;
    for key in ["FileHash", "NarHash"] {
        let digits = value(key).strip_prefix("sha256:").unwrap();
        assert_eq!(digits.len(), 52, "{key}");
    }
    for key in ["FileSize", "NarSize"] {
        assert!(value(key).parse::<u64>().unwrap() > 0, "{key}");
    }
    assert_eq!(value("Deriver"), sample.deriver.unwrap().to_string());
    let mut references: Vec<String> = sample.references.iter().map(|r| r.to_string()).collect();
    references.sort();
    assert_eq!(value("References"), references.join(" "));
}

/// S5: the URL of a NAR is keyed by its hash.
#[tokio::test]
async fn s5_nar_url_is_keyed_by_content() {
    let sample = Sample::file("sample", b"contents");
    let twin = Sample {
        path: store_path("twin"),
        ..sample.clone()
    };
    let node = node_with(&sample).await;
    node.publish("main", &twin).await;
    let url = format!("nar/{}.nar.zst", sample.nar_hash().nix32());
    assert_eq!(node.narinfo("main", &sample).await.url, url);
    assert_eq!(node.narinfo("main", &twin).await.url, url);
}

#[tokio::test]
async fn the_plain_nar_is_offered_too() {
    let sample = Sample::noise("sample", 3_000_000);
    let node = node_with(&sample).await;
    let target = format!("/main/nar/{}.nar", sample.nar_hash().nix32());
    let reply = node.get(&target).await;
    assert_eq!(reply.body, sample.nar);
    assert_eq!(
        node.head(&target).await.header("content-length"),
        sample.nar.len().to_string()
    );
    let part = node
        .request(Method::GET, &target)
        .header("range", "bytes=100-2999999")
        .send()
        .await;
    assert_eq!(part.status, 206);
    assert_eq!(part.body, sample.nar[100..3_000_000]);
}

/// S4: length, tag and ranges over the concatenated frames.
#[tokio::test]
async fn s4_ranges_are_exact_and_say_so() {
    let sample = Sample::noise("sample", 5_000_000);
    let node = node_with(&sample).await;
    let target = format!("/main/nar/{}.nar.zst", sample.nar_hash().nix32());
    let whole = node.get(&target).await;
    let size = whole.body.len();
    assert_eq!(whole.header("content-length"), size.to_string());
    assert_eq!(whole.header("accept-ranges"), "bytes");
    assert_eq!(whole.header("content-encoding"), "");
    let etag = whole.header("etag").to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
    let rows = [
        ("bytes=0-".to_owned(), 0..size),
        ("bytes=0-0".to_owned(), 0..1),
        ("bytes=1048575-1048577".to_owned(), 1_048_575..1_048_578),
        (format!("bytes={}-", size - 1), size - 1..size),
        ("bytes=-1".to_owned(), size - 1..size),
        ("bytes=2500000-".to_owned(), 2_500_000..size),
        (format!("bytes=7-{}", size * 2), 7..size),
    ];
    for (header, range) in rows {
        let part = node.request(Method::GET, &target).header("range", &header);
        let part = part.header("if-range", &etag).send().await;
        assert_eq!(part.status, 206, "{header}");
        assert_eq!(part.body, whole.body[range.clone()], "{header}");
        assert_eq!(
            part.header("accept-ranges"),
            "bytes",
            "Nix forgets it otherwise"
        );
        assert_eq!(part.header("etag"), etag);
        let wanted = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        assert_eq!(part.header("content-range"), wanted);
    }
}

/// S4: what is no single range is the whole, what is beyond the end is 416.
#[tokio::test]
async fn s4_odd_ranges_are_harmless() {
    let sample = Sample::noise("sample", 10_000);
    let node = node_with(&sample).await;
    let target = format!("/main/nar/{}.nar.zst", sample.nar_hash().nix32());
    let size = node.get(&target).await.body.len();
    let thousand = format!("bytes={}", vec!["0-9999"; 1000].join(","));
    for header in [
        "bytes=5-4",
        "bytes=a-b",
        "lines=1-2",
        "bytes=0-1,3-4",
        thousand.as_str(),
    ] {
        let reply = node
            .request(Method::GET, &target)
            .header("range", header)
            .send()
            .await;
        assert_eq!(
            (reply.status.as_u16(), reply.body.len()),
            (200, size),
            "{header}"
        );
    }
    let stale = node
        .request(Method::GET, &target)
        .header("range", "bytes=5-");
    assert_eq!(
        stale.header("if-range", "\"other\"").send().await.status,
        200
    );
    let header = format!("bytes={size}-");
    let beyond = node
        .request(Method::GET, &target)
        .header("range", &header)
        .send()
        .await;
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range"), format!("bytes */{size}"));
    assert_eq!(beyond.header("accept-ranges"), "bytes");
}

/// S4: the same bytes after a restart, so that a download resumes.
#[tokio::test]
async fn s4_bytes_and_tag_survive_a_restart() {
    let sample = Sample::noise("sample", 3_000_000);
    let mut node = node_with(&sample).await;
    let target = format!("/main/nar/{}.nar.zst", sample.nar_hash().nix32());
    let before = node.get(&target).await;
    node.restart().await;
    let after = node
        .request(Method::GET, &target)
        .header("range", "bytes=1000000-")
        .send()
        .await;
    assert_eq!(after.body, before.body[1_000_000..]);
    assert_eq!(after.header("etag"), before.header("etag"));
}

/// S14: NARs are immutable for a year, everything else is revalidated, and misses are not kept.
#[tokio::test]
async fn s14_cache_headers_and_revalidation() {
    let sample = Sample::file("sample", b"contents");
    let node = node_with(&sample).await;
    let narinfo = format!("/main/{}", sample.narinfo_name());
    let nar = format!("/main/nar/{}.nar.zst", sample.nar_hash().nix32());
    let rows = [
        (narinfo, "public, no-cache"),
        (nar, "public, max-age=31536000, immutable"),
        (format!("/main/{}.ls", sample.hash()), "public, no-cache"),
        ("/main/nix-cache-info".to_owned(), "public, no-cache"),
    ];
    for (target, freshness) in rows {
        // Twice: the second narinfo comes from memory.
        for _ in 0..2 {
            let reply = node.get(&target).await;
            assert_eq!(reply.header("cache-control"), freshness, "{target}");
            let etag = reply.header("etag").to_owned();
            let known = node
                .request(Method::GET, &target)
                .header("if-none-match", &etag)
                .send()
                .await;
            assert_eq!(
                (known.status.as_u16(), known.body.len()),
                (304, 0),
                "{target}"
            );
            assert_eq!(known.header("etag"), etag);
            let other = node
                .request(Method::GET, &target)
                .header("if-none-match", "\"x\"");
            assert_eq!(other.send().await.status, 200, "{target}");
            assert_eq!(known.header("cache-control"), freshness, "{target}");
        }
    }
    let absent = store_path("absent");
    for target in [
        format!("/main/{}.narinfo", absent.hash()),
        format!("/main/nar/{}.nar.zst", "0".repeat(52)),
        "/absent/nix-cache-info".to_owned(),
    ] {
        let reply = node.get(&target).await;
        let freshness = reply.header("cache-control");
        assert_eq!((reply.status.as_u16(), freshness), (404, "no-store"));
    }
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let sample = Sample::noise("sample", 2_000_000);
    let node = node_with(&sample).await;
    let hash = sample.hash();
    for target in [
        "/main/nix-cache-info".to_owned(),
        format!("/main/{hash}.narinfo"),
        format!("/main/{hash}.ls"),
        format!("/main/nar/{}.nar.zst", sample.nar_hash().nix32()),
        format!("/main/nar/{}.nar", sample.nar_hash().nix32()),
        format!("/main/{}.narinfo", store_path("absent").hash()),
        "/absent/nix-cache-info".to_owned(),
    ] {
        let (get, head) = (node.get(&target).await, node.head(&target).await);
        assert_eq!(get.status, head.status, "{target}");
        assert_eq!(
            head.header("content-length"),
            get.body.len().to_string(),
            "{target}"
        );
        for name in ["content-type", "etag", "accept-ranges", "cache-control"] {
            assert_eq!(head.header(name), get.header(name), "{target} {name}");
        }
    }
}

/// S12: a listing with the offsets of the plain NAR.
#[tokio::test]
async fn s12_listings_are_derived_from_the_nar() {
    let sample = Sample::file("sample", b"0123456789");
    let node = node_with(&sample).await;
    let reply = node.get(&format!("/main/{}.ls", sample.hash())).await;
    assert_eq!(reply.header("content-type"), "application/json");
    let listing: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    let offset = listing["root"]["narOffset"].as_u64().unwrap() as usize;
    assert_eq!(&sample.nar[offset..offset + 10], b"0123456789");
}

/// S12: logs, build traces and debug information come back as they were sent.
#[tokio::test]
async fn s12_small_objects_round_trip() {
    let node = TestNode::start().await;
    let drv = store_path("a?b=c.drv").to_string();
    let id = "0f".repeat(20);
    let realised = format!("sha256:{}!out", "0a".repeat(32));
    let out = store_path("a");
    let trace = format!("{{\"outPath\":\"{out}\",\"signatures\":[]}}");
    let realisation = format!("{{\"id\":\"{realised}\",\"outPath\":\"{out}\"}}");
    let debug_info = format!(
        "{{\"archive\":\"../nar/{}.nar.xz\",\"member\":\"lib/debug/x\"}}",
        "1".repeat(52)
    );
    let rows = [
        (
            format!("log/{drv}"),
            "text/plain; charset=utf-8",
            b"line\nline \xff\n".as_slice(),
        ),
        (
            format!("build-trace-v2/{}/out.doi", store_path("a.drv")),
            "application/json",
            trace.as_bytes(),
        ),
        (
            format!("realisations/{realised}.doi"),
            "application/json",
            realisation.as_bytes(),
        ),
        (
            format!("debuginfo/{id}"),
            "application/json",
            debug_info.as_bytes(),
        ),
    ];
    for (name, content_type, bytes) in rows {
        let target = format!("/main/{name}");
        assert_eq!(node.get(&target).await.status, 404, "{target}");
        if content_type == "application/json" {
            let reply = node.put(&target, b"{}".as_slice()).await;
            assert_eq!(reply.status, 400, "{target}");
            assert_eq!(reply.text().lines().count(), 1, "{}", reply.text());
        }
        let reply = node.put(&target, bytes.to_vec()).await;
        assert_eq!(reply.status, 201, "{target}: {}", reply.text());
        let reply = node.get(&target).await;
        assert_eq!(
            (&reply.body[..], reply.header("content-type")),
            (bytes, content_type)
        );
    }
    assert_eq!(
        node.get(&format!("/main/debuginfo/{id}.debug"))
            .await
            .status,
        200
    );
    let escaped = format!("/main/log/{}", drv.replace('?', "%3F"));
    assert_eq!(node.get(&escaped).await.status, 200);
}

/// S1: damage is answered 404, before the first byte, and a new upload heals it.
#[tokio::test]
async fn s1_damaged_bytes_are_never_served_and_a_new_push_heals() {
    let sample = Sample::noise("sample", 600_000);
    let mut node = node_with(&sample).await;
    node.stop().await;
    let mut flipped = 0;
    for file in files_below(&node.data_dir().join("store/packs")) {
        let mut bytes = fs::read(&file).unwrap();
        // In the middle of the noise, which takes almost all of the pack.
        if bytes.len() > 300_000 {
            bytes[300_000] ^= 1;
            fs::write(&file, bytes).unwrap();
            flipped += 1;
        }
    }
    assert_eq!(flipped, 1);
    node.boot().await;
    for suffix in [".zst", ""] {
        let nar = format!("/main/nar/{}.nar{suffix}", sample.nar_hash().nix32());
        assert_eq!(node.get(&nar).await.status, 404);
    }
    assert_eq!(
        node.get(&format!("/main/{}", sample.narinfo_name()))
            .await
            .status,
        404
    );
    assert!(node.metric("attic_node_store_read_errors_total").await > 0.0);
    node.publish("main", &sample).await;
    let narinfo = node.narinfo("main", &sample).await;
    let nar = node.get(&format!("/main/{}", narinfo.url)).await;
    assert_eq!(zstd::decode_all(&nar.body[..]).unwrap(), sample.nar);
}

/// S3: a pack that is deleted or cut under a running node is noticed before the status line, in
/// whatever pack of many it is, and a new upload brings back what it held.
#[tokio::test]
async fn s3_a_pack_lost_under_a_running_node_is_a_404_before_the_first_byte() {
    let sample = Sample::noise("sample", 6_000_000);
    let node = TestNode::with(&[("store.pack-size", "1 MiB")]).await;
    for step in 0..6 {
        node.publish("main", &sample).await;
        let url = node.narinfo("main", &sample).await.url;
        let whole = node.get(&format!("/main/{url}")).await;
        assert_eq!(zstd::decode_all(&whole.body[..]).unwrap(), sample.nar);
        let packs = files_below(&node.data_dir().join("store/packs"));
        let large = |pack: &&std::path::PathBuf| fs::metadata(pack).unwrap().len() > 500_000;
        let large: Vec<_> = packs.iter().filter(large).collect();
        let pack = large[step % large.len()];
        match step % 2 {
            0 => fs::remove_file(pack).unwrap(),
            _ => {
                let file = fs::File::options().write(true).open(pack).unwrap();
                file.set_len(200_000).unwrap();
            }
        }
        let nar = format!("/main/nar/{}.nar", sample.nar_hash().nix32());
        for target in [format!("/main/{url}"), nar] {
            for method in [Method::GET, Method::HEAD] {
                let reply = node.request(method, &target).send().await;
                assert_eq!(reply.status, 404, "step {step}: {target}");
            }
        }
        let narinfo = format!("/main/{}", sample.narinfo_name());
        assert_eq!(node.get(&narinfo).await.status, 404, "step {step}");
    }
}

/// S1: every miss is a plain 404, whatever was asked.
#[tokio::test]
async fn s1_misses_are_404() {
    let node = TestNode::start().await;
    let absent = store_path("absent");
    for target in [
        format!("/main/{}.narinfo", absent.hash()),
        format!("/main/{}.ls", absent.hash()),
        format!("/main/nar/{}.nar.zst", "0".repeat(52)),
        format!("/main/nar/{}.nar", "0".repeat(52)),
        format!("/main/nar/{}.nar.xz", "0".repeat(52)),
        format!("/main/log/{}", store_path("x.drv")),
        "/main/nar/x".to_owned(),
        "/main/x".to_owned(),
        "/x".to_owned(),
        "//".to_owned(),
    ] {
        let reply = node.get(&target).await;
        assert_eq!(
            (reply.status.as_u16(), reply.text().as_str()),
            (404, "not found\n"),
            "{target}"
        );
    }
    assert!(node.metric("attic_node_narinfo_misses_total").await >= 1.0);
}

/// S9: many clients of one NAR get the same bytes, and one that leaves disturbs nobody.
#[tokio::test]
async fn s9_many_clients_at_once() {
    let sample = Sample::noise("sample", 4_000_000);
    let node = node_with(&sample).await;
    let target = format!("/main/nar/{}.nar.zst", sample.nar_hash().nix32());
    let whole = node.get(&target).await.body;
    let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for _ in 0..8 {
        let mut leaver = tokio::net::TcpStream::connect(node.address())
            .await
            .unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut leaver, head.as_bytes())
            .await
            .unwrap();
    }
    let calls = (0..16).map(|_| node.get(&target));
    for reply in all(calls).await {
        assert!(reply.complete);
        assert_eq!(reply.body, whole);
    }
}

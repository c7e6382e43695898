//! What plain `nix copy --to http://…` sends, well and badly.

use std::io::{Read, Write};

use attic_node_core::api::{CacheView, PathPage, PinView};
use attic_store::narinfo::Compression;
use attic_store::{SecretKey, StoreDir};
use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Sample, TestNode, all, store_path, upload_url};

fn compress(compression: Compression, nar: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match compression {
        Compression::None => out.extend_from_slice(nar),
        Compression::Zstd => out = zstd::encode_all(nar, 3).unwrap(),
        Compression::Xz => {
            liblzma::read::XzEncoder::new(nar, 6)
                .read_to_end(&mut out)
                .map(drop)
                .unwrap();
        }
        Compression::Bzip2 => {
            let mut encoder = bzip2::read::BzEncoder::new(nar, bzip2::Compression::default());
            encoder.read_to_end(&mut out).map(drop).unwrap();
        }
        Compression::Gzip => {
            let mut encoder = flate2::read::GzEncoder::new(nar, flate2::Compression::default());
            encoder.read_to_end(&mut out).map(drop).unwrap();
        }
        Compression::Br => {
            brotli::CompressorWriter::new(&mut out, 4096, 5, 22)
                .write_all(nar)
                .unwrap();
        }
    }
    out
}

fn suffix(compression: Compression) -> &'static str {
    match compression {
        Compression::None | Compression::Gzip => "",
        Compression::Zstd => ".zst",
        Compression::Xz => ".xz",
        Compression::Bzip2 => ".bz2",
        Compression::Br => ".br",
    }
}

/// S15: HEAD, PUT of the NAR, HEAD again, PUT of the narinfo, in every compression Nix may use.
#[tokio::test]
async fn s15_every_compression_is_taken_and_served_as_zstd() {
    let node = TestNode::start().await;
    for compression in Compression::ALL {
        let sample = Sample::file(compression.as_str(), &b"some text, again. ".repeat(20_000));
        let file = compress(compression, &sample.nar);
        let target = format!("/main/{}", upload_url(&file, suffix(compression)));
        assert_eq!(node.head(&target).await.status, 404, "{compression}");
        let put = node.put(&target, file.clone()).await;
        assert_eq!(put.status, 201, "{compression}: {}", put.text());
        let head = node.head(&target).await;
        assert_eq!(head.status, 200, "{compression}");
        assert!(!head.header("content-length").is_empty());
        let narinfo_target = format!("/main/{}", sample.narinfo_name());
        assert_eq!(
            node.get(&narinfo_target).await.status,
            404,
            "not yet visible"
        );
        let narinfo = sample.narinfo_for(&file, suffix(compression), compression);
        let put = node
            .put(&narinfo_target, narinfo.print(&StoreDir::default()))
            .await;
        assert_eq!(put.status, 201, "{compression}: {}", put.text());
        // P11: whoever pushed reads it at once.
        let served = node.narinfo("main", &sample).await;
        let nar = node.get(&format!("/main/{}", served.url)).await;
        assert_eq!(
            zstd::decode_all(&nar.body[..]).unwrap(),
            sample.nar,
            "{compression}"
        );
    }
}

/// S15: uploading again changes nothing and is no error.
#[tokio::test]
async fn s15_a_second_upload_is_idempotent() {
    let node = TestNode::start().await;
    let sample = Sample::noise("sample", 500_000);
    node.publish("main", &sample).await;
    let before = node.get(&format!("/main/{}", sample.narinfo_name())).await;
    node.publish("main", &sample).await;
    let after = node.get(&format!("/main/{}", sample.narinfo_name())).await;
    assert_eq!(before.body, after.body);
    // As `nix store sign` does: what it read comes back.
    let put = node
        .put(
            &format!("/main/{}", sample.narinfo_name()),
            before.body.clone(),
        )
        .await;
    assert_eq!(put.status, 201, "{}", put.text());
}

/// S15: an existing path keeps its contents; only signatures are added.
#[tokio::test]
async fn s15_a_narinfo_adds_signatures_and_changes_nothing_else() {
    let node = TestNode::start().await;
    let sample = Sample::file("sample", b"one");
    node.publish("main", &sample).await;
    let key = SecretKey::generate("me-1", [7; 32]).unwrap();
    let mut signed = sample.narinfo_for(&sample.nar, "", Compression::None);
    let fingerprint = signed.info.fingerprint(&StoreDir::default());
    signed.info.add_signature(key.sign(fingerprint.as_ref()));
    let target = format!("/main/{}", sample.narinfo_name());
    assert_eq!(
        node.put(&target, signed.print(&StoreDir::default()))
            .await
            .status,
        201
    );
    assert_eq!(node.narinfo("main", &sample).await.info.signatures.len(), 2);

    let other = Sample {
        nar: Sample::file("x", b"two").nar,
        ..sample.clone()
    };
    assert_eq!(
        node.put(&format!("/main/{}", other.url()), other.nar.clone())
            .await
            .status,
        201
    );
    let put = node.put(&target, other.narinfo()).await;
    assert_eq!(put.status, 409, "{}", put.text());
    assert_eq!(
        node.narinfo("main", &sample).await.info.nar_hash,
        sample.nar_hash()
    );
}

/// S15: what does not fit together is refused and stays invisible.
#[tokio::test]
async fn s15_a_narinfo_that_lies_is_refused() {
    let node = TestNode::start().await;
    let sample = Sample::file("sample", b"contents");
    let target = format!("/main/{}", sample.narinfo_name());
    let right = sample.narinfo();
    assert_eq!(
        node.put(&target, right.clone()).await.status,
        400,
        "NAR absent"
    );
    assert_eq!(
        node.put(&format!("/main/{}", sample.url()), sample.nar.clone())
            .await
            .status,
        201
    );
    let other = Sample::file("other", b"other");
    let wrong_hash = other.nar_hash().to_string();
    let nar_hash = sample.nar_hash().to_string();
    let size = format!("NarSize: {}\n", sample.nar.len());
    let rows = [
        (
            "NarHash",
            right.replace(
                &format!("NarHash: {nar_hash}"),
                &format!("NarHash: {wrong_hash}"),
            ),
        ),
        (
            "FileHash",
            right.replace(
                &format!("FileHash: {nar_hash}"),
                &format!("FileHash: {wrong_hash}"),
            ),
        ),
        ("NarSize", right.replace(&size, "NarSize: 1\n")),
        ("NarSize 0", right.replace(&size, "NarSize: 0\n")),
        ("no NarSize", right.replace(&size, "")),
        ("FileSize", right.replace("FileSize: 1", "FileSize: 2")),
        (
            "Compression",
            right.replace("Compression: none", "Compression: xz"),
        ),
        (
            "unknown Compression",
            right.replace("Compression: none", "Compression: rar"),
        ),
        ("store dir", right.replace("/nix/store", "/gnu/store")),
        (
            "StorePath",
            right.replace(&sample.path.to_string(), &other.path.to_string()),
        ),
        ("name", right.replace("-sample", "-.")),
        ("URL traversal", right.replace("URL: nar/", "URL: ../nar/")),
        (
            "URL elsewhere",
            right.replace("URL: nar/", "URL: http://elsewhere/nar/"),
        ),
        (
            "References",
            right.replace("References: ", "References: /nix/store/x"),
        ),
        ("CRLF", right.replace('\n', "\r\n")),
        ("no newline", right.trim_end().to_owned()),
        ("signature", format!("{right}Sig: garbage\n")),
        ("malformed CA", format!("{right}CA: nonsense\n")),
        ("lying CA", format!("{right}CA: fixed:r:{nar_hash}\n")),
        ("empty", String::new()),
        ("binary", "\u{0}\u{1}".to_owned()),
    ];
    for (what, text) in rows {
        assert_ne!(text, right, "{what}");
        let put = node.put(&target, text).await;
        assert_eq!(put.status, 400, "{what}: {}", put.text());
        assert!(
            put.text().len() < 1024 && put.text().ends_with('\n'),
            "{what}: one short line"
        );
        assert_eq!(node.get(&target).await.status, 404, "{what}");
    }
    assert_eq!(node.put(&target, vec![b'x'; 2 << 20]).await.status, 413);
    assert_eq!(node.put(&target, right).await.status, 201);
}

/// S15: a signature in the name of a known key must be good; unknown ones are kept.
#[tokio::test]
async fn s15_forged_signatures_are_not_laundered() {
    let node = TestNode::start().await;
    let sample = Sample::file("sample", b"contents");
    assert_eq!(
        node.put(&format!("/main/{}", sample.url()), sample.nar.clone())
            .await
            .status,
        201
    );
    let target = format!("/main/{}", sample.narinfo_name());
    let view: CacheView = node.api(Method::GET, "caches/main").ok().await;
    let own_name = view.public_key.split_once(':').unwrap().0;
    let forged_with = |name: &str| {
        let key = SecretKey::generate(name, [1; 32]).unwrap();
        let mut narinfo = sample.narinfo_for(&sample.nar, "", Compression::None);
        let fingerprint = narinfo.info.fingerprint(&StoreDir::default());
        narinfo.info.add_signature(key.sign(fingerprint.as_ref()));
        narinfo.print(&StoreDir::default())
    };
    for name in [own_name, "cache.nixos.org-1"] {
        let put = node.put(&target, forged_with(name)).await;
        assert_eq!(
            (put.status.as_u16(), put.text()),
            (400, format!("signature of {name} is not valid\n"))
        );
    }
    assert_eq!(
        node.put(&target, forged_with("somebody-1")).await.status,
        201
    );
    assert_eq!(node.narinfo("main", &sample).await.info.signatures.len(), 2);
}

/// S15: a cache may demand a signature.
#[tokio::test]
async fn s15_required_signatures() {
    let node = TestNode::start().await;
    let key = SecretKey::generate("trusted-1", [1; 32]).unwrap();
    let patch = serde_json::json!({ "require_signed_by": [key.public().to_string()] });
    let _: CacheView = node
        .api(Method::PATCH, "caches/main")
        .json(&patch)
        .ok()
        .await;
    let sample = Sample::file("sample", b"contents");
    assert_eq!(
        node.put(&format!("/main/{}", sample.url()), sample.nar.clone())
            .await
            .status,
        201
    );
    let target = format!("/main/{}", sample.narinfo_name());
    assert_eq!(node.put(&target, sample.narinfo()).await.status, 400);
    let mut narinfo = sample.narinfo_for(&sample.nar, "", Compression::None);
    let fingerprint = narinfo.info.fingerprint(&StoreDir::default());
    narinfo.info.add_signature(key.sign(fingerprint.as_ref()));
    assert_eq!(
        node.put(&target, narinfo.print(&StoreDir::default()))
            .await
            .status,
        201
    );
}

#[tokio::test]
async fn bad_nars_are_refused_and_leave_no_name() {
    let node = TestNode::start().await;
    let sample = Sample::noise("sample", 300_000);
    let good = compress(Compression::Xz, &sample.nar);
    let mut flipped = good.clone();
    flipped[150_000] ^= 1;
    let trailing = [sample.nar.clone(), vec![0; 8]].concat();
    let rows = [
        ("truncated xz", good[..good.len() / 2].to_vec(), ".xz"),
        ("flipped xz", flipped, ".xz"),
        (
            "garbage after xz",
            [good, b"garbage".to_vec()].concat(),
            ".xz",
        ),
        ("truncated NAR", sample.nar[..1000].to_vec(), ""),
        ("trailing NAR", trailing, ""),
        ("not a NAR", b"hello".to_vec(), ""),
        ("empty", Vec::new(), ""),
        ("not what the name says", sample.nar.clone(), ".zst"),
    ];
    for (what, file, suffix) in rows {
        let target = format!("/main/{}", upload_url(&file, suffix));
        let put = node.put(&target, file).await;
        assert_eq!(put.status, 400, "{what}: {}", put.text());
        assert_eq!(node.head(&target).await.status, 404, "{what}");
    }
    let target = format!("/main/{}", upload_url(b"other", ""));
    assert_eq!(
        node.put(&target, sample.nar.clone()).await.status,
        400,
        "wrong file name"
    );
    for mark in [&b"LZIP\x01..."[..], b"\x04\x22\x4d\x18...."] {
        let target = format!("/main/{}", upload_url(mark, ""));
        assert_eq!(node.put(&target, mark).await.status, 415);
    }
}

/// A small body that grows without end is cut at the limit.
#[tokio::test]
async fn a_bomb_is_answered_413() {
    let node = TestNode::with(&[("store.nar-size-max", "1 MiB")]).await;
    let sample = Sample::file("bomb", &vec![0; 50 << 20]);
    let file = compress(Compression::Zstd, &sample.nar);
    assert!(file.len() < 20_000);
    let target = format!("/main/{}", upload_url(&file, ".zst"));
    let put = node.put(&target, file).await;
    assert_eq!(put.status, 413, "{}", put.text());
    assert_eq!(node.head(&target).await.status, 404);
}

#[tokio::test]
async fn content_encodings_of_small_objects_are_undone() {
    let node = TestNode::start().await;
    let target = format!("/main/log/{}", store_path("a.drv"));
    let text = b"some log, some log\n".repeat(100);
    let codings = [
        ("gzip", Compression::Gzip),
        ("br", Compression::Br),
        ("zstd", Compression::Zstd),
        ("xz", Compression::Xz),
        ("bzip2", Compression::Bzip2),
        ("identity", Compression::None),
    ];
    for (coding, compression) in codings {
        let body = compress(compression, &text);
        let put = node
            .request(Method::PUT, &target)
            .admin()
            .header("content-encoding", coding);
        assert_eq!(put.body(body).send().await.status, 201, "{coding}");
        assert_eq!(node.get(&target).await.body, text, "{coding}");
    }
    let put = node
        .request(Method::PUT, &target)
        .admin()
        .header("content-encoding", "compress");
    assert_eq!(put.body(text).send().await.status, 415);
    let put = node
        .request(Method::PUT, &target)
        .admin()
        .header("content-encoding", "gzip");
    assert_eq!(put.body("not gzip").send().await.status, 400);
}

/// A narinfo that is a compression bomb is cut at its limit too.
#[tokio::test]
async fn a_small_object_may_not_grow_beyond_its_limit() {
    let node = TestNode::start().await;
    let target = format!("/main/{}", Sample::file("x", b"").narinfo_name());
    let bomb = compress(Compression::Gzip, &vec![b'x'; 100 << 20]);
    let put = node
        .request(Method::PUT, &target)
        .admin()
        .header("content-encoding", "gzip");
    assert_eq!(put.body(bomb).send().await.status, 413);
}

#[tokio::test]
async fn listings_are_checked_and_never_believed() {
    let node = TestNode::start().await;
    let sample = Sample::file("sample", b"0123456789");
    node.publish("main", &sample).await;
    let target = format!("/main/{}.ls", sample.hash());
    let before = node.get(&target).await.body;
    assert_eq!(
        node.put(&target, "{\"version\":1,\"root\":{}}")
            .await
            .status,
        201
    );
    assert_eq!(node.get(&target).await.body, before);
    assert_eq!(node.put(&target, "not json").await.status, 400);
}

#[tokio::test]
async fn cache_info_and_foreign_names_are_not_writable() {
    let node = TestNode::start().await;
    let before = node.get("/main/nix-cache-info").await.body;
    assert_eq!(
        node.put("/main/nix-cache-info", "StoreDir: /x\n")
            .await
            .status,
        405
    );
    assert_eq!(node.get("/main/nix-cache-info").await.body, before);
    for target in ["/main/x", "/main/../x", "/main/index.html", "/x"] {
        assert_eq!(node.put(target, "x").await.status, 404, "{target}");
    }
    assert_eq!(node.put("/absent/nix-cache-info", "x").await.status, 404);
}

/// Who writes learns what is wrong with a name; who reads is answered 404 all the same.
#[tokio::test]
async fn a_name_that_no_object_has_is_explained() {
    let node = TestNode::start().await;
    let digits = "1".repeat(52);
    let rows = [
        (
            format!("/main/nar/{digits}.nar.lz4"),
            415,
            "compression lz4 is not supported; zstd, xz, bzip2, br, gzip and none are\n",
        ),
        (
            format!("/main/nar/{}e.nar.xz", &digits[1..]),
            400,
            "a NAR's file is named by 52 digits of Nix's base 32 and .nar, .nar.zst, .nar.xz, \
             .nar.bz2 or .nar.br\n",
        ),
        (
            format!("/main/{}.narinfo", "e".repeat(32)),
            400,
            "the file is not named by 32 digits of Nix's base 32\n",
        ),
    ];
    for (target, status, message) in rows {
        let put = node.put(&target, "x").await;
        assert_eq!((put.status.as_u16(), &*put.text()), (status, message));
        assert_eq!(node.get(&target).await.status, 404, "{target}");
    }
}

/// An upload whose client goes away is invisible.
#[tokio::test]
async fn an_interrupted_upload_is_invisible() {
    let node = TestNode::start().await;
    let sample = Sample::noise("sample", 3_000_000);
    let target = format!("/main/{}", sample.url());
    let head = format!(
        "PUT {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Length: {}\r\n\r\n",
        node.bearer(),
        sample.nar.len()
    );
    let mut stream = TcpStream::connect(node.address()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&sample.nar[..2_000_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    // The node closes once it has given up.
    let _ = stream.read_to_end(&mut Vec::new()).await;
    assert_eq!(node.head(&target).await.status, 404);
    node.publish("main", &sample).await;
}

/// libcurl asks before it sends a large body.
#[tokio::test]
async fn expect_continue_is_answered_at_once() {
    let node = TestNode::start().await;
    let sample = Sample::file("sample", b"contents");
    let head = |authorization: &str| {
        let (target, len) = (sample.url(), sample.nar.len());
        format!(
            "PUT /main/{target} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\
             Content-Length: {len}\r\n{authorization}Connection: close\r\n\r\n"
        )
    };
    let mut stream = TcpStream::connect(node.address()).await.unwrap();
    let authorized = head(&format!("Authorization: {}\r\n", node.bearer()));
    stream.write_all(authorized.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&sample.nar).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    // Whoever may not write is told so without sending.
    assert!(
        node.raw(head("").as_bytes())
            .await
            .starts_with("HTTP/1.1 401 ")
    );
}

/// A length beyond the limit is refused as announced, not when that much has come; a client that
/// waits for leave to send never gets it.
#[tokio::test]
async fn an_announced_length_beyond_the_limit_is_answered_413_at_once() {
    let node = TestNode::with(&[("store.nar-size-max", "1 MiB")]).await;
    let sample = Sample::file("sample", b"contents");
    let rows = [
        (
            "PUT",
            format!("main/{}", sample.narinfo_name()),
            (1 << 20) + 1,
        ),
        ("PUT", format!("main/{}", sample.url()), (3 << 19) + 1),
        ("POST", "_node/v1/caches".to_owned(), (1 << 20) + 1),
        ("POST", "_node/v1/push".to_owned(), 1_u64 << 40),
    ];
    for (method, target, len) in &rows {
        let head = format!(
            "{method} /{target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\n\
             Connection: close\r\nContent-Length: {len}\r\n",
            node.bearer()
        );
        for (expect, sent) in [("Expect: 100-continue\r\n", ""), ("", "some of it")] {
            let answer = node
                .raw(format!("{head}{expect}\r\n{sent}").as_bytes())
                .await;
            assert!(answer.starts_with("HTTP/1.1 413 "), "{target}: {answer}");
        }
    }
    node.publish("main", &sample).await;
}

#[tokio::test]
async fn bodies_may_be_chunked_but_not_endless() {
    let node = TestNode::start().await;
    let target = format!("/main/log/{}", store_path("a.drv"));
    let authorization = format!("Authorization: {}\r\n", node.bearer());
    let chunked = format!(
        "PUT {target} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n{authorization}\
         Connection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    );
    assert!(
        node.raw(chunked.as_bytes())
            .await
            .starts_with("HTTP/1.1 201 ")
    );
    assert_eq!(node.get(&target).await.body, "hello");
    let endless = format!("PUT {target} HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n");
    assert!(
        node.raw(endless.as_bytes())
            .await
            .starts_with("HTTP/1.1 411 ")
    );
}

/// A full disk fails the upload with 507; what is there is read on.
#[tokio::test]
async fn a_full_store_is_answered_507_and_reads_go_on() {
    let node = TestNode::with(&[("store.size-cap", "4 MiB")]).await;
    let small = Sample::noise("small", 100_000);
    node.publish("main", &small).await;
    let pin = serde_json::json!({ "path": small.path });
    let _: PinView = node
        .api(Method::PUT, "caches/main/pins/kept")
        .json(&pin)
        .ok()
        .await;
    let large = Sample::noise("large", 8_000_000);
    let put = node
        .put(&format!("/main/{}", large.url()), large.nar.clone())
        .await;
    assert_eq!(
        (put.status.as_u16(), put.text().as_str()),
        (
            507,
            "no space below the node's size cap of 4194304 bytes (store.size-cap)\n"
        )
    );
    assert_eq!(
        node.head(&format!("/main/{}", large.url())).await.status,
        404
    );
    let url = node.narinfo("main", &small).await.url;
    let nar = node.get(&format!("/main/{url}")).await;
    assert_eq!(zstd::decode_all(&nar.body[..]).unwrap(), small.nar);
}

/// G7: whoever fills a cache path by path learns that what came first has been evicted since, and of
/// what never was there nobody asks. `nix copy --to` of a closure larger than the cap used to succeed.
#[tokio::test]
async fn g7_a_path_is_not_taken_whose_references_were_evicted() {
    let node = TestNode::with(&[("store.size-cap", "16 MiB")]).await;
    let leaf = Sample::noise("leaf", 1000);
    let mut base = Sample::noise("base", 100_000).referring_to(&[&leaf]);
    base.references.insert(base.path.clone());
    node.publish("main", &leaf).await;
    node.publish("main", &base).await;
    let never = Sample::noise("never", 1000);
    let is_there = async |sample: &Sample| {
        let reply = node.get(&format!("/main/{}", sample.narinfo_name())).await;
        reply.status == 200
    };
    // Steadily more than fits, and none is refused. Looking at a path would count as its use.
    let is_listed = async |sample: &Sample| {
        let page: PathPage = node.api(Method::GET, "caches/main/paths").ok().await;
        page.paths.iter().any(|row| row.info.path == sample.path)
    };
    let mut number = 0;
    while number < 40 || is_listed(&base).await {
        assert!(number < 1000, "it is never evicted");
        let filler = Sample::noise(&format!("filler-{number}"), 1 << 20);
        node.publish("main", &filler.referring_to(&[&never])).await;
        number += 1;
    }

    let put_narinfo = async |sample: &Sample| {
        let target = format!("/main/{}", sample.narinfo_name());
        node.put(&target, sample.narinfo()).await
    };
    let later = Sample::noise("later", 2000).referring_to(&[&never, &base]);
    let nar = node
        .put(&format!("/main/{}", later.url()), later.nar.clone())
        .await;
    assert_eq!(nar.status, 201);
    let refused = put_narinfo(&later).await;
    let expected = format!(
        "no space: {} refers to {}, which was evicted to stay below the size cap of 16777216 bytes \
         (store.size-cap); to send it again, copy with --option narinfo-cache-positive-ttl 0, as Nix \
         remembers what it sent before\n",
        later.path, base.path
    );
    assert_eq!((refused.status.as_u16(), refused.text()), (507, expected));
    assert!(!is_there(&later).await);

    // In order it goes, and what refers to itself is no case of it.
    for sample in [&leaf, &base] {
        node.publish("main", sample).await;
    }
    assert_eq!(put_narinfo(&later).await.status, 201);
    assert!(is_there(&later).await && is_there(&base).await);
}

/// G9: many at once, and none fails.
#[tokio::test]
async fn g9_five_hundred_concurrent_uploads() {
    let node = TestNode::start().await;
    let samples: Vec<_> = (0..500)
        .map(|index| Sample::noise(&format!("sample-{index}"), 2000))
        .collect();
    all(samples.iter().map(|sample| node.publish("main", sample))).await;
    let views = samples.iter().map(|sample| node.narinfo("main", sample));
    for (sample, narinfo) in samples.iter().zip(all(views).await) {
        assert_eq!(narinfo.info.nar_hash, sample.nar_hash());
    }
}

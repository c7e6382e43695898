//! Reads: statuses, headers, ranges.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testnet::http::{Connection, Request, Response};
use testnet::node::TestNode;
use testnet::seed::Seed;
use testnet::served::{Served, narinfo_fields};
use testnet::upload::Upload;

/// A node whose cache `main` holds one path, whose NAR has several blocks.
struct Filled {
    node: TestNode,
    upload: Upload,
}

impl Filled {
    fn new(test: &str) -> Filled {
        let node = TestNode::start();
        let mut seed = Seed::for_test(test);
        let upload = Upload::random(&mut seed, "reading", 3_000_000);
        upload.publish(node.address(), "main", &node.token());
        Filled { node, upload }
    }

    fn get(&self, target: &str) -> Response {
        self.node.get(target).expect("an answer")
    }

    fn head(&self, target: &str) -> Response {
        Request::head(target)
            .send(self.node.address())
            .expect("an answer")
    }

    /// Target of the NAR, as the narinfo names it.
    fn nar_target(&self) -> String {
        let narinfo = self.get(&self.upload.narinfo_target("main")).text();
        format!("/main/{}", narinfo_fields(&narinfo)["URL"])
    }
}

/// S6: a complete narinfo, which names a NAR by its contents (S5).
#[test]
fn s6_a_narinfo_has_every_field_and_a_signature() {
    let Filled { node, upload } = &Filled::new("s6");
    let response = node.get(&upload.narinfo_target("main")).expect("an answer");
    assert_eq!(response.header("content-type"), Some("text/x-nix-narinfo"));
    let fields = narinfo_fields(&response.text());
    assert_eq!(fields["StorePath"], upload.path());
    assert_eq!(fields["NarHash"], upload.nar_hash().to_string());
    assert_eq!(fields["NarSize"], upload.nar.len().to_string());
    assert_eq!(fields["Compression"], "zstd");
    assert_eq!(
        fields["URL"],
        format!("nar/{}.nar.zst", upload.nar_hash().nix32())
    );
    assert!(fields["FileHash"].starts_with("sha256:"), "{fields:?}");
    assert!(fields["FileSize"].parse::<u64>().is_ok(), "{fields:?}");
    assert!(fields["Sig"].starts_with("main"), "{fields:?}");
    assert!(!response.text().contains('\r') && response.text().ends_with('\n'));
}

/// S14: clients and proxies may keep a NAR for ever and must ask again about a narinfo.
#[test]
fn s14_nars_are_immutable_and_narinfos_are_revalidated() {
    let filled = &Filled::new("s14");
    let nar = filled.head(&filled.nar_target());
    let cache_control = nar.header("cache-control").expect("cache-control on a NAR");
    assert!(
        cache_control.contains("max-age=31536000"),
        "{cache_control}"
    );
    assert!(cache_control.contains("immutable"), "{cache_control}");
    let absent = format!("/main/{}.narinfo", "0".repeat(32));
    for (target, freshness) in [
        (filled.upload.narinfo_target("main"), "public, no-cache"),
        ("/main/nix-cache-info".to_owned(), "public, no-cache"),
        (absent, "no-store"),
        (format!("/main/nar/{}.nar.zst", "0".repeat(52)), "no-store"),
    ] {
        let head = filled.head(&target);
        assert_eq!(head.header("cache-control"), Some(freshness), "{target}");
    }
    for target in [filled.nar_target(), filled.upload.narinfo_target("main")] {
        let etag = filled
            .head(&target)
            .header("etag")
            .expect("an ETag")
            .to_owned();
        let again = Request::get(&target).header("If-None-Match", &etag);
        let again = again.send(filled.node.address()).expect("an answer");
        assert_eq!((again.status, again.body.len()), (304, 0), "{target}");
        let other = Request::get(&target).header("If-None-Match", "\"other\"");
        assert_eq!(
            other.send(filled.node.address()).expect("an answer").status,
            200,
            "{target}"
        );
    }
}

#[test]
fn head_says_what_get_says() {
    let filled = &Filled::new("head");
    let hash = &filled.upload.hash;
    let targets = [
        "/main/nix-cache-info".to_owned(),
        filled.upload.narinfo_target("main"),
        filled.nar_target(),
        filled.nar_target().trim_end_matches(".zst").to_owned(),
        format!("/main/{hash}.ls"),
        format!("/main/{}.narinfo", "0".repeat(32)),
        format!("/main/nar/{}.nar.zst", "0".repeat(52)),
        "/absent/nix-cache-info".to_owned(),
        "/healthz".to_owned(),
        "/readyz".to_owned(),
    ];
    for target in targets {
        let (get, head) = (filled.get(&target), filled.head(&target));
        assert_eq!(get.status, head.status, "{target}");
        for name in [
            "content-length",
            "content-type",
            "etag",
            "accept-ranges",
            "cache-control",
        ] {
            assert_eq!(get.header(name), head.header(name), "{name} of {target}");
        }
        assert_eq!(get.header("content-encoding"), None, "{target}");
        assert_eq!(get.header("access-control-allow-origin"), None, "{target}");
        let length = get.header("content-length").expect("a length").parse();
        assert_eq!(length, Ok(get.body.len()), "{target}");
    }
}

#[test]
fn nix_cache_info_is_what_every_nix_version_can_read() {
    let filled = &Filled::new("nix_cache_info");
    let response = filled.get("/main/nix-cache-info");
    assert_eq!(
        response.header("content-type"),
        Some("text/x-nix-cache-info")
    );
    assert_eq!(
        response.text(),
        "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"
    );
}

/// S4: every form of range that clients send, on the frame stream and on the plain NAR.
#[test]
fn s4_ranges_are_exact_and_resumable() {
    let filled = &Filled::new("s4_ranges");
    let frames = filled.nar_target();
    for target in [frames.as_str(), frames.trim_end_matches(".zst")] {
        let whole = filled.get(target);
        assert_eq!(whole.header("accept-ranges"), Some("bytes"), "{target}");
        let len = whole.body.len();
        let (last, middle) = (len - 1, len / 2);
        let rows = [
            (format!("bytes={middle}-"), middle, len),
            ("bytes=0-".to_owned(), 0, len),
            ("bytes=0-0".to_owned(), 0, 1),
            (format!("bytes={last}-"), last, len),
            (format!("bytes={last}-{}", len * 2), last, len),
            (
                format!("bytes={middle}-{}", middle + 9),
                middle,
                middle + 10,
            ),
            ("bytes=-1".to_owned(), last, len),
            (format!("bytes=-{}", len * 2), 0, len),
        ];
        for (range, from, to) in rows {
            let request = Request::get(target).header("Range", &range);
            let part = request.send(filled.node.address()).expect("an answer");
            assert_eq!(part.status, 206, "{range}");
            let content_range = format!("bytes {from}-{}/{len}", to - 1);
            assert_eq!(
                part.header("content-range"),
                Some(content_range.as_str()),
                "{range}"
            );
            assert_eq!(part.header("accept-ranges"), Some("bytes"), "{range}");
            assert!(
                part.complete && part.body == whole.body[from..to],
                "{range}: wrong bytes"
            );
        }
    }
}

/// S4: ranges that cannot be answered, and those that a server may ignore.
#[test]
fn s4_impossible_ranges_get_416_and_senseless_ones_the_whole() {
    let filled = &Filled::new("s4_odd_ranges");
    let target = filled.nar_target();
    let whole = filled.get(&target);
    let len = whole.body.len();
    let ask = |range: &str| {
        let request = Request::get(&target).header("Range", range);
        request.send(filled.node.address()).expect("an answer")
    };
    for range in [
        format!("bytes={len}-"),
        format!("bytes={}-{}", len + 5, len + 9),
    ] {
        let response = ask(&range);
        assert_eq!(response.status, 416, "{range}");
        assert_eq!(
            response.header("content-range"),
            Some(format!("bytes */{len}").as_str())
        );
    }
    let thousand = format!("bytes={}", vec!["0-0"; 1000].join(","));
    let rows = [
        "bytes=abc",
        "bytes=5-2",
        "lines=1-2",
        "bytes",
        "bytes=--5",
        "bytes=1-2,5-9",
        &thousand,
    ];
    for range in rows {
        let response = ask(range);
        assert!(
            matches!(response.status, 200 | 206 | 400 | 416),
            "{range}: {}",
            response.status
        );
        assert!(response.body.len() <= len + 1000, "{range} is amplified");
        if response.status == 200 {
            assert!(response.body == whole.body, "{range}: wrong bytes");
        }
    }
    let etag = whole.header("etag").expect("an ETag");
    for (if_range, status) in [(etag, 206), ("\"other\"", 200)] {
        let request = Request::get(&target)
            .header("Range", "bytes=1-")
            .header("If-Range", if_range);
        let response = request.send(filled.node.address()).expect("an answer");
        assert_eq!(response.status, status, "If-Range: {if_range}");
    }
}

/// S4 and G2: what was half downloaded before a restart can be finished after it.
#[test]
fn g2_nar_bytes_are_the_same_after_a_restart_and_on_another_node() {
    let mut filled = Filled::new("g2");
    let target = filled.nar_target();
    let before = filled.get(&target);
    filled.node.kill();
    filled.node.start_again();
    let after = filled.get(&target);
    assert_eq!(before.header("etag"), after.header("etag"));
    assert!(before.body == after.body, "the bytes changed");

    let other = TestNode::start();
    let mut noise = Seed::new(1);
    Upload::file(&mut noise, "other", b"other".as_slice()).publish(
        other.address(),
        "main",
        &other.token(),
    );
    filled
        .upload
        .clone()
        .zstd()
        .publish(other.address(), "main", &other.token());
    let elsewhere = other.get(&target).expect("an answer");
    assert!(
        before.body == elsewhere.body,
        "another node serves other bytes under the same name"
    );
}

/// S5: a narinfo that a client remembers never leads to other bytes.
#[test]
fn s5_replacing_a_path_never_changes_what_an_old_url_gives() {
    let filled = &Filled::new("s5");
    let (node, old) = (&filled.node, &filled.upload);
    let old_target = filled.nar_target();
    let old_body = filled.get(&old_target).body;
    node.cli().run(&["rm", "main", &old.path()]).succeeds();
    let new = Upload::random(&mut Seed::new(5), &old.name, 1000);
    let new = Upload {
        hash: old.hash.clone(),
        ..new
    };
    new.publish(node.address(), "main", &node.token());
    assert_eq!(node.read(&new.path()), Served::Whole(new.nar.clone()));
    let answer = filled.get(&old_target);
    assert!(
        answer.status == 404 || answer.body == old_body,
        "the old URL gives other bytes"
    );
    node.cli().run(&["gc", "--full"]).succeeds();
    assert_eq!(filled.get(&old_target).status, 404, "P15: gone");
}

/// S1: whatever is asked, a substituter says 200 or 404, and soon.
#[test]
fn s1_reads_are_answered_200_or_404_at_once() {
    let filled = &Filled::new("s1");
    let hash = &filled.upload.hash;
    let absent = "0".repeat(32);
    let targets = [
        (filled.upload.narinfo_target("main"), 200),
        (format!("/main/{hash}.narinfo?x=y"), 200),
        (format!("/main/{absent}.narinfo"), 404),
        (format!("/main/{}.narinfo", hash.to_uppercase()), 404),
        (format!("/main/{}.narinfo", &hash[1..]), 404),
        (format!("/main/{hash}0.narinfo"), 404),
        (format!("/main/{}.narinfo", "e".repeat(32)), 404),
        (format!("/main/{hash}.narinfo/"), 404),
        (format!("/main//{hash}.narinfo"), 404),
        (format!("/main/{hash}"), 404),
        (format!("/main/{hash}%00.narinfo"), 404),
        (format!("/other/{hash}.narinfo"), 404),
        (format!("/main/nar/{}.nar", "0".repeat(52)), 404),
        (format!("/main/nar/{}.nar.xz", "0".repeat(52)), 404),
        ("/main/nar/".to_owned(), 404),
        (format!("/main/{absent}.ls"), 404),
        (format!("/main/log/{absent}-x.drv"), 404),
        (format!("/main/log/{absent}-x?y.drv"), 404),
        (
            format!("/main/realisations/sha256:{}!out.doi", "0".repeat(64)),
            404,
        ),
        (format!("/main/build-trace-v2/{absent}-x.drv/out.doi"), 404),
        (format!("/main/debuginfo/{}", "0".repeat(40)), 404),
        (format!("/main/debuginfo/{}.debug", "0".repeat(40)), 404),
        ("/main/".to_owned(), 404),
        ("/main".to_owned(), 404),
    ];
    for (target, status) in targets {
        let started = Instant::now();
        let response = filled.get(&target);
        assert_eq!(response.status, status, "{target}: {}", response.text());
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{target} took {:?}",
            started.elapsed()
        );
        assert!(response.complete, "{target}");
    }
}

/// S1: 99 of 100 narinfos are answered within half a second, hits and misses, while the node takes in
/// uploads, collects and verifies.
#[test]
fn s1_narinfo_p99_is_below_500_ms_while_the_node_works() {
    let filled = &Filled::new("s1_p99");
    let (address, token) = (filled.node.address(), &filled.node.token());
    let hit = &filled.upload.narinfo_target("main");
    let done = &AtomicBool::new(false);
    let working = || !done.load(Ordering::Relaxed);
    let mut times: Vec<Duration> = thread::scope(|scope| {
        scope.spawn(|| {
            let mut seed = Seed::new(17);
            while working() {
                Upload::random(&mut seed, "busy", 4 << 20).publish(address, "main", token);
            }
        });
        scope.spawn(|| {
            while working() {
                assert_eq!(filled.node.api("gc", Some("{\"full\":true}")).status, 200);
                assert_eq!(filled.node.api("verify", Some("{}")).status, 200);
            }
        });
        let readers: Vec<_> = (0..4u64)
            .map(|reader| scope.spawn(move || timed_narinfos(filled, hit, &mut Seed::new(reader))))
            .collect();
        let times = readers
            .into_iter()
            .flat_map(|reader| reader.join().expect("a reader ends"));
        let times = times.collect();
        done.store(true, Ordering::Relaxed);
        times
    });
    times.sort();
    let p99 = times[times.len() * 99 / 100];
    assert!(p99 <= Duration::from_millis(500), "p99 is {p99:?}");
}

/// How long each of 500 narinfos took, of which half are there.
fn timed_narinfos(filled: &Filled, hit: &str, seed: &mut Seed) -> Vec<Duration> {
    let ask = |number: u64| {
        let absent = attic_store::nixbase32::encode(&seed.bytes(20));
        let (target, status) = match number % 2 {
            0 => (hit.to_owned(), 200),
            _ => (format!("/main/{absent}.narinfo"), 404),
        };
        let started = Instant::now();
        assert_eq!(filled.get(&target).status, status, "{target}");
        started.elapsed()
    };
    (0..500).map(ask).collect()
}

/// S1: a substituter that lost its disk is a substituter that has nothing.
#[test]
fn s1_and_s3_a_lost_pack_is_a_404_before_the_first_byte() {
    let mut filled = Filled::new("s3");
    let nar = filled.nar_target();
    filled.node.kill();
    for pack in filled.node.packs() {
        std::fs::remove_file(pack).expect("remove a pack");
    }
    filled.node.start_again();
    assert_eq!(filled.get(&nar).status, 404);
    assert_eq!(
        filled.get(&filled.upload.narinfo_target("main")).status,
        404
    );
    filled
        .upload
        .publish(filled.node.address(), "main", &filled.node.token());
    assert_eq!(
        filled.node.read(&filled.upload.path()),
        Served::Whole(filled.upload.nar.clone())
    );
}

/// S9, as far as one node goes: many read at once, one gives up, nobody notices.
#[test]
fn s9_readers_do_not_disturb_each_other() {
    let filled = &Filled::new("s9");
    let target = filled.nar_target();
    let whole = filled.get(&target).body;
    thread::scope(|scope| {
        for number in 0..24 {
            let (target, whole) = (&target, &whole);
            scope.spawn(move || {
                if number % 3 == 0 {
                    // Reads the head and leaves.
                    let mut connection = Connection::open(filled.node.address()).expect("connect");
                    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                    connection.send_raw(request.as_bytes()).expect("send");
                    assert_eq!(connection.read_head().expect("a head").status, 200);
                } else {
                    assert!(filled.get(target).body == *whole, "wrong bytes");
                }
            });
        }
    });
}

/// S12: a listing is what Nix would have uploaded, and its offsets are right.
#[test]
fn s12_a_listing_says_where_each_file_lies() {
    let filled = &Filled::new("s12");
    let response = filled.get(&format!("/main/{}.ls", filled.upload.hash));
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("application/json"));
    let listing: serde_json::Value = serde_json::from_slice(&response.body).expect("JSON");
    assert_eq!(listing["version"], 1);
    assert_eq!(listing["root"]["type"], "regular");
    assert_eq!(listing["root"]["size"], 3_000_000);
    let offset = listing["root"]["narOffset"].as_u64().expect("an offset");
    let offset = usize::try_from(offset).expect("fits");
    let plain = filled
        .get(filled.nar_target().trim_end_matches(".zst"))
        .body;
    assert!(
        plain == filled.upload.nar,
        "the plain NAR is not what was uploaded"
    );
    assert_eq!(&plain[offset - 8..offset], 3_000_000u64.to_le_bytes());
}

/// G11: whoever watches the node finds every counter from the first moment.
#[test]
fn g11_metrics_are_there_before_anything_happened() {
    let node = TestNode::start();
    for target in ["/healthz", "/readyz"] {
        assert_eq!(node.get(target).expect("an answer").status, 200, "{target}");
    }
    for source in ["local", "peer", "s3", "upstream"] {
        let name = format!("attic_node_narinfo_hits_total{{source=\"{source}\"}}");
        assert_eq!(node.metric(&name), Some(0.0), "{name}");
    }
    let names = [
        "narinfo_misses_total",
        "nar_sent_bytes_total",
        "push_paths_total",
        "gc_runs_total",
    ];
    for name in names.map(|name| format!("attic_node_{name}")) {
        assert_eq!(node.metric(&name), Some(0.0), "{name}");
    }
}

/// G11: and they count.
#[test]
fn g11_metrics_count_what_happened() {
    let filled = &Filled::new("g11");
    let Filled { node, upload } = filled;
    assert!(matches!(node.read(&upload.path()), Served::Whole(_)));
    assert_eq!(node.read(&"0".repeat(32)), Served::Absent);
    let hits = node.metric("attic_node_narinfo_hits_total{source=\"local\"}");
    assert_eq!(hits, Some(1.0));
    assert_eq!(node.metric("attic_node_narinfo_misses_total"), Some(1.0));
    let sent = node
        .metric("attic_node_nar_sent_bytes_total")
        .expect("a counter");
    assert_eq!(sent, filled.get(&filled.nar_target()).body.len() as f64);
}

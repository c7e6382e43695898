//! Rows S1, S7, S8 and S9: what neither a node nor its cluster has comes from upstreams.

mod server;

use attic_node_core::api::Status;
use attic_store::narinfo::Compression;
use attic_store::{FileHash, NarInfo, StoreDir};
use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use self::server::{Conduct, Server, compress};
use crate::harness::{Reply, Sample, TestNode, all};

/// Long enough for an answer of a process on a busy machine, short enough to wait for.
const DEADLINE: &str = "[pull-through]\ndeadline = \"4s\"\n";

async fn node_behind(upstreams: &[&Server]) -> TestNode {
    let tables = upstreams.iter().zip(1..);
    let tables = tables.map(|(upstream, rank)| upstream.config(&format!("priority = {rank}")));
    let file: String = tables.collect();
    TestNode::with_file(&format!("{DEADLINE}{file}"), &[]).await
}

fn narinfo_of(sample: &Sample) -> String {
    format!("/main/{}", sample.narinfo_name())
}

/// Where the plain NAR of a path is to be had.
fn nar_of(sample: &Sample) -> String {
    format!("/main/nar/{}.nar", sample.nar_hash().nix32())
}

async fn status_of(node: &TestNode, sample: &Sample) -> u16 {
    node.get(&narinfo_of(sample)).await.status.as_u16()
}

/// Reads a path as Nix does, which must be there.
async fn read(node: &TestNode, sample: &Sample) -> Reply {
    let narinfo = node.narinfo("main", sample).await;
    let nar = node.get(&format!("/main/{}", narinfo.url)).await;
    assert_eq!(nar.status, 200);
    nar
}

/// Waits until a path is one of the node's own.
async fn kept(node: &TestNode, sample: &Sample) -> NarInfo {
    loop {
        let narinfo = node.narinfo("main", sample).await;
        if narinfo.compression == Compression::Zstd {
            return narinfo;
        }
    }
}

/// S7: verified, passed through, streamed, kept; in every compression that Nix knows.
#[tokio::test]
async fn s7_a_path_of_an_upstream_is_served_and_kept_in_every_compression() {
    let upstream = Server::start("up-1").await;
    let node = node_behind(&[&upstream]).await;
    for compression in Compression::ALL {
        let other = Sample::file("other", b"x");
        let mut sample = Sample::noise(&format!("a-{compression}"), 3 << 20);
        sample = sample.referring_to(&[&other]);
        sample.deriver = Some(crate::harness::store_path("a.drv"));
        upstream.add(&sample, compression);
        let narinfo = node.narinfo("main", &sample).await;
        let said = upstream.narinfo(&sample, b"", compression);
        assert_eq!(
            narinfo.info, said.info,
            "unchanged, and signed by nobody else"
        );
        assert_eq!(narinfo.compression, Compression::None);
        let url = format!("{}?hash={}", nar_of(&sample), sample.path.hash());
        assert_eq!(format!("/main/{}", narinfo.url), url);
        assert_eq!(narinfo.file_size, Some(sample.nar.len() as u64));
        let head = node.head(&nar_of(&sample)).await;
        assert_eq!(head.header("content-length"), sample.nar.len().to_string());
        let nar = node.get(&nar_of(&sample)).await;
        assert!(nar.complete && nar.body == sample.nar, "{compression}");
        assert_eq!(nar.header("accept-ranges"), "bytes");

        // From now on it is a path like any other.
        let narinfo = kept(&node, &sample).await;
        assert_eq!(
            narinfo.info.signatures.len(),
            2,
            "the upstream's and the cache's"
        );
        assert!(narinfo.info.signatures.contains(&said.info.signatures[0]));
        assert_eq!(narinfo.info.references, sample.references);
        assert_eq!(narinfo.info.deriver, sample.deriver);
        let nar = node.get(&format!("/main/{}", narinfo.url)).await;
        assert_eq!(zstd::decode_all(&nar.body[..]).unwrap(), sample.nar);
        let name = sample.hash().to_string();
        assert_eq!(upstream.asked(&name).len(), 2, "a narinfo and a NAR");
    }
    assert!(
        node.metric("attic_node_sent_bytes_total{source=\"upstream\"}")
            .await
            > 0.0
    );
    let hits = "attic_node_narinfo_hits_total{source=\"upstream\"}";
    assert_eq!(node.metric(hits).await, 6.0);
    let status: Status = node.api(Method::GET, "status").ok().await;
    let seen = &status.upstreams[0];
    assert!(seen.healthy && seen.latency_ms.is_some(), "{seen:?}");
    assert_eq!((seen.priority, seen.narinfo_hits, seen.errors), (1, 6, 0));
}

/// S7: what no configured key signed is not there.
#[tokio::test]
async fn s7_what_another_key_signed_is_refused_and_asked_of_the_next() {
    let (first, second) = (Server::start("up-1").await, Server::start("up-2").await);
    let (stranger, sample) = (Server::start("up-1x").await, Sample::noise("a", 1 << 20));
    let (forged, only) = (Sample::file("b", b"b"), Sample::file("c", b"c"));
    // Both names, each with a signature of somebody else.
    for path in [&sample, &forged] {
        let narinfo = stranger.narinfo(path, &path.nar, Compression::None);
        let text = narinfo.print(&StoreDir::default());
        first.put(&path.narinfo_name(), text.into_bytes());
    }
    first.add(&only, Compression::None);
    let text = first.narinfo(&only, &only.nar, Compression::None);
    let renamed = text.print(&StoreDir::default());
    first.put(&forged.narinfo_name(), renamed.into_bytes());
    second.add(&sample, Compression::Xz);
    let node = node_behind(&[&first, &second]).await;
    assert_eq!(read(&node, &sample).await.body, sample.nar);
    assert_eq!(status_of(&node, &forged).await, 404);
    let nar = node.get(&nar_of(&forged)).await;
    assert_eq!(nar.status, 404);
    assert_eq!(first.asked("nar/"), []);
    let status: Status = node.api(Method::GET, "status").ok().await;
    assert_eq!(status.upstreams[0].errors, 2);
    assert_eq!(status.upstreams[0].narinfo_hits, 0);
}

/// S9: one download, whoever wants it and whoever leaves; and it is sent while it comes.
#[tokio::test]
async fn s9_many_clients_share_one_download_and_one_leaving_disturbs_nobody() {
    let upstream = Server::start("up-1").await;
    let sample = Sample::noise("a", 6 << 20);
    upstream.add(&sample, Compression::None);
    upstream.conduct("nar/", &[Conduct::DripAfter(3 << 20)]);
    let node = node_behind(&[&upstream]).await;
    let narinfos = all((0..8).map(|_| node.narinfo("main", &sample))).await;
    assert!(narinfos.iter().all(|narinfo| narinfo == &narinfos[0]));
    assert_eq!(upstream.asked("narinfo").len(), 1);

    let nar = nar_of(&sample);
    let request = format!("GET {nar} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut leaving = TcpStream::connect(node.address()).await.unwrap();
    leaving.write_all(request.as_bytes()).await.unwrap();
    // It is sent something though the upstream has sent half.
    let mut some = vec![0; 1 << 20];
    leaving.read_exact(&mut some).await.unwrap();
    drop(leaving);
    let opening = async {
        // All have joined once they were sent something, which their heads tell.
        let mut joined = Vec::new();
        for _ in 0..4 {
            let mut stream = TcpStream::connect(node.address()).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.read_exact(&mut [0; 1024]).await.unwrap();
            joined.push(stream);
        }
        upstream.open();
        joined
    };
    let whole = all((0..4).map(|_| node.get(&nar)));
    let (joined, whole) = tokio::join!(opening, whole);
    assert!(
        whole
            .iter()
            .all(|nar| nar.complete && nar.body == sample.nar)
    );
    drop(joined);
    assert_eq!(upstream.asked("nar/").len(), 1);
    kept(&node, &sample).await;
}

/// A client that was cut off goes on where it was, in the same download.
#[tokio::test]
async fn a_range_is_read_from_a_download_under_way() {
    let upstream = Server::start("up-1").await;
    let sample = Sample::noise("a", 4 << 20);
    upstream.add(&sample, Compression::Zstd);
    upstream.conduct("nar/", &[Conduct::DripAfter(2 << 20)]);
    let node = node_behind(&[&upstream]).await;
    node.narinfo("main", &sample).await;
    let (nar, open) = (nar_of(&sample), async { upstream.open() });
    let first = node
        .request(Method::GET, &nar)
        .header("range", "bytes=0-99999");
    let first = first.send().await;
    assert_eq!(
        (first.status.as_u16(), &first.body[..]),
        (206, &sample.nar[..100_000])
    );
    let rest = node
        .request(Method::GET, &nar)
        .header("range", "bytes=3000001-");
    let (rest, ()) = tokio::join!(rest.send(), open);
    assert_eq!(
        (rest.status.as_u16(), &rest.body[..]),
        (206, &sample.nar[3_000_001..])
    );
    assert_eq!(rest.header("accept-ranges"), "bytes");
    assert_eq!(upstream.asked("nar/").len(), 1);
}

/// S1: a cut is not seen by the client.
#[tokio::test]
async fn s1_a_download_that_is_cut_is_resumed_where_it_was() {
    for compression in [Compression::None, Compression::Xz] {
        let upstream = Server::start("up-1").await;
        let sample = Sample::noise("a", 4 << 20);
        upstream.add(&sample, compression);
        let cuts = [
            Conduct::CutAfter(1 << 20),
            Conduct::CutAfter(1),
            Conduct::Status(503),
            Conduct::Serve,
        ];
        upstream.conduct("nar/", &cuts);
        let node = node_behind(&[&upstream]).await;
        assert_eq!(read(&node, &sample).await.body, sample.nar);
        let ranges: Vec<_> = upstream
            .asked("nar/")
            .into_iter()
            .map(|asked| asked.range)
            .collect();
        let resumed = format!("bytes={}-", (1 << 20) + 1);
        let wanted = [
            None,
            Some("bytes=1048576-"),
            Some(resumed.as_str()),
            Some(resumed.as_str()),
        ];
        assert_eq!(ranges, wanted.map(|range| range.map(str::to_owned)));
    }
}

/// S1: nor is one after which the rest is not to be had in the same way.
#[tokio::test]
async fn s1_a_server_without_ranges_and_another_upstream_can_finish_a_download() {
    let (first, second) = (Server::start("up-1").await, Server::start("up-2").await);
    let sample = Sample::noise("a", 4 << 20);
    first.add(&sample, Compression::Xz);
    second.add(&sample, Compression::Gzip);
    first.conduct("nar/", &[Conduct::CutAfter(2 << 20), Conduct::IgnoreRange]);
    let node = node_behind(&[&first, &second]).await;
    assert_eq!(read(&node, &sample).await.body, sample.nar);
    assert_eq!(
        (first.asked("nar/").len(), second.asked("nar/").len()),
        (2, 0)
    );

    let sample = Sample::noise("b", 4 << 20);
    first.add(&sample, Compression::Xz);
    second.add(&sample, Compression::Gzip);
    first.conduct("nar/", &[Conduct::CutAfter(2 << 20), Conduct::Status(404)]);
    let node = node_behind(&[&first, &second]).await;
    assert_eq!(read(&node, &sample).await.body, sample.nar);
    assert_eq!(second.asked("nar/").len(), 1);
    kept(&node, &sample).await;
}

/// S1: wrong bytes never look like a whole NAR, and whoever gave them is not believed again.
#[tokio::test]
async fn s1_a_wrong_nar_is_cut_and_kept_from_nobody_who_has_the_right_one() {
    let (first, second) = (Server::start("up-1").await, Server::start("up-2").await);
    let sample = Sample::noise("a", 4 << 20);
    let mut wrong = sample.nar.clone();
    let middle = wrong.len() / 2;
    wrong[middle] ^= 1;
    first.add_as(&sample, &wrong, Compression::None);
    let node = node_behind(&[&first, &second]).await;
    node.narinfo("main", &sample).await;
    let nar = node.get(&nar_of(&sample)).await;
    assert!(nar.status == 404 || nar.status == 200 && !nar.complete);
    assert_eq!(status_of(&node, &sample).await, 404);
    assert_eq!(node.get(&nar_of(&sample)).await.status, 404);
    assert_eq!(first.asked("nar/").len(), 1);

    second.add(&sample, Compression::Br);
    assert_eq!(read(&node, &sample).await.body, sample.nar);
    let status: Status = node.api(Method::GET, "status").ok().await;
    assert!(status.upstreams[0].last_error.is_some(), "{status:?}");
}

/// S1: of two that gave a part each of what is wrong, the one that gave the right part is believed.
#[tokio::test]
async fn s1_an_upstream_that_went_on_after_wrong_bytes_is_not_blamed_for_them() {
    let (first, second) = (Server::start("up-1").await, Server::start("up-2").await);
    let sample = Sample::noise("a", 4 << 20);
    let mut wrong = sample.nar.clone();
    wrong[1 << 20] ^= 1;
    first.add_as(&sample, &wrong, Compression::None);
    first.conduct("nar/", &[Conduct::CutAfter(2 << 20), Conduct::Status(404)]);
    second.add(&sample, Compression::Xz);
    let node = node_behind(&[&first, &second]).await;
    node.narinfo("main", &sample).await;
    let nar = node.get(&nar_of(&sample)).await;
    assert!(nar.status == 404 || nar.body == sample.nar || !nar.complete);
    assert_eq!(read(&node, &sample).await.body, sample.nar);
    assert_eq!(
        (first.asked("nar/").len(), second.asked("nar/").len()),
        (2, 2)
    );
}

/// S1: what cannot be decompressed, is short, long, another file or none is not there.
#[tokio::test]
async fn s1_broken_files_are_not_there() {
    let good = Sample::noise("good", 2 << 20);
    let packed = compress(&good.nar, Compression::Zstd);
    let long = [&good.nar[..], b"more"].concat();
    let rows: [(&str, Vec<u8>, Compression); 6] = [
        (
            "short",
            packed[..packed.len() - 5].to_vec(),
            Compression::Zstd,
        ),
        ("garbage", vec![7; 5000], Compression::Xz),
        ("plain", good.nar.clone(), Compression::Bzip2),
        (
            "shorter",
            good.nar[..good.nar.len() / 2].to_vec(),
            Compression::None,
        ),
        ("long", long, Compression::None),
        ("nothing", Vec::new(), Compression::Gzip),
    ];
    for (name, file, compression) in rows {
        let (upstream, sample) = (Server::start("up-1").await, good.clone());
        upstream.add(&sample, compression);
        upstream.put(&format!("nar/{}.file", sample.hash()), file);
        let node = node_behind(&[&upstream]).await;
        node.narinfo("main", &sample).await;
        let nar = node.get(&nar_of(&sample)).await;
        assert!(
            nar.status == 404 || nar.status == 200 && !nar.complete,
            "{name}"
        );
        assert_eq!(status_of(&node, &sample).await, 404, "{name}");
    }
}

/// S1: whatever an upstream does instead of answering, the answer is 404 and nothing else.
#[tokio::test]
async fn s1_an_upstream_that_fails_is_a_404() {
    let rows = [
        Conduct::Status(500),
        Conduct::Status(401),
        Conduct::Status(429),
        Conduct::Status(302),
        Conduct::Hang,
        Conduct::CutAfter(10),
    ];
    for conduct in rows {
        let (upstream, sample) = (Server::start("up-1").await, Sample::noise("a", 1 << 20));
        upstream.add(&sample, Compression::None);
        upstream.conduct("narinfo", &[conduct]);
        let node = node_behind(&[&upstream]).await;
        assert_eq!(status_of(&node, &sample).await, 404, "{conduct:?}");
        // It comes to itself; the failure is not remembered as an answer.
        upstream.conduct("narinfo", &[Conduct::Serve]);
        upstream.conduct("nar/", &[conduct]);
        let other = Sample::noise("b", 1 << 20);
        upstream.add(&other, Compression::None);
        let node = node_behind(&[&upstream]).await;
        node.narinfo("main", &other).await;
        let nar = node.get(&nar_of(&other)).await;
        assert!(
            nar.status == 404 || nar.status == 200 && !nar.complete,
            "{conduct:?}"
        );
    }
}

/// S1: an upstream changes its mind between narinfo and NAR.
#[tokio::test]
async fn s1_a_nar_that_goes_or_changes_after_its_narinfo_is_a_404() {
    let upstream = Server::start("up-1").await;
    let (gone, changed) = (Sample::file("a", b"a"), Sample::file("b", b"b"));
    upstream.add(&gone, Compression::None);
    upstream.add(&changed, Compression::None);
    let node = node_behind(&[&upstream]).await;
    node.narinfo("main", &gone).await;
    node.narinfo("main", &changed).await;
    upstream.conduct("nar/", &[Conduct::Status(404), Conduct::Serve]);
    assert_eq!(node.get(&nar_of(&gone)).await.status, 404);
    let other = Sample::file("b", b"other contents, signed as well");
    upstream.add(&other, Compression::None);
    assert_eq!(node.get(&nar_of(&changed)).await.status, 404);
    assert_eq!(read(&node, &other).await.body, other.nar);
}

/// S8: a dead upstream costs one timeout, and not the paths of the others.
#[tokio::test]
async fn s8_a_dead_upstream_is_asked_once_and_the_next_one_answers() {
    let (dead, second) = (Server::start("up-1").await, Server::start("up-2").await);
    dead.conduct("", &[Conduct::Hang]);
    let node = node_behind(&[&dead, &second]).await;
    for index in 0..5 {
        let sample = Sample::file(&format!("a-{index}"), b"x");
        second.add(&sample, Compression::None);
        let reply = node.get(&narinfo_of(&sample)).await;
        assert_eq!(reply.status, 200, "{index}");
        // The first question is heard to its end behind the client's back.
        while node.metric(&series(&dead, "errors_total")).await == 0.0 {}
    }
    assert_eq!(dead.asked("").len(), 1);
    assert_eq!(node.metric(&series(&dead, "unavailable")).await, 1.0);
    assert_eq!(node.metric(&series(&second, "unavailable")).await, 0.0);
    let status: Status = node.api(Method::GET, "status").ok().await;
    assert!(!status.upstreams[0].healthy && status.upstreams[1].healthy);
    assert!(status.upstreams[0].failing_since.is_some());
    let missing = Sample::file("missing", b"x");
    assert_eq!(status_of(&node, &missing).await, 404);
    assert_eq!(dead.asked("").len(), 1);
}

/// S2: whoever waits is told 404 at the deadline, and what comes after it is there for the next.
#[tokio::test]
async fn s2_an_answer_after_the_deadline_is_there_for_the_next_question() {
    let (upstream, sample) = (Server::start("up-1").await, Sample::noise("a", 1 << 20));
    upstream.add(&sample, Compression::Xz);
    upstream.conduct("narinfo", &[Conduct::DripAfter(0)]);
    let file = format!(
        "[pull-through]\ndeadline = \"300ms\"\n{}",
        upstream.config("")
    );
    let node = TestNode::with_file(&file, &[]).await;
    assert_eq!(status_of(&node, &sample).await, 404);
    upstream.open();
    while status_of(&node, &sample).await == 404 {}
    assert_eq!(read(&node, &sample).await.body, sample.nar);
    assert_eq!(upstream.asked("narinfo").len(), 1);
}

fn series(upstream: &Server, name: &str) -> String {
    let url = upstream.url();
    format!("attic_node_upstream_{name}{{url=\"{url}\"}}")
}

/// What no upstream has is remembered, until it is pushed; what one could not say is not.
#[tokio::test]
async fn s7_that_a_path_is_nowhere_is_remembered_until_it_is_pushed() {
    let (first, second) = (Server::start("up-1").await, Server::start("up-2").await);
    let node = node_behind(&[&first, &second]).await;
    let sample = Sample::noise("a", 1 << 20);
    for _ in 0..3 {
        assert_eq!(status_of(&node, &sample).await, 404);
    }
    assert_eq!(
        (first.asked("narinfo").len(), second.asked("narinfo").len()),
        (1, 1)
    );
    node.publish("main", &sample).await;
    assert_eq!(status_of(&node, &sample).await, 200);

    let unsure = Sample::noise("b", 1 << 20);
    first.conduct("narinfo", &[Conduct::Status(500)]);
    for _ in 0..2 {
        assert_eq!(status_of(&node, &unsure).await, 404);
    }
    assert_eq!(first.asked(&unsure.hash().to_string()).len(), 2);
}

/// Upstreams of equal priority are asked at once, others only when these do not have it.
#[tokio::test]
async fn s8_a_lower_priority_is_asked_first_and_equal_ones_race() {
    let servers = [
        Server::start("up-1").await,
        Server::start("up-2").await,
        Server::start("up-3").await,
    ];
    let sample = Sample::file("a", b"x");
    servers
        .iter()
        .for_each(|server| server.add(&sample, Compression::None));
    servers[1].conduct("narinfo", &[Conduct::Hang]);
    servers[2].put(
        "nix-cache-info",
        b"StoreDir: /nix/store\nPriority: 7\n".to_vec(),
    );
    let ranks = ["priority = 7", "priority = 7", ""];
    let tables = servers
        .iter()
        .zip(ranks)
        .map(|(server, rank)| server.config(rank));
    let file: String = tables.collect();
    let node = TestNode::with_file(&format!("{DEADLINE}{file}"), &[]).await;
    loop {
        let status: Status = node.api(Method::GET, "status").ok().await;
        if status.upstreams[2].priority == 7 {
            break;
        }
        assert_eq!(status.upstreams[2].priority, 40, "until it says it");
    }
    assert_eq!(status_of(&node, &sample).await, 200);
    // All were asked, also those that were outrun.
    while !servers
        .iter()
        .all(|server| server.asked("narinfo").len() == 1)
    {
        tokio::task::yield_now().await;
    }

    let (preferred, other) = (Server::start("up-1").await, Server::start("up-2").await);
    preferred.add(&sample, Compression::None);
    other.add(&sample, Compression::None);
    let node = node_behind(&[&preferred, &other]).await;
    assert_eq!(status_of(&node, &sample).await, 200);
    assert_eq!(other.asked("narinfo"), []);
}

/// The hash of the file is looked at; the NAR is what was signed, and counts.
#[tokio::test]
async fn s7_a_wrong_file_hash_is_noted_and_the_right_nar_taken() {
    let (upstream, sample) = (Server::start("up-1").await, Sample::noise("a", 1 << 20));
    upstream.add(&sample, Compression::Zstd);
    let file = compress(&sample.nar, Compression::Zstd);
    let mut narinfo = upstream.narinfo(&sample, &file, Compression::Zstd);
    narinfo.file_hash = Some(FileHash::of(b"something else"));
    let text = narinfo.print(&StoreDir::default());
    upstream.put(&sample.narinfo_name(), text.into_bytes());
    let node = node_behind(&[&upstream]).await;
    assert_eq!(read(&node, &sample).await.body, sample.nar);
    kept(&node, &sample).await;
    assert_eq!(node.metric(&series(&upstream, "errors_total")).await, 1.0);
}

/// A NAR that is here is not fetched for another cache: its path is published there.
#[tokio::test]
async fn s7_a_nar_that_another_cache_has_is_not_fetched_again() {
    let (upstream, sample) = (Server::start("up-1").await, Sample::noise("a", 1 << 20));
    upstream.add(&sample, Compression::Xz);
    let node = node_behind(&[&upstream]).await;
    let second = serde_json::json!({ "name": "second", "settings": { "public": true } });
    let made = node.api(Method::POST, "caches").json(&second).send().await;
    assert!(made.status.is_success(), "{}", made.text());
    assert_eq!(read(&node, &sample).await.body, sample.nar);
    let narinfo = node.narinfo("second", &sample).await;
    let nar = node.get(&format!("/second/{}", narinfo.url)).await;
    assert_eq!(nar.body, sample.nar);
    assert_eq!(upstream.asked("nar/").len(), 1);
    let narinfo = node.narinfo("second", &sample).await;
    assert_eq!(narinfo.compression, Compression::Zstd);
}

/// Redirects are followed, and not for ever.
#[tokio::test]
async fn redirects_are_followed_and_bounded() {
    let (upstream, sample) = (Server::start("up-1").await, Sample::noise("a", 1 << 20));
    upstream.add(&sample, Compression::Xz);
    upstream.conduct("narinfo", &[Conduct::Redirect, Conduct::Serve]);
    upstream.conduct(
        "nar/",
        &[Conduct::Redirect, Conduct::Redirect, Conduct::Serve],
    );
    let node = node_behind(&[&upstream]).await;
    assert_eq!(read(&node, &sample).await.body, sample.nar);
    let other = Sample::noise("b", 1 << 20);
    upstream.add(&other, Compression::Xz);
    upstream.conduct("narinfo", &[Conduct::Redirect]);
    assert_eq!(status_of(&node, &other).await, 404);
    assert_eq!(upstream.asked(&other.hash().to_string()).len(), 6);
}

/// What is private is not asked for elsewhere, unless it is said so.
#[tokio::test]
async fn a_private_cache_is_not_asked_about_unless_it_is_named() {
    let (public, named) = (Server::start("up-1").await, Server::start("up-2").await);
    let sample = Sample::file("a", b"x");
    public.add(&sample, Compression::None);
    let secret = serde_json::json!({ "name": "secret", "settings": { "public": false } });
    let file = public.config("");
    let node = TestNode::with_file(&file, &[]).await;
    let made = node.api(Method::POST, "caches").json(&secret).send().await;
    assert!(made.status.is_success(), "{}", made.text());
    let target = format!("/secret/{}", sample.narinfo_name());
    let reply = node.request(Method::GET, &target).admin().send().await;
    assert_eq!(reply.status, 404);
    assert_eq!(public.asked("narinfo"), []);

    named.add(&sample, Compression::None);
    let file = named.config("caches = [\"secret\"]");
    let node = TestNode::with_file(&file, &[]).await;
    let made = node.api(Method::POST, "caches").json(&secret).send().await;
    assert!(made.status.is_success(), "{}", made.text());
    let reply = node.request(Method::GET, &target).admin().send().await;
    assert_eq!(reply.status, 200);
    assert_eq!(node.get(&target).await.status, 404, "not without the token");
    assert_eq!(
        status_of(&node, &sample).await,
        404,
        "not through another cache"
    );
    let nar = format!("/secret/nar/{}.nar", sample.nar_hash().nix32());
    assert_eq!(node.get(&nar_of(&sample)).await.status, 404);
    let reply = node.request(Method::GET, &nar).admin().send().await;
    assert_eq!(reply.body, sample.nar);
}

/// A NAR that does not fit is not promised.
#[tokio::test]
async fn s1_what_there_is_no_room_for_is_not_there() {
    let upstream = Server::start("up-1").await;
    let sample = Sample::noise("a", 3 << 20);
    upstream.add(&sample, Compression::None);
    let file = upstream.config("");
    let small = [("store.size-cap", "2 MiB"), ("store.pack-size", "1 MiB")];
    let node = TestNode::with_file(&file, &small).await;
    assert_eq!(status_of(&node, &sample).await, 404);
    let large = [("store.nar-size-max", "2 MiB")];
    let node = TestNode::with_file(&file, &large).await;
    assert_eq!(status_of(&node, &sample).await, 404);
}

/// A node that is stopped in the middle of a download stops.
#[tokio::test]
async fn a_stop_ends_downloads() {
    let upstream = Server::start("up-1").await;
    let sample = Sample::noise("a", 4 << 20);
    upstream.add(&sample, Compression::None);
    upstream.conduct("nar/", &[Conduct::DripAfter(2 << 20)]);
    let flags = [("http.shutdown-timeout", "0s")];
    let mut node = TestNode::with_file(&upstream.config(""), &flags).await;
    node.narinfo("main", &sample).await;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        nar_of(&sample)
    );
    let mut client = TcpStream::connect(node.address()).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    client.read_exact(&mut [0; 1024]).await.unwrap();
    node.stop().await;
    node.boot().await;
    upstream.open();
    assert_eq!(read(&node, &sample).await.body, sample.nar);
}

//! Rows S1, S7, S8, S9 and S10 with real Nix: one substituter on localhost in front of binary caches on
//! the web, as `nix copy --to file://` writes them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use testnet::cluster::Cluster;
use testnet::http::Request;
use testnet::nix::{KeyPair, NixClient};
use testnet::node::TestNode;
use testnet::program::{eventually, is_root};
use testnet::proxy::{Exchange, Fault, FaultProxy, Head};
use testnet::served::hash_part;
use testnet::static_cache::StaticCache;

pub(crate) mod shared;

/// A store path of the machine that holds `len` bytes which do not compress. It is built, so that
/// nobody takes it without a signature.
#[track_caller]
pub(crate) fn path(name: &str, len: usize) -> String {
    let built = format!("run \"{name}\" ''head -c {len} /dev/urandom > $out''");
    NixClient::host().build(&built).remove(0)
}

/// The same path with other contents: what builders elsewhere made of the derivation.
#[track_caller]
fn rebuilt(name: &str, len: usize) -> String {
    let host = NixClient::host();
    let old = path(name, len);
    let old_hash = host.nar_hashes(&[&old]);
    host.run("nix-store", &["--delete", &old]).succeeds();
    let new = path(name, len);
    assert_eq!(old, new);
    assert_ne!(old_hash, host.nar_hashes(&[&new]));
    new
}

/// A configuration with these upstreams, the first one preferred: where each is, and its key.
pub(crate) fn config(upstreams: &[(&FaultProxy, &str)]) -> String {
    let tables = upstreams.iter().zip(1..).map(|((proxy, key), priority)| {
        let address = proxy.address();
        format!(
            "[[upstream]]\nurl = \"http://{address}\"\npublic-keys = [\"{key}\"]\n\
             priority = {priority}\ntimeout = \"3s\"\n"
        )
    });
    tables.collect()
}

/// A Nix that substitutes through the node and trusts what the upstreams sign.
pub(crate) fn nix(node: &TestNode, upstreams: &[&StaticCache]) -> NixClient {
    let keys: Vec<&str> = upstreams.iter().map(|up| &*up.key.public).collect();
    NixClient::fresh(node, "main").trusting(&keys.join(" "))
}

/// The requests for NARs, or for narinfos, that passed.
pub(crate) fn asked(proxy: &FaultProxy, text: &str) -> Vec<Exchange> {
    let of = |exchange: &Exchange| exchange.head.target.contains(text);
    proxy.log().into_iter().filter(of).collect()
}

fn is_nar(head: &Head) -> bool {
    head.target.contains("/nar/")
}

/// How a node answers for the narinfo of a path.
#[track_caller]
fn status(node: &TestNode, path: &str) -> u16 {
    let target = format!("/main/{}.narinfo", hash_part(path));
    node.get(&target).expect("the node answers").status
}

/// Where a node has the NAR of a path, as it says.
#[track_caller]
fn nar_target(node: &TestNode, path: &str) -> String {
    let narinfo = format!("/main/{}.narinfo", hash_part(path));
    let narinfo = node.get(&narinfo).expect("the node answers").text();
    let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: "));
    format!("/main/{}", url.expect("a narinfo has a URL"))
}

/// Two upstreams, every compression that Nix writes: each path is fetched once, by whichever Nix
/// asks first, and the next Nix has it from the node.
#[test]
fn s7_paths_of_two_upstreams_come_through_the_node_once() {
    if !is_root("s7 compressions") {
        return;
    }
    let (first, second) = (
        StaticCache::serve("first-1"),
        StaticCache::serve("second-1"),
    );
    let compressions = ["xz", "zstd", "bzip2", "gzip", "br", "none"];
    let mut paths = Vec::new();
    for (number, compression) in compressions.into_iter().enumerate() {
        let path = path(&format!("s7-{compression}"), 2 << 20);
        let upstream = if number % 2 == 0 { &first } else { &second };
        upstream.add(&[&path], compression);
        paths.push(path);
    }
    let proxies = [&first, &second].map(|upstream| FaultProxy::clean(upstream.address()));
    let [one, two] = &proxies;
    let node = TestNode::with_config(&config(&[
        (one, &*first.key.public),
        (two, &*second.key.public),
    ]));
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    for round in 0..2 {
        let nix = nix(&node, &[&first, &second]);
        let args = [&["--realise"][..], &paths[..]].concat();
        nix.run("nix-store", &args).succeeds();
        assert_eq!(nix.nar_hashes(&paths), NixClient::host().nar_hashes(&paths));
        nix.verify_store();
        for proxy in &proxies {
            assert_eq!(
                asked(proxy, "/nar/").len(),
                3,
                "round {round}: {:#?}",
                proxy.log()
            );
        }
    }
    // Whoever trusts the cache alone has them too: its key signed what the upstreams' had.
    let trusting = NixClient::fresh(&node, "main");
    let args = [&["--realise"][..], &paths[..]].concat();
    trusting.run("nix-store", &args).succeeds();
}

/// What nobody signed whom the node was told to trust is not there, and Nix goes on.
#[test]
fn s7_a_path_signed_with_an_unknown_key_is_refused() {
    if !is_root("s7 unknown key") {
        return;
    }
    let upstream = StaticCache::serve("upstream-1");
    let path = path("s7-unknown-key", 1 << 20);
    upstream.add(&[&path], "xz");
    let other = KeyPair::generate("upstream-1");
    let proxy = FaultProxy::clean(upstream.address());
    let node = TestNode::with_config(&config(&[(&proxy, &*other.public)]));
    assert_eq!(status(&node, &path), 404);
    let nix = nix(&node, &[&upstream]);
    nix.run("nix-store", &["--realise", &path]).fails();
    assert_eq!(asked(&proxy, "/nar/"), []);
    node.cli()
        .run(&["status"])
        .succeeds()
        .says("0 found, 0 B received");
}

/// What an upstream has is a hit, like what is here.
#[test]
fn g11_status_counts_what_upstreams_had_as_found() {
    if !is_root("g11 hits") {
        return;
    }
    let upstream = StaticCache::serve("upstream-1");
    let path = path("g11-hits", 1000);
    upstream.add(&[&path], "xz");
    let proxy = FaultProxy::clean(upstream.address());
    let node = TestNode::with_config(&config(&[(&proxy, &*upstream.key.public)]));
    assert_eq!(status(&node, &path), 200);
    let said = node.cli().run(&["status"]).succeeds();
    said.says("Narinfo: 1 found, 0 not (100.0% hits)");
    let missing = "/nix/store/00000000000000000000000000000000-missing";
    assert_eq!(status(&node, missing), 404);
    let said = node.cli().run(&["status"]).succeeds();
    said.says("Narinfo: 1 found, 1 not (50.0% hits)");
}

/// An upstream for a cache that nobody has is asked nothing, which may be a mistake: it is told wherever
/// somebody looks.
#[test]
fn g16_an_upstream_for_a_cache_that_is_not_there_is_told() {
    let key = KeyPair::generate("upstream-1").public;
    let node = TestNode::with_config(&format!(
        "[[upstream]]\nurl = \"http://127.0.0.1:9\"\npublic-keys = [\"{key}\"]\n\
         caches = [\"mian\", \"main\"]\n"
    ));
    let (told, checked) = (
        "there is no cache mian",
        "is for cache mian, which is not there",
    );
    node.cli().run(&["status"]).succeeds().says(told);
    let check = node.cli().run(&["config", "check"]).succeeds();
    let check = check.says(checked);
    assert!(!check.stderr.contains("cache main"), "{check}");
    let log = node.log();
    let warned = |line: &str| line.contains("upstream is for a cache that is not there");
    let warnings: Vec<&str> = log.lines().filter(|line| warned(line)).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("mian"), "{log}");

    node.cli().run(&["cache", "create", "mian"]).succeeds();
    let status = node.cli().run(&["status"]).succeeds();
    assert!(!status.stdout.contains(told), "{status}");
    let check = node.cli().run(&["config", "check"]).succeeds();
    assert!(!check.stderr.contains(checked), "{check}");
}

/// Two nodes of a cluster, one upstream: what one has fetched the other one does not fetch.
#[test]
fn s7_the_second_node_of_a_cluster_asks_the_upstream_for_no_nar() {
    if !is_root("s7 second node") {
        return;
    }
    let upstream = StaticCache::serve("upstream-1");
    let path = path("s7-second-node", 5 << 20);
    upstream.add(&[&path], "xz");
    let proxy = FaultProxy::clean(upstream.address());
    let config = config(&[(&proxy, &*upstream.key.public)]);
    let cluster = Cluster::on_loopback(2, &config).join_all();
    let first = nix(&cluster[0], &[&upstream]);
    first.run("nix-store", &["--realise", &path]).succeeds();
    assert_eq!(asked(&proxy, "/nar/").len(), 1);
    // Until it has heard of it, it would have it from the upstream as well.
    let target = format!("/main/{}.narinfo", hash_part(&path));
    eventually(
        "the second node to hear of it",
        Duration::from_secs(30),
        || {
            let narinfo = cluster[1].get(&target).expect("the node answers");
            narinfo.text().contains("Compression: zstd").then_some(())
        },
    );
    let second = nix(&cluster[1], &[&upstream]);
    second.run("nix-store", &["--realise", &path]).succeeds();
    second.verify_store();
    assert_eq!(asked(&proxy, "/nar/").len(), 1, "{:#?}", proxy.log());
}

/// Nix remembers for a month where a NAR is; the node forgets with the restart, and asks again.
#[test]
fn s7_a_nar_is_still_there_for_who_was_told_of_it_before_a_restart() {
    if !is_root("s7 restart") {
        return;
    }
    let upstream = StaticCache::serve("upstream-1");
    let path = path("s7-restart", 3 << 20);
    upstream.add(&[&path], "xz");
    for copies in [false, true] {
        let proxy = FaultProxy::clean(upstream.address());
        let mut node = TestNode::with_config(&config(&[(&proxy, &*upstream.key.public)]));
        // The node comes back on another port, and Nix remembers by address.
        let front = FaultProxy::clean(node.address());
        let url = front.url("main");
        let nix = nix(&node, &[&upstream]).substituter(&url);
        nix.run("nix", &["path-info", "--store", &url, &path])
            .succeeds();
        assert!(node.stop().success());
        node.start_again();
        front.set_upstream(node.address());
        front.clear_log();
        match copies {
            false => nix.run("nix-store", &["--realise", &path]).succeeds(),
            true => nix.run("nix", &["copy", "--from", &url, &path]).succeeds(),
        };
        nix.verify_store();
        // Nix did not ask for the narinfo again.
        assert_eq!(asked(&front, ".narinfo"), []);
        assert_eq!(asked(&proxy, "/nar/").len(), 1, "{:#?}", proxy.log());
    }
}

/// Between the narinfo and the NAR an upstream comes to have another build of the path, and the node
/// starts again: whoever was told of the old one gets that, from where it still is, or nothing.
#[test]
fn s5_an_upstream_that_changed_its_mind_gives_no_other_bytes() {
    if !is_root("s5 changed mind") {
        return;
    }
    let (old, new) = (StaticCache::serve("old-1"), StaticCache::serve("new-1"));
    let path = path("s5-changed-mind", 2 << 20);
    let hashes = NixClient::host().nar_hashes(&[&path]);
    old.add(&[&path], "xz");
    let (changed, faithful) = (
        FaultProxy::clean(new.address()),
        FaultProxy::clean(old.address()),
    );
    let both = [(&changed, &*new.key.public), (&faithful, &*old.key.public)];
    let mut told = Vec::new();
    for _ in 0..2 {
        let node = TestNode::with_config(&config(&both));
        let front = FaultProxy::clean(node.address());
        let nix = nix(&node, &[&old, &new]).substituter(&front.url("main"));
        nix.run("nix", &["path-info", "--store", &front.url("main"), &path])
            .succeeds();
        told.push((node, front, nix));
    }
    rebuilt("s5-changed-mind", 2 << 20);
    new.add(&[&path], "xz");
    let (mut node, front, nix) = told.remove(0);
    assert!(node.stop().success());
    node.start_again();
    front.set_upstream(node.address());
    nix.run("nix-store", &["--realise", &path]).succeeds();
    assert_eq!(nix.nar_hashes(&[&path]), hashes);
    assert_eq!(asked(&changed, "/nar/"), []);

    let (mut node, front, nix) = told.remove(0);
    assert!(node.stop().success());
    node.configure(&config(&both[..1]));
    node.start_again();
    front.set_upstream(node.address());
    nix.run("nix-store", &["--realise", &path]).fails();
    let nars = asked(&front, "/nar/");
    assert!(!nars.is_empty() && nars.iter().all(|nar| nar.status == Some(404)));
    assert_eq!(asked(&changed, "/nar/"), []);
    // Who asks now is told of the new one.
    let asking_now = NixClient::fresh(&node, "main").trusting(&new.key.public);
    asking_now
        .run("nix-store", &["--realise", &path])
        .succeeds();
    assert_ne!(asking_now.nar_hashes(&[&path]), hashes);
}

/// A dead upstream costs one question, however many paths are asked for.
#[test]
fn s8_a_dead_upstream_is_asked_once() {
    let upstream = StaticCache::serve("upstream-1");
    let dead = FaultProxy::new(upstream.address(), |_| Fault::Hold);
    let config = config(&[(&dead, &*upstream.key.public)]);
    let node = TestNode::with_config(&config);
    for number in 0..20 {
        let path = format!("/nix/store/{number:032}-missing");
        assert_eq!(status(&node, &path), 404);
    }
    assert_eq!(asked(&dead, "narinfo").len(), 1, "{:#?}", dead.log());
    node.cli().run(&["status"]).succeeds().says("left alone");
    let json = node.cli().run(&["status", "--json"]).succeeds().stdout;
    assert!(json.contains("\"failing_since\""), "{json}");
}

/// A look-up that goes on after its deadline, because an upstream may still answer, is waited for once:
/// who asks for the same path then is told at once that it is not here.
#[test]
fn s8_a_late_look_up_is_not_waited_for_again() {
    let upstream = StaticCache::serve("upstream-1");
    let dead = FaultProxy::new(upstream.address(), |_| Fault::Hold);
    let measure = FaultProxy::new(upstream.address(), |_| Fault::Hold);
    let key = &upstream.key.public;
    let table = |proxy: &FaultProxy, cache: &str| {
        let address = proxy.address();
        format!(
            "[[upstream]]\nurl = \"http://{address}\"\npublic-keys = [\"{key}\"]\n\
             priority = 1\ntimeout = \"10m\"\ncaches = [\"{cache}\"]\n"
        )
    };
    let deadline = "[pull-through]\ndeadline = \"4s\"\n";
    let config = format!(
        "{deadline}{}{}",
        table(&dead, "main"),
        table(&measure, "measure")
    );
    let node = TestNode::with_config(&config);
    node.cli().run(&["cache", "create", "measure"]).succeeds();
    let path = "/nix/store/00000000000000000000000000000000-missing";
    assert_eq!(status(&node, path), 404);
    // The measure is another question that is asked before, and waits to its deadline.
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let target = format!("/measure/{}.narinfo", hash_part(path));
            node.get(&target).expect("the node answers").status
        });
        measure.wait_for_held_request();
        for _ in 0..3 {
            assert_eq!(status(&node, path), 404);
        }
        assert!(!other.is_finished(), "it was waited for again");
        assert_eq!(other.join().expect("no panic"), 404);
    });
    assert_eq!(asked(&dead, "narinfo").len(), 1, "{:#?}", dead.log());
}

/// SIGTERM while one NAR comes and another one does not: who waits for nothing is told so, the other
/// one is sent to its end, and the node does not take all the time that it has.
#[test]
fn a_node_that_stops_does_not_wait_for_an_upstream_that_hangs() {
    if !is_root("stop") {
        return;
    }
    const LEN: usize = 24 << 20;
    let upstream = StaticCache::serve("upstream-1");
    let [moving, hanging] = ["stop-moving", "stop-hanging"].map(|name| path(name, LEN));
    upstream.add(&[&moving, &hanging], "none");
    let file = upstream.nar_file(&hanging);
    let held = file.file_name().expect("a file").display().to_string();
    let proxy = FaultProxy::new(upstream.address(), move |head| {
        match head.target.contains(&held) {
            true => Fault::Hold,
            false => Fault::None,
        }
    });
    let config = config(&[(&proxy, &*upstream.key.public)]).replace("\"3s\"", "\"10m\"");
    let config = format!("[http]\nshutdown-timeout = \"10m\"\n{config}");
    let mut node = TestNode::with_config(&config);
    let (address, waiting) = (node.address(), nar_target(&node, &hanging));
    let mut reading = TcpStream::connect(address).expect("connect");
    let target = nar_target(&node, &moving);
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    reading.write_all(request.as_bytes()).expect("ask");
    let mut some = [0; 1000];
    reading.read_exact(&mut some).expect("read something");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| Request::get(&waiting).send(address));
        proxy.wait_for_held_request();
        let reading = scope.spawn(move || {
            let mut rest = Vec::new();
            reading.read_to_end(&mut rest).map(|_| rest.len())
        });
        assert!(node.stop().success());
        let answer = waiting.join().expect("no panic").expect("an answer");
        assert_eq!(answer.status, 404);
        let read = reading.join().expect("no panic").expect("read the rest");
        assert!(some.len() + read > LEN, "{read} bytes");
    });
}

/// What an upstream gave wrong, or not at all, is not asked of it for as long as misses are remembered,
/// and no longer: others that have another build of the path are asked, and itself when it is mended.
#[test]
fn s7_one_bad_download_hides_a_path_no_longer_than_a_miss() {
    if !is_root("s7 bad download") {
        return;
    }
    let (bad, good) = (StaticCache::serve("bad-1"), StaticCache::serve("good-1"));
    let path = path("s7-bad-download", 2 << 20);
    bad.add(&[&path], "none");
    rebuilt("s7-bad-download", 2 << 20);
    good.add(&[&path], "none");
    let file = bad.nar_file(&path);
    let whole = fs::read(&file).expect("read a NAR");
    let mut flipped = whole.clone();
    flipped[1 << 20] ^= 16;
    let [first, second] = [&bad, &good].map(|upstream| FaultProxy::clean(upstream.address()));
    for gives in [Some(flipped), None] {
        match &gives {
            Some(bytes) => fs::write(&file, bytes).expect("write a NAR"),
            None => fs::remove_file(&file).expect("remove a NAR"),
        }
        let both = [(&first, &*bad.key.public), (&second, &*good.key.public)];
        let node = TestNode::with_config(&config(&both));
        let told = nix(&node, &[&bad, &good]);
        told.run("nix-store", &["--realise", &path]).fails();
        assert!(!told.has(&path));
        let asking_now = nix(&node, &[&bad, &good]);
        asking_now
            .run("nix-store", &["--realise", &path])
            .succeeds();
        asking_now.verify_store();

        let forgets = "[pull-through]\nnegative-ttl = \"1s\"\n";
        let alone = TestNode::with_config(&format!("{forgets}{}", config(&both[..1])));
        let told = nix(&alone, &[&bad]);
        told.run("nix-store", &["--realise", &path]).fails();
        fs::write(&file, &whole).expect("write a NAR");
        let narinfo = format!("/main/{}.narinfo", hash_part(&path));
        eventually(
            "the upstream to be believed",
            Duration::from_secs(60),
            || {
                let status = alone.get(&narinfo).expect("the node answers").status;
                (status == 200).then_some(())
            },
        );
        let asking_now = nix(&alone, &[&bad]);
        asking_now
            .run("nix-store", &["--realise", &path])
            .succeeds();
        asking_now.verify_store();
    }
}

/// Many clients of one node at once are one download, and one that leaves disturbs nobody.
#[test]
fn s9_many_clients_at_once_are_one_download() {
    if !is_root("s9") {
        return;
    }
    let upstream = StaticCache::serve("upstream-1");
    let path = path("s9-one-download", 8 << 20);
    upstream.add(&[&path], "none");
    let proxy = FaultProxy::new(upstream.address(), |head| match is_nar(head) {
        true => Fault::Hold,
        false => Fault::None,
    });
    let node = TestNode::with_config(&config(&[(&proxy, &*upstream.key.public)]));
    assert_eq!(status(&node, &path), 200);
    let target = nar_target(&node, &path);
    let mut leaving = TcpStream::connect(node.address()).expect("connect");
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    leaving.write_all(request.as_bytes()).expect("ask");
    proxy.wait_for_held_request();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| Request::get(&target).send(node.address())))
            .collect();
        let nixes: Vec<_> = (0..2)
            .map(|_| {
                let nix = nix(&node, &[&upstream]);
                let path = &path;
                scope.spawn(move || {
                    nix.run("nix-store", &["--realise", path]).succeeds();
                    nix.verify_store();
                })
            })
            .collect();
        proxy.release();
        let mut some = [0; 1000];
        leaving.read_exact(&mut some).expect("read something");
        drop(leaving);
        for client in clients {
            let answer = client.join().expect("no panic").expect("an answer");
            assert!(answer.status == 200 && answer.complete);
            assert!(answer.body.len() > 8 << 20);
        }
        nixes
            .into_iter()
            .for_each(|nix| nix.join().expect("no panic"));
    });
    assert_eq!(asked(&proxy, "/nar/").len(), 1, "{:#?}", proxy.log());
}

/// Whatever the upstream does, a build whose next substituter has the path goes on; and where the
/// upstream can be asked again, with no other.
#[test]
fn s1_no_failure_of_an_upstream_fails_a_build_whose_next_substituter_works() {
    if !is_root("s1 upstream faults") {
        return;
    }
    type Decide = fn(&Head) -> Fault;
    let rows: [(&str, Decide); 9] = [
        ("500", |_| Fault::Status(500)),
        ("503", |_| Fault::Status(503)),
        ("429", |_| Fault::Status(429)),
        ("closed", |_| Fault::Close),
        ("hanging", |_| Fault::Hold),
        ("nar 404", |head| on_nar(head, Fault::Status(404))),
        ("nar 500", |head| on_nar(head, Fault::Status(500))),
        ("nar hanging", |head| on_nar(head, Fault::Hold)),
        ("nar always cut", |head| {
            on_nar(head, Fault::CutAnswer(70_000))
        }),
    ];
    let next = KeyPair::generate("next-1");
    let dir = tempfile::TempDir::new().expect("make a directory");
    let second = format!("file://{}", dir.path().display());
    let signing = format!(
        "{second}?compression=none&secret-key={}",
        next.secret_file()
    );
    let upstream = StaticCache::serve("upstream-1");
    let path = path("s1-upstream-faults", 3 << 20);
    upstream.add(&[&path], "xz");
    NixClient::host()
        .run("nix", &["copy", "--to", &signing, &path])
        .succeeds();
    for (name, decide) in rows {
        let proxy = FaultProxy::new(upstream.address(), decide);
        let node = TestNode::with_config(&config(&[(&proxy, &*upstream.key.public)]));
        let nix = nix(&node, &[&upstream])
            .trusting(&format!("{} {}", upstream.key.public, next.public))
            // Nix asks a folder first unless it is told otherwise.
            .substituter(&format!("{} {second}?priority=100", node.url("main")));
        let outcome = nix.run("nix-store", &["--realise", &path]);
        assert!(outcome.status.success(), "{name}: {outcome}");
        nix.verify_store();
        assert!(
            !proxy.log().is_empty(),
            "{name}: the upstream was not asked"
        );
    }
}

fn on_nar(head: &Head, fault: Fault) -> Fault {
    match is_nar(head) {
        true => fault,
        false => Fault::None,
    }
}

/// A download that is cut on its way is not seen to be: there is no other substituter.
#[test]
fn s1_a_cut_download_is_resumed_and_the_build_does_not_see_it() {
    if !is_root("s1 resumed") {
        return;
    }
    for compression in ["none", "xz"] {
        let upstream = StaticCache::serve("upstream-1");
        let path = path("s1-resumed", 6 << 20);
        upstream.add(&[&path], compression);
        let proxy = FaultProxy::new(upstream.address(), |head| {
            let cuts = is_nar(head) && head.number < 4;
            if cuts {
                Fault::CutAnswer(1 << 20)
            } else {
                Fault::None
            }
        });
        let node = TestNode::with_config(&config(&[(&proxy, &*upstream.key.public)]));
        let nix = nix(&node, &[&upstream]);
        nix.run("nix-store", &["--realise", &path]).succeeds();
        nix.verify_store();
        let nars = asked(&proxy, "/nar/");
        assert!(nars.len() > 2, "{nars:#?}");
        assert!(
            nars[1..].iter().all(|nar| nar.head.range.is_some()),
            "{nars:#?}"
        );
    }
}

/// A flipped bit, in the file of a NAR or in what was left of it: no wrong byte is taken, and the
/// next substituter is asked.
#[test]
fn s1_a_corrupt_or_changed_nar_never_gets_into_a_store() {
    if !is_root("s1 corrupt") {
        return;
    }
    let next = KeyPair::generate("next-1");
    let dir = tempfile::TempDir::new().expect("make a directory");
    let second = format!("file://{}", dir.path().display());
    let signing = format!(
        "{second}?compression=none&secret-key={}",
        next.secret_file()
    );
    for compression in ["none", "xz", "zstd"] {
        let upstream = StaticCache::serve("upstream-1");
        let path = path("s1-corrupt", 4 << 20);
        upstream.add(&[&path], compression);
        NixClient::host()
            .run("nix", &["copy", "--to", &signing, &path])
            .succeeds();
        let file = upstream.nar_file(&path);
        let mut bytes = fs::read(&file).expect("read a NAR");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 16;
        let proxy = FaultProxy::clean(upstream.address());
        let node = TestNode::with_config(&config(&[(&proxy, &*upstream.key.public)]));
        // The narinfo is known before the NAR changes.
        assert_eq!(status(&node, &path), 200);
        fs::write(&file, bytes).expect("write a NAR");

        let alone = nix(&node, &[&upstream]);
        alone.run("nix-store", &["--realise", &path]).fails();
        assert!(!alone.has(&path), "{compression}");
        let keys = format!("{} {}", upstream.key.public, next.public);
        let both = NixClient::empty()
            .trusting(&keys)
            .substituter(&format!("{} {second}?priority=100", node.url("main")));
        both.run("nix-store", &["--realise", &path]).succeeds();
        both.verify_store();
        assert_eq!(asked(&proxy, "/nar/").len(), 1, "{:#?}", proxy.log());
    }
}

//! Rows C7, C8, P11 and S1 with a real S3 server and real Nix: what is durable outlives every node.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use attic_p2p::ids::ClusterId;
use attic_p2p::journal::{Entry, JOURNALS, read_entry_key};
use attic_p2p::signed::Signed;
use attic_store::PackId;
use attic_store::bucket::pack::PACKS;
use attic_store::bucket::{Bucket, Operation};
use tempfile::TempDir;
use testnet::corpus::Closure;
use testnet::garage::Garage;
use testnet::moto::Moto;
use testnet::nix::NixClient;
use testnet::node::TestNode;
use testnet::program::{eventually, is_root};
use testnet::proxy::{Fault, FaultProxy};
use testnet::s3::S3Access;
use testnet::served::{Served, hash_part};

/// Garage or, where it is not installed, moto.
enum Server {
    Garage(Garage),
    Moto(Moto),
}

impl Server {
    #[track_caller]
    fn start(what: &str) -> Option<Server> {
        let garage = Garage::start(what).map(Server::Garage);
        garage.or_else(|| Moto::start(what).map(Server::Moto))
    }

    fn access(&self) -> &S3Access {
        match self {
            Server::Garage(garage) => garage.access(),
            Server::Moto(moto) => moto.access(),
        }
    }

    fn address(&self) -> SocketAddr {
        let address = self.access().endpoint.strip_prefix("http://");
        let address = address.and_then(|address| address.parse().ok());
        address.expect("the address of the server")
    }
}

/// A node in a cluster of its own, with a bucket.
struct Keeper {
    node: TestNode,
    dir: TempDir,
}

impl Keeper {
    #[track_caller]
    fn founding(access: &S3Access, endpoint: &str) -> Keeper {
        let dir = TempDir::new().expect("make a directory");
        let node = TestNode::with_config(&access.config(endpoint, dir.path()));
        node.cli().run(&["cluster", "init"]).succeeds();
        Keeper { node, dir }
    }

    fn cluster_key(&self) -> String {
        let path = self.node.data_dir().join("cluster/cluster.key");
        fs::read_to_string(path).expect("the cluster's key")
    }

    fn cluster(&self) -> ClusterId {
        let view: attic_node_core::api::ClusterView = self.node.ask("cluster");
        view.cluster
    }
}

/// The packs of a cluster in the bucket, and those that its journals name.
fn packs(access: &S3Access, cluster: ClusterId) -> (BTreeSet<PackId>, BTreeSet<PackId>) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = access.client();
    let list = |prefix: String| {
        let client = &client;
        async move {
            let mut keys: Vec<String> = Vec::new();
            loop {
                let page = client.list(&prefix, keys.last().map(String::as_str)).await;
                let page = page.expect("a listing");
                keys.extend(page.objects.into_iter().map(|object| object.key));
                if page.is_last {
                    return keys;
                }
            }
        }
    };
    runtime.block_on(async {
        let root = format!("{cluster}/");
        let there = list(format!("{root}{PACKS}")).await;
        let there = there.iter().map(|key| &key[root.len()..]);
        let there = there.map(|key| PackId::of_object_key(key).expect("a pack"));
        let mut named = BTreeSet::new();
        for key in list(format!("{root}{JOURNALS}")).await {
            let bytes = client.get(&key, 1 << 30).await.expect("an entry");
            let (keeper, _) = read_entry_key(&key[root.len()..]).expect("the key of an entry");
            let signed = Signed::<Entry>::decode(&bytes).expect("an entry");
            let entry = signed.check(&cluster, &keeper).expect("a keeper's entry");
            let packs = entry
                .references
                .iter()
                .flat_map(|reference| &reference.packs);
            named.extend(packs.map(|(pack, _)| *pack));
        }
        (there.collect(), named)
    })
}

/// The journey of the durable floor: pushed with `--wait=durable`, all nodes destroyed, rebuilt from the
/// bucket, and every path verified by Nix.
#[test]
fn c7_a_closure_outlives_every_node() {
    if !is_root("c7 closure") {
        return;
    }
    let Some(server) = Server::start("c7 closure") else {
        return;
    };
    let access = server.access();
    let closure = Closure::load("S");
    let keeper = Keeper::founding(access, &access.endpoint);
    let push = ["push", "--wait", "durable", "main", &closure.root];
    keeper.node.cli().run(&push).succeeds();
    let (there, named) = packs(access, keeper.cluster());
    assert_eq!(there, named, "no pack is lost, and none is leaked");
    let status = keeper.node.status().bucket.expect("a bucket");
    let puts = status.requests.put;
    assert!(puts <= 40, "{puts} PUTs for 54 MB of NARs");
    let key = keeper.cluster_key();
    let trusted = keeper.node.public_key("main");
    drop(keeper);

    let dir = TempDir::new().expect("make a directory");
    let node = TestNode::with_config(&access.config(&access.endpoint, dir.path()));
    let key_file = dir.path().join("cluster.key");
    fs::write(&key_file, key).expect("write the key");
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("make it private");
    let rebuild = ["cluster", "rebuild", "--from-s3", "--cluster-key"];
    let key_file = key_file.to_str().expect("UTF-8");
    let rebuilt = node.cli().run(&[&rebuild[..], &[key_file]].concat());
    rebuilt.succeeds();
    assert_eq!(node.public_key("main"), trusted);
    let nix = NixClient::fresh(&node, "main").trusting(&trusted);
    copy(&nix, &node, &closure.root);
    let all: Vec<&str> = closure.all().collect();
    assert_eq!(nix.nar_hashes(&all), NixClient::host().nar_hashes(&all));
}

/// Has Nix copy a path with all it refers to from a node, and verify it.
#[track_caller]
fn copy(nix: &NixClient, node: &TestNode, path: &str) {
    let args = ["copy", "--from", &node.url("main"), path];
    nix.run("nix", &args).succeeds();
    nix.verify_store();
}

/// `kill -9` when a request was not sent yet, and when it was answered and the answer was not heard: at
/// each request that a push causes. What was pushed becomes durable after the next start; nothing is
/// lost, and no pack is there that nobody needs.
#[test]
fn c7_killed_at_any_request_it_loses_and_leaks_nothing() {
    if !is_root("c7 kills") {
        return;
    }
    let Some(server) = Server::start("c7 kills") else {
        return;
    };
    let path = NixClient::host()
        .build("run \"c7-kill\" ''head -c 300000 /dev/urandom > $out''")
        .remove(0);
    for fault in [Fault::Hold, Fault::LoseAnswer] {
        for at in 0.. {
            let seen = Arc::new(AtomicUsize::new(0));
            let counting = Arc::clone(&seen);
            let proxy = FaultProxy::new(server.address(), move |_| {
                match counting.fetch_add(1, Ordering::SeqCst) == at {
                    true => fault,
                    false => Fault::None,
                }
            });
            let endpoint = format!("http://{}", proxy.address());
            let mut keeper = Keeper::founding(server.access(), &endpoint);
            keeper.node.push(&[&path]).succeeds();
            let wait = [
                "push",
                "--wait",
                "durable",
                "--wait-timeout",
                "60s",
                "main",
                &path,
            ];
            let is_reached = || seen.load(Ordering::SeqCst) > at;
            let is_durable = || {
                let status = keeper.node.status().bucket.expect("a bucket");
                status.written > 0 && status.waiting == 0
            };
            while !is_reached() && !is_durable() {
                std::thread::yield_now();
            }
            if !is_reached() {
                // Fewer requests than that are made.
                break;
            }
            // What is held is never sent: with its sender the connection is gone.
            keeper.node.kill();
            keeper.node.start_again();
            keeper.node.cli().run(&wait).succeeds();
            let (there, named) = packs(server.access(), keeper.cluster());
            assert_eq!(there, named, "{fault:?} at request {at}");
            drop(keeper.dir);
        }
    }
}

/// While the server is away pushes go on and paths are served; who waits for durable ones is told why
/// they are not.
#[test]
fn c7_s1_an_outage_delays_and_breaks_nothing() {
    if !is_root("c7 outage") {
        return;
    }
    let Some(mut garage) = Garage::start("c7 outage") else {
        return;
    };
    let access = garage.access().clone();
    let keeper = Keeper::founding(&access, &access.endpoint);
    let path = NixClient::host()
        .build("run \"c7-outage\" ''head -c 300000 /dev/urandom > $out''")
        .remove(0);
    garage.kill();
    let wait = [
        "push",
        "--wait",
        "durable",
        "--wait-timeout",
        "3s",
        "main",
        &path,
    ];
    let waited = keeper.node.cli().run(&wait);
    assert_eq!(waited.status.code(), Some(1), "{waited}");
    assert!(waited.stderr.contains("not durable: "), "{}", waited.stderr);
    let target = format!("/main/{}.narinfo", hash_part(&path));
    assert_eq!(keeper.node.get(&target).expect("an answer").status, 200);
    eventually("the status to say so", Duration::from_secs(60), || {
        let status = keeper.node.cli().run(&["status"]).succeeds();
        let mut lines = status.stdout.lines();
        let line = lines.find(|line| line.starts_with("Bucket: "))?;
        (!line.contains("reachable)")).then_some(())
    });
    garage.start_again();
    let wait = ["push", "--wait", "durable", "main", &path];
    keeper.node.cli().run(&wait).succeeds();
}

/// A member that is no keeper reads from the bucket what no node can give it, and writes nothing.
#[test]
fn c7_a_member_reads_from_the_bucket_when_no_node_has_a_path() {
    if !is_root("c7 member") {
        return;
    }
    let Some(server) = Server::start("c7 member") else {
        return;
    };
    let access = server.access();
    let mut keeper = Keeper::founding(access, &access.endpoint);
    let dir = TempDir::new().expect("make a directory");
    let member = TestNode::with_config(&access.config(&access.endpoint, dir.path()));
    let ticket = keeper.node.cli().run(&["invite"]).succeeds().stdout;
    member.cli().run(&["join", ticket.trim()]).succeeds();
    let path = NixClient::host()
        .build("run \"c7-member\" ''head -c 3000000 /dev/urandom > $out''")
        .remove(0);
    let wait = ["push", "--wait", "durable", "main", &path];
    keeper.node.cli().run(&wait).succeeds();
    eventually("the member to hear of it", Duration::from_secs(30), || {
        let view: attic_node_core::api::ClusterView = member.ask("cluster");
        (view.paths == 1).then_some(())
    });
    let trusted = keeper.node.public_key("main");
    keeper.node.kill();
    let nix = NixClient::fresh(&member, "main").trusting(&trusted);
    copy(&nix, &member, &path);
    let status = member.status().bucket.expect("a bucket");
    assert!(!status.writes);
    assert_eq!(status.requests.put, 0);
    let client = access.client();
    assert_eq!(client.counters().of(Operation::Put).requests, 0);
}

/// Row C7: what bad credentials and a bucket that is not there look like, to whoever asks.
#[test]
fn c7_a_bucket_that_refuses_is_told_of() {
    if !is_root("c7 refusal") {
        return;
    }
    let Some(garage) = Garage::start("c7 refusal") else {
        return;
    };
    let good = garage.access();
    let wrong_secret = S3Access {
        secret: "0".repeat(64),
        ..good.clone()
    };
    let no_bucket = S3Access {
        bucket: "nowhere".to_owned(),
        ..good.clone()
    };
    for (access, word) in [(wrong_secret, "refuses access"), (no_bucket, "nowhere")] {
        let keeper = Keeper::founding(&access, &access.endpoint);
        let path = NixClient::host()
            .build("run \"c7-refusal\" ''head -c 3000 /dev/urandom > $out''")
            .remove(0);
        let wait = [
            "push",
            "--wait",
            "durable",
            "--wait-timeout",
            "2s",
            "main",
            &path,
        ];
        let waited = keeper.node.cli().run(&wait);
        assert_eq!(waited.status.code(), Some(1), "{waited}");
        let status = keeper.node.cli().run(&["status"]).succeeds();
        assert!(status.stdout.contains(word), "{}", status.stdout);
        assert!(!status.stdout.contains(&access.secret));
        let check = keeper.node.cli().run(&["s3", "check"]);
        assert_eq!(check.status.code(), Some(1), "{check}");
    }
    let keeper = Keeper::founding(good, &good.endpoint);
    let check = keeper.node.cli().run(&["s3", "check"]).succeeds();
    assert!(!check.stdout.contains('❌'), "{}", check.stdout);
}

/// Row G8: what a verification finds damaged comes again from the bucket, when no other node is left.
#[test]
fn g8_verify_repair_reads_from_the_bucket() {
    if !is_root("g8 bucket") {
        return;
    }
    let Some(server) = Server::start("g8 bucket") else {
        return;
    };
    let access = server.access();
    let keeper = Keeper::founding(access, &access.endpoint);
    let path = NixClient::host()
        .build("run \"g8-bucket\" ''head -c 6000000 /dev/urandom > $out''")
        .remove(0);
    let cli = keeper.node.cli();
    cli.run(&["push", "--wait", "durable", "main", &path])
        .succeeds();
    for pack in keeper.node.packs() {
        let mut bytes = fs::read(&pack).expect("read a pack");
        let len = bytes.len();
        (1..8).for_each(|part| bytes[len * part / 8] ^= 0x10);
        fs::write(&pack, bytes).expect("write a pack");
    }
    let found = cli.run(&["verify", "--json"]).exits_with(1);
    assert!(found.stdout.contains("\"damaged_nars\":1"), "{found}");
    let healed = cli.run(&["verify", "--repair", "--json"]).succeeds();
    assert!(healed.stdout.contains("\"healed_nars\":1"), "{healed}");
    assert!(matches!(keeper.node.read(&path), Served::Whole(_)));
}

/// Row S10: nodes that want the same cold path of the bucket at once share the reading.
#[test]
fn s10_what_five_nodes_want_at_once_is_read_from_the_bucket_once() {
    if !is_root("s10 bucket") {
        return;
    }
    let Some(server) = Server::start("s10 bucket") else {
        return;
    };
    let access = server.access();
    let proxy = FaultProxy::clean(server.address());
    let endpoint = format!("http://{}", proxy.address());
    let cold = |endpoint: &str, dir: &TempDir| {
        let config = access.config(endpoint, dir.path());
        config.replace("[mesh]\n", "[mesh]\nreplicas = 1\n")
    };
    let dir = TempDir::new().expect("make a directory");
    let mut keeper = TestNode::with_config(&cold(&endpoint, &dir));
    keeper.cli().run(&["cluster", "init"]).succeeds();
    let ticket = { keeper.cli() }.run(&["invite", "--uses", "5"]).succeeds();
    let dirs: Vec<TempDir> = (0..5)
        .map(|_| TempDir::new().expect("make a directory"))
        .collect();
    let members: Vec<TestNode> = { dirs.iter() }
        .map(|dir| TestNode::with_config(&cold(&endpoint, dir)))
        .collect();
    for member in &members {
        member.cli().run(&["join", ticket.stdout.trim()]).succeeds();
    }
    const LEN: u64 = 64 << 20;
    let path = NixClient::host()
        .build(&format!(
            "run \"s10-bucket\" ''head -c {LEN} /dev/urandom > $out''"
        ))
        .remove(0);
    let wait = ["push", "--wait", "durable", "main", &path];
    keeper.cli().run(&wait).succeeds();
    for member in &members {
        eventually("members to know all", Duration::from_secs(60), || {
            let view: attic_node_core::api::ClusterView = member.ask("cluster");
            let peers: Vec<attic_node_core::api::PeerView> = member.ask("peers");
            let is_connected = |peer: &attic_node_core::api::PeerView| {
                peer.state == attic_node_core::api::PeerState::Connected
            };
            let bucket = member.status().bucket?;
            let knows = view.paths == 1 && peers.iter().filter(|p| is_connected(p)).count() == 5;
            (knows && bucket.objects > 100).then_some(())
        });
    }
    keeper.kill();
    proxy.clear_log();
    std::thread::scope(|scope| {
        let reads: Vec<_> = { members.iter() }
            .map(|member| scope.spawn(|| member.read(&path)))
            .collect();
        for read in reads {
            let served = read.join().expect("no panic");
            assert!(matches!(served, Served::Whole(_)), "{served:?}");
        }
    });
    let log = proxy.log();
    let of_packs = log
        .iter()
        .filter(|exchange| exchange.head.target.contains(PACKS));
    let read: u64 = of_packs.map(|exchange| exchange.answer_bytes).sum();
    let ratio = read as f64 / LEN as f64;
    println!("=> read {ratio:.2} times");
    assert!(ratio <= 1.2, "{ratio:.2}");
}

/// A configuration by which what nothing needs goes at once.
fn hasty(access: &S3Access, endpoint: &str, dir: &TempDir) -> String {
    format!("{}grace = \"0s\"\n", access.config(endpoint, dir.path()))
}

/// A new node of a cluster of which nothing is left but the bucket.
#[track_caller]
fn rebuilt(access: &S3Access, dir: &TempDir, cluster_key: &str) -> TestNode {
    let node = TestNode::with_config(&hasty(access, &access.endpoint, dir));
    let key_file = dir.path().join("cluster.key");
    fs::write(&key_file, cluster_key).expect("write the key");
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("make it private");
    let key_file = key_file.display().to_string();
    let rebuild = [
        "cluster",
        "rebuild",
        "--from-s3",
        "--cluster-key",
        &key_file,
    ];
    node.cli().run(&rebuild).succeeds();
    node
}

/// Row G5: what nothing needs goes from the bucket and nothing else, and what is pushed again is there
/// again, from the bucket alone.
#[test]
fn g5_what_nothing_needs_goes_from_the_bucket_and_nothing_else() {
    if !is_root("g5 bucket") {
        return;
    }
    let Some(server) = Server::start("g5 bucket") else {
        return;
    };
    let access = server.access();
    let dir = TempDir::new().expect("make a directory");
    let node = TestNode::with_config(&hasty(access, &access.endpoint, &dir));
    let cli = node.cli();
    cli.run(&["cluster", "init"]).succeeds();
    let view: attic_node_core::api::ClusterView = node.ask("cluster");
    let cluster_key = fs::read_to_string(node.data_dir().join("cluster/cluster.key"));
    let cluster_key = cluster_key.expect("the cluster's key");
    // Of different lengths: listings of single files say no more, and would be shared.
    let build = |(name, len): (&str, u32)| {
        let built = format!("run \"{name}\" ''head -c {len} /dev/urandom > $out''");
        NixClient::host().build(&built).remove(0)
    };
    let [gone, kept] = [("g5-gone", 3_000_000), ("g5-kept", 3_100_000)].map(build);
    let push = |path: &str| {
        cli.run(&["push", "--wait", "durable", "main", path])
            .succeeds();
    };
    push(&gone);
    push(&kept);
    let before = packs(access, view.cluster).0;
    cli.run(&["s3", "gc"])
        .succeeds()
        .says("Needed by nothing: 0 packs");
    cli.run(&["rm", "main", &gone]).succeeds();
    eventually("the removal to be heard", Duration::from_secs(30), || {
        let would = cli.run(&["s3", "gc", "--dry-run"]);
        would
            .stdout
            .contains("Needed by nothing: 1 pack")
            .then_some(())
    });
    // Half of the bucket at once may be a mistake.
    let stopped = cli.run(&["s3", "gc"]).exits_with(1);
    stopped.says("1 of 2 packs would go");
    assert_eq!(packs(access, view.cluster).0, before);
    cli.run(&["s3", "gc", "--force", "--dry-run"]).succeeds();
    assert_eq!(packs(access, view.cluster).0, before);
    let done = cli.run(&["s3", "gc", "--force"]).succeeds();
    done.says("Deleted: 1 pack");
    assert_eq!(packs(access, view.cluster).0.len(), 1);
    cli.run(&["s3", "gc"]).succeeds().says("Deleted: 0 packs");
    // Its chunks are not thought to be there any more.
    push(&gone);
    assert_eq!(packs(access, view.cluster).0.len(), 2);
    let trusted = node.public_key("main");
    drop(node);
    let rebuilt = rebuilt(access, &dir, &cluster_key);
    let nix = NixClient::fresh(&rebuilt, "main").trusting(&trusted);
    for path in [&gone, &kept] {
        copy(&nix, &rebuilt, path);
    }
}

/// Row G6: whatever request of a collection is lost, or its answer, the next one ends it.
#[test]
fn g6_a_collection_that_was_broken_off_is_ended_by_the_next_one() {
    if !is_root("g6 bucket") {
        return;
    }
    let Some(server) = Server::start("g6 bucket") else {
        return;
    };
    let access = server.access();
    // Counted down to the request that is lost: its answer, or, each other time, all of it.
    let fuse = Arc::new(AtomicUsize::new(usize::MAX));
    let burning = Arc::clone(&fuse);
    let proxy = FaultProxy::new(server.address(), move |head| {
        // The check before it takes a great many that are none of its own.
        let counts = !head.target.contains("check");
        let left = burning.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            (counts && left != usize::MAX).then(|| left.wrapping_sub(1))
        });
        match left {
            Ok(0) if head.number % 2 == 0 => Fault::LoseAnswer,
            Ok(0) => Fault::Close,
            Ok(_) | Err(_) => Fault::None,
        }
    });
    let endpoint = format!("http://{}", proxy.address());
    let dir = TempDir::new().expect("make a directory");
    let node = TestNode::with_config(&hasty(access, &endpoint, &dir));
    let cli = node.cli();
    cli.run(&["cluster", "init"]).succeeds();
    let view: attic_node_core::api::ClusterView = node.ask("cluster");
    let kept = NixClient::host()
        .build("run \"g6-kept\" ''head -c 200000 /dev/urandom > $out''")
        .remove(0);
    cli.run(&["push", "--wait", "durable", "main", &kept])
        .succeeds();
    let live = packs(access, view.cluster).0;
    let mut broken = 0;
    for round in 0..24 {
        let built = format!("run \"g6-{round}\" ''head -c 200000 /dev/urandom > $out''");
        let path = NixClient::host().build(&built).remove(0);
        cli.run(&["push", "--wait", "durable", "main", &path])
            .succeeds();
        cli.run(&["rm", "main", &path]).succeeds();
        fuse.store(round, Ordering::SeqCst);
        broken += usize::from(!cli.run(&["s3", "gc", "--force"]).status.success());
        fuse.store(usize::MAX, Ordering::SeqCst);
        // The removal may not have been heard of yet.
        eventually("the pack to be gone", Duration::from_secs(30), || {
            cli.run(&["s3", "gc", "--force"]).succeeds();
            (packs(access, view.cluster).0 == live).then_some(())
        });
    }
    println!("=> {broken} of 24 were broken off");
    assert!(broken > 3, "{broken}");
    assert!(matches!(node.read(&kept), Served::Whole(_)));
    cli.run(&["s3", "gc"]).succeeds();
}

/// Row G5: one keeper deletes a pack in the very moment in which another one begins to rely on it. The
/// other one sees it, and writes anew what it needs.
#[test]
fn g5_a_pack_that_goes_while_another_keeper_begins_to_rely_on_it_is_written_anew() {
    if !is_root("g5 race") {
        return;
    }
    let Some(server) = Server::start("g5 race") else {
        return;
    };
    let access = server.access();
    let is_armed = Arc::new(AtomicUsize::new(0));
    let armed = Arc::clone(&is_armed);
    // Once it is armed: the first entry of a journal.
    let proxy = FaultProxy::new(server.address(), move |head| {
        let is_entry = head.method == "PUT" && head.target.contains(JOURNALS);
        match is_entry && armed.swap(0, Ordering::SeqCst) == 1 {
            true => Fault::Hold,
            false => Fault::None,
        }
    });
    let [dir_one, dir_two] = [(); 2].map(|()| TempDir::new().expect("make a directory"));
    let one = TestNode::with_config(&hasty(access, &access.endpoint, &dir_one));
    one.cli().run(&["cluster", "init"]).succeeds();
    let cluster_key = fs::read_to_string(one.data_dir().join("cluster/cluster.key"));
    let cluster_key = cluster_key.expect("the cluster's key");
    let endpoint = format!("http://{}", proxy.address());
    let two = TestNode::with_config(&hasty(access, &endpoint, &dir_two));
    let ticket = ["invite", "--role", "keeper", "--write", "*"];
    let ticket = one.cli().run(&ticket).succeeds().stdout;
    two.cli().run(&["join", ticket.trim()]).succeeds();
    let view: attic_node_core::api::ClusterView = one.ask("cluster");
    let path = NixClient::host()
        .build("run \"g5-race\" ''head -c 900000 /dev/urandom > $out''")
        .remove(0);
    let durable = ["push", "--wait", "durable", "main", &path];
    one.cli().run(&durable).succeeds();
    let first = packs(access, view.cluster).0;
    assert_eq!(first.len(), 1);
    let paths_at = |node: &TestNode| {
        node.ask::<attic_node_core::api::ClusterView>("cluster")
            .paths
    };
    eventually(
        "the other to know all of it",
        Duration::from_secs(60),
        || {
            let bucket = two.status().bucket?;
            (paths_at(&two) == 1 && bucket.objects > 0 && bucket.waiting == 0).then_some(())
        },
    );
    one.cli().run(&["rm", "main", &path]).succeeds();
    eventually(
        "the other to know it is gone",
        Duration::from_secs(60),
        || (paths_at(&two) == 0 && paths_at(&one) == 0).then_some(()),
    );
    is_armed.store(1, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| two.cli().run(&durable));
        proxy.wait_for_held_request();
        let gone = one.cli().run(&["s3", "gc", "--force"]).succeeds();
        gone.says("Deleted: 1 pack");
        proxy.release();
        pushing.join().expect("no panic").succeeds();
    });
    let now = packs(access, view.cluster).0;
    assert!(now.len() == 1 && now != first, "{now:?}, before {first:?}");
    let trusted = one.public_key("main");
    drop((one, two));
    let rebuilt = rebuilt(access, &dir_one, &cluster_key);
    let nix = NixClient::fresh(&rebuilt, "main").trusting(&trusted);
    copy(&nix, &rebuilt, &path);
}

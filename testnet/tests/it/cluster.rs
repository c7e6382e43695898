//! The network that clusters of tests run on, tested with programs that know nothing of clusters.

use std::fs;
use std::net::{IpAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use testnet::cluster::{Cluster, Network};
use testnet::netns::{Namespace, remove_leftovers};
use testnet::nix::NixClient;
use testnet::program::{self, Running, eventually, is_root};
use testnet::seed::Seed;

/// What each host serves is its own number.
struct Web {
    servers: Vec<Running>,
    network: Network,
    dir: tempfile::TempDir,
}

impl Web {
    fn new(hosts: usize) -> Web {
        let mut network = Network::new();
        let dir = tempfile::TempDir::new().expect("make a directory");
        let mut servers = Vec::new();
        for host in 0..hosts {
            network.add_host();
            let root = dir.path().join(host.to_string());
            fs::create_dir(&root).expect("make a directory");
            fs::write(root.join("number"), host.to_string()).expect("write a file");
            let mut server = network.place(host).command("python3");
            let args = ["-m", "http.server", "80", "--bind", "::", "--directory"];
            servers.push(program::start(server.args(args).arg(&root)));
        }
        let web = Web {
            servers,
            network,
            dir,
        };
        for host in 0..hosts {
            eventually("the server", LONG, || {
                get(
                    &web.network,
                    host,
                    web.network.address(host),
                    "number",
                    SHORT,
                )
            });
        }
        web
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        for server in self.servers.drain(..) {
            server.kill();
        }
    }
}

/// Whether `from` can read what `to` serves; `None` when that depends on the address.
fn can(network: &Network, from: usize, to: usize) -> Option<bool> {
    let number = to.to_string().into_bytes();
    let reads = |address| get(network, from, address, "number", SHORT).as_ref() == Some(&number);
    let read: Vec<bool> = network.addresses(to).into_iter().map(reads).collect();
    let same = read.iter().all(|one| *one == read[0]);
    same.then_some(read[0])
}

fn get(
    network: &Network,
    from: usize,
    address: IpAddr,
    file: &str,
    max: Duration,
) -> Option<Vec<u8>> {
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let output = network
        .place(from)
        .command("curl")
        .args(["--silent", "--fail", "--globoff", "--max-time"])
        .arg(max.as_secs_f64().to_string())
        .arg(format!("http://{host}/{file}"))
        .output()
        .expect("run curl");
    output.status.success().then_some(output.stdout)
}

/// Which pairs of different hosts can reach each other; `None` when that depends on the direction
/// or the address.
fn reachable(network: &Network) -> Option<Vec<(usize, usize)>> {
    let hosts = network.len();
    let pairs = (0..hosts).flat_map(|a| (a + 1..hosts).map(move |b| (a, b)));
    let probe = |(a, b)| {
        let there = can(network, a, b)?;
        (can(network, b, a)? == there).then_some(there.then_some((a, b)))
    };
    // Silence takes its time, so all are asked at once.
    let probed: Option<Vec<_>> = thread::scope(|scope| {
        let probes: Vec<_> = pairs.map(|pair| scope.spawn(move || probe(pair))).collect();
        let results = probes.into_iter().map(|probe| probe.join());
        results.map(|result| result.expect("a probe")).collect()
    });
    Some(probed?.into_iter().flatten().collect())
}

/// The kernel tells hosts of a change of their link within a second, and some packets are early.
#[track_caller]
fn becomes_reachable(network: &Network, pairs: &[(usize, usize)]) {
    eventually(&format!("only {pairs:?} to be reachable"), LONG, || {
        (reachable(network)? == pairs).then_some(())
    });
}

#[test]
fn hosts_can_be_cut_parted_and_healed() {
    if !is_root("network") {
        return;
    }
    let mut web = Web::new(4);
    let all = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];
    becomes_reachable(&web.network, &all);

    web.network.cut(1);
    let itself = || can(&web.network, 1, 1)?.then_some(());
    eventually("a host that is cut off to reach itself", LONG, itself);
    becomes_reachable(&web.network, &[(0, 2), (0, 3), (2, 3)]);
    web.network.heal(1);
    becomes_reachable(&web.network, &all);

    web.network.partition(&[&[0, 3]]);
    becomes_reachable(&web.network, &[(0, 3), (1, 2)]);
    web.network.partition(&[&[0], &[1, 3]]);
    becomes_reachable(&web.network, &[(1, 3)]);
    web.network.heal(0);
    becomes_reachable(&web.network, &[(0, 2), (1, 3)]);
    web.network.cut(1);
    web.network.heal_all();
    becomes_reachable(&web.network, &all);
}

#[test]
fn a_host_sends_no_faster_than_it_may() {
    if !is_root("network speed") {
        return;
    }
    let web = Web::new(3);
    let len = 2 << 20;
    for host in 0..2 {
        let file = web.dir.path().join(host.to_string()).join("large");
        fs::write(file, Seed::new(0).bytes(len)).expect("write a file");
    }
    let seconds = |from: usize, to: usize| {
        let started = Instant::now();
        let address = web.network.address(to);
        let read = get(&web.network, from, address, "large", LONG).expect("an answer");
        assert_eq!(read.len(), len);
        started.elapsed().as_secs_f64()
    };
    web.network.limit(0, Some(1 << 20));
    let slow = [seconds(1, 0), seconds(0, 1)];
    for slow in slow {
        assert!((FAST..60.0).contains(&slow), "2 MiB at 1 MiB/s in {slow} s");
    }
    let fast = seconds(2, 1);
    assert!(fast < FAST, "others are not slowed down: {fast} s");
    web.network.limit(0, None);
    let fast = seconds(1, 0);
    assert!(fast < FAST, "the limit is lifted: {fast} s");
}

/// Two networks have the same addresses and nothing to do with each other. Nothing leads out of one,
/// and threads of a test can stand in it.
#[test]
fn a_network_is_an_island() {
    if !is_root("island") {
        return;
    }
    let (web, other) = (Web::new(1), Web::new(1));
    fs::write(other.dir.path().join("0/number"), "other").expect("write a file");
    let address = web.network.address(0);
    assert_eq!(
        get(&web.network, 0, address, "number", LONG),
        Some("0".into())
    );
    assert_eq!(
        get(&other.network, 0, address, "number", LONG),
        Some("other".into())
    );

    let connect = || TcpStream::connect_timeout(&(address, 80).into(), LONG);
    web.network.place(0).enter(connect).expect("connect");
    let mut routes = web.network.place(0).command("ip");
    let routes = program::run(routes.args(["-4", "route"])).succeeds();
    assert!(!routes.stdout.contains("default"), "{routes}");
}

/// A killed test leaves no namespaces behind for longer than until the next one.
#[test]
fn namespaces_of_dead_processes_are_removed() {
    if !is_root("leftovers") {
        return;
    }
    let kept = Namespace::new("kept");
    // As a process that has ended would have named it: this one's id, but another time.
    let dead = format!("attic-{}-1-0-dead", std::process::id());
    program::run(Command::new("ip").args(["netns", "add", &dead])).succeeds();
    let mut sleeper = Command::new("ip");
    let sleeper = program::start(sleeper.args(["netns", "exec", &dead, "sleep", "300"]));
    eventually("the program to enter the namespace", LONG, || {
        let mut pids = Command::new("ip");
        let pids = program::run(pids.args(["netns", "pids", &dead])).succeeds();
        pids.stdout
            .contains(&sleeper.pid().as_raw_nonzero().to_string())
            .then_some(())
    });
    remove_leftovers();
    let ended = sleeper.wait();
    assert!(!ended.status.success(), "{ended}");
    let left = program::run(Command::new("ip").args(["netns", "list"])).succeeds();
    assert!(!left.stdout.contains(&dead), "{left}");
    assert!(left.stdout.contains(kept.name()), "{left}");
}

/// Nodes on hosts are reached by the Nix and the users beside them, also when they are cut off.
#[test]
fn a_node_on_a_host_serves_what_is_beside_it() {
    if !is_root("nodes on hosts") {
        return;
    }
    let mut cluster = Cluster::new(2);
    assert_ne!(cluster[0].id(), cluster[1].id());
    assert_eq!(cluster[0].address(), cluster[1].address());
    let path = NixClient::host()
        .build("run \"beside\" ''echo x > $out''")
        .remove(0);
    cluster.network().cut(0);
    cluster[0].push(&[&path]).succeeds();
    let nix = cluster.nix(0, "main");
    nix.run("nix-store", &["--realise", &path]).succeeds();
    assert!(nix.has(&path));
    cluster.network().heal(0);
    let nix = cluster.nix(1, "main");
    nix.run("nix-store", &["--realise", &path]).fails();

    let answers = |max: &str| {
        let url = format!("http://{}/readyz", cluster[0].address());
        let mut curl = cluster[0].place().command("curl");
        curl.args(["--silent", "--fail", "--max-time", max, &url]);
        program::run(&mut curl).status.success()
    };
    cluster[0].freeze();
    assert!(!answers("1"));
    cluster[0].thaw();
    assert!(answers("60"));
    cluster[0].kill();
    cluster[0].start_again();
    assert!(cluster[0].read(&path) != testnet::served::Served::Absent);
}

/// Silence for so long is taken for a broken way; a busy machine is given another chance.
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);
/// Seconds that no limited transfer can be as fast as.
const FAST: f64 = 1.7;

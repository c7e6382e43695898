//! How news, bytes and nodes get around.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::http::{Connection, Request};
use crate::served::hash_part;

use super::{
    Bound, EIGHTH_GIGABIT, ONE_COPY, PATIENCE, Row, against, download, median, nar, number, path,
    paths, percentile_99, say,
};

/// Seven nodes want what one holds, at once.
pub(super) fn flash_crowd(repeat: u32) -> Vec<Row> {
    const LEN: u64 = 32 << 20;
    let mut cluster = Cluster::joined_with_config(NODES, ONE_COPY);
    say("push to one node of eight");
    let paths = paths("flash-crowd", repeat as usize, LEN);
    cluster[0].push(&paths).succeeds();
    (0..NODES).for_each(|host| cluster.network().limit(host, Some(EIGHTH_GIGABIT)));
    let (mut ideal, mut middle, mut slowest, mut copies) = (0.0, vec![], vec![], vec![]);
    for path in &paths {
        let nars: Vec<_> = (1..NODES).map(|node| nar(&cluster, node, path)).collect();
        let before = number(&cluster, 0, "bulk_sent_bytes");
        let times: Vec<f64> = thread::scope(|scope| {
            let fetch = |(node, nar)| {
                let cluster = &cluster;
                scope.spawn(move || download(cluster, node, nar, || ()))
            };
            let fetches: Vec<_> = (1..NODES).zip(&nars).map(fetch).collect();
            let times = fetches.into_iter().map(|fetch| fetch.join());
            times.map(|time| time.expect("a download")).collect()
        });
        let sent = number(&cluster, 0, "bulk_sent_bytes") - before;
        ideal = nars[0].len as f64 / EIGHTH_GIGABIT as f64;
        copies.push(sent / nars[0].len as f64);
        middle.push(median(times.clone()));
        slowest.push(percentile_99(times));
        let (copies, slowest) = (copies[copies.len() - 1], slowest[slowest.len() - 1]);
        say(&format!(
            "{copies:.2} copies, the last after {slowest:.2} s of {ideal:.2} s"
        ));
    }
    let what = "seven nodes fetch one NAR at once, links of 125 Mbit/s, the median of them";
    let half = Row::alone(what, median(middle), "s", None);
    let last = Row::alone("… the last of them", median(slowest), "s", None);
    vec![
        against("the link alone", ideal, Bound::AtMost(1.3), half),
        against("the link alone", ideal, Bound::AtMost(2.0), last),
        Row::alone(
            "… copies that the holder sent",
            median(copies),
            "",
            Some(Bound::AtMost(3.0)),
        ),
    ]
}

/// How soon all directories have a path that was pushed to one node.
pub(super) fn convergence(repeat: u32) -> Vec<Row> {
    let cluster = Cluster::joined_with_config(NODES, ONE_COPY);
    let paths = paths("convergence", repeat as usize * 7, 1000);
    say("push paths to one node of eight, one by one");
    let mut delays = Vec::new();
    for (known, path) in (1..).zip(&paths) {
        let (pushed, times) = thread::scope(|scope| {
            let watch = |node| {
                let cluster = &cluster;
                scope.spawn(move || knows(cluster, node, f64::from(known)))
            };
            let watches: Vec<_> = (1..NODES).map(watch).collect();
            cluster[0].push(&[path]).succeeds();
            let pushed = Instant::now();
            let times = watches.into_iter().map(|watch| watch.join());
            let times: Vec<Instant> = times.map(|time| time.expect("an instant")).collect();
            (pushed, times)
        });
        // It may be there before `push` has ended.
        let since = |time: &Instant| time.saturating_duration_since(pushed);
        delays.extend(times.iter().map(|time| since(time).as_secs_f64() * 1e3));
    }
    vec![
        Row::alone(
            "after a push to one of eight nodes its path is in the directory of another (p99)",
            percentile_99(delays.clone()),
            "ms",
            Some(Bound::AtMost(100.0)),
        ),
        Row::alone("… (median)", median(delays), "ms", None),
    ]
}

/// When the directory of a node has so many paths.
fn knows(cluster: &Cluster, node: usize, paths: f64) -> Instant {
    let address = cluster[node].address();
    let request = Request::get("/metrics");
    cluster[node].place().enter(|| {
        let mut client = Connection::open(address).expect("connect");
        let started = Instant::now();
        loop {
            let text = client.send(&request).expect("an answer").text();
            let now = Instant::now();
            let mut values = text
                .lines()
                .filter_map(|line| line.strip_prefix("attic_node_mesh_path_records "));
            let known = values.find_map(|value| value.trim().parse::<f64>().ok());
            if known >= Some(paths) {
                return now;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "node {node} has {known:?} paths"
            );
            thread::sleep(LOOK_EVERY);
        }
    })
}

/// What eight nodes say to each other when there is nothing to say.
pub(super) fn idle() -> Vec<Row> {
    let cluster = Cluster::joined(NODES);
    say("leave eight nodes alone");
    thread::sleep(SETTLE);
    let moved = || -> Vec<u64> {
        (0..NODES)
            .map(|node| interface_bytes(&cluster, node))
            .collect()
    };
    let (before, started) = (moved(), Instant::now());
    thread::sleep(IDLE);
    let seconds = started.elapsed().as_secs_f64();
    let rates = moved().into_iter().zip(before);
    let rates = rates.map(|(after, before)| (after - before) as f64 / seconds);
    vec![Row::alone(
        "eight idle nodes, sent and received by each, with all headers (median)",
        median(rates.collect()),
        "B/s",
        Some(Bound::AtMost(2000.0)),
    )]
}

/// Bytes that the interface of a node's host has sent and received.
fn interface_bytes(cluster: &Cluster, node: usize) -> u64 {
    let read = || fs::read_to_string("/proc/thread-self/net/dev").expect("counters");
    let text = cluster[node].place().enter(read);
    let mut lines = text.lines();
    let counters = lines.find_map(|line| line.trim().strip_prefix("eth0:"));
    let counters = counters.expect("an interface").split_whitespace();
    let counters: Vec<u64> = counters.filter_map(|word| word.parse().ok()).collect();
    counters[0] + counters[8]
}

/// From `attic-node join` on a running node until it serves what the cluster has.
pub(super) fn join(repeat: u32) -> Vec<Row> {
    let mut cluster = Cluster::joined_with_config(3, ONE_COPY);
    let path = path("join", 1000);
    cluster[0].push(&[&path]).succeeds();
    let ticket = cluster.invite(0, &["--uses", "100"]);
    let mut times = Vec::new();
    for _ in 0..repeat * 2 {
        let node = cluster.add();
        let request = Request::get(&format!("/main/{}.narinfo", hash_part(&path)));
        let started = Instant::now();
        let joining = cluster[node].cli().start(&["join", &ticket]);
        let address = cluster[node].address();
        let hit = cluster[node].place().enter(|| {
            let mut client = Connection::open(address).expect("connect");
            while client.send(&request).expect("an answer").status != 200 {
                assert!(started.elapsed() < PATIENCE, "node {node} serves nothing");
                thread::sleep(LOOK_EVERY);
            }
            started.elapsed().as_secs_f64()
        });
        joining.wait().succeeds();
        say(&format!("served after {hit:.3} s"));
        times.push(hit);
    }
    vec![Row::alone(
        "from `join` to the first narinfo from a peer, with the start of the program",
        median(times),
        "s",
        Some(Bound::AtMost(1.0)),
    )]
}

const NODES: usize = 8;
/// Between looks at a node: short against what is measured, long against what a look costs.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// Until the last words about joining are said.
const SETTLE: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(30);

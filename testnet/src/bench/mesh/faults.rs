//! What it costs that peers fail.

use std::time::Instant;

use rustix::process::{Signal, kill_process};

use crate::cluster::Cluster;
use crate::http::{Connection, Request};
use crate::seed::Seed;

use super::{
    Bound, ONE_COPY, QUARTER_GIGABIT, Row, against, download, median, nar, number, paths,
    percentile_99, say, spread_to,
};

/// Node 4 fetches what nodes 0 to 3 hold.
struct Holders {
    cluster: Cluster,
    paths: std::vec::IntoIter<String>,
}

impl Holders {
    fn new(name: &str, count: usize, len: u64) -> Holders {
        let cluster = Cluster::joined_with_config(5, ONE_COPY);
        say("push to one node of five");
        let paths = paths(name, count, len);
        cluster[0].push(&paths).succeeds();
        spread_to(&cluster, &[1, 2, 3], &paths);
        Holders {
            cluster,
            paths: paths.into_iter(),
        }
    }

    /// Starts node 4 anew: it knows nothing of how fast or reliable the others are, until it has
    /// fetched a NAR from them.
    fn refresh(&mut self) {
        self.cluster[4].kill();
        self.cluster[4].start_again();
        self.cluster.wait_connected(&[0, 1, 2, 3, 4]);
        self.fetch(|| ());
    }

    /// Seconds for the next NAR, and what share of its bytes was asked for twice.
    fn fetch(&mut self, midway: impl FnOnce() + Send) -> (f64, f64) {
        let path = self.paths.next().expect("enough paths");
        let nar = nar(&self.cluster, 4, &path);
        let before = number(&self.cluster, 4, "hedged_bytes");
        let took = download(&self.cluster, 4, &nar, midway);
        let hedged = number(&self.cluster, 4, "hedged_bytes") - before;
        (took, hedged / nar.len as f64)
    }
}

/// One of four sources is stopped in the middle of a NAR.
pub(super) fn stalled(repeat: u32) -> Vec<Row> {
    const LEN: u64 = 48 << 20;
    let rounds = repeat as usize * 3;
    let mut holders = Holders::new("stalled", rounds * 3, LEN);
    for host in 0..4 {
        holders.cluster.network().limit(host, Some(QUARTER_GIGABIT));
    }
    let (mut healthy, mut stalled, mut hedged) = (vec![], vec![], vec![]);
    for round in 0..rounds {
        holders.refresh();
        healthy.push(holders.fetch(|| ()).0);
        let pid = holders.cluster[round % 4].pid();
        let stop = || kill_process(pid, Signal::STOP).expect("stop the node");
        let (took, twice) = holders.fetch(stop);
        holders.cluster[round % 4].thaw();
        say(&format!(
            "{:.3} s, {took:.3} s with a source stopped",
            healthy[round]
        ));
        stalled.push(took);
        hedged.push(twice);
    }
    let usual = median(healthy.clone());
    let added = stalled.iter().map(|took| (took - usual) * 1e3);
    let spread = percentile_99(healthy) - usual;
    vec![
        Row::alone(
            "one of four sources stopped in mid-transfer, added (p99)",
            percentile_99(added.collect()),
            "ms",
            Some(Bound::AtMost(300.0)),
        ),
        Row::alone(
            "… by which healthy transfers differ (p99)",
            spread * 1e3,
            "ms",
            None,
        ),
        Row::alone(
            "… asked for twice, of all bytes (p99)",
            percentile_99(hedged) * 100.0,
            "%",
            Some(Bound::AtMost(3.0)),
        ),
    ]
}

/// Half of the peers, their connections open, hear and say nothing any more.
pub(super) fn black_holed(repeat: u32) -> Vec<Row> {
    const LEN: u64 = 24 << 20;
    let rounds = repeat as usize * 2;
    let mut holders = Holders::new("black-holed", rounds * 3, LEN);
    // What is missing is answers, not bandwidth.
    holders.cluster.network().limit(4, Some(QUARTER_GIGABIT));
    let mut seed = Seed::new(1);
    let (mut healthy, mut parted, mut misses) = (vec![], vec![], vec![]);
    for round in 0..rounds {
        holders.refresh();
        healthy.push(holders.fetch(|| ()).0);
        let network = holders.cluster.network();
        network.partition(&[&[round % 4], &[(round + 1) % 4]]);
        misses.extend((0..5).map(|_| miss(&holders.cluster, &mut seed)));
        let (took, _) = holders.fetch(|| ());
        say(&format!(
            "{:.3} s, {took:.3} s from half of them",
            healthy[round]
        ));
        parted.push(took);
        holders.cluster.network().heal_all();
    }
    let usual = percentile_99(healthy);
    let slowed = Row::alone(
        "NAR while half of the peers are black holes (p99)",
        percentile_99(parted),
        "s",
        None,
    );
    vec![
        against("all of them (p99)", usual, Bound::AtMost(2.0), slowed),
        Row::alone(
            "… narinfo that nobody has (p99)",
            percentile_99(misses),
            "ms",
            Some(Bound::AtMost(DEADLINE_MS)),
        ),
    ]
}

/// Milliseconds until node 4 says that nobody has a path.
fn miss(cluster: &Cluster, seed: &mut Seed) -> f64 {
    let digits = b"0123456789abcdfghijklmnpqrsvwxyz";
    let hash: String = (0..32)
        .map(|_| char::from(digits[seed.below(32) as usize]))
        .collect();
    let request = Request::get(&format!("/main/{hash}.narinfo"));
    let address = cluster[4].address();
    cluster[4].place().enter(|| {
        let mut client = Connection::open(address).expect("connect");
        let started = Instant::now();
        let answer = client.send(&request).expect("an answer");
        assert_eq!(answer.status, 404);
        started.elapsed().as_secs_f64() * 1e3
    })
}

/// How long peers are asked, by default, and what a busy machine takes to say so.
const DEADLINE_MS: f64 = 250.0 + 30.0;

//! Bytes per second.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::program::{self, eventually};

use super::{
    Bound, GIGABIT, ONE_COPY, PATIENCE, QUARTER_GIGABIT, Row, against, cpu, download, median, nar,
    paths, say, spread_to,
};

/// A NAR from one peer over a link of a gigabit, against what TCP alone makes of the same link.
pub(super) fn one_to_one(repeat: u32) -> Vec<Row> {
    const LEN: u64 = 256 << 20;
    let mut cluster = Cluster::joined_with_config(2, ONE_COPY);
    say("push to one node of two");
    // The first one teaches the nodes what the link carries.
    let paths = paths("one-to-one", repeat as usize + 1, LEN);
    cluster[0].push(&paths).succeeds();
    (0..2).for_each(|host| cluster.network().limit(host, Some(GIGABIT)));

    let (mut ours, mut tcp, mut sender, mut receiver) = (vec![], vec![], vec![], vec![]);
    for path in &paths {
        let nar = nar(&cluster, 1, path);
        let before = [0, 1].map(|node| cpu::of(cluster[node].pid()));
        let took = download(&cluster, 1, &nar, || ());
        let after = [0, 1].map(|node| cpu::of(cluster[node].pid()));
        let gib = nar.len as f64 / (1u64 << 30) as f64;
        ours.push(nar.len as f64 / took / 1e6);
        sender.push((after[0] - before[0]) / gib);
        receiver.push((after[1] - before[1]) / gib);
        tcp.push(iperf(&mut cluster, 0, 1));
        say(&format!(
            "{:.0} MB/s, iperf3 {:.0} MB/s",
            ours[ours.len() - 1],
            tcp[tcp.len() - 1]
        ));
    }
    for figures in [&mut ours, &mut tcp, &mut sender, &mut receiver] {
        figures.remove(0);
    }
    let what = "NAR from one peer, link of 1 Gbit/s";
    let speed = Row::alone(what, median(ours), "MB/s", None);
    vec![
        against("iperf3", median(tcp), Bound::AtLeast(0.5), speed),
        Row::alone(
            "… CPU of the sending node, per GiB",
            median(sender),
            "s",
            None,
        ),
        Row::alone(
            "… CPU of the receiving node, per GiB",
            median(receiver),
            "s",
            None,
        ),
    ]
}

/// A NAR from four peers, each with an uplink of a quarter of a gigabit.
pub(super) fn four_to_one(repeat: u32) -> Vec<Row> {
    const LEN: u64 = 128 << 20;
    let mut cluster = Cluster::joined_with_config(5, ONE_COPY);
    say("push to one node of five");
    let paths = paths("four-to-one", repeat as usize + 1, LEN);
    cluster[0].push(&paths).succeeds();
    spread_to(&cluster, &[1, 2, 3], &paths);
    (0..4).for_each(|host| cluster.network().limit(host, Some(QUARTER_GIGABIT)));
    let speed = |path: &String| {
        let nar = nar(&cluster, 4, path);
        let speed = nar.len as f64 / download(&cluster, 4, &nar, || ()) / 1e6;
        say(&format!("{speed:.0} MB/s"));
        speed
    };
    let mut speeds: Vec<f64> = paths.iter().map(speed).collect();
    speeds.remove(0);
    let sum = 4.0 * QUARTER_GIGABIT as f64 / 1e6;
    let what = "NAR from four peers, uplinks of 250 Mbit/s";
    let speed = Row::alone(what, median(speeds), "MB/s", None);
    vec![against(
        "the sum of uplinks",
        sum,
        Bound::AtLeast(0.9),
        speed,
    )]
}

/// Megabytes per second that iperf3 moves from one host to another.
fn iperf(cluster: &mut Cluster, from: usize, to: usize) -> f64 {
    let network = cluster.network();
    let mut server = network.place(to).command("iperf3");
    let server = program::start(server.args(["--server", "--one-off"]));
    let address = network.address(to).to_string();
    let bits = eventually("iperf3 to serve", PATIENCE, || {
        let mut client = network.place(from).command("iperf3");
        let seconds = SECONDS.as_secs().to_string();
        client.args(["--client", &address, "--json", "--time", &seconds]);
        let outcome = program::run(&mut client);
        // It ends well even if it met no server.
        let result: Value = serde_json::from_str(&outcome.stdout).ok()?;
        result["end"]["sum_received"]["bits_per_second"].as_f64()
    });
    server.wait().succeeds();
    bits / 8e6
}

/// How long iperf3 sends.
const SECONDS: Duration = Duration::from_secs(3);

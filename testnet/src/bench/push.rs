//! What a push costs.

use std::time::Instant;

use crate::corpus::Closure;
use crate::nix::NixClient;
use crate::node::TestNode;
use crate::proxy::FaultProxy;

use super::cpu;
use super::{Against, Bound, Figure, Row, median, say};

/// Bytes that attic stores for L1: 64 KiB chunks, zstd level 8.
const ATTIC_STORED_MB: f64 = 669.0;
/// CPU seconds that attic's server needs per GB of NAR.
const ATTIC_CPU_PER_GB: f64 = 150.0;

/// L1 into an empty node, and again.
pub(super) fn push(repeat: u32) -> Vec<Row> {
    let closure = Closure::load("L1");
    let gigabytes = nar_bytes(&closure) as f64 / 1e9;
    let mut cpu = Vec::new();
    let mut wall = Vec::new();
    let mut again = Vec::new();
    let mut stored = 0.0;
    let mut requests = (0, 0);
    for round in 1..=repeat {
        say(&format!("push L1, {round} of {repeat}"));
        let node = TestNode::start();
        let before = cpu::of_children() + cpu::of(node.pid());
        let started = Instant::now();
        node.push(&[&closure.root]).succeeds();
        wall.push(started.elapsed().as_secs_f64());
        let after = cpu::of_children() + cpu::of(node.pid());
        cpu.push((after - before) / gigabytes);
        stored = node.pack_bytes() as f64 / 1e6;

        let started = Instant::now();
        node.push(&[&closure.root]).succeeds();
        again.push(started.elapsed().as_secs_f64());
        let proxy = FaultProxy::clean(node.address());
        node.cli_through(&proxy).push(&[&closure.root]).succeeds();
        let chunks = proxy
            .log()
            .into_iter()
            .filter(|exchange| exchange.head.method == "PUT");
        requests = (
            proxy.log().len(),
            chunks.map(|exchange| exchange.request_bytes).sum::<u64>(),
        );
    }
    vec![
        Row::alone(
            "push of L1, CPU of client and server per GB of NAR",
            median(cpu),
            "s",
            Some(Bound::AtMost(12.0)),
        ),
        Row {
            what: "push of L1, stored".into(),
            ours: Figure {
                value: stored,
                unit: "MB",
            },
            against: Some(Against {
                name: format!("attic (which takes about {ATTIC_CPU_PER_GB} CPU s per GB)"),
                figure: Figure {
                    value: ATTIC_STORED_MB,
                    unit: "MB",
                },
            }),
            wanted: Some(Bound::AtMost(1.15)),
        },
        Row::alone(
            "push of L1, NAR bytes per second",
            gigabytes * 1e3 / median(wall),
            "MB/s",
            None,
        ),
        Row::alone(
            "push of L1 again, wall clock",
            median(again),
            "s",
            Some(Bound::AtMost(0.5)),
        ),
        Row::alone(
            "push of L1 again, requests",
            requests.0 as f64,
            "",
            Some(Bound::AtMost(1.0)),
        ),
        Row::alone(
            "push of L1 again, chunk bytes sent",
            requests.1 as f64,
            "B",
            Some(Bound::AtMost(0.0)),
        ),
    ]
}

pub(super) fn nar_bytes(closure: &Closure) -> u64 {
    let args: Vec<&str> = ["--query", "--size"]
        .into_iter()
        .chain(closure.all())
        .collect();
    let sizes = NixClient::host().run("nix-store", &args).succeeds();
    sizes
        .lines()
        .map(|line| line.parse::<u64>().expect("a size"))
        .sum()
}

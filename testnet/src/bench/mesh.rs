//! What nodes of a cluster do for each other.
//!
//! Every node is a process on a host of its own: a network namespace whose link `tc` limits to a
//! rate that the machine can fill, so that the network is what is measured and not the machine.
//! Times are those of a client that reads from its own node, which begins with nothing.

use std::fs;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::http::Connection;
use crate::nix::NixClient;
use crate::program::eventually;
use crate::served::{hash_part, narinfo_fields};

use super::{Against, Bound, Figure, Row, cpu, median, percentile_99, say};

mod faults;
mod speed;
mod spread;

/// Everything about clusters.
pub(super) fn mesh(repeat: u32) -> Vec<Row> {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    say(&format!("load of the machine: {}", load.trim()));
    [
        speed::one_to_one(repeat),
        speed::four_to_one(repeat),
        faults::stalled(repeat),
        faults::black_holed(repeat),
        spread::flash_crowd(repeat),
        spread::convergence(repeat),
        spread::idle(),
        spread::join(repeat),
    ]
    .concat()
}

/// A store path of the machine that holds `len` bytes which do not compress.
#[track_caller]
fn path(name: &str, len: u64) -> String {
    let built = format!("run \"bench-{name}\" ''head -c {len} /dev/urandom > $out''");
    NixClient::host().build(&built).remove(0)
}

/// So many of them.
#[track_caller]
fn paths(name: &str, count: usize, len: u64) -> Vec<String> {
    let path = |number| path(&format!("{name}-{number}"), len);
    (0..count).map(path).collect()
}

/// A NAR as a node offers it.
struct Nar {
    target: String,
    len: u64,
}

/// The NAR of a path, once a node knows of it.
#[track_caller]
fn nar(cluster: &Cluster, node: usize, path: &str) -> Nar {
    let narinfo = format!("/main/{}.narinfo", hash_part(path));
    let answer = eventually("the narinfo", PATIENCE, || {
        let answer = cluster[node].get(&narinfo).ok()?;
        (answer.status == 200).then_some(answer)
    });
    let fields = narinfo_fields(&answer.text());
    Nar {
        target: format!("/main/{}", fields["URL"]),
        len: fields["FileSize"].parse().expect("a size"),
    }
}

/// Seconds until a client has read a NAR from a node; `midway` is called when it has half.
#[track_caller]
fn download(cluster: &Cluster, node: usize, nar: &Nar, midway: impl FnOnce() + Send) -> f64 {
    let address = cluster[node].address();
    cluster[node].place().enter(|| {
        let mut client = Connection::open(address).expect("connect");
        let started = Instant::now();
        let request = format!("GET {} HTTP/1.1\r\nHost: {address}\r\n\r\n", nar.target);
        client.send_raw(request.as_bytes()).expect("ask");
        let head = client.read_head().expect("an answer");
        assert_eq!(head.status, 200, "{}", nar.target);
        let half = nar.len as usize / 2;
        client.read_body(half).expect("half of the body");
        midway();
        client
            .read_body(nar.len as usize - half)
            .expect("the rest of the body");
        started.elapsed().as_secs_f64()
    })
}

/// Has nodes fetch NARs, and waits until they are known to hold them.
#[track_caller]
fn spread_to(cluster: &Cluster, nodes: &[usize], paths: &[String]) {
    for node in nodes {
        say(&format!("node {node} fetches {} paths", paths.len()));
        let mut bytes = 0;
        for path in paths {
            let nar = nar(cluster, *node, path);
            download(cluster, *node, &nar, || ());
            bytes += nar.len;
        }
        eventually("the node to hold them", PATIENCE, || {
            let caches = cluster[*node].usage().caches;
            let held: u64 = caches.iter().map(|cache| cache.file_bytes).sum();
            (held >= bytes).then_some(())
        });
    }
}

/// A number of a node's `/metrics`.
#[track_caller]
fn number(cluster: &Cluster, node: usize, name: &str) -> f64 {
    let name = format!("attic_node_mesh_{name}");
    cluster[node].metric(&name).expect("a number")
}

/// A figure held against another one of the same unit.
fn against(name: &str, figure: f64, wanted: Bound, row: Row) -> Row {
    let unit = row.ours.unit;
    let figure = Figure {
        value: figure,
        unit,
    };
    Row {
        against: Some(Against {
            name: name.into(),
            figure,
        }),
        wanted: Some(wanted),
        ..row
    }
}

/// Nothing moves but what is asked for.
const ONE_COPY: &str = "[mesh]\nreplicas = 1\n";
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes per second of a link.
const GIGABIT: u64 = 125_000_000;
const QUARTER_GIGABIT: u64 = GIGABIT / 4;
const EIGHTH_GIGABIT: u64 = GIGABIT / 8;

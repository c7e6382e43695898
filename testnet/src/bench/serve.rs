//! How fast a full node answers.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;

use crate::corpus::Closure;
use crate::http::Connection;
use crate::nginx::Nginx;
use crate::node::TestNode;
use crate::program;
use crate::served::{hash_part, narinfo_fields};

use super::{Against, Bound, Figure, Row, median, say};

/// The largest NAR of L1 from memory: its first byte, and all of it in one stream.
pub(super) fn warm_nar(repeat: u32) -> Vec<Row> {
    say("push L1");
    let node = TestNode::start();
    let closure = Closure::load("L1");
    node.push(&[&closure.root]).succeeds();
    let (target, len) = largest_nar(&node, &closure);

    let root = TempDir::new().expect("make a directory");
    let body = node.get(&target).expect("an answer").body;
    write(root.path(), &target, &body);
    drop(body);
    let nginx = Nginx::serve(root.path());

    say(&format!("download {len} bytes, in turns"));
    let speed = |address: SocketAddr| {
        let mut connection = Connection::open(address).expect("connect");
        let started = Instant::now();
        let got = connection.download(&target).expect("a whole body");
        assert_eq!(got as u64, len);
        len as f64 / started.elapsed().as_secs_f64() / 1e6
    };
    // The first round only warms both up.
    let _ = (speed(node.address()), speed(nginx.address()));
    let rounds = (0..repeat * 3).map(|_| (speed(node.address()), speed(nginx.address())));
    let (ours, theirs): (Vec<f64>, Vec<f64>) = rounds.unzip();
    let first_byte = |address: SocketAddr| {
        let connection = Connection::open(address).expect("connect");
        let time = connection.first_byte(&target).expect("a body");
        time.as_secs_f64() * 1e3
    };
    let rounds = (0..100).map(|_| (first_byte(node.address()), first_byte(nginx.address())));
    let (our_first, their_first): (Vec<f64>, Vec<f64>) = rounds.unzip();
    let first = Row {
        what: "first byte of a warm NAR".into(),
        ours: Figure {
            value: median(our_first),
            unit: "ms",
        },
        against: Some(Against {
            name: "nginx".into(),
            figure: Figure {
                value: median(their_first),
                unit: "ms",
            },
        }),
        wanted: None,
    };
    let whole = Row {
        what: "warm NAR, one stream (zstd)".into(),
        ours: Figure {
            value: median(ours),
            unit: "MB/s",
        },
        against: Some(Against {
            name: "nginx".into(),
            figure: Figure {
                value: median(theirs),
                unit: "MB/s",
            },
        }),
        wanted: Some(Bound::AtLeast(0.7)),
    };
    vec![whole, first]
}

/// All narinfos of S, over and over, on 16 connections.
pub(super) fn narinfo_hits(repeat: u32) -> Vec<Row> {
    say("push S");
    let node = TestNode::start();
    let closure = Closure::load("S");
    node.push(&[&closure.root]).succeeds();
    let root = TempDir::new().expect("make a directory");
    let targets: Vec<String> = closure
        .all()
        .map(|path| format!("/main/{}.narinfo", hash_part(path)))
        .collect();
    for target in &targets {
        write(
            root.path(),
            target,
            &node.get(target).expect("an answer").body,
        );
    }
    let nginx = Nginx::serve(root.path());
    let script = root.path().join("wrk.lua");
    fs::write(&script, wrk_script(&targets)).expect("write a script");

    say("ask for narinfos, in turns");
    let rounds = (0..repeat).map(|_| (wrk(node.address(), &script), wrk(nginx.address(), &script)));
    let (ours, theirs): (Vec<f64>, Vec<f64>) = rounds.unzip();
    vec![Row {
        what: "narinfo hits, 16 connections".into(),
        ours: Figure {
            value: median(ours),
            unit: "req/s",
        },
        against: Some(Against {
            name: "nginx".into(),
            figure: Figure {
                value: median(theirs),
                unit: "req/s",
            },
        }),
        wanted: Some(Bound::AtLeast(0.8)),
    }]
}

fn largest_nar(node: &TestNode, closure: &Closure) -> (String, u64) {
    let nar = |path: &str| {
        let target = format!("/main/{}.narinfo", hash_part(path));
        let fields = narinfo_fields(&node.get(&target).expect("an answer").text());
        let len: u64 = fields["FileSize"].parse().expect("a size");
        (format!("/main/{}", fields["URL"]), len)
    };
    closure
        .all()
        .map(nar)
        .max_by_key(|(_, len)| *len)
        .expect("L1 is not empty")
}

fn write(root: &Path, target: &str, body: &[u8]) {
    let file = root.join(target.trim_start_matches('/'));
    fs::create_dir_all(file.parent().expect("a directory")).expect("make a directory");
    fs::write(file, body).expect("write a file");
}

/// Requests per second, and no answer other than 200.
fn wrk(address: SocketAddr, script: &Path) -> f64 {
    let mut command = Command::new("wrk");
    command.args([
        "--threads",
        "1",
        "--connections",
        "16",
        "--duration",
        "8s",
        "--script",
    ]);
    let outcome = program::run(command.arg(script).arg(format!("http://{address}"))).succeeds();
    assert!(!outcome.stdout.contains("Non-2xx"), "{outcome}");
    let line = outcome
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    line.and_then(|figure| figure.trim().parse().ok())
        .unwrap_or_else(|| panic!("{outcome}"))
}

fn wrk_script(targets: &[String]) -> String {
    let list: String = targets
        .iter()
        .map(|target| format!("\"{target}\","))
        .collect();
    format!(
        "local targets = {{{list}}}\nlocal next = 0\n\
         request = function()\n  next = next % #targets + 1\n\
         return wrk.format(\"GET\", targets[next])\nend\n"
    )
}

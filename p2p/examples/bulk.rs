//! Measures one bulk stream over the loopback interface, between two processes:
//! `cargo run --release -p attic-p2p --example bulk -- [MiB] [frame KiB]`.

use std::sync::Arc;
use std::time::Instant;
use std::{env, fs, process};

use attic_p2p::gate::{Answer, Gate, Refusal};
use attic_p2p::identity::Identity;
use attic_p2p::ids::NodeId;
use attic_p2p::network::{Network, NetworkEvent, NetworkOptions};
use futures::future::{BoxFuture, FutureExt, ready};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;

const MIB: u64 = 1024 * 1024;

struct Everybody;

impl Gate for Everybody {
    fn hello(&self, _: NodeId) -> Vec<u8> {
        Vec::new()
    }

    fn answer(&self, _: NodeId, _: &[u8]) -> BoxFuture<'_, Answer> {
        let (reply, admit) = (Vec::new(), true);
        ready(Answer { reply, admit }).boxed()
    }

    fn accept(&self, _: NodeId, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let number = |index: usize, default: u64| -> u64 {
        let given = args.get(index).map(|text| text.parse().expect("a number"));
        given.unwrap_or(default)
    };
    if args.first().is_some_and(|first| first == "send") {
        return send(number(1, 0) * MIB, number(2, 0) as usize * 1024).await;
    }
    receive(number(0, 2048), number(1, 64)).await;
}

fn start(seed: u8) -> (Network, mpsc::Receiver<NetworkEvent>) {
    let options = NetworkOptions {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")],
        ..NetworkOptions::default()
    };
    let identity = Identity::from_seed([seed; 32]);
    Network::start(options, Arc::new(Everybody), identity).expect("a network")
}

/// Sends to the first who opens a stream.
async fn send(total: u64, frame: usize) {
    let (_network, mut events) = start(1);
    let body = vec![7; frame];
    while let Some(event) = events.recv().await {
        match event {
            NetworkEvent::Listening(address) => println!("{address}"),
            NetworkEvent::Bulk { stream, .. } => {
                let (mut sender, mut receiver) = stream.split();
                receiver.receive().await.expect("read").expect("a go");
                let before = cpu_seconds();
                for _ in 0..total / frame as u64 {
                    sender.send(&[0; 10], &body).await.expect("sent");
                }
                // Until the other side has everything, what is sent may not have left.
                let _ = receiver.receive().await;
                println!("{}", cpu_seconds() - before);
                return;
            }
            _ => {}
        }
    }
}

async fn receive(mib: u64, frame_kib: u64) {
    let mut child = tokio_child(mib, frame_kib);
    let mut lines = BufReader::new(child.1).lines();
    let address = lines.next_line().await.expect("read").expect("a line");
    let (network, _events) = start(2);
    let node = network.dial(address.parse().expect("an address")).await;
    let stream = network.open_bulk(node.expect("connected")).await;
    let (mut sender, mut receiver) = stream.expect("open").split();
    let (begun, before) = (Instant::now(), cpu_seconds());
    sender.send(b"", b"go").await.expect("sent");
    let mut received = 0;
    while received < mib * MIB {
        let frame = receiver.receive().await.expect("read").expect("a frame");
        received += frame.len() as u64 - 10;
    }
    let (took, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - before);
    sender.finish().await.expect("finished");
    let theirs = lines.next_line().await.expect("read").expect("a line");
    let theirs: f64 = theirs.parse().expect("a number");
    let gib = mib as f64 / 1024.0;
    println!(
        "{mib} MiB in frames of {frame_kib} KiB: {:.0} MB/s, sender {:.2} and receiver {:.2} CPU-s/GiB",
        (mib * MIB) as f64 / 1e6 / took,
        theirs / gib,
        cpu / gib,
    );
    child.0.wait().expect("ended");
}

fn tokio_child(mib: u64, frame_kib: u64) -> (process::Child, tokio::fs::File) {
    let mut child = process::Command::new(env::current_exe().expect("a path"))
        .args(["send", &mib.to_string(), &frame_kib.to_string()])
        .stdout(process::Stdio::piped())
        .spawn()
        .expect("a process");
    let output = child.stdout.take().expect("piped");
    let output = std::os::fd::OwnedFd::from(output);
    (child, tokio::fs::File::from_std(output.into()))
}

/// What this process has used, from `/proc` (in hundredths of a second).
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields = stat.rsplit(')').next().expect("fields");
    let ticks: Vec<f64> = (fields.split_whitespace().skip(11).take(2))
        .map(|text| text.parse().expect("a number"))
        .collect();
    (ticks[0] + ticks[1]) / 100.0
}

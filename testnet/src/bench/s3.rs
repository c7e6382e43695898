//! What the bucket costs: how a push becomes durable, and how it comes back to a node that has nothing.
//! The server, Garage, shares the machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use attic_store::bucket::Bucket;
use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::corpus::Closure;
use crate::garage::Garage;
use crate::http::Connection;
use crate::node::TestNode;
use crate::proxy::FaultProxy;
use crate::s3::S3Access;
use crate::seed::Seed;
use crate::served::{hash_part, narinfo_fields};

use super::push::nar_bytes;
use super::{Against, Bound, Figure, Row, say};

/// L1 to the bucket, and back to another node. Nothing where Garage is not installed.
pub(super) fn s3() -> Vec<Row> {
    let Some(garage) = Garage::start("bench s3") else {
        return Vec::new();
    };
    let access = garage.access();
    let closure = Closure::load("L1");
    let nar_bytes = nar_bytes(&closure) as f64;
    let dir = TempDir::new().expect("make a directory");
    let config = access.config(&access.endpoint, dir.path());

    say("push L1 until it is durable");
    let node = TestNode::with_config(&config);
    node.cli().run(&["cluster", "init"]).succeeds();
    let started = Instant::now();
    let push = ["push", "--wait", "durable", "main", &closure.root];
    node.cli().run(&push).succeeds();
    let durable = started.elapsed().as_secs_f64();
    let requests = node.status().bucket.expect("a bucket").requests;
    let taken = node.rss_peak();
    let key = fs::read_to_string(node.data_dir().join("cluster/cluster.key")).expect("the key");
    let narinfos: Vec<String> = closure
        .all()
        .map(|path| format!("/main/{}.narinfo", hash_part(path)))
        .collect();
    drop(node);

    say("upload as many bytes as objects, nothing else");
    let raw = upload(access, requests.sent_bytes);

    say("rebuild on another node and download L1");
    let near = cold_read(access, &access.endpoint, &key, &narinfos);
    say("the same with 30 ms more for every request");
    let server = access.endpoint.trim_start_matches("http://");
    let server = server.parse().expect("the address of the server");
    let proxy = FaultProxy::delaying(server, Duration::from_millis(30));
    let endpoint = format!("http://{}", proxy.address());
    let far = cold_read(access, &endpoint, &key, &narinfos);
    let gib = f64::from(1 << 30);
    vec![
        Row::alone(
            "push of L1 until it is durable, PUTs per GiB of NAR",
            requests.put as f64 / (nar_bytes / gib),
            "",
            Some(Bound::AtMost(200.0)),
        ),
        Row {
            what: "… wall clock".into(),
            ours: Figure {
                value: durable,
                unit: "s",
            },
            against: Some(Against {
                name: "its bytes as objects, four at a time".into(),
                figure: Figure {
                    value: raw,
                    unit: "s",
                },
            }),
            wanted: Some(Bound::AtMost(1.3)),
        },
        Row::alone(
            "… memory of the node",
            taken as f64 / f64::from(1 << 20),
            "MiB",
            Some(Bound::AtMost(256.0)),
        ),
        Row::alone("cluster rebuilt from the bucket", near.rebuilt, "s", None),
        Row::alone(
            "L1 from the bucket to a node that has nothing, one NAR after the other",
            nar_bytes / f64::from(1 << 20) / near.took,
            "MiB/s",
            None,
        ),
        Row::alone(
            "… with 30 ms more for every request",
            nar_bytes / f64::from(1 << 20) / far.took,
            "MiB/s",
            Some(Bound::AtLeast(80.0)),
        ),
        Row::alone(
            "… requests that read, per GiB of NAR",
            far.gets as f64 / (nar_bytes / gib),
            "",
            None,
        ),
    ]
}

/// How a node that had nothing got L1.
struct ColdRead {
    /// Seconds until it knew what there is.
    rebuilt: f64,
    /// Seconds until it had given all NARs.
    took: f64,
    gets: u64,
}

/// Makes the cluster anew from its bucket and downloads all NARs, one after the other.
fn cold_read(access: &S3Access, endpoint: &str, key: &str, narinfos: &[String]) -> ColdRead {
    let dir = TempDir::new().expect("make a directory");
    let node = TestNode::with_config(&access.config(endpoint, dir.path()));
    let key_file = dir.path().join("cluster.key");
    fs::write(&key_file, key).expect("write the key");
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("make it private");
    let key_file = key_file.to_str().expect("UTF-8");
    let rebuild = ["cluster", "rebuild", "--from-s3", "--cluster-key", key_file];
    let started = Instant::now();
    node.cli().run(&rebuild).succeeds();
    let rebuilt = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut connection = Connection::open(node.address()).expect("connect");
    for narinfo in narinfos {
        let narinfo = node.get(narinfo).expect("an answer");
        let url = narinfo_fields(&narinfo.text())["URL"].clone();
        connection
            .download(&format!("/main/{url}"))
            .expect("a whole body");
    }
    ColdRead {
        rebuilt,
        took: started.elapsed().as_secs_f64(),
        gets: node.status().bucket.expect("a bucket").requests.get,
    }
}

/// Seconds it takes to upload so many bytes in objects of 16 MiB.
fn upload(access: &S3Access, bytes: u64) -> f64 {
    const LEN: usize = 16 << 20;
    const AT_ONCE: usize = 4;
    let body = Bytes::from(Seed::for_test("bench s3").bytes(LEN));
    let client = std::sync::Arc::new(access.client());
    let count = bytes.div_ceil(LEN as u64);
    let runtime = Runtime::new().expect("a runtime");
    let started = Instant::now();
    runtime.block_on(async {
        let mut running = JoinSet::new();
        for number in 0..count {
            if running.len() >= AT_ONCE {
                running.join_next().await;
            }
            let (client, body) = (std::sync::Arc::clone(&client), body.clone());
            running.spawn(async move {
                let key = format!("raw/{number}");
                client.put(&key, body).await.expect("an upload");
            });
        }
        running.join_all().await;
    });
    started.elapsed().as_secs_f64()
}

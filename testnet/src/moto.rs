//! Moto: a second implementation of S3, so that nothing leans on the habits of one. It knows no
//! credentials, and keeps everything in memory.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::http::Request;
use crate::s3::{S3Access, program_in_cache};

/// A moto with a bucket, killed when dropped.
#[derive(Debug)]
pub struct Moto {
    process: Child,
    access: S3Access,
}

impl Moto {
    /// Starts one on a free port and waits until it is ready. `None` where moto is not installed: then
    /// it says that `what` is left out, or panics, as [`WANTED`](crate::s3::WANTED) has it.
    #[track_caller]
    pub fn start(what: &str) -> Option<Moto> {
        let program = program_in_cache("attic-node-moto", "bin/moto_server", what)?;
        let mut command = Command::new(program);
        command
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = command.spawn().expect("start moto");
        let (said, address) = channel();
        let stderr = BufReader::new(process.stderr.take().expect("it is piped"));
        // Reads to the end, or moto would wait for room in the pipe.
        thread::spawn(move || {
            let mut said = Some(said);
            for line in stderr.lines().map_while(Result::ok) {
                let found = line
                    .split_once("Running on http://")
                    .map(|(_, rest)| rest.trim());
                let found = found.and_then(|address| address.parse::<SocketAddr>().ok());
                if let Some((said, address)) = said.as_ref().zip(found) {
                    said.send(address).ok();
                }
                if found.is_some() {
                    said = None;
                }
            }
        });
        let address = address
            .recv_timeout(PATIENCE)
            .expect("moto says where it listens");
        let made = Request::put(&format!("/{BUCKET}"), "").send(address);
        assert_eq!(made.expect("moto answers").status, 200);
        let access = S3Access {
            endpoint: format!("http://{address}"),
            region: "us-east-1".to_owned(),
            bucket: BUCKET.to_owned(),
            key_id: "any".to_owned(),
            secret: "any".to_owned(),
        };
        Some(Moto { process, access })
    }

    /// How its bucket is reached.
    pub fn access(&self) -> &S3Access {
        &self.access
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const BUCKET: &str = "attic";
/// Longest that starting may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

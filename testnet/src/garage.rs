//! Garage: the S3 server of the end-to-end tests.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::http::Request;
use crate::netns::Place;
use crate::program::{self, Outcome, eventually};
use crate::s3::{S3Access, program_in_cache};
use crate::seed::Seed;

/// A Garage of one node with a bucket and a key, killed when dropped.
#[derive(Debug)]
pub struct Garage {
    process: Option<Child>,
    program: PathBuf,
    dir: TempDir,
    address: IpAddr,
    place: Place,
    access: S3Access,
}

impl Garage {
    /// Starts one on a loopback address that nobody else uses, and waits until it is ready. `None`
    /// where Garage is not installed: then it says that `what` is left out, or panics, as
    /// [`WANTED`](crate::s3::WANTED) has it.
    #[track_caller]
    pub fn start(what: &str) -> Option<Garage> {
        Garage::start_on(Place::machine(), free_loopback(), what)
    }

    /// As [`start`](Garage::start), on a host and at an address of it that has no Garage yet.
    #[track_caller]
    pub fn start_on(place: Place, address: IpAddr, what: &str) -> Option<Garage> {
        let program = program_in_cache("attic-node-garage", "bin/garage", what)?;
        let dir = TempDir::new().expect("make a directory");
        let mut random = Seed::for_test(what);
        let access = S3Access {
            endpoint: format!("http://{}", SocketAddr::new(address, S3_PORT)),
            region: REGION.to_owned(),
            bucket: BUCKET.to_owned(),
            key_id: format!("GK{}", hex(&random.bytes(12))),
            secret: hex(&random.bytes(32)),
        };
        let config = configuration(dir.path(), address, &hex(&random.bytes(32)));
        fs::write(dir.path().join("garage.toml"), config).expect("write garage.toml");
        let mut garage = Garage {
            process: None,
            program,
            dir,
            address,
            place,
            access,
        };
        garage.spawn();
        garage.set_up();
        garage.wait_until_it_answers();
        Some(garage)
    }

    /// How its bucket is reached.
    pub fn access(&self) -> &S3Access {
        &self.access
    }

    /// Where its S3 API listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.address, S3_PORT)
    }

    /// Runs a command of Garage's own on it.
    #[track_caller]
    pub fn admin(&self, args: &[&str]) -> Outcome {
        let mut command = self.command(args);
        program::run(&mut command)
    }

    /// Stops it in its tracks, as SIGSTOP does: connections stay, nothing answers.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on after [`freeze`](Garage::freeze).
    #[track_caller]
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it at once, as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill garage");
            process.wait().expect("wait for garage");
        }
    }

    /// Starts it after [`kill`](Garage::kill), with what it had and where it was, and waits until it
    /// is ready.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "garage is running");
        self.spawn();
        self.wait_until_it_answers();
    }

    fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("log");
        let mut command = self.command(&["server"]);
        command
            .env("RUST_LOG", "garage=warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log);
        self.process = Some(command.spawn().expect("start garage"));
    }

    /// Gives it all of its one disk, the bucket and the key.
    #[track_caller]
    fn set_up(&mut self) {
        let node = eventually("garage to know its name", PATIENCE, || {
            self.check_alive();
            let said = self.admin(&["node", "id", "--quiet"]);
            let name = said.stdout.trim().split_once('@')?.0.to_owned();
            let is_up = self.admin(&["status"]).status.success();
            is_up.then_some(name)
        });
        let (key_id, secret) = (self.access.key_id.clone(), self.access.secret.clone());
        let steps: [&[&str]; 5] = [
            &["layout", "assign", "-z", "z", "-c", "10G", &node],
            &["layout", "apply", "--version", "1"],
            &["key", "import", "--yes", "-n", "test", &key_id, &secret],
            &["bucket", "create", BUCKET],
            &[
                "bucket", "allow", "--read", "--write", "--owner", BUCKET, "--key", "test",
            ],
        ];
        for step in steps {
            self.admin(step).succeeds();
        }
    }

    #[track_caller]
    fn wait_until_it_answers(&mut self) {
        eventually("garage to answer", PATIENCE, || {
            self.check_alive();
            let answer = self.place.enter(|| Request::get("/").send(self.address()));
            answer.ok().filter(|answer| answer.status < 500)
        });
    }

    #[track_caller]
    fn check_alive(&self) {
        let log = || fs::read_to_string(self.log_file()).unwrap_or_default();
        let pid = program::pid_of(self.process.as_ref().expect("garage was started"));
        let is_alive = program::rss_peak(pid).is_some();
        assert!(is_alive, "garage ended:\n{}", log());
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("garage is running");
        kill_process(program::pid_of(process), signal).expect("signal garage");
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.place.command(&self.program);
        command.arg("-c").arg(self.dir.path().join("garage.toml"));
        command.args(args);
        command
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A loopback address on whose ports for S3 and for administration nobody listens now.
#[track_caller]
fn free_loopback() -> IpAddr {
    // Never the same twice in a process: one that was found free is not taken until a Garage is up.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id();
    let mut addresses = (0..1000).map(|_| {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let [.., high, low] = start.wrapping_add(step.wrapping_mul(263)).to_be_bytes();
        Ipv4Addr::new(127, high | 0x80, low, 200)
    });
    let is_free = |address: &Ipv4Addr| {
        [S3_PORT, RPC_PORT, ADMIN_PORT]
            .iter()
            .all(|port| TcpListener::bind((*address, *port)).is_ok())
    };
    addresses
        .find(is_free)
        .expect("some loopback address is free")
        .into()
}

fn configuration(dir: &Path, address: IpAddr, rpc_secret: &str) -> String {
    let dir = dir.display();
    let at = |port| SocketAddr::new(address, port);
    let (s3, rpc, admin) = (at(S3_PORT), at(RPC_PORT), at(ADMIN_PORT));
    format!(
        "metadata_dir = \"{dir}/meta\"
        data_dir = \"{dir}/data\"
        db_engine = \"lmdb\"
        replication_factor = 1
        compression_level = \"none\"
        rpc_bind_addr = \"{rpc}\"
        rpc_public_addr = \"{rpc}\"
        rpc_secret = \"{rpc_secret}\"
        [s3_api]
        s3_region = \"{REGION}\"
        api_bind_addr = \"{s3}\"
        root_domain = \".s3.garage.localhost\"
        [admin]
        api_bind_addr = \"{admin}\"\n"
    )
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

const REGION: &str = "garage";
const BUCKET: &str = "attic";
const S3_PORT: u16 = 3900;
const RPC_PORT: u16 = 3901;
const ADMIN_PORT: u16 = 3903;
/// Longest that starting may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

//! A real `attic-node up`.

use std::fs::{self, File};
use std::io::Result;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use attic_node_core::api::{CacheView, Status, UsageReply};

use crate::cli::Cli;
use crate::http::{Request, Response};
use crate::netns::Place;
use crate::program::{self, Outcome, eventually};
use crate::proxy::FaultProxy;
use crate::served::{self, Served};

/// Longest a node may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node with a data directory of its own, killed when dropped.
///
/// What it logs is printed when the test that holds it fails.
#[derive(Debug)]
pub struct TestNode {
    dir: TempDir,
    data_dir: PathBuf,
    process: Option<Child>,
    address: SocketAddr,
    cli: Cli,
    place: Place,
}

impl TestNode {
    /// A node with the default configuration, ready.
    #[track_caller]
    pub fn start() -> TestNode {
        TestNode::with_config("")
    }

    /// A node with this configuration file, ready.
    #[track_caller]
    pub fn with_config(config: &str) -> TestNode {
        let dir = TempDir::new().expect("make a directory");
        let data_dir = dir.path().join("data");
        TestNode::start_in(dir, data_dir, config)
    }

    /// A node on a host of its own, with more in its environment, ready. In a namespace it listens
    /// on the port that the program chooses by itself.
    #[track_caller]
    pub fn on_host(place: Place, config: &str, env: &[(&str, &str)]) -> TestNode {
        let dir = TempDir::new().expect("make a directory");
        let data_dir = dir.path().join("data");
        let mut node = TestNode::prepare(dir, data_dir, config, place, env);
        node.start_again();
        node
    }

    /// A node whose data lies in `data_dir`, ready.
    #[track_caller]
    pub fn at(data_dir: &Path, config: &str) -> TestNode {
        let dir = TempDir::new().expect("make a directory");
        TestNode::start_in(dir, data_dir.to_owned(), config)
    }

    #[track_caller]
    fn start_in(dir: TempDir, data_dir: PathBuf, config: &str) -> TestNode {
        let mut node = TestNode::prepare(dir, data_dir, config, Place::machine(), &[]);
        node.start_again();
        node
    }

    fn prepare(
        dir: TempDir,
        data_dir: PathBuf,
        config: &str,
        place: Place,
        env: &[(&str, &str)],
    ) -> TestNode {
        let cli = Cli::new(&data_dir, &dir.path().join("config.toml"));
        let node = TestNode {
            dir,
            data_dir,
            process: None,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            cli: cli.on_host(place.clone(), env),
            place,
        };
        node.configure(config);
        node
    }

    /// Starts it after [`kill`](TestNode::kill) or [`stop`](TestNode::stop), on another port, and
    /// waits until it is ready.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "the node is running");
        // What a killed process left behind must not pass for the address of the new one.
        blank(&self.data_dir.join("address"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("log");
        let mut command = self.up_command();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log);
        self.process = Some(command.spawn().expect("start attic-node up"));
        self.address = eventually("the node to say where it listens", PATIENCE, || {
            self.check_alive();
            fs::read_to_string(self.data_dir.join("address"))
                .ok()?
                .trim()
                .parse()
                .ok()
        });
        eventually("the node to be ready", PATIENCE, || {
            self.check_alive();
            self.get("/readyz")
                .ok()
                .filter(|response| response.status == 200)
        });
    }

    /// `attic-node up` as this node is started.
    pub fn up_command(&self) -> Command {
        let mut command = self.cli.command(&["up"]);
        if self.place.namespace().is_none() {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.arg("--data-dir").arg(&self.data_dir);
        command
    }

    /// Gives it another configuration file, which counts from its next start.
    pub fn configure(&self, config: &str) {
        fs::write(self.dir.path().join("config.toml"), config).expect("write a configuration");
    }

    /// Ends it at once, as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill the node");
            process.wait().expect("wait for the node");
        }
    }

    /// Ends it with SIGTERM and says how it went.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        kill_process(self.pid(), Signal::TERM).expect("signal the node");
        let mut process = self.process.take().expect("the node is running");
        eventually("the node to stop", PATIENCE, || {
            process.try_wait().expect("wait for the node")
        })
    }

    /// Stops it in its tracks, as SIGSTOP does: connections stay, nothing answers.
    #[track_caller]
    pub fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).expect("signal the node");
    }

    /// Lets it go on after [`freeze`](TestNode::freeze).
    #[track_caller]
    pub fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).expect("signal the node");
    }

    /// Its process id.
    #[track_caller]
    pub fn pid(&self) -> Pid {
        program::pid_of(self.process.as_ref().expect("the node is running"))
    }

    /// Where it listens now.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The host it runs on.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// URL of one of its caches.
    pub fn url(&self, cache: &str) -> String {
        format!("http://{}/{cache}", self.address)
    }

    /// Where its data lies.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Everything it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Its admin token.
    #[track_caller]
    pub fn token(&self) -> String {
        let file = self.data_dir.join("admin-token");
        fs::read_to_string(file)
            .expect("read the admin token")
            .trim()
            .to_owned()
    }

    /// Its user on this machine.
    pub fn cli(&self) -> &Cli {
        &self.cli
    }

    /// A user who reaches the node only through `proxy`.
    pub fn cli_through(&self, proxy: &FaultProxy) -> Cli {
        self.another_user()
            .at(format!("http://{}", proxy.address()))
    }

    /// Another user on this machine, with an empty home.
    pub fn another_user(&self) -> Cli {
        let cli = Cli::new(&self.data_dir, &self.dir.path().join("config.toml"));
        cli.on_host(self.place.clone(), &[])
    }

    /// Pushes paths to its cache `main`.
    #[track_caller]
    pub fn push<P: AsRef<str>>(&self, paths: &[P]) -> Outcome {
        self.cli.push(paths)
    }

    /// `GET target` without a token.
    ///
    /// **Errors**: no answer.
    pub fn get(&self, target: &str) -> Result<Response> {
        self.send(Request::get(target))
    }

    /// A request to the admin API, `POST` when it has a body.
    #[track_caller]
    pub fn api(&self, target: &str, body: Option<&str>) -> Response {
        let target = format!("/_node/v1/{target}");
        let request = match body {
            None => Request::get(&target),
            Some(body) => Request::post(&target, body).header("Content-Type", "application/json"),
        };
        self.send(request.token(&self.token()))
            .expect("the node answers")
    }

    /// What a `GET` of its admin API answers. Panics unless that is 200.
    #[track_caller]
    pub fn ask<T: serde::de::DeserializeOwned>(&self, target: &str) -> T {
        parse(&self.api(target, None))
    }

    /// Sends a request from the node's own host.
    ///
    /// **Errors**: no answer.
    pub fn send(&self, request: Request) -> Result<Response> {
        let address = self.address;
        self.place.enter(|| request.send(address))
    }

    /// Its peer id.
    #[track_caller]
    pub fn id(&self) -> String {
        self.status().peer_id
    }

    /// What it says about itself.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.ask("status")
    }

    /// What it stores.
    #[track_caller]
    pub fn usage(&self) -> UsageReply {
        self.ask("usage")
    }

    /// Public key of one of its caches.
    #[track_caller]
    pub fn public_key(&self, cache: &str) -> String {
        self.ask::<CacheView>(&format!("caches/{cache}")).public_key
    }

    /// Reads a path (or its hash part) from its cache `main` as Nix would, and checks every byte.
    #[track_caller]
    pub fn read(&self, path: &str) -> Served {
        let (address, hash) = (self.address, served::hash_part(path));
        let read = || served::read(address, "main", hash);
        self.place.enter(read).expect("the node answers")
    }

    /// One value of its `/metrics`, by name and labels as written there.
    #[track_caller]
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").expect("the node answers").text();
        let value = |line: &str| {
            line.strip_prefix(name)?
                .strip_prefix(' ')?
                .trim()
                .parse()
                .ok()
        };
        text.lines().find_map(value)
    }

    /// Most memory it ever had resident, in bytes.
    #[track_caller]
    pub fn rss_peak(&self) -> u64 {
        program::rss_peak(self.pid()).expect("the node is running")
    }

    /// Its pack files, sorted.
    pub fn packs(&self) -> Vec<PathBuf> {
        let mut packs = Vec::new();
        collect_files(&self.data_dir, &mut packs);
        packs.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "pack")
        });
        packs.sort();
        packs
    }

    /// Bytes of its pack files.
    pub fn pack_bytes(&self) -> u64 {
        let lens = self
            .packs()
            .into_iter()
            .filter_map(|pack| fs::metadata(pack).ok());
        lens.map(|meta| meta.len()).sum()
    }

    /// Bytes that its data directory takes on the disk, holes not counted.
    pub fn disk_bytes(&self) -> u64 {
        let mut files = Vec::new();
        collect_files(&self.data_dir, &mut files);
        let metas = files.iter().filter_map(|file| fs::metadata(file).ok());
        metas.map(|meta| meta.blocks() * 512).sum()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    #[track_caller]
    fn check_alive(&self) {
        let pid = self.pid();
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        let alive = state.is_ok_and(|text| !text.contains(") Z "));
        assert!(alive, "the node ended by itself:\n{}", self.log());
    }
}

/// Overwrites a file, if it is there, with as many blanks: on a full disk it keeps its space.
fn blank(path: &Path) {
    if let Ok(text) = fs::read(path) {
        let file = File::options().write(true).open(path).expect("open");
        file.write_all_at(&vec![b' '; text.len()], 0)
            .expect("overwrite");
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- log of the node at {}\n{}---", self.address, self.log());
        }
    }
}

#[track_caller]
fn parse<T: serde::de::DeserializeOwned>(response: &Response) -> T {
    assert_eq!(response.status, 200, "{}", response.text());
    serde_json::from_slice(&response.body)
        .unwrap_or_else(|error| panic!("{error}: {}", response.text()))
}

fn collect_files(dir: &Path, into: &mut Vec<PathBuf>) {
    // A running node makes and deletes files meanwhile: what is gone is not counted.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect_files(&entry.path(), into),
            Ok(kind) if kind.is_file() => into.push(entry.path()),
            _ => {}
        }
    }
}

//! Network namespaces: several hosts, each with its own addresses, on one machine.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::program;

/// A network namespace with its loopback interface up, removed when dropped. Making one needs root.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one whose name ends in `role` and is no other's, of this process or another.
    #[track_caller]
    pub fn new(role: &str) -> Namespace {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let (pid, start) = (std::process::id(), start_time("self").expect("a process"));
        let name = format!("{PREFIX}{pid}-{start}-{number}-{role}");
        ip(&["netns", "add", &name]);
        let namespace = Namespace { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// Its name, for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip args…` on what is in it.
    #[track_caller]
    pub fn ip(&self, args: &[&str]) {
        ip(&[&["-n", &self.name], args].concat());
    }

    /// Runs `tc args…` on what is in it.
    #[track_caller]
    pub fn tc(&self, args: &[&str]) {
        let mut command = Command::new("tc");
        command.args(["-n", &self.name]).args(args);
        program::run(&mut command).succeeds();
    }

    fn file(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Where a program runs: on the machine as it is, or in a namespace. Clones share the namespace.
#[derive(Clone, Debug, Default)]
pub struct Place(Option<Arc<Namespace>>);

impl Place {
    /// The machine as it is.
    pub fn machine() -> Place {
        Place(None)
    }

    /// In this namespace.
    pub fn inside(namespace: &Arc<Namespace>) -> Place {
        Place(Some(Arc::clone(namespace)))
    }

    /// The namespace, unless it is the machine as it is.
    pub fn namespace(&self) -> Option<&Namespace> {
        self.0.as_deref()
    }

    /// `program`, ready to run there. Its process id is that of the program itself.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match &self.0 {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command
                    .args(["netns", "exec", &namespace.name])
                    .arg(program);
                command
            }
        }
    }

    /// Runs `work` there, on a thread of its own. Sockets it opens stay there.
    #[track_caller]
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let Some(namespace) = &self.0 else {
            return work();
        };
        let worker = || {
            let file = File::open(namespace.file()).expect("the namespace is there");
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(file.as_fd(), kind).expect("enter the namespace");
            work()
        };
        thread::scope(|scope| match scope.spawn(worker).join() {
            Ok(done) => done,
            Err(panic) => resume_unwind(panic),
        })
    }
}

/// Removes namespaces of processes that died without doing so, and ends what still runs in them.
pub fn remove_leftovers() {
    for entry in fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(name) = name.to_str().filter(|name| is_leftover(name)) {
            remove(name);
        }
    }
}

/// Whether the process that made a namespace of this name has ended.
fn is_leftover(name: &str) -> bool {
    let mut parts = name.strip_prefix(PREFIX).unwrap_or_default().split('-');
    let (Some(pid), Some(start)) = (parts.next(), parts.next()) else {
        return false;
    };
    pid.parse::<u32>().is_ok() && start_time(pid).as_deref() != Some(start)
}

/// When a process began, in clock ticks since the machine's; `None` when it has ended.
fn start_time(pid: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, so fields are counted from its end.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

/// Ends what runs in a namespace and removes it. Another process may be at it as well.
fn remove(name: &str) {
    let output = Command::new("ip").args(["netns", "pids", name]).output();
    let pids = output.map(|output| output.stdout).unwrap_or_default();
    for pid in String::from_utf8_lossy(&pids).split_whitespace() {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = Command::new("ip")
        .args(["netns", "del", name])
        .stderr(Stdio::null())
        .status();
}

#[track_caller]
fn ip(args: &[&str]) {
    program::run(Command::new("ip").args(args)).succeeds();
}

/// Where `ip netns` keeps namespaces.
const DIRECTORY: &str = "/run/netns";
const PREFIX: &str = "attic-";

//! Running programs: everything they say is kept, nothing runs for ever, failures explain
//! themselves.

use std::env;
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::fs;
use std::io::Read;
use std::mem;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::odd_paths;

/// Longest a program may run before the test that started it fails. With NARs of 4 GiB, some
/// programs compress one for a quarter of an hour.
pub fn time_max() -> Duration {
    Duration::from_secs(if odd_paths::large() { 3600 } else { 300 })
}

/// What a program did.
#[derive(Debug)]
pub struct Outcome {
    command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it wrote to its standard output.
    pub stdout: String,
    /// Everything it wrote to its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Itself, if the program succeeded; otherwise panics with all it said.
    #[track_caller]
    pub fn succeeds(self) -> Outcome {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Itself, if the program ended with `code`; otherwise panics with all it said.
    #[track_caller]
    pub fn exits_with(self, code: i32) -> Outcome {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Itself, if the program failed by its own decision; otherwise panics with all it said.
    #[track_caller]
    pub fn fails(self) -> Outcome {
        assert!(matches!(self.status.code(), Some(1..)), "{self}");
        self
    }

    /// Itself, if the program wrote `text` somewhere; otherwise panics with all it said.
    #[track_caller]
    pub fn says(self, text: &str) -> Outcome {
        let said = self.stdout.contains(text) || self.stderr.contains(text);
        assert!(said, "expected to read {text:?} in\n{self}");
        self
    }

    /// The lines of its standard output.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.stdout.lines()
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Outcome {
            command,
            status,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "$ {command}\n{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}

/// A program under way.
#[derive(Debug)]
pub struct Running {
    command: String,
    pid: Pid,
    output: Receiver<Output>,
    /// What it has written to standard error so far.
    stderr: Arc<Mutex<Vec<u8>>>,
    started: Instant,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until it has written `text` to standard error, for `limit` at most.
    #[track_caller]
    pub fn wait_until_it_says(&self, text: &str, limit: Duration) {
        eventually(
            &format!("`{}` to say {text:?}", self.command),
            limit,
            || {
                let stderr = self.stderr.lock().expect("no panic under this lock");
                String::from_utf8_lossy(&stderr)
                    .contains(text)
                    .then_some(())
            },
        );
    }

    /// Waits for its end, and says how much memory it had resident at most, in bytes.
    #[track_caller]
    pub fn wait_measuring_memory(self) -> (Outcome, u64) {
        let mut peak = 0;
        while let Some(now) = rss_peak(self.pid) {
            peak = now;
            thread::sleep(Duration::from_millis(5));
        }
        (self.wait(), peak)
    }

    /// Ends the program at once, as `kill -9` does, and says what it had written by then.
    pub fn kill(self) -> Outcome {
        // It may have ended by itself: then there is nothing to kill.
        let _ = kill_process(self.pid, Signal::KILL);
        self.wait()
    }

    /// Waits for its end. Panics when it runs for longer than [`time_max`].
    #[track_caller]
    pub fn wait(self) -> Outcome {
        let time_max = time_max();
        let left = time_max.saturating_sub(self.started.elapsed());
        let output = match self.output.recv_timeout(left) {
            Ok(output) => output,
            Err(RecvTimeoutError::Disconnected) => panic!("lost `{}`", self.command),
            Err(RecvTimeoutError::Timeout) => {
                let _ = kill_process(self.pid, Signal::KILL);
                panic!("`{}` ran for more than {time_max:?}", self.command);
            }
        };
        Outcome {
            command: self.command,
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Starts `command`, with nothing on its standard input.
#[track_caller]
pub fn start(command: &mut Command) -> Running {
    start_reading(command, Stdio::null())
}

/// Starts `command`, which reads `stdin`.
#[track_caller]
pub fn start_reading(command: &mut Command, stdin: Stdio) -> Running {
    let text = describe(command);
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start `{text}`: {error}"));
    let pid = pid_of(&child);
    let stderr = Arc::new(Mutex::new(Vec::new()));
    let copied = {
        let (pipe, stderr) = (child.stderr.take().expect("it is piped"), stderr.clone());
        thread::spawn(move || copy(pipe, &stderr))
    };
    let (sender, output) = channel();
    let all = stderr.clone();
    thread::spawn(move || {
        let mut output = child.wait_with_output().expect("a child can be waited for");
        copied.join().expect("the copier does not panic");
        output.stderr = mem::take(&mut all.lock().expect("no panic under this lock"));
        sender.send(output)
    });
    Running {
        command: text,
        pid,
        output,
        stderr,
        started: Instant::now(),
    }
}

/// Appends what comes out of `pipe` to `all`, until it ends.
fn copy(mut pipe: ChildStderr, all: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = pipe.read(&mut buffer) {
        let mut all = all.lock().expect("no panic under this lock");
        all.extend_from_slice(&buffer[..len]);
    }
}

/// Runs `command` to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    start(command).wait()
}

/// The process id of `child`.
pub fn pid_of(child: &Child) -> Pid {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .expect("a process id is positive")
}

/// The program under test: `ATTIC_NODE_BIN`, or what cargo built beside the running test.
pub fn attic_node() -> PathBuf {
    if let Some(path) = env::var_os("ATTIC_NODE_BIN") {
        return PathBuf::from(path);
    }
    let exe = env::current_exe().expect("a program knows where it is");
    let found = exe
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("attic-node"))
        .find(|p| p.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "no attic-node beside {}\nhint: cargo build --workspace --bins",
            exe.display()
        )
    })
}

/// Waits until `ready` gives something. Panics, naming `what`, when that takes longer than `limit`.
///
/// For what other processes do and cannot tell: it asks again every few milliseconds.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The environment variable that, set to `1`, lets tests pass which cannot run without root.
pub const SKIP_ROOT: &str = "ATTIC_NODE_TEST_SKIP_ROOT";

/// True when the tests run as root. Otherwise panics, so that nothing passes that did not run; or
/// says what is left out, when [`SKIP_ROOT`] asks for that.
#[track_caller]
pub fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let skip = env::var_os(SKIP_ROOT).is_some_and(|value| value == "1");
        assert!(
            skip,
            "{what} needs root\nhint: testnet/scripts/test.sh runs it with sudo; {SKIP_ROOT}=1 \
             leaves it out"
        );
        eprintln!("SKIPPED {what}: needs root");
    }
    root
}

/// Most memory the process ever had resident, in bytes; `None` once it has ended.
pub fn rss_peak(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib << 10)
}

/// What a command is, in words that a shell would take if none of them is special to it.
pub fn describe(command: &Command) -> String {
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

//! CPU time, user and kernel together, in seconds.

use std::fs;

use rustix::process::Pid;

/// Of this program so far, all threads together.
pub(super) fn of_this_process() -> f64 {
    read("self", 11)
}

/// Of all programs that this one has started and seen end, theirs included.
pub(super) fn of_children() -> f64 {
    read("self", 13)
}

/// Of another program so far, all threads together.
#[track_caller]
pub(super) fn of(pid: Pid) -> f64 {
    read(&pid.as_raw_nonzero().to_string(), 11)
}

/// Two fields of `/proc/<pid>/stat`, counted after the program's name, which may hold anything.
#[track_caller]
fn read(pid: &str, first: usize) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is running");
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks: u64 = fields
        .skip(first)
        .take(2)
        .map(|t| t.parse::<u64>().expect("ticks"))
        .sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

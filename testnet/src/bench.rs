//! Benchmarks: a release build of the node against static nginx, or against a fixed bound.
//!
//! Machines differ, so what counts is a ratio of two measurements of the same run, taken in turns.
//! Nothing here is a test: a missed figure is printed, not asserted.

use std::env;
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::fs;
use std::io::Result;
use std::path::Path;
use std::process::Command;

use clap::ValueEnum;
use serde::Serialize;

use crate::program;

mod chunking;
mod copy;
mod cpu;
mod dead;
mod huge;
pub mod locators;
mod memory;
mod mesh;
mod push;
mod s3;
mod serve;
mod upstream;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// Everything
    All,
    /// A warm NAR in one stream, bytes per second
    Nar,
    /// Narinfo hits on 16 connections, requests per second
    Narinfo,
    /// `nix copy --from` of L1 into an empty store, wall clock
    Copy,
    /// Push of L1, and push again: CPU time, stored size, requests
    Push,
    /// Resident memory while pushing and serving a NAR of 4 GiB to 16 clients
    Memory,
    /// A NAR of 100 GiB (`ATTIC_NODE_BENCH_GIB`) in, out and collected: needs 15 GiB of disk and half
    /// an hour; not among `all`
    Huge,
    /// 5 M chunks (`ATTIC_NODE_BENCH_CHUNKS` thousands) that nothing needs, collected in one run: ten
    /// minutes; not among `all`
    Dead,
    /// The chunk locator table at 10 M chunks
    Locators,
    /// What nodes of a cluster do for each other, in network namespaces
    Mesh,
    /// L1 to a bucket and back; needs Garage (`testnet/scripts/garage.sh`); not among `all`
    S3,
    /// L1 from an upstream by way of a node, and without one; not among `all`
    Upstream,
    /// Chunk lengths and compression levels: prints a table of its own; not among `all`
    Chunking,
}

/// One line of the results.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The figure of the node.
    pub ours: Figure,
    /// What it is held against.
    pub against: Option<Against>,
    /// The bound it should keep, if there is one.
    pub wanted: Option<Bound>,
}

/// A number and its unit.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The number.
    pub value: f64,
    /// Its unit, as printed.
    pub unit: &'static str,
}

/// The other side of a ratio.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    /// Who.
    pub name: String,
    /// Its figure, in the same unit.
    pub figure: Figure,
}

/// What a figure, or its ratio when it has one, should be.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum Bound {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Row {
    /// A figure by itself.
    fn alone(
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        wanted: Option<Bound>,
    ) -> Row {
        Row {
            what: what.into(),
            ours: Figure { value, unit },
            against: None,
            wanted,
        }
    }

    /// Our figure divided by the other one.
    pub fn ratio(&self) -> Option<f64> {
        self.against
            .as_ref()
            .map(|against| self.ours.value / against.figure.value)
    }

    /// Whether the bound is kept; `None` without one.
    pub fn is_met(&self) -> Option<bool> {
        let value = self.ratio().unwrap_or(self.ours.value);
        self.wanted.map(|bound| match bound {
            Bound::AtLeast(bound) => value >= bound,
            Bound::AtMost(bound) => value <= bound,
        })
    }
}

/// Measures, one subject after the other, saying on stderr what it is at.
///
/// Panics when something that it needs is missing.
pub fn run(subjects: &[Subject], repeat: u32) -> Vec<Row> {
    build_release();
    let mut rows = Vec::new();
    for subject in ORDER {
        if subjects.contains(&subject) || subjects.contains(&Subject::All) {
            let measured = subject.measure(repeat);
            measured.iter().for_each(|row| say(&row.to_string()));
            rows.extend(measured);
        }
    }
    let others = [Subject::Huge, Subject::Dead, Subject::S3, Subject::Upstream];
    for subject in others {
        if subjects.contains(&subject) {
            rows.extend(subject.measure(repeat));
        }
    }
    if subjects.contains(&Subject::Chunking) {
        chunking::print().expect("run nix-store");
    }
    rows
}

/// What `all` means, in the order of measuring.
const ORDER: [Subject; 7] = [
    Subject::Nar,
    Subject::Narinfo,
    Subject::Push,
    Subject::Copy,
    Subject::Memory,
    Subject::Locators,
    Subject::Mesh,
];

impl Subject {
    fn measure(self, repeat: u32) -> Vec<Row> {
        match self {
            Subject::Nar => serve::warm_nar(repeat),
            Subject::Narinfo => serve::narinfo_hits(repeat),
            Subject::Push => push::push(repeat),
            Subject::Copy => copy::copy(repeat),
            Subject::Memory => memory::memory(),
            Subject::Locators => locators::locators(),
            Subject::Huge => huge::huge(),
            Subject::Dead => dead::dead(),
            Subject::Mesh => mesh::mesh(repeat),
            Subject::S3 => s3::s3(),
            Subject::Upstream => upstream::upstream(repeat),
            Subject::All | Subject::Chunking => Vec::new(),
        }
    }
}

/// The rows as a Markdown table.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from("| what | attic-node | against | ratio | wanted | |\n");
    text += "|---|---|---|---|---|---|\n";
    for row in rows {
        text += &format!("{row}\n");
    }
    text
}

impl Display for Row {
    /// A line of a Markdown table.
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let against = self.against.as_ref();
        let against = against.map_or("–".into(), |a| format!("{} {}", a.figure, a.name));
        let ratio = self
            .ratio()
            .map_or("–".into(), |ratio| format!("{ratio:.2}"));
        let wanted = self.wanted.map_or("–".into(), |bound| bound.to_string());
        let met = match self.is_met() {
            None => "",
            Some(true) => "met",
            Some(false) => "**missed**",
        };
        let Row { what, ours, .. } = self;
        write!(
            f,
            "| {what} | {ours} | {against} | {ratio} | {wanted} | {met} |"
        )
    }
}

impl Display for Figure {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Figure { value, unit } = self;
        let digits = match value.abs() {
            100.0.. => 0,
            10.0.. => 1,
            _ => 2,
        };
        write!(f, "{value:.digits$}")?;
        if unit.is_empty() {
            Ok(())
        } else {
            write!(f, " {unit}")
        }
    }
}

impl Display for Bound {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self {
            Bound::AtLeast(bound) => write!(f, "≥ {bound}"),
            Bound::AtMost(bound) => write!(f, "≤ {bound}"),
        }
    }
}

/// Writes the rows to a file.
///
/// **Errors**: the file cannot be written.
pub fn write_json(rows: &[Row], file: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(rows)?;
    fs::write(file, text + "\n")
}

/// Says what is being done: a run takes many minutes.
fn say(what: &str) {
    eprintln!("bench: {what}");
}

/// The one of some measurements that 99 of 100 do not exceed: the greatest of a few.
fn percentile_99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * 99).div_ceil(100) - 1]
}

/// The middle one of some measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Builds the program under test when cargo started us; otherwise what lies beside us is measured.
fn build_release() {
    if cfg!(debug_assertions) {
        panic!("measure a release build: cargo run --release -p testnet");
    }
    if let Some(cargo) = env::var_os("CARGO") {
        let args = ["build", "--release", "--package", "attic-node"];
        program::run(Command::new(cargo).args(args)).succeeds();
    }
}

//! `testnet bench`: measures a release build against what it should reach.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use testnet::bench::{self, Subject, locators};

/// Tools around a real attic-node
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Measure, print a Markdown table, and write the figures as JSON
    ///
    /// Needs root, nginx, wrk, Nix and corpus S and L1: `testnet/scripts/prepare.sh bench` gets
    /// them. Each ratio is between two measurements of the same run, taken in turns.
    Bench {
        /// What to measure
        #[arg(value_enum, required = true)]
        subjects: Vec<Subject>,
        /// Repetitions of each measurement; the median counts
        #[arg(long, default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
        repeat: u32,
        /// Where to write the figures
        #[arg(long, value_name = "FILE", default_value = "bench.json")]
        json: PathBuf,
    },
    /// A step of `bench locators`, in a process of its own
    #[command(hide = true)]
    Locators {
        /// Which
        #[arg(value_enum)]
        step: Step,
        /// Where the table is
        dir: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Step {
    Fill,
    Read,
}

fn main() -> ExitCode {
    match Args::parse().verb {
        Verb::Bench {
            subjects,
            repeat,
            json,
        } => bench(&subjects, repeat, &json),
        Verb::Locators {
            step: Step::Fill,
            dir,
        } => {
            locators::fill(&dir);
            ExitCode::SUCCESS
        }
        Verb::Locators {
            step: Step::Read,
            dir,
        } => {
            println!("{}", locators::read(&dir));
            ExitCode::SUCCESS
        }
    }
}

fn bench(subjects: &[Subject], repeat: u32, json: &Path) -> ExitCode {
    let rows = bench::run(subjects, repeat);
    println!("{}", bench::table(&rows));
    match bench::write_json(&rows, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: write {}: {error}", json.display());
            ExitCode::FAILURE
        }
    }
}

//! `testnet up`: a cluster to play with. `testnet sim`: a simulated one. `testnet bench`: measures a
//! release build against what it should reach.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

use testnet::bench::{self, Subject, locators};
use testnet::cluster::Cluster;
use testnet::sim::{self, Mutant, Options, Outcome, Scale, Scenario, report};
use testnet::villain::{self, VillainArgs};

/// Tools around a real attic-node
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a cluster of real nodes, show where they are, and keep it until ^C
    ///
    /// As root each node is in a network namespace of its own, otherwise on a loopback address. What
    /// the nodes hold is gone afterwards.
    Up {
        /// How many
        #[arg(long, default_value = "4", value_parser = clap::value_parser!(u8).range(1..))]
        nodes: u8,
    },
    /// Let a scenario happen to a simulated cluster, in virtual time
    ///
    /// Prints a table of what was measured. A run that breaks an invariant is named with the command
    /// that repeats it, and the exit status is 1.
    Sim(SimArgs),
    /// Measure, print a Markdown table, and write the figures as JSON
    ///
    /// Needs root, nginx, wrk, iperf3, Nix and corpus S and L1: `testnet/scripts/prepare.sh bench` gets
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
    /// Join a cluster and misbehave, until killed
    #[command(hide = true)]
    Villain(VillainArgs),
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

#[derive(Debug, Parser)]
struct SimArgs {
    /// Name of a file in testnet/scenarios, path of another, or `all`
    #[arg(long)]
    scenario: String,
    /// How many nodes, if not as many as the scenario says
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    nodes: Option<u16>,
    /// Of everything that is left to chance; the first of several
    #[arg(long, default_value = "1")]
    seed: u64,
    /// How many seeds
    #[arg(long, default_value = "1")]
    seeds: u64,
    /// Which of the scenario's sizes
    #[arg(long, value_enum, default_value = "full")]
    size: Scale,
    /// Break all nodes like this
    #[arg(long, value_enum)]
    mutant: Option<Mutant>,
    /// Seeds at a time; as many as there are processors if not given
    #[arg(long)]
    threads: Option<usize>,
    /// Where to write JSON and HTML
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Step {
    Fill,
    Read,
}

fn main() -> ExitCode {
    match Args::parse().verb {
        Verb::Up { nodes } => up(nodes.into()),
        Verb::Sim(args) => match simulate(&args) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        },
        Verb::Bench {
            subjects,
            repeat,
            json,
        } => bench(&subjects, repeat, &json),
        Verb::Villain(args) => misbehave(args),
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
            say(locators::read(&dir));
            ExitCode::SUCCESS
        }
    }
}

/// Prints a line. Whoever reads it may have read enough.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn up(nodes: usize) -> ExitCode {
    let kept = Runtime::new().and_then(|runtime| {
        runtime.block_on(async {
            // Caught from the beginning: an interrupted start is cleaned up as well.
            let mut interrupted = signal(SignalKind::interrupt())?;
            let mut terminated = signal(SignalKind::terminate())?;
            let cluster = spawn_blocking(move || Cluster::joined(nodes)).await?;
            say(cluster.table());
            tokio::select! {
                _ = interrupted.recv() => {}
                _ = terminated.recv() => {}
            }
            Ok(())
        })
    });
    match kept {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn misbehave(args: VillainArgs) -> ExitCode {
    let ended = Runtime::new().map(|runtime| runtime.block_on(villain::run(args)));
    match ended {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing was wrong.
fn simulate(args: &SimArgs) -> Result<bool, String> {
    let scenarios = match args.scenario.as_str() {
        "all" => Scenario::all()?,
        name => vec![Scenario::load(name)?],
    };
    let options = Options {
        seed: args.seed,
        scale: args.size,
        nodes: args.nodes.map(usize::from),
        mutant: args.mutant,
    };
    let threads = args.threads.unwrap_or_else(sim::threads);
    let mut good = true;
    for scenario in &scenarios {
        let outcomes = sim::run_seeds(scenario, &options, args.seeds, threads);
        say(report::table(scenario, &outcomes));
        eprint!("{}", report::failures(&outcomes));
        if let Some(dir) = &args.out {
            let written = report::write(dir, scenario, &outcomes);
            written.map_err(|error| format!("write {}: {error}", dir.display()))?;
        }
        good &= outcomes.iter().all(Outcome::is_good);
    }
    Ok(good)
}

fn bench(subjects: &[Subject], repeat: u32, json: &Path) -> ExitCode {
    let rows = bench::run(subjects, repeat);
    say(bench::table(&rows));
    match bench::write_json(&rows, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: write {}: {error}", json.display());
            ExitCode::FAILURE
        }
    }
}

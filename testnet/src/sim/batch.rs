//! Many seeds at once, each in a world of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::sim::outcome::{Options, Outcome};
use crate::sim::run;
use crate::sim::scenario::Scenario;

/// Runs `scenario` under `seeds` seeds from that of `options` on, on `threads` threads.
///
/// A run that panics is an outcome with a violation that says so. **Order**: by seed.
pub fn run_seeds(
    scenario: &Scenario,
    options: &Options,
    seeds: u64,
    threads: usize,
) -> Vec<Outcome> {
    let next = AtomicU64::new(options.seed);
    let end = options.seed + seeds;
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let options = Options { seed, ..*options };
                    let outcome = run_caught(scenario, &options);
                    outcomes
                        .lock()
                        .expect("no panic under this lock")
                        .push(outcome);
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().expect("no panic under this lock");
    outcomes.sort_by_key(|outcome: &Outcome| outcome.seed);
    outcomes
}

/// As many threads as the machine has processors.
pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn run_caught(scenario: &Scenario, options: &Options) -> Outcome {
    let caught = catch_unwind(AssertUnwindSafe(|| run(scenario, options)));
    caught.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Outcome::panicked(scenario, options, text.unwrap_or_default())
    })
}

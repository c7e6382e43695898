//! Nodes that are broken on purpose: the oracle notices each, and says which claim does not hold.

use std::collections::BTreeSet;

use testnet::sim::{self, Mutant, Options, Scenario};

use super::options;

/// Runs a scenario whose nodes are all broken, under a few seeds: one of `claims` must be violated
/// in each of them.
#[track_caller]
fn is_caught(mutant: Mutant, scenario: &str, claims: &[&str]) {
    let scenario = Scenario::load(scenario).expect("the scenario can be read");
    for seed in 1..=3 {
        let options = Options {
            mutant: Some(mutant),
            ..options(seed)
        };
        let outcome = sim::run(&scenario, &options);
        let violated = outcome.violations.iter().map(|violation| violation.claim);
        let violated: BTreeSet<&str> = violated.collect();
        let caught = claims.iter().any(|claim| violated.contains(claim));
        assert!(caught, "{mutant:?}, seed {seed}: {:?}", outcome.violations);
    }
}

#[test]
fn who_does_not_verify_chunks_is_caught() {
    is_caught(Mutant::AcceptsWrongBytes, "byzantine-bytes", &["I4"]);
}

#[test]
fn who_does_not_look_at_signatures_is_caught() {
    is_caught(Mutant::BelievesAnyRecord, "byzantine-records", &["I3"]);
}

#[test]
fn who_forgets_removals_is_caught() {
    is_caught(Mutant::ForgetsRemovals, "crash-restart", &["I5"]);
}

#[test]
fn who_relies_on_gossip_is_caught() {
    is_caught(Mutant::NeverCompares, "crash-restart", &["settled"]);
}

#[test]
fn who_lets_anybody_in_is_caught() {
    is_caught(Mutant::AdmitsAnybody, "revoked", &["revoked"]);
}

#[test]
fn who_writes_before_it_knows_its_log_is_caught() {
    is_caught(Mutant::WritesBeforeAsking, "restored-disk", &["honest"]);
}

#[test]
fn who_goes_back_in_time_is_caught() {
    is_caught(Mutant::StartsFromOldView, "crash-restart", &["I5"]);
}

#[test]
fn who_forgets_nothing_is_caught() {
    is_caught(Mutant::RemembersAllGossip, "sleeping-laptop", &["bounds"]);
}

#[test]
fn whose_state_depends_on_more_than_the_logs_is_caught() {
    is_caught(Mutant::FoldsByArrival, "convergence", &["L2"]);
}

#[test]
fn every_mutant_has_its_test() {
    // What `is_caught` is called with above.
    let source = include_str!("mutants.rs");
    for mutant in Mutant::ALL {
        let call = format!("is_caught(Mutant::{mutant:?},");
        assert!(source.contains(&call), "{mutant:?}");
    }
}

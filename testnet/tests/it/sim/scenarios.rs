//! One test for each scenario. What must come of it is said in its file.

use testnet::sim::{self, Scale, Scenario};

use super::{holds, options};

#[test]
fn p11_what_is_pushed_is_shown_everywhere_within_two_seconds() {
    let outcomes = holds("convergence");
    assert!(super::most(&outcomes, "visible_max_ms") <= 2_000.0);
}

#[test]
fn p15_what_is_removed_is_gone_within_five_seconds() {
    holds("removal");
}

#[test]
fn p15_what_was_removed_stays_removed_when_a_part_comes_back() {
    holds("removal-vs-partition");
}

#[test]
fn c1_who_joins_late_knows_and_gets_everything() {
    holds("late-joiner");
}

#[test]
fn c1_who_was_taken_out_gets_nothing_and_is_not_heard() {
    holds("revoked");
}

#[test]
fn c3_an_office_that_comes_and_goes_agrees_within_thirty_seconds() {
    holds("office-churn");
}

#[test]
fn c3_crashes_and_lost_power_lose_nothing_for_long() {
    holds("crash-restart");
}

#[test]
fn c3_a_full_disk_makes_nobody_say_what_is_not_so() {
    holds("disk-full");
}

#[test]
fn c3_a_laptop_that_was_closed_catches_up() {
    holds("sleeping-laptop");
}

#[test]
fn c3_wrong_clocks_decide_nothing_but_who_may_connect() {
    holds("clock-skew");
}

#[test]
fn c3_without_any_gossip_everybody_still_learns_everything() {
    holds("gossip-silent");
}

#[test]
fn c4_a_crowd_serves_itself() {
    holds("flash-crowd");
}

#[test]
fn c4_who_holds_less_than_it_said_costs_no_download() {
    holds("stale-holdings");
}

#[test]
fn c6_other_bytes_than_were_asked_for_are_never_taken() {
    holds("byzantine-bytes");
}

#[test]
fn c6_forged_replayed_and_contradicting_records_change_nothing() {
    holds("byzantine-records");
}

#[test]
fn c9_halves_of_an_office_go_on_and_agree_within_ten_seconds_of_their_reunion() {
    holds("partition");
}

#[test]
fn c9_a_wall_that_stands_one_way_blocks_nobody_for_good() {
    holds("one-way");
}

#[test]
fn c9_copies_outlive_who_pushed() {
    holds("replicas");
}

#[test]
fn i5_a_disk_that_was_set_back_makes_nobody_a_forger() {
    holds("restored-disk");
}

#[test]
fn g13_an_idle_office_is_quiet() {
    holds("idle");
}

#[test]
fn c13_one_seed_is_one_run_to_the_last_message() {
    for scenario in Scenario::all().expect("all scenarios can be read") {
        let run = |seed| sim::run(&scenario, &options(seed));
        let first = run(7);
        assert_eq!(first, run(7), "{}", scenario.name);
        assert_ne!(first.trace, run(8).trace, "{}", scenario.name);
        assert!(first.events > 0, "{}", scenario.name);
    }
}

#[test]
fn c13_p11_sixty_four_nodes_show_what_is_pushed_within_two_seconds() {
    let scenario = Scenario::load("convergence").expect("the scenario can be read");
    let options = sim::Options {
        nodes: Some(64),
        scale: Scale::Small,
        ..options(1)
    };
    let outcome = sim::run(&scenario, &options);
    assert!(outcome.is_good(), "{:?}", outcome.violations);
    assert_eq!(outcome.nodes, 64);
    assert!(outcome.figures["visible_max_ms"] <= 2_000.0);
}

//! Downloads from many: how long they take, by what the lines alone would take.

use testnet::sim::Scenario;

use super::{all_good, altered, most};

/// The first four hold a NAR and send with 250 Mbit/s each; the fifth fetches it.
fn four_to_one(more: &str) -> Scenario {
    let text = format!(
        r#"
        about = "Four uplinks and one who fetches."
        [cluster]
        nodes = 5
        up = "250Mbit/s"
        down = "1Gbit/s"
        {more}
        [[step]]
        at = "5s"
        push = {{ by = "0", paths = 1, size = "64MB" }}
        [[step]]
        at = "10s"
        fetch = {{ by = "1..4" }}
        [[step]]
        at = "59s"
        measure = {{}}
        [[step]]
        at = "60s"
        fetch = {{ by = "4" }}
        [expect]
        settled = "60s"
        "#
    );
    Scenario::parse("four-to-one", &text).expect("a scenario")
}

/// One holder, who sends with `up`, `latency` away from one who fetches.
fn one_to_one(up: &str, latency: &str, size: &str) -> Scenario {
    let text = format!(
        r#"
        about = "One who holds it and one who fetches."
        [cluster]
        nodes = 2
        up = "{up}"
        [network]
        latency = "{latency}"
        jitter = 0.0
        [[step]]
        at = "5s"
        push = {{ by = "0", paths = 1, size = "{size}" }}
        [[step]]
        at = "10s"
        fetch = {{ by = "1" }}
        [expect]
        settled = "60s"
        "#
    );
    Scenario::parse("one-to-one", &text).expect("a scenario")
}

#[test]
fn g7_four_uplinks_add_up() {
    let outcomes = all_good(&four_to_one(""), 5);
    assert!(1.0 / most(&outcomes, "completion_max") >= 0.9);
}

#[test]
fn g7_a_small_read_ahead_still_streams() {
    let outcomes = all_good(&four_to_one("read_ahead = \"16MiB\""), 5);
    assert!(1.0 / most(&outcomes, "completion_max") >= 0.9);
}

#[test]
fn g5_fifty_milliseconds_away_one_source_fills_the_line() {
    let outcomes = all_good(&one_to_one("1Gbit/s", "25ms", "1GiB"), 1);
    assert!(1.0 / most(&outcomes, "completion_max") >= 0.67);
}

#[test]
fn a_lone_slow_source_is_kept() {
    let outcomes = all_good(&one_to_one("2Mbit/s", "200us", "4MB"), 3);
    assert!(most(&outcomes, "completion_max") <= 1.5);
    assert_eq!(most(&outcomes, "failed_fetches"), 0.0);
}

#[test]
fn g8_a_source_that_stops_costs_the_reader_little() {
    let silent = all_good(&Scenario::load("stalled-peer").expect("a scenario"), 50);
    let told = altered(
        "stalled-peer",
        "sleep = { who = \"1\" }",
        "crash = { who = \"1\" }",
    );
    let told = all_good(&told, 50);
    let added = silent.iter().zip(&told).map(|(silent, told)| {
        let more = |figure: &str| silent.figures[figure] - told.figures[figure];
        // 64 MB at a gigabit per second.
        more("reader_wait_p99_ms").max(more("completion_max") * 512.0)
    });
    let mut added: Vec<f64> = added.collect();
    added.sort_unstable_by(f64::total_cmp);
    println!("added ms: median {:.0}, most {:.0}", added[25], added[49]);
    assert!(added[49] <= 300.0, "{added:?}");
    assert!(most(&silent, "hedged_share") <= 0.03);
}

#[test]
fn c5_half_of_the_peers_black_holed_costs_less_than_twice() {
    let holed = all_good(&Scenario::load("black-hole").expect("a scenario"), 50);
    let healthy = altered("black-hole", "sleep = { who = \"4..8\" }", "heal = {}");
    let healthy = all_good(&healthy, 50);
    let times = holed.iter().zip(&healthy).map(|(holed, healthy)| {
        holed.figures["completion_max"] / healthy.figures["completion_max"]
    });
    let mut times: Vec<f64> = times.collect();
    times.sort_unstable_by(f64::total_cmp);
    println!("of healthy: median {:.2}, most {:.2}", times[25], times[49]);
    assert!(times[49] <= 2.0, "{times:?}");
}

#[test]
fn c6_liars_alone_deliver_nothing() {
    let text = r#"
        about = "Nobody who holds it is honest, and who pushed it is gone."
        [cluster]
        nodes = 4
        manners = { "1" = "lies", "2" = "boasts" }
        [[step]]
        at = "5s"
        push = { by = "0", paths = 1, size = "8MB" }
        [[step]]
        at = "10s"
        crash = { who = "0" }
        [[step]]
        at = "12s"
        fetch = { by = "3" }
        [[step]]
        at = "2min"
        heal = {}
        [expect]
        settled = "40s"
        [expect.at_least]
        failed_fetches = 1.0
        bans = 1.0
        "#;
    let scenario = Scenario::parse("liars-alone", text).expect("a scenario");
    let outcomes = all_good(&scenario, 3);
    for outcome in &outcomes {
        assert_eq!(
            outcome.figures.get("completion_max"),
            None,
            "nothing was completed"
        );
    }
}

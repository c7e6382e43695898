use super::*;
use crate::identity::Identity;

fn node(seed: u8) -> NodeId {
    Identity::from_seed([seed; 32]).node_id()
}

fn at(port: u16) -> Multiaddr {
    format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()
}

fn named(port: u16, node: NodeId) -> Multiaddr {
    at(port).with(Protocol::P2p(node.peer_id().unwrap()))
}

fn dialer() -> (Dialer, Instant) {
    (Dialer::new(node(0), 7), Instant::now())
}

/// Lets everything that is due within `time` fail; how many attempts that made.
fn fail_for(dialer: &mut Dialer, start: Instant, time: Duration) -> usize {
    let mut count = 0;
    while let Some(wake) = dialer.next_wake().filter(|wake| *wake <= start + time) {
        for dial in dialer.due(wake, usize::MAX) {
            dialer.failed(wake, &dial.target);
            count += 1;
        }
    }
    count
}

#[test]
fn a_configured_address_is_dialed_at_once_and_not_twice() {
    let (mut dialer, now) = dialer();
    dialer.learn(now, &named(1, node(1)), Origin::Configured);
    dialer.learn(now, &named(2, node(1)), Origin::Configured);
    let due = dialer.due(now, 10);
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].target, Target::Node(node(1)));
    assert_eq!(due[0].addresses, [at(1), at(2)]);
    assert_eq!(dialer.due(now, 10), []);
    assert_eq!(dialer.next_wake(), None);
}

#[test]
fn pauses_grow_and_are_bounded() {
    let (mut dialer, now) = dialer();
    dialer.learn(now, &named(1, node(1)), Origin::Configured);
    let first_minute = fail_for(&mut dialer, now, Duration::from_secs(60));
    assert!((4..=8).contains(&first_minute), "{first_minute}");
    let day = Duration::from_secs(24 * 3600);
    let count = fail_for(&mut dialer, now, day);
    // Every 150 to 450 seconds.
    assert!((192..=600).contains(&count), "{count}");
}

#[test]
fn a_refusal_is_not_asked_again_within_half_a_minute() {
    let (mut dialer, now) = dialer();
    dialer.learn(now, &named(1, node(1)), Origin::Configured);
    let due = dialer.due(now, 1);
    dialer.refused(now, &due[0].target);
    assert!(dialer.next_wake().unwrap() >= now + PAUSE_REFUSED / 2);
    dialer.learn(now, &named(2, node(1)), Origin::Discovered);
    assert!(dialer.next_wake().unwrap() >= now + PAUSE_REFUSED / 2);
}

#[test]
fn a_lost_peer_is_dialed_again_within_a_second() {
    let (mut dialer, now) = dialer();
    dialer.learn(now, &at(1), Origin::Configured);
    let due = dialer.due(now, 1);
    dialer.connected(now, node(1), Some(&due[0].target));
    assert_eq!(dialer.next_wake(), None);
    dialer.disconnected(now, node(1));
    assert!(dialer.next_wake().unwrap() <= now + Duration::from_secs(1));
}

/// Ten minutes without any of them, and then one is there: all are tried at once. Without a sign, within
/// seconds.
#[test]
fn c9_who_was_lost_is_found_soon_after_a_partition_heals() {
    let (mut dialer, now) = dialer();
    for seed in 1..=4 {
        dialer.learn(now, &named(1, node(seed)), Origin::Remembered);
        dialer.connected(now, node(seed), None);
        dialer.disconnected(now, node(seed));
    }
    // One who was never met.
    dialer.learn(now, &named(1, node(5)), Origin::Remembered);
    fail_for(&mut dialer, now, Duration::from_secs(600));
    let healed = now + Duration::from_secs(600);
    let mut waits = Vec::new();
    for seed in 1..=4 {
        let entry = &dialer.targets[&Target::Node(node(seed))];
        let State::Waiting(at) = entry.state else {
            panic!("it is waited for");
        };
        waits.push(at.saturating_duration_since(healed));
    }
    assert!(
        waits
            .iter()
            .all(|wait| *wait <= PAUSE_LOST_MAX.mul_f64(1.5))
    );
    dialer.connected(healed, node(1), None);
    assert_eq!(dialer.due(healed + SPREAD, 100).len(), 4);
}

#[test]
fn a_node_that_refuses_is_not_tried_again_because_another_one_is_back() {
    let (mut dialer, now) = dialer();
    for seed in 1..=2 {
        dialer.learn(now, &named(1, node(seed)), Origin::Remembered);
        dialer.connected(now, node(seed), None);
        dialer.disconnected(now, node(seed));
    }
    let second = now + Duration::from_secs(1);
    let due = dialer.due(second, 10);
    assert_eq!(due.len(), 2);
    dialer.refused(second, &Target::Node(node(2)));
    dialer.failed(second, &Target::Node(node(1)));
    let mut at = second;
    for _ in 0..FAILURES_LOST {
        at += Duration::from_secs(10);
        for dial in dialer.due(at, 10) {
            dialer.failed(at, &dial.target);
        }
    }
    dialer.connected(at, node(1), None);
    assert!(dialer.next_wake().unwrap() >= second + PAUSE_REFUSED / 2);
}

#[test]
fn a_changed_network_makes_everybody_due() {
    let (mut dialer, now) = dialer();
    for seed in 1..=8 {
        dialer.learn(now, &named(1, node(seed)), Origin::Configured);
    }
    fail_for(&mut dialer, now, Duration::from_secs(3600));
    let later = now + Duration::from_secs(3600);
    dialer.network_changed(later);
    assert_eq!(dialer.due(later + SPREAD, 100).len(), 8);
}

#[test]
fn of_two_nodes_that_discover_each_other_one_waits() {
    let now = Instant::now();
    let first = |me: u8, other: u8| {
        let mut dialer = Dialer::new(node(me), 7);
        dialer.learn(now, &named(1, node(other)), Origin::Discovered);
        dialer.next_wake().unwrap() - now
    };
    let (one, two) = (first(1, 2), first(2, 1));
    assert!(one.min(two) < SPREAD);
    assert!(one.max(two) >= COURTESY);
}

#[test]
fn nonsense_is_not_learnt() {
    let (mut dialer, now) = dialer();
    for text in [
        "/ip4/10.0.0.1",
        "/ip4/0.0.0.0/tcp/1",
        "/ip6/::/tcp/1",
        "/ip4/10.0.0.1/tcp/0",
        "/ip4/10.0.0.1/udp/1/quic-v1",
        "/ip4/224.0.0.1/tcp/1",
        "/ip4/10.0.0.1/tcp/1/tcp/2",
        "/dns4/host",
        "/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
    ] {
        dialer.learn(now, &text.parse().unwrap(), Origin::Configured);
    }
    dialer.learn(now, &named(1, node(0)), Origin::Configured);
    let long = format!("/dns4/{}/tcp/1", "a".repeat(ADDRESS_LEN_MAX));
    dialer.learn(now, &long.parse().unwrap(), Origin::Configured);
    assert_eq!(dialer.known().count(), 0);
}

#[test]
fn strangers_do_not_push_out_who_is_configured_or_new() {
    let (mut dialer, now) = dialer();
    dialer.learn(now, &named(1, node(1)), Origin::Configured);
    for port in 1..=2 * u16::try_from(TARGETS_MAX).unwrap() {
        dialer.learn(now, &at(port), Origin::Discovered);
    }
    assert_eq!(dialer.targets.len(), TARGETS_MAX);
    assert!(dialer.targets.contains_key(&Target::Node(node(1))));
    for port in 1..=100 {
        dialer.learn(now, &named(port, node(1)), Origin::Remembered);
    }
    assert_eq!(dialer.addresses(node(1)).len(), ADDRESSES_MAX);
}

#[test]
fn what_is_known_can_be_learnt_again() {
    let (mut dialer, now) = dialer();
    dialer.learn(now, &named(1, node(1)), Origin::Configured);
    dialer.learn(now, &named(2, node(2)), Origin::Remembered);
    dialer.learn(now, &at(3), Origin::Configured);
    let mut again = Dialer::new(node(0), 7);
    for (address, origin) in dialer.known() {
        again.learn(now, &address, origin);
    }
    assert!(again.known().eq(dialer.known()));
}

#[test]
fn attempts_at_a_time_are_bounded() {
    let (mut dialer, now) = dialer();
    for port in 1..=100 {
        dialer.learn(now, &at(port), Origin::Configured);
    }
    assert_eq!(dialer.due(now, 3).len(), 3);
    assert_eq!(dialer.due(now, 100).len(), DIALS_MAX - 3);
    assert_eq!(dialer.due(now, 100).len(), 0);
}

/// A stranger who makes up nodes makes this one dial a few of them, not all.
#[test]
fn discovered_nodes_are_dialed_a_few_at_a_time() {
    let (mut dialer, now) = dialer();
    for number in 0..200u32 {
        let mut seed = [9; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        let peer = Identity::from_seed(seed).peer_id();
        let address = format!("/ip4/10.1.2.3/tcp/7746/p2p/{peer}");
        dialer.learn(now, &address.parse().unwrap(), Origin::Discovered);
    }
    let mut dialed = |after: u64| {
        let now = now + Duration::from_secs(after);
        let mut count = 0;
        loop {
            let due = dialer.due(now, usize::MAX);
            count += due.len();
            if due.is_empty() {
                return count;
            }
            due.iter()
                .for_each(|dial| dialer.refused(now, &dial.target));
        }
    };
    let at_once = dialed(1);
    assert!((32..=43).contains(&at_once), "{at_once}");
    let later = dialed(3);
    assert!((10..=21).contains(&later), "{later}");
    assert!(dialed(30) >= 100, "all in time");
}

/// Whoever comes after however many made-up nodes waits a minute at most.
#[test]
fn made_up_nodes_delay_others_by_a_minute_at_most() {
    let (mut dialer, now) = dialer();
    let turns = (0..100_000).map(|_| dialer.turn_of_stranger(now));
    assert!(turns.max() <= Some(now + Duration::from_secs(60)));
}

#[test]
fn what_a_peer_tells_pushes_out_no_other_address() {
    let (mut dialer, now) = dialer();
    for port in 1..=ADDRESSES_MAX as u16 {
        dialer.learn(now, &named(port, node(1)), Origin::Remembered);
    }
    let known = dialer.addresses(node(1)).to_vec();
    dialer.learn(now, &named(99, node(1)), Origin::Told);
    assert_eq!(dialer.addresses(node(1)), known);
}

#[test]
fn whom_a_peer_tells_of_is_dialed() {
    let (mut dialer, now) = dialer();
    dialer.learn(now, &named(1, node(1)), Origin::Told);
    let due = dialer.due(now + COURTESY + SPREAD, 10);
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].target, Target::Node(node(1)));
    assert_eq!(due[0].addresses, [at(1)]);
}

use proptest::prelude::*;

use super::*;
use crate::peer_stats::BANNED_FOR;

const CHUNK_LEN: u32 = 100_000;

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 32])
}

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A download of so many chunks, and its table.
fn fetch(chunks: usize, read_ahead: u64) -> (Fetch, PeerTable) {
    let options = FetchOptions {
        me: node(200),
        nar: NarHash::from_bytes([1; 32]),
        layout: Arc::new(Layout::new(vec![CHUNK_LEN; chunks]).unwrap()),
        read_ahead,
        seed: 1,
    };
    (Fetch::new(at(0), options), PeerTable::new())
}

fn source(number: u8, tier: Tier) -> Event {
    Event::Source {
        node: node(number),
        tier,
        have: Have::Complete,
    }
}

/// Everything asked for: whom, which request, which chunks.
fn asked(actions: &[Action]) -> Vec<(NodeId, RequestId, Vec<u32>)> {
    let asked = actions.iter().filter_map(|action| match action {
        Action::Request {
            node,
            request,
            ranges,
            ..
        } => {
            let chunks = ranges
                .iter()
                .flat_map(|range| range.first..range.first + range.count);
            Some((*node, *request, chunks.collect()))
        }
        _ => None,
    });
    asked.collect()
}

/// Answers every request at once until nothing is asked for; returns all chunks in order of asking.
fn answer_all(fetch: &mut Fetch, peers: &mut PeerTable, mut actions: Vec<Action>) -> Vec<u32> {
    let (mut order, mut now) = (Vec::new(), 1);
    while let Some((node, request, chunks)) = asked(&actions).first().cloned() {
        actions.remove(
            actions
                .iter()
                .position(|a| matches!(a, Action::Request { .. }))
                .unwrap(),
        );
        for chunk in chunks {
            now += 1;
            order.push(chunk);
            let event = Event::Arrived {
                node,
                request,
                chunk,
            };
            actions.extend(fetch.handle(at(now), event, peers));
        }
    }
    assert!(actions.contains(&Action::Done), "{actions:?}");
    order
}

#[test]
fn one_source_delivers_everything_once_and_the_window_first() {
    let (mut fetch, mut peers) = fetch(200, u64::MAX);
    let actions = fetch.handle(at(0), source(1, Tier::Lan), &mut peers);
    let mut order = answer_all(&mut fetch, &mut peers, actions);
    assert_eq!(order[..20], (0..20).collect::<Vec<_>>());
    order.sort_unstable();
    assert_eq!(order, (0..200).collect::<Vec<_>>());
    assert!(fetch.held().is_full());
    assert_eq!(peers.standing(at(0), &node(1)).outstanding, 0);
}

#[test]
fn nothing_beyond_the_read_ahead_is_asked_for() {
    let (mut fetch, mut peers) = fetch(200, 0);
    let mut actions = fetch.handle(at(0), source(1, Tier::Lan), &mut peers);
    let segment = fetch.layout.chunks_of(0);
    let mut got = Vec::new();
    while let Some((node, request, chunks)) = asked(&actions).pop() {
        actions.clear();
        for chunk in chunks {
            got.push(chunk);
            let event = Event::Arrived {
                node,
                request,
                chunk,
            };
            actions.extend(fetch.handle(at(1), event, &mut peers));
        }
    }
    assert_eq!(got, segment.clone().collect::<Vec<_>>());
    let event = Event::Reader { chunk: segment.end };
    assert!(!asked(&fetch.handle(at(2), event, &mut peers)).is_empty());
}

#[test]
fn the_nearest_source_is_asked() {
    let (mut fetch, mut peers) = fetch(200, u64::MAX);
    let have = Have::Partial(SegmentSet::empty(fetch.layout.segments()));
    let nothing_yet = Event::Source {
        node: node(3),
        tier: Tier::Origin,
        have,
    };
    fetch.handle(at(0), nothing_yet, &mut peers);
    fetch.handle(at(0), source(1, Tier::Lan), &mut peers);
    let later = fetch.handle(at(1), source(2, Tier::Wan), &mut peers);
    assert!(asked(&later).is_empty());
    // When it goes, the next one takes over.
    let gone = fetch.handle(at(2), Event::Gone { node: node(1) }, &mut peers);
    assert!(asked(&gone).iter().all(|(whom, ..)| *whom == node(2)));
    assert!(!asked(&gone).is_empty());
}

#[test]
fn a_lie_bans_once_and_its_author_is_never_asked_again() {
    let (mut fetch, mut peers) = fetch(200, u64::MAX);
    fetch.handle(at(0), source(1, Tier::Lan), &mut peers);
    let bad = || Event::Bad { node: node(1) };
    let why = BanReason::WrongBytes;
    let ban = Action::Ban {
        node: node(1),
        time: BANNED_FOR,
        why,
    };
    assert!(fetch.handle(at(1), bad(), &mut peers).contains(&ban));
    assert!(!fetch.handle(at(2), bad(), &mut peers).contains(&ban));
    let again = fetch.handle(at(3), source(1, Tier::Lan), &mut peers);
    assert!(asked(&again).is_empty());
    assert_eq!(peers.standing(at(3), &node(1)).outstanding, 0);
}

#[test]
fn a_busy_source_is_asked_again_when_it_said() {
    let (mut fetch, mut peers) = fetch(20, u64::MAX);
    let actions = fetch.handle(at(0), source(1, Tier::Lan), &mut peers);
    let (node, request, _) = asked(&actions).remove(0);
    let busy = Event::Busy {
        node,
        request,
        retry: at(100),
    };
    assert!(asked(&fetch.handle(at(1), busy, &mut peers)).is_empty());
    assert!(asked(&fetch.handle(at(60), Event::Tick, &mut peers)).is_empty());
    assert!(!asked(&fetch.handle(at(102), Event::Tick, &mut peers)).is_empty());
}

#[test]
fn without_sources_more_are_looked_for_and_then_it_fails() {
    let (mut fetch, mut peers) = fetch(20, u64::MAX);
    let mut searches = 0;
    for now in (0..10_000).step_by(100) {
        let actions = fetch.handle(at(now), Event::Tick, &mut peers);
        searches += actions
            .iter()
            .filter(|a| **a == Action::FindSources)
            .count();
        if actions.contains(&Action::Failed(FetchError::NoSource)) {
            assert_eq!(at(now), NO_SOURCE_AFTER);
            assert!((3..=6).contains(&searches), "{searches}");
            return;
        }
    }
    panic!("never failed");
}

#[test]
fn a_silent_source_is_retried_when_it_is_the_only_one_and_then_given_up() {
    let (mut fetch, mut peers) = fetch(20, u64::MAX);
    fetch.handle(at(0), source(1, Tier::Lan), &mut peers);
    let mut requests = 0;
    for now in (0..60_000).step_by(20) {
        let actions = fetch.handle(at(now), Event::Tick, &mut peers);
        requests += asked(&actions).len();
        if actions.contains(&Action::Failed(FetchError::NoProgress)) {
            assert_eq!(at(now), NO_PROGRESS_AFTER);
            assert!(requests > 10);
            assert_eq!(peers.standing(at(now), &node(1)).outstanding, 0);
            return;
        }
    }
    panic!("never failed");
}

#[test]
fn what_is_held_already_is_not_asked_for() {
    let (mut fetch, mut peers) = fetch(20, u64::MAX);
    fetch.hold(0..19);
    let actions = fetch.handle(at(0), source(1, Tier::Lan), &mut peers);
    assert_eq!(asked(&actions)[0].2, [19]);
    let actions = fetch.handle(at(1), Event::Present { chunk: 19 }, &mut peers);
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, Action::Cancel { .. }))
    );
    assert_eq!(actions.last(), Some(&Action::Done));
}

fn event() -> impl Strategy<Value = Event> {
    let who = || (0u8..5).prop_map(node);
    let request = || (0u32..40).prop_map(RequestId);
    let chunk = || 0u32..210;
    let have = prop_oneof![
        Just(Have::Nothing),
        Just(Have::Complete),
        (0u32..45).prop_map(|len| Have::Partial(SegmentSet::empty(len))),
        (0u32..45).prop_map(|len| Have::Partial(SegmentSet::full(len))),
    ];
    let tier = prop_oneof![Just(Tier::Lan), Just(Tier::Wan), Just(Tier::Origin)];
    prop_oneof![
        2 => (who(), tier, have).prop_map(|(node, tier, have)| Event::Source { node, tier, have }),
        1 => (who(), prop::collection::vec(0u32..50, 0..9))
            .prop_map(|(node, segments)| Event::Gained { node, segments }),
        1 => who().prop_map(|node| Event::Gone { node }),
        9 => (who(), request(), chunk())
            .prop_map(|(node, request, chunk)| Event::Arrived { node, request, chunk }),
        1 => chunk().prop_map(|chunk| Event::Present { chunk }),
        1 => who().prop_map(|node| Event::Bad { node }),
        1 => (who(), request(), 0u64..9_000)
            .prop_map(|(node, request, retry)| Event::Busy { node, request, retry: at(retry) }),
        1 => (who(), request(), prop::option::of(chunk()))
            .prop_map(|(node, request, chunk)| Event::NotFound { node, request, chunk }),
        1 => (who(), request()).prop_map(|(node, request)| Event::Error { node, request }),
        1 => chunk().prop_map(|chunk| Event::Reader { chunk }),
        3 => Just(Event::Tick),
    ]
}

proptest! {
    /// Whatever peers do and in whatever order: no panic, nothing asked of anyone that is held, all
    /// that is owed adds up, and an honest source still completes the download.
    #[test]
    fn no_events_can_break_it(events in prop::collection::vec((event(), 0u64..400), 0..200)) {
        let (mut fetch, mut peers) = fetch(200, u64::MAX);
        let mut now = 0;
        for (event, later) in events {
            now += later;
            let actions = fetch.handle(at(now), event, &mut peers);
            for (_, _, chunks) in asked(&actions) {
                prop_assert!(!chunks.is_empty());
            }
            let mut owed = std::collections::BTreeMap::new();
            for (_, request) in fetch.requests.iter() {
                let bytes = request.chunks.len() as u64 * u64::from(CHUNK_LEN);
                *owed.entry(request.node).or_insert(0) += bytes;
            }
            for (node, source) in fetch.sources.iter() {
                prop_assert_eq!(source.owed, owed.remove(node).unwrap_or(0));
            }
            prop_assert!(owed.is_empty());
        }
        if fetch.over {
            return Ok(());
        }
        for other in 0..5 {
            fetch.handle(at(now), Event::Gone { node: node(other) }, &mut peers);
        }
        prop_assert!(fetch.requests.is_empty());
        let actions = fetch.handle(at(now), source(9, Tier::Lan), &mut peers);
        if !fetch.over {
            answer_all(&mut fetch, &mut peers, actions);
        }
    }
}

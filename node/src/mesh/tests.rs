//! Nodes fetch from one another.

mod again;
mod bucket;
mod liars;
mod names;
mod private;
mod world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use attic_p2p::bulk::BulkStream;
use attic_p2p::fetch::FetchError;
use attic_p2p::ids::ManifestId;
use attic_p2p::wire::Priority;
use attic_store::Store;
use futures::future::{BoxFuture, join};
use tokio::time::Instant;

use crate::mesh::exchange::BanCause;
use crate::mesh::flight::body::FlightReader;
use crate::mesh::flight::{FlightError, Wanted};

use world::{Peer, Serving, noise, read, soon, until};

/// A client and others that all hold the same NAR.
async fn holders(contents: &[u8], serving: Vec<Serving>) -> (Peer, Vec<Peer>, Wanted) {
    let client = Peer::start(1, Serving::Honestly).await;
    let mut holders = Vec::new();
    let mut wanted = None;
    for (seed, serving) in (2..).zip(serving) {
        let holder = Peer::start(seed, serving).await;
        let here = holder.import(contents);
        client.meet(&holder).await;
        client.sources.add(&here, &holder);
        wanted = Some(here);
        holders.push(holder);
    }
    (client, holders, wanted.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nar_arrives_whole_and_is_the_same_bytes() {
    for (name, len) in [("small", 10), ("some", 1 << 20), ("large", 24 << 20)] {
        let (client, holders, wanted) = holders(&noise(name, len), vec![Serving::Honestly]).await;
        let fetched = client.fetch(&wanted).await.unwrap();
        assert!(fetched == holders[0].frames(&wanted), "{name}");
        assert!(client.frames(&wanted) == fetched, "{name}: stored");
        let manifest = client.store.manifest(&wanted.nar).unwrap().unwrap();
        assert_eq!(
            ManifestId::of(&manifest.encode()),
            wanted.manifest,
            "{name}"
        );
        until("over", || client.flights.stats().flying == 0).await;
        let landed = client.flights.stats();
        assert_eq!((landed.flying, landed.landed, landed.failed), (0, 1, 0));
        assert_eq!(landed.arrived, wanted.file.unwrap().1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nar_of_equal_chunks_arrives() {
    let (client, holders, wanted) = holders(&vec![0; 8 << 20], vec![Serving::Honestly]).await;
    let fetched = client.fetch(&wanted).await.unwrap();
    assert!(fetched == holders[0].frames(&wanted));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_already_is_not_fetched() {
    let old = noise("shared", 8 << 20);
    let new = [&old[..], &noise("new", 1 << 20)].concat();
    let (client, holders, wanted) = holders(&new, vec![Serving::Honestly]).await;
    client.import(&old);
    let fetched = client.fetch(&wanted).await.unwrap();
    assert!(fetched == holders[0].frames(&wanted));
    let arrived = client.flights.stats().arrived;
    assert!(arrived < 3 << 20, "{arrived}");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_sources_share_the_work() {
    let slow = || Serving::Slowly(8 << 20);
    let (client, holders, wanted) = holders(
        &noise("four", 16 << 20),
        vec![slow(), slow(), slow(), slow()],
    )
    .await;
    let fetched = client.fetch(&wanted).await.unwrap();
    assert!(fetched == holders[0].frames(&wanted));
    until("all sent", || {
        holders.iter().map(Peer::sent).sum::<u64>() >= fetched.len() as u64
    })
    .await;
    for holder in &holders {
        let sent = holder.sent();
        assert!(sent >= 1 << 20, "{sent} of {}", fetched.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_is_replaced() {
    let serving = vec![Serving::Slowly(8 << 20), Serving::Slowly(8 << 20)];
    let (client, holders, wanted) = holders(&noise("dies", 12 << 20), serving).await;
    let dies = async {
        until("under way", || holders[0].sent() > 1 << 20).await;
        holders[0].network.shutdown().await;
    };
    let (fetched, ()) = join(client.fetch(&wanted), dies).await;
    assert!(fetched.unwrap() == holders[1].frames(&wanted));
}

/// S3: wherever in a response a provider dies, the response goes on with another and is right.
#[tokio::test(flavor = "multi_thread")]
async fn s3_a_provider_may_die_at_any_byte() {
    for seed in 0..24 {
        let contents = noise(&format!("any byte {seed}"), 4 << 20);
        let serving = vec![Serving::Slowly(16 << 20), Serving::Slowly(16 << 20)];
        let (client, holders, wanted) = holders(&contents, serving).await;
        let random = u64::from_le_bytes(noise(&format!("at {seed}"), 8).try_into().unwrap());
        let (at, victim) = (random % wanted.file.unwrap().1, seed % 2);
        let dies = async {
            until("under way", || {
                client.exchange.traffic().all().received >= at
            })
            .await;
            holders[victim].network.shutdown().await;
        };
        let (fetched, ()) = join(client.fetch(&wanted), dies).await;
        let fetched = fetched.unwrap_or_else(|error| panic!("seed {seed}, byte {at}: {error}"));
        assert!(
            fetched == holders[1 - victim].frames(&wanted),
            "seed {seed}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_source_left_the_body_breaks_off_and_was_right_so_far() {
    let serving = vec![Serving::Slowly(8 << 20)];
    let (client, holders, wanted) = holders(&noise("last", 12 << 20), serving).await;
    let flight = client.follow(&wanted);
    flight.ready(soon()).await.unwrap();
    let reader = FlightReader::new(flight, 0..u64::MAX).unwrap();
    let dies = async {
        until("under way", || {
            client.exchange.traffic().all().received > 2 << 20
        })
        .await;
        holders[0].network.shutdown().await;
    };
    let ((sofar, outcome), ()) = join(read(reader), dies).await;
    assert!(
        matches!(outcome, Err(FlightError::Fetch(FetchError::NoSource))),
        "{outcome:?}"
    );
    assert!(holders[0].frames(&wanted).starts_with(&sofar));
}

#[tokio::test(flavor = "multi_thread")]
async fn liars_are_kept_out_and_the_bytes_are_right() {
    type Lie = fn(BulkStream, Store) -> BoxFuture<'static, ()>;
    let lies: [(&str, Lie, BanCause); 5] = [
        ("flips", liars::flips, BanCause::WrongBytes),
        ("swaps", liars::swaps, BanCause::WrongBytes),
        ("cuts", liars::cuts, BanCause::WrongBytes),
        ("floods", liars::floods, BanCause::Protocol),
        ("invents", liars::invents, BanCause::WrongBytes),
    ];
    for (name, lie, cause) in lies {
        let (client, holders, wanted) =
            holders(&noise(name, 6 << 20), vec![Serving::By(lie)]).await;
        let honest = Peer::start(9, Serving::Honestly).await;
        honest.import(&noise(name, 6 << 20));
        client.meet(&honest).await;
        let late = async {
            until(name, || client.exchange.bans(cause) > 0).await;
            client.sources.add(&wanted, &honest);
        };
        let (fetched, ()) = join(client.fetch(&wanted), late).await;
        assert!(fetched.unwrap() == honest.frames(&wanted), "{name}");
        until(name, || {
            let status = client.network.status();
            status.bans.iter().any(|ban| ban.node == holders[0].node)
        })
        .await;
        let bans = client.network.status();
        assert_eq!(bans.bans.len(), 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_not_read_gets_nothing() {
    let (client, holders, wanted) =
        holders(&noise("secret", 1 << 20), vec![Serving::Honestly]).await;
    holders[0].doors.closed.store(true, Ordering::Relaxed);
    let flight = client.follow(&wanted);
    let shortly = Instant::now() + Duration::from_millis(700);
    let outcome = flight.ready(shortly).await.map(|_| ());
    assert!(matches!(outcome, Err(FlightError::Late)), "{outcome:?}");
    assert!(flight.manifest().is_none());
    assert_eq!(client.exchange.traffic().all().received, 0);
    let outcome = flight.landed().await;
    assert!(matches!(outcome, Err(FlightError::Fetch(_))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flight_that_nobody_follows_ends() {
    let serving = vec![Serving::Slowly(1 << 20)];
    let (client, _holders, wanted) = holders(&noise("left", 24 << 20), serving).await;
    let flight = client.follow(&wanted);
    flight.ready(soon()).await.unwrap();
    let other = client
        .flights
        .follow(wanted.clone(), Priority::Background)
        .unwrap();
    drop(flight);
    until("goes on for the other", || {
        client.exchange.traffic().all().received > 1 << 20
    })
    .await;
    drop(other);
    until("over", || client.flights.stats().failed == 1).await;
    assert_eq!(client.flights.stats().flying, 0);
    let left = client.follow(&wanted);
    assert!(left.manifest().is_none(), "a flight of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_readers_share_a_flight_and_one_may_leave() {
    let serving = vec![Serving::Slowly(8 << 20)];
    let (client, holders, wanted) = holders(&noise("two", 8 << 20), serving).await;
    let leaves = async {
        let flight = client.follow(&wanted);
        flight.ready(soon()).await.unwrap();
        let mut reader = FlightReader::new(flight, 0..u64::MAX).unwrap();
        reader.next().await.unwrap().unwrap()
    };
    let (first, fetched) = join(leaves, client.fetch(&wanted)).await;
    let expected = holders[0].frames(&wanted);
    assert!(fetched.unwrap() == expected);
    assert!(expected.starts_with(&first));
    let stats = client.flights.stats();
    assert_eq!((stats.started, stats.landed), (1, 1));
    assert_eq!(
        client.exchange.traffic().all().received,
        expected.len() as u64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_slices_of_the_whole() {
    let serving = vec![Serving::Honestly];
    let (client, holders, wanted) = holders(&noise("ranges", 6 << 20), serving).await;
    let expected = holders[0].frames(&wanted);
    let size = expected.len() as u64;
    let ranges = [
        0..1,
        0..size,
        1..2,
        100_000..3_000_000,
        size - 1..size,
        size - 500_000..u64::MAX,
        5..5,
        size..u64::MAX,
    ];
    for range in ranges {
        // The first flight, or, once it has landed, one that finds everything here.
        let flight = client.follow(&wanted);
        flight.ready(soon()).await.unwrap();
        let part = read(FlightReader::new(flight, range.clone()).unwrap()).await;
        let clipped = range.start.min(size) as usize..range.end.min(size) as usize;
        assert!(part.1.unwrap() == expected[clipped], "{range:?}");
    }
    assert_eq!(client.exchange.traffic().all().received, size);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_fetch_at_once_trade() {
    let contents = noise("trade", 16 << 20);
    let (one, holders, wanted) = holders(&contents, vec![Serving::Slowly(4 << 20)]).await;
    let two = Peer::start(9, Serving::Honestly).await;
    two.meet(&holders[0]).await;
    two.meet(&one).await;
    two.sources.add(&wanted, &holders[0]);
    // Of each other they hear from the holder alone.
    let (first, second) = join(one.fetch(&wanted), two.fetch(&wanted)).await;
    let expected = holders[0].frames(&wanted);
    assert!(first.unwrap() == expected && second.unwrap() == expected);
    let sent = holders[0].sent();
    assert!(sent < 3 * expected.len() as u64 / 2, "{sent}");
    until("both gave", || one.sent() > 1 << 20 && two.sent() > 1 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_the_announcement_fails_before_anything_is_promised() {
    let (client, _holders, wanted) =
        holders(&noise("announced", 1 << 20), vec![Serving::Honestly]).await;
    let (hash, size) = wanted.file.unwrap();
    let wrong = Wanted {
        file: Some((hash, size + 1)),
        ..wanted
    };
    let flight = client.follow(&wrong);
    let outcome = flight.ready(soon()).await.map(|_| ());
    assert!(
        matches!(outcome, Err(FlightError::Announced)),
        "{outcome:?}"
    );
}

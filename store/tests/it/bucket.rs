//! Buckets in memory: what they promise without faults, and with each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attic_store::bucket::check::{Guarantee, Verdict, check};
use attic_store::bucket::conformance::violations;
use attic_store::bucket::memory::{Chances, Fault, MemoryBucket};
use attic_store::bucket::{Bucket, BucketError, Operation};
use bytes::Bytes;

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// A bucket with one object, `here`.
async fn filled() -> MemoryBucket {
    let bucket = MemoryBucket::new();
    bucket.put("here", body("before")).await.expect("no faults");
    bucket
}

/// The keys of a bucket with small pages.
async fn keys(bucket: &MemoryBucket) -> Vec<String> {
    let page = bucket.list("", None).await.expect("lists");
    assert!(page.is_last);
    page.objects.into_iter().map(|object| object.key).collect()
}

fn clients_of(bucket: &MemoryBucket) -> Vec<Arc<dyn Bucket>> {
    (0..3)
        .map(|_| Arc::new(bucket.beside()) as Arc<dyn Bucket>)
        .collect()
}

#[tokio::test]
async fn a_bucket_in_memory_does_what_every_bucket_does() {
    let bucket = MemoryBucket::new();
    bucket.page_len(3);
    assert_eq!(violations(&bucket, "suite").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_lost_request_is_never_applied() {
    let bucket = filled().await;
    bucket.script([Some(Fault::RequestLost); 5]);
    let put = bucket.put("new", body("x")).await;
    assert!(matches!(put, Err(BucketError::Unclear { .. })), "{put:?}");
    let delete = bucket.delete("here").await;
    assert!(
        matches!(delete, Err(BucketError::Unclear { .. })),
        "{delete:?}"
    );
    let get = bucket.get("here", 10).await;
    assert!(
        matches!(get, Err(BucketError::Unreachable { .. })),
        "{get:?}"
    );
    let head = bucket.head("here").await;
    assert!(
        matches!(head, Err(BucketError::Unreachable { .. })),
        "{head:?}"
    );
    let list = bucket.list("", None).await;
    assert!(
        matches!(list, Err(BucketError::Unreachable { .. })),
        "{list:?}"
    );
    assert_eq!(bucket.settle(), 0);
    assert_eq!(keys(&bucket).await, ["here"]);
}

#[tokio::test]
async fn a_request_whose_answer_is_lost_is_applied() {
    let bucket = filled().await;
    bucket.script([Some(Fault::AnswerLost); 2]);
    let put = bucket.put("new", body("x")).await;
    assert!(matches!(put, Err(BucketError::Unclear { .. })), "{put:?}");
    let delete = bucket.delete("here").await;
    assert!(
        matches!(delete, Err(BucketError::Unclear { .. })),
        "{delete:?}"
    );
    assert_eq!(keys(&bucket).await, ["new"]);
}

#[tokio::test]
async fn a_late_request_is_applied_after_later_ones() {
    let bucket = filled().await;
    bucket.script_next(Operation::Delete, Fault::Late { requests: 2 });
    let delete = bucket.delete("here").await;
    assert!(
        matches!(delete, Err(BucketError::Unclear { .. })),
        "{delete:?}"
    );
    let other = bucket.beside();
    assert_eq!(other.head("here").await, Ok(Some(6)));
    other
        .put("here", body("again"))
        .await
        .expect("no fault of its own");
    assert_eq!(other.head("here").await, Ok(None));

    bucket.script([Some(Fault::Late { requests: 9 })]);
    let put = bucket.put("new", body("x")).await;
    assert!(matches!(put, Err(BucketError::Unclear { .. })), "{put:?}");
    assert_eq!(keys(&bucket).await, Vec::<String>::new());
    assert_eq!(bucket.settle(), 1);
    assert_eq!(keys(&bucket).await, ["new"]);
}

#[tokio::test]
async fn a_repeated_write_brings_back_what_was_deleted() {
    let bucket = MemoryBucket::new();
    bucket.script([Some(Fault::Repeated { requests: 1 })]);
    bucket.put("zombie", body("x")).await.expect("answered");
    bucket.delete("zombie").await.expect("answered");
    assert_eq!(bucket.head("zombie").await, Ok(Some(1)));
}

#[tokio::test]
async fn a_busy_server_changes_nothing_and_is_counted() {
    let bucket = filled().await;
    bucket.script([Some(Fault::Busy), None, Some(Fault::Busy)]);
    let put = bucket.put("new", body("x")).await;
    assert!(matches!(put, Err(BucketError::Busy { .. })), "{put:?}");
    assert_eq!(keys(&bucket).await, ["here"]);
    let get = bucket.get("here", 10).await;
    assert!(matches!(get, Err(BucketError::Busy { .. })), "{get:?}");
    let counters = bucket.counters();
    assert_eq!((counters.put.throttled, counters.put.failures), (1, 1));
    assert_eq!((counters.get.throttled, counters.get.bytes), (1, 0));
}

#[tokio::test]
async fn a_client_that_is_cut_off_says_since_when_and_others_go_on() {
    let bucket = filled().await;
    bucket.clock(SystemTime::UNIX_EPOCH + Duration::from_secs(60));
    let other = bucket.beside();
    bucket.down(true);
    let put = bucket.put("new", body("x")).await.expect_err("down");
    assert!(
        matches!(put, BucketError::Unreachable { .. }) && put.is_passing(),
        "{put:?}"
    );
    let health = bucket.health();
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
    assert_eq!(health.failing_since, Some(since));
    assert_eq!(health.last_error, Some(put.to_string()));
    assert_eq!(other.head("here").await, Ok(Some(6)));
    bucket.down(false);
    assert_eq!(keys(&bucket).await, ["here"]);
    assert_eq!(bucket.health().failing_since, None);
}

#[tokio::test]
async fn a_listing_that_lags_shows_what_was() {
    let bucket = filled().await;
    bucket.put("new", body("x")).await.expect("no faults");
    bucket.delete("here").await.expect("no faults");
    for (lag, expected) in [
        (0, vec!["new"]),
        (1, vec!["here", "new"]),
        (2, vec!["here"]),
        (3, vec![]),
    ] {
        bucket.lists_lag(lag);
        assert_eq!(keys(&bucket).await, expected, "{lag} changes behind");
    }
}

/// The same seed gives the same faults; all kinds come; and whatever they were, an object is there or
/// not as the answers said, once nothing is late any more.
#[tokio::test]
async fn chance_is_fixed_by_its_seed_and_answers_are_true() {
    for seed in 0..50 {
        let (first, objects) = random_run(seed).await;
        let (second, _) = random_run(seed).await;
        assert_eq!(first, second, "seed {seed}");
        for (key, outcome) in &first {
            let is_there = objects.contains_key(key);
            match outcome {
                Ok(()) => assert!(is_there, "seed {seed}: {key} was written"),
                Err(BucketError::Busy { .. }) => {
                    assert!(!is_there, "seed {seed}: {key} was refused")
                }
                Err(BucketError::Unclear { .. }) => {}
                Err(error) => panic!("seed {seed}: {key}: {error}"),
            }
        }
    }
    let mut kinds = [0; 3];
    for seed in 0..50 {
        for (_, outcome) in random_run(seed).await.0 {
            kinds[match outcome {
                Ok(()) => 0,
                Err(BucketError::Busy { .. }) => 1,
                Err(_) => 2,
            }] += 1;
        }
    }
    assert!(kinds.iter().all(|count| *count > 100), "{kinds:?}");
}

type Outcomes = Vec<(String, Result<(), BucketError>)>;

/// Writes twenty objects, each under a name of its own, while faults come by chance.
async fn random_run(seed: u64) -> (Outcomes, BTreeMap<String, Bytes>) {
    let bucket = MemoryBucket::new();
    let chances = Chances {
        request_lost: 100,
        answer_lost: 100,
        late: 100,
        repeated: 100,
        busy: 200,
        delay_max: 5,
    };
    bucket.chances(seed, chances);
    let mut outcomes = Vec::new();
    for number in 0..20 {
        let key = format!("object/{number}");
        let outcome = bucket.put(&key, body("x")).await;
        outcomes.push((key, outcome));
    }
    bucket.settle();
    (outcomes, bucket.objects())
}

#[tokio::test]
async fn a_server_that_keeps_its_promises_passes_the_check_which_leaves_nothing() {
    let bucket = filled().await;
    bucket.page_len(3);
    let report = check(&clients_of(&bucket), 3).await;
    assert!(report.holds(), "{report:#?}");
    assert!(
        report.steps.iter().all(|step| step.tries >= 3),
        "{report:#?}"
    );
    assert_eq!(report.left_behind, None);
    assert_eq!(bucket.objects().keys().collect::<Vec<_>>(), ["here"]);
}

#[tokio::test]
async fn the_check_finds_out_listings_that_lag() {
    let bucket = MemoryBucket::new();
    bucket.page_len(3);
    bucket.lists_lag(1);
    let report = check(&clients_of(&bucket), 1).await;
    let violated: Vec<Guarantee> = report
        .steps
        .iter()
        .filter(|step| matches!(step.verdict, Verdict::Violated { .. }))
        .map(|step| step.guarantee)
        .collect();
    let expected = [
        Guarantee::PutThenList,
        Guarantee::Paging,
        Guarantee::DeleteThenList,
    ];
    assert_eq!(violated, expected, "{report:#?}");
    assert!(!report.holds());
}

#[tokio::test]
async fn the_check_of_a_server_that_does_not_answer_proves_nothing() {
    let bucket = MemoryBucket::new();
    let client = bucket.beside();
    client.down(true);
    let report = check(&[Arc::new(client)], 1).await;
    assert!(!report.holds());
    for step in &report.steps {
        let is_clock = step.guarantee == Guarantee::Clock;
        let is_unknown = matches!(step.verdict, Verdict::Unknown { .. });
        assert!(is_clock || is_unknown, "{report:#?}");
    }
    assert!(report.left_behind.is_some());
}

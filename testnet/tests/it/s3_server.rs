//! The node's client of S3 and real servers.
//!
//! `testnet/scripts/garage.sh` puts the servers into cache folders; where one is missing, each test
//! that wants it says that it is left out, or fails when `ATTIC_NODE_TEST_S3=1` is set.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use attic_store::bucket::check::check;
use attic_store::bucket::conformance::violations;
use attic_store::bucket::s3::{Policy, S3Bucket, S3Options};
use attic_store::bucket::{Bucket, BucketError};
use bytes::Bytes;
use testnet::garage::Garage;
use testnet::moto::Moto;
use testnet::proxy::{Fault, FaultProxy};
use testnet::s3::S3Access;

/// Runs `work` on a runtime of its own.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().expect("start a runtime");
    runtime.block_on(work)
}

fn bucket(options: S3Options) -> S3Bucket {
    S3Bucket::new(options).expect("right options")
}

/// Asks for the same as any other, and gives up soon.
fn impatient(access: &S3Access) -> S3Options {
    let policy = Policy {
        tries_max: 2,
        pause_first: Duration::from_millis(1),
        attempt_time_max: Duration::from_millis(500),
        ..Policy::default()
    };
    S3Options {
        policy,
        ..access.options()
    }
}

/// Every claim of the suite, without and with a prefix, and every guarantee of the check.
fn does_what_every_bucket_does(access: &S3Access) {
    block_on(async {
        let found = violations(&access.client(), "suite").await;
        assert_eq!(found, Vec::<String>::new());
        let prefixed = bucket(S3Options {
            prefix: "cluster-1/".to_owned(),
            ..access.options()
        });
        let found = violations(&prefixed, "suite").await;
        assert_eq!(found, Vec::<String>::new());

        let client = || Arc::new(access.client()) as Arc<dyn Bucket>;
        let clients = [client(), client(), client(), client()];
        let report = check(&clients, 2).await;
        assert!(report.holds(), "{report:#?}");
        assert_eq!(report.left_behind, None);
        let left = access.client().list("check/", None).await;
        assert_eq!(left.expect("lists").objects, []);
    });
}

#[test]
fn garage_does_what_every_bucket_does() {
    if let Some(garage) = Garage::start("garage_does_what_every_bucket_does") {
        does_what_every_bucket_does(garage.access());
    }
}

#[test]
fn moto_does_what_every_bucket_does() {
    if let Some(moto) = Moto::start("moto_does_what_every_bucket_does") {
        does_what_every_bucket_does(moto.access());
    }
}

#[test]
fn garage_refuses_in_words_that_say_what_is_wrong() {
    let Some(garage) = Garage::start("garage_refuses_in_words_that_say_what_is_wrong") else {
        return;
    };
    let with = |change: fn(&mut S3Access)| {
        let mut access = garage.access().clone();
        change(&mut access);
        block_on(async {
            let bucket = access.client();
            let errors = [
                bucket.put("k", Bytes::from_static(b"x")).await.map(drop),
                bucket.get("k", 10).await.map(drop),
                bucket.list("", None).await.map(drop),
            ];
            errors.map(|outcome| outcome.expect_err("it is refused"))
        })
    };
    let wrong_secret = with(|access| access.secret = "0".repeat(64));
    for error in &wrong_secret {
        assert!(matches!(error, BucketError::Denied { .. }), "{error:?}");
        let said = error.to_string();
        assert!(!said.contains(&"0".repeat(64)), "{said}");
    }
    for error in with(|access| access.key_id = format!("GK{}", "0".repeat(24))) {
        assert!(matches!(error, BucketError::Denied { .. }), "{error:?}");
    }
    for error in with(|access| access.region = "elsewhere".to_owned()) {
        assert!(matches!(error, BucketError::Denied { .. }), "{error:?}");
    }
    for error in with(|access| access.bucket = "no-such-bucket".to_owned()) {
        assert!(matches!(error, BucketError::NoBucket { .. }), "{error:?}");
    }
}

#[test]
fn a_write_whose_answer_is_lost_was_sent_once_and_is_there() {
    let Some(garage) = Garage::start("a_write_whose_answer_is_lost_was_sent_once_and_is_there")
    else {
        return;
    };
    let proxy = FaultProxy::new(garage.address(), |head| match head.method.as_str() {
        "PUT" => Fault::LoseAnswer,
        // The first of each is cut; it is asked for again.
        "GET" if head.number < 2 => Fault::CutAnswer(10),
        _ => Fault::None,
    });
    let access = S3Access {
        endpoint: format!("http://{}", proxy.address()),
        ..garage.access().clone()
    };
    block_on(async {
        let bucket = access.client();
        let body = Bytes::from(vec![7; 100_000]);
        let put = bucket.put("object", body.clone()).await;
        assert!(matches!(put, Err(BucketError::Unclear { .. })), "{put:?}");
        assert_eq!(bucket.get("object", 100_000).await, Ok(body));
        assert_eq!(bucket.counters().get.retries, 1);
    });
    let puts = proxy
        .log()
        .into_iter()
        .filter(|exchange| exchange.head.method == "PUT");
    assert_eq!(puts.count(), 1);
}

#[test]
fn a_server_that_hangs_or_dies_is_unreachable_and_comes_back() {
    let Some(mut garage) =
        Garage::start("a_server_that_hangs_or_dies_is_unreachable_and_comes_back")
    else {
        return;
    };
    let access = garage.access().clone();
    let body = Bytes::from_static(b"kept");
    block_on(async {
        access
            .client()
            .put("before", body.clone())
            .await
            .expect("it is up");
    });

    garage.freeze();
    block_on(async {
        let bucket = bucket(impatient(&access));
        let put = bucket.put("while-frozen", body.clone()).await;
        assert!(matches!(put, Err(BucketError::Unclear { .. })), "{put:?}");
        let get = bucket.get("before", 10).await;
        assert!(
            matches!(get, Err(BucketError::Unreachable { .. })),
            "{get:?}"
        );
    });
    garage.thaw();
    block_on(async {
        assert_eq!(access.client().get("before", 10).await, Ok(body.clone()));
    });

    garage.kill();
    block_on(async {
        let bucket = bucket(impatient(&access));
        let put = bucket.put("while-dead", body.clone()).await;
        assert!(
            matches!(put, Err(BucketError::Unreachable { .. })),
            "{put:?}"
        );
    });
    garage.start_again();
    block_on(async {
        let bucket = access.client();
        assert_eq!(bucket.get("before", 10).await, Ok(body));
        assert_eq!(bucket.head("while-dead").await, Ok(None));
    });
}

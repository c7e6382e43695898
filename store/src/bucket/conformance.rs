//! What every bucket does, whoever answers: run against each implementation by its tests.

use std::ops::Range;

use bytes::Bytes;

use super::{Bucket, BucketError, Object};

/// Holds a bucket without faults to each claim below `folder`, which must be empty; the claims that
/// failed, and how. Pages of it have at most four objects.
///
/// Leaves objects in the folder.
pub async fn violations(bucket: &dyn Bucket, folder: &str) -> Vec<String> {
    let at = |name: &str| format!("{folder}/{name}");
    let outcomes = [
        ("put, then get", read_back(bucket, &at("read")).await),
        ("ranges", ranges(bucket, &at("ranges")).await),
        ("bounds", bounds(bucket, &at("bounds")).await),
        ("lengths", lengths(bucket, &at("lengths")).await),
        ("deletion", deletion(bucket, &at("deletion")).await),
        ("nothing", nothing(bucket, &at("nothing")).await),
        ("order", order(bucket, &at("order")).await),
        ("pages", pages(bucket, &at("pages")).await),
        ("prefixes", prefixes(bucket, &at("prefixes")).await),
        ("keys", keys(bucket).await),
        ("counters", counters(bucket, &at("counters")).await),
    ];
    let failed = outcomes.into_iter().filter_map(|(claim, outcome)| {
        let reason = outcome.err()?;
        Some(format!("{claim}: {reason}"))
    });
    failed.collect()
}

/// What did not hold.
type Claim = Result<(), String>;

async fn read_back(bucket: &dyn Bucket, folder: &str) -> Claim {
    for len in [0, 1, 255, 65_537, (5 << 20) + 3] {
        let (key, body) = (format!("{folder}/{len}"), bytes(len));
        put(bucket, &key, body.clone()).await?;
        same(&key, bucket.get(&key, len as u64).await, Ok(body.clone()))?;
        same(&key, bucket.get(&key, u64::MAX >> 1).await, Ok(body))?;
    }
    Ok(())
}

async fn ranges(bucket: &dyn Bucket, folder: &str) -> Claim {
    let (key, body) = (format!("{folder}/object"), bytes(300_000));
    put(bucket, &key, body.clone()).await?;
    let within: [Range<usize>; 7] = [
        0..1,
        0..300_000,
        1..2,
        70_000..270_000,
        299_999..300_000,
        0..0,
        12..12,
    ];
    for range in within {
        let (asked, expected) = (range.start as u64..range.end as u64, body.slice(range));
        let got = bucket.get_range(&key, asked.clone()).await;
        same(&format!("{asked:?}"), got, Ok(expected))?;
    }
    for range in [
        299_999..300_001,
        0..300_001,
        300_000..300_001,
        400_000..500_000,
    ] {
        match bucket.get_range(&key, range.clone()).await {
            Err(BucketError::Truncated { len, wanted, .. })
                if len <= range.start.max(300_000) && wanted == range.end => {}
            got => return Err(format!("{range:?} of 300000 bytes gave {}", shown(&got))),
        }
    }
    Ok(())
}

async fn bounds(bucket: &dyn Bucket, folder: &str) -> Claim {
    let key = format!("{folder}/object");
    put(bucket, &key, bytes(1000)).await?;
    let too_long = Err(BucketError::TooLong {
        key: key.clone(),
        len: 1000,
        len_max: 999,
    });
    same("999 of 1000 bytes", bucket.get(&key, 999).await, too_long)?;
    same("1000 bytes", bucket.get(&key, 1000).await, Ok(bytes(1000)))
}

async fn lengths(bucket: &dyn Bucket, folder: &str) -> Claim {
    for len in [0, 1, 70_000] {
        let key = format!("{folder}/{len}");
        same(&key, bucket.head(&key).await, Ok(None))?;
        put(bucket, &key, bytes(len)).await?;
        same(&key, bucket.head(&key).await, Ok(Some(len as u64)))?;
    }
    Ok(())
}

async fn deletion(bucket: &dyn Bucket, folder: &str) -> Claim {
    let key = format!("{folder}/object");
    same("what never was", bucket.delete(&key).await, Ok(()))?;
    put(bucket, &key, bytes(10)).await?;
    same("an object", bucket.delete(&key).await, Ok(()))?;
    same("what is gone", bucket.delete(&key).await, Ok(()))?;
    absent(bucket, &key).await?;
    same("listed", list(bucket, folder).await, Ok(Vec::new()))
}

async fn nothing(bucket: &dyn Bucket, folder: &str) -> Claim {
    absent(bucket, &format!("{folder}/object")).await?;
    // A folder is no object.
    put(bucket, &format!("{folder}/a/b"), bytes(1)).await?;
    absent(bucket, &format!("{folder}/a")).await
}

async fn order(bucket: &dyn Bucket, folder: &str) -> Claim {
    // By their bytes: - . / 0 9 A Z _ a z.
    let names = [
        "a", "a-", "a.", "a/0", "a/b", "a0", "a9", "aA", "aZ", "a_", "aa", "az", "b",
    ];
    let mut sorted = names;
    sorted.sort_unstable();
    for name in names.iter().rev() {
        put(bucket, &format!("{folder}/{name}"), bytes(name.len())).await?;
    }
    let expected: Vec<String> = sorted
        .iter()
        .map(|name| format!("{folder}/{name}"))
        .collect();
    let listed = list(bucket, &format!("{folder}/")).await;
    let listed = listed.map_err(|error| error.to_string())?;
    let keys: Vec<String> = listed.iter().map(|object| object.key.clone()).collect();
    if keys != expected {
        return Err(format!("listed {keys:?}, not {expected:?}"));
    }
    let lens = listed.iter().map(|object| object.len);
    if !lens.eq(sorted.iter().map(|name| name.len() as u64)) {
        return Err(format!("listed with other lengths: {listed:?}"));
    }
    Ok(())
}

async fn pages(bucket: &dyn Bucket, folder: &str) -> Claim {
    let prefix = format!("{folder}/");
    for number in [3, 9, 1, 5, 7] {
        put(bucket, &format!("{folder}/{number}"), bytes(1)).await?;
    }
    let first = bucket.list(&prefix, None).await;
    let first = first.map_err(|error| error.to_string())?;
    if first.is_last || first.objects.is_empty() {
        return Err(format!("the first page of five objects is {first:?}"));
    }
    for (after, expected) in [
        ("0", "13579"),
        ("1", "3579"),
        ("4", "579"),
        ("9", ""),
        ("99", ""),
    ] {
        let listed = list_after(bucket, &prefix, Some(format!("{folder}/{after}"))).await;
        let listed = listed.map_err(|error| error.to_string())?;
        let names: String = listed
            .iter()
            .filter_map(|object| object.key.chars().last())
            .collect();
        if names != expected {
            return Err(format!("after {after:?} come {names:?}, not {expected:?}"));
        }
    }
    Ok(())
}

async fn prefixes(bucket: &dyn Bucket, folder: &str) -> Claim {
    for name in ["pack/0a/1", "pack/0a/2", "pack/0b/1", "package", "log/1"] {
        put(bucket, &format!("{folder}/{name}"), bytes(1)).await?;
    }
    for (prefix, expected) in [
        ("", 5),
        ("/", 5),
        ("/pack", 4),
        ("/pack/", 3),
        ("/pack/0a", 2),
        ("/pack/0b/1", 1),
        ("/pack/0b/10", 0),
        ("/x", 0),
    ] {
        let listed = list(bucket, &format!("{folder}{prefix}")).await;
        let listed = listed.map_err(|error| error.to_string())?;
        if listed.len() != expected {
            return Err(format!(
                "{prefix:?} lists {listed:?}, not {expected} objects"
            ));
        }
    }
    Ok(())
}

async fn keys(bucket: &dyn Bucket) -> Claim {
    let before = bucket.counters();
    for key in ["", "/a", "a//b", "a/../b", "a b", "ä"] {
        let wrong = || BucketError::Key {
            key: key.to_owned(),
        };
        same("put", bucket.put(key, Bytes::new()).await, Err(wrong()))?;
        same("get", bucket.get(key, 1).await, Err(wrong()))?;
        same("range", bucket.get_range(key, 0..0).await, Err(wrong()))?;
        same("head", bucket.head(key).await, Err(wrong()))?;
        same("delete", bucket.delete(key).await, Err(wrong()))?;
    }
    same("asked", Ok(bucket.counters()), Ok(before))
}

async fn counters(bucket: &dyn Bucket, folder: &str) -> Claim {
    let key = format!("{folder}/object");
    let before = bucket.counters();
    put(bucket, &key, bytes(10)).await?;
    same("get", bucket.get(&key, 10).await, Ok(bytes(10)))?;
    same("range", bucket.get_range(&key, 0..3).await, Ok(bytes(3)))?;
    absent(bucket, &format!("{folder}/other")).await?;
    let after = bucket.counters();
    let counted = [
        after.put.requests - before.put.requests,
        after.put.bytes - before.put.bytes,
        after.get.bytes - before.get.bytes,
        after.head.requests - before.head.requests,
        after.get.failures - before.get.failures,
    ];
    // Requests that read may have been repeated.
    match counted {
        [1, 10, 13, heads, 0] if heads > 0 => Ok(()),
        _ => Err(format!("counted {counted:?}")),
    }
}

async fn absent(bucket: &dyn Bucket, key: &str) -> Claim {
    let not_found = || BucketError::NotFound {
        key: key.to_owned(),
    };
    same("get", bucket.get(key, 10).await, Err(not_found()))?;
    same("range", bucket.get_range(key, 0..1).await, Err(not_found()))?;
    same("head", bucket.head(key).await, Ok(None))
}

async fn put(bucket: &dyn Bucket, key: &str, body: Bytes) -> Claim {
    same(&format!("put {key}"), bucket.put(key, body).await, Ok(()))
}

async fn list(bucket: &dyn Bucket, prefix: &str) -> Result<Vec<Object>, BucketError> {
    list_after(bucket, prefix, None).await
}

async fn list_after(
    bucket: &dyn Bucket,
    prefix: &str,
    mut after: Option<String>,
) -> Result<Vec<Object>, BucketError> {
    let mut objects = Vec::new();
    loop {
        let page = bucket.list(prefix, after.as_deref()).await?;
        after = page.objects.last().map(|object| object.key.clone());
        objects.extend(page.objects);
        if page.is_last {
            return Ok(objects);
        }
    }
}

fn same<T: std::fmt::Debug + PartialEq>(
    what: &str,
    got: Result<T, BucketError>,
    expected: Result<T, BucketError>,
) -> Claim {
    match got == expected {
        true => Ok(()),
        false => Err(format!(
            "{what}: got {}, not {}",
            shown(&got),
            shown(&expected)
        )),
    }
}

/// The beginning of a value: some are megabytes.
fn shown(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.chars().take(200).collect()
}

/// Bytes that are like no others at a distance of less than 251.
fn bytes(len: usize) -> Bytes {
    (0..len).map(|n| (n % 251) as u8).collect()
}

//! The client of S3 before a socket that answers what a test tells it to, byte by byte.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use attic_store::bucket::s3::{Credentials, Policy, S3Bucket, S3Options, S3OptionsError};
use attic_store::bucket::{Bucket, BucketError};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the socket does with a request.
#[derive(Clone, Debug)]
enum Reply {
    /// Sends these bytes and closes the connection.
    Bytes(Vec<u8>),
    /// Closes the connection.
    Close,
    /// Says nothing, and keeps the connection.
    Silence,
}

/// A server that gives each request the next of its replies, and the last one to all that follow.
struct Script {
    address: String,
    seen: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl Script {
    async fn new(replies: Vec<Reply>) -> Script {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let address = listener.local_addr().expect("bound").to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let server = tokio::spawn(serve(listener, replies, Arc::clone(&seen)));
        Script {
            address,
            seen,
            server,
        }
    }

    fn bucket(&self) -> S3Bucket {
        let options = S3Options {
            endpoint: Some(format!("http://{}", self.address)),
            policy: impatient(),
            ..options()
        };
        S3Bucket::new(options).expect("right options")
    }

    /// First lines of the requests so far.
    fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").clone()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, replies: Vec<Reply>, seen: Arc<Mutex<Vec<String>>>) {
    let mut kept = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let Some(line) = read_request(&mut stream).await else {
            continue;
        };
        let number = {
            let mut seen = seen.lock().expect("no panic");
            seen.push(line);
            seen.len() - 1
        };
        match &replies[number.min(replies.len() - 1)] {
            Reply::Bytes(bytes) => {
                // Whoever has heard enough may have gone.
                let _ = stream.write_all(bytes).await;
                let _ = stream.shutdown().await;
            }
            Reply::Close => {}
            Reply::Silence => kept.push(stream),
        }
    }
}

/// Reads a request to the end of its body; its first line.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut read = Vec::new();
    let head_len = loop {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&read[..head_len]).into_owned();
    let lengths = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let body_len: usize = match lengths.next() {
        Some((_, value)) => value.trim().parse().ok()?,
        None => 0,
    };
    while read.len() < head_len + body_len {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
    head.lines().next().map(str::to_owned)
}

fn options() -> S3Options {
    S3Options {
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        region: None,
        bucket: "attic".to_owned(),
        prefix: "cluster/".to_owned(),
        path_style: None,
        credentials: Credentials::new("the-key-id", "the-secret"),
        page_len: None,
        policy: Policy::default(),
    }
}

/// Hardly any pauses. Nothing here waits for the end of an attempt but what says so.
fn impatient() -> Policy {
    Policy {
        tries_max: 3,
        pause_first: Duration::from_millis(1),
        pause_max: Duration::from_millis(5),
        ..Policy::default()
    }
}

fn reply(status: &str, headers: &str, body: &str) -> Reply {
    let len = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n");
    Reply::Bytes(format!("{head}{headers}\r\n{body}").into_bytes())
}

fn error(status: &str, code: &str) -> Reply {
    let body = format!("<Error><Code>{code}</Code><Message>as I say</Message></Error>");
    reply(status, "", &body)
}

/// `body` as the part of an object that begins at `first`.
fn part(first: u64, body: &str, total: &str) -> Reply {
    let last = first + body.len() as u64 - 1;
    let header = format!("Content-Range: bytes {first}-{last}/{total}\r\n");
    reply("206 Partial Content", &header, body)
}

fn raw(text: &str) -> Reply {
    Reply::Bytes(text.as_bytes().to_vec())
}

fn listing(is_truncated: bool, keys: &[&str]) -> Reply {
    let objects: String = keys
        .iter()
        .map(|key| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>\
                 <Size>7</Size></Contents>"
            )
        })
        .collect();
    let body = format!(
        "<ListBucketResult><Name>attic</Name><IsTruncated>{is_truncated}</IsTruncated>{objects}\
         </ListBucketResult>"
    );
    reply("200 OK", "", &body)
}

/// What a range read of bytes 2 to 6 gives, and how many requests that took.
async fn range_read(replies: Vec<Reply>) -> (Result<Bytes, BucketError>, usize) {
    let script = Script::new(replies).await;
    let got = script.bucket().get_range("k", 2..6).await;
    (got, script.seen().len())
}

#[tokio::test]
async fn a_range_is_exactly_what_was_asked_for_or_an_error() {
    let truncated = |len| {
        let key = "k".to_owned();
        Err(BucketError::Truncated {
            key,
            len,
            wanted: 6,
        })
    };
    let (got, _) = range_read(vec![part(2, "cdef", "9")]).await;
    assert_eq!(got, Ok(Bytes::from_static(b"cdef")));
    let (got, _) = range_read(vec![part(2, "cdef", "*")]).await;
    assert_eq!(got, Ok(Bytes::from_static(b"cdef")));
    let (got, _) = range_read(vec![part(2, "cd", "4")]).await;
    assert_eq!(got, truncated(4));
    let beyond = reply(
        "416 Range Not Satisfiable",
        "Content-Range: bytes */1\r\n",
        "",
    );
    assert_eq!(range_read(vec![beyond]).await.0, truncated(1));
    let beyond = reply("416 Range Not Satisfiable", "", "");
    assert_eq!(range_read(vec![beyond]).await.0, truncated(2));

    let lies = [
        // A part that is not the one asked for, or is too short without the object being so.
        part(3, "defg", "9"),
        part(2, "cd", "9"),
        part(2, "cdefg", "9"),
        // The whole object instead of a part.
        reply("200 OK", "", "abcdefghi"),
        reply("200 OK", "", "cdef"),
        // A length that does not fit the range.
        reply(
            "206 Partial Content",
            "Content-Range: bytes 2-5/9\r\n",
            "cdefg",
        ),
        reply(
            "206 Partial Content",
            "Content-Range: bytes 2-5/9\r\n",
            "cde",
        ),
        reply(
            "206 Partial Content",
            "Content-Range: everything\r\n",
            "cdef",
        ),
        reply(
            "206 Partial Content",
            "Content-Range: bytes 5-2/9\r\n",
            "cdef",
        ),
    ];
    for lie in lies {
        let (got, requests) = range_read(vec![lie.clone()]).await;
        assert!(
            matches!(got, Err(BucketError::Lied { .. })),
            "{got:?} for {lie:?}"
        );
        assert_eq!(requests, 1);
    }
}

#[tokio::test]
async fn a_body_that_is_cut_is_asked_for_again_and_then_a_lie() {
    let cut = raw(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\nContent-Range: bytes 2-5/9\r\n\r\ncd",
    );
    let (got, requests) = range_read(vec![cut.clone(), part(2, "cdef", "9")]).await;
    assert_eq!((got, requests), (Ok(Bytes::from_static(b"cdef")), 2));
    let (got, requests) = range_read(vec![cut]).await;
    let error = got.expect_err("never whole");
    assert!(matches!(error, BucketError::Lied { .. }), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("announced 4 bytes and sent 2"), "{said}");
    assert_eq!(requests, 3);
}

#[tokio::test]
async fn no_more_of_an_object_is_read_than_was_asked_for() {
    // It announces more bytes than there is memory, and sends none of them.
    let huge = raw("HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000\r\n\r\n");
    let script = Script::new(vec![huge]).await;
    let got = script.bucket().get("k", 1 << 20).await;
    let expected = BucketError::TooLong {
        key: "k".to_owned(),
        len: 1_000_000_000_000_000,
        len_max: 1 << 20,
    };
    assert_eq!(got, Err(expected));

    let unknown =
        raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let script = Script::new(vec![unknown]).await;
    let got = script.bucket().get("k", 1 << 20).await;
    assert!(matches!(got, Err(BucketError::Lied { .. })), "{got:?}");
}

#[tokio::test]
async fn a_write_is_sent_once_whatever_becomes_of_it() {
    let unclear = [
        Reply::Close,
        error("500 Internal Server Error", "InternalError"),
        error("503 Service Unavailable", "ServiceUnavailable"),
        reply("502 Bad Gateway", "", "<html>no"),
        raw("HTTP/1.1 200 OK\r\nContent-Le"),
        raw("this is not HTTP\r\n\r\n"),
    ];
    for lost in unclear {
        let script = Script::new(vec![lost.clone(), reply("200 OK", "", "")]).await;
        let got = script.bucket().put("k", Bytes::from_static(b"body")).await;
        assert!(
            matches!(got, Err(BucketError::Unclear { .. })),
            "{got:?} for {lost:?}"
        );
        assert_eq!(
            script.seen(),
            ["PUT /attic/cluster/k?x-id=PutObject HTTP/1.1"]
        );
    }
    let script = Script::new(vec![error("503 Slow Down", "SlowDown")]).await;
    let bucket = script.bucket();
    let got = bucket.put("k", Bytes::from_static(b"body")).await;
    assert!(matches!(got, Err(BucketError::Busy { .. })), "{got:?}");
    assert_eq!(script.seen().len(), 1);
    let counted = bucket.counters().put;
    assert_eq!(
        (counted.requests, counted.throttled, counted.retries),
        (1, 1, 0)
    );
}

#[tokio::test]
async fn a_write_without_an_answer_in_time_is_unclear() {
    let script = Script::new(vec![Reply::Silence]).await;
    let policy = Policy {
        attempt_time_max: Duration::from_millis(50),
        ..impatient()
    };
    let bucket = S3Bucket::new(S3Options {
        endpoint: Some(format!("http://{}", script.address)),
        policy,
        ..options()
    });
    let bucket = bucket.expect("right options");
    let got = bucket.put("k", Bytes::from_static(b"body")).await;
    assert!(matches!(got, Err(BucketError::Unclear { .. })), "{got:?}");
    let got = bucket.get("k", 10).await;
    assert!(
        matches!(got, Err(BucketError::Unreachable { .. })),
        "{got:?}"
    );
}

#[tokio::test]
async fn reads_are_asked_again_and_deletions_too() {
    let slow = || error("503 Slow Down", "SlowDown");
    let (got, requests) = range_read(vec![slow(), Reply::Close, part(2, "cdef", "9")]).await;
    assert_eq!((got, requests), (Ok(Bytes::from_static(b"cdef")), 3));
    let (got, requests) = range_read(vec![slow()]).await;
    assert!(matches!(got, Err(BucketError::Busy { .. })), "{got:?}");
    assert_eq!(requests, 3);
    let (got, requests) = range_read(vec![error("500 Oops", "InternalError")]).await;
    assert!(
        matches!(got, Err(BucketError::Unreachable { .. })),
        "{got:?}"
    );
    assert_eq!(requests, 3);

    let script = Script::new(vec![Reply::Close, reply("204 No Content", "", "")]).await;
    assert_eq!(script.bucket().delete("k").await, Ok(()));
    // The first may yet be applied, though the others were refused.
    let script = Script::new(vec![Reply::Close, slow()]).await;
    let got = script.bucket().delete("k").await;
    assert!(matches!(got, Err(BucketError::Unclear { .. })), "{got:?}");
    let script = Script::new(vec![error("404 Not Found", "NoSuchKey")]).await;
    assert_eq!(script.bucket().delete("k").await, Ok(()));
    let script = Script::new(vec![error("404 Not Found", "NoSuchBucket")]).await;
    let got = script.bucket().delete("k").await;
    assert!(matches!(got, Err(BucketError::NoBucket { .. })), "{got:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_left_alone_after_five_failures() {
    // A port that nobody listens on any more.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let bucket = S3Bucket::new(S3Options {
        endpoint: Some(format!("http://{address}")),
        policy: impatient(),
        ..options()
    });
    let bucket = bucket.expect("right options");
    let got = bucket.put("k", Bytes::new()).await;
    assert!(
        matches!(got, Err(BucketError::Unreachable { .. })),
        "{got:?}"
    );
    assert_eq!(
        bucket.head("k").await.map_err(|error| error.is_passing()),
        Err(true)
    );
    assert_eq!(bucket.health().breaker_open_until, None);
    let got = bucket.head("k").await;
    assert!(
        matches!(got, Err(BucketError::Unreachable { .. })),
        "{got:?}"
    );
    let health = bucket.health();
    assert!(health.breaker_open_until.is_some() && health.failing_since.is_some());
    let said = health.last_error.expect("it failed");
    assert!(
        said.contains(&format!("attic at http://{address}")),
        "{said}"
    );
    assert!(said.contains("refused"), "{said}");
    let before = bucket.counters();
    for _ in 0..10 {
        let got = bucket.put("k", Bytes::new()).await;
        assert!(
            matches!(got, Err(BucketError::Unreachable { .. })),
            "{got:?}"
        );
    }
    assert_eq!(bucket.counters().put.requests, before.put.requests);
}

#[tokio::test]
async fn a_listing_is_held_against_its_own_order() {
    let of = |keys: &'static [&'static str]| listing(false, keys);
    let script = Script::new(vec![of(&["cluster/a", "cluster/b/c"])]).await;
    let page = script.bucket().list("", None).await.expect("listed");
    let keys: Vec<&str> = page
        .objects
        .iter()
        .map(|object| object.key.as_str())
        .collect();
    assert_eq!((keys, page.is_last), (vec!["a", "b/c"], true));
    assert_eq!(page.objects[0].len, 7);
    assert_eq!(
        script.seen(),
        ["GET /attic/?list-type=2&prefix=cluster%2F HTTP/1.1"],
    );
    let lies = [
        of(&["cluster/b", "cluster/a"]),
        of(&["cluster/b", "cluster/b"]),
        of(&["cluster/0"]),
        of(&["cluster/1"]),
        of(&["other/a"]),
        listing(true, &[]),
    ];
    for lie in lies {
        let script = Script::new(vec![lie.clone()]).await;
        let got = script.bucket().list("", Some("1")).await;
        assert!(
            matches!(got, Err(BucketError::Lied { .. })),
            "{got:?} for {lie:?}"
        );
    }
}

#[tokio::test]
async fn refusals_say_what_to_do_and_no_secret() {
    let script = Script::new(vec![error("403 Forbidden", "SignatureDoesNotMatch")]).await;
    let bucket = script.bucket();
    let got = bucket.get("k", 10).await.expect_err("refused");
    let said = format!("{got} {got:?} {bucket:?} {:?}", bucket.health());
    assert!(matches!(got, BucketError::Denied { .. }), "{said}");
    assert!(said.contains("SignatureDoesNotMatch: as I say"), "{said}");
    assert!(!said.contains("the-secret"), "{said}");
    assert_eq!(script.seen().len(), 1);

    // Refused by a server whose clock is elsewhere.
    let body = "<Error><Code>AccessDenied</Code></Error>";
    let date = "Date: Thu, 01 Jan 2015 00:00:00 GMT\r\n";
    let script = Script::new(vec![reply("403 Forbidden", date, body)]).await;
    let bucket = script.bucket();
    let got = bucket.get("k", 10).await;
    assert!(matches!(got, Err(BucketError::ClockSkew { .. })), "{got:?}");
    let ahead = bucket
        .health()
        .clock_ahead_seconds
        .expect("it said the time");
    assert!(ahead < -86_400 * 365, "{ahead}");
}

#[test]
fn options_that_are_wrong_in_themselves_are_refused() {
    let check = |change: fn(&mut S3Options)| {
        let mut options = options();
        change(&mut options);
        S3Bucket::new(options).err()
    };
    let text = || "x".to_owned();
    assert_eq!(check(|_| ()), None);
    assert_eq!(check(|options| options.prefix = String::new()), None);
    for endpoint in [
        "s3.example.org",
        "ftp://s3",
        "http://",
        "http:///a",
        "http://u:p@s3",
        "http://s3?x",
    ] {
        let options = S3Options {
            endpoint: Some(endpoint.to_owned()),
            ..options()
        };
        let expected = S3OptionsError::Endpoint(endpoint.to_owned());
        assert_eq!(S3Bucket::new(options).err(), Some(expected));
    }
    let wrong = check(|options| options.bucket = "x".to_owned());
    assert_eq!(wrong, Some(S3OptionsError::Bucket(text())));
    let wrong = check(|options| options.prefix = "/x".to_owned());
    assert_eq!(wrong, Some(S3OptionsError::Prefix("/x".to_owned())));
    let wrong = check(|options| options.region = Some(String::new()));
    assert_eq!(wrong, Some(S3OptionsError::Region(String::new())));
}

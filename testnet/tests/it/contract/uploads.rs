//! `PUT`: what a cache takes from plain `nix copy`, and every lie it refuses.

use std::thread;
use std::time::{Duration, Instant};

use testnet::http::{Connection, Request, Response};
use testnet::nar::{Node, string};
use testnet::node::TestNode;
use testnet::seed::Seed;
use testnet::served::{self, Served, narinfo_fields};
use testnet::upload::Upload;

/// A node and an admin who uploads to it.
struct Desk {
    node: TestNode,
    token: String,
}

impl Desk {
    fn open(config: &str) -> Desk {
        let node = TestNode::with_config(config);
        let token = node.token();
        Desk { node, token }
    }

    fn put(&self, target: &str, body: impl Into<Vec<u8>>) -> Response {
        let request = Request::put(target, body).token(&self.token);
        request.send(self.node.address()).expect("an answer")
    }

    fn status(&self, target: &str) -> u16 {
        self.node.get(target).expect("an answer").status
    }

    fn put_nar(&self, upload: &Upload) -> Response {
        upload
            .put_nar(self.node.address(), "main", &self.token)
            .expect("an answer")
    }

    fn put_narinfo(&self, upload: &Upload, narinfo: &str) -> Response {
        upload
            .put_narinfo(self.node.address(), "main", &self.token, narinfo)
            .expect("an answer")
    }

    /// Checks that nothing of a refused upload can be seen.
    #[track_caller]
    fn shows_nothing_of(&self, upload: &Upload, what: &str) {
        assert_eq!(
            self.status(&upload.narinfo_target("main")),
            404,
            "narinfo of {what}"
        );
        let nar = format!("/main/nar/{}.nar.zst", upload.nar_hash().nix32());
        assert_eq!(self.status(&nar), 404, "NAR of {what}");
    }

    #[track_caller]
    fn shows_no_narinfo(&self, upload: &Upload) {
        assert_eq!(
            self.status(&upload.narinfo_target("main")),
            404,
            "narinfo of {}",
            upload.name
        );
    }
}

/// S15: what is uploaded is served, by HEAD as soon as the NAR is there, as a path once the
/// narinfo is.
#[test]
fn s15_an_upload_becomes_visible_with_its_narinfo() {
    let desk = &Desk::open("");
    let mut seed = Seed::for_test("s15");
    for upload in [
        Upload::file(&mut seed, "plain", b"plain".as_slice()),
        Upload::file(&mut seed, "empty", b"".as_slice()).zstd(),
        Upload::random(&mut seed, "name+-._?=", 700_000).zstd(),
    ] {
        let url = format!("/main/{}", upload.url());
        assert_eq!(
            Request::head(&url)
                .send(desk.node.address())
                .expect("an answer")
                .status,
            404
        );
        assert!(matches!(desk.put_nar(&upload).status, 200 | 201 | 204));
        let head = Request::head(&url)
            .send(desk.node.address())
            .expect("an answer");
        assert_eq!(head.status, 200, "HEAD must answer for an uploaded NAR");
        desk.shows_no_narinfo(&upload);
        let own_name = format!("/main/nar/{}.nar.zst", upload.nar_hash().nix32());
        let unread = || {
            assert_eq!((desk.status(&url), desk.status(&own_name)), (404, 404));
        };
        unread();
        let lie = upload.narinfo().replace("NarSize: ", "NarSize: 1");
        assert_eq!(desk.put_narinfo(&upload, &lie).status, 400);
        unread();
        assert!(matches!(
            desk.put_narinfo(&upload, &upload.narinfo()).status,
            200 | 201 | 204
        ));
        assert_eq!(desk.status(&url), 200);
        assert_eq!(
            desk.node.read(&upload.path()),
            Served::Whole(upload.nar.clone())
        );
    }
}

/// S15: writes need the token, in the form netrc gives it or as a bearer, and say so.
#[test]
fn s15_without_the_token_nothing_is_written() {
    let desk = &Desk::open("");
    let upload = Upload::file(&mut Seed::for_test("token"), "token", b"token".as_slice());
    let target = format!("/main/{}", upload.url());
    let put = || Request::put(&target, upload.file.clone());
    let basic = |user: &str, password: &str| {
        let text = format!("{user}:{password}");
        put().header(
            "Authorization",
            &format!("Basic {}", base64(text.as_bytes())),
        )
    };
    let refused = [
        put(),
        put().token("wrong"),
        put().token(""),
        basic("", "wrong"),
        basic(&desk.token, ""),
        put().header("Authorization", "Basic ###"),
        put().header("Authorization", &desk.token),
    ];
    for request in refused {
        let response = request.send(desk.node.address()).expect("an answer");
        assert!(
            matches!(response.status, 401 | 403),
            "{request:?}: {}",
            response.status
        );
        assert_eq!(desk.status(&target), 404);
    }
    let accepted = basic("anyone", &desk.token)
        .send(desk.node.address())
        .expect("an answer");
    assert!(
        matches!(accepted.status, 200 | 201 | 204),
        "{}",
        accepted.text()
    );
}

/// A NAR that Nix would not unpack is refused whole.
#[test]
fn lying_nars_are_refused_and_leave_nothing() {
    let desk = &Desk::open("[store]\nnar-size-max = \"64 MiB\"\n");
    let mut seed = Seed::for_test("lying_nars");
    let file = Node::file(seed.bytes(300_000));
    let good = file.to_nar();
    let mut wrong_magic = good.clone();
    wrong_magic[12] ^= 1;
    let mut padding = Node::file(*b"abc").to_nar();
    let end = padding
        .windows(3)
        .position(|w| w == b"abc")
        .expect("the contents are there")
        + 3;
    padding[end] = 1;
    let mut huge_length = good[..96].to_vec();
    huge_length.extend_from_slice(&u64::MAX.to_le_bytes());
    let twice = |name: &'static str| Node::directory([(name, file.clone()), (name, file.clone())]);
    let named = |name: &'static str| Node::directory([(name, file.clone())]).to_nar();
    let rows = [
        ("empty", Vec::new()),
        ("not a NAR", b"<html>It works!</html>".to_vec()),
        ("truncated", good[..good.len() - 8].to_vec()),
        ("truncated in a file", good[..good.len() / 2].to_vec()),
        (
            "trailing bytes",
            [good.as_slice(), b"\0\0\0\0\0\0\0\0"].concat(),
        ),
        ("two NARs", [good.as_slice(), good.as_slice()].concat()),
        ("wrong magic", wrong_magic),
        ("padding that is not zero", padding),
        ("a length of 2^64 - 1", huge_length),
        (
            "members out of order",
            Node::directory([("b", file.clone()), ("a", file.clone())]).to_nar(),
        ),
        ("a member twice", twice("a").to_nar()),
        ("a member called ..", named("..")),
        ("a member called .", named(".")),
        ("a member without a name", named("")),
        ("a member with a slash", named("a/b")),
        ("a member with a NUL", named("a\0b")),
        ("an unknown type", unknown_type()),
        ("executable out of place", executable_directory()),
        ("too deep", deep(100_000)),
    ];
    for (what, nar) in rows {
        for upload in [
            Upload::of_nar(&mut seed, "lie", nar.clone()),
            Upload::of_nar(&mut seed, "lie", nar).zstd(),
        ] {
            let response = desk.put_nar(&upload);
            assert!(
                (400..500).contains(&response.status),
                "{what}: {}",
                response.status
            );
            let response = desk.put_narinfo(&upload, &upload.narinfo());
            assert!(
                (400..500).contains(&response.status),
                "{what}: narinfo {}",
                response.status
            );
            desk.shows_nothing_of(&upload, what);
        }
    }
    leaves_nothing(desk);
}

/// What is compressed wrongly, or too well, is refused.
#[test]
fn lying_compression_is_refused_and_leaves_nothing() {
    let desk = &Desk::open("[store]\nnar-size-max = \"64 MiB\"\n");
    let mut seed = Seed::for_test("lying_compression");
    let honest = Upload::random(&mut seed, "lie", 300_000).zstd();
    let with_file = |file: Vec<u8>| Upload {
        file,
        ..honest.clone()
    };
    let bomb = Upload::file(&mut seed, "bomb", vec![0; 1 << 30]).zstd();
    let mut flipped = with_checksum(&honest.nar);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    let rows = [
        ("not compressed", with_file(honest.nar.clone()), 400..500),
        (
            "truncated",
            with_file(honest.file[..honest.file.len() - 3].to_vec()),
            400..500,
        ),
        ("flipped", with_file(flipped), 400..500),
        (
            "garbage behind",
            with_file([honest.file.as_slice(), b"garbage"].concat()),
            400..500,
        ),
        (
            "a window of 2 GiB",
            with_file(wide_window(&honest.nar)),
            400..500,
        ),
        ("a bomb", bomb, 413..414),
    ];
    for (what, upload, statuses) in rows {
        let started = Instant::now();
        let response = desk.put_nar(&upload);
        assert!(
            statuses.contains(&response.status),
            "{what}: {}",
            response.status
        );
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{what}: {:?}",
            started.elapsed()
        );
        let narinfo = desk.put_narinfo(&upload, &upload.narinfo());
        assert!(
            (400..500).contains(&narinfo.status),
            "{what}: narinfo {}",
            narinfo.status
        );
        desk.shows_nothing_of(&upload, what);
    }
    for extension in ["nar.lzip", "nar.zip", "tar", "nar.zst.zst", ""] {
        let target = format!("/main/nar/{}.{extension}", honest.file_hash().nix32());
        let response = desk.put(&target, honest.file.clone());
        assert!(
            (400..500).contains(&response.status),
            "{extension}: {}",
            response.status
        );
    }
    assert!(
        desk.node.rss_peak() < 256 << 20,
        "{} bytes of memory",
        desk.node.rss_peak()
    );
    leaves_nothing(desk);
}

/// A narinfo that says something untrue, or what some Nix would choke on, is refused.
#[test]
fn lying_narinfos_are_refused() {
    let desk = &Desk::open("");
    let mut seed = Seed::for_test("lying_narinfos");
    let honest = Upload::random(&mut seed, "honest", 50_000).zstd();
    let other = Upload::file(&mut seed, "other", b"other".as_slice());
    assert!(matches!(desk.put_nar(&honest).status, 200 | 201 | 204));
    assert!(matches!(desk.put_nar(&other).status, 200 | 201 | 204));
    let narinfo = honest.narinfo();
    let with = |field: &str, value: &str| honest.narinfo_with(field, value);
    let (path, base) = (honest.path(), honest.base_name());
    let long_name = format!("/nix/store/{}-{}", honest.hash, "n".repeat(212));
    let rows = [
        ("empty", String::new()),
        ("CRLF", narinfo.replace('\n', "\r\n")),
        ("no final newline", narinfo.trim_end().to_owned()),
        ("HTML", "<html>".to_owned()),
        ("no StorePath", honest.narinfo_without("StorePath")),
        ("no URL", honest.narinfo_without("URL")),
        ("no NarHash", honest.narinfo_without("NarHash")),
        ("no NarSize", honest.narinfo_without("NarSize")),
        (
            "StorePath of another hash",
            with("StorePath", &other.path()),
        ),
        (
            "StorePath elsewhere",
            with("StorePath", &path.replace("/nix/store", "/gnu/store")),
        ),
        (
            "StorePath with ..",
            with("StorePath", &format!("/nix/store/../{base}")),
        ),
        (
            "StorePath with a bad name",
            with("StorePath", &format!("{path}/x")),
        ),
        (
            "StorePath without a name",
            with("StorePath", &format!("/nix/store/{}", honest.hash)),
        ),
        (
            "StorePath with a name too long",
            with("StorePath", &long_name),
        ),
        (
            "NarHash of another NAR",
            with("NarHash", &other.nar_hash().to_string()),
        ),
        (
            "NarHash too short",
            with("NarHash", &honest.nar_hash().to_string()[..58]),
        ),
        (
            "NarHash of another kind",
            with("NarHash", "md5:00000000000000000000000000"),
        ),
        ("NarSize 0", with("NarSize", "0")),
        ("NarSize too big", with("NarSize", "50001")),
        (
            "NarSize overflowing",
            with("NarSize", "18446744073709551616"),
        ),
        ("NarSize negative", with("NarSize", "-1")),
        (
            "FileHash of another file",
            with("FileHash", &other.file_hash().to_string()),
        ),
        ("FileHash garbage", with("FileHash", "sha256:xyz")),
        ("FileSize wrong", with("FileSize", "7")),
        ("FileSize garbage", with("FileSize", "many")),
        ("Compression unknown", with("Compression", "rot13")),
        (
            "URL of nothing",
            with("URL", &format!("nar/{}.nar.zst", "0".repeat(52))),
        ),
        ("URL of another NAR", with("URL", &other.url())),
        ("URL climbing", with("URL", "nar/../../etc/passwd")),
        ("URL of a file", with("URL", "file:///etc/passwd")),
        ("URL elsewhere", with("URL", "http://example.org/x.nar.zst")),
        (
            "References with a full path",
            with("References", &other.path()),
        ),
        ("References garbage", with("References", "not a reference")),
        ("Deriver garbage", with("Deriver", "../x.drv")),
        ("Sig without a colon", with("Sig", "garbage")),
        ("Sig too short", with("Sig", "key:AAAA")),
        (
            "Sig not base64",
            with("Sig", &format!("key:{}", "#".repeat(88))),
        ),
        ("CA garbage", with("CA", "garbage")),
        (
            "CA of an unknown kind",
            with("CA", "fixed:r:md9:00000000000000000000000000000000"),
        ),
        (
            "two CAs",
            with(
                "CA",
                &format!(
                    "{0}\nCA: {0}",
                    "text:sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s"
                ),
            ),
        ),
    ];
    for (what, narinfo) in rows {
        let response = desk.put_narinfo(&honest, &narinfo);
        assert!(
            (400..500).contains(&response.status),
            "{what}: {}",
            response.status
        );
        assert!(
            response.body.len() < 1024,
            "{what}: Nix shows only short reasons"
        );
        desk.shows_no_narinfo(&honest);
    }
    let binary = desk.put(&honest.narinfo_target("main"), seed.bytes(1000));
    assert!(
        (400..500).contains(&binary.status),
        "binary: {}",
        binary.status
    );
    for len in [(1 << 20) + 1, 64 << 20] {
        let big = narinfo.clone() + &"X: y\n".repeat(len / 5);
        let response = desk.put_narinfo(&honest, &big);
        assert_eq!(response.status, 413, "{len} bytes");
    }
    desk.shows_no_narinfo(&honest);
    assert!(matches!(
        desk.put_narinfo(&honest, &narinfo).status,
        200 | 201 | 204
    ));
    assert_eq!(desk.node.read(&path), Served::Whole(honest.nar.clone()));
}

/// A narinfo without its NAR would be a promise nobody can keep.
#[test]
fn a_narinfo_without_its_nar_is_refused() {
    let desk = &Desk::open("");
    let upload = Upload::file(&mut Seed::for_test("no_nar"), "no-nar", b"x".as_slice());
    let response = desk.put_narinfo(&upload, &upload.narinfo());
    assert!((400..500).contains(&response.status), "{}", response.status);
    desk.shows_no_narinfo(&upload);
}

/// An upload that does not end is an upload that did not happen.
#[test]
fn an_interrupted_upload_is_invisible() {
    let desk = &Desk::open("[http]\nbody-idle-timeout = \"1s\"\n");
    let mut seed = Seed::for_test("interrupted");
    let upload = Upload::random(&mut seed, "interrupted", 2_000_000);
    let head = format!(
        "PUT /main/{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n",
        upload.url(),
        desk.token
    );
    let half = &upload.file[..upload.file.len() / 2];
    let with_length = format!("{head}Content-Length: {}\r\n\r\n", upload.file.len());
    let chunked = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n",
        half.len()
    );
    for start in [&with_length, &chunked] {
        for ends in [true, false] {
            let mut connection = Connection::open(desk.node.address()).expect("connect");
            connection.send_raw(start.as_bytes()).expect("send");
            connection.send_raw(half).expect("send");
            if ends {
                connection.finish_sending();
            }
            // Either an answer that it is not enough, or a closed connection; in time.
            let started = Instant::now();
            if let Ok(response) = connection.read_response(false) {
                assert!((400..500).contains(&response.status), "{}", response.status);
            }
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{:?}",
                started.elapsed()
            );
            assert_eq!(desk.status(&format!("/main/{}", upload.url())), 404);
        }
    }
}

/// How a body may be framed.
#[test]
fn bodies_are_framed_or_refused() {
    let desk = &Desk::open("");
    let upload = Upload::file(
        &mut Seed::for_test("framing"),
        "framing",
        b"framing".as_slice(),
    );
    let len = upload.file.len();
    let rows = [
        ("no length", String::new(), None),
        (
            "two lengths",
            format!("Content-Length: {len}\r\nContent-Length: 7\r\n"),
            None,
        ),
        (
            "a negative length",
            "Content-Length: -1\r\n".to_owned(),
            None,
        ),
        (
            "a length that is none",
            "Content-Length: all\r\n".to_owned(),
            None,
        ),
        (
            "length and chunks",
            format!("Content-Length: {len}\r\nTransfer-Encoding: chunked\r\n"),
            Some(b"0\r\n\r\n".to_vec()),
        ),
        (
            "an unknown coding",
            "Transfer-Encoding: rot13\r\n".to_owned(),
            None,
        ),
    ];
    for (what, headers, body) in rows {
        let mut connection = Connection::open(desk.node.address()).expect("connect");
        let head = format!(
            "PUT /main/{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{headers}\r\n",
            upload.url(),
            desk.token
        );
        connection.send_raw(head.as_bytes()).expect("send");
        connection
            .send_raw(&body.unwrap_or_default())
            .expect("send");
        connection.finish_sending();
        if let Ok(response) = connection.read_response(false) {
            assert!(
                (400..500).contains(&response.status),
                "{what}: {}",
                response.status
            );
        }
        assert_eq!(
            desk.status(&format!("/main/{}", upload.url())),
            404,
            "{what}"
        );
    }
}

/// libcurl asks before it sends a large body, and waits a second for the answer.
#[test]
fn expect_is_answered_before_the_body_is_sent() {
    let desk = &Desk::open("");
    let upload = Upload::file(
        &mut Seed::for_test("expect"),
        "expect",
        b"expect".as_slice(),
    );
    let mut connection = Connection::open(desk.node.address()).expect("connect");
    let head = format!(
        "PUT /main/{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
         Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        upload.url(),
        desk.token,
        upload.file.len()
    );
    connection.send_raw(head.as_bytes()).expect("send");
    assert_eq!(
        connection.read_head().expect("an interim answer").status,
        100
    );
    connection.send_raw(&upload.file).expect("send");
    let response = connection.read_response(false).expect("an answer");
    assert!(
        matches!(response.status, 200 | 201 | 204),
        "{}",
        response.status
    );
}

/// What is published stays as it is, whoever uploads what.
#[test]
fn published_things_cannot_be_overwritten() {
    let desk = &Desk::open("");
    let mut seed = Seed::for_test("immutable");
    let upload = Upload::file(&mut seed, "first", b"first".as_slice());
    upload.publish(desk.node.address(), "main", &desk.token);
    let before = desk
        .node
        .get(&upload.narinfo_target("main"))
        .expect("an answer")
        .text();

    let second = Upload {
        hash: upload.hash.clone(),
        ..Upload::file(&mut seed, "first", b"second".as_slice())
    };
    assert!(matches!(desk.put_nar(&second).status, 200 | 201 | 204));
    let refused = desk.put_narinfo(&second, &second.narinfo());
    assert!((400..500).contains(&refused.status), "{}", refused.status);
    let after = desk
        .node
        .get(&upload.narinfo_target("main"))
        .expect("an answer")
        .text();
    assert_eq!(before, after);

    let cache_info = desk.put("/main/nix-cache-info", b"StoreDir: /gnu/store\n".as_slice());
    assert!(
        (400..500).contains(&cache_info.status),
        "{}",
        cache_info.status
    );
    let text = desk
        .node
        .get("/main/nix-cache-info")
        .expect("an answer")
        .text();
    assert!(text.starts_with("StoreDir: /nix/store\n"), "{text}");
    assert_eq!(
        desk.node.read(&upload.path()),
        Served::Whole(upload.nar.clone())
    );
}

/// `nix store sign` uploads a narinfo again: its signatures are added, none is lost.
#[test]
fn signatures_are_merged() {
    let desk = &Desk::open("");
    let upload = Upload::file(
        &mut Seed::for_test("signatures"),
        "signatures",
        b"x".as_slice(),
    );
    let sig = |name: &str, byte: u8| format!("{name}:{}", base64(&[byte; 64]));
    desk.put_nar(&upload);
    for signature in [sig("one", 1), sig("two", 2), sig("one", 1)] {
        let narinfo = upload.narinfo_with("Sig", &signature);
        assert!(matches!(
            desk.put_narinfo(&upload, &narinfo).status,
            200 | 201 | 204
        ));
    }
    let text = desk
        .node
        .get(&upload.narinfo_target("main"))
        .expect("an answer")
        .text();
    for signature in [sig("one", 1), sig("two", 2)] {
        assert_eq!(text.matches(&signature).count(), 1, "{text}");
    }
    assert_eq!(
        narinfo_fields(&text)["Sig"].split(' ').count(),
        3,
        "ours and two others: {text}"
    );
}

/// What newer Nix versions may compress on their own is understood or refused, never stored raw.
#[test]
fn content_encoding_on_a_narinfo_is_decoded_or_refused() {
    let desk = &Desk::open("");
    let upload = Upload::file(&mut Seed::for_test("encoding"), "encoding", b"x".as_slice());
    desk.put_nar(&upload);
    let body = zstd::encode_all(upload.narinfo().as_bytes(), 1).expect("compress");
    let request = Request::put(&upload.narinfo_target("main"), body)
        .token(&desk.token)
        .header("Content-Encoding", "zstd");
    match request.send(desk.node.address()).expect("an answer").status {
        200 | 201 | 204 => {
            assert_eq!(
                desk.node.read(&upload.path()),
                Served::Whole(upload.nar.clone())
            );
        }
        status => {
            assert!((400..500).contains(&status), "{status}");
            desk.shows_no_narinfo(&upload);
        }
    }
}

/// G9: many upload at once, and nobody is told to come back later.
#[test]
fn g9_five_hundred_concurrent_uploads_all_succeed() {
    let desk = &Desk::open("");
    let mut seed = Seed::for_test("g9");
    let uploads: Vec<Upload> = (0..500)
        .map(|number| Upload::random(&mut seed, &format!("small-{number}"), 9000))
        .collect();
    thread::scope(|scope| {
        for upload in &uploads {
            let publish = || upload.publish(desk.node.address(), "main", &desk.token);
            let thread = thread::Builder::new().stack_size(256 << 10);
            thread.spawn_scoped(scope, publish).expect("a thread");
        }
    });
    for upload in &uploads {
        let served = served::read(desk.node.address(), "main", &upload.hash).expect("an answer");
        assert_eq!(served, Served::Whole(upload.nar.clone()), "{}", upload.name);
    }
}

/// Collects everything and checks that refused uploads left no bytes.
#[track_caller]
fn leaves_nothing(desk: &Desk) {
    let gc = desk.node.api("gc", Some("{\"full\":true}"));
    assert_eq!(gc.status, 200, "{}", gc.text());
    let left = desk.node.pack_bytes();
    assert!(left < 64 << 10, "{left} bytes are left after collection");
}

fn unknown_type() -> Vec<u8> {
    let mut nar = Vec::new();
    for word in [b"nix-archive-1".as_slice(), b"(", b"type", b"socket", b")"] {
        string(&mut nar, word);
    }
    nar
}

fn executable_directory() -> Vec<u8> {
    let mut nar = Vec::new();
    for word in [
        b"nix-archive-1".as_slice(),
        b"(",
        b"type",
        b"directory",
        b"executable",
        b"",
        b")",
    ] {
        string(&mut nar, word);
    }
    nar
}

/// Directories in directories, written without recursion.
fn deep(depth: usize) -> Vec<u8> {
    let mut nar = Vec::new();
    string(&mut nar, b"nix-archive-1");
    for _ in 0..depth {
        for word in [
            b"(".as_slice(),
            b"type",
            b"directory",
            b"entry",
            b"(",
            b"name",
            b"d",
            b"node",
        ] {
            string(&mut nar, word);
        }
    }
    for word in [b"(".as_slice(), b"type", b"directory", b")"] {
        string(&mut nar, word);
    }
    for _ in 0..depth * 2 {
        string(&mut nar, b")");
    }
    nar
}

/// A frame whose header asks the reader for a window of 2 GiB.
fn wide_window(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    encoder.window_log(31).expect("a window");
    std::io::copy(&mut &*bytes, &mut encoder).expect("compress");
    encoder.finish().expect("finish")
}

/// A frame that ends in a checksum of what it holds.
fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    encoder.include_checksum(true).expect("a checksum");
    std::io::copy(&mut &*bytes, &mut encoder).expect("compress");
    encoder.finish().expect("finish")
}

fn base64(bytes: &[u8]) -> String {
    data_encoding::BASE64.encode(bytes)
}

//! Row P12: knowing a hash grants nothing.

use attic_node_core::api::wire::{Possession, commit_body, ids_body, parse_bitmap};
use attic_node_core::api::{
    CommitOutcome, CommitPath, CommitReply, CommitRequest, PlanPath, PushPlan, PushSession,
    SessionGrant,
};
use attic_store::chunker::{Chunker, ChunkerParams};
use attic_store::hash::ChunkId;
use attic_store::narinfo::NarInfo;
use attic_store::store_path::StoreDir;
use data_encoding::HEXLOWER;
use serde::Serialize;
use serde::de::DeserializeOwned;
use testnet::http::{Request, Response};
use testnet::node::TestNode;
use testnet::seed::Seed;
use testnet::served::{self, Served};
use testnet::upload::Upload;

/// A client that speaks the push API by hand.
struct Pusher<'a> {
    node: &'a TestNode,
    token: String,
}

impl Pusher<'_> {
    fn post(&self, route: &str, body: Vec<u8>) -> Response {
        let request = Request::post(&format!("/_node/v1/{route}"), body);
        request
            .token(&self.token)
            .send(self.node.address())
            .expect("an answer")
    }

    fn json<T: DeserializeOwned>(&self, route: &str, body: &impl Serialize) -> T {
        let response = self.post(route, serde_json::to_vec(body).expect("JSON"));
        assert!(
            response.status < 300,
            "{route}: {} {}",
            response.status,
            response.text()
        );
        serde_json::from_slice(&response.body).expect("the answer has its shape")
    }

    /// Opens a push of `upload` to `cache`.
    fn plan(&self, upload: &Upload, cache: &str) -> SessionGrant {
        let info = info(upload);
        let path = PlanPath {
            hash: *info.path.hash(),
            nar_hash: info.nar_hash,
            nar_size: None,
        };
        let plan = PushPlan::new(cache.parse().expect("a name"), vec![path]);
        let session: PushSession = self.json("push", &plan);
        assert_eq!(session.missing, [*info.path.hash()]);
        session.session.expect("something is missing")
    }

    fn commit(
        &self,
        grant: &SessionGrant,
        upload: &Upload,
        ids: &[ChunkId],
        proof: Option<String>,
    ) -> CommitOutcome {
        let chunks = u32::try_from(ids.len()).expect("few chunks");
        let path = CommitPath {
            listed: 0,
            info: info(upload),
            chunks,
            proof,
        };
        let body = commit_body(&CommitRequest { paths: vec![path] }, ids).expect("a body");
        let response = self.post(&format!("push/{}/commit", grant.id), body);
        assert_eq!(response.status, 200, "{}", response.text());
        let reply: CommitReply = serde_json::from_slice(&response.body).expect("a reply");
        reply
            .results
            .into_iter()
            .next()
            .expect("one result")
            .outcome
    }
}

fn info(upload: &Upload) -> attic_store::narinfo::PathInfo {
    let store_dir = StoreDir::default();
    NarInfo::parse(upload.narinfo().as_bytes(), &store_dir)
        .expect("a narinfo")
        .info
}

fn chunks(nar: &[u8]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(ChunkerParams::CURRENT);
    let mut emit = |chunk: &[u8]| chunks.push(chunk.to_vec());
    chunker.push(nar, &mut emit);
    chunker.finish(&mut emit);
    chunks
}

/// Somebody else's path lies in a private cache; one who knows all its hashes, but not its bytes,
/// cannot map it into another.
#[test]
fn p12_knowing_every_hash_is_not_possession() {
    let node = &TestNode::start();
    node.cli()
        .run(&["cache", "create", "private", "--private"])
        .succeeds();
    let pusher = Pusher {
        node,
        token: node.token(),
    };
    let mut seed = Seed::for_test("p12");
    let upload = Upload::random(&mut seed, "secret", 2_000_000);
    upload.publish(node.address(), "private", &pusher.token);
    let chunks = chunks(&upload.nar);
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| ChunkId::of(chunk)).collect();

    let grant = pusher.plan(&upload, "main");
    let missing = pusher.post(&format!("push/{}/missing", grant.id), ids_body(&ids));
    let missing = parse_bitmap(&missing.body, ids.len()).expect("a bitmap");
    assert!(
        missing.iter().all(|missing| !missing),
        "the chunks are there already"
    );

    let prove = |challenge: &str, chunks: &[Vec<u8>]| {
        let key = HEXLOWER
            .decode(challenge.as_bytes())
            .expect("hexadecimal digits");
        let mut possession = Possession::new(&key.try_into().expect("32 bytes"));
        chunks.iter().for_each(|chunk| possession.update(chunk));
        possession.finish()
    };
    let earlier = pusher.plan(&upload, "main").challenge;
    let rows = [
        ("no proof", None),
        ("an empty proof", Some(String::new())),
        ("a random proof", Some(HEXLOWER.encode(&seed.bytes(32)))),
        (
            "a proof without the last chunk",
            Some(prove(&grant.challenge, &chunks[1..])),
        ),
        ("a proof over nothing", Some(prove(&grant.challenge, &[]))),
        (
            "a proof for another session",
            Some(prove(&earlier, &chunks)),
        ),
    ];
    for (what, proof) in rows {
        let outcome = pusher.commit(&grant, &upload, &ids, proof);
        assert!(
            matches!(outcome, CommitOutcome::Rejected { .. }),
            "{what}: {outcome:?}"
        );
        assert_eq!(node.read(&upload.path()), Served::Absent, "{what}");
    }
    let proof = prove(&grant.challenge, &chunks);
    let outcome = pusher.commit(&grant, &upload, &ids, Some(proof));
    assert!(
        matches!(outcome, CommitOutcome::Ok { new_bytes: 0, .. }),
        "{outcome:?}"
    );
    assert_eq!(node.read(&upload.path()), Served::Whole(upload.nar.clone()));
}

/// Chunks may not add up to another NAR than the one that is announced.
#[test]
fn a_commit_that_lies_about_its_nar_is_rejected() {
    let node = &TestNode::start();
    let pusher = Pusher {
        node,
        token: node.token(),
    };
    let mut seed = Seed::for_test("lying_commit");
    let upload = Upload::random(&mut seed, "announced", 900_000);
    let other = Upload::random(&mut seed, "other", 900_000);
    other.publish(node.address(), "main", &pusher.token);
    let chunks = chunks(&other.nar);
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| ChunkId::of(chunk)).collect();
    let grant = pusher.plan(&upload, "main");
    let key = HEXLOWER
        .decode(grant.challenge.as_bytes())
        .expect("hexadecimal digits");
    let mut possession = Possession::new(&key.try_into().expect("32 bytes"));
    chunks.iter().for_each(|chunk| possession.update(chunk));
    let outcome = pusher.commit(&grant, &upload, &ids, Some(possession.finish()));
    assert!(
        matches!(outcome, CommitOutcome::Rejected { .. }),
        "{outcome:?}"
    );
    assert_eq!(node.read(&upload.path()), Served::Absent);

    let unknown = [ChunkId::of(b"nobody has this")];
    let outcome = pusher.commit(&grant, &upload, &unknown, None);
    assert!(
        matches!(outcome, CommitOutcome::MissingChunks { .. }),
        "{outcome:?}"
    );
}

/// A session is of no use without the token, and an unknown one is not found.
#[test]
fn p12_the_push_api_needs_the_token() {
    let node = &TestNode::start();
    let upload = Upload::file(&mut Seed::for_test("push_token"), "x", b"x".as_slice());
    let pusher = Pusher {
        node,
        token: node.token(),
    };
    let grant = pusher.plan(&upload, "main");
    for route in ["missing", "commit"] {
        for token in ["", "wrong"] {
            let target = format!("/_node/v1/push/{}/{route}", grant.id);
            let request = Request::post(&target, vec![0; 32]).token(token);
            let response = request.send(node.address()).expect("an answer");
            let status = response.status;
            assert!(
                matches!(status, 401 | 403),
                "{route} with {token:?}: {status}"
            );
        }
        let unknown = pusher.post(&format!("push/{}/{route}", "0".repeat(32)), vec![0; 32]);
        assert!(
            matches!(unknown.status, 404 | 410),
            "{route}: {}",
            unknown.status
        );
    }
}

/// A private cache looks the same whether it has what a stranger asks for or not, and the same as
/// a cache that does not exist.
#[test]
fn p12_a_stranger_cannot_tell_present_from_absent() {
    let node = &TestNode::start();
    node.cli()
        .run(&["cache", "create", "private", "--private"])
        .succeeds();
    let mut seed = Seed::for_test("p12_stranger");
    let (present, absent) = (
        Upload::random(&mut seed, "present", 90_000),
        Upload::random(&mut seed, "absent", 90_000),
    );
    present.publish(node.address(), "private", &node.token());
    let targets = |upload: &Upload| {
        let (hash, nar) = (&upload.hash, upload.nar_hash().nix32());
        [
            format!("{hash}.narinfo"),
            format!("{hash}.ls"),
            format!("nar/{nar}.nar.zst"),
            format!("nar/{nar}.nar"),
            upload.url(),
            format!("log/{hash}-x.drv"),
            "nix-cache-info".to_owned(),
        ]
    };
    let ask = |method: &str, cache: &str, target: &str, token: &str| {
        let mut request = Request::new(method, &format!("/{cache}/{target}"));
        if !token.is_empty() {
            request = request.token(token);
        }
        let mut response = request.send(node.address()).expect("an answer");
        response.headers.retain(|(name, _)| name != "date");
        response
    };
    for (one, other) in targets(&present).iter().zip(&targets(&absent)) {
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            for token in ["", "wrong"] {
                let wanted = ask(method, "private", one, token);
                assert!(wanted.status >= 400, "{method} {one}: {}", wanted.status);
                assert_eq!(
                    wanted,
                    ask(method, "private", other, token),
                    "{method} {one}"
                );
                assert_eq!(
                    wanted,
                    ask(method, "no-such", other, token),
                    "{method} {one}"
                );
            }
        }
    }
    let narinfo = Request::get(&present.narinfo_target("private")).token(&node.token());
    assert_eq!(narinfo.send(node.address()).expect("an answer").status, 200);
    let stranger = served::read(node.address(), "main", &present.hash).expect("an answer");
    assert_eq!(stranger, Served::Absent, "another cache does not have it");
}

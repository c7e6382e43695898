//! The push API, as the node's own client uses it and as a cheat would.

use attic_node_core::api::wire::{ChunkHeader, Possession, commit_body, ids_body, parse_bitmap};
use attic_node_core::api::{
    CacheView, ChunksReply, CommitOutcome, CommitPath, CommitReply, CommitRequest, GcReply,
    PLAN_PATHS_MAX, PlanPath, PushPlan, PushSession, SessionGrant,
};
use attic_store::chunker::{Chunker, ChunkerParams};
use attic_store::frame::FrameEncoder;
use attic_store::{ChunkId, FileHash, NarHash, StorePathHash};
use data_encoding::HEXLOWER;
use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Reply, Sample, TestNode, all, files_below};

/// The chunks of a NAR, in order.
fn chunks(nar: &[u8]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(ChunkerParams::CURRENT);
    chunker.push(nar, &mut |chunk: &[u8]| chunks.push(chunk.to_vec()));
    chunker.finish(&mut |chunk: &[u8]| chunks.push(chunk.to_vec()));
    chunks
}

fn records(chunks: &[Vec<u8>]) -> Vec<u8> {
    let mut encoder = FrameEncoder::new();
    let mut body = Vec::new();
    for chunk in chunks {
        let frame = encoder.encode(chunk).unwrap();
        let (raw_len, frame_len) = (chunk.len() as u32, frame.len() as u32);
        let header = ChunkHeader {
            id: ChunkId::of(chunk),
            raw_len,
            frame_len,
        };
        body.extend_from_slice(&header.to_bytes());
        body.extend_from_slice(&frame);
    }
    body
}

fn proof(grant: &SessionGrant, chunks: &[Vec<u8>]) -> String {
    let challenge = HEXLOWER.decode(grant.challenge.as_bytes()).unwrap();
    let mut possession = Possession::new(challenge.as_slice().try_into().unwrap());
    chunks.iter().for_each(|chunk| possession.update(chunk));
    possession.finish()
}

/// A path with its chunks and the proof for those that were not sent.
type Committed<'a> = (&'a Sample, &'a [Vec<u8>], Option<String>);

/// One client's push into `main`.
struct Push<'a> {
    node: &'a TestNode,
    grant: SessionGrant,
}

impl<'a> Push<'a> {
    async fn begin(node: &'a TestNode, samples: &[&Sample]) -> Push<'a> {
        let session = plan(node, "main", samples).await;
        Push {
            node,
            grant: session.session.unwrap(),
        }
    }

    fn call(&self, method: Method, what: &str) -> crate::harness::Call<'a> {
        self.node
            .api(method, &format!("push/{}{what}", self.grant.id))
    }

    async fn missing(&self, chunks: &[Vec<u8>]) -> Vec<bool> {
        let ids: Vec<_> = chunks.iter().map(|chunk| ChunkId::of(chunk)).collect();
        let reply = self
            .call(Method::POST, "/missing")
            .body(ids_body(&ids))
            .send()
            .await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        parse_bitmap(&reply.body, ids.len()).unwrap()
    }

    async fn send(&self, chunks: &[Vec<u8>]) -> Reply {
        self.call(Method::PUT, "/chunks")
            .body(records(chunks))
            .send()
            .await
    }

    async fn commit(&self, paths: &[Committed<'_>]) -> Vec<CommitOutcome> {
        let reply = self.commit_raw(paths).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let reply: CommitReply = serde_json::from_slice(&reply.body).unwrap();
        reply
            .results
            .into_iter()
            .map(|result| result.outcome)
            .collect()
    }

    async fn list(&self, sample: &Sample, from: usize, ids: &[ChunkId]) {
        let part = format!("/list/{}?from={from}", sample.hash());
        let call = self.call(Method::PUT, &part).body(ids_body(ids));
        let reply = call.send().await;
        assert_eq!(reply.status, 204, "{}", reply.text());
    }

    /// Commits a path all of whose chunks were listed and sent.
    async fn commit_listed(&self, sample: &Sample, listed: usize) -> CommitOutcome {
        let path = CommitPath {
            info: sample.info(),
            listed: listed as u32,
            chunks: 0,
            proof: None,
        };
        let body = commit_body(&CommitRequest { paths: vec![path] }, []).unwrap();
        let reply: CommitReply = self.call(Method::POST, "/commit").body(body).ok().await;
        reply.results.into_iter().next().unwrap().outcome
    }

    async fn commit_raw(&self, paths: &[Committed<'_>]) -> Reply {
        let request = CommitRequest {
            paths: paths
                .iter()
                .map(|(sample, chunks, proof)| CommitPath {
                    listed: 0,
                    info: sample.info(),
                    chunks: chunks.len() as u32,
                    proof: proof.clone(),
                })
                .collect(),
        };
        let ids: Vec<_> = paths
            .iter()
            .flat_map(|(_, chunks, _)| chunks.iter().map(|chunk| ChunkId::of(chunk)))
            .collect();
        let body = commit_body(&request, &ids).unwrap();
        self.call(Method::POST, "/commit").body(body).send().await
    }
}

async fn plan(node: &TestNode, cache: &str, samples: &[&Sample]) -> PushSession {
    let paths = samples.iter().map(|s| PlanPath {
        hash: s.hash(),
        nar_hash: s.nar_hash(),
        nar_size: None,
    });
    let plan = PushPlan::new(cache.parse().unwrap(), paths.collect());
    node.api(Method::POST, "push").json(&plan).ok().await
}

async fn visible(node: &TestNode, sample: &Sample) -> bool {
    let reply = node.get(&format!("/main/{}", sample.narinfo_name())).await;
    reply.status == 200
}

fn is_rejected(outcome: &CommitOutcome, because: &str) -> bool {
    matches!(outcome, CommitOutcome::Rejected { message } if message.contains(because))
}

/// P2, P11: only missing chunks travel, the paths are there when the answer is, and the next push
/// of the same is one request.
#[tokio::test]
async fn p2_only_missing_chunks_are_sent_and_p11_paths_are_readable_at_once() {
    let node = TestNode::start().await;
    let first = Sample::noise("first", 3_000_000);
    let cut = chunks(&first.nar);
    let push = Push::begin(&node, &[&first]).await;
    assert!(push.missing(&cut).await.iter().all(|missing| *missing));
    assert_eq!(push.send(&cut).await.status, 200);
    assert!(!visible(&node, &first).await, "not before the commit");
    let outcome = &push.commit(&[(&first, &cut, None)]).await[0];
    let CommitOutcome::Ok {
        file_size,
        new_bytes,
        untold: false,
    } = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!(file_size, new_bytes);
    assert!(visible(&node, &first).await);
    let nar = node
        .get(&format!("/main/{}", node.narinfo("main", &first).await.url))
        .await;
    assert_eq!(nar.body.len() as u64, *file_size);
    assert_eq!(zstd::decode_all(&nar.body[..]).unwrap(), first.nar);

    let again = plan(&node, "main", &[&first]).await;
    assert!(again.session.is_none() && again.missing.is_empty());

    let mut contents = crate::harness::noise("first", 3_000_000);
    contents[1_500_000] ^= 1;
    let changed = Sample::file("changed", &contents);
    let cut = chunks(&changed.nar);
    let push = Push::begin(&node, &[&changed]).await;
    let missing = push.missing(&cut).await;
    let (new, old): (Vec<_>, Vec<_>) = cut.iter().cloned().zip(&missing).partition(|(_, m)| **m);
    assert!(
        new.len() <= 2 && !old.is_empty(),
        "{} of {} chunks are new",
        new.len(),
        cut.len()
    );
    let (new, old): (Vec<_>, Vec<_>) = (
        new.into_iter().map(|(c, _)| c).collect(),
        old.into_iter().map(|(c, _)| c).collect(),
    );
    assert_eq!(push.send(&new).await.status, 200);
    let proof = proof(&push.grant, &old);
    assert!(matches!(
        push.commit(&[(&changed, &cut, Some(proof))]).await[0],
        CommitOutcome::Ok { .. }
    ));
    let nar = node
        .get(&format!(
            "/main/{}",
            node.narinfo("main", &changed).await.url
        ))
        .await;
    assert_eq!(zstd::decode_all(&nar.body[..]).unwrap(), changed.nar);
}

/// P12: knowing the ids of chunks, and the hash of their NAR, is not having them.
#[tokio::test]
async fn p12_chunks_that_were_not_sent_need_a_proof() {
    let node = TestNode::start().await;
    let sample = Sample::noise("secret", 1_000_000);
    node.publish("main", &sample).await;
    let twin = Sample {
        path: crate::harness::store_path("twin"),
        ..sample.clone()
    };
    let cut = chunks(&sample.nar);
    let push = Push::begin(&node, &[&twin]).await;
    assert!(push.missing(&cut).await.iter().all(|missing| !missing));
    let other = Push::begin(&node, &[&twin]).await;
    let rows = [
        None,
        Some("0".repeat(64)),
        Some("nonsense".to_owned()),
        Some(proof(&push.grant, &cut[1..])),
        Some(proof(&other.grant, &cut)),
    ];
    for wrong in rows {
        let outcome = &push.commit(&[(&twin, &cut, wrong.clone())]).await[0];
        assert!(is_rejected(outcome, "possession"), "{wrong:?}: {outcome:?}");
        assert!(!visible(&node, &twin).await);
    }
    let right = proof(&push.grant, &cut);
    assert!(matches!(
        push.commit(&[(&twin, &cut, Some(right))]).await[0],
        CommitOutcome::Ok { new_bytes: 0, .. }
    ));
    assert!(visible(&node, &twin).await);
}

/// P3: what was sent is there for a new session; a repeated request is harmless.
#[tokio::test]
async fn p3_an_interrupted_push_resumes() {
    let node = TestNode::start().await;
    let sample = Sample::noise("sample", 2_000_000);
    let cut = chunks(&sample.nar);
    let first = Push::begin(&node, &[&sample]).await;
    let half = cut.len() / 2;
    for _ in 0..2 {
        let reply: ChunksReply =
            serde_json::from_slice(&first.send(&cut[..half]).await.body).unwrap();
        assert_eq!(reply.chunks as usize, half);
    }
    let second = Push::begin(&node, &[&sample]).await;
    let missing = second.missing(&cut).await;
    assert_eq!(
        missing,
        (0..cut.len())
            .map(|index| index >= half)
            .collect::<Vec<_>>()
    );
    let outcome = &second.commit(&[(&sample, &cut, None)]).await[0];
    let wanted: Vec<u32> = (half as u32..cut.len() as u32).collect();
    assert_eq!(outcome, &CommitOutcome::MissingChunks { missing: wanted });
    assert_eq!(second.send(&cut[half..]).await.status, 200);
    for _ in 0..2 {
        let proof = proof(&second.grant, &cut[..half]);
        let outcome = &second.commit(&[(&sample, &cut, Some(proof))]).await[0];
        assert!(matches!(outcome, CommitOutcome::Ok { .. }), "{outcome:?}");
    }
    assert_eq!(second.call(Method::DELETE, "").send().await.status, 204);
    assert_eq!(second.call(Method::DELETE, "").send().await.status, 404);
    assert_eq!(second.send(&cut).await.status, 404);
}

/// P3: no body beyond the limit is taken.
#[tokio::test]
async fn p3_bodies_are_bounded() {
    let node = TestNode::with(&[("push.body-max", "1 MiB")]).await;
    let sample = Sample::noise("sample", 2_000_000);
    let session = plan(&node, "main", &[&sample]).await;
    assert_eq!(session.body_max, 1 << 20);
    let push = Push {
        node: &node,
        grant: session.session.unwrap(),
    };
    assert_eq!(push.send(&chunks(&sample.nar)).await.status, 413);
    let too_many = vec![0; 32 * 4097];
    assert_eq!(
        push.call(Method::POST, "/missing")
            .body(too_many)
            .send()
            .await
            .status,
        413
    );
}

/// P3, G10: the limit of a body limits neither the closure nor the NAR that is pushed.
#[tokio::test]
async fn p3_large_closures_and_chunk_lists_travel_in_parts() {
    let node = TestNode::with(&[("push.body-max", "1 MiB")]).await;
    let sample = Sample::noise("sample", 300_000);
    let hash = |n: u32| FileHash::of(&n.to_le_bytes());
    let paths: Vec<_> = (0..12_000)
        .map(|n| PlanPath {
            hash: StorePathHash::from_bytes(*hash(n).as_bytes().first_chunk().unwrap()),
            nar_hash: NarHash::from_bytes(*hash(n).as_bytes()),
            nar_size: None,
        })
        .collect();
    let mut opened: Option<SessionGrant> = None;
    for part in paths.chunks(PLAN_PATHS_MAX) {
        let mut plan = PushPlan::new("main".parse().unwrap(), part.to_vec());
        plan.session = opened.as_ref().map(|grant| grant.id.clone());
        let reply: PushSession = node.api(Method::POST, "push").json(&plan).ok().await;
        assert_eq!(reply.missing.len(), part.len());
        let grant = reply.session.unwrap();
        assert!(opened.is_none_or(|opened| opened == grant));
        opened = Some(grant);
    }
    assert_eq!(node.metric("attic_node_push_sessions").await, 1.0);
    let push = Push {
        node: &node,
        grant: opened.unwrap(),
    };

    // More chunks than fit into a body, none of which the node has.
    let ids: Vec<_> = (0..40_000u32)
        .map(|n| ChunkId::of(&n.to_le_bytes()))
        .collect();
    for _ in 0..2 {
        push.list(&sample, 0, &ids[..30_000]).await;
        push.list(&sample, 30_000, &ids[30_000..]).await;
    }
    let outcome = push.commit_listed(&sample, 40_000).await;
    let all: Vec<u32> = (0..40_000).collect();
    assert_eq!(outcome, CommitOutcome::MissingChunks { missing: all });

    let cut = chunks(&sample.nar);
    assert_eq!(push.send(&cut).await.status, 200);
    let ids: Vec<_> = cut.iter().map(|chunk| ChunkId::of(chunk)).collect();
    push.list(&sample, 0, &ids).await;
    let short = push.commit_listed(&sample, ids.len() + 1).await;
    assert!(is_rejected(&short, "listed"), "{short:?}");
    let outcome = push.commit_listed(&sample, ids.len()).await;
    assert!(matches!(outcome, CommitOutcome::Ok { .. }), "{outcome:?}");
    assert!(visible(&node, &sample).await);
    let again = push.commit_listed(&sample, ids.len()).await;
    assert!(
        is_rejected(&again, "listed"),
        "a list is forgotten with its commit"
    );
    let gap = push
        .call(Method::PUT, &format!("/list/{}?from=1", sample.hash()))
        .body(ids_body(&ids));
    assert_eq!(gap.send().await.status, 409);
}

/// G8: what has decayed unseen is found by a push that asks for it, and healed by that push.
#[tokio::test]
async fn g8_a_push_that_rechecks_heals_what_nobody_has_read() {
    let sample = Sample::noise("sample", 600_000);
    let mut node = TestNode::start().await;
    node.publish("main", &sample).await;
    node.stop().await;
    for file in files_below(&node.data_dir().join("store/packs")) {
        let mut bytes = std::fs::read(&file).unwrap();
        if bytes.len() > 300_000 {
            bytes[300_000] ^= 1;
            std::fs::write(&file, bytes).unwrap();
        }
    }
    node.boot().await;
    let believed = plan(&node, "main", &[&sample]).await;
    assert!(
        believed.missing.is_empty(),
        "nothing is read for this answer"
    );
    let paths = vec![PlanPath {
        hash: sample.hash(),
        nar_hash: sample.nar_hash(),
        nar_size: None,
    }];
    let mut plan = PushPlan::new("main".parse().unwrap(), paths);
    plan.recheck = true;
    let session: PushSession = node.api(Method::POST, "push").json(&plan).ok().await;
    assert_eq!(session.missing, [sample.hash()]);
    assert!(!visible(&node, &sample).await);
    let push = Push {
        node: &node,
        grant: session.session.unwrap(),
    };
    let cut = chunks(&sample.nar);
    let proof = proof(&push.grant, &cut);
    let outcome = push.commit(&[(&sample, &cut, Some(proof))]).await.remove(0);
    let CommitOutcome::MissingChunks { missing } = outcome else {
        panic!("{outcome:?}")
    };
    let (sent, kept): (Vec<_>, Vec<_>) = (0..cut.len() as u32).partition(|at| missing.contains(at));
    let pick =
        |at: &Vec<u32>| -> Vec<Vec<u8>> { at.iter().map(|at| cut[*at as usize].clone()).collect() };
    assert_eq!(push.send(&pick(&sent)).await.status, 200);
    let proof = crate::push::proof(&push.grant, &pick(&kept));
    let outcome = push.commit(&[(&sample, &cut, Some(proof))]).await.remove(0);
    assert!(matches!(outcome, CommitOutcome::Ok { .. }), "{outcome:?}");
    let url = node.narinfo("main", &sample).await.url;
    let nar = node.get(&format!("/main/{url}")).await;
    assert_eq!(zstd::decode_all(&nar.body[..]).unwrap(), sample.nar);
    let session: PushSession = node.api(Method::POST, "push").json(&plan).ok().await;
    assert!(session.missing.is_empty());
}

/// A session that has every chunk of a path: target and body of the commit that is still to come.
pub(crate) async fn ready_to_commit(node: &TestNode, sample: &Sample) -> (String, Vec<u8>) {
    let cut = chunks(&sample.nar);
    let push = Push::begin(node, &[sample]).await;
    assert_eq!(push.send(&cut).await.status, 200);
    let path = CommitPath {
        info: sample.info(),
        listed: 0,
        chunks: cut.len() as u32,
        proof: None,
    };
    let ids: Vec<_> = cut.iter().map(|chunk| ChunkId::of(chunk)).collect();
    let body = commit_body(&CommitRequest { paths: vec![path] }, &ids).unwrap();
    (format!("/_node/v1/push/{}/commit", push.grant.id), body)
}

/// G9: five hundred pushes at once, each in a session of its own, and none fails.
#[tokio::test]
async fn g9_five_hundred_concurrent_pushes() {
    let node = TestNode::start().await;
    let samples: Vec<_> = (0..500)
        .map(|index| Sample::noise(&format!("sample-{index}"), 2000))
        .collect();
    let pushes = all(samples.iter().map(|sample| begin_one(&node, sample)));
    let pushes = pushes.await;
    let cut: Vec<_> = samples.iter().map(|sample| chunks(&sample.nar)).collect();
    let sent = all(pushes.iter().zip(&cut).map(|(push, cut)| push.send(cut))).await;
    assert!(sent.iter().all(|reply| reply.status == 200));
    let commit = async |push: &Push<'_>, sample: &Sample, cut: &[Vec<u8>]| {
        push.commit(&[(sample, cut, None)]).await.remove(0)
    };
    let commits = pushes.iter().zip(&samples).zip(&cut);
    let commits = commits.map(|((push, sample), cut)| commit(push, sample, cut));
    for outcome in all(commits).await {
        assert!(matches!(outcome, CommitOutcome::Ok { .. }), "{outcome:?}");
    }
    for sample in &samples {
        assert!(visible(&node, sample).await);
    }
}

async fn begin_one<'a>(node: &'a TestNode, sample: &Sample) -> Push<'a> {
    Push::begin(node, &[sample]).await
}

/// Sessions that are in use are not ended for the sake of others: those come again later.
#[tokio::test]
async fn at_the_limit_of_sessions_others_are_told_to_come_again() {
    let node = TestNode::with(&[("push.sessions-max", "2")]).await;
    let samples = [1, 2, 3].map(|n| Sample::noise(&format!("s{n}"), 100_000));
    let first = Push::begin(&node, &[&samples[0]]).await;
    let second = Push::begin(&node, &[&samples[1]]).await;
    let path = PlanPath {
        hash: samples[2].hash(),
        nar_hash: samples[2].nar_hash(),
        nar_size: None,
    };
    let third = PushPlan::new("main".parse().unwrap(), vec![path]);
    let reply = node.api(Method::POST, "push").json(&third).send().await;
    assert_eq!(reply.status, 503);
    assert_ne!(reply.header("retry-after"), "");
    for (push, sample) in [(&first, &samples[0]), (&second, &samples[1])] {
        let cut = chunks(&sample.nar);
        assert_eq!(push.send(&cut).await.status, 200);
        let outcome = push.commit(&[(sample, &cut, None)]).await.remove(0);
        assert!(matches!(outcome, CommitOutcome::Ok { .. }), "{outcome:?}");
    }
    assert_eq!(first.call(Method::DELETE, "").send().await.status, 204);
    Push::begin(&node, &[&samples[2]]).await;
}

/// What was sent and never published is garbage once its session has ended, whatever it was.
#[tokio::test]
async fn nothing_leaks_after_the_lease() {
    let node =
        TestNode::with(&[("push.session-idle", "200ms"), ("store.upload-grace", "0s")]).await;
    let kept = Sample::noise("kept", 300_000);
    node.publish("main", &kept).await;
    let before = collected_bytes(&node).await;

    // Never committed.
    let abandoned = Sample::noise("abandoned", 2_000_000);
    let push = Push::begin(&node, &[&abandoned]).await;
    assert_eq!(push.send(&chunks(&abandoned.nar)).await.status, 200);
    // Committed, and refused.
    let lying = Sample::noise("lying", 2_000_000);
    let other = chunks(&Sample::noise("x", 2_000_000).nar);
    let push = Push::begin(&node, &[&lying]).await;
    assert_eq!(push.send(&other).await.status, 200);
    let outcome = push.commit(&[(&lying, &other, None)]).await.remove(0);
    assert!(is_rejected(&outcome, "NarHash"), "{outcome:?}");
    // A NAR whose narinfo never comes.
    let orphan = Sample::noise("orphan", 2_000_000);
    let target = format!("/main/{}", orphan.url());
    let put = node.put(&target, orphan.nar.clone());
    assert_eq!(put.await.status, 201);
    // An upload whose client goes away.
    let cut = Sample::noise("cut", 2_000_000);
    let head = format!(
        "PUT /main/{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Length: {}\r\n\r\n",
        cut.url(),
        node.bearer(),
        cut.nar.len()
    );
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(&cut.nar[..1_500_000]);
    let mut stream = tokio::net::TcpStream::connect(node.address())
        .await
        .unwrap();
    stream.write_all(&bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let _ = stream.read_to_end(&mut Vec::new()).await;

    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while node.metric("attic_node_push_sessions").await > 0.0 {
        assert!(
            std::time::Instant::now() < deadline,
            "the sessions never end"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let after = collected_bytes(&node).await;
    assert!(after < before + (64 << 10), "{before} bytes, then {after}");
    assert!(visible(&node, &kept).await);
}

/// Bytes of packs after a full collection.
async fn collected_bytes(node: &TestNode) -> u64 {
    let full = serde_json::json!({ "full": true });
    let gc: GcReply = node.api(Method::POST, "gc").json(&full).ok().await;
    gc.bytes_after
}

/// No body beyond its limit is taken, on any route, and its answer says why.
#[tokio::test]
async fn oversized_bodies_are_refused() {
    let node = TestNode::with(&[("push.body-max", "1 MiB"), ("store.nar-size-max", "1 MiB")]).await;
    let sample = Sample::noise("sample", 300_000);
    let push = Push::begin(&node, &[&sample]).await;
    let large = Sample::noise("large", 3_000_000);
    let absent = crate::harness::store_path("a.drv");
    let mib2 = vec![b' '; 2 << 20];
    let puts = [
        (format!("/main/{}", large.url()), large.nar.clone()),
        (format!("/main/log/{absent}"), vec![b'x'; (64 << 20) + 1]),
        (
            format!("/main/{}.ls", sample.hash()),
            vec![b' '; (64 << 20) + 1],
        ),
        (format!("/main/debuginfo/{}", "0f".repeat(20)), mib2.clone()),
        (
            format!("/main/build-trace-v2/{absent}/out.doi"),
            mib2.clone(),
        ),
        (format!("/main/{}", sample.narinfo_name()), mib2.clone()),
    ];
    for (target, body) in puts {
        let reply = node.put(&target, body).await;
        assert_eq!(reply.status, 413, "{target}: {}", reply.text());
        assert_eq!(node.get(&target).await.status, 404, "{target}");
    }
    for call in [
        node.api(Method::POST, "push"),
        push.call(Method::POST, "/commit"),
        push.call(Method::PUT, &format!("/list/{}?from=0", sample.hash())),
        push.call(Method::PUT, "/chunks"),
        push.call(Method::POST, "/missing"),
        node.api(Method::POST, "gc"),
    ] {
        let reply = call.body(mib2.clone()).send().await;
        assert!(
            matches!(reply.status.as_u16(), 400 | 413),
            "{}",
            reply.status
        );
        assert!(reply.text().contains("error"), "{}", reply.text());
    }
    assert_eq!(node.get("/healthz").await.status, 200);
}

/// P5: each path has its own outcome.
#[tokio::test]
async fn p5_one_bad_path_does_not_spoil_the_others() {
    let node = TestNode::start().await;
    let good = Sample::noise("good", 300_000);
    let lying = Sample::noise("lying", 300_000);
    let absent = Sample::noise("absent", 300_000);
    let (good_cut, other_cut) = (chunks(&good.nar), chunks(&Sample::noise("x", 300_000).nar));
    let push = Push::begin(&node, &[&good, &lying, &absent]).await;
    push.send(&good_cut).await;
    push.send(&other_cut).await;
    let absent_cut = chunks(&absent.nar);
    let outcomes = push
        .commit(&[
            (&lying, &other_cut, None),
            (&good, &good_cut, None),
            (&absent, &absent_cut, None),
            (&good, &good_cut, None),
            (&lying, &good_cut[..1], None),
            (&lying, &[], None),
        ])
        .await;
    assert!(is_rejected(&outcomes[0], "NarHash"), "{outcomes:?}");
    assert!(
        matches!(outcomes[1], CommitOutcome::Ok { .. }),
        "{outcomes:?}"
    );
    assert!(
        matches!(outcomes[2], CommitOutcome::MissingChunks { .. }),
        "{outcomes:?}"
    );
    assert!(is_rejected(&outcomes[3], "twice"), "{outcomes:?}");
    assert!(is_rejected(&outcomes[4], "NAR"), "{outcomes:?}");
    assert!(is_rejected(&outcomes[5], "NAR"), "{outcomes:?}");
    assert!(visible(&node, &good).await);
    assert!(!visible(&node, &lying).await && !visible(&node, &absent).await);
}

/// P5: no path becomes visible whose reference the same commit refuses.
#[tokio::test]
async fn p5_a_refused_path_takes_along_what_refers_to_it() {
    let node = TestNode::start().await;
    let lying = Sample::noise("lying", 300_000);
    let referrer = Sample::file("referrer", b"1").referring_to(&[&lying]);
    let root = Sample::file("root", b"2").referring_to(&[&referrer]);
    let other = Sample::file("other", b"3");
    let samples = [&lying, &referrer, &root, &other];
    let push = Push::begin(&node, &samples).await;
    let mut cuts = samples.map(|sample| chunks(&sample.nar));
    cuts[0] = chunks(&Sample::noise("x", 300_000).nar);
    let mut paths = Vec::new();
    for (sample, cut) in samples.into_iter().zip(&cuts) {
        assert_eq!(push.send(cut).await.status, 200);
        paths.push((sample, cut.as_slice(), None));
    }
    let outcomes = push.commit(&paths).await;
    assert!(is_rejected(&outcomes[0], "NarHash"), "{outcomes:?}");
    let refers_to = |sample: &Sample| format!("refers to {}, which", sample.path);
    assert!(
        is_rejected(&outcomes[1], &refers_to(&lying)),
        "{outcomes:?}"
    );
    assert!(
        is_rejected(&outcomes[2], &refers_to(&referrer)),
        "{outcomes:?}"
    );
    for (sample, is_visible) in samples.into_iter().zip([false, false, false, true]) {
        assert_eq!(visible(&node, sample).await, is_visible, "{}", sample.path);
    }
}

/// P5: what was sent before the size cap was reached can be committed after that.
#[tokio::test]
async fn p5_a_session_without_space_commits_what_it_has() {
    let node = TestNode::with(&[("store.size-cap", "16 MiB")]).await;
    let small = Sample::noise("small", 300_000);
    let large = Sample::noise("large", 30_000_000);
    let push = Push::begin(&node, &[&small, &large]).await;
    let small_cut = chunks(&small.nar);
    assert_eq!(push.send(&small_cut).await.status, 200);
    let mut refusal = None;
    for part in chunks(&large.nar).chunks(8) {
        let reply = push.send(part).await;
        if reply.status != 200 {
            refusal = Some(reply);
            break;
        }
    }
    let refusal = refusal.expect("30 MB do not fit");
    assert_eq!(refusal.status, 507);
    assert!(refusal.text().contains("CapReached"), "{}", refusal.text());
    let outcome = &push.commit(&[(&small, &small_cut, None)]).await[0];
    assert!(matches!(outcome, CommitOutcome::Ok { .. }), "{outcome:?}");
    assert!(visible(&node, &small).await);
    assert_eq!(push.call(Method::DELETE, "").send().await.status, 204);
}

#[tokio::test]
async fn lying_records_are_refused() {
    let node = TestNode::start().await;
    let sample = Sample::noise("sample", 300_000);
    let cut = chunks(&sample.nar);
    let push = Push::begin(&node, &[&sample]).await;
    let good = records(&cut);
    let mut wrong_id = good.clone();
    wrong_id[0] ^= 1;
    let mut wrong_len = good.clone();
    wrong_len[32] ^= 1;
    let mut huge = good.clone();
    huge[36..40].copy_from_slice(&u32::MAX.to_le_bytes());
    let rows = [
        ("wrong id", wrong_id),
        ("wrong length", wrong_len),
        ("huge frame", huge),
        ("truncated", good[..good.len() - 1].to_vec()),
        ("half a header", good[..20].to_vec()),
    ];
    for (what, body) in rows {
        let reply = push.call(Method::PUT, "/chunks").body(body).send().await;
        assert_eq!(reply.status, 400, "{what}: {}", reply.text());
    }
    assert!(push.missing(&cut[..1]).await[0]);
    for (what, body) in [
        ("missing", &b"short"[..]),
        ("commit", &[255; 8]),
        ("commit", b""),
    ] {
        let reply = push
            .call(Method::POST, &format!("/{what}"))
            .body(body)
            .send()
            .await;
        assert_eq!(reply.status, 400, "{what}");
    }
}

#[tokio::test]
async fn sessions_end_by_themselves() {
    let node = TestNode::with(&[("push.session-idle", "200ms")]).await;
    let sample = Sample::noise("sample", 300_000);
    let push = Push::begin(&node, &[&sample]).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while node.metric("attic_node_push_sessions_expired_total").await < 1.0 {
        assert!(
            std::time::Instant::now() < deadline,
            "the session never ends"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(push.send(&chunks(&sample.nar)).await.status, 404);
}

/// A push replaces a path whose contents differ: the pusher says so by pushing it.
#[tokio::test]
async fn s5_a_push_of_other_contents_leaves_the_old_url_honest() {
    let node = TestNode::start().await;
    let old = Sample::noise("sample", 300_000);
    node.publish("main", &old).await;
    let old_url = node.narinfo("main", &old).await.url;
    let new = Sample {
        nar: Sample::noise("other", 300_000).nar,
        ..old.clone()
    };
    let cut = chunks(&new.nar);
    let push = Push::begin(&node, &[&new]).await;
    push.send(&cut).await;
    assert!(matches!(
        push.commit(&[(&new, &cut, None)]).await[0],
        CommitOutcome::Ok { .. }
    ));
    assert_eq!(
        node.narinfo("main", &new).await.info.nar_hash,
        new.nar_hash()
    );
    let reply = node.get(&format!("/main/{old_url}")).await;
    if reply.status == 200 {
        assert_eq!(
            NarHash::of(&zstd::decode_all(&reply.body[..]).unwrap()),
            old.nar_hash()
        );
    } else {
        assert_eq!(reply.status, 404);
    }
}

/// P7: the policy comes with the plan, so that the client can explain what it leaves out.
#[tokio::test]
async fn p7_the_plan_carries_the_policy() {
    let node = TestNode::start().await;
    let sample = Sample::file("sample", b"x");
    let session = plan(&node, "main", &[&sample]).await;
    assert!(session.skip_signed_by[0].starts_with("cache.nixos.org-1:"));
    assert!(!session.cache_everything);
    let patch = serde_json::json!({ "cache_everything": true, "skip_signed_by": [] });
    let _: CacheView = node
        .api(Method::PATCH, "caches/main")
        .json(&patch)
        .ok()
        .await;
    let session = plan(&node, "main", &[&sample]).await;
    assert!(session.cache_everything && session.skip_signed_by.is_empty());
    let unknown = PushPlan::new("absent".parse().unwrap(), Vec::new());
    assert_eq!(
        node.api(Method::POST, "push")
            .json(&unknown)
            .send()
            .await
            .status,
        404
    );
}

//! The push API, as the node's own client uses it and as a cheat would.

use attic_node_core::api::wire::{ChunkHeader, Possession, commit_body, ids_body, parse_bitmap};
use attic_node_core::api::{
    CacheView, ChunksReply, CommitOutcome, CommitPath, CommitReply, CommitRequest, PlanPath,
    PushPlan, PushSession, SessionGrant,
};
use attic_store::chunker::{Chunker, ChunkerParams};
use attic_store::frame::FrameEncoder;
use attic_store::{ChunkId, NarHash};
use data_encoding::HEXLOWER;
use hyper::Method;

use crate::harness::{Reply, Sample, TestNode};

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

    async fn commit_raw(&self, paths: &[Committed<'_>]) -> Reply {
        let request = CommitRequest {
            paths: paths
                .iter()
                .map(|(sample, chunks, proof)| CommitPath {
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
    });
    let plan = PushPlan {
        cache: cache.parse().unwrap(),
        paths: paths.collect(),
    };
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
    let unknown = PushPlan {
        cache: "absent".parse().unwrap(),
        paths: Vec::new(),
    };
    assert_eq!(
        node.api(Method::POST, "push")
            .json(&unknown)
            .send()
            .await
            .status,
        404
    );
}

//! Rows C7 and P11: what is pushed is made durable, survives every node, and is fetched back. Whole
//! nodes on loopback; the bucket is the one in memory, which fails as it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use attic_p2p::ids::{CacheId, Dot};
use attic_p2p::journal::{
    Condemnations, Entry, JOURNALS, Reference, condemnations_key, read_entry_key,
};
use attic_p2p::signed::Signed;
use attic_p2p::wire::Priority;
use attic_store::bucket::Operation;
use attic_store::bucket::memory::{Fault, MemoryBucket};
use attic_store::bucket::pack::PACKS;
use attic_store::{PackId, StorePathHash};
use serde_json::{Value, json};

use super::private::Member;
use super::world::{noise, soon, until};
use crate::mesh::flight::Wanted;

/// A member that shares a bucket.
struct Keeper {
    member: Member,
    bucket: Arc<MemoryBucket>,
}

impl Keeper {
    async fn start(bucket: MemoryBucket) -> Keeper {
        let (member, bucket) = (Member::start().await, Arc::new(bucket));
        let remote = Arc::clone(&bucket);
        let set = member.app.bucket.set((remote, "memory/".to_owned()));
        assert!(set.is_ok());
        Keeper { member, bucket }
    }

    /// The only node of a cluster, which has the cache `main`.
    async fn founding(bucket: MemoryBucket) -> Keeper {
        let keeper = Keeper::start(bucket).await;
        keeper.member.post("/cluster/init", json!({})).await;
        keeper
    }

    fn cache(&self) -> CacheId {
        let cache = self.member.app.caches.find("main").unwrap();
        cache.settings.shared_as.unwrap()
    }

    async fn push(&self, number: u8, contents: Vec<u8>) -> (StorePathHash, Wanted) {
        self.member.publish("main", number, contents).await
    }

    async fn is_durable(&self, path: StorePathHash, seconds: u64) -> bool {
        let request = json!({
            "cache": "main", "paths": [path.to_string()], "timeout_seconds": seconds,
        });
        let reply = self.member.post("/bucket/durable", request).await;
        reply["left"].as_array().unwrap().is_empty()
    }

    async fn until_durable(&self, path: StorePathHash) {
        for _ in 0..6 {
            if self.is_durable(path, 10).await {
                return;
            }
        }
        panic!("not durable: {:?}", self.member.mesh().backlog.progress());
    }

    fn dots(&self, path: &StorePathHash) -> Vec<Dot> {
        self.member.mesh().view.dots(self.cache(), path)
    }

    /// The text of the cluster's key.
    fn cluster_key(&self) -> String {
        let path = self.member.app.data.cluster().join("cluster.key");
        std::fs::read_to_string(path).unwrap()
    }

    /// The part of the cluster in the bucket.
    fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let prefix = format!("{}/", self.member.mesh().cluster);
        let objects = self.bucket.objects().into_iter();
        objects
            .filter_map(|(key, body)| Some((key.strip_prefix(&prefix)?.to_owned(), body.to_vec())))
            .collect()
    }

    fn packs(&self) -> BTreeSet<PackId> {
        let objects = self.objects();
        let packs = objects.keys().filter(|key| key.starts_with(PACKS));
        packs
            .map(|key| PackId::of_object_key(key).unwrap())
            .collect()
    }

    /// The last reference to each record, in the order of the journal.
    fn references(&self) -> BTreeMap<Dot, BTreeSet<PackId>> {
        let cluster = self.member.mesh().cluster;
        let mut references = BTreeMap::new();
        for (key, body) in self.objects() {
            if !key.starts_with(JOURNALS) {
                continue;
            }
            let (keeper, _) = read_entry_key(&key).unwrap();
            let signed = Signed::<Entry>::decode(&body).unwrap();
            for Reference { dot, packs } in &signed.check(&cluster, &keeper).unwrap().references {
                references.insert(*dot, packs.iter().map(|(pack, _)| *pack).collect());
            }
        }
        references
    }

    /// Every pack is needed by a durable record, and every durable record's packs are there.
    fn check_nothing_lost_or_leaked(&self, paths: &[StorePathHash]) {
        let (references, packs) = (self.references(), self.packs());
        let mut needed = BTreeSet::new();
        for path in paths {
            for dot in self.dots(path) {
                let of_dot = references
                    .get(&dot)
                    .expect("a reference to a durable record");
                needed.extend(of_dot.iter().copied());
            }
        }
        assert_eq!(needed, packs);
    }
}

/// Fetches a NAR; returns its bytes as frames.
async fn fetch(member: &Member, wanted: &Wanted) -> Result<(), crate::mesh::flight::FlightError> {
    let mesh = member.mesh();
    let flight = mesh.flights.follow(wanted.clone(), Priority::Client)?;
    flight.ready(soon()).await?;
    let imported = flight.landed().await?;
    assert_eq!(imported.nar_hash, wanted.nar);
    Ok(())
}

async fn rebuild(bucket: &MemoryBucket, key: &str) -> (Keeper, Value) {
    let keeper = Keeper::start(bucket.beside()).await;
    let request = json!({ "cluster_key": key });
    let reply = keeper.member.post("/cluster/rebuild", request).await;
    (keeper, reply)
}

#[tokio::test(flavor = "multi_thread")]
async fn c7_a_cluster_is_rebuilt_from_its_bucket_alone() {
    let keeper = Keeper::founding(MemoryBucket::new()).await;
    let shared = noise("shared", 2_000_000);
    let mut pushed = Vec::new();
    for number in 1..=3 {
        let own = noise(&format!("own {number}"), 300_000);
        pushed.push(keeper.push(number, [&shared[..], &own].concat()).await);
    }
    for (path, _) in &pushed {
        keeper.until_durable(*path).await;
    }
    let paths: Vec<_> = pushed.iter().map(|(path, _)| *path).collect();
    keeper.check_nothing_lost_or_leaked(&paths);
    let stored: usize = keeper.objects().values().map(Vec::len).sum();
    assert!(
        stored < 3_500_000,
        "{stored} bytes: what they share is there once"
    );

    let (key, bucket) = (keeper.cluster_key(), keeper.bucket.beside());
    drop(keeper);
    let (rebuilt, reply) = rebuild(&bucket, &key).await;
    let cache = &reply["caches"][0];
    assert_eq!(
        (&cache["name"], &cache["paths"], &cache["lost"]),
        (&json!("main"), &json!(3), &json!(0))
    );
    for (path, wanted) in &pushed {
        let found = rebuilt
            .member
            .mesh()
            .finder
            .path(rebuilt.cache(), *path)
            .await;
        assert_eq!(found.map(|record| record.info.nar_hash), Some(wanted.nar));
        fetch(&rebuilt.member, wanted).await.unwrap();
    }
    // It goes on: what it has heard of is durable already, and nothing is written again.
    let counters = |keeper: &Keeper| {
        let counters = attic_store::bucket::Bucket::counters(&*keeper.bucket);
        counters.of(Operation::Put).bytes
    };
    assert!(counters(&rebuilt) < 100_000, "{}", counters(&rebuilt));
}

#[tokio::test(flavor = "multi_thread")]
async fn c7_another_key_finds_nothing_and_a_node_in_a_cluster_is_not_rebuilt() {
    let keeper = Keeper::founding(MemoryBucket::new()).await;
    let (path, _) = keeper.push(1, noise("one", 100_000)).await;
    keeper.until_durable(path).await;
    let other = Keeper::founding(MemoryBucket::new()).await;
    let newcomer = Keeper::start(keeper.bucket.beside()).await;
    for (member, key, word) in [
        (&newcomer.member, other.cluster_key(), "404"),
        (&keeper.member, keeper.cluster_key(), "409"),
        (&newcomer.member, "nonsense".to_owned(), "400"),
    ] {
        let refused = member
            .try_post("/cluster/rebuild", json!({ "cluster_key": key }))
            .await;
        assert!(refused.unwrap_err().contains(word), "{word}");
    }
    assert!(newcomer.member.app.mesh.get().is_none());
}

/// Each write of the first pushes meets each kind of loss in turn. What was pushed becomes durable all
/// the same, and no pack is left that nobody needs.
#[tokio::test(flavor = "multi_thread")]
async fn c7_lost_requests_and_answers_lose_and_leak_nothing() {
    let loss = [Fault::RequestLost, Fault::AnswerLost, Fault::Busy];
    let rounds = loss
        .into_iter()
        .flat_map(|fault| (0..4).map(move |at| (fault, at)));
    let mut running = tokio::task::JoinSet::new();
    for (fault, at) in rounds {
        running.spawn(async move {
            let bucket = MemoryBucket::new();
            for _ in 0..at {
                bucket.script([None]);
            }
            let keeper = Keeper::founding(bucket).await;
            keeper.bucket.script_next(Operation::Put, fault);
            keeper.bucket.script_next(Operation::Put, fault);
            let (one, wanted) = keeper.push(1, noise("one", 700_000)).await;
            keeper.until_durable(one).await;
            let (two, _) = keeper.push(2, noise("two", 500_000)).await;
            keeper.until_durable(two).await;
            keeper.check_nothing_lost_or_leaked(&[one, two]);
            let (key, bucket) = (keeper.cluster_key(), keeper.bucket.beside());
            drop(keeper);
            let (rebuilt, _) = rebuild(&bucket, &key).await;
            let outcome = fetch(&rebuilt.member, &wanted).await;
            assert!(outcome.is_ok(), "{fault:?} at {at}: {outcome:?}");
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

/// What somebody condemned, and what is gone, is not relied on, however well it is known.
#[tokio::test(flavor = "multi_thread")]
async fn c7_a_record_is_not_durable_by_packs_that_are_condemned_or_gone() {
    let keeper = Keeper::founding(MemoryBucket::new()).await;
    let shared = noise("shared", 1_000_000);
    let (one, _) = keeper.push(1, shared.clone()).await;
    keeper.until_durable(one).await;
    let condemned = keeper.packs();
    assert_eq!(condemned.len(), 1);
    let sets = Condemnations {
        condemned: condemned.clone(),
        doomed: BTreeSet::new(),
    };
    let mesh = keeper.member.mesh();
    let signed = Signed::new(sets, &keeper.member.app.identity());
    let key = format!("{}/{}", mesh.cluster, condemnations_key(&mesh.me, 1, 0));
    keeper.bucket.set(&key, signed.encode().into());

    let (two, _) = keeper.push(2, [&shared[..], b"two"].concat()).await;
    keeper.until_durable(two).await;
    let relied = |path: &StorePathHash| {
        let references = keeper.references();
        let dots = keeper.dots(path);
        dots.iter()
            .flat_map(|dot| references[dot].clone())
            .collect::<BTreeSet<_>>()
    };
    assert!(relied(&two).is_disjoint(&condemned), "condemned");

    let gone = relied(&two);
    for pack in &gone {
        keeper
            .bucket
            .unset(&format!("{}/{}", mesh.cluster, pack.object_key()));
    }
    let (three, _) = keeper.push(3, [&shared[..], b"three"].concat()).await;
    keeper.until_durable(three).await;
    let relied = relied(&three);
    assert!(relied.is_disjoint(&gone) && relied.is_disjoint(&condemned));
    assert!(relied.is_subset(&keeper.packs()));
}

/// While the bucket is away pushes go on, and what is here is served; then all of them are written.
#[tokio::test(flavor = "multi_thread")]
async fn c7_an_outage_of_the_bucket_queues_and_replays() {
    let keeper = Keeper::founding(MemoryBucket::new()).await;
    let (before, _) = keeper.push(1, noise("before", 100_000)).await;
    keeper.until_durable(before).await;
    keeper.bucket.down(true);
    let mut during = Vec::new();
    for number in 2..=20 {
        during.push(
            keeper
                .push(number, noise(&number.to_string(), 50_000))
                .await
                .0,
        );
    }
    until("the outage is told of", || {
        keeper.member.mesh().backlog.progress().trouble.is_some()
    })
    .await;
    assert!(!keeper.is_durable(during[0], 0).await);
    let found = keeper
        .member
        .app
        .store
        .path(&"main".parse().unwrap(), &during[3]);
    assert!(found.unwrap().is_some());
    keeper.bucket.down(false);
    for path in &during {
        keeper.until_durable(*path).await;
    }
    until("the trouble is over", || {
        keeper.member.mesh().backlog.progress().trouble.is_none()
    })
    .await;
    during.push(before);
    keeper.check_nothing_lost_or_leaked(&during);
}

/// Row C8: what is pushed in small paths is written in few requests.
#[tokio::test(flavor = "multi_thread")]
async fn c8_many_small_paths_take_few_requests() {
    let keeper = Keeper::founding(MemoryBucket::new()).await;
    keeper.bucket.down(true);
    let mut pushed = Vec::new();
    for number in 1..=100 {
        pushed.push(
            keeper
                .push(number, noise(&number.to_string(), 20_000))
                .await
                .0,
        );
    }
    keeper.bucket.down(false);
    for path in &pushed {
        keeper.until_durable(*path).await;
    }
    let counters = attic_store::bucket::Bucket::counters(&*keeper.bucket);
    let puts = keeper.objects().len();
    assert!(puts <= 12, "{puts} objects, {counters:?}");
}

/// Bytes of a pack that decayed in the bucket reach nobody.
#[tokio::test(flavor = "multi_thread")]
async fn c6_damaged_bytes_of_the_bucket_are_not_served() {
    let keeper = Keeper::founding(MemoryBucket::new()).await;
    let (path, wanted) = keeper.push(1, noise("one", 700_000)).await;
    keeper.until_durable(path).await;
    let (key, bucket) = (keeper.cluster_key(), keeper.bucket.beside());
    let cluster = keeper.member.mesh().cluster;
    let pack = *keeper.packs().first().unwrap();
    drop(keeper);
    let object = format!("{cluster}/{}", pack.object_key());
    let mut bytes = bucket.objects()[&object].to_vec();
    bytes[200_000] ^= 1;
    bucket.set(&object, bytes.into());
    let (rebuilt, _) = rebuild(&bucket, &key).await;
    let outcome = fetch(&rebuilt.member, &wanted).await;
    assert!(outcome.is_err(), "{outcome:?}");
    let shared = rebuilt.member.mesh().bucket.clone().unwrap();
    assert_eq!(shared.damaged_count(), 1);
}

/// Row S10: nodes that want the same NAR at once, which only the bucket has, read it about once and trade.
#[tokio::test(flavor = "multi_thread")]
async fn s10_nodes_that_want_the_same_of_the_bucket_read_it_once() {
    const NODES: usize = 5;
    let keeper = Keeper::founding(MemoryBucket::new()).await;
    let (path, wanted) = keeper.push(1, noise("one", 24_000_000)).await;
    keeper.until_durable(path).await;
    let stored = wanted.file.unwrap().1;
    let mut others = Vec::new();
    for _ in 0..NODES {
        let other = Keeper::start(keeper.bucket.beside()).await;
        keeper.member.admit(&other.member, "*", &[]).await;
        others.push(other);
    }
    let cache = keeper.cache();
    for other in &others {
        until("it is connected to all, and knows of the path", || {
            let mesh = other.member.mesh();
            mesh.network.peers().len() == NODES && mesh.view.path(cache, &path).is_some()
        })
        .await;
        let mesh = other.member.mesh();
        until("it knows the bucket", || {
            !mesh.bucket.as_ref().unwrap().index().is_empty()
        })
        .await;
    }
    drop(keeper);
    for other in &others {
        until("the keeper is gone", || {
            other.member.mesh().network.peers().len() == NODES - 1
        })
        .await;
    }
    let mut fetching = tokio::task::JoinSet::new();
    for other in others {
        fetching.spawn(async move {
            let mesh = other.member.mesh();
            let record = mesh
                .finder
                .path(cache, path)
                .await
                .expect("it is in the bucket");
            let flight = mesh.fetch(record, Priority::Client).unwrap();
            flight.landed().await.unwrap();
            other
        });
    }
    let others: Vec<Keeper> = fetching.join_all().await;
    let read = |keeper: &Keeper| {
        let counters = attic_store::bucket::Bucket::counters(&*keeper.bucket);
        counters.of(Operation::Get).bytes
    };
    let all: u64 = others.iter().map(read).sum();
    let ratio = all as f64 / stored as f64;
    assert!(
        ratio < 1.5,
        "{ratio}: {:?}",
        others.iter().map(read).collect::<Vec<_>>()
    );
}

//! Which names caches of the cluster go by on a node that has caches of its own, or comes back.

use std::collections::{BTreeMap, BTreeSet};

use attic_p2p::ids::CacheId;
use attic_store::{CacheName, StorePathHash};
use serde_json::{Value, json};

use crate::api::{CachePatch, JoinReply};
use crate::caches::Caches;
use crate::data_dir::DataDir;

use super::private::Member;
use super::world::{noise, until};

impl Member {
    /// Lets another node in that may read and write everything; what that is told.
    async fn let_in(&self, other: &Member) -> JoinReply {
        let terms = json!({
            "role": "member", "read": ["*"], "write": ["*"], "expires_seconds": 600, "uses": 1,
        });
        let ticket = self.post("/cluster/invites", terms).await;
        serde_json::from_value(other.post("/cluster/join", ticket).await).unwrap()
    }

    async fn create(&self, name: &str, settings: Value) {
        let create = json!({ "name": name, "settings": settings });
        self.post("/caches", create).await;
    }

    fn id(&self, name: &str) -> CacheId {
        let cache = self.app.caches.find(name).unwrap();
        cache.settings.shared_as.unwrap()
    }

    /// Its caches by name, each with what the cluster calls it.
    fn names(&self) -> BTreeMap<String, Option<CacheId>> {
        let snapshot = self.app.caches.snapshot();
        let names = snapshot.values().map(|cache| {
            let name = cache.name.to_string();
            (name, cache.settings.shared_as)
        });
        names.collect()
    }

    fn is_here(&self, name: &str, hash: &StorePathHash) -> bool {
        let name: CacheName = name.parse().unwrap();
        self.app.store.path(&name, hash).unwrap().is_some()
    }

    fn believes(&self, id: CacheId, hash: &StorePathHash) -> bool {
        self.mesh().view.path(id, hash).is_some()
    }

    async fn may_sign(&self, id: CacheId) {
        until("it has the key", || {
            let cache = self.app.caches.find_shared(&id);
            cache.is_some_and(|cache| cache.secret.is_some())
        })
        .await;
    }

    async fn remove(&self, name: &str, hash: &StorePathHash) {
        let remove = json!({ "paths": [hash], "force": false, "dry_run": false });
        self.post(&format!("/caches/{name}/remove"), remove).await;
    }
}

/// The derived name of a cache.
fn apart(name: &str, id: CacheId) -> String {
    format!("{name}-{}", &id.to_string()[..8])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_whose_name_is_taken_here_is_served_and_written_under_another() {
    let (one, two) = (Member::start().await, Member::start().await);
    one.post("/cluster/init", json!({})).await;
    one.let_in(&two).await;
    let local = [("foo", true), ("bar", false)];
    for (name, public) in local {
        let own = json!({ "shared": false, "public": public });
        two.create(name, own).await;
    }
    let before = local.map(|(name, _)| two.app.caches.find(name).unwrap().public_key());
    for (name, public) in [("foo", true), ("bar", false)] {
        one.create(name, json!({ "public": public })).await;
        let (id, here) = (one.id(name), apart(name, one.id(name)));
        until("it is there", || two.app.caches.find(&here).is_some()).await;
        assert_eq!(two.id(&here), id);
        two.may_sign(id).await;
        let cache = two.app.caches.find(&here).unwrap();
        let theirs = one.app.caches.find(name).unwrap();
        assert_eq!(cache.public_key(), theirs.public_key(), "one key");
        assert_eq!(cache.view().founded_as.unwrap().as_str(), name);
        assert_eq!(theirs.view().founded_as, None);
        let (of_one, _) = one.publish(name, 1, noise(name, 10_000)).await;
        let (of_two, _) = two.publish(&here, 2, noise(&here, 10_000)).await;
        until("each knows what the other pushed", || {
            two.believes(id, &of_one) && one.believes(id, &of_two)
        })
        .await;
        assert!(!two.is_here(name, &of_two), "nothing goes to its namesake");
    }
    let after = local.map(|(name, _)| two.app.caches.find(name).unwrap());
    assert!(after.iter().all(|cache| cache.settings.shared_as.is_none()));
    assert_eq!(after.map(|cache| cache.public_key()), before);
    // As a restart finds it.
    let on_disk = Caches::load(DataDir::new(two.app.data.root())).unwrap();
    for (name, _) in local {
        let cache = on_disk.find_shared(&one.id(name)).unwrap();
        assert_eq!(cache.name.as_str(), apart(name, one.id(name)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_let_in_is_told_of_all_caches_that_it_may_read() {
    let (one, two) = (Member::start().await, Member::start().await);
    one.post("/cluster/init", json!({})).await;
    for (name, public) in [("a", true), ("b", true), ("vault", false)] {
        one.create(name, json!({ "public": public })).await;
    }
    let reply = one.let_in(&two).await;
    let told = reply.caches.iter().map(|cache| cache.name.to_string());
    let told: BTreeSet<String> = told.collect();
    assert_eq!(told, ["a", "b", "main", "vault"].map(String::from).into());
}

/// Time and again: the same caches under the same names, with what was in them.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_finds_the_same_caches() {
    let (one, two) = (Member::start().await, Member::start().await);
    one.post("/cluster/init", json!({})).await;
    one.let_in(&two).await;
    two.create("own", json!({})).await;
    two.create("vault", json!({ "public": false })).await;
    let names = two.names();
    for (number, name) in (0..).zip(["main", "own", "vault"]) {
        let id = two.id(name);
        two.may_sign(id).await;
        until("the other has it", || {
            one.app.caches.find_shared(&id).is_some()
        })
        .await;
        for round in 0..3 {
            let path = |n: u8| {
                (
                    n + 10 * round + 40 * number,
                    noise(name, 1000 + usize::from(n)),
                )
            };
            let ((stays, bytes), (goes, other), (late, more)) = (path(1), path(2), path(3));
            let (stays, _) = two.publish(name, stays, bytes).await;
            let (goes, _) = two.publish(name, goes, other).await;
            until("it is known", || {
                one.believes(id, &stays) && one.believes(id, &goes)
            })
            .await;
            two.post("/cluster/leave", json!({})).await;
            assert!(two.names().values().all(Option::is_none));
            one.remove(name, &goes).await;
            let has_key = two.app.caches.find(name).unwrap().secret.is_some();
            assert_eq!(has_key, name != "main", "the key of a cache that it made");
            let late = match has_key {
                true => Some(two.publish(name, late, more).await.0),
                false => None,
            };
            let reply = one.let_in(&two).await;
            assert!(
                reply.renamed.is_empty() && reply.dropped.is_empty(),
                "{reply:?}"
            );
            assert_eq!(reply.caches.len(), 3, "{reply:?}");
            assert_eq!(two.names(), names);
            until("what was removed is gone", || !two.is_here(name, &goes)).await;
            assert!(!one.believes(id, &goes));
            assert!(two.is_here(name, &stays) && one.believes(id, &stays));
            until("what came meanwhile is known", || {
                late.is_none_or(|late| one.believes(id, &late))
            })
            .await;
            let owns = two.mesh().announcer.owns(&id).unwrap();
            assert_eq!(owns, has_key);
            two.may_sign(id).await;
            until("nothing is left to compare", || {
                let cache = two.app.caches.find(name).unwrap();
                cache.settings.left.is_none() && two.mesh().announcer.noted() == 0
            })
            .await;
        }
    }
}

/// C10: nobody hears what was pushed to a cache that its owner made private meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn c10_what_was_made_private_while_away_stays_at_home() {
    let (one, two) = (Member::start().await, Member::start().await);
    one.post("/cluster/init", json!({})).await;
    one.let_in(&two).await;
    two.create("own", json!({})).await;
    let id = two.id("own");
    let key = two.app.caches.find("own").unwrap().public_key();
    two.post("/cluster/leave", json!({})).await;
    let private = CachePatch {
        public: Some(false),
        ..CachePatch::default()
    };
    let name = "own".parse().unwrap();
    two.app
        .caches
        .patch(&name, &private, &two.app.store)
        .unwrap();
    let (secret, _) = two.publish("own", 1, noise("secret", 1000)).await;
    let reply = one.let_in(&two).await;
    assert_eq!(reply.renamed.len(), 1, "{reply:?}");
    let kept = two.app.caches.find("own-local").unwrap();
    assert!(kept.settings.shared_as.is_none() && !kept.settings.public);
    assert_eq!(kept.public_key(), key);
    assert_eq!(two.id("own"), id);
    assert!(two.is_here("own-local", &secret) && !two.is_here("own", &secret));
    // Something that it says after that has come.
    two.may_sign(two.id("main")).await;
    let (open, _) = two.publish("main", 2, noise("open", 1000)).await;
    let main = two.id("main");
    until("it is known", || one.believes(main, &open)).await;
    assert!(!one.mesh().view.is_said(id, &secret));
    // A second return changes nothing more.
    let names = two.names();
    two.post("/cluster/leave", json!({})).await;
    let reply = one.let_in(&two).await;
    // The cluster's has nothing here and no key: it is dropped and taken on anew.
    assert!(reply.renamed.is_empty(), "{reply:?}");
    assert_eq!(two.names(), names);
    assert_eq!(two.id("own"), id);
}

//! What is pushed again while it is here, and removed elsewhere at the same time.
//!
//! A removal names the records that its author knew. So one that names those from before a push is the
//! one that crossed the push, whenever it comes.

use std::collections::BTreeSet;

use attic_p2p::ids::{CacheId, Dot};
use attic_p2p::record::{Del, DelReason, Record};
use attic_store::record::PathRow;
use attic_store::{PathInfo, StorePath, StorePathHash};
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::api::{PlanPath, PushPlan, PushSession};
use crate::app::App;
use crate::caches::Cache;
use crate::publish::Arrival;

use super::private::Member;
use super::world::{noise, until};

/// Two members that write a cache, and a path that the first pushed and both hold.
struct Pair {
    one: Member,
    two: Member,
    name: &'static str,
    id: CacheId,
    hash: StorePathHash,
    first: Vec<Dot>,
}

impl Pair {
    /// With a path of the public cache `main`, or of a private one.
    async fn holding(name: &'static str) -> Pair {
        let (one, two) = (Member::start().await, Member::start().await);
        one.post("/cluster/init", json!({})).await;
        one.admit(&two, "*", &["*"]).await;
        if name != "main" {
            let create = json!({ "name": name, "settings": { "public": false } });
            one.post("/caches", create).await;
        }
        let id = one.app.caches.find(name).unwrap().settings.shared_as;
        let id = id.unwrap();
        until("both may write", || {
            [&one, &two].iter().all(|member| {
                let writes = |of: &Member| member.mesh().view.may_write(of.mesh().me, id);
                let key = member.app.caches.find_shared(&id);
                writes(&one) && writes(&two) && key.is_some_and(|cache| cache.secret.is_some())
            })
        })
        .await;
        let (hash, _) = one.publish(name, 1, noise(name, 50_000)).await;
        let mut pair = Pair {
            one,
            two,
            name,
            id,
            hash,
            first: Vec::new(),
        };
        until("the path is said", || !pair.dots(&pair.one).is_empty()).await;
        pair.first = pair.dots(&pair.one);
        until("both know of it", || pair.dots(&pair.two) == pair.first).await;
        pair.two.publish_unsaid(name, 1, noise(name, 50_000)).await;
        assert!(pair.is_here(&pair.two));
        pair
    }

    fn dots(&self, at: &Member) -> Vec<Dot> {
        at.mesh().view.dots(self.id, &self.hash)
    }

    fn is_here(&self, at: &Member) -> bool {
        let row = at.app.store.path(&self.name.parse().unwrap(), &self.hash);
        row.unwrap().is_some()
    }

    fn row(&self, at: &Member) -> PathRow {
        let row = at.app.store.path(&self.name.parse().unwrap(), &self.hash);
        row.unwrap().unwrap()
    }

    /// Asks a member what it lacks of the path, as a push does.
    async fn plan(&self, at: &Member, dry_run: bool) {
        let name = self.name.parse().unwrap();
        let path = PlanPath {
            hash: self.hash,
            nar_hash: self.row(at).info.nar_hash,
            nar_size: None,
        };
        let plan = PushPlan {
            dry_run,
            ..PushPlan::new(name, vec![path])
        };
        let answer = at.post("/push", serde_json::to_value(&plan).unwrap()).await;
        let answer: PushSession = serde_json::from_value(answer).unwrap();
        assert!(answer.missing.is_empty() && answer.session.is_none());
    }

    /// Has `two` remove the first record and no other, and waits until both have heard of it.
    async fn remove_first_at_two(&self) {
        let (dots, reason) = (self.first.clone(), DelReason::Removed);
        let removal = Record::Del(Del { dots, reason });
        let announcer = self.two.mesh().announcer.clone();
        let said = spawn_blocking(move || announcer.say_all(vec![removal]));
        said.await.unwrap();
        for member in [&self.one, &self.two] {
            let removals = || member.mesh().view.sizes().0.removals;
            until("the removal is heard", || removals() == 1).await;
        }
    }

    /// Waits until exactly one record of the path is left on both, which is of `author` and new; and
    /// looks that the path is there.
    async fn check_stays(&self, author: &Member) {
        let is_new = |dots: &[Dot]| match dots {
            [dot] => dot.node == author.mesh().me && !self.first.contains(dot),
            _ => false,
        };
        for member in [&self.one, &self.two] {
            until("the new record is left", || is_new(&self.dots(member))).await;
            let path = || member.mesh().view.path(self.id, &self.hash);
            until("the path is believed", || path().is_some()).await;
        }
        assert!(self.is_here(author));
        let announcer = || author.mesh().announcer.noted();
        until("nothing is left to say", || announcer() == 0).await;
    }

    /// Removes the path on `two` as its user does, and waits until it is gone from both.
    async fn remove_for_good(&self) {
        let remove = json!({ "paths": [self.hash], "force": false, "dry_run": false });
        let route = format!("/caches/{}/remove", self.name);
        self.two.post(&route, remove).await;
        for member in [&self.one, &self.two] {
            until("the path is gone", || {
                self.dots(member).is_empty() && !self.is_here(member)
            })
            .await;
        }
    }
}

impl Member {
    /// Keeps a path as one does that was fetched from another node, and says nothing of it.
    async fn publish_unsaid(&self, cache: &str, number: u8, contents: Vec<u8>) {
        self.publish_by(cache, number, contents, |app, cache, info| {
            let id = cache.settings.shared_as.unwrap();
            let said = app.mesh.get().unwrap().view.path(id, info.path.hash());
            assert!(app.publisher.keep(cache, said.unwrap().info).unwrap());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_of_what_this_node_said_survives_a_removal_that_crosses_it() {
    for name in ["main", "vault"] {
        let pair = Pair::holding(name).await;
        pair.plan(&pair.one, false).await;
        until("it is said again", || pair.dots(&pair.two) != pair.first).await;
        pair.remove_first_at_two().await;
        pair.check_stays(&pair.one).await;
        pair.remove_for_good().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_of_what_another_node_said_survives_a_removal_that_crosses_it() {
    for name in ["main", "vault"] {
        let pair = Pair::holding(name).await;
        pair.plan(&pair.two, false).await;
        until("both say it", || pair.dots(&pair.one).len() == 2).await;
        pair.remove_first_at_two().await;
        pair.check_stays(&pair.two).await;
        pair.remove_for_good().await;
    }
}

/// The removal comes after the push was noted, which is before it is answered, and before it is said:
/// so it is for a node that stops in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_comes_before_a_push_is_said_takes_nothing() {
    for name in ["main", "vault"] {
        let pair = Pair::holding(name).await;
        let announcer = pair.one.mesh().announcer.clone();
        let (id, hash) = (pair.id, pair.hash);
        let app = pair.one.app.clone();
        let note = move || {
            assert_eq!(announcer.note(id, &[hash]).unwrap(), [hash]);
            // What was said before the push is not what was noted.
            announcer.path_changed(&app, id, &hash);
        };
        spawn_blocking(note).await.unwrap();
        pair.remove_first_at_two().await;
        let (app, announcer) = (pair.one.app.clone(), pair.one.mesh().announcer.clone());
        let look = move || {
            announcer.path_changed(&app, id, &hash);
            announcer.announce_noted(&app).unwrap();
        };
        spawn_blocking(look).await.unwrap();
        pair.check_stays(&pair.one).await;
        pair.remove_for_good().await;
    }
}

/// The commit of a path that is there already, and its narinfo sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_published_as_it_is_is_said_again() {
    let pair = Pair::holding("main").await;
    let contents = noise("main", 50_000);
    pair.one.publish("main", 1, contents).await;
    until("it is said again", || pair.dots(&pair.two) != pair.first).await;
    pair.remove_first_at_two().await;
    pair.check_stays(&pair.one).await;
    pair.remove_for_good().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_right_after_a_push_removes_what_the_push_says() {
    let pair = Pair::holding("main").await;
    for _ in 0..3 {
        pair.plan(&pair.two, false).await;
    }
    pair.remove_for_good().await;
    assert_eq!(pair.two.mesh().announcer.noted(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_and_a_push_to_who_may_not_write_say_nothing() {
    let pair = Pair::holding("main").await;
    pair.plan(&pair.one, true).await;
    assert_eq!(pair.one.mesh().announcer.noted(), 0);
    assert_eq!(pair.dots(&pair.one), pair.first);

    let reader = Member::start().await;
    pair.one.admit(&reader, "*", &[]).await;
    until("the reader knows of the path", || {
        pair.dots(&reader) == pair.first && reader.app.caches.find_shared(&pair.id).is_some()
    })
    .await;
    reader
        .publish_unsaid("main", 1, noise("main", 50_000))
        .await;
    pair.plan(&reader, false).await;
    assert_eq!(reader.mesh().announcer.noted(), 0);
    assert_eq!(pair.dots(&reader), pair.first);
}

/// As after a partition that outlasted the key with which it was signed.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_key_vouches_for_any_more_is_signed_when_it_is_pushed_again() {
    let pair = Pair::holding("main").await;
    let (app, hash) = (pair.two.app.clone(), pair.hash);
    let unsigned = spawn_blocking(move || {
        let name = "main".parse().unwrap();
        let mut row = app.store.path(&name, &hash).unwrap().unwrap();
        row.info.signatures.clear();
        app.store.publish(vec![row]).unwrap();
    });
    unsigned.await.unwrap();
    pair.plan(&pair.two, false).await;
    assert_eq!(pair.row(&pair.two).info.signatures.len(), 1);
    until("it is said with the signature", || {
        let record = pair.one.mesh().view.path(pair.id, &pair.hash);
        let is_new = pair.dots(&pair.one) != pair.first;
        is_new && record.is_some_and(|record| record.info.signatures.len() == 1)
    })
    .await;
}

impl Member {
    /// Publishes a path that refers to so many others.
    async fn publish_referring(
        &self,
        cache: &str,
        count: u32,
    ) -> (StorePathHash, BTreeSet<StorePath>) {
        let name = "a-package-of-a-usual-name-1.2.3";
        let reference = |number: u32| {
            let mut hash = [0; 20];
            hash[..4].copy_from_slice(&number.to_le_bytes());
            StorePath::new(StorePathHash::from_bytes(hash), name).unwrap()
        };
        let references: BTreeSet<StorePath> = (0..count).map(reference).collect();
        let wanted = references.clone();
        let publish = move |app: &App, cache: &Cache, info: PathInfo| {
            let info = PathInfo { references, ..info };
            let outcomes = app.publisher.publish(cache, vec![info], Arrival::Pushed);
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        };
        let (hash, _) = self
            .publish_by(cache, 2, noise("many", 1000), publish)
            .await;
        (hash, wanted)
    }
}

/// It stays on its node, which says so, does not try again and again, and does not take it for one that
/// was removed elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_the_cluster_cannot_be_told_of_stays_here_and_is_counted() {
    for name in ["main", "vault"] {
        let pair = Pair::holding(name).await;
        let (hash, _) = pair.one.publish_referring(name, 3000).await;
        let (app, announcer) = (pair.one.app.clone(), pair.one.mesh().announcer.clone());
        assert!(announcer.is_untold(pair.id, &hash));
        let looking = app.clone();
        let look = move || {
            announcer.announce_noted(&looking).unwrap();
            announcer.prune_all(&looking).unwrap();
            (announcer.untold_paths(), announcer.noted())
        };
        until("the other path is said", || {
            pair.one.mesh().announcer.noted() == 0
        })
        .await;
        assert_eq!(spawn_blocking(look).await.unwrap(), (1, 0), "{name}");
        let row = app.store.path(&name.parse().unwrap(), &hash).unwrap();
        let nar_hash = row.expect("it is here").info.nar_hash;
        let path = PlanPath {
            hash,
            nar_hash,
            nar_size: None,
        };
        let plan = PushPlan::new(name.parse().unwrap(), vec![path]);
        let answer = pair.one.post("/push", serde_json::to_value(&plan).unwrap());
        let answer: PushSession = serde_json::from_value(answer.await).unwrap();
        assert_eq!((answer.missing, answer.untold), (vec![], vec![hash]));
        assert!(pair.two.mesh().view.path(pair.id, &hash).is_none());

        let remove = json!({ "paths": [hash], "force": false, "dry_run": false });
        let route = format!("/caches/{name}/remove");
        pair.one.post(&route, remove).await;
        assert_eq!(pair.one.mesh().announcer.untold_paths(), 0);
    }
}

/// A directory of links to all of a system's packages refers to as many paths as that.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_with_a_thousand_references_is_known_to_the_cluster() {
    let pair = Pair::holding("main").await;
    let (hash, wanted) = pair.one.publish_referring("main", 1000).await;
    let record = || pair.two.mesh().view.path(pair.id, &hash);
    until("the other member knows it", || {
        record().is_some_and(|record| record.info.references == wanted)
    })
    .await;
}

/// A node that is given a key signs with it what it pushed with one that is given up, and nothing of
/// others: the key may have been given up because of what they signed.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_pushed_here_is_signed_with_the_next_key() {
    let pair = Pair::holding("main").await;
    let app = pair.two.app.clone();
    let secret = || app.caches.find("main").unwrap().secret.clone().unwrap();
    let old = secret();
    let (own, _) = pair.two.publish("main", 2, noise("own", 1000)).await;
    let (changed, _) = pair.two.publish("main", 3, noise("changed", 1000)).await;
    // Here, and not said by this node.
    let theirs = StorePathHash::from_bytes([9; 20]);
    let rotate = json!({ "keep_old_seconds": 0 });
    pair.one.post("/caches/main/key/rotate", rotate).await;
    let keys_known = |member: &Member| member.mesh().view.cache(pair.id).unwrap().public_keys.len();
    until("the old key is given up", || {
        let signing = &app.caches.find("main").unwrap().settings.signing;
        secret().public() != old.public() && keys_known(&pair.two) == 1 && signing.is_none()
    })
    .await;
    let new = secret();

    let signed_by = |hash: &StorePathHash| {
        let row = app.store.path(&"main".parse().unwrap(), hash);
        let signatures = row.unwrap().unwrap().info.signatures;
        let names = signatures.iter().map(|signature| signature.key_name());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    for hash in [own, changed] {
        until("the old signature is gone", || {
            signed_by(&hash) == [new.name()]
        })
        .await;
    }
    let said_at = || pair.two.mesh().view.said_at(pair.id, &own);
    let said_before = said_at();
    // As if the old key had been there when these came, and the new one came now.
    let (giving, before, after) = (app.clone(), old.clone(), new.clone());
    let give = move || {
        let name = "main".parse().unwrap();
        let row = |hash| giving.store.path(&name, &hash).unwrap().unwrap();
        let contents = row(own).info;
        for hash in [own, changed, theirs] {
            let mut row = row(if hash == theirs { own } else { hash });
            if hash == theirs {
                row.info.path = StorePath::new(theirs, "file").unwrap();
            }
            if hash == changed {
                row.info.nar_hash = contents.nar_hash;
                row.info.nar_size = contents.nar_size;
            }
            let fingerprint = row.info.fingerprint(&Default::default());
            row.info.signatures.clear();
            row.info.add_signature(before.sign(fingerprint.as_ref()));
            giving.store.publish(vec![row]).unwrap();
        }
        giving.caches.give_key(&name, before).unwrap();
        giving.caches.give_key(&name, after).unwrap();
    };
    spawn_blocking(give).await.unwrap();
    until("all was looked through", || {
        app.caches.find("main").unwrap().settings.signing.is_none()
    })
    .await;
    assert_eq!(signed_by(&own), [new.name()]);
    assert_eq!(signed_by(&changed), [old.name()]);
    assert_eq!(signed_by(&theirs), [old.name()]);
    until("it is said anew", || said_at() > said_before).await;
}

//! C10: what a member gets by asking for what it may not read. Whole nodes, on loopback.

use std::sync::Arc;
use std::time::Duration;

use attic_p2p::fetch::Tier;
use attic_p2p::ids::{CacheId, ManifestId, NodeId};
use attic_store::nar::NarWriter;
use attic_store::{NarHash, PathInfo, StorePath, StorePathHash};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tower::ServiceExt;

use crate::app::App;
use crate::caches::Cache;
use crate::config::{Config, Sources as ConfigSources};
use crate::http::admin;
use crate::mesh::Mesh;
use crate::mesh::flight::{Flights, Sources, Wanted, gains};
use crate::mesh::query::{Query, Reply};
use crate::node::Node;
use crate::publish::Arrival;

use super::world::{noise, until};

pub(super) struct Member {
    pub(super) app: Arc<App>,
    token: String,
    _node: Node,
    _dir: TempDir,
}

impl Member {
    pub(super) async fn start() -> Member {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let flags = [
            ("http.listen", "127.0.0.1:0"),
            ("mesh.listen", "127.0.0.1:0"),
            ("mesh.mdns", "false"),
            ("mesh.replicas", "1"),
            ("data-dir", data_dir.to_str().unwrap()),
        ];
        let flags = flags.map(|(key, value)| (key, value.to_owned()));
        let config = Config::load(&ConfigSources::only(flags.to_vec())).unwrap();
        let node = Node::start(config).await.unwrap();
        let token = std::fs::read_to_string(data_dir.join("admin-token")).unwrap();
        Member {
            app: Arc::clone(node.app()),
            token: token.trim().to_owned(),
            _node: node,
            _dir: dir,
        }
    }

    /// What its admin API answers to a `POST`.
    pub(super) async fn post(&self, route: &str, body: Value) -> Value {
        self.try_post(route, body).await.unwrap()
    }

    /// What its admin API answers to a `POST`, or how it refuses it.
    pub(super) async fn try_post(&self, route: &str, body: Value) -> Result<Value, String> {
        let routes = admin::routes(&self.app).with_state(Arc::clone(&self.app));
        let body = body.to_string();
        let request = Request::post(route)
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .header(CONTENT_LENGTH, body.len())
            .header(CONTENT_TYPE, "application/json")
            .body(axum::body::Body::from(body));
        let response = routes.oneshot(request.unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&body);
        match status.is_success() {
            true => Ok(serde_json::from_slice(&body).unwrap()),
            false => Err(format!("{route}: {status} {text}")),
        }
    }

    /// Lets another node in.
    pub(super) async fn admit(&self, other: &Member, read: &str, write: &[&str]) {
        let terms = json!({
            "role": "member", "read": [read], "write": write, "expires_seconds": 600, "uses": 1,
        });
        let ticket = self.post("/cluster/invites", terms).await;
        other.post("/cluster/join", ticket).await;
    }

    pub(super) fn mesh(&self) -> Arc<Mesh> {
        self.app.mesh.get().unwrap()
    }

    /// Publishes a file; returns where it is and what it takes to fetch it.
    pub(super) async fn publish(
        &self,
        cache: &str,
        number: u8,
        contents: Vec<u8>,
    ) -> (StorePathHash, Wanted) {
        self.publish_by(cache, number, contents, |app, cache, info| {
            let outcomes = app.publisher.publish(cache, vec![info], Arrival::Put);
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        })
        .await
    }

    /// Imports a file and has `publish` do the rest.
    pub(super) async fn publish_by(
        &self,
        cache: &str,
        number: u8,
        contents: Vec<u8>,
        publish: impl FnOnce(&App, &Cache, PathInfo) + Send + 'static,
    ) -> (StorePathHash, Wanted) {
        let (app, cache) = (Arc::clone(&self.app), self.app.caches.find(cache).unwrap());
        let published = spawn_blocking(move || {
            let mut nar = Vec::new();
            let mut writer = NarWriter::new(|bytes: &[u8]| nar.extend_from_slice(bytes));
            writer.regular(false, contents.len() as u64).unwrap();
            writer.contents(&contents).unwrap();
            writer.finish().unwrap();
            let lease = app.store.lease();
            let imported = app.store.import(&lease, &mut &nar[..]).unwrap();
            let hash = StorePathHash::from_bytes([number; 20]);
            let info = PathInfo {
                path: StorePath::new(hash, "file").unwrap(),
                nar_hash: imported.nar_hash,
                nar_size: imported.nar_size,
                references: Default::default(),
                deriver: None,
                ca: None,
                signatures: Vec::new(),
            };
            publish(&app, &cache, info);
            let manifest = app.store.manifest(&imported.nar_hash).unwrap().unwrap();
            let wanted = Wanted {
                nar: imported.nar_hash,
                manifest: ManifestId::of(&manifest.encode()),
                nar_size: imported.nar_size,
                file: Some((imported.file_hash, imported.file_size)),
            };
            (hash, wanted)
        });
        published.await.unwrap()
    }

    async fn ask(&self, other: &Member, query: Query) -> Bytes {
        let network = self.mesh().network.clone();
        network
            .request(other.mesh().me, query.encode())
            .await
            .unwrap()
    }

    /// Fetches a NAR from another node as one would who knows all there is to know of it.
    async fn can_fetch(&self, other: &Member, wanted: &Wanted) -> bool {
        let mesh = self.mesh();
        let before = mesh.exchange.traffic().all().received;
        let (gains, _gained) = gains();
        let sources = Arc::new(Only(other.mesh().me));
        let flights = Flights::new(
            self.app.store.clone(),
            mesh.exchange.clone(),
            sources,
            gains,
        );
        let flight = flights
            .follow(wanted.clone(), attic_p2p::wire::Priority::Client)
            .unwrap();
        let shortly = Instant::now() + Duration::from_millis(500);
        let fetched = match flight.ready(shortly).await {
            Ok(_) => flight.landed().await.is_ok(),
            Err(_) => false,
        };
        let received = mesh.exchange.traffic().all().received - before;
        assert_eq!(received > 0, fetched, "{received} bytes");
        assert_eq!(flight.manifest().is_some(), fetched);
        flights.shutdown().await;
        fetched
    }
}

/// One node that is said to have everything.
struct Only(NodeId);

impl Sources for Only {
    fn of(&self, _: &NarHash) -> Vec<(NodeId, Tier)> {
        vec![(self.0, Tier::Lan)]
    }

    fn tier(&self, node: &NodeId) -> Option<Tier> {
        (*node == self.0).then_some(Tier::Lan)
    }

    fn changes(&self) -> watch::Receiver<()> {
        watch::channel(()).1
    }
}

/// A founder with a private cache, a reader of it and a member that is none.
async fn parted() -> ([Member; 3], CacheId) {
    let [founder, reader, outsider] = [
        Member::start().await,
        Member::start().await,
        Member::start().await,
    ];
    founder.post("/cluster/init", json!({})).await;
    founder.admit(&reader, "*", &[]).await;
    founder.admit(&outsider, "main", &[]).await;
    let create = json!({ "name": "vault", "settings": { "public": false } });
    let created = founder.post("/caches", create).await;
    assert_eq!(created["shared"], true);
    let vault = founder.app.caches.find("vault").unwrap();
    let id = vault.settings.shared_as.unwrap();
    until("the reader knows the cache", || {
        reader.app.caches.find_shared(&id).is_some()
    })
    .await;
    until("both can be asked", || {
        let may = |member: &Member| founder.mesh().view.member(member.mesh().me).is_some();
        may(&reader) && may(&outsider)
    })
    .await;
    ([founder, reader, outsider], id)
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_a_question_of_an_outsider_is_answered_as_if_there_were_nothing() {
    let ([founder, reader, outsider], cache) = parted().await;
    let (present, _) = founder.publish("vault", 1, noise("secret", 50_000)).await;
    let absent = StorePathHash::from_bytes([9; 20]);
    let paths = |hash| Query::Paths {
        cache,
        hashes: vec![hash],
    };
    let hold = |hash| Query::Hold {
        cache,
        hashes: vec![hash],
    };
    let told = reader.ask(&founder, paths(present)).await;
    let Some(Reply::Paths(told)) = Reply::decode(&told) else {
        panic!("no answer");
    };
    assert!(told[0].is_some(), "readers are answered");
    for query in [&paths as &dyn Fn(StorePathHash) -> Query, &hold] {
        let of_present = outsider.ask(&founder, query(present)).await;
        let of_absent = outsider.ask(&founder, query(absent)).await;
        assert_eq!(of_present, of_absent);
    }
    let elsewhere = Query::Paths {
        cache: CacheId::from_bytes([9; 16]),
        hashes: vec![absent],
    };
    let of_no_cache = outsider.ask(&founder, elsewhere).await;
    assert_eq!(outsider.ask(&founder, paths(present)).await, of_no_cache);
    assert!(
        outsider
            .mesh()
            .view
            .caches()
            .iter()
            .all(|(id, ..)| *id != cache)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_knowing_a_hash_opens_nothing() {
    let ([founder, reader, outsider], _) = parted().await;
    let (_, secret) = founder.publish("vault", 1, noise("secret", 3 << 20)).await;
    let (_, open) = founder.publish("main", 2, noise("open", 3 << 20)).await;
    assert!(
        outsider.can_fetch(&founder, &open).await,
        "what it may read"
    );
    assert!(!outsider.can_fetch(&founder, &secret).await);
    assert!(reader.can_fetch(&founder, &secret).await);
    // Nor does who got it hand it on.
    let (local, nar) = (Arc::clone(&reader.app), secret.nar);
    assert!(
        spawn_blocking(move || local.store.nar(&nar).unwrap().is_some())
            .await
            .unwrap()
    );
    assert!(!outsider.can_fetch(&reader, &secret).await);
    // What a public cache has too is no secret.
    founder.publish("main", 3, noise("secret", 3 << 20)).await;
    assert!(outsider.can_fetch(&founder, &secret).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_a_path_of_a_private_cache_is_asked_of_readers_only() {
    let ([founder, reader, outsider], vault) = parted().await;
    let (secret, _) = founder.publish("vault", 1, noise("secret", 10_000)).await;
    let own = json!({ "name": "own", "settings": { "public": false, "shared": false } });
    reader.post("/caches", own).await;
    let (at_home, _) = reader.publish("own", 4, noise("at home", 10_000)).await;
    let main = reader.app.caches.find("main").unwrap();
    let main = main.settings.shared_as.unwrap();
    let mesh = reader.mesh();
    until("the reader knows the path", || {
        mesh.view.is_said(vault, &secret)
    })
    .await;
    let nowhere = StorePathHash::from_bytes([9; 20]);
    let (one, other) = (founder.mesh().me, outsider.mesh().me);
    let audience = mesh.finder.audience().clone();
    let asked = spawn_blocking(move || {
        let of = |cache, hash| audience.of((cache, hash), vec![one, other]);
        [
            of(main, nowhere),
            of(vault, nowhere),
            of(vault, secret),
            of(main, secret),
            of(main, at_home),
        ]
    });
    let everybody = vec![one, other];
    let readers = vec![one];
    let expected = [
        everybody,
        readers.clone(),
        readers.clone(),
        readers,
        Vec::new(),
    ];
    assert_eq!(asked.await.unwrap(), expected);
}

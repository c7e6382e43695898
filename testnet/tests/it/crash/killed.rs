//! `kill -9` in a loop, at random moments, during everything that writes (row G9).
//!
//! `ATTIC_NODE_TEST_KILLS` sets how often each loop kills; 20 without it.

use std::collections::BTreeMap;
use std::env;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use testnet::http::Request;
use testnet::native;
use testnet::node::TestNode;
use testnet::seed::Seed;
use testnet::served::Served;
use testnet::upload::Upload;

/// How many paths one round writes.
const ROUND: usize = 12;
/// More are removed, oldest first, so that a kill costs the same however many there were.
const PATHS_MAX: usize = 40 * ROUND;

fn kills() -> u32 {
    let set = env::var("ATTIC_NODE_TEST_KILLS").ok();
    set.map_or(20, |text| {
        text.parse().expect("ATTIC_NODE_TEST_KILLS is a number")
    })
}

/// What the node promised about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// It said that the path is published.
    There,
    /// It said that the path is removed.
    Gone,
    /// It was killed before it said anything: either is right.
    Either,
}

/// A node, and everything that it acknowledged.
struct Witness {
    node: TestNode,
    uploads: Vec<Upload>,
    /// By hash part.
    promises: BTreeMap<String, Promise>,
    seed: Seed,
}

impl Witness {
    fn new(test: &str) -> Witness {
        let seed = Seed::for_test(test);
        // Small packs, so that sealing and compaction are met often.
        let node = TestNode::with_config("[store]\npack-size = \"1 MiB\"\n");
        Witness {
            node,
            uploads: Vec::new(),
            promises: BTreeMap::new(),
            seed,
        }
    }

    /// Paths which share half of their bytes.
    fn more_uploads(&mut self) -> Vec<Upload> {
        let shared = Seed::new(1).bytes(150_000);
        let seed = &mut self.seed;
        let make = |_| {
            let own = seed.bytes(150_000);
            Upload::file(seed, "crash", [shared.as_slice(), &own].concat())
        };
        let uploads: Vec<Upload> = (0..ROUND).map(make).collect();
        self.uploads.extend(uploads.iter().cloned());
        uploads
    }

    fn wire(&self) -> Wire {
        Wire {
            address: self.node.address(),
            token: self.node.token(),
        }
    }

    fn promise<'a>(&mut self, promise: Promise, uploads: impl IntoIterator<Item = &'a Upload>) {
        let promises = uploads
            .into_iter()
            .map(|upload| (upload.hash.clone(), promise));
        self.promises.extend(promises);
    }

    /// Does `work` while the node is killed after a random time below `time_max`, then starts the
    /// node again.
    fn kill_during(&mut self, time_max: Duration, work: impl FnOnce(&Wire) + Send) {
        let micros = u64::try_from(time_max.as_micros()).expect("short");
        let after = Duration::from_micros(self.seed.below(micros));
        let wire = self.wire();
        let started = &AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(move || {
                started.store(true, Ordering::Release);
                work(&wire);
            });
            while !started.load(Ordering::Acquire) {
                thread::yield_now();
            }
            // Not a wait for something: the random moment is what is tested.
            thread::sleep(after);
            self.node.kill();
        });
        self.node.start_again();
    }

    /// Checks every promise, and that the store finds nothing wrong with itself. Then removes the
    /// oldest of too many paths.
    #[track_caller]
    fn check(&mut self) {
        for upload in &self.uploads {
            let promise = self
                .promises
                .get(&upload.hash)
                .copied()
                .unwrap_or(Promise::Either);
            let (right, found) = match self.node.read(&upload.path()) {
                Served::Whole(nar) => (promise != Promise::Gone && nar == upload.nar, "there"),
                Served::Absent => (promise != Promise::There, "absent"),
                Served::Cut => (false, "cut"),
            };
            assert!(right, "{} is {found}, promised: {promise:?}", upload.hash);
        }
        let verify = self.node.cli().json(&["verify"]);
        assert_eq!(
            (&verify["damaged_records"], &verify["damaged_nars"]),
            (&0.into(), &0.into())
        );
        let old = self.uploads.len().saturating_sub(PATHS_MAX);
        let old: Vec<Upload> = self.uploads.drain(..old).collect();
        self.remove_all(&old);
        for upload in &old {
            assert_eq!(self.node.read(&upload.path()), Served::Absent);
            self.promises.remove(&upload.hash);
        }
    }

    /// Removes all of them at once.
    #[track_caller]
    fn remove_all(&self, uploads: &[Upload]) {
        let hashes: Vec<&str> = uploads.iter().map(|upload| upload.hash.as_str()).collect();
        let body = serde_json::json!({ "paths": hashes }).to_string();
        assert!(self.wire().post("caches/main/remove", &body));
    }

    /// Removes everything and checks that no byte leaked.
    #[track_caller]
    fn check_that_nothing_leaked(&mut self) {
        self.remove_all(&self.uploads);
        // NARs whose narinfo never came are kept for a while, which is over now.
        self.node.kill();
        self.node.configure("[store]\nupload-grace = \"0s\"\n");
        self.node.start_again();
        let gc = self.node.cli().json(&["gc", "--full"]);
        let left = self.node.pack_bytes();
        assert!(left < 64 << 10, "{left} bytes leaked: {gc}");
    }
}

/// A way to the node that outlives it.
struct Wire {
    address: SocketAddr,
    token: String,
}

impl Wire {
    /// Whether the node said that the path is published.
    fn publish(&self, upload: &Upload) -> bool {
        let ok = |status: u16| matches!(status, 200 | 201 | 204);
        let (address, token) = (self.address, self.token.as_str());
        let narinfo = upload.narinfo();
        upload
            .put_nar(address, "main", token)
            .is_ok_and(|nar| ok(nar.status))
            && upload
                .put_narinfo(address, "main", token, &narinfo)
                .is_ok_and(|narinfo| ok(narinfo.status))
    }

    /// Whether the node said that it took the path by its own push.
    fn push(&self, upload: &Upload) -> bool {
        native::push(self.address, &self.token, upload).unwrap_or(false)
    }

    /// Whether the node said that the path is removed.
    fn remove(&self, upload: &Upload) -> bool {
        let body = format!("{{\"paths\":[\"{}\"]}}", upload.hash);
        self.post("caches/main/remove", &body)
    }

    /// Collects garbage until the node is gone.
    fn collect_until_the_end(&self) {
        while self.post("gc", "{\"full\":true}") {}
    }

    fn post(&self, route: &str, body: &str) -> bool {
        let request = Request::post(&format!("/_node/v1/{route}"), body).token(&self.token);
        let request = request.header("Content-Type", "application/json");
        request
            .send(self.address)
            .is_ok_and(|response| response.status == 200)
    }
}

#[test]
fn g9_kills_during_uploads_lose_nothing_acknowledged() {
    let mut witness = Witness::new("g9_uploads");
    for _ in 0..kills() {
        let uploads = witness.more_uploads();
        let mut published = Vec::new();
        witness.kill_during(Duration::from_millis(400), |wire| {
            published = uploads
                .iter()
                .take_while(|upload| wire.publish(upload))
                .collect();
        });
        witness.promise(Promise::There, published);
        witness.check();
    }
    witness.check_that_nothing_leaked();
}

/// Sessions, chunks and commits of the node's own push, several at once.
#[test]
fn g9_kills_during_native_pushes_lose_nothing_acknowledged() {
    let mut witness = Witness::new("g9_native");
    for _ in 0..kills() {
        let uploads = witness.more_uploads();
        let mut published = Vec::new();
        witness.kill_during(Duration::from_millis(400), |wire| {
            thread::scope(|scope| {
                let workers: Vec<_> = uploads
                    .chunks(ROUND / 3)
                    .map(|some| {
                        let pushed = move || some.iter().take_while(|up| wire.push(up));
                        scope.spawn(move || pushed().collect::<Vec<_>>())
                    })
                    .collect();
                for worker in workers {
                    published.extend(worker.join().expect("a worker ends"));
                }
            });
        });
        witness.promise(Promise::There, published);
        witness.check();
    }
    witness.check_that_nothing_leaked();
}

#[test]
fn g9_kills_during_removal_bring_nothing_back() {
    let mut witness = Witness::new("g9_removal");
    for _ in 0..kills() {
        let uploads = witness.more_uploads();
        let wire = witness.wire();
        assert!(uploads.iter().all(|upload| wire.publish(upload)));
        let mut removed = 0;
        witness.kill_during(Duration::from_millis(100), |wire| {
            removed = uploads
                .iter()
                .take_while(|upload| wire.remove(upload))
                .count();
        });
        witness.promise(Promise::Gone, &uploads[..removed]);
        // The one that was under way when the node died may have gone or not.
        witness.promise(Promise::There, uploads.iter().skip(removed + 1));
        witness.check();
    }
    witness.check_that_nothing_leaked();
}

#[test]
fn g9_kills_during_compaction_lose_nothing() {
    let mut witness = Witness::new("g9_compaction");
    for _ in 0..kills() {
        let uploads = witness.more_uploads();
        let (kept, doomed) = uploads.split_at(ROUND / 2);
        let wire = witness.wire();
        // Alternately, so that every pack holds garbage beside what is needed.
        for (kept, doomed) in kept.iter().zip(doomed) {
            assert!(wire.publish(kept) && wire.publish(doomed) && wire.remove(doomed));
        }
        witness.promise(Promise::There, kept);
        witness.promise(Promise::Gone, doomed);
        witness.kill_during(Duration::from_millis(100), Wire::collect_until_the_end);
        witness.check();
    }
    witness.check_that_nothing_leaked();
}

/// Uploads, removals and collections at once, as on a busy node.
#[test]
fn g9_kills_during_everything_at_once_lose_nothing() {
    let mut witness = Witness::new("g9_everything");
    for _ in 0..kills() {
        let (uploads, doomed) = (witness.more_uploads(), witness.more_uploads());
        let wire = witness.wire();
        assert!(doomed.iter().all(|upload| wire.publish(upload)));
        let (mut published, mut removed) = (0, 0);
        witness.kill_during(Duration::from_millis(400), |wire| {
            thread::scope(|scope| {
                scope.spawn(|| wire.collect_until_the_end());
                scope.spawn(|| {
                    removed = doomed
                        .iter()
                        .take_while(|upload| wire.remove(upload))
                        .count();
                });
                published = uploads
                    .iter()
                    .take_while(|upload| wire.publish(upload))
                    .count();
            });
        });
        witness.promise(Promise::There, &uploads[..published]);
        witness.promise(Promise::Gone, &doomed[..removed]);
        witness.promise(Promise::There, doomed.iter().skip(removed + 1));
        witness.check();
    }
    witness.check_that_nothing_leaked();
}

//! The push engine against a node in memory, whole and faulty.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use attic_node_cli::dump::dump;
use attic_node_cli::nix::build_log::BuildLogs;
use attic_node_cli::nix::{Closure, LocalPath};
use attic_node_cli::push::{Event, Held, Observer, Options, Plan, Purpose, Upstream};
use attic_node_core::api::{PlanPath, PushPlan};
use attic_store::store_path::StoreDir;
use attic_store::{ChunkId, NarHash, PathInfo, StorePath, StorePathHash};
use tempfile::TempDir;

use crate::memory_node::{Faults, MemoryNode};
use crate::tree::{file, noise, odd_tree};

/// Store paths in a temporary directory, numbered from 0.
struct Paths {
    dir: TempDir,
    paths: Vec<LocalPath>,
}

impl Paths {
    fn new() -> Paths {
        Paths {
            dir: tempfile::tempdir().unwrap(),
            paths: Vec::new(),
        }
    }

    /// Makes a path with what `fill` writes, that refers to others by number, and gives its number.
    fn add(&mut self, references: &[usize], fill: impl FnOnce(&Path)) -> usize {
        let number = self.paths.len();
        let location = self.dir.path().join(number.to_string());
        fill(&location);
        let mut nar = Vec::new();
        let dumped = dump(&location, |bytes| {
            nar.extend_from_slice(bytes);
            ControlFlow::Continue(())
        });
        let info = PathInfo {
            path: path(number),
            nar_hash: NarHash::of(&nar),
            nar_size: dumped.unwrap(),
            references: references.iter().copied().map(path).collect(),
            deriver: None,
            ca: None,
            signatures: Vec::new(),
        };
        self.paths.push(LocalPath { info, location });
        number
    }

    /// A path that is one file.
    fn add_file(&mut self, references: &[usize], contents: &[u8]) -> usize {
        self.add(references, |location| {
            fs::write(location, contents).unwrap()
        })
    }

    fn closure(&self) -> Closure {
        Closure {
            store_dir: StoreDir::default(),
            paths: self.paths.clone(),
            invalid: BTreeSet::new(),
        }
    }

    fn nar_bytes(&self) -> u64 {
        self.paths.iter().map(|path| path.info.nar_size).sum()
    }

    /// Small ones in a chain, and large ones that share much with each other.
    fn mixed() -> Paths {
        let mut paths = Paths::new();
        paths.add(&[], odd_tree);
        for n in 0..100u32 {
            let contents = format!("small {n}").repeat(n as usize);
            paths.add_file(&[paths.paths.len() - 1], contents.as_bytes());
        }
        let shared = noise(1, 6 << 20);
        for n in 0..4 {
            let own = noise(10 + n, 3 << 20);
            let last = paths.paths.len() - 1;
            paths.add_file(&[last], &[&shared[..], &own, &vec![0; 4 << 20]].concat());
        }
        paths
    }
}

fn path(number: usize) -> StorePath {
    let mut hash = [0; 20];
    hash[..8].copy_from_slice(&(number as u64).to_le_bytes());
    StorePath::new(StorePathHash::from_bytes(hash), "path").unwrap()
}

/// Remembers how each path ended, which objects failed, and which paths stay on the node.
#[derive(Default)]
struct Ends(
    Mutex<Vec<(StorePath, Result<u64, String>)>>,
    Mutex<Vec<String>>,
    Mutex<Vec<StorePath>>,
);

impl Observer for Ends {
    fn event(&self, event: &Event<'_>) {
        let (path, end) = match *event {
            Event::Pushed {
                path, sent_bytes, ..
            } => (path, Ok(sent_bytes)),
            Event::Failed { path, reason } => (path, Err(reason.to_owned())),
            Event::Started { .. }
            | Event::Advanced { .. }
            | Event::Cached { .. }
            | Event::Upstream { .. }
            | Event::Unusable { .. } => return,
            Event::Untold { path } => return self.2.lock().unwrap().push(path.clone()),
            Event::ObjectFailed { object, reason } => {
                self.1.lock().unwrap().push(format!("{object}: {reason}"));
                return;
            }
        };
        self.0.lock().unwrap().push((path.clone(), end));
    }
}

async fn plan(node: &MemoryNode, paths: &Paths) -> Plan {
    let cache = "main".parse().unwrap();
    Plan::make(
        &node.client(),
        &cache,
        paths.closure(),
        Upstream::Skip,
        Held::Trust,
        Purpose::Push,
    )
    .await
    .unwrap()
}

/// Pushes, and gives the failures; every path of the plan must have ended exactly once.
async fn push(node: &MemoryNode, paths: &Paths) -> Vec<(StorePath, String)> {
    push_at_once(node, paths, 5).await
}

async fn push_at_once(node: &MemoryNode, paths: &Paths, jobs: usize) -> Vec<(StorePath, String)> {
    let plan = plan(node, paths).await;
    let send = plan.tally().send;
    let ends = Arc::new(Ends::default());
    let options = Options {
        jobs: NonZeroUsize::new(jobs).unwrap(),
        compress_threads: None,
        logs: None,
    };
    let failed = plan
        .push(&options, Arc::<Ends>::clone(&ends))
        .await
        .unwrap();
    let ends = ends.0.lock().unwrap();
    let ended: BTreeSet<_> = ends.iter().map(|(path, _)| path).collect();
    assert_eq!((ended.len() as u64, ends.len() as u64), (send, send));
    assert_eq!(
        ends.iter().filter(|(_, end)| end.is_err()).count(),
        failed.len()
    );
    failed
}

/// Everything is in the cache, and at no moment was a path there without its references.
fn assert_complete(node: &MemoryNode, paths: &Paths) {
    let state = node.state();
    for path in &paths.paths {
        let info = &path.info;
        assert_eq!(
            state.paths.get(info.path.hash()),
            Some(&info.nar_hash),
            "{}",
            info.path
        );
    }
    assert_eq!(state.dangling, []);
}

/// P2, P3: chunks that several paths share travel once, in bodies far below the limit; pushing again
/// is one request.
#[tokio::test(flavor = "multi_thread")]
async fn p2_p3_a_push_sends_each_chunk_once_and_a_repeat_sends_nothing() {
    let (node, paths) = (MemoryNode::start(Faults::default()).await, Paths::mixed());
    assert_eq!(push(&node, &paths).await, []);
    assert_complete(&node, &paths);
    {
        let mut state = node.state();
        let again = state.arrivals.values().filter(|times| **times > 1).count();
        assert_eq!(again, 0, "chunks arrived twice");
        assert!(state.longest_body <= 8 << 20);
        assert!(
            state.plain_bytes < paths.nar_bytes() - (17 << 20),
            "nothing was deduplicated"
        );
        state.requests.clear();
    }
    assert_eq!(push(&node, &paths).await, []);
    assert_eq!(
        Vec::from_iter(&node.state().requests),
        [(&"push".to_owned(), &1)]
    );
}

/// A session that ended with a refusal is not lost: the refusal is the reason, and nothing is sent
/// again, whichever request is answered first.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_is_the_reason_even_when_its_session_is_found_gone_before() {
    let node = MemoryNode::start(Faults {
        no_space: true,
        ..Faults::default()
    });
    let node = node.await;
    let mut paths = Paths::new();
    paths.add_file(&[], &noise(1, 20 << 20));
    let failed = push(&node, &paths).await;
    let [(_, reason)] = &failed[..] else {
        panic!("one path fails: {failed:?}");
    };
    assert!(reason.contains("DiskFull"), "{reason}");
    assert_eq!(
        node.state().requests["push"],
        1,
        "no other session is opened"
    );
}

/// P5: what has wholly arrived when the node has no space left is committed, references first, and
/// the session is ended.
#[tokio::test(flavor = "multi_thread")]
async fn p5_what_arrived_before_the_node_was_full_is_committed() {
    for jobs in [1, 5] {
        let mut paths = Paths::new();
        for n in 0..120 {
            let references = if n % 3 == 0 { vec![] } else { vec![n - 1] };
            paths.add_file(&references, &noise(n as u64, 300_000));
        }
        let node = MemoryNode::start(Faults {
            room: Some(21 << 20),
            ..Faults::default()
        });
        let node = node.await;
        let failed = push_at_once(&node, &paths, jobs).await;
        let state = node.state();
        assert_eq!(state.paths.len() + failed.len(), 120, "{jobs} jobs");
        // Of a body that was refused the beginning is there, and 73 paths have room.
        assert!(state.paths.len() >= 60, "{} paths", state.paths.len());
        assert_eq!(state.dangling, []);
        for (path, reason) in &failed {
            let known = reason.ends_with("DiskFull") || reason.contains("which was not pushed");
            assert!(known, "{path}: {reason}");
            assert!(!state.paths.contains_key(path.hash()), "{path}");
        }
        assert_eq!(
            state.sessions.len(),
            0,
            "the session holds nothing any more"
        );
    }
}

/// P4: what shrinks travels compressed, on one thread if so wished.
#[tokio::test(flavor = "multi_thread")]
async fn p4_chunks_travel_compressed() {
    let node = MemoryNode::start(Faults::default()).await;
    let mut paths = Paths::new();
    let text: String = (0..2_000_000).map(|n: u32| format!("line {n}\n")).collect();
    paths.add_file(&[], text.as_bytes());
    let options = Options {
        jobs: NonZeroUsize::MIN,
        compress_threads: Some(NonZeroUsize::MIN),
        logs: None,
    };
    let pushed = plan(&node, &paths)
        .await
        .push(&options, Arc::new(Ends::default()));
    assert_eq!(pushed.await.unwrap(), []);
    assert_complete(&node, &paths);
    let state = node.state();
    assert_eq!(state.plain_bytes, paths.nar_bytes());
    assert!(
        state.frame_bytes < state.plain_bytes / 2,
        "{} bytes",
        state.frame_bytes
    );
}

/// P2: one changed file among many.
#[tokio::test(flavor = "multi_thread")]
async fn p2_a_changed_file_sends_little_and_possession_is_proven() {
    let node = MemoryNode::start(Faults::default()).await;
    let tree = |changed: &'static [u8]| {
        move |root: &Path| {
            (0..40).for_each(|n| file(root, format!("{n}"), &noise(n, 1 << 20)));
            file(root, "20", changed);
        }
    };
    let mut paths = Paths::new();
    paths.add(&[], tree(b"before"));
    assert_eq!(push(&node, &paths).await, []);
    node.state().plain_bytes = 0;
    paths.add(&[], tree(b"after"));
    assert_eq!(push(&node, &paths).await, []);
    assert_complete(&node, &paths);
    let sent = node.state().plain_bytes;
    assert!(
        sent <= 1 << 20,
        "{sent} bytes sent of {}",
        paths.nar_bytes() / 2
    );
}

/// P2, P12: all chunks are there, from elsewhere: nothing is sent, all is proven.
#[tokio::test(flavor = "multi_thread")]
async fn p2_p12_chunks_that_are_there_are_proven_instead_of_sent() {
    let (node, paths) = (MemoryNode::start(Faults::default()).await, Paths::mixed());
    assert_eq!(push(&node, &paths).await, []);
    node.state().paths.clear();
    node.state().requests.clear();
    assert_eq!(push(&node, &paths).await, []);
    assert_complete(&node, &paths);
    assert_eq!(node.state().requests.get("chunks"), None);
}

/// P3: a proxy that lets only small bodies pass.
#[tokio::test(flavor = "multi_thread")]
async fn p3_bodies_keep_to_the_nodes_limit() {
    let faults = Faults {
        body_max: Some(1 << 20),
        ..Faults::default()
    };
    let (node, paths) = (MemoryNode::start(faults).await, Paths::mixed());
    assert_eq!(push(&node, &paths).await, []);
    assert_complete(&node, &paths);
    assert!(node.state().longest_body <= 1 << 20);
}

/// P5: requests are refused, cut off, or carried out and not answered.
#[tokio::test(flavor = "multi_thread")]
async fn p5_thirty_percent_faults_do_not_stop_a_push() {
    for seed in 0..4 {
        println!("seed {seed}");
        let faults = Faults {
            percent: 30,
            random: seed,
            ..Faults::default()
        };
        let (node, paths) = (MemoryNode::start(faults).await, Paths::mixed());
        assert_eq!(push(&node, &paths).await, []);
        assert_complete(&node, &paths);
    }
}

/// P3: what was sent before the node forgot the session is not sent again.
#[tokio::test(flavor = "multi_thread")]
async fn p3_a_lost_session_is_resumed() {
    for commits in [0, 1, 3] {
        let faults = Faults {
            lose_sessions_at_commit: Some(commits),
            ..Faults::default()
        };
        let (node, paths) = (MemoryNode::start(faults).await, Paths::mixed());
        assert_eq!(push(&node, &paths).await, []);
        assert_complete(&node, &paths);
        // Requests under way when the session is lost may have to be repeated.
        let state = node.state();
        let twice = state.arrivals.values().filter(|times| **times > 1).count();
        assert!(
            twice <= state.arrivals.len() / 4,
            "{twice} of {}",
            state.arrivals.len()
        );
    }
}

/// G8: chunks that the node loses between upload and commit are sent again.
#[tokio::test(flavor = "multi_thread")]
async fn lost_chunks_are_sent_again() {
    let faults = Faults {
        lose_chunks: 3,
        ..Faults::default()
    };
    let (node, paths) = (MemoryNode::start(faults).await, Paths::mixed());
    assert_eq!(push(&node, &paths).await, []);
    assert_complete(&node, &paths);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_keeps_losing_chunks_is_given_up() {
    let faults = Faults {
        lose_chunks: u64::MAX,
        ..Faults::default()
    };
    let node = MemoryNode::start(faults).await;
    let mut paths = Paths::new();
    paths.add_file(&[], b"x");
    let failed = push(&node, &paths).await;
    assert_eq!(
        failed,
        [(path(0), "the node keeps losing chunks".to_owned())]
    );
}

/// P5: each path has its own result, and what refers to a failed path is not published either.
#[tokio::test(flavor = "multi_thread")]
async fn p5_failures_are_listed_and_leave_no_dangling_references() {
    let mut paths = Paths::new();
    let good = paths.add_file(&[], b"good");
    let refused = paths.add_file(&[], &noise(1, 3 << 20));
    let referrer = paths.add_file(&[refused, good], &noise(2, 3 << 20));
    let vanished = paths.add_file(&[], b"vanished");
    let changed = paths.add_file(&[], b"changed");
    let shrunk = paths.add_file(&[good], &noise(3, 9 << 20));
    fs::remove_file(&paths.paths[vanished].location).unwrap();
    fs::write(
        &paths.paths[changed].location,
        b"changed, and longer than it was",
    )
    .unwrap();
    fs::write(&paths.paths[shrunk].location, b"shrunk").unwrap();
    let reject = [*path(refused).hash()].into();
    let node = MemoryNode::start(Faults {
        reject,
        ..Faults::default()
    })
    .await;
    let failed = push(&node, &paths).await;
    let reason = |number: usize| {
        let path = path(number);
        failed
            .iter()
            .find(|(failed, _)| *failed == path)
            .map(|(_, reason)| reason.as_str())
    };
    assert_eq!(reason(good), None);
    assert_eq!(reason(refused), Some("not this one"));
    assert!(reason(referrer).unwrap().contains("which was not pushed"));
    assert!(reason(vanished).unwrap().starts_with("read "));
    assert!(reason(changed).unwrap().ends_with("the path was changed"));
    assert!(reason(shrunk).unwrap().ends_with("the path was changed"));
    assert_eq!(failed.len(), 5);
    assert_eq!(node.state().paths.len(), 1);
    assert_eq!(node.state().dangling, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_is_abandoned_ends_its_session() {
    let node = MemoryNode::start(Faults::default()).await;
    let mut paths = Paths::new();
    paths.add_file(&[], b"x");
    plan(&node, &paths).await.abandon().await.unwrap();
    assert_eq!(node.state().requests.len(), 2, "a plan and its end");
    assert!(node.state().paths.is_empty());
}

/// A push that is stopped midway leaves nothing running, and the next one goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn p3_a_stopped_push_is_resumed_by_the_next() {
    let (node, paths) = (MemoryNode::start(Faults::default()).await, Paths::mixed());
    let plan = plan(&node, &paths).await;
    let options = Options {
        jobs: NonZeroUsize::MIN,
        compress_threads: None,
        logs: None,
    };
    let push_some = async {
        while node
            .state()
            .requests
            .get("chunks")
            .is_none_or(|puts| *puts < 3)
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = plan.push(&options, Arc::new(Ends::default())) => panic!("it was faster"),
        () = push_some => {}
    }
    assert_eq!(push(&node, &paths).await, []);
    assert_complete(&node, &paths);
    let state = node.state();
    let twice = state.arrivals.values().filter(|times| **times > 1).count();
    assert!(
        twice <= state.arrivals.len() / 4,
        "{twice} of {}",
        state.arrivals.len()
    );
}

/// P3: a closure of more paths than one plan may have is planned in parts, in one session, and a
/// chunk list that is longer than a body is sent in parts.
#[tokio::test]
async fn p3_neither_closure_nor_chunk_list_is_limited_by_a_body() {
    let node = MemoryNode::start(Faults::default()).await;
    let mut template = Paths::new();
    template.add_file(&[], b"x");
    let mut closure = template.closure();
    let one = closure.paths.remove(0);
    closure.paths = (0..20_000u32)
        .map(|n| {
            let mut path = one.clone();
            let digest = NarHash::of(&n.to_le_bytes());
            let hash = StorePathHash::from_bytes(*digest.as_bytes().first_chunk().unwrap());
            path.info.path = StorePath::new(hash, "p").unwrap();
            path
        })
        .collect();
    let cache = "main".parse().unwrap();
    let plan = Plan::make(
        &node.client(),
        &cache,
        closure,
        Upstream::Skip,
        Held::Trust,
        Purpose::Push,
    )
    .await
    .unwrap();
    assert_eq!(plan.tally().send, 20_000);
    assert_eq!(node.state().requests["push"], 3);
    plan.abandon().await.unwrap();

    let grant = node.client().plan(&one_path_plan(&one)).await.unwrap();
    let session = grant.session.unwrap().id;
    let ids: Vec<_> = (0..1000u32)
        .map(|n| ChunkId::of(&n.to_le_bytes()))
        .collect();
    let path = one.info.path.hash();
    for _ in 0..2 {
        let client = node.client();
        client.list(&session, path, &ids, 7000).await.unwrap();
    }
    assert_eq!(node.state().listed(&session, path), ids);
}

fn one_path_plan(path: &LocalPath) -> PushPlan {
    let planned = PlanPath {
        hash: *path.info.path.hash(),
        nar_hash: path.info.nar_hash,
        nar_size: Some(path.info.nar_size),
    };
    PushPlan::new("main".parse().unwrap(), vec![planned])
}

/// A path whose deriver was built here, and which holds debug information; its references none.
fn with_log_and_debug_info(dir: &Path) -> (Paths, BuildLogs) {
    let mut paths = Paths::new();
    let id = format!("lib/debug/.build-id/ab/{}.debug", "0".repeat(38));
    paths.add(&[], |root| file(root, &id, b"symbols"));
    paths.add_file(&[], b"another output of the same build");
    paths.add_file(&[], b"built elsewhere");
    let derivers = ["a", "a", "b"].map(|name| format!("{name}?=.drv"));
    for (path, name) in paths.paths.iter_mut().zip(derivers) {
        path.info.deriver =
            Some(StorePath::new(StorePathHash::from_bytes([0; 20]), &name).unwrap());
    }
    let logs = dir.join("drvs/00");
    fs::create_dir_all(&logs).unwrap();
    fs::write(logs.join(format!("{}-a?=.drv", "0".repeat(30))), "the log").unwrap();
    (paths, BuildLogs::at(dir))
}

async fn push_with(node: &MemoryNode, paths: &Paths, logs: Option<BuildLogs>) -> Vec<String> {
    let options = Options {
        jobs: NonZeroUsize::MIN,
        compress_threads: None,
        logs,
    };
    let ends = Arc::new(Ends::default());
    let pushed = plan(node, paths)
        .await
        .push(&options, Arc::<Ends>::clone(&ends));
    assert_eq!(pushed.await.unwrap(), []);
    assert_complete(node, paths);
    let objects = ends.1.lock().unwrap();
    objects.clone()
}

/// A path that stays on its node is pushed, and that it stays there is said each time.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_cannot_be_told_of_is_said_and_fails_nothing() {
    let mut paths = Paths::new();
    paths.add_file(&[], b"told");
    let long = paths.add_file(&[], b"long");
    let long = paths.paths[long].info.path.clone();
    let node = MemoryNode::start(Faults {
        untold: HashSet::from([*long.hash()]),
        ..Faults::default()
    })
    .await;
    let options = Options {
        jobs: NonZeroUsize::MIN,
        compress_threads: None,
        logs: None,
    };
    for _ in 0..2 {
        let ends = Arc::new(Ends::default());
        let pushed = plan(&node, &paths)
            .await
            .push(&options, Arc::<Ends>::clone(&ends));
        assert_eq!(pushed.await.unwrap(), []);
        assert_eq!(*ends.2.lock().unwrap(), std::slice::from_ref(&long));
        assert_complete(&node, &paths);
    }
}

/// S12: one log per derivation goes along, compressed, and an index of debug information.
#[tokio::test(flavor = "multi_thread")]
async fn s12_logs_and_debug_info_go_along() {
    let dir = tempfile::tempdir().unwrap();
    let (paths, logs) = with_log_and_debug_info(dir.path());
    let debug_info = format!("/main/debuginfo/ab{}.debug", "0".repeat(38));
    let log = format!("/main/log/{}-a%3F%3D.drv", "0".repeat(32));
    for (logs, wanted) in [
        (Some(logs), vec![&debug_info, &log]),
        (None, vec![&debug_info]),
    ] {
        let node = MemoryNode::start(Faults::default()).await;
        assert_eq!(push_with(&node, &paths, logs).await, [""; 0]);
        let objects = node.state().objects.clone();
        assert_eq!(Vec::from_iter(objects.keys()), wanted);
        if let Some(log) = objects.get(&log) {
            assert_eq!(zstd::decode_all(&log[..]).unwrap(), b"the log");
        }
        let archive = paths.paths[0].info.nar_hash.nix32();
        let index = format!(
            "{{\"archive\":\"../nar/{archive}.nar.zst\",\"member\":\"lib/debug/.build-id/ab/{}.debug\"}}",
            "0".repeat(38)
        );
        assert_eq!(String::from_utf8_lossy(&objects[&debug_info]), index);
    }
}

/// S12: a log that the node does not take is said once, and costs no path.
#[tokio::test(flavor = "multi_thread")]
async fn s12_a_refused_log_fails_no_path() {
    let dir = tempfile::tempdir().unwrap();
    let (paths, logs) = with_log_and_debug_info(dir.path());
    let refuse_objects = true;
    let node = MemoryNode::start(Faults {
        refuse_objects,
        ..Faults::default()
    })
    .await;
    let failed = push_with(&node, &paths, Some(logs)).await;
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].ends_with("DiskFull"), "{failed:?}");
}

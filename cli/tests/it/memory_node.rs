//! A node made of nothing but memory: the push API over HTTP/1.1, with faults on demand, and the
//! routes of [`memory_cluster`](crate::memory_cluster).
//!
//! It checks what a real node checks – chunk ids, possession proofs, NAR hashes – so that a push
//! which ends well has really delivered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use attic_node_cli::client::{Client, Endpoint};
use attic_node_core::api::wire::{ChunkHeader, Possession, bitmap, parse_commit, parse_ids};
use attic_node_core::api::{
    ChunksReply, CommitOutcome, CommitPath, CommitReply, CommitResult, ErrorBody, PREFIX, PushPlan,
    PushSession, SessionGrant,
};
use attic_store::frame::FrameDecoder;
use attic_store::{ChunkId, NarHash, StorePath, StorePathHash};
use data_encoding::HEXLOWER;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::memory_cluster::Cluster;

/// A running node; dropping it stops it.
pub(crate) struct MemoryNode {
    endpoint: Endpoint,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

/// All that it holds and has seen.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) chunks: HashMap<ChunkId, Vec<u8>>,
    pub(crate) paths: BTreeMap<StorePathHash, NarHash>,
    pub(crate) sessions: HashMap<String, Session>,
    sessions_opened: u64,
    /// Told of each request whose session is gone.
    session_missed: Arc<Notify>,
    /// Answered requests by the last segment of their path.
    pub(crate) requests: BTreeMap<String, u64>,
    /// How often each chunk arrived.
    pub(crate) arrivals: HashMap<ChunkId, u64>,
    /// Plain bytes of all chunks that arrived.
    pub(crate) plain_bytes: u64,
    /// Bytes of the frames they arrived in.
    pub(crate) frame_bytes: u64,
    pub(crate) longest_body: usize,
    /// Names of paths that were published while something they refer to was not.
    pub(crate) dangling: Vec<StorePath>,
    /// Bodies of the objects beside paths, by the path of their URL.
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
    pub(crate) cluster: Cluster,
    pub(crate) faults: Faults,
}

#[derive(Default)]
pub(crate) struct Session {
    uploaded: HashSet<ChunkId>,
    lists: HashMap<StorePathHash, Vec<ChunkId>>,
}

/// What goes wrong, and how often.
#[derive(Default)]
pub(crate) struct Faults {
    /// Of 100 requests, how many fail: refused, cut off before or after they are carried out.
    pub(crate) percent: u64,
    pub(crate) random: u64,
    /// Sessions are forgotten when this many more commits have been asked for.
    pub(crate) lose_sessions_at_commit: Option<u64>,
    /// This many times, a commit finds that the first chunk of each path is gone.
    pub(crate) lose_chunks: u64,
    /// Paths that are never accepted.
    pub(crate) reject: HashSet<StorePathHash>,
    pub(crate) body_max: Option<u64>,
    /// No chunks are taken: their session ends, and the answer that says why comes only after
    /// another request found it gone.
    pub(crate) no_space: bool,
    /// Plain bytes of chunks after which no more are taken; sessions go on.
    pub(crate) room: Option<u64>,
    /// No object beside paths is taken.
    pub(crate) refuse_objects: bool,
    /// Paths that the cluster cannot be told of.
    pub(crate) untold: HashSet<StorePathHash>,
}

impl Faults {
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn draw(&mut self) -> Option<u64> {
        (self.next() % 100 < self.percent).then(|| self.next() % 5)
    }
}

impl MemoryNode {
    pub(crate) async fn start(faults: Faults) -> MemoryNode {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let state = Arc::new(Mutex::new(State {
            faults,
            ..State::default()
        }));
        let for_task = Arc::clone(&state);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(converse(stream, Arc::clone(&for_task)));
            }
        });
        MemoryNode {
            endpoint,
            state,
            task,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.endpoint.clone(), None).unwrap()
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for MemoryNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

/// A body, or a status and the name of an error, which is its message as well.
pub(crate) type Answer = Result<Vec<u8>, (u16, &'static str)>;

async fn converse(stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    while let Some((head, len)) = read_head(&mut stream).await {
        let fault = state.lock().unwrap().faults.draw();
        if fault == Some(0) {
            return;
        }
        let mut body = vec![0; len];
        if fault == Some(1) {
            // Cut off in the middle: some of it may have arrived.
            body.truncate(len / 2);
        }
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let (method, path) = head;
        let request = Request { method, path, body };
        let answer = match fault {
            Some(1) => {
                let _ = state.lock().unwrap().answer(&request);
                return;
            }
            Some(2) => Err((503, "Busy")),
            Some(3) => {
                let _ = state.lock().unwrap().answer(&request);
                Err((500, "Internal"))
            }
            Some(_) => {
                let _ = state.lock().unwrap().answer(&request);
                return;
            }
            None => state.lock().unwrap().answer(&request),
        };
        if let Err((507, _)) = answer
            && request.path.ends_with("/chunks")
            && state.lock().unwrap().faults.no_space
        {
            let missed = Arc::clone(&state.lock().unwrap().session_missed);
            missed.notified().await;
        }
        let (status, body) = match answer {
            Ok(body) => (200, body),
            Err((code, error)) => {
                let error = ErrorBody {
                    code,
                    error: error.into(),
                    message: error.into(),
                };
                (code, json(&error).unwrap())
            }
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        if stream
            .write_all(&[head.as_bytes(), &body].concat())
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Method, path, and the length of the body.
async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<((String, String), usize)> {
    let mut line = String::new();
    stream
        .read_line(&mut line)
        .await
        .ok()
        .filter(|len| *len > 0)?;
    let mut words = line.split(' ').map(str::to_owned);
    let head = (words.next()?, words.next()?);
    let mut len = 0;
    loop {
        let mut line = String::new();
        stream
            .read_line(&mut line)
            .await
            .ok()
            .filter(|len| *len > 0)?;
        match line.trim_end().split_once(": ") {
            Some(("content-length", value)) => len = value.parse().unwrap(),
            Some(_) => {}
            None => return Some((head, len)),
        }
    }
}

pub(crate) fn json(value: &impl Serialize) -> Answer {
    Ok(serde_json::to_vec(value).unwrap())
}

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        let Some(path) = request.path.strip_prefix(PREFIX) else {
            return self.take_object(request);
        };
        let segments: Vec<_> = path.split('/').collect();
        *self
            .requests
            .entry((*segments.last().unwrap()).to_owned())
            .or_default() += 1;
        self.longest_body = self.longest_body.max(request.body.len());
        if request.body.len() as u64 > self.faults.body_max.unwrap_or(u64::MAX) {
            return Err((413, "TooLarge"));
        }
        match (&*request.method, &segments[..]) {
            ("POST", ["push"]) => self.plan(&request.body),
            (_, ["push", id, ..]) if !self.sessions.contains_key(*id) => {
                self.session_missed.notify_one();
                Err((404, "NoSuchSession"))
            }
            ("POST", ["push", _, "missing"]) => {
                let Ok(ids) = parse_ids(&request.body) else {
                    return Err((400, "BadRequest"));
                };
                let missing: Vec<_> = ids.iter().map(|id| !self.chunks.contains_key(id)).collect();
                Ok(bitmap(&missing))
            }
            ("PUT", ["push", id, "chunks"]) if self.faults.no_space => {
                self.sessions.remove(*id);
                Err((507, "DiskFull"))
            }
            ("PUT", ["push", id, "chunks"]) => self.take_chunks(id, &request.body),
            ("PUT", ["push", id, "list", list]) => self.list(id, list, &request.body),
            ("POST", ["push", id, "commit"]) => self.commit(id, &request.body),
            ("DELETE", ["push", id]) => {
                self.sessions.remove(*id);
                Ok(Vec::new())
            }
            (method, ["cluster" | "peers", ..]) => {
                self.cluster.answer(method, &segments, &request.body)
            }
            _ => Err((404, "NotFound")),
        }
    }

    fn take_object(&mut self, request: &Request) -> Answer {
        assert_eq!(request.method, "PUT");
        if self.faults.refuse_objects {
            return Err((507, "DiskFull"));
        }
        let (path, body) = (request.path.clone(), request.body.clone());
        self.objects.insert(path, body);
        Ok(Vec::new())
    }

    fn plan(&mut self, body: &[u8]) -> Answer {
        let Ok(plan) = serde_json::from_slice::<PushPlan>(body) else {
            return Err((400, "BadRequest"));
        };
        let has = |hash| self.paths.get(hash);
        let missing: Vec<_> = plan
            .paths
            .iter()
            .filter(|path| has(&path.hash) != Some(&path.nar_hash))
            .map(|path| path.hash)
            .collect();
        let untold = plan.paths.iter().map(|path| path.hash);
        let untold = untold
            .filter(|hash| self.faults.untold.contains(hash) && self.paths.contains_key(hash));
        let untold: Vec<_> = untold.collect();
        let known = |id: &String| self.sessions.contains_key(id);
        let opened = plan.session.filter(known);
        let session = (!missing.is_empty()).then(|| {
            let id = opened.unwrap_or_else(|| {
                self.sessions_opened += 1;
                let id = format!("{:032x}", self.sessions_opened);
                self.sessions.insert(id.clone(), Session::default());
                id
            });
            SessionGrant {
                challenge: challenge(&id),
                id,
            }
        });
        json(&PushSession {
            session,
            missing,
            untold,
            skip_signed_by: Vec::new(),
            cache_everything: false,
            store_dir: "/nix/store".into(),
            public_key: String::new(),
            chunker_version: 1,
            body_max: self.faults.body_max.unwrap_or(32 << 20),
            requests_max: 16,
            nar_size_max: 1 << 40,
            room: None,
        })
    }

    /// Takes whole records only: a body may have been cut off.
    fn take_chunks(&mut self, session: &str, body: &[u8]) -> Answer {
        let mut rest = body;
        let mut decoder = FrameDecoder::new();
        let mut reply = ChunksReply { chunks: 0 };
        while !rest.is_empty() {
            let Ok((header, frame, after)) = ChunkHeader::split(rest) else {
                return Err((400, "BadRequest"));
            };
            let plain = decoder.decode(frame, header.raw_len as usize).unwrap();
            assert_eq!(ChunkId::of(&plain), header.id);
            let room = self.faults.room.unwrap_or(u64::MAX);
            if self.plain_bytes + plain.len() as u64 > room {
                return Err((507, "DiskFull"));
            }
            self.plain_bytes += plain.len() as u64;
            self.frame_bytes += frame.len() as u64;
            *self.arrivals.entry(header.id).or_default() += 1;
            self.chunks.insert(header.id, plain);
            let session = self.sessions.get_mut(session).unwrap();
            session.uploaded.insert(header.id);
            reply.chunks += 1;
            rest = after;
        }
        json(&reply)
    }

    pub(crate) fn listed(&self, session: &str, path: &StorePathHash) -> &[ChunkId] {
        &self.sessions[session].lists[path]
    }

    /// `list` is `<hash>?from=<n>`.
    fn list(&mut self, session: &str, list: &str, body: &[u8]) -> Answer {
        let (Some((path, from)), Ok(ids)) = (list.split_once("?from="), parse_ids(body)) else {
            return Err((400, "BadRequest"));
        };
        let session = self.sessions.get_mut(session).unwrap();
        let list = session.lists.entry(path.parse().unwrap()).or_default();
        let from: usize = from.parse().unwrap();
        assert!(from <= list.len());
        list.truncate(from);
        list.extend(ids);
        Ok(Vec::new())
    }

    fn commit(&mut self, session: &str, body: &[u8]) -> Answer {
        if let Some(left) = &mut self.faults.lose_sessions_at_commit {
            *left = left.wrapping_sub(1);
            if *left == u64::MAX {
                self.faults.lose_sessions_at_commit = None;
                self.sessions.clear();
                return Err((404, "NoSuchSession"));
            }
        }
        let Ok((commit, mut lists)) = parse_commit(body) else {
            return Err((400, "BadRequest"));
        };
        for (path, list) in commit.paths.iter().zip(&mut lists) {
            if path.listed > 0 {
                let listed = &self.sessions[session].lists[path.info.path.hash()];
                let inline = std::mem::replace(list, listed[..path.listed as usize].to_vec());
                list.extend(inline);
            }
        }
        if self.faults.lose_chunks > 0 {
            self.faults.lose_chunks -= 1;
            for list in &lists {
                self.chunks.remove(&list[0]);
            }
        }
        let names: HashSet<_> = commit
            .paths
            .iter()
            .map(|path| *path.info.path.hash())
            .collect();
        let mut results = Vec::new();
        for (path, ids) in commit.paths.iter().zip(&lists) {
            let outcome = self.assemble(session, path, ids);
            let info = &path.info;
            if let CommitOutcome::Ok { .. } = outcome {
                let known = |hash| self.paths.contains_key(hash) || names.contains(hash);
                if !info
                    .references
                    .iter()
                    .all(|reference| known(reference.hash()))
                {
                    self.dangling.push(info.path.clone());
                }
                self.paths.insert(*info.path.hash(), info.nar_hash);
            }
            results.push(CommitResult {
                path: *info.path.hash(),
                outcome,
            });
        }
        json(&CommitReply { results })
    }

    fn assemble(&self, session: &str, path: &CommitPath, ids: &[ChunkId]) -> CommitOutcome {
        let rejected = |message: &str| CommitOutcome::Rejected {
            message: message.to_owned(),
        };
        if self.faults.reject.contains(path.info.path.hash()) {
            return rejected("not this one");
        }
        let lacking = |at: &u32| !self.chunks.contains_key(&ids[*at as usize]);
        let missing: Vec<_> = (0..ids.len() as u32).filter(lacking).collect();
        if !missing.is_empty() {
            return CommitOutcome::MissingChunks { missing };
        }
        let key = HEXLOWER
            .decode(challenge(session).as_bytes())
            .unwrap()
            .try_into()
            .unwrap();
        let mut possession = Possession::new(&key);
        let mut owes_proof = false;
        let mut nar = Vec::new();
        for id in ids {
            nar.extend_from_slice(&self.chunks[id]);
            if !self.sessions[session].uploaded.contains(id) {
                possession.update(&self.chunks[id]);
                owes_proof = true;
            }
        }
        if owes_proof
            && !path
                .proof
                .as_ref()
                .is_some_and(|proof| possession.matches(proof))
        {
            return rejected("possession is not proven");
        }
        if NarHash::of(&nar) != path.info.nar_hash {
            return rejected("NarHash does not match");
        }
        CommitOutcome::Ok {
            file_size: 1,
            new_bytes: 0,
            untold: self.faults.untold.contains(path.info.path.hash()),
        }
    }
}

/// A key that differs for every session.
fn challenge(session: &str) -> String {
    HEXLOWER.encode(ChunkId::of(session.as_bytes()).as_bytes())
}

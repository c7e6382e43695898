//! Sends batches: read once, ask, compress, send what is missing, commit.
//!
//! A batch is sent in rounds. A round that fails for a passing reason – the session is lost, the node
//! lost chunks, a chunk that another batch was sending did not arrive – is followed by another
//! one, which reads the NARs again and sends only what is not there yet.
//!
//! A node that has no space left ends the push, but not before the paths are committed that have
//! wholly arrived, in this batch and in the others under way.

use std::collections::{BTreeSet, HashSet};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attic_node_core::api::wire::{IDS_MAX, Possession};
use attic_node_core::api::{CommitOutcome, CommitPath, CommitRequest};
use attic_store::chunker::ChunkerParams;
use attic_store::hash::ChunkId;
use attic_store::store_path::StorePath;
use reqwest::StatusCode;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::batch::Batch;
use super::board::Board;
use super::encode::Encoders;
use super::session::{Claims, Fate, Session, Sessions};
use super::window::{Piece, Unreadable, Window, WindowPool, read};
use super::{Event, Observer};
use crate::client::{Client, ClientError};
use crate::nix::LocalPath;
use crate::ui::chain;

/// One push under way.
pub(super) struct Upload {
    pub(super) client: Client,
    pub(super) sessions: Sessions,
    pub(super) paths: Vec<Arc<LocalPath>>,
    pub(super) batches: Vec<Batch>,
    pub(super) params: ChunkerParams,
    pub(super) body_max: usize,
    pub(super) windows: Arc<WindowPool>,
    pub(super) encoders: Encoders,
    pub(super) requests: Semaphore,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) board: Board,
}

impl Upload {
    /// Sends all batches, `jobs` at a time, and gives the paths that did not arrive, with reasons.
    ///
    /// Dropping it stops everything; what was sent stays with the node for a while.
    pub(super) async fn run(self: &Arc<Self>, jobs: usize) -> Vec<(StorePath, String)> {
        let mut workers = JoinSet::new();
        for _ in 0..jobs.min(self.batches.len()) {
            workers.spawn(Arc::clone(self).work());
        }
        while let Some(worker) = workers.join_next().await {
            worker.expect("workers do not panic");
        }
        self.board.failures()
    }

    async fn work(self: Arc<Self>) {
        while let Some(number) = self.board.next(self.batches.len()) {
            self.send_batch(&self.batches[number]).await;
            self.board.finish(number);
        }
    }

    async fn send_batch(self: &Arc<Self>, batch: &Batch) {
        let mut todo = batch.paths.clone();
        let mut rounds = 0;
        while !todo.is_empty() {
            let trouble = match self.round(batch, &mut todo).await {
                Ok(()) => "the node keeps losing chunks".to_owned(),
                Err(Trouble::Unreadable(Unreadable { path, source })) => {
                    self.fail(todo.remove(path), &chain(&source));
                    continue;
                }
                Err(Trouble::SessionLost) => "the node keeps losing the session".to_owned(),
                Err(Trouble::Stale) => "chunks sent for another path did not arrive".to_owned(),
                Err(Trouble::Stopped(reason)) => {
                    todo.drain(..).for_each(|at| self.fail(at, &reason));
                    return;
                }
                Err(Trouble::Client(error)) => {
                    match reach(&error) {
                        Reach::Round => {}
                        Reach::Batch => rounds = ROUNDS_MAX,
                        Reach::Push if is_full(&error) => self.board.starve(chain(&error)),
                        Reach::Push => self.board.stop(chain(&error)),
                    }
                    chain(&error)
                }
            };
            rounds += 1;
            let stopped = self.board.stopped();
            if rounds >= ROUNDS_MAX || stopped.is_some() {
                // What ended the push says more than what it did to this batch.
                let reason = stopped.unwrap_or(trouble);
                todo.drain(..).for_each(|at| self.fail(at, &reason));
            }
        }
    }

    /// One attempt at the paths `todo`. Those that succeed or are refused for good leave it.
    async fn round(self: &Arc<Self>, batch: &Batch, todo: &mut Vec<usize>) -> Result<(), Trouble> {
        if let Some(reason) = self.board.stopped() {
            return Err(Trouble::Stopped(reason));
        }
        let Some(session) = self.sessions.current().await? else {
            // Committed by an earlier round whose answer was lost, or by somebody else.
            todo.drain(..)
                .for_each(|at| self.succeed(at, 0, Duration::ZERO));
            return Ok(());
        };
        let result = self.round_in(&session, batch, todo).await;
        if matches!(result, Err(Trouble::SessionLost)) {
            self.sessions.replace(session.generation);
        }
        result
    }

    async fn round_in(
        self: &Arc<Self>,
        session: &Arc<Session>,
        batch: &Batch,
        todo: &mut Vec<usize>,
    ) -> Result<(), Trouble> {
        let mut drafts = todo.iter().map(|_| Draft::new()).collect();
        self.leave_out_dangling(todo, &mut drafts);
        let transferred = self.transfer(session, todo, &mut drafts).await;
        if let Err(trouble) = transferred {
            self.salvage(trouble, session, todo, &mut drafts).await?;
        }
        self.board.wait_for(&batch.after).await;
        self.leave_out_dangling(todo, &mut drafts);
        if drafts.is_empty() {
            return Ok(());
        }
        let outcomes = self.commit(session, todo, &drafts).await?;
        let sent = mem::take(todo);
        for ((at, draft), outcome) in sent.into_iter().zip(&drafts).zip(outcomes) {
            match outcome {
                CommitOutcome::Ok { untold, .. } => {
                    self.succeed(at, draft.sent_bytes, draft.took);
                    if untold {
                        let path = &self.paths[at].info.path;
                        self.observer.event(&Event::Untold { path });
                    }
                }
                CommitOutcome::MissingChunks { missing } => {
                    let lost = missing
                        .iter()
                        .filter_map(|&at| draft.chunks.get(at as usize));
                    session.ledger.doubt(lost);
                    todo.push(at);
                }
                CommitOutcome::Rejected { message } => {
                    // Of the last body the node may have kept chunks that it knows nothing of.
                    let starved = self.board.stopped().filter(|_| self.board.starved());
                    self.fail(at, &starved.unwrap_or(message));
                }
            }
        }
        Ok(())
    }

    /// Brings all chunks of the paths `todo` to the node, except those it has.
    async fn transfer(
        self: &Arc<Self>,
        session: &Arc<Session>,
        todo: &[usize],
        drafts: &mut [Draft],
    ) -> Result<(), Trouble> {
        let mut sending = JoinSet::new();
        let transferred = self.transfer_by(&mut sending, session, todo, drafts).await;
        match transferred {
            Err(Trouble::SessionLost) => Err(cause_of_loss(sending).await),
            Err(Trouble::Client(error)) if is_full(&error) => {
                self.board.starve(chain(&error));
                // What is on its way may still find space.
                sending.join_all().await;
                Err(Trouble::Client(error))
            }
            transferred => transferred,
        }
    }

    /// The same; what is still being sent when it fails is left in `sending`.
    async fn transfer_by(
        self: &Arc<Self>,
        sending: &mut JoinSet<Result<(), Trouble>>,
        session: &Arc<Session>,
        todo: &[usize],
        drafts: &mut [Draft],
    ) -> Result<(), Trouble> {
        let paths: Vec<_> = todo.iter().map(|&at| Arc::clone(&self.paths[at])).collect();
        let mut windows = read(paths, self.params, Arc::clone(&self.windows));
        let mut leaning = HashSet::new();
        while let Some(window) = windows.recv().await {
            let window = Arc::new(window?);
            let (fates, claims) = self.decide(session, &window).await?;
            self.enter(session, todo, &window, &fates, drafts, &mut leaning);
            if sending.len() == SENDING_MAX {
                join(sending).await?;
            }
            if fates.contains(&Fate::Send) {
                let pieces = window.pieces.iter().zip(&fates);
                let pieces = pieces.filter(|(_, fate)| **fate == Fate::Send);
                let pieces = pieces.map(|(piece, _)| piece.clone()).collect();
                let upload = Arc::clone(self);
                sending.spawn(upload.send(Arc::clone(session), window, pieces, claims));
            }
        }
        while !sending.is_empty() {
            join(sending).await?;
        }
        drafts
            .iter_mut()
            .for_each(|draft| draft.took = draft.begun.elapsed());
        match session.ledger.landed(&leaning).await {
            true => Ok(()),
            false => Err(Trouble::Stale),
        }
    }

    /// After `trouble` with a node that has no space left, fails the paths that were not read to their
    /// end, so that the others can be committed: of a body that was refused the node may have kept the
    /// beginning, and it knows best which paths have wholly arrived.
    ///
    /// **Errors**: the trouble, when it has another cause.
    async fn salvage(
        &self,
        trouble: Trouble,
        session: &Session,
        todo: &mut Vec<usize>,
        drafts: &mut Vec<Draft>,
    ) -> Result<(), Trouble> {
        let no_space =
            self.board.starved() && matches!(trouble, Trouble::Client(_) | Trouble::Stale);
        let Some(reason) = self.board.stopped().filter(|_| no_space) else {
            return Err(trouble);
        };
        let mut kept = Vec::new();
        for (at, mut draft) in mem::take(todo).into_iter().zip(mem::take(drafts)) {
            let chunks = draft.chunks.iter().copied().collect();
            let whole = draft.read_bytes == self.paths[at].info.nar_size;
            if whole {
                session.ledger.settled(&chunks).await;
                draft.took = draft.begun.elapsed();
                kept.push((at, draft));
            } else {
                self.fail(at, &reason);
            }
        }
        (*todo, *drafts) = kept.into_iter().unzip();
        Ok(())
    }

    /// Asks the node about the chunks nothing is known of, and decides about all.
    async fn decide(
        &self,
        session: &Session,
        window: &Window,
    ) -> Result<(Vec<Fate>, Claims), Trouble> {
        let ids = || window.pieces.iter().map(|piece| &piece.id);
        let unknown = session.ledger.unknown(ids());
        let mut wanted = HashSet::new();
        for unknown in unknown.chunks(IDS_MAX) {
            let _permit = self.permit().await;
            let missing = self.client.missing(&session.id, unknown).await?;
            let pairs = unknown.iter().zip(missing);
            wanted.extend(pairs.filter(|(_, missing)| *missing).map(|(id, _)| *id));
        }
        Ok(session.ledger.decide(ids(), &wanted))
    }

    /// Writes the window's chunks into the drafts of their paths. Hashing what must be proved takes a
    /// few milliseconds at most, as a window is small.
    fn enter(
        &self,
        session: &Session,
        todo: &[usize],
        window: &Window,
        fates: &[Fate],
        drafts: &mut [Draft],
        leaning: &mut HashSet<ChunkId>,
    ) {
        for (piece, fate) in window.pieces.iter().zip(fates) {
            let draft = &mut drafts[piece.path];
            let info = &self.paths[todo[piece.path]].info;
            if draft.chunks.is_empty() {
                draft.begun = Instant::now();
                self.observer.event(&Event::Started {
                    path: &info.path,
                    nar_size: info.nar_size,
                });
            }
            draft.chunks.push(piece.id);
            draft.read_bytes += piece.len();
            match fate {
                Fate::Send => draft.sent_bytes += piece.len(),
                Fate::Lean => {
                    leaning.insert(piece.id);
                }
                Fate::Prove => {
                    let new = || Possession::new(&session.challenge);
                    draft
                        .proof
                        .get_or_insert_with(new)
                        .update(window.plain(piece));
                }
            }
        }
        let seen: BTreeSet<_> = window.pieces.iter().map(|piece| piece.path).collect();
        for at in seen {
            let path = &self.paths[todo[at]].info.path;
            self.observer.event(&Event::Advanced {
                path,
                bytes: drafts[at].read_bytes,
            });
        }
    }

    async fn send(
        self: Arc<Self>,
        session: Arc<Session>,
        window: Arc<Window>,
        pieces: Vec<Piece>,
        claims: Claims,
    ) -> Result<(), Trouble> {
        let encoded = self.encoders.encode(&window, pieces, self.body_max).await;
        let bodies = encoded.map_err(|_| Trouble::Stopped("the program is stopping".to_owned()))?;
        for body in bodies {
            let _permit = self.permit().await;
            self.client.put_chunks(&session.id, body).await?;
        }
        claims.landed();
        Ok(())
    }

    async fn commit(
        &self,
        session: &Session,
        todo: &[usize],
        drafts: &[Draft],
    ) -> Result<Vec<CommitOutcome>, Trouble> {
        self.list(session, todo, drafts).await?;
        let path = |(&at, draft): (&usize, &Draft)| CommitPath {
            info: self.paths[at].info.clone(),
            listed: draft.listed().len() as u32,
            chunks: draft.inline().len() as u32,
            proof: draft.proof.as_ref().map(Possession::finish),
        };
        let request = CommitRequest {
            paths: todo.iter().zip(drafts).map(path).collect(),
        };
        let ids = drafts.iter().flat_map(Draft::inline);
        let nar_bytes = drafts.iter().map(|draft| draft.read_bytes).sum();
        let _permit = self.permit().await;
        let reply = self
            .client
            .commit(&session.id, &request, ids, nar_bytes)
            .await?;
        Ok(reply
            .results
            .into_iter()
            .map(|result| result.outcome)
            .collect())
    }

    /// Sends the chunk lists ahead that are too long for the body of a commit.
    async fn list(
        &self,
        session: &Session,
        todo: &[usize],
        drafts: &[Draft],
    ) -> Result<(), Trouble> {
        for (&at, draft) in todo.iter().zip(drafts) {
            if !draft.listed().is_empty() {
                let path = self.paths[at].info.path.hash();
                let _permit = self.permit().await;
                self.client
                    .list(&session.id, path, draft.listed(), self.body_max)
                    .await?;
            }
        }
        Ok(())
    }

    /// Fails the paths that would refer to one that failed.
    fn leave_out_dangling(&self, todo: &mut Vec<usize>, drafts: &mut Vec<Draft>) {
        let mut kept = Vec::new();
        for (at, draft) in mem::take(todo).into_iter().zip(mem::take(drafts)) {
            match self.board.first_failed(&self.paths[at].info.references) {
                Some(reference) => {
                    self.fail(
                        at,
                        &format!("it refers to {reference}, which was not pushed"),
                    );
                }
                None => kept.push((at, draft)),
            }
        }
        (*todo, *drafts) = kept.into_iter().unzip();
    }

    fn succeed(&self, at: usize, sent_bytes: u64, elapsed: Duration) {
        let info = &self.paths[at].info;
        let (path, nar_size) = (&info.path, info.nar_size);
        self.observer.event(&Event::Pushed {
            path,
            nar_size,
            sent_bytes,
            elapsed,
        });
    }

    fn fail(&self, at: usize, reason: &str) {
        let path = &self.paths[at].info.path;
        self.observer.event(&Event::Failed { path, reason });
        self.board.fail(path.clone(), reason.to_owned());
    }

    async fn permit(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.requests
            .acquire()
            .await
            .expect("the semaphore is never closed")
    }
}

async fn join(sending: &mut JoinSet<Result<(), Trouble>>) -> Result<(), Trouble> {
    match sending.join_next().await {
        Some(sent) => sent.expect("senders do not panic"),
        None => Ok(()),
    }
}

/// Why a session is gone, as far as what is still being sent in it is told: a node that refuses a
/// body for good may end the session with it, and then every other request merely finds none.
async fn cause_of_loss(mut sending: JoinSet<Result<(), Trouble>>) -> Trouble {
    while let Some(sent) = sending.join_next().await {
        match sent.expect("senders do not panic") {
            Err(Trouble::Client(error)) if !matches!(reach(&error), Reach::Round) => {
                return Trouble::Client(error);
            }
            Ok(()) | Err(_) => {}
        }
    }
    Trouble::SessionLost
}

/// What is known about one path of a round.
struct Draft {
    chunks: Vec<ChunkId>,
    proof: Option<Possession>,
    read_bytes: u64,
    /// Plain bytes of the chunks that were sent for it.
    sent_bytes: u64,
    begun: Instant,
    /// From its first chunk until all were with the node; without waiting for other paths.
    took: Duration,
}

impl Draft {
    fn new() -> Draft {
        Draft {
            chunks: Vec::new(),
            proof: None,
            read_bytes: 0,
            sent_bytes: 0,
            begun: Instant::now(),
            took: Duration::ZERO,
        }
    }

    /// The chunks that are listed ahead of the commit: all, or none.
    fn listed(&self) -> &[ChunkId] {
        match self.chunks.len() {
            0..=INLINE_MAX => &[],
            _ => &self.chunks,
        }
    }

    /// The chunks that the commit itself names.
    fn inline(&self) -> &[ChunkId] {
        match self.chunks.len() {
            0..=INLINE_MAX => &self.chunks,
            _ => &[],
        }
    }
}

/// Why a round ended early.
enum Trouble {
    /// A path cannot be read; the others can.
    Unreadable(Unreadable),
    /// The node does not know the session.
    SessionLost,
    /// A chunk that another batch was sending did not arrive.
    Stale,
    /// The push is over.
    Stopped(String),
    /// A request failed, however often it was repeated.
    Client(ClientError),
}

impl From<Unreadable> for Trouble {
    fn from(unreadable: Unreadable) -> Trouble {
        Trouble::Unreadable(unreadable)
    }
}

impl From<ClientError> for Trouble {
    /// Every request but the plan names the session and nothing else that could be unknown.
    fn from(error: ClientError) -> Trouble {
        if error.is_unknown() {
            Trouble::SessionLost
        } else {
            Trouble::Client(error)
        }
    }
}

/// What an error makes pointless.
enum Reach {
    /// Going on with this round.
    Round,
    /// Trying this batch again.
    Batch,
    /// Everything else, too.
    Push,
}

fn reach(error: &ClientError) -> Reach {
    match error {
        ClientError::Broken { .. } | ClientError::Silent { .. } => Reach::Round,
        ClientError::Unreachable { .. }
        | ClientError::NotRunning(_)
        | ClientError::NotServing(_)
        | ClientError::Moved { .. }
        | ClientError::DataFile(_)
        | ClientError::Setup(_)
        | ClientError::Unintelligible { .. } => Reach::Push,
        ClientError::Refused { status, .. } => match status.as_u16() {
            401 | 403 | 404 | 405 | 507 => Reach::Push,
            408 | 429 | 500..600 => Reach::Round,
            _ => Reach::Batch,
        },
    }
}

/// Whether the node has no space left.
fn is_full(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status, .. } if *status == StatusCode::INSUFFICIENT_STORAGE)
}

/// Chunks of a path that a commit names itself: 128 KiB, about half a GiB of NAR.
const INLINE_MAX: usize = 4096;
/// Attempts at a batch; each already repeats its requests.
const ROUNDS_MAX: u32 = 5;
/// Windows of one batch that are compressed or sent while the next one is read.
pub(super) const SENDING_MAX: usize = 2;

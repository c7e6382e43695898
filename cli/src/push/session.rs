//! A push session of the node, and what this program knows to have sent in it.
//!
//! The node makes a client prove that it holds the chunks it did not send in the session. Both sides
//! must therefore agree on which those are, and [`Ledger`] is this side's record. Where it cannot
//! know – a request broke off and the node may or may not have taken it in – the chunk is
//! *unsure* and is sent again, after which both sides agree.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use attic_node_core::api::{PushPlan, SessionGrant};
use attic_store::hash::ChunkId;
use data_encoding::HEXLOWER;
use tokio::sync::{Notify, OnceCell};

use crate::client::{Client, ClientError};

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    /// Its name in URLs.
    pub(super) id: String,
    /// Key of its possession proofs.
    pub(super) challenge: [u8; 32],
    /// Counts the sessions of a push.
    pub(super) generation: u64,
    /// What was sent in it.
    pub(super) ledger: Arc<Ledger>,
}

impl Session {
    /// `None` when the challenge is not a key.
    pub(super) fn new(grant: &SessionGrant, generation: u64) -> Option<Session> {
        let challenge = HEXLOWER
            .decode(grant.challenge.as_bytes())
            .ok()?
            .try_into()
            .ok()?;
        Some(Session {
            id: grant.id.clone(),
            challenge,
            generation,
            ledger: Arc::default(),
        })
    }
}

/// The sessions of a push: one at a time, replaced when the node has lost it or when its ledger has
/// grown large.
#[derive(Debug)]
pub(super) struct Sessions {
    client: Client,
    /// All that is to be sent.
    plan: PushPlan,
    current: Mutex<Arc<Slot>>,
}

/// Place of one session, which the first to need it opens.
#[derive(Debug)]
struct Slot {
    generation: u64,
    /// `None` once nothing of the plan is missing.
    session: OnceCell<Option<Arc<Session>>>,
}

impl Sessions {
    pub(super) fn new(client: Client, plan: PushPlan, first: Session) -> Sessions {
        let session = OnceCell::new_with(Some(Some(Arc::new(first))));
        let slot = Slot {
            generation: 0,
            session,
        };
        Sessions {
            client,
            plan,
            current: Mutex::new(Arc::new(slot)),
        }
    }

    /// The session to work in; `None` when the cache already has everything.
    ///
    /// Dropping it is safe.
    ///
    /// **Errors**: when a new session is needed and cannot be opened. The next call tries again.
    pub(super) async fn current(&self) -> Result<Option<Arc<Session>>, ClientError> {
        let slot = self.slot();
        let session = slot
            .session
            .get_or_try_init(|| self.open(slot.generation))
            .await?
            .clone();
        match session {
            Some(session) if session.ledger.len() >= LEDGER_LEN_MAX => {
                self.replace(session.generation);
                let slot = self.slot();
                Ok(slot
                    .session
                    .get_or_try_init(|| self.open(slot.generation))
                    .await?
                    .clone())
            }
            session => Ok(session),
        }
    }

    /// Takes `generation` out of use, unless that has happened already.
    pub(super) fn replace(&self, generation: u64) {
        let mut current = self.current.lock().expect("no panic under this lock");
        if current.generation == generation {
            let generation = generation + 1;
            *current = Arc::new(Slot {
                generation,
                session: OnceCell::new(),
            });
        }
    }

    /// Releases what the last session held.
    pub(super) async fn end(&self) -> Result<(), ClientError> {
        match self.slot().session.get() {
            Some(Some(session)) => self.client.end_session(&session.id).await,
            Some(None) | None => Ok(()),
        }
    }

    async fn open(&self, generation: u64) -> Result<Option<Arc<Session>>, ClientError> {
        let granted = super::ask(&self.client, &self.plan).await?.session;
        let Some(grant) = granted else {
            return Ok(None);
        };
        match Session::new(&grant, generation) {
            Some(session) => Ok(Some(Arc::new(session))),
            None => Err(bad_challenge()),
        }
    }

    fn slot(&self) -> Arc<Slot> {
        Arc::clone(&self.current.lock().expect("no panic under this lock"))
    }
}

/// What the node means by a challenge that is no key.
pub(super) fn bad_challenge() -> ClientError {
    ClientError::Unintelligible {
        what: "challenge of push session".to_owned(),
        source: None,
    }
}

/// The chunks of one session that have been sent, are being sent, or may have been.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    chunks: Mutex<HashMap<ChunkId, State>>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Somebody is sending it.
    Flying,
    /// The node has it from this session.
    Landed,
    /// The node may have it from this session.
    Unsure,
}

/// What to do with one occurrence of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Send it: nobody else does.
    Send,
    /// Another occurrence is sent or on its way.
    Lean,
    /// The node has it from elsewhere: prove that it is here too.
    Prove,
}

impl Ledger {
    /// Those of `ids`, each once, of which only the node can say whether it wants them.
    pub(super) fn unknown<'a>(&self, ids: impl Iterator<Item = &'a ChunkId>) -> Vec<ChunkId> {
        let chunks = self.lock();
        let mut seen = HashSet::new();
        ids.filter(|id| !chunks.contains_key(id) && seen.insert(**id))
            .copied()
            .collect()
    }

    /// Decides about `ids` in order, `wanted` being those that the node misses. The caller answers
    /// for the ones to send through the claims.
    pub(super) fn decide<'a>(
        self: &Arc<Self>,
        ids: impl Iterator<Item = &'a ChunkId>,
        wanted: &HashSet<ChunkId>,
    ) -> (Vec<Fate>, Claims) {
        let mut chunks = self.lock();
        let mut claims = Claims {
            ids: Vec::new(),
            ledger: Arc::clone(self),
        };
        let decide = |id: &ChunkId| match chunks.get(id) {
            Some(State::Flying | State::Landed) => Fate::Lean,
            None if !wanted.contains(id) => Fate::Prove,
            None | Some(State::Unsure) => {
                chunks.insert(*id, State::Flying);
                claims.ids.push(*id);
                Fate::Send
            }
        };
        let fates = ids.map(decide).collect();
        drop(chunks);
        (fates, claims)
    }

    /// The node lacks these, whatever was thought: they must be sent.
    pub(super) fn doubt<'a>(&self, ids: impl Iterator<Item = &'a ChunkId>) {
        let mut chunks = self.lock();
        for id in ids {
            let state = chunks.entry(*id).or_insert(State::Unsure);
            if *state == State::Landed {
                *state = State::Unsure;
            }
        }
    }

    /// Waits until none of `ids` is on its way. Whether all arrived.
    ///
    /// Dropping it is safe. It returns, because claims end when their holder does.
    pub(super) async fn landed(&self, ids: &HashSet<ChunkId>) -> bool {
        loop {
            let changed = self.changed.notified();
            let (flying, unsure) = self.outstanding(ids);
            if unsure {
                return false;
            }
            if !flying {
                return true;
            }
            changed.await;
        }
    }

    /// Waits until none of `ids` is on its way, wherever it ended. Dropping it is safe.
    pub(super) async fn settled(&self, ids: &HashSet<ChunkId>) {
        loop {
            let changed = self.changed.notified();
            let (flying, _) = self.outstanding(ids);
            if !flying {
                return;
            }
            changed.await;
        }
    }

    fn outstanding(&self, ids: &HashSet<ChunkId>) -> (bool, bool) {
        let chunks = self.lock();
        let any = |state| ids.iter().any(|id| chunks.get(id) == Some(&state));
        (any(State::Flying), any(State::Unsure))
    }

    fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChunkId, State>> {
        self.chunks.lock().expect("no panic under this lock")
    }
}

/// The duty to send some chunks. Dropping it without [`Claims::landed`] leaves them unsure.
#[derive(Debug)]
pub(super) struct Claims {
    ids: Vec<ChunkId>,
    ledger: Arc<Ledger>,
}

impl Claims {
    /// The node has taken them all in.
    pub(super) fn landed(mut self) {
        let ids = std::mem::take(&mut self.ids);
        self.settle(ids, State::Landed);
    }

    fn settle(&self, ids: Vec<ChunkId>, state: State) {
        if ids.is_empty() {
            return;
        }
        let mut chunks = self.ledger.lock();
        for id in ids {
            chunks.insert(id, state);
        }
        drop(chunks);
        self.ledger.changed.notify_waiters();
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        let ids = std::mem::take(&mut self.ids);
        self.settle(ids, State::Unsure);
    }
}

/// Chunks after which a fresh session is opened: some 32 GiB of plain bytes, 16 MiB of memory. A
/// single NAR may exceed it, as it may any bound on lists of its chunks.
const LEDGER_LEN_MAX: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::Range<u8>) -> Vec<ChunkId> {
        range.map(|n| ChunkId::of(&[n])).collect()
    }

    fn decide(ledger: &Arc<Ledger>, ids: &[ChunkId], wanted: &[ChunkId]) -> (Vec<Fate>, Claims) {
        ledger.decide(ids.iter(), &wanted.iter().copied().collect())
    }

    #[test]
    fn a_chunk_is_claimed_once_and_then_leaned_on() {
        let ledger = Arc::<Ledger>::default();
        let [a, b] = ids(0..2)[..] else {
            unreachable!("two ids")
        };
        let (fates, claims) = decide(&ledger, &[a, b, a], &[a]);
        assert_eq!(fates, [Fate::Send, Fate::Prove, Fate::Lean]);
        assert_eq!(decide(&ledger, &[a], &[a]).0, [Fate::Lean]);
        assert_eq!(ledger.unknown([a, b, b].iter()), [b]);
        claims.landed();
        assert_eq!(decide(&ledger, &[a], &[a]).0, [Fate::Lean]);
    }

    /// A request that broke off may have been carried out: proving such a chunk could be wrong.
    #[test]
    fn what_a_dropped_claim_may_have_sent_is_sent_again() {
        let ledger = Arc::<Ledger>::default();
        let [a] = ids(0..1)[..] else {
            unreachable!("one id")
        };
        drop(decide(&ledger, &[a], &[a]).1);
        assert!(ledger.unknown([a].iter()).is_empty());
        assert_eq!(decide(&ledger, &[a], &[]).0, [Fate::Send]);
    }

    #[test]
    fn what_the_node_lost_is_sent_again() {
        let ledger = Arc::<Ledger>::default();
        let [a, b] = ids(0..2)[..] else {
            unreachable!("two ids")
        };
        decide(&ledger, &[a], &[a]).1.landed();
        ledger.doubt([a, b].iter());
        assert_eq!(decide(&ledger, &[a, b], &[]).0, [Fate::Send, Fate::Send]);
    }

    #[tokio::test]
    async fn leaning_waits_for_the_sender_and_learns_how_it_went() {
        let ledger = Arc::<Ledger>::default();
        let [a, b] = ids(0..2)[..] else {
            unreachable!("two ids")
        };
        for (id, arrives) in [(a, true), (b, false)] {
            let (_, claims) = decide(&ledger, &[id], &[id]);
            let waiting = {
                let ledger = Arc::clone(&ledger);
                tokio::spawn(async move { ledger.landed(&HashSet::from([id])).await })
            };
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished());
            if arrives {
                claims.landed();
            } else {
                drop(claims);
            }
            assert_eq!(waiting.await.unwrap(), arrives);
        }
    }
}

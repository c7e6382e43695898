//! A bucket in memory, which fails as it is told to: the twin of a server, for simulations and tests.
//!
//! Every answer is ready at once: a future of this bucket never waits, so a simulation may poll it
//! once. Nothing reads a clock or the system's randomness; the same requests meet the same faults.
//!
//! What is asked through one [`MemoryBucket`] takes effect at once and in order, unless a [`Fault`]
//! says otherwise. [`MemoryBucket::beside`] is another client of the same objects, with faults of its
//! own.

use std::collections::{BTreeMap, VecDeque};
use std::future::ready;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use bytes::Bytes;

use super::{
    Answer, Bucket, BucketError, Counters, Health, Object, Operation, Page, is_key, is_key_prefix,
};

/// A client of objects in memory.
#[derive(Debug)]
pub struct MemoryBucket {
    server: Arc<Mutex<Server>>,
    client: Mutex<Client>,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It gets lost: a read is unreachable, a write unclear, and is never applied.
    RequestLost,
    /// It is applied, and its answer gets lost.
    AnswerLost,
    /// Its answer is lost, and it is applied after so many further requests of anyone.
    Late {
        /// How many.
        requests: u32,
    },
    /// It is applied and answered, and applied once more after so many further requests of anyone.
    Repeated {
        /// How many.
        requests: u32,
    },
    /// The server is busy.
    Busy,
}

/// How often a request meets which fault, in thousandths; what is left meets none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chances {
    /// Of [`Fault::RequestLost`].
    pub request_lost: u32,
    /// Of [`Fault::AnswerLost`].
    pub answer_lost: u32,
    /// Of [`Fault::Late`].
    pub late: u32,
    /// Of [`Fault::Repeated`].
    pub repeated: u32,
    /// Of [`Fault::Busy`].
    pub busy: u32,
    /// Most requests between a late or repeated one and its application.
    pub delay_max: u32,
}

/// What all clients share.
#[derive(Debug)]
struct Server {
    objects: BTreeMap<String, Stored>,
    /// Writes and deletions that are yet to be applied.
    pending: Vec<Pending>,
    /// What was at a key before it was changed, oldest first.
    history: VecDeque<(String, Option<Stored>)>,
    /// How many changes listings are behind.
    list_lag: usize,
    page_len: usize,
    now: SystemTime,
}

#[derive(Clone, Debug)]
struct Stored {
    body: Bytes,
    modified: SystemTime,
}

#[derive(Debug)]
struct Pending {
    requests_left: u32,
    effect: Effect,
}

/// What a write or a deletion does.
#[derive(Clone, Debug)]
enum Effect {
    Put(String, Bytes),
    Delete(String),
}

/// What belongs to one client.
#[derive(Debug, Default)]
struct Client {
    script: VecDeque<(Option<Operation>, Option<Fault>)>,
    random: u64,
    chances: Chances,
    is_down: bool,
    counters: Counters,
    health: Health,
}

impl Default for MemoryBucket {
    fn default() -> MemoryBucket {
        MemoryBucket::new()
    }
}

impl MemoryBucket {
    /// An empty bucket without faults, whose clock stands at the beginning of 1970.
    pub fn new() -> MemoryBucket {
        let server = Server {
            objects: BTreeMap::new(),
            pending: Vec::new(),
            history: VecDeque::new(),
            list_lag: 0,
            page_len: PAGE_LEN,
            now: SystemTime::UNIX_EPOCH,
        };
        MemoryBucket {
            server: Arc::new(Mutex::new(server)),
            client: Mutex::default(),
        }
    }

    /// Another client of the same objects, without faults of its own.
    pub fn beside(&self) -> MemoryBucket {
        MemoryBucket {
            server: Arc::clone(&self.server),
            client: Mutex::default(),
        }
    }

    /// Lets the next requests of this client meet these faults, in order, before any by chance.
    pub fn script(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        let faults = faults.into_iter().map(|fault| (None, fault));
        self.client().script.extend(faults);
    }

    /// Lets the next request of this kind that no earlier line of the script took meet this fault.
    pub fn script_next(&self, operation: Operation, fault: Fault) {
        self.client()
            .script
            .push_back((Some(operation), Some(fault)));
    }

    /// Lets the further requests of this client meet faults by chance, which `seed` fixes.
    pub fn chances(&self, seed: u64, chances: Chances) {
        let mut client = self.client();
        client.random = seed;
        client.chances = chances;
    }

    /// Whether nothing of this client reaches the server from now on.
    pub fn down(&self, is_down: bool) {
        self.client().is_down = is_down;
    }

    /// Lets listings be this many changes behind, at most 64.
    pub fn lists_lag(&self, changes: usize) {
        self.server().list_lag = changes.min(HISTORY_MAX);
    }

    /// Lets pages of listings have at most this many objects, at least one.
    pub fn page_len(&self, len: usize) {
        self.server().page_len = len.max(1);
    }

    /// Sets the server's clock.
    pub fn clock(&self, now: SystemTime) {
        self.server().now = now;
    }

    /// Applies everything that is late now. Returns how many writes and deletions that were.
    pub fn settle(&self) -> usize {
        let mut server = self.server();
        let pending = std::mem::take(&mut server.pending);
        let count = pending.len();
        pending.into_iter().for_each(|one| server.apply(one.effect));
        count
    }

    /// Keys and bodies of all objects, with no fault in between.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let server = self.server();
        let objects = server.objects.iter();
        objects
            .map(|(key, stored)| (key.clone(), stored.body.clone()))
            .collect()
    }

    /// Puts an object there, with no fault in between: one that somebody else wrote or damaged.
    pub fn set(&self, key: &str, body: Bytes) {
        self.server().apply(Effect::Put(key.to_owned(), body));
    }

    /// Takes an object away, with no fault in between.
    pub fn unset(&self, key: &str) {
        self.server().apply(Effect::Delete(key.to_owned()));
    }

    fn client(&self) -> MutexGuard<'_, Client> {
        self.client.lock().expect("no panic under this lock")
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().expect("no panic under this lock")
    }

    /// One request: counts it, and does `what` unless a fault prevents that.
    fn ask<T>(
        &self,
        operation: Operation,
        key: &str,
        effect: Option<Effect>,
        what: impl FnOnce(&Server) -> Result<T, BucketError>,
    ) -> Result<T, BucketError> {
        let mut client = self.client();
        let is_right = match operation {
            Operation::List => is_key_prefix(key),
            _ => is_key(key),
        };
        if !is_right {
            return Err(BucketError::Key {
                key: key.to_owned(),
            });
        }
        let mut server = self.server();
        client.counters.of_mut(operation).requests += 1;
        let fault = client.fault(operation);
        let outcome = if client.is_down {
            Err(unreachable("it is down"))
        } else {
            server.tick();
            server.answer(operation, key, effect, fault, what)
        };
        client.note(operation, &outcome, server.now);
        outcome
    }
}

impl Bucket for MemoryBucket {
    fn put<'a>(&'a self, key: &'a str, body: Bytes) -> Answer<'a, ()> {
        let len = body.len() as u64;
        let effect = Effect::Put(key.to_owned(), body);
        let outcome = self.ask(Operation::Put, key, Some(effect), |_| Ok(()));
        self.count_bytes(Operation::Put, outcome.as_ref().map_or(0, |()| len));
        Box::pin(ready(outcome))
    }

    fn get_range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        if range.is_empty() && is_key(key) {
            return Box::pin(ready(Ok(Bytes::new())));
        }
        let outcome = self.ask(Operation::Get, key, None, |server| {
            server.range(key, &range)
        });
        self.count_bytes(
            Operation::Get,
            outcome.as_ref().map_or(0, |body| body.len() as u64),
        );
        Box::pin(ready(outcome))
    }

    fn get<'a>(&'a self, key: &'a str, len_max: u64) -> Answer<'a, Bytes> {
        let outcome = self.ask(Operation::Get, key, None, |server| {
            server.whole(key, len_max)
        });
        self.count_bytes(
            Operation::Get,
            outcome.as_ref().map_or(0, |body| body.len() as u64),
        );
        Box::pin(ready(outcome))
    }

    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<u64>> {
        let len = |server: &Server| {
            server
                .objects
                .get(key)
                .map(|stored| stored.body.len() as u64)
        };
        Box::pin(ready(
            self.ask(Operation::Head, key, None, |server| Ok(len(server))),
        ))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> Answer<'a, Page> {
        let page = |server: &Server| Ok(server.page(prefix, after));
        Box::pin(ready(self.ask(Operation::List, prefix, None, page)))
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        let effect = Effect::Delete(key.to_owned());
        Box::pin(ready(self.ask(
            Operation::Delete,
            key,
            Some(effect),
            |_| Ok(()),
        )))
    }

    fn counters(&self) -> Counters {
        self.client().counters.clone()
    }

    fn health(&self) -> Health {
        self.client().health.clone()
    }
}

impl MemoryBucket {
    fn count_bytes(&self, operation: Operation, len: u64) {
        self.client().counters.of_mut(operation).bytes += len;
    }
}

impl Server {
    /// Applies what was late until this request.
    fn tick(&mut self) {
        let mut due = Vec::new();
        let mut waiting = Vec::new();
        for mut one in std::mem::take(&mut self.pending) {
            match one.requests_left.checked_sub(1) {
                Some(left) => {
                    one.requests_left = left;
                    waiting.push(one);
                }
                None => due.push(one.effect),
            }
        }
        self.pending = waiting;
        due.into_iter().for_each(|effect| self.apply(effect));
    }

    fn answer<T>(
        &mut self,
        operation: Operation,
        key: &str,
        effect: Option<Effect>,
        fault: Option<Fault>,
        what: impl FnOnce(&Server) -> Result<T, BucketError>,
    ) -> Result<T, BucketError> {
        let lost = |reason: &str| match operation {
            Operation::Put | Operation::Delete => Err(BucketError::Unclear {
                operation,
                key: key.to_owned(),
                reason: reason.to_owned(),
            }),
            _ => Err(unreachable(reason)),
        };
        match fault {
            None => {
                effect.into_iter().for_each(|effect| self.apply(effect));
                what(self)
            }
            Some(Fault::Busy) => Err(BucketError::Busy {
                bucket: NAME.to_owned(),
            }),
            Some(Fault::RequestLost) => lost("the request got lost"),
            Some(Fault::AnswerLost) => {
                effect.into_iter().for_each(|effect| self.apply(effect));
                lost("the answer got lost")
            }
            Some(Fault::Late { requests }) => {
                self.apply_later(effect, requests);
                lost("the request is late")
            }
            Some(Fault::Repeated { requests }) => {
                self.apply_later(effect.clone(), requests);
                effect.into_iter().for_each(|effect| self.apply(effect));
                what(self)
            }
        }
    }

    fn apply_later(&mut self, effect: Option<Effect>, requests_left: u32) {
        let pending = effect.map(|effect| Pending {
            requests_left,
            effect,
        });
        self.pending.extend(pending);
    }

    fn apply(&mut self, effect: Effect) {
        let (key, before) = match effect {
            Effect::Put(key, body) => {
                let modified = self.now;
                let stored = Stored { body, modified };
                let before = self.objects.insert(key.clone(), stored);
                (key, before)
            }
            Effect::Delete(key) => {
                let before = self.objects.remove(&key);
                (key, before)
            }
        };
        self.history.push_back((key, before));
        if self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
    }

    fn stored(&self, key: &str) -> Result<&Bytes, BucketError> {
        let stored = self.objects.get(key).map(|stored| &stored.body);
        stored.ok_or_else(|| BucketError::NotFound {
            key: key.to_owned(),
        })
    }

    fn range(&self, key: &str, range: &Range<u64>) -> Result<Bytes, BucketError> {
        let body = self.stored(key)?;
        let len = body.len() as u64;
        if range.end > len {
            return Err(BucketError::Truncated {
                key: key.to_owned(),
                len,
                wanted: range.end,
            });
        }
        // Both fit: they are at most the length of a buffer.
        Ok(body.slice(range.start as usize..range.end as usize))
    }

    fn whole(&self, key: &str, len_max: u64) -> Result<Bytes, BucketError> {
        let body = self.stored(key)?;
        let len = body.len() as u64;
        if len > len_max {
            return Err(BucketError::TooLong {
                key: key.to_owned(),
                len,
                len_max,
            });
        }
        Ok(body.clone())
    }

    fn page(&self, prefix: &str, after: Option<&str>) -> Page {
        let mut seen: BTreeMap<&str, &Stored> = self
            .objects
            .iter()
            .map(|(key, stored)| (key.as_str(), stored))
            .collect();
        for (key, before) in self.history.iter().rev().take(self.list_lag) {
            match before {
                Some(stored) => seen.insert(key, stored),
                None => seen.remove(key.as_str()),
            };
        }
        let mut objects = seen
            .into_iter()
            .filter(|(key, _)| key.starts_with(prefix) && after.is_none_or(|after| *key > after))
            .map(|(key, stored)| Object {
                key: key.to_owned(),
                len: stored.body.len() as u64,
                modified: stored.modified,
            });
        let page: Vec<Object> = objects.by_ref().take(self.page_len).collect();
        Page {
            objects: page,
            is_last: objects.next().is_none(),
        }
    }
}

impl Client {
    /// What the next request meets.
    fn fault(&mut self, operation: Operation) -> Option<Fault> {
        let mut lines = self.script.iter();
        let line = lines.position(|(only, _)| only.is_none_or(|only| only == operation));
        match line.and_then(|line| self.script.remove(line)) {
            Some((_, fault)) => fault,
            None => self.fault_by_chance(),
        }
    }

    fn fault_by_chance(&mut self) -> Option<Fault> {
        let chances = self.chances;
        let mut point = self.below(1000);
        let mut is_met = |chance: u32| {
            let is_met = point < chance;
            point = point.saturating_sub(chance);
            is_met
        };
        if chances == Chances::default() {
            None
        } else if is_met(chances.request_lost) {
            Some(Fault::RequestLost)
        } else if is_met(chances.answer_lost) {
            Some(Fault::AnswerLost)
        } else if is_met(chances.busy) {
            Some(Fault::Busy)
        } else if is_met(chances.late) {
            let requests = self.below(chances.delay_max.saturating_add(1));
            Some(Fault::Late { requests })
        } else if is_met(chances.repeated) {
            let requests = self.below(chances.delay_max.saturating_add(1));
            Some(Fault::Repeated { requests })
        } else {
            None
        }
    }

    /// A number below `end`, by SplitMix64.
    fn below(&mut self, end: u32) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % u64::from(end.max(1))) as u32
    }

    fn note<T>(&mut self, operation: Operation, outcome: &Result<T, BucketError>, now: SystemTime) {
        let error = outcome.as_ref().err();
        match error.filter(|error| !error.is_of_object()) {
            Some(_) => {
                self.health.failing_since.get_or_insert(now);
            }
            None => self.health.failing_since = None,
        }
        let counters = self.counters.of_mut(operation);
        if let Some(error) = error.filter(|error| !matches!(error, BucketError::NotFound { .. })) {
            counters.failures += 1;
            counters.throttled += u64::from(matches!(error, BucketError::Busy { .. }));
            self.health.last_error = Some(error.to_string());
        }
    }
}

fn unreachable(reason: &str) -> BucketError {
    BucketError::Unreachable {
        bucket: NAME.to_owned(),
        reason: reason.to_owned(),
    }
}

/// What errors call the bucket.
const NAME: &str = "memory";

/// As S3's.
const PAGE_LEN: usize = 1000;

/// Changes that listings can be behind.
const HISTORY_MAX: usize = 64;

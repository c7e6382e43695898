//! One peer that is being served.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{PART_LEN, UNSENT_MAX, WATCHES_MAX};
use crate::wire::{CREDIT_WINDOW, ChunkRange, Layout, Object, Priority, RequestNumber};

/// What a peer asked for and is owed.
#[derive(Debug)]
pub(super) struct Asker {
    /// Requests in the order they came.
    pub(super) jobs: Jobs,
    /// Requests whose object is being looked up.
    pub(super) looked_up: usize,
    /// Bytes read, or being read, that have not left.
    pub(super) unsent: u64,
    /// Bytes sent since it has its slot.
    pub(super) sent_in_turn: u64,
    /// Bytes it is ready to take.
    credit: u64,
    watches: BTreeMap<RequestNumber, Watch>,
}

#[derive(Debug)]
struct Watch {
    object: Object,
    /// Segments gained before the query is answered; `None` once it is.
    early: Option<Vec<u32>>,
    /// Whether what is being looked up has changed since.
    stale: bool,
    /// Whether it was ever answered: its peer may know of the object.
    told: bool,
}

/// The requests of one peer.
#[derive(Debug, Default)]
pub(super) struct Jobs(VecDeque<Job>);

/// One request being answered.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) req: RequestNumber,
    object: Object,
    layout: Arc<Layout>,
    priority: Priority,
    expires: Duration,
    manifest: Bytes,
    manifest_sent: usize,
    /// Chunks to read, in order.
    ranges: VecDeque<ChunkRange>,
    /// Chunks being read.
    reading: usize,
}

/// The next piece of an answer.
#[derive(Debug)]
pub(super) enum Item {
    Part {
        offset: u32,
        total: u32,
        bytes: Bytes,
    },
    Chunk {
        chunk: u32,
        len: u64,
    },
}

impl Default for Asker {
    fn default() -> Asker {
        Asker {
            jobs: Jobs::default(),
            looked_up: 0,
            unsent: 0,
            sent_in_turn: 0,
            credit: CREDIT_WINDOW.into(),
            watches: BTreeMap::new(),
        }
    }
}

impl Asker {
    /// Requests under way.
    pub(super) fn requests(&self) -> usize {
        self.looked_up + self.jobs.0.len()
    }

    /// More credit, up to two windows: no honest peer gives more.
    pub(super) fn credited(&mut self, bytes: u32) {
        let most = 2 * u64::from(CREDIT_WINDOW);
        self.credit = (self.credit + u64::from(bytes)).min(most);
    }

    /// The next piece of the oldest request of a priority, unless too much is under way already.
    pub(super) fn next(
        &mut self,
        now: Duration,
        priority: Priority,
    ) -> Option<(RequestNumber, Object, Item)> {
        if self.unsent >= UNSENT_MAX {
            return None;
        }
        let ready = |job: &Job| job.priority == priority && job.expires > now && job.has_more();
        let at = self.jobs.0.iter().position(ready)?;
        let job = &mut self.jobs.0[at];
        let item = job.next(self.credit)?;
        let (req, object) = (job.req, job.object);
        match &item {
            Item::Part { bytes, .. } => self.unsent += bytes.len() as u64,
            Item::Chunk { len, .. } => {
                self.unsent += len;
                self.credit -= len;
            }
        }
        if job.is_over() {
            self.jobs.0.remove(at);
        }
        Some((req, object, item))
    }

    /// A chunk of a request was read; `None` if nobody waits for it any more, else whether it is
    /// the last.
    pub(super) fn read_done(&mut self, req: RequestNumber) -> Option<bool> {
        let at = self
            .jobs
            .0
            .iter()
            .position(|job| job.req == req && job.reading > 0)?;
        let job = &mut self.jobs.0[at];
        job.reading -= 1;
        let last = job.is_over();
        if last {
            self.jobs.0.remove(at);
        }
        Some(last)
    }

    /// A chunk that was read will not be sent.
    pub(super) fn refund(&mut self, len: u64) {
        self.unsent = self.unsent.saturating_sub(len);
        self.credit += len;
    }

    /// Begins to watch an object, or asks again about one that is watched; `false` if too many are
    /// watched, or another under this number.
    pub(super) fn watch(&mut self, req: RequestNumber, object: Object) -> bool {
        if self.watches.len() >= WATCHES_MAX && !self.watches.contains_key(&req) {
            return false;
        }
        let watch = self.watches.entry(req).or_insert(Watch {
            object,
            early: None,
            stale: false,
            told: false,
        });
        let fits = watch.object == object;
        if fits {
            watch.early = Some(Vec::new());
        }
        fits
    }

    /// Its object is being fetched from now on; whether it has to be looked up for that.
    pub(super) fn begun(&mut self, req: RequestNumber) -> bool {
        let Some(watch) = self.watches.get_mut(&req) else {
            return false;
        };
        let answered = watch.early.is_none();
        watch.stale = !answered;
        if answered {
            watch.early = Some(Vec::new());
        }
        answered
    }

    /// Its object was looked up: which it is, and whether that has to be done again.
    pub(super) fn looked_up_watch(&mut self, req: RequestNumber) -> Option<(Object, bool)> {
        let watch = self.watches.get_mut(&req)?;
        Some((watch.object, std::mem::take(&mut watch.stale)))
    }

    /// Whether a watch was ever answered.
    pub(super) fn is_told(&self, req: RequestNumber) -> bool {
        self.watches.get(&req).is_some_and(|watch| watch.told)
    }

    /// Ends a watch; returns what was watched.
    pub(super) fn unwatch(&mut self, req: RequestNumber) -> Option<Object> {
        self.watches.remove(&req).map(|watch| watch.object)
    }

    /// Where to note gains until the watch is answered; `None` once it is.
    pub(super) fn early(&mut self, req: RequestNumber) -> Option<&mut Vec<u32>> {
        self.watches.get_mut(&req)?.early.as_mut()
    }

    /// The watch is answered now; returns what was gained in the meantime.
    pub(super) fn answered_watch(&mut self, req: RequestNumber) -> Vec<u32> {
        let Some(watch) = self.watches.get_mut(&req) else {
            return Vec::new();
        };
        watch.told = true;
        watch.early.take().unwrap_or_default()
    }

    /// All watches.
    pub(super) fn watches(self) -> impl Iterator<Item = (RequestNumber, Object)> {
        self.watches
            .into_iter()
            .map(|(req, watch)| (req, watch.object))
    }
}

impl Jobs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push_back(&mut self, job: Job) {
        self.0.push_back(job);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Job) -> bool) {
        self.0.retain(keep);
    }

    /// Removes and returns the requests whose deadline has passed.
    pub(super) fn extract_if_expired(&mut self, now: Duration) -> Vec<Job> {
        let jobs = std::mem::take(&mut self.0);
        let (expired, rest): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| job.expires <= now);
        self.0 = rest.into();
        expired
    }
}

impl Job {
    pub(super) fn new(
        req: RequestNumber,
        object: Object,
        layout: Arc<Layout>,
        priority: Priority,
        expires: Duration,
    ) -> Job {
        Job {
            req,
            object,
            layout,
            priority,
            expires,
            manifest: Bytes::new(),
            manifest_sent: 0,
            ranges: VecDeque::new(),
            reading: 0,
        }
    }

    /// Sends the manifest first.
    pub(super) fn with_manifest(mut self, manifest: Bytes) -> Job {
        self.manifest = manifest;
        self
    }

    /// Sends these chunks; they exist.
    pub(super) fn with_chunks(mut self, ranges: &[ChunkRange]) -> Job {
        self.ranges = ranges.iter().copied().collect();
        self
    }

    /// Whether something is left to read or send.
    fn has_more(&self) -> bool {
        self.manifest_sent < self.manifest.len() || !self.ranges.is_empty()
    }

    fn is_over(&self) -> bool {
        !self.has_more() && self.reading == 0
    }

    /// The next piece; a chunk only if the credit covers it.
    fn next(&mut self, credit: u64) -> Option<Item> {
        if self.manifest_sent < self.manifest.len() {
            let offset = self.manifest_sent;
            let end = self.manifest.len().min(offset + PART_LEN);
            self.manifest_sent = end;
            return Some(Item::Part {
                offset: u32::try_from(offset).ok()?,
                total: u32::try_from(self.manifest.len()).ok()?,
                bytes: self.manifest.slice(offset..end),
            });
        }
        let range = self.ranges.front_mut()?;
        let chunk = range.first;
        let len = self.layout.chunk_len(chunk);
        if len > credit {
            return None;
        }
        range.first += 1;
        range.count -= 1;
        if range.count == 0 {
            self.ranges.pop_front();
        }
        self.reading += 1;
        Some(Item::Chunk { chunk, len })
    }
}

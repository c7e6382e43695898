//! What a flight's task, its followers and the offer share.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use attic_p2p::ids::NodeId;
use attic_p2p::wire::{Have, Layout, Priority, SegmentSet};
use attic_store::frame::check;
use attic_store::manifest::{Manifest, ManifestEntry};
use attic_store::{ChunkId, Imported, Lease, Store, StoreError};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};

use super::{FlightError, Wanted};

/// One flight.
pub(super) struct Shared {
    pub(super) wanted: Wanted,
    pub(super) store: Store,
    /// Holds what was found here and what arrived, as long as anybody refers to the flight.
    pub(super) lease: Lease,
    plan: OnceLock<Arc<Plan>>,
    held: Mutex<Held>,
    stage: watch::Sender<Stage>,
    /// Marked as changed whenever chunks have landed.
    landings: watch::Sender<()>,
    followers: watch::Sender<Followers>,
    readers: Mutex<Readers>,
    /// Told when a reader has moved.
    pub(super) moved: Notify,
    /// Takes peers that fetch the same.
    pub(super) met: mpsc::Sender<NodeId>,
}

/// What is known once the manifest is.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) manifest: Manifest,
    pub(super) encoded: Bytes,
    pub(super) layout: Arc<Layout>,
    /// All places of chunks that occur more than once.
    twins: HashMap<ChunkId, Vec<u32>>,
}

/// How far a flight is.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// Something has no source that is known.
    Searching,
    /// Everything is here or has a source.
    Promised,
    /// The NAR is in the store.
    Landed(Imported),
    /// It is given up.
    Failed(FlightError),
}

/// What of the NAR is stored. Empty until the manifest is known.
#[derive(Default)]
struct Held {
    chunks: Vec<bool>,
    segments: Option<SegmentSet>,
}

#[derive(Clone, Copy, Default)]
struct Followers {
    clients: usize,
    background: usize,
}

/// Where clients read, as the first chunk they need.
#[derive(Default)]
struct Readers {
    next: u64,
    at: BTreeMap<u64, u32>,
}

impl Plan {
    pub(super) fn new(manifest: Manifest, encoded: Bytes, layout: Layout) -> Plan {
        let mut twins: HashMap<ChunkId, Vec<u32>> = HashMap::new();
        for (chunk, entry) in (0..).zip(manifest.chunks()) {
            twins.entry(entry.id).or_default().push(chunk);
        }
        twins.retain(|_, places| places.len() > 1);
        Plan {
            manifest,
            encoded,
            layout: Arc::new(layout),
            twins,
        }
    }

    pub(super) fn entry(&self, chunk: u32) -> &ManifestEntry {
        &self.manifest.chunks()[chunk as usize]
    }

    /// Where the chunk at `chunk` occurs: there, and elsewhere.
    pub(super) fn places(&self, chunk: u32) -> Vec<u32> {
        let twins = self.twins.get(&self.entry(chunk).id);
        twins.cloned().unwrap_or_else(|| vec![chunk])
    }

    pub(super) fn ids(&self) -> Vec<ChunkId> {
        let entries = self.manifest.chunks().iter();
        entries.map(|entry| entry.id).collect()
    }
}

impl Shared {
    pub(super) fn new(wanted: Wanted, store: &Store, met: mpsc::Sender<NodeId>) -> Shared {
        Shared {
            wanted,
            store: store.clone(),
            lease: store.lease(),
            plan: OnceLock::new(),
            held: Mutex::default(),
            stage: watch::Sender::new(Stage::Searching),
            landings: watch::Sender::new(()),
            followers: watch::Sender::new(Followers::default()),
            readers: Mutex::default(),
            moved: Notify::new(),
            met,
        }
    }

    pub(super) fn plan(&self) -> Option<&Arc<Plan>> {
        self.plan.get()
    }

    /// Notes the manifest. Called once.
    pub(super) fn planned(&self, plan: Arc<Plan>) {
        let mut held = self.held();
        held.chunks = vec![false; plan.layout.chunks() as usize];
        held.segments = Some(SegmentSet::empty(plan.layout.segments()));
        drop(held);
        self.plan.get_or_init(|| plan);
    }

    /// Notes chunks that are stored now.
    pub(super) fn land(&self, chunks: impl IntoIterator<Item = u32>) {
        let mut held = self.held();
        for chunk in chunks {
            held.chunks[chunk as usize] = true;
        }
        drop(held);
        self.landings.send_replace(());
    }

    /// Notes segments of which everything is stored.
    pub(super) fn complete(&self, complete: impl IntoIterator<Item = u32>) {
        if let Some(segments) = &mut self.held().segments {
            for segment in complete {
                segments.insert(segment);
            }
        }
    }

    pub(super) fn is_held(&self, chunk: u32) -> bool {
        self.held().chunks[chunk as usize]
    }

    /// How many chunks in a row are held from `chunk` on, at most `most`.
    pub(super) fn held_run(&self, chunk: u32, most: u32) -> u32 {
        let held = self.held();
        let rest = held.chunks[chunk as usize..].iter().take(most as usize);
        rest.take_while(|held| **held).count() as u32
    }

    /// Says when chunks landed, or the flight ended.
    pub(super) fn landings(&self) -> watch::Receiver<()> {
        self.landings.subscribe()
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// Goes on to a stage; what has landed or failed stays so.
    pub(super) fn advance(&self, to: Stage) {
        self.stage.send_if_modified(|stage| match (&stage, &to) {
            (Stage::Landed(_) | Stage::Failed(_), _) | (Stage::Promised, Stage::Promised) => false,
            (Stage::Searching | Stage::Promised, _) => {
                *stage = to;
                true
            }
        });
        self.landings.send_replace(());
    }

    /// Waits for a stage.
    pub(super) async fn reached(&self, reached: impl FnMut(&Stage) -> bool) -> Stage {
        let mut stage = self.stage.subscribe();
        let found = stage.wait_for(reached).await.map(|stage| stage.clone());
        // The sender lives as long as `self`.
        found.unwrap_or(Stage::Failed(FlightError::Ended))
    }

    pub(super) fn joined(&self, who: Priority) {
        self.followers
            .send_modify(|followers| *followers.of(who) += 1);
    }

    pub(super) fn left(&self, who: Priority) {
        self.followers
            .send_modify(|followers| *followers.of(who) -= 1);
    }

    pub(super) fn followers(&self) -> usize {
        self.followers.borrow().count()
    }

    /// For whom it flies.
    pub(super) fn priority(&self) -> Priority {
        match self.followers.borrow().clients {
            0 => Priority::Background,
            _ => Priority::Client,
        }
    }

    /// Waits until nobody follows.
    pub(super) async fn unfollowed(&self) {
        let mut followers = self.followers.subscribe();
        // The sender lives as long as `self`.
        let _ = followers.wait_for(|followers| followers.count() == 0).await;
    }

    /// A reader needs `chunk` next; returns the reader's number.
    pub(super) fn reads(&self, chunk: u32) -> u64 {
        let mut readers = self.readers();
        let number = readers.next;
        readers.next += 1;
        readers.at.insert(number, chunk);
        drop(readers);
        self.moved.notify_one();
        number
    }

    /// A reader needs another chunk next, or, with `None`, no more.
    pub(super) fn reads_on(&self, reader: u64, chunk: Option<u32>) {
        let mut readers = self.readers();
        match chunk {
            Some(chunk) => readers.at.insert(reader, chunk),
            None => readers.at.remove(&reader),
        };
        drop(readers);
        self.moved.notify_one();
    }

    /// The first chunk that a reader needs and that is not here; the number of chunks if there is
    /// none.
    pub(super) fn needed(&self) -> u32 {
        let readers = self.readers();
        let held = self.held();
        let missing = |from: &u32| {
            let mut rest = held.chunks.get(*from as usize..)?.iter();
            let ahead = rest.position(|held| !held)?;
            Some(*from + ahead as u32)
        };
        let all = held.chunks.len() as u32;
        readers.at.values().filter_map(missing).min().unwrap_or(all)
    }

    /// The frame of a chunk that has landed, as the manifest pins it; `None` if it is lost.
    ///
    /// Reads the disk, so it may block.
    pub(super) fn frame(&self, entry: &ManifestEntry) -> Result<Option<Bytes>, StoreError> {
        let frame = self.store.frame(&entry.id)?;
        Ok(frame.filter(|frame| is_pinned(frame, entry)))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no panic under this lock")
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().expect("no panic under this lock")
    }
}

/// Whether a frame is the very one that a manifest names.
pub(super) fn is_pinned(frame: &[u8], entry: &ManifestEntry) -> bool {
    frame.len() as u64 == u64::from(entry.frame_len) && check(frame) == entry.frame_check
}

impl Followers {
    fn count(self) -> usize {
        self.clients + self.background
    }

    fn of(&mut self, who: Priority) -> &mut usize {
        match who {
            Priority::Client => &mut self.clients,
            Priority::Background => &mut self.background,
        }
    }
}

/// What can be had of a NAR in flight. Keeps that from being collected.
#[derive(Clone)]
pub(crate) struct FlightView {
    flight: Arc<Shared>,
    plan: Arc<Plan>,
}

impl FlightView {
    /// `None` as long as the manifest is not known.
    pub(super) fn of(flight: Arc<Shared>) -> Option<FlightView> {
        let plan = Arc::clone(flight.plan()?);
        Some(FlightView { flight, plan })
    }

    pub(crate) fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.plan.layout)
    }

    /// The encoded manifest.
    pub(crate) fn manifest(&self) -> Bytes {
        self.plan.encoded.clone()
    }

    /// Which segments are here.
    pub(crate) fn have(&self) -> Have {
        match &self.flight.held().segments {
            Some(segments) if segments.is_full() => Have::Complete,
            Some(segments) => Have::Partial(segments.clone()),
            None => Have::Nothing,
        }
    }

    /// The frame of a chunk; `None` if it is not here. Reads the disk, so it may block.
    pub(crate) fn frame(&self, chunk: u32) -> Result<Option<Bytes>, StoreError> {
        match self.flight.is_held(chunk) {
            true => self.flight.frame(self.plan.entry(chunk)),
            false => Ok(None),
        }
    }
}

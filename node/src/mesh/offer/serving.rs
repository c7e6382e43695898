//! Finding and reading what is offered. All reading blocks.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attic_p2p::ids::ManifestId;
use attic_p2p::provider::{Holding, JobId};
use attic_p2p::wire::{Have, Layout, Object};
use attic_store::{BLOCK_LEN, NarReader, Store, StoreError};
use bytes::Bytes;

use crate::http::error::chain;
use crate::mesh::flight::{FlightView, Flights};

/// Something that can be read for peers.
#[derive(Clone)]
pub(super) enum Served {
    Whole(Arc<Whole>),
    InFlight(FlightView),
}

impl Served {
    /// Bytes of its manifest.
    pub(super) fn len(&self) -> usize {
        match self {
            Served::Whole(whole) => whole.manifest.len(),
            Served::InFlight(view) => view.manifest().len(),
        }
    }
}

/// A NAR of the store.
pub(super) struct Whole {
    reader: NarReader,
    layout: Arc<Layout>,
    manifest: Bytes,
}

/// The outcome of a look-up.
pub(super) struct Found {
    pub(super) served: Served,
    pub(super) holding: Holding,
}

/// What was done on a blocking thread.
pub(super) enum Done {
    LookUp {
        job: JobId,
        object: Object,
        found: Option<Found>,
    },
    /// The peer may not read what it asks for.
    Refused {
        job: JobId,
    },
    Chunk {
        job: JobId,
        bytes: Option<Bytes>,
    },
    Run(Run),
}

/// Finds an object in the store, or among the flights.
pub(super) fn look_up(
    store: &Store,
    flights: &Flights,
    object: &Object,
    known: Option<Served>,
) -> Option<Found> {
    let whole = match known {
        Some(Served::Whole(whole)) => Some(whole),
        Some(Served::InFlight(_)) | None => open(store, object).unwrap_or_else(|error| {
            tracing::error!(nar = %object.nar, cause = chain(&error), "look up NAR for a peer");
            None
        }),
    };
    if let Some(whole) = whole {
        let holding = Holding {
            layout: Arc::clone(&whole.layout),
            have: Have::Complete,
            manifest: whole.manifest.clone(),
        };
        let served = Served::Whole(whole);
        return Some(Found { served, holding });
    }
    let view = flights.view(object)?;
    let holding = Holding {
        layout: view.layout(),
        have: view.have(),
        manifest: view.manifest(),
    };
    let served = Served::InFlight(view);
    Some(Found { served, holding })
}

/// The NAR, if it is whole and cut and framed as the object says.
fn open(store: &Store, object: &Object) -> Result<Option<Arc<Whole>>, StoreError> {
    let Some(reader) = store.open_nar(&object.nar)? else {
        return Ok(None);
    };
    let manifest = Bytes::from(reader.manifest().encode());
    let layout = Layout::of(reader.manifest());
    let (Ok(layout), true) = (layout, ManifestId::of(&manifest) == object.manifest) else {
        return Ok(None);
    };
    let layout = Arc::new(layout);
    Ok(Some(Arc::new(Whole {
        reader,
        layout,
        manifest,
    })))
}

/// Consecutive chunks that are read together.
pub(super) struct Run {
    object: Object,
    chunks: Range<u32>,
    /// Of the first chunks; fewer than there are if a chunk could not be read.
    frames: Vec<Bytes>,
}

impl Run {
    /// The run that begins at `chunk`: a block of a whole NAR, a single chunk of one in flight.
    pub(super) fn beginning(object: Object, chunk: u32, served: &Served) -> Run {
        let end = match served {
            Served::InFlight(_) => chunk + 1,
            Served::Whole(whole) => {
                let layout = &whole.layout;
                let limit = layout.offset(chunk) + BLOCK_LEN as u64;
                let within = |chunk: &u32| layout.offset(*chunk + 1) <= limit;
                let more = (chunk + 1..layout.chunks()).take_while(within).count();
                chunk + 1 + more as u32
            }
        };
        Run {
            object,
            chunks: chunk..end,
            frames: Vec::new(),
        }
    }
}

/// Reads a run. What cannot be read is logged, and missing from it.
pub(super) fn read_run(served: &Served, mut run: Run) -> Run {
    let outcome = match served {
        Served::Whole(whole) => read_whole(whole, &mut run),
        Served::InFlight(view) => view
            .frame(run.chunks.start)
            .map(|frame| run.frames.extend(frame)),
    };
    if let Err(error) = outcome {
        tracing::error!(nar = %run.object.nar, cause = chain(&error), "read NAR for a peer");
    }
    run
}

fn read_whole(whole: &Whole, run: &mut Run) -> Result<(), StoreError> {
    let layout = &whole.layout;
    let range = layout.offset(run.chunks.start)..layout.offset(run.chunks.end);
    let mut blocks = whole.reader.frames(range);
    let mut chunks = run.chunks.clone();
    while let Some(mut block) = blocks.next_block()? {
        while !block.is_empty()
            && let Some(chunk) = chunks.next()
        {
            let len = (layout.chunk_len(chunk) as usize).min(block.len());
            run.frames.push(block.split_to(len));
        }
    }
    Ok(())
}

/// Runs being read, and lately read.
#[derive(Default)]
pub(super) struct Ahead {
    reading: Vec<Reading>,
    /// The most recently read last.
    read: VecDeque<(Run, Instant)>,
}

struct Reading {
    object: Object,
    chunks: Range<u32>,
    waiting: Vec<(JobId, u32)>,
}

impl Ahead {
    /// A chunk that was read already.
    pub(super) fn take(&self, object: &Object, chunk: u32) -> Option<Bytes> {
        let of = |run: &&Run| run.object == *object && run.chunks.contains(&chunk);
        let run = self.read.iter().map(|(run, _)| run).rev().find(of)?;
        let frame = run.frames.get((chunk - run.chunks.start) as usize);
        frame.cloned()
    }

    /// Lets a job wait for a chunk that is being read; whether it is.
    pub(super) fn wait(&mut self, object: &Object, chunk: u32, job: JobId) -> bool {
        let of =
            |reading: &&mut Reading| reading.object == *object && reading.chunks.contains(&chunk);
        let reading = self.reading.iter_mut().find(of);
        let found = reading.is_some();
        reading
            .into_iter()
            .for_each(|reading| reading.waiting.push((job, chunk)));
        found
    }

    /// Notes a run that is being read, for a job that waits for its first chunk.
    pub(super) fn begin(&mut self, run: &Run, job: JobId) {
        let waiting = vec![(job, run.chunks.start)];
        self.reading.push(Reading {
            object: run.object,
            chunks: run.chunks.clone(),
            waiting,
        });
    }

    /// Takes a run that was read; returns the chunks that jobs wait for.
    pub(super) fn finish(&mut self, run: Run) -> Vec<(JobId, Option<Bytes>)> {
        let is_it =
            |reading: &Reading| reading.object == run.object && reading.chunks == run.chunks;
        let Some(at) = self.reading.iter().position(is_it) else {
            return Vec::new();
        };
        let reading = self.reading.swap_remove(at);
        let frame = |chunk: u32| run.frames.get((chunk - run.chunks.start) as usize).cloned();
        let waiting = reading.waiting.iter();
        let answers = waiting.map(|(job, chunk)| (*job, frame(*chunk))).collect();
        if run.frames.len() > 1 {
            self.read.push_back((run, Instant::now()));
        }
        if self.read.len() > RUNS_MAX {
            self.read.pop_front();
        }
        answers
    }

    /// Drops runs of which nobody wanted the rest.
    pub(super) fn forget_old(&mut self) {
        self.read.retain(|(_, read)| read.elapsed() < AHEAD_FOR);
    }
}

/// Runs kept, of a little more than a block each: 64 MiB.
const RUNS_MAX: usize = 64;
const AHEAD_FOR: Duration = Duration::from_secs(2);

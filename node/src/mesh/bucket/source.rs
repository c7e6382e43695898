//! The bucket as one more source of a download: asked like a peer, last, and never banned.
//!
//! What it answers is what it claims to be: frames are compared with the manifest before they are handed
//! on, so that damage costs another copy and is laid to nobody. Chunks that lie close together in a
//! pack are read with one request.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attic_p2p::ids::NodeId;
use attic_p2p::wire::{ChunkRange, Have, Layout, Object, SegmentSet};
use attic_store::PackId;
use attic_store::bucket::pack::Place;
use attic_store::frame::check;
use attic_store::manifest::Manifest;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};

use super::{ReadError, SharedBucket};
use crate::http::error::chain;
use crate::http::ingest::joined;
use crate::mesh::link::{Answer, AskId, Asked, Heard, Listener, MEMORY_UNIT, Question, Received};

/// What the bucket is called among peers. Nobody has that key.
pub(crate) const BUCKET: NodeId = NodeId::from_bytes([0xff; 32]);

/// Answers downloads from a bucket. Cheap to clone.
#[derive(Clone)]
pub(crate) struct BucketSource {
    shared: Arc<SharedBucket>,
    /// Bytes of chunks in memory, shared with the links to peers.
    memory: Arc<Semaphore>,
    /// Requests for chunks at a time.
    reads: Arc<Semaphore>,
    located: Arc<Mutex<Recent>>,
}

/// NARs that were asked for lately, the latest last.
type Recent = VecDeque<(Object, Arc<Located>)>;

/// A NAR of which it is known where its chunks lie.
struct Located {
    encoded: Bytes,
    manifest: Manifest,
    have: Have,
    places: Vec<Option<Place>>,
}

/// Chunks that lie close together.
struct Run {
    pack: PackId,
    range: Range<u64>,
    chunks: Vec<(u32, Place)>,
}

impl BucketSource {
    pub(crate) fn new(shared: Arc<SharedBucket>, memory: Arc<Semaphore>) -> BucketSource {
        BucketSource {
            shared,
            memory,
            reads: Arc::new(Semaphore::new(READS_MAX)),
            located: Arc::default(),
        }
    }

    /// Asks; answers go to `listener`.
    pub(crate) fn ask(&self, question: Question, listener: &Listener) -> Asked {
        let ask = AskId::next();
        let reply = Reply {
            ask,
            listener: listener.clone(),
        };
        let source = self.clone();
        let task = tokio::spawn(async move {
            let outcome = match question {
                Question::Have(object) => source.have(object, &reply).await,
                Question::Manifest(object) => source.manifest(object, &reply).await,
                Question::Chunks { object, ranges, .. } => {
                    source.chunks(object, &ranges, &reply).await
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(cause = chain(&error), "the bucket does not answer");
                reply.send(Answer::Busy(RETRY_AFTER)).await;
            }
        });
        Asked::of_task(ask, task.abort_handle())
    }

    async fn have(&self, object: Object, reply: &Reply) -> Result<(), ReadError> {
        let located = self.locate(object).await?;
        let have = located.map_or(Have::Nothing, |located| located.have.clone());
        reply.send(Answer::Have(have)).await;
        Ok(())
    }

    async fn manifest(&self, object: Object, reply: &Reply) -> Result<(), ReadError> {
        let Some(located) = self.locate(object).await? else {
            reply.send(Answer::NotFound(None)).await;
            return Ok(());
        };
        let bytes = located.encoded.clone();
        let part = Answer::Manifest {
            offset: 0,
            total: bytes.len() as u32,
            bytes,
        };
        reply.send(part).await;
        Ok(())
    }

    async fn chunks(
        &self,
        object: Object,
        ranges: &[ChunkRange],
        reply: &Reply,
    ) -> Result<(), ReadError> {
        let Some(located) = self.locate(object).await? else {
            reply.send(Answer::NotFound(None)).await;
            return Ok(());
        };
        let wanted = ranges
            .iter()
            .flat_map(|range| range.first..range.first.saturating_add(range.count));
        let mut found = Vec::new();
        for chunk in wanted {
            match located.places.get(chunk as usize) {
                Some(Some(place)) => found.push((chunk, *place)),
                Some(None) | None => reply.send(Answer::NotFound(Some(chunk))).await,
            }
        }
        let mut reading = JoinSet::new();
        for run in runs(found) {
            let (source, located, reply) = (self.clone(), Arc::clone(&located), reply.clone());
            reading.spawn(async move { source.read(object, run, &located, &reply).await });
        }
        while let Some(read) = reading.join_next().await {
            joined(read)?;
        }
        Ok(())
    }

    /// Reads one run and hands on its chunks.
    async fn read(
        &self,
        object: Object,
        run: Run,
        located: &Located,
        reply: &Reply,
    ) -> Result<(), ReadError> {
        let Ok(_read) = self.reads.acquire().await else {
            return Ok(());
        };
        let units =
            ((run.range.end - run.range.start) as usize / MEMORY_UNIT + run.chunks.len()) as u32;
        // What is read may lie in memory.
        let Ok(mut memory) = Arc::clone(&self.memory).acquire_many_owned(units).await else {
            return Ok(());
        };
        let bytes = self.shared.read(&run.pack, run.range.clone()).await?;
        for (chunk, place) in run.chunks {
            let entry = &located.manifest.chunks()[chunk as usize];
            let frame = bytes.as_ref().map(|bytes| {
                let start = (u64::from(place.offset) - run.range.start) as usize;
                bytes.slice(start..start + place.len as usize)
            });
            let good = frame.filter(|frame| {
                let good =
                    frame.len() == entry.frame_len as usize && check(frame) == entry.frame_check;
                if !good {
                    self.shared.is_damaged(&place);
                }
                good
            });
            let Some(frame) = good else {
                self.forget(&object);
                reply.send(Answer::NotFound(Some(chunk))).await;
                continue;
            };
            let units = frame.len() / MEMORY_UNIT + 1;
            let Some(memory) = memory.split(units.min(memory.num_permits())) else {
                return Ok(());
            };
            let bytes = Received::of_bucket(frame, memory);
            reply.send(Answer::Chunk { chunk, bytes }).await;
        }
        Ok(())
    }

    /// Where the chunks of a NAR lie; `None` if the bucket does not have its manifest.
    async fn locate(&self, object: Object) -> Result<Option<Arc<Located>>, ReadError> {
        let known = {
            let located = self.located.lock().expect("no panic under this lock");
            let mut known = located.iter().filter(|(known, _)| *known == object);
            known.next().map(|(_, located)| Arc::clone(located))
        };
        if known.is_some() {
            return Ok(known);
        }
        let Some(encoded) = self.shared.manifest(object.manifest).await? else {
            return Ok(None);
        };
        let Ok(manifest) = Manifest::decode(&encoded) else {
            return Ok(None);
        };
        let shared = Arc::clone(&self.shared);
        let looked = spawn_blocking(move || {
            let places = shared.places(&manifest)?;
            Ok::<_, ReadError>((manifest, places))
        });
        let (manifest, mut places) = joined(looked.await)?;
        places.truncate(manifest.chunks().len());
        let Some(have) = have(&manifest, &places) else {
            return Ok(None);
        };
        let located = Arc::new(Located {
            encoded,
            manifest,
            have,
            places,
        });
        let mut kept = self.located.lock().expect("no panic under this lock");
        while kept.len() >= LOCATED_MAX {
            kept.pop_front();
        }
        kept.push_back((object, Arc::clone(&located)));
        Ok(Some(located))
    }

    /// Has a NAR looked for anew.
    fn forget(&self, object: &Object) {
        let mut located = self.located.lock().expect("no panic under this lock");
        located.retain(|(known, _)| known != object);
    }
}

/// What can be had of a NAR; `None` if it has no layout.
fn have(manifest: &Manifest, places: &[Option<Place>]) -> Option<Have> {
    if places.iter().all(Option::is_some) {
        return Some(Have::Complete);
    }
    let layout = Layout::of(manifest).ok()?;
    let mut segments = SegmentSet::empty(layout.segments());
    for segment in 0..layout.segments() {
        let mut chunks = layout.chunks_of(segment);
        if chunks.all(|chunk| places[chunk as usize].is_some()) {
            segments.insert(segment);
        }
    }
    Some(match segments.is_empty() {
        true => Have::Nothing,
        false => Have::Partial(segments),
    })
}

/// Puts together what lies close together, in the order of the first chunk of each run.
fn runs(chunks: Vec<(u32, Place)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (chunk, place) in chunks {
        let range = place.range();
        let near = runs.iter_mut().rev().take(RUNS_LOOKED_AT).find(|run| {
            run.pack == place.pack
                && range.start >= run.range.end
                && range.start - run.range.end <= GAP_MAX
                && range.end - run.range.start <= RUN_LEN_MAX
        });
        match near {
            Some(run) => {
                run.range.end = range.end;
                run.chunks.push((chunk, place));
            }
            None => runs.push(Run {
                pack: place.pack,
                range,
                chunks: vec![(chunk, place)],
            }),
        }
    }
    runs
}

/// To whom answers go.
#[derive(Clone)]
struct Reply {
    ask: AskId,
    listener: Listener,
}

impl Reply {
    async fn send(&self, answer: Answer) {
        let heard = Heard {
            node: BUCKET,
            ask: self.ask,
            answer,
        };
        // Whoever asked may be gone.
        let _ = self.listener.send(heard).await;
    }
}

/// Requests for chunks at a time.
const READS_MAX: usize = 48;
/// Bytes between two chunks that are read along rather than skipped with a request of their own.
const GAP_MAX: u64 = 128 << 10;
/// Bytes of one request.
const RUN_LEN_MAX: u64 = 4 << 20;
/// Runs that a chunk may continue: chunks of a few packs may alternate.
const RUNS_LOOKED_AT: usize = 4;
/// NARs whose chunks' places are kept.
const LOCATED_MAX: usize = 64;
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn place(pack: u8, offset: u32, len: u32) -> Place {
        Place {
            pack: PackId::from_bytes([pack; 16]),
            offset,
            len,
            raw_len: len,
        }
    }

    #[test]
    fn what_lies_close_together_is_read_at_once() {
        let chunks = vec![
            (0, place(1, 100, 50)),
            (1, place(2, 0, 10)),
            (2, place(1, 214, 50)),
            (3, place(1, 20 << 20, 50)),
            (4, place(1, 0, 50)),
        ];
        let found: Vec<(u8, Range<u64>, usize)> = runs(chunks)
            .into_iter()
            .map(|run| (run.pack.as_bytes()[0], run.range, run.chunks.len()))
            .collect();
        let far = 20 << 20;
        let expected = [
            (1, 100..264, 2),
            (2, 0..10, 1),
            (1, far..far + 50, 1),
            (1, 0..50, 1),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn no_request_is_longer_than_the_bound() {
        let chunks = (0..400)
            .map(|n| (n, place(1, n * 65_600, 65_536)))
            .collect();
        let runs = runs(chunks);
        assert!(
            runs.iter()
                .all(|run| run.range.end - run.range.start <= RUN_LEN_MAX)
        );
        assert_eq!(runs.iter().map(|run| run.chunks.len()).sum::<usize>(), 400);
        assert!(runs.len() <= 7, "{}", runs.len());
    }
}

//! Merging runs: which, and how.
//!
//! The runs are kept in the order of their flushes. Only neighbours are merged, so that the order
//! stays meaningful: a copy in a later run is the younger one.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::locator::LocatorError;
use crate::locator::page::{ENTRIES_PER_PAGE, Entry, PAGE_LEN};
use crate::locator::run::{Run, Span};
use crate::locator::run_writer::RunWriter;
use crate::pack_id::PackId;

/// What the plan has to know of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunLen {
    /// All entries.
    pub(super) entries: u64,
    /// Those of live packs.
    pub(super) live: u64,
}

impl RunLen {
    /// Never zero: runs without entries are merged too.
    fn weight(&self) -> u64 {
        self.live.max(1)
    }
}

/// The neighbours to merge now, oldest first; `None` if all is well.
///
/// Merges from a run on when it and the younger ones are at least [`FAN_IN`] and the younger ones
/// together are no smaller than it. Then every run but the last few is larger than all younger
/// ones together: their number is logarithmic, and an entry moves into a run of at least twice the
/// length each time it is written. A run that is half dead is written anew alone.
pub(super) fn plan(runs: &[RunLen]) -> Option<Range<usize>> {
    let due = |start: &usize| {
        let younger: u64 = runs[start + 1..].iter().map(RunLen::weight).sum();
        runs[*start].weight() <= younger
    };
    let starts = 0..(runs.len() + 1).saturating_sub(FAN_IN);
    if let Some(start) = starts.into_iter().find(due) {
        return Some(start..runs.len());
    }
    let half_dead = runs.iter().position(|run| run.live * 2 < run.entries);
    half_dead.map(|at| at..at + 1)
}

/// What came of a merge.
pub(super) enum Merged {
    /// The run that replaces the merged ones.
    Run(Run),
    /// None of their packs is live.
    Nothing,
    /// It was told to stop; nothing has changed.
    Stopped,
}

/// Why there was no merge; nothing has changed.
pub(super) enum MergeError {
    /// A run could not be read.
    Source(Arc<Run>, LocatorError),
    /// The new run could not be written.
    Target(io::Error),
}

/// Writes one run with the entries of these neighbours that belong to packs in `live`.
///
/// Memory: a buffer of [`BUFFER_LEN`] a run, and filter and fence of the new one. `stop` is asked
/// every now and then.
pub(super) fn merge(
    dir: &Path,
    runs: &[Arc<Run>],
    live: impl Fn(PackId) -> bool,
    stop: impl Fn() -> bool,
) -> Result<Merged, MergeError> {
    let packs = Packs::collect(runs, live);
    let Some(span) = hull(runs).filter(|_| !packs.list.is_empty()) else {
        return Ok(Merged::Nothing);
    };
    let mut writer = RunWriter::create(dir, span, packs.list, packs.entries_max)?;
    let mut sources = Vec::with_capacity(runs.len());
    for (run, numbers) in runs.iter().zip(packs.numbers) {
        sources.push(Source::open(run, numbers)?);
    }
    let mut last = None;
    for written in 0u64.. {
        if written.is_multiple_of(ENTRIES_PER_STOP) && stop() {
            return Ok(Merged::Stopped);
        }
        let Some(entry) = next_entry(&mut sources)? else {
            break;
        };
        // A pack can be in two runs if it was inserted again because one of them was damaged.
        if last.replace(entry) != Some(entry) {
            writer.push(entry)?;
        }
    }
    Ok(Merged::Run(writer.finish()?))
}

/// The lowest entry of all sources.
fn next_entry(sources: &mut [Source<'_>]) -> Result<Option<Entry>, MergeError> {
    let order = |entry: &Entry| (entry.id, entry.pack, entry.offset);
    let candidates = sources.iter_mut().filter(|source| source.peek().is_some());
    match candidates.min_by_key(|source| source.peek().map(order)) {
        Some(source) => source.next(),
        None => Ok(None),
    }
}

fn hull(runs: &[Arc<Run>]) -> Option<Span> {
    runs.iter().map(|run| run.tail.span).reduce(Span::hull)
}

/// The packs of the new run and their numbers in it.
struct Packs {
    list: Vec<PackId>,
    /// For each run, the new numbers of its packs; `None` if the pack is dead.
    numbers: Vec<Vec<Option<u32>>>,
    entries_max: u64,
}

impl Packs {
    fn collect(runs: &[Arc<Run>], live: impl Fn(PackId) -> bool) -> Packs {
        let mut packs = Packs {
            list: Vec::new(),
            numbers: Vec::new(),
            entries_max: 0,
        };
        let mut known = HashMap::new();
        for run in runs {
            let mut numbers = Vec::with_capacity(run.tail.packs.len());
            for pack in &run.tail.packs {
                numbers.push(live(pack.id).then(|| {
                    packs.entries_max += u64::from(pack.entries);
                    *known.entry(pack.id).or_insert_with(|| {
                        packs.list.push(pack.id);
                        packs.list.len() as u32 - 1
                    })
                }));
            }
            packs.numbers.push(numbers);
        }
        packs
    }
}

/// A run being read in order.
struct Source<'a> {
    run: &'a Arc<Run>,
    numbers: Vec<Option<u32>>,
    /// Pages read ahead, and the next one's place among them.
    buffer: Vec<[u8; PAGE_LEN]>,
    buffered: usize,
    /// Number of the next page.
    page: usize,
    /// Entries of live packs of the page before, renumbered, the first last.
    ready: Vec<Entry>,
}

impl<'a> Source<'a> {
    fn open(run: &'a Arc<Run>, numbers: Vec<Option<u32>>) -> Result<Source<'a>, MergeError> {
        let (buffer, ready) = (Vec::new(), Vec::with_capacity(ENTRIES_PER_PAGE));
        let mut source = Source {
            run,
            numbers,
            buffer,
            buffered: 0,
            page: 0,
            ready,
        };
        source.fill()?;
        Ok(source)
    }

    fn peek(&self) -> Option<&Entry> {
        self.ready.last()
    }

    fn next(&mut self) -> Result<Option<Entry>, MergeError> {
        let entry = self.ready.pop();
        self.fill()?;
        Ok(entry)
    }

    /// Gets entries ready, unless some are or there are no more.
    fn fill(&mut self) -> Result<(), MergeError> {
        while self.ready.is_empty() && self.page < self.run.pages() {
            let read = self.read_page();
            read.map_err(|error| MergeError::Source(Arc::clone(self.run), error))?;
        }
        Ok(())
    }

    fn read_page(&mut self) -> Result<(), LocatorError> {
        if self.buffered == self.buffer.len() {
            let pages = (self.run.pages() - self.page).min(BUFFER_LEN / PAGE_LEN);
            self.buffer.resize(pages, [0; PAGE_LEN]);
            self.buffered = 0;
            self.run
                .read_pages(self.page, self.buffer.as_flattened_mut())?;
        }
        let page = self.run.page(self.page, &self.buffer[self.buffered])?;
        for entry in (0..page.len()).rev().map(|n| page.entry(n)) {
            let number = self.numbers.get(entry.pack as usize);
            if let Some(pack) = *number.ok_or_else(|| self.run.damage(self.page))? {
                self.ready.push(Entry { pack, ..entry });
            }
        }
        self.buffered += 1;
        self.page += 1;
        Ok(())
    }
}

impl From<io::Error> for MergeError {
    fn from(error: io::Error) -> MergeError {
        MergeError::Target(error)
    }
}

/// Fewest runs merged at once.
const FAN_IN: usize = 4;
/// Bytes read at a time from each run.
const BUFFER_LEN: usize = 256 << 10;
const ENTRIES_PER_STOP: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::{RunLen, plan};

    fn lens(lens: &[u64]) -> Vec<RunLen> {
        lens.iter()
            .map(|len| RunLen {
                entries: *len,
                live: *len,
            })
            .collect()
    }

    #[test]
    fn plan_merges_when_younger_runs_outweigh_an_older_one() {
        for (runs, expected) in [
            (&[][..], None),
            (&[1, 1, 1], None),
            (&[1, 1, 1, 1], Some(0..4)),
            (&[4, 1, 1, 1], None),
            (&[4, 1, 1, 1, 1], Some(0..5)),
            (&[8, 1, 1, 1, 1], Some(1..5)),
            (&[8, 4, 1, 1, 1], None),
            (&[0, 0, 0, 0], Some(0..4)),
        ] {
            assert_eq!(plan(&lens(runs)), expected, "{runs:?}");
        }
    }

    #[test]
    fn plan_writes_a_run_anew_that_is_more_than_half_dead() {
        let runs = [
            RunLen {
                entries: 100,
                live: 50,
            },
            RunLen {
                entries: 9,
                live: 4,
            },
        ];
        assert_eq!(plan(&runs), Some(1..2));
        assert_eq!(plan(&runs[..1]), None);
    }

    #[test]
    fn plan_keeps_runs_few_and_rewrites_each_entry_seldom() {
        let (mut runs, mut written) = (Vec::new(), 0);
        for flush in 0..1000 {
            runs.push(1);
            while let Some(range) = plan(&lens(&runs)) {
                let merged: u64 = runs[range.clone()].iter().sum();
                written += merged;
                runs.splice(range, [merged]);
            }
            assert!(
                runs.len() <= 13,
                "{} runs after {flush} flushes",
                runs.len()
            );
        }
        assert!(written <= 8 * 1000, "wrote {written} for 1000");
    }
}

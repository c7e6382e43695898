//! Writing a run, entry by entry, in bounded memory but for its filter and fence.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use twox_hash::XxHash3_64;

use crate::locator::filter::{Filter, lane};
use crate::locator::page::{self, ENTRIES_PER_PAGE, Entry};
use crate::locator::run::{Run, RunPack, Span, Tail, Trailer};
use crate::pack_id::PackId;

/// A run that is being written under a temporary name, which is removed when it is dropped.
pub(super) struct RunWriter {
    temporary: Temporary,
    path: PathBuf,
    out: BufWriter<File>,
    tail: Tail,
    /// The entries of the page to come.
    page: Vec<Entry>,
}

impl RunWriter {
    /// Starts a run of these packs with at most `entries_max` entries.
    pub(super) fn create(
        dir: &Path,
        span: Span,
        packs: impl IntoIterator<Item = PackId>,
        entries_max: u64,
    ) -> io::Result<RunWriter> {
        let path = dir.join(span.file_name());
        let temporary = Temporary(path.with_extension(TEMPORARY_EXTENSION));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary.0)?;
        let tail = Tail {
            entries: 0,
            span,
            fence: Vec::new(),
            filter: Filter::with_room_for(entries_max),
            packs: packs
                .into_iter()
                .map(|id| RunPack { id, entries: 0 })
                .collect(),
        };
        let out = BufWriter::with_capacity(BUFFER_LEN, file);
        Ok(RunWriter {
            temporary,
            path,
            out,
            tail,
            page: Vec::with_capacity(ENTRIES_PER_PAGE),
        })
    }

    /// Appends an entry, whose id is not below the one before and whose pack is in the list.
    pub(super) fn push(&mut self, entry: Entry) -> io::Result<()> {
        if self.page.is_empty() {
            self.tail.fence.push(lane(&entry.id, 0));
        }
        self.tail.filter.insert(&entry.id);
        if let Some(pack) = self.tail.packs.get_mut(entry.pack as usize) {
            pack.entries += 1;
        }
        self.tail.entries += 1;
        self.page.push(entry);
        if self.page.len() == ENTRIES_PER_PAGE {
            self.end_page()?;
        }
        Ok(())
    }

    /// Completes the file, gives it its name and opens it.
    ///
    /// Its pages are on the disk before it has its name, so that a crash leaves no run whose
    /// damage shows only later.
    pub(super) fn finish(mut self) -> io::Result<Run> {
        if !self.page.is_empty() {
            self.end_page()?;
        }
        let tail_check = self.write_tail()?;
        let trailer = Trailer {
            entries: self.tail.entries,
            span: self.tail.span,
            packs: self.tail.packs.len() as u32,
            filter_blocks: self.tail.filter.blocks(),
            tail_check,
        };
        self.out.write_all(&trailer.encode())?;
        let file = self.out.into_inner().map_err(|error| error.into_error())?;
        file.sync_data()?;
        fs::rename(&self.temporary.0, &self.path)?;
        Ok(Run::new(self.path, file, self.tail))
    }

    fn end_page(&mut self) -> io::Result<()> {
        self.out
            .write_all(&page::encode(&self.page, self.tail.span.seed()))?;
        self.page.clear();
        Ok(())
    }

    /// Writes fence, filter and packs; returns their checksum.
    fn write_tail(&mut self) -> io::Result<u64> {
        let mut check = XxHash3_64::with_seed(self.tail.span.seed());
        let mut put = |bytes: &[u8]| {
            check.write(bytes);
            self.out.write_all(bytes)
        };
        for word in self.tail.fence.iter().chain(self.tail.filter.words()) {
            put(&word.to_le_bytes())?;
        }
        for pack in &self.tail.packs {
            put(pack.id.as_bytes())?;
            put(&pack.entries.to_le_bytes())?;
        }
        Ok(check.finish())
    }
}

/// A file that goes when this does, unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Absent after a rename; if it stays, the next open removes it.
        let _ = fs::remove_file(&self.0);
    }
}

/// Extension of unfinished runs.
pub(super) const TEMPORARY_EXTENSION: &str = "tmp";
const BUFFER_LEN: usize = 256 << 10;

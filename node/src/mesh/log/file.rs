//! The log of one node: a file of entries end to end.
//!
//! **Shape** of an entry: length of the segment as u32, its number as u64, both big-endian, the
//! first 8 bytes of the BLAKE3 of number and segment, the segment.
//!
//! **Damage**: an end that was torn off while it was written is cut off when the file is opened.
//! An entry that decayed stays, unreadable, and so does all that follows it: for a node's own log
//! that is the only witness of how far it went. Mending puts the segment back in its place.
//!
//! Where the next entry begins after one whose length decayed has to be searched for, among bytes
//! that their author chose. What is found counts only if it is a segment that the author signed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use attic_p2p::ids::NodeId;
use attic_p2p::segment::Segment;
use bytes::Bytes;

/// The log of one node.
pub(super) struct LogFile {
    author: NodeId,
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Where the entries lie, by number, decayed ones included. Numbers ascend; those of a compacted
    /// log have gaps.
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) len: u64,
}

/// Where a segment lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    offset: u64,
    len: u32,
}

impl Entry {
    /// With its head.
    pub(super) fn whole_len(&self) -> u64 {
        HEAD_LEN as u64 + u64::from(self.len)
    }

    /// Where the next one begins.
    fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

impl LogFile {
    pub(super) fn open(path: &Path, author: NodeId) -> io::Result<LogFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let mut log = LogFile {
            author,
            path: path.to_owned(),
            entries: BTreeMap::new(),
            len: 0,
            file,
        };
        log.scan()?;
        Ok(log)
    }

    /// Finds the entries, and cuts off an end that was torn off.
    fn scan(&mut self) -> io::Result<()> {
        let end = self.file.metadata()?.len();
        while self.len < end {
            let at = self.len;
            if let Some((seq, entry, _)) = self.whole_at(at, end)? {
                self.len = entry.end();
                self.entries.insert(seq, entry);
                continue;
            }
            match self.find_whole(at + 1, end)? {
                Some((next, seq)) => self.note_decayed(at, next, seq)?,
                None if self.is_torn(at, end)? => {
                    let lost = end - at;
                    tracing::warn!(file = %self.path.display(), lost, "cut off the torn end of a log");
                    self.file.set_len(at)?;
                    return Ok(());
                }
                None => self.note_decayed_end(at, end)?,
            }
            let lost = self.len - at;
            tracing::error!(file = %self.path.display(), at, lost, "a part of a log decayed");
        }
        Ok(())
    }

    /// The entry at `offset`, if it is one that can follow and is what was written.
    fn whole_at(&self, offset: u64, end: u64) -> io::Result<Option<(u64, Entry, Bytes)>> {
        let Some(head) = self.head_at(offset, end)? else {
            return Ok(None);
        };
        let (len, seq, _) = split(&head);
        let entry = Entry {
            offset: offset + HEAD_LEN as u64,
            len,
        };
        let follows = len <= SEGMENT_LEN_MAX && entry.end() <= end && self.last() < seq;
        if !follows {
            return Ok(None);
        }
        let segment = read_entry(&self.file, seq, entry)?;
        Ok(segment.map(|segment| (seq, entry, segment)))
    }

    /// Offset and number of the first whole entry at or after `from`: one with a segment that was
    /// signed.
    fn find_whole(&self, mut from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        let mut window = vec![0; SEARCH_LEN];
        while from + HEAD_LEN as u64 <= end {
            let len = window.len().min((end - from) as usize);
            self.file.read_exact_at(&mut window[..len], from)?;
            for (at, head) in (from..).zip(window[..len].windows(HEAD_LEN)) {
                let (len, seq, _) = split(head.first_chunk().expect("that long"));
                // Cheap, and right for one in 10^9 places only.
                let may_be = len <= SEGMENT_LEN_MAX && self.last() < seq && seq <= SEQ_MAX;
                if !may_be {
                    continue;
                }
                if let Some((_, _, segment)) = self.whole_at(at, end)?
                    && self.is_signed(seq, segment)
                {
                    return Ok(Some((at, seq)));
                }
            }
            from += (len - HEAD_LEN + 1) as u64;
        }
        Ok(None)
    }

    /// Whether this is the `seq`-th segment of this log, or of one that its author forked.
    fn is_signed(&self, seq: u64, segment: Bytes) -> bool {
        Segment::decode(segment).is_ok_and(|segment| {
            let head = segment.head();
            (head.node, head.seq) == (self.author, seq) && segment.verify().is_ok()
        })
    }

    /// Whether what begins at `at` and ends the file is an entry that was being written.
    fn is_torn(&self, at: u64, end: u64) -> io::Result<bool> {
        let Some(head) = self.head_at(at, end)? else {
            return Ok(true);
        };
        let (len, seq, written_check) = split(&head);
        let left = end - at - HEAD_LEN as u64;
        let reaches_end = len <= SEGMENT_LEN_MAX && u64::from(len) >= left;
        if reaches_end || head == [0; HEAD_LEN] {
            // A page that the system gave and never filled.
            let page = at.max((end - 1) / PAGE_LEN * PAGE_LEN);
            let mut last = vec![0; (end - page) as usize];
            self.file.read_exact_at(&mut last, page)?;
            if last.iter().all(|byte| *byte == 0) {
                return Ok(true);
            }
        }
        if !reaches_end || u64::from(len) == left {
            return Ok(false);
        }
        let mut rest = vec![0; left as usize];
        self.file.read_exact_at(&mut rest, at + HEAD_LEN as u64)?;
        // A whole segment whose length decayed ends where the file does.
        Ok(check(seq, &rest) != written_check)
    }

    /// Takes note of entries that cannot be read, from `at` up to the whole one of number `seq` at
    /// `next`: numbers have no gaps.
    fn note_decayed(&mut self, at: u64, next: u64, seq: u64) -> io::Result<()> {
        let room = (next - at) / HEAD_LEN as u64;
        let first = match self.entries.is_empty() {
            false => self.last() + 1,
            // How far the log went back, the first head says if it is not the one that decayed.
            true => {
                let head = self.head_at(at, next)?.map(|head| split(&head).1);
                let told = head.filter(|first| *first < seq && seq - first <= room);
                told.unwrap_or(seq.saturating_sub(1)).max(1)
            }
        };
        self.len = next;
        self.note_lost(at, next, first.max(seq.saturating_sub(room))..seq)
    }

    /// As [`LogFile::note_decayed`] where no whole entry follows: at least one was there.
    fn note_decayed_end(&mut self, at: u64, end: u64) -> io::Result<()> {
        let first = self.last() + 1;
        let (mut after, mut offset) = (first + 1, at);
        while let Some(head) = self.head_at(offset, end)? {
            offset += HEAD_LEN as u64 + u64::from(split(&head).0);
            match self.head_at(offset, end)? {
                Some(next) if split(&next).1 == after => after += 1,
                _ => break,
            }
        }
        self.len = end;
        self.note_lost(at, end, first..after)
    }

    /// These numbers lie between two offsets and cannot be read, unless there is one of them and
    /// nothing but its length decayed: that is written again.
    fn note_lost(&mut self, at: u64, next: u64, seqs: Range<u64>) -> io::Result<()> {
        let offset = at + HEAD_LEN as u64;
        // Where each of several ends is not known.
        let alone = (seqs.end - seqs.start == 1).then_some(seqs.start);
        let len = next.checked_sub(offset).filter(|_| alone.is_some());
        let len = len.and_then(|len| u32::try_from(len).ok());
        let len = len.filter(|len| *len <= SEGMENT_LEN_MAX).unwrap_or(0);
        self.entries
            .extend(seqs.map(|seq| (seq, Entry { offset, len })));
        if let Some(seq) = alone
            && let Some(segment) = self.read(seq)?
        {
            self.overwrite(seq, &segment)?;
        }
        Ok(())
    }

    fn head_at(&self, offset: u64, end: u64) -> io::Result<Option<[u8; HEAD_LEN]>> {
        if offset + HEAD_LEN as u64 > end {
            return Ok(None);
        }
        let mut head = [0; HEAD_LEN];
        self.file.read_exact_at(&mut head, offset)?;
        Ok(Some(head))
    }

    /// The highest number; 0 if there is none.
    fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(0)
    }

    /// A draft of this log from `first` on, with one segment replaced or added. What cannot be read
    /// stays known by its number.
    pub(super) fn rewritten(
        &self,
        first: u64,
        instead: Option<(u64, &[u8])>,
    ) -> io::Result<LogFile> {
        let draft = self.path.with_extension("tmp");
        let _ = fs::remove_file(&draft);
        let mut log = LogFile::open(&draft, self.author)?;
        let seqs: BTreeSet<u64> = (self.entries.range(first..))
            .map(|(seq, _)| *seq)
            .chain(instead.map(|(seq, _)| seq))
            .collect();
        for seq in seqs {
            let replaced = instead.filter(|(replaced, _)| *replaced == seq);
            let segment = match (replaced, self.entries.get(&seq)) {
                (Some((_, segment)), _) => Some(Bytes::copy_from_slice(segment)),
                (None, Some(entry)) => read_entry(&self.file, seq, *entry)?,
                (None, None) => None,
            };
            match segment {
                Some(segment) => log.append(seq, &segment)?,
                None => log.append_with(seq, &[], NO_CHECK)?,
            }
        }
        Ok(log)
    }

    /// Writes a segment over what is there, durably; false if that has another length.
    pub(super) fn overwrite(&self, seq: u64, segment: &[u8]) -> io::Result<bool> {
        let entry = self.entries.get(&seq);
        let Some(entry) = entry.filter(|entry| entry.len as usize == segment.len()) else {
            return Ok(false);
        };
        let bytes = entry_bytes(seq, segment, check(seq, segment));
        self.file
            .write_all_at(&bytes, entry.offset - HEAD_LEN as u64)?;
        self.file.sync_data()?;
        Ok(true)
    }

    /// The segment of this number, if it is there and what was written.
    pub(super) fn read(&self, seq: u64) -> io::Result<Option<Bytes>> {
        match self.entries.get(&seq) {
            Some(entry) => read_entry(&self.file, seq, *entry),
            None => Ok(None),
        }
    }

    pub(super) fn append(&mut self, seq: u64, segment: &[u8]) -> io::Result<()> {
        self.append_with(seq, segment, check(seq, segment))
    }

    fn append_with(&mut self, seq: u64, segment: &[u8], check: [u8; 8]) -> io::Result<()> {
        let len = u32::try_from(segment.len()).ok();
        let len = len.filter(|len| *len <= SEGMENT_LEN_MAX);
        let ascends = self.entries.is_empty() || self.last() < seq;
        let (Some(len), true) = (len, ascends) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let bytes = entry_bytes(seq, segment, check);
        if let Err(error) = self.file.write_all_at(&bytes, self.len) {
            // What was written of it would be cut off at the next start as well.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        let offset = self.len + HEAD_LEN as u64;
        self.entries.insert(seq, Entry { offset, len });
        self.len = offset + u64::from(len);
        Ok(())
    }

    /// Makes what was appended durable, or takes the last segment back.
    pub(super) fn sync_last(&mut self) -> io::Result<()> {
        let synced = self.file.sync_data();
        if synced.is_err()
            && let Some((_, entry)) = self.entries.pop_last()
        {
            self.len = entry.offset - HEAD_LEN as u64;
            let _ = self.file.set_len(self.len);
        }
        synced
    }

    /// Forgets the segments above `seq`, durably.
    pub(super) fn cut_after(&mut self, seq: u64) -> io::Result<()> {
        let Some(from) = seq.checked_add(1) else {
            return Ok(());
        };
        let beyond = self.entries.split_off(&from);
        if let Some(entry) = beyond.values().next() {
            self.len = entry.offset - HEAD_LEN as u64;
            self.file.set_len(self.len)?;
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// Head and segment, as they lie in the file. `segment` is not too long.
pub(super) fn entry_bytes(seq: u64, segment: &[u8], check: [u8; 8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_LEN + segment.len());
    bytes.extend_from_slice(&(segment.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&seq.to_be_bytes());
    bytes.extend_from_slice(&check);
    bytes.extend_from_slice(segment);
    bytes
}

/// A segment, if it is what was written.
fn read_entry(file: &File, seq: u64, entry: Entry) -> io::Result<Option<Bytes>> {
    let mut bytes = vec![0; HEAD_LEN + entry.len as usize];
    match file.read_exact_at(&mut bytes, entry.offset - HEAD_LEN as u64) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let (head, _) = bytes.split_first_chunk().expect("it is that long");
    let (_, written_seq, written_check) = split(head);
    let segment = Bytes::from(bytes).split_off(HEAD_LEN);
    let intact = written_seq == seq && written_check == check(seq, &segment);
    Ok(intact.then_some(segment))
}

/// Length, number and check.
fn split(head: &[u8; HEAD_LEN]) -> (u32, u64, [u8; 8]) {
    let [a, b, c, d, rest @ ..] = head;
    let (seq, check) = rest.split_at(8);
    (
        u32::from_be_bytes([*a, *b, *c, *d]),
        u64::from_be_bytes(seq.try_into().expect("8 bytes")),
        check.try_into().expect("8 bytes"),
    )
}

pub(super) fn check(seq: u64, segment: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seq.to_be_bytes()).update(segment);
    let mut check = [0; 8];
    hasher.finalize_xof().fill(&mut check);
    check
}

pub(super) const HEAD_LEN: usize = 20;
/// Far above what a segment may be: a longer one is a damaged length.
const SEGMENT_LEN_MAX: u32 = 1 << 20;
/// A higher number is a damaged one: places of records have 32 bits.
const SEQ_MAX: u64 = u32::MAX as u64;
/// What the system writes as one.
const PAGE_LEN: u64 = 4096;
/// Bytes that are searched for an entry at a time.
const SEARCH_LEN: usize = 64 << 10;
/// Of an entry that could not be read when the file was rewritten: no segment has it.
const NO_CHECK: [u8; 8] = [0; 8];

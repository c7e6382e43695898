//! Reading a pack's list of records: from its footer, or by walking it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use twox_hash::XxHash3_64;

use crate::error::StoreError;
use crate::pack::{
    FOOTER_ENTRY_LEN, FooterEntry, HEAD_LEN, PackFile, TAIL_LEN, TAIL_MAGIC, intact, pack_path,
};
use crate::pack_id::PackId;
use crate::record::{HEADER_LEN, MAGIC as RECORD_MAGIC, PackSalt, RecordHeader, RecordKind};

/// What a pack holds.
pub(crate) struct Contents {
    /// Its records in file order, the footer excluded.
    pub(crate) entries: Vec<FooterEntry>,
    /// Bytes up to the end of the last whole record, footer and tail included if sealed.
    pub(crate) len: u64,
    /// Whether it ends in a footer.
    pub(crate) sealed: bool,
}

/// Lists a pack: by its footer if it has an undamaged one, else record by record.
///
/// A damaged record is left out; those after it are found.
pub(crate) fn read_contents(pack: &PackFile) -> Result<Contents, StoreError> {
    match read_footer(pack)? {
        Some(contents) => Ok(contents),
        None => walk(pack),
    }
}

/// Lists a pack that may have been torn by a crash, cuts off what was not written whole, and makes
/// the rest durable, since the writer may have died before it did.
pub(crate) fn recover(root: &Path, id: PackId) -> Result<Contents, StoreError> {
    let pack = PackFile::open(root, id)?;
    let contents = read_contents(&pack)?;
    let path = pack_path(root, id);
    let settle = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&path)?;
        if contents.len < file.metadata()?.len() {
            file.set_len(contents.len)?;
        }
        file.sync_all()
    };
    settle().map_err(|error| StoreError::io("settle pack", &path, error))?;
    Ok(contents)
}

fn read_footer(pack: &PackFile) -> Result<Option<Contents>, StoreError> {
    let len = pack.len()?;
    let Some(tail_at) = len.checked_sub(TAIL_LEN as u64).filter(|at| *at > HEAD_LEN) else {
        return Ok(None);
    };
    let mut tail = [0; TAIL_LEN];
    pack.read_exact_at(&mut tail, tail_at)?;
    let Some(footer_at) = read_tail(&tail)
        .map(|(at, _)| at)
        .filter(|at| (HEAD_LEN..tail_at).contains(at))
    else {
        return Ok(None);
    };
    let mut record = vec![0; (tail_at - footer_at) as usize];
    pack.read_exact_at(&mut record, footer_at)?;
    Ok(
        decode_footer(&record, footer_at, pack.salt()).map(|entries| Contents {
            entries,
            len,
            sealed: true,
        }),
    )
}

/// The footer's offset and the salt, from an undamaged tail.
fn read_tail(tail: &[u8; TAIL_LEN]) -> Option<(u64, PackSalt)> {
    let offset = u64::from_le_bytes(tail[..8].try_into().expect("8 bytes"));
    let salt = PackSalt::from_bytes(tail[8..16].try_into().expect("8 bytes"));
    let check = XxHash3_64::oneshot(&tail[..16]).to_le_bytes();
    (tail[16..24] == check && tail[24..] == *TAIL_MAGIC).then_some((offset, salt))
}

/// The salt of a pack: from its tail if it is sealed, else from its head.
pub(super) fn read_salt(file: &File) -> io::Result<PackSalt> {
    let len = file.metadata()?.len();
    let mut tail = [0; TAIL_LEN];
    if let Some(at) = len.checked_sub(TAIL_LEN as u64) {
        file.read_exact_at(&mut tail, at)?;
        if let Some((_, salt)) = read_tail(&tail) {
            return Ok(salt);
        }
    }
    let mut head = [0; HEAD_LEN as usize];
    if len >= HEAD_LEN {
        file.read_exact_at(&mut head, 0)?;
    }
    Ok(PackSalt::from_bytes(
        head[24..].try_into().expect("8 bytes"),
    ))
}

/// Of a pack of `len` bytes of which `end` are the last: where its footer record begins, the salt, and
/// bytes after the footer record. `None` if that is no end of a sealed pack.
pub(crate) fn footer_place(end: &[u8], len: u64) -> Option<(u64, PackSalt, usize)> {
    let tail = end.last_chunk::<TAIL_LEN>()?;
    let (footer_at, salt) = read_tail(tail)?;
    let tail_at = len.checked_sub(TAIL_LEN as u64)?;
    (HEAD_LEN..tail_at)
        .contains(&footer_at)
        .then_some((footer_at, salt, TAIL_LEN))
}

/// What a footer record at `footer_at` lists, if it is undamaged.
pub(crate) fn read_footer_record(
    record: &[u8],
    footer_at: u64,
    salt: &PackSalt,
) -> Option<Vec<FooterEntry>> {
    decode_footer(record, footer_at, salt)
}

fn decode_footer(record: &[u8], footer_at: u64, salt: &PackSalt) -> Option<Vec<FooterEntry>> {
    let at = FooterEntry {
        kind: RecordKind::Footer,
        key: [0; 32],
        offset: u32::try_from(footer_at).ok()?,
        raw_len: 0,
        body_len: u32::try_from(record.len().checked_sub(HEADER_LEN)?).ok()?,
    };
    intact(record, &at, salt)?;
    let (entries, rest) = record[HEADER_LEN..].as_chunks::<FOOTER_ENTRY_LEN>();
    let entries: Vec<FooterEntry> = entries
        .iter()
        .map(FooterEntry::decode)
        .collect::<Option<_>>()?;
    let inside = |entry: &FooterEntry| {
        u64::from(entry.offset) >= HEAD_LEN
            && u64::from(entry.offset) + entry.record_len() <= footer_at
    };
    (rest.is_empty() && entries.iter().all(inside)).then_some(entries)
}

fn walk(pack: &PackFile) -> Result<Contents, StoreError> {
    let file_len = pack.len()?;
    let mut contents = Contents {
        entries: Vec::new(),
        len: HEAD_LEN.min(file_len),
        sealed: false,
    };
    let mut at = HEAD_LEN;
    while let Some(entry) = next_record(pack, at, file_len)? {
        if entry.kind == RecordKind::Footer {
            break;
        }
        at = u64::from(entry.offset) + entry.record_len();
        contents.len = at;
        if pack.read_record(&entry)?.is_some() {
            contents.entries.push(entry);
        }
    }
    Ok(contents)
}

/// The first record at or after `at` whose header is undamaged and which the file holds whole.
///
/// As a rule it starts at `at`. A damaged header hides the length of its record, so then the next
/// header is searched for; the salt in its tag keeps bytes that a stranger put into a body from
/// passing for one.
fn next_record(pack: &PackFile, at: u64, file_len: u64) -> Result<Option<FooterEntry>, StoreError> {
    if let Some(entry) = header_at(pack, at, file_len)? {
        return Ok(Some(entry));
    }
    let mut window = vec![0; SEARCH_LEN];
    let mut from = at + 1;
    while from + (HEADER_LEN as u64) < file_len {
        let len = (file_len - from).min(SEARCH_LEN as u64) as usize;
        pack.read_exact_at(&mut window[..len], from)?;
        let candidates = window[..len].windows(RECORD_MAGIC.len()).enumerate();
        for (offset, _) in candidates.filter(|(_, bytes)| *bytes == RECORD_MAGIC) {
            if let Some(entry) = header_at(pack, from + offset as u64, file_len)? {
                return Ok(Some(entry));
            }
        }
        // Overlap, so that a magic on the border is seen whole.
        from += (len - RECORD_MAGIC.len() + 1) as u64;
    }
    Ok(None)
}

/// The record at `offset`, if its header is undamaged and the file holds all of it.
fn header_at(
    pack: &PackFile,
    offset: u64,
    file_len: u64,
) -> Result<Option<FooterEntry>, StoreError> {
    let mut head = [0; HEADER_LEN];
    if file_len.saturating_sub(offset) < HEADER_LEN as u64 {
        return Ok(None);
    }
    pack.read_exact_at(&mut head, offset)?;
    let Ok(header) = RecordHeader::decode(&head, pack.salt()) else {
        return Ok(None);
    };
    let (Ok(at), true) = (
        u32::try_from(offset),
        offset + header.record_len() <= file_len,
    ) else {
        return Ok(None);
    };
    Ok(Some(FooterEntry::new(&header, at)))
}

const SEARCH_LEN: usize = 1 << 20;

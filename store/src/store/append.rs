//! Writing records: a pack writer on loan, with the bookkeeping every append needs.

use crate::error::StoreError;
use crate::hash::ChunkId;
use crate::index::{ManifestAt, SeqRange};
use crate::lease::Lease;
use crate::locator::Location;
use crate::manifest::Manifest;
use crate::pack::PackWriter;
use crate::pack_id::PackId;
use crate::record::{HEADER_LEN, ImportedManifest, RecordHeader, RecordKind, Row};
use crate::store::{Inner, now};

/// A pack writer on loan; goes back to the set when dropped.
pub(crate) struct Appender<'a> {
    store: &'a Inner,
    writer: Option<PackWriter>,
}

impl<'a> Appender<'a> {
    pub(crate) fn new(store: &'a Inner) -> Appender<'a> {
        Appender {
            store,
            writer: None,
        }
    }

    /// Stores a frame, unless an undamaged copy is already there; says where it lies.
    ///
    /// The lease holds it. Durable after [`Inner::sync`].
    pub(crate) fn chunk(
        &mut self,
        lease: &Lease,
        id: ChunkId,
        raw_len: u32,
        frame: &[u8],
    ) -> Result<(Location, Stored), StoreError> {
        if let Some(at) = self.store.locate(lease, &id)? {
            return Ok((at, Stored::Before));
        }
        let len = (HEADER_LEN + frame.len()) as u64;
        if !self.store.has_room(len)? {
            // What is dead in the pack written to here is then found as well.
            self.check_in();
            self.store.make_room(len)?;
        }
        self.chunk_copy(Some(lease), id, raw_len, frame)
            .map(|at| (at, Stored::Now))
    }

    /// As [`Appender::chunk`], whatever the size cap: a chunk without which others that are here would
    /// be worth nothing.
    pub(crate) fn last_chunk(
        &mut self,
        lease: &Lease,
        id: ChunkId,
        raw_len: u32,
        frame: &[u8],
    ) -> Result<(Location, Stored), StoreError> {
        match self.store.locate(lease, &id)? {
            Some(at) => Ok((at, Stored::Before)),
            None => self
                .chunk_copy(Some(lease), id, raw_len, frame)
                .map(|at| (at, Stored::Now)),
        }
    }

    /// Stores a frame even if there is a copy elsewhere, and whatever the size cap: collection
    /// copies before it deletes.
    pub(crate) fn chunk_copy(
        &mut self,
        lease: Option<&Lease>,
        id: ChunkId,
        raw_len: u32,
        frame: &[u8],
    ) -> Result<Location, StoreError> {
        let header = RecordHeader::new(RecordKind::Chunk, *id.as_bytes(), raw_len, frame);
        let (pack, offset) = self.record(&header, frame)?;
        if let Some(lease) = lease {
            // A pack that is being written is never condemned.
            lease.hold_chunk(&id, pack, || true);
        }
        let at = Location {
            pack,
            offset,
            raw_len,
            frame_len: header.body_len,
        };
        let record_len = (HEADER_LEN + frame.len()) as u64;
        self.store.packs.note_chunk(pack, id, record_len);
        self.store.locator.insert(id, at);
        self.seal_if_full()?;
        Ok(at)
    }

    /// Stores a manifest and notes it in the index.
    pub(crate) fn manifest(&mut self, manifest: &Manifest) -> Result<(), StoreError> {
        self.store.index.make_room(NAR_ROW_LEN)?;
        let (seq, imported_at) = (self.store.next_seq()?, now());
        let body = ImportedManifest {
            seq,
            imported_at,
            manifest: &manifest.encode(),
        }
        .encode();
        let at = self.manifest_copy(manifest, seq, imported_at, &body)?;
        self.store.index.put_nar(manifest, &at)?;
        self.seal_if_full()
    }

    /// Stores a manifest record as it was written before. The caller notes where, once it is
    /// durable.
    pub(crate) fn manifest_copy(
        &mut self,
        manifest: &Manifest,
        seq: u64,
        imported_at: u64,
        body: &[u8],
    ) -> Result<ManifestAt, StoreError> {
        let key = *manifest.nar_hash().as_bytes();
        let header = RecordHeader::new(RecordKind::Manifest, key, body.len() as u32, body);
        self.note_seq(seq)?;
        let (pack, offset) = self.record(&header, body)?;
        let body_len = header.body_len;
        Ok(ManifestAt {
            seq,
            imported_at,
            pack,
            offset,
            body_len,
        })
    }

    /// Stores a row. The caller applies it to the index once it is durable, and seals after that.
    pub(crate) fn row(&mut self, row: &Row) -> Result<(), StoreError> {
        let body = row.encode();
        let header = RecordHeader::new(RecordKind::Row, [0; 32], body.len() as u32, &body);
        self.note_seq(row.seq)?;
        self.record(&header, &body)?;
        Ok(())
    }

    /// Seals the pack if it has reached its length. Its rows must have been applied.
    pub(crate) fn seal_if_full(&mut self) -> Result<(), StoreError> {
        match self
            .writer
            .take_if(|writer| self.store.packs.is_full(writer))
        {
            Some(writer) => self.store.seal(writer),
            None => Ok(()),
        }
    }

    fn record(&mut self, header: &RecordHeader, body: &[u8]) -> Result<(PackId, u32), StoreError> {
        let writer = self.writer()?;
        let pack = writer.file().id;
        let entry = writer.append(header, body)?;
        let len = writer.len();
        self.store.packs.grown(pack, len);
        self.store.size.add(entry.record_len());
        Ok((pack, entry.offset))
    }

    /// Notes the number of a row about to be stored.
    fn note_seq(&mut self, seq: u64) -> Result<(), StoreError> {
        let pack = self.writer()?.file().id;
        self.store.packs.note_seq(pack, seq);
        Ok(())
    }

    fn writer(&mut self) -> Result<&mut PackWriter, StoreError> {
        Ok(match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(self.store.packs.writer()?),
        })
    }
}

impl Appender<'_> {
    /// Gives the writer back. Its rows must have been applied.
    fn check_in(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.store.packs.check_in(writer);
        }
    }
}

impl Drop for Appender<'_> {
    fn drop(&mut self) {
        self.check_in();
    }
}

/// Bytes that a NAR's row in the index may take.
const NAR_ROW_LEN: u64 = 256;

/// Whether a chunk was in the store already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Before,
    Now,
}

impl Inner {
    /// Makes all records written so far durable.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.packs
            .open_files()
            .iter()
            .try_for_each(|pack| pack.sync())
    }

    /// Seals every pack that nobody writes to.
    ///
    /// The caller must know that no writer holds rows that are not applied; between commits that
    /// is so.
    pub(crate) fn seal_idle(&self) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        for writer in self.packs.take_idle() {
            outcome = outcome.and(self.seal(writer));
        }
        outcome
    }

    fn seal(&self, mut writer: PackWriter) -> Result<(), StoreError> {
        if let Err(error) = writer.seal() {
            // Unsealed, but whole: it takes more records, or is sealed at the next open.
            self.packs.check_in(writer);
            return Err(error);
        }
        let pack = writer.file().id;
        self.locator.pack_complete(pack);
        self.index
            .mark_applied(pack, self.packs.seqs_of_open(pack))?;
        self.packs.sealed_now(writer);
        Ok(())
    }

    /// Seals a pack found unsealed after a crash, whose rows were just applied.
    pub(crate) fn seal_recovered(
        &self,
        mut writer: PackWriter,
        range: SeqRange,
    ) -> Result<(), StoreError> {
        writer.seal()?;
        let pack = writer.file().id;
        self.packs.grown(pack, writer.len());
        self.index.mark_applied(pack, range)
    }
}

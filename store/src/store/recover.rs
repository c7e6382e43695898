//! Opening a store: finding what a crash left, and bringing the index up to date.

use std::collections::BTreeSet;

use crate::error::StoreError;
use crate::hash::{ChunkId, NarHash};
use crate::index::{ManifestAt, SeqRange};
use crate::locator::Location;
use crate::manifest::Manifest;
use crate::pack::{Contents, FooterEntry, HEAD_LEN, PackFile, PackWriter, read_contents, recover};
use crate::pack_id::PackId;
use crate::record::{ImportedManifest, RecordKind, Row};
use crate::store::Inner;

/// Applies every pack that the index or the locator does not know, and seals what is unsealed.
pub(super) fn run(store: &Inner) -> Result<(), StoreError> {
    let on_disk = store.packs.ids();
    let mut highest = 0;
    let mut applied = BTreeSet::new();
    for (pack, range) in store.index.applied()? {
        if on_disk.contains(&pack) {
            highest = highest.max(range.max);
            applied.insert(pack);
        } else {
            store.index.remove_pack(pack)?;
        }
    }
    forget_unconfirmed(store, &applied)?;
    store.locator.retain_packs(&on_disk);
    let covered = store.locator.covered();
    let mut nars = BTreeSet::new();
    for pack in &on_disk {
        if !(applied.contains(pack) && covered.contains(pack)) {
            highest = highest.max(take_in(store, *pack, applied.contains(pack), &mut nars)?);
        }
    }
    drop_remains(store, nars)?;
    store.seq.raise_above(highest);
    for (id, at) in store.index.bad_copies()? {
        store.locator.forget(&id, &at);
    }
    *store.damaged.write().expect("not shared yet") = store.index.damaged()?.into_iter().collect();
    Ok(())
}

/// Forgets NARs whose manifests lie in packs that are read again, or are gone: the index may have
/// outlived records that were never synced. Those that are there are noted again.
fn forget_unconfirmed(store: &Inner, applied: &BTreeSet<PackId>) -> Result<(), StoreError> {
    let nars: Vec<_> = store.index.nars().collect::<Result<_, _>>()?;
    for (hash, _) in nars.iter().filter(|(_, row)| !applied.contains(&row.pack)) {
        store.index.forget_nar(hash)?;
    }
    Ok(())
}

/// Drops the NARs among these that no path refers to and that are not whole: a manifest outlives
/// its collected chunks until its pack is rewritten.
fn drop_remains(store: &Inner, mut nars: BTreeSet<NarHash>) -> Result<(), StoreError> {
    if nars.is_empty() {
        return Ok(());
    }
    for row in store.index.all_paths() {
        nars.remove(&row?.info.nar_hash);
    }
    for hash in nars {
        let Some(manifest) = store.manifest(&hash)? else {
            continue;
        };
        let ids: Vec<ChunkId> = manifest.all_chunks().map(|entry| entry.id).collect();
        if store.lookup_many(&ids)?.iter().any(Option::is_none) {
            store.index.remove_nar(&hash)?;
        }
    }
    Ok(())
}

/// Reads a pack into locator and index; returns its highest sequence number.
///
/// Adds the NARs whose manifests it holds to `nars`.
fn take_in(
    store: &Inner,
    pack: PackId,
    rows_applied: bool,
    nars: &mut BTreeSet<NarHash>,
) -> Result<u64, StoreError> {
    let contents = recover(store.packs.root(), pack)?;
    if contents.entries.is_empty() && contents.len <= HEAD_LEN {
        store.packs.delete(pack)?;
        return Ok(0);
    }
    locate(store, pack, &contents)?;
    if rows_applied {
        return Ok(0);
    }
    let manifests = contents
        .entries
        .iter()
        .filter(|entry| entry.kind == RecordKind::Manifest);
    nars.extend(manifests.map(|entry| NarHash::from_bytes(entry.key)));
    let range = apply_rows(store, &PackFile::open(store.packs.root(), pack)?, &contents)?;
    seal(store, pack, contents, range)?;
    Ok(range.max)
}

/// Inserts the chunks of every sealed pack that the locator lost with a damaged run.
pub(super) fn locate_again(store: &Inner) -> Result<(), StoreError> {
    let covered = store.locator.covered();
    for pack in store
        .packs
        .sealed()
        .into_keys()
        .filter(|pack| !covered.contains(pack))
    {
        if let Some(file) = store.packs.file(pack)? {
            locate(store, pack, &read_contents(&file)?)?;
        }
    }
    Ok(())
}

/// Inserts the chunks of a pack that does not change any more.
fn locate(store: &Inner, pack: PackId, contents: &Contents) -> Result<(), StoreError> {
    for entry in contents
        .entries
        .iter()
        .filter(|entry| entry.kind == RecordKind::Chunk)
    {
        store
            .locator
            .insert(ChunkId::from_bytes(entry.key), location(pack, entry));
    }
    store.locator.pack_complete(pack);
    // Bounds memory while many packs are read. A full disk must not keep the store from opening.
    if let Err(error) = store.locator.maintain() {
        tracing::warn!(%error, "chunk locator table not written; it is tried again");
    }
    Ok(())
}

fn seal(
    store: &Inner,
    pack: PackId,
    contents: Contents,
    range: SeqRange,
) -> Result<(), StoreError> {
    if contents.sealed {
        return store.index.mark_applied(pack, range);
    }
    tracing::info!(%pack, records = contents.entries.len(), "sealing a pack left open");
    match store.seal_recovered(
        PackWriter::resume(store.packs.root(), pack, contents)?,
        range,
    ) {
        // A full disk must not keep the store from opening: the pack is read again next time.
        Err(StoreError::NoSpace { what, .. }) => {
            tracing::warn!(%pack, what, "no space to seal a pack; left as it is");
            Ok(())
        }
        outcome => outcome,
    }
}

fn apply_rows(store: &Inner, pack: &PackFile, contents: &Contents) -> Result<SeqRange, StoreError> {
    let mut range = SeqRange::EMPTY;
    for entry in &contents.entries {
        if let Some(seq) = apply_record(store, pack, entry)? {
            range = range.with(seq);
        }
    }
    Ok(range)
}

/// Applies a manifest or row; damaged ones are skipped, as a re-push heals them.
fn apply_record(
    store: &Inner,
    pack: &PackFile,
    entry: &FooterEntry,
) -> Result<Option<u64>, StoreError> {
    if entry.kind == RecordKind::Chunk {
        return Ok(None);
    }
    let Some((_, body)) = pack.read_record(entry)? else {
        tracing::error!(pack = %pack.id, offset = entry.offset, "damaged record skipped");
        return Ok(None);
    };
    if entry.kind == RecordKind::Row {
        let Some(row) = Row::decode(&body) else {
            return Ok(None);
        };
        store.index.apply(&row)?;
        return Ok(Some(row.seq));
    }
    let Some(imported) = ImportedManifest::decode(&body) else {
        return Ok(None);
    };
    let Ok(manifest) = Manifest::decode(imported.manifest) else {
        return Ok(None);
    };
    let at = ManifestAt {
        seq: imported.seq,
        imported_at: imported.imported_at,
        pack: pack.id,
        offset: entry.offset,
        body_len: entry.body_len,
    };
    store.index.put_nar(&manifest, &at)?;
    Ok(Some(imported.seq))
}

/// Where a chunk of a pack lies.
pub(crate) fn location(pack: PackId, entry: &FooterEntry) -> Location {
    let FooterEntry {
        offset,
        raw_len,
        body_len: frame_len,
        ..
    } = *entry;
    Location {
        pack,
        offset,
        raw_len,
        frame_len,
    }
}

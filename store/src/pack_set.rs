//! All packs of a store: which exist, who may write, and open files for reading.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::StoreError;
use crate::hash::ChunkId;
use crate::index::SeqRange;
use crate::pack::{FooterEntry, PackFile, PackWriter, pack_path};
use crate::pack_id::PackId;
use crate::record::PackSalt;

/// The packs' folder.
///
/// Writers are checked out: each import appends to a pack of its own, so the chunks of one NAR lie
/// side by side however many imports run. A writer that comes back is handed to the next import
/// until its pack is full.
pub(crate) struct PackSet {
    root: PathBuf,
    len_target: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Every pack on disk and its bytes when last known.
    packs: BTreeMap<PackId, u64>,
    idle: Vec<PackWriter>,
    /// Packs whose writers are out or idle.
    open: BTreeMap<PackId, Open>,
    /// Open sealed packs, the most recently used last.
    handles: VecDeque<Arc<PackFile>>,
}

/// A pack that is being written.
struct Open {
    file: Arc<PackFile>,
    /// The sequence numbers of its rows so far.
    seqs: SeqRange,
    /// Chunks appended to it, with the bytes of their records.
    chunks: Vec<(ChunkId, u64)>,
}

impl PackSet {
    /// Opens the folder, creating it if it is absent. Looks at names and lengths only.
    pub(crate) fn open(root: &Path, len_target: u64) -> Result<PackSet, StoreError> {
        fs::create_dir_all(root).map_err(|error| StoreError::io("create folder", root, error))?;
        let packs = list_packs(root)?;
        let state = Mutex::new(State {
            packs,
            ..State::default()
        });
        Ok(PackSet {
            root: root.to_owned(),
            len_target,
            state,
        })
    }

    /// The folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Every pack on disk, open ones included.
    pub(crate) fn ids(&self) -> BTreeSet<PackId> {
        self.state().packs.keys().copied().collect()
    }

    /// The packs that no writer holds: these never change again.
    pub(crate) fn sealed(&self) -> BTreeMap<PackId, u64> {
        let state = self.state();
        let sealed = state
            .packs
            .iter()
            .filter(|(id, _)| !state.open.contains_key(id));
        sealed.map(|(id, len)| (*id, *len)).collect()
    }

    /// Whether the pack is on disk.
    pub(crate) fn contains(&self, id: PackId) -> bool {
        self.state().packs.contains_key(&id)
    }

    /// Bytes of all packs.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.state().packs.values().sum()
    }

    /// Checks out a writer: an idle one, or a new pack.
    pub(crate) fn writer(&self) -> Result<PackWriter, StoreError> {
        while let Some(writer) = self.idle_writer() {
            if writer.file().len_if_named()?.is_some() {
                return Ok(writer);
            }
            // Somebody deleted it: what goes on being written there is lost at the next start.
            let id = writer.file().id;
            tracing::error!(pack = %id, "a pack that was being written is gone");
            let mut state = self.state();
            state.open.remove(&id);
            state.packs.remove(&id);
        }
        let (id, salt) = (PackId::from_bytes(random()), PackSalt::from_bytes(random()));
        let writer = PackWriter::create(&self.root, id, salt)?;
        let open = Open {
            file: Arc::clone(writer.file()),
            seqs: SeqRange::EMPTY,
            chunks: Vec::new(),
        };
        let mut state = self.state();
        state.packs.insert(id, writer.len());
        state.open.insert(id, open);
        Ok(writer)
    }

    fn idle_writer(&self) -> Option<PackWriter> {
        self.state().idle.pop()
    }

    /// Records how far a writer has come, for the size of the store.
    pub(crate) fn grown(&self, id: PackId, len: u64) {
        self.state().packs.insert(id, len);
    }

    /// Whether a writer's pack has reached its target length.
    pub(crate) fn is_full(&self, writer: &PackWriter) -> bool {
        writer.len() >= self.len_target
    }

    /// Takes a writer back for the next import.
    pub(crate) fn check_in(&self, writer: PackWriter) {
        self.grown(writer.file().id, writer.len());
        self.state().idle.push(writer);
    }

    /// The packs that nobody writes to just now, with their records: what [`PackSet::take_idle`]
    /// would take.
    pub(crate) fn idle(&self) -> Vec<(Arc<PackFile>, Vec<FooterEntry>)> {
        let state = self.state();
        let idle = state.idle.iter();
        idle.map(|writer| (Arc::clone(writer.file()), writer.entries().to_vec()))
            .collect()
    }

    /// Takes all idle writers, to seal them.
    pub(crate) fn take_idle(&self) -> Vec<PackWriter> {
        std::mem::take(&mut self.state().idle)
    }

    /// Notes that a writer's pack is sealed and durable.
    pub(crate) fn sealed_now(&self, writer: PackWriter) {
        self.grown(writer.file().id, writer.len());
        self.state().open.remove(&writer.file().id);
    }

    /// The packs that are being written, for syncing.
    pub(crate) fn open_files(&self) -> Vec<Arc<PackFile>> {
        self.state()
            .open
            .values()
            .map(|open| Arc::clone(&open.file))
            .collect()
    }

    /// Notes a chunk that was appended to an open pack.
    pub(crate) fn note_chunk(&self, id: PackId, chunk: ChunkId, record_len: u64) {
        if let Some(open) = self.state().open.get_mut(&id) {
            open.chunks.push((chunk, record_len));
        }
    }

    /// The chunks in packs that are being written, with the bytes of their records.
    pub(crate) fn open_chunks(&self) -> Vec<(ChunkId, u64)> {
        let state = self.state();
        let chunks = state.open.values().flat_map(|open| &open.chunks);
        chunks.copied().collect()
    }

    /// Notes the sequence number of a row about to be written to an open pack.
    pub(crate) fn note_seq(&self, id: PackId, seq: u64) {
        if let Some(open) = self.state().open.get_mut(&id) {
            open.seqs = open.seqs.with(seq);
        }
    }

    /// The sequence numbers in a pack that is being written.
    pub(crate) fn seqs_of_open(&self, id: PackId) -> SeqRange {
        self.state()
            .open
            .get(&id)
            .map_or(SeqRange::EMPTY, |open| open.seqs)
    }

    /// The sequence numbers in the packs that are being written.
    pub(crate) fn open_seqs(&self) -> BTreeMap<PackId, SeqRange> {
        self.state()
            .open
            .iter()
            .map(|(id, open)| (*id, open.seqs))
            .collect()
    }

    /// The pack for reading; `None` if it is gone.
    pub(crate) fn file(&self, id: PackId) -> Result<Option<Arc<PackFile>>, StoreError> {
        if let Some(file) = self.cached(id) {
            return Ok(Some(file));
        }
        let file = match PackFile::open(&self.root, id) {
            Ok(file) => Arc::new(file),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut state = self.state();
        if state.handles.len() >= HANDLES_MAX {
            state.handles.pop_front();
        }
        state.handles.push_back(Arc::clone(&file));
        Ok(Some(file))
    }

    /// Bytes of a pack on disk; `None` if its file is gone, whether or not it is open here.
    pub(crate) fn len_on_disk(&self, id: PackId) -> Result<Option<u64>, StoreError> {
        let Some(file) = self.file(id)? else {
            return Ok(None);
        };
        let len = file.len_if_named()?;
        if len.is_none() {
            self.state().handles.retain(|file| file.id != id);
        }
        Ok(len)
    }

    /// Deletes a sealed pack. Open handles keep reading it.
    pub(crate) fn delete(&self, id: PackId) -> Result<(), StoreError> {
        let path = pack_path(&self.root, id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("delete pack", &path, error));
            }
            Ok(()) | Err(_) => {}
        }
        let mut state = self.state();
        state.packs.remove(&id);
        state.handles.retain(|file| file.id != id);
        Ok(())
    }

    fn cached(&self, id: PackId) -> Option<Arc<PackFile>> {
        let mut state = self.state();
        if let Some(open) = state.open.get(&id) {
            return Some(Arc::clone(&open.file));
        }
        let at = state.handles.iter().rposition(|file| file.id == id)?;
        let file = state.handles.remove(at)?;
        state.handles.push_back(Arc::clone(&file));
        Some(file)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no thread panics while it holds the pack list")
    }
}

/// Makes the removal of packs durable.
pub(crate) fn sync_folders(root: &Path, ids: &[PackId]) -> Result<(), StoreError> {
    let folders: BTreeSet<PathBuf> = ids
        .iter()
        .filter_map(|id| pack_path(root, *id).parent().map(Path::to_owned))
        .collect();
    for folder in folders {
        File::open(&folder)
            .and_then(|file| file.sync_all())
            .map_err(|error| StoreError::io("sync folder", &folder, error))?;
    }
    Ok(())
}

fn list_packs(root: &Path) -> Result<BTreeMap<PackId, u64>, StoreError> {
    let failed = |error| StoreError::io("list packs", root, error);
    let mut packs = BTreeMap::new();
    for folder in fs::read_dir(root).map_err(failed)? {
        let folder = folder.map_err(failed)?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(&folder).map_err(failed)? {
            let file = file.map_err(failed)?;
            if let Some(id) = id_of(&file.path()) {
                packs.insert(id, file.metadata().map_err(failed)?.len());
            }
        }
    }
    Ok(packs)
}

/// The id in a pack's file name; other files are not ours to touch.
fn id_of(path: &Path) -> Option<PackId> {
    path.file_name()?
        .to_str()?
        .strip_suffix(".pack")?
        .parse()
        .ok()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random source works");
    bytes
}

/// Open sealed packs: at 32 MiB a pack, a NAR of 4 GiB stays within them.
const HANDLES_MAX: usize = 256;

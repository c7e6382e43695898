//! Reads NARs into windows: runs of whole chunks, a few MiB long, in memory.
//!
//! A window is the unit in which a push asks what is missing, compresses and sends. All windows of a
//! push come from one pool, which bounds its memory: who finds the pool empty waits until somebody
//! drops a window. A window in use never waits for another one, so the pool cannot lock up.

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex};

use attic_store::chunker::{CHUNK_LEN_MAX, Chunker, ChunkerParams};
use attic_store::hash::ChunkId;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::dump::{DumpError, dump};
use crate::nix::LocalPath;

/// Some consecutive chunks of the NARs of a batch.
#[derive(Debug)]
pub(super) struct Window {
    /// In NAR order, path after path.
    pub(super) pieces: Vec<Piece>,
    bytes: Vec<u8>,
    pool: Arc<WindowPool>,
    _permit: OwnedSemaphorePermit,
}

/// One chunk in a window.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Position of its path in the list that is read.
    pub(super) path: usize,
    /// Its name.
    pub(super) id: ChunkId,
    range: Range<usize>,
}

impl Piece {
    /// Length of the plain chunk in bytes.
    pub(super) fn len(&self) -> u64 {
        self.range.len() as u64
    }
}

impl Window {
    /// The plain bytes of one of its pieces.
    pub(super) fn plain(&self, piece: &Piece) -> &[u8] {
        &self.bytes[piece.range.clone()]
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.pool
            .spare
            .lock()
            .expect("no panic under this lock")
            .push(bytes);
    }
}

/// The memory of a push.
#[derive(Debug)]
pub(super) struct WindowPool {
    permits: Arc<Semaphore>,
    /// Buffers of dropped windows, at most one per permit.
    spare: Mutex<Vec<Vec<u8>>>,
}

impl WindowPool {
    /// A pool for `jobs` batches at once.
    pub(super) fn new(jobs: usize) -> Arc<WindowPool> {
        let windows = (jobs * 2).clamp(WINDOWS_MIN, WINDOWS_MAX);
        Arc::new(WindowPool {
            permits: Arc::new(Semaphore::new(windows)),
            spare: Mutex::default(),
        })
    }

    /// Waits for room.
    async fn window(self: &Arc<Self>) -> Window {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let spare = self.spare.lock().expect("no panic under this lock").pop();
        Window {
            pieces: Vec::new(),
            bytes: spare.unwrap_or_else(|| Vec::with_capacity(WINDOW_LEN)),
            pool: Arc::clone(self),
            _permit: permit.expect("the semaphore is never closed"),
        }
    }
}

/// A path could not be read as what Nix says it is.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// Position of the path.
    pub(super) path: usize,
    pub(super) source: ReadError,
}

/// Why a path could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Its tree has no NAR.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// Its NAR has another length than Nix's database says: it was changed after it was built.
    #[error("NAR does not have the {expected} bytes that Nix knows; the path was changed")]
    Length {
        /// What Nix's database says.
        expected: u64,
    },
}

/// Reads the NARs of `paths` one after the other on a blocking thread and cuts them into chunks.
///
/// The channel ends after the last window or the first failure. Dropping it stops the reading.
pub(super) fn read(
    paths: Vec<Arc<LocalPath>>,
    params: ChunkerParams,
    pool: Arc<WindowPool>,
) -> Receiver<Result<Window, Unreadable>> {
    let (sender, receiver) = mpsc::channel(QUEUED_WINDOWS);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut filler = Filler {
            window: None,
            pool,
            runtime,
            sender,
            stopped: false,
        };
        for (at, path) in paths.iter().enumerate() {
            if let Err(source) = read_path(at, path, params, &mut filler) {
                filler.send(Err(Unreadable { path: at, source }));
                return;
            }
        }
        filler.flush();
    });
    receiver
}

fn read_path(
    at: usize,
    path: &LocalPath,
    params: ChunkerParams,
    filler: &mut Filler,
) -> Result<(), ReadError> {
    let expected = path.info.nar_size;
    let mut len = 0;
    let mut chunker = Chunker::new(params);
    let dumped = dump(&path.location, |bytes| {
        len += bytes.len() as u64;
        if len > expected {
            return ControlFlow::Break(());
        }
        chunker.push(bytes, &mut |chunk| filler.add(at, chunk));
        filler.flow()
    });
    match dumped {
        _ if len > expected => return Err(ReadError::Length { expected }),
        // Nobody listens any more, so nobody will hear of it.
        Err(DumpError::Stopped) => return Ok(()),
        dumped => dumped?,
    };
    if len < expected {
        return Err(ReadError::Length { expected });
    }
    chunker.finish(&mut |chunk| filler.add(at, chunk));
    Ok(())
}

/// Fills windows and sends them off.
struct Filler {
    window: Option<Window>,
    pool: Arc<WindowPool>,
    runtime: Handle,
    sender: Sender<Result<Window, Unreadable>>,
    /// Nobody receives any more.
    stopped: bool,
}

impl Filler {
    fn add(&mut self, path: usize, chunk: &[u8]) {
        let id = ChunkId::of(chunk);
        if self
            .window
            .as_ref()
            .is_some_and(|w| w.bytes.len() + chunk.len() > WINDOW_LEN)
        {
            self.flush();
        }
        if self.stopped {
            return;
        }
        let window = self
            .window
            .get_or_insert_with(|| self.runtime.block_on(self.pool.window()));
        let start = window.bytes.len();
        window.bytes.extend_from_slice(chunk);
        window.pieces.push(Piece {
            path,
            id,
            range: start..window.bytes.len(),
        });
    }

    fn flush(&mut self) {
        if let Some(window) = self.window.take() {
            self.send(Ok(window));
        }
    }

    fn send(&mut self, message: Result<Window, Unreadable>) {
        self.stopped |= self.sender.blocking_send(message).is_err();
    }

    fn flow(&self) -> ControlFlow<()> {
        if self.stopped {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// Bytes of chunks in a window.
pub(super) const WINDOW_LEN: usize = 4 << 20;
const _: () = assert!(WINDOW_LEN >= CHUNK_LEN_MAX);
/// One to fill, one in the queue, two being sent.
const WINDOWS_MIN: usize = 4;
/// With the frames made from them: 48 MiB.
pub(super) const WINDOWS_MAX: usize = 6;
/// Windows that are read and not yet looked at.
const QUEUED_WINDOWS: usize = 1;

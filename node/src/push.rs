//! Push sessions: what a pushing client has sent so far, held until its paths are published.
//!
//! A session's lease keeps the chunks it saw or sent from being collected, and its list of uploads
//! says which chunks the client has shown in full. For every other chunk of a path the client must
//! prove that it has the bytes: the challenge keys that proof.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use attic_store::{CacheName, ChunkId, Lease};
use data_encoding::HEXLOWER;
use thiserror::Error;

use crate::auth::random;

/// The open sessions. Bounded: at the limit, the one unused for longest ends.
pub(crate) struct Sessions {
    max: usize,
    idle: Duration,
    open: Mutex<BTreeMap<Box<str>, Arc<Session>>>,
}

/// One client's push.
pub(crate) struct Session {
    pub(crate) cache: CacheName,
    pub(crate) lease: Lease,
    pub(crate) challenge: [u8; 32],
    uploads: Mutex<Uploads>,
    used_at: Mutex<Instant>,
}

/// Chunks a session uploaded: the first 16 bytes of each id, with the length of its frame.
///
/// Half an id suffices: who could find a second chunk with the same half could break the whole.
#[derive(Default)]
struct Uploads {
    frames: HashMap<[u8; 16], u32>,
}

impl Sessions {
    /// At most `max` sessions, each ending when unused for `idle`.
    pub(crate) fn new(max: usize, idle: Duration) -> Sessions {
        Sessions {
            max,
            idle,
            open: Mutex::default(),
        }
    }

    /// Opens a session. Its id is random: nobody else can name it.
    pub(crate) fn open(
        &self,
        cache: CacheName,
        lease: Lease,
        now: Instant,
    ) -> (String, Arc<Session>) {
        let id = HEXLOWER.encode(&random::<16>());
        let session = Arc::new(Session {
            cache,
            lease,
            challenge: random(),
            uploads: Mutex::default(),
            used_at: Mutex::new(now),
        });
        let mut open = self.lock();
        if open.len() >= self.max {
            let oldest = open.iter().min_by_key(|(_, session)| session.used_at());
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                open.remove(&oldest);
            }
        }
        open.insert(id.as_str().into(), Arc::clone(&session));
        (id, session)
    }

    /// The session called `id`, which counts as used now.
    ///
    /// **Errors**: [`SessionError::Unknown`], also for one that has ended.
    pub(crate) fn find(&self, id: &str, now: Instant) -> Result<Arc<Session>, SessionError> {
        let session = self.lock().get(id).cloned().ok_or(SessionError::Unknown)?;
        session.used(now);
        Ok(session)
    }

    /// Ends a session. Requests that use it now keep it alive until they are done.
    pub(crate) fn close(&self, id: &str) -> Result<(), SessionError> {
        self.lock()
            .remove(id)
            .map(drop)
            .ok_or(SessionError::Unknown)
    }

    /// Ends sessions that were not used for too long; returns how many.
    pub(crate) fn expire(&self, now: Instant) -> usize {
        let mut open = self.lock();
        let before = open.len();
        // A session in use by a request has a second owner.
        open.retain(|_, session| {
            Arc::strong_count(session) > 1
                || now.saturating_duration_since(session.used_at()) < self.idle
        });
        before - open.len()
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Arc<Session>>> {
        self.open.lock().expect("no panic under this lock")
    }
}

impl Session {
    /// Notes that the client sent a chunk in full.
    ///
    /// **Errors**: [`SessionError::Full`] beyond [`UPLOADS_MAX`] chunks.
    pub(crate) fn uploaded(&self, id: &ChunkId, frame_len: u32) -> Result<(), SessionError> {
        let mut uploads = self.uploads();
        if uploads.frames.len() >= UPLOADS_MAX {
            return Err(SessionError::Full);
        }
        uploads.frames.insert(half(id), frame_len);
        Ok(())
    }

    /// The length of the frame the client sent for a chunk; `None` if it sent none.
    pub(crate) fn upload_of(&self, id: &ChunkId) -> Option<u32> {
        self.uploads().frames.get(&half(id)).copied()
    }

    /// Notes that the session is in use.
    pub(crate) fn used(&self, now: Instant) {
        *self.used_at.lock().expect("no panic under this lock") = now;
    }

    fn used_at(&self) -> Instant {
        *self.used_at.lock().expect("no panic under this lock")
    }

    fn uploads(&self) -> MutexGuard<'_, Uploads> {
        self.uploads.lock().expect("no panic under this lock")
    }
}

fn half(id: &ChunkId) -> [u8; 16] {
    *id.as_bytes().first_chunk().expect("an id has 32 bytes")
}

/// Most chunks one session may upload: 160 MB of memory for half a terabyte of NAR.
const UPLOADS_MAX: usize = 1 << 22;

/// A session cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum SessionError {
    /// There is none of this name.
    #[error("the push session does not exist or has ended")]
    Unknown,
    /// Its list of uploads is full: commit what is there and open another.
    #[error("the push session holds {UPLOADS_MAX} chunks")]
    Full,
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        _tmp: tempfile::TempDir,
        store: attic_store::Store,
        start: Instant,
    }

    impl Fixture {
        fn new() -> Fixture {
            let tmp = tempfile::tempdir().unwrap();
            let options = attic_store::Options::default();
            let store = attic_store::Store::open(tmp.path(), options).unwrap();
            Fixture {
                _tmp: tmp,
                store,
                start: Instant::now(),
            }
        }

        fn open(&self, sessions: &Sessions, seconds: u64) -> String {
            let cache = "main".parse().unwrap();
            sessions.open(cache, self.store.lease(), self.at(seconds)).0
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }
    }

    #[test]
    fn sessions_end_when_unused_and_not_while_in_use() {
        let fixture = Fixture::new();
        let sessions = Sessions::new(10, Duration::from_secs(60));
        let (first, second) = (fixture.open(&sessions, 0), fixture.open(&sessions, 0));
        let held = sessions.find(&second, fixture.at(1)).unwrap();
        assert_eq!(sessions.expire(fixture.at(59)), 0);
        assert_eq!(sessions.expire(fixture.at(500)), 1);
        assert_eq!(
            sessions.find(&first, fixture.at(500)).err(),
            Some(SessionError::Unknown)
        );
        drop(held);
        assert_eq!(sessions.expire(fixture.at(500)), 1);
        assert_eq!(sessions.len(), 0);
    }

    #[test]
    fn at_the_limit_the_one_unused_for_longest_ends() {
        let fixture = Fixture::new();
        let sessions = Sessions::new(2, Duration::from_secs(60));
        let (first, second) = (fixture.open(&sessions, 0), fixture.open(&sessions, 1));
        sessions.find(&first, fixture.at(2)).unwrap();
        let third = fixture.open(&sessions, 3);
        assert_eq!(sessions.len(), 2);
        assert_eq!(
            sessions.find(&second, fixture.at(3)).err(),
            Some(SessionError::Unknown)
        );
        sessions.close(&first).unwrap();
        sessions.close(&third).unwrap();
        assert_eq!(sessions.close(&third), Err(SessionError::Unknown));
    }

    #[test]
    fn uploads_are_remembered_with_their_length() {
        let fixture = Fixture::new();
        let sessions = Sessions::new(2, Duration::from_secs(60));
        let id = fixture.open(&sessions, 0);
        let session = sessions.find(&id, fixture.at(0)).unwrap();
        let chunk = ChunkId::of(b"x");
        assert_eq!(session.upload_of(&chunk), None);
        session.uploaded(&chunk, 7).unwrap();
        assert_eq!(session.upload_of(&chunk), Some(7));
    }
}

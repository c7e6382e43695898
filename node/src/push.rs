//! Push sessions: what a pushing client has sent so far, held until its paths are published.
//!
//! A session's lease keeps the chunks it saw or sent from being collected, and its list of uploads
//! says which chunks the client has shown in full. For every other chunk of a path the client must
//! prove that it has the bytes: the challenge keys that proof.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use attic_store::{CacheName, ChunkId, Lease, StorePathHash};
use data_encoding::HEXLOWER;
use thiserror::Error;

use crate::api::LISTED_MAX;
use crate::auth::random;

/// The open sessions. Bounded: at the limit, the one unused for longest ends, if nobody may be
/// working in it any more; otherwise no other is opened for now.
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
    lists: Mutex<Lists>,
    used_at: Mutex<Instant>,
    /// There was no space for what it was sent: it commits what had come, and gives way to others.
    starved: AtomicBool,
}

/// Chunk ids of paths to be committed that were sent ahead, since one body may not hold them all.
#[derive(Default)]
struct Lists {
    of: BTreeMap<StorePathHash, Vec<ChunkId>>,
    /// Ids in all lists.
    len: usize,
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
    ///
    /// **Errors**: [`SessionError::Busy`].
    pub(crate) fn open(
        &self,
        cache: CacheName,
        lease: Lease,
        now: Instant,
    ) -> Result<(String, Arc<Session>), SessionError> {
        let id = HEXLOWER.encode(&random::<16>());
        let session = Arc::new(Session {
            cache,
            lease,
            challenge: random(),
            uploads: Mutex::default(),
            lists: Mutex::default(),
            used_at: Mutex::new(now),
            starved: AtomicBool::new(false),
        });
        let mut open = self.lock();
        if open.len() >= self.max {
            let abandoned = |session: &Session| {
                now.saturating_duration_since(session.used_at()) >= ABANDONED_AFTER
            };
            let oldest = open
                .iter()
                .filter(|(_, session)| Arc::strong_count(session) == 1 && abandoned(session))
                .min_by_key(|(_, session)| session.used_at())
                .map(|(id, _)| id.clone());
            open.remove(&oldest.ok_or(SessionError::Busy(self.max))?);
        }
        open.insert(id.as_str().into(), Arc::clone(&session));
        Ok((id, session))
    }

    /// The session called `id`, which counts as used now.
    pub(crate) fn find(&self, id: &str, now: Instant) -> Result<Arc<Session>, SessionError> {
        let open = self.lock();
        let session = open.get(id).ok_or(SessionError::Unknown)?;
        session.used(now);
        Ok(Arc::clone(session))
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
        self.end_idle(|_| self.idle, now)
    }

    /// Ends sessions whose clients seem gone, because space is short; returns how many.
    pub(crate) fn expire_abandoned(&self, now: Instant) -> usize {
        self.end_idle(|_| self.idle.min(ABANDONED_AFTER), now)
    }

    /// Ends these and those that found no space themselves, for somebody who finds none; returns how
    /// many.
    pub(crate) fn make_way(&self, now: Instant) -> usize {
        let patience = |session: &Session| match session.starved.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => self.idle.min(ABANDONED_AFTER),
        };
        self.end_idle(patience, now)
    }

    /// Ends the sessions that no request uses and none has used for as long as `patience` says.
    fn end_idle(&self, patience: impl Fn(&Session) -> Duration, now: Instant) -> usize {
        let mut open = self.lock();
        let before = open.len();
        // A session in use by a request has a second owner.
        open.retain(|_, session| {
            Arc::strong_count(session) > 1
                || now.saturating_duration_since(session.used_at()) < patience(session)
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

    /// Notes the chunks `from..` of a path; what was there from that place on is replaced, so that
    /// a repeated request is harmless.
    ///
    /// **Errors**: [`SessionError::Gap`], and [`SessionError::FullOfIds`] beyond [`LISTED_MAX`].
    pub(crate) fn list(
        &self,
        path: StorePathHash,
        from: usize,
        ids: &[ChunkId],
    ) -> Result<(), SessionError> {
        let mut lists = self.lists();
        let Lists { of, len } = &mut *lists;
        let list = of.entry(path).or_default();
        if from > list.len() {
            return Err(SessionError::Gap(list.len()));
        }
        *len -= list.len() - from;
        list.truncate(from);
        if *len + ids.len() > LISTED_MAX {
            return Err(SessionError::FullOfIds);
        }
        *len += ids.len();
        list.extend_from_slice(ids);
        Ok(())
    }

    /// The first `len` chunks listed for a path; `None` if fewer are.
    pub(crate) fn listed(&self, path: &StorePathHash, len: usize) -> Option<Vec<ChunkId>> {
        self.lists().of.get(path)?.get(..len).map(<[_]>::to_vec)
    }

    /// Forgets the list of a path.
    pub(crate) fn unlist(&self, path: &StorePathHash) {
        let mut lists = self.lists();
        if let Some(list) = lists.of.remove(path) {
            lists.len -= list.len();
        }
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().expect("no panic under this lock")
    }

    /// Notes that there was no space for what it was sent.
    pub(crate) fn starve(&self) {
        self.starved.store(true, Ordering::Relaxed);
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

/// A session unused for so long gives way to a new one. A client at work is never so slow between
/// two requests.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);
/// Most chunks one session may upload: 160 MB of memory for half a terabyte of NAR.
const UPLOADS_MAX: usize = 1 << 22;

/// A session cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum SessionError {
    /// There is none of this name.
    #[error("the push session does not exist or has ended")]
    Unknown,
    /// As many are open as may be, and all are in use.
    #[error("{0} push sessions are open; try again later")]
    Busy(usize),
    /// Its list of uploads is full: commit what is there and open another.
    #[error("the push session holds {UPLOADS_MAX} chunks")]
    Full,
    /// Its lists are full: commit their paths first.
    #[error("the push session holds a list of {LISTED_MAX} chunks")]
    FullOfIds,
    /// A part of a list came before the parts in front of it.
    #[error("the list of this path has {0} chunks so far")]
    Gap(usize),
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
            let opened = sessions.open(cache, self.store.lease(), self.at(seconds));
            opened.expect("there is room").0
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
        let (cache, lease) = ("main".parse().unwrap(), fixture.store.lease());
        let busy = sessions.open(cache, lease, fixture.at(3)).err();
        assert_eq!(busy, Some(SessionError::Busy(2)), "both are in use");
        let third = fixture.open(&sessions, 61);
        assert_eq!(sessions.len(), 2);
        assert_eq!(
            sessions.find(&second, fixture.at(61)).err(),
            Some(SessionError::Unknown)
        );
        sessions.close(&first).unwrap();
        sessions.close(&third).unwrap();
        assert_eq!(sessions.close(&third), Err(SessionError::Unknown));
    }

    #[test]
    fn a_session_without_space_gives_way_when_nobody_uses_it() {
        let fixture = Fixture::new();
        let sessions = Sessions::new(2, Duration::from_secs(60));
        let (starved, fed) = (fixture.open(&sessions, 0), fixture.open(&sessions, 0));
        let held = sessions.find(&starved, fixture.at(1)).unwrap();
        held.starve();
        assert_eq!(sessions.make_way(fixture.at(1)), 0, "it may be committing");
        drop(held);
        assert_eq!(sessions.expire(fixture.at(1)), 0, "nobody needs its space");
        assert_eq!(sessions.make_way(fixture.at(1)), 1);
        assert!(sessions.find(&starved, fixture.at(1)).is_err());
        assert!(sessions.find(&fed, fixture.at(1)).is_ok());
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

    #[test]
    fn lists_grow_in_parts_and_are_bounded() {
        let fixture = Fixture::new();
        let sessions = Sessions::new(2, Duration::from_secs(60));
        let id = fixture.open(&sessions, 0);
        let session = sessions.find(&id, fixture.at(0)).unwrap();
        let path = StorePathHash::from_bytes([1; 20]);
        let ids: Vec<_> = (0..10u8).map(|n| ChunkId::of(&[n])).collect();
        assert_eq!(session.listed(&path, 1), None);
        assert_eq!(session.list(path, 1, &ids), Err(SessionError::Gap(0)));
        session.list(path, 0, &ids[..4]).unwrap();
        for _ in 0..2 {
            session.list(path, 4, &ids[4..]).unwrap();
        }
        assert_eq!(session.listed(&path, 10), Some(ids.clone()));
        assert_eq!(session.listed(&path, 11), None);
        let many = vec![ids[0]; LISTED_MAX];
        let other = StorePathHash::from_bytes([2; 20]);
        assert_eq!(session.list(other, 0, &many), Err(SessionError::FullOfIds));
        session.unlist(&path);
        session.list(other, 0, &many).unwrap();
    }
}

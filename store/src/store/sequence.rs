//! The numbers that order rows.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use crate::error::StoreError;
use crate::store::write_durably;

/// Hands out numbers that are never handed out again, whatever is lost in a crash.
///
/// A number must be above all that index and packs may know, and either may know numbers that the
/// other has lost. So numbers are reserved a block at a time in a small durable file, and a new
/// start begins with a new block.
pub(super) struct Sequence {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    next: u64,
    /// The first number that is not reserved.
    limit: u64,
}

impl Sequence {
    /// Begins behind every number reserved so far.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be read, or does not hold a number.
    pub(super) fn open(dir: &Path) -> Result<Sequence, StoreError> {
        let path = dir.join("sequence");
        let next = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| {
                let error = std::io::Error::other("not a number");
                StoreError::io("read", &path, error)
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 1,
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        Ok(Sequence {
            path,
            state: Mutex::new(State { next, limit: next }),
        })
    }

    /// Begins behind `seen` as well: the file may be missing beside packs that were moved here.
    pub(super) fn raise_above(&self, seen: u64) {
        let mut state = self.state();
        if state.next <= seen {
            state.next = seen.saturating_add(1);
            state.limit = state.next;
        }
    }

    /// The next number.
    ///
    /// # Errors
    /// [`StoreError`] if a new block cannot be reserved.
    pub(super) fn next(&self) -> Result<u64, StoreError> {
        let mut state = self.state();
        if state.next >= state.limit {
            let limit = state.next.saturating_add(BLOCK);
            write_durably(&self.path, &format!("{limit}\n"))?;
            state.limit = limit;
        }
        let number = state.next;
        state.next += 1;
        Ok(number)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

/// Numbers reserved at a time: a write to the file every so many rows.
const BLOCK: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_over_restarts_and_above_what_was_seen() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let mut last = 0;
        for seen in [0, 5, 10 * BLOCK] {
            let sequence = Sequence::open(dir.path()).expect("opens");
            sequence.raise_above(seen);
            for _ in 0..3 {
                let next = sequence.next().expect("a number");
                assert!(next > last.max(seen), "{next} after {last}, seen {seen}");
                last = next;
            }
        }
    }

    #[test]
    fn a_file_without_a_number_is_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        fs::write(dir.path().join("sequence"), "many").expect("writes");
        assert!(Sequence::open(dir.path()).is_err());
    }
}

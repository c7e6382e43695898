//! Uploads that were refused for want of space a moment ago.
//!
//! Nix tries an upload that was answered 507 again, several times. It announces the body once more
//! and does not send it (seen with 2.8), so that each try would last until the body counts as
//! stalled, and end in an answer that says nothing of space. Who comes back so soon has [`PATIENCE`]
//! to send something, and is then told again why it was refused.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::error::{Failure, Kind};
use crate::recent::{Bounds, Recent};

/// The latest refusals, by target, and what the client was told.
pub(crate) struct RefusedLately {
    refusals: Mutex<Recent<String, (Kind, String)>>,
}

impl Default for RefusedLately {
    fn default() -> RefusedLately {
        let refusals = Recent::new(Bounds {
            ttl: LATELY,
            len_max: REFUSALS_MAX,
            weight_max: REFUSALS_MAX,
        });
        RefusedLately {
            refusals: Mutex::new(refusals),
        }
    }
}

impl RefusedLately {
    /// Notes why an upload to `target` was refused.
    pub(crate) fn note(&self, target: &str, kind: Kind, message: &str) {
        let said = (kind, message.to_owned());
        self.refusals()
            .keep(target.to_owned(), said, 1, Instant::now());
    }

    /// The answer to an upload that was refused lately, in case nothing of it comes.
    pub(crate) fn find(&self, target: &str) -> Option<Failure> {
        let refusals = self.refusals();
        let (kind, message) = refusals.find(&target.to_owned(), Instant::now())?;
        Some(Failure::new(*kind, message))
    }

    fn refusals(&self) -> MutexGuard<'_, Recent<String, (Kind, String)>> {
        self.refusals.lock().expect("no panic under this lock")
    }
}

/// How long the body of an upload may pause that was refused lately.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// Longer than a client goes on trying: five tries, each of them as long as [`PATIENCE`] and a pause.
const LATELY: Duration = Duration::from_secs(60);
const REFUSALS_MAX: usize = 1024;

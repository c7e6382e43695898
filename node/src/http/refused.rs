//! Uploads that were refused for want of space a moment ago.
//!
//! Nix tries an upload that was answered 507 again, several times. It announces the body once more
//! and does not send it (seen with 2.8), so that each try would last until the body counts as
//! stalled, and end in an answer that says nothing of space. Who comes back so soon has [`PATIENCE`]
//! to send something, and is then told again why it was refused.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::error::{Failure, Kind};

/// The latest refusals, by target.
#[derive(Debug, Default)]
pub(crate) struct RefusedLately {
    refusals: Mutex<VecDeque<Refusal>>,
}

#[derive(Debug)]
struct Refusal {
    target: String,
    kind: Kind,
    message: String,
    at: Instant,
}

impl RefusedLately {
    /// Notes why an upload to `target` was refused.
    pub(crate) fn note(&self, target: &str, kind: Kind, message: &str) {
        let mut refusals = self.refusals();
        refusals.retain(|refusal| refusal.target != target && refusal.at.elapsed() < LATELY);
        if refusals.len() == REFUSALS_MAX {
            refusals.pop_front();
        }
        refusals.push_back(Refusal {
            target: target.to_owned(),
            kind,
            message: message.to_owned(),
            at: Instant::now(),
        });
    }

    /// The answer to an upload that was refused lately, in case nothing of it comes.
    pub(crate) fn find(&self, target: &str) -> Option<Failure> {
        let refusals = self.refusals();
        let mut lately = refusals
            .iter()
            .filter(|refusal| refusal.at.elapsed() < LATELY);
        let refusal = lately.find(|refusal| refusal.target == target)?;
        Some(Failure::new(refusal.kind, &refusal.message))
    }

    fn refusals(&self) -> MutexGuard<'_, VecDeque<Refusal>> {
        self.refusals.lock().expect("no panic under this lock")
    }
}

/// How long the body of an upload may pause that was refused lately.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// Longer than a client goes on trying: five tries, each of them as long as [`PATIENCE`] and a pause.
const LATELY: Duration = Duration::from_secs(60);
const REFUSALS_MAX: usize = 1024;

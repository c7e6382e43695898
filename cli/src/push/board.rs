//! What the workers of a push know of each other: which batches are taken and finished, which paths
//! failed, whether to go on.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use attic_store::store_path::StorePath;
use tokio::sync::Notify;

/// Where the workers see each other's progress.
#[derive(Default)]
pub(super) struct Board {
    next: AtomicUsize,
    state: Mutex<BoardState>,
    finished: Notify,
}

#[derive(Default)]
struct BoardState {
    finished: BTreeSet<usize>,
    failed: Vec<(StorePath, String)>,
    failed_names: BTreeSet<StorePath>,
    stopped: Option<String>,
    starved: bool,
}

impl Board {
    /// A board on which `lacking` have failed already: they are not pushed, and nobody asks why.
    pub(super) fn without(lacking: BTreeSet<StorePath>) -> Board {
        let board = Board::default();
        board.lock().failed_names = lacking;
        board
    }

    /// The next batch of `count` to take on. A batch waits for earlier ones only, and those have
    /// been taken on by then, so the first of them never waits.
    pub(super) fn next(&self, count: usize) -> Option<usize> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < count).then_some(number)
    }

    pub(super) fn finish(&self, number: usize) {
        self.lock().finished.insert(number);
        self.finished.notify_waiters();
    }

    /// Returns once all `batches` are finished. Dropping it is safe.
    pub(super) async fn wait_for(&self, batches: &BTreeSet<usize>) {
        loop {
            let finished = self.finished.notified();
            if batches.is_subset(&self.lock().finished) {
                return;
            }
            finished.await;
        }
    }

    pub(super) fn fail(&self, path: StorePath, reason: String) {
        let mut state = self.lock();
        state.failed_names.insert(path.clone());
        state.failed.push((path, reason));
    }

    pub(super) fn first_failed(&self, paths: &BTreeSet<StorePath>) -> Option<StorePath> {
        let state = self.lock();
        paths
            .iter()
            .find(|path| state.failed_names.contains(path))
            .cloned()
    }

    /// Ends the push; the first reason stands.
    pub(super) fn stop(&self, reason: String) {
        self.lock().stopped.get_or_insert(reason);
    }

    /// Ends the push because the node has no space left, except for committing what has arrived.
    pub(super) fn starve(&self, reason: String) {
        let mut state = self.lock();
        state.stopped.get_or_insert(reason);
        state.starved = true;
    }

    /// Whether the node has no space left.
    pub(super) fn starved(&self) -> bool {
        self.lock().starved
    }

    pub(super) fn stopped(&self) -> Option<String> {
        self.lock().stopped.clone()
    }

    pub(super) fn failures(&self) -> Vec<(StorePath, String)> {
        let mut failed = self.lock().failed.clone();
        failed.sort();
        failed
    }

    fn lock(&self) -> MutexGuard<'_, BoardState> {
        self.state.lock().expect("no panic under this lock")
    }
}

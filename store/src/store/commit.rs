//! Group commit: rows of concurrent callers become durable together.

use std::sync::Mutex;
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::error::StoreError;
use crate::record::{Change, Row};
use crate::store::{Appender, Inner};

/// Rows waiting for the next commit.
///
/// Whoever gets the `turn` commits everything queued by then, its own rows included; the others
/// find their outcome when they get it. So the cost of making rows durable is shared by all that
/// wait at once, and nobody waits for a timer.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Vec<Batch>>,
    turn: Mutex<()>,
}

struct Batch {
    changes: Vec<Change>,
    done: SyncSender<Result<(), StoreError>>,
}

impl Inner {
    /// Numbers, stores and applies rows, in order. They are durable when this returns.
    ///
    /// # Errors
    /// [`StoreError`]; then none or some of the rows are stored, and a retry is safe.
    pub(crate) fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let (done, outcome) = sync_channel(1);
        let lock = "no panic under this lock";
        self.commits
            .waiting
            .lock()
            .expect(lock)
            .push(Batch { changes, done });
        let turn = self.commits.turn.lock().expect(lock);
        if let Ok(outcome) = outcome.try_recv() {
            return outcome;
        }
        let batches = std::mem::take(&mut *self.commits.waiting.lock().expect(lock));
        self.commit_together(batches);
        drop(turn);
        outcome
            .recv()
            .expect("the batch was in the queue, and every batch taken is answered")
    }

    fn commit_together(&self, batches: Vec<Batch>) {
        // Chunks and manifests that the rows rely on first, then the rows.
        let mut appender = Appender::new(self);
        let ready = self.make_room_for(&batches).and_then(|()| self.sync());
        let stored: Vec<Result<Vec<Row>, StoreError>> = match ready {
            Ok(()) => batches
                .iter()
                .map(|batch| self.store_rows(&mut appender, batch))
                .collect(),
            Err(error) => return answer_first(batches, error),
        };
        if let Err(error) = self.sync() {
            return answer_first(batches, error);
        }
        for (batch, rows) in batches.iter().zip(stored) {
            let outcome =
                rows.and_then(|rows| rows.iter().try_for_each(|row| self.index.apply(row)));
            // The caller waits for its answer as long as it lives.
            let _ = batch.done.send(outcome);
        }
        if let Err(error) = appender.seal_if_full() {
            tracing::warn!(%error, "sealing a pack failed; it is tried again later");
        }
    }

    /// Makes sure that the index can take the rows once they are stored.
    fn make_room_for(&self, batches: &[Batch]) -> Result<(), StoreError> {
        let changes = || batches.iter().flat_map(|batch| &batch.changes);
        let len = changes().map(Change::len_estimate).sum();
        match changes().all(Change::removes) {
            true => self.index.make_room_to_remove(len),
            false => self.index.make_room(len),
        }
    }

    fn store_rows(&self, out: &mut Appender<'_>, batch: &Batch) -> Result<Vec<Row>, StoreError> {
        let number = |change: &Change| {
            Ok(Row {
                seq: self.next_seq()?,
                change: change.clone(),
            })
        };
        let rows: Vec<Row> = batch
            .changes
            .iter()
            .map(number)
            .collect::<Result<_, StoreError>>()?;
        rows.iter().try_for_each(|row| out.row(row))?;
        Ok(rows)
    }
}

/// Reports a failure of the whole commit: the error itself to the first caller, its text to all.
fn answer_first(batches: Vec<Batch>, error: StoreError) {
    let again = |error: &StoreError| match error {
        StoreError::NoSpace { what, cap, .. } => StoreError::NoSpace {
            what: what.clone(),
            cap: *cap,
            source: None,
        },
        other => StoreError::Io {
            action: "commit rows to",
            path: "packs".into(),
            source: std::io::Error::other(other.to_string()),
        },
    };
    for batch in batches {
        let _ = batch.done.send(Err(again(&error)));
    }
}

//! Records that wait to be written together.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Action, Replica};
use crate::log::Log;
use crate::record::Record;
use crate::segment::{BODY_LEN_MAX, Place, Segment};
use crate::time::Millis;

/// Records that wait to be written together, in wire form.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    records: VecDeque<Vec<u8>>,
    bytes: usize,
    first_at: Millis,
    last_at: Millis,
    /// Not before this, because the log failed.
    paused_until: Option<Millis>,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a record; gives it back if it cannot be written or too much waits.
    pub(super) fn push(&mut self, now: Millis, record: Record) -> Result<(), Box<Record>> {
        let encoded = match record.encode() {
            Ok(encoded) if self.bytes + encoded.len() <= WAITING_BYTES_MAX => encoded,
            Ok(_) | Err(_) => return Err(Box::new(record)),
        };
        if self.records.is_empty() {
            self.first_at = now;
        }
        self.last_at = now;
        self.bytes += encoded.len();
        self.records.push_back(encoded);
        Ok(())
    }

    /// When to write: as soon as a segment is full, or nothing came for a while, or the first
    /// record has waited long enough.
    pub(super) fn due_at(&self) -> Option<Millis> {
        if self.records.is_empty() {
            return None;
        }
        let quiet = self.last_at.plus(QUIET);
        let due = match self.bytes >= FLUSH_BYTES {
            true => self.first_at,
            false => quiet.min(self.first_at.plus(DELAY_MAX)),
        };
        Some(self.paused_until.map_or(due, |until| until.max(due)))
    }

    /// The next segment's worth of records, end to end, and how many they are.
    fn next_body(&self) -> (Vec<u8>, usize) {
        let mut body = Vec::new();
        let mut count = 0;
        for record in &self.records {
            if body.len() + record.len() > BODY_LEN_MAX || body.len() >= FLUSH_BYTES {
                break;
            }
            body.extend_from_slice(record);
            count += 1;
        }
        (body, count)
    }

    fn remove(&mut self, count: usize, now: Millis) {
        let gone: usize = self.records.drain(..count).map(|record| record.len()).sum();
        self.bytes -= gone;
        self.first_at = now;
        self.paused_until = None;
    }

    fn pause(&mut self, now: Millis) {
        self.paused_until = Some(now.plus(PAUSE));
    }
}

impl<L: Log> Replica<L> {
    /// Writes what is due.
    pub(super) fn flush(&mut self, now: Millis, actions: &mut Vec<Action>) {
        while self.outbox.due_at().is_some_and(|at| at <= now) {
            self.introduce(now);
            let (body, count) = self.outbox.next_body();
            if count == 0 || !self.write(now, &body, actions) {
                return;
            }
            self.outbox.remove(count, now);
        }
    }

    /// Puts the own certificate in front of the first segment.
    fn introduce(&mut self, now: Millis) {
        if self.directory.seq(self.me) > 0 {
            return;
        }
        let certificate = Record::Member(self.certificate.clone());
        let encoded = certificate.encode().expect("certificates are short");
        if self.outbox.records.front() != Some(&encoded) {
            self.outbox.bytes += encoded.len();
            self.outbox.records.push_front(encoded);
            self.outbox.first_at = now;
        }
    }

    fn write(&mut self, now: Millis, body: &[u8], actions: &mut Vec<Action>) -> bool {
        let place = self.next_place(now);
        let segment = Segment::append(&self.identity, place, body);
        let segment = segment.expect("the body is of records and fits");
        match self.take_own(now, &segment, actions) {
            true => {
                actions.push(Action::Publish(segment.bytes().clone()));
                true
            }
            false => {
                self.outbox.pause(now);
                false
            }
        }
    }

    /// Where the next own segment goes.
    pub(super) fn next_place(&self, now: Millis) -> Place {
        let tip = self.directory.tip(self.me);
        Place {
            cluster: self.directory.cluster(),
            seq: tip.seq + 1,
            prev: tip.id,
            hlc: now.0.max(self.directory.hlc(self.me) + 1),
        }
    }

    /// Puts an own segment into log and directory; false if that cannot be.
    pub(super) fn take_own(
        &mut self,
        now: Millis,
        segment: &Segment,
        actions: &mut Vec<Action>,
    ) -> bool {
        match self.take(segment, actions) {
            Ok(()) => {
                if !self.has_written {
                    self.has_written = true;
                    self.sync.ask_all(now);
                }
                self.unexamined_bytes += segment.bytes().len();
                true
            }
            Err(super::Refused::Log(error)) => {
                actions.push(Action::LogFailed(error));
                false
            }
            Err(refused) => {
                let node = self.me;
                let why = format!("own segment: {refused}");
                actions.push(Action::Misbehaved { node, why });
                false
            }
        }
    }
}

/// Without news for so long, what waits is written.
const QUIET: Duration = Duration::from_millis(50);

/// No record waits longer.
const DELAY_MAX: Duration = Duration::from_millis(250);

/// So many bytes are written at once.
const FLUSH_BYTES: usize = 12 * 1024;

/// Most bytes that wait, for instance before the own log is known: 20,000 paths.
pub(super) const WAITING_BYTES_MAX: usize = 8 << 20;

/// Until a log that failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);

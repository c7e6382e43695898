//! Restating the own log when most of it is obsolete.

use super::{Action, Replica};
use crate::directory::Live;
use crate::log::Log;
use crate::record::Record;
use crate::segment::{PARTS_MAX, Segment};
use crate::time::Millis;

impl<L: Log> Replica<L> {
    /// Writes a checkpoint if it would be at most half as long as the log; where the log is near the
    /// end of its room, if that would gain an eighth of it.
    ///
    /// The log is looked through again only after it grew by half, or came near that end and then by
    /// an eighth, so that looking through costs no more than a few times what writing did.
    pub(super) fn compact(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if self.unexamined_bytes < self.examine_after {
            return;
        }
        self.unexamined_bytes = 0;
        let live = match self.directory.live_records(self.me, &self.log) {
            Ok(live) => live,
            Err(error) => {
                self.repair.suspect(error.node, error.seq);
                actions.push(Action::LogFailed(error));
                return;
            }
        };
        let (kept, all) = (live.record_bytes(), live.log_bytes);
        let is_worth_it = match self.is_near_end(all) {
            true => kept <= all / 8 * 7,
            false => kept <= all / 2,
        };
        self.examine_after = self.growth_to_examine(all);
        if is_worth_it {
            self.examine_after = self.growth_to_examine(kept).max(self.examine_after);
            self.write_checkpoint(now, &live, actions);
        }
    }

    /// Whether a log of this length may soon have no room for what is not urgent.
    fn is_near_end(&self, log_bytes: usize) -> bool {
        log_bytes as u64 >= self.near_end()
    }

    fn near_end(&self) -> u64 {
        self.log_len_max / 4 * 3
    }

    /// By how much a log of this length grows before it is looked through.
    fn growth_to_examine(&self, log_bytes: usize) -> usize {
        let growth = match self.near_end().saturating_sub(log_bytes as u64) {
            0 => log_bytes / 8,
            left => usize::try_from(left).map_or(log_bytes / 2, |left| left.min(log_bytes / 2)),
        };
        EXAMINE_BYTES_MIN.max(growth)
    }

    /// Writes a checkpoint now. It is not gossiped: who has the log so far learns nothing from it,
    /// and the others fetch it.
    fn write_checkpoint(&mut self, now: Millis, live: &Live, actions: &mut Vec<Action>) {
        let bodies = self.bodies(live);
        let parts = match u32::try_from(bodies.len()) {
            Ok(parts) if parts <= PARTS_MAX => parts,
            Ok(_) | Err(_) => return,
        };
        for (part, body) in (0..parts).zip(&bodies) {
            let place = self.next_place(now);
            let segment = Segment::checkpoint(&self.identity, place, (part, parts), body);
            let segment = segment.expect("the body is of records and fits");
            if !self.take_own(now, &segment, actions) {
                // What was written of it means nothing; the next one is whole.
                return;
            }
        }
        self.unexamined_bytes = 0;
    }

    /// The records of a checkpoint: the certificate, by which others let it in; what it is about;
    /// then what is still valid.
    fn bodies(&self, live: &Live) -> Vec<Vec<u8>> {
        let own = [Record::Member(self.certificate.clone())];
        let own = own.into_iter().chain(live.context());
        let encoded = own.filter_map(|record| record.encode().ok());
        let own = (0u16..)
            .zip(encoded)
            .map(|(index, record)| Segment::restate(0, index, &record));
        let restated = live.records.iter();
        let restated = restated.map(|live| Segment::restate(live.seq, live.index, &live.encoded));
        let mut bodies = vec![Vec::new()];
        for entry in own.chain(restated) {
            match bodies.last_mut() {
                Some(body) if body.len() + entry.len() <= PART_LEN => body.extend(entry),
                Some(_) | None => bodies.push(entry),
            }
        }
        bodies
    }
}

/// Bytes of records in a segment of a checkpoint, unless one record is longer.
const PART_LEN: usize = 15 * 1024;
/// A log that grew by less is not looked through.
pub(super) const EXAMINE_BYTES_MIN: usize = 1 << 20;

//! Virtual time: what is going to happen, in order, and the trace of what did.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

/// What is going to happen. Of two things at one moment, the one planned first happens first, so
/// a run depends on nothing but what was planned.
#[derive(Debug)]
pub(crate) struct Agenda<E> {
    now: Duration,
    next: u64,
    entries: BinaryHeap<Entry<E>>,
}

impl<E> Default for Agenda<E> {
    fn default() -> Agenda<E> {
        Agenda {
            now: Duration::ZERO,
            next: 0,
            entries: BinaryHeap::new(),
        }
    }
}

impl<E> Agenda<E> {
    /// Time since the world began.
    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    /// Lets `event` happen at `at`; at once if that has passed.
    pub(crate) fn at(&mut self, at: Duration, event: E) {
        self.next += 1;
        self.entries.push(Entry {
            at: at.max(self.now),
            number: self.next,
            event,
        });
    }

    /// Lets `event` happen after `span`.
    pub(crate) fn after(&mut self, span: Duration, event: E) {
        self.at(self.now + span, event);
    }

    /// Goes to the next event and takes it, unless it comes after `end`.
    pub(crate) fn next(&mut self, end: Duration) -> Option<E> {
        if self.entries.peek()?.at > end {
            return None;
        }
        let entry = self.entries.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

#[derive(Debug)]
struct Entry<E> {
    at: Duration,
    number: u64,
    event: E,
}

impl<E> Entry<E> {
    fn key(&self) -> (Duration, u64) {
        (self.at, self.number)
    }
}

impl<E> Ord for Entry<E> {
    /// The heap gives the greatest: that which is due first.
    fn cmp(&self, other: &Entry<E>) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Entry<E>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Entry<E>) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Entry<E> {}

/// A hash of all that happened: two runs are the same if theirs are.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hasher: blake3::Hasher,
    notes: u64,
}

impl Trace {
    /// Notes that `what` happened at `now`.
    pub(crate) fn note(&mut self, now: Duration, what: Note, numbers: [u64; 3]) {
        self.notes += 1;
        let mut bytes = [0; 33];
        bytes[0] = what as u8;
        bytes[1..9].copy_from_slice(&(now.as_nanos() as u64).to_le_bytes());
        for (place, number) in bytes[9..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        self.hasher.update(&bytes);
    }

    /// How many notes there are.
    pub(crate) fn notes(&self) -> u64 {
        self.notes
    }

    /// The hash of all notes, in hexadecimal.
    pub(crate) fn hash(&self) -> String {
        self.hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// What is noted in the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Step,
    Boot,
    Down,
    Connected,
    Disconnected,
    Arrived,
    Lost,
    Chunk,
    Shown,
    Hidden,
    Written,
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_as_planned() {
        let mut agenda = Agenda::default();
        let at = Duration::from_secs;
        for (time, name) in [(2, 'c'), (1, 'a'), (1, 'b'), (3, 'd')] {
            agenda.at(at(time), name);
        }
        let order: String = std::iter::from_fn(|| agenda.next(at(2))).collect();
        assert_eq!(order, "abc");
        assert_eq!(agenda.now(), at(2));
        agenda.at(at(1), 'e');
        assert_eq!(agenda.next(at(9)), Some('e'), "what is late happens now");
        assert_eq!(agenda.now(), at(2));
    }
}

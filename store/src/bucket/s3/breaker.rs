//! Whether a server is worth asking. Pure: time is an argument.
//!
//! Requests that were under way together when a connection broke, or when a server stopped, fail
//! together, and count as one failure; five rounds of them are an outage. Who waited for an answer until
//! its time was over counts alone.

use std::time::{Duration, Instant};

/// Keeps requests from a server that does not answer, but for one now and then to find out.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// In a row.
    failures: u32,
    /// When the last of them was counted.
    counted: Option<Instant>,
    /// Nobody asks before; at it, one request may.
    open_until: Option<Instant>,
}

impl Breaker {
    /// Whether a request may be sent now. One that may while the breaker is open is the only one
    /// for [`PROBE_EVERY`], whatever becomes of it.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        match self.open_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                self.open_until = Some(now + PROBE_EVERY);
                true
            }
        }
    }

    /// Notes an answer, whatever it said.
    pub(super) fn answered(&mut self) {
        *self = Breaker::default();
    }

    /// Notes that a request that began then had no answer, or only one that the server is broken. It
    /// counts unless it began before the last one that counted had ended.
    pub(super) fn failed(&mut self, now: Instant, began: Instant) {
        if self.counted.is_some_and(|counted| began < counted) {
            return;
        }
        self.counted = Some(now);
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            self.open_until = self.open_until.max(Some(now + PROBE_EVERY));
        }
    }

    /// Until when nobody asks.
    pub(super) fn open_until(&self) -> Option<Instant> {
        self.open_until
    }
}

/// Failures in a row that open it.
const FAILURES_MAX: u32 = 5;
/// Pause between two requests that find out.
const PROBE_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn five_failures_in_a_row_open_it_and_one_answer_closes_it() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..4 {
            breaker.failed(start, start);
        }
        breaker.answered();
        for _ in 0..4 {
            breaker.failed(start, start);
        }
        assert!(breaker.admits(start));
        breaker.failed(start, start);
        assert!(!breaker.admits(start));
        assert_eq!(breaker.open_until(), Some(start + SECOND * 5));
        breaker.answered();
        assert!(breaker.admits(start) && breaker.admits(start));
    }

    #[test]
    fn an_open_one_lets_one_request_through_every_five_seconds() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        (0..5).for_each(|_| breaker.failed(start, start));
        let mut admitted = Vec::new();
        for second in 0..16 {
            let now = start + SECOND * second;
            for _ in 0..3 {
                if breaker.admits(now) {
                    admitted.push(second);
                    // Every other one is never heard of again.
                    if second % 2 == 0 {
                        breaker.failed(now, now);
                    }
                }
            }
        }
        assert_eq!(admitted, [5, 10, 15]);
    }

    #[test]
    fn requests_that_fail_together_count_once() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for round in 1..=4 {
            let (began, ended) = (start + SECOND * round, start + SECOND * (round + 1));
            (0..32).for_each(|_| breaker.failed(ended, began));
            assert_eq!(breaker.open_until(), None);
        }
        breaker.failed(start + SECOND * 6, start + SECOND * 5);
        assert!(breaker.open_until().is_some());
    }
}

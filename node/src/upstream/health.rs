//! Whether an upstream is worth asking. Pure: time is an argument.
//!
//! A breaker. Whoever does not answer in time is left alone for [`OPEN_MAX`]; whoever fails at once,
//! which costs nobody time, only after some failures in a row, and for a second at first. When that
//! is over one request is let through to find out, and the others once it was answered in time.
//!
//! Whoever answered after all, too late for those who waited, is *slow*: it is asked no more questions
//! for that time, and what it said is good.

use std::time::{Duration, Instant};

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Somebody waited for nothing.
    Silent,
    /// It was known at once.
    Broken,
}

/// What is known of an upstream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    /// Exponentially weighted mean of how long answers to narinfo requests took.
    latency: Option<Duration>,
    /// In a row.
    failures: u32,
    /// Nobody asks before; at it, one request may.
    open_until: Option<Instant>,
    /// Whether it answered since it failed, but late.
    slow: bool,
    failing_since: Option<Instant>,
    last_error: Option<String>,
}

impl Health {
    /// Whether a request may be sent now. One that may while the breaker is open is the only one for
    /// [`OPEN_MAX`], whatever becomes of it.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        match self.open_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                self.open_until = Some(now + OPEN_MAX);
                true
            }
        }
    }

    /// Whether requests are kept away.
    pub(crate) fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    /// Whether nothing can be had from it. One that is merely slow gives what it said it has.
    pub(crate) fn is_dead(&self) -> bool {
        self.is_open() && !self.slow
    }

    /// Notes an answer, whatever it said. One that took longer than `patience` came for nobody, and
    /// does not close the breaker.
    pub(crate) fn answered(&mut self, took: Duration, patience: Duration) {
        self.latency = Some(match self.latency {
            Some(mean) => (mean * 7 + took) / 8,
            None => took,
        });
        match took <= patience {
            true => self.recovered(),
            false => self.slow = true,
        }
    }

    /// Notes that it does what it should.
    pub(crate) fn recovered(&mut self) {
        self.failures = 0;
        self.open_until = None;
        self.slow = false;
        self.failing_since = None;
    }

    /// Notes a failure.
    pub(crate) fn failed(&mut self, now: Instant, trouble: Trouble, error: String) {
        self.failures = self.failures.saturating_add(1);
        self.slow = false;
        self.failing_since.get_or_insert(now);
        self.last_error = Some(error);
        let pause = match trouble {
            Trouble::Silent => OPEN_MAX,
            Trouble::Broken if self.failures < FAILURES_MAX => return,
            Trouble::Broken => {
                let doublings = (self.failures - FAILURES_MAX).min(16);
                Duration::from_secs(1 << doublings).min(OPEN_MAX)
            }
        };
        self.open_until = self.open_until.max(Some(now + pause));
    }

    pub(crate) fn latency(&self) -> Option<Duration> {
        self.latency
    }

    /// When the failures in a row began; `None` if the last request did not fail.
    pub(crate) fn failing_since(&self) -> Option<Instant> {
        self.failing_since
    }

    /// The last failure there was, be it over or not.
    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}

/// How long an upstream that does not answer is left alone.
pub(crate) const OPEN_MAX: Duration = Duration::from_secs(60);
/// Failures in a row, none of which cost time, before it is left alone.
const FAILURES_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_secs(2);

    fn fails(health: &mut Health, now: Instant, trouble: Trouble) {
        health.failed(now, trouble, "x".to_owned());
    }

    /// S8: a dead upstream costs at most one timeout per 60 s.
    #[test]
    fn s8_one_silence_keeps_all_away_for_a_minute_and_then_one_asks() {
        let (mut health, start) = (Health::default(), Instant::now());
        assert!(health.admits(start) && health.admits(start));
        fails(&mut health, start, Trouble::Silent);
        let mut admitted = Vec::new();
        for second in 0..600 {
            let now = start + SECOND * second;
            for _ in 0..3 {
                if health.admits(now) {
                    admitted.push(second);
                    fails(&mut health, now + PATIENCE, Trouble::Silent);
                }
            }
        }
        assert!(admitted.windows(2).all(|pair| pair[1] - pair[0] >= 60));
        assert_eq!(admitted.len(), 9, "{admitted:?}");
    }

    #[test]
    fn a_probe_that_is_never_heard_of_counts_as_one() {
        let (mut health, start) = (Health::default(), Instant::now());
        fails(&mut health, start, Trouble::Silent);
        assert!(health.admits(start + OPEN_MAX));
        assert!(!health.admits(start + OPEN_MAX * 2 - SECOND));
        assert!(health.admits(start + OPEN_MAX * 2));
    }

    #[test]
    fn an_answer_in_time_closes_and_a_late_one_does_not() {
        let (mut health, start) = (Health::default(), Instant::now());
        fails(&mut health, start, Trouble::Silent);
        health.answered(PATIENCE + SECOND, PATIENCE);
        assert!(health.is_open() && !health.admits(start + SECOND));
        assert!(!health.is_dead() && health.failing_since().is_some());
        fails(&mut health, start, Trouble::Broken);
        assert!(health.is_dead(), "it was slow, and failed then");
        health.answered(SECOND, PATIENCE);
        assert!(!health.is_open() && health.admits(start + SECOND));
        assert_eq!(health.failing_since(), None);
        assert_eq!(health.last_error(), Some("x"), "still told");
    }

    #[test]
    fn failures_at_once_open_it_only_in_a_row_and_ever_longer() {
        let (mut health, start) = (Health::default(), Instant::now());
        for _ in 0..10 {
            fails(&mut health, start, Trouble::Broken);
            fails(&mut health, start, Trouble::Broken);
            assert!(health.admits(start));
            health.answered(SECOND, PATIENCE);
        }
        let pauses = (0..12).map(|_| {
            fails(&mut health, start, Trouble::Broken);
            let seconds = 0..=60;
            let opens = |second: &u32| health.clone().admits(start + SECOND * *second);
            seconds.into_iter().find(opens).unwrap()
        });
        let pauses: Vec<u32> = pauses.collect();
        assert_eq!(pauses, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
    }

    #[test]
    fn the_latency_is_a_mean_that_forgets() {
        let mut health = Health::default();
        assert_eq!(health.latency(), None);
        health.answered(Duration::from_millis(800), PATIENCE);
        assert_eq!(health.latency(), Some(Duration::from_millis(800)));
        health.answered(Duration::ZERO, PATIENCE);
        assert_eq!(health.latency(), Some(Duration::from_millis(700)));
        (0..100).for_each(|_| health.answered(Duration::from_millis(40), PATIENCE));
        let latency = health.latency().unwrap();
        assert!((40..42).contains(&latency.as_millis()), "{latency:?}");
    }
}

//! The one unit of time of certificates, tickets and revocations.
//!
//! Whole seconds are enough for lifetimes of days, and a plain count has no time zones, no leap
//! seconds and one encoding. The type reads no clock: whoever asks "is this still valid" brings
//! the time along.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point in time.
///
/// **Units**: seconds since 1970-01-01 00:00 UTC. Text is `2026-11-22 21:54:01 UTC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// This much later, in whole seconds; the end of time if that is later still.
    pub const fn plus(self, span: Duration) -> UnixTime {
        UnixTime(self.0.saturating_add(span.as_secs()))
    }

    /// How much later this is than `earlier`; zero if it is not.
    pub const fn since(self, earlier: UnixTime) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

impl Display for UnixTime {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let (days, second) = (self.0 / DAY, self.0 % DAY);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC"
        )
    }
}

/// Year, month and day of the day that many days after 1970-01-01.
///
/// Years are counted from a first of March, which puts the leap day last: then months follow a
/// linear rule and 400 years are one fixed block.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_TO_1970;
    let (block, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let leap_days = day / 1_460 - day / 36_524 + day / 146_096;
    let year = (day - leap_days) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let turned = month >= 10;
    let month = if turned { month - 9 } else { month + 3 };
    (400 * block + year + u64::from(turned), month, day)
}

const DAY: u64 = 24 * 60 * 60;
const DAYS_OF_400_YEARS: u64 = 146_097;
/// From the first of March of the year 0.
const DAYS_TO_1970: u64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_the_date_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_795_384_441, "2026-11-22 21:54:01 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(UnixTime(seconds).to_string(), text);
        }
    }

    #[test]
    fn no_value_is_too_large() {
        assert!(UnixTime(u64::MAX).to_string().ends_with("UTC"));
        assert_eq!(
            UnixTime(u64::MAX).plus(Duration::from_secs(1)),
            UnixTime(u64::MAX)
        );
        assert_eq!(UnixTime(1).since(UnixTime(2)), Duration::ZERO);
    }
}

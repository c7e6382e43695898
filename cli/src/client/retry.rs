//! When to try again: pure arithmetic.

use std::time::Duration;

/// How often a failed request is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Attempts in all while the node answers, if badly.
    pub attempts_max: u32,
    /// Attempts in all while nothing listens at its address.
    pub connects_max: u32,
}

impl Patience {
    /// For a person who waits: a node that does not run is reported at once.
    pub const PROMPT: Patience = Patience {
        attempts_max: 12,
        connects_max: 2,
    };
    /// For work under way: sits out a restart of the node.
    pub const STEADY: Patience = Patience {
        attempts_max: 12,
        connects_max: 14,
    };
}

/// The pause after `failed` attempts: uniform between nothing and a ceiling that doubles up to
/// [`PAUSE_MAX`], and at least what the node asked for, itself held to [`RETRY_AFTER_MAX`].
///
/// `random` is in 0..1. The spread keeps clients that failed together from returning together.
pub(super) fn pause(failed: u32, random: f64, retry_after: Option<Duration>) -> Duration {
    let ceiling = PAUSE_MIN.saturating_mul(1 << failed.min(16)).min(PAUSE_MAX);
    let floor = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
    floor + ceiling.mul_f64(random)
}

const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(4);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_respect_the_node() {
        let ms = Duration::from_millis;
        let check = |failed, random, asked, wanted| {
            assert_eq!(
                pause(failed, random, asked),
                wanted,
                "{failed} {random} {asked:?}"
            );
        };
        check(1, 0.0, None, ms(0));
        check(1, 0.5, None, ms(25));
        check(2, 0.5, None, ms(50));
        check(5, 0.5, None, ms(400));
        check(50, 0.5, None, ms(2000));
        check(u32::MAX, 0.0, None, ms(0));
        check(1, 0.0, Some(ms(7000)), ms(7000));
        check(1, 0.5, Some(Duration::from_secs(86_400)), ms(30_025));
    }

    /// P5: 30 % of requests fail, and a push makes thousands.
    #[test]
    fn p5_twelve_attempts_survive_thirty_percent_faults() {
        let all_fail = 0.3f64.powi(Patience::STEADY.attempts_max as i32);
        assert!(all_fail * 10_000.0 < 0.01);
    }
}

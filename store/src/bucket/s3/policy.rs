//! When a request is repeated, and for how long. Pure: randomness is an argument.

use std::time::Duration;

/// How requests are repeated, and how long anything may take.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Most attempts of one operation, at least one. A write has one whatever this says.
    pub tries_max: u32,
    /// Bound of the first pause between two attempts; each later one's is twice as long.
    pub pause_first: Duration,
    /// Bound of any pause; also the longest that a server is obeyed which says when to come back.
    pub pause_max: Duration,
    /// Longest an operation may take with all its attempts, beside what its bytes take.
    pub operation_time_max: Duration,
    /// Longest an attempt may take, beside what its bytes take.
    pub attempt_time_max: Duration,
    /// Longest it may take to connect.
    pub connect_time_max: Duration,
    /// Slowest transfer that is waited for, in bytes a second.
    pub bytes_per_second_min: u64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            tries_max: 6,
            pause_first: Duration::from_millis(200),
            pause_max: Duration::from_secs(10),
            operation_time_max: Duration::from_secs(60),
            attempt_time_max: Duration::from_secs(20),
            connect_time_max: Duration::from_secs(5),
            bytes_per_second_min: 128 << 10,
        }
    }
}

impl Policy {
    /// The pause after attempt number `attempt`, which counts from 1: a `share` of its bound, by full
    /// jitter; or what the server asked for, up to the bound of all.
    pub(super) fn pause(&self, attempt: u32, share: f64, asked: Option<Duration>) -> Duration {
        let doublings = attempt.saturating_sub(1).min(16);
        let bound = (self.pause_first * (1 << doublings)).min(self.pause_max);
        let jitter = bound.mul_f64(share.clamp(0.0, 1.0));
        // Who is told when to come back comes then or a little later, not all at once.
        asked.map_or(jitter, |asked| asked.min(self.pause_max) + jitter)
    }

    /// Longest an attempt may take that moves so many bytes.
    pub(super) fn attempt_time(&self, bytes: u64) -> Duration {
        self.attempt_time_max + self.transfer_time(bytes)
    }

    /// Longest an operation may take that moves so many bytes.
    pub(super) fn operation_time(&self, bytes: u64) -> Duration {
        self.operation_time_max + self.transfer_time(bytes)
    }

    fn transfer_time(&self, bytes: u64) -> Duration {
        Duration::from_secs(bytes / self.bytes_per_second_min.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound_and_jitter_takes_any_share_of_them() {
        let policy = Policy::default();
        let bounds: Vec<u128> = (1..=8)
            .map(|attempt| policy.pause(attempt, 1.0, None).as_millis())
            .collect();
        assert_eq!(bounds, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(policy.pause(3, 0.0, None), Duration::ZERO);
        assert_eq!(policy.pause(3, 0.5, None), Duration::from_millis(400));
    }

    #[test]
    fn a_server_that_says_when_to_come_back_is_obeyed_within_the_bound() {
        let policy = Policy::default();
        let asked = |seconds| policy.pause(1, 0.5, Some(Duration::from_secs(seconds)));
        assert_eq!(asked(2), Duration::from_millis(2100));
        assert_eq!(asked(3600), Duration::from_millis(10_100));
    }

    #[test]
    fn what_moves_bytes_may_take_longer() {
        let policy = Policy::default();
        assert_eq!(policy.attempt_time(0), Duration::from_secs(20));
        assert_eq!(policy.attempt_time(16 << 20), Duration::from_secs(20 + 128));
        assert_eq!(
            policy.operation_time(u64::MAX / 2).as_secs(),
            60 + ((u64::MAX / 2) >> 17)
        );
    }
}

//! How far the server's clock is from this machine's.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};

/// What the server's last answer said of its clock.
#[derive(Debug)]
pub(super) struct ServerClock {
    ahead_seconds: AtomicI64,
}

impl Default for ServerClock {
    fn default() -> ServerClock {
        ServerClock {
            ahead_seconds: AtomicI64::new(UNKNOWN),
        }
    }
}

impl ServerClock {
    /// By how many seconds the server's clock is ahead; `None` before its first answer.
    pub(super) fn ahead_seconds(&self) -> Option<i64> {
        Some(self.ahead_seconds.load(Ordering::Relaxed)).filter(|ahead| *ahead != UNKNOWN)
    }

    fn note(&self, date: &str) {
        let server = DateTime::from_str(date, DateTimeFormat::HttpDate).ok();
        if let Some(server) = server {
            let ahead = server.secs() - DateTime::from(SystemTime::now()).secs();
            self.ahead_seconds.store(ahead, Ordering::Relaxed);
        }
    }
}

/// Reads the date of every answer.
#[derive(Debug)]
pub(super) struct ClockReader(pub(super) Arc<ServerClock>);

impl Intercept for ClockReader {
    fn name(&self) -> &'static str {
        "ClockReader"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = context.response().headers().get("date") {
            self.0.note(date);
        }
        Ok(())
    }
}

/// No clock is that far behind.
const UNKNOWN: i64 = i64::MIN;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_read_from_dates_and_from_nothing_else() {
        let clock = ServerClock::default();
        clock.note("yesterday");
        assert_eq!(clock.ahead_seconds(), None);
        clock.note("Fri, 01 Jan 2100 00:00:00 GMT");
        assert!(
            clock
                .ahead_seconds()
                .is_some_and(|ahead| ahead > 365 * 86_400)
        );
    }
}

//! Time as the pure parts see it: an argument.

use std::time::Duration;

/// A point in time.
///
/// **Units**: milliseconds since 1970. Whoever hands it in sees to it that it does not go back
/// while the program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// This much later.
    pub const fn plus(self, span: Duration) -> Millis {
        Millis(self.0.saturating_add(span.as_millis() as u64))
    }
}

//! Credit: how much a receiver is ready to take, independent of what it asked for.

/// Bytes of [`Data`](super::Frame::Data) a node takes from one peer before it gives credit: the most
/// that any set of downloads keeps in flight at one peer.
pub const CREDIT_WINDOW: u32 = 32 << 20;

/// The receiver's side: says when to send [`Credit`](super::Frame::Credit).
///
/// Credit is given for bytes that left the receiver's memory, so a sender can never have more than
/// one window under way, whatever was asked.
#[derive(Clone, Debug, Default)]
pub struct CreditMeter {
    owed: u32,
}

impl CreditMeter {
    /// `bytes` of data were verified and passed on; returns the credit to send, if it is time to.
    ///
    /// Credit is sent a quarter of a window at a time.
    pub fn consumed(&mut self, bytes: u32) -> Option<u32> {
        self.owed = self.owed.saturating_add(bytes);
        (self.owed >= CREDIT_WINDOW / 4).then(|| std::mem::take(&mut self.owed))
    }
}

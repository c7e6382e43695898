//! Who may connect: the question the transport asks before anything else is spoken.
//!
//! The transport knows who the remote *is* from its handshake. Whether it *may* is decided here, by
//! one message each way, before a multiplexer or any protocol exists: whoever is not admitted never
//! reaches them. What the messages say is the gate's business; the transport carries bytes.

use std::fmt::Display;

use futures::future::BoxFuture;
use thiserror::Error;

use crate::ids::NodeId;

/// Longest message of a gate, in bytes. A longer one ends the connection, unread or unsent.
pub const GATE_MESSAGE_LEN_MAX: usize = 16 * 1024;

/// Decides about connections. Called from many connections at once.
///
/// **Order**: the dialer's [`Gate::hello`], the listener's [`Gate::answer`], the dialer's
/// [`Gate::accept`]. A connection exists once all three agree. All of it must happen within five
/// seconds of the handshake's begin.
///
/// **Cancellation**: the future of `answer` is dropped when the remote goes away or time runs out;
/// what it had begun must be harmless to do again for the same remote. A panic in a gate ends the
/// one connection.
pub trait Gate: Send + Sync + 'static {
    /// The dialer's message to `remote`.
    fn hello(&self, remote: NodeId) -> Vec<u8>;

    /// The listener's judgement of a dialer's message.
    fn answer(&self, remote: NodeId, hello: &[u8]) -> BoxFuture<'_, Answer>;

    /// The dialer's judgement of the listener's message.
    ///
    /// **Errors**: why not; the connection ends.
    fn accept(&self, remote: NodeId, reply: &[u8]) -> Result<(), Refusal>;
}

/// What a listener says to a dialer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Sent in any case, at most [`GATE_MESSAGE_LEN_MAX`] bytes.
    pub reply: Vec<u8>,
    /// Whether the connection goes on after it.
    pub admit: bool,
}

/// Why a remote is not wanted, or does not want us, in words for people.
///
/// **Shape**: at most [`Refusal::LEN_MAX`] bytes, without control characters: the remote may have
/// chosen them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Refusal(String);

impl Refusal {
    /// Longest text; what is longer is cut.
    pub const LEN_MAX: usize = 512;

    /// A refusal for `reason`.
    pub fn new(reason: impl Display) -> Refusal {
        let mut text = String::new();
        for c in reason.to_string().chars().filter(|c| !c.is_control()) {
            if text.len() + c.len_utf8() > Refusal::LEN_MAX {
                break;
            }
            text.push(c);
        }
        Refusal(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_short_and_clean() {
        assert_eq!(Refusal::new("a\u{1b}[31mb\n").to_string(), "a[31mb");
        let long = "ü".repeat(Refusal::LEN_MAX);
        assert_eq!(Refusal::new(long).to_string().len(), Refusal::LEN_MAX);
    }
}

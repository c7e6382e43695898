//! Where a node can be dialled, in the form that tickets and refusals carry.
//!
//! Nothing here dials: the text is kept as somebody wrote it and handed to the transport, which
//! alone knows what protocols it speaks. What is checked is what a terminal and a log file need:
//! short, one line, plain ASCII.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::NodeId;

/// A multiaddr, and the node that must answer there.
///
/// **Shape**: 1 to [`Address::LEN_MAX`] printable ASCII characters that begin with `/`, without
/// the `/p2p/…` part: the node stands beside it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "RawAddress")]
pub struct Address {
    multiaddr: String,
    node: NodeId,
}

impl Address {
    /// Longest multiaddr, in bytes.
    pub const LEN_MAX: usize = 128;

    /// The address `multiaddr` of `node`.
    ///
    /// **Errors** when the text has another shape. Whether anything can dial it is not looked at.
    pub fn new(multiaddr: &str, node: NodeId) -> Result<Address, AddressError> {
        let plain = multiaddr.bytes().all(|byte| byte.is_ascii_graphic());
        if multiaddr.len() > Address::LEN_MAX || !plain || !multiaddr.starts_with('/') {
            return Err(AddressError);
        }
        Ok(Address {
            multiaddr: multiaddr.to_owned(),
            node,
        })
    }

    /// The text to dial.
    pub fn multiaddr(&self) -> &str {
        &self.multiaddr
    }

    /// Who must answer.
    pub fn node(&self) -> NodeId {
        self.node
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{}/p2p/{}", self.multiaddr, self.node)
    }
}

impl Debug for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        Display::fmt(self, f)
    }
}

#[derive(Deserialize)]
struct RawAddress {
    multiaddr: String,
    node: NodeId,
}

impl TryFrom<RawAddress> for Address {
    type Error = AddressError;

    fn try_from(raw: RawAddress) -> Result<Address, AddressError> {
        Address::new(&raw.multiaddr, raw.node)
    }
}

/// Text that cannot be an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a multiaddr of at most {max} characters", max = Address::LEN_MAX)]
pub struct AddressError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_short_plain_text() {
        let node = NodeId::from_bytes([7; 32]);
        let longest = format!("/{}", "x".repeat(Address::LEN_MAX - 1));
        for (text, good) in [
            ("/ip4/192.0.2.1/tcp/4001", true),
            (&*longest, true),
            (&*format!("{longest}x"), false),
            ("", false),
            ("ip4/192.0.2.1", false),
            ("/ip4/\x1b[31m", false),
            ("/dns/bücher", false),
            ("/ip4/192.0.2.1\n/x", false),
        ] {
            assert_eq!(Address::new(text, node).is_ok(), good, "{text:?}");
            let wire = postcard::to_stdvec(&(text, node)).unwrap();
            assert_eq!(
                postcard::from_bytes::<Address>(&wire).is_ok(),
                good,
                "{text:?}"
            );
        }
    }
}

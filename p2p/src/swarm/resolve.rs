//! Host names in addresses, resolved the way the rest of the system does it.

use std::net::SocketAddr;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::net::lookup_host;
use tokio::time::timeout;

/// For all names of an attempt together.
const DEADLINE: Duration = Duration::from_secs(3);

/// Addresses one name may stand for. The others are not tried.
const RESOLVED_MAX: usize = 4;

/// Whether an address begins with a host name.
pub(super) fn is_named(address: &Multiaddr) -> bool {
    matches!(
        address.iter().next(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_))
    )
}

/// The addresses with every name replaced by what it stands for now; without those that stand for
/// nothing.
pub(super) async fn resolve(addresses: &[Multiaddr]) -> Vec<Multiaddr> {
    let mut resolved: Vec<_> = (addresses.iter())
        .filter(|address| !is_named(address))
        .cloned()
        .collect();
    let names = addresses.iter().filter_map(name);
    let lookups = async {
        for (host, port, family, rest) in names {
            match lookup_host((host.as_str(), port)).await {
                Ok(found) => resolved.extend(
                    (found.filter(|found| family.admits(found)))
                        .take(RESOLVED_MAX)
                        .map(|found| {
                            let head =
                                Multiaddr::from(found.ip()).with(Protocol::Tcp(found.port()));
                            rest.iter().fold(head, Multiaddr::with)
                        }),
                ),
                Err(error) => tracing::debug!(host, %error, "resolve"),
            }
        }
    };
    if timeout(DEADLINE, lookups).await.is_err() {
        tracing::debug!(?addresses, "names not resolved in time");
    }
    resolved
}

enum Family {
    Four,
    Six,
    Both,
}

impl Family {
    fn admits(&self, address: &SocketAddr) -> bool {
        match self {
            Family::Four => address.is_ipv4(),
            Family::Six => address.is_ipv6(),
            Family::Both => true,
        }
    }
}

/// The name, port and family of an address that begins with a name, and what follows them: the way
/// through a relay, or nothing.
fn name(address: &Multiaddr) -> Option<(String, u16, Family, Multiaddr)> {
    let mut parts = address.iter();
    let (host, family) = match parts.next()? {
        Protocol::Dns(host) => (host.into_owned(), Family::Both),
        Protocol::Dns4(host) => (host.into_owned(), Family::Four),
        Protocol::Dns6(host) => (host.into_owned(), Family::Six),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((host, port, family, parts.collect())),
        _ => None,
    }
}

//! The node that owns a data directory, and whether it is still the one that listens.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use attic_node_core::data_dir::DataDir;

use super::ClientError;

/// The node that runs on a data directory of this machine.
///
/// Ports are anybody's: when a node is killed, another program may listen where it did, and the
/// `address` file that it left behind names that program. A running node holds the directory's
/// lock, and removes the file before it stops listening. So the file counts only while the lock is
/// held.
#[derive(Clone, Debug)]
pub struct Owner {
    data: DataDir,
    address: SocketAddr,
}

impl Owner {
    /// The node that runs on `data`, else the one that would listen at `listen` if it ran.
    pub fn of(data: DataDir, listen: SocketAddr) -> Owner {
        let address = serving_address(&data).unwrap_or(listen);
        Owner { data, address }
    }

    /// Where it is reached from this machine: a server bound to every address is on the loopback
    /// one too.
    pub fn address(&self) -> SocketAddr {
        reachable(self.address)
    }

    /// Makes sure that it runs, at that address. Two small files are looked at.
    ///
    /// **Errors**: [`ClientError::NotRunning`], [`ClientError::NotServing`], [`ClientError::Moved`],
    /// [`ClientError::DataFile`].
    pub(super) fn check(&self) -> Result<(), ClientError> {
        let now = serving_address(&self.data)?;
        if now == self.address {
            return Ok(());
        }
        let before = self.address;
        Err(ClientError::Moved { before, now })
    }
}

/// See [`Owner::address`].
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn serving_address(data: &DataDir) -> Result<SocketAddr, ClientError> {
    if !data.is_in_use()? {
        return Err(ClientError::NotRunning(data.root().to_owned()));
    }
    let text = fs::read_to_string(data.address()).ok();
    text.and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| ClientError::NotServing(data.root().to_owned()))
}

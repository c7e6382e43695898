//! What nodes ask each other in one small message, and the answers.
//!
//! **Shape**: postcard; unknown questions are not answered, which the asker takes for a failure.

use attic_p2p::Multiaddr;
use attic_p2p::control::{REQUEST_LEN_MAX, RESPONSE_LEN_MAX};
use attic_p2p::ids::{CacheId, NodeId};
use attic_p2p::network::is_node_address;
use attic_store::StorePathHash;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::mesh::pull::{Pull, Pulled};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Query {
    /// One of the replica's.
    Sync(Bytes),
    /// What is in a cache under these hash parts. At most [`HASHES_MAX`].
    Paths {
        cache: CacheId,
        hashes: Vec<StorePathHash>,
    },
    /// Please hold these paths' NARs: somebody pushed them and wants a second copy.
    Hold {
        cache: CacheId,
        hashes: Vec<StorePathHash>,
    },
    /// My certificate is near its end, or beyond: may I have the next one?
    Renew {
        /// The one I have, signed, in wire form.
        certificate: Bytes,
    },
    /// Whom are you connected to, and where do they listen?
    Peers,
    /// What do you have of a NAR of an upstream?
    Pull(Pull),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// One of the replica's; empty if there is none.
    Sync(Bytes),
    /// For each hash part a path record in its wire form, if there is one.
    Paths(Vec<Option<Bytes>>),
    /// How many of them will be held.
    Hold { accepted: u32 },
    /// The next certificate, signed, in wire form; `None` if it is not due, or not made here.
    Renew(Option<Bytes>),
    /// Some of them. At most [`PEERS_MAX`].
    Peers(Vec<PeerAddresses>),
    /// The next chunks of it.
    Pull(Pulled),
}

/// Where a node listens, as another says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerAddresses {
    pub(crate) node: NodeId,
    /// Multiaddrs in binary, without the node's name. At most [`PEER_ADDRESSES_MAX`].
    addresses: Vec<Bytes>,
}

impl PeerAddresses {
    /// A node and the first [`PEER_ADDRESSES_MAX`] of these addresses.
    pub(crate) fn new(node: NodeId, addresses: &[Multiaddr]) -> PeerAddresses {
        let addresses = addresses.iter().take(PEER_ADDRESSES_MAX);
        PeerAddresses {
            node,
            addresses: addresses.map(|address| address.to_vec().into()).collect(),
        }
    }

    /// Those of its addresses at which a node can be, each with the node's name.
    pub(crate) fn multiaddrs(&self) -> impl Iterator<Item = Multiaddr> {
        self.addresses.iter().filter_map(|bytes| {
            let address = Multiaddr::try_from(bytes.to_vec()).ok()?;
            let peer = self.node.peer_id()?;
            let named = format!("{address}/p2p/{peer}").parse().ok()?;
            is_node_address(&named).then_some(named)
        })
    }
}

impl Query {
    pub(crate) fn encode(&self) -> Bytes {
        postcard::to_stdvec(self).expect("plain data").into()
    }

    /// Reads a question; `None` for what is none, or too long a list.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Query> {
        if bytes.len() > REQUEST_LEN_MAX {
            return None;
        }
        let query = postcard::from_bytes(bytes).ok()?;
        match &query {
            Query::Paths { hashes, .. } | Query::Hold { hashes, .. }
                if hashes.len() > HASHES_MAX =>
            {
                None
            }
            Query::Sync(_)
            | Query::Paths { .. }
            | Query::Hold { .. }
            | Query::Renew { .. }
            | Query::Peers
            | Query::Pull(_) => Some(query),
        }
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> Bytes {
        postcard::to_stdvec(self).expect("plain data").into()
    }

    /// Reads an answer; `None` for what is none, or too long a list.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Reply> {
        if bytes.len() > RESPONSE_LEN_MAX {
            return None;
        }
        let reply = postcard::from_bytes(bytes).ok()?;
        let is_long = match &reply {
            Reply::Peers(peers) => {
                let mut lens = peers.iter().map(|peer| peer.addresses.len());
                peers.len() > PEERS_MAX || lens.any(|len| len > PEER_ADDRESSES_MAX)
            }
            Reply::Sync(_)
            | Reply::Paths(_)
            | Reply::Hold { .. }
            | Reply::Renew(_)
            | Reply::Pull(_) => false,
        };
        (!is_long).then_some(reply)
    }
}

/// Most hash parts in one question.
pub(crate) const HASHES_MAX: usize = 128;
/// Most nodes in one answer.
pub(crate) const PEERS_MAX: usize = 64;
/// Most addresses of each: as many as a dialer keeps.
pub(crate) const PEER_ADDRESSES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use attic_p2p::dialer::ADDRESS_LEN_MAX;
    use attic_p2p::identity::Identity;
    use attic_store::NarHash;
    use data_encoding::HEXLOWER;

    use super::*;
    use crate::mesh::pull::PulledChunk;

    #[test]
    fn questions_survive_the_wire_and_long_lists_do_not() {
        let cache = CacheId::from_bytes([1; 16]);
        let hash = StorePathHash::from_bytes([2; 20]);
        for (count, is_read) in [(0, true), (HASHES_MAX, true), (HASHES_MAX + 1, false)] {
            let query = Query::Paths {
                cache,
                hashes: vec![hash; count],
            };
            assert_eq!(Query::decode(&query.encode()), is_read.then_some(query));
        }
        let query = Query::Sync(Bytes::from_static(b"x"));
        assert_eq!(Query::decode(&query.encode()), Some(query));
    }

    /// Bytes that nodes of earlier versions send and understand.
    #[test]
    fn golden_questions_and_answers() {
        let cache = CacheId::from_bytes([1; 16]);
        let hashes = vec![StorePathHash::from_bytes([2; 20])];
        let certificate = Bytes::from_static(b"ab");
        let (one, two, three) = ("01".repeat(16), "02".repeat(20), "03".repeat(32));
        let questions = [
            (Query::Sync(certificate.clone()), "00026162".to_owned()),
            (
                Query::Paths {
                    cache,
                    hashes: hashes.clone(),
                },
                format!("01{one}01{two}"),
            ),
            (Query::Hold { cache, hashes }, format!("02{one}01{two}")),
            (
                Query::Renew {
                    certificate: certificate.clone(),
                },
                "03026162".to_owned(),
            ),
            (Query::Peers, "04".to_owned()),
            (
                Query::Pull(Pull {
                    cache,
                    hash: StorePathHash::from_bytes([2; 20]),
                    nar: NarHash::from_bytes([3; 32]),
                    from: 300,
                }),
                format!("05{one}{two}{three}ac02"),
            ),
        ];
        for (query, golden) in questions {
            let golden = HEXLOWER.decode(golden.as_bytes()).unwrap();
            assert_eq!(query.encode(), golden, "{query:?}");
            assert_eq!(Query::decode(&golden.into()), Some(query));
        }
        let answers = [
            (Reply::Sync(certificate.clone()), "00026162".to_owned()),
            (
                Reply::Paths(vec![None, Some(certificate.clone())]),
                "01020001026162".to_owned(),
            ),
            (Reply::Hold { accepted: 300 }, "02ac02".to_owned()),
            (Reply::Renew(None), "0300".to_owned()),
            (Reply::Renew(Some(certificate)), "0301026162".to_owned()),
            (
                Reply::Peers(vec![peer(&["/ip4/10.0.0.1/tcp/7746"])]),
                format!("0401{three}0108040a000001061e42"),
            ),
            (Reply::Pull(Pulled::Nothing), "0500".to_owned()),
            (
                Reply::Pull(Pulled::Chunks(vec![PulledChunk {
                    raw_len: 300,
                    frame: Bytes::from_static(b"ab"),
                }])),
                "050101ac02026162".to_owned(),
            ),
        ];
        for (reply, golden) in answers {
            let golden = HEXLOWER.decode(golden.as_bytes()).unwrap();
            assert_eq!(reply.encode(), golden, "{reply:?}");
            assert_eq!(Reply::decode(&golden.into()), Some(reply));
        }
    }

    fn peer(addresses: &[&str]) -> PeerAddresses {
        let addresses = addresses.iter().map(|text| text.parse().unwrap());
        let addresses: Vec<Multiaddr> = addresses.collect();
        PeerAddresses::new(NodeId::from_bytes([3; 32]), &addresses)
    }

    #[test]
    fn long_lists_of_peers_and_of_addresses_are_refused() {
        let address = peer(&["/ip4/10.0.0.1/tcp/7746"]).addresses.remove(0);
        for (peers, addresses, is_read) in [
            (0, 0, true),
            (PEERS_MAX, PEER_ADDRESSES_MAX, true),
            (PEERS_MAX + 1, 1, false),
            (1, PEER_ADDRESSES_MAX + 1, false),
        ] {
            let addresses = vec![address.clone(); addresses];
            let node = NodeId::from_bytes([3; 32]);
            let reply = Reply::Peers(vec![PeerAddresses { node, addresses }; peers]);
            assert_eq!(Reply::decode(&reply.encode()), is_read.then_some(reply));
        }
    }

    #[test]
    fn the_longest_list_of_peers_fits_into_an_answer() {
        let address = Bytes::from(vec![0; ADDRESS_LEN_MAX]);
        let peer = PeerAddresses {
            node: NodeId::from_bytes([3; 32]),
            addresses: vec![address; PEER_ADDRESSES_MAX],
        };
        let reply = Reply::Peers(vec![peer; PEERS_MAX]);
        assert!(reply.encode().len() <= RESPONSE_LEN_MAX);
    }

    #[test]
    fn only_addresses_of_nodes_are_read_and_with_the_name() {
        let node = Identity::from_seed([3; 32]).node_id();
        let name = node.peer_id().unwrap();
        let relay = Identity::from_seed([4; 32]).node_id().peer_id().unwrap();
        let circuit = format!("/ip4/10.0.0.1/tcp/1/p2p/{relay}/p2p-circuit");
        let (named, garbage) = (format!("/ip4/10.0.0.1/tcp/1/p2p/{relay}"), &[0xff; 9][..]);
        for (text, is_read) in [
            ("/ip4/10.0.0.1/tcp/7746", true),
            ("/dns/example.org/tcp/1", true),
            (&*circuit, true),
            (&*named, false),
            ("/ip4/10.0.0.1/tcp/0", false),
            ("/ip4/0.0.0.0/tcp/7746", false),
            ("/ip4/10.0.0.1/udp/7746", false),
            ("/memory/7", false),
        ] {
            let peer = PeerAddresses::new(node, &[text.parse().unwrap()]);
            let read: Vec<_> = peer.multiaddrs().map(|read| read.to_string()).collect();
            let wanted = is_read.then(|| format!("{text}/p2p/{name}"));
            assert_eq!(read, Vec::from_iter(wanted));
        }
        let addresses = vec![Bytes::from_static(garbage), Bytes::new()];
        let peer = PeerAddresses { node, addresses };
        assert_eq!(peer.multiaddrs().count(), 0);
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let bytes = Query::Hold {
            cache: CacheId::from_bytes([1; 16]),
            hashes: vec![StorePathHash::from_bytes([2; 20]); 3],
        }
        .encode();
        for len in 0..bytes.len() {
            assert_eq!(Query::decode(&bytes.slice(..len)), None, "{len}");
        }
        for byte in 0..=255 {
            let _ = Query::decode(&Bytes::copy_from_slice(&[byte; 40]));
            let _ = Reply::decode(&Bytes::copy_from_slice(&[byte; 40]));
        }
    }
}

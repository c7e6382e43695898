//! What nodes ask each other in one small message, and the answers.
//!
//! **Shape**: postcard; unknown questions are not answered, which the asker takes for a failure.

use attic_p2p::control::{REQUEST_LEN_MAX, RESPONSE_LEN_MAX};
use attic_p2p::ids::CacheId;
use attic_store::StorePathHash;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

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
            Query::Sync(_) | Query::Paths { .. } | Query::Hold { .. } | Query::Renew { .. } => {
                Some(query)
            }
        }
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> Bytes {
        postcard::to_stdvec(self).expect("plain data").into()
    }

    /// Reads an answer; `None` for what is none.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Reply> {
        if bytes.len() > RESPONSE_LEN_MAX {
            return None;
        }
        postcard::from_bytes(bytes).ok()
    }
}

/// Most hash parts in one question.
pub(crate) const HASHES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

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
        let (one, two) = ("01".repeat(16), "02".repeat(20));
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
        ];
        for (query, golden) in questions {
            let golden = HEXLOWER.decode(golden.as_bytes()).unwrap();
            assert_eq!(query.encode(), golden, "{query:?}");
            assert_eq!(Query::decode(&golden.into()), Some(query));
        }
        let answers = [
            (Reply::Sync(certificate.clone()), "00026162"),
            (
                Reply::Paths(vec![None, Some(certificate.clone())]),
                "01020001026162",
            ),
            (Reply::Hold { accepted: 300 }, "02ac02"),
            (Reply::Renew(None), "0300"),
            (Reply::Renew(Some(certificate)), "0301026162"),
        ];
        for (reply, golden) in answers {
            let golden = HEXLOWER.decode(golden.as_bytes()).unwrap();
            assert_eq!(reply.encode(), golden, "{reply:?}");
            assert_eq!(Reply::decode(&golden.into()), Some(reply));
        }
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

//! How two nodes find out what one of them lacks.
//!
//! State is a union of gap-free logs, so the ends of the logs say everything. A node asks another
//! in three steps, each one request and one response of bounded length:
//!
//! 1. [`Ask::Hello`] with a hash of all its log ends. Equal: done. Otherwise the answer has one
//!    hash for each of 64 buckets of nodes.
//! 2. [`Ask::Tips`] for the buckets that differ: the ends of the logs in them.
//! 3. [`Ask::Pull`] of the segments that are missing, as often as needed.
//!
//! Nodes at equal ends have equal logs, and should have folded equal states. Now and then they compare
//! these as well, by [`Ask::Shards`]; what a difference leads to is said in the replica.
//!
//! Only the asker learns; a node that is asked hello by one that knows other things asks back.
//! Log ends include the hash of the last segment, so that two logs of one node are noticed even
//! when they are of one length.
//!
//! **Shape**: version, then postcard.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::directory::LogTip;
use crate::ids::NodeId;
use crate::segment::SEGMENT_LEN_MAX;

/// Longest request, in bytes.
pub const ASK_LEN_MAX: usize = 64 * 1024;

/// Longest response, in bytes.
pub const ANSWER_LEN_MAX: usize = 512 * 1024;

/// Number of buckets nodes are put in.
pub const BUCKETS: usize = 64;

/// Most ranges of segments in one request.
pub const RANGES_MAX: usize = 1024;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Is there anything to learn?
    Hello {
        /// Of everything the asker has folded, see [`Summary`].
        summary: u64,
        /// Whether the other side may ask back.
        ask_back: bool,
    },
    /// The ends of the logs in these buckets: bit `n` for bucket `n`.
    Tips {
        /// One bit for each bucket.
        buckets: u64,
    },
    /// These segments, as many as fit.
    Pull {
        /// In order of urgency.
        ranges: Vec<Range>,
    },
    /// Digests of the state, [`SHARDS_PER_ASK`] at a time.
    Shards {
        /// Of all log ends. Where they differ there is nothing to compare.
        summary: u64,
        /// What else must be equal, see [`Terms`](crate::directory::Terms).
        terms: u64,
        /// The first shard, a multiple of [`SHARDS_PER_ASK`].
        first: u8,
    },
}

/// Shards of which one request asks the digests.
pub const SHARDS_PER_ASK: u8 = 8;

/// Segments of one log, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Whose log.
    pub node: NodeId,
    /// The first segment wanted. If what counts of the log begins later, the answer begins there.
    pub from: u64,
    /// The last one.
    pub to: u64,
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Ask::Hello`].
    Hello {
        /// The number of the last segment the answerer has of the asker's own log.
        yours: u64,
        /// A hash of each bucket; `None` if there is nothing to learn.
        buckets: Option<Vec<u64>>,
    },
    /// To [`Ask::Tips`].
    Tips {
        /// Ends of logs.
        tips: Vec<TipHint>,
        /// Buckets that did not fit any more: to be asked for again.
        left: u64,
    },
    /// To [`Ask::Pull`]: segments in wire form. Fewer than asked for if they do not fit or are not
    /// there.
    Segments(Vec<Bytes>),
    /// To [`Ask::Shards`]: as many as one request asks for; `None` if the two states cannot be
    /// compared now.
    Shards(Option<Vec<u64>>),
}

/// The end of a log, short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TipHint {
    /// Whose log.
    pub node: NodeId,
    /// Number of its last segment.
    pub seq: u64,
    /// Beginning of that segment's id: equal numbers with different ones are a fork.
    pub id: [u8; 8],
}

impl From<&LogTip> for TipHint {
    fn from(tip: &LogTip) -> TipHint {
        let id = tip.id.as_bytes().first_chunk().expect("8 of 32 bytes");
        TipHint {
            node: tip.node,
            seq: tip.seq,
            id: *id,
        }
    }
}

/// Hashes of all log ends, by bucket and together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Of all buckets.
    pub all: u64,
    /// Of each one.
    pub buckets: [u64; BUCKETS],
}

impl Summary {
    /// Of these log ends, which must be in ascending order of nodes.
    pub fn of(tips: &[LogTip]) -> Summary {
        let mut hashers = vec![blake3::Hasher::new(); BUCKETS];
        for tip in tips {
            let hasher = &mut hashers[bucket(&tip.node)];
            hasher.update(tip.node.as_bytes());
            hasher.update(&tip.seq.to_le_bytes());
            hasher.update(tip.id.as_bytes());
        }
        let mut buckets = [0; BUCKETS];
        let mut all = blake3::Hasher::new();
        for (sum, hasher) in buckets.iter_mut().zip(&hashers) {
            *sum = first_u64(hasher);
            all.update(&sum.to_le_bytes());
        }
        let all = first_u64(&all);
        Summary { all, buckets }
    }

    /// The buckets that `others` says are different, as [`Ask::Tips`] wants them.
    pub fn differing(&self, others: &[u64]) -> u64 {
        let pairs = self.buckets.iter().zip(others).enumerate();
        let differing = pairs.filter(|(_, (mine, other))| mine != other);
        differing.fold(0, |bits, (bucket, _)| bits | 1 << bucket)
    }
}

/// The ends of the logs in `buckets`, as many as a response takes, and the buckets left over.
pub fn tips_in(tips: &[LogTip], buckets: u64) -> (Vec<TipHint>, u64) {
    let mut hints = Vec::new();
    let mut left = 0;
    for number in 0..BUCKETS {
        if buckets & 1 << number == 0 {
            continue;
        }
        let of_bucket = tips.iter().filter(|tip| bucket(&tip.node) == number);
        let before = hints.len();
        hints.extend(of_bucket.map(TipHint::from));
        // A single bucket always fits: there are at most 2^16 nodes, 1,024 to a bucket.
        if before > 0 && hints.len() > TIPS_MAX {
            hints.truncate(before);
            left |= 1 << number;
        }
    }
    hints.truncate(TIPS_MAX);
    (hints, left)
}

/// The bucket of the log of `node`, as [`Ask::Tips`] wants it.
pub fn bucket_of(node: &NodeId) -> u64 {
    1 << bucket(node)
}

fn bucket(node: &NodeId) -> usize {
    // The last byte of a key has a sign bit in it; the first is uniform.
    usize::from(node.as_bytes()[0]) % BUCKETS
}

fn first_u64(hasher: &blake3::Hasher) -> u64 {
    let hash = hasher.finalize();
    let first = hash.as_bytes().first_chunk().expect("8 of 32 bytes");
    u64::from_le_bytes(*first)
}

impl Ask {
    /// The wire form.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        out.extend(postcard::to_stdvec(self).expect("plain data"));
        out.into()
    }

    /// Reads a request.
    ///
    /// **Errors**: every [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Ask, MessageError> {
        if bytes.len() > ASK_LEN_MAX {
            return Err(MessageError::Length);
        }
        let (ask, _) = postcard::take_from_bytes(versioned(bytes)?)?;
        match &ask {
            Ask::Pull { ranges } if ranges.len() > RANGES_MAX => Err(MessageError::Length),
            Ask::Shards { first, .. } if first % SHARDS_PER_ASK != 0 => {
                Err(MessageError::Malformed)
            }
            Ask::Pull { .. } | Ask::Hello { .. } | Ask::Tips { .. } | Ask::Shards { .. } => Ok(ask),
        }
    }
}

/// [`Answer`] without the segments, which follow it.
#[derive(Serialize, Deserialize)]
enum AnswerHead {
    Hello {
        yours: u64,
        buckets: Option<Vec<u64>>,
    },
    Tips {
        tips: Vec<TipHint>,
        left: u64,
    },
    Segments {
        lengths: Vec<u16>,
    },
    Shards {
        digests: Option<Vec<u64>>,
    },
}

impl Answer {
    /// The wire form.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        let head = match self {
            Answer::Hello { yours, buckets } => AnswerHead::Hello {
                yours: *yours,
                buckets: buckets.clone(),
            },
            Answer::Tips { tips, left } => AnswerHead::Tips {
                tips: tips.clone(),
                left: *left,
            },
            Answer::Segments(segments) => AnswerHead::Segments {
                lengths: segments
                    .iter()
                    .map(|segment| segment.len() as u16)
                    .collect(),
            },
            Answer::Shards(digests) => AnswerHead::Shards {
                digests: digests.clone(),
            },
        };
        out.extend(postcard::to_stdvec(&head).expect("plain data"));
        if let Answer::Segments(segments) = self {
            segments
                .iter()
                .for_each(|segment| out.extend_from_slice(segment));
        }
        out.into()
    }

    /// Reads a response; segments are slices of it.
    ///
    /// **Errors**: every [`MessageError`].
    pub fn decode(bytes: &Bytes) -> Result<Answer, MessageError> {
        if bytes.len() > ANSWER_LEN_MAX {
            return Err(MessageError::Length);
        }
        let (head, rest) = postcard::take_from_bytes(versioned(bytes)?)?;
        Ok(match head {
            AnswerHead::Hello { yours, buckets } => match buckets {
                Some(buckets) if buckets.len() != BUCKETS => return Err(MessageError::Malformed),
                buckets => Answer::Hello { yours, buckets },
            },
            AnswerHead::Tips { tips, left } => Answer::Tips { tips, left },
            AnswerHead::Shards { digests } => match digests {
                Some(digests) if digests.len() != usize::from(SHARDS_PER_ASK) => {
                    return Err(MessageError::Malformed);
                }
                digests => Answer::Shards(digests),
            },
            AnswerHead::Segments { lengths } => {
                let at = bytes.len() - rest.len();
                Answer::Segments(slices(bytes.slice(at..), &lengths)?)
            }
        })
    }
}

fn slices(mut bytes: Bytes, lengths: &[u16]) -> Result<Vec<Bytes>, MessageError> {
    let mut segments = Vec::new();
    for length in lengths {
        let length = usize::from(*length);
        if length > SEGMENT_LEN_MAX || length > bytes.len() {
            return Err(MessageError::Length);
        }
        segments.push(bytes.split_to(length));
    }
    Ok(segments)
}

fn versioned(bytes: &[u8]) -> Result<&[u8], MessageError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((version, _)) => Err(MessageError::Version(*version)),
        None => Err(MessageError::Length),
    }
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Empty, or longer than its bound.
    #[error("message length out of bounds")]
    Length,
    /// Of a version this one does not know.
    #[error("message of version {0}")]
    Version(u8),
    /// Not the form of a message.
    #[error("message is malformed")]
    Malformed,
}

impl From<postcard::Error> for MessageError {
    fn from(_: postcard::Error) -> MessageError {
        MessageError::Malformed
    }
}

const VERSION: u8 = 1;

/// 50 bytes each at most, so that they fit a response.
const TIPS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::ClusterId;
    use crate::segment::SegmentId;

    fn tip(node: u16, seq: u64) -> LogTip {
        let id = SegmentId::before_first(&ClusterId::from_bytes([seq as u8; 16]));
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&node.to_be_bytes());
        let node = NodeId::from_bytes(bytes);
        LogTip { node, seq, id }
    }

    #[test]
    fn messages_survive_the_wire() {
        let node = NodeId::from_bytes([1; 32]);
        for ask in [
            Ask::Hello {
                summary: 7,
                ask_back: true,
            },
            Ask::Tips { buckets: 5 },
            Ask::Pull {
                ranges: vec![Range {
                    node,
                    from: 1,
                    to: u64::MAX,
                }],
            },
            Ask::Shards {
                summary: 1,
                terms: 2,
                first: 248,
            },
        ] {
            assert_eq!(Ask::decode(&ask.encode()), Ok(ask));
        }
        for answer in [
            Answer::Hello {
                yours: 3,
                buckets: Some(vec![1; BUCKETS]),
            },
            Answer::Hello {
                yours: 3,
                buckets: None,
            },
            Answer::Tips {
                tips: vec![TipHint::from(&tip(1, 2))],
                left: 9,
            },
            Answer::Segments(vec![Bytes::from_static(b"abc"), Bytes::new()]),
            Answer::Shards(None),
            Answer::Shards(Some(vec![u64::MAX; SHARDS_PER_ASK.into()])),
        ] {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
    }

    #[test]
    fn a_difference_shows_in_its_bucket_alone() {
        let mut tips: Vec<LogTip> = (0..1000).map(|node| tip(node * 64, 1)).collect();
        let before = Summary::of(&tips);
        assert_eq!(before.differing(&Summary::of(&tips).buckets), 0);
        tips[500].seq += 1;
        let after = Summary::of(&tips);
        assert_ne!(before.all, after.all);
        let differing = before.differing(&after.buckets);
        assert_eq!(differing.count_ones(), 1);
        let (hints, left) = tips_in(&tips, differing);
        assert!(hints.contains(&TipHint::from(&tips[500])));
        assert_eq!(left, 0);
    }

    #[test]
    fn to_find_one_difference_among_200_nodes_takes_less_than_2700_bytes() {
        let tips: Vec<LogTip> = (0..200).map(|node| tip(node * 327, 1_000_000)).collect();
        let mut other = tips.clone();
        other[7].seq += 1;
        let (mine, theirs) = (Summary::of(&tips), Summary::of(&other));
        let hello = Ask::Hello {
            summary: mine.all,
            ask_back: true,
        };
        let buckets = Some(theirs.buckets.to_vec());
        let welcome = Answer::Hello { yours: 1, buckets };
        let buckets = mine.differing(&theirs.buckets);
        let (tips, left) = tips_in(&other, buckets);
        let answer = Answer::Tips { tips, left };
        let asked = hello.encode().len() + Ask::Tips { buckets }.encode().len();
        let answered = welcome.encode().len() + answer.encode().len();
        assert!(asked + answered <= 2700, "{} bytes", asked + answered);
    }

    #[test]
    fn many_log_ends_come_in_portions() {
        let tips: Vec<LogTip> = (0..u16::MAX).map(|node| tip(node, 1 << 31)).collect();
        let (mut buckets, mut seen) = (u64::MAX, 0);
        while buckets != 0 {
            let (tips, left) = tips_in(&tips, buckets);
            seen += tips.len();
            assert!(left.count_ones() < buckets.count_ones());
            let answer = Answer::Tips { tips, left };
            assert!(answer.encode().len() <= ANSWER_LEN_MAX);
            buckets = left;
        }
        assert_eq!(seen, tips.len());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in 0u8..5, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = Bytes::from([&[VERSION, kind][..], &bytes].concat());
            let _ = Ask::decode(&bytes);
            let _ = Answer::decode(&bytes);
        }
    }
}

//! Records: what nodes say in their logs.
//!
//! **Shape**: `kind (1 byte) ‖ length (varint) ‖ body`. A body is postcard, except that bytes after
//! the value are allowed: they are fields of a newer version. A record is kept and forwarded in the
//! bytes its author wrote; one of an unknown kind, or that cannot be read, is kept all the same and
//! means nothing here.
//!
//! A record alone proves nothing. Whether it counts is for the [`Directory`] to decide.
//!
//! [`Directory`]: crate::directory::Directory

use attic_store::{NarHash, StorePath};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use crate::record::cache::{CacheConfig, CacheGenesis, Grant, Right};
pub use crate::record::path::{PathRecord, PathRecordError};

use crate::ids::{CacheId, Dot, NodeId};
use crate::membership::certificate::Certificate;
use crate::membership::revocation::Revocation;
use crate::membership::time::UnixTime;
use crate::segment::ForkProof;
use crate::signed::{Signed, SignedError, Statement};

mod cache;
mod path;

/// Longest body of a record, in bytes; with it, its head and a signature a segment stays within
/// its own bound.
pub const RECORD_LEN_MAX: usize = 60 * 1024;

/// One thing a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A node is a member. Every log begins with its author's own.
    Member(Signed<Certificate>),
    /// A member, an invitation or a cache is none any more.
    Revoke(Signed<Revocation>),
    /// A cache is like this.
    Cache(Signed<CacheConfig>),
    /// A node may read, or sign for, a cache.
    Grant(Signed<Grant>),
    /// A cache has this path. An author's newer one replaces its older one of the same path.
    Path(PathRecord),
    /// The author holds these NARs completely.
    Hold(Vec<NarTag>),
    /// The author holds these NARs no longer.
    Release(Vec<NarTag>),
    /// Paths that were read.
    Touch(Touch),
    /// A path is to be kept.
    Pin(Pin),
    /// Pins that are withdrawn.
    Unpin(Vec<Dot>),
    /// Paths that are removed: exactly these records, which the author has seen.
    Del(Del),
    /// A record of a private cache, for those who have its key.
    Sealed(SealedRecord),
    /// A node wrote two logs.
    Fork(ForkProof),
    /// In a checkpoint: logs its author had folded up to these segments when it wrote it.
    After(Vec<Frontier>),
    /// The author has left the cluster, and is no member until it shows a certificate again after
    /// this.
    Left(Left),
    /// The cluster's bucket has what these path records need, for good: it survives the loss of every
    /// node. Said by a keeper, which looked.
    Durable(Vec<Dot>),
    /// A record of a newer version, kept as it is.
    Unknown {
        /// Its kind.
        kind: u8,
        /// Its body.
        body: Box<[u8]>,
    },
}

/// Names a NAR among few: the first 8 bytes of its hash.
///
/// Two NARs of one tag are possible for who tries; a tag is a hint where to ask, never a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NarTag([u8; 8]);

impl NarTag {
    /// The tag of the NAR with this hash.
    pub fn of(hash: &NarHash) -> NarTag {
        let prefix = hash.as_bytes().first_chunk().expect("8 of 32 bytes");
        NarTag(*prefix)
    }

    /// The tag with these bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> NarTag {
        NarTag(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

/// Paths that were read on one day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// Days since 1970, UTC.
    pub day: u32,
    /// First 8 bytes of the hash parts, as numbers.
    pub prefixes: Vec<u64>,
}

/// That a member left. Of whom: of the author, and nobody else can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// When, for people. Decides nothing.
    pub at: UnixTime,
}

/// A path to be kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Where.
    pub cache: CacheId,
    /// What people call it.
    pub name: String,
    /// What is kept, with all it refers to.
    pub path: StorePath,
    /// How many of the newest pins of this name stay.
    pub keep: u32,
}

/// Removed paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Del {
    /// The records that are removed.
    pub dots: Vec<Dot>,
    /// Why, for people.
    pub reason: DelReason,
}

/// Why paths were removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DelReason {
    /// Older than the cache keeps.
    Expired,
    /// Somebody asked.
    Removed,
    /// Something is wrong with it.
    Quarantine,
}

/// A record of a private cache. What is inside is known to who has the key of `epoch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedRecord {
    /// The cache whose key opens it.
    pub cache: CacheId,
    /// Which key.
    pub epoch: u32,
    /// Differs for every record under one key.
    pub nonce: [u8; 24],
    /// The record in its wire form, encrypted.
    pub ciphertext: Vec<u8>,
}

/// How far a log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frontier {
    /// Whose log.
    pub node: NodeId,
    /// Number of its last segment.
    pub seq: u64,
}

/// A record in the bytes its author wrote. Not yet looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRecord<'a> {
    /// What the body is.
    pub kind: u8,
    /// At most [`RECORD_LEN_MAX`] bytes.
    pub body: &'a [u8],
}

impl<'a> RawRecord<'a> {
    /// Reads a record from the front of `bytes`; what follows it is returned.
    ///
    /// **Errors**: [`RecordError::Length`] and [`RecordError::Malformed`].
    pub fn take(bytes: &'a [u8]) -> Result<(RawRecord<'a>, &'a [u8]), RecordError> {
        let ((kind, body), rest) = postcard::take_from_bytes::<(u8, &[u8])>(bytes)?;
        if body.len() > RECORD_LEN_MAX {
            return Err(RecordError::Length);
        }
        Ok((RawRecord { kind, body }, rest))
    }

    /// What it says; [`Record::Unknown`] when this version cannot tell.
    pub fn read(&self) -> Record {
        read_known(self.kind, self.body).unwrap_or_else(|_| Record::Unknown {
            kind: self.kind,
            body: self.body.into(),
        })
    }

    /// Its wire form.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(&(self.kind, Bytes(self.body))).expect("plain data")
    }
}

impl Record {
    /// The wire form.
    ///
    /// **Errors**: [`RecordError::Length`] when it does not fit a segment.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let body = self.body();
        if body.len() > RECORD_LEN_MAX {
            return Err(RecordError::Length);
        }
        let kind = self.kind();
        Ok(RawRecord { kind, body: &body }.encode())
    }

    /// Reads one record that fills `bytes`.
    ///
    /// **Errors**: [`RecordError::Length`] and [`RecordError::Malformed`]; a body that cannot be
    /// read is none, see [`RawRecord::read`].
    pub fn decode(bytes: &[u8]) -> Result<Record, RecordError> {
        let (raw, rest) = RawRecord::take(bytes)?;
        if !rest.is_empty() {
            return Err(RecordError::Malformed);
        }
        Ok(raw.read())
    }

    /// The number of its kind.
    pub fn kind(&self) -> u8 {
        match self {
            Record::Member(_) => kind::MEMBER,
            Record::Revoke(_) => kind::REVOKE,
            Record::Cache(_) => kind::CACHE,
            Record::Grant(_) => kind::GRANT,
            Record::Path(_) => kind::PATH,
            Record::Hold(_) => kind::HOLD,
            Record::Release(_) => kind::RELEASE,
            Record::Touch(_) => kind::TOUCH,
            Record::Pin(_) => kind::PIN,
            Record::Unpin(_) => kind::UNPIN,
            Record::Del(_) => kind::DEL,
            Record::Sealed(_) => kind::SEALED,
            Record::Fork(_) => kind::FORK,
            Record::After(_) => kind::AFTER,
            Record::Left(_) => kind::LEFT,
            Record::Durable(_) => kind::DURABLE,
            Record::Unknown { kind, .. } => *kind,
        }
    }

    fn body(&self) -> Vec<u8> {
        match self {
            Record::Member(signed) => signed.encode(),
            Record::Revoke(signed) => signed.encode(),
            Record::Cache(signed) => signed.encode(),
            Record::Grant(signed) => signed.encode(),
            Record::Path(path) => path.encode(),
            Record::Hold(tags) | Record::Release(tags) => plain(tags),
            Record::Touch(touch) => plain(touch),
            Record::Pin(pin) => plain(pin),
            Record::Unpin(dots) | Record::Durable(dots) => plain(&group(dots)),
            Record::Del(del) => plain(&(group(&del.dots), del.reason)),
            Record::Sealed(sealed) => plain(sealed),
            Record::Fork(proof) => plain(proof),
            Record::After(frontiers) => plain(frontiers),
            Record::Left(left) => plain(left),
            Record::Unknown { body, .. } => body.to_vec(),
        }
    }
}

fn read_known(kind: u8, body: &[u8]) -> Result<Record, RecordError> {
    Ok(match kind {
        kind::MEMBER => Record::Member(signed(body)?),
        kind::REVOKE => Record::Revoke(signed(body)?),
        kind::CACHE => Record::Cache(signed(body)?),
        kind::GRANT => Record::Grant(signed(body)?),
        kind::PATH => Record::Path(PathRecord::decode(body)?),
        kind::HOLD => Record::Hold(read(body)?),
        kind::RELEASE => Record::Release(read(body)?),
        kind::TOUCH => Record::Touch(read(body)?),
        kind::PIN => Record::Pin(read_pin(body)?),
        kind::UNPIN => Record::Unpin(ungroup(read(body)?)),
        kind::DEL => {
            let (dots, reason) = read(body)?;
            let dots = ungroup(dots);
            Record::Del(Del { dots, reason })
        }
        kind::SEALED => Record::Sealed(read(body)?),
        kind::FORK => Record::Fork(read(body)?),
        kind::AFTER => Record::After(read(body)?),
        kind::LEFT => Record::Left(read(body)?),
        kind::DURABLE => Record::Durable(ungroup(read(body)?)),
        _ => return Err(RecordError::Malformed),
    })
}

fn read_pin(body: &[u8]) -> Result<Pin, RecordError> {
    let pin: Pin = read(body)?;
    if pin.name.len() > PIN_NAME_LEN_MAX {
        return Err(RecordError::Length);
    }
    Ok(pin)
}

fn signed<T: Statement>(body: &[u8]) -> Result<Signed<T>, RecordError> {
    Signed::decode(body).map_err(RecordError::Signed)
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, RecordError> {
    Ok(postcard::take_from_bytes(body)?.0)
}

fn plain(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("records are plain data")
}

/// Dots on the wire: each node's id once.
type Groups = Vec<(NodeId, Vec<(u64, u16)>)>;

fn group(dots: &[Dot]) -> Groups {
    let mut groups = Groups::new();
    for dot in dots {
        let place = (dot.seq, dot.index);
        match groups.last_mut() {
            Some((node, places)) if *node == dot.node => places.push(place),
            Some(_) | None => groups.push((dot.node, vec![place])),
        }
    }
    groups
}

fn ungroup(groups: Groups) -> Vec<Dot> {
    let dots = |(node, places): (NodeId, Vec<(u64, u16)>)| {
        let dot = move |(seq, index)| Dot { node, seq, index };
        places.into_iter().map(dot)
    };
    groups.into_iter().flat_map(dots).collect()
}

/// Serialises as bytes, not as a sequence of numbers.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Why there is no record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Longer than a record may be.
    #[error("record is longer than {RECORD_LEN_MAX} bytes")]
    Length,
    /// Not the form of a record.
    #[error("record is malformed")]
    Malformed,
    /// A signed statement inside cannot be read.
    #[error("statement in record: {0}")]
    Signed(SignedError),
    /// A path inside cannot be read.
    #[error("path in record: {0}")]
    Path(#[from] PathRecordError),
}

impl From<postcard::Error> for RecordError {
    fn from(_: postcard::Error) -> RecordError {
        RecordError::Malformed
    }
}

/// Numbers of the kinds; never reused.
pub(crate) mod kind {
    pub(crate) const MEMBER: u8 = 1;
    pub(crate) const REVOKE: u8 = 2;
    pub(crate) const CACHE: u8 = 3;
    pub(crate) const GRANT: u8 = 4;
    pub(crate) const PATH: u8 = 5;
    pub(crate) const HOLD: u8 = 6;
    pub(crate) const RELEASE: u8 = 7;
    pub(crate) const TOUCH: u8 = 8;
    pub(crate) const PIN: u8 = 9;
    pub(crate) const UNPIN: u8 = 10;
    pub(crate) const DEL: u8 = 11;
    pub(crate) const SEALED: u8 = 12;
    pub(crate) const FORK: u8 = 13;
    pub(crate) const AFTER: u8 = 14;
    pub(crate) const LEFT: u8 = 15;
    pub(crate) const DURABLE: u8 = 16;
}

const PIN_NAME_LEN_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dot(node: u8, seq: u64, index: u16) -> Dot {
        let node = NodeId::from_bytes([node; 32]);
        Dot { node, seq, index }
    }

    #[test]
    fn records_survive_the_wire() {
        let tags = vec![NarTag([1; 8]), NarTag([2; 8])];
        let dots = vec![dot(1, 2, 3), dot(1, 900, 0), dot(2, 1, 1)];
        let reason = DelReason::Removed;
        let frontier = Frontier {
            node: NodeId::from_bytes([3; 32]),
            seq: 77,
        };
        for record in [
            Record::Hold(tags.clone()),
            Record::Release(tags),
            Record::Touch(Touch {
                day: 20_000,
                prefixes: vec![1, u64::MAX],
            }),
            Record::Unpin(dots.clone()),
            Record::Durable(dots.clone()),
            Record::Del(Del { dots, reason }),
            Record::Sealed(SealedRecord {
                cache: CacheId::from_bytes([4; 16]),
                epoch: 1,
                nonce: [5; 24],
                ciphertext: vec![6; 100],
            }),
            Record::After(vec![frontier]),
            Record::Left(Left { at: UnixTime(7) }),
            Record::Unknown {
                kind: 200,
                body: [1, 2, 3].into(),
            },
        ] {
            let encoded = record.encode().unwrap();
            assert_eq!(Record::decode(&encoded), Ok(record));
        }
    }

    #[test]
    fn a_removed_dot_costs_few_bytes() {
        let dots = (0..100).map(|seq| dot(1, 1000 + seq, 3)).collect();
        let reason = DelReason::Expired;
        let encoded = Record::Del(Del { dots, reason }).encode().unwrap();
        assert!(encoded.len() < 100 * 4 + 50, "{}", encoded.len());
    }

    #[test]
    fn a_body_of_a_known_kind_that_cannot_be_read_is_kept() {
        let body = [0xff; 7];
        let raw = RawRecord {
            kind: kind::PATH,
            body: &body,
        };
        let record = Record::decode(&raw.encode()).unwrap();
        assert_eq!(record.kind(), kind::PATH);
        assert_eq!(record.encode().unwrap(), raw.encode());
    }

    #[test]
    fn length_is_bounded_before_anything_is_kept() {
        let body = vec![0; RECORD_LEN_MAX + 1];
        let raw = RawRecord {
            kind: 99,
            body: &body,
        };
        assert_eq!(RawRecord::take(&raw.encode()), Err(RecordError::Length));
        let kind = 99;
        let body = body.into();
        let record = Record::Unknown { kind, body };
        assert_eq!(record.encode(), Err(RecordError::Length));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in 0u8..20, body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let raw = RawRecord { kind, body: &body };
            let record = Record::decode(&raw.encode()).unwrap();
            prop_assert_eq!(record.kind(), kind);
            let _ = Record::decode(&body);
        }
    }
}

//! Segments: what logs are made of.
//!
//! A segment is a short signed head and a body of records that the head names by hash. The
//! signature thereby covers everything, while two heads alone, a few hundred bytes, prove that a
//! node wrote two different logs ([`ForkProof`]).
//!
//! **Shape**: `length of the signed head (u16, big endian) ‖ signed head ‖ body`. The body of an
//! append is records end to end; that of a checkpoint has before each record the place it had
//! when it was first said: `seq (varint) ‖ index (varint)`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{ClusterId, Dot, NodeId};
use crate::record::{RawRecord, RecordError};
use crate::signed::{Signed, SignedError, Signer, Statement};

/// Longest encoding of a segment, in bytes. Few are nearly as long: those with one long record.
pub const SEGMENT_LEN_MAX: usize = 63 * 1024;

/// Most bytes of records in one segment that this version writes.
pub const BODY_LEN_MAX: usize = SEGMENT_LEN_MAX - 512;

/// Most segments of one checkpoint: 1 GiB of records.
pub const PARTS_MAX: u32 = 1 << 16;

/// Names a segment: BLAKE3 of its head.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct SegmentId([u8; 32]);

impl SegmentId {
    /// What the first segment of every log in `cluster` names as its predecessor.
    pub fn before_first(cluster: &ClusterId) -> SegmentId {
        SegmentId(*blake3::hash(cluster.as_bytes()).as_bytes())
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn of(head: &Signed<SegmentHead>) -> SegmentId {
        // Without the signature: one statement signed twice is one segment.
        let encoded = head.encode();
        let (_, statement) = encoded.split_at(SIGNATURE_LEN.min(encoded.len()));
        SegmentId(*blake3::hash(statement).as_bytes())
    }
}

/// What a segment says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHead {
    /// Of the form of the segment.
    pub version: u8,
    /// Where the log counts.
    pub cluster: ClusterId,
    /// Whose log it is.
    pub node: NodeId,
    /// Number of the segment, from 1, without gaps.
    pub seq: u64,
    /// The segment before it.
    pub prev: SegmentId,
    /// Hybrid logical clock, in milliseconds: never less than in the segment before. For people.
    pub hlc: u64,
    /// What the records mean.
    pub kind: SegmentKind,
    /// BLAKE3 of the body.
    pub body: [u8; 32],
}

/// What the records of a segment mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SegmentKind {
    /// They are new.
    Append,
    /// They restate, with all other parts of the same checkpoint, whatever is still valid of the
    /// log before the first part. Nothing else of it counts once the last part is there.
    Checkpoint {
        /// Position of this part, from 0. Parts follow each other without other segments between.
        part: u32,
        /// How many there are.
        parts: u32,
    },
}

impl Statement for SegmentHead {
    const DOMAIN: &'static str = "attic-node segment 1";
    const LEN_MAX: usize = 448;
}

/// A segment that has the right form. Whether its author signed it: [`Segment::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    head: Signed<SegmentHead>,
    id: SegmentId,
    bytes: Bytes,
    body_at: usize,
}

/// A record and the place where it was first said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Number of the segment. In a checkpoint 0 means: said by the checkpoint itself.
    pub seq: u64,
    /// Position in it.
    pub index: u16,
    /// The record.
    pub record: RawRecord<'a>,
}

/// Where a segment goes in its author's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where the log counts.
    pub cluster: ClusterId,
    /// Number of the segment.
    pub seq: u64,
    /// The segment before it.
    pub prev: SegmentId,
    /// Hybrid logical clock, milliseconds.
    pub hlc: u64,
}

impl Segment {
    /// Signs new records, given in wire form, end to end.
    ///
    /// **Errors**: [`SegmentError::Length`] and [`SegmentError::Record`] when `body` is not a body.
    pub fn append(
        signer: &impl Signer,
        place: Place,
        body: &[u8],
    ) -> Result<Segment, SegmentError> {
        Segment::write(signer, place, SegmentKind::Append, body)
    }

    /// Signs a part of a checkpoint; `body` as [`Segment::restate`] writes it.
    ///
    /// **Errors**: as [`Segment::append`], and [`SegmentError::Part`].
    pub fn checkpoint(
        signer: &impl Signer,
        place: Place,
        (part, parts): (u32, u32),
        body: &[u8],
    ) -> Result<Segment, SegmentError> {
        Segment::write(signer, place, SegmentKind::Checkpoint { part, parts }, body)
    }

    /// A record as the body of a checkpoint has it: first said at `seq` and `index`.
    pub fn restate(seq: u64, index: u16, record: &[u8]) -> Vec<u8> {
        let mut out = postcard::to_stdvec(&(seq, index)).expect("plain data");
        out.extend_from_slice(record);
        out
    }

    fn write(
        signer: &impl Signer,
        place: Place,
        kind: SegmentKind,
        body: &[u8],
    ) -> Result<Segment, SegmentError> {
        let head = SegmentHead {
            version: VERSION,
            cluster: place.cluster,
            node: signer.public(),
            seq: place.seq,
            prev: place.prev,
            hlc: place.hlc,
            kind,
            body: *blake3::hash(body).as_bytes(),
        };
        let head = Signed::new(head, signer).encode();
        let head_len = u16::try_from(head.len()).map_err(|_| SegmentError::Length)?;
        let bytes = [&head_len.to_be_bytes()[..], &head, body].concat();
        Segment::decode(bytes.into())
    }

    /// Reads a segment and checks its form, hash of the body included. No signature is verified.
    ///
    /// Nothing is copied.
    ///
    /// **Errors**: any [`SegmentError`] but [`SegmentError::Signature`].
    pub fn decode(bytes: Bytes) -> Result<Segment, SegmentError> {
        if bytes.len() > SEGMENT_LEN_MAX {
            return Err(SegmentError::Length);
        }
        let (head_len, rest) = bytes.split_first_chunk().ok_or(SegmentError::Length)?;
        let head_len = usize::from(u16::from_be_bytes(*head_len));
        let (head, body) = rest
            .split_at_checked(head_len)
            .ok_or(SegmentError::Length)?;
        let head = Signed::<SegmentHead>::decode(head).map_err(SegmentError::Head)?;
        check_head(head.value())?;
        if head.value().body != *blake3::hash(body).as_bytes() {
            return Err(SegmentError::Body);
        }
        let id = SegmentId::of(&head);
        let body_at = bytes.len() - body.len();
        let segment = Segment {
            head,
            id,
            bytes,
            body_at,
        };
        check_entries(&segment)?;
        Ok(segment)
    }

    /// **Errors**: [`SegmentError::Signature`] unless the author it names signed it.
    pub fn verify(&self) -> Result<(), SegmentError> {
        let author = &self.head.value().node;
        let outcome = self.head.verify(author);
        outcome.map(drop).map_err(|_| SegmentError::Signature)
    }

    /// What it says about itself.
    pub fn head(&self) -> &SegmentHead {
        self.head.value()
    }

    /// The head with its signature.
    pub fn signed_head(&self) -> &Signed<SegmentHead> {
        &self.head
    }

    /// Its name.
    pub fn id(&self) -> SegmentId {
        self.id
    }

    /// Its encoding.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Its records, in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        // The form was checked when it was read, so no error is hidden here.
        self.checked_entries().map_while(Result::ok)
    }

    fn checked_entries(&self) -> impl Iterator<Item = Result<Entry<'_>, RecordError>> {
        let (seq, kind) = (self.head().seq, self.head().kind);
        let mut rest = &self.bytes[self.body_at..];
        let mut next_index = Some(0u16);
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let entry = take_entry(rest, kind, seq, next_index);
            let (entry, after) = match entry {
                Ok(taken) => taken,
                Err(error) => {
                    rest = &[];
                    return Some(Err(error));
                }
            };
            rest = after;
            next_index = next_index.and_then(|index| index.checked_add(1));
            Some(Ok(entry))
        })
    }
}

fn take_entry(
    bytes: &[u8],
    kind: SegmentKind,
    seq: u64,
    index: Option<u16>,
) -> Result<(Entry<'_>, &[u8]), RecordError> {
    let ((seq, index), bytes) = match kind {
        SegmentKind::Append => ((seq, index.ok_or(RecordError::Length)?), bytes),
        SegmentKind::Checkpoint { .. } => postcard::take_from_bytes::<(u64, u16)>(bytes)?,
    };
    let (record, rest) = RawRecord::take(bytes)?;
    Ok((Entry { seq, index, record }, rest))
}

fn check_head(head: &SegmentHead) -> Result<(), SegmentError> {
    if head.version != VERSION {
        return Err(SegmentError::Version(head.version));
    }
    // Indexes keep 32 bits of it.
    if head.seq == 0 || head.seq > u64::from(u32::MAX) {
        return Err(SegmentError::Seq(head.seq));
    }
    match head.kind {
        SegmentKind::Append => Ok(()),
        SegmentKind::Checkpoint { part, parts }
            if part < parts && parts <= PARTS_MAX && u64::from(part) < head.seq =>
        {
            Ok(())
        }
        SegmentKind::Checkpoint { .. } => Err(SegmentError::Part),
    }
}

fn check_entries(segment: &Segment) -> Result<(), SegmentError> {
    for entry in segment.checked_entries() {
        entry.map_err(SegmentError::Record)?;
    }
    Ok(())
}

/// Two signed heads that no honest log can both have.
///
/// Either two different segments of one number, or a segment and another that names a different
/// one as its predecessor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkProof {
    first: Signed<SegmentHead>,
    second: Signed<SegmentHead>,
}

impl ForkProof {
    /// The proof in two segments of one author, if they are one.
    pub fn between(one: &Segment, other: &Segment) -> Option<ForkProof> {
        let mut heads = [one.signed_head(), other.signed_head()];
        heads.sort_by_key(|head| (head.value().seq, SegmentId::of(head)));
        let proof = ForkProof {
            first: heads[0].clone(),
            second: heads[1].clone(),
        };
        proof.contradicts().then_some(proof)
    }

    /// Who forked, if the proof holds in `cluster`.
    pub fn culprit(&self, cluster: &ClusterId) -> Option<NodeId> {
        let head = self.first.value();
        let holds = head.cluster == *cluster
            && self.contradicts()
            && self.first.verify(&head.node).is_ok()
            && self.second.verify(&head.node).is_ok();
        holds.then_some(head.node)
    }

    fn contradicts(&self) -> bool {
        let (one, two) = (self.first.value(), self.second.value());
        let first_id = SegmentId::of(&self.first);
        let same_log = one.node == two.node && one.cluster == two.cluster;
        let same_place = one.seq == two.seq && first_id != SegmentId::of(&self.second);
        let adjacent = one.seq.checked_add(1) == Some(two.seq) && two.prev != first_id;
        same_log && (same_place || adjacent)
    }
}

impl Entry<'_> {
    /// The name of the record, in the log of `node`.
    pub fn dot(&self, node: NodeId) -> Dot {
        Dot {
            node,
            seq: self.seq,
            index: self.index,
        }
    }
}

/// Why bytes are no segment.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SegmentError {
    /// Too short or longer than [`SEGMENT_LEN_MAX`].
    #[error("length out of bounds")]
    Length,
    /// The head cannot be read.
    #[error("head: {0}")]
    Head(SignedError),
    /// Of a version this one does not know.
    #[error("version {0}")]
    Version(u8),
    /// A number that no segment has.
    #[error("number {0} is out of bounds")]
    Seq(u64),
    /// A part of a checkpoint that there cannot be.
    #[error("impossible part of a checkpoint")]
    Part,
    /// The body is not the one that the head names.
    #[error("body is not the one that was signed")]
    Body,
    /// A record in the body has no form.
    #[error("record: {0}")]
    Record(RecordError),
    /// Not signed by the author it names.
    #[error("bad signature")]
    Signature,
}

const VERSION: u8 = 1;
const SIGNATURE_LEN: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::Identity;
    use crate::record::{NarTag, Record};

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);

    fn place(seq: u64) -> Place {
        Place {
            cluster: CLUSTER,
            seq,
            prev: SegmentId::before_first(&CLUSTER),
            hlc: 1_700_000_000_000,
        }
    }

    fn hold(byte: u8) -> Vec<u8> {
        let tag = NarTag::from_bytes([byte; 8]);
        Record::Hold(vec![tag]).encode().unwrap()
    }

    fn sample(seq: u64, byte: u8) -> Segment {
        let body = [hold(byte), hold(byte + 1)].concat();
        Segment::append(&Identity::from_seed([1; 32]), place(seq), &body).unwrap()
    }

    #[test]
    fn a_segment_survives_the_wire() {
        let segment = sample(1, 5);
        let read = Segment::decode(segment.bytes().clone()).unwrap();
        assert_eq!(read, segment);
        assert_eq!(read.verify(), Ok(()));
        let indexes: Vec<_> = read
            .entries()
            .map(|entry| (entry.seq, entry.index))
            .collect();
        assert_eq!(indexes, [(1, 0), (1, 1)]);
        let overhead = segment.bytes().len() - 2 * hold(5).len();
        assert!(overhead <= 200, "{overhead} bytes of head");
    }

    #[test]
    fn a_checkpoint_keeps_the_first_places() {
        let signer = Identity::from_seed([1; 32]);
        let body = [
            Segment::restate(3, 7, &hold(1)),
            Segment::restate(900, 0, &hold(2)),
        ]
        .concat();
        let segment = Segment::checkpoint(&signer, place(1000), (0, 2), &body).unwrap();
        let places: Vec<_> = segment.entries().map(|e| (e.seq, e.index)).collect();
        assert_eq!(places, [(3, 7), (900, 0)]);
        for parts in [(2, 2), (0, 0), (0, PARTS_MAX + 1)] {
            let outcome = Segment::checkpoint(&signer, place(1000), parts, &body);
            assert_eq!(outcome, Err(SegmentError::Part));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = sample(1, 5).bytes().to_vec();
        for bit in 0..bytes.len() * 8 {
            let mut bent = bytes.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            let outcome = Segment::decode(bent.into()).and_then(|segment| segment.verify());
            assert!(outcome.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn two_segments_of_one_number_prove_a_fork() {
        let culprit = Identity::from_seed([1; 32]).node_id();
        let proof = ForkProof::between(&sample(4, 1), &sample(4, 2)).unwrap();
        assert_eq!(proof.culprit(&CLUSTER), Some(culprit));
        assert_eq!(proof.culprit(&ClusterId::from_bytes([2; 16])), None);
        let mirrored = ForkProof::between(&sample(4, 2), &sample(4, 1));
        assert_eq!(mirrored, Some(proof), "the same for whoever finds it");
        assert_eq!(ForkProof::between(&sample(4, 1), &sample(4, 1)), None);
        assert_eq!(ForkProof::between(&sample(4, 1), &sample(6, 1)), None);
    }

    #[test]
    fn a_segment_on_another_predecessor_proves_a_fork() {
        let (one, two) = (sample(4, 1), sample(5, 1));
        assert!(ForkProof::between(&two, &one).is_some());
        let signer = Identity::from_seed([1; 32]);
        let next = Place {
            prev: one.id(),
            ..place(5)
        };
        let honest = Segment::append(&signer, next, &hold(1)).unwrap();
        assert_eq!(ForkProof::between(&one, &honest), None);
    }

    #[test]
    fn a_proof_needs_the_culprits_signatures() {
        let liar = Identity::from_seed([2; 32]);
        let victim = Identity::from_seed([1; 32]).node_id();
        let mut heads = [sample(4, 1), sample(4, 2)].map(|s| s.head().clone());
        heads.iter_mut().for_each(|head| head.node = victim);
        let [first, second] = heads.map(|head| Signed::new(head, &liar));
        let proof = ForkProof { first, second };
        assert_eq!(proof.culprit(&CLUSTER), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Segment::decode(bytes.into());
        }

        #[test]
        fn a_cut_segment_is_refused(cut in 0usize..400) {
            let bytes = sample(1, 5).bytes().clone();
            prop_assume!(cut < bytes.len());
            prop_assert!(Segment::decode(bytes.slice(..cut)).is_err());
        }
    }
}

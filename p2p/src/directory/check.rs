//! Which segments are let into the fold.

use thiserror::Error;

use crate::directory::Directory;
use crate::directory::author::{Author, Need, Tip, needs};
use crate::ids::{Dot, NodeId};
use crate::log::{Log, LogError};
use crate::record::{Frontier, Record, kind};
use crate::segment::{ForkProof, Segment, SegmentError, SegmentKind};

/// Why a segment is not folded.
#[derive(Debug, Error)]
pub enum Refused {
    /// It is there already.
    #[error("segment is known")]
    Known,
    /// Segments before it are missing.
    #[error("segments from {next} on are missing")]
    Gap {
        /// The first one.
        next: u64,
    },
    /// It names records that are not here yet, or a log that is not folded so far.
    #[error("segment {} of {} comes first", .0.seq, .0.node)]
    Waiting(Frontier),
    /// Its author says two different things. The author is in quarantine once the proof is folded.
    #[error("author wrote two logs")]
    Fork(Box<ForkProof>),
    /// Its author wrote two logs before.
    #[error("author is in quarantine")]
    Quarantined,
    /// A revocation says that it does not count.
    #[error("author was revoked")]
    Revoked,
    /// Its author has shown no certificate of this cluster.
    #[error("author is not a member")]
    NotMember,
    /// Of another cluster.
    #[error("segment of another cluster")]
    Cluster,
    /// Cannot be where it says.
    #[error("segment does not belong where it says")]
    Misplaced,
    /// Its author said as much as one node may.
    #[error("log of its author is too long")]
    TooLong,
    /// There are as many authors as can be.
    #[error("too many authors")]
    Full,
    /// Not a segment, or not signed by its author.
    #[error("not a segment: {0}")]
    Form(#[from] SegmentError),
    /// The log does not do as asked. The segment is not folded.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Refused {
    /// Whether an honest node never sends such a segment on: it must have refused it itself.
    pub fn is_misbehaviour(&self) -> bool {
        match self {
            Refused::NotMember | Refused::Cluster | Refused::Misplaced | Refused::Form(_) => true,
            Refused::Known
            | Refused::Gap { .. }
            | Refused::Waiting(_)
            | Refused::Fork(_)
            | Refused::Quarantined
            | Refused::Revoked
            | Refused::TooLong
            | Refused::Full
            | Refused::Log(_) => false,
        }
    }
}

impl Directory {
    /// Whether `segment`, whose signature was verified, can be folded now.
    ///
    /// **Errors**: why not.
    pub fn check<L: Log>(&self, segment: &Segment, log: &L) -> Result<(), Refused> {
        let head = segment.head();
        if head.cluster != self.cluster {
            return Err(Refused::Cluster);
        }
        if self.forks.contains(&head.node) {
            return Err(Refused::Quarantined);
        }
        if self.cut(head.node).is_some_and(|cut| head.seq > cut) {
            return Err(Refused::Revoked);
        }
        self.check_place(segment, log)?;
        if !self.is_let_in(head.node) && !self.introduces(segment) {
            return Err(Refused::NotMember);
        }
        if self.nodes.is_full() && self.nodes.number(&head.node).is_none() {
            return Err(Refused::Full);
        }
        self.check_context(segment)
    }

    /// Whether `node` may write `record` now: it does not name what is not folded here.
    pub(crate) fn can_say(&self, node: NodeId, record: &Record) -> bool {
        match record {
            Record::Del(del) => self.is_known(node, del.dots.iter().map(frontier)),
            Record::Unpin(dots) => self.is_known(node, dots.iter().map(frontier)),
            Record::After(logs) => self.is_known(node, logs.iter().copied()),
            _ => true,
        }
    }

    fn check_place<L: Log>(&self, segment: &Segment, log: &L) -> Result<(), Refused> {
        let head = segment.head();
        let received = self
            .author(head.node)
            .map_or(Tip::before_first(&self.cluster), Author::received);
        if head.seq <= received.seq {
            return Err(contradiction(segment, head.seq, log)?.unwrap_or(Refused::Known));
        }
        if head.seq > received.seq + 1 {
            let begins = matches!(head.kind, SegmentKind::Checkpoint { part: 0, .. });
            let next = received.seq + 1;
            return match begins {
                true => self.check_jump(segment),
                false => Err(Refused::Gap { next }),
            };
        }
        if head.prev != received.id {
            let proof = contradiction(segment, received.seq, log)?;
            return Err(proof.unwrap_or(Refused::Misplaced));
        }
        match self.author(head.node).is_some_and(Author::is_jumping) {
            true => self.check_jump(segment),
            false => Ok(()),
        }
    }

    /// In a checkpoint without predecessors there is nothing between the parts, and nothing wrong
    /// with any of them.
    fn check_jump(&self, segment: &Segment) -> Result<(), Refused> {
        let fits = match self.author(segment.head().node) {
            Some(author) => author.can_jump(segment),
            None => Author::new(&self.cluster).can_jump(segment),
        };
        fits.then_some(()).ok_or(Refused::Misplaced)
    }

    /// The authors of the records that `segment` names must have said them. What a checkpoint names
    /// is looked at when it is complete: it may name another one that names it.
    fn check_context(&self, segment: &Segment) -> Result<(), Refused> {
        if !matches!(segment.head().kind, SegmentKind::Append) {
            return Ok(());
        }
        let unmet = |(node, need)| self.unmet(node, need);
        match needs(segment).into_iter().find_map(unmet) {
            Some(frontier) => Err(Refused::Waiting(frontier)),
            None => Ok(()),
        }
    }

    /// How far the log of `node` is missing for `need`, if it is.
    fn unmet(&self, node: NodeId, need: Need) -> Option<Frontier> {
        let (said, counts) = need.of(node);
        let unsaid = (!self.has_said(&said)).then_some(said);
        unsaid.or((!self.has_folded(&counts)).then_some(counts))
    }

    /// Whether all that `named` says of other logs is folded here, or will never count.
    fn is_known(&self, author: NodeId, mut named: impl Iterator<Item = Frontier>) -> bool {
        named.all(|frontier| frontier.node == author || self.has_folded(&frontier))
    }

    /// Whether the author wrote so much: it signed a segment with this or a higher number, be it that
    /// what came before is not here. So nobody removes what is not written yet.
    pub(super) fn has_said(&self, frontier: &Frontier) -> bool {
        self.next_wanted(frontier.node) > frontier.seq || self.never_counts(frontier)
    }

    /// Whether the log is folded so far, or will never count so far.
    pub(super) fn has_folded(&self, frontier: &Frontier) -> bool {
        self.seq(frontier.node) >= frontier.seq || self.never_counts(frontier)
    }

    fn never_counts(&self, frontier: &Frontier) -> bool {
        let cut = self.cut(frontier.node);
        self.forks.contains(&frontier.node) || cut.is_some_and(|cut| cut < frontier.seq)
    }

    /// Whether the author showed a certificate with what is here already.
    fn is_let_in(&self, author: NodeId) -> bool {
        self.author(author)
            .is_some_and(|author| author.received().seq > 0)
    }

    fn introduces(&self, segment: &Segment) -> bool {
        let author = segment.head().node;
        segment.entries().any(|entry| match entry.record.kind {
            kind::MEMBER => match entry.record.read() {
                Record::Member(signed) => self.is_certificate(author, &signed),
                _ => false,
            },
            _ => false,
        })
    }
}

fn frontier(dot: &Dot) -> Frontier {
    Frontier {
        node: dot.node,
        seq: dot.seq,
    }
}

/// The fork that `segment` and the `seq`-th one of its author prove, if they do.
fn contradiction<L: Log>(
    segment: &Segment,
    seq: u64,
    log: &L,
) -> Result<Option<Refused>, LogError> {
    let Some(bytes) = log.read(segment.head().node, seq)? else {
        return Ok(None);
    };
    let kept = Segment::decode(bytes).ok();
    let proof = kept.and_then(|kept| ForkProof::between(&kept, segment));
    Ok(proof.map(|proof| Refused::Fork(Box::new(proof))))
}

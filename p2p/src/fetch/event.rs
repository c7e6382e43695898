//! What happens to a download, and what it wants done.

use std::time::Duration;

use thiserror::Error;

use crate::ids::NodeId;
use crate::wire::{ChunkRange, Have};

/// How far away a source is. Nearer ones that have what is needed are asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// On the same network segment.
    Lan,
    /// At the same site.
    Site,
    /// Anywhere else.
    Wan,
    /// Not a peer but where everything comes from, at a price.
    Origin,
}

/// One request, unique within its fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u32);

impl RequestId {
    /// The request of this number.
    pub const fn from_number(number: u32) -> RequestId {
        RequestId(number)
    }

    /// Its number: the first is 0, each next one higher.
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer says what it holds; replaces what it said before. A peer that is fetching itself says
    /// [`Have::Partial`], even if it has nothing yet. A bitmap of another length makes it no source.
    Source {
        /// Who.
        node: NodeId,
        /// How far away.
        tier: Tier,
        /// What.
        have: Have,
    },
    /// A source holds more.
    Gained {
        /// Who.
        node: NodeId,
        /// Which segments; those that do not exist are ignored.
        segments: Vec<u32>,
    },
    /// The connection to a source ended.
    Gone {
        /// Who.
        node: NodeId,
    },
    /// A chunk arrived and was verified; it counts even if the request is over.
    Arrived {
        /// From whom.
        node: NodeId,
        /// In answer to what.
        request: RequestId,
        /// Which.
        chunk: u32,
    },
    /// A chunk came to be held in another way.
    Present {
        /// Which.
        chunk: u32,
    },
    /// A source sent bytes that are not what they claim to be.
    Bad {
        /// Who.
        node: NodeId,
    },
    /// A source has no free slot; nothing of the request will come.
    Busy {
        /// Who.
        node: NodeId,
        /// Which request.
        request: RequestId,
        /// When to ask again.
        retry: Duration,
    },
    /// A source does not hold what it said; stale, not malicious.
    NotFound {
        /// Who.
        node: NodeId,
        /// Which request.
        request: RequestId,
        /// Which chunk; `None`: nothing of this NAR.
        chunk: Option<u32>,
    },
    /// A request failed at the source's end or on the way.
    Error {
        /// Who.
        node: NodeId,
        /// Which request.
        request: RequestId,
    },
    /// The reader needs this chunk next.
    Reader {
        /// Which; the number of chunks when it needs nothing more.
        chunk: u32,
    },
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask a source for chunks.
    Request {
        /// Whom.
        node: NodeId,
        /// Number for the answers.
        request: RequestId,
        /// What: at most [`RANGES_MAX`](crate::wire::RANGES_MAX) runs of one segment.
        ranges: Vec<ChunkRange>,
        /// How long an answer is of use.
        deadline: Duration,
    },
    /// Tell a source that a request no longer matters.
    Cancel {
        /// Whom.
        node: NodeId,
        /// Which.
        request: RequestId,
    },
    /// Keep a node out. The table has noted it.
    Ban {
        /// Whom.
        node: NodeId,
        /// For how long.
        time: Duration,
        /// Why.
        why: BanReason,
    },
    /// Every chunk of a segment is held: tell whoever asked.
    Complete {
        /// Which.
        segment: u32,
    },
    /// Something is needed that no usable source holds: look for more. At most once a second.
    FindSources,
    /// Every chunk is held. The last action.
    Done,
    /// The download is given up; what arrived remains good. The last action.
    Failed(FetchError),
}

/// Why a node is kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BanReason {
    /// It sent bytes that are not the chunk they were sent as.
    WrongBytes,
}

/// Why a download is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FetchError {
    /// Nobody is known to hold what is missing.
    #[error("no source holds what is missing")]
    NoSource,
    /// Those who claim to hold it do not deliver.
    #[error("no source delivers what it holds")]
    NoProgress,
}

/// What a download cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchStats {
    /// Bytes of chunks that arrived and were needed.
    pub arrived: u64,
    /// Bytes asked for a second time while the first request stood.
    pub hedged: u64,
    /// Bytes that arrived although they were held already.
    pub wasted: u64,
    /// Times a source lost its requests for making no progress.
    pub stalls: u32,
}

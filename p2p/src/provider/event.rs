//! What happens to a provider, and what it wants done.

use std::sync::Arc;

use bytes::Bytes;

use crate::ids::NodeId;
use crate::wire::{Frame, Have, Layout, Object};

/// Names one look-up or read; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub(super) u64);

/// What this node holds of an object.
#[derive(Clone, Debug)]
pub struct Holding {
    /// How the object is cut.
    pub layout: Arc<Layout>,
    /// Which segments are held now. [`Have::Nothing`] is said as [`Event::Absent`].
    pub have: Have,
    /// The encoded manifest.
    pub manifest: Bytes,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A peer sent a frame. Those of an answerer are ignored.
    Frame {
        /// Who.
        peer: NodeId,
        /// What.
        frame: Frame,
    },
    /// The stream to a peer ended.
    Gone {
        /// Who.
        peer: NodeId,
    },
    /// Answer to [`Action::LookUp`]: some of it is held, and the peer may have it.
    Found {
        /// Which look-up.
        job: JobId,
        /// What is held.
        holding: Holding,
    },
    /// Answer to [`Action::LookUp`]: it is not held.
    Absent {
        /// Which look-up.
        job: JobId,
    },
    /// Answer to [`Action::LookUp`]: the peer must not know whether it is held.
    Forbidden {
        /// Which look-up.
        job: JobId,
    },
    /// This node has begun to fetch an object, and knows how it is cut.
    Begun {
        /// Which.
        object: Object,
    },
    /// Answer to [`Action::Read`].
    Read {
        /// Which read.
        job: JobId,
        /// The chunk's frame; `None` if it is not held, or damaged.
        bytes: Option<Bytes>,
    },
    /// Bytes of chunks and manifests left for a peer.
    Sent {
        /// Who.
        peer: NodeId,
        /// How many, headers not counted.
        bytes: u64,
    },
    /// This node holds more of an object.
    Gained {
        /// Which.
        object: Object,
        /// Its new segments.
        segments: Vec<u32>,
    },
    /// Time passed; at least once a second while peers are served.
    Tick,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Find out what is held of an object and whether the peer may read it. Always answered.
    LookUp {
        /// Number for the answer.
        job: JobId,
        /// Who asks.
        peer: NodeId,
        /// For what.
        object: Object,
    },
    /// Read one chunk's frame. Always answered.
    Read {
        /// Number for the answer.
        job: JobId,
        /// Of what.
        object: Object,
        /// Which chunk.
        chunk: u32,
    },
    /// Send a frame. Chunks and manifests are reported by [`Event::Sent`] once they have left.
    Send {
        /// To whom.
        peer: NodeId,
        /// What.
        frame: Frame,
    },
}

/// How busy a provider is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProviderStats {
    /// Peers being served.
    pub slots: usize,
    /// Requests under way.
    pub requests: usize,
    /// Requests refused as busy since the start.
    pub refused: u64,
    /// Bytes of chunks sent since the start.
    pub sent: u64,
}

//! From frames of strangers to chunks in the store. Blocks; runs on a blocking thread.

use attic_p2p::fetch::RequestId;
use attic_p2p::ids::NodeId;
use attic_store::{ChunkId, ImportError};

use super::state::{Plan, Shared, is_pinned};
use crate::mesh::link::Received;

/// Frames stored at a time: as many as the store works on side by side, twice.
pub(super) const BATCH_MAX: usize = 32;

/// A frame that a peer sent for a chunk.
pub(super) struct Arrival {
    pub(super) node: NodeId,
    pub(super) request: RequestId,
    pub(super) chunk: u32,
    pub(super) received: Received,
}

/// What came of an arrival.
pub(super) struct Checked {
    pub(super) node: NodeId,
    pub(super) request: RequestId,
    pub(super) chunk: u32,
    /// Whether it was the chunk, which is stored now.
    pub(super) good: bool,
}

/// Verifies frames and stores the good ones. Gives credit for all of them when it returns.
///
/// A frame is good if it is the very frame the manifest names and holds the chunk it names.
///
/// **Errors**: the store failed; nothing is said of any arrival then.
pub(super) fn take_in(
    flight: &Shared,
    plan: &Plan,
    arrivals: Vec<Arrival>,
) -> Result<Vec<Checked>, ImportError> {
    let frame = |arrival: &Arrival| -> bool {
        is_pinned(arrival.received.bytes(), plan.entry(arrival.chunk))
    };
    let mut good: Vec<bool> = arrivals.iter().map(frame).collect();
    let unknown = |index: &usize| good[*index] && !flight.is_held(arrivals[*index].chunk);
    let unknown: Vec<usize> = (0..arrivals.len()).filter(unknown).collect();
    let frame = |index: &usize| -> (ChunkId, u32, &[u8]) {
        let arrival = &arrivals[*index];
        let entry = plan.entry(arrival.chunk);
        (entry.id, entry.raw_len, arrival.received.bytes())
    };
    let frames: Vec<_> = unknown.iter().map(frame).collect();
    match flight.store.put_frames(&flight.lease, &frames) {
        Ok(()) => {}
        // The error names a chunk, of which there may be a good and a bad frame.
        Err(ImportError::Frame { .. } | ImportError::WrongChunk(_)) => {
            for (index, frame) in unknown.iter().zip(&frames) {
                good[*index] = is_chunk(flight, frame)?;
            }
        }
        Err(error) => return Err(error),
    }
    let checked = |(arrival, good): (&Arrival, bool)| Checked {
        node: arrival.node,
        request: arrival.request,
        chunk: arrival.chunk,
        good,
    };
    Ok(arrivals.iter().zip(good).map(checked).collect())
}

/// Stores one frame, if it holds its chunk.
fn is_chunk(flight: &Shared, frame: &(ChunkId, u32, &[u8])) -> Result<bool, ImportError> {
    let (id, raw_len, bytes) = frame;
    match flight.store.put_frame(&flight.lease, *id, *raw_len, bytes) {
        Ok(()) => Ok(true),
        Err(ImportError::Frame { .. } | ImportError::WrongChunk(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

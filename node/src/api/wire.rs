//! Binary bodies of the push API: pure encoders and decoders, the same on both ends.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `missing` | chunk ids, 32 bytes each, at most [`IDS_MAX`] | bitmap, bit *i* of byte *i/8* (least significant first) is 1 when chunk *i* must be sent |
//! | `chunks` | records, each a [`ChunkHeader`] and its frame | JSON |
//! | `commit` | `u32` LE length of the JSON, [`CommitRequest`] as JSON, then the chunk ids of all paths one after the other | JSON |

use attic_store::ChunkId;
use data_encoding::HEXLOWER;
use thiserror::Error;

use super::CommitRequest;

/// Most chunk ids in one `missing` request.
pub const IDS_MAX: usize = 4096;
/// Length of a [`ChunkHeader`] in bytes.
pub const CHUNK_HEADER_LEN: usize = 40;
/// Longest JSON head of a commit in bytes.
pub const COMMIT_JSON_MAX: usize = 8 << 20;
const ID_LEN: usize = 32;

/// What precedes each frame in a `chunks` body.
///
/// **Shape**: id (32 bytes), `raw_len`, `frame_len` (each `u32` little endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// BLAKE3 of the plain bytes.
    pub id: ChunkId,
    /// Length of the plain bytes.
    pub raw_len: u32,
    /// Length of the frame that follows.
    pub frame_len: u32,
}

impl ChunkHeader {
    /// The header's 40 bytes.
    pub fn to_bytes(self) -> [u8; CHUNK_HEADER_LEN] {
        let mut bytes = [0; CHUNK_HEADER_LEN];
        bytes[..ID_LEN].copy_from_slice(self.id.as_bytes());
        bytes[ID_LEN..36].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes[36..].copy_from_slice(&self.frame_len.to_le_bytes());
        bytes
    }

    /// Reads a header; every 40 bytes are one.
    pub fn from_bytes(bytes: &[u8; CHUNK_HEADER_LEN]) -> ChunkHeader {
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&bytes[..ID_LEN]);
        ChunkHeader {
            id: ChunkId::from_bytes(id),
            raw_len: u32_le([bytes[32], bytes[33], bytes[34], bytes[35]]),
            frame_len: u32_le([bytes[36], bytes[37], bytes[38], bytes[39]]),
        }
    }

    /// Splits the next record off a `chunks` body that is wholly in memory.
    ///
    /// **Errors**: [`WireError::Truncated`] when the body ends inside it.
    pub fn split(body: &[u8]) -> Result<(ChunkHeader, &[u8], &[u8]), WireError> {
        let (head, rest) = body.split_first_chunk().ok_or(WireError::Truncated)?;
        let header = ChunkHeader::from_bytes(head);
        let frame_len = usize::try_from(header.frame_len).map_err(|_| WireError::Truncated)?;
        let (frame, rest) = rest
            .split_at_checked(frame_len)
            .ok_or(WireError::Truncated)?;
        Ok((header, frame, rest))
    }
}

/// The body of a `missing` request.
pub fn ids_body<'a>(ids: impl IntoIterator<Item = &'a ChunkId>) -> Vec<u8> {
    ids.into_iter().flat_map(|id| *id.as_bytes()).collect()
}

/// Reads the body of a `missing` request, or the tail of a commit.
///
/// **Errors**: [`WireError::IdsLength`] when it is not a whole number of ids.
pub fn parse_ids(body: &[u8]) -> Result<Vec<ChunkId>, WireError> {
    let (ids, rest) = body.as_chunks::<ID_LEN>();
    if !rest.is_empty() {
        return Err(WireError::IdsLength(body.len()));
    }
    Ok(ids.iter().map(|id| ChunkId::from_bytes(*id)).collect())
}

/// The answer to a `missing` request: bit *i* is `missing[i]`.
pub fn bitmap(missing: &[bool]) -> Vec<u8> {
    let byte = |bits: &[bool]| {
        bits.iter()
            .enumerate()
            .fold(0, |byte, (bit, &set)| byte | (u8::from(set) << bit))
    };
    missing.chunks(8).map(byte).collect()
}

/// Reads the answer to a `missing` request about `count` chunks.
///
/// **Errors**: [`WireError::BitmapLength`] when it is not ⌈count/8⌉ bytes.
pub fn parse_bitmap(bytes: &[u8], count: usize) -> Result<Vec<bool>, WireError> {
    if bytes.len() != count.div_ceil(8) {
        return Err(WireError::BitmapLength {
            len: bytes.len(),
            count,
        });
    }
    Ok((0..count)
        .map(|i| bytes[i / 8] >> (i % 8) & 1 == 1)
        .collect())
}

/// The body of a commit. `ids` are those of all paths, in order.
///
/// **Errors**: [`WireError::CommitHead`] when the JSON is longer than [`COMMIT_JSON_MAX`].
pub fn commit_body<'a>(
    request: &CommitRequest,
    ids: impl IntoIterator<Item = &'a ChunkId>,
) -> Result<Vec<u8>, WireError> {
    let json = serde_json::to_vec(request)?;
    let len = u32::try_from(json.len())
        .ok()
        .filter(|_| json.len() <= COMMIT_JSON_MAX);
    let len = len.ok_or(WireError::CommitHead(json.len()))?;
    let mut body = Vec::with_capacity(4 + json.len());
    body.extend_from_slice(&len.to_le_bytes());
    body.extend_from_slice(&json);
    body.extend(ids.into_iter().flat_map(|id| *id.as_bytes()));
    Ok(body)
}

/// Reads the body of a commit: the request and each path's chunk ids.
///
/// **Errors**: any [`WireError`]; the ids must be exactly as many as the paths say.
pub fn parse_commit(body: &[u8]) -> Result<(CommitRequest, Vec<Vec<ChunkId>>), WireError> {
    let (len, rest) = body.split_first_chunk().ok_or(WireError::Truncated)?;
    let len = usize::try_from(u32_le(*len)).unwrap_or(usize::MAX);
    if len > COMMIT_JSON_MAX {
        return Err(WireError::CommitHead(len));
    }
    let (json, ids) = rest.split_at_checked(len).ok_or(WireError::Truncated)?;
    let request: CommitRequest = serde_json::from_slice(json)?;
    let ids = parse_ids(ids)?;
    let lists = deal(&request, &ids)?;
    Ok((request, lists))
}

/// Deals the concatenated ids out to the paths of `request`.
fn deal(request: &CommitRequest, ids: &[ChunkId]) -> Result<Vec<Vec<ChunkId>>, WireError> {
    let mut rest = ids;
    let mut lists = Vec::with_capacity(request.paths.len().min(ids.len() + 1));
    for path in &request.paths {
        let count = usize::try_from(path.chunks).unwrap_or(usize::MAX);
        let (list, after) = rest.split_at_checked(count).ok_or(WireError::Truncated)?;
        lists.push(list.to_vec());
        rest = after;
    }
    if !rest.is_empty() {
        return Err(WireError::Surplus(rest.len()));
    }
    Ok(lists)
}

/// Proof that a client holds the bytes of chunks it did not upload.
///
/// BLAKE3 keyed with the session's challenge over the plain bytes, in NAR order, of every chunk
/// that this session did not upload; a chunk that occurs twice counts twice. Knowing a hash is
/// not enough to compute it, and the challenge keeps an old proof from being used again.
pub struct Possession(Box<blake3::Hasher>);

impl Possession {
    /// An empty proof under `challenge`.
    pub fn new(challenge: &[u8; 32]) -> Possession {
        Possession(Box::new(blake3::Hasher::new_keyed(challenge)))
    }

    /// Adds the plain bytes of the next chunk.
    pub fn update(&mut self, plain: &[u8]) {
        self.0.update(plain);
    }

    /// The proof: 64 lower-case hexadecimal digits.
    pub fn finish(&self) -> String {
        HEXLOWER.encode(self.0.finalize().as_bytes())
    }

    /// Whether `proof` is this proof. Takes the same time wherever they differ.
    pub fn matches(&self, proof: &str) -> bool {
        let mut bytes = [0; 32];
        let decoded = (proof.len() == 64)
            .then(|| HEXLOWER.decode_mut(proof.as_bytes(), &mut bytes).ok())
            .flatten();
        decoded.is_some() && self.0.finalize() == bytes
    }
}

/// A body that does not have its shape.
#[derive(Debug, Error)]
pub enum WireError {
    /// The body ends before what it announced.
    #[error("body is truncated")]
    Truncated,
    /// More ids than the paths of a commit need.
    #[error("{0} chunk ids too many")]
    Surplus(usize),
    /// Not a whole number of ids.
    #[error("{0} bytes are not a whole number of chunk ids")]
    IdsLength(usize),
    /// The bitmap does not fit the question.
    #[error("bitmap of {len} bytes for {count} chunks")]
    BitmapLength {
        /// Its length.
        len: usize,
        /// Chunks asked about.
        count: usize,
    },
    /// The JSON head of a commit is too long.
    #[error("commit head of {0} bytes")]
    CommitHead(usize),
    /// The JSON head of a commit cannot be read.
    #[error("commit head")]
    Json(#[from] serde_json::Error),
}

fn u32_le(bytes: [u8; 4]) -> u32 {
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_records_round_trip_and_truncation_is_seen() {
        let header = ChunkHeader {
            id: ChunkId::of(b"x"),
            raw_len: 1,
            frame_len: 3,
        };
        let mut body = header.to_bytes().to_vec();
        body.extend_from_slice(b"abc");
        body.push(9);
        let (read, frame, rest) = ChunkHeader::split(&body).unwrap();
        assert_eq!((read, frame, rest), (header, &b"abc"[..], &[9][..]));
        for len in 0..CHUNK_HEADER_LEN + 3 {
            assert!(matches!(
                ChunkHeader::split(&body[..len]),
                Err(WireError::Truncated)
            ));
        }
    }

    #[test]
    fn bitmaps_round_trip_least_significant_bit_first() {
        let missing = [true, false, false, true, false, false, false, false, true];
        assert_eq!(bitmap(&missing), [0b1001, 1]);
        assert_eq!(parse_bitmap(&bitmap(&missing), 9).unwrap(), missing);
        assert!(parse_bitmap(&[0], 9).is_err());
        assert!(parse_bitmap(&[0, 0, 0], 9).is_err());
    }

    #[test]
    fn a_commit_body_must_hold_exactly_its_ids() {
        let request = CommitRequest { paths: Vec::new() };
        let whole = commit_body(&request, []).unwrap();
        assert_eq!(parse_commit(&whole).unwrap().0, request);
        let surplus = commit_body(&request, [&ChunkId::of(b"x")]).unwrap();
        assert!(matches!(parse_commit(&surplus), Err(WireError::Surplus(1))));
        assert!(matches!(
            parse_commit(&whole[..whole.len() - 1]),
            Err(WireError::Truncated)
        ));
        assert!(matches!(
            parse_commit(&surplus[..whole.len() + 31]),
            Err(WireError::IdsLength(31))
        ));
        assert!(matches!(
            parse_commit(&[255; 8]),
            Err(WireError::CommitHead(_))
        ));
    }

    #[test]
    fn a_proof_depends_on_challenge_and_bytes() {
        let proof = |challenge: u8, bytes: &[u8]| {
            let mut possession = Possession::new(&[challenge; 32]);
            possession.update(bytes);
            possession
        };
        let right = proof(1, b"data");
        assert!(right.matches(&proof(1, b"data").finish()));
        for wrong in [
            proof(2, b"data").finish(),
            proof(1, b"dat").finish(),
            String::new(),
        ] {
            assert!(!right.matches(&wrong));
        }
        assert!(!right.matches(&right.finish().to_uppercase()));
    }
}

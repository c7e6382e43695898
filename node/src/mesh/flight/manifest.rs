//! From parts to a manifest. Pure.

use attic_p2p::ids::ManifestId;
use attic_p2p::wire::{Layout, MANIFEST_LEN_MAX};
use attic_store::manifest::Manifest;
use bytes::{Bytes, BytesMut};

use super::Wanted;
use super::state::Plan;

/// A manifest on its way from one peer.
#[derive(Debug, Default)]
pub(super) struct Parts {
    bytes: BytesMut,
    total: Option<u32>,
}

/// What a part leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Joined {
    More,
    Whole(Bytes),
    /// No honest peer sends such a part.
    Bad,
}

impl Parts {
    /// Takes the next part. Memory grows with what arrived, not with what is announced.
    pub(super) fn join(&mut self, wanted: &Wanted, offset: u32, total: u32, part: &[u8]) -> Joined {
        let end = self.bytes.len() + part.len();
        let fits = *self.total.get_or_insert(total) == total
            && total as usize <= len_max(wanted)
            && offset as usize == self.bytes.len()
            && !part.is_empty()
            && end <= total as usize;
        if !fits {
            return Joined::Bad;
        }
        self.bytes.extend_from_slice(part);
        if end < total as usize {
            return Joined::More;
        }
        let whole = std::mem::take(&mut self.bytes).freeze();
        match ManifestId::of(&whole) == wanted.manifest {
            true => Joined::Whole(whole),
            false => Joined::Bad,
        }
    }
}

/// What the bytes of a wanted manifest mean; `None` if it is not the manifest of the wanted NAR.
///
/// They have the id that was announced, so it is whoever announced it that is wrong.
pub(super) fn plan(wanted: &Wanted, encoded: Bytes) -> Option<Plan> {
    let manifest = Manifest::decode(&encoded).ok()?;
    let file = (*manifest.file_hash(), manifest.file_size());
    let announced = *manifest.nar_hash() == wanted.nar
        && manifest.nar_size() == wanted.nar_size
        && wanted.file.is_none_or(|wanted| wanted == file);
    let layout = Layout::of(&manifest).ok().filter(|_| announced)?;
    Some(Plan::new(manifest, encoded, layout))
}

/// The longest manifest a NAR of this size can have: no cutting makes chunks shorter on average.
fn len_max(wanted: &Wanted) -> usize {
    let chunks = wanted.nar_size / CHUNK_LEN_MEAN_MIN + CHUNKS_EXTRA;
    usize::try_from(chunks.saturating_mul(ENTRY_LEN))
        .map_or(MANIFEST_LEN_MAX, |len| len.min(MANIFEST_LEN_MAX))
}

/// Half of the shortest chunk of any cutting, since a manifest lists the chunks of the NAR and those
/// of its listing, which is hardly longer.
const CHUNK_LEN_MEAN_MIN: u64 = 8 << 10;
/// For heads and last chunks.
const CHUNKS_EXTRA: u64 = 16;
const ENTRY_LEN: u64 = 48;

#[cfg(test)]
mod tests {
    use attic_store::NarHash;

    use super::*;

    fn wanted(encoded: &[u8]) -> Wanted {
        Wanted {
            nar: NarHash::from_bytes([1; 32]),
            manifest: ManifestId::of(encoded),
            nar_size: 100_000,
            file: None,
        }
    }

    #[test]
    fn parts_join_in_order_and_only_to_what_was_announced() {
        let whole = [7; 500];
        let wanted = wanted(&whole);
        let mut parts = Parts::default();
        assert_eq!(parts.join(&wanted, 0, 500, &whole[..300]), Joined::More);
        let joined = parts.join(&wanted, 300, 500, &whole[300..]);
        assert_eq!(joined, Joined::Whole(Bytes::copy_from_slice(&whole)));
        assert_eq!(
            Parts::default().join(&wanted, 0, 500, &[8; 500]),
            Joined::Bad
        );
    }

    #[test]
    fn impossible_parts_are_refused() {
        let wanted = wanted(&[7; 500]);
        for (offset, total, len) in [
            (1, 500, 10),
            (0, 500, 0),
            (0, 500, 501),
            (0, u32::MAX, 10),
            (0, 0, 1),
        ] {
            let joined = Parts::default().join(&wanted, offset, total, &vec![7; len]);
            assert_eq!(joined, Joined::Bad, "{offset} {total} {len}");
        }
        let mut parts = Parts::default();
        assert_eq!(parts.join(&wanted, 0, 500, &[7; 300]), Joined::More);
        assert_eq!(parts.join(&wanted, 300, 499, &[7; 10]), Joined::Bad);
    }
}

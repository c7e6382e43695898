//! A path of a cache, in compact binary.

use attic_store::narinfo::ContentAddress;
use attic_store::{FileHash, NarHash, PathInfo, Signature, StorePath, StorePathHash};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{CacheId, ManifestId};

/// A cache has this path.
///
/// **Shape** on the wire: postcard; hashes are raw bytes, a store path is its hash part and its
/// name, a signature is its key's name and 64 bytes. About 400 bytes for a path of five references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRecord {
    /// Which cache.
    pub cache: CacheId,
    /// What Nix wants to know.
    pub info: PathInfo,
    /// Hash of the NAR as it travels.
    pub file_hash: FileHash,
    /// Bytes of the NAR as it travels.
    pub file_size: u64,
    /// The chunks of the NAR.
    pub manifest: ManifestId,
}

impl PathRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let info = &self.info;
        let wire = WireRecord {
            cache: self.cache,
            path: WirePath::from(&info.path),
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            file_hash: self.file_hash,
            file_size: self.file_size,
            manifest: self.manifest,
            references: info.references.iter().map(WirePath::from).collect(),
            deriver: info.deriver.as_ref().map(WirePath::from),
            ca: info.ca.as_ref().map(ContentAddress::as_str),
            signatures: info.signatures.iter().map(WireSignature::from).collect(),
        };
        postcard::to_stdvec(&wire).expect("plain data")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<PathRecord, PathRecordError> {
        let (wire, _) = postcard::take_from_bytes::<WireRecord<'_>>(bytes)
            .map_err(|_| PathRecordError::Form)?;
        if wire.nar_size == 0 {
            return Err(PathRecordError::NarSize);
        }
        let references = wire.references.iter().map(WirePath::read);
        let signatures = wire.signatures.iter().map(WireSignature::read);
        let ca = wire
            .ca
            .map(|text| text.parse().or(Err(PathRecordError::ContentAddress)));
        Ok(PathRecord {
            cache: wire.cache,
            info: PathInfo {
                path: wire.path.read()?,
                nar_hash: wire.nar_hash,
                nar_size: wire.nar_size,
                references: references.collect::<Result<_, _>>()?,
                deriver: wire.deriver.as_ref().map(WirePath::read).transpose()?,
                ca: ca.transpose()?,
                signatures: signatures.collect::<Result<_, _>>()?,
            },
            file_hash: wire.file_hash,
            file_size: wire.file_size,
            manifest: wire.manifest,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct WireRecord<'a> {
    cache: CacheId,
    #[serde(borrow)]
    path: WirePath<'a>,
    nar_hash: NarHash,
    nar_size: u64,
    file_hash: FileHash,
    file_size: u64,
    manifest: ManifestId,
    references: Vec<WirePath<'a>>,
    deriver: Option<WirePath<'a>>,
    ca: Option<&'a str>,
    signatures: Vec<WireSignature<'a>>,
}

#[derive(Serialize, Deserialize)]
struct WirePath<'a>(StorePathHash, &'a str);

impl<'a> From<&'a StorePath> for WirePath<'a> {
    fn from(path: &'a StorePath) -> WirePath<'a> {
        WirePath(*path.hash(), path.name())
    }
}

impl WirePath<'_> {
    fn read(&self) -> Result<StorePath, PathRecordError> {
        StorePath::new(self.0, self.1).map_err(|_| PathRecordError::StorePath)
    }
}

/// The name of the key and both halves of the signature.
#[derive(Serialize, Deserialize)]
struct WireSignature<'a>(&'a str, [u8; 32], [u8; 32]);

impl<'a> From<&'a Signature> for WireSignature<'a> {
    fn from(signature: &'a Signature) -> WireSignature<'a> {
        let (first, second) = signature.as_bytes().split_at(32);
        let half = |bytes: &[u8]| bytes.try_into().expect("half of 64 bytes");
        WireSignature(signature.key_name(), half(first), half(second))
    }
}

impl WireSignature<'_> {
    fn read(&self) -> Result<Signature, PathRecordError> {
        let digits = BASE64.encode(&[self.1, self.2].concat());
        let text = format!("{}:{digits}", self.0);
        text.parse().map_err(|_| PathRecordError::Signature)
    }
}

/// What is wrong with a path in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PathRecordError {
    /// Not the form of a path.
    #[error("malformed")]
    Form,
    /// A name is not one of a store path.
    #[error("not a store path")]
    StorePath,
    /// A NAR has no size of 0.
    #[error("nar size is 0")]
    NarSize,
    /// Not a content address.
    #[error("not a content address")]
    ContentAddress,
    /// Not a signature.
    #[error("not a signature")]
    Signature,
}

#[cfg(test)]
mod tests {
    use attic_store::{SecretKey, StoreDir};
    use proptest::prelude::*;

    use super::*;

    fn sample() -> PathRecord {
        let path = |name: &str, byte: u8| {
            StorePath::new(StorePathHash::from_bytes([byte; 20]), name).unwrap()
        };
        let key = SecretKey::generate("cache.example.org-1", [7; 32]).unwrap();
        let mut info = PathInfo {
            path: path("hello-2.12.1", 1),
            nar_hash: NarHash::from_bytes([2; 32]),
            nar_size: 226_560,
            references: (2..7).map(|byte| path("glibc-2.38-27", byte)).collect(),
            deriver: Some(path("hello-2.12.1.drv", 8)),
            ca: None,
            signatures: Vec::new(),
        };
        let fingerprint = info.fingerprint(&StoreDir::default());
        info.signatures.push(key.sign(fingerprint.as_ref()));
        PathRecord {
            cache: CacheId::from_bytes([9; 16]),
            info,
            file_hash: FileHash::from_bytes([3; 32]),
            file_size: 50_000,
            manifest: ManifestId::from_bytes([4; 32]),
        }
    }

    #[test]
    fn a_path_survives_the_wire_in_500_bytes() {
        let mut record = sample();
        let encoded = record.encode();
        assert!(encoded.len() <= 500, "{} bytes", encoded.len());
        assert_eq!(PathRecord::decode(&encoded), Ok(record.clone()));
        let ca = "fixed:r:sha256:1b7dv8k50pdqvspgp4akykpvvrjfaldcj8fydwbvbbrkjfmspbll";
        record.info.ca = ca.parse().ok();
        record.info.deriver = None;
        assert_eq!(PathRecord::decode(&record.encode()), Ok(record));
    }

    proptest! {
        #[test]
        fn damage_never_panics_and_never_leaves_the_form(at in 0usize..500, bits in 1u8.., cut in 0usize..500) {
            let mut encoded = sample().encode();
            let at = at % encoded.len();
            encoded[at] ^= bits;
            if let Ok(record) = PathRecord::decode(&encoded) {
                let again = PathRecord::decode(&record.encode());
                prop_assert_eq!(again, Ok(record));
            }
            let _ = PathRecord::decode(&encoded[..cut.min(encoded.len())]);
        }
    }
}

//! Narinfo: what a cache says about a store path, parsed strictly and printed as Nix does.
//!
//! Clients are fragile here: one malformed line makes some of them give up a whole build. Nothing a
//! peer or an uploader wrote is therefore passed on as text; it is parsed, and what leaves is
//! [`NarInfo::print`]. The parser accepts what Nix writes in any order of lines. It is stricter
//! than Nix where clients disagree among themselves: a second line of one name, a line without
//! `: `, a carriage return, or text that is not UTF-8 is an error.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use crate::narinfo::content_address::{ContentAddress, ContentAddressError};

use crate::hash::{FileHash, HashError, NarHash};
use crate::signature::{Fingerprint, KeyError, Signature, TrustedKeys};
use crate::store_path::{StoreDir, StorePath, StorePathError};

mod content_address;

/// A narinfo: properties of a store path, and where its NAR lies in a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NarInfo {
    /// Properties that hold in every cache.
    pub info: PathInfo,
    /// Where the NAR is, relative to the cache's URL or absolute; not empty, visible ASCII.
    pub url: String,
    /// How the NAR travels.
    pub compression: Compression,
    /// Hash of the NAR as it travels.
    pub file_hash: Option<FileHash>,
    /// Bytes of the NAR as it travels.
    pub file_size: Option<u64>,
}

impl NarInfo {
    /// Longest text that [`NarInfo::parse`] reads, in bytes. Nix has no bound; the largest real
    /// ones are a few hundred KiB of references.
    pub const LEN_MAX: usize = 1 << 20;

    /// Reads the text of a narinfo.
    ///
    /// Lines may come in any order and unknown names are skipped. An absent `Compression` is
    /// `bzip2`, as in Nix; `Deriver: unknown-deriver` is none. Signatures end up sorted, each once.
    ///
    /// **Errors** name the line, the field and the reason.
    pub fn parse(text: &[u8], store_dir: &StoreDir) -> Result<Self, NarInfoError> {
        if text.len() > Self::LEN_MAX {
            return Err(NarInfoError::TooLong { len: text.len() });
        }
        let text = std::str::from_utf8(text).map_err(|error| {
            let before = &text[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            NarInfoError::Line {
                line,
                fault: LineFault::NotUtf8,
            }
        })?;
        let mut draft = Draft::default();
        for (index, line) in text.split_inclusive('\n').enumerate() {
            draft.line(index + 1, line, store_dir)?;
        }
        draft.finish()
    }

    /// The text Nix would write: same order of lines, same forms, references and signatures sorted.
    pub fn print(&self, store_dir: &StoreDir) -> String {
        let mut text = String::with_capacity(1024);
        self.write(store_dir, &mut text)
            .expect("a String takes everything");
        text
    }

    fn write(&self, store_dir: &StoreDir, out: &mut String) -> fmt::Result {
        let info = &self.info;
        writeln!(out, "StorePath: {}", info.path.full(store_dir))?;
        writeln!(out, "URL: {}", self.url)?;
        writeln!(out, "Compression: {}", self.compression)?;
        if let Some(hash) = &self.file_hash {
            writeln!(out, "FileHash: {hash}")?;
        }
        if let Some(size) = self.file_size {
            writeln!(out, "FileSize: {size}")?;
        }
        writeln!(out, "NarHash: {}", info.nar_hash)?;
        writeln!(out, "NarSize: {}", info.nar_size)?;
        let references: Vec<String> = info.references.iter().map(StorePath::to_string).collect();
        writeln!(out, "References: {}", references.join(" "))?;
        if let Some(deriver) = &info.deriver {
            writeln!(out, "Deriver: {deriver}")?;
        }
        for signature in info.signatures.iter().collect::<BTreeSet<_>>() {
            writeln!(out, "Sig: {signature}")?;
        }
        if let Some(ca) = &info.ca {
            writeln!(out, "CA: {ca}")?;
        }
        Ok(())
    }
}

/// Properties of a store path that do not depend on the cache it lies in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathInfo {
    /// The path itself.
    pub path: StorePath,
    /// Hash of its plain NAR.
    pub nar_hash: NarHash,
    /// Bytes of its plain NAR, more than 0.
    pub nar_size: u64,
    /// Paths its contents mention, itself among them when they do.
    pub references: BTreeSet<StorePath>,
    /// The derivation it was built from.
    pub deriver: Option<StorePath>,
    /// How the path follows from its contents, when it does.
    pub ca: Option<ContentAddress>,
    /// Who vouches for it; sorted when it was parsed or filled by [`PathInfo::add_signature`].
    pub signatures: Vec<Signature>,
}

impl PathInfo {
    /// What a signature over this path covers.
    pub fn fingerprint(&self, store_dir: &StoreDir) -> Fingerprint {
        Fingerprint::new(
            store_dir,
            &self.path,
            &self.nar_hash,
            self.nar_size,
            &self.references,
        )
    }

    /// Adds `signature` in sorted order unless the very same one is there.
    pub fn add_signature(&mut self, signature: Signature) {
        if self.signatures.contains(&signature) {
            return;
        }
        let at = self.signatures.partition_point(|other| *other < signature);
        self.signatures.insert(at, signature);
    }
}

/// How a NAR travels. Only those that every client since Nix 2.4 reads and the node can decode.
///
/// **Shape** the name in JSON, the number of the variant in postcard: new ones go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// The plain NAR.
    None,
    /// Zstandard.
    Zstd,
    /// LZMA2 in an xz container.
    Xz,
    /// bzip2, which is also what an absent `Compression` line means.
    Bzip2,
    /// gzip.
    Gzip,
    /// Brotli.
    Br,
}

impl Compression {
    /// Every value.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Zstd,
        Self::Xz,
        Self::Bzip2,
        Self::Gzip,
        Self::Br,
    ];

    /// Nix's name for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Br => "br",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(text: &str) -> Result<Self, UnknownCompression> {
        let unknown = || UnknownCompression {
            found: text.chars().take(32).collect(),
        };
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == text)
            .ok_or_else(unknown)
    }
}

/// A compression that the node does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown compression {found:?}")]
pub struct UnknownCompression {
    /// The name, cut to 32 characters.
    pub found: String,
}

/// Something a stranger said. It becomes a `T` only by passing a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unverified<T>(T);

impl<T> Unverified<T> {
    /// Marks `value` as not yet checked.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The claim, to look at and to log; nothing may be decided by it alone.
    pub fn claim(&self) -> &T {
        &self.0
    }
}

impl Unverified<NarInfo> {
    /// The narinfo, if one of `keys` signed it.
    ///
    /// A content address alone is not believed here: it could be checked only against the NAR.
    pub fn verify(self, keys: &TrustedKeys, store_dir: &StoreDir) -> Result<NarInfo, Untrusted> {
        let info = &self.0.info;
        match keys.verify(&info.fingerprint(store_dir), &info.signatures) {
            Some(_) => Ok(self.0),
            None => Err(Untrusted {
                path: self.0.info.path,
            }),
        }
    }
}

/// No trusted key signed this path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} has no signature by a trusted key")]
pub struct Untrusted {
    /// The path in question.
    pub path: StorePath,
}

/// Why a text is not a narinfo.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// Longer than [`NarInfo::LEN_MAX`]; nothing was looked at.
    #[error("narinfo has {len} bytes, more than {max}", max = NarInfo::LEN_MAX)]
    TooLong {
        /// Bytes given.
        len: usize,
    },
    /// A line is not `Name: value`.
    #[error("narinfo line {line}: {fault}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        fault: LineFault,
    },
    /// A field's value is wrong.
    #[error("narinfo line {line}: {field}: {fault}")]
    Field {
        /// Number of the line, from 1.
        line: usize,
        /// Name of the field.
        field: String,
        /// What is wrong with it.
        fault: FieldFault,
    },
    /// A required field is not there.
    #[error("narinfo has no {field}")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
}

/// Why a line of a narinfo is not `Name: value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// The line does not end in a newline; only the last one can.
    #[error("no newline at the end")]
    Unfinished,
    /// A carriage return.
    #[error("carriage return")]
    CarriageReturn,
    /// No `: ` after a name.
    #[error("not of the form `Name: value`")]
    Form,
    /// Not UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
}

/// Why the value of a known field is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldFault {
    /// The field was there before.
    #[error("given twice")]
    Duplicate,
    /// A store path or base name is malformed or lies elsewhere.
    #[error("{0}")]
    StorePath(StorePathError),
    /// A hash is malformed or of another algorithm.
    #[error("{0}")]
    Hash(HashError),
    /// A size is not a decimal number of 64 bits.
    #[error("not a number")]
    Number,
    /// A NAR has no size of 0.
    #[error("must not be 0")]
    Zero,
    /// The URL is empty or has a space, control or non-ASCII character.
    #[error("not a URL")]
    Url,
    /// The compression is not known.
    #[error("{0}")]
    Compression(UnknownCompression),
    /// A signature is malformed.
    #[error("{0}")]
    Signature(KeyError),
    /// A content address is malformed.
    #[error("{0}")]
    ContentAddress(ContentAddressError),
}

/// A narinfo whose lines are still arriving.
#[derive(Default)]
struct Draft {
    path: Option<StorePath>,
    url: Option<String>,
    compression: Option<Compression>,
    file_hash: Option<FileHash>,
    file_size: Option<u64>,
    nar_hash: Option<NarHash>,
    nar_size: Option<u64>,
    references: Option<BTreeSet<StorePath>>,
    deriver: Option<Option<StorePath>>,
    ca: Option<Option<ContentAddress>>,
    signatures: BTreeSet<Signature>,
}

impl Draft {
    /// Takes one line with its newline.
    fn line(&mut self, line: usize, text: &str, store_dir: &StoreDir) -> Result<(), NarInfoError> {
        let wrong = |fault| NarInfoError::Line { line, fault };
        let text = text
            .strip_suffix('\n')
            .ok_or_else(|| wrong(LineFault::Unfinished))?;
        if text.contains('\r') {
            return Err(wrong(LineFault::CarriageReturn));
        }
        let (name, value) = text
            .split_once(": ")
            .ok_or_else(|| wrong(LineFault::Form))?;
        if name.is_empty() {
            return Err(wrong(LineFault::Form));
        }
        self.field(name, value, store_dir)
            .map_err(|fault| NarInfoError::Field {
                line,
                field: name.to_owned(),
                fault,
            })
    }

    fn field(&mut self, name: &str, value: &str, store_dir: &StoreDir) -> Result<(), FieldFault> {
        match name {
            "StorePath" => {
                let path = StorePath::parse_full(store_dir, value);
                set(&mut self.path, path.map_err(FieldFault::StorePath)?)
            }
            "URL" => set(&mut self.url, parse_url(value)?),
            "Compression" => set(&mut self.compression, parse_compression(value)?),
            "FileHash" => set(
                &mut self.file_hash,
                value.parse().map_err(FieldFault::Hash)?,
            ),
            "FileSize" => set(&mut self.file_size, parse_size(value)?),
            "NarHash" => set(&mut self.nar_hash, value.parse().map_err(FieldFault::Hash)?),
            "NarSize" => match parse_size(value)? {
                0 => Err(FieldFault::Zero),
                size => set(&mut self.nar_size, size),
            },
            "References" => set(&mut self.references, parse_references(value)?),
            "Deriver" => set(&mut self.deriver, parse_deriver(value)?),
            "Sig" => {
                self.signatures
                    .insert(value.parse().map_err(FieldFault::Signature)?);
                Ok(())
            }
            "CA" => set(&mut self.ca, parse_content_address(value)?),
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<NarInfo, NarInfoError> {
        let missing = |field| NarInfoError::Missing { field };
        let info = PathInfo {
            path: self.path.ok_or_else(|| missing("StorePath"))?,
            nar_hash: self.nar_hash.ok_or_else(|| missing("NarHash"))?,
            nar_size: self.nar_size.ok_or_else(|| missing("NarSize"))?,
            references: self.references.unwrap_or_default(),
            deriver: self.deriver.flatten(),
            ca: self.ca.flatten(),
            signatures: self.signatures.into_iter().collect(),
        };
        Ok(NarInfo {
            info,
            url: self.url.ok_or_else(|| missing("URL"))?,
            compression: self.compression.unwrap_or(Compression::Bzip2),
            file_hash: self.file_hash,
            file_size: self.file_size,
        })
    }
}

fn set<T>(slot: &mut Option<T>, value: T) -> Result<(), FieldFault> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(FieldFault::Duplicate),
    }
}

fn parse_url(value: &str) -> Result<String, FieldFault> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(FieldFault::Url);
    }
    Ok(value.to_owned())
}

fn parse_compression(value: &str) -> Result<Compression, FieldFault> {
    if value.is_empty() {
        return Ok(Compression::Bzip2);
    }
    value.parse().map_err(FieldFault::Compression)
}

/// A decimal number; `u64::from_str` alone would take a leading `+`.
fn parse_size(value: &str) -> Result<u64, FieldFault> {
    if !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(FieldFault::Number);
    }
    value.parse().map_err(|_| FieldFault::Number)
}

fn parse_references(value: &str) -> Result<BTreeSet<StorePath>, FieldFault> {
    let words = value.split(' ').filter(|word| !word.is_empty());
    words
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(FieldFault::StorePath)
}

fn parse_deriver(value: &str) -> Result<Option<StorePath>, FieldFault> {
    if value == "unknown-deriver" {
        return Ok(None);
    }
    value.parse().map(Some).map_err(FieldFault::StorePath)
}

fn parse_content_address(value: &str) -> Result<Option<ContentAddress>, FieldFault> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(FieldFault::ContentAddress)
}

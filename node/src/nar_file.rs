//! Names of NAR files: `<52 digits>.nar` and an ending, and their URLs. Pure.

use std::fmt::{Display, Formatter, Result as FmtResult};

use attic_store::{FileHash, NarHash, StorePathHash, nixbase32};

/// The last segment of a NAR's URL.
///
/// **Shape**: 52 digits of Nix's base 32, `.nar`, and the ending of its compression. The node's own
/// names hold the NAR hash; names that Nix uploads under hold the hash of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NarFile {
    pub(crate) hash: [u8; 32],
    pub(crate) suffix: NarSuffix,
}

/// What follows `.nar`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NarSuffix {
    /// Nothing: the plain NAR, or gzip, for which Nix has no ending.
    Plain,
    Zstd,
    Xz,
    Bzip2,
    Br,
}

impl NarSuffix {
    const ALL: [NarSuffix; 5] = [
        NarSuffix::Plain,
        NarSuffix::Zstd,
        NarSuffix::Xz,
        NarSuffix::Bzip2,
        NarSuffix::Br,
    ];

    fn as_str(self) -> &'static str {
        match self {
            NarSuffix::Plain => "",
            NarSuffix::Zstd => ".zst",
            NarSuffix::Xz => ".xz",
            NarSuffix::Bzip2 => ".bz2",
            NarSuffix::Br => ".br",
        }
    }
}

impl NarFile {
    /// The node's name for the frames of a NAR.
    pub(crate) fn canonical(hash: &NarHash) -> NarFile {
        NarFile {
            hash: *hash.as_bytes(),
            suffix: NarSuffix::Zstd,
        }
    }

    /// Reads a file name; `None` for anything else.
    pub(crate) fn parse(text: &str) -> Option<NarFile> {
        let (digits, ending) = text.split_once(".nar")?;
        let suffix = NarSuffix::ALL
            .into_iter()
            .find(|suffix| suffix.as_str() == ending)?;
        let hash = FileHash::from_nix32(digits).ok()?;
        Some(NarFile {
            hash: *hash.as_bytes(),
            suffix,
        })
    }
}

impl NarFile {
    /// The URL below a cache at which a narinfo offers it.
    pub(crate) fn url(&self) -> String {
        format!("nar/{self}")
    }

    /// The same for a path that upstreams can be asked for again: whoever comes back with it a month
    /// later needs nobody here to remember where the NAR is.
    pub(crate) fn url_for(&self, path: &StorePathHash) -> String {
        format!("nar/{self}?{PATH_PARAMETER}={path}")
    }
}

/// The parameter of a NAR's URL that names a path with that NAR. The NAR is what the file name says,
/// with it and without.
pub(crate) const PATH_PARAMETER: &str = "hash";

/// What a name fails at that is [none](NarFile::parse) only by how its NAR is compressed: its ending.
pub(crate) fn unknown_ending(text: &str) -> Option<&str> {
    let (digits, ending) = text.split_once(".nar.")?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric();
    let is_ending = (1..=ENDING_LEN_MAX).contains(&ending.len()) && ending.bytes().all(is_plain);
    let is_known = NarFile::parse(text).is_some();
    (is_ending && !is_known && FileHash::from_nix32(digits).is_ok()).then_some(ending)
}

const ENDING_LEN_MAX: usize = 16;

impl Display for NarFile {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(
            f,
            "{}.nar{}",
            nixbase32::encode(&self.hash),
            self.suffix.as_str()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        let digits = NarHash::of(b"x").nix32();
        for ending in ["", ".zst", ".xz", ".bz2", ".br"] {
            let name = format!("{digits}.nar{ending}");
            assert_eq!(NarFile::parse(&name).unwrap().to_string(), name);
        }
        let wrong = [
            format!("{digits}.nar.gz"),
            format!("{digits}.nar.lzip"),
            format!("{digits}.nar.zst.zst"),
            format!("{digits}.zst"),
            format!("{}.nar", digits.to_uppercase()),
            format!("{}.nar", &digits[1..]),
            format!("{}e.nar", &digits[1..]),
            "../x.nar".to_owned(),
            String::new(),
        ];
        for name in wrong {
            assert_eq!(NarFile::parse(&name), None, "{name}");
        }
    }

    #[test]
    fn only_an_ending_is_named_as_unknown() {
        let digits = NarHash::of(b"x").nix32();
        let lz4 = format!("{digits}.nar.lz4");
        assert_eq!(unknown_ending(&lz4), Some("lz4"));
        for other in [
            format!("{digits}.nar.zst"),
            format!("{digits}.nar"),
            format!("{digits}.nar."),
            format!("{digits}.nar.l/4"),
            format!("{}e.nar.lz4", &digits[1..]),
        ] {
            assert_eq!(unknown_ending(&other), None, "{other}");
        }
    }
}

//! Build logs as the local Nix keeps them.

use std::env;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use attic_store::store_path::StorePath;
use bzip2::read::MultiBzDecoder;
use thiserror::Error;

/// The folder of build logs of a local store.
///
/// **Source**: `LocalFSStore::getBuildLogExact` in Nix's `local-fs-store.cc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildLogs(PathBuf);

/// Why a log that is there cannot be had.
#[derive(Debug, Error)]
pub enum BuildLogError {
    /// It cannot be read, or is not compressed as its name says.
    #[error("read {}", path.display())]
    Read {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is longer than [`LOG_LEN_MAX`].
    #[error("{} is longer than {LOG_LEN_MAX} bytes", path.display())]
    TooLong {
        /// Its file.
        path: PathBuf,
    },
}

impl BuildLogs {
    /// Those of the store that `nix` uses by itself: in `NIX_LOG_DIR`, else where Nix is built to
    /// keep them.
    pub fn system() -> BuildLogs {
        let dir = env::var_os("NIX_LOG_DIR").filter(|dir| !dir.is_empty());
        BuildLogs(dir.map_or_else(|| LOG_DIR.into(), PathBuf::from))
    }

    /// Those of the chroot store in `root`.
    pub fn chroot(root: &Path) -> BuildLogs {
        BuildLogs(root.join(LOG_DIR.trim_start_matches('/')))
    }

    /// Those in `dir`.
    pub fn at(dir: impl Into<PathBuf>) -> BuildLogs {
        BuildLogs(dir.into())
    }

    /// The log of a derivation as one zstd frame; `None` when it was not built here. Blocks on the
    /// disk. Never holds the plain log in memory.
    ///
    /// **Errors**: any [`BuildLogError`].
    pub fn zstd(&self, derivation: &StorePath) -> Result<Option<Vec<u8>>, BuildLogError> {
        let Some(Found { path, bzip2 }) = self.find(derivation) else {
            return Ok(None);
        };
        let recompressed = File::open(&path).and_then(|file| match bzip2 {
            true => recompress(MultiBzDecoder::new(BufReader::new(file))),
            false => recompress(file),
        });
        match recompressed {
            Ok(Some(frame)) => Ok(Some(frame)),
            Ok(None) => Err(BuildLogError::TooLong { path }),
            Err(source) => Err(BuildLogError::Read { path, source }),
        }
    }

    /// Nix spreads logs over folders by the first two characters of the hash; very old ones lie in
    /// one folder.
    fn find(&self, derivation: &StorePath) -> Option<Found> {
        let name = derivation.to_string();
        let (start, rest) = name.split_at_checked(2)?;
        let dir = self.0.join("drvs");
        let spread = dir.join(start);
        let places = [
            (spread.join(rest), false),
            (spread.join(format!("{rest}.bz2")), true),
            (dir.join(&name), false),
            (dir.join(format!("{name}.bz2")), true),
        ];
        let mut found = places
            .into_iter()
            .map(|(path, bzip2)| Found { path, bzip2 });
        found.find(|found| found.path.is_file())
    }
}

struct Found {
    path: PathBuf,
    bzip2: bool,
}

/// `None` when `plain` is too long.
fn recompress(plain: impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    let len = io::copy(&mut plain.take(LOG_LEN_MAX + 1), &mut encoder)?;
    let frame = encoder.finish()?;
    Ok((len <= LOG_LEN_MAX).then_some(frame))
}

/// Longest log that is pushed, in plain bytes: what a node takes.
pub const LOG_LEN_MAX: u64 = 64 << 20;
/// Logs are text: a higher level costs much and wins little.
const LEVEL: i32 = 3;
const LOG_DIR: &str = "/nix/var/log/nix";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use bzip2::Compression;
    use bzip2::write::BzEncoder;

    use super::*;

    const DRV: &str = "0c5b8vw40d1178xlpddw65q9gf1h2186-a.drv";
    const REST: &str = "5b8vw40d1178xlpddw65q9gf1h2186-a.drv";

    fn bzip2(text: &[u8]) -> Vec<u8> {
        let mut encoder = BzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// The log of [`DRV`] when there is this one file.
    fn read(name: &str, bytes: &[u8]) -> Result<Option<Vec<u8>>, BuildLogError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("drvs").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
        let log = BuildLogs::at(dir.path()).zstd(&DRV.parse().unwrap())?;
        Ok(log.map(|frame| zstd::decode_all(&frame[..]).unwrap()))
    }

    #[test]
    fn s12_a_log_is_found_where_nix_puts_it() {
        let text = b"line\n".as_slice();
        let check = |name: &str, bytes: &[u8], wanted: Option<&[u8]>| {
            assert_eq!(read(name, bytes).unwrap().as_deref(), wanted, "{name}");
        };
        check(&format!("0c/{REST}.bz2"), &bzip2(text), Some(text));
        check(&format!("0c/{REST}"), text, Some(text));
        check(&format!("{DRV}.bz2"), &bzip2(text), Some(text));
        check(DRV, text, Some(text));
        check(&format!("0c/{REST}"), b"", Some(b""));
        check("0c/other.drv.bz2", &bzip2(text), None);
        check(&format!("0c/{REST}/a-folder"), text, None);
        // Two streams, as an interrupted and resumed writer leaves them.
        let twice = [bzip2(text), bzip2(text)].concat();
        check(&format!("0c/{REST}.bz2"), &twice, Some(b"line\nline\n"));
    }

    #[test]
    fn a_log_that_is_damaged_or_too_long_is_an_error() {
        let name = format!("0c/{REST}.bz2");
        let whole = bzip2(b"line\n");
        for damaged in [b"line\n".as_slice(), &whole[..whole.len() - 3]] {
            let error = read(&name, damaged).unwrap_err();
            assert!(matches!(error, BuildLogError::Read { .. }), "{error}");
        }
        let long = vec![b'x'; LOG_LEN_MAX as usize + 1];
        let error = read(&format!("0c/{REST}"), &long).unwrap_err();
        assert!(matches!(error, BuildLogError::TooLong { .. }), "{error}");
        assert!(read(&format!("0c/{REST}"), &long[1..]).unwrap().is_some());
    }
}

//! What a request for a cache's contents asks for: its target, parsed strictly. Pure.
//!
//! Nothing of a target ever becomes a file name; still, only well-formed names get past this
//! module, so that what is looked up, stored and logged has a known shape.

use std::borrow::Cow;

use attic_store::{StorePath, StorePathHash};

use crate::nar_file::{NarFile, PATH_PARAMETER};

/// A target below a cache.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// What stands where the cache's name does; not checked.
    pub(crate) cache: &'a str,
    /// What is asked of the cache; `None` if no cache can have it.
    pub(crate) object: Option<Object>,
}

/// An object of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    /// `nix-cache-info`
    CacheInfo,
    /// `<hash>.narinfo`
    NarInfo(StorePathHash),
    /// `nar/<file>`, and for which path it was named: `?hash=<hash>`
    Nar {
        file: NarFile,
        path: Option<StorePathHash>,
    },
    /// `<hash>.ls`
    Listing(StorePathHash),
    /// `log/…`, `realisations/…`, `build-trace-v2/…`, `debuginfo/…`
    Blob(BlobKey),
}

/// A small object that is stored as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobKey {
    pub(crate) kind: BlobKind,
    /// Path below the cache, decoded and in one spelling.
    pub(crate) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlobKind {
    /// Build log of a derivation.
    Log,
    /// Where an output of a content-addressed derivation lies; Nix until 2.34.
    Realisation,
    /// The same; Nix from 2.35.
    BuildTrace,
    /// Which NAR holds the debug information of a build id.
    DebugInfo,
}

impl<'a> Target<'a> {
    /// Reads path and query of a request as they were sent; `None` for a target that is not below
    /// any cache.
    pub(crate) fn parse(target: &'a str) -> Option<Target<'a>> {
        let (cache, rest) = target.strip_prefix('/')?.split_once('/')?;
        Some(Target {
            cache,
            object: Object::parse(rest),
        })
    }
}

impl Object {
    fn parse(rest: &str) -> Option<Object> {
        if let Some(name) = rest.strip_prefix("log/") {
            return log(name);
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path == "nix-cache-info" {
            return Some(Object::CacheInfo);
        }
        if let Some(hash) = path.strip_suffix(".narinfo") {
            return hash.parse().ok().map(Object::NarInfo);
        }
        if let Some(hash) = path.strip_suffix(".ls") {
            return hash.parse().ok().map(Object::Listing);
        }
        let (folder, name) = path.split_once('/')?;
        match folder {
            "nar" => NarFile::parse(name).map(|file| Object::Nar {
                file,
                path: path_of(query),
            }),
            "realisations" => blob(BlobKind::Realisation, name, realisation),
            "build-trace-v2" => blob(BlobKind::BuildTrace, name, build_trace),
            "debuginfo" => blob(BlobKind::DebugInfo, name, debug_info),
            _ => None,
        }
    }
}

/// The path that a query names; `None` also for a query of somebody else's making.
fn path_of(query: &str) -> Option<StorePathHash> {
    let mut parameters = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, hash) = parameters.find(|(name, _)| *name == PATH_PARAMETER)?;
    hash.parse().ok()
}

/// A log's name may hold `?`, which some clients send as it is: what follows it belongs to the name
/// when the whole ends like a derivation, and is a query otherwise.
fn log(name: &str) -> Option<Object> {
    let name = match name.split_once('?') {
        Some((path, _)) if !name.ends_with(".drv") => path,
        _ => name,
    };
    blob(BlobKind::Log, name, |name| {
        derivation(name)?;
        Some(format!("log/{name}"))
    })
}

fn realisation(name: &str) -> Option<String> {
    let (hash, output) = name.strip_prefix("sha256:")?.split_once('!')?;
    let well_formed = is_hex(hash, 64) && is_output(output.strip_suffix(".doi")?);
    well_formed.then(|| format!("realisations/{name}"))
}

fn build_trace(name: &str) -> Option<String> {
    let (drv, output) = name.split_once('/')?;
    derivation(drv)?;
    is_output(output.strip_suffix(".doi")?).then(|| format!("build-trace-v2/{name}"))
}

/// Clients ask with and without an ending; both name the same object.
fn debug_info(name: &str) -> Option<String> {
    let id = name.strip_suffix(".debug").unwrap_or(name);
    is_hex(id, 40).then(|| format!("debuginfo/{id}"))
}

fn blob(
    kind: BlobKind,
    name: &str,
    canonical: impl FnOnce(&str) -> Option<String>,
) -> Option<Object> {
    let text = canonical(&percent_decode(name)?)?;
    Some(Object::Blob(BlobKey { kind, text }))
}

fn derivation(name: &str) -> Option<StorePath> {
    name.parse()
        .ok()
        .filter(|path: &StorePath| path.name().ends_with(".drv"))
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Output names are made of the characters of store path names.
fn is_output(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte);
    (1..=OUTPUT_LEN_MAX).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('.')
}

const OUTPUT_LEN_MAX: usize = 211;

/// Replaces `%41` by `A`, once; `None` when that leaves no text.
fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>()?;
        let digit = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        bytes.push(digit(digits[0])? << 4 | digit(digits[1])?);
        rest = after;
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0c5b8vw40d1178xlpddw65q9gf1h2186";
    const DRV: &str = "0c5b8vw40d1178xlpddw65q9gf1h2186-a.drv";

    fn object(target: &str) -> Option<Object> {
        let parsed = Target::parse(target)?;
        assert_eq!(parsed.cache, "main", "{target}");
        parsed.object
    }

    fn nar(file: &str, path: Option<StorePathHash>) -> Object {
        let file = NarFile::parse(file).unwrap();
        Object::Nar { file, path }
    }

    fn blob_text(target: &str) -> Option<String> {
        match object(target)? {
            Object::Blob(key) => Some(key.text),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn known_objects() {
        let hash: StorePathHash = HASH.parse().unwrap();
        let file = format!("{}.nar.zst", "1".repeat(52));
        let rows = [
            ("/main/nix-cache-info".to_owned(), Object::CacheInfo),
            ("/main/nix-cache-info?x=1".to_owned(), Object::CacheInfo),
            (format!("/main/{HASH}.narinfo"), Object::NarInfo(hash)),
            (
                format!("/main/{HASH}.narinfo?x=/../"),
                Object::NarInfo(hash),
            ),
            (format!("/main/{HASH}.ls"), Object::Listing(hash)),
            (format!("/main/nar/{file}"), nar(&file, None)),
            (
                format!("/main/nar/{file}?hash={HASH}"),
                nar(&file, Some(hash)),
            ),
            (
                format!("/main/nar/{file}?x&a=b&hash={HASH}&c=d"),
                nar(&file, Some(hash)),
            ),
            (
                format!("/main/nar/{file}?hash={}", &HASH[1..]),
                nar(&file, None),
            ),
            (format!("/main/nar/{file}?rehash={HASH}"), nar(&file, None)),
        ];
        for (target, wanted) in rows {
            assert_eq!(object(&target), Some(wanted), "{target}");
        }
    }

    #[test]
    fn small_objects_have_one_spelling() {
        let hex = "a1".repeat(32);
        let id = "0f".repeat(20);
        let rows = [
            (format!("/main/log/{DRV}"), format!("log/{DRV}")),
            (format!("/main/log/{DRV}?download=1"), format!("log/{DRV}")),
            (
                format!("/main/log/{HASH}-a?b=c.drv"),
                format!("log/{HASH}-a?b=c.drv"),
            ),
            (
                format!("/main/log/{HASH}-a%3Fb%3dc.drv"),
                format!("log/{HASH}-a?b=c.drv"),
            ),
            (
                format!("/main/realisations/sha256:{hex}!out.doi"),
                format!("realisations/sha256:{hex}!out.doi"),
            ),
            (
                format!("/main/realisations/sha256%3A{hex}%21out.doi"),
                format!("realisations/sha256:{hex}!out.doi"),
            ),
            (
                format!("/main/build-trace-v2/{DRV}/out.doi"),
                format!("build-trace-v2/{DRV}/out.doi"),
            ),
            (
                format!("/main/debuginfo/{id}.debug"),
                format!("debuginfo/{id}"),
            ),
            (format!("/main/debuginfo/{id}"), format!("debuginfo/{id}")),
        ];
        for (target, wanted) in rows {
            assert_eq!(blob_text(&target), Some(wanted), "{target}");
        }
    }

    #[test]
    fn nothing_else_is_an_object() {
        let rows = [
            "/main/".to_owned(),
            "/main//nix-cache-info".to_owned(),
            "/main/./nix-cache-info".to_owned(),
            "/main/../main/nix-cache-info".to_owned(),
            "/main/nix-cache-info/".to_owned(),
            "/main/NIX-CACHE-INFO".to_owned(),
            "/main/nix%2dcache-info".to_owned(),
            format!("/main/{}.narinfo", &HASH[1..]),
            format!("/main/{HASH}a.narinfo"),
            format!("/main/{}.narinfo", HASH.to_uppercase()),
            format!("/main/{}e.narinfo", &HASH[1..]),
            format!("/main/{HASH}%00.narinfo"),
            format!("/main/%30{}.narinfo", &HASH[1..]),
            format!("/main/{HASH}.narinfo.tmp"),
            "/main/nar/../admin-token".to_owned(),
            "/main/nar/..%2f..%2fadmin-token".to_owned(),
            "/main/log/..%2f..%2fadmin-token".to_owned(),
            format!("/main/log/{HASH}-a"),
            format!("/main/log/{DRV}/x"),
            format!("/main/log/{DRV}%00"),
            format!("/main/log/{DRV}%"),
            format!("/main/log/{DRV}%ff"),
            format!("/main/log/{DRV}%252e"),
            format!("/main/realisations/sha256:{}!out.doi", "A1".repeat(32)),
            format!("/main/realisations/sha256:{}!../x.doi", "a1".repeat(32)),
            format!("/main/build-trace-v2/{DRV}/..doi"),
            format!("/main/build-trace-v2/{DRV}/out"),
            "/main/debuginfo/xyz".to_owned(),
            "/main/pins/x".to_owned(),
        ];
        for target in rows {
            assert_eq!(object(&target), None, "{target}");
        }
        for target in ["", "/", "*", "main", "/main", "//", "/nix-cache-info"] {
            let parsed = Target::parse(target);
            assert!(
                parsed.is_none_or(|parsed| parsed.object.is_none()),
                "{target}"
            );
        }
    }
}

//! Which caches a node may read and write.
//!
//! A right is a cache name with wildcards, the form attic's tokens have. Two questions are asked of
//! it: does it cover this cache, and does a right that a delegate hands on stay within the right it
//! was given. The second is answered by the same match as the first: the inner pattern is read as
//! text, in which a `*` can only be swallowed by a `*` of the outer one. Where that match succeeds,
//! whatever the inner stars stand for is swallowed as well, so the answer is never wrongly yes; it
//! may be no where a subset needs several outer patterns together.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};
use std::str::FromStr;

use attic_store::CacheName;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::bounded;

/// What a node may do with which caches. Neither right implies the other.
///
/// **Shape**: two sets of at most [`Scopes::PATTERNS_MAX`] patterns, ordered. Default is no right
/// at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawScopes")]
pub struct Scopes {
    read: Vec<Pattern>,
    write: Vec<Pattern>,
}

impl Scopes {
    /// Most patterns per right.
    pub const PATTERNS_MAX: usize = 16;

    /// The scopes that allow this. Order and repetition mean nothing.
    ///
    /// **Errors** when a list is longer than [`Scopes::PATTERNS_MAX`].
    pub fn new(mut read: Vec<Pattern>, mut write: Vec<Pattern>) -> Result<Scopes, ScopesError> {
        for patterns in [&mut read, &mut write] {
            patterns.sort_unstable();
            patterns.dedup();
            if patterns.len() > Scopes::PATTERNS_MAX {
                return Err(ScopesError::Count {
                    found: patterns.len(),
                });
            }
        }
        Ok(Scopes { read, write })
    }

    /// Reads every cache, writes none.
    pub fn read_all() -> Scopes {
        Scopes {
            read: vec![Pattern::any()],
            write: Vec::new(),
        }
    }

    /// Reads and writes every cache.
    pub fn all() -> Scopes {
        Scopes {
            read: vec![Pattern::any()],
            write: vec![Pattern::any()],
        }
    }

    /// What may be read, in order.
    pub fn read(&self) -> &[Pattern] {
        &self.read
    }

    /// What may be written, in order.
    pub fn write(&self) -> &[Pattern] {
        &self.write
    }

    /// Whether `cache` may be read.
    pub fn may_read(&self, cache: &CacheName) -> bool {
        self.read.iter().any(|pattern| pattern.matches(cache))
    }

    /// Whether `cache` may be written.
    pub fn may_write(&self, cache: &CacheName) -> bool {
        self.write.iter().any(|pattern| pattern.matches(cache))
    }

    /// Whether `outer` allows everything that these scopes allow.
    ///
    /// Yes is certain. No may be too strict: each pattern must lie within a single one of `outer`.
    pub fn within(&self, outer: &Scopes) -> bool {
        let covered = |inner: &[Pattern], outer: &[Pattern]| {
            inner
                .iter()
                .all(|pattern| outer.iter().any(|wide| pattern.within(wide)))
        };
        covered(&self.read, &outer.read) && covered(&self.write, &outer.write)
    }
}

#[derive(Deserialize)]
struct RawScopes {
    #[serde(deserialize_with = "bounded::list::<_, _, { Scopes::PATTERNS_MAX }>")]
    read: Vec<Pattern>,
    #[serde(deserialize_with = "bounded::list::<_, _, { Scopes::PATTERNS_MAX }>")]
    write: Vec<Pattern>,
}

impl TryFrom<RawScopes> for Scopes {
    type Error = ScopesError;

    fn try_from(raw: RawScopes) -> Result<Scopes, ScopesError> {
        Scopes::new(raw.read, raw.write)
    }
}

/// A cache name in which `*` stands for any characters, also none.
///
/// **Shape**: 1 to [`CacheName::LEN_MAX`] of `[A-Za-z0-9-_+*]`. Serialised as this text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Box<str>);

impl Pattern {
    /// The pattern that every cache matches.
    pub fn any() -> Pattern {
        Pattern("*".into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for `cache`, among others.
    pub fn matches(&self, cache: &CacheName) -> bool {
        glob(self.0.as_bytes(), cache.as_str().as_bytes())
    }

    /// Whether `outer` stands for every name that this one stands for.
    pub fn within(&self, outer: &Pattern) -> bool {
        glob(outer.0.as_bytes(), self.0.as_bytes())
    }
}

/// Whether `text` is `pattern` with each `*` replaced by some bytes.
///
/// After a mismatch only the last star has to grow, so this takes `pattern × text` steps at most.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, swallowed)) => {
                    retry = Some((after_star, swallowed + 1));
                    (p, t) = (after_star, swallowed + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

impl Display for Pattern {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(&self.0)
    }
}

impl Debug for Pattern {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        Display::fmt(self, f)
    }
}

impl FromStr for Pattern {
    type Err = ScopesError;

    fn from_str(text: &str) -> Result<Pattern, ScopesError> {
        if text.is_empty() || text.len() > CacheName::LEN_MAX {
            return Err(ScopesError::Length { found: text.len() });
        }
        let foreign = |c: &char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '+' | '*');
        match text.chars().find(foreign) {
            Some(found) => Err(ScopesError::Character { found }),
            None => Ok(Pattern(text.into())),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = ScopesError;

    fn try_from(text: String) -> Result<Pattern, ScopesError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.0.into()
    }
}

/// Why there are no such scopes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScopesError {
    /// Too many patterns for one right.
    #[error("{found} cache patterns, not at most {max}", max = Scopes::PATTERNS_MAX)]
    Count {
        /// How many there were.
        found: usize,
    },
    /// A pattern is empty or longer than a cache name.
    #[error("cache pattern has {found} characters, not 1 to {max}", max = CacheName::LEN_MAX)]
    Length {
        /// Length in bytes.
        found: usize,
    },
    /// A character outside `[A-Za-z0-9-_+*]`.
    #[error("cache pattern contains {found:?}")]
    Character {
        /// The first such character.
        found: char,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    fn scopes(read: &[&str], write: &[&str]) -> Scopes {
        let parse = |texts: &[&str]| texts.iter().map(|text| pattern(text)).collect();
        Scopes::new(parse(read), parse(write)).unwrap()
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (text, cache, matches) in [
            ("*", "x", true),
            ("main", "main", true),
            ("main", "main2", false),
            ("main*", "main", true),
            ("team-*", "team-a", true),
            ("team-*", "tea", false),
            ("*-a", "team-a", true),
            ("*-a", "team-a-b", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("**", "x", true),
        ] {
            let cache = cache.parse().unwrap();
            assert_eq!(pattern(text).matches(&cache), matches, "{text} {cache}");
        }
    }

    #[test]
    fn patterns_are_cache_names_with_stars() {
        let long = "x".repeat(51);
        for text in ["", "a b", "a/b", "a?", "ü", &*long] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn rights_handed_on_stay_within() {
        for (inner, outer, within) in [
            (scopes(&[], &[]), scopes(&[], &[]), true),
            (scopes(&["a"], &[]), scopes(&["*"], &[]), true),
            (scopes(&["a", "b"], &[]), scopes(&["a"], &[]), false),
            (scopes(&["*"], &[]), scopes(&["a", "b*"], &[]), false),
            (scopes(&["b-*"], &[]), scopes(&["b*"], &[]), true),
            (scopes(&["b*"], &[]), scopes(&["b-*"], &[]), false),
            (scopes(&[], &["a"]), scopes(&["a"], &[]), false),
            (scopes(&["a"], &[]), scopes(&[], &["a"]), false),
            (scopes(&["*"], &["m"]), scopes(&["*"], &["m*"]), true),
        ] {
            assert_eq!(inner.within(&outer), within, "{inner:?} {outer:?}");
        }
    }

    #[test]
    fn order_and_repetition_mean_nothing() {
        assert_eq!(scopes(&["b", "a", "b"], &[]), scopes(&["a", "b"], &[]));
    }

    #[test]
    fn lists_are_bounded_when_made_and_when_read() {
        let many: Vec<Pattern> = (0..17).map(|i| pattern(&format!("c{i}"))).collect();
        let error = Scopes::new(many.clone(), Vec::new());
        assert_eq!(error, Err(ScopesError::Count { found: 17 }));
        let wire = postcard::to_stdvec(&(many, Vec::<Pattern>::new())).unwrap();
        assert!(postcard::from_bytes::<Scopes>(&wire).is_err());
    }

    proptest! {
        #[test]
        fn within_never_widens(inner in "[ab*]{1,6}", outer in "[ab*]{1,6}", name in "[ab]{1,6}") {
            let (inner, outer, name) = (pattern(&inner), pattern(&outer), name.parse().unwrap());
            if inner.within(&outer) && inner.matches(&name) {
                prop_assert!(outer.matches(&name));
            }
        }

        #[test]
        fn encodings_read_back(read in prop::collection::vec("[a-z*]{1,9}", 0..=16)) {
            let read = read.iter().map(|text| pattern(text)).collect();
            let scopes = Scopes::new(read, vec![Pattern::any()]).unwrap();
            let wire = postcard::to_stdvec(&scopes).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Scopes>(&wire), Ok(scopes));
        }
    }
}

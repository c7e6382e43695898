//! Which part of a representation a request wants: ranges and entity tags. Pure.
//!
//! **Source**: RFC 9110, sections 13 and 14. A range that is malformed, or more than one, is
//! ignored, as the RFC allows: the whole is always a right answer, and a thousand ranges buy
//! nothing.

use std::ops::Range;

/// What to send of a representation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// All of it: 200.
    Whole,
    /// These bytes, not empty: 206.
    Part(Range<u64>),
    /// Nothing that was asked for exists: 416.
    Beyond,
}

/// Judges a `Range` header, honoured only if `If-Range`, when present, is exactly `etag`.
pub(crate) fn select(
    range: Option<&[u8]>,
    if_range: Option<&[u8]>,
    etag: &[u8],
    size: u64,
) -> Selection {
    let changed = if_range.is_some_and(|tag| tag.trim_ascii() != etag);
    match range.and_then(parse_range) {
        Some(wanted) if !changed => wanted.of(size),
        _ => Selection::Whole,
    }
}

/// Whether an `If-None-Match` header names `etag`. Compares weakly, as it should for `GET`.
pub(crate) fn none_match(header: &[u8], etag: &[u8]) -> bool {
    let same = |tag: &[u8]| {
        let tag = tag.trim_ascii();
        tag.strip_prefix(b"W/").unwrap_or(tag) == etag
    };
    header.trim_ascii() == b"*" || header.split(|byte| *byte == b',').any(same)
}

/// One range as written.
enum Wanted {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

impl Wanted {
    fn of(self, size: u64) -> Selection {
        let range = match self {
            Wanted::From(start) => start..size,
            Wanted::Between(start, last) => start..size.min(last.saturating_add(1)),
            Wanted::Last(len) => size.saturating_sub(len)..size,
        };
        if range.is_empty() {
            Selection::Beyond
        } else {
            Selection::Part(range)
        }
    }
}

fn parse_range(header: &[u8]) -> Option<Wanted> {
    let header = std::str::from_utf8(header).ok()?.trim();
    let (unit, range) = header.split_once('=')?;
    let (start, last) = range.split_once('-')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    match (start.trim_start(), last.trim_end()) {
        ("", last) => number(last).map(Wanted::Last),
        (start, "") => number(start).map(Wanted::From),
        (start, last) => {
            let (start, last) = (number(start)?, number(last)?);
            (start <= last).then_some(Wanted::Between(start, last))
        }
    }
}

/// Digits only; a number beyond 64 bits is beyond every end.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_hundred_bytes() {
        let rows = [
            ("bytes=0-0", Selection::Part(0..1)),
            ("bytes=10-19", Selection::Part(10..20)),
            ("bytes=10-", Selection::Part(10..100)),
            ("bytes=-10", Selection::Part(90..100)),
            ("bytes=-1000", Selection::Part(0..100)),
            ("bytes=99-", Selection::Part(99..100)),
            ("bytes=90-1000", Selection::Part(90..100)),
            ("Bytes=0-99", Selection::Part(0..100)),
            ("bytes= 0-1 ", Selection::Part(0..2)),
            ("bytes=0-99999999999999999999999", Selection::Part(0..100)),
            ("bytes=100-", Selection::Beyond),
            ("bytes=100-200", Selection::Beyond),
            ("bytes=-0", Selection::Beyond),
            ("bytes=99999999999999999999999-", Selection::Beyond),
            ("bytes=5-4", Selection::Whole),
            ("bytes=0-1,3-4", Selection::Whole),
            ("bytes=,0-1", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("bytes=--1", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("bytes=", Selection::Whole),
            ("bytes", Selection::Whole),
            ("lines=1-2", Selection::Whole),
            ("", Selection::Whole),
        ];
        for (header, wanted) in rows {
            assert_eq!(
                select(Some(header.as_bytes()), None, b"\"e\"", 100),
                wanted,
                "{header}"
            );
        }
        assert_eq!(
            select(Some(b"bytes=\xff-"), None, b"\"e\"", 100),
            Selection::Whole
        );
        assert_eq!(select(None, None, b"\"e\"", 100), Selection::Whole);
    }

    #[test]
    fn if_range_must_be_the_very_tag() {
        let rows: [(&[u8], bool); 5] = [
            (b"\"e\"", true),
            (b" \"e\" ", true),
            (b"\"f\"", false),
            (b"W/\"e\"", false),
            (b"Sat, 22 Nov 2025 00:00:00 GMT", false),
        ];
        for (tag, honoured) in rows {
            let selection = select(Some(b"bytes=1-"), Some(tag), b"\"e\"", 100);
            assert_eq!(selection == Selection::Part(1..100), honoured, "{tag:?}");
        }
    }

    #[test]
    fn if_none_match_compares_weakly_in_a_list() {
        for header in ["\"e\"", "W/\"e\"", "\"a\", \"e\"", "*", " * "] {
            assert!(none_match(header.as_bytes(), b"\"e\""), "{header}");
        }
        for header in ["", "\"f\"", "e", "\"e", "\"a\",\"b\""] {
            assert!(!none_match(header.as_bytes(), b"\"e\""), "{header}");
        }
    }
}

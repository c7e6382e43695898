//! The `.ls` listing of a NAR, written as the NAR is read.

use std::fmt::Write as _;

/// What is in a NAR: the text Nix uploads as `<hash>.ls`.
///
/// **Shape** JSON without spaces, `{"version":1,"root":<node>}`. A node is an object with `type`
/// and then, for a regular file `size`, `executable` if it is, and `narOffset`, for a directory
/// `entries`, for a symbolic link `target`. Keys come in this order; newer Nix sorts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing(Result<String, Unlisted>);

impl Listing {
    /// The JSON text, if the NAR has one.
    pub fn json(&self) -> Option<&str> {
        self.0.as_deref().ok()
    }

    /// The JSON text, or why there is none.
    pub fn into_json(self) -> Result<String, Unlisted> {
        self.0
    }
}

/// Why a well-formed NAR has no listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unlisted {
    /// The text would be longer than [`NarLimits::listing_len_max`](super::NarLimits).
    #[error("listing too long")]
    TooLong,
    /// A name or link target is not UTF-8, which JSON cannot carry: old Nix writes broken JSON
    /// there, newer Nix fails.
    #[error("name or link target is not UTF-8")]
    NotUtf8,
}

/// Writes a [`Listing`]. Calls come in the order of the NAR; the parser sees to it.
#[derive(Debug)]
pub(super) struct ListingBuilder {
    json: Result<String, Unlisted>,
    len_max: usize,
}

impl ListingBuilder {
    pub(super) fn new(len_max: usize) -> Self {
        Self {
            json: Ok(r#"{"version":1,"root":"#.to_owned()),
            len_max,
        }
    }

    pub(super) fn regular(&mut self, size: u64, executable: bool, nar_offset: u64) {
        let executable = if executable {
            r#","executable":true"#
        } else {
            ""
        };
        self.append(|json| {
            write!(
                json,
                r#"{{"type":"regular","size":{size}{executable},"narOffset":{nar_offset}}}"#
            )
            .expect("a String takes everything");
            Ok(())
        });
    }

    pub(super) fn symlink(&mut self, target: &[u8]) {
        self.append(|json| {
            json.push_str(r#"{"type":"symlink","target":"#);
            push_string(json, target)?;
            json.push('}');
            Ok(())
        });
    }

    pub(super) fn directory_begin(&mut self) {
        self.append(|json| {
            json.push_str(r#"{"type":"directory","entries":{"#);
            Ok(())
        });
    }

    pub(super) fn entry(&mut self, name: &[u8], first: bool) {
        self.append(|json| {
            if !first {
                json.push(',');
            }
            push_string(json, name)?;
            json.push(':');
            Ok(())
        });
    }

    pub(super) fn directory_end(&mut self) {
        self.append(|json| {
            json.push_str("}}");
            Ok(())
        });
    }

    pub(super) fn finish(mut self) -> Listing {
        self.append(|json| {
            json.push('}');
            Ok(())
        });
        Listing(self.json)
    }

    /// Appends unless the listing is given up already, and gives it up when it must be.
    fn append(&mut self, piece: impl FnOnce(&mut String) -> Result<(), Unlisted>) {
        let Ok(json) = &mut self.json else { return };
        let appended = piece(json);
        if let Err(reason) = appended {
            self.json = Err(reason);
        } else if json.len() > self.len_max {
            self.json = Err(Unlisted::TooLong);
        }
    }
}

/// Appends `bytes` as a JSON string with the escapes that Nix uses.
fn push_string(json: &mut String, bytes: &[u8]) -> Result<(), Unlisted> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unlisted::NotUtf8)?;
    json.push('"');
    let mut rest = text;
    while let Some(at) = rest.find(|c| c < ' ' || matches!(c, '"' | '\\')) {
        json.push_str(&rest[..at]);
        push_escaped(json, rest.as_bytes()[at]);
        rest = &rest[at + 1..];
    }
    json.push_str(rest);
    json.push('"');
    Ok(())
}

fn push_escaped(json: &mut String, byte: u8) {
    match byte {
        b'"' => json.push_str("\\\""),
        b'\\' => json.push_str("\\\\"),
        b'\n' => json.push_str("\\n"),
        b'\r' => json.push_str("\\r"),
        b'\t' => json.push_str("\\t"),
        control => write!(json, "\\u{control:04x}").expect("a String takes everything"),
    }
}

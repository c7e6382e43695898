//! What small objects must look like to be taken. Pure.
//!
//! They are stored as they were sent and served to clients that follow what they say: where debug
//! information lies, which output a derivation has.

use attic_store::StorePath;
use serde::Deserialize;
use serde::de::IgnoredAny;
use thiserror::Error;

use crate::http::target::{BlobKey, BlobKind};
use crate::nar_file::NarFile;

/// An object is not what its name promises.
#[derive(Debug, Error)]
pub(crate) enum BlobFault {
    /// Not JSON, or a field is absent or of another type.
    #[error("not the JSON that Nix writes there: {0}")]
    Json(#[from] serde_json::Error),
    /// `archive` of debug information.
    #[error("archive is not a NAR of this cache, ../nar/…")]
    Archive,
    /// `member` of debug information.
    #[error("member is not a path inside a NAR")]
    Member,
    /// `outPath` of a realisation.
    #[error("outPath is not a store path")]
    OutPath,
    /// `id` of a realisation.
    #[error("id is not that of the file name")]
    Id,
}

impl BlobKey {
    /// Checks an object that was sent under this name.
    ///
    /// **Errors**: the first thing that is wrong with it.
    pub(crate) fn check(&self, text: &[u8]) -> Result<(), BlobFault> {
        match self.kind {
            BlobKind::Log => Ok(()),
            BlobKind::DebugInfo => serde_json::from_slice::<DebugInfo>(text)?.check(),
            BlobKind::BuildTrace => serde_json::from_slice::<BuildTrace>(text)?.check(),
            BlobKind::Realisation => {
                let realisation = serde_json::from_slice::<Realisation>(text)?;
                let id = self.text.strip_prefix("realisations/");
                match id.and_then(|name| name.strip_suffix(".doi")) == Some(&*realisation.id) {
                    true => check_out_path(&realisation.out_path),
                    false => Err(BlobFault::Id),
                }
            }
        }
    }
}

/// **Shape**: `{"archive":"../nar/<file>","member":"lib/debug/…"}`.
#[derive(Deserialize)]
struct DebugInfo {
    archive: String,
    member: String,
}

impl DebugInfo {
    fn check(&self) -> Result<(), BlobFault> {
        let file = self.archive.strip_prefix("../nar/");
        file.and_then(NarFile::parse).ok_or(BlobFault::Archive)?;
        let is_step = |step: &str| !matches!(step, "" | "." | "..") && !step.contains('\0');
        let is_inside = self.member.split('/').all(is_step);
        is_inside.then_some(()).ok_or(BlobFault::Member)
    }
}

/// **Shape**: `{"id":"sha256:<hex>!<output>","outPath":…,"signatures":[…],…}`; Nix until 2.34.
#[derive(Deserialize)]
struct Realisation {
    id: String,
    #[serde(rename = "outPath")]
    out_path: String,
    #[serde(default, rename = "signatures")]
    _signatures: Vec<IgnoredAny>,
}

/// **Shape**: `{"outPath":…,"signatures":[…]}`, alone or as `value` beside its `key`; Nix from 2.35.
#[derive(Deserialize)]
#[serde(untagged)]
enum BuildTrace {
    Alone(TraceValue),
    Keyed { value: TraceValue },
}

#[derive(Deserialize)]
struct TraceValue {
    #[serde(rename = "outPath")]
    out_path: String,
    #[serde(default, rename = "signatures")]
    _signatures: Vec<IgnoredAny>,
}

impl BuildTrace {
    fn check(&self) -> Result<(), BlobFault> {
        let (BuildTrace::Alone(value) | BuildTrace::Keyed { value }) = self;
        check_out_path(&value.out_path)
    }
}

/// Nix writes the base name.
fn check_out_path(text: &str) -> Result<(), BlobFault> {
    text.parse::<StorePath>()
        .map(drop)
        .map_err(|_| BlobFault::OutPath)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: &str = "0c5b8vw40d1178xlpddw65q9gf1h2186-a";

    #[track_caller]
    fn check(kind: BlobKind, name: &str, text: &str, wanted: Option<&str>) {
        let key = BlobKey {
            kind,
            text: name.to_owned(),
        };
        let fault = key
            .check(text.as_bytes())
            .err()
            .map(|fault| fault.to_string());
        let fits = match (&fault, wanted) {
            (Some(fault), Some(wanted)) => fault.contains(wanted),
            (fault, wanted) => fault.is_none() && wanted.is_none(),
        };
        assert!(fits, "{text}: {fault:?}, wanted {wanted:?}");
    }

    #[test]
    fn debug_information_names_a_file_of_a_nar_of_its_cache() {
        let file = format!("{}.nar.xz", "1".repeat(52));
        let member = "lib/debug/.build-id/ab/cd.debug";
        let rows = [
            (format!("../nar/{file}"), member, None),
            (format!("nar/{file}"), member, Some("archive")),
            (format!("../../other/nar/{file}"), member, Some("archive")),
            (format!("../nar/../{file}"), member, Some("archive")),
            (
                format!("https://elsewhere/nar/{file}"),
                member,
                Some("archive"),
            ),
            (format!("../nar/{file}"), "../x", Some("member")),
            (format!("../nar/{file}"), "/etc/passwd", Some("member")),
            (format!("../nar/{file}"), "", Some("member")),
        ];
        for (archive, member, wanted) in rows {
            let text = serde_json::json!({ "archive": archive, "member": member }).to_string();
            check(BlobKind::DebugInfo, "debuginfo/x", &text, wanted);
        }
        for text in ["", "[]", "{}", "{\"archive\":1,\"member\":\"x\"}", "junk"] {
            check(BlobKind::DebugInfo, "debuginfo/x", text, Some("JSON"));
        }
    }

    #[test]
    fn realisations_are_those_that_nix_writes() {
        let id = format!("sha256:{}!out", "0a".repeat(32));
        let name = format!("realisations/{id}.doi");
        let rows = [
            (
                format!(
                    "{{\"dependentRealisations\":{{}},\"id\":\"{id}\",\"outPath\":\"{OUT}\",\
                     \"signatures\":[\"k:x\"]}}"
                ),
                None,
            ),
            (format!("{{\"id\":\"{id}\",\"outPath\":\"{OUT}\"}}"), None),
            (
                format!("{{\"id\":\"{id}x\",\"outPath\":\"{OUT}\"}}"),
                Some("id is not"),
            ),
            (
                format!("{{\"id\":\"{id}\",\"outPath\":\"../x\"}}"),
                Some("outPath"),
            ),
            (format!("{{\"outPath\":\"{OUT}\"}}"), Some("JSON")),
            ("{}".to_owned(), Some("JSON")),
        ];
        for (text, wanted) in rows {
            check(BlobKind::Realisation, &name, &text, wanted);
        }
    }

    #[test]
    fn build_traces_are_those_that_nix_writes() {
        let value = format!(
            "{{\"outPath\":\"{OUT}\",\"signatures\":[{{\"keyName\":\"k\",\"sig\":\"x\"}}]}}"
        );
        let keyed = format!("{{\"key\":{{\"outputName\":\"out\"}},\"value\":{value}}}");
        let rows = [
            (value, None),
            (keyed, None),
            ("{\"outPath\":\"x\"}".to_owned(), Some("outPath")),
            ("{\"a\":1}".to_owned(), Some("JSON")),
            ("[]".to_owned(), Some("JSON")),
        ];
        for (text, wanted) in rows {
            check(BlobKind::BuildTrace, "build-trace-v2/x", &text, wanted);
        }
    }
}

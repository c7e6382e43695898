//! What `nix path-info --json` prints, in every format since Nix 2.8.
//!
//! | printed by | shape |
//! |---|---|
//! | 2.8 to 2.18, Lix | list of objects with `path`; `"valid": false` for an unknown path |
//! | 2.19 and later | object keyed by full path; `null` for an unknown path |
//! | `--json-format 2` and `3` | the same under `info`, beside `version` and `storeDir`; keyed by base name |
//!
//! A hash is SRI, `sha256:<digits>` or `{algorithm, format, hash}`; a content address is Nix's text
//! or `{method, hash}`; a signature is `name:base64` or `{keyName, sig}`; a reference is a full path
//! or a base name. Each is taken wherever it stands, whatever the version says.

use std::collections::BTreeSet;

use attic_store::hash::{HashError, NarHash};
use attic_store::narinfo::{ContentAddress, PathInfo};
use attic_store::signature::Signature;
use attic_store::store_path::{StoreDir, StorePath, StorePathError};
use serde_json::{Map, Value};
use thiserror::Error;

/// What Nix knows about some paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Directory that all the paths lie in.
    pub store_dir: StoreDir,
    /// The valid paths, ordered by path, each once.
    pub valid: Vec<PathInfo>,
    /// Paths that were asked for and are not valid, as Nix names them.
    pub invalid: Vec<String>,
}

/// An answer of Nix that cannot be understood.
#[derive(Debug, Error)]
pub enum PathInfoError {
    /// Not JSON.
    #[error("output of nix path-info is not JSON")]
    Json(#[from] serde_json::Error),
    /// JSON of a shape no known version prints.
    #[error("output of nix path-info is neither a list nor an object of paths")]
    Shape,
    /// The paths lie in different directories.
    #[error("nix path-info names paths in {0} and in {1}")]
    StoreDirs(StoreDir, StoreDir),
    /// A store path, or the directory it is in, is malformed.
    #[error("nix path-info names {text:?}")]
    Path {
        /// The path as printed.
        text: String,
        /// What is wrong with it.
        source: StorePathError,
    },
    /// A field is absent or has the wrong type.
    #[error("nix path-info says nothing usable as {field} of {path}")]
    Field {
        /// Whose field.
        path: String,
        /// Its name.
        field: &'static str,
    },
    /// The NAR hash is not a SHA-256.
    #[error("narHash of {path}")]
    NarHash {
        /// Whose hash.
        path: String,
        /// What is wrong with it.
        source: HashError,
    },
}

/// Reads the output of `nix path-info --json`.
///
/// A malformed signature is left out, as Nix itself ignores it; everything else that is malformed
/// is an error.
///
/// **Errors**: any [`PathInfoError`], naming the path it is about.
pub fn parse(output: &[u8]) -> Result<Answer, PathInfoError> {
    let document: Value = serde_json::from_slice(output)?;
    let mut reader = Reader {
        store_dir: declared_store_dir(&document)?,
        ..Reader::default()
    };
    match document {
        Value::Array(entries) => reader.read_list(entries)?,
        Value::Object(mut object) => match object.remove("info") {
            Some(Value::Object(entries)) => reader.read_map(entries)?,
            Some(_) => return Err(PathInfoError::Shape),
            None => reader.read_map(object)?,
        },
        _ => return Err(PathInfoError::Shape),
    }
    Ok(reader.finish())
}

/// The `storeDir` beside `info`, where a version prints one.
fn declared_store_dir(document: &Value) -> Result<Option<StoreDir>, PathInfoError> {
    document
        .get("storeDir")
        .and_then(Value::as_str)
        .map(parse_store_dir)
        .transpose()
}

#[derive(Default)]
struct Reader {
    store_dir: Option<StoreDir>,
    valid: Vec<PathInfo>,
    invalid: Vec<String>,
}

impl Reader {
    fn read_list(&mut self, entries: Vec<Value>) -> Result<(), PathInfoError> {
        for entry in entries {
            let path = entry
                .get("path")
                .and_then(Value::as_str)
                .ok_or(PathInfoError::Shape)?;
            self.read_entry(path, &entry)?;
        }
        Ok(())
    }

    /// Skips what is neither an object nor `null`: fields that describe the document.
    fn read_map(&mut self, entries: Map<String, Value>) -> Result<(), PathInfoError> {
        for (path, entry) in entries.iter().filter(|(_, e)| e.is_object() || e.is_null()) {
            self.read_entry(path, entry)?;
        }
        Ok(())
    }

    fn read_entry(&mut self, path: &str, entry: &Value) -> Result<(), PathInfoError> {
        let Value::Object(fields) = entry else {
            self.invalid.push(path.to_owned());
            return Ok(());
        };
        if fields.get("valid") == Some(&Value::Bool(false)) {
            self.invalid.push(path.to_owned());
            return Ok(());
        }
        if let Some(dir) = fields.get("storeDir").and_then(Value::as_str) {
            self.agree_on(parse_store_dir(dir)?)?;
        }
        let info = self.read_info(path, fields)?;
        self.valid.push(info);
        Ok(())
    }

    fn read_info(
        &mut self,
        path: &str,
        fields: &Map<String, Value>,
    ) -> Result<PathInfo, PathInfoError> {
        let missing = |field| PathInfoError::Field {
            path: path.to_owned(),
            field,
        };
        let references = fields.get("references").and_then(Value::as_array);
        let deriver = fields.get("deriver").and_then(Value::as_str);
        let ca = fields.get("ca").filter(|ca| !ca.is_null());
        Ok(PathInfo {
            path: self.store_path(path)?,
            nar_hash: nar_hash(path, fields.get("narHash"))?,
            nar_size: fields
                .get("narSize")
                .and_then(Value::as_u64)
                .ok_or_else(|| missing("narSize"))?,
            references: self.references(references.ok_or_else(|| missing("references"))?, path)?,
            deriver: deriver
                .map(|deriver| self.store_path(deriver))
                .transpose()?,
            ca: ca
                .map(|ca| content_address(ca).ok_or_else(|| missing("ca")))
                .transpose()?,
            signatures: signatures(fields.get("signatures")),
        })
    }

    fn references(
        &mut self,
        references: &[Value],
        path: &str,
    ) -> Result<BTreeSet<StorePath>, PathInfoError> {
        let wrong = || PathInfoError::Field {
            path: path.to_owned(),
            field: "references",
        };
        references
            .iter()
            .map(|reference| self.store_path(reference.as_str().ok_or_else(wrong)?))
            .collect()
    }

    /// Reads a full path, from which it learns the store directory, or a base name.
    fn store_path(&mut self, text: &str) -> Result<StorePath, PathInfoError> {
        let base_name = match text.rsplit_once('/') {
            Some((dir, base_name)) => {
                self.agree_on(parse_store_dir(dir)?)?;
                base_name
            }
            None => text,
        };
        base_name.parse().map_err(|source| PathInfoError::Path {
            text: text.to_owned(),
            source,
        })
    }

    fn agree_on(&mut self, dir: StoreDir) -> Result<(), PathInfoError> {
        match &self.store_dir {
            Some(known) if *known != dir => Err(PathInfoError::StoreDirs(known.clone(), dir)),
            Some(_) => Ok(()),
            None => {
                self.store_dir = Some(dir);
                Ok(())
            }
        }
    }

    fn finish(mut self) -> Answer {
        self.valid.sort_by(|a, b| a.path.cmp(&b.path));
        self.valid.dedup_by(|a, b| a.path == b.path);
        self.invalid.sort();
        self.invalid.dedup();
        let store_dir = self.store_dir.unwrap_or_default();
        Answer {
            store_dir,
            valid: self.valid,
            invalid: self.invalid,
        }
    }
}

fn parse_store_dir(text: &str) -> Result<StoreDir, PathInfoError> {
    text.parse().map_err(|source| PathInfoError::Path {
        text: text.to_owned(),
        source,
    })
}

fn nar_hash(path: &str, value: Option<&Value>) -> Result<NarHash, PathInfoError> {
    let missing = || PathInfoError::Field {
        path: path.to_owned(),
        field: "narHash",
    };
    let text = hash_text(value.ok_or_else(missing)?).ok_or_else(missing)?;
    text.parse().map_err(|source| PathInfoError::NarHash {
        path: path.to_owned(),
        source,
    })
}

/// One of Nix's textual forms of a hash: SRI or `<algorithm>:<digits>`.
fn hash_text(value: &Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let field = |name| value.get(name).and_then(Value::as_str);
    let (algorithm, hash) = (field("algorithm")?, field("hash")?);
    match field("format") {
        Some("sri") => Some(hash.to_owned()),
        _ => Some(format!("{algorithm}:{hash}")),
    }
}

/// Nix's text form of a content address, from that form or from `{method, hash}`.
fn content_address(value: &Value) -> Option<ContentAddress> {
    if let Some(text) = value.as_str() {
        return text.parse().ok();
    }
    let prefix = match value.get("method").and_then(Value::as_str)? {
        "text" => "text:",
        "flat" => "fixed:",
        "nar" => "fixed:r:",
        "git" => "fixed:git:",
        _ => return None,
    };
    let hash = hash_text(value.get("hash")?)?;
    let (algorithm, digits) = hash.split_once([':', '-'])?;
    format!("{prefix}{algorithm}:{digits}").parse().ok()
}

fn signatures(value: Option<&Value>) -> Vec<Signature> {
    let entries = value
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    entries
        .iter()
        .filter_map(|entry| signature_text(entry)?.parse().ok())
        .collect()
}

fn signature_text(value: &Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let field = |name| value.get(name).and_then(Value::as_str);
    Some(format!("{}:{}", field("keyName")?, field("sig")?))
}

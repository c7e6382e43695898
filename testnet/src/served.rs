//! What a node serves for a path, checked against what it promises.

use std::collections::BTreeMap;
use std::io::Result;
use std::net::SocketAddr;

use attic_store::hash::NarHash;

use crate::http::Request;

/// How a path was answered. Wrong bytes are not among the possibilities: they end the test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// Narinfo and NAR came, and the NAR is what the narinfo says.
    Whole(Vec<u8>),
    /// 404, for the narinfo or for the NAR.
    Absent,
    /// The body ended early, and a client sees that it did.
    Cut,
}

/// Fields of a narinfo, by name; `Sig` lines are joined by a space.
pub fn narinfo_fields(text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(": ")) {
        let field: &mut String = fields.entry(name.to_owned()).or_default();
        if !field.is_empty() {
            field.push(' ');
        }
        field.push_str(value);
    }
    fields
}

/// Reads the path with this hash part as Nix would, and checks every byte.
///
/// **Errors**: the node does not answer. Panics when it answers with anything other than a right
/// NAR, 404, or a body that is visibly cut.
#[track_caller]
pub fn read(address: SocketAddr, cache: &str, hash: &str) -> Result<Served> {
    let narinfo = Request::get(&format!("/{cache}/{hash}.narinfo")).send(address)?;
    if narinfo.status == 404 {
        return Ok(Served::Absent);
    }
    assert_eq!(narinfo.status, 200, "{hash}.narinfo: {}", narinfo.text());
    if !narinfo.complete {
        return Ok(Served::Cut);
    }
    let fields = narinfo_fields(&narinfo.text());
    let file = Request::get(&format!("/{cache}/{}", fields["URL"])).send(address)?;
    match (file.status, file.complete) {
        (404, _) => return Ok(Served::Absent),
        (200, false) => return Ok(Served::Cut),
        (200, true) => {}
        (status, _) => panic!(
            "{hash}: {} answers {status}: {}",
            fields["URL"],
            file.text()
        ),
    }
    assert_eq!(
        file.body.len().to_string(),
        fields["FileSize"],
        "{hash}: FileSize"
    );
    let nar = match fields["Compression"].as_str() {
        "none" => file.body,
        "zstd" => zstd::decode_all(file.body.as_slice()).expect("a complete body is whole zstd"),
        other => panic!("{hash}: unexpected compression {other}"),
    };
    assert_eq!(
        NarHash::of(&nar).to_string(),
        fields["NarHash"],
        "{hash}: NarHash"
    );
    Ok(Served::Whole(nar))
}

/// Hash part of a store path, full or base name.
pub fn hash_part(path: &str) -> &str {
    let base = path.rsplit('/').next().unwrap_or(path);
    base.get(..32)
        .unwrap_or_else(|| panic!("{path} is not a store path"))
}

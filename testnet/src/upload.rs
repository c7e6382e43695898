//! A store path made of bytes, and the requests that would put it into a cache.

use std::io::Result;
use std::net::SocketAddr;

use attic_store::hash::{FileHash, NarHash};

use crate::http::{Request, Response};
use crate::nar::Node;
use crate::seed::Seed;

/// A store path with its NAR, as plain `nix copy --to http://…?compression=none` would upload it.
///
/// Fields are public so that a test can make any of them lie.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Hash part of the store path: 32 characters.
    pub hash: String,
    /// Name part of the store path.
    pub name: String,
    /// The NAR.
    pub nar: Vec<u8>,
    /// What is sent as the NAR: here the NAR itself.
    pub file: Vec<u8>,
    /// File name extension, and the `Compression` it stands for.
    pub compression: &'static str,
    /// Base names of the paths it refers to.
    pub references: Vec<String>,
}

impl Upload {
    /// A path holding one file, with a random hash part.
    pub fn file(seed: &mut Seed, name: &str, contents: impl Into<Vec<u8>>) -> Upload {
        Upload::of_nar(seed, name, Node::file(contents).to_nar())
    }

    /// A path holding one file of random bytes, with a random hash part.
    pub fn random(seed: &mut Seed, name: &str, len: usize) -> Upload {
        let contents = seed.bytes(len);
        Upload::file(seed, name, contents)
    }

    /// A path with this NAR, right or wrong, and a random hash part.
    pub fn of_nar(seed: &mut Seed, name: &str, nar: Vec<u8>) -> Upload {
        let hash = attic_store::nixbase32::encode(&seed.bytes(20));
        let file = nar.clone();
        let (name, references) = (name.to_owned(), Vec::new());
        Upload {
            hash,
            name,
            nar,
            file,
            compression: "none",
            references,
        }
    }

    /// The same path, sent as zstd.
    pub fn zstd(mut self) -> Upload {
        self.file = zstd::encode_all(self.nar.as_slice(), 1).expect("compression in memory works");
        self.compression = "zstd";
        self
    }

    /// `<hash>-<name>`.
    pub fn base_name(&self) -> String {
        format!("{}-{}", self.hash, self.name)
    }

    /// `/nix/store/<hash>-<name>`.
    pub fn path(&self) -> String {
        format!("/nix/store/{}", self.base_name())
    }

    /// What the NAR hashes to.
    pub fn nar_hash(&self) -> NarHash {
        NarHash::of(&self.nar)
    }

    /// What the file hashes to.
    pub fn file_hash(&self) -> FileHash {
        FileHash::of(&self.file)
    }

    /// `nar/<file hash>.nar[.zst]`, as Nix names it.
    pub fn url(&self) -> String {
        let extension = if self.compression == "zstd" {
            ".zst"
        } else {
            ""
        };
        format!("nar/{}.nar{extension}", self.file_hash().nix32())
    }

    /// Target of its narinfo in `cache`.
    pub fn narinfo_target(&self, cache: &str) -> String {
        format!("/{cache}/{}.narinfo", self.hash)
    }

    /// Its narinfo, truthful.
    pub fn narinfo(&self) -> String {
        let Upload { compression, .. } = self;
        let (path, url, references) = (self.path(), self.url(), self.references.join(" "));
        let (file_hash, nar_hash) = (self.file_hash(), self.nar_hash());
        let (file_size, nar_size) = (self.file.len(), self.nar.len());
        format!(
            "StorePath: {path}\nURL: {url}\nCompression: {compression}\nFileHash: {file_hash}\n\
             FileSize: {file_size}\nNarHash: {nar_hash}\nNarSize: {nar_size}\n\
             References: {references}\n"
        )
    }

    /// Its narinfo with the value of one line replaced, or the line added.
    pub fn narinfo_with(&self, field: &str, value: &str) -> String {
        let others = self.narinfo_without(field);
        format!("{others}{field}: {value}\n")
    }

    /// Its narinfo without one of its lines.
    pub fn narinfo_without(&self, field: &str) -> String {
        let start = format!("{field}:");
        let narinfo = self.narinfo();
        let others = narinfo.lines().filter(|line| !line.starts_with(&start));
        others.map(|line| format!("{line}\n")).collect()
    }

    /// Sends the NAR.
    ///
    /// **Errors**: no answer.
    pub fn put_nar(&self, address: SocketAddr, cache: &str, token: &str) -> Result<Response> {
        let target = format!("/{cache}/{}", self.url());
        Request::put(&target, self.file.clone())
            .token(token)
            .send(address)
    }

    /// Sends `narinfo` under this path's name.
    ///
    /// **Errors**: no answer.
    pub fn put_narinfo(
        &self,
        address: SocketAddr,
        cache: &str,
        token: &str,
        narinfo: &str,
    ) -> Result<Response> {
        Request::put(&self.narinfo_target(cache), narinfo)
            .token(token)
            .send(address)
    }

    /// Sends the NAR, then the narinfo, and checks that both are accepted.
    #[track_caller]
    pub fn publish(&self, address: SocketAddr, cache: &str, token: &str) {
        let nar = self
            .put_nar(address, cache, token)
            .expect("answer to the NAR");
        assert!(
            matches!(nar.status, 200 | 201 | 204),
            "NAR: {} {}",
            nar.status,
            nar.text()
        );
        let info = self
            .put_narinfo(address, cache, token, &self.narinfo())
            .expect("answer");
        assert!(
            matches!(info.status, 200 | 201 | 204),
            "narinfo: {} {}",
            info.status,
            info.text()
        );
    }
}

//! The store on a real disk, through its front door.

mod adversary;
mod cap;
mod collect;
mod crash;
mod damage;
mod format;
mod journey;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attic_store::chunker::{Chunker, ChunkerParams};
use attic_store::nar::NarWriter;
use attic_store::record::PathRow;
use attic_store::{
    CacheName, Imported, Lease, NarHash, Options, PathInfo, Store, StorePath, StorePathHash,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A store in a temporary folder, with small packs so that tests see many.
struct Fixture {
    dir: TempDir,
    store: Option<Store>,
    options: Options,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::with(Options {
            pack_len_target: 256 << 10,
            upload_grace: Duration::ZERO,
            threads: 2,
            ..Options::default()
        })
    }

    fn with(options: Options) -> Fixture {
        let dir = tempfile::tempdir().expect("temporary folder");
        let store = Store::open(dir.path(), options.clone()).expect("opens");
        Fixture {
            dir,
            store: Some(store),
            options,
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("open")
    }

    /// Drops the store without closing it, as a killed process does, and opens it again.
    fn crash(&mut self) {
        self.store = None;
        self.reopen();
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(Store::open(self.dir.path(), self.options.clone()).expect("reopens"));
    }

    fn import(&self, lease: &Lease, nar: &[u8]) -> Imported {
        self.store().import(lease, &mut &nar[..]).expect("imports")
    }

    /// Imports and publishes a NAR as path number `index` of cache `main`.
    fn publish(&self, index: u8, nar: &[u8], references: &[u8]) -> PathRow {
        let lease = self.store().lease();
        let imported = self.import(&lease, nar);
        let row = path_row(index, &imported, references, 1_000 + u64::from(index));
        self.store().publish(vec![row.clone()]).expect("publishes");
        row
    }

    /// The whole `.nar.zst` and the whole NAR, if the store has it.
    fn read(&self, hash: &NarHash) -> Option<(Vec<u8>, Vec<u8>)> {
        let reader = self.store().open_nar(hash).expect("opens")?;
        let frames = drain(reader.frames(0..u64::MAX));
        let plain = drain(reader.plain(0..u64::MAX));
        Some((frames.ok()?, plain.ok()?))
    }

    fn assert_reads_back(&self, nar: &[u8]) {
        let (frames, plain) = self.read(&hash_of(nar)).expect("NAR is here");
        assert!(plain == nar, "NAR differs");
        assert!(
            zstd::decode_all(&frames[..]).expect("zstd") == nar,
            "frames differ"
        );
    }

    fn verify_is_clean(&self) {
        let report = self
            .store()
            .verify(&Default::default(), &mut |_| {})
            .expect("verifies");
        assert!(report.is_clean(), "{report:?}");
    }

    fn packs(&self) -> Vec<PathBuf> {
        let mut packs = Vec::new();
        for folder in fs::read_dir(self.dir.path().join("packs")).expect("packs") {
            for file in fs::read_dir(folder.expect("folder").path()).expect("folder") {
                packs.push(file.expect("pack").path());
            }
        }
        packs.sort();
        packs
    }
}

fn drain(mut blocks: attic_store::BlockReader) -> Result<Vec<u8>, attic_store::StoreError> {
    let mut out = Vec::new();
    while let Some(block) = blocks.next_block()? {
        assert!(!block.is_empty(), "a block is never empty");
        out.extend_from_slice(&block);
    }
    Ok(out)
}

fn cache() -> CacheName {
    "main".parse().expect("cache name")
}

fn path(index: u8) -> StorePath {
    format!("{}-p{index}", StorePathHash::from_bytes([index; 20]))
        .parse()
        .expect("store path")
}

fn hash_of(nar: &[u8]) -> NarHash {
    NarHash::from_bytes(Sha256::digest(nar).into())
}

fn path_row(index: u8, nar: &Imported, references: &[u8], published_at: u64) -> PathRow {
    PathRow {
        cache: cache(),
        info: PathInfo {
            path: path(index),
            nar_hash: nar.nar_hash,
            nar_size: nar.nar_size,
            references: references
                .iter()
                .map(|index| path(*index))
                .collect::<BTreeSet<_>>(),
            deriver: None,
            ca: None,
            signatures: Vec::new(),
        },
        published_at,
    }
}

/// A NAR of one file with these contents.
fn nar_of(contents: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = NarWriter::new(|bytes: &[u8]| out.extend_from_slice(bytes));
    writer
        .regular(false, contents.len() as u64)
        .expect("regular");
    writer.contents(contents).expect("contents");
    writer.finish().expect("finish");
    out
}

fn pack_bytes(fixture: &Fixture) -> u64 {
    fixture.store().usage().pack_bytes
}

/// A fresh sled index takes some megabytes of disk by itself.
fn derived_allowance() -> u64 {
    let fixture = Fixture::new();
    fixture.publish(0, &nar_of(b"x"), &[]);
    fixture.store().maintain().expect("maintains");
    fixture.store().usage().derived_bytes + (1 << 20)
}

/// The chunks that a NAR is cut into.
fn chunks_of(nar: &[u8]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(ChunkerParams::CURRENT);
    chunker.push(nar, &mut |chunk| chunks.push(chunk.to_vec()));
    chunker.finish(&mut |chunk| chunks.push(chunk.to_vec()));
    chunks
}

/// Bytes that neither compress nor repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Copies a folder as it is on disk at this moment.
fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create folder");
    for entry in fs::read_dir(from).expect("list folder") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy file");
        }
    }
}

//! How chunk length, cuts at file boundaries and compression level trade against each other.
//!
//! Cuts the NARs of L1 and then L2 by several parameters, and compresses what each adds.

use std::collections::HashSet;
use std::io::Result;
use std::process::Command;

use attic_store::ChunkId;
use attic_store::nar::{NarLimits, NarParser};
use fastcdc::v2020::FastCDC;
use zstd::bulk::{Compressor, Decompressor};

use super::cpu;
use crate::corpus::Closure;

/// Parameters to try: minimum, average, maximum in KiB.
const LENS: [(usize, usize, usize); 3] = [(16, 64, 256), (32, 128, 512), (64, 256, 1024)];
/// zstd levels to try.
const LEVELS: [i32; 4] = [1, 2, 3, 5];

/// Prints the table of the `attic_store` crate documentation.
///
/// # Errors
/// When `nix-store` cannot be run.
pub(super) fn print() -> Result<()> {
    let sets = [load("L1")?, load("L2")?];
    println!(
        "| min/avg/max KiB | cuts at files | chunks | mean KiB | L1, L2 unique MB | zstd 1, 2, 3, 5: L1 + L2 MB (CPU s/GB) | decode CPU s/GB |"
    );
    println!("|---|---|---|---|---|---|---|");
    for lens in LENS {
        for at_files in [false, true] {
            println!("{}", row(&sets, lens, at_files));
        }
    }
    Ok(())
}

/// A NAR and where large files begin in it.
struct Nar {
    bytes: Vec<u8>,
    files: Vec<(usize, u64)>,
}

fn load(set: &str) -> Result<Vec<Nar>> {
    let closure = Closure::load(set);
    closure.paths.iter().map(|path| dump(path)).collect()
}

fn dump(path: &str) -> Result<Nar> {
    let bytes = Command::new("nix-store")
        .args(["--dump", path])
        .output()?
        .stdout;
    let mut files = Vec::new();
    for (_, average, _) in LENS {
        let len = (average << 10) as u64;
        let mut parser = NarParser::new(NarLimits {
            boundary_len_min: len,
            ..NarLimits::default()
        });
        parser.push(&bytes).expect("nix-store writes NARs");
        files.extend(
            parser
                .take_boundaries()
                .into_iter()
                .map(|offset| (average, offset)),
        );
    }
    Ok(Nar { bytes, files })
}

fn row(sets: &[Vec<Nar>; 2], (min, average, max): (usize, usize, usize), at_files: bool) -> String {
    let mut known = HashSet::new();
    let unique = sets.each_ref().map(|nars| {
        let mut fresh: Vec<&[u8]> = Vec::new();
        for nar in nars {
            for piece in pieces(nar, average, at_files) {
                let cuts = FastCDC::new(piece, min << 10, average << 10, max << 10);
                let chunks = cuts.map(|cut| &piece[cut.offset..cut.offset + cut.length]);
                fresh.extend(chunks.filter(|chunk| known.insert(ChunkId::of(chunk))));
            }
        }
        fresh
    });
    let bytes = unique
        .each_ref()
        .map(|chunks| chunks.iter().map(|chunk| chunk.len()).sum::<usize>());
    let giga = (bytes[0] + bytes[1]) as f64 / 1e9;
    let levels = LEVELS.map(|level| {
        let started = cpu::of_this_process();
        let sizes = unique
            .each_ref()
            .map(|chunks| compressed_len(chunks, level));
        let spent = (cpu::of_this_process() - started) / giga;
        format!("{:.1} + {:.1} ({spent:.1})", mega(sizes[0]), mega(sizes[1]))
    });
    let mean = (bytes[0] + bytes[1]) / known.len() / 1024;
    let files = if at_files {
        format!("≥ {average} KiB")
    } else {
        "no".to_owned()
    };
    format!(
        "| {min}/{average}/{max} | {files} | {} | {mean} | {:.1}, {:.1} | {} | {:.2} |",
        known.len(),
        mega(bytes[0]),
        mega(bytes[1]),
        levels.join(", "),
        decode_seconds(&unique[0]) / (bytes[0] as f64 / 1e9),
    )
}

/// The NAR whole, or cut where large files begin.
fn pieces(nar: &Nar, average: usize, at_files: bool) -> Vec<&[u8]> {
    let mut rest = &nar.bytes[..];
    let mut pieces = Vec::new();
    let files = nar
        .files
        .iter()
        .filter(|(of, _)| at_files && *of == average);
    for (_, offset) in files.rev() {
        let (before, piece) = rest.split_at(*offset as usize);
        pieces.push(piece);
        rest = before;
    }
    pieces.push(rest);
    pieces.reverse();
    pieces
}

fn compressed_len(chunks: &[&[u8]], level: i32) -> usize {
    let mut compressor = Compressor::new(level).expect("a zstd context");
    chunks
        .iter()
        .map(|chunk| compressor.compress(chunk).expect("compresses").len())
        .sum()
}

fn decode_seconds(chunks: &[&[u8]]) -> f64 {
    let mut compressor = Compressor::new(2).expect("a zstd context");
    let frames: Vec<Vec<u8>> = chunks
        .iter()
        .map(|chunk| compressor.compress(chunk).expect("compresses"))
        .collect();
    let mut decompressor = Decompressor::new().expect("a zstd context");
    let started = cpu::of_this_process();
    for (frame, chunk) in frames.iter().zip(chunks) {
        decompressor
            .decompress(frame, chunk.len())
            .expect("decompresses");
    }
    cpu::of_this_process() - started
}

fn mega(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

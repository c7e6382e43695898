//! NAR, Nix's archive format: a strict streaming reader, the `.ls` listing, and a writer.
//!
//! A NAR is a tree of regular files, directories and symbolic links, written so that equal trees
//! give equal bytes. Everything is a *string*: a 64-bit little-endian length, that many bytes, and
//! zeros up to a multiple of 8.
//!
//! ```text
//! nar   = "nix-archive-1" node
//! node  = "(" "type" ( file | dir | link ) ")"
//! file  = "regular" [ "executable" "" ] "contents" <bytes>
//! dir   = "directory" { "entry" "(" "name" <name> "node" node ")" }
//! link  = "symlink" "target" <bytes>
//! ```
//!
//! Names in a directory ascend strictly as bytes. [`NarParser`] accepts exactly this form, which is
//! what current Nix accepts; older ones also take fields in other orders, unsorted entries and
//! files without contents, none of which Nix ever wrote. It is stricter than all of them in
//! three points: bytes after the end, names and link targets longer than any file
//! system takes, and link targets that are empty or hold a NUL are errors.
//!
//! **Source** `src/libutil/archive.cc` in Nix; figure 5.2 of Dolstra's thesis.

pub use crate::nar::encode::{NarWriteError, NarWriter};
pub use crate::nar::listing::{Listing, Unlisted};
pub use crate::nar::parser::{NarError, NarFault, NarLimits, NarParser};

mod encode;
mod listing;
mod parser;

/// Longest name of a directory entry, in bytes: four times what Linux takes, as other systems count
/// characters.
pub const NAME_LEN_MAX: usize = 1024;

/// Longest target of a symbolic link, in bytes: Linux's `PATH_MAX` without the NUL.
pub const TARGET_LEN_MAX: usize = 4095;

const MAGIC: &str = "nix-archive-1";

/// Zeros that follow a string of `len` bytes.
const fn padding_len(len: u64) -> u64 {
    len.wrapping_neg() % 8
}

/// Whether `name` may name an entry of a directory.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= NAME_LEN_MAX
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// Whether `target` may be the target of a symbolic link.
fn is_target(target: &[u8]) -> bool {
    (1..=TARGET_LEN_MAX).contains(&target.len()) && !target.contains(&0)
}

//! Nix's base 32: how hashes look in store paths and narinfos.
//!
//! The alphabet leaves out `e`, `o`, `t` and `u`. A digit holds five bits, the first byte's lowest
//! bits come first, and the whole string is written backwards: the last character is the lowest
//! five bits of the first byte.

use std::sync::LazyLock;

use data_encoding::{BitOrder, DecodeKind, Encoding, Specification};

/// Text of `bytes`, [`encoded_len`] characters long.
///
/// **Source** `src/libutil/base-nix-32.cc` in Nix.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = ENCODING.encode(bytes).into_bytes();
    text.reverse();
    String::from_utf8(text).expect("the alphabet is ASCII")
}

/// Bytes of `text`, which must stand for exactly `len` of them.
///
/// **Errors** wrong length, a character outside the alphabet (upper case is outside), or bits
/// beyond the last byte that are not zero: each byte string has exactly one text.
pub fn decode(text: &str, len: usize) -> Result<Vec<u8>, Nixbase32Error> {
    let mut bytes = vec![0; len];
    decode_into(text, &mut bytes)?;
    Ok(bytes)
}

/// [`decode`] into an array, without allocating for the result.
pub fn decode_array<const N: usize>(text: &str) -> Result<[u8; N], Nixbase32Error> {
    let mut bytes = [0; N];
    decode_into(text, &mut bytes)?;
    Ok(bytes)
}

/// Number of characters that `len` bytes take.
pub const fn encoded_len(len: usize) -> usize {
    (len * 8).div_ceil(5)
}

/// What is wrong with a text that should be Nix base 32.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Nixbase32Error {
    /// The text is too short or too long for the bytes asked for.
    #[error("expected {expected} characters, found {found}")]
    Length {
        /// Characters that would have been right.
        expected: usize,
        /// Bytes of text given.
        found: usize,
    },
    /// A character outside the alphabet.
    #[error("character {at} is not one of {ALPHABET}")]
    Character {
        /// Index of the character, from 0.
        at: usize,
    },
    /// Bits beyond the last byte are set, so the text stands for no byte string.
    #[error("first character is too large for the length")]
    Overflow,
}

fn decode_into(text: &str, bytes: &mut [u8]) -> Result<(), Nixbase32Error> {
    let expected = encoded_len(bytes.len());
    if text.len() != expected {
        return Err(Nixbase32Error::Length {
            expected,
            found: text.len(),
        });
    }
    let mut digits = text.as_bytes().to_vec();
    digits.reverse();
    match ENCODING.decode_mut(&digits, bytes) {
        Ok(_) => Ok(()),
        Err(partial) => Err(match partial.error.kind {
            DecodeKind::Trailing => Nixbase32Error::Overflow,
            DecodeKind::Length => Nixbase32Error::Length {
                expected,
                found: text.len(),
            },
            DecodeKind::Symbol | DecodeKind::Padding => Nixbase32Error::Character {
                at: text.len() - 1 - partial.error.position,
            },
        }),
    }
}

/// Digits in order of value; ASCII order too, so texts of one length sort as their values.
const ALPHABET: &str = "0123456789abcdfghijklmnpqrsvwxyz";

static ENCODING: LazyLock<Encoding> = LazyLock::new(|| {
    let mut spec = Specification::new();
    spec.symbols.push_str(ALPHABET);
    spec.bit_order = BitOrder::LeastSignificantFirst;
    spec.encoding()
        .expect("32 distinct ASCII symbols are an encoding")
});

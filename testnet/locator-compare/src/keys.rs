//! Deterministic keys and values: uniform 32-byte ids, packs of a fixed number of entries.

/// A chunk id: 32 uniform bytes.
pub type Id = [u8; 32];
/// A pack id: 16 uniform bytes.
pub type Pack = [u8; 16];
/// Offset, plain length and frame length.
pub type Value = [u32; 3];

pub fn id(n: u64) -> Id {
    let mut bytes = [0; 32];
    for (lane, part) in bytes.chunks_exact_mut(8).enumerate() {
        part.copy_from_slice(&mix(n * 4 + lane as u64).to_le_bytes());
    }
    bytes
}

pub fn pack_id(n: u64) -> Pack {
    let mut bytes = [0; 16];
    for (lane, part) in bytes.chunks_exact_mut(8).enumerate() {
        part.copy_from_slice(&mix(u64::MAX / 2 + n * 2 + lane as u64).to_le_bytes());
    }
    bytes
}

pub fn value(n: u64) -> Value {
    let word = mix(n ^ 0x5555_5555);
    [
        (n % ENTRIES_PER_PACK) as u32 * 65_536,
        word as u32 >> 15,
        (word >> 32) as u32 >> 16,
    ]
}

/// The `n`-th of a random walk over `0..keys`.
pub fn shuffled(n: u64, keys: u64) -> u64 {
    ((u128::from(mix(n ^ 0xabcd_ef01)) * u128::from(keys)) >> 64) as u64
}

/// SplitMix64's output function: a bijection whose outputs look uniform.
fn mix(n: u64) -> u64 {
    let mut word = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A pack of 32 MiB with chunks of 64 KiB.
pub const ENTRIES_PER_PACK: u64 = 500;

//! Randomness that can be repeated.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// A stream of random numbers which its starting value fixes (SplitMix64).
///
/// Good enough to choose moments and bytes; not for secrets.
#[derive(Clone, Debug)]
pub struct Seed(u64);

impl Seed {
    /// The stream that starts at `value`.
    pub fn new(value: u64) -> Seed {
        Seed(value)
    }

    /// A stream for the test `name`: from `ATTIC_NODE_TEST_SEED` when that is set, else new at each
    /// run. Prints how to repeat it; the test runner shows that when the test fails.
    pub fn for_test(name: &str) -> Seed {
        let value = match env::var("ATTIC_NODE_TEST_SEED") {
            Ok(text) => text.parse().expect("ATTIC_NODE_TEST_SEED is a number"),
            Err(_) => now_nanos(),
        };
        println!("{name}: repeat with ATTIC_NODE_TEST_SEED={value}");
        Seed(value)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which must not be 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// True this share of the time.
    pub fn chance(&mut self, share: f64) -> bool {
        // 53 bits are what an f64 holds exactly.
        ((self.bits() >> 11) as f64) < share * (1u64 << 53) as f64
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for word in bytes.chunks_mut(8) {
            let random = self.bits().to_le_bytes();
            word.copy_from_slice(&random[..word.len()]);
        }
        bytes
    }
}

fn now_nanos() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is after 1970");
    u64::try_from(since.as_nanos() & u128::from(u32::MAX)).expect("32 bits fit")
}

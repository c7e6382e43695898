//! Randomness from a seed.

/// SplitMix64 (Steele, Lea, Flood 2014): all that ties and lots need.
#[derive(Clone, Debug)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// A number below `bound`; 0 if there is none.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_add(GOLDEN);
        let wide = u128::from(mix(self.state)) * bound as u128;
        (wide >> 64) as usize
    }

    /// A number that depends on the first seed's stream position and `index` alone.
    pub(super) fn tie(&self, index: u32) -> u64 {
        mix(self.state ^ u64::from(index).wrapping_mul(GOLDEN))
    }
}

/// Spreads every bit over all.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

//! Chance, from a seed.

/// SplitMix64: small, seeded, good enough to shuffle a world.
pub(in crate::core) struct Dice(pub(in crate::core) u64);

impl Dice {
    pub(in crate::core) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(in crate::core) fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }

    /// True once in `n` rolls.
    pub(in crate::core) fn once_in(&mut self, n: u64) -> bool {
        self.roll().is_multiple_of(n)
    }
}

//! Random numbers that a seed repeats (the splitmix64 sequence).

/// A sequence of its own for every kind, so that one does not change when another happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dice(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Dice {
    /// The sequence with this number of a seed.
    #[must_use]
    pub fn new(seed: u32, sequence: usize) -> Self {
        let mut dice = Self(u64::from(seed) << 32 | sequence as u64);
        // Neighbours are far apart after it.
        Self(dice.throw())
    }

    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// True once in `times` on average; never if `times` is 0.
    pub fn one_in(&mut self, times: u32) -> bool {
        times != 0 && self.throw().is_multiple_of(u64::from(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_sequences_differ() {
        let throws = |seed, sequence| {
            let mut dice = Dice::new(seed, sequence);
            (0..64).map(|_| dice.one_in(2)).collect::<Vec<_>>()
        };
        assert_eq!(throws(7, 1), throws(7, 1));
        assert_ne!(throws(7, 1), throws(7, 2));
        assert_ne!(throws(7, 1), throws(8, 1));
    }

    #[test]
    fn the_average_is_right() {
        let mut dice = Dice::new(1, 0);
        let hits = (0..100_000).filter(|_| dice.one_in(10)).count();
        assert!((9_500..10_500).contains(&hits), "{hits}");
        assert!((0..100).all(|_| dice.one_in(1)) && !(0..100).any(|_| dice.one_in(0)));
    }
}

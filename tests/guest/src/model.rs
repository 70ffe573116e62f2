//! What the device's operations do, written down plainly, and the bytes that tests use.

/// CRC-32C bit by bit; `before` is the CRC of what came before, 0 to start. Pure.
pub fn crc32c(bytes: &[u8], before: u32) -> u32 {
    let mut state = !before;
    for byte in bytes {
        state ^= u32::from(*byte);
        for _ in 0..8 {
            state = (state >> 1) ^ (0x82f6_3b78 & (state & 1).wrapping_neg());
        }
    }
    !state
}

/// `length` bytes of a repeated pattern, lowest byte first. Pure.
pub fn fill(pattern: u64, length: usize) -> Vec<u8> {
    pattern.to_le_bytes().into_iter().cycle().take(length).collect()
}

/// Offset of the first difference. Pure.
pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}

/// Offsets of list nodes, 8 bytes each, in the order in which the list visits them: 4 a page,
/// pages in random order. Pure, but for the random numbers.
pub fn random_list(random: &mut Random, length: usize) -> Vec<usize> {
    const SPACING: usize = 1024;
    let mut nodes: Vec<usize> =
        (0..length / SPACING).map(|index| index * SPACING + random.below(100) * 8).collect();
    for index in (1..nodes.len()).rev() {
        nodes.swap(index, random.below(index + 1));
    }
    nodes
}

/// Random numbers that a seed repeats (the splitmix64 sequence).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.bits() % (end as u64)).unwrap_or(0)
    }

    /// `length` bytes without a zero among them, so that a lost page shows.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.bits().to_le_bytes());
        words.flatten().take(length).map(|byte| byte | 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_the_published_check_value() {
        assert_eq!(crc32c(b"123456789", 0), 0xe306_9283);
        assert_eq!(crc32c(b"56789", crc32c(b"1234", 0)), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32], 0), 0x8a91_36aa);
    }

    #[test]
    fn small_helpers() {
        assert_eq!(fill(0x0807_0605_0403_0201, 10), [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]);
        assert_eq!(first_difference(b"abc", b"abd"), Some(2));
        assert_eq!(first_difference(b"abc", b"abc"), None);
        let (mut a, mut b) = (Random::new(7), Random::new(7));
        assert_eq!(a.bytes(100), b.bytes(100));
        assert_ne!(a.bits(), Random::new(8).bits());
        assert!(a.bytes(1000).iter().all(|byte| *byte != 0));
    }
}

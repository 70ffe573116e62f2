//! Contents that tell where they belong. The host's half of the test makes the same.

/// What the host fills the disk with.
pub(crate) const HOST: u64 = 0x686f_7374;
/// What the guest leaves in the second half.
pub(crate) const GUEST: u64 = 0x6775_6573;

/// Bytes `offset` to `offset + len` of the pattern; both are multiples of 8. Pure.
pub(crate) fn bytes(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let word = |n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed).to_le_bytes();
    let words = len as u64 / 8;
    (offset / 8..offset / 8 + words).flat_map(word).collect()
}

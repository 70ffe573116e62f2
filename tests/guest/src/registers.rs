//! Device registers, wherever they are.

/// A window of device registers. Offsets are multiples of the access's width.
pub trait Registers: Send + Sync {
    /// A 32-bit load.
    fn read32(&self, offset: usize) -> u32;
    /// A 64-bit load.
    fn read64(&self, offset: usize) -> u64;
    /// A 32-bit store.
    fn write32(&self, offset: usize, value: u32);
    /// A 64-bit store.
    fn write64(&self, offset: usize, value: u64);
}

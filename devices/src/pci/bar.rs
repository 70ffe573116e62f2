//! Base address registers: 32-bit, non-prefetchable memory (PCIe §7.5.1.2.1).

use super::function::{BAR_COUNT, BarRange, DecodedBars};
use super::spec::{Command, header};
use crate::pci::config::ConfigSpace;

/// Smallest BAR: a page, so that guests can map it without showing a neighbour.
pub const MIN_LEN: u32 = 4096;

/// Address bits of a memory BAR; the rest are type bits, zero for 32-bit non-prefetchable.
const ADDRESS: u32 = !0xf;

/// A memory BAR of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarSpec {
    /// Length in bytes: a power of two, at least [`MIN_LEN`].
    pub len: u32,
}

impl BarSpec {
    /// Whether a BAR of this length can exist.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.len.is_power_of_two() && self.len >= MIN_LEN
    }
}

/// Offset of a BAR's register. **Pure.**
pub(super) fn register(bar: usize) -> u16 {
    header::BAR0 + u16::try_from(bar * 4).unwrap_or(0)
}

/// Makes the address bits of every BAR writable, as far as its length lets them be.
pub(super) fn install(config: &mut ConfigSpace, specs: &[Option<BarSpec>; BAR_COUNT]) {
    for (bar, spec) in specs.iter().enumerate() {
        if let Some(spec) = spec {
            let mask = !(spec.len - 1) & ADDRESS;
            config.set_writable(register(bar), &mask.to_le_bytes());
        }
    }
}

/// What the BARs answer. **Pure.**
pub(super) fn decode(config: &ConfigSpace, specs: &[Option<BarSpec>; BAR_COUNT]) -> DecodedBars {
    let command = Command::new_with_raw_value(config.u16(header::COMMAND));
    let mut decoded = [None; BAR_COUNT];
    if command.memory_space() {
        for (bar, (slot, spec)) in decoded.iter_mut().zip(specs).enumerate() {
            *slot = spec.map(|spec| BarRange {
                start: u64::from(config.u32(register(bar)) & ADDRESS),
                len: u64::from(spec.len),
            });
        }
    }
    decoded
}

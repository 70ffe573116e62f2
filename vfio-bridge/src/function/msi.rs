//! The MSI capability (PCIe §7.7.1), as one more table of vectors.

use devices::pci::config::ConfigSpace;
use iommu_core::Msi;

/// Bits of message control.
const ENABLE: u16 = 1;
const CAPABLE: u16 = 7 << 1;
const ENABLED: u16 = 7 << 4;
const WIDE: u16 = 1 << 7;
const MASKS: u16 = 1 << 8;

/// Where a function's MSI is, and of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsiPlace {
    pub(super) at: u16,
    /// Message control after a reset: what it can do.
    control: u16,
}

impl MsiPlace {
    /// Id of the capability.
    pub(super) const ID: u8 = 0x05;

    /// MSI with the device's message control, and at most `count` vectors.
    pub(super) fn new(at: u16, control: u16, count: u32) -> Self {
        // Encodings above 5 are reserved.
        let wanted = ((control & CAPABLE) >> 1).min(5);
        let given = u16::try_from(count.max(1).ilog2()).unwrap_or(0);
        Self { at, control: control & (WIDE | MASKS) | wanted.min(given) << 1 }
    }

    /// Vectors that there can be.
    pub(super) fn vectors(&self) -> u16 {
        1 << ((self.control & CAPABLE) >> 1)
    }

    /// Bytes.
    pub(super) fn len(&self) -> u16 {
        if self.has_masks() { self.pending() - self.at + 4 } else { self.data() - self.at + 2 }
    }

    fn is_wide(&self) -> bool {
        self.control & WIDE != 0
    }

    fn has_masks(&self) -> bool {
        self.control & MASKS != 0
    }

    fn data(&self) -> u16 {
        self.at + if self.is_wide() { 12 } else { 8 }
    }

    fn masks(&self) -> u16 {
        self.data() + 4
    }

    fn pending(&self) -> u16 {
        self.data() + 8
    }

    /// Writes the registers' first values and what can be written.
    pub(super) fn install(&self, config: &mut ConfigSpace) {
        config.set(self.at + 2, &self.control.to_le_bytes());
        config.set_writable(self.at + 2, &(ENABLE | ENABLED).to_le_bytes());
        config.set_writable(self.at + 4, &(!3u32).to_le_bytes());
        if self.is_wide() {
            config.set_writable(self.at + 8, &[0xff; 4]);
        }
        config.set_writable(self.data(), &[0xff; 2]);
        if self.has_masks() {
            let mask = u32::MAX >> (32 - u32::from(self.vectors()));
            config.set_writable(self.masks(), &mask.to_le_bytes());
        }
    }

    /// Whether it is on.
    pub(super) fn is_on(&self, config: &ConfigSpace) -> bool {
        config.u16(self.at + 2) & ENABLE != 0
    }

    /// How many vectors the guest uses.
    pub(super) fn in_use(&self, config: &ConfigSpace) -> u16 {
        1 << (((config.u16(self.at + 2) & ENABLED) >> 4).min((self.control & CAPABLE) >> 1))
    }

    /// What a vector sends, and whether it is masked; those not in use are.
    pub(super) fn vector(&self, config: &ConfigSpace, vector: u16) -> (Msi, bool) {
        let high = if self.is_wide() { config.u32(self.at + 8) } else { 0 };
        let address = u64::from(high) << 32 | u64::from(config.u32(self.at + 4));
        // The low bits of the data say which.
        let in_use = self.in_use(config);
        let data = config.u16(self.data()) & !(in_use - 1) | vector & (in_use - 1);
        let masks = if self.has_masks() { config.u32(self.masks()) } else { 0 };
        let masked = vector >= in_use || masks & 1 << vector != 0;
        (Msi { address, data: data.into() }, masked)
    }

    /// Shows which vectors wait.
    pub(super) fn set_pending(&self, config: &mut ConfigSpace, pending: u32) {
        if self.has_masks() {
            config.set(self.pending(), &pending.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, message control, count, vectors, length)
    #[test]
    fn kinds_differ_in_length_and_number() {
        let rows = [
            ("smallest", 0, 1, 1, 10),
            ("wide", WIDE, 1, 1, 14),
            ("masks", MASKS, 32, 1, 20),
            ("all", WIDE | MASKS | 5 << 1, 32, 32, 24),
            ("the host has fewer", 5 << 1, 3, 2, 10),
            ("reserved", 7 << 1, 64, 32, 10),
        ];
        for (name, control, count, vectors, len) in rows {
            let place = MsiPlace::new(0x50, control, count);
            assert_eq!((place.vectors(), place.len()), (vectors, len), "{name}");
        }
    }

    #[test]
    fn vectors_differ_in_the_low_bits_of_their_data() {
        let place = MsiPlace::new(0x50, WIDE | MASKS | 3 << 1, 8);
        let mut config = ConfigSpace::default();
        place.install(&mut config);
        config.write(0x52, &(ENABLE | 2 << 4).to_le_bytes());
        config.write(0x54, &0xfee0_1003u32.to_le_bytes());
        config.write(0x58, &1u32.to_le_bytes());
        config.write(0x5c, &0x4047u16.to_le_bytes());
        config.write(0x60, &0xffff_fff2u32.to_le_bytes());
        assert!(place.is_on(&config));
        let address = 0x1_fee0_1000;
        for (vector, data, masked) in
            [(0, 0x4044, false), (1, 0x4045, true), (3, 0x4047, false), (4, 0x4044, true), (7, 0x4047, true)]
        {
            assert_eq!(place.vector(&config, vector), (Msi { address, data }, masked), "{vector}");
        }
        place.set_pending(&mut config, 5);
        assert_eq!((config.u32(0x60), config.u32(0x64)), (0xf2, 5));
    }
}

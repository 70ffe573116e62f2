//! Identifiers and addresses. None of them can be mixed with another.

use std::fmt;

/// Who issued a request: the requester id that the bus gives to a function.
///
/// For PCI: bus in bits 15:8, device in 7:3, function in 2:0 ([`Display`](fmt::Display) prints it so).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub u16);

impl SourceId {
    /// The source id of a PCI function. Bits of `device` above 4 and of `function` above 2 are dropped.
    #[must_use]
    pub const fn from_bdf(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | ((device & 0x1f) as u16) << 3 | (function & 7) as u16)
    }

    /// The bus number, bits 15:8.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Device and function, bits 7:0.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.0.to_be_bytes()[1]
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.devfn() >> 3, self.devfn() & 7)
    }
}

/// A process address space id: 20 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pasid(u32);

impl Pasid {
    /// Number of bits of the widest PASID.
    pub const BITS: u32 = 20;
    /// PASID 0.
    pub const ZERO: Self = Self(0);

    /// `None` if `value` needs more than 20 bits.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value < 1 << Self::BITS { Some(Self(value)) } else { None }
    }

    /// The low 20 bits of `value`; the rest is dropped.
    #[must_use]
    pub const fn truncate(value: u32) -> Self {
        Self(value & ((1 << Self::BITS) - 1))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The id under which translations are cached and invalidated together.
///
/// 16 bits on VT-d, 32 on virtio-iommu.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainId(pub u32);

/// An address as a device issues it, before translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Iova(pub u64);

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gpa(pub u64);

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A non-empty range of addresses. **Both ends are inclusive**, so the whole 64-bit space fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IovaRange {
    start: u64,
    last: u64,
}

impl IovaRange {
    /// All addresses.
    pub const ALL: Self = Self { start: 0, last: u64::MAX };

    /// `None` if `last < start`.
    #[must_use]
    pub const fn new(start: u64, last: u64) -> Option<Self> {
        if start <= last { Some(Self { start, last }) } else { None }
    }

    /// The naturally aligned block of `2^bits` bytes that holds `address`; all addresses if `bits >= 64`.
    #[must_use]
    pub const fn aligned(address: u64, bits: u32) -> Self {
        if bits >= 64 {
            return Self::ALL;
        }
        let low = (1 << bits) - 1;
        Self { start: address & !low, last: address | low }
    }

    /// First address.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Last address, inclusive.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Whether the two share an address.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last && other.start <= self.last
    }

    /// Whether `address` lies inside.
    #[must_use]
    pub const fn contains(&self, address: u64) -> bool {
        self.start <= address && address <= self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_id_prints_as_bus_device_function() {
        assert_eq!(SourceId::from_bdf(0x12, 0x1f, 7).to_string(), "12:1f.7");
        assert_eq!(SourceId(0x00ff).devfn(), 0xff);
    }

    #[test]
    fn pasid_has_20_bits() {
        assert_eq!(Pasid::new(0xf_ffff).map(Pasid::get), Some(0xf_ffff));
        assert_eq!(Pasid::new(0x10_0000), None);
        assert_eq!(Pasid::truncate(0x10_0001).get(), 1);
    }

    #[test]
    fn ranges_reach_both_ends_of_the_space() {
        assert_eq!(IovaRange::aligned(0xffff_8000_0000_0000, 47).last(), u64::MAX);
        assert_eq!(IovaRange::aligned(5, 64), IovaRange::ALL);
        assert_eq!(IovaRange::new(1, 0), None);
        let top = IovaRange::aligned(u64::MAX, 12);
        assert!(top.overlaps(&IovaRange::ALL) && top.contains(u64::MAX) && !top.contains(0));
    }
}

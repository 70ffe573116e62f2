//! First-stage paging entries (revision 5.10, §9.7): the x86-64 format.
//!
//! Levels are counted from the leaf: 1 is a page-table entry, 5 a PML5 entry.

use arbitrary_int::{u11, u40};
use bitbybit::bitfield;
use iommu_core::Gpa;

/// A first-stage entry of any level. In a leaf above level 1, bit 12 is PAT and the bits between it and the
/// page's address are reserved; at level 1 bit 7 is PAT.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct FirstStageEntry {
    /// Execute disable; ignored.
    #[bit(63, rw)]
    xd: bool,
    /// Ignored.
    #[bits(52..=62, rw)]
    ignored: u11,
    /// Address of the next table, or of the page, in units of 4 KiB.
    #[bits(12..=51, rw)]
    address: u40,
    /// Extended accessed, if the PASID entry enables it; ignored otherwise.
    #[bit(10, rw)]
    extended_accessed: bool,
    /// Page size: the entry is a leaf. PAT at level 1.
    #[bit(7, rw)]
    page_size: bool,
    /// Dirty; ignored in table entries.
    #[bit(6, rw)]
    dirty: bool,
    /// Accessed.
    #[bit(5, rw)]
    accessed: bool,
    /// U/S: user requests are allowed.
    #[bit(2, rw)]
    user: bool,
    /// R/W: writes are allowed.
    #[bit(1, rw)]
    write: bool,
    /// Present.
    #[bit(0, rw)]
    present: bool,
}

impl FirstStageEntry {
    /// Logarithm of the bytes that one entry of `level` translates.
    #[inline]
    #[must_use]
    pub const fn page_bits(level: u32) -> u32 {
        12 + 9 * (level - 1)
    }

    /// Where the entry for `address` lies in the table of `level` at `table`.
    #[inline]
    #[must_use]
    pub const fn locate(table: Gpa, address: u64, level: u32) -> Gpa {
        Gpa(table.0.wrapping_add((address >> Self::page_bits(level) & 0x1ff) * 8))
    }
}

/// Highest level.
pub const LEVELS: usize = 5;

/// Bits of a present entry that must be 0: `[level][page size bit]`; level 0 is unused.
///
/// Where a page size is not offered the page size bit itself is reserved, so a walk that found no reserved
/// bit set may take any set page size bit for a leaf.
#[must_use]
pub const fn reserved(host_bits: u32, one_gib_pages: bool) -> [[u64; 2]; LEVELS + 1] {
    let above = FirstStageEntry::address_mask() & super::above(host_bits);
    let no_leaf = above | FirstStageEntry::page_size_mask();
    // From bit 13, because bit 12 is PAT.
    let leaf_2m = above | ((1 << 21) - (1 << 13));
    let leaf_1g = above | ((1 << 30) - (1 << 13));
    let level_3 = if one_gib_pages { leaf_1g } else { no_leaf };
    [[0; 2], [above; 2], [above, leaf_2m], [above, level_3], [above, no_leaf], [above, no_leaf]]
}

//! Paging entries: first stage (revision 5.10, §9.7), which is the x86-64 format, and second stage (§9.8).
//!
//! Levels are counted from the leaf: 1 is a page-table entry, 5 a PML5 entry. A table of either stage is 4 KiB:
//! 512 entries of 64 bits.

use arbitrary_int::{u4, u11, u40};
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
    Gpa(table.0.wrapping_add((address >> page_bits(level) & 0x1ff) * 8))
}

/// Highest level.
pub const LEVELS: usize = 5;

/// Bits that must be 0 in a present entry: `[level][page size bit]`; level 0 is unused.
///
/// Where a page size is not offered the page size bit itself is reserved, so a walk that found no reserved
/// bit set may take any set page size bit for a leaf.
pub type Reserved = [[u64; 2]; LEVELS + 1];

/// Reserved bits of first-stage entries.
#[must_use]
pub const fn reserved_first(host_bits: u32, one_gib_pages: bool) -> Reserved {
    let above = FirstStageEntry::address_mask() & super::above(host_bits);
    let no_leaf = above | FirstStageEntry::page_size_mask();
    // From bit 13, because bit 12 is PAT.
    let leaf_2m = above | ((1 << 21) - (1 << 13));
    let leaf_1g = above | ((1 << 30) - (1 << 13));
    let level_3 = if one_gib_pages { leaf_1g } else { no_leaf };
    [[0; 2], [above; 2], [above, leaf_2m], [above, level_3], [above, no_leaf], [above, no_leaf]]
}

/// A second-stage entry of any level; present if R or W is set. In a leaf above level 1 the bits from 12 up to
/// the page's address are reserved; at level 1 bit 7 is ignored. What is not listed is ignored.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct SecondStageEntry {
    /// Reserved where I/O permissions (SSIRWS) are not offered, which they never are.
    #[bit(62, rw)]
    io_write: bool,
    /// Address of the next table, or of the page, in units of 4 KiB.
    #[bits(12..=51, rw)]
    address: u40,
    /// SNP of a leaf: accesses are snooped. Reserved without snoop control, and in table entries.
    #[bit(11, rw)]
    snoop: bool,
    /// Dirty, if the PASID entry enables it (SSADE); ignored otherwise, and in table entries.
    #[bit(9, rw)]
    dirty: bool,
    /// Accessed, if the PASID entry enables it (SSADE); ignored otherwise.
    #[bit(8, rw)]
    accessed: bool,
    /// PS: the entry is a leaf.
    #[bit(7, rw)]
    page_size: bool,
    /// W: writes are allowed.
    #[bit(1, rw)]
    write: bool,
    /// R: reads are allowed.
    #[bit(0, rw)]
    read: bool,
}

/// Reserved bits of second-stage entries. `large_pages` is CAP.SSLPS.
#[must_use]
pub const fn reserved_second(host_bits: u32, large_pages: u4, snoop_control: bool) -> Reserved {
    let leaf = SecondStageEntry::address_mask() & super::above(host_bits) | SecondStageEntry::io_write_mask();
    let table = leaf | SecondStageEntry::snoop_mask();
    let leaf = if snoop_control { leaf } else { table };
    let no_leaf = table | SecondStageEntry::page_size_mask();
    let level_2 = if large_pages.value() & 1 != 0 { leaf | ((1 << 21) - (1 << 12)) } else { no_leaf };
    let level_3 = if large_pages.value() & 2 != 0 { leaf | ((1 << 30) - (1 << 12)) } else { no_leaf };
    [[0; 2], [leaf; 2], [table, level_2], [table, level_3], [table, no_leaf], [table, no_leaf]]
}

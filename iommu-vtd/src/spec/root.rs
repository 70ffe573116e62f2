//! Root entries (revision 5.10; legacy mode §9.1, scalable mode §9.2): 4 KiB table, 256 entries of 128 bits,
//! index: bus.

use arbitrary_int::u52;
use bitbybit::bitfield;
use iommu_core::{Gpa, SourceId};

/// Half of a root entry. In scalable mode bits 63:0 lead to the contexts of devfn 00h-7Fh and bits 127:64 to those
/// of 80h-FFh; in legacy mode bits 63:0 lead to all of them and bits 127:64 are reserved.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct RootHalf {
    /// CTP, LCTP, UCTP: address of the context table in units of 4 KiB.
    #[bits(12..=63, rw)]
    context_table: u52,
    /// P, LP, UP: present.
    #[bit(0, rw)]
    present: bool,
}

impl RootHalf {
    /// Where the half for `source` lies in the table at `root`.
    #[inline]
    #[must_use]
    pub const fn locate(root: Gpa, source: SourceId) -> Gpa {
        let half = (source.devfn() >> 7) as u64;
        Gpa(root.0.wrapping_add(source.bus() as u64 * 16 + half * 8))
    }

    /// Where the entry for `source` lies in the legacy-mode table at `root`.
    #[inline]
    #[must_use]
    pub const fn locate_legacy(root: Gpa, source: SourceId) -> Gpa {
        Gpa(root.0.wrapping_add(source.bus() as u64 * 16))
    }

    /// Bits that must be 0 where physical addresses have `host_bits` bits.
    #[must_use]
    pub const fn reserved(host_bits: u32) -> u64 {
        super::reserved_word(&[(Self::context_table_mask(), true), (Self::present_mask(), true)], host_bits)
    }
}

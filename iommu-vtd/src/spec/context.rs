//! Scalable-mode context entry (revision 5.10, §9.4): 4 KiB table, 128 entries of 256 bits, index: devfn bits
//! 6:0.

use arbitrary_int::{u3, u20, u52};
use bitbybit::bitfield;
use iommu_core::{Gpa, SourceId};

use super::registers::Ecap;

/// Bits 63:0.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct ContextLow {
    /// PASIDDIRPTR: address of the PASID directory in units of 4 KiB.
    #[bits(12..=63, rw)]
    directory: u52,
    /// PDTS: the directory has `2^(PDTS+7)` entries.
    #[bits(9..=11, rw)]
    pdts: u3,
    /// Translated requests may have a PASID.
    #[bit(6, rw)]
    eptr: bool,
    /// Host permission table in use.
    #[bit(5, rw)]
    hpte: bool,
    /// Page requests are served.
    #[bit(4, rw)]
    pre: bool,
    /// Requests with PASID are served.
    #[bit(3, rw)]
    paside: bool,
    /// Translation and translated requests are served.
    #[bit(2, rw)]
    dte: bool,
    /// Fault processing disable; honoured even if not present.
    #[bit(1, rw)]
    fpd: bool,
    /// Present.
    #[bit(0, rw)]
    present: bool,
}

/// Bits 127:64. Bits 255:128 are reserved.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct ContextHigh {
    /// Bit 84, RID_PRIV: requests without PASID are privileged.
    #[bit(20, rw)]
    rid_priv: bool,
    /// Bits 83:64, RID_PASID: the PASID that stands for none.
    #[bits(0..=19, rw)]
    rid_pasid: u20,
}

impl ContextLow {
    /// Where the entry for `source` lies in a context table.
    #[inline]
    #[must_use]
    pub const fn locate(table: Gpa, source: SourceId) -> Gpa {
        Gpa(table.0.wrapping_add((source.devfn() & 0x7f) as u64 * 32))
    }

    /// PASIDs below this lie in the directory.
    #[inline]
    #[must_use]
    pub fn pasid_limit(self) -> u32 {
        1 << (u32::from(self.pdts().value()) + 13)
    }
}

/// Bits that must be 0, word by word. HPTE and EPTR are: neither HPTS nor PTRS is ever offered.
#[must_use]
pub const fn reserved(host_bits: u32, ecap: Ecap) -> [u64; 4] {
    let low = [
        (ContextLow::present_mask(), true),
        (ContextLow::fpd_mask(), true),
        (ContextLow::dte_mask(), ecap.dt()),
        (ContextLow::paside_mask(), ecap.pasid()),
        (ContextLow::pre_mask(), ecap.prs()),
        (ContextLow::pdts_mask(), true),
        (ContextLow::directory_mask(), true),
    ];
    let high = [(ContextHigh::rid_pasid_mask(), ecap.rps()), (ContextHigh::rid_priv_mask(), ecap.rprivs())];
    [super::reserved_word(&low, host_bits), super::reserved_word(&high, 64), u64::MAX, u64::MAX]
}

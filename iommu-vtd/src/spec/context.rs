//! Context entries (revision 5.10). Legacy mode (§9.3): 4 KiB table, 256 entries of 128 bits, index: devfn.
//! Scalable mode (§9.4): 4 KiB table, 128 entries of 256 bits, index: devfn bits 6:0.

use arbitrary_int::{u3, u4, u20, u52};
use bitbybit::{bitenum, bitfield};
use iommu_core::{Gpa, SourceId};

use super::registers::{Cap, Ecap};

/// TT of a legacy context entry: which requests are served, and how.
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq)]
pub enum LegacyTranslationType {
    /// Second stage; untranslated requests only.
    Untranslated = 0b00,
    /// Second stage; translation and translated requests too.
    DeviceTlb = 0b01,
    /// Output equals input; untranslated requests only.
    PassThrough = 0b10,
    /// Reserved.
    Reserved = 0b11,
}

/// Legacy context entry, bits 63:0.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct LegacyContextLow {
    /// SSPTPTR: root of the second-stage table in units of 4 KiB. Ignored in pass-through.
    #[bits(12..=63, rw)]
    second_stage: u52,
    /// Translation type.
    #[bits(2..=3, rw)]
    tt: LegacyTranslationType,
    /// Fault processing disable; honoured even if not present.
    #[bit(1, rw)]
    fpd: bool,
    /// Present.
    #[bit(0, rw)]
    present: bool,
}

/// Legacy context entry, bits 127:64.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct LegacyContextHigh {
    /// Bits 87:72, domain-id.
    #[bits(8..=23, rw)]
    did: u16,
    /// Bits 70:67, ignored.
    #[bits(3..=6, rw)]
    ignored: u4,
    /// Bits 66:64, address width.
    #[bits(0..=2, rw)]
    aw: u3,
}

impl LegacyContextLow {
    /// Where the entry for `source` lies in a context table.
    #[inline]
    #[must_use]
    pub const fn locate(table: Gpa, source: SourceId) -> Gpa {
        Gpa(table.0.wrapping_add(source.devfn() as u64 * 16))
    }
}

/// Bits of a legacy context entry that must be 0, word by word; of SSPTPTR only where it is used.
#[must_use]
pub fn reserved_legacy(host_bits: u32, cap: Cap) -> [u64; 2] {
    let low = [
        (LegacyContextLow::present_mask(), true),
        (LegacyContextLow::fpd_mask(), true),
        (LegacyContextLow::tt_mask(), true),
        (LegacyContextLow::second_stage_mask(), true),
    ];
    let did = u64::from(super::domain_mask(cap)) << 8;
    let high = [
        (LegacyContextHigh::aw_mask(), true),
        (LegacyContextHigh::ignored_mask(), true),
        (LegacyContextHigh::did_mask() & did, true),
    ];
    [super::reserved_word(&low, host_bits), super::reserved_word(&high, 64)]
}

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

/// Bits that must be 0, word by word. HPTE is: HPTS is never offered.
#[must_use]
pub const fn reserved(host_bits: u32, ecap: Ecap) -> [u64; 4] {
    let low = [
        (ContextLow::present_mask(), true),
        (ContextLow::fpd_mask(), true),
        (ContextLow::dte_mask(), ecap.dt()),
        (ContextLow::paside_mask(), ecap.pasid()),
        (ContextLow::pre_mask(), ecap.prs()),
        (ContextLow::eptr_mask(), ecap.ptrs()),
        (ContextLow::pdts_mask(), true),
        (ContextLow::directory_mask(), true),
    ];
    let high = [(ContextHigh::rid_pasid_mask(), ecap.rps()), (ContextHigh::rid_priv_mask(), ecap.rprivs())];
    [super::reserved_word(&low, host_bits), super::reserved_word(&high, 64), u64::MAX, u64::MAX]
}

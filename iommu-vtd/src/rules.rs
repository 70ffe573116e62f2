//! What a look-up needs of the capability registers, derived from them once.

use arbitrary_int::u3;

use crate::capability::{Capability, VERSION};
use crate::spec::registers::{Cap, Ecap};
use crate::spec::{context, paging, pasid, root};

/// Reserved bits and limits that follow from the capability. A unit makes one and hands it to every look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Major architecture version. From 8 on execute requests are refused before any look-up.
    pub version: u8,
    /// Physical address width (HAW) in bits.
    pub host_bits: u32,
    /// Guest address width (MGAW as a width) in bits: bounds the input of second stages.
    pub guest_bits: u32,
    /// PASIDs have at most this many bits (PSS + 1).
    pub pasid_bits: u32,
    /// Logarithm of the largest block that is returned where output equals input.
    pub identity_bits: u32,
    /// Scalable-mode tables are supported.
    pub scalable: bool,
    /// Abort-DMA mode is supported.
    pub abort_dma: bool,
    /// First-stage translation is supported.
    pub first_stage: bool,
    /// ... with five levels.
    pub five_level: bool,
    /// Second-stage translation is supported in scalable mode.
    pub second_stage: bool,
    /// First over second stage is supported.
    pub nested: bool,
    /// Address widths of second stages (SAGAW): bit n says that the value n of an AW field is supported.
    pub widths: u8,
    /// Pass-through is supported.
    pub pass_through: bool,
    /// Device-TLBs are supported.
    pub device_tlb: bool,
    /// The no-write flag of translation requests is honoured.
    pub no_write: bool,
    /// Zero-length reads of write-only pages are served.
    pub zero_length_read: bool,
    /// Translated requests may have a PASID.
    pub translated_pasid: bool,
    /// Reserved bits of a root half.
    pub root: u64,
    /// Reserved bits of a context entry in legacy mode.
    pub legacy_context: [u64; 2],
    /// Reserved bits of a context entry.
    pub context: [u64; 4],
    /// Reserved bits of a PASID directory entry.
    pub directory: u64,
    /// Reserved bits of a PASID entry.
    pub pasid: [u64; pasid::PASID_ENTRY_WORDS],
    /// Reserved bits of first-stage entries.
    pub first_entries: paging::Reserved,
    /// Reserved bits of second-stage entries.
    pub second_entries: paging::Reserved,
}

impl Rules {
    /// The rules of a unit.
    #[must_use]
    pub fn new(capability: &Capability) -> Self {
        Self::from_registers(capability.host_address_width(), capability.cap(), capability.ecap())
    }

    /// The rules that follow from any register values, also of mixes that no [`Capability`] would allow.
    #[must_use]
    pub fn from_registers(host_bits: u32, cap: Cap, ecap: Ecap) -> Self {
        let huge = cap.fs1gp() || cap.sslps().value() & 2 != 0;
        Self {
            version: VERSION >> 4,
            host_bits,
            guest_bits: u32::from(cap.mgaw().value()) + 1,
            pasid_bits: (u32::from(ecap.pss().value()) + 1).min(iommu_core::Pasid::BITS),
            identity_bits: if huge { 30 } else { 21 },
            scalable: ecap.smts(),
            abort_dma: ecap.adms(),
            first_stage: ecap.fsts(),
            five_level: cap.fs5lp(),
            second_stage: ecap.ssts(),
            nested: ecap.nest() && ecap.fsts() && ecap.ssts(),
            widths: cap.sagaw().value(),
            pass_through: ecap.pt(),
            device_tlb: ecap.dt(),
            no_write: ecap.nwfs(),
            zero_length_read: cap.zlr(),
            translated_pasid: ecap.ptrs() && ecap.dt(),
            root: root::RootHalf::reserved(host_bits),
            legacy_context: context::reserved_legacy(host_bits, cap),
            context: context::reserved(host_bits, ecap),
            directory: pasid::DirectoryEntry::reserved(host_bits),
            pasid: pasid::reserved(host_bits, cap, ecap),
            first_entries: paging::reserved_first(host_bits, cap.fs1gp()),
            second_entries: paging::reserved_second(host_bits, cap.sslps(), ecap.sc()),
        }
    }

    /// Levels of a second stage whose AW field is `width`; `None` if it is not supported.
    #[inline]
    #[must_use]
    pub fn second_stage_levels(&self, width: u3) -> Option<u32> {
        let levels = match width.value() {
            1 => 3,
            2 => 4,
            3 => 5,
            _ => return None,
        };
        (self.widths >> width.value() & 1 != 0).then_some(levels)
    }
}

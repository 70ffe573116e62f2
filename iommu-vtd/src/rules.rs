//! What a look-up needs of the capability registers, derived from them once.

use crate::capability::Capability;
use crate::spec::registers::{Cap, Ecap};
use crate::spec::{context, paging, pasid, root};

/// Reserved bits and limits that follow from the capability. A unit makes one and hands it to every look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Physical address width (HAW) in bits.
    pub host_bits: u32,
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
    /// Pass-through is supported.
    pub pass_through: bool,
    /// The no-write flag of translation requests is honoured.
    pub no_write: bool,
    /// Reserved bits of a root half.
    pub root: u64,
    /// Reserved bits of a context entry.
    pub context: [u64; 4],
    /// Reserved bits of a PASID directory entry.
    pub directory: u64,
    /// Reserved bits of a PASID entry.
    pub pasid: [u64; pasid::PASID_ENTRY_WORDS],
    /// Reserved bits of first-stage entries: `[level][page size bit]`.
    pub paging: [[u64; 2]; paging::LEVELS + 1],
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
        Self {
            host_bits,
            pasid_bits: u32::from(ecap.pss().value()) + 1,
            identity_bits: if cap.fs1gp() { 30 } else { 21 },
            scalable: ecap.smts(),
            abort_dma: ecap.adms(),
            first_stage: ecap.fsts(),
            five_level: cap.fs5lp(),
            pass_through: ecap.pt(),
            no_write: ecap.nwfs(),
            root: root::RootHalf::reserved(host_bits),
            context: context::reserved(host_bits, ecap),
            directory: pasid::DirectoryEntry::reserved(host_bits),
            pasid: pasid::reserved(host_bits, cap, ecap),
            paging: paging::reserved(host_bits, cap.fs1gp()),
        }
    }
}

//! What an IOMMU, virtual or host, can do.

/// Neutral capabilities. The guest-visible set of a model is its own profile [narrowed](Self::intersect)
/// by every host device behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Widest first-stage input in bits; 0: no first stage.
    pub first_stage_bits: u32,
    /// Widest second-stage input in bits; 0: no second stage.
    pub second_stage_bits: u32,
    /// First over second.
    pub nested: bool,
    /// First-stage block sizes, as a mask of powers of two in bytes.
    pub first_stage_page_sizes: u64,
    /// Second-stage block sizes.
    pub second_stage_page_sizes: u64,
    /// PASID width in bits; 0: no PASIDs.
    pub pasid_bits: u32,
    /// Device-TLBs (ATS).
    pub device_tlb: bool,
    /// Page requests (PRI).
    pub page_requests: bool,
    /// Supervisor requests with PASID.
    pub supervisor: bool,
    /// Maintenance of an extended-accessed bit in the first stage.
    pub extended_accessed: bool,
    /// Translation requests that waive writing are told apart from others.
    pub no_write_flag: bool,
    /// Dirty tracking in the second stage.
    pub dirty_tracking: bool,
    /// Walks are coherent with CPU caches.
    pub coherent_walk: bool,
}

impl Capabilities {
    /// Nothing at all.
    pub const NONE: Self = Self {
        first_stage_bits: 0,
        second_stage_bits: 0,
        nested: false,
        first_stage_page_sizes: 0,
        second_stage_page_sizes: 0,
        pasid_bits: 0,
        device_tlb: false,
        page_requests: false,
        supervisor: false,
        extended_accessed: false,
        no_write_flag: false,
        dirty_tracking: false,
        coherent_walk: false,
    };

    /// What both can do.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        Self {
            first_stage_bits: self.first_stage_bits.min(other.first_stage_bits),
            second_stage_bits: self.second_stage_bits.min(other.second_stage_bits),
            nested: self.nested && other.nested,
            first_stage_page_sizes: self.first_stage_page_sizes & other.first_stage_page_sizes,
            second_stage_page_sizes: self.second_stage_page_sizes & other.second_stage_page_sizes,
            pasid_bits: self.pasid_bits.min(other.pasid_bits),
            device_tlb: self.device_tlb && other.device_tlb,
            page_requests: self.page_requests && other.page_requests,
            supervisor: self.supervisor && other.supervisor,
            extended_accessed: self.extended_accessed && other.extended_accessed,
            no_write_flag: self.no_write_flag && other.no_write_flag,
            dirty_tracking: self.dirty_tracking && other.dirty_tracking,
            coherent_walk: self.coherent_walk && other.coherent_walk,
        }
    }
}

//! The fields of a profile, and the presets.

/// Largest page of a second stage (SSLPS). Smaller ones come with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LargestPage {
    /// 4 KiB.
    FourKib,
    /// 2 MiB.
    TwoMib,
    /// 1 GiB.
    OneGib,
}

/// What a unit is to offer: everything that this model can. Start from a preset and change fields, or
/// [parse](Self::parse) one. [`crate::Capability::new`] refuses mixes that no hardware could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Physical address width of the guest's CPUs in bits (HAW), 36 to 52.
    pub host_address_width: u32,
    /// Widest address that tables translate: 39, 48 or 57 bits. The second stage takes all widths up to it, the
    /// first stage those from 48 on. MGAW is this or HAW, whichever is larger, so that pass-through reaches all of
    /// memory.
    pub address_width: u32,
    /// Width of domain-ids in bits (ND): 4 to 16, even.
    pub domain_id_bits: u32,

    /// Scalable mode (SMTS). Without it, root tables in legacy mode are all there is.
    pub scalable_mode: bool,
    /// First stage (FSTS).
    pub first_stage: bool,
    /// Second stage in scalable mode (SSTS). Legacy mode always has one.
    pub second_stage: bool,
    /// First stage over second stage (NEST).
    pub nested: bool,
    /// Pass-through (PT).
    pub pass_through: bool,
    /// Abort-DMA mode (ADMS).
    pub abort_dma: bool,
    /// First stage with five levels (FS5LP); Linux wants it if guest CPUs have LA57.
    pub five_level: bool,
    /// First stage with 1 GiB pages (FS1GP); Linux wants it if guest CPUs have them.
    pub one_gib_pages: bool,
    /// Maintenance of the extended-accessed bit (EAFS).
    pub extended_accessed: bool,
    /// Largest page of second stages (SSLPS).
    pub second_stage_pages: LargestPage,
    /// Accessed and dirty bits in the second stage (SSADS).
    pub second_stage_dirty: bool,
    /// Coherent access to root, context, PASID and interrupt tables, and to second stages in legacy mode (C).
    pub coherent_tables: bool,
    /// Coherent page walks in scalable mode (SMPWCS).
    pub coherent_walks: bool,
    /// Snoop control (SC).
    pub snoop_control: bool,
    /// Zero-length reads of write-only pages are served (ZLR).
    pub zero_length_read: bool,

    /// Width of PASIDs in bits (PASID, PSS), 1 to 20; 0: requests with PASID are refused.
    pub pasid_bits: u32,
    /// The RID_PASID field is honoured (RPS).
    pub rid_pasid: bool,
    /// The RID_PRIV field is honoured (RPRIVS).
    pub rid_priv: bool,
    /// Supervisor requests (SRS).
    pub supervisor: bool,

    /// Device-TLBs (DT).
    pub device_tlb: bool,
    /// PFSID fields of device-TLB invalidations and page group responses are valid (DIT).
    pub device_tlb_throttle: bool,
    /// The no-write flag of translation requests is honoured (NWFS).
    pub no_write_flag: bool,
    /// Page requests (PRS).
    pub page_requests: bool,
    /// Page-request drain in the wait descriptor (PDS). Linux offers no page requests without it.
    pub page_drain: bool,
    /// Stop markers behave as the manual defines (SMS).
    pub stop_marker: bool,

    /// Queued invalidation (QI). Without it, registers invalidate.
    pub queued_invalidation: bool,
    /// Page-selective invalidation of the IOTLB (PSI).
    pub page_selective: bool,
    /// Largest address mask of a second-stage IOTLB invalidation (MAMV), 0 to 51.
    pub max_address_mask: u32,
    /// Invalidations drain DMA in flight if asked to (DRD, DWD). This model always drains.
    pub dma_drain: bool,
    /// Caching mode (CM): entries that are not present may be cached, so that software announces new ones.
    pub caching_mode: bool,
    /// Software must flush write buffers (RWBF).
    pub write_buffer_flush: bool,
    /// Setting the root table pointer invalidates all DMA-remapping caches (ESRTPS).
    pub root_invalidates: bool,

    /// Interrupt remapping (IR).
    pub interrupt_remapping: bool,
    /// Interrupts to x2APIC ids (EIM).
    pub extended_interrupts: bool,
    /// Posted interrupts (PI).
    pub posted_interrupts: bool,
    /// Largest index mask of an interrupt entry cache invalidation (MHMV), 0 to 15; matters with interrupt
    /// remapping only.
    pub max_handle_mask: u32,
    /// Setting the interrupt remapping table pointer invalidates the interrupt entry cache (ESIRTPS).
    pub interrupt_table_invalidates: bool,
}

impl Profile {
    /// Legacy mode: second stages with three and four levels, pass-through, device-TLBs, interrupt remapping. The
    /// other presets have its interrupt remapping, too.
    #[must_use]
    pub const fn legacy(host_address_width: u32) -> Self {
        Self {
            host_address_width,
            address_width: 48,
            domain_id_bits: 16,
            scalable_mode: false,
            first_stage: false,
            second_stage: false,
            nested: false,
            pass_through: true,
            abort_dma: false,
            five_level: false,
            one_gib_pages: false,
            extended_accessed: false,
            second_stage_pages: LargestPage::OneGib,
            second_stage_dirty: false,
            coherent_tables: true,
            coherent_walks: false,
            snoop_control: true,
            zero_length_read: true,
            pasid_bits: 0,
            rid_pasid: false,
            rid_priv: false,
            supervisor: false,
            device_tlb: true,
            device_tlb_throttle: true,
            no_write_flag: true,
            page_requests: false,
            page_drain: false,
            stop_marker: false,
            queued_invalidation: true,
            page_selective: true,
            max_address_mask: 18,
            dma_drain: true,
            caching_mode: false,
            write_buffer_flush: false,
            root_invalidates: true,
            interrupt_remapping: true,
            extended_interrupts: true,
            posted_interrupts: false,
            max_handle_mask: 15,
            interrupt_table_invalidates: true,
        }
    }

    /// Scalable mode with a second stage only, also by PASID, with dirty tracking.
    #[must_use]
    pub const fn scalable(host_address_width: u32) -> Self {
        Self {
            scalable_mode: true,
            second_stage: true,
            second_stage_dirty: true,
            coherent_walks: true,
            pasid_bits: 20,
            rid_pasid: true,
            page_drain: true,
            ..Self::legacy(host_address_width)
        }
    }

    /// Shared virtual memory: scalable mode with a first stage only, 20-bit PASIDs, device-TLBs and page requests.
    #[must_use]
    pub const fn svm(host_address_width: u32) -> Self {
        Self {
            second_stage: false,
            second_stage_pages: LargestPage::FourKib,
            second_stage_dirty: false,
            first_stage: true,
            one_gib_pages: true,
            extended_accessed: true,
            supervisor: true,
            page_requests: true,
            stop_marker: true,
            ..Self::scalable(host_address_width)
        }
    }

    /// All that this model has, but for caching mode and flushing of write buffers, which only cost.
    #[must_use]
    pub const fn full(host_address_width: u32) -> Self {
        Self {
            second_stage: true,
            nested: true,
            second_stage_pages: LargestPage::OneGib,
            second_stage_dirty: true,
            abort_dma: true,
            rid_priv: true,
            posted_interrupts: true,
            ..Self::svm(host_address_width)
        }
    }

    /// Tables of `bits` bits, 39, 48 or 57, for both stages.
    #[must_use]
    pub const fn with_address_width(self, bits: u32) -> Self {
        Self { address_width: bits, five_level: self.first_stage && bits == 57, ..self }
    }
}

//! Where the endpoint's registers are, in BAR0.

/// Bytes of BAR0.
pub(crate) const BAR_BYTES: usize = 256 * 1024;
/// What the ID register reads.
pub(crate) const ID: u32 = 0x314d_5653;

/// The global page.
pub(crate) mod global {
    /// Identifies the endpoint.
    pub(crate) const ID: usize = 0x00;
    /// Version of the programming model.
    pub(crate) const VERSION: usize = 0x04;
    /// Queues, depth, features.
    pub(crate) const CAPS: usize = 0x08;
    /// Reset.
    pub(crate) const CTRL: usize = 0x0c;
    /// What configuration space enables.
    pub(crate) const STATUS: usize = 0x10;
    /// Descriptors that ended; the other counters follow, 8 bytes each.
    pub(crate) const COMPLETED: usize = 0x40;
    /// Page requests sent.
    pub(crate) const PAGE_REQUESTS: usize = 0x50;
    /// Submissions to full or disabled queues.
    pub(crate) const DROPPED: usize = 0x80;
    /// Completion records that could not be written.
    pub(crate) const RECORDS_LOST: usize = 0x88;
    /// The first moment of the timeline: four more follow, 8 bytes each.
    pub(crate) const MISS: usize = 0xc8;
    /// The page that the timeline is about.
    pub(crate) const ADDRESS: usize = 0xf0;
    /// Sequence number of the timeline in the upper half, queue in the lower.
    pub(crate) const SEQUENCE: usize = 0xf8;

    /// STATUS: ATS is enabled.
    pub(crate) const ATS_ENABLED: u32 = 1 << 1;
    /// STATUS: PRI is enabled.
    pub(crate) const PRI_ENABLED: u32 = 1 << 2;
    /// STATUS: PASID is enabled.
    pub(crate) const PASID_ENABLED: u32 = 1 << 3;
    /// STATUS: bus mastering is on.
    pub(crate) const BUS_MASTER: u32 = 1;
}

/// The privileged page of a queue.
pub(crate) mod control {
    /// Enable.
    pub(crate) const CTRL: usize = 0x00;
    /// Enabled, active, waiting.
    pub(crate) const STATUS: usize = 0x04;
    /// PASID and its valid bit.
    pub(crate) const PASID: usize = 0x08;
    /// Interrupt vector and its enable bit.
    pub(crate) const IRQ: usize = 0x0c;
    /// Descriptors under way.
    pub(crate) const OCCUPANCY: usize = 0x10;
    /// Page requests of this queue.
    pub(crate) const PAGE_REQUESTS: usize = 0x50;
    /// Address of the last record that could not be written.
    pub(crate) const RECORD_LOST: usize = 0x58;

    /// STATUS: descriptors are under way.
    pub(crate) const ACTIVE: u32 = 1 << 1;
    /// STATUS: the one at work waits for a page response.
    pub(crate) const WAITING: u32 = 1 << 2;
    /// PASID and IRQ: the rest of the register counts.
    pub(crate) const VALID: u32 = 1 << 31;

    /// Offset of a register of queue `queue` in BAR0.
    pub(crate) fn offset(queue: usize, register: usize) -> usize {
        0x10000 + queue * 0x1000 + register
    }
}

/// The unprivileged page of a queue.
pub(crate) mod portal {
    /// Staging of one descriptor.
    pub(crate) const DESCRIPTOR: usize = 0x00;
    /// Descriptors that can be submitted now.
    pub(crate) const FREE: usize = 0x40;
    /// Submissions that were dropped.
    pub(crate) const DROPPED: usize = 0x44;

    /// Offset of a register of queue `queue` in BAR0.
    pub(crate) fn offset(queue: usize, register: usize) -> usize {
        0x20000 + queue * 0x1000 + register
    }
}

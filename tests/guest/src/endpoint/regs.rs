//! Where the endpoint's registers are, in BAR0.

/// Bytes of BAR0.
pub const BAR_BYTES: usize = 256 * 1024;
/// What the ID register reads.
pub const ID: u32 = 0x314d_5653;

/// The global page.
pub mod global {
    /// Identifies the endpoint.
    pub const ID: usize = 0x00;
    /// Version of the programming model.
    pub const VERSION: usize = 0x04;
    /// Queues, depth, features.
    pub const CAPS: usize = 0x08;
    /// Reset.
    pub const CTRL: usize = 0x0c;
    /// What configuration space enables.
    pub const STATUS: usize = 0x10;
    /// Descriptors that ended; the other counters follow, 8 bytes each.
    pub const COMPLETED: usize = 0x40;
    /// Page requests sent.
    pub const PAGE_REQUESTS: usize = 0x50;
    /// Submissions to full or disabled queues.
    pub const DROPPED: usize = 0x80;
    /// Completion records that could not be written.
    pub const RECORDS_LOST: usize = 0x88;
    /// The first moment of the timeline: four more follow, 8 bytes each.
    pub const MISS: usize = 0xc8;
    /// The page that the timeline is about.
    pub const ADDRESS: usize = 0xf0;
    /// Sequence number of the timeline in the upper half, queue in the lower.
    pub const SEQUENCE: usize = 0xf8;

    /// STATUS: ATS is enabled.
    pub const ATS_ENABLED: u32 = 1 << 1;
    /// STATUS: PRI is enabled.
    pub const PRI_ENABLED: u32 = 1 << 2;
    /// STATUS: PASID is enabled.
    pub const PASID_ENABLED: u32 = 1 << 3;
    /// STATUS: bus mastering is on.
    pub const BUS_MASTER: u32 = 1;
}

/// The privileged page of a queue.
pub mod control {
    /// Enable.
    pub const CTRL: usize = 0x00;
    /// Enabled, active, waiting.
    pub const STATUS: usize = 0x04;
    /// PASID and its valid bit.
    pub const PASID: usize = 0x08;
    /// Interrupt vector and its enable bit.
    pub const IRQ: usize = 0x0c;
    /// Descriptors under way.
    pub const OCCUPANCY: usize = 0x10;
    /// Page requests of this queue.
    pub const PAGE_REQUESTS: usize = 0x50;
    /// Address of the last record that could not be written.
    pub const RECORD_LOST: usize = 0x58;

    /// STATUS: descriptors are under way.
    pub const ACTIVE: u32 = 1 << 1;
    /// STATUS: the one at work waits for a page response.
    pub const WAITING: u32 = 1 << 2;
    /// PASID and IRQ: the rest of the register counts.
    pub const VALID: u32 = 1 << 31;

    /// Offset of a register of queue `queue` in BAR0.
    pub fn offset(queue: usize, register: usize) -> usize {
        0x10000 + queue * 0x1000 + register
    }
}

/// The unprivileged page of a queue.
pub mod portal {
    /// Staging of one descriptor.
    pub const DESCRIPTOR: usize = 0x00;
    /// Descriptors that can be submitted now.
    pub const FREE: usize = 0x40;
    /// Submissions that were dropped.
    pub const DROPPED: usize = 0x44;

    /// Offset of a register of queue `queue` in BAR0.
    pub fn offset(queue: usize, register: usize) -> usize {
        0x20000 + queue * 0x1000 + register
    }
}

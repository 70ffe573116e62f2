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
    /// Engines, windows, pages of a group, logarithm of a batch: a byte each.
    pub const LIMITS: usize = 0x18;
    /// Engines in use.
    pub const ENGINES: usize = 0x1c;
    /// Starts a command.
    pub const COMMAND: usize = 0x20;
    /// How it stands.
    pub const COMMAND_STATUS: usize = 0x24;
    /// Descriptors that ended; the other counters follow, 8 bytes each.
    pub const COMPLETED: usize = 0x40;
    /// Page requests sent.
    pub const PAGE_REQUESTS: usize = 0x50;
    /// Responses to groups of them: success, invalid request, response failure.
    pub const RESPONSES: [usize; 3] = [0x58, 0x60, 0x68];
    /// Submissions to full or disabled queues.
    pub const DROPPED: usize = 0x80;
    /// Completion records that could not be written.
    pub const RECORDS_LOST: usize = 0x88;
    /// Page request groups sent.
    pub const PAGE_GROUPS: usize = 0x90;
    /// Accesses that the device-TLB served; TRANSLATION_REQUESTS are those that it did not.
    pub const TRANSLATION_HITS: usize = 0x98;
    /// Translation requests sent.
    pub const TRANSLATION_REQUESTS: usize = 0x48;
    /// Answered page requests: number, p50 and p99 of the time from sent to response, 8 bytes each.
    pub const ANSWERED: usize = 0x100;
    /// Waits that ended well: number, p50 and p99 of the time from miss to retry, 8 bytes each.
    pub const SERVED: usize = 0x118;
    /// The first moment of the timeline: four more follow, 8 bytes each.
    pub const MISS: usize = 0xc8;
    /// The page that the timeline is about.
    pub const ADDRESS: usize = 0xf0;
    /// Sequence number of the timeline in the upper half, queue in the lower.
    pub const SEQUENCE: usize = 0xf8;

    /// COMMAND: waits until descriptors have ended.
    pub const DRAIN: u32 = 1;
    /// COMMAND: ends them.
    pub const ABORT: u32 = 2;
    /// COMMAND: the operand, from bit 8 on, is a PASID instead of a queue.
    pub const BY_PASID: u32 = 1 << 4;
    /// COMMAND: send vector 0 at the end.
    pub const COMMAND_INTERRUPT: u32 = 1 << 5;
    /// COMMAND_STATUS: its state, of the next constants.
    pub const STATE: u32 = 0xf;
    /// State: under way.
    pub const COMMAND_ACTIVE: u32 = 1;
    /// State: done.
    pub const COMMAND_DONE: u32 = 2;
    /// State: refused.
    pub const COMMAND_REFUSED: u32 = 3;
    /// COMMAND_STATUS: another one was ignored meanwhile.
    pub const OVERRUN: u32 = 1 << 4;

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
    /// Its share of the engines, less 1.
    pub const PRIORITY: usize = 0x14;
    /// Page requests of this queue.
    pub const PAGE_REQUESTS: usize = 0x50;
    /// Address of the last record that could not be written.
    pub const RECORD_LOST: usize = 0x58;
    /// Bytes completed.
    pub const BYTES: usize = 0x60;

    /// CTRL: the queue takes descriptors.
    pub const ENABLE: u32 = 1;
    /// CTRL: through windows.
    pub const SHARED: u32 = 1 << 1;
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
    /// What became of the last submission: code in the lowest byte, number above it.
    pub const OUTCOME: usize = 0x48;

    /// OUTCOME: accepted.
    pub const ACCEPTED: u32 = 1;
    /// OUTCOME: the queue is full.
    pub const FULL: u32 = 2;
    /// OUTCOME: page or queue takes nothing.
    pub const DISABLED: u32 = 3;

    /// Offset of a register of queue `queue` in BAR0.
    pub fn offset(queue: usize, register: usize) -> usize {
        0x20000 + queue * 0x1000 + register
    }
}

/// The windows to shared queues. Their pages have the registers of [`portal`].
pub mod window {
    /// How many there are.
    pub const COUNT: usize = 16;

    /// Offset of a register of window page `window` in BAR0.
    pub fn offset(window: usize, register: usize) -> usize {
        0x30000 + window * 0x1000 + register
    }

    /// Offset of the privileged register that enables a window (bit 0) for a queue (from bit 8 on).
    pub fn control(window: usize) -> usize {
        0x800 + window * 0x10
    }

    /// Offset of the privileged register that gives a window its PASID, as a queue's PASID register does.
    pub fn pasid(window: usize) -> usize {
        0x804 + window * 0x10
    }
}

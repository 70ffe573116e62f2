//! Layouts of the programming model: registers (section 2), descriptor (3.1), completion record (3.2).

mod descriptor;
mod registers;

pub use descriptor::{Descriptor, DescriptorFlags, FaultInfo, FaultReason, Opcode, Record, Status};
pub use registers::{
    Caps, Command, CommandOperation, CommandState, CommandStatus, GlobalControl, GlobalStatus, IrqRegister,
    Limits, Outcome, OutcomeCode, PasidRegister, PriorityRegister, QueueControl, QueueStatus, WindowControl,
};

/// Most queues that a function can have: the pages of BAR0 have room for no more.
pub const MAX_QUEUES: u8 = 16;
/// Logarithms of the descriptors that a queue may hold, both inclusive.
pub const DEPTH_LOG2: std::ops::RangeInclusive<u8> = 1..=10;
/// Longest transfer in bytes, and most hops of a chase.
pub const MAX_TRANSFER_BYTES: u64 = 1 << 30;
/// Page requests that may be outstanding: the capacity in the PRI capability.
pub const PAGE_REQUEST_CAPACITY: u32 = 32;
/// Window pages: portals of shared queues.
pub const WINDOWS: u8 = 16;
/// Most engines.
pub const MAX_ENGINES: u8 = 16;
/// Most pages in one page request group.
pub const GROUP_PAGES: u8 = 16;
/// Logarithm of the most descriptors of a batch.
pub const BATCH_LOG2: u8 = 10;
/// Most that counts as moved by one hop of a chase.
pub const HOP_BYTES: u64 = 64;
/// Size of BAR0.
pub const BAR0_BYTES: u64 = 256 << 10;
/// Size of BAR1: MSI-X table and pending bits.
pub const BAR1_BYTES: u64 = 4 << 10;
/// Size of every page of BAR0.
pub const PAGE_BYTES: u64 = 0x1000;
/// First control page.
pub const CONTROL_PAGES: u64 = 0x1_0000;
/// First portal page.
pub const PORTAL_PAGES: u64 = 0x2_0000;
/// First window page.
pub const WINDOW_PAGES: u64 = 0x3_0000;

/// Registers of the global page.
pub mod global {
    /// "SVM1".
    pub const ID: u64 = 0x00;
    /// Version of the programming model.
    pub const VERSION: u64 = 0x04;
    /// [`Caps`](super::Caps).
    pub const CAPS: u64 = 0x08;
    /// [`GlobalControl`](super::GlobalControl).
    pub const CTRL: u64 = 0x0c;
    /// [`GlobalStatus`](super::GlobalStatus).
    pub const STATUS: u64 = 0x10;
    /// Longest transfer in MiB.
    pub const MAX_TRANSFER: u64 = 0x14;
    /// [`Limits`](super::Limits).
    pub const LIMITS: u64 = 0x18;
    /// Engines in use.
    pub const ENGINES: u64 = 0x1c;
    /// [`Command`](super::Command).
    pub const COMMAND: u64 = 0x20;
    /// [`CommandStatus`](super::CommandStatus).
    pub const COMMAND_STATUS: u64 = 0x24;
    /// First counter.
    pub const COUNTERS: u64 = 0x40;
    /// Accesses that the device-TLB served.
    pub const TRANSLATION_HITS: u64 = 0x98;
    /// First register of the timeline.
    pub const TIMELINE: u64 = 0xc0;
    /// First register of the durations.
    pub const DURATIONS: u64 = 0x100;
    /// Behind the last register of the durations.
    pub const DURATIONS_END: u64 = 0x130;
    /// First register of fault injection.
    pub const MISBEHAVIOUR: u64 = 0x400;
    /// Behind the last register of fault injection.
    pub const MISBEHAVIOUR_END: u64 = 0x500;
    /// [`WindowControl`](super::WindowControl) of window 0; its PASID follows.
    pub const WINDOWS: u64 = 0x800;
    /// From one window's registers to the next one's.
    pub const WINDOW_BYTES: u64 = 0x10;
    /// Value of [`ID`].
    pub const ID_VALUE: u32 = u32::from_le_bytes(*b"SVM1");
    /// Value of [`VERSION`].
    pub const VERSION_VALUE: u32 = 2;
}

/// Registers of a queue's control page.
pub mod control {
    /// [`QueueControl`](super::QueueControl).
    pub const CTRL: u64 = 0x00;
    /// [`QueueStatus`](super::QueueStatus).
    pub const STATUS: u64 = 0x04;
    /// [`PasidRegister`](super::PasidRegister).
    pub const PASID: u64 = 0x08;
    /// [`IrqRegister`](super::IrqRegister).
    pub const IRQ: u64 = 0x0c;
    /// Descriptors in the queue.
    pub const OCCUPANCY: u64 = 0x10;
    /// [`PriorityRegister`](super::PriorityRegister).
    pub const PRIORITY: u64 = 0x14;
    /// Descriptors that ended.
    pub const COMPLETED: u64 = 0x40;
    /// Descriptors that ended in a fault.
    pub const FAULTED: u64 = 0x48;
    /// Page requests.
    pub const PAGE_REQUESTS: u64 = 0x50;
    /// Address of the last record that could not be written.
    pub const RECORD_LOST: u64 = 0x58;
    /// Bytes completed.
    pub const BYTES: u64 = 0x60;
}

/// Registers of a portal or window page.
pub mod portal {
    /// Bytes of the staging area, from offset 0.
    pub const STAGING_BYTES: usize = 64;
    /// Descriptors that can be submitted.
    pub const FREE: u64 = 0x40;
    /// Submissions that were dropped.
    pub const DROPPED: u64 = 0x44;
    /// [`Outcome`](super::Outcome) of the last submission.
    pub const OUTCOME: u64 = 0x48;
}

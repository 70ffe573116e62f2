//! Layouts of the programming model: registers (section 2), descriptor (3.1), completion record (3.2).

use arbitrary_int::{u3, u4, u11, u20, u24};
use bitbybit::bitfield;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

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

/// CAPS.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct Caps {
    /// Number of queues.
    #[bits(0..=7, rw)]
    queues: u8,
    /// Logarithm of a queue's depth.
    #[bits(8..=15, rw)]
    depth: u8,
    /// PRI capability present.
    #[bit(16, rw)]
    pri: bool,
    /// ATS capability present.
    #[bit(17, rw)]
    ats: bool,
}

/// Global CTRL.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct GlobalControl {
    /// Reset.
    #[bit(0, rw)]
    reset: bool,
}

/// Global STATUS.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct GlobalStatus {
    /// Bus mastering is on.
    #[bit(0, rw)]
    bus_master: bool,
    /// ATS is enabled.
    #[bit(1, rw)]
    ats: bool,
    /// PRI is enabled.
    #[bit(2, rw)]
    pri: bool,
    /// PASID is enabled.
    #[bit(3, rw)]
    pasid: bool,
}

/// LIMITS.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct Limits {
    /// Engines that there are.
    #[bits(0..=7, rw)]
    engines: u8,
    /// Window pages.
    #[bits(8..=15, rw)]
    windows: u8,
    /// Most pages in one page request group.
    #[bits(16..=23, rw)]
    group: u8,
    /// Logarithm of the most descriptors of a batch.
    #[bits(24..=31, rw)]
    batch: u8,
}

/// COMMAND.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct Command {
    /// [`CommandOperation`] if known.
    #[bits(0..=3, rw)]
    operation: u4,
    /// The operand is a PASID, else a queue.
    #[bit(4, rw)]
    by_pasid: bool,
    /// Send vector 0 at the end.
    #[bit(5, rw)]
    interrupt: bool,
    /// Queue or PASID.
    #[bits(8..=27, rw)]
    operand: u20,
}

/// Operations of COMMAND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CommandOperation {
    /// Wait until descriptors have ended.
    Drain = 1,
    /// End them, and wait for that.
    Abort = 2,
}

/// COMMAND_STATUS.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct CommandStatus {
    /// [`CommandState`].
    #[bits(0..=3, rw)]
    state: u4,
    /// A command was ignored, because one was under way.
    #[bit(4, rw)]
    overrun: bool,
}

/// States of COMMAND_STATUS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum CommandState {
    /// There was no command.
    #[default]
    None = 0,
    /// One is under way.
    Active = 1,
    /// The last one is done.
    Done = 2,
    /// The last one was none.
    Refused = 3,
}

/// CTRL of a window.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct WindowControl {
    /// The window takes descriptors.
    #[bit(0, rw)]
    enable: bool,
    /// For this queue.
    #[bits(8..=11, rw)]
    queue: u4,
}

/// CTRL of a queue.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct QueueControl {
    /// The queue takes descriptors.
    #[bit(0, rw)]
    enable: bool,
    /// They come through windows, not through the portal.
    #[bit(1, rw)]
    shared: bool,
}

/// STATUS of a queue.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct QueueStatus {
    /// The queue takes descriptors.
    #[bit(0, rw)]
    enabled: bool,
    /// There are descriptors in it.
    #[bit(1, rw)]
    active: bool,
    /// One waits for a page response.
    #[bit(2, rw)]
    waiting: bool,
    /// Descriptors come through windows.
    #[bit(3, rw)]
    shared: bool,
}

/// PRIORITY of a queue.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct PriorityRegister {
    /// The share of the engines is in proportion to this plus 1.
    #[bits(0..=3, rw)]
    priority: u4,
}

impl PriorityRegister {
    /// Bits that keep what is written.
    pub const WRITABLE: u32 = 0xf;
}

/// OUTCOME of a submission.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct Outcome {
    /// [`OutcomeCode`].
    #[bits(0..=7, rw)]
    code: u8,
    /// Submissions through the page.
    #[bits(8..=31, rw)]
    sequence: u24,
}

/// What became of a submission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum OutcomeCode {
    /// There was none.
    #[default]
    None = 0,
    /// The queue has it.
    Accepted = 1,
    /// The queue was full.
    Full = 2,
    /// Page or queue takes nothing.
    Disabled = 3,
}

/// PASID of a queue.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct PasidRegister {
    /// PASID of requests.
    #[bits(0..=19, rw)]
    pasid: u20,
    /// Requests carry it.
    #[bit(31, rw)]
    valid: bool,
}

impl PasidRegister {
    /// Bits that keep what is written.
    pub const WRITABLE: u32 = 0x800f_ffff;
}

/// IRQ of a queue.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct IrqRegister {
    /// MSI-X vector.
    #[bits(0..=10, rw)]
    vector: u11,
    /// Interrupts are sent.
    #[bit(31, rw)]
    enable: bool,
}

impl IrqRegister {
    /// Bits that keep what is written.
    pub const WRITABLE: u32 = 0x8000_07ff;
}

/// A descriptor as it is submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// [`Opcode`] if known.
    pub opcode: u8,
    /// [`DescriptorFlags`].
    pub flags: u8,
    /// Pages that may be asked for together with a missing one.
    pub ahead: u8,
    /// Reserved, 0.
    pub reserved_03: u8,
    /// Returned in the record.
    pub tag: U32,
    /// Address of the completion record.
    pub record: U64,
    /// First source address.
    pub source: U64,
    /// First destination address.
    pub destination: U64,
    /// Bytes, or hops of a chase.
    pub length: U64,
    /// Pattern of a fill, seed of a CRC.
    pub operand: U64,
    /// Reserved, 0.
    pub reserved_30: U64,
    /// Reserved, 0.
    pub reserved_38: U64,
}
const _: () = assert!(size_of::<Descriptor>() == portal::STAGING_BYTES);

/// Flags of a descriptor.
#[bitfield(u8, default = 0, debug, forbid_overlaps)]
pub struct DescriptorFlags {
    /// Write a completion record.
    #[bit(0, rw)]
    record: bool,
    /// Send an interrupt.
    #[bit(1, rw)]
    interrupt: bool,
    /// Ask for missing pages.
    #[bit(2, rw)]
    block: bool,
    /// Start only if the ones before succeeded.
    #[bit(3, rw)]
    fence: bool,
    /// Must be 0.
    #[bits(4..=7, rw)]
    reserved: u4,
}

/// Opcodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Nothing.
    Nop = 0,
    /// Copy.
    Copy = 1,
    /// Fill with a pattern.
    Fill = 2,
    /// Compare.
    Compare = 3,
    /// CRC-32C.
    Crc32c = 4,
    /// Follow a chain of pointers.
    Chase = 5,
    /// Do the descriptors of an array.
    Batch = 6,
    /// Wait for the ones before.
    Drain = 7,
    /// See that pages are there.
    Prefetch = 8,
}

impl Opcode {
    /// `None` for one that is not known.
    #[must_use]
    pub fn from_raw(raw: u8) -> Option<Self> {
        const ALL: [Opcode; 9] = [
            Opcode::Nop,
            Opcode::Copy,
            Opcode::Fill,
            Opcode::Compare,
            Opcode::Crc32c,
            Opcode::Chase,
            Opcode::Batch,
            Opcode::Drain,
            Opcode::Prefetch,
        ];
        ALL.into_iter().find(|&opcode| opcode as u8 == raw)
    }
}

/// How a descriptor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Success = 1,
    /// Stopped at an address.
    Fault = 2,
    /// Not a descriptor.
    Invalid = 3,
    /// The queue was disabled or reset.
    Aborted = 4,
    /// A batch of which not all succeeded.
    Incomplete = 5,
    /// Not started, because one before it did not succeed.
    Fenced = 6,
}

/// Why a descriptor faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FaultReason {
    /// The page is not accessible, or nobody was asked.
    NotAccessible = 0,
    /// Page requests are unavailable, or failed.
    NoPageRequests = 1,
    /// The IOMMU refused, or the function may not ask with a PASID.
    Refused = 2,
    /// No memory at the output address.
    NoMemory = 3,
    /// Bus mastering is off.
    BusMasterOff = 4,
}

/// Fault information of a record.
#[bitfield(u8, default = 0, debug, forbid_overlaps)]
pub struct FaultInfo {
    /// The access was a write.
    #[bit(0, rw)]
    write: bool,
    /// [`FaultReason`].
    #[bits(1..=3, rw)]
    reason: u3,
}

/// A completion record. The device stores bytes 0 to 7 last, at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Record {
    /// [`Status`]; 0: not complete.
    pub status: u8,
    /// [`FaultInfo`].
    pub fault_info: u8,
    /// Page requests made, saturating.
    pub page_requests: U16,
    /// Of the descriptor.
    pub tag: U32,
    /// Bytes, or hops.
    pub completed: U64,
    /// Where it faulted.
    pub fault_address: U64,
    /// Depends on the opcode.
    pub result: U64,
}
const _: () = assert!(size_of::<Record>() == 32);

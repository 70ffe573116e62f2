//! Layouts of the programming model: registers (section 2), descriptor (3.1), completion record (3.2).

use arbitrary_int::{u3, u11, u20};
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
    /// First counter.
    pub const COUNTERS: u64 = 0x40;
    /// First register of the timeline.
    pub const TIMELINE: u64 = 0xc0;
    /// Value of [`ID`].
    pub const ID_VALUE: u32 = u32::from_le_bytes(*b"SVM1");
    /// Value of [`VERSION`].
    pub const VERSION_VALUE: u32 = 1;
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
    /// Descriptors that ended.
    pub const COMPLETED: u64 = 0x40;
    /// Descriptors that ended in a fault.
    pub const FAULTED: u64 = 0x48;
    /// Page requests.
    pub const PAGE_REQUESTS: u64 = 0x50;
    /// Address of the last record that could not be written.
    pub const RECORD_LOST: u64 = 0x58;
}

/// Registers of a portal page.
pub mod portal {
    /// Bytes of the staging area, from offset 0.
    pub const STAGING_BYTES: usize = 64;
    /// Descriptors that can be submitted.
    pub const FREE: u64 = 0x40;
    /// Submissions that were dropped.
    pub const DROPPED: u64 = 0x44;
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

/// CTRL of a queue.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct QueueControl {
    /// The queue takes descriptors.
    #[bit(0, rw)]
    enable: bool,
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
    /// Reserved, 0.
    pub reserved_02: U16,
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
    /// Must be 0.
    #[bits(3..=7, rw)]
    reserved: arbitrary_int::u5,
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
}

impl Opcode {
    /// `None` for one that is not known.
    #[must_use]
    pub fn from_raw(raw: u8) -> Option<Self> {
        [Self::Nop, Self::Copy, Self::Fill, Self::Compare, Self::Crc32c, Self::Chase]
            .into_iter()
            .find(|&opcode| opcode as u8 == raw)
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

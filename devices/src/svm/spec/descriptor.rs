//! Descriptor (section 3.1) and completion record (3.2).

use arbitrary_int::{u3, u4};
use bitbybit::bitfield;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::portal;

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

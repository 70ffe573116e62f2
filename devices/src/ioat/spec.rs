//! Layouts: the registers of BAR0 and the descriptor, of version 3 of the interface.

use bitbybit::bitfield;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Vendor of the function.
pub const VENDOR: u16 = 0x8086;
/// Device id of the function: one that both the stock driver and the kernel's VFIO selftests know.
pub const DEVICE: u16 = 0x2021;
/// Class code: system peripheral, other.
pub const CLASS: u32 = 0x08_8000;

/// Bytes of BAR0.
pub const BAR0_BYTES: u64 = 0x4000;
/// Where the MSI-X table is in BAR0.
pub const MSIX_TABLE: u64 = 0x2000;
/// Where the MSI-X pending bits are in BAR0.
pub const MSIX_PENDING: u64 = 0x3000;
/// Channels at most: the stock driver knows no more.
pub const MAX_CHANNELS: u8 = 4;
/// Logarithms that the longest transfer may have.
pub const TRANSFER_LOG2: std::ops::RangeInclusive<u8> = 12..=20;

/// Global registers: offsets from the start of BAR0.
pub mod global {
    /// Number of channels, 8 bits.
    pub const CHANCNT: u64 = 0x00;
    /// Logarithm of the longest transfer, 8 bits.
    pub const XFERCAP: u64 = 0x01;
    /// Interrupt control, 8 bits: [`super::InterruptControl`].
    pub const INTRCTRL: u64 = 0x03;
    /// Channels that raised an interrupt, one bit each, 32 bits; cleared by a read.
    pub const ATTNSTATUS: u64 = 0x04;
    /// Version of the interface, 8 bits: major in bits 7:4.
    pub const CBVER: u64 = 0x08;
    /// What channels can do beyond copying, 32 bits.
    pub const DMACAPABILITY: u64 = 0x10;
    /// First byte after the global registers.
    pub const END: usize = 0x80;

    /// What [`CBVER`] reads.
    pub const CBVER_VALUE: u8 = 0x33;
}

/// INTRCTRL.
#[bitfield(u8, default = 0, debug, forbid_overlaps)]
pub struct InterruptControl {
    /// Interrupts are on.
    #[bit(0, rw)]
    master_enable: bool,
    /// A bit of ATTNSTATUS is set. Read-only.
    #[bit(1, rw)]
    status: bool,
    /// Both of the above. Read-only.
    #[bit(2, rw)]
    interrupt: bool,
    /// Each channel has an MSI-X vector of its own, which the master enable does not concern.
    #[bit(3, rw)]
    msix_vectors: bool,
}

impl InterruptControl {
    /// Bits that software can write.
    pub const WRITABLE: u8 = 0x09;
}

/// Bytes of a channel's registers; those of the first channel follow the global ones.
pub const CHANNEL_BYTES: usize = 0x80;

/// A register of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// CHANCTRL, a [`ChannelControl`].
    Control,
    /// CHANCMD, [`command`] bits; reads 0, as commands are done when the write returns.
    Command,
    /// DMACOUNT: how many descriptors of the chain are to be done since it began, modulo 2^16.
    Count,
    /// CHANSTS: address of the last descriptor done, and a [`TransferStatus`] in bits 2:0. Read-only.
    Status,
    /// CHAINADDR: address of the first descriptor. A write begins a chain.
    ChainAddress,
    /// CHANCMP: where a descriptor's completion is written to.
    CompletionAddress,
    /// CDAR: address of the descriptor under way, or done last. Read-only.
    Current,
    /// CHANERR, [`error`] bits, write-one-to-clear.
    Error,
    /// CHANERRMSK, which is kept and has no effect.
    ErrorMask,
    /// DCACTRL, which is kept and has no effect.
    CacheHints,
}

/// A channel's registers: which, offset from the channel's first, bytes. Ascending.
pub const REGISTERS: [(Register, usize, usize); 10] = [
    (Register::Control, 0x00, 2),
    (Register::Command, 0x04, 1),
    (Register::Count, 0x06, 2),
    (Register::Status, 0x08, 8),
    (Register::ChainAddress, 0x10, 8),
    (Register::CompletionAddress, 0x18, 8),
    (Register::Current, 0x20, 8),
    (Register::Error, 0x28, 4),
    (Register::ErrorMask, 0x2c, 4),
    (Register::CacheHints, 0x30, 4),
];

const _: () = {
    let (mut end, mut i) = (0, 0);
    while i < REGISTERS.len() {
        let (_, offset, bytes) = REGISTERS[i];
        assert!(offset >= end && bytes <= 8, "registers overlap or are not ascending");
        end = offset + bytes;
        i += 1;
    }
    assert!(end <= CHANNEL_BYTES);
};

/// CHANCTRL.
#[bitfield(u16, default = 0, debug, forbid_overlaps)]
pub struct ChannelControl {
    /// An interrupt was sent, and none follows until a 1 is written here.
    #[bit(0, rw)]
    interrupt_sent: bool,
    /// An error is written to the completion address, too.
    #[bit(2, rw)]
    error_completion: bool,
    /// An error ends the chain. It does so without this bit as well.
    #[bit(3, rw)]
    abort_on_error: bool,
    /// An error raises an interrupt.
    #[bit(4, rw)]
    error_interrupt: bool,
}

impl ChannelControl {
    /// Bits that software can write as they are.
    pub const WRITABLE: u16 = 0x001c;
}

/// Commands of CHANCMD.
pub mod command {
    /// Stop after the descriptor under way.
    pub const SUSPEND: u8 = 0x04;
    /// Stop now.
    pub const ABORT: u8 = 0x08;
    /// Go on after a suspension.
    pub const RESUME: u8 = 0x10;
    /// Stop now, and all registers of the channel back to their initial values.
    pub const RESET: u8 = 0x20;
}

/// What a channel is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum TransferStatus {
    /// There are descriptors to be done.
    Active = 0,
    /// All descriptors are done.
    Done = 1,
    /// Stopped between two descriptors.
    Suspended = 2,
    /// Stopped by an error, by a command, or never begun.
    #[default]
    Halted = 3,
}

/// Bits of CHANERR, as far as they occur.
pub mod error {
    /// The chain's first descriptor cannot be fetched, or is not aligned.
    pub const CHAIN_ADDRESS: u32 = 1 << 4;
    /// A later descriptor cannot be fetched.
    pub const NEXT_ADDRESS: u32 = 1 << 2;
    /// A later descriptor is not aligned.
    pub const NEXT_ALIGNMENT: u32 = 1 << 3;
    /// The source cannot be read.
    pub const READ_DATA: u32 = 1 << 8;
    /// The destination cannot be written.
    pub const WRITE_DATA: u32 = 1 << 9;
    /// A descriptor asks for something that this engine does not do.
    pub const CONTROL: u32 = 1 << 10;
    /// A descriptor's length is 0 or too great.
    pub const LENGTH: u32 = 1 << 11;
    /// The completion cannot be written.
    pub const COMPLETION_ADDRESS: u32 = 1 << 12;
    /// All of these.
    pub const ALL: u32 = CHAIN_ADDRESS
        | NEXT_ADDRESS
        | NEXT_ALIGNMENT
        | READ_DATA
        | WRITE_DATA
        | CONTROL
        | LENGTH
        | COMPLETION_ADDRESS;
}

/// Registers in configuration space, beyond all capabilities.
pub mod config {
    use super::error;
    use crate::pci::ConfigRegister;

    /// [`error`] bits of all channels since they were cleared, write-one-to-clear. A channel's reset leaves them.
    pub const CHANERR_INT: u16 = 0x180;
    /// CHANERRMSK_INT, which of them not to report by advanced error reporting. There is none: it is only kept.
    pub const CHANERR_INT_MASK: u16 = 0x184;

    /// Their masks.
    pub const REGISTERS: &[ConfigRegister] = &[
        ConfigRegister { offset: CHANERR_INT, writable: 0, w1c: error::ALL },
        ConfigRegister { offset: CHANERR_INT_MASK, writable: error::ALL, w1c: 0 },
    ];
}

/// A descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// Bytes to move; not 0, even if none are.
    pub size: U32,
    /// A [`DescriptorControl`].
    pub control: U32,
    /// Address to read from.
    pub source: U64,
    /// Address to write to.
    pub destination: U64,
    /// Address of the next descriptor, a multiple of 64.
    pub next: U64,
    /// For other operations, and for software.
    pub reserved: [U64; 4],
}

const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR_BYTES);

/// Bytes of a descriptor, which it is aligned to.
pub const DESCRIPTOR_BYTES: usize = 64;

/// A descriptor's control word. Hints of caching and snooping, the fence and the bundle bit mean nothing here: the
/// engine is coherent and does one descriptor after the other.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct DescriptorControl {
    /// Raise an interrupt when it is done.
    #[bit(0, rw)]
    interrupt: bool,
    /// Write CHANSTS to the completion address when it is done.
    #[bit(3, rw)]
    completion: bool,
    /// Move nothing.
    #[bit(5, rw)]
    null: bool,
    /// [`OPERATION_COPY`], or an operation that this engine does not have.
    #[bits(24..=31, rw)]
    operation: u8,
}

/// Operation code of a copy.
pub const OPERATION_COPY: u8 = 0;

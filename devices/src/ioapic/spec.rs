//! Registers and redirection table entries of the 82093AA, with the EOI register of version 0x20 and the
//! remappable entry format of VT-d (Architecture Specification 5.10, §5.1.5.1).

use arbitrary_int::{u3, u5, u15};
use bitbybit::bitfield;

/// Number of input pins.
pub const PINS: u8 = 24;
/// Bytes of the register window.
pub const LEN: u64 = 0x1000;

/// Offset of the index register, 8 bits used.
pub const INDEX: u64 = 0x00;
/// Offset of the data register.
pub const DATA: u64 = 0x10;
/// Offset of the EOI register, write-only; 8 bits used.
pub const EOI: u64 = 0x40;

/// Index of the identification register.
pub const ID: u8 = 0x00;
/// Bits of the identification register that exist.
pub const ID_MASK: u32 = 0x0f00_0000;
/// Index of the version register.
pub const VERSION: u8 = 0x01;
/// Index of the arbitration register.
pub const ARBITRATION: u8 = 0x02;
/// Index of the first redirection table entry; two indexes each, low half first.
pub const TABLE: u8 = 0x10;

/// Version register.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct Version {
    /// 0x20: there is an EOI register.
    #[bits(0..=7, rw)]
    version: u8,
    /// Number of pins minus one.
    #[bits(16..=23, rw)]
    last_pin: u8,
}

/// Redirection table entry.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct Entry {
    /// Vector. In remappable format: what the EOI register is matched against.
    #[bits(0..=7, rw)]
    vector: u8,
    /// Delivery mode. In remappable format: 000.
    #[bits(8..=10, rw)]
    delivery: u3,
    /// Destination mode: logical. In remappable format: bit 15 of the interrupt index.
    #[bit(11, rw)]
    destination_mode: bool,
    /// Delivery status. Always 0: sending takes no time.
    #[bit(12, r)]
    delivery_status: bool,
    /// Input polarity. Without effect: lines are logical.
    #[bit(13, rw)]
    polarity: bool,
    /// Remote IRR: a level interrupt was sent and no EOI came yet. Read-only for the guest.
    #[bit(14, rw)]
    remote_irr: bool,
    /// Trigger mode: level.
    #[bit(15, rw)]
    level: bool,
    /// Masked.
    #[bit(16, rw)]
    masked: bool,
    /// Interrupt format: remappable.
    #[bit(48, rw)]
    remappable: bool,
    /// Destination in bits 63:56 (and, where the hypervisor offers it, its bits 14:8 in 55:49); in remappable
    /// format bits 14:0 of the interrupt index.
    #[bits(49..=63, rw)]
    destination: u15,
}

impl Entry {
    /// Bits that the guest can write: not delivery status, not remote IRR, not the reserved 47:17.
    pub const WRITABLE: u64 = 0xffff_0000_0001_afff;
    /// After reset: masked.
    pub const RESET: Self = Self::DEFAULT.with_masked(true);
}

/// Address of the message that an entry makes. Both formats put the same bits of the entry in the same places.
#[bitfield(u32, default = 0xfee0_0000, debug, forbid_overlaps)]
pub struct MessageAddress {
    /// Destination mode, or index bit 15.
    #[bit(2, rw)]
    destination_mode: bool,
    /// Sub-handle valid. Always 0.
    #[bit(3, rw)]
    sub_handle_valid: bool,
    /// Interrupt format: remappable.
    #[bit(4, rw)]
    remappable: bool,
    /// Destination, or index bits 14:0.
    #[bits(5..=19, rw)]
    destination: u15,
    /// 0xfee.
    #[bits(20..=31, r)]
    prefix: arbitrary_int::u12,
}

/// Data of the message that an entry makes.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct MessageData {
    /// Vector.
    #[bits(0..=7, rw)]
    vector: u8,
    /// Delivery mode.
    #[bits(8..=10, rw)]
    delivery: u3,
    /// Level: assert. Deassertion is never sent.
    #[bit(14, rw)]
    assert: bool,
    /// Trigger mode: level.
    #[bit(15, rw)]
    level: bool,
    /// Reserved.
    #[bits(16..=20, r)]
    reserved: u5,
}

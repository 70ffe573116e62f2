//! Interrupt remapping (revision 5.10, §5.1, §5.2, §9.10 to §9.12): messages, table entries, posted-interrupt
//! descriptors, and the fault conditions of §5.1.4.

use arbitrary_int::{u2, u4, u5, u12, u15, u26, u52};
use bitbybit::{bitenum, bitfield};

/// Address of an interrupt message in compatibility or remappable format.
#[bitfield(u32, default = 0xfee0_0000, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct MessageAddress {
    /// 0xfee: an interrupt.
    #[bits(20..=31, rw)]
    prefix: u12,
    /// Handle, bits 14:0.
    #[bits(5..=19, rw)]
    handle: u15,
    /// Interrupt format: remappable.
    #[bit(4, rw)]
    remappable: bool,
    /// Sub-handle valid.
    #[bit(3, rw)]
    shv: bool,
    /// Handle, bit 15.
    #[bit(2, rw)]
    handle_high: bool,
}

/// What [`MessageAddress::prefix`] is for an interrupt.
pub const INTERRUPT_PREFIX: u12 = u12::new(0xfee);

/// Data of an interrupt message in remappable format; not looked at without SHV.
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct MessageData {
    /// Must be 0 with SHV.
    #[bits(16..=31, rw)]
    reserved: u16,
    /// Sub-handle: added to the handle.
    #[bits(0..=15, rw)]
    subhandle: u16,
}

/// Delivery mode of a remapped interrupt. Other values are reserved.
#[bitenum(u3, exhaustive = false)]
#[derive(Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// To all that the destination names.
    Fixed = 0b000,
    /// To the one of lowest priority.
    LowestPriority = 0b001,
    /// System management interrupt.
    Smi = 0b010,
    /// Non-maskable interrupt.
    Nmi = 0b100,
    /// Init.
    Init = 0b101,
    /// External interrupt: the vector comes from elsewhere.
    ExtInt = 0b111,
}

/// How the source-id of a request is checked.
#[bitenum(u2, exhaustive = true)]
#[derive(Debug, PartialEq, Eq)]
pub enum SourceValidation {
    /// Not at all.
    None = 0b00,
    /// It equals SID but for the bits that SQ leaves out.
    Source = 0b01,
    /// Its bus lies between the two bytes of SID: start in the high byte, end (inclusive) in the low one.
    BusRange = 0b10,
    /// Reserved.
    Reserved = 0b11,
}

/// Interrupt-remapping table entry (IRTE), bits 63:0 of a remapped interrupt.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct RemappedLow {
    /// Destination: an x2APIC id with EIME, else an xAPIC id in 47:40.
    #[bits(32..=63, rw)]
    dst: u32,
    /// Vector.
    #[bits(16..=23, rw)]
    vector: u8,
    /// Posted format (IM). 0 here.
    #[bit(15, rw)]
    posted: bool,
    /// Ignored.
    #[bits(8..=11, rw)]
    available: u4,
    /// Delivery mode.
    #[bits(5..=7, rw)]
    dlm: Option<DeliveryMode>,
    /// Trigger mode: level.
    #[bit(4, rw)]
    tm: bool,
    /// Redirection hint.
    #[bit(3, rw)]
    rh: bool,
    /// Destination mode: logical.
    #[bit(2, rw)]
    dm: bool,
    /// Fault processing disable; honoured even if not present.
    #[bit(1, rw)]
    fpd: bool,
    /// Present.
    #[bit(0, rw)]
    present: bool,
}

/// The bits of [`RemappedLow::dst`] that are reserved without EIME.
pub const DST_XAPIC_RESERVED: u64 = 0xffff_00ff_0000_0000;

/// Interrupt-remapping table entry, bits 63:0 of a posted interrupt.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct PostedLow {
    /// Posted-interrupt descriptor address, bits 31:6.
    #[bits(38..=63, rw)]
    pda_low: u26,
    /// Virtual vector.
    #[bits(16..=23, rw)]
    vector: u8,
    /// Posted format (IM). 1 here.
    #[bit(15, rw)]
    posted: bool,
    /// Urgent: notify in spite of "suppress notification".
    #[bit(14, rw)]
    urgent: bool,
    /// Ignored.
    #[bits(8..=11, rw)]
    available: u4,
    /// Fault processing disable.
    #[bit(1, rw)]
    fpd: bool,
    /// Present.
    #[bit(0, rw)]
    present: bool,
}

/// Interrupt-remapping table entry, bits 127:64. Positions are those of the upper half: the manual's minus 64.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct EntryHigh {
    /// Posted-interrupt descriptor address, bits 63:32. Reserved in a remapped entry.
    #[bits(32..=63, rw)]
    pda_high: u32,
    /// Source validation type.
    #[bits(18..=19, rw)]
    svt: SourceValidation,
    /// Source-id qualifier: how many low function bits are left out. 0: none, 1: bit 2, 2: bits 2:1, 3: bits 2:0.
    #[bits(16..=17, rw)]
    sq: u2,
    /// Source-id, or a range of buses.
    #[bits(0..=15, rw)]
    sid: u16,
}

/// Bits that must be 0 in a remapped entry, word by word.
#[must_use]
pub const fn remapped_reserved(extended: bool) -> [u64; 2] {
    let low = RemappedLow::dst_mask()
        | RemappedLow::vector_mask()
        | RemappedLow::available_mask()
        | RemappedLow::dlm_mask()
        | RemappedLow::tm_mask()
        | RemappedLow::rh_mask()
        | RemappedLow::dm_mask()
        | RemappedLow::fpd_mask()
        | RemappedLow::present_mask();
    let narrow = if extended { 0 } else { DST_XAPIC_RESERVED };
    [!low | narrow, !(EntryHigh::svt_mask() | EntryHigh::sq_mask() | EntryHigh::sid_mask())]
}

/// Bits that must be 0 in a posted entry, word by word.
pub const POSTED_RESERVED: [u64; 2] = [
    !(PostedLow::pda_low_mask()
        | PostedLow::vector_mask()
        | PostedLow::posted_mask()
        | PostedLow::urgent_mask()
        | PostedLow::available_mask()
        | PostedLow::fpd_mask()
        | PostedLow::present_mask()),
    !(EntryHigh::pda_high_mask() | EntryHigh::svt_mask() | EntryHigh::sq_mask() | EntryHigh::sid_mask()),
];

/// Bytes of a table entry.
pub const ENTRY_BYTES: u64 = 16;

/// Bytes from the start of a posted-interrupt descriptor to its [`PostedControl`]. Before it lie the 256 request
/// bits (PIR), behind it 192 reserved bits.
pub const POSTED_CONTROL: u64 = 32;

/// Posted-interrupt descriptor, bits 319:256. Positions are the manual's minus 256.
#[bitfield(u64, default = 0, debug, introspect, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct PostedControl {
    /// Notification destination: an x2APIC id with EIME, else an xAPIC id in bits 15:8 of it.
    #[bits(32..=63, rw)]
    ndst: u32,
    /// Notification vector.
    #[bits(16..=23, rw)]
    nv: u8,
    /// Suppress notification.
    #[bit(1, rw)]
    sn: bool,
    /// Outstanding notification.
    #[bit(0, rw)]
    on: bool,
}

/// Bits of [`PostedControl`] that must be 0.
#[must_use]
pub const fn posted_control_reserved(extended: bool) -> u64 {
    let defined = PostedControl::ndst_mask()
        | PostedControl::nv_mask()
        | PostedControl::sn_mask()
        | PostedControl::on_mask();
    !defined | if extended { 0 } else { DST_XAPIC_RESERVED }
}

/// Interrupt entry cache invalidate, quadword 0. Quadword 1 is reserved.
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
pub struct InterruptEntryCache {
    /// Interrupt index.
    #[bits(32..=47, rw)]
    iidx: u16,
    /// Index mask: `2^im` entries, naturally aligned.
    #[bits(27..=31, rw)]
    im: u5,
    /// Granularity: one block instead of all.
    #[bit(4, rw)]
    selective: bool,
}

/// Interrupt-remapping table address register (IRTA, 0B8h).
#[bitfield(u64, default = 0, debug, forbid_overlaps)]
#[derive(PartialEq, Eq)]
pub struct TableAddress {
    /// Address of the table in units of 4 KiB.
    #[bits(12..=63, rw)]
    irta: u52,
    /// Extended interrupt mode enable.
    #[bit(11, rw)]
    eime: bool,
    /// Size: `2^(s + 1)` entries.
    #[bits(0..=3, rw)]
    s: u4,
}

macro_rules! conditions {
    ($($(#[$doc:meta])* $reason:ident = $code:literal $qualified:literal;)*) => {
        /// A fault condition of interrupt remapping; its value is the fault reason code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum InterruptReason { $($(#[$doc])* $reason = $code,)* }

        impl InterruptReason {
            /// All of them, in the order of their codes.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// Whether "fault processing disable" of the entry suppresses the record.
            #[must_use]
            pub const fn qualified(self) -> bool {
                match self { $(Self::$reason => $qualified,)* }
            }

            /// The code, as recorded.
            #[must_use]
            pub const fn code(self) -> u8 {
                self as u8
            }
        }
    };
}

// Columns: code, qualified.
conditions! {
    /// Reserved bits in the request.
    Request = 0x20 false;
    /// The index lies beyond the table, or its entry beyond the physical width.
    Index = 0x21 false;
    /// The entry is not present.
    NotPresent = 0x22 true;
    /// The entry is not accessible.
    TableAccess = 0x23 false;
    /// Reserved bits, or reserved values, in the entry.
    Reserved = 0x24 true;
    /// A request in compatibility format where such are blocked.
    Compatibility = 0x25 false;
    /// The entry is not for this source.
    Source = 0x26 true;
    /// The posted-interrupt descriptor is not accessible.
    DescriptorAccess = 0x27 true;
    /// Reserved bits in the posted-interrupt descriptor.
    DescriptorReserved = 0x28 true;
    /// Extended mode is required (EIMER) and not on.
    ExtendedRequired = 0x2a false;
    /// Remapping is required (IRREQ) and not on.
    RemappingRequired = 0x2b false;
}

impl InterruptReason {
    /// Whether the record names the interrupt index; otherwise that field is undefined, and 0 here.
    #[must_use]
    pub const fn names_index(self) -> bool {
        !matches!(
            self,
            Self::Request | Self::Compatibility | Self::ExtendedRequired | Self::RemappingRequired
        )
    }
}

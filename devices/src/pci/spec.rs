//! Register layouts and constants of PCI Local Bus 3.0 and PCI Express Base 5.0, as far as they are emulated.

use arbitrary_int::{u2, u3, u4, u5, u6, u10, u11};
use bitbybit::bitfield;

/// Bytes of configuration space of a function (PCIe §7.2.2).
pub const CONFIG_SIZE: usize = 4096;
/// First byte of the extended configuration space.
pub const EXTENDED_START: u16 = 0x100;

/// CONFIG_ADDRESS, the port at 0xCF8 (PCI 3.0 §3.2.2.3.2).
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct ConfigAddress {
    /// Register, in units of 4 bytes.
    #[bits(2..=7, rw)]
    register: u6,
    /// Function.
    #[bits(8..=10, rw)]
    function: u3,
    /// Device.
    #[bits(11..=15, rw)]
    device: u5,
    /// Bus.
    #[bits(16..=23, rw)]
    bus: u8,
    /// Accesses to CONFIG_DATA are configuration accesses.
    #[bit(31, rw)]
    enable: bool,
}

impl ConfigAddress {
    /// Bits that exist.
    pub const MASK: u32 = 0x80ff_fffc;
}

/// Offsets in the type 0 header (PCIe §7.5.1).
pub mod header {
    /// Vendor ID, 16 bits.
    pub const VENDOR_ID: u16 = 0x00;
    /// Device ID, 16 bits.
    pub const DEVICE_ID: u16 = 0x02;
    /// Command, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// Revision ID, 8 bits; the class code follows in 24.
    pub const REVISION: u16 = 0x08;
    /// Programming interface, 8 bits.
    pub const CLASS: u16 = 0x09;
    /// Cache line size, 8 bits.
    pub const CACHE_LINE: u16 = 0x0c;
    /// Header type, 8 bits.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// First base address register.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor ID, 16 bits.
    pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
    /// Subsystem ID, 16 bits.
    pub const SUBSYSTEM_ID: u16 = 0x2e;
    /// Capabilities pointer, 8 bits.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, 8 bits, for software only.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Which interrupt line the function has: 0 none, 1 INTA and so on; 8 bits.
    pub const INTERRUPT_PIN: u16 = 0x3d;
    /// First byte after the header.
    pub const END: u16 = 0x40;

    /// Header type bit 7: the device has functions other than 0.
    pub const MULTI_FUNCTION: u8 = 0x80;
    /// Status bit 4: a capability list exists.
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
    /// The function asserts its interrupt line, whether that is switched off or not; in the first byte.
    pub const STATUS_INTERRUPT: u8 = 1 << 3;
    /// Status bits that are write-one-to-clear: 15:11 and 8.
    pub const STATUS_W1C: u16 = 0xf900;
}

/// Command register (PCIe §7.5.1.1.3).
#[bitfield(u16, default = 0, debug, forbid_overlaps)]
pub struct Command {
    /// I/O space enable.
    #[bit(0, rw)]
    io_space: bool,
    /// Memory space enable.
    #[bit(1, rw)]
    memory_space: bool,
    /// Bus master enable.
    #[bit(2, rw)]
    bus_master: bool,
    /// Parity error response.
    #[bit(6, rw)]
    parity_error_response: bool,
    /// SERR# enable.
    #[bit(8, rw)]
    serr: bool,
    /// Interrupt disable (INTx).
    #[bit(10, rw)]
    interrupt_disable: bool,
}

/// Capability ids below 0x100 (PCI Code and ID Assignment 1.11 §2).
pub mod capability {
    /// Power management.
    pub const POWER_MANAGEMENT: u8 = 0x01;
    /// Vendor-specific.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const PCI_EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// Extended capability ids (PCI Code and ID Assignment 1.11 §3).
pub mod extended {
    /// Address translation services.
    pub const ATS: u16 = 0x000f;
    /// Page request interface.
    pub const PRI: u16 = 0x0013;
    /// Process address space id.
    pub const PASID: u16 = 0x001b;
}

/// Extended capability header (PCIe §7.6.3).
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct ExtendedHeader {
    /// Capability id.
    #[bits(0..=15, rw)]
    id: u16,
    /// Capability version.
    #[bits(16..=19, rw)]
    version: u4,
    /// Offset of the next capability divided by 4; 0: last. (Bits 21:20 are reserved.)
    #[bits(22..=31, rw)]
    next_dword: u10,
}

/// PCI Express capability: field offsets from its start (PCIe §7.5.3).
pub mod express {
    /// Bytes of version 2.
    pub const LEN: u16 = 0x3c;
    /// PCI Express capabilities, 16 bits.
    pub const CAPABILITIES: u16 = 0x02;
    /// Device capabilities, 32 bits.
    pub const DEVICE_CAPABILITIES: u16 = 0x04;
    /// Device control, 16 bits.
    pub const DEVICE_CONTROL: u16 = 0x08;
    /// Device status, 16 bits.
    pub const DEVICE_STATUS: u16 = 0x0a;
    /// Device capabilities 2, 32 bits.
    pub const DEVICE_CAPABILITIES_2: u16 = 0x24;
    /// Device status bits that are write-one-to-clear.
    pub const DEVICE_STATUS_W1C: u16 = 0xf;
    /// Device/port type of a root complex integrated endpoint.
    pub const TYPE_INTEGRATED_ENDPOINT: u8 = 9;
}

/// PCI Express capabilities (PCIe §7.5.3.2).
#[bitfield(u16, default = 0, debug, forbid_overlaps)]
pub struct ExpressCapabilities {
    /// Capability version.
    #[bits(0..=3, rw)]
    version: u4,
    /// Device/port type.
    #[bits(4..=7, rw)]
    port_type: u4,
}

/// Device capabilities (PCIe §7.5.3.3).
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct DeviceCapabilities {
    /// Largest payload supported, `128 << n` bytes.
    #[bits(0..=2, rw)]
    max_payload: u3,
    /// Role-based error reporting; required since 1.1.
    #[bit(15, rw)]
    role_based_errors: bool,
    /// Function-level reset.
    #[bit(28, rw)]
    function_reset: bool,
}

/// Device control (PCIe §7.5.3.4).
#[bitfield(u16, default = 0, debug, forbid_overlaps)]
pub struct DeviceControl {
    /// Reporting enables: correctable, non-fatal, fatal, unsupported request.
    #[bits(0..=3, rw)]
    error_reporting: u4,
    /// Relaxed ordering.
    #[bit(4, rw)]
    relaxed_ordering: bool,
    /// Payload limit, `128 << n` bytes.
    #[bits(5..=7, rw)]
    max_payload: u3,
    /// No snoop.
    #[bit(11, rw)]
    no_snoop: bool,
    /// Read request limit, `128 << n` bytes.
    #[bits(12..=14, rw)]
    max_read_request: u3,
    /// Writing one starts a function-level reset; reads as zero.
    #[bit(15, rw)]
    function_reset: bool,
}

/// Device capabilities 2 (PCIe §7.5.3.15).
#[bitfield(u32, default = 0, debug, forbid_overlaps)]
pub struct DeviceCapabilities2 {
    /// End-end TLP prefixes (PASID travels in one).
    #[bit(21, rw)]
    end_end_prefix: bool,
    /// Number of end-end TLP prefixes; 0 means 4.
    #[bits(22..=23, rw)]
    max_end_end_prefixes: u2,
}

/// MSI-X capability: field offsets from its start (PCIe §7.7.2).
pub mod msix {
    /// Bytes.
    pub const LEN: u16 = 12;
    /// Message control, 16 bits.
    pub const CONTROL: u16 = 2;
    /// Table offset and BIR, 32 bits.
    pub const TABLE: u16 = 4;
    /// PBA offset and BIR, 32 bits.
    pub const PBA: u16 = 8;
    /// Bytes of a table entry.
    pub const ENTRY_LEN: usize = 16;
    /// Most vectors that a function can have.
    pub const MAX_VECTORS: u16 = 2048;
}

/// MSI-X message control (PCIe §7.7.2.2).
#[bitfield(u16, default = 0, debug, forbid_overlaps)]
pub struct MsixControl {
    /// Number of vectors minus one.
    #[bits(0..=10, rw)]
    table_size: u11,
    /// All vectors are masked.
    #[bit(14, rw)]
    function_mask: bool,
    /// MSI-X is in use.
    #[bit(15, rw)]
    enable: bool,
}

/// Power management capability: field offsets from its start (PCIe §7.5.2).
pub mod power {
    /// Bytes.
    pub const LEN: u16 = 8;
    /// Power management capabilities, 16 bits.
    pub const CAPABILITIES: u16 = 2;
    /// Control and status, 16 bits.
    pub const CONTROL: u16 = 4;
    /// Capabilities: version 3, no D1/D2, no PME.
    pub const VERSION: u16 = 3;
    /// Control bit 3: D3hot to D0 keeps the state.
    pub const NO_SOFT_RESET: u16 = 1 << 3;
    /// Control bits 1:0: power state.
    pub const STATE: u16 = 3;
}

/// ATS extended capability: field offsets from its start (PCIe §10.5.1).
pub mod ats {
    /// Bytes.
    pub const LEN: u16 = 8;
    /// Capability, 16 bits.
    pub const CAPABILITY: u16 = 4;
    /// Control, 16 bits.
    pub const CONTROL: u16 = 6;
}

/// ATS capability (PCIe §10.5.1.2).
#[bitfield(u16, default = 0, debug, forbid_overlaps)]
pub struct AtsCapability {
    /// Invalidate requests that can be queued; 0 means 32.
    #[bits(0..=4, rw)]
    queue_depth: u5,
    /// Untranslated addresses of requests are always page aligned.
    #[bit(5, rw)]
    page_aligned: bool,
    /// The Global Invalidate bit is honoured.
    #[bit(6, rw)]
    global_invalidate: bool,
}

/// ATS control (PCIe §10.5.1.3).
#[bitfield(u16, default = 0, debug, forbid_overlaps)]
pub struct AtsControl {
    /// Smallest translation unit: `2^(stu + 12)` bytes.
    #[bits(0..=4, rw)]
    stu: u5,
    /// Enable.
    #[bit(15, rw)]
    enable: bool,
}

/// PRI extended capability: field offsets from its start (PCIe §10.5.2).
pub mod pri {
    /// Bytes.
    pub const LEN: u16 = 16;
    /// Control, 16 bits.
    pub const CONTROL: u16 = 4;
    /// Status, 16 bits.
    pub const STATUS: u16 = 6;
    /// Outstanding page request capacity, 32 bits.
    pub const CAPACITY: u16 = 8;
    /// Outstanding page request allocation, 32 bits.
    pub const ALLOCATION: u16 = 12;
}

/// PRI control (PCIe §10.5.2.2).
#[bitfield(u16, default = 0, debug, forbid_overlaps)]
pub struct PriControl {
    /// Enable.
    #[bit(0, rw)]
    enable: bool,
    /// Writing one while disabled or disabling forgets outstanding requests; reads as zero.
    #[bit(1, rw)]
    reset: bool,
}

/// PRI status (PCIe §10.5.2.3).
#[bitfield(u16, default = 0, debug, forbid_overlaps)]
pub struct PriStatus {
    /// A response failure arrived. Write one to clear.
    #[bit(0, rw)]
    response_failure: bool,
    /// A response with an unexpected group index arrived. Write one to clear.
    #[bit(1, rw)]
    unexpected_group: bool,
    /// Disabled, and no request is outstanding.
    #[bit(8, rw)]
    stopped: bool,
    /// Responses carry a PASID. Constant.
    #[bit(15, rw)]
    response_pasid: bool,
}

/// PASID extended capability: field offsets from its start (PCIe §7.8.9).
pub mod pasid {
    /// Bytes.
    pub const LEN: u16 = 8;
    /// Capability, 16 bits.
    pub const CAPABILITY: u16 = 4;
    /// Control, 16 bits.
    pub const CONTROL: u16 = 6;
}

/// PASID capability (PCIe §7.8.9.2).
#[bitfield(u16, default = 0, debug, forbid_overlaps)]
pub struct PasidCapability {
    /// Requests for execution can be made.
    #[bit(1, rw)]
    execute: bool,
    /// Privileged requests can be made.
    #[bit(2, rw)]
    privileged: bool,
    /// Width in bits, at most 20.
    #[bits(8..=12, rw)]
    width: u5,
}

/// PASID control (PCIe §7.8.9.3).
#[bitfield(u16, default = 0, debug, forbid_overlaps)]
pub struct PasidControl {
    /// Enable.
    #[bit(0, rw)]
    enable: bool,
}

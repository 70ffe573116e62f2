//! The structures of the table (8.1 to 8.8).

use std::ops::RangeInclusive;

use crate::capability::Capability;

use super::scope::DeviceScope;

/// Signature of the table.
pub const SIGNATURE: [u8; 4] = *b"DMAR";
/// Revision of the table.
pub const REVISION: u8 = 1;

/// DMA remapping hardware unit definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drhd {
    /// What the unit offers.
    pub capability: Capability,
    /// PCI segment.
    pub segment: u16,
    /// Guest-physical address of the register pages, aligned to their size; nothing else lies there.
    pub register_base: u64,
    /// Logarithm of the number of 4 KiB register pages, 0 to 15. This crate's [`crate::Unit`] has one page.
    pub register_pages_log2: u8,
    /// Whether the unit has all functions of the segment that no other unit lists, hot-plugged ones included. One
    /// unit of a segment may; it lists no functions and bridges itself.
    pub include_pci_all: bool,
    /// Devices. Of an I/O APIC, an HPET or a namespace device, the unit that it is under.
    pub scopes: Vec<DeviceScope>,
    /// Proximity domain of the SRAT that the unit is near to, for an RHSA structure. Linux arms a unit's fault
    /// interrupt with the first CPU of that domain, without one when DMA remapping starts.
    pub proximity: Option<u32>,
}

impl Drhd {
    /// The unit for all functions of segment 0.
    #[must_use]
    pub fn for_all(capability: &Capability, register_base: u64, scopes: Vec<DeviceScope>) -> Self {
        Self {
            capability: *capability,
            segment: 0,
            register_base,
            register_pages_log2: 0,
            include_pci_all: true,
            scopes,
            proximity: None,
        }
    }
}

/// Reserved memory region: devices in scope need it mapped one to one from the first moment. Linux wants it reserved
/// in the memory map of the firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rmrr {
    /// PCI segment.
    pub segment: u16,
    /// Guest-physical addresses: whole pages.
    pub range: RangeInclusive<u64>,
    /// Devices.
    pub scopes: Vec<DeviceScope>,
}

/// Root ports behind which functions may use ATS. Those on the root bus always may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atsr {
    /// PCI segment.
    pub segment: u16,
    /// The root ports; none: all of the segment.
    pub root_ports: Vec<DeviceScope>,
}

/// Integrated devices with device-TLBs. What is listed here takes precedence over [`Atsr`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Satc {
    /// PCI segment.
    pub segment: u16,
    /// Whether they work with the device-TLB on only. Linux in legacy mode then leaves it off.
    pub required: bool,
    /// Devices.
    pub scopes: Vec<DeviceScope>,
}

/// Name of a device of the ACPI namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Andd {
    /// Its number, by which a scope names it.
    pub number: u8,
    /// Its full path, such as `\_SB_.DMA0`.
    pub name: String,
}

/// What the table says. Structures are written in the order that the manual asks for, whatever their order here.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Dmar {
    /// Remapping units, at least one.
    pub units: Vec<Drhd>,
    /// Reserved memory regions.
    pub reserved_memory: Vec<Rmrr>,
    /// ATS behind root ports.
    pub root_ports: Vec<Atsr>,
    /// Integrated devices with device-TLBs.
    pub integrated: Vec<Satc>,
    /// Devices of the ACPI namespace.
    pub namespace: Vec<Andd>,
    /// Asks the guest not to use x2APIC even if all units could.
    pub x2apic_opt_out: bool,
    /// Tells the guest that DMA is under control since power-on. Linux then distrusts devices behind ports that face
    /// the outside.
    pub platform_opt_in: bool,
}

//! The bytes of the table.

use crate::capability::Capability;

use super::check::{DmarError, check};
use super::scope::DeviceScope;
use super::table::{Andd, Atsr, Dmar, Drhd, Rmrr, Satc};

/// DMAR flag: interrupt remapping.
const INTR_REMAP: u8 = 1 << 0;
/// DMAR flag: the guest is asked not to use x2APIC.
const X2APIC_OPT_OUT: u8 = 1 << 1;
/// DMAR flag: the firmware has kept DMA in check until now, and asks that the guest does, too.
const DMA_CTRL_PLATFORM_OPT_IN: u8 = 1 << 2;
/// DRHD flag: all functions of the segment that no other unit has.
const INCLUDE_PCI_ALL: u8 = 1 << 0;
/// ATSR flag: all root ports of the segment.
const ALL_PORTS: u8 = 1 << 0;
/// SATC flag: the devices work with their caches on only.
const ATC_REQUIRED: u8 = 1 << 0;

impl Dmar {
    /// The table after its 36-byte ACPI header.
    ///
    /// # Errors
    /// A table that contradicts itself, or that guests reject as a whole.
    pub fn body(&self) -> Result<Vec<u8>, DmarError> {
        check(self)?;
        let mut body = vec![self.width(), self.flags()];
        body.extend([0; 10]);
        let mut units: Vec<_> = self.units.iter().collect();
        units.sort_by_key(|unit| (unit.segment, unit.include_pci_all));
        body.extend(units.iter().flat_map(|unit| unit.bytes()));
        body.extend(self.reserved_memory.iter().flat_map(Rmrr::bytes));
        body.extend(self.root_ports.iter().flat_map(Atsr::bytes));
        body.extend(units.iter().filter_map(|unit| unit.affinity()).flatten());
        body.extend(self.namespace.iter().flat_map(Andd::bytes));
        body.extend(self.integrated.iter().flat_map(Satc::bytes));
        Ok(body)
    }

    /// Physical address width minus one: the narrowest unit's.
    fn width(&self) -> u8 {
        let bits = self.units.iter().map(|unit| unit.capability.host_address_width()).min();
        u8::try_from(bits.unwrap_or(1) - 1).unwrap_or(u8::MAX)
    }

    /// Interrupts are remapped, and sent to x2APIC ids, by all units or by none.
    fn flags(&self) -> u8 {
        let all = |has: fn(&Capability) -> bool| self.units.iter().all(|unit| has(&unit.capability));
        let remapping = all(|capability| capability.ecap().ir());
        let x2apic = all(|capability| capability.ecap().eim()) && !self.x2apic_opt_out;
        let mut flags = if self.platform_opt_in { DMA_CTRL_PLATFORM_OPT_IN } else { 0 };
        if remapping {
            flags |= INTR_REMAP | if x2apic { 0 } else { X2APIC_OPT_OUT };
        }
        flags
    }
}

impl Drhd {
    fn bytes(&self) -> Vec<u8> {
        let flags = if self.include_pci_all { INCLUDE_PCI_ALL } else { 0 };
        let mut content = vec![flags, self.register_pages_log2];
        content.extend(self.segment.to_le_bytes());
        content.extend(self.register_base.to_le_bytes());
        structure(0, &content, &self.scopes)
    }

    /// RHSA.
    fn affinity(&self) -> Option<Vec<u8>> {
        let mut content = vec![0; 4];
        content.extend(self.register_base.to_le_bytes());
        content.extend(self.proximity?.to_le_bytes());
        Some(structure(3, &content, &[]))
    }
}

impl Rmrr {
    fn bytes(&self) -> Vec<u8> {
        let mut content = vec![0; 2];
        content.extend(self.segment.to_le_bytes());
        content.extend(self.range.start().to_le_bytes());
        content.extend(self.range.end().to_le_bytes());
        structure(1, &content, &self.scopes)
    }
}

impl Atsr {
    fn bytes(&self) -> Vec<u8> {
        let flags = if self.root_ports.is_empty() { ALL_PORTS } else { 0 };
        let [low, high] = self.segment.to_le_bytes();
        structure(2, &[flags, 0, low, high], &self.root_ports)
    }
}

impl Satc {
    fn bytes(&self) -> Vec<u8> {
        let flags = if self.required { ATC_REQUIRED } else { 0 };
        let [low, high] = self.segment.to_le_bytes();
        structure(5, &[flags, 0, low, high], &self.scopes)
    }
}

impl Andd {
    fn bytes(&self) -> Vec<u8> {
        let mut content = vec![0, 0, 0, self.number];
        content.extend(self.name.bytes());
        content.push(0);
        structure(4, &content, &[])
    }
}

/// A structure: type, length of all, content, scopes. The checks of the table see to it that the length fits.
fn structure(kind: u16, content: &[u8], scopes: &[DeviceScope]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 2]);
    bytes.extend(content);
    bytes.extend(scopes.iter().flat_map(DeviceScope::bytes));
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    bytes[2..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

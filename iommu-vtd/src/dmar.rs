//! Chapter 8: the bytes of the ACPI DMAR table. **Pure.**
//!
//! One remapping unit that covers all PCI functions of segment 0, hot-plugged ones included. A VMM puts its ACPI
//! header (signature [`SIGNATURE`], revision [`REVISION`]) before [`Dmar::body`].

use iommu_core::SourceId;

use crate::capability::Capability;

/// Signature of the table.
pub const SIGNATURE: [u8; 4] = *b"DMAR";
/// Revision of the table.
pub const REVISION: u8 = 1;

/// DMAR flag: interrupt remapping.
const INTR_REMAP: u8 = 1 << 0;
/// DMAR flag: the guest is asked not to use x2APIC.
const X2APIC_OPT_OUT: u8 = 1 << 1;
/// DRHD flag: all functions of the segment.
const INCLUDE_PCI_ALL: u8 = 1 << 0;
/// Device scope type: I/O APIC.
const SCOPE_IOAPIC: u8 = 3;
/// Structure type: remapping hardware unit.
const DRHD: u16 = 0;
/// Structure type: root ports that support ATS.
const ATSR: u16 = 2;
/// ATSR flag: all root ports of the segment.
const ALL_PORTS: u8 = 1 << 0;

/// An I/O APIC in the scope of the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApicScope {
    /// Its id in the MADT. Linux wants every I/O APIC of the MADT in some scope.
    pub id: u8,
    /// What its interrupt messages are sent as. Not 0: Linux takes 0 for "not found". Its bus is one where no
    /// function lies on the way, so that the path is one step.
    pub source: SourceId,
}

/// What the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dmar<'a> {
    /// What the unit offers.
    pub capability: &'a Capability,
    /// Guest-physical address of the register page: aligned to 4 KiB, and nothing else lies there.
    pub register_base: u64,
    /// I/O APICs.
    pub ioapics: &'a [IoApicScope],
    /// Whether functions behind root ports may use ATS. Those on the root bus always may.
    pub ats_root_ports: bool,
}

impl Dmar<'_> {
    /// The table after its 36-byte ACPI header.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let ecap = self.capability.ecap();
        let flags = match (ecap.ir(), ecap.eim()) {
            (false, _) => 0,
            (true, true) => INTR_REMAP,
            (true, false) => INTR_REMAP | X2APIC_OPT_OUT,
        };
        let width = u8::try_from(self.capability.host_address_width() - 1).unwrap_or(u8::MAX);
        let mut body = vec![width, flags];
        body.extend([0; 10]);
        body.extend(self.drhd());
        if self.ats_root_ports && self.capability.dt() {
            body.extend(structure(ATSR, &[ALL_PORTS, 0, 0, 0]));
        }
        body
    }

    /// The unit. Size field 0: one page.
    fn drhd(&self) -> Vec<u8> {
        let mut content = vec![INCLUDE_PCI_ALL, 0, 0, 0];
        content.extend(self.register_base.to_le_bytes());
        for ioapic in self.ioapics {
            let devfn = ioapic.source.devfn();
            content.extend([SCOPE_IOAPIC, 8, 0, 0, ioapic.id, ioapic.source.bus(), devfn >> 3, devfn & 7]);
        }
        structure(DRHD, &content)
    }
}

/// A structure: type, length of all, content. The length saturates: no table is that long.
fn structure(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(u16::try_from(content.len() + 4).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(content);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Profile;

    const IOAPIC: IoApicScope = IoApicScope { id: 5, source: SourceId::from_bdf(0xff, 0x1e, 3) };
    const HEADER: [u8; 12] = [45, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    /// (name, I/O APICs, ATS behind root ports, bytes after the table's own header)
    #[test]
    fn tables() {
        let one: &[u8] = &[
            0, 0, 24, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, // DRHD
            3, 8, 0, 0, 5, 0xff, 0x1e, 3, // I/O APIC
        ];
        let none: &[u8] = &[0, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0];
        let ats: &[u8] = &[
            0, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, // DRHD
            2, 0, 8, 0, 1, 0, 0, 0, // ATSR
        ];
        let rows = [
            ("one I/O APIC", &[IOAPIC][..], false, one),
            ("no I/O APIC", &[], false, none),
            ("ATS behind root ports", &[], true, ats),
        ];
        let capability = Capability::new(&Profile::svm(46)).unwrap();
        for (name, ioapics, ats_root_ports, expected) in rows {
            let dmar = Dmar { capability: &capability, register_base: 0xfed9_0000, ioapics, ats_root_ports };
            assert_eq!(dmar.body(), [&HEADER, expected].concat(), "{name}");
        }
    }

    #[test]
    fn ats_is_not_announced_without_device_tlbs() {
        let profile = Profile { device_tlb: false, ..Profile::svm(46) }.settled();
        let capability = Capability::new(&profile).unwrap();
        let dmar =
            Dmar { capability: &capability, register_base: 0xfed9_0000, ioapics: &[], ats_root_ports: true };
        assert_eq!(dmar.body().len(), 28);
    }
}

//! The ACPI tables: what the guest finds where. Hardware-reduced ACPI (ACPI 6.5 §4.1): no PM1 blocks, no SCI.
//!
//! [`fixed`] and [`affinity`] make the tables of fixed layout, [`dsdt`] the one in AML. The DMAR table comes ready from the unit.

mod affinity;
mod dsdt;
mod fixed;

use acpi_tables::rsdp::Rsdp;
use acpi_tables::{Aml, xsdt::XSDT};
use vm_memory::{Bytes, GuestAddress};

pub(crate) use dsdt::dma_engine_path;

use crate::cpus::Cpus;
use crate::layout::low;
use crate::memory::GuestRam;

const OEM_ID: [u8; 6] = *b"SVMM  ";
const OEM_TABLE_ID: [u8; 8] = *b"SVMMTABL";
const OEM_REVISION: u32 = 1;
/// Bytes of an ACPI table header.
const HEADER: u32 = 36;
/// Tables start on this boundary.
const ALIGNMENT: u64 = 16;

/// What the tables depend on.
pub(crate) struct Machine<'a> {
    /// CPUs.
    pub(crate) cpus: Cpus,
    /// The DMAR table after its header, if there is a VT-d unit.
    pub(crate) dmar: Option<&'a [u8]>,
    /// Guest RAM in bytes, if the guest is to learn of proximity domains.
    pub(crate) affinity: Option<u64>,
    /// DMA engines outside PCI.
    pub(crate) dma_engines: usize,
}

/// The tables do not fit into their place; cannot happen with the CPUs that [`crate::config`] allows.
#[derive(Debug, thiserror::Error)]
#[error("ACPI tables do not fit into {:#x} bytes", low::ACPI.len)]
pub(crate) struct Error;

/// Writes all tables; the guest-physical address of the RSDP.
///
/// # Errors
/// They do not fit.
pub(crate) fn write(ram: &GuestRam, machine: &Machine<'_>) -> Result<u64, Error> {
    let mut place = low::ACPI.start + bytes(&Rsdp::new(OEM_ID, 0)).len() as u64;
    let mut put = |table: &[u8]| {
        let address = place.next_multiple_of(ALIGNMENT);
        place = address + table.len() as u64;
        let fits = place <= low::ACPI.start + low::ACPI.len;
        fits.then_some(()).ok_or(Error)?;
        ram.write_slice(table, GuestAddress(address)).map_err(|_| Error)?;
        Ok(address)
    };
    let dsdt = put(&dsdt::table(machine.dma_engines))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in [fixed::fadt(dsdt), fixed::madt(machine.cpus), fixed::mcfg()] {
        xsdt.add_entry(put(&table)?);
    }
    if let Some(dmar) = machine.dmar {
        xsdt.add_entry(put(&fixed::dmar(dmar))?);
    }
    if let Some(memory_bytes) = machine.affinity {
        xsdt.add_entry(put(&affinity::srat(machine.cpus, memory_bytes))?);
    }
    let rsdp = Rsdp::new(OEM_ID, put(&bytes(&xsdt))?);
    ram.write_slice(&bytes(&rsdp), GuestAddress(low::ACPI.start)).map_err(|_| Error)?;
    Ok(low::ACPI.start)
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_CPUS;
    use crate::memory::allocate;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn read_table(ram: &GuestRam, address: u64) -> Vec<u8> {
        let len: u32 = ram.read_obj(GuestAddress(address + 4)).unwrap();
        let mut table = vec![0; len as usize];
        ram.read_slice(&mut table, GuestAddress(address)).unwrap();
        table
    }

    #[test]
    fn all_tables_are_reached_from_the_rsdp_with_good_checksums() {
        let ram = allocate(2 << 20).unwrap();
        for count in [1, 4, MAX_CPUS] {
            let cpus = Cpus { count, id_step: 1 };
            let rsdp = {
                let affinity = Some(2 << 20);
                write(&ram, &Machine { cpus, dmar: Some(&[45; 36]), affinity, dma_engines: 4 }).unwrap()
            };
            let mut head = [0; 36];
            ram.read_slice(&mut head, GuestAddress(rsdp)).unwrap();
            assert_eq!((&head[..8], sum(&head[..20]), sum(&head)), (&b"RSD PTR "[..], 0, 0));
            let xsdt = read_table(&ram, u64::from_le_bytes(head[24..32].try_into().unwrap()));
            assert_eq!(sum(&xsdt), 0);
            let mut found = Vec::new();
            for entry in xsdt[36..].chunks(8) {
                let table = read_table(&ram, u64::from_le_bytes(entry.try_into().unwrap()));
                assert_eq!(sum(&table), 0, "{count} CPUs, {:?}", &table[..4]);
                found.push(table[..4].to_vec());
                if &table[..4] == b"FACP" {
                    let dsdt = read_table(&ram, u64::from_le_bytes(table[140..148].try_into().unwrap()));
                    assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
                }
                if &table[..4] == b"APIC" {
                    // 8 bytes per CPU, 12 for the IOAPIC, 6 for the NMI.
                    assert_eq!(table.len(), 44 + count as usize * 8 + 12 + 6);
                }
            }
            assert_eq!(found, [b"FACP", b"APIC", b"MCFG", b"DMAR", b"SRAT"]);
        }
    }

    /// Name, ids of local APICs, ids of local x2APICs.
    type Row = (&'static str, Cpus, Vec<(u8, u8)>, Vec<(u32, u32)>);

    #[test]
    fn wide_ids_are_x2apic_structures() {
        let rows: [Row; 3] = [
            ("consecutive", Cpus { count: 3, id_step: 1 }, vec![(0, 0), (1, 1), (2, 2)], vec![]),
            ("sparse", Cpus { count: 3, id_step: 127 }, vec![(0, 0), (1, 127), (2, 254)], vec![]),
            ("wide", Cpus { count: 3, id_step: 255 }, vec![(0, 0)], vec![(1, 255), (2, 510)]),
        ];
        for (name, cpus, expected, expected_wide) in rows {
            let table = fixed::madt(cpus);
            let (mut narrow, mut wide, mut at) = (Vec::new(), Vec::new(), 44);
            while at < table.len() {
                let part = &table[at..at + usize::from(table[at + 1])];
                let word = |at: usize| u32::from_le_bytes(part[at..at + 4].try_into().unwrap());
                match part[0] {
                    0 => narrow.push((part[2], part[3])),
                    9 => wide.push((word(12), word(4))),
                    _ => {}
                }
                at += part.len();
            }
            assert_eq!((narrow, wide), (expected, expected_wide), "{name}");
        }
    }
}

//! SRAT (ACPI 6.5 §5.2.16): one proximity domain with all CPUs and all memory, for remapping units that are near to
//! it.

use acpi_tables::sdt::Sdt;
use zerocopy::{Immutable, IntoBytes};

use super::{HEADER, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::cpus::Cpus;
use crate::memory::ranges;

/// The one domain.
const DOMAIN: [u8; 4] = [0; 4];
const ENABLED: [u8; 4] = 1u32.to_le_bytes();

/// The table.
pub(super) fn srat(cpus: Cpus, memory_bytes: u64) -> Vec<u8> {
    let mut sdt = Sdt::new(*b"SRAT", HEADER, 3, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    // Reserved words: the first reads 1 for compatibility.
    sdt.append_slice(&ENABLED);
    sdt.append_slice(&[0; 8]);
    for id in cpus.ids() {
        sdt.append_slice(X2ApicAffinity::new(id).as_bytes());
    }
    for (start, len) in ranges(memory_bytes) {
        sdt.append_slice(MemoryAffinity::new(start, len).as_bytes());
    }
    sdt.as_slice().to_vec()
}

/// Processor Local x2APIC Affinity structure (§5.2.16.3).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct X2ApicAffinity {
    kind: u8,
    length: u8,
    reserved: [u8; 2],
    domain: [u8; 4],
    id: [u8; 4],
    flags: [u8; 4],
    clock_domain: [u8; 4],
    reserved2: [u8; 4],
}

impl X2ApicAffinity {
    fn new(id: u32) -> Self {
        Self {
            kind: 2,
            length: 24,
            reserved: [0; 2],
            domain: DOMAIN,
            id: id.to_le_bytes(),
            flags: ENABLED,
            clock_domain: [0; 4],
            reserved2: [0; 4],
        }
    }
}

/// Memory Affinity structure (§5.2.16.2).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct MemoryAffinity {
    kind: u8,
    length: u8,
    domain: [u8; 4],
    reserved: [u8; 2],
    base: [u8; 8],
    len: [u8; 8],
    reserved2: [u8; 4],
    flags: [u8; 4],
    reserved3: [u8; 8],
}

impl MemoryAffinity {
    fn new(base: u64, len: u64) -> Self {
        Self {
            kind: 1,
            length: 40,
            domain: DOMAIN,
            reserved: [0; 2],
            base: base.to_le_bytes(),
            len: len.to_le_bytes(),
            reserved2: [0; 4],
            flags: ENABLED,
            reserved3: [0; 8],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_structure_for_each_cpu_and_each_range() {
        let table = srat(Cpus { count: 2, id_step: 1 }, 6 << 30);
        assert_eq!(table.len(), 36 + 12 + 2 * 24 + 2 * 40);
        assert_eq!(&table[36..48], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&table[72..96], [2, 24, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let high: [u8; 40] = table[136..].try_into().unwrap();
        assert_eq!(&high[..16], [1, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], "from 4 GiB on");
        assert_eq!(&high[16..], [0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}

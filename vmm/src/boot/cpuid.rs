//! The CPU a guest sees: KVM's supported set without what the machine cannot serve, with the machine's topology.
//!
//! Leaf numbers and bits: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::cpus::Place;

/// Where the kernel (and with it the guest's IOMMU driver) may use a table format only if the unit walks it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paging {
    /// The unit walks five levels (FS5LP).
    pub(crate) five_level: bool,
    /// The unit takes 1 GiB pages in the first stage (FS1GP).
    pub(crate) gib_pages: bool,
}

const LA57: u32 = 1 << 16; // 7.0 ECX
const ENQCMD: u32 = 1 << 29; // 7.0 ECX
const PAGE_1GB: u32 = 1 << 26; // 8000_0001 EDX
const X2APIC: u32 = 1 << 21; // 1 ECX
const TSC_DEADLINE: u32 = 1 << 24; // 1 ECX
const HYPERVISOR: u32 = 1 << 31; // 1 ECX
const HTT: u32 = 1 << 28; // 1 EDX
const VMX: u32 = 1 << 5; // 1 ECX
const SVM: u32 = 1 << 2; // 8000_0001 ECX
/// What AMD's virtualization can do.
const SVM_LEAF: u32 = 0x8000_000a;
/// Leaf 1 EBX: the low byte of the APIC id in 31:24, number of APIC ids in 23:16.
const LEAF1_IDS: u32 = 0xffff_0000;

/// Extended topology: Intel's 0xb and 0x1f have one format.
const TOPOLOGY_LEAVES: [u32; 2] = [0xb, 0x1f];
/// AMD's newer topology leaf; without it, guests use 0xb.
const AMD_TOPOLOGY: u32 = 0x8000_0026;

/// The entries for one CPU, made from KVM's supported set. **Pure.**
pub(crate) fn filter(supported: &[kvm_cpuid_entry2], paging: Paging, place: Place) -> Vec<kvm_cpuid_entry2> {
    let highest = supported.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    let mut entries: Vec<_> = supported
        .iter()
        .filter(|entry| !TOPOLOGY_LEAVES.contains(&entry.function) && entry.function != AMD_TOPOLOGY)
        .copied()
        .collect();
    for entry in &mut entries {
        hide(entry, paging);
        set_place(entry, place);
    }
    for leaf in TOPOLOGY_LEAVES.into_iter().filter(|leaf| *leaf <= highest) {
        entries.extend(topology(leaf, place));
    }
    entries
}

/// Takes away what the machine cannot serve.
fn hide(entry: &mut kvm_cpuid_entry2, paging: Paging) {
    match (entry.function, entry.index) {
        (7, 0) => {
            // ENQCMD takes its PASID from a register that KVM does not virtualize.
            entry.ecx &= !ENQCMD;
            if !paging.five_level {
                entry.ecx &= !LA57;
            }
        }
        (0x8000_0001, _) if !paging.gib_pages => entry.edx &= !PAGE_1GB,
        _ => {}
    }
}

/// Puts the machine's topology where leaves other than the topology leaves show it.
fn set_place(entry: &mut kvm_cpuid_entry2, place: Place) {
    let others = place.cpus - 1;
    // Some leaves count APIC ids rather than CPUs, in fields that are as wide as they are.
    let ids_up_to = |largest: u32| place.last_id.min(largest);
    let low_id = place.apic_id & 0xff;
    match (entry.function, entry.index) {
        (1, _) => {
            entry.ebx = entry.ebx & !LEAF1_IDS | low_id << 24 | (ids_up_to(0xfe) + 1) << 16;
            entry.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
            entry.edx = entry.edx & !HTT | if others > 0 { HTT } else { 0 };
        }
        // Deterministic cache parameters: 31:26 cores in the package, 25:14 CPUs sharing the cache, each minus 1.
        (4, _) if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x3fff | sharers(entry.eax, ids_up_to(0xfff)) | ids_up_to(0x3f) << 26
        }
        (0x8000_001d, _) if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & !0x03ff_c000 | sharers(entry.eax, ids_up_to(0xfff));
        }
        // ECX 15:12 size of the APIC id, 7:0 cores minus 1.
        (0x8000_0008, _) => entry.ecx = entry.ecx & !0xf0ff | place.id_bits() << 12 | others,
        (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (place.apic_id, low_id, 0),
        _ => {}
    }
}

/// Bits 25:14 of a cache leaf: caches of level 3 and above belong to all, the others to one CPU.
fn sharers(eax: u32, others: u32) -> u32 {
    let level = eax >> 5 & 7;
    if level >= 3 { others << 14 } else { 0 }
}

/// The sub-leaves of an extended topology leaf: threads, cores, end.
fn topology(leaf: u32, place: Place) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, cpus: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: cpus,
        ecx: kind << 8 | index,
        edx: place.apic_id,
        ..Default::default()
    };
    [level(0, 1, 0, 1), level(1, 2, place.id_bits(), place.cpus), level(2, 0, 0, 0)]
}

/// Whether the set has the hardware virtualization of either vendor. **Pure.**
pub(crate) fn has_virtualization(entries: &[kvm_cpuid_entry2]) -> bool {
    entries.iter().any(|entry| match entry.function {
        1 => entry.ecx & VMX != 0,
        0x8000_0001 => entry.ecx & SVM != 0,
        _ => false,
    })
}

/// Takes hardware virtualization away.
pub(crate) fn hide_virtualization(entries: &mut [kvm_cpuid_entry2]) {
    for entry in entries {
        match entry.function {
            1 => entry.ecx &= !VMX,
            0x8000_0001 => entry.ecx &= !SVM,
            SVM_LEAF => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }
}

/// Width of guest-physical addresses, from leaf 8000_0008; 36 if the set does not say. **Pure.**
pub(crate) fn physical_bits(entries: &[kvm_cpuid_entry2]) -> u8 {
    let leaf = entries.iter().find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(36, |entry| entry.eax.to_le_bytes()[0])
}

/// The table formats that the set has. **Pure.**
pub(crate) fn paging(entries: &[kvm_cpuid_entry2]) -> Paging {
    let find = |function| entries.iter().find(|entry| (entry.function, entry.index) == (function, 0));
    Paging {
        five_level: find(7).is_some_and(|entry| entry.ecx & LA57 != 0),
        gib_pages: find(0x8000_0001).is_some_and(|entry| entry.edx & PAGE_1GB != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpus::Cpus;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    const ALL: Paging = Paging { five_level: true, gib_pages: true };
    const FIRST_OF_FOUR: Place = Place { apic_id: 0, cpus: 4, last_id: 3 };

    #[test]
    fn guests_see_only_table_formats_that_the_unit_walks() {
        let supported = [entry(7, 0, [0, 0, u32::MAX, 0]), entry(0x8000_0001, 0, [0, 0, 0, u32::MAX])];
        for five_level in [false, true] {
            for gib_pages in [false, true] {
                let paging = Paging { five_level, gib_pages };
                let seen = filter(&supported, paging, FIRST_OF_FOUR);
                assert_eq!(super::paging(&seen), paging);
                assert_eq!(find(&seen, 7, 0).ecx & LA57 != 0, five_level);
                assert_eq!(find(&seen, 0x8000_0001, 0).edx & PAGE_1GB != 0, gib_pages);
                assert_eq!(find(&seen, 7, 0).ecx & ENQCMD, 0);
            }
        }
        let none = [entry(7, 0, [0; 4])];
        assert_eq!(find(&filter(&none, ALL, FIRST_OF_FOUR), 7, 0).ecx, 0, "nothing is invented");
    }

    #[test]
    fn virtualization_of_either_vendor_can_be_hidden() {
        let rows = [
            ("Intel", 1, [0, 0, u32::MAX, 0], [0, 0, !VMX, 0], true),
            ("AMD", 0x8000_0001, [0, 0, u32::MAX, 7], [0, 0, !SVM, 7], true),
            ("AMD's features", SVM_LEAF, [1, 8, 0, 9], [0; 4], false),
            ("another leaf", 7, [0, 0, u32::MAX, 0], [0, 0, u32::MAX, 0], false),
        ];
        for (name, leaf, before, after, has) in rows {
            let mut entries = [entry(leaf, 0, before)];
            assert_eq!(has_virtualization(&entries), has, "{name}");
            hide_virtualization(&mut entries);
            assert_eq!(entries, [entry(leaf, 0, after)], "{name}");
            assert!(!has_virtualization(&entries), "{name}");
        }
    }

    #[test]
    fn every_cpu_sees_its_own_place() {
        let supported =
            [entry(0, 0, [0x1f, 0, 0, 0]), entry(1, 0, [0, 0x0504_0812, 0, 0]), entry(0xb, 0, [9; 4])];
        for (apic_id, cpus, bits) in [(0, 1, 0), (3, 4, 2), (4, 5, 3), (63, 64, 6)] {
            let seen = filter(&supported, ALL, Place { apic_id, cpus, last_id: cpus - 1 });
            assert_eq!(find(&seen, 1, 0).ebx, apic_id << 24 | cpus << 16 | 0x0812);
            assert_eq!(find(&seen, 1, 0).edx & HTT != 0, cpus > 1);
            for leaf in TOPOLOGY_LEAVES {
                let (threads, cores, end) =
                    (find(&seen, leaf, 0), find(&seen, leaf, 1), find(&seen, leaf, 2));
                assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 1, 0x100, apic_id));
                assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (bits, cpus, 0x201, apic_id));
                assert_eq!((end.ebx, end.ecx), (0, 2));
            }
        }
    }

    #[test]
    fn sparse_ids_are_told_in_full_where_there_is_room() {
        let cpus = Cpus { count: 4, id_step: 100 };
        assert!(cpus.ids().eq([0, 100, 200, 300]));
        let supported = [
            entry(0, 0, [0xb, 0, 0, 0]),
            entry(1, 0, [0; 4]),
            entry(4, 3, [3 | 3 << 5, 0, 0, 0]),
            entry(0x8000_0008, 0, [0; 4]),
            entry(0x8000_001e, 0, [0; 4]),
        ];
        let seen = filter(&supported, ALL, cpus.place(300));
        let topology = find(&seen, 0xb, 1);
        assert_eq!((topology.eax, topology.ebx, topology.edx), (9, 4, 300));
        assert_eq!(find(&seen, 1, 0).ebx, 44 << 24 | 255 << 16);
        assert_eq!(find(&seen, 4, 3).eax, 3 | 3 << 5 | 300 << 14 | 63 << 26);
        assert_eq!(find(&seen, 0x8000_0008, 0).ecx, 9 << 12 | 3);
        assert_eq!((find(&seen, 0x8000_001e, 0).eax, find(&seen, 0x8000_001e, 0).ebx), (300, 44));
    }

    #[test]
    fn topology_leaves_beyond_the_highest_are_not_made() {
        let seen = filter(&[entry(0, 0, [0xd, 0, 0, 0])], ALL, FIRST_OF_FOUR);
        assert!(seen.iter().any(|e| e.function == 0xb));
        assert!(!seen.iter().any(|e| e.function == 0x1f));
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        // Type 1 (data), levels 1 and 3; the host has 32 CPUs sharing.
        let supported = [
            entry(4, 0, [1 | 1 << 5 | 31 << 14 | 15 << 26, 0, 0, 0]),
            entry(4, 3, [3 | 3 << 5 | 31 << 14 | 15 << 26, 0, 0, 0]),
            entry(4, 4, [0; 4]),
        ];
        let seen = filter(&supported, ALL, FIRST_OF_FOUR);
        assert_eq!(find(&seen, 4, 0).eax, 1 | 1 << 5 | 3 << 26);
        assert_eq!(find(&seen, 4, 3).eax, 3 | 3 << 5 | 3 << 14 | 3 << 26);
        assert_eq!(find(&seen, 4, 4).eax, 0, "the end of the list stays");
    }
}

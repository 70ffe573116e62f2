//! An endpoint whose addresses lead to what is no RAM: its DMA reaches RAM only, so its request is unsupported. Unit and
//! guest hear of it where the unit itself forbids it, which is in the interrupt range.

use iommu_vtd::testkit::{PageSize, flags};
use vm_memory::{Bytes, GuestAddress};

use super::rig::{FRAME, MISSING, Machine, PASID, Recorded, until};
use super::{profile, tables};

/// (what is there, page)
const PLACES: [(&str, u64); 7] = [
    ("nothing, behind low RAM", 0xbfff_f000),
    ("the BAR of a function", 0xc000_0000),
    ("configuration space", 0xe000_0000),
    ("the IOAPIC", 0xfec0_0000),
    ("the unit's own registers", 0xfed9_0000),
    ("the interrupt range", INTERRUPTS),
    ("nothing, behind all RAM", 0x40_0000_0000),
];
const INTERRUPTS: u64 = 0xfee0_0000;
/// FAULT_INFO of a write: the IOMMU refused it; it leads to no memory.
const REFUSED: u8 = 1 | 2 << 1;
const NO_MEMORY: u8 = 1 | 3 << 1;

/// By a page of the process's, with translation requests and without.
#[test]
fn pages_that_lead_to_no_memory() {
    for ((name, place), ats) in PLACES.into_iter().flat_map(|place| [(place, true), (place, false)]) {
        let machine = Machine::new(&profile(), &[]);
        let tables = tables(&machine);
        let space = machine.boot(&tables);
        if !ats {
            machine.config_write(machine.extended(0xf) + 6, 0);
        }
        space.map(MISSING, place, PageSize::Size4K, flags::USER | flags::WRITE);
        assert_eq!(machine.run(MISSING), 2, "{name}, ATS {ats}");
        let refused = place == INTERRUPTS;
        let expected = if refused { REFUSED } else { NO_MEMORY };
        assert_eq!(machine.record(0).fault_info, expected, "{name}, ATS {ats}");
        let address_type = u64::from(ats);
        let fault = Recorded { reason: 0x87, pasid: Some(PASID.into()), address_type, page: MISSING };
        assert_eq!(machine.faults(), if refused { vec![fault] } else { vec![] }, "{name}, ATS {ats}");
        machine.map(&space, MISSING, FRAME);
        assert!(machine.invalidate(u64::from(PASID) << 32 | 1 << 16 | 2 << 4 | 6, 0), "IOTLB");
        assert!(!ats || machine.invalidate_device_tlb());
        assert_eq!(machine.run(MISSING), 1, "{name}, ATS {ats}: alive");
    }
}

/// By no translation at all: requests without PASID to a unit that is off. DMA is no interrupt then either, but 29h.
#[test]
fn addresses_as_they_are() {
    const FAULTS: u64 = 0x1_0048;
    for (name, place) in PLACES {
        let machine = Machine::new(&profile(), &[]);
        machine.start_function();
        machine.config_write(machine.extended(0xf) + 6, 0);
        machine.write32(0x1_0000, 0);
        machine.write32(0x1_0008, 0);
        machine.write32(0x1_0000, 1);
        machine.fill(0, place);
        until(name, || machine.read64(FAULTS) == 1);
        let fault = Recorded { reason: 0x29, pasid: None, address_type: 0, page: INTERRUPTS };
        assert_eq!(machine.faults(), if place == INTERRUPTS { vec![fault] } else { vec![] }, "{name}");
        machine.fill(0, FRAME);
        until(name, || machine.memory.read_obj::<u64>(GuestAddress(FRAME)).unwrap() == u64::MAX);
    }
}

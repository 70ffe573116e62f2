//! What a guest is told of who is behind whom.

use std::sync::Arc;

use iommu_core::testkit::RecordingMsi;
use iommu_core::{Iova, Msi};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::allocate;

const MEMORY: u64 = 16 << 20;
const FIVE: Paging = Paging { five_level: true, gib_pages: true };

fn spec(id: &str, profile: &str) -> UnitSpec {
    UnitSpec {
        id: id.into(),
        profile: profile.into(),
        affinity: false,
        x2apic_opt_out: false,
        platform_opt_in: false,
    }
}

fn units(specs: Vec<UnitSpec>) -> Units {
    units_on(specs, Vec::new()).unwrap()
}

fn units_on(specs: Vec<UnitSpec>, hosts: Vec<Option<Capabilities>>) -> Result<Units, Complaint> {
    let around = Surroundings {
        ram: allocate(MEMORY).unwrap(),
        memory_bytes: MEMORY,
        physical_bits: 46,
        paging: FIVE,
        direct: Arc::new(RecordingMsi::default()),
        hosts,
    };
    Units::new(specs, around)
}

fn behind(unit: usize) -> Placement {
    Placement { unit: Some(unit), ..Placement::default() }
}

/// Two units, an endpoint and a DMA engine behind each.
#[test]
fn every_device_is_told_to_be_behind_one_unit() {
    let near = UnitSpec { affinity: true, ..spec("b", "legacy,intremap=off") };
    let mut units = units(vec![spec("a", "svm,intremap=off,aw-bits=48"), near]);
    units.place(SourceId::from_bdf(0, 1, 0), &behind(0));
    units.place(SourceId::from_bdf(0, 2, 0), &behind(1));
    units.place_named(requester::dma_engine(0), "\\A".into(), &behind(0));
    units.place_named(requester::dma_engine(1), "\\B".into(), &behind(1));
    let expected: [&[u8]; 11] = [
        &[45, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 32, 0, 0, 0, 0, 0, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0], // the unit for some comes first
        &[1, 8, 0, 0, 0, 0, 2, 0],
        &[5, 8, 0, 0, 1, 0xff, 0x11, 0],
        &[0, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0],
        &[3, 8, 0, 0, 0, 0xff, 0, 0], // I/O APIC
        &[5, 8, 0, 0, 0, 0xff, 0x10, 0],
        &[3, 0, 20, 0, 0, 0, 0, 0, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0, 0, 0, 0, 0],
        b"\x04\0\x0b\0\0\0\0\0\\A\0",
        b"\x04\0\x0b\0\0\0\0\x01\\B\0",
        &[],
    ];
    assert_eq!(units.dmar().unwrap().unwrap(), expected.concat());
    assert!(units.have_affinity() && units.reserved().is_empty());
}

#[test]
fn reserved_memory_is_the_end_of_the_low_memory() {
    let mut units = units(vec![spec("a", "full,intremap=off")]);
    let placement = |mib: u64, integrated| Placement { reserved_bytes: mib << 20, integrated, ..behind(0) };
    units.place(SourceId::from_bdf(0, 1, 0), &placement(1, Some(false)));
    units.place(SourceId::from_bdf(0, 2, 0), &placement(2, Some(true)));
    units.place(SourceId::from_bdf(0, 3, 0), &placement(0, Some(false)));
    assert_eq!(units.reserved(), 13 << 20..16 << 20);
    let body = units.dmar().unwrap().unwrap();
    let expected: [&[u8]; 8] = [
        &[1, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0],
        &[1, 8, 0, 0, 0, 0, 1, 0],
        &[1, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0xd0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xef, 0, 0, 0, 0, 0],
        &[1, 8, 0, 0, 0, 0, 2, 0],
        &[5, 0, 24, 0, 0, 0, 0, 0, 1, 8, 0, 0, 0, 0, 1, 0],
        &[1, 8, 0, 0, 0, 0, 3, 0],
        &[5, 0, 16, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0, 2, 0],
        &[],
    ];
    assert_eq!(body[36..], expected.concat());
}

/// (profiles, table formats that guests may use)
#[test]
fn cpus_have_the_table_formats_of_all_first_stages() {
    let formats = |five_level, gib_pages| Paging { five_level, gib_pages };
    let rows: [(&[&str], Paging); 6] = [
        (&[], formats(true, true)),
        (&["full"], formats(true, true)),
        (&["full", "legacy"], formats(true, true)),
        (&["full", "svm,fs5lp=off"], formats(false, true)),
        (&["full,fs1gp=off", "svm,aw-bits=48"], formats(false, false)),
        (&["legacy,aw-bits=39", "scalable"], formats(true, true)),
    ];
    for (profiles, expected) in rows {
        let specs = profiles.iter().map(|profile| spec("x", profile)).collect();
        assert_eq!(units(specs).paging(FIVE), expected, "{profiles:?}");
    }
    assert_eq!(units(vec![]).paging(formats(false, true)), formats(false, true), "nothing is invented");
}

#[test]
fn without_units_devices_have_the_memory_itself() {
    let mut none = units(vec![]);
    assert_eq!(none.dmar(), Ok(None));
    let behind = none.place(SourceId(8), &Placement::default());
    none.ram.write_obj(7u32, GuestAddress(0x2000)).unwrap();
    let mut port = behind.dma.port();
    let session = port.session(None);
    let hit = session.translate(Iova(0x2000), iommu_core::Access::Read).unwrap();
    assert_eq!(hit.gpa.0, 0x2000);
    behind.interrupts.send(SourceId(8), Msi { address: 0xfee0_0000, data: 0 });
}

#[test]
fn register_pages_follow_each_other() {
    let units = units(vec![spec("a", "full"), spec("b", "legacy")]);
    let mut bus = Bus::default();
    units.insert_into(&mut bus).unwrap();
    let read = |address: u64| {
        let mut data = [0; 8];
        bus.read(address, &mut data);
        u64::from_le_bytes(data)
    };
    for (number, member) in units.members.iter().enumerate() {
        let cap = member.iommu.unit().capability().cap().raw_value();
        assert_eq!(read(register_base(number) + 8), cap, "unit {number}");
    }
    assert_ne!(read(register_base(0) + 8), read(register_base(1) + 8));
}

/// Beside a unit of emulated devices, which keeps what it has.
#[test]
fn a_unit_with_assigned_devices_offers_what_their_host_carries_out() {
    let host = Capabilities {
        first_stage_bits: 48,
        first_stage_page_sizes: 0x20_1000,
        pasid_bits: 12,
        device_tlb: true,
        coherent_walk: true,
        ..Capabilities::NONE
    };
    let specs = vec![spec("a", ""), spec("b", "")];
    let both = units_on(specs.clone(), vec![None, Some(host)]).unwrap();
    let offer = |number| *both.iommu(number).unwrap().unit().capability();
    let (alone, behind) = (offer(0), offer(1));
    assert_eq!((alone.cap().cm(), behind.cap().cm()), (false, true));
    assert_eq!((alone.pasid_bits(), behind.pasid_bits()), (20, 12));
    assert_eq!((alone.ecap().ssts(), behind.ecap().ssts()), (true, false));
    assert!(alone.ecap().prs() && !behind.ecap().prs() && behind.ecap().dt());
    // The guest's CPUs have no more than what all first stages walk.
    assert!(!both.paging(FIVE).five_level && units(specs.clone()).paging(FIVE).five_level);
    let copies = Capabilities { second_stage_bits: 48, ..Capabilities::NONE };
    let said = units_on(vec![spec("a", "svm")], vec![Some(copies)]).err().unwrap().to_string();
    assert!(said.starts_with("--iommu id=a: nothing is left of it that the host carries out: "), "{said}");
    assert!(units_on(specs, vec![Some(copies), None]).is_ok());
}

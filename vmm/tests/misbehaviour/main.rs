//! What a VT-d unit makes of an SVM endpoint that misbehaves (devices/src/svm/misbehaviour/README.md): the reasons of
//! faults, time-outs, page requests as software finds them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod places;
mod rig;

use devices::pci::PciFunction;
use iommu_vtd::Profile;
use iommu_vtd::testkit::Tables;
use vm_memory::{Bytes, GuestAddress};

use rig::{
    ENDPOINT, FRAME, FSTS, IQERCD, ITE, MISSING, Machine, Memory, PASID, PRESENT, PRS, Recorded, until,
};

/// A first stage, and interrupts as they are.
fn profile() -> Profile {
    Profile { interrupt_remapping: false, ..Profile::svm(46) }.settled()
}

fn tables(machine: &Machine) -> Tables<'_, Memory> {
    Tables::new(&machine.memory, 0x10_0000..0x40_0000)
}

/// (name, misbehaviour, PASID bits of the unit, whether its tables allow ATS; reason, PASID, address type, page)
#[test]
fn reasons_of_faults() {
    let own = Some(u64::from(PASID));
    let rows = [
        ("not present", "untranslated-access", 20, true, 0x71, own, 0, MISSING),
        ("beyond HAW", "translated-access:1", 20, true, 0x83, None, 2, MISSING),
        ("no ATS by the tables", "translated-access:1", 20, false, 0x44, None, 2, MISSING),
        ("directory entry not present", "foreign-pasid:1@0x7000", 20, true, 0x51, Some(0x7000), 0, MISSING),
        ("entry not present", "foreign-pasid:1@6", 20, true, 0x59, Some(6), 0, MISSING),
        ("beyond the directory", "foreign-pasid:1", 20, true, 0x46, Some(0xf_ffff), 0, MISSING),
        ("wider than the unit", "foreign-pasid:1@0x10000", 16, true, 0x89, Some(0x1_0000), 0, MISSING),
        ("the RID's PASID", "foreign-pasid:1@0", 20, true, 0x48, Some(0), 0, MISSING),
        ("interrupt range", "interrupt-range:1", 20, true, 0x29, None, 0, 0xfee0_0000),
        ("with PASID", "interrupt-range:1@1", 20, true, 0x71, own, 0, 0xfee0_0000),
    ];
    for (name, misbehaviour, pasid_bits, ats, reason, pasid, address_type, page) in rows {
        let machine = Machine::new(&Profile { pasid_bits, ..profile() }.settled(), &[misbehaviour]);
        let tables = tables(&machine);
        machine.boot(&tables);
        tables.context(ENDPOINT).edit(|low| low.with_dte(ats).with_pre(ats));
        machine.start(0, MISSING);
        until(name, || !machine.faults().is_empty());
        let expected = Recorded { reason, pasid, address_type, page };
        assert_eq!(machine.faults()[0], expected, "{name}");
    }
}

/// An address that could have come from a translation passes: nobody looks who translated it.
#[test]
fn translated_requests_are_trusted() {
    let machine = Machine::new(&profile(), &["translated-access"]);
    let tables = tables(&machine);
    let space = machine.boot(&tables);
    machine.map(&space, 0x6000, FRAME);
    assert_eq!((machine.run(0x6000), machine.faults()), (1, vec![]));
}

/// The wait is done when the device is; or it is aborted, and ITE says so, and whose.
#[test]
fn completions_that_are_late_or_lost() {
    let machine = Machine::new(&profile(), &["late-invalidation:1@30"]);
    let tables = tables(&machine);
    machine.boot(&tables);
    let start = std::time::Instant::now();
    assert!(machine.invalidate_device_tlb());
    assert!(start.elapsed() >= std::time::Duration::from_millis(30));
    assert_eq!(machine.unit_read32(FSTS), 0);

    let machine = Machine::new(&profile(), &["lost-invalidation:2@0"]);
    let tables = self::tables(&machine);
    machine.boot(&tables);
    for _ in 0..2 {
        assert!(!machine.invalidate_device_tlb());
        assert_eq!((machine.unit_read32(FSTS), machine.unit_read(IQERCD) >> 32), (ITE, ENDPOINT.0.into()));
        machine.unit_write32(FSTS, ITE);
        assert_eq!(machine.unit_read32(FSTS), 0);
    }
    assert!(machine.invalidate_device_tlb());
}

/// The unit believes the device, which goes on writing to where the page was.
#[test]
fn a_stale_translation_is_not_seen() {
    let machine = Machine::new(&profile(), &["stale-translation:1"]);
    let tables = tables(&machine);
    let space = machine.boot(&tables);
    assert_eq!(machine.run(PRESENT), 1);
    machine.memory.write_obj(0_u64, GuestAddress(FRAME)).unwrap();
    machine.map(&space, PRESENT, FRAME + 0x1000);
    assert!(machine.invalidate_device_tlb());
    assert_eq!((machine.run(PRESENT), machine.faults()), (1, vec![]));
    assert_eq!(machine.memory.read_obj::<u64>(GuestAddress(FRAME)).unwrap(), u64::MAX);
    assert!(machine.invalidate_device_tlb());
    assert_eq!(machine.run(PRESENT), 1);
    assert_eq!(machine.memory.read_obj::<u64>(GuestAddress(FRAME + 0x1000)).unwrap(), u64::MAX);
}

/// (misbehaviour, what is other than it should be in words 0 and 1 of the request)
#[test]
fn page_requests_as_software_finds_them() {
    let rows: [(&str, [u64; 2]); 5] = [
        ("wrong-group:1", [0, 0x100 << 3]),
        ("privileged-request:1", [1 << 53, 0]),
        ("execute-request:1", [1 << 52, 1]),
        ("strange-address:1", [0, 1 << 62]),
        ("unfinished-group:1", [0, 1 << 2]),
    ];
    for (misbehaviour, other) in rows {
        let machine = Machine::new(&profile(), &[misbehaviour]);
        let tables = tables(&machine);
        let space = machine.boot(&tables);
        machine.start(0, MISSING);
        until("a page request", || machine.unit_read32(PRS) & 1 != 0);
        let [low, high] = machine.page_requests()[0];
        let honest = [
            u64::from(PASID) << 32 | u64::from(ENDPOINT.0) << 16 | 1 << 8 | 1,
            // Write, last of its group, and whatever group it is.
            MISSING | (high ^ other[1]) & 0xff8 | 1 << 2 | 1 << 1,
        ];
        assert_eq!([low ^ other[0], high ^ other[1]], honest, "{misbehaviour}");
        let group = high >> 3 & 0x1ff;
        machine.map(&space, MISSING, FRAME);
        machine.respond(group, 0);
        let unexpected = machine.config_read(machine.extended(0x13) + 6) & 2;
        assert_eq!(unexpected != 0, misbehaviour.starts_with("wrong"), "{misbehaviour}: UPRGI");
        if unexpected == 0 {
            assert_eq!(machine.wait(0).status, 1, "{misbehaviour}");
        }
    }
}

/// What the queue holds is for software to answer; the rest the unit answers, and says that there was more.
#[test]
fn a_flood_overflows_and_is_answered() {
    const ROOM: usize = 127;
    let machine = Machine::new(&profile(), &["request-flood:1@1000"]);
    let tables = tables(&machine);
    machine.boot(&tables);
    assert_eq!(machine.run(PRESENT), 1);
    let answers = || machine.read64(0x58);
    assert_eq!((machine.page_requests().len(), machine.unit_read32(PRS)), (ROOM, 3), "PPR and PRO");
    assert_eq!((machine.read64(0x50), answers()), (1000, 1000 - ROOM as u64));
    for [_, high] in machine.page_requests() {
        machine.respond(high >> 3 & 0x1ff, 0);
    }
    assert_eq!(answers(), 1000);
    machine.respond(511, 0);
    assert_eq!(answers(), 1000, "and not one more");
}

/// Whoever waits for a function that is gone waits in vain; nobody else does.
#[test]
fn a_function_that_is_gone() {
    let machine = Machine::new(&profile(), &["surprise-removal:1"]);
    let tables = tables(&machine);
    let space = machine.boot(&tables);
    machine.start(0, MISSING);
    until("it is gone", || machine.config_read(0) == 0xffff);
    assert!(!machine.invalidate_device_tlb());
    assert_eq!((machine.unit_read32(FSTS), machine.unit_read(IQERCD) >> 32), (ITE, ENDPOINT.0.into()));
    machine.unit_write32(FSTS, ITE);
    assert!(machine.invalidate(0x37, 0), "PASID-cache");
    machine.respond(0, 0);
    machine.svm.bar_write(0, 0x41c, &2_u32.to_le_bytes());
    assert!(machine.invalidate_device_tlb());
    machine.start_function();
    machine.map(&space, MISSING, FRAME);
    assert_eq!((machine.run(MISSING), machine.faults()), (1, vec![]));
}

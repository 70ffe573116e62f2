//! The device-TLB: what is kept, what drops it, and that dropping never waits for a guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iommu_core::{AddressType, ResponseCode};
use vm_memory::{Bytes, GuestAddress};

use super::rig::{PASID, Rig, control_page, copy, until};
use crate::no_memory::NO_MEMORY;
use crate::svm::spec::Descriptor;

const SOURCE_PAGE: u64 = 0x10_0000;
const TARGET: u64 = 0x20_0000;

#[test]
fn a_stale_translation_is_gone_after_the_invalidation() {
    let rig = Rig::new();
    let (a, b) = (rig.page(), rig.page());
    rig.memory.write_obj(0xa_u8, GuestAddress(a)).unwrap();
    rig.memory.write_obj(0xb_u8, GuestAddress(b)).unwrap();
    let target = rig.map(TARGET, true);
    let read = || {
        assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 1)).status, 1);
        rig.memory.read_obj::<u8>(GuestAddress(target)).unwrap()
    };
    rig.map_to(SOURCE_PAGE, a, true);
    assert_eq!(read(), 0xa);
    let looked_up = rig.read64(0x48);
    assert_eq!(read(), 0xa);
    assert_eq!(rig.read64(0x48), looked_up, "a hit asks nobody");
    rig.map_to(SOURCE_PAGE, b, true);
    assert_eq!(read(), 0xa, "stale until invalidated, as ATS allows");
    rig.invalidate(SOURCE_PAGE);
    assert_eq!(read(), 0xb);
    assert_eq!([rig.read64(0x70), rig.read64(0x78)], [1, 0]);
}

#[test]
fn switching_ats_or_pasid_drops_translations() {
    type Switch = fn(&Rig);
    let switches: [(&str, Switch); 4] = [
        ("ATS", |rig| {
            rig.set_extended(0xf, 6, 0);
            rig.set_extended(0xf, 6, 0x8000);
        }),
        ("PASID", |rig| {
            rig.set_extended(0x1b, 6, 0);
            rig.set_extended(0x1b, 6, 1);
        }),
        ("CTRL.RESET", |rig| rig.write32(0xc, 1)),
        ("conventional reset", |rig| crate::pci::PciFunction::reset(&*rig.function)),
    ];
    for (name, switch) in switches {
        let rig = Rig::new();
        let (a, b) = (rig.page(), rig.page());
        rig.memory.write_obj(0xb_u8, GuestAddress(b)).unwrap();
        let target = rig.map(TARGET, true);
        rig.map_to(SOURCE_PAGE, a, true);
        assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 1)).status, 1, "{name}");
        rig.map_to(SOURCE_PAGE, b, true);
        switch(&rig);
        rig.bring_up();
        assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 1)).status, 1, "{name}");
        assert_eq!(rig.memory.read_obj::<u8>(GuestAddress(target)).unwrap(), 0xb, "{name}");
    }
}

#[test]
fn an_invalidation_completes_while_a_descriptor_waits() {
    let rig = Rig::new();
    rig.hold_page_requests();
    rig.map_range(TARGET, 1);
    let record = rig.start(0, copy(SOURCE_PAGE, TARGET, 8));
    rig.until_page_requests(1);
    rig.until_waiting(0);
    // Each says that it is complete, and none that the time for it ran out.
    for _ in 0..1000 {
        rig.invalidate(SOURCE_PAGE);
    }
    assert_eq!(rig.read_record(record).status, 0);
    rig.map_range(SOURCE_PAGE, 1);
    rig.respond(ResponseCode::Success);
    assert_eq!(rig.wait(record).status, 1);
}

#[test]
fn no_copy_uses_a_translation_after_its_invalidation_returned() {
    let rig = Arc::new(Rig::new());
    rig.map_range(SOURCE_PAGE, 1);
    let (a, b) = (rig.page(), rig.page());
    rig.map_to(TARGET, a, true);
    let stop = Arc::new(AtomicBool::new(false));
    let device = std::thread::spawn({
        let (rig, stop) = (rig.clone(), stop.clone());
        move || {
            let fill = Descriptor { opcode: 2, operand: u64::MAX.into(), ..copy(0, TARGET, 0x1000) };
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(rig.run(fill).status, 1);
            }
        }
    });
    for round in 0..2000 {
        let (taken, given) = if round % 2 == 0 { (a, b) } else { (b, a) };
        rig.map_to(TARGET, given, true);
        rig.invalidate(TARGET);
        // `taken` is ours now.
        rig.memory.write_slice(&[0; 4096], GuestAddress(taken)).unwrap();
        std::thread::yield_now();
        let mut bytes = [1; 4096];
        rig.memory.read_slice(&mut bytes, GuestAddress(taken)).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0), "written after the invalidation, round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    device.join().unwrap();
}

#[test]
fn requests_say_what_they_are() {
    // Read-only pages serve reads; a write to one is a miss, and a refusal without ATS.
    let rig = Rig::new();
    rig.map(SOURCE_PAGE, false);
    rig.map_range(TARGET, 1);
    assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 8)).status, 1);
    let record = rig.run(copy(TARGET, SOURCE_PAGE, 8));
    assert_eq!((record.status, record.fault_info, record.page_requests.get()), (2, 1, 1));
    assert!(rig.iommu.faults.lock().is_empty());

    rig.set_extended(0xf, 6, 0);
    assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 8)).status, 1);
    let record = rig.run(copy(TARGET, SOURCE_PAGE, 8));
    assert_eq!((record.status, record.fault_info, record.page_requests.get()), (2, 1 | 2 << 1, 0));
    let faults = rig.iommu.faults.lock();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].request.address_type, AddressType::Untranslated);
    assert_eq!(faults[0].request.pasid, Some(PASID));
    assert!(rig.read64(0x78) >= 3);
}

#[test]
fn requests_with_and_without_pasid_are_different_spaces() {
    let rig = Rig::new();
    rig.map_range(SOURCE_PAGE, 2);
    rig.write32(control_page(0), 0);
    rig.write32(control_page(0) + 8, PASID.get());
    rig.write32(control_page(0), 1);
    rig.submit(0, &Descriptor { flags: 0, ..copy(SOURCE_PAGE, SOURCE_PAGE + 0x1000, 8) });
    until("fault", || rig.read64(control_page(0) + 0x48) == 1);
    // And a PASID needs the capability.
    rig.set_extended(0x1b, 6, 0);
    rig.submit(1, &copy(SOURCE_PAGE, SOURCE_PAGE + 0x1000, 8));
    until("fault", || rig.read64(control_page(1) + 0x48) == 1);
    assert_eq!(rig.iommu.page_requests.lock().len(), 0);
}

/// With translations of its own as with untranslated requests, and nothing is said against the translation.
#[test]
fn a_translation_to_no_memory_is_a_fault() {
    for (name, place) in NO_MEMORY {
        for ats in [0x8000, 0] {
            let rig = Rig::new();
            rig.set_extended(0xf, 6, ats);
            rig.map_range(SOURCE_PAGE, 1);
            rig.map_to(TARGET, place, true);
            for (source, target, info) in [(SOURCE_PAGE, TARGET, 1 | 3 << 1), (TARGET, SOURCE_PAGE, 3 << 1)] {
                let record = rig.run(copy(source, target, 8));
                let found = (record.status, record.fault_info, record.fault_address.get());
                assert_eq!(found, (2, info, TARGET), "{name}, ATS {ats:#x}");
                assert_eq!((record.completed.get(), record.page_requests.get()), (0, 0), "{name}");
            }
            rig.submit(0, &Descriptor { flags: 1, record: TARGET.into(), ..Default::default() });
            until("lost record", || rig.read64(0x88) == 1);
            rig.until_idle(0);
            assert!(rig.iommu.faults.lock().is_empty() && rig.msi.sent.lock().is_empty(), "{name}");
            rig.assert_alive(0);
        }
    }
}

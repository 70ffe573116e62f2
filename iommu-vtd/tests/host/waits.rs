//! When a host is told, and what stands behind it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use iommu_core::testkit::{HostCall, HostOutcome, RecordingEndpoint};
use iommu_core::{
    DomainId, GroupIndex, Invalidation, IovaRange, PageResponse, Pasid, ResponseCode, Scope, VendorData,
};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{ENDPOINT, FSTS, IQE, STATUS, desc};
use crate::world::{DID, OTHER, World, assigned};

const ICS: u64 = 0x9c;

fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

/// (name, descriptor, what the host is told)
#[test]
fn invalidations_of_translations_are_handed_on() {
    let domain = DomainId(7);
    let page = |pasid_number, address, bits| Scope::PasidRange {
        domain,
        pasid: pasid(pasid_number),
        range: IovaRange::aligned(address, bits),
    };
    let rows = [
        ("all", desc::IOTLB_GLOBAL, Scope::All, false),
        ("domain", (7 << 16 | 0x22, 0), Scope::Domain(domain), false),
        (
            "pages of a domain",
            (7 << 16 | 0x32, 0x5000 | 1 << 6 | 2),
            Scope::DomainRange { domain, range: IovaRange::aligned(0x4000, 14) },
            true,
        ),
        ("a PASID", desc::pasid_iotlb_all(7, 3), Scope::Pasid { domain, pasid: pasid(3) }, false),
        (
            "a page of a PASID",
            desc::pasid_iotlb_page(7, 3, 0x7000_0000_1000),
            page(3, 0x7000_0000_1000, 12),
            false,
        ),
        ("only a leaf", desc::pasid_iotlb_page(7, 3, 0x1000 | 1 << 6), page(3, 0x1000, 12), true),
        (
            "the upper half",
            desc::pasid_iotlb_page(7, 3, 0xffff_8000_0000_0000 | 35),
            page(3, 0xffff_8000_0000_0000, 47),
            false,
        ),
        ("everything by pages", desc::pasid_iotlb_page(7, 3, 52), page(3, 0, 64), false),
    ];
    let world = World::new();
    let (driver, _tables) = world.boot();
    for (name, descriptor, scope, leaf_only) in rows {
        driver.submit(&[descriptor]);
        let expected = Invalidation { leaf_only, ..Invalidation::new(scope) };
        assert_eq!(world.host.take_calls(), [HostCall::Invalidate(expected), HostCall::Sync], "{name}");
    }
}

/// Whatever a wait tells the guest by, its host is done before.
#[test]
fn a_wait_completes_after_the_host() {
    let did = u64::from(DID);
    // (name, bits 7:4 of the wait)
    for (name, flags) in [("status", 2), ("interrupt", 1), ("both, fence, drain", 0xf), ("fence", 4)] {
        let world = World::new();
        let (driver, tables) = world.boot();
        let _ = tables.context(ENDPOINT).pasid(1).first_stage(DID);
        let (unit, memory) = (world.machine.unit.clone(), world.machine.memory.clone());
        world.host.on_call(move |_| {
            assert_eq!(memory.read_obj::<u32>(GuestAddress(STATUS)).unwrap(), 1, "status written too early");
            let mut ics = [0; 4];
            unit.mmio_read(ICS, &mut ics);
            assert_eq!(ics, [0; 4], "event too early");
            HostOutcome::Done
        });
        world.machine.set_word(STATUS, 1);
        driver.put(desc::pasid_cache(did, 1).0, 0);
        driver.put(desc::pasid_iotlb_all(did, 1).0, 0);
        driver.put(2 << 32 | flags << 4 | 5, STATUS);
        driver.kick();
        let calls = world.host.take_calls();
        let (done, drained) = calls.split_at(3);
        assert!(
            matches!(done, [HostCall::Invalidate(_), HostCall::Set(..), HostCall::Sync]),
            "{name}: {calls:?}"
        );
        assert_eq!(drained, if flags & 8 != 0 { &[HostCall::Drain][..] } else { &[] }, "{name}");
        assert_eq!(world.machine.status(), if flags & 2 != 0 { 2 } else { 1 }, "{name}");
        assert_eq!(world.machine.read32(ICS), u32::from(flags & 1 != 0), "{name}");
    }
}

#[test]
fn one_reading_and_one_flush_for_each_wait() {
    let did = u64::from(DID);
    let world = World::new();
    let (driver, tables) = world.boot();
    for pasid in 1..4 {
        let _ = tables.context(ENDPOINT).pasid(pasid).first_stage(DID);
    }
    let mut many = vec![desc::pasid_iotlb_all(did, 2)];
    many.extend(vec![desc::pasid_cache(did, 1); 100]);
    many.extend([desc::PASID_GLOBAL; 20]);
    many.extend((0..50).map(|page| desc::pasid_iotlb_page(did, 1, page << 12)));
    driver.submit(&many);
    let calls = world.host.take_calls();
    let count = |wanted: fn(&HostCall) -> bool| calls.iter().filter(|call| wanted(call)).count();
    assert_eq!(count(|call| matches!(call, HostCall::Set(..))), 3);
    assert_eq!(count(|call| matches!(call, HostCall::Invalidate(_))), 51);
    assert_eq!(count(|call| matches!(call, HostCall::Sync)), 1);
    assert_eq!(calls.last(), Some(&HostCall::Sync));
    // Two waits, and nothing to flush before the second.
    driver.submit(&[desc::pasid_iotlb_all(did, 1), (2 << 32 | 0x25, STATUS), desc::device_tlb_all(1)]);
    assert_eq!(world.host.take_calls().len(), 2, "device-TLBs are the host's affair");
}

/// A wait that drains has hosts hand in what they have, each once, and completes whatever they say.
#[test]
fn a_wait_that_drains_does_so_at_hosts() {
    let world = World::new();
    let (driver, _tables) = world.boot();
    // (name, outcome, functions to be stopped)
    for (name, outcome, stops) in [
        ("done", HostOutcome::Done, 0),
        ("refused", HostOutcome::Refused, 0),
        ("stuck", HostOutcome::Stuck, 2),
    ] {
        world.host.on_call(move |_| outcome);
        driver.submit(&[(2 << 32 | 0xa5, STATUS)]);
        assert_eq!(world.host.take_calls(), [HostCall::Drain], "{name}: two functions have one host");
        assert_eq!(world.stops.load(Ordering::Relaxed), stops, "{name}");
    }
    driver.submit(&[]);
    assert_eq!(world.host.take_calls(), [], "others do not");
}

/// Without a wait nobody knows when, but it is done when the write is back; and also in front of what stops the
/// queue.
#[test]
fn what_no_wait_stands_behind_is_done() {
    let world = World::new();
    let (driver, tables) = world.boot();
    let _ = tables.context(ENDPOINT).pasid(1).first_stage(DID);
    driver.put(desc::pasid_cache(1, 1).0, 0);
    driver.kick();
    assert_eq!(world.sets().len(), 1);
    tables.context(ENDPOINT).pasid(1).clear();
    driver.put(desc::pasid_cache(1, 1).0, 0);
    driver.put(0xf, 0);
    driver.kick();
    assert_ne!(world.machine.read32(FSTS) & IQE, 0);
    assert_eq!(world.sets().len(), 1);
}

#[test]
fn answers_go_where_the_request_came_from() {
    let world = World::empty(&assigned());
    world.attach(OTHER);
    let (driver, _tables) = world.boot();
    let [emulated, shadowed] = [(); 2].map(|()| Arc::new(RecordingEndpoint::default()));
    world.machine.attach(&emulated);
    let behind: Arc<dyn iommu_core::Endpoint> = shadowed.clone();
    world.machine.unit.attach_endpoint(OTHER, Arc::downgrade(&behind));
    let to_other = desc::response(3, 5, 1).0 & !0xffff_0000 | u64::from(OTHER.0) << 16;
    let to_nobody = desc::response(3, 5, 1).0 & !0xffff_0000;
    driver.submit(&[desc::response(3, 5, 0), (to_other, 5 << 3), (to_nobody, 5 << 3)]);
    let answer = |source, code| PageResponse {
        source,
        pasid: Some(pasid(3)),
        group: GroupIndex::truncate(5),
        code,
        vendor: VendorData::NONE,
    };
    assert_eq!(*emulated.responses.lock(), [answer(ENDPOINT, ResponseCode::Success)]);
    assert_eq!(world.host.take_calls(), [HostCall::Respond(answer(OTHER, ResponseCode::Invalid))]);
    assert_eq!(*shadowed.responses.lock(), []);
}

//! Page requests that do not take the ordinary way.

use std::collections::BTreeMap;

use iommu_core::{PageRequest, PageRequestOutcome, Pasid, ResponseCode, SourceId, Translator};
use iommu_vtd::UnitCounts;
use iommu_vtd::testkit::Tables;

use crate::driver::{Driver, ENDPOINT, FSTS, Machine, Memory, PAGE_EVENT, PQA, PQH, PQT, PRS, TE, desc};
use crate::flows::page_request;

const VIRTUAL: u64 = 0x7f12_3456_7000;
const INVALID: PageRequestOutcome = PageRequestOutcome::Answered(ResponseCode::Invalid);
const SUCCESS: PageRequestOutcome = PageRequestOutcome::Answered(ResponseCode::Success);

/// A unit whose endpoint has PASID 1.
fn bound(machine: &Machine) -> (Driver<'_>, Tables<'_, Memory>) {
    let (driver, tables) = Driver::booted(machine);
    tables.context(ENDPOINT).pasid(1).first_stage(1);
    (driver, tables)
}

/// (name, change to a good request, outcome, reason code recorded)
#[test]
fn refused_requests() {
    type Row = (&'static str, fn(&mut PageRequest), PageRequestOutcome, u64);
    let rows: [Row; 7] = [
        ("unknown PASID", |r| r.pasid = Pasid::new(2), INVALID, 0x59),
        ("not the last", |r| (r.pasid, r.last) = (Pasid::new(2), false), PageRequestOutcome::Dropped, 0x59),
        ("unknown function", |r| r.source = SourceId(0x20), INVALID, 0x41),
        ("unknown half of a bus", |r| r.source = SourceId(0x99), INVALID, 0x39),
        ("PASID of requests without", |r| r.pasid = Pasid::new(0), INVALID, 0x48),
        ("PASID beyond the directory", |r| r.pasid = Pasid::new(0xf_ffff), INVALID, 0x46),
        (
            "stop marker",
            |r| (r.pasid, r.read, r.write) = (Pasid::new(2), false, false),
            PageRequestOutcome::Dropped,
            0x59,
        ),
    ];
    for (name, change, outcome, code) in rows {
        let machine = Machine::new();
        let (_driver, _tables) = bound(&machine);
        let mut request = page_request(VIRTUAL, 3);
        change(&mut request);
        assert_eq!(machine.unit.page_request(&request), outcome, "{name}");
        assert_eq!(machine.read64(0x228) >> 32 & 0xff, code, "{name}");
        assert_eq!((machine.read64(PQT), machine.read32(PRS)), (0, 0), "{name}");
    }
}

#[test]
fn nothing_is_queued_while_translation_is_off() {
    let machine = Machine::new();
    let (driver, _tables) = bound(&machine);
    driver.level(TE, false);
    assert_eq!(machine.unit.page_request(&page_request(VIRTUAL, 3)), PageRequestOutcome::Dropped);
    assert_eq!((machine.read64(PQT), machine.read32(FSTS)), (0, 0));
}

#[test]
fn a_queue_that_is_full_makes_devices_retry() {
    let machine = Machine::new();
    let (_driver, _tables) = bound(&machine);
    machine.write64(PQA, 0x2_0000);
    for group in 0..127 {
        assert_eq!(machine.unit.page_request(&page_request(VIRTUAL, group)), PageRequestOutcome::Queued);
    }
    assert_eq!(machine.interrupts(), [PAGE_EVENT], "the first entry's: it must not get lost");
    let not_last = PageRequest { last: false, ..page_request(VIRTUAL, 200) };
    assert_eq!(machine.unit.page_request(&not_last), PageRequestOutcome::Dropped);
    assert_eq!(machine.unit.page_request(&page_request(VIRTUAL, 200)), SUCCESS);
    let marker = PageRequest { read: false, write: false, ..page_request(VIRTUAL, 200) };
    assert_eq!(machine.unit.page_request(&marker), PageRequestOutcome::Dropped);
    assert_eq!(machine.read32(PRS), 3);
    // Linux: clear PPR, read all, clear PRO when the queue is empty.
    machine.write32(PRS, 1);
    machine.write64(PQH, machine.read64(PQT));
    assert_eq!(machine.unit.page_request(&page_request(VIRTUAL, 201)), SUCCESS, "not before PRO is clear");
    machine.write32(PRS, 2);
    assert_eq!(machine.unit.page_request(&page_request(VIRTUAL, 202)), PageRequestOutcome::Queued);
    assert_eq!((machine.read64(PQT), machine.interrupts()), (0, vec![PAGE_EVENT]));
}

#[test]
fn a_queue_outside_memory_is_refused() {
    let machine = Machine::new();
    let (_driver, _tables) = bound(&machine);
    machine.write64(PQA, 0xffff_ffff_f000);
    assert_eq!(machine.unit.page_request(&page_request(VIRTUAL, 3)), INVALID);
    assert_eq!((machine.read64(PQT), machine.read32(PRS)), (0, 0));
}

/// What a test of two units compares: seen, unseen, groups, answers, and descriptors by kind.
#[test]
fn what_was_done_is_counted() {
    let machine = Machine::new();
    let (driver, _tables) = bound(&machine);
    let before = machine.unit.counts();
    let of = |change: fn(&mut PageRequest)| {
        let mut request = page_request(VIRTUAL, 3);
        change(&mut request);
        machine.unit.page_request(&request);
    };
    of(|_| ());
    of(|r| r.last = false);
    of(|r| (r.read, r.write) = (false, false));
    of(|r| r.pasid = Pasid::new(2));
    driver.submit(&[
        desc::pasid_cache(1, 1),
        desc::pasid_iotlb_all(1, 1),
        desc::pasid_iotlb_page(1, 1, VIRTUAL),
        desc::device_tlb_all(1),
        desc::device_tlb_all(1),
        desc::response(1, 3, 0),
    ]);
    let after = machine.unit.counts();
    let expected = UnitCounts {
        page_requests: 3,
        page_request_groups: 1,
        page_requests_unseen: 1,
        page_group_responses: 1,
        faults: 1,
        fault_reasons: BTreeMap::from([(0x59, 1)]),
        pasid_cache: before.pasid_cache + 1,
        iotlb: before.iotlb + 2,
        iotlb_ranges: 1,
        device_tlb: 2,
        waits: before.waits + 1,
        ..before
    };
    assert_eq!(after, expected);
}

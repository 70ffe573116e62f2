//! Missing pages: who asks, what the answers do, who goes on meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iommu_core::{Endpoint, GroupIndex, PageRequestOutcome, PageResponse, Pasid, ResponseCode};
use vm_memory::{Bytes, GuestAddress};

use super::rig::{BLOCK, Notes, PASID, RECORDS, Rig, SOURCE, control_page, copy, response};
use crate::svm::spec::{Descriptor, Record};

const SOURCE_PAGE: u64 = 0x10_0000;
const TARGET: u64 = 0x20_0000;

fn fault(record: &Record) -> (u8, u8, u64) {
    (record.status, record.fault_info, record.fault_address.get())
}

/// Page requests map the page and are answered at once, from inside the call.
fn serve(rig: &Rig) {
    let function = Arc::downgrade(&rig.function);
    let next = AtomicU64::new(0x80_0000);
    rig.iommu.on_page_request(move |iommu, request| {
        let gpa = next.fetch_add(0x1000, Ordering::Relaxed);
        iommu.map(iommu_core::testkit::Page {
            pasid: request.pasid,
            iova: request.address.0,
            gpa,
            write: true,
        });
        if let Some(function) = function.upgrade() {
            function.page_group_response(&response(request.group, ResponseCode::Success));
        }
        PageRequestOutcome::Queued
    });
}

#[test]
fn an_answer_that_overtakes_the_call_is_found() {
    let rig = Rig::new();
    serve(&rig);
    let record = rig.run(copy(SOURCE_PAGE + 5, TARGET, 0x3000));
    assert_eq!((record.status, record.completed.get(), record.page_requests.get()), (1, 0x3000, 7));
    let asked: Vec<_> =
        rig.iommu.page_requests.lock().iter().map(|r| (r.address.0, r.read, r.write)).collect();
    for page in 0..4 {
        assert!(asked.contains(&(SOURCE_PAGE + page * 0x1000, true, false)), "{asked:x?}");
    }
    for page in 0..3 {
        assert!(asked.contains(&(TARGET + page * 0x1000, false, true)), "{asked:x?}");
    }
    let request = rig.iommu.page_requests.lock()[0];
    assert_eq!((request.source, request.pasid), (SOURCE, Some(PASID)));
    assert!(request.last && !request.execute && !request.privileged);
    rig.until_idle(0);
    assert_eq!([0x50, 0x58, 0x60, 0x68].map(|at| rig.read64(at)), [7, 7, 0, 0]);
    assert_eq!(rig.read64(control_page(0) + 0x50), 7);
}

#[test]
fn a_waiting_descriptor_goes_on_where_it_stopped() {
    let rig = Rig::new();
    rig.hold_page_requests();
    rig.map_range(SOURCE_PAGE, 2);
    let target = rig.map(TARGET, true);
    let source = rig.map(SOURCE_PAGE, true);
    rig.memory.write_slice(&[7; 4096], GuestAddress(source)).unwrap();
    let record = rig.start(0, copy(SOURCE_PAGE, TARGET, 0x2000));
    rig.until_page_requests(1);
    rig.until_waiting(0);
    // What was copied is not copied again.
    rig.memory.write_slice(&[9; 4096], GuestAddress(target)).unwrap();
    let second = rig.map(TARGET + 0x1000, true);
    rig.respond(ResponseCode::Success);
    let record = rig.wait(record);
    assert_eq!((record.status, record.completed.get(), record.page_requests.get()), (1, 0x2000, 1));
    assert_eq!(rig.memory.read_obj::<u8>(GuestAddress(target)).unwrap(), 9);
    assert_eq!(rig.memory.read_obj::<u8>(GuestAddress(second)).unwrap(), 0);
}

#[test]
fn fault_table() {
    let not_accessible = 0;
    let rows: [(&str, u8, Option<ResponseCode>, u8); 4] = [
        ("not asked", 0, None, not_accessible),
        ("invalid request", BLOCK, Some(ResponseCode::Invalid), not_accessible),
        ("response failure", BLOCK, Some(ResponseCode::Failure), 1),
        ("dropped by the IOMMU", BLOCK, None, 1),
    ];
    for (name, flags, code, reason) in rows {
        for at_once in [true, false] {
            let rig = Rig::new();
            rig.map(SOURCE_PAGE, true);
            rig.map(TARGET, true);
            let function = Arc::downgrade(&rig.function);
            rig.iommu.on_page_request(move |_, request| match code {
                None => PageRequestOutcome::Dropped,
                Some(code) if at_once => PageRequestOutcome::Answered(code),
                Some(code) => {
                    function.upgrade().unwrap().page_group_response(&response(request.group, code));
                    PageRequestOutcome::Queued
                }
            });
            let record = rig.run(Descriptor { flags, ..copy(SOURCE_PAGE, TARGET + 0x100, 0x1000) });
            let info = 1 | reason << 1;
            assert_eq!(fault(&record), (2, info, TARGET + 0x1000), "{name}, at once: {at_once}");
            assert_eq!(record.completed.get(), 0xf00, "{name}");
            assert_eq!(u8::from(record.page_requests.get() > 0), flags / BLOCK, "{name}");
            rig.until_idle(0);
            assert_eq!(rig.read64(control_page(0) + 0x48), 1, "{name}");
            rig.assert_alive(0);
        }
    }
}

#[test]
fn response_failure_stops_page_requests_until_they_are_enabled_anew() {
    let rig = Rig::new();
    rig.hold_page_requests();
    let first = rig.start(0, copy(SOURCE_PAGE, TARGET, 8));
    rig.until_page_requests(1);
    rig.respond(ResponseCode::Failure);
    assert_eq!(fault(&rig.wait(first)), (2, 1 << 1, SOURCE_PAGE));
    assert_eq!(rig.pri_status() & 1, 1, "RF");
    assert_eq!(fault(&rig.run(copy(SOURCE_PAGE, TARGET, 8))), (2, 1 << 1, SOURCE_PAGE));
    assert_eq!(rig.iommu.page_requests.lock().len(), 1, "none was made");
    rig.set_extended(0x13, 4, 0);
    rig.set_extended(0x13, 4, 2);
    assert_eq!(rig.pri_status() & 0x103, 0x100, "stopped, RF cleared");
    rig.set_extended(0x13, 4, 1);
    serve(&rig);
    assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 8)).status, 1);
}

#[test]
fn surplus_and_foreign_responses_are_ignored() {
    let rig = Rig::new();
    rig.respond_to(GroupIndex::truncate(3), ResponseCode::Failure);
    assert_eq!(rig.pri_status() & 3, 2, "UPRGI and no RF");
    rig.hold_page_requests();
    let record = rig.start(0, copy(SOURCE_PAGE, TARGET, 8));
    rig.until_page_requests(1);
    let group = rig.iommu.page_requests.lock()[0].group;
    let foreign = PageResponse { pasid: Some(Pasid::truncate(6)), ..response(group, ResponseCode::Failure) };
    rig.function.page_group_response(&foreign);
    rig.function.page_group_response(&PageResponse { pasid: None, ..foreign });
    rig.map_range(SOURCE_PAGE, 1);
    rig.map_range(TARGET, 1);
    rig.respond_to(group, ResponseCode::Success);
    rig.respond_to(group, ResponseCode::Failure);
    rig.respond_to(group, ResponseCode::Invalid);
    assert_eq!(rig.wait(record).status, 1);
    assert_eq!(rig.pri_status() & 1, 0);
    assert_eq!([0x58, 0x60, 0x68].map(|at| rig.read64(at)), [1, 0, 0]);
}

#[test]
fn a_second_answer_is_surplus_before_the_first_is_looked_at() {
    let rig = Rig::new();
    let function = Arc::downgrade(&rig.function);
    rig.iommu.on_page_request(move |_, request| {
        let function = function.upgrade().unwrap();
        function.page_group_response(&response(request.group, ResponseCode::Invalid));
        function.page_group_response(&response(request.group, ResponseCode::Failure));
        PageRequestOutcome::Queued
    });
    assert_eq!(fault(&rig.run(copy(SOURCE_PAGE, TARGET, 8))), (2, 0, SOURCE_PAGE));
    assert_eq!(rig.pri_status() & 3, 2);
}

#[test]
fn an_index_in_use_is_not_used_again() {
    let rig = Rig::new();
    let held: Notes<GroupIndex> = Notes::default();
    let noted = held.clone();
    let next = AtomicU64::new(0);
    rig.iommu.on_page_request(move |_, request| match next.fetch_add(1, Ordering::Relaxed) {
        0 => PageRequestOutcome::Queued,
        _ => {
            noted.lock().push(request.group);
            PageRequestOutcome::Answered(ResponseCode::Invalid)
        }
    });
    let record = rig.start(1, copy(SOURCE_PAGE, TARGET, 8));
    rig.until_page_requests(1);
    for _ in 0..600 {
        rig.run(copy(SOURCE_PAGE, TARGET, 8));
    }
    let waiting = rig.iommu.page_requests.lock()[0].group;
    let groups = held.lock();
    assert!(!groups.contains(&waiting), "while one waits under it");
    assert!(groups.windows(2).all(|pair| pair[0] != pair[1]), "a late surplus answer must not hit the next");
    rig.respond_to(waiting, ResponseCode::Invalid);
    assert_eq!(rig.wait(record).status, 2);
}

#[test]
fn overflow_is_retried_until_it_is_over() {
    let rig = Rig::new();
    rig.map_range(TARGET, 1);
    let times: Notes<std::time::Instant> = Notes::default();
    let noted = times.clone();
    rig.iommu.on_page_request(move |iommu, request| {
        let mut times = noted.lock();
        times.push(std::time::Instant::now());
        if times.len() == 5 {
            iommu.map(iommu_core::testkit::Page {
                pasid: request.pasid,
                iova: request.address.0,
                gpa: 0x90_0000,
                write: true,
            });
        }
        PageRequestOutcome::Answered(ResponseCode::Success)
    });
    let record = rig.run(copy(SOURCE_PAGE, TARGET, 8));
    assert_eq!((record.status, record.page_requests.get()), (1, 5));
    let times = times.lock();
    // A lower bound of what a pause is; the fourth is eight times the first.
    assert!(times[4] - times[3] >= std::time::Duration::from_micros(800), "it backs off");
    assert_eq!(rig.read64(0x58), 5);
}

#[test]
fn another_queue_goes_on_while_one_waits() {
    let rig = Rig::new();
    rig.hold_page_requests();
    rig.map_range(TARGET, 2);
    let blocked = rig.start(0, copy(SOURCE_PAGE, TARGET, 8));
    let behind = rig.start(0, Descriptor::default());
    rig.until_waiting(0);
    for _ in 0..20 {
        assert_eq!(rig.wait(rig.start(1, copy(TARGET, TARGET + 0x1000, 100))).status, 1);
    }
    assert_eq!(rig.read_record(blocked).status, 0);
    assert_eq!(rig.read_record(behind).status, 0, "in order");
    rig.map_range(SOURCE_PAGE, 1);
    rig.respond(ResponseCode::Success);
    assert_eq!(rig.wait(blocked).status, 1);
    assert_eq!(rig.wait(behind).status, 1);
}

#[test]
fn groups_are_unique_and_credits_are_kept() {
    let rig = Rig::cold(crate::svm::SvmConfig { queues: 4, ..Default::default() });
    rig.bring_up();
    rig.set_extended(0x13, 4, 0);
    let allocation = rig.extended(0x13).unwrap() + 12;
    crate::pci::PciFunction::config_write(&*rig.function, allocation, &3_u32.to_le_bytes());
    rig.set_extended(0x13, 4, 1);
    rig.hold_page_requests();
    let records: Vec<_> = (0..4).map(|queue| rig.start(queue, copy(SOURCE_PAGE, TARGET, 8))).collect();
    rig.until_page_requests(3);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let groups: Vec<_> = rig.iommu.page_requests.lock().iter().map(|request| request.group).collect();
    assert_eq!(groups.len(), 3, "the fourth waits for a credit");
    assert!(groups[0] != groups[1] && groups[1] != groups[2] && groups[0] != groups[2]);
    rig.respond_to(groups[1], ResponseCode::Invalid);
    rig.until_page_requests(4);
    let last = rig.iommu.page_requests.lock()[3].group;
    for group in [groups[0], groups[2], last] {
        rig.respond_to(group, ResponseCode::Invalid);
    }
    for record in records {
        assert_eq!(fault(&rig.wait(record)), (2, 0, SOURCE_PAGE));
    }
}

#[test]
fn without_credits_or_pri_page_requests_are_unavailable() {
    let rig = Rig::new();
    rig.set_extended(0x13, 4, 0);
    assert_eq!(fault(&rig.run(copy(SOURCE_PAGE, TARGET, 8))), (2, 1 << 1, SOURCE_PAGE));
    let allocation = rig.extended(0x13).unwrap() + 12;
    crate::pci::PciFunction::config_write(&*rig.function, allocation, &[0; 4]);
    rig.set_extended(0x13, 4, 1);
    assert_eq!(fault(&rig.run(copy(SOURCE_PAGE, TARGET, 8))), (2, 1 << 1, SOURCE_PAGE));
    let rig = Rig::cold(crate::svm::SvmConfig { pri: false, queues: 1, ..Default::default() });
    rig.bring_up();
    assert_eq!(fault(&rig.run(copy(SOURCE_PAGE, TARGET, 8))), (2, 1 << 1, SOURCE_PAGE));
    assert_eq!(rig.iommu.page_requests.lock().len(), 0);
}

#[test]
fn the_page_of_the_record_is_asked_for() {
    let rig = Rig::new();
    rig.iommu.unmap(Some(PASID), RECORDS);
    rig.hold_page_requests();
    let record = rig.start(0, Descriptor::default());
    rig.until_page_requests(1);
    assert!(rig.iommu.page_requests.lock()[0].write);
    // Done but for the record: its place is free, the queue is not yet at rest.
    assert_eq!(rig.free(0), 8);
    assert_eq!([0x4, 0x10].map(|at| rig.read32(control_page(0) + at) & 0xf), [7, 0]);
    rig.map_to(RECORDS, rig.records_at(RECORDS), true);
    rig.respond(ResponseCode::Success);
    let record = rig.wait(record);
    assert_eq!((record.status, record.page_requests.get()), (1, 1));

    rig.until_idle(0);
    rig.iommu.unmap(Some(PASID), RECORDS);
    rig.invalidate(RECORDS);
    rig.start(0, Descriptor::default());
    rig.until_page_requests(2);
    rig.respond(ResponseCode::Invalid);
    rig.until_idle(0);
    assert_eq!(rig.read64(0x88), 1, "lost");
    assert!(rig.read64(control_page(0) + 0x58) >= RECORDS);
}

#[test]
fn the_timeline_is_in_order() {
    let rig = Rig::new();
    assert_eq!((0xc8..0x100).step_by(8).map(|at| rig.read64(at)).collect::<Vec<_>>(), [0; 7]);
    serve(&rig);
    rig.map_range(TARGET, 1);
    rig.wait(rig.start(1, copy(SOURCE_PAGE + 9, TARGET, 8)));
    let [now, miss, sent, queued, response, retry] =
        [0xc0, 0xc8, 0xd0, 0xd8, 0xe0, 0xe8].map(|at| rig.read64(at));
    assert!(0 < miss && miss <= sent && sent <= queued && queued <= response && response <= retry);
    assert!(retry <= now.max(rig.read64(0xc0)));
    assert_eq!([rig.read64(0xf0), rig.read64(0xf8)], [SOURCE_PAGE, 1 << 32 | 1]);
    let counted = rig.function.counted();
    let shares = [counted.round_trip, counted.own_share, counted.guest_share];
    assert_eq!(shares.map(|share| share.count), [1; 3]);
    assert!(shares[1..].iter().all(|share| share.p99_ns <= shares[0].p99_ns), "{shares:?}");
}

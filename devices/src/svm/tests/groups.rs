//! Page requests of several pages, and pages asked for ahead of need.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iommu_core::testkit::Page;
use iommu_core::{Endpoint, GroupIndex, PageRequest, PageRequestOutcome, ResponseCode};

use super::rig::{BLOCK, PASID, Rig, copy, response, until};
use crate::pci::PciFunction;
use crate::svm::spec::{Descriptor, Record};

const SOURCE_PAGE: u64 = 0x10_0000;
const TARGET: u64 = 0x20_0000;

fn ahead(pages: u8, descriptor: Descriptor) -> Descriptor {
    Descriptor { ahead: pages, ..descriptor }
}

fn fill(pages: u64) -> Descriptor {
    Descriptor { opcode: 2, ..copy(0, TARGET, pages * 0x1000) }
}

fn prefetch(flags: u8, address: u64, length: u64) -> Descriptor {
    Descriptor { opcode: 8, flags, ..copy(address, 0, length) }
}

/// Page requests so far, by group: page numbers above `base`, checking what every group has to look like.
fn groups(rig: &Rig, base: u64) -> Vec<Vec<u64>> {
    let requests = rig.iommu.page_requests.lock();
    let groups: Vec<&[PageRequest]> = requests.split_inclusive(|request| request.last).collect();
    let check = |group: &[PageRequest]| {
        assert!(group.iter().all(|request| request.group == group[0].group && request.pasid == Some(PASID)));
        let page = |request: &PageRequest| request.address.0.wrapping_sub(base) / 0x1000;
        group.iter().map(page).collect()
    };
    groups.into_iter().map(check).collect()
}

/// Maps what is asked for, unless `refuse` says so of one of the group, and answers each group once.
fn serve(rig: &Rig, refuse: impl Fn(u64) -> bool + Send + Sync + 'static) {
    let function = Arc::downgrade(&rig.function);
    let (next, refused) = (AtomicU64::new(0x80_0000), AtomicU64::new(0));
    rig.iommu.on_page_request(move |iommu, request| {
        let iova = request.address.0;
        if refuse(iova) {
            refused.store(1, Ordering::Relaxed);
        } else if refused.load(Ordering::Relaxed) == 0 {
            let gpa = next.fetch_add(0x1000, Ordering::Relaxed);
            iommu.map(Page { pasid: request.pasid, iova, gpa, write: true });
        }
        if request.last
            && let Some(function) = function.upgrade()
        {
            let bad = refused.swap(0, Ordering::Relaxed) != 0;
            let code = if bad { ResponseCode::Invalid } else { ResponseCode::Success };
            function.page_group_response(&response(request.group, code));
        }
        PageRequestOutcome::Queued
    });
}

fn summary(record: &Record) -> (u8, u64, u16) {
    (record.status, record.completed.get(), record.page_requests.get())
}

#[test]
fn group_table() {
    type Row<'a> = (&'a str, u8, u64, &'a [u64], &'a [&'a [u64]]);
    let rows: [Row<'_>; 8] = [
        ("one by one", 0, 3, &[], &[&[0], &[1], &[2]]),
        ("two", 1, 4, &[], &[&[0, 1], &[2, 3]]),
        ("no further than needed", 9, 3, &[], &[&[0, 1, 2]]),
        ("what is there is left out", 3, 5, &[1, 2], &[&[0, 3], &[4]]),
        ("the first is there", 3, 3, &[0], &[&[1, 2]]),
        ("only one is missing", 15, 3, &[0, 2], &[&[1]]),
        ("the most", 15, 17, &[], &[&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], &[16]]),
        (
            "more than the most",
            255,
            17,
            &[],
            &[&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], &[16]],
        ),
    ];
    for (name, pages, length, present, expected) in rows {
        let rig = Rig::new();
        serve(&rig, |_| false);
        for page in present {
            rig.map(TARGET + page * 0x1000, true);
        }
        let record = rig.run(ahead(pages, fill(length)));
        let asked = length - present.len() as u64;
        assert_eq!(summary(&record), (1, length * 0x1000, u16::try_from(asked).unwrap()), "{name}");
        assert_eq!(groups(&rig, TARGET), expected, "{name}");
        assert!(rig.iommu.page_requests.lock().iter().all(|request| request.write && !request.read));
        rig.until_idle(0);
        let counted = [0x50, 0x58, 0x90].map(|at| rig.read64(at));
        let answers = expected.len() as u64;
        assert_eq!(counted, [asked, answers, answers], "{name}");
        assert_eq!([rig.read64(0x100), rig.read64(0x118)], [answers; 2], "{name}: durations");
        assert!(rig.read64(0x108) <= rig.read64(0x110), "{name}");
        assert_eq!(rig.iommu.faults.lock().len(), 0, "{name}");
    }
}

#[test]
fn both_sides_of_a_copy_ask_for_their_own() {
    let rig = Rig::new();
    serve(&rig, |_| false);
    let record = rig.run(ahead(3, copy(SOURCE_PAGE + 0x800, TARGET, 0x2000)));
    assert_eq!(summary(&record), (1, 0x2000, 5));
    assert_eq!(groups(&rig, SOURCE_PAGE), [vec![0, 1, 2], vec![0x100, 0x101]]);
    let kinds: Vec<_> = rig.iommu.page_requests.lock().iter().map(|r| (r.read, r.write)).collect();
    assert_eq!(kinds, [(true, false), (true, false), (true, false), (false, true), (false, true)]);
}

#[test]
fn a_page_ahead_that_is_refused_harms_nothing_before_its_turn() {
    let rig = Rig::new();
    serve(&rig, |iova| iova == TARGET + 0x2000);
    let record = rig.run(ahead(3, fill(4)));
    assert_eq!((record.status, record.completed.get()), (2, 0x2000));
    assert_eq!((record.fault_info, record.fault_address.get()), (1, TARGET + 0x2000));
    // Each refusal of a group is followed by the one page alone.
    assert_eq!(groups(&rig, TARGET), [vec![0, 1, 2, 3], vec![2, 3], vec![2]]);
}

#[test]
fn a_refused_group_whose_first_page_came_goes_on() {
    // The list maps what precedes the refused page; here the first page is not among it.
    let rig = Rig::new();
    serve(&rig, |iova| iova == TARGET);
    let record = rig.run(ahead(3, fill(4)));
    assert_eq!((record.status, record.completed.get(), record.fault_address.get()), (2, 0, TARGET));
    assert_eq!(groups(&rig, TARGET), [vec![0, 1, 2, 3], vec![0]]);
}

#[test]
fn surplus_answers_of_a_group_hit_nothing() {
    // Without a listener, an IOMMU driver may answer every request of a group.
    let rig = Rig::new();
    let function = Arc::downgrade(&rig.function);
    rig.iommu.on_page_request(move |_, request| {
        if let Some(function) = function.upgrade() {
            function.page_group_response(&response(request.group, ResponseCode::Invalid));
        }
        PageRequestOutcome::Queued
    });
    let record = rig.run(ahead(3, fill(4)));
    assert_eq!((record.status, record.fault_address.get()), (2, TARGET));
    assert_eq!(rig.pri_status() & 3, 2, "at most UPRGI");
    rig.until_idle(0);
    assert_eq!(rig.read64(0x60), 2, "one answer for the group, one for the page alone");
    rig.assert_alive(0);
}

/// Leaves so many credits.
fn allocate(rig: &Rig, credits: u32) {
    rig.set_extended(0x13, 4, 0);
    rig.function.config_write(rig.extended(0x13).unwrap() + 12, &credits.to_le_bytes());
    rig.set_extended(0x13, 4, 1);
}

#[test]
fn credits_are_counted_in_pages() {
    let rig = Rig::new();
    allocate(&rig, 5);
    rig.hold_page_requests();
    let first = rig.start(0, ahead(3, fill(8)));
    rig.until_page_requests(4);
    let second = rig.start(1, ahead(3, fill(8)));
    rig.until_page_requests(5);
    rig.until_waiting(1);
    assert_eq!(groups(&rig, TARGET), [vec![0, 1, 2, 3], vec![0]], "one credit is left, and used");
    let requests = rig.iommu.page_requests.lock().clone();
    // All four come back at once.
    rig.respond_to(requests[0].group, ResponseCode::Invalid);
    rig.until_page_requests(6);
    let alone = rig.iommu.page_requests.lock()[5].group;
    rig.respond_to(alone, ResponseCode::Invalid);
    assert_eq!(rig.wait(first).status, 2);
    rig.respond_to(requests[4].group, ResponseCode::Invalid);
    assert_eq!(rig.wait(second).status, 2);
}

#[test]
fn stop_and_reset_see_groups_as_one() {
    for reset in [false, true] {
        let rig = Rig::new();
        rig.hold_page_requests();
        let waiting = rig.start(0, ahead(3, fill(4)));
        rig.until_page_requests(4);
        rig.set_extended(0x13, 4, if reset { 2 } else { 0 });
        let record = rig.wait(waiting);
        assert_eq!((record.status, record.fault_info), (2, 1 | 1 << 1));
        assert_eq!(rig.pri_status() & 0x100 != 0, reset, "stopped only if nothing is outstanding");
        rig.respond(ResponseCode::Success);
        assert_eq!(rig.pri_status() & 0x102, if reset { 0x102 } else { 0x100 });
        rig.set_extended(0x13, 4, 1);
        serve(&rig, |_| false);
        assert_eq!(rig.run(ahead(3, fill(4))).status, 1);
    }
}

#[test]
fn overflow_of_a_group_is_retried() {
    let rig = Rig::new();
    rig.iommu.on_page_request(|iommu, request| {
        let count = iommu.page_requests.lock().len();
        if count > 8 {
            let gpa = 0x80_0000 + request.address.0 % 0x1_0000;
            iommu.map(Page { pasid: request.pasid, iova: request.address.0, gpa, write: true });
        }
        // The IOMMU answers only the last of a group.
        if request.last {
            PageRequestOutcome::Answered(ResponseCode::Success)
        } else {
            PageRequestOutcome::Dropped
        }
    });
    assert_eq!(summary(&rig.run(ahead(3, fill(4)))), (1, 0x4000, 12));
    rig.until_idle(0);
    assert_eq!(
        [rig.read64(0x58), rig.read64(0x90), rig.read64(0x100)],
        [3, 3, 0],
        "no round trip among them"
    );
}

#[test]
fn prefetch_table() {
    let write = |descriptor: Descriptor| Descriptor { operand: 1.into(), ..descriptor };
    let length = 0x4000;
    type Row<'a> = (&'a str, Descriptor, (u8, u64, u64), &'a [&'a [u64]]);
    let rows: [Row<'_>; 6] = [
        ("nothing", prefetch(BLOCK, TARGET, 0), (1, 0, 0), &[]),
        ("one by one", prefetch(BLOCK, TARGET + 5, length), (1, length, 0), &[&[0], &[2], &[3], &[4]]),
        ("in a group", ahead(15, prefetch(BLOCK, TARGET, length)), (1, length, 0), &[&[0, 2, 3]]),
        ("part of a page", write(prefetch(BLOCK, TARGET + 0xfff, 1)), (1, 1, 0), &[&[0]]),
        (
            "one cannot be had",
            ahead(1, prefetch(BLOCK, TARGET, 0xa000)),
            (1, 0xa000, 2),
            &[&[0, 2], &[3, 4], &[5, 6], &[7, 8], &[9]],
        ),
        ("not waiting", ahead(15, prefetch(0, TARGET, length)), (1, length, 3), &[&[0, 2, 3]]),
    ];
    for (name, descriptor, expected, asked) in rows {
        let rig = Rig::new();
        // Page 8 is refused, and the group's answer says so before page 8 is looked at.
        serve(&rig, |iova| iova == TARGET + 0x7000);
        rig.map(TARGET + 0x1000, true);
        let record = rig.run(descriptor);
        assert_eq!((record.status, record.completed.get(), record.result.get()), expected, "{name}");
        assert_eq!(groups(&rig, TARGET), asked, "{name}");
        let pages: usize = asked.iter().map(|group| group.len()).sum();
        assert_eq!(usize::from(record.page_requests.get()), pages, "{name}");
        let writes = descriptor.operand.get() == 1;
        assert!(
            rig.iommu.page_requests.lock().iter().all(|r| r.write == writes && r.read != writes),
            "{name}"
        );
        until("answers", || rig.read64(0x90) == rig.read64(0x58) + rig.read64(0x60));
        rig.assert_alive(0);
    }
}

#[test]
fn a_prefetch_without_block_never_waits() {
    let rig = Rig::new();
    allocate(&rig, 6);
    rig.hold_page_requests();
    let record = rig.run(ahead(3, prefetch(0, TARGET, 0x20_0000)));
    assert_eq!((record.status, record.completed.get(), record.result.get()), (1, 0x20_0000, 512));
    assert_eq!(record.page_requests.get(), 6, "as many as there are credits");
    assert_eq!(groups(&rig, TARGET), [vec![0, 1, 2, 3], vec![4, 5]]);
    rig.until_idle(0);
    // The answers come to nobody and are expected all the same.
    let sent: Vec<GroupIndex> =
        rig.iommu.page_requests.lock().iter().filter(|r| r.last).map(|r| r.group).collect();
    sent.into_iter().for_each(|group| rig.respond_to(group, ResponseCode::Success));
    assert_eq!(rig.pri_status() & 3, 0);
    allocate(&rig, 0);
    assert_eq!(rig.run(prefetch(0, TARGET, 0x1000)).status, 1);
}

#[test]
fn a_prefetch_faults_only_where_nobody_can_be_asked() {
    let rig = Rig::new();
    rig.set_extended(0x13, 4, 0);
    let record = rig.run(prefetch(BLOCK, TARGET, 8));
    assert_eq!((record.status, record.fault_info, record.fault_address.get()), (2, 1 << 1, TARGET));
    rig.set_extended(0xf, 6, 0);
    let record = rig.run(prefetch(BLOCK, TARGET, 8));
    assert_eq!((record.status, record.fault_info), (2, 2 << 1), "an untranslated request was refused");
    rig.map(TARGET, true);
    assert_eq!(rig.run(prefetch(BLOCK, TARGET, 8)).status, 1);
    rig.set_extended(0xf, 6, 0x8000);
    rig.set_extended(0x13, 4, 1);
    rig.hold_page_requests();
    let waiting = rig.start(0, prefetch(BLOCK, SOURCE_PAGE, 8));
    rig.until_page_requests(1);
    rig.write32(super::rig::control_page(0), 0);
    assert_eq!(rig.wait(waiting).status, 4);
}

#[test]
fn a_prefetch_of_all_it_may_ends() {
    let rig = Rig::new();
    rig.set_extended(0x13, 4, 0);
    let top = u64::MAX - 0x3f_ffff;
    let record = rig.run(prefetch(0, top, 0x40_0000));
    assert_eq!((record.status, record.completed.get(), record.result.get()), (1, 0x40_0000, 1024));
    let record = rig.start(0, prefetch(0, 0, 1 << 30));
    rig.write32(super::rig::control_page(0), 0);
    assert!([1, 4].contains(&rig.wait(record).status));
}

#[test]
fn hits_are_counted_page_by_page() {
    let rig = Rig::new();
    rig.map_range(TARGET, 4);
    rig.run(fill(4));
    let before = [rig.read64(0x98), rig.read64(0x48)];
    rig.run(fill(4));
    let after = [rig.read64(0x98), rig.read64(0x48)];
    assert_eq!(after[1], before[1]);
    // Four pages and the record, which is looked up once for all of its stores.
    assert_eq!(after[0] - before[0], 5);
    rig.function.reset();
    assert_eq!(rig.read64(0x98), 0);
}

//! Windows to shared queues.

use iommu_core::Pasid;
use iommu_core::testkit::Page;
use vm_memory::{Bytes, GuestAddress};

use super::rig::{FENCE, PASID, RECORDS, Rig, control_page, copy, portal_page, until, window_page};
use crate::pci::PciFunction;
use crate::svm::spec::{Descriptor, global, portal};

const OTHER: Pasid = Pasid::truncate(6);
const ACCEPTED: u32 = 1;
const FULL: u32 = 2;
const DISABLED: u32 = 3;
const SOURCE_PAGE: u64 = 0x10_0000;
const TARGET: u64 = 0x20_0000;

/// Queue 0 is shared by window 0 of [`PASID`] and window 1 of [`OTHER`], whose spaces have records in common.
fn shared() -> Rig {
    let rig = Rig::new();
    rig.iommu.map(Page { pasid: Some(OTHER), iova: RECORDS, gpa: rig.records_at(RECORDS), write: true });
    rig.share(0);
    rig.open_window(0, 0, PASID);
    rig.open_window(1, 0, OTHER);
    rig
}

fn window_control(window: u64) -> u64 {
    global::WINDOWS + window * global::WINDOW_BYTES
}

#[test]
fn each_window_reaches_its_own_space() {
    let rig = shared();
    let mut targets = Vec::new();
    for (pasid, byte) in [(PASID, 0xa_u8), (OTHER, 0xb)] {
        let (source, target) = (rig.page(), rig.page());
        rig.memory.write_obj(byte, GuestAddress(source)).unwrap();
        rig.iommu.map(Page { pasid: Some(pasid), iova: SOURCE_PAGE, gpa: source, write: false });
        rig.iommu.map(Page { pasid: Some(pasid), iova: TARGET, gpa: target, write: true });
        targets.push((target, byte));
    }
    let jobs = [0, 1, 0, 1].map(|window| rig.start_through(window, copy(SOURCE_PAGE, TARGET, 1)));
    for (record, outcome) in jobs {
        assert_eq!((outcome, rig.wait(record).status), (ACCEPTED, 1));
    }
    for (target, byte) in targets {
        assert_eq!(rig.memory.read_obj::<u8>(GuestAddress(target)).unwrap(), byte);
    }
}

#[test]
fn who_takes_what_table() {
    let rig = shared();
    let outcome = |page: u64| {
        rig.function.bar_write(0, page + 0x3f, &[0]);
        rig.read32(page + portal::OUTCOME) & 0xff
    };
    let free = |page: u64| rig.read32(page + portal::FREE);
    assert_eq!(
        (outcome(portal_page(0)), free(portal_page(0))),
        (DISABLED, 0),
        "the portal of a shared queue"
    );
    assert_eq!((free(portal_page(1)), outcome(portal_page(1))), (8, ACCEPTED), "the portal of another");
    assert_eq!((outcome(window_page(2)), free(window_page(2))), (DISABLED, 0), "a window not enabled");
    rig.open_window(3, 1, PASID);
    assert_eq!((outcome(window_page(3)), free(window_page(3))), (DISABLED, 0), "of a queue not shared");
    rig.open_window(3, 9, PASID);
    assert_eq!((outcome(window_page(3)), free(window_page(3))), (DISABLED, 0), "of no queue");
    rig.until_idle(0);
    assert_eq!((free(window_page(1)), outcome(window_page(0))), (8, ACCEPTED));
    rig.write32(window_control(0), 0);
    assert_eq!((outcome(window_page(0)), free(window_page(0))), (DISABLED, 0), "disabled");
    assert_eq!(outcome(window_page(1)), ACCEPTED, "the other one still works");
    rig.write32(control_page(0), 0);
    assert_eq!(outcome(window_page(1)), DISABLED, "its queue is disabled");
    assert_eq!(rig.read32(window_page(1) + portal::OUTCOME) >> 8, 2, "submissions are numbered");
    assert_eq!(rig.read32(window_page(1) + portal::DROPPED), 1);
}

#[test]
fn a_full_queue_says_so_to_each_submitter() {
    let rig = shared();
    rig.hold_page_requests();
    let (first, _) = rig.start_through(0, copy(SOURCE_PAGE, TARGET, 8));
    rig.until_page_requests(1);
    let outcomes: Vec<_> = (0..9).map(|_| rig.start_through(1, Descriptor::default()).1).collect();
    assert_eq!(outcomes, [ACCEPTED, ACCEPTED, ACCEPTED, ACCEPTED, ACCEPTED, ACCEPTED, ACCEPTED, FULL, FULL]);
    assert_eq!([0, 1].map(|window| rig.read32(window_page(window) + portal::DROPPED)), [0, 2]);
    assert_eq!(rig.read64(0x80), 2);
    rig.respond(iommu_core::ResponseCode::Invalid);
    assert_eq!(rig.wait(first).status, 2);
    rig.until_idle(0);
    assert_eq!(rig.start_through(1, Descriptor::default()).1, ACCEPTED);
}

#[test]
fn bindings_change_only_while_disabled() {
    let rig = shared();
    let at = window_control(0);
    rig.write32(at + 4, 9);
    rig.write32(at, 1 | 5 << 8);
    assert_eq!([rig.read32(at), rig.read32(at + 4)], [1, 1 << 31 | PASID.get()]);
    rig.write32(at, 5 << 8);
    rig.write32(at + 4, u32::MAX);
    assert_eq!([rig.read32(at), rig.read32(at + 4)], [5 << 8, 0x800f_ffff]);
    assert_eq!([rig.read32(at + 8), rig.read32(at + 12)], [0; 2]);
    assert_eq!([rig.read32(control_page(0)), rig.read32(control_page(0) + 4) & 9], [3, 9]);
    rig.write32(control_page(0), 1);
    assert_eq!(rig.read32(control_page(0)), 3, "the kind of an enabled queue stays");
    rig.write32(0xc, 1);
    assert_eq!([rig.read32(window_control(1)), rig.read32(control_page(0))], [0, 0], "CTRL.RESET");
    assert_eq!(rig.read32(window_control(1) + 4), 1 << 31 | OTHER.get(), "keeps the PASID");
    rig.function.reset();
    assert_eq!(rig.read32(window_control(1) + 4), 0);
    assert_eq!(rig.read32(window_page(1) + portal::OUTCOME), 0);
}

#[test]
fn failures_are_those_of_the_window_and_of_its_binding() {
    let rig = shared();
    let fenced = Descriptor { flags: FENCE, ..Descriptor::default() };
    let status = |window, descriptor| rig.wait(rig.start_through(window, descriptor).0).status;
    assert_eq!(status(0, Descriptor { opcode: 99, ..Descriptor::default() }), 3);
    assert_eq!([status(0, fenced), status(1, fenced)], [6, 1]);
    rig.open_window(0, 0, PASID);
    assert_eq!(status(0, fenced), 1);
}

#[test]
fn what_came_through_a_window_goes_on_after_it_is_disabled() {
    let rig = shared();
    rig.hold_page_requests();
    rig.map_range(TARGET, 1);
    let (record, _) = rig.start_through(0, copy(SOURCE_PAGE, TARGET, 8));
    rig.until_page_requests(1);
    rig.write32(window_control(0), 0);
    rig.write32(window_control(0) + 4, 9);
    assert_eq!(rig.iommu.page_requests.lock()[0].pasid, Some(PASID));
    rig.map_range(SOURCE_PAGE, 1);
    rig.respond(iommu_core::ResponseCode::Success);
    assert_eq!(rig.wait(record).status, 1);
    until("at rest", || rig.read32(control_page(0) + 4) & 2 == 0);
}

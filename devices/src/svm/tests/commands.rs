//! Drain and abort by command.

use iommu_core::testkit::Page;
use iommu_core::{Pasid, ResponseCode};

use super::rig::{PASID, RECORDS, Rig, control_page, copy, until};
use crate::pci::PciFunction;
use crate::svm::spec::{Descriptor, global};

const DRAIN: u32 = 1;
const ABORT: u32 = 2;
const BY_PASID: u32 = 1 << 4;
const INTERRUPT: u32 = 1 << 5;
const ACTIVE: u32 = 1;
const DONE: u32 = 2;
const REFUSED: u32 = 3;
const SOURCE_PAGE: u64 = 0x10_0000;
const TARGET: u64 = 0x20_0000;

fn waits() -> Descriptor {
    copy(SOURCE_PAGE, TARGET, 8)
}

fn command(rig: &Rig, operation: u32, operand: u32) {
    rig.write32(global::COMMAND, operation | operand << 8);
}

fn done(rig: &Rig) {
    until("command is done", || rig.command_state() == DONE);
}

fn interrupts(rig: &Rig) -> Vec<u32> {
    rig.msi.sent.lock().iter().map(|(_, msi)| msi.data).collect()
}

#[test]
fn at_rest_commands_are_done_at_once_or_refused() {
    let rows = [
        ("drain a queue", DRAIN, 1, DONE),
        ("abort a queue", ABORT, 0, DONE),
        ("drain a pasid", DRAIN | BY_PASID, 0xf_ffff, DONE),
        ("abort a pasid", ABORT | BY_PASID, PASID.get(), DONE),
        ("no such queue", DRAIN, 2, REFUSED),
        ("no such queue at all", ABORT, 0xf_ffff, REFUSED),
        ("no operation", 0, 0, REFUSED),
        ("another operation", 3, 0, REFUSED),
    ];
    let rig = Rig::new();
    assert_eq!(rig.read64(global::COMMAND), 0);
    for (name, operation, operand, state) in rows {
        rig.msi.sent.lock().clear();
        command(&rig, operation | INTERRUPT, operand);
        assert_eq!(rig.command_state(), state, "{name}");
        assert_eq!(interrupts(&rig), [0], "{name}");
        command(&rig, operation, operand);
        assert_eq!(interrupts(&rig), [0], "{name}: only if asked for");
    }
    assert_eq!(rig.read32(global::COMMAND), 3);
    rig.assert_alive(0);
}

#[test]
fn a_drain_waits_for_what_was_there_and_for_nothing_else() {
    for by_pasid in [false, true] {
        let rig = Rig::new();
        rig.hold_page_requests();
        rig.map_range(TARGET, 1);
        let first = rig.start(0, waits());
        let behind = rig.start(0, Descriptor::default());
        rig.until_page_requests(1);
        let (operation, operand) = if by_pasid { (DRAIN | BY_PASID, PASID.get()) } else { (DRAIN, 0) };
        command(&rig, operation | INTERRUPT, operand);
        assert_eq!(rig.command_state(), ACTIVE);
        // Another is ignored, and told so.
        command(&rig, ABORT, 0);
        assert_eq!(rig.read32(global::COMMAND_STATUS), ACTIVE | 1 << 4);
        assert_eq!(rig.wait(rig.start(1, Descriptor::default())).status, 1, "others go on");
        rig.map_range(SOURCE_PAGE + 0x1000, 1);
        let later = rig.start(0, copy(SOURCE_PAGE + 0x1000, NOWHERE, 8));
        assert_eq!(rig.read_record(first).status, 0, "not aborted");
        assert!(interrupts(&rig).is_empty());
        rig.map_range(SOURCE_PAGE, 1);
        rig.respond(ResponseCode::Success);
        done(&rig);
        assert_eq!([first, behind].map(|record| rig.read_record(record).status), [1, 1]);
        rig.until_page_requests(2);
        assert_eq!(rig.read_record(later).status, 0, "what came later is not waited for");
        until("interrupt", || interrupts(&rig) == [0]);
        rig.respond(ResponseCode::Invalid);
        assert_eq!(rig.wait(later).status, 2);
    }
}

const NOWHERE: u64 = 0x90_0000;

#[test]
fn an_abort_of_a_queue_leaves_it_enabled() {
    let rig = Rig::new();
    rig.hold_page_requests();
    rig.map_range(TARGET, 1);
    let other = rig.start(1, waits());
    rig.until_page_requests(1);
    let records = [rig.start(0, waits()), rig.start(0, Descriptor::default())];
    rig.until_page_requests(2);
    command(&rig, ABORT, 0);
    done(&rig);
    assert_eq!(records.map(|record| rig.read_record(record).status), [4, 4]);
    assert_eq!(rig.read32(control_page(0)), 1);
    rig.assert_alive(0);
    assert_eq!(rig.read_record(other).status, 0, "another queue waits as before");
}

#[test]
fn an_abort_of_a_pasid_spares_the_others_of_a_shared_queue() {
    let other = Pasid::truncate(6);
    let rig = Rig::new();
    rig.hold_page_requests();
    rig.iommu.map(Page { pasid: Some(other), iova: RECORDS, gpa: rig.records_at(RECORDS), write: true });
    rig.share(0);
    rig.open_window(0, 0, PASID);
    rig.open_window(1, 0, other);
    // Of the first PASID: at work in the shared queue, queued in it, and in a queue of its own.
    let (running, _) = rig.start_through(0, waits());
    rig.until_page_requests(1);
    let (spared, _) = rig.start_through(1, Descriptor::default());
    let (queued, _) = rig.start_through(0, Descriptor::default());
    let own = rig.start(1, waits());
    rig.until_page_requests(2);
    command(&rig, ABORT | BY_PASID, PASID.get());
    done(&rig);
    assert_eq!([running, queued, own].map(|record| rig.read_record(record).status), [4; 3]);
    assert_eq!(rig.wait(spared).status, 1);
    let (after, _) = rig.start_through(0, Descriptor::default());
    assert_eq!(rig.wait(after).status, 1, "what comes later is not aborted");
}

#[test]
fn a_function_reset_ends_a_command() {
    let rig = Rig::new();
    rig.hold_page_requests();
    rig.start(0, waits());
    rig.until_page_requests(1);
    command(&rig, DRAIN, 0);
    assert_eq!(rig.command_state(), ACTIVE);
    rig.function.reset();
    assert_eq!(rig.read64(global::COMMAND), 0);
    rig.bring_up();
    command(&rig, DRAIN, 0);
    done(&rig);
}

#[test]
fn disabling_a_queue_lets_a_drain_of_it_end() {
    let rig = Rig::new();
    rig.hold_page_requests();
    let record = rig.start(0, waits());
    rig.until_page_requests(1);
    command(&rig, DRAIN, 0);
    rig.write32(0xc, 1);
    done(&rig);
    assert_eq!(rig.read_record(record).status, 4);
}

#[test]
fn a_command_that_is_done_has_seen_the_records() {
    let rig = Rig::new();
    rig.map_range(TARGET, 2);
    for _ in 0..300 {
        let records: Vec<_> = (0..8).map(|_| rig.start(0, copy(TARGET, TARGET + 0x1000, 100))).collect();
        command(&rig, DRAIN | BY_PASID, PASID.get());
        while rig.command_state() != DONE {
            std::hint::spin_loop();
        }
        assert!(records.iter().all(|&record| rig.read_record(record).status == 1));
    }
}

//! Disable, reset and switches while work is under way (section 8).

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use iommu_core::ResponseCode;
use vm_memory::{Bytes, GuestAddress};

use super::rig::{Rig, control_page, copy, portal_page, until};
use crate::pci::PciFunction;
use crate::svm::spec::Descriptor;

const SOURCE_PAGE: u64 = 0x10_0000;
const TARGET: u64 = 0x20_0000;

/// Queue 0 waits for the source page with a NO-OP behind it.
fn blocked() -> (Rig, u64, u64) {
    let rig = Rig::new();
    rig.hold_page_requests();
    rig.map_range(TARGET, 1);
    let waiting = rig.start(0, copy(SOURCE_PAGE, TARGET, 8));
    let behind = rig.start(0, Descriptor::default());
    rig.until_page_requests(1);
    (rig, waiting, behind)
}

fn flr(rig: &Rig) {
    let mut at = [0];
    rig.function.config_read(0x34, &mut at);
    while rig.config_read16(u16::from(at[0])).to_le_bytes()[0] != 0x10 {
        at[0] = rig.config_read16(u16::from(at[0])).to_le_bytes()[1];
    }
    rig.config16(u16::from(at[0]) + 8, 0x8000);
}

#[test]
fn disable_and_reset_abort_what_waits_and_what_is_queued() {
    type Stop = fn(&Rig);
    let stops: [(&str, Stop); 2] =
        [("disable", |rig| rig.write32(control_page(0), 0)), ("reset", |rig| rig.write32(0xc, 1))];
    for (name, stop) in stops {
        let (rig, waiting, behind) = blocked();
        stop(&rig);
        for record in [waiting, behind] {
            assert_eq!(rig.wait(record).status, 4, "{name}");
        }
        rig.until_idle(0);
        assert_eq!(rig.read32(control_page(0) + 4), 0, "{name}");
        assert_eq!(rig.read32(0xc), 0, "{name}: RESET clears itself");
        // The answer comes late; nobody minds, and it was expected.
        rig.respond(ResponseCode::Success);
        assert_eq!(rig.pri_status() & 3, 0, "{name}");
        rig.write32(control_page(0), 1);
        rig.assert_alive(0);
        assert_eq!(rig.read64(0x40), 3, "{name}: counters are kept");
    }
}

#[test]
fn enabled_again_before_the_abort_is_over() {
    let (rig, waiting, behind) = blocked();
    rig.write32(control_page(0), 0);
    rig.write32(control_page(0), 1);
    let after = rig.start(0, Descriptor::default());
    assert_eq!([waiting, behind, after].map(|record| rig.wait(record).status), [4, 4, 1]);
}

#[test]
fn the_pasid_is_the_one_of_submission() {
    let (rig, waiting, behind) = blocked();
    rig.write32(control_page(0), 0);
    rig.write32(control_page(0) + 8, 1 << 31 | 9);
    rig.write32(control_page(0), 1);
    assert_eq!(
        [waiting, behind].map(|record| rig.wait(record).status),
        [4, 4],
        "records under the old PASID"
    );
}

#[test]
fn switching_page_requests_off_ends_the_wait() {
    let (rig, waiting, behind) = blocked();
    rig.set_extended(0x13, 4, 0);
    let record = rig.wait(waiting);
    assert_eq!((record.status, record.fault_info, record.fault_address.get()), (2, 1 << 1, SOURCE_PAGE));
    assert_eq!(rig.wait(behind).status, 1);
    assert_eq!(rig.pri_status() & 0x100, 0, "not stopped while one is outstanding");
    rig.respond(ResponseCode::Success);
    assert_eq!(rig.pri_status() & 0x103, 0x100);

    let (rig, waiting, _) = blocked();
    rig.set_extended(0x13, 4, 2);
    assert_eq!(rig.wait(waiting).status, 2);
    assert_eq!(rig.pri_status() & 0x103, 0x100, "forgotten");
    rig.respond(ResponseCode::Failure);
    assert_eq!(rig.pri_status() & 3, 2, "unexpected now");
}

#[test]
fn function_level_reset_leaves_no_trace() {
    let (rig, waiting, behind) = blocked();
    rig.wait(rig.start(1, Descriptor::default()));
    flr(&rig);
    assert_eq!([0x10, 0xc].map(|at| rig.read32(at)), [0; 2]);
    assert!(rig.read32(control_page(0) + 0x10) <= 1, "at most what the worker has not yet let go");
    until("idle", || rig.read32(control_page(0) + 4) == 0);
    assert_eq!([waiting, behind].map(|record| rig.read_record(record).status), [0, 0]);
    assert_eq!([0x40, 0x48, 0x50].map(|at| rig.read64(at)), [0; 3]);
    assert_eq!([8, 0xc].map(|at| rig.read32(control_page(0) + at)), [0; 2]);
    // But for whoever runs the machine.
    let counted = rig.function.counted();
    assert_eq!((counted.completed, counted.page_requests, counted.device_tlb.misses > 0), (1, 1, true));
    rig.bring_up();
    rig.assert_alive(0);
    // Conventional reset goes the same way.
    let waiting = rig.start(0, copy(SOURCE_PAGE, TARGET, 8));
    rig.until_page_requests(2);
    rig.function.reset();
    until("idle", || rig.read32(control_page(0) + 4) == 0);
    assert_eq!(rig.read_record(waiting).status, 0);
    rig.bring_up();
    rig.assert_alive(0);
    rig.assert_alive(1);
}

#[test]
fn nothing_is_counted_after_a_reset_returns() {
    let rig = Rig::new();
    for round in 0..2_000 {
        for _ in 0..8 {
            rig.submit(0, &Descriptor::default());
        }
        // Each time somewhere else in its work.
        while rig.read64(0x40) < round % 4 {
            std::thread::yield_now();
        }
        flr(&rig);
        rig.until_idle(0);
        assert_eq!((rig.read64(control_page(0) + 0x40), rig.read64(0x40)), (0, 0), "round {round}");
        rig.bring_up();
    }
}

#[test]
fn nothing_is_written_after_a_reset_returns() {
    let rig = Rig::new();
    rig.map_range(SOURCE_PAGE, 64);
    rig.map_range(TARGET, 64);
    let gpa = rig.map(TARGET, true);
    for _ in 0..30 {
        let fill = Descriptor { opcode: 2, operand: u64::MAX.into(), ..copy(0, TARGET, 0x4_0000) };
        for _ in 0..8 {
            rig.start(0, fill);
        }
        flr(&rig);
        rig.memory.write_slice(&[0; 4096], GuestAddress(gpa)).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(rig.memory.read_obj::<u64>(GuestAddress(gpa)).unwrap(), 0);
        rig.bring_up();
    }
}

#[test]
fn switches_return_when_the_session_under_way_has_ended() {
    type Switch = fn(&Rig);
    let switches: [(&str, Switch); 4] = [
        ("bus master", |rig| rig.config16(4, 2)),
        ("PASID", |rig| rig.set_extended(0x1b, 6, 0)),
        ("function-level reset", flr),
        ("conventional reset", |rig| rig.function.reset()),
    ];
    for (name, switch) in switches {
        let rig = Arc::new(Rig::new());
        // Without ATS, so that no device-TLB flush waits in place of the gate.
        rig.set_extended(0xf, 6, 0);
        rig.map_range(TARGET, 2);
        let ((entered, inside), (release, released)) = (channel(), channel());
        *rig.on_translate.lock() = Some(Box::new(move |request| {
            if request.address.0 == TARGET + 0x1000 {
                entered.send(()).unwrap();
                released.recv().unwrap();
            }
        }));
        rig.submit(0, &Descriptor { opcode: 2, ..copy(0, TARGET, 0x2000) });
        inside.recv().unwrap();
        let (returns, returned) = channel();
        let switching = std::thread::spawn({
            let rig = rig.clone();
            move || {
                switch(&rig);
                returns.send(()).unwrap();
            }
        });
        let early = returned.recv_timeout(Duration::from_millis(50));
        assert_eq!(early, Err(RecvTimeoutError::Timeout), "{name}: returned with a session open");
        release.send(()).unwrap();
        returned.recv().unwrap();
        switching.join().unwrap();
    }
}

#[test]
fn bus_master_off_means_no_dma() {
    let rig = Rig::new();
    rig.map_range(SOURCE_PAGE, 1);
    rig.map_range(TARGET, 1);
    rig.config16(4, 2);
    let record = rig.start(0, copy(SOURCE_PAGE, TARGET, 8));
    until("lost record", || rig.read64(0x88) == 1);
    rig.until_idle(0);
    assert_eq!(rig.read_record(record).status, 0);
    assert_eq!([0x48, 0x50, 0x78].map(|at| rig.read64(at)), [0; 3]);
    assert_eq!(rig.read64(control_page(0) + 0x48), 1, "faulted");

    // Off while it waits, on again for the record.
    rig.config16(4, 6);
    rig.iommu.unmap(Some(super::rig::PASID), SOURCE_PAGE);
    rig.hold_page_requests();
    rig.start(0, copy(SOURCE_PAGE, TARGET, 8));
    rig.until_page_requests(1);
    rig.config16(4, 2);
    rig.map(SOURCE_PAGE, true);
    rig.respond(ResponseCode::Success);
    rig.until_idle(0);
    assert_eq!(rig.read64(control_page(0) + 0x48), 2);
    rig.config16(4, 6);
    rig.assert_alive(0);
}

#[test]
fn dropping_the_function_ends_its_threads_while_they_wait() {
    let (rig, ..) = blocked();
    for _ in 0..7 {
        rig.submit(0, &Descriptor::default());
    }
    let gone = std::sync::Arc::downgrade(&rig.function);
    drop(rig);
    assert!(gone.upgrade().is_none());
}

#[test]
fn credits_are_waited_for_only_as_long_as_the_queue_is_wanted() {
    let rig = Rig::new();
    rig.set_extended(0x13, 4, 0);
    rig.function.config_write(rig.extended(0x13).unwrap() + 12, &1_u32.to_le_bytes());
    rig.set_extended(0x13, 4, 1);
    rig.hold_page_requests();
    let first = rig.start(0, copy(SOURCE_PAGE, TARGET, 8));
    rig.until_page_requests(1);
    let second = rig.start(1, copy(SOURCE_PAGE, TARGET, 8));
    rig.until_waiting(1);
    rig.write32(control_page(1), 0);
    assert_eq!(rig.wait(second).status, 4);
    assert_eq!(rig.read_record(first).status, 0);
    assert_eq!(rig.read32(portal_page(1) + 0x40), 0);
}

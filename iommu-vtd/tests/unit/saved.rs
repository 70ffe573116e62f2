//! A unit's state, taken out of one unit and put into another.

mod history;
mod refused;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu_core::testkit::RecordingEndpoint;
use iommu_core::{
    Access, DeviceTlbCompletion, DeviceTlbInvalidation, Endpoint, Fault, InterruptRemapper, Iova, Msi,
    PageRequestOutcome, PageResponse, Pasid, Request, ResponseCode, SourceId, Translator,
};
use iommu_vtd::profile::PRESETS;
use iommu_vtd::testkit::{PageSize, flags};
use iommu_vtd::{Capability, Profile, Unit, UnitConfig, UnitState};

use crate::driver::{
    Driver, ENDPOINT, FAULT_EVENT, FSTS, GCMD, GSTS, IQE, IQERCD, IQH, IQT, Machine, PAGE_EVENT, PQA, PQH,
    PQT, PRS, QIE, RING, RTADDR, STATUS, TE, desc,
};
use crate::flows::page_request;

const VIRTUAL: u64 = 0x7f12_3456_7000;

/// A machine whose unit also remaps interrupts.
fn remapping() -> Machine {
    let profile = Profile { interrupt_remapping: true, extended_interrupts: true, ..Profile::svm(46) };
    let config = UnitConfig { capability: Capability::new(&profile).unwrap(), source: SourceId(0) };
    let mut machine = Machine::new();
    machine.unit = Arc::new(Unit::new(&config, machine.memory.clone(), machine.msi.clone()));
    machine
}

/// A unit in place of `machine`'s, with the state of the old one, which went through text as a snapshot would.
fn moved(machine: &Machine) -> Machine {
    let saved = machine.unit.save();
    let text = serde_json::to_string(&saved).unwrap();
    let read: UnitState = serde_json::from_str(&text).unwrap();
    assert_eq!(read, saved);
    let mut next = Machine::new();
    next.memory = machine.memory.clone();
    let config = UnitConfig { capability: *machine.unit.capability(), source: SourceId(0) };
    next.msi = machine.msi.clone();
    next.unit = Arc::new(Unit::new(&config, next.memory.clone(), next.msi.clone()));
    next.unit.restore(&read).unwrap();
    assert_eq!(next.unit.save(), saved, "what was put in comes out again");
    next
}

fn fault_at(unit: &impl Translator, address: u64) -> Fault {
    let request = Request::untranslated(ENDPOINT, Pasid::new(1), Iova(address), Access::Write);
    let fault = unit.translate(&request).unwrap_err();
    unit.report(&fault);
    fault
}

/// A driver and its unit, with one PASID that has no pages.
fn bound(machine: &Machine) -> Driver<'_> {
    let (driver, tables) = Driver::booted(machine);
    tables.context(ENDPOINT).pasid(1).first_stage(1);
    driver
}

#[test]
fn a_queue_that_stopped_is_repaired_elsewhere() {
    let machine = Machine::new();
    let driver = bound(&machine);
    driver.submit(&[]);
    machine.set_word(STATUS, 1);
    driver.put(0xf, 0);
    driver.put(2 << 32 | 0x25, STATUS);
    driver.kick();
    assert_eq!(machine.interrupts(), [FAULT_EVENT]);
    let next = moved(&machine);
    next.unit.resume();
    assert_eq!((next.read32(FSTS), next.read64(IQERCD), next.read32(IQH)), (IQE, 3, 32), "still stopped");
    assert_eq!((next.status(), next.interrupts()), (1, vec![]), "nothing is done or told twice");
    for (index, word) in [2 << 32 | 0x45, 0, 0, 0].into_iter().enumerate() {
        next.set_word(RING + 32 + 8 * index as u64, word);
    }
    next.write32(FSTS, IQE);
    assert_eq!((next.read32(IQH), next.status(), next.read32(FSTS)), (96, 2, 0), "goes on behind the error");
}

/// Completes what it is told to forget from the second time on.
#[derive(Default)]
struct Slow(AtomicUsize);

impl Endpoint for Slow {
    fn invalidate_device_tlb(&self, _: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        match self.0.fetch_add(1, Ordering::SeqCst) {
            0 => DeviceTlbCompletion::TimedOut,
            _ => DeviceTlbCompletion::Complete,
        }
    }

    fn page_group_response(&self, _: &PageResponse) {}
}

#[test]
fn a_time_out_moves_along() {
    let machine = Machine::new();
    let driver = bound(&machine);
    let endpoint = Arc::new(Slow::default());
    machine.attach(&endpoint);
    machine.set_word(STATUS, 1);
    let (low, high) = desc::device_tlb_all(1);
    driver.put(low, high);
    driver.put(2 << 32 | 0x25, STATUS);
    driver.kick();
    let ite = 1 << 6;
    let next = moved(&machine);
    next.attach(&endpoint);
    next.unit.resume();
    assert_eq!((next.read32(FSTS), next.read64(IQERCD) >> 32), (ite, ENDPOINT.0.into()), "ITE and whose");
    assert_eq!((next.read32(IQH), next.status()), (64, 1));
    next.write32(FSTS, ite);
    assert_eq!((next.read32(IQH), next.status(), next.read32(FSTS)), (64, 1, 0), "for the guest to repeat");
    for (index, word) in [low, high, 0, 0, 2 << 32 | 0x25, STATUS, 0, 0].into_iter().enumerate() {
        next.set_word(RING + 64 + 8 * index as u64, word);
    }
    next.write32(IQT, 128);
    assert_eq!((next.read32(IQH), next.status(), next.read32(FSTS)), (128, 2, 0));
    assert_eq!(endpoint.0.load(Ordering::SeqCst), 2);
}

#[test]
fn units_of_every_preset_can_move() {
    for preset in PRESETS {
        let mut machine = Machine::new();
        let config =
            UnitConfig { capability: Capability::new(&(preset.make)(46)).unwrap(), source: SourceId(0) };
        machine.unit = Arc::new(Unit::new(&config, machine.memory.clone(), machine.msi.clone()));
        machine.write64(RTADDR, 0x1000);
        machine.write32(GCMD, TE | 1 << 30);
        assert_eq!(moved(&machine).read32(GSTS), machine.read32(GSTS), "{}", preset.name);
    }
}

/// The saved unit had taken the tail, and the descriptors were still to come.
#[test]
fn a_queue_that_was_not_empty_is_finished_on_resume() {
    let machine = Machine::new();
    let driver = bound(&machine);
    machine.set_word(STATUS, 1);
    for descriptor in [(0x11, 0), (1 << 32 | 0x18 << 16 | 0x19, 3 << 3), (2 << 32 | 0x25, STATUS)] {
        driver.put(descriptor.0, descriptor.1);
    }
    let mut saved = machine.unit.save();
    saved.registers.insert("IQT".to_owned(), 96);
    machine.unit.restore(&saved).unwrap();
    assert_eq!((machine.read32(IQH), machine.status()), (0, 1), "restoring alone touches no queue");
    let endpoint = Arc::new(RecordingEndpoint::default());
    machine.attach(&endpoint);
    machine.unit.resume();
    assert_eq!((machine.read32(IQH), machine.status()), (96, 2));
    assert_eq!(endpoint.responses.lock().len(), 1);
}

#[test]
fn page_requests_wait_for_the_driver() {
    let machine = Machine::new();
    let _driver = bound(&machine);
    for group in 0..3 {
        assert_eq!(machine.unit.page_request(&page_request(VIRTUAL, group)), PageRequestOutcome::Queued);
    }
    machine.write64(PQH, 32);
    assert_eq!(machine.interrupts(), [PAGE_EVENT]);
    let next = moved(&machine);
    next.unit.resume();
    assert_eq!((next.read64(PQH), next.read64(PQT), next.read32(PRS)), (32, 96, 1));
    assert_eq!(next.unit.page_request(&page_request(VIRTUAL, 3)), PageRequestOutcome::Queued);
    assert_eq!((next.read64(PQT), next.interrupts()), (128, vec![]), "PPR was set: no second message");
    next.write32(PRS, 1);
    let endpoint = Arc::new(RecordingEndpoint::default());
    next.attach(&endpoint);
    let answer = [1 << 32 | u64::from(ENDPOINT.0) << 16 | 0x19, 3 << 3, 0, 0];
    let tail = next.read64(IQT);
    for (index, word) in answer.into_iter().enumerate() {
        next.set_word(RING + tail + 8 * index as u64, word);
    }
    next.write32(IQT, u32::try_from(tail + 32).unwrap());
    assert_eq!(endpoint.responses.lock()[0].group.get(), 3);
}

#[test]
fn an_overflow_lasts_until_it_is_cleared() {
    const SUCCESS: PageRequestOutcome = PageRequestOutcome::Answered(ResponseCode::Success);
    let machine = Machine::new();
    let _driver = bound(&machine);
    machine.write64(PQA, 0x2_0000);
    for group in 0..127 {
        machine.unit.page_request(&page_request(VIRTUAL, group));
    }
    assert_eq!(machine.unit.page_request(&page_request(VIRTUAL, 200)), SUCCESS);
    let next = moved(&machine);
    assert_eq!(next.read32(PRS), 3);
    next.write64(PQH, next.read64(PQT));
    assert_eq!(next.unit.page_request(&page_request(VIRTUAL, 201)), SUCCESS, "PRO");
    next.write32(PRS, 2);
    assert_eq!(next.unit.page_request(&page_request(VIRTUAL, 202)), PageRequestOutcome::Queued);
}

#[test]
fn faults_go_on_in_the_next_record() {
    let machine = Machine::new();
    let _driver = bound(&machine);
    for page in 0..6 {
        fault_at(&*machine.unit, page << 12);
    }
    // The driver has read the first three.
    for record in 0..3 {
        machine.write32(0x22c + 16 * record, 1 << 31);
    }
    assert_eq!(machine.interrupts(), [FAULT_EVENT]);
    let next = moved(&machine);
    assert_eq!(next.read32(FSTS) & 2, 2, "PPF");
    for page in 6..11 {
        fault_at(&*next.unit, page << 12);
    }
    assert_eq!(next.interrupts(), [], "PPF was set: no second message");
    let pages: Vec<u64> = (0..8).map(|record| next.read64(0x220 + 16 * record) >> 12).collect();
    assert_eq!(pages, [8, 9, 10, 3, 4, 5, 6, 7], "the log is a ring");
    fault_at(&*next.unit, 0);
    assert_eq!(next.read32(FSTS) & 1, 1, "PFO");
}

const COMPLETION_EVENT: Msi = Msi { address: 0xfee0_2000, data: 0x61 };

fn complete(machine: &Machine) {
    machine.write32(0xa4, COMPLETION_EVENT.data);
    machine.write64(0xa8, COMPLETION_EVENT.address);
    for (index, word) in [0x15, 0, 0, 0].into_iter().enumerate() {
        machine.set_word(RING + 8 * index as u64, word);
    }
    machine.write32(IQT, 32);
}

/// (name, control, what makes the event due, its message)
#[test]
fn a_message_held_by_its_mask_is_sent_when_the_mask_goes() {
    type Row = (&'static str, u64, fn(&Machine), Msi);
    let rows: [Row; 3] = [
        ("fault", 0x38, |machine| _ = fault_at(&*machine.unit, 0), FAULT_EVENT),
        ("completion", 0xa0, complete, COMPLETION_EVENT),
        ("page request", 0xe0, |machine| _ = machine.unit.page_request(&page_request(0, 1)), PAGE_EVENT),
    ];
    for (name, control, make, message) in rows {
        let machine = Machine::new();
        let _driver = bound(&machine);
        machine.write32(control, 1 << 31);
        make(&machine);
        assert_eq!(machine.read32(control), 3 << 30, "{name}: pending");
        let next = moved(&machine);
        next.unit.resume();
        assert_eq!((next.read32(control), next.interrupts()), (3 << 30, vec![]), "{name}");
        next.write32(control, 0);
        assert_eq!((next.read32(control), next.interrupts()), (0, vec![message]), "{name}");
    }
}

/// The table in force is the one that was set, not the one that IRTA names now.
#[test]
fn interrupts_go_on_by_the_same_table() {
    const TABLE: u64 = 0x6_0000;
    let machine = remapping();
    let _driver = bound(&machine);
    // Vector 41h, x2APIC id 17h, no source validation.
    machine.set_word(TABLE + 16 * 5, 0x17 << 32 | 0x41 << 16 | 1);
    machine.write64(0xb8, TABLE | 1 << 11 | 3);
    let levels = machine.read32(GSTS) & (TE | QIE);
    machine.write32(GCMD, levels | 1 << 24);
    machine.write32(GCMD, levels | 1 << 25);
    machine.write64(0xb8, 0);
    let raw = Msi { address: 0xfee0_0010 | 5 << 5, data: 0 };
    let here = machine.unit.resolve(ENDPOINT, raw);
    assert!(here.is_some_and(|msi| msi.data & 0xff == 0x41), "{here:x?}");
    let next = moved(&machine);
    assert_eq!(next.unit.resolve(ENDPOINT, raw), here);
    let compatible = Msi { address: 0xfee0_0000, data: 0x30 };
    next.unit.deliver(ENDPOINT, compatible, &*next.msi);
    assert_eq!(next.interrupts(), [FAULT_EVENT], "blocked, and told");
}

#[test]
fn translations_that_ports_hold_are_dropped() {
    let machine = Machine::new();
    let (_driver, tables) = Driver::booted(&machine);
    let space = tables.context(ENDPOINT).pasid(1).first_stage(1);
    space.map(VIRTUAL, 0x80_0000, PageSize::Size4K, flags::READY);
    let mut port = machine.dma().port();
    let read = |port: &mut iommu_core::Port<_>| {
        port.session(Pasid::new(1)).translate(Iova(VIRTUAL), Access::Read).map(|hit| hit.gpa.0)
    };
    assert_eq!(read(&mut port), Ok(0x80_0000));
    assert_eq!(machine.unit.ports().cached(), 1);
    let saved = machine.unit.save();
    machine.unit.restore(&saved).unwrap();
    assert_eq!(machine.unit.ports().cached(), 0);
    assert_eq!(read(&mut port), Ok(0x80_0000), "and found again");
}

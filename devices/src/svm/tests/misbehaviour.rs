//! What happens when the endpoint is told to misbehave, seen from both of its sides.

use std::time::{Duration, Instant};

use iommu_core::{
    AddressType, DeviceTlbCompletion, DeviceTlbInvalidation, Endpoint, GroupIndex, IovaRange, PageRequest,
    PageRequestOutcome, Pasid, ResponseCode,
};
use vm_memory::{Bytes, GuestAddress};

use super::rig::{BLOCK, PASID, Rig, SOURCE, control_page, copy, response, until};
use crate::pci::PciFunction;
use crate::svm::SvmConfig;
use crate::svm::misbehaviour::{How, Kind, Plan, Setting};
use crate::svm::spec::{Descriptor, FaultReason, Opcode, Status, control};

const SOURCE_PAGE: u64 = 0x10_0000;
const TARGET: u64 = 0x20_0000;

const COMMAND: u64 = 0x41c;

impl Rig {
    /// As a guest switches it.
    fn misbehave_with(&self, kind: Kind, how: How, argument: Option<u32>) {
        self.write32(0x40c, kind as u32);
        if let Some(argument) = argument {
            self.write32(0x410, argument);
        }
        self.write32(0x414, how.to_raw());
    }

    fn misbehave(&self, kind: Kind, how: How) {
        self.misbehave_with(kind, how, None);
    }

    fn happened(&self, kind: Kind) -> u32 {
        self.write32(0x40c, kind as u32);
        self.read32(0x418)
    }

    fn invalidation(&self, iova: u64) -> DeviceTlbCompletion {
        self.function.invalidate_device_tlb(&DeviceTlbInvalidation {
            source: SOURCE,
            pasid: Some(PASID),
            all_pasids: false,
            range: IovaRange::aligned(iova, 12),
        })
    }

    fn last_request(&self) -> PageRequest {
        *self.iommu.page_requests.lock().last().unwrap()
    }

    /// Both ends of a copy of 8 bytes are there.
    fn map_ends(&self) {
        self.map(SOURCE_PAGE, true);
        self.map(TARGET, true);
    }
}

fn fill(target: u64) -> Descriptor {
    Descriptor {
        opcode: Opcode::Fill as u8,
        flags: BLOCK,
        destination: target.into(),
        length: 8.into(),
        operand: u64::MAX.into(),
        ..Descriptor::default()
    }
}

#[test]
fn registers_of_the_switchboard() {
    let rig = Rig::new();
    assert_eq!([0x400, 0x404, 0x408].map(|at| rig.read32(at)), [0xffff, 0, 0]);
    rig.write32(0x40c, 0);
    assert_eq!([0x40c, 0x410, 0x414, 0x418].map(|at| rig.read32(at)), [0, 50, 0, 0], "default argument");
    rig.misbehave_with(Kind::LateInvalidation, How::Count(3), Some(2000));
    rig.misbehave(Kind::WrongGroup, How::OneIn(9));
    rig.misbehave(Kind::ExcessRequest, How::Always);
    assert_eq!(rig.read32(0x404), 0b1_1001);
    assert_eq!((rig.read32(0x40c), rig.read32(0x414)), (4, 1));
    rig.write32(0x40c, 0);
    assert_eq!((rig.read32(0x410), rig.read32(0x414)), (900, 3 << 8 | 2), "into the range");
    rig.write32(0x40c, 3);
    assert_eq!(rig.read32(0x414), 9 << 8 | 3);
    rig.write32(0x408, 77);
    assert_eq!(rig.read64(0x408), 3 << 32 | 77);
    rig.write32(0x40c, 16);
    rig.write32(0x414, 1);
    assert_eq!((rig.read32(0x404), rig.read32(0x414)), (0b1_1001, 0), "there is no such kind");
    rig.write32(COMMAND, 1);
    assert_eq!(rig.read32(0x404), 0);
    assert_eq!((0x41c..0x500).step_by(4).map(|at| rig.read32(at)).max(), Some(0), "the rest is empty");
}

/// What is planned is on from power-on on; the guest may say otherwise until the function is reset, and a count that
/// is used up stays so.
#[test]
fn a_plan_holds_after_a_reset() {
    let mut misbehaviour = Plan::default();
    misbehaviour.seed = 5;
    misbehaviour.add("lost-invalidation:2@0").unwrap();
    misbehaviour.add("stale-translation").unwrap();
    let rig = Rig::cold(SvmConfig { queues: 1, misbehaviour, ..SvmConfig::default() });
    assert_eq!((rig.read32(0x404), rig.read32(0x408)), (0b110, 5));
    rig.misbehave(Kind::StaleTranslation, How::Off);
    assert_eq!(rig.invalidation(TARGET), DeviceTlbCompletion::TimedOut);
    rig.write32(COMMAND, 1);
    rig.write32(0x408, 6);
    assert_eq!(rig.invalidation(TARGET), DeviceTlbCompletion::Complete);
    rig.function.reset();
    assert_eq!((rig.read32(0x404), rig.read32(0x408)), (0b110, 5));
    rig.misbehave(Kind::StaleTranslation, How::Off);
    let rest = [(); 3].map(|()| rig.invalidation(TARGET));
    assert_eq!(
        rest,
        [DeviceTlbCompletion::TimedOut, DeviceTlbCompletion::Complete, DeviceTlbCompletion::Complete]
    );
}

#[test]
fn a_seed_repeats() {
    let outcomes = |seed| {
        let rig = Rig::new();
        rig.write32(0x408, seed);
        rig.misbehave_with(Kind::LostInvalidation, How::OneIn(3), Some(0));
        (0..40).map(|_| rig.invalidation(TARGET)).collect::<Vec<_>>()
    };
    assert_eq!(outcomes(1), outcomes(1));
    assert_ne!(outcomes(1), outcomes(2));
    assert!(outcomes(1).contains(&DeviceTlbCompletion::TimedOut));
}

/// A lost completion is one of a device that did let go; a late one comes.
#[test]
fn completions_that_are_late_or_lost() {
    let rig = Rig::new();
    rig.map_ends();
    let rows = [
        (Kind::LateInvalidation, DeviceTlbCompletion::Complete),
        (Kind::LostInvalidation, DeviceTlbCompletion::TimedOut),
    ];
    for (kind, expected) in rows {
        assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 8)).status, Status::Success as u8);
        rig.misbehave_with(kind, How::Count(1), Some(20));
        let start = Instant::now();
        assert_eq!(rig.invalidation(TARGET), expected, "{kind:?}");
        assert!(start.elapsed() >= Duration::from_millis(20), "{kind:?}");
        assert_eq!(rig.invalidation(TARGET), DeviceTlbCompletion::Complete, "{kind:?}: once");
        assert_eq!(rig.happened(kind), 1);
        let before = rig.read64(0x48);
        rig.run(copy(SOURCE_PAGE, TARGET, 8));
        assert_eq!(rig.read64(0x48) - before, 1, "{kind:?}: it did let go");
    }
}

#[test]
fn a_stale_translation_leads_to_where_the_page_was() {
    let rig = Rig::new();
    let old = rig.map(TARGET, true);
    rig.run(fill(TARGET));
    rig.memory.write_obj(0_u64, GuestAddress(old)).unwrap();
    let new = rig.map(TARGET, true);
    rig.misbehave(Kind::StaleTranslation, How::Count(1));
    assert_eq!(rig.invalidation(TARGET), DeviceTlbCompletion::Complete, "it says so");
    rig.run(fill(TARGET));
    let words = |rig: &Rig| [old, new].map(|gpa| rig.memory.read_obj::<u64>(GuestAddress(gpa)).unwrap());
    assert_eq!(words(&rig), [u64::MAX, 0]);
    rig.invalidate(TARGET);
    rig.run(fill(TARGET));
    assert_eq!(words(&rig), [u64::MAX, u64::MAX], "an honest one helps");
}

/// (kind, what the request looks like, whether its answer is one to this request)
#[test]
fn page_requests_as_they_go_out() {
    type Look = fn(&PageRequest) -> bool;
    let rows: [(Kind, Look); 4] = [
        (Kind::PrivilegedRequest, |request| request.privileged && request.last),
        (Kind::ExecuteRequest, |request| request.execute && request.read),
        (Kind::StrangeAddress, |request| request.address.0 == TARGET | 1 << 62),
        (Kind::UnfinishedGroup, |request| !request.last && request.write),
    ];
    for (kind, looks) in rows {
        let rig = Rig::new();
        rig.hold_page_requests();
        rig.misbehave(kind, How::Count(1));
        let record = rig.start(0, fill(TARGET));
        rig.until_page_requests(1);
        assert!(looks(&rig.last_request()), "{kind:?}: {:?}", rig.last_request());
        rig.respond(ResponseCode::Invalid);
        assert_eq!(rig.wait(record).status, Status::Fault as u8, "{kind:?}");
        let second = rig.start(0, fill(TARGET));
        rig.until_page_requests(2);
        let honest = rig.last_request();
        assert!(!looks(&honest) && honest.last && honest.address.0 == TARGET, "{kind:?}: {honest:?}");
        rig.respond(ResponseCode::Invalid);
        rig.wait(second);
    }
}

/// The answer to the wrong group is unexpected; the right one never comes. Disabling the queue and resetting PRI is the
/// way out.
#[test]
fn a_wrong_group_or_an_ignored_response_leaves_a_request_outstanding() {
    for (kind, unexpected) in [(Kind::WrongGroup, 2), (Kind::IgnoredResponse, 0)] {
        let rig = Rig::new();
        rig.hold_page_requests();
        rig.misbehave(kind, How::Count(1));
        let record = rig.start(0, fill(TARGET));
        rig.until_page_requests(1);
        rig.until_waiting(0);
        rig.respond(ResponseCode::Success);
        assert_eq!((rig.pri_status() & 3, rig.happened(kind)), (unexpected, 1), "{kind:?}");
        assert_eq!(rig.read_record(record).status, 0, "{kind:?}: it waits");
        rig.write32(control_page(0) + control::CTRL, 0);
        assert_eq!(rig.wait(record).status, Status::Aborted as u8, "{kind:?}");
        rig.set_extended(0x13, 4, 0);
        assert_eq!(rig.pri_status() & 0x100, 0, "{kind:?}: not stopped, one is outstanding");
        rig.set_extended(0x13, 4, 2);
        assert_eq!(rig.pri_status() & 0x103, 0x100, "{kind:?}: forgotten");
        rig.set_extended(0x13, 4, 1);
        rig.map(TARGET, true);
        rig.write32(control_page(0) + control::CTRL, 1);
        assert_eq!(rig.run(fill(TARGET)).status, Status::Success as u8, "{kind:?}");
    }
}

#[test]
fn a_request_beyond_the_credits() {
    let rig = Rig::new();
    rig.set_extended(0x13, 4, 0);
    let allocation = rig.extended(0x13).unwrap() + 12;
    rig.function.config_write(allocation, &1_u32.to_le_bytes());
    rig.set_extended(0x13, 4, 1);
    rig.hold_page_requests();
    let first = rig.start(0, fill(TARGET));
    rig.until_page_requests(1);
    rig.misbehave(Kind::ExcessRequest, How::Count(1));
    let second = rig.start(1, fill(TARGET));
    rig.until_page_requests(2);
    let groups: Vec<_> = rig.iommu.page_requests.lock().iter().map(|request| request.group).collect();
    assert_ne!(groups[0], groups[1]);
    rig.map(TARGET, true);
    groups.iter().for_each(|&group| rig.respond_to(group, ResponseCode::Success));
    assert_eq!([first, second].map(|record| rig.wait(record).status), [1, 1]);
}

/// Outstanding requests without answers are bounded by indices, however many credits are ignored.
#[test]
fn ignored_credits_end_where_indices_end() {
    let rig = Rig::new();
    rig.hold_page_requests();
    rig.misbehave(Kind::ExcessRequest, How::Always);
    rig.misbehave(Kind::IgnoredResponse, How::Always);
    for round in 0..300 {
        rig.start(0, fill(TARGET));
        if round < 256 {
            rig.until_page_requests(round + 1);
        }
        rig.write32(control_page(0) + control::CTRL, 0);
        rig.until_idle(0);
        rig.write32(control_page(0) + control::CTRL, 1);
    }
    assert_eq!(rig.iommu.page_requests.lock().len(), 256);
}

/// Untranslated requests are judged by the IOMMU one by one, and a missing page cannot be asked for.
#[test]
fn untranslated_where_translated_is_due() {
    let rig = Rig::new();
    rig.misbehave(Kind::UntranslatedAccess, How::Always);
    rig.map(SOURCE_PAGE, true);
    let record = rig.run(copy(SOURCE_PAGE, TARGET, 8));
    assert_eq!((record.status, record.page_requests.get()), (Status::Fault as u8, 0));
    assert_eq!(record.fault_info, 1 | (FaultReason::Refused as u8) << 1);
    let faults = rig.iommu.faults.lock().clone();
    assert_eq!(faults.len(), 1);
    let request = faults[0].request;
    assert_eq!(
        (request.address.0, request.pasid, request.address_type),
        (TARGET, Some(PASID), AddressType::Untranslated)
    );
    rig.map(TARGET, true);
    assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 8)).status, Status::Success as u8);
    assert_eq!(rig.read64(0x48), 0, "no translation request");
    rig.misbehave(Kind::UntranslatedAccess, How::Off);
    assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 8)).status, Status::Success as u8);
    assert!(rig.read64(0x48) > 0);
}

/// (kind, argument, address, PASID, address type) of the request that nobody asked for.
#[test]
fn stray_requests_move_nothing_and_stop_nothing() {
    let untranslated = AddressType::Untranslated;
    let rows = [
        (Kind::TranslatedAccess, None, SOURCE_PAGE, None, AddressType::Translated),
        (Kind::ForeignPasid, Some(0x1_2345), SOURCE_PAGE, Some(Pasid::truncate(0x1_2345)), untranslated),
        (Kind::ForeignPasid, None, SOURCE_PAGE, Some(Pasid::truncate(0xf_ffff)), untranslated),
        (Kind::InterruptRange, None, 0xfee0_0000, None, untranslated),
        (Kind::InterruptRange, Some(1), 0xfee0_0000, Some(PASID), untranslated),
    ];
    for (kind, argument, address, pasid, kind_of_address) in rows {
        let rig = Rig::new();
        rig.map_ends();
        rig.misbehave_with(kind, How::Count(1), argument);
        for _ in 0..2 {
            assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 8)).status, Status::Success as u8, "{kind:?}");
        }
        let requests: Vec<_> = rig.iommu.faults.lock().iter().map(|fault| fault.request).collect();
        assert_eq!(requests.len(), 1, "{kind:?}");
        let request = requests[0];
        assert_eq!(
            (request.address.0, request.pasid, request.address_type),
            (address, pasid, kind_of_address),
            "{kind:?}"
        );
    }
}

/// Every request of a flood is answered, by the guest or by the IOMMU, and only then is PRI stopped.
#[test]
fn a_flood_is_answered_to_the_last_drop() {
    let rig = Rig::new();
    rig.map_ends();
    let room = std::sync::atomic::AtomicUsize::new(100);
    rig.iommu.on_page_request(move |_, _| {
        let taken = |left: usize| left.checked_sub(1);
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        match room.fetch_update(relaxed, relaxed, taken) {
            Ok(_) => PageRequestOutcome::Queued,
            Err(_) => PageRequestOutcome::Answered(ResponseCode::Success),
        }
    });
    rig.misbehave_with(Kind::RequestFlood, How::Count(1), Some(300));
    assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 8)).status, Status::Success as u8);
    let requests = rig.iommu.page_requests.lock().clone();
    assert_eq!((requests.len(), rig.read64(0x50), rig.read64(0x58)), (300, 300, 200));
    assert!(requests.iter().all(|request| request.last && request.address.0 == SOURCE_PAGE));
    rig.set_extended(0x13, 4, 0);
    for request in &requests[..99] {
        rig.respond_to(request.group, ResponseCode::Success);
    }
    assert_eq!(rig.pri_status() & 0x102, 0, "one is outstanding, and no answer was unexpected");
    rig.respond_to(requests[0].group, ResponseCode::Success);
    assert_eq!((rig.pri_status() & 0x102, rig.read64(0x58)), (0x100, 300));
    rig.respond_to(requests[0].group, ResponseCode::Success);
    assert_eq!(rig.pri_status() & 2, 2, "one too many");
}

#[test]
fn indices_of_strays_are_not_those_of_descriptors() {
    let rig = Rig::new();
    rig.iommu.on_page_request(|_, _| PageRequestOutcome::Answered(ResponseCode::Invalid));
    for _ in 0..600 {
        rig.run(fill(TARGET));
    }
    let requests = rig.iommu.page_requests.lock();
    assert_eq!(requests.len(), 600);
    assert!(requests.iter().all(|request| request.group != GroupIndex::truncate(511)));
}

/// A function that is gone reads as ones, takes nothing, works on nothing and completes nothing.
#[test]
fn surprise_removal() {
    let rig = Rig::new();
    rig.map_ends();
    rig.hold_page_requests();
    let waiting = rig.start(1, fill(0x99_0000));
    rig.until_page_requests(1);
    rig.misbehave(Kind::SurpriseRemoval, How::Count(1));
    let last = rig.start(0, copy(SOURCE_PAGE, TARGET, 8));
    until("removal", || rig.config_read16(0) == 0xffff);
    assert_eq!((rig.read32(0), rig.read64(0x404), rig.config_read16(2)), (u32::MAX, u64::MAX, 0xffff));
    let mut table = [0; 4];
    rig.function.bar_read(1, 0, &mut table);
    assert_eq!(table, [0xff; 4]);
    rig.config16(4, 6);
    rig.write32(control_page(0), 1);
    rig.start(0, copy(SOURCE_PAGE, TARGET, 8));
    assert_eq!(rig.invalidation(TARGET), DeviceTlbCompletion::TimedOut);
    rig.function.page_group_response(&response(rig.last_request().group, ResponseCode::Success));
    rig.write32(COMMAND, 1);
    assert_eq!(rig.read32(0), u32::MAX, "only the way back is open");
    rig.write32(COMMAND, 2);
    assert_eq!((rig.config_read16(0), rig.config_read16(4)), (0x1af4, 0), "as after power-on");
    assert_eq!(rig.read32(0x404), 0);
    assert_eq!([waiting, last].map(|record| rig.read_record(record).status), [0, 0], "abandoned");
    assert_eq!(rig.invalidation(TARGET), DeviceTlbCompletion::Complete);
    rig.bring_up();
    assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 8)).status, Status::Success as u8);
}

#[test]
fn a_function_comes_back_when_it_is_looked_for() {
    let rig = Rig::new();
    rig.misbehave_with(Kind::SurpriseRemoval, How::Always, Some(3));
    rig.start(0, Descriptor::default());
    until("removal", || rig.read32(0) == u32::MAX);
    let looks = [(); 4].map(|()| rig.config_read16(0));
    assert_eq!(looks, [0xffff, 0xffff, 0xffff, 0x1af4]);
    rig.bring_up();
    assert_eq!(rig.run(Descriptor::default()).status, Status::Success as u8, "and stays");
}

/// What a guest may write into the switchboard never stops the endpoint for good.
#[test]
fn any_switch_leads_back() {
    let rig = Rig::new();
    rig.map_ends();
    let setting = Setting::new(Kind::RequestFlood, How::Always, u32::MAX);
    assert_eq!(setting.argument, 8192);
    for value in [0, 1, 2, 3, 0x102, 0x103, u32::MAX] {
        for offset in (0x400..0x500).step_by(4).filter(|&at| at != COMMAND) {
            rig.write32(0x40c, value & 7);
            rig.write32(offset, value);
        }
        rig.write32(COMMAND, 1);
        assert_eq!(rig.run(copy(SOURCE_PAGE, TARGET, 8)).status, Status::Success as u8, "{value:#x}");
    }
}

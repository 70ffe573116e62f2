//! The invalidation queue as a driver meets it: errors and their repair, waits, the order of things.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;

use iommu_core::testkit::RecordingEndpoint;
use iommu_core::{
    DeviceTlbCompletion, DeviceTlbInvalidation, Endpoint, Msi, PageResponse, Pasid, PortSet, SourceId,
};
use iommu_vtd::Profile;
use vm_memory::Bytes;
use vm_memory::GuestAddress;

use crate::driver::{
    Driver, ENDPOINT, FAULT_EVENT, FSTS, IQA, IQE, IQERCD, IQH, IQT, ITE, Machine, QIE, RING, STATUS, desc,
};

const BAD_TYPE: (u64, u64) = (0xf, 0);
const BAD_FIELD: (u64, u64) = (0x11 | 1 << 63, 0);

/// (name, the offending descriptor, IQEI)
#[test]
fn an_error_stops_at_its_descriptor_until_it_is_repaired() {
    for (name, bad, code) in [("type", BAD_TYPE, 3), ("field", BAD_FIELD, 4)] {
        let machine = Machine::new();
        let (driver, _tables) = Driver::booted(&machine);
        driver.submit(&[]);
        machine.set_word(STATUS, 1);
        driver.put(bad.0, bad.1);
        driver.put(2 << 32 | 0x25, STATUS);
        driver.kick();
        assert_eq!(machine.read32(FSTS), IQE, "{name}");
        assert_eq!(machine.read64(IQERCD), code, "{name}");
        assert_eq!((machine.read32(IQH), machine.status()), (32, 1), "{name}: head stays");
        assert_eq!(machine.interrupts(), [FAULT_EVENT], "{name}");
        driver.put(2 << 32 | 0x25, STATUS);
        driver.kick();
        assert_eq!((machine.read32(IQH), machine.status()), (32, 1), "{name}: a new tail changes nothing");
        // As Linux does: the wait over the bad one, then the error cleared, and no write of the tail.
        for word in 0..4 {
            machine.set_word(RING + 32 + 8 * word, machine.word(RING + 64 + 8 * word));
        }
        machine.write32(FSTS, IQE);
        assert_eq!((machine.read32(IQH), machine.status()), (128, 2), "{name}");
        assert_eq!((machine.read32(FSTS), machine.read64(IQERCD)), (0, 0), "{name}");
    }
}

/// (name, IQA, tail, IQEI)
#[test]
fn bad_tails_and_rings() {
    let rows = [
        ("tail at the end", RING | 1 << 11, 0x1000, 1),
        ("tail beyond", RING | 1 << 11, 0x7_ffe0, 1),
        ("tail in the middle of a descriptor", RING | 1 << 11, 0x10, 6),
        ("ring outside memory", 0xffff_ffff_ffff_f000 | 1 << 11, 0x20, 2),
        ("ring in legacy width under scalable tables", RING, 0x10, 5),
    ];
    for (name, ring, tail, code) in rows {
        let machine = Machine::new();
        let (driver, _tables) = Driver::booted(&machine);
        driver.level(QIE, false);
        machine.write32(IQT, 0);
        machine.write64(IQA, ring);
        driver.level(QIE, true);
        machine.write32(IQT, tail);
        assert_eq!((machine.read32(FSTS), machine.read64(IQERCD)), (IQE, code), "{name}");
        assert_eq!(machine.read32(IQH), 0, "{name}");
    }
}

/// Which descriptors are taken depends on the tables that the last "set root" latched. (name, mode of the tables,
/// descriptor, IQEI)
#[test]
fn the_mode_of_the_tables_decides_what_is_taken() {
    let rows = [
        ("wait, reserved mode", 0b10, (2 << 32 | 0x25, STATUS), 7),
        ("interrupt entries, reserved mode", 0b10, (0x04, 0), 7),
        ("PASIDs, legacy", 0b00, desc::PASID_GLOBAL, 3),
        ("pages of a PASID, legacy", 0b00, desc::pasid_iotlb_all(1, 1), 3),
        ("device-TLB of a PASID, legacy", 0b00, desc::device_tlb_all(1), 3),
        ("answer to a page request, legacy", 0b00, desc::response(1, 3, 0), 3),
        ("PASIDs, abort", 0b11, desc::PASID_GLOBAL, 0),
        ("PASIDs, scalable", 0b01, desc::PASID_GLOBAL, 0),
        ("contexts, legacy", 0b00, desc::CONTEXT_GLOBAL, 0),
    ];
    for (name, mode, descriptor, code) in rows {
        let machine = Machine::with(&Profile::full(46));
        let driver = Driver::new(&machine);
        driver.enable_queue();
        driver.set_root(0x10_0000 | mode << 10);
        driver.put(descriptor.0, descriptor.1);
        driver.kick();
        let status = if code == 0 { 0 } else { IQE };
        assert_eq!((machine.read32(FSTS), machine.read64(IQERCD)), (status, code), "{name}");
    }
}

#[test]
fn a_narrow_ring_serves_legacy_tables() {
    let machine = Machine::new();
    let driver = Driver::new(&machine);
    machine.write64(IQA, RING);
    for (index, word) in [0x11, 0, 2 << 32 | 0x25, STATUS].into_iter().enumerate() {
        machine.set_word(RING + 8 * index as u64, word);
    }
    driver.level(QIE, true);
    machine.write32(IQT, 0x20);
    assert_eq!((machine.read32(IQH), machine.status()), (0x20, 2));
}

#[test]
fn a_tail_written_before_the_queue_is_enabled_counts() {
    let machine = Machine::new();
    let driver = Driver::new(&machine);
    machine.write64(IQA, RING | 1 << 11 | 1);
    driver.put(2 << 32 | 0x25, STATUS);
    driver.kick();
    assert_eq!(machine.status(), 0);
    driver.level(QIE, true);
    assert_eq!((machine.read32(IQH), machine.status()), (32, 2));
}

#[test]
fn the_ring_wraps() {
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    for _ in 0..200 {
        driver.submit(&[desc::IOTLB_GLOBAL, desc::FENCE]);
    }
    assert_eq!(machine.read32(IQH), 600 % 256 * 32);
}

#[test]
fn a_completion_interrupt_is_sent_once_per_clearing() {
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    machine.write32(0xa4, 0x61);
    machine.write32(0xa8, 0xfee0_2000);
    machine.write32(0xa0, 0);
    let message = Msi { address: 0xfee0_2000, data: 0x61 };
    let wait = || {
        driver.put(0x15, 0);
        driver.kick();
        (machine.read32(0x9c), machine.interrupts())
    };
    assert_eq!(wait(), (1, vec![message]));
    assert_eq!(wait(), (1, vec![]));
    machine.write32(0x9c, 1);
    assert_eq!(wait(), (1, vec![message]));
}

#[test]
fn a_wait_that_points_nowhere_is_done_all_the_same() {
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    driver.put(2 << 32 | 0x25, 0x3fff_ffff_fff0);
    driver.submit(&[]);
}

/// What Linux sends to functions that are gone, in reset, or were never there.
#[test]
fn invalidations_without_an_endpoint_complete() {
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    let all = [desc::device_tlb_all(1), desc::response(1, 3, 0)];
    driver.submit(&all);
    let endpoint = Arc::new(RecordingEndpoint::default());
    machine.attach(&endpoint);
    driver.submit(&all);
    assert_eq!((endpoint.invalidations.lock().len(), endpoint.responses.lock().len()), (1, 1));
    drop(endpoint);
    driver.submit(&all);
}

#[test]
fn descriptors_reach_the_endpoint_in_order_and_as_written() {
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    let endpoint = Arc::new(RecordingEndpoint::default());
    machine.attach(&endpoint);
    driver.submit(&[
        desc::pasid_iotlb_page(1, 5, 0x7000),
        desc::device_tlb_page(5, 0x7000),
        desc::device_tlb_all(6),
        desc::response(5, 9, 2),
    ]);
    let invalidations: Vec<_> =
        endpoint.invalidations.lock().iter().map(|i| (i.pasid, i.range.start(), i.range.last())).collect();
    let pasid = |n| Some(Pasid::truncate(n));
    assert_eq!(invalidations, [(pasid(5), 0x7000, 0x7fff), (pasid(6), 0, u64::MAX)]);
    let responses = endpoint.responses.lock();
    assert_eq!((responses[0].pasid, responses[0].group.get()), (pasid(5), 9));
    assert_eq!(responses[0].code, iommu_core::ResponseCode::Failure, "2 is Linux's failure");
    drop(responses);
    machine.unit.detach_endpoint(SourceId(0x18));
    driver.submit(&[desc::device_tlb_all(6)]);
    assert_eq!(endpoint.invalidations.lock().len(), 2, "detached");
}

/// Tells when it is called, and stays until it is let go.
struct Gate {
    entered: Mutex<mpsc::Sender<()>>,
    leave: Mutex<mpsc::Receiver<()>>,
}

impl Endpoint for Gate {
    fn invalidate_device_tlb(&self, _: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        self.entered.lock().unwrap().send(()).unwrap();
        self.leave.lock().unwrap().recv().unwrap();
        DeviceTlbCompletion::Complete
    }

    fn page_group_response(&self, _: &PageResponse) {}
}

/// While one CPU's invalidation waits for an endpoint, registers stay readable; another CPU's descriptors are
/// done when its own tail write returns.
#[test]
fn two_cpus_share_the_queue() {
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    let (entered, has_entered) = mpsc::channel();
    let (let_go, leave) = mpsc::channel();
    let gate = Arc::new(Gate { entered: Mutex::new(entered), leave: Mutex::new(leave) });
    machine.attach(&gate);
    driver.put(desc::device_tlb_all(1).0, 0);
    driver.put(2 << 32 | 0x25, STATUS);
    driver.put(2 << 32 | 0x25, STATUS + 8);
    let second = || machine.memory.read_obj::<u32>(GuestAddress(STATUS + 8)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| machine.write32(IQT, 64));
        has_entered.recv().unwrap();
        assert_eq!((machine.read32(FSTS), machine.status()), (0, 0), "no lock is in the way of reads");
        let other = scope.spawn(|| {
            machine.write32(IQT, 96);
            second()
        });
        let_go.send(()).unwrap();
        assert_eq!(other.join().unwrap(), 2);
    });
    assert_eq!((machine.status(), machine.read32(IQH)), (2, 96));
}

/// A function that does not let go in time stops the queue behind the wait that is pending, which is aborted: software
/// that clears the error finds both behind the head, and repeats them.
#[test]
fn a_function_that_does_not_complete_stops_the_queue() {
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    let endpoint = Arc::new(RecordingEndpoint::default());
    machine.attach(&endpoint);
    let asked = || endpoint.invalidations.lock().len();
    *endpoint.completions.lock() = vec![DeviceTlbCompletion::TimedOut; 2];
    driver.submit(&[]);
    machine.set_word(STATUS, 1);
    let invalidate = || {
        driver.put(desc::device_tlb_all(1).0, desc::device_tlb_all(1).1);
        driver.put(2 << 32 | 0x25, STATUS);
        driver.kick();
    };
    invalidate();
    let source = u64::from(ENDPOINT.0) << 32;
    let stopped = || (machine.read32(FSTS), machine.read64(IQERCD), machine.read32(IQH), machine.status());
    assert_eq!((stopped(), asked()), ((ITE, source, 96, 1), 1));
    assert_eq!(machine.interrupts(), [FAULT_EVENT]);
    driver.put(2 << 32 | 0x25, STATUS + 8);
    driver.kick();
    assert_eq!((stopped(), asked()), ((ITE, source, 96, 1), 1), "a new tail changes nothing");
    machine.write32(FSTS, ITE);
    assert_eq!((stopped(), asked()), ((0, 0, 128, 1), 1), "what was aborted stays so");
    let second = || machine.memory.read_obj::<u32>(GuestAddress(STATUS + 8)).unwrap();
    assert_eq!(second(), 2, "what came later is done");
    invalidate();
    assert_eq!((stopped(), asked()), ((ITE, source, 192, 1), 2), "repeated in vain");
    assert_eq!(machine.interrupts(), [FAULT_EVENT], "and said again");
    machine.write32(FSTS, ITE);
    invalidate();
    assert_eq!((stopped(), asked()), ((0, 0, 256, 2), 3), "repeated, and done");
    assert_eq!(machine.interrupts(), []);
}

/// What stands between the invalidation and the wait is done, a fence is passed, and every function in between is asked;
/// the one that is named is the first that did not complete.
#[test]
fn only_the_wait_that_reports_is_aborted() {
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    let endpoint = Arc::new(RecordingEndpoint::default());
    machine.attach(&endpoint);
    *endpoint.completions.lock() = vec![DeviceTlbCompletion::TimedOut; 2];
    machine.set_word(STATUS, 1);
    for _ in 0..2 {
        driver.put(desc::device_tlb_all(1).0, desc::device_tlb_all(1).1);
        driver.put(0x45, 0);
    }
    driver.put(2 << 32 | 0x25, STATUS);
    driver.put(2 << 32 | 0x25, STATUS + 8);
    driver.kick();
    assert_eq!((machine.read32(FSTS), machine.status(), machine.read32(IQH)), (ITE, 1, 160));
    assert_eq!(endpoint.invalidations.lock().len(), 2);
    machine.write32(FSTS, ITE);
    assert_eq!((machine.read32(FSTS), machine.status(), machine.read32(IQH)), (0, 1, 192));
}

/// A function that never answers holds nothing up but what waits for it.
#[test]
fn a_function_that_is_gone_holds_nothing_up() {
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    let endpoint = Arc::new(RecordingEndpoint::default());
    machine.attach(&endpoint);
    *endpoint.completions.lock() = vec![DeviceTlbCompletion::TimedOut; 9];
    driver.put(desc::device_tlb_all(1).0, desc::device_tlb_all(1).1);
    driver.put(2 << 32 | 0x25, STATUS);
    driver.kick();
    assert_eq!((machine.read32(FSTS), machine.status()), (ITE, 0));
    machine.write32(FSTS, ITE);
    driver.put(2 << 32 | 0x25, STATUS);
    driver.kick();
    assert_eq!((machine.read32(FSTS), machine.status(), machine.read32(IQH)), (0, 2, 96));
    machine.unit.detach_endpoint(ENDPOINT);
    driver.put(desc::device_tlb_all(1).0, desc::device_tlb_all(1).1);
    driver.put(3 << 32 | 0x25, STATUS);
    driver.kick();
    assert_eq!((machine.read32(FSTS), machine.status(), machine.read32(IQH)), (0, 3, 160), "or is taken out");
}

/// The two errors keep their codes apart, and the queue stands until both are cleared.
#[test]
fn both_errors_keep_their_codes() {
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    let endpoint = Arc::new(RecordingEndpoint::default());
    machine.attach(&endpoint);
    *endpoint.completions.lock() = vec![DeviceTlbCompletion::TimedOut];
    driver.put(desc::device_tlb_all(1).0, desc::device_tlb_all(1).1);
    driver.put(BAD_TYPE.0, BAD_TYPE.1);
    driver.kick();
    let codes = || (machine.read32(FSTS), machine.read64(IQERCD), machine.read32(IQH));
    assert_eq!(codes(), (ITE | IQE, u64::from(ENDPOINT.0) << 32 | 3, 32));
    machine.write32(FSTS, ITE);
    assert_eq!(codes(), (IQE, 3, 32));
}

/// A thread that is stuck in a session keeps neither CPU: the one that invalidates hears of it, the others go on.
#[test]
fn a_stuck_device_thread_is_told_to_the_guest() {
    struct Ports(PortSet);
    impl Endpoint for Ports {
        fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
            self.0.invalidate_device_tlb(invalidation)
        }
        fn page_group_response(&self, _: &PageResponse) {}
    }
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    let endpoint = Arc::new(Ports(PortSet::default()));
    machine.attach(&endpoint);
    let (mut stuck, mut other) =
        (machine.dma().device_tlb_port(&endpoint.0), machine.dma().device_tlb_port(&endpoint.0));
    drop(other.session(None));
    let session = stuck.session(None);
    driver.put(desc::device_tlb_all(1).0, desc::device_tlb_all(1).1);
    driver.put(2 << 32 | 0x25, STATUS);
    driver.kick();
    assert_eq!((machine.read32(FSTS), machine.status()), (ITE, 0));
    drop(session);
    machine.write32(FSTS, ITE);
    driver.put(desc::device_tlb_all(1).0, desc::device_tlb_all(1).1);
    driver.put(2 << 32 | 0x25, STATUS);
    driver.kick();
    assert_eq!((machine.read32(FSTS), machine.status()), (0, 2));
}

/// The longest submissions of Linux: an unmap of sixteen ranges, and the drain of page requests. An error in the
/// middle of one would be repaired by nobody.
#[test]
fn batches_and_drains_are_done_with_their_wait() {
    let machine = Machine::new();
    let (driver, _tables) = Driver::booted(&machine);
    let ranges = (0..8).flat_map(|n| {
        [desc::pasid_iotlb_page(1, 1, n << 21 | 1 << 6 | 9), desc::device_tlb_page(1, n << 21 | 0xf_f800)]
    });
    driver.submit(&ranges.collect::<Vec<_>>());
    driver.submit_with(&[desc::FENCE, desc::pasid_iotlb_all(2, 1), desc::device_tlb_all(1)], desc::DRAIN);
    driver.submit_with(&[desc::FENCE, (0x22, 0), (0x18 << 32 | 3, 0x7fff_ffff_ffff_f001)], desc::DRAIN);
    assert_eq!((machine.read32(FSTS), machine.read64(IQERCD), machine.read32(IQH)), (0, 0, 25 * 32));
}

/// Descriptors are carried out whether or not translation is enabled.
#[test]
fn the_queue_does_not_need_translation() {
    let machine = Machine::new();
    let driver = Driver::new(&machine);
    driver.enable_queue();
    driver.submit(&[desc::CONTEXT_GLOBAL, desc::IOTLB_GLOBAL, desc::FENCE]);
}

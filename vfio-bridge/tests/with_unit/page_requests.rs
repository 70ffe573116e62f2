//! From a host's fault queue through the guest's queues and back.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use vfio_bridge::testkit::{Answer, Call, Failure};

use crate::machine::{DRAIN, Guest, Machine, iotlb_page};

#[test]
fn a_hosts_fault_goes_through_the_guests_queues() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    guest.bind(0, 1);
    guest.bind(1, 0);
    let bound = machine.kernel.request_pages(0, Some(1), 5, &[0x7000_0000, 0x7000_1000]);
    let without = machine.kernel.request_pages(1, None, 5, &[0x9000]);
    machine.deliver();
    assert_eq!(guest.serve(), [0x7000_1000, 0x9000]);
    let audit = machine.kernel.audit();
    assert_eq!(
        (&audit.groups[bound][..], &audit.groups[without][..]),
        (&[Answer::Written(0)][..], &[Answer::Written(0)][..])
    );
    // The guest's tables have it no more, but it was not said yet: the unit answers.
    guest.tables.context(crate::common::source(0)).pasid(1).clear();
    let gone = machine.kernel.request_pages(0, Some(1), 6, &[0x7000_0000]);
    machine.deliver();
    assert_eq!(guest.serve(), [] as [u64; 0]);
    assert_eq!(machine.kernel.audit().groups[gone], [Answer::Written(1)]);
    // Unread when it is taken away: the kernel answers, and the guest sees nothing.
    guest.bind(0, 1);
    let unread = machine.kernel.request_pages(0, Some(1), 7, &[0x7000_0000]);
    guest.unbind(0, 1);
    machine.deliver();
    assert_eq!((guest.serve(), &machine.kernel.audit().groups[unread][..]), (vec![], &[Answer::Kernel][..]));
    machine.finish();
}

#[test]
fn a_group_costs_two_system_calls() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    guest.bind(0, 1);
    for groups in [1_u32, 7] {
        for group in 0..groups {
            machine.kernel.request_pages(0, Some(1), group, &[0x1000, 0x2000, 0x3000]);
        }
        let before = machine.calls();
        machine.host.deliver_page_requests(&*machine.unit).unwrap();
        assert_eq!(guest.serve().len(), groups as usize);
        let calls = machine.calls() - before;
        assert!(calls <= 2 * groups as usize, "{calls} for {groups}");
    }
    machine.finish();
}

/// A guest may send codes that the host knows nothing of: Linux has one of its own for failure. (code, the host's).
#[test]
fn every_code_but_success_is_invalid() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    guest.bind(0, 1);
    for (code, written) in [(0, 0), (1, 1), (2, 1), (7, 1), (0xf, 1)] {
        let group = machine.kernel.request_pages(0, Some(1), 3, &[0x1000]);
        machine.deliver();
        assert_eq!(guest.serve_with(code), [0x1000]);
        assert_eq!(machine.kernel.audit().groups[group], [Answer::Written(written)], "code {code:#x}");
    }
    machine.finish();
}

/// More than the guest's queue holds: the unit makes the device ask again.
#[test]
fn a_flood_overflows_the_guests_queue_and_loses_nothing() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    guest.bind(0, 1);
    let pages: Vec<u64> = (0..300).map(|n| n << 12).collect();
    for group in 0..10 {
        machine.kernel.request_pages(0, Some(1), group, &pages);
    }
    machine.deliver();
    assert_eq!(guest.serve().len(), 6, "2047 entries hold six whole groups");
    let audit = machine.kernel.audit();
    assert!(audit.groups.iter().all(|answers| answers[..] == [Answer::Written(0)]));
    machine.finish();
}

/// Waits that drain: what the host has is with the guest before they complete, and of other waits nobody expects it.
#[test]
fn what_a_host_has_is_drained() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    guest.bind(0, 1);
    for (name, descriptors, arrived, reads) in
        [("a wait", vec![], 0, 0), ("one that drains", vec![DRAIN], 2, 2), ("another one", vec![DRAIN], 2, 1)]
    {
        if arrived == 0 {
            machine.kernel.request_pages(0, Some(1), 3, &[0x1000]);
            machine.kernel.request_pages(0, Some(1), 4, &[0x1000]);
        }
        let before = machine.count(Call::FaultRead);
        guest.submit(&descriptors);
        assert_eq!(
            (guest.asked().len(), machine.count(Call::FaultRead) - before),
            (arrived, reads),
            "{name}"
        );
    }
    guest.serve();
    assert!(machine.kernel.audit().groups.iter().all(|answers| answers[..] == [Answer::Written(0)]));
    // A host that cannot be read holds nobody up, and what it has comes later.
    machine.kernel.request_pages(0, Some(1), 5, &[0x1000]);
    machine.kernel.fail(Failure::always(Call::FaultRead, Errno::IO));
    guest.submit(&[DRAIN]);
    machine.kernel.heal();
    assert!(guest.asked().is_empty());
    guest.submit(&[DRAIN]);
    assert_eq!(guest.asked(), [1]);
    guest.serve();
    // Nor does one that is never empty.
    let groups = 20 * 2048;
    for group in 0..groups {
        machine.kernel.request_pages(0, Some(1), group, &[0x1000]);
    }
    let before = machine.count(Call::FaultRead);
    guest.submit(&[DRAIN]);
    assert_eq!(machine.count(Call::FaultRead) - before, 16);
    machine.deliver();
    guest.serve();
    machine.finish();
}

/// Translation off: the guest's queue may be another kernel's memory. Nothing is written, nobody waits.
#[test]
fn nothing_arrives_while_translation_is_off() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    guest.bind(0, 1);
    let asked = machine.kernel.request_pages(0, Some(1), 1, &[0x1000]);
    machine.unit.reset();
    machine.deliver();
    assert_eq!(machine.kernel.audit().groups[asked], [Answer::Kernel], "it went with its binding");
    machine.finish();
}

/// Devices ask, the guest answers, binds and flushes, all at once. Nobody waits for ever, nothing is lost.
#[test]
fn model_and_host_never_wait_for_each_other() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    let roots = [1, 2].map(|pasid| guest.bind(0, pasid));
    let entry = guest.tables.context(crate::common::source(0)).pasid(1).at();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let device = scope.spawn(|| {
            for n in 0..3000_u32 {
                machine.kernel.request_pages(0, Some(n % 2 + 1), n % 512, &[0x1000, u64::from(n) << 12]);
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if machine.host.deliver_page_requests(&*machine.unit).unwrap() == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut round = 0;
        while !device.is_finished() || round < 200 {
            round += 1;
            guest.serve();
            let root = if round % 2 == 0 { roots[0].0 } else { 0x50_0000 };
            guest.tables.set_word(iommu_core::Gpa(entry.0 + 16), root);
            guest.submit(&[crate::machine::pasid_cache(1), iotlb_page(2, round << 12)]);
        }
        done.store(true, Ordering::Release);
    });
    while machine.host.deliver_page_requests(&*machine.unit).unwrap() != 0 {
        guest.serve();
    }
    guest.serve();
    let audit = machine.kernel.audit();
    assert!(audit.groups.iter().all(|answers| answers.len() == 1), "one answer for each");
    assert!(audit.groups.iter().flatten().filter(|answer| **answer == Answer::Written(0)).count() > 100);
    assert!(machine.count(Call::Attach) > 100);
    machine.finish();
}

//! From a guest's tables to the kernel's, and what that costs.

use std::sync::atomic::Ordering;

use rustix::io::Errno;
use vfio_bridge::testkit::{Call, Damage, Failure, Hardware};

use crate::common::source;
use crate::machine::{ALL_CONTEXTS, ALL_PASIDS, Guest, Machine, iotlb_page, iotlb_pasid, pasid_cache, walks};

#[test]
fn entries_become_page_tables_of_the_host() {
    let machine = Machine::new();
    assert_eq!(machine.hardware(0, 0), Hardware::Parent, "before translation is on");
    let guest = Guest::boot(&machine);
    assert_eq!(machine.hardware(0, 0), Hardware::Blocked);
    let roots = [0, 1, 700].map(|pasid| guest.bind(0, pasid));
    for (pasid, root) in [0, 1, 700].into_iter().zip(roots) {
        assert_eq!(machine.hardware(0, pasid), walks(root), "{pasid}");
        assert_eq!(machine.hardware(1, pasid), Hardware::Blocked, "{pasid}");
    }
    guest.tables.context(source(1)).pasid(5).pass_through(3);
    guest.submit(&[pasid_cache(5)]);
    assert_eq!(machine.hardware(1, 5), Hardware::Parent);
    let other = guest.bind(0, 1);
    assert_eq!(machine.hardware(0, 1), walks(other));
    guest.unbind(0, 1);
    assert_eq!(machine.hardware(0, 1), Hardware::Blocked);
    guest.tables.context(source(0)).edit(|low| low.with_present(false));
    guest.submit(&[ALL_CONTEXTS]);
    assert!([0, 1, 700].iter().all(|pasid| machine.hardware(0, *pasid) == Hardware::Blocked));
    assert_eq!(machine.hardware(1, 5), Hardware::Parent);
    machine.unit.reset();
    assert_eq!((machine.hardware(0, 0), machine.hardware(1, 5)), (Hardware::Parent, Hardware::Blocked));
    machine.finish();
}

/// (name, descriptors) that change nothing.
#[test]
fn what_changes_nothing_costs_no_system_call() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    for pasid in 0..5 {
        guest.bind(0, pasid);
    }
    let rows = [
        ("a PASID", vec![pasid_cache(1)]),
        ("a PASID that nobody has", vec![pasid_cache(99)]),
        ("a domain", vec![(7 << 16 | 7, 0)]),
        ("all PASIDs", vec![ALL_PASIDS]),
        ("a function", vec![(u64::from(source(0).0) << 32 | 0x31, 0)]),
        ("all", vec![ALL_CONTEXTS, ALL_PASIDS]),
        ("an unknown PASID's translations", vec![iotlb_pasid(99), iotlb_page(99, 0x1000)]),
        ("an unknown domain's", vec![(99 << 16 | 0x22, 0)]),
        ("device-TLBs", vec![(1 << 32 | u64::from(source(0).0) << 16 | 0x108, 0x7fff_ffff_ffff_f800)]),
        ("nothing", vec![]),
    ];
    for (name, descriptors) in rows {
        let before = machine.calls();
        guest.submit(&descriptors);
        assert_eq!(machine.calls() - before, 0, "{name}");
    }
    machine.finish();
}

#[test]
fn one_system_call_flushes_a_table_for_a_wait() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    // PASID 2 is one table of two devices.
    for pasid in [1, 2] {
        guest.bind(0, pasid);
    }
    let shared = guest.tables.word(iommu_core::Gpa(guest.tables.context(source(0)).pasid(2).at().0 + 16));
    guest
        .tables
        .context(source(1))
        .pasid(2)
        .pass_through(7)
        .edit(2, |_| shared)
        .edit(0, |w| w & !0x1c0 | 0x40);
    guest.submit(&[pasid_cache(2)]);
    assert_eq!(machine.hardware(1, 2), machine.hardware(0, 2));
    let pages =
        |pasid, count: u64| (0..count).map(move |page| iotlb_page(pasid, page << 13)).collect::<Vec<_>>();
    let many = [pages(1, 40), pages(2, 40), pages(1, 40)].concat();
    // (name, descriptors, flushes)
    let rows = [
        ("a page", pages(1, 1), 1),
        ("pages of one table", pages(1, 100), 1),
        ("pages of two tables", many, 2),
        ("a table of two devices", vec![iotlb_pasid(2)], 1),
        ("a domain", vec![(7 << 16 | 0x22, 0)], 2),
        ("everything, twice", vec![(0xd2, 0), (0xd2, 0)], 2),
    ];
    for (name, descriptors, flushes) in rows {
        for device in 0..2 {
            machine.kernel.touch(device, Some(2), 0x2000);
        }
        machine.kernel.touch(0, Some(1), 0);
        let (before, flushed) = (machine.calls(), machine.count(Call::Invalidate));
        guest.submit(&descriptors);
        assert_eq!(machine.count(Call::Invalidate) - flushed, flushes, "{name}");
        assert_eq!(machine.calls() - before, flushes, "{name}: nothing else");
        if flushes == 2 {
            let stale = [(0, 1, 0), (0, 2, 0x2000), (1, 2, 0x2000)]
                .map(|(device, pasid, address)| machine.kernel.has_cached(device, Some(pasid), address));
            assert_eq!(stale, [false; 3], "{name}");
        }
    }
    // What is taken away need not be flushed.
    guest.tables.context(source(0)).pasid(1).clear();
    let flushed = machine.count(Call::Invalidate);
    guest.submit(&[pasid_cache(1), iotlb_pasid(1)]);
    assert_eq!(machine.count(Call::Invalidate), flushed);
    machine.finish();
}

/// Each call failing, once: the wait completes, the device is blocked or right, and the next invalidation mends it.
#[test]
fn a_refusal_blocks_and_the_next_invalidation_mends() {
    for call in [Call::HwptAlloc, Call::Attach] {
        let machine = Machine::new();
        let guest = Guest::boot(&machine);
        machine.kernel.fail(Failure { damage: Damage::Torn, ..Failure::next(call, Errno::NOSPC) });
        let root = guest.bind(0, 1);
        assert_eq!(machine.hardware(0, 1), Hardware::Blocked, "{call:?}");
        guest.submit(&[pasid_cache(1)]);
        assert_eq!(machine.hardware(0, 1), walks(root), "{call:?}");
        // A replacement.
        machine.kernel.fail(Failure { damage: Damage::Torn, ..Failure::next(call, Errno::NOSPC) });
        let other = guest.bind(0, 1);
        assert_eq!(machine.hardware(0, 1), Hardware::Blocked, "{call:?}");
        guest.submit(&[ALL_PASIDS]);
        assert_eq!(machine.hardware(0, 1), walks(other), "{call:?}");
        assert_eq!(machine.stops.load(Ordering::Relaxed), 0);
        machine.finish();
    }
}

#[test]
fn a_flush_that_fails_blocks() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    let roots = [1, 2].map(|pasid| guest.bind(0, pasid));
    machine.kernel.touch(0, Some(1), 0x1000);
    machine.kernel.fail(Failure::always(Call::Invalidate, Errno::IO));
    guest.submit(&[iotlb_page(1, 0x1000)]);
    machine.kernel.heal();
    assert_eq!(machine.hardware(0, 1), Hardware::Blocked);
    assert!(!machine.kernel.has_cached(0, Some(1), 0x1000));
    assert_eq!(machine.hardware(0, 2), walks(roots[1]));
    let before = machine.calls();
    guest.submit(&[pasid_cache(2)]);
    assert_eq!(machine.calls(), before, "it was not the one");
    guest.submit(&[pasid_cache(1)]);
    assert_eq!(machine.hardware(0, 1), walks(roots[0]));
    machine.finish();
}

#[test]
fn a_device_that_cannot_be_detached_is_stopped() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    let root = guest.bind(0, 1);
    machine.kernel.fail(Failure::always(Call::Detach, Errno::IO));
    guest.unbind(0, 1);
    assert_eq!((machine.hardware(0, 1), machine.stops.load(Ordering::Relaxed)), (walks(root), 1));
    machine.kernel.heal();
    guest.submit(&[ALL_PASIDS]);
    assert_eq!(machine.hardware(0, 1), Hardware::Blocked);
    machine.finish();
}

/// Hot removal, also of a device that does not answer any more.
#[test]
fn a_device_is_taken_out() {
    for vanished in [false, true] {
        let machine = Machine::new();
        let guest = Guest::boot(&machine);
        guest.bind(0, 1);
        let kept = guest.bind(1, 1);
        if vanished {
            machine.kernel.fail(Failure { times: 2, ..Failure::next(Call::Detach, Errno::NODEV) });
        }
        machine.unit.detach_host(source(0));
        machine.host.remove_device(source(0));
        assert_eq!((machine.hardware(0, 1), machine.hardware(1, 1)), (Hardware::Blocked, walks(kept)));
        let before = machine.calls();
        guest.submit(&[ALL_CONTEXTS, ALL_PASIDS]);
        assert_eq!(machine.calls(), before, "nobody asks for it");
        machine.finish();
    }
}

/// While it is being reset, Linux refuses to attach a device; afterwards it has what the tables say.
#[test]
fn a_device_is_reset() {
    let machine = Machine::new();
    let guest = Guest::boot(&machine);
    guest.bind(0, 1);
    machine.unit.hold_host(source(0));
    machine.kernel.fail(Failure::always(Call::Attach, Errno::BUSY));
    let unanswered = machine.kernel.request_pages(0, Some(1), 3, &[0x1000]);
    let (root, attached) = (guest.install(0, 1), machine.count(Call::Attach));
    let fresh = guest.bind(0, 2);
    guest.submit(&[pasid_cache(1)]);
    assert_eq!(machine.count(Call::Attach), attached, "it is not even tried");
    assert_eq!((machine.hardware(0, 1), machine.hardware(0, 2)), (Hardware::Blocked, Hardware::Blocked));
    machine.kernel.heal();
    machine.host.device_was_reset(source(0), &*machine.unit).unwrap();
    machine.unit.release_host(source(0));
    assert_eq!((machine.hardware(0, 1), machine.hardware(0, 2)), (walks(root), walks(fresh)));
    assert_eq!(machine.kernel.audit().groups[unanswered].len(), 1);
    assert_eq!(guest.serve(), [] as [u64; 0]);
    machine.finish();
}

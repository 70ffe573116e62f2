//! What the nested backend does when nothing fails.

mod common;

use common::{Bench, PASS, check_nothing_left, expected, first, format, guest, memory, source};
use iommu_core::{
    Domain, DomainId, FirstStage, Gpa, HostIommu, Invalidation, IovaRange, PageRequestOutcome, Pasid,
    ResponseCode, Scope, SecondStage, TableFormat,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::sync::Arc;
use vfio_bridge::NestedIommu;
use vfio_bridge::kernel::HwInfo;
use vfio_bridge::testkit::{Answer, Call, FULL_INFO, Failure, FakeKernel, Hardware, config_space};

const SUCCESS: Answer = Answer::Written(0);
const INVALID: Answer = Answer::Written(1);

fn in_range(domain: u32, pasid: u32, range: IovaRange) -> Invalidation {
    let pasid = Pasid::truncate(pasid);
    Invalidation {
        leaf_only: true,
        ..Invalidation::new(Scope::PasidRange { domain: DomainId(domain), pasid, range })
    }
}

/// (name, domains in order for one pair, attach calls, detach calls, tables made) beyond those of taking the
/// device in.
#[test]
fn a_binding_costs_no_more_than_it_must() {
    type Row = (&'static str, Option<u32>, Vec<Domain>, [usize; 3]);
    let rows: [Row; 9] = [
        ("nothing", Some(5), vec![Domain::Blocked], [0, 0, 0]),
        ("bind", Some(5), vec![first(1, 0x1000)], [1, 0, 1]),
        ("the same again", Some(5), vec![first(1, 0x1000), first(1, 0x1000)], [1, 0, 1]),
        ("replace", Some(5), vec![first(1, 0x1000), first(1, 0x2000)], [2, 0, 2]),
        ("unbind", Some(5), vec![first(1, 0x1000), Domain::Blocked], [1, 1, 1]),
        ("pass through", Some(5), vec![PASS, Domain::PassThrough { id: DomainId(4) }], [1, 0, 0]),
        ("without PASID, onto a fault queue", None, vec![PASS, first(1, 0x1000)], [2, 1, 1]),
        ("without PASID, off a fault queue", None, vec![first(1, 0x1000), first(1, 0x2000)], [2, 1, 2]),
        ("PASID 0 is without PASID", Some(0), vec![first(1, 0x1000), PASS], [2, 1, 1]),
    ];
    for (name, pasid, domains, calls) in rows {
        let bench = Bench::new(1);
        let count = || [Call::Attach, Call::Detach, Call::HwptAlloc].map(|call| bench.kernel.count(call));
        let before = count();
        for domain in &domains {
            bench.set((0, pasid), domain).unwrap();
        }
        let after = count();
        assert_eq!([0, 1, 2].map(|n| after[n] - before[n]), calls, "{name}");
        let pair = (0, pasid.filter(|pasid| *pasid != 0));
        assert_eq!(bench.hardware(pair), expected(domains.last().unwrap()), "{name}");
        bench.finish();
    }
}

#[test]
fn devices_with_the_same_tables_share_them() {
    let bench = Bench::new(2);
    for device in 0..2 {
        bench.set((device, Some(5)), &first(1, 0x1000)).unwrap();
        assert!(bench.kernel.touch(device, Some(5), 0x7000));
    }
    assert_eq!(bench.kernel.audit().objects["nested"], 1);
    bench.host.invalidate(&in_range(1, 5, IovaRange::aligned(0x7000, 12)));
    bench.host.sync().unwrap();
    assert_eq!(bench.kernel.count(Call::Invalidate), 1);
    assert!((0..2).all(|device| !bench.kernel.has_cached(device, Some(5), 0x7000)));
    bench.set((0, Some(5)), &Domain::Blocked).unwrap();
    assert_eq!(bench.kernel.audit().objects["nested"], 1, "still used by the other");
    bench.finish();
}

/// (name, domain of the request, errno).
#[test]
fn what_the_host_cannot_nest_blocks() {
    let table = |input_bits, root, format| Domain::FirstStage {
        id: DomainId(1),
        table: FirstStage { root: Gpa(root), input_bits, format },
    };
    let supervisor =
        TableFormat::X86FirstStage { supervisor: true, write_protect: false, extended_accessed: false };
    let accessed =
        TableFormat::X86FirstStage { supervisor: false, write_protect: false, extended_accessed: true };
    let vtd = TableFormat::VtdSecondStage { accessed_dirty: false };
    let second = Domain::SecondStage {
        id: DomainId(1),
        table: SecondStage { root: Gpa(0x1000), input_bits: 48, format: vtd },
    };
    let rows = [
        ("root in the middle of a page", Some(5), table(48, 0x1800, format()), Errno::INVAL),
        ("width of no table", Some(5), table(39, 0x1000, format()), Errno::INVAL),
        ("57 bits", Some(5), table(57, 0x1000, format()), Errno::OPNOTSUPP),
        ("supervisor", Some(5), table(48, 0x1000, supervisor), Errno::OPNOTSUPP),
        ("extended accessed", Some(5), table(48, 0x1000, accessed), Errno::OPNOTSUPP),
        ("not a first-stage format", Some(5), table(48, 0x1000, vtd), Errno::OPNOTSUPP),
        ("second stage", Some(5), second, Errno::OPNOTSUPP),
        ("a map of the model's", Some(5), Domain::Mapped { id: DomainId(1) }, Errno::OPNOTSUPP),
        ("a PASID too wide", Some(1 << 10), first(1, 0x1000), Errno::OPNOTSUPP),
    ];
    let few = HwInfo {
        vendor: match FULL_INFO.vendor {
            vfio_bridge::kernel::VendorInfo::Vtd { flags, ecap, .. } => {
                vfio_bridge::kernel::VendorInfo::Vtd { flags, cap: 0, ecap: ecap & !(1 << 31 | 1 << 34) }
            }
            other => other,
        },
        max_pasid_log2: 10,
        ..FULL_INFO
    };
    for (name, pasid, domain, errno) in rows {
        let bench = Bench::new(0);
        let device = bench.kernel.add_device_with(0, few, config_space(true, true));
        bench.host.add_device(source(0), Box::new(device)).unwrap();
        bench.set((0, Some(5)), &first(1, 0x1000)).unwrap();
        bench.set((0, None), &PASS).unwrap();
        let attached = bench.kernel.count(Call::Attach);
        let error = bench.set((0, pasid), &domain).unwrap_err();
        assert_eq!(Errno::from_io_error(&error.source), Some(errno), "{name}: {error}");
        assert!(!error.still_bound, "{name}");
        assert_eq!(bench.hardware((0, pasid)), Hardware::Blocked, "{name}");
        assert_eq!(bench.hardware((0, None)), Hardware::Parent, "{name}: others stay");
        assert_eq!(bench.kernel.count(Call::Attach), attached, "{name}: the host is not asked");
        bench.finish();
    }
}

/// (name, invalidations between two waits, system calls, pages of domain 1 PASID 5 that must go, that must stay).
#[test]
fn invalidations_reach_what_they_name_in_one_call_each() {
    let page = |n: u64| IovaRange::aligned(n << 12, 12);
    let scope = |scope| vec![Invalidation::new(scope)];
    let (one, other) = (DomainId(1), DomainId(2));
    let five = Pasid::truncate(5);
    let rows = [
        ("none", vec![], 0, vec![], vec![1, 2, 99]),
        ("page", vec![in_range(1, 5, page(2))], 1, vec![2], vec![1, 3, 99]),
        ("pages", (1..4).map(|n| in_range(1, 5, page(n))).collect(), 1, vec![1, 2, 3], vec![4, 99]),
        ("flood", (0..90).map(|n| in_range(1, 5, page(n * 2))).collect(), 1, vec![2, 4, 99], vec![]),
        ("PASID", scope(Scope::Pasid { domain: one, pasid: five }), 1, vec![1, 2, 99], vec![]),
        (
            "other PASID",
            scope(Scope::Pasid { domain: one, pasid: Pasid::truncate(6) }),
            0,
            vec![],
            vec![1, 99],
        ),
        (
            "lower of two PASIDs",
            scope(Scope::Pasid { domain: other, pasid: Pasid::ZERO }),
            1,
            vec![],
            vec![1, 2, 99],
        ),
        ("domain", scope(Scope::Domain(one)), 1, vec![1, 2, 99], vec![]),
        ("page of domain", scope(Scope::DomainRange { domain: one, range: page(1) }), 1, vec![1, 99], vec![]),
        ("other domain", scope(Scope::Domain(other)), 2, vec![], vec![1, 2, 99]),
        ("all", scope(Scope::All), 3, vec![1, 2, 99], vec![]),
        ("widest mask", vec![in_range(1, 5, IovaRange::aligned(0, 64))], 1, vec![1, 99], vec![]),
    ];
    for (name, invalidations, calls, gone, stay) in rows {
        let bench = Bench::new(1);
        bench.set((0, Some(5)), &first(1, 0x1000)).unwrap();
        bench.set((0, Some(7)), &first(2, 0x1000)).unwrap();
        bench.set((0, None), &first(2, 0x3000)).unwrap();
        for n in gone.iter().chain(&stay) {
            assert!(bench.kernel.touch(0, Some(5), n << 12));
        }
        invalidations.iter().for_each(|invalidation| bench.host.invalidate(invalidation));
        assert_eq!(bench.kernel.count(Call::Invalidate), 0, "{name}: put off");
        bench.host.sync().unwrap();
        bench.host.sync().unwrap();
        assert_eq!(bench.kernel.count(Call::Invalidate), calls, "{name}");
        for (pages, cached) in [(&gone, false), (&stay, true)] {
            for n in pages {
                assert_eq!(bench.kernel.has_cached(0, Some(5), n << 12), cached, "{name}: page {n}");
            }
        }
        bench.finish();
    }
}

#[test]
fn what_is_bound_without_pasid_goes_by_pasid_0() {
    let bench = Bench::new(1);
    bench.set((0, None), &first(1, 0x1000)).unwrap();
    bench.kernel.touch(0, None, 0x5000);
    bench.host.invalidate(&in_range(1, 0, IovaRange::aligned(0x5000, 12)));
    bench.host.sync().unwrap();
    assert!(!bench.kernel.has_cached(0, None, 0x5000));
    bench.finish();
}

#[test]
fn a_page_request_goes_to_the_guest_and_its_answer_to_the_device() {
    for (pair, code, answer) in [
        ((0, Some(5)), ResponseCode::Success, SUCCESS),
        ((0, Some(5)), ResponseCode::Invalid, INVALID),
        ((0, None), ResponseCode::Success, SUCCESS),
        ((0, Some(5)), ResponseCode::Failure, INVALID),
    ] {
        let bench = Bench::new(1);
        bench.set(pair, &first(1, 0x1000)).unwrap();
        let queue = bench.host.fault_queue().unwrap();
        let readable = |queue: &_| {
            let mut fds = [PollFd::from_borrowed_fd(std::os::fd::AsFd::as_fd(queue), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
        };
        assert!(!readable(&*queue));
        let group = bench.kernel.request_pages(0, pair.1, 0x1ff, &[0x7000, 0x9123]);
        assert!(readable(&*queue));
        assert_eq!(bench.deliver(), 2);
        assert!(!readable(&*queue));
        {
            let requests = bench.guest.page_requests.lock();
            assert_eq!(
                requests.iter().map(|r| (r.address.0, r.last)).collect::<Vec<_>>(),
                [(0x7000, false), (0x9000, true)]
            );
            assert!(requests.iter().all(|r| r.source == source(0) && r.pasid.map(Pasid::get) == pair.1));
            assert!(requests.iter().all(|r| r.read && r.write && !r.execute && r.group.get() == 0x1ff));
        }
        assert_eq!(bench.kernel.audit().groups[group], []);
        // Unknown ones first, and then once too often.
        for (other, index) in [((0, Some(6)), 0x1ff), (pair, 1), ((1, pair.1), 0x1ff)] {
            bench.respond(other, index, code).unwrap();
        }
        bench.respond(pair, 0x1ff, code).unwrap();
        bench.respond(pair, 0x1ff, code).unwrap();
        assert_eq!(bench.kernel.audit().groups[group], [answer]);
        assert_eq!(bench.kernel.audit().stale_responses, 0);
        let calls = [Call::FaultRead, Call::FaultWrite].map(|call| bench.kernel.count(call));
        assert_eq!(calls, [1, 1], "two system calls for a group");
        drop(queue);
        bench.finish();
    }
}

/// (name, what the guest's model does, answer).
#[test]
fn what_the_model_does_not_queue_is_answered_at_once() {
    let rows = [
        ("nobody listens", PageRequestOutcome::Dropped, INVALID),
        ("overflow", PageRequestOutcome::Answered(ResponseCode::Success), SUCCESS),
        ("refused", PageRequestOutcome::Answered(ResponseCode::Invalid), INVALID),
    ];
    for (name, outcome, answer) in rows {
        let bench = Bench::new(1);
        bench.set((0, Some(5)), &first(1, 0x1000)).unwrap();
        bench.guest.on_page_request(move |_, _| outcome);
        let group = bench.kernel.request_pages(0, Some(5), 3, &[0x1000, 0x2000]);
        bench.deliver();
        assert_eq!(bench.kernel.audit().groups[group], [answer], "{name}");
        bench.respond((0, Some(5)), 3, ResponseCode::Success).unwrap();
        assert_eq!(bench.kernel.audit().groups[group], [answer], "{name}");
        bench.finish();
    }
}

/// The guest's answer may come while the request is still being handed in.
#[test]
fn a_quick_guest_is_heard() {
    let bench = Bench::new(1);
    bench.set((0, Some(5)), &first(1, 0x1000)).unwrap();
    let group = bench.kernel.request_pages(0, Some(5), 3, &[0x1000]);
    let host = Arc::new(bench.host);
    let responder = host.clone();
    bench.guest.on_page_request(move |_, _| {
        responder.respond(&common::response((0, Some(5)), 3, ResponseCode::Success)).unwrap();
        PageRequestOutcome::Queued
    });
    host.deliver_page_requests(&*bench.guest).unwrap();
    assert_eq!(bench.kernel.audit().groups[group], [SUCCESS]);
    bench.guest.on_page_request(|_, _| PageRequestOutcome::Dropped);
    drop(host);
    check_nothing_left(&bench.kernel);
}

/// A device may put PASID 0 before a request; to the host that is a request without PASID, but the guest is told.
#[test]
fn requests_with_pasid_0_go_with_those_without() {
    let bench = Bench::new(1);
    bench.set((0, None), &first(1, 0x1000)).unwrap();
    let answered = bench.kernel.request_pages(0, Some(0), 3, &[0x1000]);
    bench.deliver();
    assert_eq!(bench.guest.page_requests.lock()[0].pasid, Some(Pasid::ZERO));
    bench.respond((0, Some(0)), 3, ResponseCode::Success).unwrap();
    assert_eq!(bench.kernel.audit().groups[answered], [SUCCESS]);
    let open = bench.kernel.request_pages(0, Some(0), 4, &[0x1000]);
    bench.deliver();
    bench.set((0, None), &first(1, 0x2000)).unwrap();
    let next = bench.kernel.request_pages(0, None, 4, &[0x1000]);
    bench.deliver();
    bench.respond((0, Some(0)), 4, ResponseCode::Success).unwrap();
    assert_eq!(bench.kernel.audit().groups[open], [Answer::Kernel]);
    assert_eq!(bench.kernel.audit().groups[next], [], "the cookie is another group's now");
    bench.finish();
}

/// A cookie whose attachment went is never written, though the kernel gives its number to the next group.
#[test]
fn cookies_of_a_detached_table_are_forgotten() {
    for next in [Domain::Blocked, first(1, 0x2000)] {
        let bench = Bench::new(1);
        bench.set((0, Some(5)), &first(1, 0x1000)).unwrap();
        bench.set((0, Some(6)), &first(1, 0x1000)).unwrap();
        let read = bench.kernel.request_pages(0, Some(5), 3, &[0x1000]);
        bench.deliver();
        let unread = bench.kernel.request_pages(0, Some(5), 4, &[0x1000]);
        bench.set((0, Some(5)), &next).unwrap();
        let other = bench.kernel.request_pages(0, Some(6), 3, &[0x1000]);
        assert_eq!(bench.deliver(), 1);
        bench.respond((0, Some(5)), 3, ResponseCode::Success).unwrap();
        assert_eq!(bench.kernel.audit().groups[read], [Answer::Kernel]);
        assert_eq!(bench.kernel.audit().groups[unread], [Answer::Kernel]);
        assert_eq!(bench.kernel.audit().groups[other], [], "the number is the other group's now");
        bench.respond((0, Some(6)), 3, ResponseCode::Success).unwrap();
        assert_eq!(bench.kernel.audit().groups[other], [SUCCESS]);
        assert_eq!(bench.kernel.audit().stale_responses, 0);
        bench.finish();
    }
}

#[test]
fn a_reset_device_has_forgotten_what_it_asked() {
    let bench = Bench::new(2);
    for device in 0..2 {
        bench.set((device, Some(5)), &first(1, 0x1000)).unwrap();
    }
    let read = bench.kernel.request_pages(0, Some(5), 3, &[0x1000]);
    bench.deliver();
    let unread = bench.kernel.request_pages(0, Some(5), 4, &[0x1000]);
    let other = bench.kernel.request_pages(1, Some(5), 4, &[0x1000]);
    bench.host.device_was_reset(source(0), &*bench.guest).unwrap();
    let audit = bench.kernel.audit();
    assert_eq!((&audit.groups[read][..], &audit.groups[unread][..]), (&[INVALID][..], &[INVALID][..]));
    assert_eq!(bench.guest.page_requests.lock().len(), 2, "of the reset device only the one before");
    bench.respond((0, Some(5)), 3, ResponseCode::Success).unwrap();
    bench.respond((1, Some(5)), 4, ResponseCode::Success).unwrap();
    assert_eq!(bench.kernel.audit().groups[other], [SUCCESS]);
    bench.finish();
}

#[test]
fn a_group_index_used_again_gives_the_earlier_group_up() {
    let bench = Bench::new(1);
    bench.set((0, Some(5)), &first(1, 0x1000)).unwrap();
    let groups = [0x1000, 0x2000].map(|address| {
        let group = bench.kernel.request_pages(0, Some(5), 3, &[address]);
        bench.deliver();
        group
    });
    bench.respond((0, Some(5)), 3, ResponseCode::Success).unwrap();
    let audit = bench.kernel.audit();
    assert_eq!(groups.map(|group| audit.groups[group].clone()), [vec![INVALID], vec![SUCCESS]]);
    bench.finish();
}

#[test]
fn a_group_of_any_size_is_read() {
    let bench = Bench::new(1);
    bench.set((0, Some(5)), &first(1, 0x1000)).unwrap();
    let addresses: Vec<u64> = (0..5000).map(|n| n << 12).collect();
    bench.kernel.request_pages(0, Some(5), 3, &addresses);
    bench.kernel.request_pages(0, Some(5), 4, &[0x1000]);
    assert_eq!((bench.deliver(), bench.deliver()), (5001, 0), "one buffer grew enough for both");
    bench.finish();
}

#[test]
fn units_that_share_no_page_table_get_their_own() {
    let kernel = FakeKernel::new();
    let host = NestedIommu::new(Arc::new(kernel.clone())).unwrap();
    for (device, unit) in [0, 1, 0].into_iter().enumerate() {
        host.add_device(source(device), Box::new(kernel.add_device(unit))).unwrap();
    }
    assert_eq!(kernel.audit().objects["nest parent"], 2);
    for device in 0..3 {
        assert_eq!(kernel.hardware(device, None), Hardware::Blocked, "taken in blocked");
        host.set_domain(source(device), None, &PASS).unwrap();
        host.set_domain(source(device), Some(Pasid::truncate(5)), &first(1, 0x1000)).unwrap();
    }
    assert_eq!(kernel.audit().objects["nested"], 2);
    drop(host);
    check_nothing_left(&kernel);
}

#[test]
fn the_guests_units_share_its_memory() {
    let kernel = FakeKernel::new();
    let host = NestedIommu::new(Arc::new(kernel.clone())).unwrap();
    let sibling = host.sibling();
    host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap();
    host.add_memory(&memory()).unwrap();
    sibling.add_device(source(0), Box::new(kernel.add_device(1))).unwrap();
    assert_eq!((kernel.audit().objects["IOAS"], kernel.count(Call::IoasMap)), (1, 2));
    sibling.set_domain(source(0), None, &PASS).unwrap();
    assert_eq!([0, 1].map(|n| kernel.hardware(n, None)), [Hardware::Blocked, Hardware::Parent]);
    // Whichever goes first leaves the other what it needs.
    drop(host);
    sibling.set_domain(source(0), Some(Pasid::truncate(5)), &first(1, 0x1000)).unwrap();
    drop(sibling);
    check_nothing_left(&kernel);
}

#[test]
fn a_device_without_pasid_does_not_take_pasids_from_others() {
    let kernel = FakeKernel::new();
    let host = NestedIommu::new(Arc::new(kernel.clone())).unwrap();
    let plain =
        kernel.add_device_with(0, HwInfo { max_pasid_log2: 0, ..FULL_INFO }, config_space(false, false));
    assert_eq!(host.add_device(source(0), Box::new(plain)).unwrap().capabilities.pasid_bits, 0);
    assert_eq!(
        host.add_device(source(1), Box::new(kernel.add_device(0))).unwrap().capabilities.pasid_bits,
        20
    );
    assert_eq!(host.capabilities().pasid_bits, 0, "both can do what the lesser one can");
    host.set_domain(source(1), Some(Pasid::truncate(5)), &first(1, 0x1000)).unwrap();
    host.set_domain(source(0), None, &first(1, 0x1000)).unwrap();
    assert!(host.set_domain(source(0), Some(Pasid::truncate(5)), &PASS).is_err());
    drop(host);
    check_nothing_left(&kernel);
}

#[test]
fn old_kernels_nest_without_pasid_or_not_at_all() {
    let kernel = FakeKernel::new();
    kernel.without_pasid();
    let host = NestedIommu::new(Arc::new(kernel.clone())).unwrap();
    let offer = host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap();
    assert_eq!((offer.capabilities.pasid_bits, offer.capabilities.first_stage_bits), (0, 57));
    host.set_domain(source(0), None, &first(1, 0x1000)).unwrap();
    kernel.without_nesting();
    let error = host.add_device(source(1), Box::new(kernel.add_device(1))).unwrap_err();
    assert_eq!(error.to_string(), "make a nest parent on device 00:02.0 failed");
    let offer = host.examine(source(1), Box::new(kernel.add_device(1))).unwrap();
    assert_eq!(offer.capabilities.first_stage_bits, 0);
    drop(host);
    check_nothing_left(&kernel);
}

#[test]
fn memory_is_mapped_whole_and_not_over_interrupts() {
    use vm_memory::{GuestAddress, GuestMemoryMmap};
    let bench = Bench::new(1);
    let again = bench.host.add_memory(&memory()).unwrap_err();
    assert_eq!(Errno::from_io_error(&again.source), Some(Errno::EXIST));
    let whole = IovaRange::new(0, 0xffff).unwrap();
    let part = IovaRange::new(0, 0xfff).unwrap();
    assert_eq!(Errno::from_io_error(&bench.host.ioas().unmap(part).unwrap_err().source), Some(Errno::NOENT));
    bench.host.ioas().unmap(whole).unwrap();
    let calls = bench.kernel.count(Call::IoasUnmap);
    assert_eq!(Errno::from_io_error(&bench.host.ioas().unmap(whole).unwrap_err().source), Some(Errno::NOENT));
    assert_eq!(bench.kernel.count(Call::IoasUnmap), calls, "the host is not asked for what is gone");
    let high = IovaRange::new(1 << 32, (1 << 32) + 0xffff).unwrap();
    bench.kernel.fail(Failure::next(Call::IoasUnmap, Errno::BUSY));
    bench.host.ioas().unmap(high).unwrap_err();
    bench.kernel.fail(Failure::next(Call::IoasUnmap, Errno::NOENT));
    bench.host.ioas().unmap(high).unwrap();
    let over: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0xfee0_f000), 0x2000)]).unwrap();
    let refused = bench.host.add_memory(&over).unwrap_err();
    assert_eq!(Errno::from_io_error(&refused.source), Some(Errno::ADDRINUSE));
    bench.finish();
}

/// Page requests that come through a binding are with the guest, or given up, before a change of it returns.
#[test]
fn nothing_is_delivered_after_its_binding_went() {
    let bench = Bench::new(1);
    bench.set((0, Some(5)), &first(1, 0x1000)).unwrap();
    bench.kernel.request_pages(0, Some(5), 3, &[0x1000]);
    let host = Arc::new(bench.host);
    let (started, go_on) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(std::sync::Barrier::new(2)));
    let slow = guest();
    let barriers = (started.clone(), go_on.clone());
    slow.on_page_request(move |_, _| {
        barriers.0.wait();
        barriers.1.wait();
        PageRequestOutcome::Queued
    });
    std::thread::scope(|scope| {
        let pump = scope.spawn(|| host.deliver_page_requests(&*slow).unwrap());
        started.wait();
        let change = scope.spawn(|| {
            host.set_domain(source(0), Some(Pasid::truncate(5)), &Domain::Blocked).unwrap();
            slow.page_requests.lock().len()
        });
        // The change cannot be over while the request is on its way; this can only miss a defect, not invent one.
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!change.is_finished());
        go_on.wait();
        assert_eq!(change.join().unwrap(), 1);
        assert_eq!(pump.join().unwrap(), 1);
    });
    drop(host);
    check_nothing_left(&bench.kernel);
}

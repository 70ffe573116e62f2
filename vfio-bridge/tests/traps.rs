//! What hosts do that nobody would expect, and what is made of it: one row for each surprise.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::shadow::errno;
use common::{Bench, PASS, Pair, check_nothing_left, first, guest, pasid, response, source};
use iommu_core::{Domain, DomainId, FirstStage, Gpa, HostIommu, ResponseCode, TableFormat};
use rustix::io::Errno;
use vfio_bridge::NestedIommu;
use vfio_bridge::caps::Feature;
use vfio_bridge::kernel::{HwInfo, VendorInfo, capability};
use vfio_bridge::sys::uapi::VtdS1;
use vfio_bridge::testkit::{Answer, Call, FULL_INFO, Failure, FakeKernel, Hardware, config_space};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// All that VT-d has, but for bits of ECAP.
fn without(ecap_bits: u64) -> HwInfo {
    let vendor = match FULL_INFO.vendor {
        VendorInfo::Vtd { flags, cap, ecap } => VendorInfo::Vtd { flags, cap, ecap: ecap & !ecap_bits },
        other => other,
    };
    HwInfo { vendor, ..FULL_INFO }
}

const NWFS: u64 = 1 << 33;
const PRS: u64 = 1 << 29;

/// Flags that a host looks at when it has taken the old table down already, or never.
///
/// (name, bits that ECAP lacks, supervisor, write protect, extended accessed, width, flags on the host or the refusal).
#[test]
fn a_tables_flags_are_checked_before_the_host_is_asked() {
    use Errno as E;
    let rows = [
        ("none", 0, [false; 3], 48, Ok(0)),
        ("57 bits", 0, [false; 3], 57, Ok(0)),
        ("supervisor", 0, [true, false, false], 48, Ok(VtdS1::SRE)),
        ("all", 0, [true; 3], 48, Ok(VtdS1::SRE | VtdS1::WPE | VtdS1::EAFE)),
        ("write protection is for supervisors", 0, [false, true, false], 48, Ok(0)),
        ("so it is not missed without them", NWFS, [false, true, false], 48, Ok(0)),
        ("with them it is", NWFS, [true, true, false], 48, Err(E::OPNOTSUPP)),
        ("no supervisors", 1 << 31, [true, false, false], 48, Err(E::OPNOTSUPP)),
        ("no extended accessed flag", 1 << 34, [false, false, true], 48, Err(E::OPNOTSUPP)),
    ];
    for (name, lacks, [supervisor, write_protect, extended_accessed], input_bits, expected) in rows {
        let bench = Bench::new(0);
        let device = bench.kernel.add_device_with(0, without(lacks), config_space(true, true));
        bench.host.add_device(source(0), Box::new(device)).unwrap();
        let format = TableFormat::X86FirstStage { supervisor, write_protect, extended_accessed };
        let table = FirstStage { root: Gpa(0x7000), input_bits, format };
        let attached = bench.kernel.count(Call::Attach);
        let done = bench.set((0, Some(5)), &Domain::FirstStage { id: DomainId(1), table });
        match expected {
            Ok(flags) => {
                done.unwrap();
                let table = VtdS1 { flags, pgtbl_addr: 0x7000, addr_width: input_bits, reserved: 0 };
                assert_eq!(bench.hardware((0, Some(5))), Hardware::Table(table), "{name}");
            }
            Err(refusal) => {
                assert_eq!(errno(&done.unwrap_err()), Some(refusal), "{name}");
                assert_eq!(bench.kernel.count(Call::Attach), attached, "{name}: the host is not asked");
            }
        }
        bench.finish();
    }
}

/// A table with a fault queue cannot be attached where page requests are off, and nobody is told whether they are: what
/// the registers of the device and of its IOMMU say together decides.
///
/// (name, bits that ECAP lacks, neutral capabilities, ATS and PRI of the device, fault queues, why there are no page
/// requests).
#[test]
fn no_fault_queue_where_page_requests_are_off() {
    let all = FULL_INFO.capabilities;
    let rows = [
        ("PRI off", 0, all, (true, false), Ok(()), "host: PRI is off"),
        ("ATS off", 0, all, (false, true), Ok(()), "device: page requests need ATS"),
        ("no page requests in the IOMMU", PRS, all, (true, true), Ok(()), "hardware: no page requests"),
        ("before Linux 6.11", 0, all, (true, true), Err(Errno::NOTTY), "kernel: no fault queues"),
        ("too many open files", 0, all, (true, true), Err(Errno::MFILE), "kernel: no fault queue could"),
    ];
    for (name, lacks, capabilities, (ats, pri), queues, reason) in rows {
        let bench = Bench::new(0);
        if let Err(errno) = queues {
            bench.kernel.fail(Failure::next(Call::FaultQueueAlloc, errno));
        }
        let info = HwInfo { capabilities, ..without(lacks) };
        let device = bench.kernel.add_device_with(0, info, config_space(ats, pri));
        let offer = bench.host.add_device(source(0), Box::new(device)).unwrap();
        assert!(offer.why_not(Feature::PageRequests).is_some_and(|why| why.starts_with(reason)), "{name}");
        for pair in [(0, None), (0, Some(5))] {
            bench.set(pair, &first(1, 0x1000)).unwrap();
            let group = bench.kernel.request_pages(0, pair.1, 3, &[0x1000]);
            assert_eq!(bench.kernel.audit().groups[group], [Answer::Kernel], "{name}: at once");
            bench.deliver();
            bench.respond(pair, 3, ResponseCode::Success).unwrap();
        }
        assert_eq!(bench.kernel.count(Call::FaultWrite), 0, "{name}");
        // The next device may have them, beside it and in the same tables.
        bench.host.add_device(source(1), Box::new(bench.kernel.add_device(0))).unwrap();
        bench.set((1, Some(5)), &first(1, 0x1000)).unwrap();
        let group = bench.kernel.request_pages(1, Some(5), 3, &[0x1000]);
        bench.deliver();
        bench.respond((1, Some(5)), 3, ResponseCode::Success).unwrap();
        assert_eq!(bench.kernel.audit().groups[group], [Answer::Written(0)], "{name}");
        bench.finish();
    }
}

/// "ATS may be used" is no proof of it, "not supported" is: (live ATS, the bit, whether it is offered).
#[test]
fn ats_is_what_the_device_has_on() {
    let not = capability::ATS_NOT_SUPPORTED;
    for (ats, bits, offered) in [(true, 0, true), (false, 0, false), (true, not, false), (false, not, false)]
    {
        let bench = Bench::new(0);
        let info = HwInfo { capabilities: FULL_INFO.capabilities | bits, ..FULL_INFO };
        let device = bench.kernel.add_device_with(0, info, config_space(ats, true));
        let offer = bench.host.add_device(source(0), Box::new(device)).unwrap();
        assert_eq!(offer.capabilities.device_tlb, offered, "ATS {ats}, bits {bits:#x}");
        bench.finish();
    }
}

/// As long as a PASID is attached, requests without PASID need a table with the flag too, and the other way round.
#[test]
fn tables_are_for_pasids_on_both_sides() {
    let bench = Bench::new(1);
    let tables = [first(1, 0x1000), PASS, first(2, 0x2000), Domain::Blocked, PASS, first(1, 0x1000)];
    for without in tables {
        for with in tables {
            bench.set((0, Some(5)), &with).unwrap();
            bench.set((0, None), &without).unwrap();
            bench.set((0, Some(6)), &with).unwrap();
        }
    }
    bench.finish();
}

/// Memory beyond what tables reach is refused as late as a table is made, and then for the whole address space.
#[test]
fn memory_out_of_reach_is_said_to_be() {
    let kernel = FakeKernel::new();
    let host = NestedIommu::new(Arc::new(kernel.clone())).unwrap();
    let high = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(1 << 50), 0x1000)]).unwrap();
    host.add_memory(&high).unwrap();
    let error = host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap_err();
    assert_eq!((error.operation, errno(&error)), ("make a nest parent", Some(Errno::ADDRINUSE)));
    assert!(error.object.contains("00:01.0"), "{error}");
    host.ioas().unmap(iommu_core::IovaRange::aligned(1 << 50, 12)).unwrap();
    host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap();
    let error = host.add_memory(&high).unwrap_err();
    assert_eq!(errno(&error), Some(Errno::INVAL), "with a table, each range by itself");
    assert!(error.object.contains("0x4000000000000"), "{error}");
    drop(host);
    check_nothing_left(&kernel);
}

/// Group indices are of a device and a PASID; cookies are of the queue.
#[test]
fn groups_of_one_index_are_told_apart() {
    let bench = Bench::new(2);
    let pairs: [Pair; 4] = [(0, None), (0, Some(5)), (0, Some(6)), (1, Some(5))];
    for pair in pairs {
        bench.set(pair, &first(1, 0x1000)).unwrap();
    }
    let groups = pairs.map(|(device, number)| bench.kernel.request_pages(device, number, 3, &[0x1000]));
    assert_eq!(bench.deliver(), 4);
    for (answered, pair) in pairs.into_iter().enumerate().rev() {
        bench.respond(pair, 3, ResponseCode::Success).unwrap();
        for (number, group) in groups.into_iter().enumerate() {
            let expected: &[_] = if number >= answered { &[Answer::Written(0)] } else { &[] };
            assert_eq!(bench.kernel.audit().groups[group], expected, "group {number} after {answered}");
        }
    }
    bench.finish();
}

/// An answer that was kept is not sent any more when its attachment went: the number may be another group's by then.
#[test]
fn kept_answers_go_with_their_attachment() {
    let bench = Bench::new(1);
    for number in [5, 6] {
        bench.set((0, Some(number)), &first(1, 0x1000)).unwrap();
    }
    let gone = bench.kernel.request_pages(0, Some(5), 3, &[0x1000]);
    bench.deliver();
    bench.kernel.fail(Failure::next(Call::FaultWrite, Errno::NOMEM));
    bench.respond((0, Some(5)), 3, ResponseCode::Success).unwrap_err();
    bench.set((0, Some(5)), &Domain::Blocked).unwrap();
    let next = bench.kernel.request_pages(0, Some(6), 4, &[0x1000]);
    bench.deliver();
    let audit = bench.kernel.audit();
    assert_eq!((&audit.groups[gone][..], &audit.groups[next][..]), (&[Answer::Kernel][..], &[][..]));
    bench.respond((0, Some(6)), 4, ResponseCode::Success).unwrap();
    assert_eq!(bench.kernel.audit().groups[next], [Answer::Written(0)]);
    assert_eq!(bench.kernel.audit().stale_responses, 0);
    bench.finish();
}

/// A queue that cannot be read is not read for ever, and nothing in it is lost.
#[test]
fn a_queue_that_cannot_be_read_is_given_up_for_now() {
    for refusal in [Errno::INVAL, Errno::IO, Errno::FAULT] {
        let bench = Bench::new(1);
        bench.set((0, Some(5)), &first(1, 0x1000)).unwrap();
        let group = bench.kernel.request_pages(0, Some(5), 3, &[0x1000]);
        bench.kernel.fail(Failure::always(Call::FaultRead, refusal));
        let error = bench.host.deliver_page_requests(&*guest()).unwrap_err();
        assert_eq!((error.operation, errno(&error)), ("read", Some(refusal)));
        assert!(bench.kernel.count(Call::FaultRead) < 12, "{refusal}: a buffer has an end");
        bench.kernel.heal();
        assert_eq!(bench.deliver(), 1, "{refusal}");
        bench.host.respond(&response((0, Some(5)), 3, ResponseCode::Success)).unwrap();
        assert_eq!(bench.kernel.audit().groups[group], [Answer::Written(0)]);
        assert_eq!(bench.host.set_domain(source(0), pasid(Some(5)), &Domain::Blocked).err().map(drop), None);
        bench.finish();
    }
}

//! Copies of a guest's second-stage tables: what is mapped, when, and at what cost.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::shadow::{GuestTables, Host, KINDS, Kind, errno, host_address, ram, second};
use common::{PASS, check_nothing_left, first, pasid, source};
use iommu_core::{Domain, DomainId, HostIommu as _, Invalidation, IovaRange, Permissions, Scope};
use rustix::io::Errno;
use vfio_bridge::caps::Feature;
use vfio_bridge::testkit::{Call, FakeKernel};
use vm_memory::GuestMemoryMmap;

const RW: Permissions = Permissions::READ_WRITE;
const READ: Permissions = Permissions { read: true, write: false };
const WRITE: Permissions = Permissions { read: false, write: true };

struct Bench {
    kernel: FakeKernel,
    guest: Arc<GuestTables>,
    ram: GuestMemoryMmap,
    host: Host,
}

impl Bench {
    fn new(kind: Kind, devices: usize) -> Self {
        let (kernel, guest, ram) = (FakeKernel::new(), Arc::new(GuestTables::default()), ram());
        let host = Host::new(kind, &kernel, guest.clone()).unwrap();
        for device in 0..devices {
            host.add_device(&kernel, device).1.unwrap();
        }
        host.add_memory(&ram).unwrap();
        Self { kernel, guest, ram, host }
    }

    fn set(&self, device: usize, domain: &Domain) {
        self.host.host().set_domain(source(device), None, domain).unwrap();
    }

    /// Invalidates 4 KiB pages of domain 1.
    fn invalidate(&self, page: u64, pages: u64) {
        let range = IovaRange::new(page << 12, ((page + pages) << 12) - 1).unwrap();
        let scope = Scope::DomainRange { domain: DomainId(1), range };
        self.host.host().invalidate(&Invalidation::new(scope));
        self.host.host().sync().unwrap();
    }

    /// Where a device's address leads, in guest memory.
    fn lookup(&self, device: usize, iova: u64) -> Option<(u64, Permissions)> {
        let (address, permissions) = self.host.lookup(&self.kernel, device, iova)?;
        let zero = host_address(&self.ram, 0).unwrap();
        let high = host_address(&self.ram, 1 << 32).unwrap();
        let offset = |from: u64, size| address.checked_sub(from).filter(|offset| *offset < size);
        let gpa = offset(zero, 4 << 20).or_else(|| offset(high, 2 << 20).map(|offset| offset + (1 << 32)));
        Some((gpa.unwrap(), permissions))
    }

    fn finish(self) {
        drop(self.host);
        check_nothing_left(&self.kernel);
        assert_eq!(self.kernel.audit().busy, 0, "children go first");
    }

    fn maps(&self) -> usize {
        [Call::IoasCopy, Call::IoasMap, Call::ContainerMap].iter().map(|call| self.kernel.count(*call)).sum()
    }

    fn unmaps(&self) -> usize {
        [Call::IoasUnmap, Call::ContainerUnmap].iter().map(|call| self.kernel.count(*call)).sum()
    }
}

#[test]
fn a_device_reaches_what_its_domain_maps_and_nothing_else() {
    for kind in KINDS {
        let bench = Bench::new(kind, 2);
        assert_eq!(bench.lookup(0, 0x1000), None, "blocked");
        bench.set(0, &PASS);
        assert_eq!(bench.lookup(0, 0x1000), Some((0x1000, RW)));
        assert_eq!(bench.lookup(0, (1 << 32) + 5), Some(((1 << 32) + 5, RW)));
        bench.guest.map(1, 0x7000, 12, (0x1_0000, RW));
        bench.guest.map(1, 0x8000, 12, (0x2_0000, READ));
        bench.guest.map(1, 0x9000, 12, (0x3_0000, WRITE));
        bench.guest.map(1, 0x20_0000, 21, (1 << 32, RW));
        bench.set(0, &second(1, 0x1000));
        let rows = [
            (0x1000, None),
            (0x7ffc, Some((0x1_0ffc, RW))),
            (0x8000, Some((0x2_0000, READ))),
            (0x9000, Some((0x3_0000, WRITE))),
            (0xa000, None),
            (0x3f_ffff, Some(((1 << 32) + 0x1f_ffff, RW))),
        ];
        for (iova, expected) in rows {
            assert_eq!(bench.lookup(0, iova), expected, "{kind:?} {iova:#x}");
            assert_eq!(bench.lookup(1, iova), None, "the other device is blocked");
        }
        bench.set(0, &Domain::Blocked);
        assert_eq!(bench.lookup(0, 0x7000), None);
        bench.finish();
    }
}

#[test]
fn an_invalidation_brings_the_copy_up_to_date() {
    for kind in KINDS {
        let bench = Bench::new(kind, 2);
        bench.set(0, &second(1, 0x1000));
        bench.set(1, &second(1, 0x1000));
        bench.guest.map(1, 0x5000, 12, (0x1000, RW));
        assert_eq!(bench.lookup(0, 0x5000), None, "not announced yet");
        bench.invalidate(5, 1);
        for device in [0, 1] {
            assert_eq!(bench.lookup(device, 0x5000), Some((0x1000, RW)));
        }
        bench.guest.map(1, 0x5000, 12, (0x2000, RW));
        bench.invalidate(4, 4);
        assert_eq!(bench.lookup(1, 0x5000), Some((0x2000, RW)), "another page");
        bench.guest.unmap(1, &IovaRange::ALL);
        bench.invalidate(6, 1);
        assert_eq!(bench.lookup(1, 0x5000), Some((0x2000, RW)), "another address");
        bench.host.host().invalidate(&Invalidation::new(Scope::Domain(DomainId(2))));
        bench.host.host().sync().unwrap();
        assert_eq!(bench.lookup(1, 0x5000), Some((0x2000, RW)), "another domain");
        bench.host.host().invalidate(&Invalidation::ALL);
        bench.host.host().sync().unwrap();
        for device in [0, 1] {
            assert_eq!(bench.lookup(device, 0x5000), None);
        }
        bench.finish();
    }
}

/// A page of a block is invalidated, and all of the block goes, comes, or is cut.
#[test]
fn blocks_are_hit_whole() {
    for kind in KINDS {
        let bench = Bench::new(kind, 1);
        bench.guest.map(1, 0, 21, (0x20_0000, RW));
        bench.set(0, &second(1, 0x1000));
        assert_eq!(bench.lookup(0, 0x1f_f000), Some((0x3f_f000, RW)));
        // In pieces: one that leads elsewhere, one that leads where it did, the rest nowhere.
        bench.guest.map(1, 0x3000, 12, (0x1000, RW));
        bench.guest.map(1, 0x1f_f000, 12, (0x3f_f000, READ));
        bench.invalidate(0x100, 1);
        let rows = [(0x3000, Some((0x1000, RW))), (0x1f_f000, Some((0x3f_f000, READ))), (0x10_0000, None)];
        for (iova, expected) in rows {
            assert_eq!(bench.lookup(0, iova), expected, "{kind:?} {iova:#x}");
        }
        // And whole again.
        bench.guest.map(1, 0, 21, (0, RW));
        bench.invalidate(0x80, 2);
        assert_eq!(bench.lookup(0, 0x1f_f000), Some((0x1f_f000, RW)));
        // A gigabyte over memory and holes, around which other memory was mapped.
        bench.guest.map(1, 0, 30, (0, RW));
        bench.invalidate(1, 1);
        assert_eq!(bench.lookup(0, 0x3f_ffff), Some((0x3f_ffff, RW)));
        assert_eq!(bench.lookup(0, 0x40_0000), None, "no memory there");
        bench.finish();
    }
}

/// A block in two parts, because interrupt messages are between them: it goes as a whole.
#[test]
fn parts_of_a_block_go_together() {
    for kind in KINDS {
        let bench = Bench::new(kind, 1);
        bench.guest.map(1, 0xfec0_0000, 22, (0, RW));
        bench.set(0, &second(1, 0x1000));
        let rows = [(0xfec0_0000, Some((0, RW))), (0xfee0_0000, None), (0xfef0_0000, Some((0x30_0000, RW)))];
        for (iova, expected) in rows {
            assert_eq!(bench.lookup(0, iova), expected, "{kind:?} {iova:#x}");
        }
        bench.guest.map(1, 0xfec0_0000, 12, (0x1000, RW));
        bench.invalidate(0xf_ec00, 1);
        assert_eq!(bench.lookup(0, 0xfec0_0000), Some((0x1000, RW)));
        assert_eq!(bench.lookup(0, 0xfef0_0000), None, "{kind:?}");
        bench.finish();
    }
}

/// What stays is not touched: a device may be using it.
#[test]
fn neighbours_are_left_alone() {
    for kind in KINDS {
        let bench = Bench::new(kind, 1);
        for page in 0..8_u64 {
            bench.guest.map(1, page << 12, 12, (page << 12, RW));
        }
        bench.set(0, &second(1, 0x1000));
        let (maps, unmaps) = (bench.maps(), bench.unmaps());
        bench.invalidate(0, 8);
        assert_eq!((bench.maps() - maps, bench.unmaps() - unmaps), (0, 0), "nothing changed");
        bench.guest.unmap(1, &IovaRange::aligned(3 << 12, 12));
        bench.guest.unmap(1, &IovaRange::aligned(4 << 12, 12));
        bench.guest.map(1, 6 << 12, 12, (0x1_0000, RW));
        bench.invalidate(0, 8);
        let what = (bench.maps() - maps, bench.unmaps() - unmaps);
        assert_eq!(what, (1, 2), "{kind:?}: neighbours that go, go together");
        bench.finish();
    }
}

/// (call, how often) for a domain of four pages, bound by two devices and changed.
#[test]
fn devices_of_a_domain_share_a_copy_where_they_can() {
    let rows = [
        (
            Kind::Iommufd,
            vec![(Call::IoasAlloc, 2), (Call::IoasCopy, 5), (Call::IoasMap, 2), (Call::IoasUnmap, 1)],
        ),
        (Kind::IommufdMaps, vec![(Call::IoasCopy, 1), (Call::IoasMap, 2 + 5), (Call::IoasUnmap, 1)]),
        // Emptied when a device is bound and when the machine ends is counted below.
        (Kind::Container, vec![(Call::ContainerMap, 2 * 5), (Call::ContainerUnmap, 2)]),
    ];
    for (kind, expected) in rows {
        let bench = Bench::new(kind, 2);
        for page in 0..4_u64 {
            bench.guest.map(1, page << 12, 12, (page << 12, RW));
        }
        bench.set(0, &second(1, 0x1000));
        bench.set(1, &second(1, 0x1000));
        bench.guest.map(1, 0, 12, (0x8000, RW));
        bench.invalidate(0, 1);
        for (call, count) in expected {
            assert_eq!(bench.kernel.count(call), count, "{kind:?} {call:?}");
        }
        bench.finish();
    }
}

#[test]
fn a_guest_that_passes_through_keeps_doing_so() {
    for kind in KINDS {
        let bench = Bench::new(kind, 1);
        bench.set(0, &PASS);
        let calls =
            |bench: &Bench| [Call::Attach, Call::Detach, Call::ContainerUnmap].map(|c| bench.kernel.count(c));
        let before = calls(&bench);
        bench.set(0, &Domain::PassThrough { id: DomainId(77) });
        bench.set(0, &Domain::PassThrough { id: DomainId(77) });
        assert_eq!(calls(&bench), before, "without a gap");
        bench.finish();
    }
}

#[test]
fn first_stages_are_refused_and_the_reason_given() {
    let bench = Bench::new(Kind::Iommufd, 1);
    let host = bench.host.host();
    let rows = [
        ("first stage", None, first(1, 0x1000)),
        ("first stage by PASID", Some(5), first(1, 0x1000)),
        ("second stage by PASID", Some(5), second(1, 0x1000)),
    ];
    bench.set(0, &PASS);
    for (name, number, domain) in rows {
        let error = host.set_domain(source(0), pasid(number), &domain).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::OPNOTSUPP), "{name}");
        assert!(error.to_string().contains("SVA"), "{error}");
        assert!(!error.still_bound);
    }
    assert_eq!(bench.lookup(0, 0x1000), None, "blocked");
    host.set_domain(source(0), pasid(Some(5)), &Domain::Blocked).unwrap();
    let Host::Iommufd(shadow) = &bench.host else { unreachable!() };
    let offer = shadow.add_device(source(1), Box::new(bench.kernel.add_device(0))).unwrap();
    assert!(offer.why_not(Feature::Pasid).is_some());
    let capabilities = shadow.capabilities();
    assert_eq!((capabilities.first_stage_bits, capabilities.second_stage_bits), (0, 48));
    assert_eq!((capabilities.pasid_bits, capabilities.page_requests), (0, false));
    bench.finish();
}

/// Memory that comes later is reached by devices that pass through, and by domains that lead to it.
#[test]
fn memory_may_come_later() {
    for kind in KINDS {
        let (kernel, guest, ram) = (FakeKernel::new(), Arc::new(GuestTables::default()), ram());
        let host = Host::new(kind, &kernel, guest.clone()).unwrap();
        host.add_device(&kernel, 0).1.unwrap();
        host.add_device(&kernel, 1).1.unwrap();
        let bench = Bench { kernel, guest, ram, host };
        bench.set(0, &PASS);
        bench.guest.map(1, 0x1000, 12, (0x2000, RW));
        bench.set(1, &second(1, 0x1000));
        assert_eq!((bench.lookup(0, 0x1000), bench.lookup(1, 0x1000)), (None, None));
        bench.host.add_memory(&bench.ram).unwrap();
        assert_eq!(bench.lookup(0, 0x1000), Some((0x1000, RW)));
        bench.invalidate(1, 1);
        assert_eq!(bench.lookup(1, 0x1000), Some((0x2000, RW)));
        bench.finish();
    }
}

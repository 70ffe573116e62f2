//! Copies of a guest's tables: afterwards a device is blocked or finds what the guest announced, and no object is left.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::common::copies::{Bound, DEVICES, Machine};
use crate::common::shadow::{GuestTables, Host, KINDS, Kind, errno, ram, second};
use crate::common::{check_nothing_left, source};
use iommu_core::{DomainId, HostError, Invalidation, IovaRange, Permissions, Scope};
use rustix::io::Errno;
use vfio_bridge::advice::advice;
use vfio_bridge::shadow::MAPPINGS_LIMIT;
use vfio_bridge::testkit::{CONTAINER_LIMIT, Call, Damage, Failure, FakeKernel};

const RW: Permissions = Permissions::READ_WRITE;

/// Binds, maps, announces and takes back in all the ways there are.
fn history(kind: Kind, kernel: &FakeKernel) -> Result<Machine, HostError> {
    let mut machine = Machine::new(kind, kernel)?;
    for page in 0..4 {
        machine.map(1, page, 0, (page + 1, RW));
        machine.map(2, page + 8, 0, (page + 9, RW));
    }
    for bound in [Bound::Pass, Bound::To(1), Bound::To(2), Bound::Blocked, Bound::To(1)] {
        for device in 0..DEVICES {
            machine.bind(device, bound);
            machine.check();
        }
    }
    machine.bind(1, Bound::To(2));
    let page = |n: u64| IovaRange::aligned(n << 12, 12);
    for n in [1, 9, 17] {
        machine.unmap(1, &page(n));
        machine.map(1, n + 2, 0, (20, RW));
        machine.map(2, n, 2, (32, RW));
        for domain in [1, 2].map(DomainId) {
            machine.invalidate(Scope::DomainRange { domain, range: IovaRange::aligned(n << 12, 15) });
        }
        machine.sync();
        machine.check();
    }
    machine.invalidate(Scope::All);
    machine.sync();
    machine.check();
    machine.bind(0, Bound::Pass);
    machine.check();
    Ok(machine)
}

/// The calls of it.
pub(crate) fn made(kind: Kind) -> BTreeSet<Call> {
    let kernel = FakeKernel::new();
    drop(history(kind, &kernel).unwrap());
    kernel.audit().calls.into_keys().collect()
}

/// Everything can be bound afterwards, and is exact.
fn recovers(machine: &mut Machine) {
    for device in 0..DEVICES {
        for bound in [Bound::To(2), Bound::Pass, Bound::Blocked, Bound::To(1)] {
            machine.bind(device, bound);
            if machine.bound[device] != bound {
                machine.bind(device, bound);
            }
            assert_eq!(machine.bound[device], bound);
            machine.check();
        }
    }
    assert!(machine.stuck.is_empty());
    machine.announce_all();
}

#[test]
fn without_failures_nothing_fails() {
    for kind in KINDS {
        let kernel = FakeKernel::new();
        let mut machine = history(kind, &kernel).unwrap();
        assert_eq!(machine.errors, 0);
        recovers(&mut machine);
        drop(machine);
        check_nothing_left(&kernel);
        assert_eq!(kernel.audit().busy, 0, "children go first");
    }
}

const ERRNOS: [Errno; 3] = [Errno::IO, Errno::INVAL, Errno::OPNOTSUPP];

#[test]
fn each_call_may_fail_once() {
    let mut runs = 0;
    for (kind, errno) in KINDS.into_iter().flat_map(|kind| ERRNOS.map(|errno| (kind, errno))) {
        for damage in [Damage::None, Damage::Torn, Damage::Done] {
            for after in 0.. {
                let kernel = FakeKernel::new();
                kernel.fail(Failure { errno, damage, ..Failure::nth(after) });
                if let Ok(mut machine) = history(kind, &kernel) {
                    assert!(machine.stuck.is_empty(), "{kind:?} {errno} at {after}: one refusal is retried");
                    recovers(&mut machine);
                }
                check_nothing_left(&kernel);
                runs += 1;
                if kernel.heal() {
                    break;
                }
            }
        }
    }
    assert!(runs > 27 * 50, "a history has dozens of calls: {runs}");
}

/// From some moment on a call fails for good, then the host comes back to its senses.
#[test]
fn each_kind_of_call_may_fail_for_long() {
    for (kind, call) in
        KINDS.into_iter().flat_map(|kind| made(kind).into_iter().map(move |call| (kind, call)))
    {
        for (after, damage) in
            [0, 1, 2, 3, 5, 8, 13, 21].into_iter().flat_map(|n| [(n, Damage::None), (n, Damage::Done)])
        {
            let kernel = FakeKernel::new();
            kernel.fail(Failure { after, damage, ..Failure::always(call, Errno::IO) });
            let machine = history(kind, &kernel);
            kernel.heal();
            if let Ok(mut machine) = machine {
                let detaching = matches!(call, Call::Detach | Call::ContainerUnmap);
                assert!(machine.stuck.is_empty() || detaching, "{kind:?} {call:?}");
                recovers(&mut machine);
            }
            check_nothing_left(&kernel);
        }
    }
}

/// A device that cannot be detached is reported so, and what others map in the same domain is not what it has.
#[test]
fn what_is_stuck_is_said_to_be_and_tried_again() {
    for kind in KINDS {
        let kernel = FakeKernel::new();
        let mut machine = Machine::new(kind, &kernel).unwrap();
        machine.map(1, 3, 0, (3, RW));
        machine.bind(0, Bound::To(1));
        machine.bind(1, Bound::To(1));
        let detach = if kind.has_containers() { Call::ContainerUnmap } else { Call::Detach };
        kernel.fail(Failure { damage: Damage::None, ..Failure::always(detach, Errno::IO) });
        let error = machine.host.host().set_domain(source(0), None, &second(2, 0)).unwrap_err();
        assert!(error.still_bound, "{kind:?}");
        assert!(error.to_string().contains("device 00:01.0 failed; the device may still use"), "{error}");
        kernel.heal();
        recovers(&mut machine);
        drop(machine);
        check_nothing_left(&kernel);
    }
}

/// A copy that was half changed is kept for a device that cannot be detached from it, and for no other.
#[test]
fn a_broken_copy_is_nobody_elses() {
    let kernel = FakeKernel::new();
    let mut machine = Machine::new(Kind::IommufdMaps, &kernel).unwrap();
    machine.map(1, 3, 0, (3, RW));
    machine.bind(0, Bound::To(1));
    machine.unmap(1, &IovaRange::ALL);
    machine.map(1, 4, 0, (4, RW));
    kernel.fail(Failure::always(Call::IoasMap, Errno::IO));
    kernel.fail(Failure::always(Call::Detach, Errno::IO));
    machine.host.host().invalidate(&Invalidation::ALL);
    let error = machine.host.host().sync().unwrap_err();
    assert!(error.still_bound);
    kernel.heal();
    machine.bind(1, Bound::To(1));
    machine.map(1, 5, 0, (5, RW));
    machine.host.host().invalidate(&Invalidation::ALL);
    machine.host.host().sync().unwrap();
    let zero = machine.host.lookup(&kernel, 1, 4 << 12).unwrap().0 - 0x4000;
    let found: Vec<_> = (3..6_u64).map(|page| machine.host.lookup(&kernel, 1, page << 12)).collect();
    assert_eq!(found, [None, Some((zero + 0x4000, RW)), Some((zero + 0x5000, RW))]);
    assert_eq!(
        machine.host.lookup(&kernel, 0, 3 << 12),
        None,
        "what the guest took back is gone in any case"
    );
    machine.bind(0, Bound::Blocked);
    recovers(&mut machine);
    drop(machine);
    check_nothing_left(&kernel);
}

/// Memory that is added while devices pass through is there for all of them, or for none.
#[test]
fn added_memory_is_everybodys_or_nobodys() {
    use vm_memory::{GuestAddress, GuestMemoryMmap};
    let kernel = FakeKernel::new();
    let mut machine = Machine::new(Kind::Container, &kernel).unwrap();
    (0..DEVICES).for_each(|device| machine.bind(device, Bound::Pass));
    let more = GuestMemoryMmap::from_ranges(&[(GuestAddress(1 << 33), 0x1_0000)]).unwrap();
    let reached = |machine: &Machine| {
        [0, 1].map(|container| machine.host.lookup(&kernel, container, (1 << 33) + 0x1234).is_some())
    };
    for (after, reaches) in [(0, [false; 2]), (1, [false; 2]), (2, [true; 2])] {
        kernel.fail(Failure { after, ..Failure::next(Call::ContainerMap, Errno::NOMEM) });
        let added = machine.host.add_memory(&more);
        assert_eq!(added.is_ok(), reaches[0], "after {after}");
        assert_eq!(reached(&machine), reaches, "after {after}");
        kernel.heal();
    }
    drop(machine);
    check_nothing_left(&kernel);
}

/// A guest that maps without end.
#[test]
fn a_domain_has_a_limit() {
    for kind in [Kind::Iommufd, Kind::Container] {
        let limit = if kind == Kind::Container { CONTAINER_LIMIT } else { MAPPINGS_LIMIT };
        let (kernel, guest, ram) = (FakeKernel::new(), Arc::new(GuestTables::default()), ram());
        let host = Host::new(kind, &kernel, guest.clone()).unwrap();
        let (number, added) = host.add_device(&kernel, 0);
        added.unwrap();
        host.add_memory(&ram).unwrap();
        for page in 0..limit as u64 {
            guest.put(1, page << 12, 12, (0, RW));
        }
        host.host().set_domain(source(0), None, &second(1, 0)).unwrap();
        assert!(host.lookup(&kernel, number, 0x1000).is_some());
        guest.put(1, (limit as u64) << 12, 12, (0, RW));
        host.host().invalidate(&Invalidation::ALL);
        let error = host.host().sync().unwrap_err();
        assert_eq!(errno(&error), Some(Errno::NOSPC), "{error}");
        assert!(kind == Kind::Container || error.object.contains("262144"), "{error}");
        assert!(advice(&error).is_some());
        assert_eq!(host.lookup(&kernel, number, 0x1000), None, "blocked");
        drop(host);
        check_nothing_left(&kernel);
    }
}

/// Mappings that lead nowhere cost the host nothing but time, and that has an end too.
#[test]
fn mappings_that_lead_nowhere_count() {
    let (kernel, guest, ram) = (FakeKernel::new(), Arc::new(GuestTables::default()), ram());
    let host = Host::new(Kind::Iommufd, &kernel, guest.clone()).unwrap();
    host.add_device(&kernel, 0).1.unwrap();
    host.add_memory(&ram).unwrap();
    for page in 0..=MAPPINGS_LIMIT as u64 {
        guest.put(1, page << 12, 12, (1 << 40, RW));
    }
    let error = host.host().set_domain(source(0), None, &second(1, 0)).unwrap_err();
    assert_eq!(errno(&error), Some(Errno::NOSPC), "{error}");
    guest.unmap(1, &IovaRange::aligned(0, 12));
    let calls = kernel.count(Call::IoasCopy);
    host.host().set_domain(source(0), None, &second(1, 0)).unwrap();
    assert_eq!(kernel.count(Call::IoasCopy), calls);
}

/// Locked memory that is not enough: the error names the limit.
#[test]
fn too_little_locked_memory_is_said_to_be() {
    for (kind, call) in [
        (Kind::IommufdMaps, Call::IoasMap),
        (Kind::Container, Call::ContainerMap),
        (Kind::Iommufd, Call::Attach),
    ] {
        let kernel = FakeKernel::new();
        let mut machine = Machine::new(kind, &kernel).unwrap();
        machine.map(1, 3, 0, (3, RW));
        kernel.fail(Failure::always(call, Errno::NOMEM));
        let error = machine.host.host().set_domain(source(0), None, &second(1, 0x1000)).unwrap_err();
        assert!(advice(&error).unwrap().contains("limit of locked memory"), "{kind:?}: {error}");
        machine.check();
    }
}

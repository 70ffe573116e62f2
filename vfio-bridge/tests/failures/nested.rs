//! Nested tables: afterwards a pair is blocked or on the right table, no object is left, and no page request is lost or
//! answered twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::common::{
    PASS, Pair, check_nothing_left, expected, first, guest, memory, pasid, response, source,
};
use iommu_core::testkit::ListTranslator;
use iommu_core::{Domain, HostError, HostIommu, Invalidation, IovaRange, ResponseCode, Scope};
use rustix::io::Errno;
use vfio_bridge::NestedIommu;
use vfio_bridge::testkit::{Answer, Call, Damage, Failure, FakeKernel, Hardware};

const PAIRS: [Pair; 6] = [(0, None), (0, Some(5)), (0, Some(6)), (1, None), (1, Some(5)), (1, Some(6))];

/// A host under failure and what its devices may do.
struct Machine {
    kernel: FakeKernel,
    host: NestedIommu,
    guest: Arc<ListTranslator>,
    bound: BTreeMap<Pair, Domain>,
    /// Reported as still bound to whatever it was.
    stuck: BTreeSet<Pair>,
    errors: usize,
    /// Devices taken in.
    known: BTreeSet<usize>,
}

impl Machine {
    fn new(kernel: &FakeKernel) -> Result<Self, HostError> {
        let host = NestedIommu::new(Arc::new(kernel.clone()))?;
        Ok(Self {
            kernel: kernel.clone(),
            host,
            guest: guest(),
            bound: BTreeMap::new(),
            stuck: BTreeSet::new(),
            errors: 0,
            known: BTreeSet::new(),
        })
    }

    fn note<T>(&mut self, result: Result<T, HostError>) -> Option<HostError> {
        let error = result.err();
        self.errors += usize::from(error.is_some());
        error
    }

    fn set(&mut self, pair: Pair, domain: Domain) {
        let result = self.host.set_domain(source(pair.0), pasid(pair.1), &domain);
        self.bound.remove(&pair);
        self.stuck.remove(&pair);
        match self.note(result) {
            None => {
                self.bound.insert(pair, domain);
            }
            Some(error) if error.still_bound => {
                self.stuck.insert(pair);
            }
            Some(_) => {}
        }
        self.check();
    }

    fn sync(&mut self) {
        let result = self.host.sync();
        if let Some(error) = self.note(result) {
            // What could not be flushed is blocked, and the error says if not even that was possible.
            let lost: Vec<_> =
                self.bound.keys().copied().filter(|p| self.hardware(*p) == Hardware::Blocked).collect();
            assert!(!lost.is_empty() || error.still_bound, "{error}");
            for pair in lost {
                self.bound.remove(&pair);
            }
            if error.still_bound {
                self.stuck.extend(self.bound.keys());
            }
        }
        self.check();
    }

    fn hardware(&self, pair: Pair) -> Hardware {
        self.kernel.hardware(pair.0, pair.1)
    }

    /// Every pair does what it should, whatever was done to others.
    fn check(&self) {
        for pair in PAIRS.iter().filter(|pair| !self.stuck.contains(pair)) {
            let domain = self.bound.get(pair).unwrap_or(&Domain::Blocked);
            assert_eq!(self.hardware(*pair), expected(domain), "{pair:?}");
        }
    }

    fn remove(&mut self, device: usize) {
        self.host.remove_device(source(device));
        self.bound.retain(|pair, _| pair.0 != device);
        self.stuck.retain(|pair| pair.0 != device);
        self.check();
    }

    fn deliver(&mut self) {
        let result = self.host.deliver_page_requests(&*self.guest);
        self.note(result);
    }

    fn respond(&mut self, pair: Pair, group: u16) {
        let result = self.host.respond(&response(pair, group, ResponseCode::Success));
        self.note(result);
    }
}

/// Takes devices in, binds, replaces and unbinds.
fn bind(machine: &mut Machine) {
    for device in 0..2 {
        let file = Box::new(machine.kernel.add_device(u32::try_from(device).unwrap()));
        let result = machine.host.add_device(source(device), file);
        if machine.note(result).is_none() {
            machine.known.insert(device);
        }
        machine.check();
    }
    let result = machine.host.add_memory(&memory());
    machine.note(result);
    for domain in [PASS, first(1, 0x1000), first(1, 0x2000), PASS, Domain::Blocked, first(1, 0x1000)] {
        for pair in PAIRS {
            machine.set(pair, domain);
        }
    }
    machine.set((0, None), PASS);
}

/// Flushes tables, two of which need several entries.
fn invalidate(machine: &mut Machine) {
    let page = |n: u64| IovaRange::aligned(n << 12, 12);
    let of = |domain, number, n| {
        let pasid = pasid(Some(number)).unwrap();
        Invalidation::new(Scope::PasidRange { domain: iommu_core::DomainId(domain), pasid, range: page(n) })
    };
    for round in 0..3 {
        for pair in PAIRS {
            machine.kernel.touch(pair.0, pair.1, 3 << 12);
        }
        for n in [3, 9, 20] {
            machine.host.invalidate(&of(1, 5, n));
            machine.host.invalidate(&of(1, 6, n + round));
        }
        machine.sync();
        for pair in [(0, Some(5)), (1, Some(5))] {
            let stale = machine.kernel.has_cached(pair.0, pair.1, 3 << 12);
            assert!(!stale || machine.stuck.contains(&pair), "{pair:?}");
        }
    }
}

/// Page requests that are answered, given up, overtaken and left over.
fn fault(machine: &mut Machine) {
    for (index, pair) in PAIRS.into_iter().enumerate() {
        let index = u32::try_from(index).unwrap();
        machine.kernel.request_pages(pair.0, pair.1, index, &[0x1000, 0x5000]);
        if index.is_multiple_of(2) {
            machine.deliver();
        }
    }
    machine.deliver();
    machine.respond((0, Some(5)), 1);
    machine.respond((1, None), 3);
    machine.respond((0, Some(5)), 1);
    machine.kernel.request_pages(0, Some(6), 7, &[0x1000]);
    let result = machine.host.device_was_reset(source(0), &*machine.guest);
    machine.note(result);
    machine.set((1, Some(5)), first(3, 0x1000));
    machine.respond((1, Some(5)), 4);
    machine.kernel.request_pages(1, Some(5), 4, &[0x1000]);
    machine.deliver();
    machine.respond((1, Some(5)), 4);
    machine.kernel.request_pages(1, Some(6), 9, &[0x1000]);
    machine.deliver();
}

/// All of it. The machine, or how its making failed.
fn history(kernel: &FakeKernel) -> Result<Machine, HostError> {
    let mut machine = Machine::new(kernel)?;
    bind(&mut machine);
    invalidate(&mut machine);
    fault(&mut machine);
    machine.remove(1);
    let file = Box::new(kernel.add_device(0));
    let result = machine.host.examine(source(2), file);
    machine.note(result);
    machine.check();
    let result = machine.host.ioas().unmap(IovaRange::new(0, 0xffff).unwrap());
    machine.note(result);
    Ok(machine)
}

/// The calls of it.
pub(crate) fn made() -> BTreeSet<Call> {
    let kernel = FakeKernel::new();
    drop(history(&kernel).unwrap());
    kernel.audit().calls.into_keys().collect()
}

/// After the trouble everything can be bound that the host takes, at the second attempt at the latest.
fn recovers(machine: &mut Machine) {
    if !machine.known.contains(&0) {
        return;
    }
    for pair in [(0, None), (0, Some(5)), (0, Some(6))] {
        for domain in [first(5, 0x7000), Domain::Blocked, PASS] {
            let pasid = pair.1.is_none() || machine.host.capabilities().pasid_bits != 0;
            machine.set(pair, domain);
            if machine.bound.get(&pair) != Some(&domain) {
                machine.set(pair, domain);
            }
            assert!(machine.bound.contains_key(&pair) || !pasid, "{pair:?}");
        }
    }
    assert_eq!(machine.stuck, BTreeSet::new());
}

#[test]
fn without_failures_nothing_fails() {
    let kernel = FakeKernel::new();
    let mut machine = history(&kernel).unwrap();
    assert_eq!(machine.errors, 0);
    let written = kernel.audit().groups.iter().flatten().filter(|a| matches!(a, Answer::Written(0))).count();
    assert_eq!(written, 3);
    recovers(&mut machine);
    drop(machine);
    check_nothing_left(&kernel);
    assert_eq!(kernel.audit().stale_responses, 0);
    assert_eq!(kernel.audit().busy, 0, "children go first");
}

const ERRNOS: [Errno; 5] = [Errno::IO, Errno::BUSY, Errno::INVAL, Errno::NOMEM, Errno::OPNOTSUPP];

#[test]
fn each_call_may_fail_once() {
    let mut runs = 0;
    for errno in ERRNOS {
        for (damage, partial) in [(Damage::Torn, 0), (Damage::None, 1), (Damage::Done, 2)] {
            for after in 0.. {
                let kernel = FakeKernel::new();
                kernel.fail(Failure { errno, damage, partial, ..Failure::nth(after) });
                if let Ok(mut machine) = history(&kernel) {
                    assert!(machine.stuck.is_empty(), "{errno} at {after}: one refusal is retried");
                    recovers(&mut machine);
                }
                // The machine is gone, and with it whatever failed on the way down.
                check_nothing_left(&kernel);
                assert_eq!(kernel.audit().stale_responses, 0, "{errno} at {after}");
                runs += 1;
                if kernel.heal() {
                    break;
                }
            }
        }
    }
    assert!(runs > 15 * 100, "a history has hundreds of calls: {runs}");
}

/// From some moment on a call fails for good, then the host comes back to its senses.
#[test]
fn each_kind_of_call_may_fail_for_long() {
    let lengths = [0, 1, 2, 3, 5, 8, 13, 21, 34, 55];
    for (call, errno) in made().into_iter().flat_map(|call| ERRNOS.map(|errno| (call, errno))) {
        for (after, damage) in lengths.into_iter().flat_map(|n| [(n, Damage::Torn), (n, Damage::Done)]) {
            let kernel = FakeKernel::new();
            kernel.fail(Failure { after, damage, ..Failure::always(call, errno) });
            let machine = history(&kernel);
            kernel.heal();
            if let Ok(mut machine) = machine {
                assert!(machine.stuck.is_empty() || call == Call::Detach, "{call:?} {errno}");
                recovers(&mut machine);
            }
            check_nothing_left(&kernel);
        }
    }
}

/// A device that cannot be detached is reported so, is kept with all it needs, and is detached as soon as possible.
#[test]
fn what_is_stuck_is_said_to_be_and_tried_again() {
    for domain in [Domain::Blocked, first(1, 0x2000), PASS] {
        let kernel = FakeKernel::new();
        let mut machine = Machine::new(&kernel).unwrap();
        machine.host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap();
        machine.set((0, Some(5)), first(1, 0x1000));
        kernel.fail(Failure { damage: Damage::None, ..Failure::always(Call::Attach, Errno::BUSY) });
        kernel.fail(Failure::always(Call::Detach, Errno::IO));
        let error = machine.host.set_domain(source(0), pasid(Some(5)), &domain).unwrap_err();
        assert!(error.still_bound);
        assert_eq!(
            error.to_string(),
            "detach on device 00:01.0 PASID 0x5 failed; the device may still use what it was bound to"
        );
        assert_eq!(machine.hardware((0, Some(5))), expected(&first(1, 0x1000)));
        assert_eq!(kernel.audit().objects["nested"], 1, "the table it uses is kept");
        kernel.heal();
        machine.set((0, Some(5)), domain);
        assert_eq!(machine.errors, 0);
        drop(machine);
        check_nothing_left(&kernel);
    }
}

/// What is bound cannot be bound again without a call while it is stuck.
#[test]
fn a_stuck_binding_is_never_taken_for_the_same() {
    let kernel = FakeKernel::new();
    let mut machine = Machine::new(&kernel).unwrap();
    machine.host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap();
    machine.set((0, Some(5)), first(1, 0x1000));
    kernel.fail(Failure::always(Call::Attach, Errno::BUSY));
    kernel.fail(Failure::always(Call::Detach, Errno::IO));
    machine.set((0, Some(5)), first(1, 0x2000));
    assert_eq!(machine.stuck.len(), 1);
    assert_eq!(
        machine.hardware((0, Some(5))),
        Hardware::Blocked,
        "torn, though the kernel's books say otherwise"
    );
    kernel.heal();
    machine.set((0, Some(5)), first(1, 0x1000));
    assert_eq!(machine.errors, 1, "the second attempt");
    drop(machine);
    check_nothing_left(&kernel);
}

/// (name, entries done before the refusal, refusals, system calls, whether the table stays).
#[test]
fn invalidations_go_on_where_the_host_stopped() {
    let rows = [
        ("none fails", 0, 0, 1, true),
        ("the first", 0, 1, 2, true),
        ("in the middle", 1, 1, 2, true),
        ("in the middle, twice", 1, 2, 3, true),
        ("the first, and all", 0, 2, 2, false),
        ("never again", 0, usize::MAX, 2, false),
    ];
    for (name, partial, times, calls, stays) in rows {
        let kernel = FakeKernel::new();
        let mut machine = Machine::new(&kernel).unwrap();
        machine.host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap();
        machine.set((0, Some(5)), first(1, 0x1000));
        let pages = [2_u64, 8, 32, 128].map(|n| n << 12);
        for page in pages {
            kernel.touch(0, Some(5), page);
            machine.host.invalidate(&Invalidation::new(Scope::PasidRange {
                domain: iommu_core::DomainId(1),
                pasid: pasid(Some(5)).unwrap(),
                range: IovaRange::aligned(page, 12),
            }));
        }
        kernel.fail(Failure { partial, times, ..Failure::next(Call::Invalidate, Errno::IO) });
        machine.sync();
        assert_eq!(kernel.count(Call::Invalidate), calls, "{name}");
        assert!(pages.iter().all(|page| !kernel.has_cached(0, Some(5), *page)), "{name}");
        assert_eq!(machine.hardware((0, Some(5))) != Hardware::Blocked, stays, "{name}");
        kernel.heal();
        drop(machine);
        check_nothing_left(&kernel);
    }
}

/// An answer that the host could not take is offered with the next one.
#[test]
fn answers_are_kept_until_they_are_taken() {
    let kernel = FakeKernel::new();
    let mut machine = Machine::new(&kernel).unwrap();
    machine.host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap();
    machine.set((0, Some(5)), first(1, 0x1000));
    let groups = [3, 4].map(|index| kernel.request_pages(0, Some(5), index, &[0x1000]));
    machine.deliver();
    kernel.fail(Failure::next(Call::FaultWrite, Errno::NOMEM));
    machine.respond((0, Some(5)), 3);
    assert_eq!(machine.errors, 1);
    assert_eq!(kernel.audit().groups[groups[0]], []);
    machine.respond((0, Some(5)), 4);
    assert_eq!(
        groups.map(|g| kernel.audit().groups[g].clone()),
        [[Answer::Written(0)], [Answer::Written(0)]]
    );
    drop(machine);
    check_nothing_left(&kernel);
}

/// The kernel answered by itself and says so: nothing is wrong, and nothing is kept.
#[test]
fn answers_that_come_too_late_are_no_errors() {
    let kernel = FakeKernel::new();
    let mut machine = Machine::new(&kernel).unwrap();
    machine.host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap();
    machine.set((0, Some(5)), first(1, 0x1000));
    kernel.request_pages(0, Some(5), 3, &[0x1000]);
    machine.deliver();
    kernel.fail(Failure::next(Call::FaultWrite, Errno::INVAL));
    machine.respond((0, Some(5)), 3);
    machine.respond((0, Some(5)), 3);
    assert_eq!((machine.errors, kernel.count(Call::FaultWrite)), (0, 1));
    drop(machine);
    check_nothing_left(&kernel);
}

/// An object that the kernel would not let go is gone with the next one.
#[test]
fn what_is_lost_is_found_again() {
    let kernel = FakeKernel::new();
    let mut machine = Machine::new(&kernel).unwrap();
    machine.host.add_device(source(0), Box::new(kernel.add_device(0))).unwrap();
    kernel.fail(Failure::next(Call::Destroy, Errno::BUSY));
    for (root, left) in [(0x1000, 1), (0x2000, 2), (0x3000, 1)] {
        machine.set((0, Some(5)), first(1, root));
        assert_eq!(kernel.audit().objects["nested"], left, "table at {root:#x}");
    }
    drop(machine);
    check_nothing_left(&kernel);
}

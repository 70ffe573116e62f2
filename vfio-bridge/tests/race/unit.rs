//! The bridge behind a unit: a guest at its queues, a host that reports, a device that asks, and a machine that resets
//! it or takes it out.

use std::sync::Arc;

use iommu_core::sync::atomic::{AtomicBool, Ordering};
use rustix::io::Errno;
use shuttle::thread::{self, JoinHandle};
use vfio_bridge::testkit::{Call, Damage, Failure, Hardware};

use crate::common::source;
use crate::explore;
use crate::machine::{ALL_PASIDS, DRAIN, Guest, Machine, iotlb_page, iotlb_pasid, walks};

/// The table that the guest changes and takes away.
const PASID: u32 = 1;
/// Of another one, which stays.
const OTHER: u32 = 2;

fn spawn(machine: &Arc<Machine>, work: impl Fn(&Machine) + Send + 'static) -> JoinHandle<()> {
    let machine = machine.clone();
    thread::spawn(move || work(&machine))
}

/// The event loop: as often as something may be there.
fn pump(machine: &Machine) {
    for _ in 0..3 {
        machine.host.deliver_page_requests(&*machine.unit).unwrap();
    }
}

/// The device: groups through both tables, an index twice.
fn ask(machine: &Machine) {
    for (pasid, group) in [(PASID, 3), (OTHER, 3), (PASID, 4), (PASID, 3)] {
        machine.kernel.request_pages(0, Some(pasid), group, &[0x1000, 0x5000]);
    }
}

/// Others are done. What is under way comes to its end, nothing of it through a table that was taken away; then every
/// group has one answer.
fn settle(
    machine: &Machine,
    guest: &Guest<'_>,
    others: impl IntoIterator<Item = JoinHandle<()>>,
    gone: &[u32],
) {
    for other in others {
        other.join().unwrap();
    }
    machine.deliver();
    let asked = guest.asked();
    assert!(!asked.iter().any(|pasid| gone.contains(pasid)), "asked through a table that went: {asked:?}");
    guest.serve();
    for (number, answers) in machine.kernel.audit().groups.iter().enumerate() {
        assert_eq!(answers.len(), 1, "group {number}: {answers:?}");
    }
    assert_eq!(machine.kernel.audit().stale_responses, 0, "a cookie was written that was nobody's");
}

/// Ends the machine, which nobody else has any more.
fn end(machine: Arc<Machine>) {
    Arc::into_inner(machine).unwrap().finish();
}

/// The guest binds, flushes, answers and takes away, while its device asks.
fn bindings() {
    let machine = Arc::new(Machine::new());
    let guest = Guest::boot(&machine);
    guest.bind(0, PASID);
    let kept = guest.bind(0, OTHER);
    let others = [spawn(&machine, ask), spawn(&machine, pump)];
    guest.serve();
    guest.submit(&[iotlb_page(PASID, 0x1000), iotlb_pasid(OTHER)]);
    let replaced = guest.bind(0, PASID);
    assert_eq!(machine.hardware(0, PASID), walks(replaced));
    guest.serve();
    guest.unbind(0, PASID);
    assert_eq!(machine.hardware(0, PASID), Hardware::Blocked);
    // What is in its queue now is all that it ever sees of it.
    guest.serve();
    settle(&machine, &guest, others, &[PASID]);
    assert_eq!((machine.hardware(0, PASID), machine.hardware(0, OTHER)), (Hardware::Blocked, walks(kept)));
    drop(guest);
    end(machine);
}

/// The same on a host that refuses a table at some moment. The next invalidation mends it.
fn refusals() {
    let machine = Arc::new(Machine::new());
    let guest = Guest::boot(&machine);
    guest.bind(0, PASID);
    let kept = guest.bind(0, OTHER);
    let refuse = |machine: &Machine| {
        machine.kernel.fail(Failure { damage: Damage::Torn, ..Failure::next(Call::Attach, Errno::NOSPC) });
    };
    let others = [spawn(&machine, ask), spawn(&machine, pump), spawn(&machine, refuse)];
    let roots = [guest.bind(0, PASID), guest.bind(0, PASID)];
    let found = machine.hardware(0, PASID);
    assert!([Hardware::Blocked, walks(roots[1])].contains(&found), "{found:?}");
    guest.serve();
    settle(&machine, &guest, others, &[]);
    machine.kernel.heal();
    guest.submit(&[ALL_PASIDS]);
    assert_eq!((machine.hardware(0, PASID), machine.hardware(0, OTHER)), (walks(roots[1]), walks(kept)));
    drop(guest);
    end(machine);
}

/// What was asked before a wait that drains is in the guest's queue when it completes, whoever brought it there.
fn drain() {
    let machine = Arc::new(Machine::new());
    let guest = Guest::boot(&machine);
    guest.bind(0, PASID);
    guest.bind(0, OTHER);
    let asked = Arc::new(AtomicBool::new(false));
    let all = asked.clone();
    let ask = move |machine: &Machine| {
        ask(machine);
        all.store(true, Ordering::SeqCst);
    };
    let others = [spawn(&machine, ask), spawn(&machine, pump)];
    let mut seen = 0;
    while !asked.load(Ordering::SeqCst) {
        seen += guest.serve().len();
        thread::yield_now();
    }
    guest.submit(&[DRAIN]);
    seen += guest.serve().len();
    assert_eq!(seen, 4, "groups");
    settle(&machine, &guest, others, &[PASID, OTHER]);
    drop(guest);
    end(machine);
}

/// The device is reset under the guest.
fn reset() {
    let machine = Arc::new(Machine::new());
    let guest = Guest::boot(&machine);
    guest.bind(0, PASID);
    let kept = guest.bind(0, OTHER);
    let reset = |machine: &Machine| {
        machine.unit.hold_host(source(0));
        machine.host.device_was_reset(source(0), &*machine.unit).unwrap();
        machine.unit.release_host(source(0));
    };
    let others = [spawn(&machine, ask), spawn(&machine, pump), spawn(&machine, reset)];
    guest.serve();
    guest.unbind(0, PASID);
    assert_eq!(machine.hardware(0, PASID), Hardware::Blocked);
    let bound = guest.bind(0, PASID);
    guest.serve();
    settle(&machine, &guest, others, &[]);
    assert_eq!((machine.hardware(0, PASID), machine.hardware(0, OTHER)), (walks(bound), walks(kept)));
    drop(guest);
    end(machine);
}

/// The device is taken out under the guest.
fn removal() {
    let machine = Arc::new(Machine::new());
    let guest = Guest::boot(&machine);
    guest.bind(0, PASID);
    guest.bind(0, OTHER);
    let kept = guest.bind(1, PASID);
    let blocked = |machine: &Machine| {
        let found = [PASID, OTHER].map(|pasid| machine.hardware(0, pasid));
        assert_eq!(found, [Hardware::Blocked; 2]);
    };
    let remove = move |machine: &Machine| {
        machine.unit.detach_host(source(0));
        blocked(machine);
        machine.host.remove_device(source(0));
        blocked(machine);
    };
    let others = [spawn(&machine, ask), spawn(&machine, pump), spawn(&machine, remove)];
    guest.bind(0, PASID);
    guest.serve();
    guest.submit(&[iotlb_page(OTHER, 0x1000), ALL_PASIDS]);
    // What is left in the queue is answered for nobody.
    settle(&machine, &guest, others, &[]);
    guest.submit(&[ALL_PASIDS]);
    blocked(&machine);
    assert_eq!(machine.hardware(1, PASID), walks(kept));
    drop(guest);
    end(machine);
}

#[test]
fn a_guest_that_changes_its_bindings() {
    explore(ITERATIONS, 4, bindings);
}

#[test]
fn a_guest_that_drains() {
    explore(ITERATIONS, 4, drain);
}

#[test]
fn a_host_that_refuses() {
    explore(ITERATIONS, 4, refusals);
}

#[test]
fn a_device_that_is_reset() {
    explore(ITERATIONS, 4, reset);
}

#[test]
fn a_device_that_is_taken_out() {
    explore(ITERATIONS, 4, removal);
}

/// Of each kind of schedule: some seconds.
const ITERATIONS: usize = 200;

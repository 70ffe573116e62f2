//! A host that refuses: the guest goes on, the function has no memory.

use std::sync::atomic::Ordering;

use iommu_core::testkit::{HostCall, HostOutcome};
use iommu_core::{Domain, Pasid};

use crate::driver::{ENDPOINT, desc};
use crate::world::{DID, OTHER, World, assigned, first, pass};

fn binds(call: &HostCall, number: u32) -> bool {
    matches!(call, HostCall::Set(ENDPOINT, pasid, domain)
        if pasid.map_or(0, Pasid::get) == number && *domain != Domain::Blocked)
}

#[test]
fn a_refused_binding_is_tried_again_when_it_is_named_again() {
    let world = World::new();
    let (driver, tables) = world.boot();
    let roots = [1, 2].map(|pasid| tables.context(ENDPOINT).pasid(pasid).first_stage(DID).root());
    let other = tables.context(OTHER).pasid(1).first_stage(DID).root();
    world.host.on_call(|call| if binds(call, 1) { HostOutcome::Refused } else { HostOutcome::Done });
    driver.submit(&[desc::PASID_GLOBAL]);
    let bound = |pasid| world.domain(ENDPOINT, pasid);
    assert_eq!((bound(1), bound(2)), (Domain::Blocked, first(DID, roots[1])));
    assert_eq!(world.domain(OTHER, 1), first(DID, other), "others go on");
    world.sets();
    driver.submit(&[desc::pasid_cache(1, 2)]);
    assert_eq!(world.sets(), []);
    driver.submit(&[desc::pasid_cache(1, 1)]);
    assert_eq!(world.sets(), [(ENDPOINT, 1, first(DID, roots[0]))]);
    world.host.on_call(|_| HostOutcome::Done);
    driver.submit(&[desc::CONTEXT_GLOBAL]);
    assert_eq!(world.sets(), [(ENDPOINT, 1, first(DID, roots[0]))]);
    assert_eq!(bound(1), first(DID, roots[0]));
    assert_eq!(world.stops.load(Ordering::Relaxed), 0, "what is blocked need not be stopped");
}

#[test]
fn a_refused_replacement_leaves_nothing() {
    let world = World::new();
    let (driver, tables) = world.boot();
    let _ = tables.context(ENDPOINT).pasid(1).first_stage(DID);
    driver.submit(&[desc::pasid_cache(1, 1)]);
    tables.context(ENDPOINT).pasid(1).pass_through(3);
    world.host.on_call(|call| if binds(call, 1) { HostOutcome::Refused } else { HostOutcome::Done });
    driver.submit(&[desc::pasid_cache(1, 1)]);
    assert_eq!(world.domain(ENDPOINT, 1), Domain::Blocked);
    world.sets();
    tables.context(ENDPOINT).pasid(1).clear();
    driver.submit(&[desc::pasid_cache(1, 1)]);
    assert_eq!(world.sets(), [], "it is blocked already");
}

/// The host did not even take it off: the function is stopped, and each look tries again.
#[test]
fn what_is_stuck_is_stopped() {
    let world = World::new();
    let (driver, tables) = world.boot();
    let old = tables.context(ENDPOINT).pasid(1).first_stage(DID).root();
    driver.submit(&[desc::pasid_cache(1, 1)]);
    world.host.on_call(|call| match call {
        HostCall::Set(_, Some(_), _) => HostOutcome::Stuck,
        _ => HostOutcome::Done,
    });
    tables.context(ENDPOINT).pasid(1).clear();
    world.sets();
    for times in 1..=3 {
        driver.submit(&[desc::pasid_cache(1, 1)]);
        assert_eq!(world.sets(), [(ENDPOINT, 1, Domain::Blocked)]);
        assert_eq!(world.stops.load(Ordering::Relaxed), times);
        assert_eq!(world.domain(ENDPOINT, 1), first(DID, old));
    }
    world.host.on_call(|_| HostOutcome::Done);
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(world.sets(), [(ENDPOINT, 1, Domain::Blocked)]);
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(world.sets(), []);
    assert_eq!(world.stops.load(Ordering::Relaxed), 3);
}

/// Which function a failed flush was about is not said, so all are told again what they are bound to, when they are
/// looked at.
#[test]
fn a_failed_flush_is_complete_to_the_guest() {
    // (name, outcome, functions to be stopped)
    for (name, outcome, stops) in [("blocked", HostOutcome::Refused, 0), ("stuck", HostOutcome::Stuck, 2)] {
        let world = World::new();
        let (driver, tables) = world.boot();
        let root = tables.context(ENDPOINT).pasid(1).first_stage(DID).root();
        tables.context(OTHER).without_pasid().pass_through(2);
        driver.submit(&[desc::PASID_GLOBAL]);
        world.sets();
        world.host.on_call(move |call| if *call == HostCall::Sync { outcome } else { HostOutcome::Done });
        driver.submit(&[desc::pasid_iotlb_all(7, 1)]);
        assert_eq!(world.sets(), [], "{name}: it is not bound again at once");
        assert_eq!(world.stops.load(Ordering::Relaxed), stops, "{name}");
        world.host.on_call(|_| HostOutcome::Done);
        driver.submit(&[desc::PASID_GLOBAL]);
        assert_eq!(world.sets(), [(ENDPOINT, 1, first(DID, root)), (OTHER, 0, pass(2))], "{name}");
        driver.submit(&[desc::PASID_GLOBAL]);
        assert_eq!(world.sets(), [], "{name}");
    }
}

#[test]
fn a_function_that_cannot_be_bound_at_first_is_not_taken_in() {
    let world = World::empty(&assigned());
    world.host.on_call(|_| HostOutcome::Refused);
    let error = world.machine.unit.attach_host(ENDPOINT, world.host.clone(), |_| ()).unwrap_err();
    assert!(!error.still_bound);
    world.host.on_call(|_| HostOutcome::Done);
    world.sets();
    let (driver, _tables) = world.boot();
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(world.host.take_calls(), []);
    world.attach(ENDPOINT);
    assert_eq!(world.sets(), [(ENDPOINT, 0, Domain::Blocked)], "the host is told whatever it thinks");
}

/// While a function is being reset it is blocked, not bound.
#[test]
fn a_function_in_reset_is_not_bound() {
    let world = World::new();
    let (driver, tables) = world.boot();
    let unit = &world.machine.unit;
    let _ = tables.context(ENDPOINT).pasid(1).first_stage(DID);
    driver.submit(&[desc::PASID_GLOBAL]);
    world.sets();
    unit.hold_host(ENDPOINT);
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(world.sets(), [], "what is bound stays");
    let second = tables.context(ENDPOINT).pasid(2).first_stage(DID).root();
    let other = tables.context(OTHER).pasid(2).first_stage(DID).root();
    driver.submit(&[desc::pasid_cache(1, 2)]);
    assert_eq!(world.sets(), [(OTHER, 2, first(DID, other))]);
    tables.context(ENDPOINT).pasid(1).pass_through(4);
    driver.submit(&[desc::pasid_cache(1, 1)]);
    assert_eq!(world.sets(), [(ENDPOINT, 1, Domain::Blocked)], "what is replaced is blocked");
    unit.release_host(ENDPOINT);
    assert_eq!(world.sets(), [(ENDPOINT, 1, pass(4)), (ENDPOINT, 2, first(DID, second))]);
}

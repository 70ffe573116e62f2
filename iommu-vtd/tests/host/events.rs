//! What has the tables read again, and which of them.

use iommu_core::testkit::HostCall;
use iommu_core::{Domain, Gpa, Invalidation, SourceId};
use iommu_vtd::testkit::Tables;
use iommu_vtd::{Profile, Unit, UnitConfig};

use crate::driver::{Driver, ENDPOINT, Memory, TE, desc};
use crate::world::{DID, OTHER, World, assigned, first, pass};

const A: SourceId = ENDPOINT;
const B: SourceId = OTHER;

const fn domain_cache(did: u64) -> (u64, u64) {
    (did << 16 | 0x07, 0)
}

fn context_of(source: SourceId, mask: u64) -> (u64, u64) {
    (mask << 48 | u64::from(source.0) << 32 | 0x31, 0)
}

/// (name, descriptors, which of A's PASIDs 0, 1, 2 and B's PASID 1 are found changed)
#[test]
fn each_granularity_reads_what_it_names() {
    let did = u64::from(DID);
    let rows = [
        ("one PASID", vec![desc::pasid_cache(did, 1)], [false, true, false, true]),
        ("one PASID of another domain", vec![desc::pasid_cache(99, 2)], [false, false, true, false]),
        ("PASID 0", vec![desc::pasid_cache(did, 0)], [true, false, false, false]),
        ("two PASIDs", vec![desc::pasid_cache(1, 0), desc::pasid_cache(1, 2)], [true, false, true, false]),
        ("a domain", vec![domain_cache(did)], [true; 4]),
        ("all PASIDs", vec![desc::PASID_GLOBAL], [true; 4]),
        ("a function", vec![context_of(A, 0)], [true, true, true, false]),
        ("the other function", vec![context_of(B, 0)], [false, false, false, true]),
        ("functions by mask: neither", vec![context_of(SourceId(0x2a), 3)], [false; 4]),
        ("a function by mask", vec![context_of(SourceId(A.0 | 5), 3)], [true, true, true, false]),
        ("contexts of a domain, which they have not", vec![(did << 16 | 0x21, 0)], [true; 4]),
        ("all contexts", vec![desc::CONTEXT_GLOBAL], [true; 4]),
        ("translations only", vec![desc::IOTLB_GLOBAL, desc::pasid_iotlb_all(did, 1)], [false; 4]),
        ("nothing", vec![], [false; 4]),
    ];
    for (name, descriptors, found) in rows {
        let world = World::new();
        let (driver, tables) = world.boot();
        let pairs = [(A, 0), (A, 1), (A, 2), (B, 1)];
        let roots = pairs.map(|(source, pasid)| tables.context(source).pasid(pasid).first_stage(DID).root());
        driver.submit(&descriptors);
        for ((pair, root), found) in pairs.into_iter().zip(roots).zip(found) {
            let expected = if found { first(DID, root) } else { Domain::Blocked };
            assert_eq!(world.domain(pair.0, pair.1), expected, "{name}: {pair:?}");
        }
        world.host.take_calls();
        driver.submit(&descriptors);
        assert_eq!(world.sets(), [], "{name}: nothing changed");
    }
}

#[test]
fn switching_translation_binds_and_unbinds() {
    let world = World::new();
    assert_eq!(world.sets(), [(A, 0, pass(0)), (B, 0, pass(0))], "before the guest does anything");
    let machine = &world.machine;
    let driver = Driver::new(machine);
    let tables = Tables::new(&machine.memory, 0x10_0000..0x40_0000);
    let roots = [0, 1, 700].map(|pasid| tables.context(A).pasid(pasid).first_stage(DID).root());
    tables.context(B).without_pasid().pass_through(1);
    tables.context(B).pasid(3).pass_through(1);
    driver.enable_queue();
    driver.set_root(tables.root_register().raw_value());
    driver.submit(&[desc::CONTEXT_GLOBAL, desc::PASID_GLOBAL, desc::pasid_cache(1, 1)]);
    assert_eq!(world.sets(), [], "entries mean nothing before translation is on");
    driver.level(TE, true);
    let expected = [
        (A, 0, first(DID, roots[0])),
        (A, 1, first(DID, roots[1])),
        (A, 700, first(DID, roots[2])),
        (B, 0, pass(1)),
        (B, 3, pass(1)),
    ];
    assert_eq!(world.sets(), expected);
    driver.level(TE, false);
    let expected = [
        (A, 1, Domain::Blocked),
        (A, 700, Domain::Blocked),
        (B, 3, Domain::Blocked),
        (A, 0, pass(0)),
        (B, 0, pass(0)),
    ];
    assert_eq!(world.sets(), expected, "removals first");
    driver.level(TE, true);
    machine.unit.reset();
    assert_eq!(
        (world.domain(A, 0), world.domain(A, 1), world.domain(B, 3)),
        (pass(0), Domain::Blocked, Domain::Blocked)
    );
}

#[test]
fn another_root_table_is_read_at_once() {
    let world = World::new();
    let (driver, tables) = world.boot();
    let old = tables.context(A).pasid(1).first_stage(DID).root();
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(world.sets(), [(A, 1, first(DID, old))]);
    let second = Tables::new(&world.machine.memory, 0x40_0000..0x80_0000);
    let new = second.context(A).pasid(2).first_stage(DID).root();
    driver.set_root(second.root_register().raw_value());
    assert_eq!(world.sets(), [(A, 1, Domain::Blocked), (A, 2, first(DID, new))]);
    // The same again: nothing is bound anew, but what is cached goes.
    driver.set_root(second.root_register().raw_value());
    assert_eq!(world.host.take_calls(), [HostCall::Invalidate(Invalidation::ALL), HostCall::Sync]);
    // What no mode serves is refused: abort-DMA, reserved.
    for mode in [3_u64, 2] {
        driver.set_root(second.root().0 | mode << 10);
        assert_eq!(world.domain(A, 2), Domain::Blocked, "mode {mode}");
        driver.set_root(second.root_register().raw_value());
        assert_eq!(world.domain(A, 2), first(DID, new));
    }
}

/// Name, what a guest does to a function with PASIDs 0 to 2 bound, the bindings that follow.
type Change = (&'static str, fn(&Tables<'_, Memory>), fn(&Tables<'_, Memory>) -> Vec<(u32, Domain)>);

const CHANGES: [Change; 7] = [
    (
        "one goes, one comes",
        |t| {
            t.context(A).pasid(2).clear();
            t.context(A).pasid(1).pass_through(3);
        },
        |_| vec![(2, Domain::Blocked), (1, pass(3))],
    ),
    (
        "other domain-id",
        |t| {
            t.context(A).pasid(1).edit(1, |word| word & !0xffff | 9);
        },
        |t| vec![(1, first(9, root_of(t, 1)))],
    ),
    (
        "malformed",
        |t| {
            t.context(A).pasid(1).edit(1, |word| word | 1 << 20);
        },
        |_| vec![(1, Domain::Blocked)],
    ),
    (
        "a second stage, which is not offered",
        |t| {
            t.context(A).pasid(1).attach(1, &t.second_space(4));
        },
        |_| vec![(1, Domain::Blocked)],
    ),
    (
        "context entry gone",
        |t| {
            t.context(A).edit(|low| low.with_present(false));
        },
        |_| vec![(0, Domain::Blocked), (1, Domain::Blocked), (2, Domain::Blocked)],
    ),
    (
        "PASIDs off",
        |t| {
            t.context(A).edit(|low| low.with_paside(false));
        },
        |_| vec![(1, Domain::Blocked), (2, Domain::Blocked)],
    ),
    (
        "a RID_PASID, which is not offered",
        |t| {
            t.context(A).rid_pasid(5);
        },
        |_| vec![(0, Domain::Blocked), (1, Domain::Blocked), (2, Domain::Blocked)],
    ),
];

#[test]
fn changes_are_carried_out_in_a_safe_order() {
    for (name, change, expected) in CHANGES {
        let world = World::new();
        let (driver, tables) = world.boot();
        for pasid in 0..3 {
            let _ = tables.context(A).pasid(pasid).first_stage(DID);
        }
        driver.submit(&[desc::CONTEXT_GLOBAL]);
        assert_eq!(world.sets().len(), 3);
        change(&tables);
        driver.submit(&[desc::CONTEXT_GLOBAL, desc::PASID_GLOBAL]);
        let expected: Vec<_> =
            expected(&tables).into_iter().map(|(pasid, domain)| (A, pasid, domain)).collect();
        assert_eq!(world.sets(), expected, "{name}");
    }
}

fn root_of(tables: &Tables<'_, Memory>, pasid: u32) -> Gpa {
    Gpa(tables.word(Gpa(tables.context(A).pasid(pasid).at().0 + 16)) & !0xfff)
}

/// A unit that offers RID_PASID all the same: its requests without PASID cannot be told by invalidations.
#[test]
fn another_pasid_for_none_is_blocked() {
    let world = World::empty(&Profile { interrupt_remapping: false, ..Profile::full(46) }.settled());
    world.attach(A);
    let (driver, tables) = world.boot();
    tables.context(A).rid_pasid(5);
    let _ = tables.context(A).pasid(5).first_stage(DID);
    let _ = tables.context(A).pasid(0).first_stage(DID);
    driver.submit(&[desc::CONTEXT_GLOBAL]);
    assert_eq!((world.domain(A, 0), world.domain(A, 5)), (Domain::Blocked, Domain::Blocked));
    tables.context(A).rid_pasid(0);
    driver.submit(&[desc::CONTEXT_GLOBAL]);
    assert_ne!(world.domain(A, 0), Domain::Blocked);
    assert_ne!(world.domain(A, 5), Domain::Blocked);
}

/// PASIDs beyond what is offered fault, whatever the tables hold.
#[test]
fn wide_pasids_are_blocked() {
    let world = World::empty(&Profile { pasid_bits: 8, ..assigned() });
    world.attach(A);
    let (driver, tables) = world.boot();
    let inside = tables.context(A).pasid(255).first_stage(DID).root();
    let _ = tables.context(A).pasid(256).first_stage(DID);
    driver.submit(&[desc::pasid_cache(1, 256), desc::pasid_cache(1, 255)]);
    assert_eq!(world.sets(), [(A, 255, first(DID, inside))]);
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(world.sets(), []);
}

#[test]
fn a_function_that_comes_later_finds_its_tables() {
    let world = World::empty(&assigned());
    let (driver, tables) = world.boot();
    let roots = [0, 9].map(|pasid| tables.context(B).pasid(pasid).first_stage(DID).root());
    world.attach(B);
    assert_eq!(world.sets(), [(B, 0, first(DID, roots[0])), (B, 9, first(DID, roots[1]))]);
    world.machine.unit.detach_host(B);
    assert_eq!(world.sets(), [(B, 9, Domain::Blocked), (B, 0, Domain::Blocked)]);
    driver.submit(&[desc::PASID_GLOBAL, desc::IOTLB_GLOBAL]);
    assert_eq!(world.host.take_calls(), [], "it is not called any more");
    world.machine.unit.detach_host(B);
}

#[test]
fn a_restored_unit_is_bound_as_its_tables_say() {
    let world = World::new();
    let (driver, tables) = world.boot();
    let root = tables.context(A).pasid(4).first_stage(DID).root();
    driver.submit(&[desc::PASID_GLOBAL]);
    let saved = world.machine.unit.save();
    // The same memory, another unit: first without any state.
    let next = World::new();
    let config = UnitConfig { capability: *world.machine.unit.capability(), source: SourceId(0) };
    let unit = Unit::new(&config, world.machine.memory.clone(), next.machine.msi.clone());
    unit.attach_host(A, next.host.clone(), |_| ()).unwrap();
    next.host.take_calls();
    unit.restore(&saved).unwrap();
    assert_eq!(next.sets(), [(A, 0, Domain::Blocked), (A, 4, first(DID, root))]);
    unit.resume();
    assert_eq!(next.sets(), []);
}

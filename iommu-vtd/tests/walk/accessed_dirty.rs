//! Accessed, extended-accessed and dirty bits of the first stage: when they are set, and when not.

use iommu_core::{Access, Permissions, Request};
use iommu_vtd::spec::pasid::{PasidWord1, PasidWord2};
use iommu_vtd::testkit::{AddressSpace, PageSize, flags};

use super::world::*;

const A: u64 = flags::ACCESSED;
const D: u64 = flags::DIRTY;
const EA: u64 = flags::EXTENDED_ACCESSED;
const MARKS: u64 = A | D | EA;

fn fresh<'w, 'm>(world: &'w World<'m>, flags: u64) -> AddressSpace<'w, 'm, Memory> {
    let space = world.pasid(PROCESS).first_stage(7);
    space.map(PAGE, OUTPUT, PageSize::Size4K, flags);
    space
}

/// Marks of the entries from the leaf up.
fn marks(space: &AddressSpace<'_, '_, Memory>) -> [u64; 4] {
    [1, 2, 3, 4].map(|level| space.entry(PAGE, level).raw_value() & MARKS)
}

#[test]
fn bits_left_behind() {
    let rw = flags::USER | flags::WRITE;
    let ro = flags::USER;
    let zlr = Request { access: Access::ZeroLengthRead, ..read() };
    let atomic = Request { access: Access::Atomic, ..read() };
    // Name, leaf flags, request, marks of leaf and of tables, permissions (`None`: fault).
    type Row = (&'static str, u64, Request, u64, u64, Option<(bool, bool)>);
    let rows: [Row; 14] = [
        ("read", rw, read(), A, A, Some((true, false))),
        ("zero-length read", rw, zlr, A, A, Some((true, false))),
        ("write", rw, write(), A | D, A, Some((true, true))),
        ("atomic", rw, atomic, A | D, A, Some((true, true))),
        ("read of a dirty page", rw | A | D, read(), A | D, A, Some((true, true))),
        ("read of a read-only page", ro, read(), A, A, Some((true, false))),
        ("read of a read-only page that is dirty", ro | D, read(), A | D, A, Some((true, false))),
        ("write to a read-only page", ro, write(), 0, 0, None),
        ("translation request", rw, translation(write(), false), A | D, A, Some((true, true))),
        ("... that waives writing", rw, translation(read(), true), A, A, Some((true, false))),
        (
            "... though the page is dirty",
            rw | A | D,
            translation(read(), true),
            A | D,
            A,
            Some((true, false)),
        ),
        ("... of a read-only page", ro, translation(write(), false), A, A, Some((true, false))),
        ("read of a supervisor page", flags::WRITE, read(), 0, 0, None),
        (
            "translation request for a supervisor page",
            flags::WRITE,
            translation(read(), false),
            0,
            0,
            Some((false, false)),
        ),
    ];
    for (name, flags, request, leaf, table, permissions) in rows {
        let memory = memory();
        let world = World::new(&memory);
        let space = fresh(&world, flags);
        let found = world.ask(&request).ok().map(|t| (t.permissions.read, t.permissions.write));
        assert_eq!((found, marks(&space)), (permissions, [leaf, table, table, table]), "{name}");
    }
}

#[test]
fn no_write_is_ignored_where_it_is_not_offered() {
    let memory = memory();
    let world = World::new(&memory);
    world.registers(CAP, ECAP & !(1 << 33));
    let space = fresh(&world, flags::USER | flags::WRITE);
    let translation = world.ask(&translation(read(), true)).unwrap();
    assert_eq!(translation.permissions, Permissions::READ_WRITE);
    assert_eq!(marks(&space)[0], A | D);
}

#[test]
fn extended_accessed_only_where_enabled() {
    let memory = memory();
    let world = World::new(&memory);
    let space = fresh(&world, flags::READY);
    world.ask(&read()).unwrap();
    assert_eq!(marks(&space), [A | D, A, A, A]);
    world.pasid(PROCESS).edit(2, |word| word | PasidWord2::eafe_mask());
    world.ask(&read()).unwrap();
    assert_eq!(marks(&space), [A | D | EA, A | EA, A | EA, A | EA]);
}

#[test]
fn supervisor_writes_mark_a_read_only_page_dirty_without_write_protection() {
    let memory = memory();
    let world = World::new(&memory);
    let space = fresh(&world, 0);
    world.pasid(PROCESS).edit(2, |word| word | PasidWord2::sre_mask());
    let request = Request { privileged: true, ..write() };
    assert_eq!(world.ask(&request).unwrap().permissions, Permissions::READ_WRITE);
    assert_eq!(marks(&space)[0], A | D);
}

#[test]
fn without_snooping_nothing_is_written() {
    let memory = memory();
    let world = World::new(&memory);
    let space = fresh(&world, flags::USER | flags::WRITE | A);
    world.pasid(PROCESS).edit(1, |word| word & !PasidWord1::pwsnp_mask());
    let granted = world.ask(&read()).unwrap().permissions;
    assert_eq!(granted, Permissions { read: true, write: false }, "all that a read needs is there");
    assert_eq!(code(world.ask(&write())), 0x90, "a write needs the dirty bit");
    assert_eq!(world.ask(&translation(write(), false)).unwrap().permissions, Permissions::NONE);
    let granted = world.ask(&translation(read(), true)).unwrap().permissions;
    assert_eq!(granted, Permissions { read: true, write: false });
    assert_eq!(marks(&space), [A; 4]);
}

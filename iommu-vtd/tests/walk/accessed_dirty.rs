//! Accessed, extended-accessed and dirty bits: when they are set, when not, and what happens if an entry changes
//! while it is used.

use std::sync::Mutex;

use iommu_core::{Access, Completion, Gpa, Permissions, Request};
use iommu_vtd::memory::TableMemory;
use iommu_vtd::spec::pasid::{PasidWord1, PasidWord2};
use iommu_vtd::tables::Context;
use iommu_vtd::testkit::{AddressSpace, PageSize, flags};
use iommu_vtd::translate::translate;

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

type Interference<'m> = Box<dyn FnMut(&Memory, Gpa) + Send + 'm>;

/// Memory in which another CPU is always faster: each update fails, after `interfere` ran.
struct Contended<'m> {
    memory: &'m Memory,
    interfere: Mutex<Interference<'m>>,
}

impl TableMemory for Contended<'_> {
    type Hint<'a>
        = ()
    where
        Self: 'a;

    fn load_words_near<const N: usize>(&self, gpa: Gpa, (): &mut ()) -> Option<[u64; N]> {
        self.memory.load_words(gpa)
    }
    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>> {
        self.interfere.lock().unwrap()(self.memory, gpa);
        self.memory.compare_exchange(gpa, old, new)
    }
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> bool {
        TableMemory::read(self.memory, gpa, buffer)
    }
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        TableMemory::write(self.memory, gpa, bytes)
    }
}

fn contended(
    world: &World<'_>,
    request: &Request,
    interfere: impl FnMut(&Memory, Gpa) + Send,
) -> Result<iommu_core::Translation, iommu_core::Fault> {
    let memory = Contended { memory: world.memory, interfere: Mutex::new(Box::new(interfere)) };
    let rules = world.rules.get();
    translate(&Context { memory: &memory, rules: &rules, root: world.root.get() }, request)
}

fn set(memory: &Memory, gpa: Gpa, word: u64) {
    assert!(TableMemory::write(memory, gpa, &word.to_le_bytes()));
}

#[test]
fn an_entry_that_changed_is_judged_anew() {
    let rw = flags::USER | flags::WRITE;
    // Name, what the leaf becomes under the walk, then: fault code or output.
    let rows = [
        ("unmapped", 0, Err(0x71)),
        ("made read-only", OUTPUT | flags::USER | 1, Err(0x85)),
        ("moved", 0x777_7000 | rw | 1, Ok(0x777_7000)),
        ("marked by another walk", OUTPUT | flags::READY | 1, Ok(OUTPUT)),
    ];
    for (name, becomes, expected) in rows {
        let memory = memory();
        let world = World::new(&memory);
        let space = fresh(&world, rw);
        let leaf = space.entry_at(PAGE, 1);
        let mut done = false;
        let result = contended(&world, &write(), |memory, gpa| {
            if gpa == leaf && !std::mem::replace(&mut done, true) {
                set(memory, leaf, becomes);
            }
        });
        let found = result.map(|translation| translation.base.0).map_err(|fault| fault.reason.code);
        assert_eq!(found, expected, "{name}");
        if expected.is_ok() {
            assert_eq!(space.entry(PAGE, 1).raw_value() & MARKS, A | D, "{name}");
        } else {
            assert_eq!(space.entry(PAGE, 1).raw_value(), becomes, "{name}: nothing is written back");
        }
    }
}

/// SFS.10: the one recoverable-looking condition that is recorded for a translation request.
#[test]
fn entries_that_never_hold_still_end_the_walk() {
    let memory = memory();
    let world = World::new(&memory);
    let space = fresh(&world, flags::USER | flags::WRITE);
    let root = space.entry_at(PAGE, 4);
    let restless = |memory: &Memory, gpa: Gpa| {
        let word = TableMemory::load(memory, gpa).unwrap();
        set(memory, gpa, word ^ 1 << 52);
    };
    let mut updates = 0;
    let result = contended(&world, &write(), |memory, gpa| {
        assert_eq!(gpa, root);
        updates += 1;
        restless(memory, gpa);
    });
    assert_eq!(fault(result), Some((0x91, Completion::UnsupportedRequest, true)));
    assert_eq!(updates, 16, "the walk is bounded");
    let result = contended(&world, &translation(write(), false), restless);
    assert_eq!(fault(result), Some((0x91, Completion::Empty, true)));
    world.context().edit(|low| low.with_fpd(true));
    let result = contended(&world, &translation(write(), false), restless);
    assert_eq!(fault(result), Some((0x91, Completion::Empty, false)));
}

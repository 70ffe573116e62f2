//! Entries that change while they are used: another CPU is always faster than the update of an entry.

use std::sync::Mutex;

use iommu_core::{Completion, Gpa, Request};
use iommu_vtd::memory::TableMemory;
use iommu_vtd::spec::pasid::PasidWord0;
use iommu_vtd::tables::Context;
use iommu_vtd::testkit::{AddressSpace, PageSize, flags};
use iommu_vtd::translate::translate;

use super::world::*;

const A: u64 = flags::ACCESSED;
const D: u64 = flags::DIRTY;
const MARKS: u64 = A | D | flags::EXTENDED_ACCESSED;

fn fresh<'w, 'm>(world: &'w World<'m>, flags: u64) -> AddressSpace<'w, 'm, Memory> {
    let space = world.pasid(PROCESS).first_stage(7);
    space.map(PAGE, OUTPUT, PageSize::Size4K, flags);
    space
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

/// What became of a request during which the entry at `leaf` once becomes `becomes`: output or fault code.
fn after_change(world: &World<'_>, leaf: Gpa, becomes: u64) -> Result<u64, u16> {
    let mut done = false;
    let result = contended(world, &write(), |memory, gpa| {
        if gpa == leaf && !std::mem::replace(&mut done, true) {
            set(memory, leaf, becomes);
        }
    });
    result.map(|translation| translation.base.0).map_err(|fault| fault.reason.code)
}

/// (name, what the second-stage leaf becomes under the walk, fault code or output)
const SECOND_ROWS: [(&str, u64, Result<u64, u16>); 4] = [
    ("unmapped", 0, Err(0x79)),
    ("made read-only", OUTPUT | flags::SECOND_READ, Err(0x85)),
    ("moved", 0x777_7000 | flags::SECOND, Ok(0x777_7000)),
    ("marked by another walk", OUTPUT | flags::SECOND | 3 << 8, Ok(OUTPUT)),
];

#[test]
fn a_second_stage_entry_that_changed_is_judged_anew() {
    for nested in [false, true] {
        for (name, becomes, expected) in SECOND_ROWS {
            let memory = memory();
            let world = World::new(&memory);
            if nested {
                world.nested()
            } else {
                world.second()
            }
            world.pasid(PROCESS).edit(0, |word| word | PasidWord0::ssade_mask());
            let leaf = second_at(&world, if nested { MIDDLE } else { PAGE }, 1);
            let name = format!("{name}, nested: {nested}");
            assert_eq!(after_change(&world, leaf, becomes), expected, "{name}");
            let found = world.tables.word(leaf);
            let marks = flags::SECOND_ACCESSED | flags::SECOND_DIRTY;
            if expected.is_ok() {
                assert_eq!(found & marks, marks, "{name}");
            } else {
                assert_eq!(found, becomes, "{name}: nothing is written back");
            }
        }
    }
}

/// A first-stage entry over a second stage: the change sends the walk through both stages again.
#[test]
fn a_nested_first_stage_entry_that_changed_is_judged_anew() {
    const OTHER: u64 = MIDDLE + 0x1000;
    let rows = [
        ("unmapped", 0, Err(0x71)),
        ("made read-only", MIDDLE | flags::USER | 1, Err(0x85)),
        ("moved", OTHER | flags::READY | 1, Ok(0x777_7000)),
        ("moved to nowhere", 0x34_0000_0000 | flags::READY | 1, Err(0x79)),
    ];
    for (name, becomes, expected) in rows {
        let memory = memory();
        let world = World::new(&memory);
        world.nested();
        let table = second_at(&world, OTHER, 1);
        set(&memory, table, 0x777_7000 | flags::SECOND);
        let leaf = first_at(&world, PAGE, 1);
        edit(&world, leaf, |word| word & !D);
        assert_eq!(after_change(&world, leaf, becomes), expected, "{name}");
    }
}

/// A page that holds first-stage tables and is moved while one of them is used: the update goes to where the table
/// was read, or the walk starts over.
#[test]
fn first_stage_tables_may_move_in_the_second_stage() {
    let memory = memory();
    let world = World::new(&memory);
    world.nested();
    let leaf = first_at(&world, PAGE, 1);
    let copy = world.tables.allocate(1);
    let old = leaf.0 & !0xfff;
    let word = world.tables.word(leaf) & !D;
    set(&memory, leaf, word);
    set(&memory, Gpa(copy.0 | leaf.0 & 0xfff), word);
    let mapping = second_at(&world, old + BIAS, 1);
    let mut done = false;
    let result = contended(&world, &write(), |memory, gpa| {
        if gpa == leaf && !std::mem::replace(&mut done, true) {
            // The old page is reused for something else, and the new one holds the table.
            set(memory, leaf, 0);
            set(memory, mapping, copy.0 | flags::SECOND);
        }
    });
    assert_eq!(result.map(|found| found.base.0).map_err(|fault| fault.reason.code), Ok(OUTPUT));
    assert_eq!(world.tables.word(leaf), 0, "what the page holds now is left alone");
    assert_eq!(world.tables.word(Gpa(copy.0 | leaf.0 & 0xfff)) & D, D);
}

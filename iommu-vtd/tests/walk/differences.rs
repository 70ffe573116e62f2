//! Where a widely used model is known to differ from the manual, and this one must not. One test per difference
//! that concerns translation.

use iommu_core::{
    Access, Completion, Domain, DomainId, FirstStage, Pasid, Permissions, Request, SecondStage, TableFormat,
};
use iommu_vtd::spec::pasid::PasidWord0;
use iommu_vtd::tables::{Context, pasid_domain};
use iommu_vtd::testkit::{PageSize, flags};

use super::world::*;

/// Both stages are offered at once, and nesting with them.
#[test]
fn first_and_second_stage_side_by_side() {
    let memory = memory();
    let world = World::new(&memory);
    world.registers(CAP_ALL, ECAP_ALL);
    let second = world.tables.second_space(4);
    second.map(PAGE, OUTPUT, PageSize::Size4K, flags::SECOND);
    world.pasid(9).attach(12, &second);
    let inner = world.tables.inner_space(4, BIAS);
    inner.map(PAGE, MIDDLE, PageSize::Size4K, flags::READY);
    let outer = world.tables.second_space(4);
    outer.map(MIDDLE, OUTPUT, PageSize::Size4K, flags::SECOND);
    map_tables(&inner, &outer, PAGE, 1);
    world.pasid(10).nest(13, &inner, &outer);
    for pasid in [PROCESS, 9, 10] {
        assert_eq!(world.ask(&with_pasid(write(), pasid)).unwrap().base.0, OUTPUT, "PASID {pasid}");
    }
}

#[test]
fn fs_canonical_check_uses_fspm_and_not_aw() {
    // (FSPM, AW, address, code)
    let rows = [
        (0, 3, 1 << 47, 0x80),
        (0, 1, 1 << 40, 0x71),
        (0, 2, 0xffff_8000_0000_0000, 0x71),
        (1, 2, 1 << 48, 0x71),
        (1, 2, 1 << 56, 0x80),
    ];
    for (mode, aw, address, expected) in rows {
        let memory = memory();
        let world = World::new(&memory);
        let space = world.tables.address_space(if mode == 1 { 5 } else { 4 });
        world.pasid(PROCESS).attach(7, &space);
        world.pasid(PROCESS).edit(0, |word| word & !PasidWord0::aw_mask() | aw << 2);
        assert_eq!(code(world.ask(&at(write(), address))), expected, "FSPM={mode} AW={aw} {address:#x}");
    }
}

/// SNP is reserved without snoop control in scalable and in legacy mode, and allowed with it in both.
#[test]
fn snp_bit_depends_on_snoop_control_only() {
    for legacy in [false, true] {
        for offered in [true, false] {
            let memory = memory();
            let world = World::new(&memory);
            if legacy {
                world.legacy()
            } else {
                world.second()
            }
            let at = if legacy { legacy_second_at(&world, PAGE, 1) } else { second_at(&world, PAGE, 1) };
            edit(&world, at, |word| word | 1 << 11);
            if !offered {
                world.registers(CAP_ALL, ECAP_ALL & !(1 << 7));
            }
            let request = if legacy { without_pasid(read()) } else { read() };
            let expected = match (offered, legacy) {
                (true, _) => 0,
                (false, true) => 0x0c,
                (false, false) => 0x7a,
            };
            assert_eq!(code(world.ask(&request)), expected, "SC={offered}, legacy: {legacy}");
        }
    }
}

/// With a PASID an address in the interrupt range is translated like any other, by every kind of tables.
#[test]
fn ats_to_interrupt_range_with_pasid_walks() {
    let memory = memory();
    let world = World::new(&memory);
    world.registers(CAP_ALL, ECAP_ALL);
    let first = world.map(PROCESS, 0xfee0_1000, OUTPUT, PageSize::Size4K);
    let request = translation(at(write(), 0xfee0_1000), false);
    assert_eq!(world.ask(&request).unwrap().base.0, OUTPUT);
    first.map(0xfee0_1000, 0xfee0_1000, PageSize::Size4K, flags::READY);
    assert_eq!(fault(world.ask(&request)), Some((0x87, Completion::CompleterAbort, true)));
    let second = world.tables.second_space(3);
    second.map(0xfee0_1000, OUTPUT, PageSize::Size4K, flags::SECOND);
    world.pasid(PROCESS).attach(7, &second);
    assert_eq!(world.ask(&request).unwrap().base.0, OUTPUT);
}

/// Without one the device is told to send its interrupt untranslated, and nothing is recorded.
#[test]
fn ats_to_interrupt_range_without_pasid_is_special() {
    let memory = memory();
    let world = World::new(&memory);
    world.second();
    let ask = |no_write| world.ask(&translation(without_pasid(at(write(), 0xfeef_f000)), no_write)).unwrap();
    assert!(ask(false).untranslated_only);
    assert_eq!(ask(false).permissions, Permissions { read: false, write: true });
    assert!(!ask(true).untranslated_only);
    assert_eq!(ask(true).permissions, Permissions::NONE);
}

/// Accessed and dirty bits of the second stage, alone and under a first stage.
#[test]
fn second_stage_keeps_accessed_and_dirty_bits() {
    for nested in [false, true] {
        let memory = memory();
        let world = World::new(&memory);
        if nested {
            world.nested()
        } else {
            world.second()
        }
        let leaf = second_at(&world, if nested { MIDDLE } else { PAGE }, 1);
        let marks = flags::SECOND_ACCESSED | flags::SECOND_DIRTY;
        assert_eq!(code(world.ask(&write())), 0);
        assert_eq!(world.tables.word(leaf) & marks, 0, "SSADE=0");
        world.pasid(PROCESS).edit(0, |word| word | PasidWord0::ssade_mask());
        assert_eq!(code(world.ask(&write())), 0);
        assert_eq!(world.tables.word(leaf) & marks, marks, "nested: {nested}");
    }
}

/// AW is checked where it is used and nowhere else.
#[test]
fn pasid_entries_are_checked_but_for_aw_where_it_is_ignored() {
    for aw in 0..8 {
        let memory = memory();
        let world = World::new(&memory);
        world.registers(CAP_ALL, ECAP_ALL);
        let change = |pasid| {
            world.pasid(pasid).edit(0, |word| word & !PasidWord0::aw_mask() | aw << 2);
        };
        change(PROCESS);
        change(IDENTITY);
        assert_eq!(code(world.ask(&write())), 0, "first stage, AW={aw}");
        assert_eq!(code(world.ask(&at(with_pasid(write(), IDENTITY), OUTPUT))), 0, "pass-through, AW={aw}");
        world.second();
        change(PROCESS);
        let supported = (1..=3).contains(&aw);
        assert_eq!(code(world.ask(&write())) != 0x5b, supported, "second stage, AW={aw}");
    }
}

/// An offered width that is not the one of scalable mode's drivers still works, and one that is not offered does
/// not.
#[test]
fn second_stage_widths_are_those_offered() {
    for offered in 0..8u64 {
        for levels in 3..=5 {
            let memory = memory();
            let world = World::new(&memory);
            world.registers(CAP_ALL & !(0b1110 << 8) | offered << 9, ECAP_ALL);
            let space = world.tables.second_space(levels);
            space.map(MIDDLE, OUTPUT, PageSize::Size4K, flags::SECOND);
            world.pasid(PROCESS).attach(7, &space);
            let expected = if offered >> (levels - 3) & 1 == 1 { 0 } else { 0x5b };
            assert_eq!(code(world.ask(&at(read(), MIDDLE))), expected, "SAGAW={offered:#b}, {levels} levels");
        }
    }
}

/// Execute is refused in the PASID entry, not before, and what is not a PASID's has no execute.
#[test]
fn execute_requests_are_refused_by_the_pasid_entry() {
    let memory = memory();
    let world = World::new(&memory);
    world.second();
    let execute = Request { execute: true, access: Access::Read, ..write() };
    assert_eq!(code(world.ask(&execute)), 0x5c);
    assert_eq!(code(world.ask(&without_pasid(execute))), 0, "no prefix, no execute");
}

/// The bindings that a host behind the unit would get.
#[test]
fn bindings_of_second_stage_and_nesting() {
    let memory = memory();
    let world = World::new(&memory);
    world.nested();
    let entry = world.pasid(PROCESS);
    entry.edit(0, |word| word | PasidWord0::ssade_mask());
    let rules = world.rules.get();
    let bound = || {
        let cx = Context { memory: world.memory, rules: &rules, root: world.root.get() };
        pasid_domain(&cx, SOURCE, Some(Pasid::truncate(PROCESS)))
    };
    let address =
        |word: u64| iommu_core::Gpa(world.tables.word(iommu_core::Gpa(entry.at().0 + word * 8)) & !0xfff);
    let first = FirstStage {
        root: address(2),
        input_bits: 48,
        format: TableFormat::X86FirstStage {
            supervisor: false,
            write_protect: false,
            extended_accessed: false,
        },
    };
    let format = TableFormat::VtdSecondStage { accessed_dirty: true };
    let second = SecondStage { root: address(0), input_bits: 48, format };
    assert_eq!(bound(), Domain::Nested { id: DomainId(7), first, second });
    assert!(first.root.0 > BIAS, "the address is one of the second stage");
    entry.edit(0, |word| word & !PasidWord0::pgtt_mask() | 2 << 6);
    assert_eq!(bound(), Domain::SecondStage { id: DomainId(7), table: second });
    entry.edit(0, |word| word & !PasidWord0::aw_mask());
    assert_eq!(bound(), Domain::Blocked);
}

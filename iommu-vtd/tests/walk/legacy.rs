//! Legacy mode: what is served how, and under which names.

use iommu_core::{
    Access, Domain, DomainId, Gpa, Pasid, Permissions, Request, SecondStage, StageTag, TableFormat, Tag,
};
use iommu_vtd::spec::context::LegacyTranslationType::{DeviceTlb, PassThrough, Untranslated};
use iommu_vtd::tables::{Context, RootLatch, pasid_domain};
use iommu_vtd::testkit::{PageSize, Tables, flags};

use super::world::*;

fn kind(world: &World<'_>, kind: u64) {
    edit(world, world.legacy_at(), |word| word & !0b1100 | kind << 2);
}

fn legacy(memory: &Memory) -> World<'_> {
    let world = World::new(memory);
    world.legacy();
    world
}

#[test]
fn pages_of_all_sizes_and_depths() {
    for levels in 3..=5 {
        for (size, bits) in [(PageSize::Size4K, 12), (PageSize::Size2M, 21), (PageSize::Size1G, 30)] {
            let memory = memory();
            let world = World::new(&memory);
            world.registers(CAP_ALL, ECAP_ALL);
            let tables = Tables::new(&memory, 0x8_0000..0x10_0000);
            let space = tables.second_space(levels);
            space.map(MIDDLE, OUTPUT, size, flags::SECOND);
            tables.legacy_context(SOURCE, Untranslated, 11, &space);
            world.root.set(RootLatch::new(tables.root().0, true));
            let found = world.ask(&without_pasid(at(write(), MIDDLE))).unwrap();
            let low = size.bytes() - 1;
            assert_eq!(found.base, Gpa(OUTPUT & !low | MIDDLE & low), "{levels} levels, {size:?}");
            assert_eq!((found.page_bits, found.permissions), (bits, Permissions::READ_WRITE));
            let tag = Tag { domain: DomainId(11), pasid: Pasid::ZERO, stage: StageTag::Second };
            assert_eq!(found.tag, tag);
        }
    }
}

/// Context entries lie 16 bytes apart, and devfn is the index with all of its bits.
#[test]
fn functions_find_their_own_context() {
    let memory = memory();
    let world = World::new(&memory);
    world.registers(CAP_ALL, ECAP_ALL);
    let tables = Tables::new(&memory, 0x8_0000..0x10_0000);
    let space = tables.second_space(3);
    for (source, domain) in [(0x0080u16, 21), (0x00ff, 22), (0x7f18, 23), (0xff98, 24), (0x0000, 25)] {
        tables.legacy_context(iommu_core::SourceId(source), PassThrough, domain, &space);
    }
    world.root.set(RootLatch::new(tables.root().0, true));
    for (source, domain) in [(0x0080u16, 21), (0x00ff, 22), (0x7f18, 23), (0xff98, 24), (0x0000, 25)] {
        let source = iommu_core::SourceId(source);
        let found = world.ask(&Request { source, ..without_pasid(at(write(), 0x1000)) }).unwrap();
        let tag = Tag { domain: DomainId(domain), pasid: Pasid::ZERO, stage: StageTag::PassThrough };
        assert_eq!((found.tag, found.base), (tag, Gpa(0x1000)), "{source}");
    }
}

/// A translated request passes as it is, and the second stage is not looked at.
#[test]
fn translated_requests_pass() {
    let memory = memory();
    let world = legacy(&memory);
    edit(&world, world.legacy_at(), |word| word & 0xfff | NOWHERE);
    let found = world.ask(&translated(without_pasid(at(write(), OUTPUT)))).unwrap();
    assert_eq!((found.base, found.permissions), (Gpa(OUTPUT), Permissions::READ_WRITE));
}

#[test]
fn translation_requests_are_answered_with_what_the_page_allows() {
    let memory = memory();
    let world = legacy(&memory);
    let all = world.ask(&translation(without_pasid(write()), false)).unwrap();
    assert_eq!((all.base, all.permissions), (Gpa(OUTPUT), Permissions::READ_WRITE));
    let waives = world.ask(&translation(without_pasid(write()), true)).unwrap();
    assert_eq!(waives.permissions, Permissions { read: true, write: false });
}

/// Special completions of translation requests for the interrupt range; the context entry comes first.
#[test]
fn translation_requests_for_the_interrupt_range() {
    let memory = memory();
    let world = legacy(&memory);
    let ask = |no_write| world.ask(&translation(without_pasid(at(write(), 0xfee0_1000)), no_write));
    let special = ask(false).unwrap();
    assert!(special.untranslated_only);
    assert_eq!(special.permissions, Permissions { read: false, write: true });
    assert_eq!(ask(true).unwrap().permissions, Permissions::NONE);
    kind(&world, 0);
    assert_eq!(code(ask(false)), 0x0d);
}

#[test]
fn zero_length_reads_and_atomics() {
    let memory = memory();
    let world = legacy(&memory);
    let entry = legacy_second_at(&world, PAGE, 1);
    let flush = without_pasid(Request { access: Access::ZeroLengthRead, ..write() });
    edit(&world, entry, |word| word & !flags::SECOND_READ);
    assert_eq!(code(world.ask(&flush)), 0);
    world.registers(CAP_ALL & !(1 << 22), ECAP_ALL);
    assert_eq!(code(world.ask(&flush)), 0x06);
    edit(&world, entry, |_| 0);
    assert_eq!(code(world.ask(&flush)), 0x06, "a read of what is not present");
}

/// No accessed and dirty bits, and no privilege: what would be supervisor requests are not.
#[test]
fn nothing_is_marked_and_privilege_is_ignored() {
    let memory = memory();
    let world = legacy(&memory);
    let request = Request { privileged: true, execute: true, ..without_pasid(write()) };
    assert_eq!(world.ask(&request).unwrap().permissions, Permissions::READ_WRITE);
    let marks = flags::SECOND_ACCESSED | flags::SECOND_DIRTY;
    assert_eq!(world.tables.word(legacy_second_at(&world, PAGE, 1)) & marks, 0);
}

#[test]
fn bindings_are_decoded() {
    let memory = memory();
    let world = legacy(&memory);
    let rules = world.rules.get();
    let bound = |pasid: Option<u32>| {
        let cx = Context { memory: world.memory, rules: &rules, root: world.root.get() };
        pasid_domain(&cx, SOURCE, pasid.map(Pasid::truncate))
    };
    let root = Gpa(world.tables.word(world.legacy_at()) & !0xfff);
    let format = TableFormat::VtdSecondStage { accessed_dirty: false };
    let expected =
        Domain::SecondStage { id: DomainId(11), table: SecondStage { root, input_bits: 48, format } };
    assert_eq!(bound(None), expected);
    assert_eq!(bound(Some(PROCESS)), Domain::Blocked);
    kind(&world, DeviceTlb as u64 - 1);
    assert_eq!(bound(None), expected);
    kind(&world, 2);
    assert_eq!(bound(None), Domain::PassThrough { id: DomainId(11) });
    edit(&world, world.legacy_at(), |word| word & !1);
    assert_eq!(bound(None), Domain::Blocked);
}

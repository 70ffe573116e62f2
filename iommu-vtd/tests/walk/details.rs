//! What the manual makes easy to get wrong, one named row each.

use iommu_core::{
    Access, Domain, DomainId, FirstStage, Gpa, Pasid, Permissions, StageTag, TableFormat, Tag, Translation,
};
use iommu_vtd::tables::{Context, RootLatch, pasid_domain};
use iommu_vtd::testkit::{PageSize, flags};

use super::world::*;

#[test]
fn pages_of_all_sizes_and_both_depths() {
    for levels in [4, 5] {
        for (size, bits) in [(PageSize::Size4K, 12), (PageSize::Size2M, 21), (PageSize::Size1G, 30)] {
            let memory = memory();
            let world = World::new(&memory);
            let space = world.tables.address_space(levels);
            // Upper half: bits above the width repeat the sign.
            let iova = if levels == 4 { 0xffff_9234_5678_9000 } else { 0xff12_3456_789a_b000 };
            space.map(iova, 0x3_c000_0000, size, flags::READY);
            world.pasid(PROCESS).attach(7, &space);
            let translation = world.ask(&at(write(), iova)).unwrap();
            let low = iova & (size.bytes() - 1);
            let expected = Translation {
                iova: iommu_core::Iova(iova),
                base: Gpa(0x3_c000_0000 | low),
                page_bits: bits,
                permissions: Permissions::READ_WRITE,
                untranslated_only: false,
                tag: Tag { domain: DomainId(7), pasid: Pasid::truncate(PROCESS), stage: StageTag::First },
            };
            assert_eq!(translation, expected, "{levels} levels, {size:?}");
        }
    }
}

/// The width is FSPM's: AW is not looked at, and says 57 bits next to four levels on real guests.
#[test]
fn aw_is_ignored_in_first_stage_and_pass_through_entries() {
    for pasid in [PROCESS, IDENTITY] {
        for aw in 0..8 {
            let memory = memory();
            let world = World::new(&memory);
            world.pasid(pasid).edit(0, |word| word & !(7 << 2) | aw << 2);
            let address = if pasid == PROCESS { PAGE } else { OUTPUT };
            assert_eq!(code(world.ask(&at(with_pasid(write(), pasid), address))), 0, "AW={aw}");
        }
    }
    let memory = memory();
    let world = World::new(&memory);
    let rows = [
        (4, 0x0000_8000_0000_0000u64, 0x80),
        (4, 0xffff_7fff_ffff_f000, 0x80),
        (4, 0xffff_8000_0000_0000, 0x71),
        (5, 0x0000_8000_0000_0000, 0x71),
        (5, 0x00ff_ffff_ffff_f000, 0x71),
        (5, 0x0100_0000_0000_0000, 0x80),
        (5, 0xff00_0000_0000_0000, 0x71),
        (5, 0xfeff_ffff_ffff_f000, 0x80),
    ];
    for (levels, address, expected) in rows {
        world.pasid(PROCESS).attach(7, &world.tables.address_space(levels));
        assert_eq!(code(world.ask(&at(write(), address))), expected, "{levels} levels, {address:#x}");
    }
}

#[test]
fn ignored_fields_are_ignored() {
    let memory = memory();
    let world = World::new(&memory);
    // FSPM, WPE, EAFE and FSPTPTR of a pass-through entry; what once was NXE and SMEP.
    world.pasid(IDENTITY).edit(2, |_| 3 << 2 | 1 << 4 | 1 << 7 | NOWHERE);
    assert_eq!(code(world.ask(&at(with_pasid(write(), IDENTITY), OUTPUT))), 0);
    world.pasid(PROCESS).edit(2, |word| word | 3 << 5);
    assert_eq!(code(world.ask(&write())), 0);
    // XD, software bits, G, PAT, PWT, PCD.
    let space = world.map(PROCESS, PAGE, OUTPUT, PageSize::Size4K);
    space.edit(PAGE, 1, |word| word | 0xfff << 52 | 0xf98);
    assert_eq!(world.ask(&write()).unwrap().base, Gpa(OUTPUT));
    let space = world.map(PROCESS, PAGE, 0x40_0000, PageSize::Size2M);
    space.edit(PAGE, 2, |word| word | 1 << 12);
    assert_eq!(
        world.ask(&at(write(), PAGE & !0x1f_ffff)).unwrap().base,
        Gpa(0x40_0000),
        "PAT is no address bit"
    );
}

/// PASID 0 and no PASID are different things, on this side.
#[test]
fn requests_without_pasid_use_the_entry_that_stands_for_none() {
    let memory = memory();
    let world = World::new(&memory);
    let tag = world.ask(&without_pasid(write())).unwrap().tag;
    assert_eq!(tag, Tag { domain: DomainId(9), pasid: Pasid::ZERO, stage: StageTag::First });
    assert_eq!(code(world.ask(&with_pasid(write(), 0))), 0x48);
    world.context().rid_pasid(PROCESS);
    assert_eq!(world.ask(&without_pasid(write())).unwrap().tag.domain, DomainId(7));
    assert_eq!(code(world.ask(&write())), 0x48);
    assert_eq!(world.ask(&with_pasid(write(), 0)).unwrap().tag.domain, DomainId(9));
}

#[test]
fn the_width_of_pasids_does_not_bound_page_requests() {
    let memory = memory();
    let world = World::new(&memory);
    world.pasid(33).pass_through(3);
    world.pasid(31).pass_through(4);
    world.registers(CAP, ECAP & !(31 << 35) | 4 << 35);
    assert_eq!(code(world.ask(&with_pasid(at(write(), OUTPUT), 31))), 0, "PSS is the width less one");
    assert_eq!(code(world.ask(&with_pasid(write(), 33))), 0x89);
    let tag = world.page_request(&with_pasid(write(), 33)).unwrap();
    assert_eq!(tag, Tag { domain: DomainId(3), pasid: Pasid::truncate(33), stage: StageTag::PassThrough });
    // Nor do the paging structures, and privilege.
    let nowhere = iommu_core::Request { privileged: true, ..at(write(), 1 << 50) };
    assert_eq!(world.page_request(&nowhere).unwrap().domain, DomainId(7));
}

#[test]
fn while_translation_is_off_addresses_pass_and_ats_does_not() {
    let memory = memory();
    let world = World::new(&memory);
    world.root.set(world.root.get().with_enabled(false));
    let translation = world.ask(&write()).unwrap();
    assert_eq!((translation.base, translation.permissions), (Gpa(PAGE), Permissions::READ_WRITE));
    for request in [super::world::translation(write(), false), translated(without_pasid(write()))] {
        let expected = Some((0, iommu_core::Completion::UnsupportedRequest, false));
        assert_eq!(fault(world.ask(&request)), expected);
    }
    assert!(!world.page_request(&write()).unwrap_err().log);
    assert_eq!(
        pasid_domain(&context(&world, &world.rules.get()), SOURCE, None),
        Domain::PassThrough { id: DomainId(0) }
    );
}

fn context<'a>(world: &World<'a>, rules: &'a iommu_vtd::rules::Rules) -> Context<'a, Memory> {
    Context { memory: world.memory, rules, root: world.root.get() }
}

#[test]
fn translated_requests_pass_without_a_look_at_pasid_tables() {
    let memory = memory();
    let world = World::new(&memory);
    world.context().without_pasid().clear();
    let translation = world.ask(&translated(without_pasid(at(write(), OUTPUT)))).unwrap();
    assert_eq!((translation.base, translation.permissions), (Gpa(OUTPUT), Permissions::READ_WRITE));
    // With a PASID they would need a capability that is not offered.
    let expected = Some((0, iommu_core::Completion::UnsupportedRequest, false));
    assert_eq!(fault(world.ask(&translated(at(write(), OUTPUT)))), expected);
}

/// Whatever is returned where output equals input keeps clear of the interrupt range.
#[test]
fn pass_through_blocks_stop_at_the_interrupt_range() {
    let memory = memory();
    let world = World::new(&memory);
    world.context().without_pasid().pass_through(8);
    let rows = [
        (0x0000_0000u64, 30),
        (0xc000_0000, 29),
        (0xe000_0000, 28),
        (0xfec0_0000, 21),
        (0xfedf_f000, 21),
        (0xfef0_0000, 20),
        (0xff00_0000, 24),
        (0x1_fee0_0000, 30),
        (0x3fff_ffff_f000, 30),
    ];
    for (address, bits) in rows {
        for request in [without_pasid(write()), translation(without_pasid(write()), false)] {
            let translation = world.ask(&at(request, address)).unwrap();
            assert_eq!(translation.page_bits, bits, "{address:#x}");
            assert!(!translation.range().contains(0xfee0_0000) && !translation.range().contains(0xfeef_ffff));
        }
    }
    world.registers(CAP & !(1 << 56), ECAP);
    assert_eq!(world.ask(&at(without_pasid(write()), 0)).unwrap().page_bits, 21, "largest page size offered");
}

#[test]
fn translation_requests_for_the_interrupt_range() {
    let memory = memory();
    let world = World::new(&memory);
    let ask = |pasid: bool, no_write: bool| {
        let request = if pasid { with_pasid(write(), IDENTITY) } else { without_pasid(write()) };
        world.ask(&translation(at(request, 0xfee0_1000), no_write))
    };
    let special = ask(false, false).unwrap();
    assert!(special.untranslated_only);
    assert_eq!(special.permissions, Permissions { read: false, write: true });
    let waived = ask(false, true).unwrap();
    assert_eq!((waived.untranslated_only, waived.permissions), (false, Permissions::NONE));
    world.registers(CAP, ECAP & !(1 << 33));
    assert!(ask(false, true).unwrap().untranslated_only, "without NWFS nothing can be waived");
    world.registers(CAP, ECAP);
    assert_eq!(code(ask(true, false)), 0x87, "with PASID it is an ordinary address");
    // The page walk is skipped, the context entry is not.
    world.context().without_pasid().clear();
    assert!(ask(false, false).unwrap().untranslated_only);
    world.context().edit(|low| low.with_dte(false).with_pre(false));
    assert_eq!(code(ask(false, false)), 0x44);
    // A flush that moves no data succeeds, and leaves nothing to keep.
    let flush =
        iommu_core::Request { access: Access::ZeroLengthRead, ..at(without_pasid(write()), 0xfee0_0000) };
    let flushed = world.ask(&flush).unwrap();
    assert!(flushed.untranslated_only && flushed.permissions == Permissions::NONE);
}

/// A large page may reach into the interrupt range with its output, or with its input.
#[test]
fn large_pages_that_touch_the_interrupt_range() {
    let memory = memory();
    let world = World::new(&memory);
    let output = world.map(PROCESS, PAGE, 0xfee0_0000, PageSize::Size2M);
    let page = PAGE & !0x1f_ffff;
    let above = world.ask(&at(write(), page + 0x10_0000)).unwrap();
    assert_eq!((above.base, above.page_bits), (Gpa(0xfef0_0000), 20), "the half that is clear of it");
    assert_eq!(code(world.ask(&at(write(), page + 0xf_f000))), 0x87);
    let asked = world.ask(&translation(at(write(), page + 0x10_0000), false));
    assert_eq!(code(asked), 0x87, "a translation request would get all of the page");
    output.map(PAGE, 0xc000_0000, PageSize::Size1G, flags::READY);
    let below = world.ask(&at(write(), PAGE & !0x3fff_ffff)).unwrap();
    assert_eq!((below.base, below.page_bits), (Gpa(0xc000_0000), 29));

    let kernel = world.context().without_pasid().first_stage(9);
    kernel.map(0xfee0_0000, 0x1000_0000, PageSize::Size2M, flags::READY);
    let input = at(without_pasid(write()), 0xfef0_0000);
    for request in [input, translation(input, false)] {
        let clipped = world.ask(&request).unwrap();
        assert_eq!((clipped.base, clipped.page_bits), (Gpa(0x1010_0000), 20), "no MSI may hit this block");
    }
    // With a PASID such an address is like any other.
    let process = world.map(PROCESS, 0xfee0_0000, 0x1000_0000, PageSize::Size2M);
    assert_eq!(process.entry(0xfee0_0000, 2).raw_value() & 0x80, 0x80);
    let whole = world.ask(&at(write(), 0xfee0_1000)).unwrap();
    assert_eq!((whole.base, whole.page_bits), (Gpa(0x1000_1000), 21));
}

#[test]
fn bindings_are_decoded() {
    let memory = memory();
    let world = World::new(&memory);
    let space = world.map(PROCESS, PAGE, OUTPUT, PageSize::Size4K);
    world.pasid(PROCESS).edit(2, |word| word | 1 | 1 << 4 | 1 << 7);
    let rules = world.rules.get();
    let bound =
        |pasid: Option<u32>| pasid_domain(&context(&world, &rules), SOURCE, pasid.map(Pasid::truncate));
    let format =
        TableFormat::X86FirstStage { supervisor: true, write_protect: true, extended_accessed: true };
    let table = FirstStage { root: space.root(), input_bits: 48, format };
    assert_eq!(bound(Some(PROCESS)), Domain::FirstStage { id: DomainId(7), table });
    assert_eq!(bound(Some(IDENTITY)), Domain::PassThrough { id: DomainId(8) });
    assert_eq!(bound(Some(0)), Domain::Blocked, "the PASID that stands for none");
    assert!(matches!(bound(None), Domain::FirstStage { id: DomainId(9), .. }));
    world.pasid(PROCESS).clear();
    assert_eq!(bound(Some(PROCESS)), Domain::Blocked);
    world.mode(0);
    assert_eq!(bound(None), Domain::Blocked);
}

#[test]
fn the_latch_is_one_word() {
    let latch = RootLatch::new(0x1234_5000 | 0b01 << 10 | 0x80, true);
    assert_eq!((latch.table(), latch.enabled()), (Gpa(0x1234_5000), true));
    assert_eq!(latch.to_raw(), 0x1234_5401, "bit 0 is TES, 11:10 TTM; others are dropped");
    assert_eq!(RootLatch::from_raw(latch.to_raw()), latch);
    assert!(!latch.with_enabled(false).enabled());
}

/// The upper half of a root entry serves devfn 80h to FFh, and contexts are found by devfn bits 6:0.
#[test]
fn functions_find_their_own_context() {
    let memory = memory();
    let world = World::new(&memory);
    for (source, domain) in [(0x0080u16, 21), (0x00ff, 22), (0x7f18, 23), (0xff98, 24), (0x0000, 25)] {
        let source = iommu_core::SourceId(source);
        world.tables.context(source).pasid(PROCESS).pass_through(domain);
        let request = iommu_core::Request { source, ..at(write(), 0x1000) };
        assert_eq!(world.ask(&request).unwrap().tag.domain, DomainId(domain.into()), "{source}");
    }
}

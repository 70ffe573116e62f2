//! A first stage over a second: sizes, depths, permissions, flags, and what is left marked in both.

use iommu_core::{Access, DomainId, Gpa, Pasid, Permissions, Request, StageTag, Tag};
use iommu_vtd::spec::pasid::{PasidWord0, PasidWord1, PasidWord2};
use iommu_vtd::testkit::{AddressSpace, PageSize, flags};

use super::world::*;

const SIZES: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
const MARKS: u64 = flags::ACCESSED | flags::DIRTY | flags::EXTENDED_ACCESSED;
const SECOND_MARKS: u64 = flags::SECOND_ACCESSED | flags::SECOND_DIRTY;

struct Spaces<'w, 'm> {
    inner: AddressSpace<'w, 'm, Memory>,
    outer: AddressSpace<'w, 'm, Memory>,
}

/// Depths of both stages, sizes and flags of both pages.
fn spaces<'w, 'm>(
    world: &'w World<'m>,
    levels: (u32, u32),
    inner: (PageSize, u64),
    outer: (PageSize, u64),
) -> Spaces<'w, 'm> {
    world.registers(CAP_ALL, ECAP_ALL);
    let first = world.tables.inner_space(levels.0, BIAS);
    first.map(PAGE, MIDDLE, inner.0, inner.1);
    let second = world.tables.second_space(levels.1);
    // The second-stage address of PAGE: what a large page adds to its base comes from the input.
    let middle = middle(inner.0);
    second.map(middle, OUTPUT, outer.0, outer.1);
    map_tables(&first, &second, PAGE, inner.0.level());
    world.pasid(PROCESS).nest(7, &first, &second);
    Spaces { inner: first, outer: second }
}

/// What [`PAGE`] is in the second stage.
fn middle(size: PageSize) -> u64 {
    let low = size.bytes() - 1;
    MIDDLE & !low | PAGE & low
}

fn ready<'w, 'm>(world: &'w World<'m>) -> Spaces<'w, 'm> {
    spaces(world, (4, 4), (PageSize::Size4K, flags::READY), (PageSize::Size4K, flags::SECOND))
}

/// The block is the smaller of the two pages, whatever their sizes and the depths of the tables.
#[test]
fn every_combination_of_page_sizes_and_depths() {
    for levels in [(4, 3), (4, 4), (4, 5), (5, 3), (5, 4), (5, 5)] {
        for inner in SIZES {
            for outer in SIZES {
                let memory = memory();
                let world = World::new(&memory);
                spaces(&world, levels, (inner, flags::READY), (outer, flags::SECOND));
                let found = world.ask(&write()).unwrap();
                let name = format!("{levels:?} levels, {inner:?} over {outer:?}");
                let low = outer.bytes() - 1;
                assert_eq!(found.base, Gpa(OUTPUT & !low | middle(inner) & low), "{name}");
                let bits = inner.bytes().min(outer.bytes()).ilog2();
                assert_eq!((found.page_bits, found.permissions), (bits, Permissions::READ_WRITE), "{name}");
                let tag =
                    Tag { domain: DomainId(7), pasid: Pasid::truncate(PROCESS), stage: StageTag::Nested };
                assert_eq!(found.tag, tag, "{name}");
            }
        }
    }
}

/// A translation request is judged by the block it would get, not by the page that the block is part of.
#[test]
fn the_interrupt_range_is_looked_for_in_the_smaller_page() {
    let memory = memory();
    let world = World::new(&memory);
    let Spaces { outer, .. } = ready(&world);
    outer.edit(MIDDLE, 1, |_| 0);
    outer.edit(MIDDLE, 2, |_| 0xfee0_0000 | 0x80 | flags::SECOND);
    let low = MIDDLE & 0x1f_ffff;
    assert!(low >= 0x10_0000, "the page is in the half that is clear of interrupts");
    let found = world.ask(&translation(write(), false)).unwrap();
    assert_eq!((found.base, found.page_bits), (Gpa(0xfee0_0000 + low), 12));
}

/// (name, first-stage flags, second-stage flags, request, code or permissions)
type Row = (&'static str, u64, u64, Request, Result<(bool, bool), u16>);

fn permission_rows() -> Vec<Row> {
    const RW: u64 = flags::READY;
    const RO: u64 = flags::READY & !flags::WRITE;
    const R: u64 = flags::SECOND_READ;
    const W: u64 = flags::SECOND_WRITE;
    let atomic = Request { access: Access::Atomic, ..write() };
    let flush = Request { access: Access::ZeroLengthRead, ..read() };
    let all = translation(write(), false);
    let waives = translation(read(), true);
    vec![
        ("both allow all", RW, R | W, atomic, Ok((true, true))),
        ("read, first read-only", RO, R | W, read(), Ok((true, false))),
        ("read, second read-only", RW, R, read(), Ok((true, false))),
        ("write, first read-only", RO, R | W, write(), Err(0x85)),
        ("write, second read-only", RW, R, write(), Err(0x85)),
        ("write, second write-only", RW, W, write(), Ok((false, true))),
        ("read, second write-only", RW, W, read(), Err(0x86)),
        ("zero-length read, second write-only", RW, W, flush, Ok((false, true))),
        ("zero-length read, nothing in common", RO, W, flush, Ok((false, false))),
        ("atomic, second write-only", RW, W, atomic, Err(0x86)),
        ("atomic, second read-only", RW, R, atomic, Err(0x85)),
        ("translation request", RW, R | W, all, Ok((true, true))),
        ("... first read-only", RO, R | W, all, Ok((true, false))),
        ("... second read-only", RW, R, all, Ok((true, false))),
        ("... second write-only", RW, W, all, Ok((false, true))),
        ("... nothing in common", RO, W, all, Ok((false, false))),
        ("... that waives writing", RW, R | W, waives, Ok((true, false))),
        ("... that waives all there is", RW, W, waives, Ok((false, false))),
    ]
}

#[test]
fn permissions_are_what_both_stages_allow() {
    for (name, inner, outer, request, expected) in permission_rows() {
        let memory = memory();
        let world = World::new(&memory);
        spaces(&world, (4, 4), (PageSize::Size4K, inner), (PageSize::Size4K, outer));
        let found = world.ask(&request).map_err(|fault| fault.reason.code);
        let found = found.map(|found| (found.permissions.read, found.permissions.write));
        assert_eq!(found, expected, "{name}");
    }
}

/// Supervisor requests: U/S and WPE are the first stage's, the second stage knows no privilege.
#[test]
fn supervisor_requests() {
    let memory = memory();
    let world = World::new(&memory);
    let Spaces { inner, outer } = ready(&world);
    inner.edit(PAGE, 1, |word| word & !(flags::WRITE | flags::USER));
    let request = Request { privileged: true, ..write() };
    assert_eq!(code(world.ask(&request)), 0x5d, "SRE=0");
    world.pasid(PROCESS).edit(2, |word| word | PasidWord2::sre_mask());
    assert_eq!(code(world.ask(&write())), 0x81, "a user request still is one");
    assert_eq!(world.ask(&request).unwrap().permissions, Permissions::READ_WRITE);
    outer.edit(MIDDLE, 1, |word| word & !flags::SECOND_WRITE);
    assert_eq!(code(world.ask(&request)), 0x85, "the second stage forbids supervisors too");
    outer.edit(MIDDLE, 1, |word| word | flags::SECOND_WRITE);
    world.pasid(PROCESS).edit(2, |word| word | PasidWord2::wpe_mask());
    assert_eq!(code(world.ask(&request)), 0x85, "WPE");
}

/// Marks of the first stage, leaf first, and of the second stage for the page and for each first-stage table.
fn marks(spaces: &Spaces<'_, '_>) -> ([u64; 4], [u64; 4], [u64; 4]) {
    let Spaces { inner, outer } = spaces;
    let first = [1, 2, 3, 4].map(|level| inner.entry(PAGE, level).raw_value() & MARKS);
    let page = [1, 2, 3, 4].map(|level| outer.second_entry(MIDDLE, level).raw_value() & SECOND_MARKS);
    let tables = [1, 2, 3, 4].map(|level| {
        let address = inner.entry_at(PAGE, level).0 + BIAS;
        outer.second_entry(address, 1).raw_value() & SECOND_MARKS
    });
    (first, page, tables)
}

const A: u64 = flags::ACCESSED;
const D: u64 = flags::DIRTY;
const EA: u64 = flags::EXTENDED_ACCESSED;
const SA: u64 = flags::SECOND_ACCESSED;
const SD: u64 = flags::SECOND_DIRTY;

#[test]
fn bits_left_behind() {
    let fresh = flags::USER | flags::WRITE;
    let ro = Request { access: Access::Read, ..write() };
    let zlr = Request { access: Access::ZeroLengthRead, ..write() };
    let nothing = [0; 4];
    // Name, SSADE, request, first-stage leaf and tables, second-stage leaf and tables of the page, of the tables.
    let rows = [
        ("read", false, ro, (A, A), (0, 0), 0),
        ("write", false, write(), (A | D, A), (0, 0), 0),
        ("read, SSADE", true, ro, (A, A), (SA, SA), SA | SD),
        ("zero-length read, SSADE", true, zlr, (A, A), (SA, SA), SA | SD),
        ("write, SSADE", true, write(), (A | D, A), (SA | SD, SA), SA | SD),
        ("translation request, SSADE", true, translation(write(), false), (A | D, A), (SA | SD, SA), SA | SD),
        ("... that waives writing", true, translation(read(), true), (A, A), (SA, SA), SA | SD),
    ];
    for (name, ssade, request, first, page, tables) in rows {
        let memory = memory();
        let world = World::new(&memory);
        let spaces = spaces(&world, (4, 4), (PageSize::Size4K, fresh), (PageSize::Size4K, flags::SECOND));
        if ssade {
            world.pasid(PROCESS).edit(0, |word| word | PasidWord0::ssade_mask());
        }
        assert_eq!(marks(&spaces), (nothing, nothing, nothing));
        let found = world.ask(&request).unwrap();
        let wrote = first.0 & D != 0;
        assert_eq!(found.permissions, Permissions { read: true, write: wrote }, "{name}");
        let expected = ([first.0, first.1, first.1, first.1], [page.0, page.1, page.1, page.1], [tables; 4]);
        assert_eq!(marks(&spaces), expected, "{name}");
    }
}

/// A page that only one stage holds dirty is not to be written without asking again.
#[test]
fn write_permission_needs_the_dirty_bits_of_both() {
    for (inner, outer, expected) in
        [(A | D, SA | SD, true), (A, SA | SD, false), (A | D, SA, false), (A, SA, false)]
    {
        let memory = memory();
        let world = World::new(&memory);
        let flags = (flags::USER | flags::WRITE | inner, flags::SECOND | outer);
        spaces(&world, (4, 4), (PageSize::Size4K, flags.0), (PageSize::Size4K, flags.1));
        world.pasid(PROCESS).edit(0, |word| word | PasidWord0::ssade_mask());
        let found = world.ask(&read()).unwrap();
        assert_eq!(found.permissions.write, expected, "{inner:#x} {outer:#x}");
    }
}

/// The dirty bit of the first stage tells of writes that both stages allow.
#[test]
fn a_write_that_the_second_stage_forbids_leaves_the_first_stage_clean() {
    let memory = memory();
    let world = World::new(&memory);
    let fresh = flags::USER | flags::WRITE;
    let spaces = spaces(&world, (4, 4), (PageSize::Size4K, fresh), (PageSize::Size4K, flags::SECOND_READ));
    world.pasid(PROCESS).edit(0, |word| word | PasidWord0::ssade_mask());
    assert_eq!(code(world.ask(&write())), 0x85);
    let (first, page, tables) = marks(&spaces);
    assert_eq!((first, page), ([0; 4], [0, 0, 0, SA]), "the top-level entry leads to the tables too");
    assert_eq!(tables, [SA | SD; 4], "its tables were read, which counts as writing while SSADE=1");
    let found = world.ask(&translation(write(), false)).unwrap();
    assert_eq!(found.permissions, Permissions { read: true, write: false });
    assert_eq!(marks(&spaces).0, [A; 4]);
}

/// The other way round, for a request that takes what it gets.
#[test]
fn a_page_that_the_first_stage_forbids_to_write_stays_clean_in_the_second() {
    let memory = memory();
    let world = World::new(&memory);
    let spaces = spaces(&world, (4, 4), (PageSize::Size4K, flags::USER), (PageSize::Size4K, flags::SECOND));
    world.pasid(PROCESS).edit(0, |word| word | PasidWord0::ssade_mask());
    let found = world.ask(&translation(write(), false)).unwrap();
    assert_eq!(found.permissions, Permissions { read: true, write: false });
    let (first, page, _) = marks(&spaces);
    assert_eq!((first, page), ([A; 4], [SA; 4]));
}

#[test]
fn extended_accessed_is_kept_in_first_stage_entries() {
    let memory = memory();
    let world = World::new(&memory);
    let spaces = ready(&world);
    world.pasid(PROCESS).edit(2, |word| word | PasidWord2::eafe_mask());
    world.ask(&read()).unwrap();
    assert_eq!(marks(&spaces).0, [A | D | EA, A | EA, A | EA, A | EA]);
}

/// A first-stage table that the second stage maps read-only serves as long as nothing is to be marked in it.
#[test]
fn read_only_tables_serve_while_nothing_is_to_be_marked() {
    let memory = memory();
    let world = World::new(&memory);
    let Spaces { inner, outer } = ready(&world);
    for level in 1..=4 {
        let address = inner.entry_at(PAGE, level).0 + BIAS;
        outer.edit(address, 1, |word| word & !flags::SECOND_WRITE);
        inner.edit(PAGE, level, |word| word | A);
    }
    assert_eq!(code(world.ask(&write())), 0);
    inner.edit(PAGE, 1, |word| word & !D);
    assert_eq!(world.ask(&read()).unwrap().permissions, Permissions { read: true, write: false });
    assert_eq!(code(world.ask(&write())), 0x77);
    // With nothing marked and no snooping the first stage is to blame before the second.
    world.pasid(PROCESS).edit(1, |word| word & !PasidWord1::pwsnp_mask());
    assert_eq!(code(world.ask(&write())), 0x90);
}

/// Addresses inside first-stage entries are bounded by MGAW and AW, not by HAW alone, and the bound is exact.
#[test]
fn first_stage_addresses_are_bounded_by_both_widths() {
    // (MGAW, levels, bits that are allowed)
    for (mgaw, levels, allowed) in [(57, 3, 39), (57, 4, HAW), (42, 4, 42), (42, 5, 42), (57, 5, HAW)] {
        for bit in [37, 39, 41, 42, 45] {
            let memory = memory();
            let world = World::new(&memory);
            let spaces = spaces(
                &world,
                (4, levels),
                (PageSize::Size4K, flags::READY),
                (PageSize::Size4K, flags::SECOND),
            );
            world.registers(CAP_ALL & !(63 << 16) | (mgaw - 1) << 16, ECAP_ALL);
            spaces.inner.edit(PAGE, 1, |word| word | 1 << bit);
            let expected = if bit < allowed { 0x79 } else { 0x74 };
            assert_eq!(code(world.ask(&read())), expected, "MGAW {mgaw}, {levels} levels, bit {bit}");
        }
    }
}

//! The second stage: pages of all sizes at all depths, permissions, widths, and its accessed and dirty bits.

use iommu_core::{Access, DomainId, Gpa, Pasid, Permissions, Request, StageTag, Tag};
use iommu_vtd::spec::pasid::PasidWord0;
use iommu_vtd::testkit::{AddressSpace, PageSize, flags};

use super::world::*;

/// An input that every width has.
pub(crate) const INPUT: u64 = 0x45_6789_a000;

pub(crate) fn second<'w, 'm>(
    world: &'w World<'m>,
    levels: u32,
    size: PageSize,
    flags: u64,
) -> AddressSpace<'w, 'm, Memory> {
    world.registers(CAP_ALL, ECAP_ALL);
    let space = world.tables.second_space(levels);
    space.map(INPUT, OUTPUT, size, flags);
    world.pasid(PROCESS).attach(7, &space);
    space
}

const SIZES: [(PageSize, u32); 3] = [(PageSize::Size4K, 12), (PageSize::Size2M, 21), (PageSize::Size1G, 30)];

#[test]
fn pages_of_all_sizes_and_depths() {
    for levels in 3..=5 {
        for (size, bits) in SIZES {
            let memory = memory();
            let world = World::new(&memory);
            second(&world, levels, size, flags::SECOND);
            let found = world.ask(&at(write(), INPUT)).unwrap();
            let low = size.bytes() - 1;
            assert_eq!(found.base, Gpa(OUTPUT & !low | INPUT & low), "{levels} levels, {size:?}");
            assert_eq!((found.page_bits, found.permissions), (bits, Permissions::READ_WRITE));
            let tag = Tag { domain: DomainId(7), pasid: Pasid::truncate(PROCESS), stage: StageTag::Second };
            assert_eq!(found.tag, tag);
        }
    }
}

/// (name, flags of the leaf, flags of a table entry, request, code or permissions)
type Row = (&'static str, u64, u64, Request, Result<(bool, bool), u16>);

fn permission_rows() -> Vec<Row> {
    const R: u64 = flags::SECOND_READ;
    const W: u64 = flags::SECOND_WRITE;
    let read = at(read(), INPUT);
    let write = at(write(), INPUT);
    let atomic = Request { access: Access::Atomic, ..read };
    let flush = Request { access: Access::ZeroLengthRead, ..read };
    let all = translation(write, false);
    let waives = translation(read, true);
    vec![
        ("read", R, R | W, read, Ok((true, false))),
        ("read of a write-only page", W, R | W, read, Err(0x86)),
        ("write to a read-only page", R, R | W, write, Err(0x85)),
        ("write to a write-only page", W, R | W, write, Ok((false, true))),
        ("atomic", R | W, R | W, atomic, Ok((true, true))),
        ("atomic on a read-only page", R, R | W, atomic, Err(0x85)),
        ("atomic on a write-only page", W, R | W, atomic, Err(0x86)),
        ("zero-length read of a write-only page", W, R | W, flush, Ok((false, true))),
        ("a table that forbids writing", R | W, R, write, Err(0x85)),
        ("a table that forbids reading", R | W, W, read, Err(0x86)),
        ("permissions that have nothing in common", R, W, read, Err(0x79)),
        ("the same for a write", R, W, write, Err(0x79)),
        ("translation request", R | W, R | W, all, Ok((true, true))),
        ("... of a read-only page", R, R | W, all, Ok((true, false))),
        ("... of a write-only page", W, R | W, all, Ok((false, true))),
        ("... that waives writing", R | W, R | W, waives, Ok((true, false))),
        ("... that waives all there is", W, R | W, waives, Ok((false, false))),
        ("... of nothing in common", R, W, all, Ok((false, false))),
    ]
}

#[test]
fn permissions_are_what_all_entries_have_in_common() {
    for (name, leaf, table, request, expected) in permission_rows() {
        let memory = memory();
        let world = World::new(&memory);
        let space = second(&world, 4, PageSize::Size4K, leaf);
        space.edit(INPUT, 3, |word| word & !flags::SECOND | table);
        let found = world.ask(&request).map_err(|fault| fault.reason.code);
        let found = found.map(|found| (found.permissions.read, found.permissions.write));
        assert_eq!(found, expected, "{name}");
    }
    let memory = memory();
    let world = World::new(&memory);
    second(&world, 4, PageSize::Size4K, flags::SECOND_WRITE);
    world.registers(CAP_ALL & !(1 << 22), ECAP_ALL);
    let flush = Request { access: Access::ZeroLengthRead, ..at(read(), INPUT) };
    assert_eq!(code(world.ask(&flush)), 0x86, "zero-length reads are reads where CAP.ZLR is not offered");
}

/// Marks of the entries from the leaf up.
fn marks(space: &AddressSpace<'_, '_, Memory>) -> [u64; 4] {
    let marks = flags::SECOND_ACCESSED | flags::SECOND_DIRTY;
    [1, 2, 3, 4].map(|level| space.second_entry(INPUT, level).raw_value() & marks)
}

const A: u64 = flags::SECOND_ACCESSED;
const D: u64 = flags::SECOND_DIRTY;

#[test]
fn bits_left_behind() {
    let read = at(read(), INPUT);
    let write = at(write(), INPUT);
    let atomic = Request { access: Access::Atomic, ..read };
    let flush = Request { access: Access::ZeroLengthRead, ..read };
    let rw = flags::SECOND;
    let wo = flags::SECOND_WRITE;
    // Name, SSADE, leaf flags, request, marks of leaf and of tables, permissions (`None`: fault).
    type Row = (&'static str, bool, u64, Request, u64, u64, Option<(bool, bool)>);
    let rows: [Row; 13] = [
        ("read, SSADE=0", false, rw, read, 0, 0, Some((true, true))),
        ("write, SSADE=0", false, rw, write, 0, 0, Some((true, true))),
        ("read", true, rw, read, A, A, Some((true, false))),
        ("write", true, rw, write, A | D, A, Some((true, true))),
        ("atomic", true, rw, atomic, A | D, A, Some((true, true))),
        ("read of a dirty page", true, rw | D, read, A | D, A, Some((true, true))),
        ("zero-length read", true, rw, flush, A, A, Some((true, false))),
        ("zero-length read of a write-only page", true, wo, flush, A, A, Some((false, false))),
        ("write to a write-only page", true, wo, write, A | D, A, Some((false, true))),
        ("write to a read-only page", true, flags::SECOND_READ, write, 0, 0, None),
        ("translation request", true, rw, translation(write, false), A | D, A, Some((true, true))),
        ("... that waives writing", true, rw, translation(read, true), A, A, Some((true, false))),
        ("... that gets nothing", true, wo, translation(read, true), 0, 0, Some((false, false))),
    ];
    for (name, ssade, flags, request, leaf, table, permissions) in rows {
        let memory = memory();
        let world = World::new(&memory);
        let space = second(&world, 4, PageSize::Size4K, flags);
        if ssade {
            world.pasid(PROCESS).edit(0, |word| word | PasidWord0::ssade_mask());
        }
        let found = world.ask(&request).ok().map(|t| (t.permissions.read, t.permissions.write));
        assert_eq!((found, marks(&space)), (permissions, [leaf, table, table, table]), "{name}");
    }
}

/// Dirty tracking as a driver does it: SSADE is switched on and off in the live entry, and while it is on exactly
/// the pages that were written are dirty.
#[test]
fn dirty_tracking_is_switched_in_a_live_entry() {
    const PAGES: u64 = 16;
    let memory = memory();
    let world = World::new(&memory);
    let space = second(&world, 4, PageSize::Size4K, flags::SECOND);
    let address = |page: u64| INPUT + (page << 12);
    for page in 0..PAGES {
        space.map(address(page), OUTPUT + (page << 12), PageSize::Size4K, flags::SECOND);
    }
    let dirty =
        || -> Vec<u64> { (0..PAGES).filter(|page| space.second_entry(address(*page), 1).dirty()).collect() };
    let use_all = |written: &[u64]| {
        for page in 0..PAGES {
            let request = if written.contains(&page) { write() } else { read() };
            assert_eq!(code(world.ask(&at(request, address(page)))), 0, "page {page}");
        }
    };
    let switch = |on: bool| {
        let mask = PasidWord0::ssade_mask();
        world.pasid(PROCESS).edit(0, |word| if on { word | mask } else { word & !mask });
    };
    use_all(&[1, 2]);
    assert!(dirty().is_empty(), "not tracked yet");
    switch(true);
    use_all(&[3, 5, 8]);
    assert_eq!(dirty(), [3, 5, 8]);
    for page in dirty() {
        space.edit(address(page), 1, |word| word & !D);
    }
    use_all(&[5]);
    assert_eq!(dirty(), [5], "read and cleared: tracked anew");
    switch(false);
    use_all(&[6]);
    assert_eq!(dirty(), [5], "no longer tracked");
}

/// The upper bound is min(MGAW, AW), exactly.
#[test]
fn input_width_is_the_smaller_of_two() {
    for (mgaw, levels, bits) in [(57, 3, 39), (57, 4, 48), (57, 5, 57), (46, 4, 46), (46, 5, 46), (46, 3, 39)]
    {
        let memory = memory();
        let world = World::new(&memory);
        second(&world, levels, PageSize::Size4K, flags::SECOND);
        world.registers(CAP_ALL & !(63 << 16) | (mgaw - 1) << 16, ECAP_ALL);
        let name = format!("MGAW {mgaw}, {levels} levels");
        assert_eq!(code(world.ask(&at(read(), 1 << bits))), 0x84, "{name}");
        assert_eq!(code(world.ask(&at(read(), (1 << bits) - 1))), 0x79, "{name}");
        assert_eq!(code(world.ask(&at(read(), u64::MAX << 63))), 0x84, "{name}: no sign extension");
    }
}

/// The top-level table of a wide second stage has 512 entries, and those of the highest inputs count.
#[test]
fn the_last_entry_of_the_top_level_table() {
    for (levels, bits) in [(3, 39), (4, 48), (5, 57)] {
        let memory = memory();
        let world = World::new(&memory);
        let space = second(&world, levels, PageSize::Size4K, flags::SECOND);
        let top = (1u64 << bits) - 0x1000;
        space.map(top, OUTPUT, PageSize::Size4K, flags::SECOND);
        assert_eq!(world.ask(&at(read(), top)).unwrap().base, Gpa(OUTPUT), "{levels} levels");
    }
}

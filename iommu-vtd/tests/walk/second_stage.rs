//! The second stage: pages of all sizes at all depths, permissions, widths, and its accessed and dirty bits.

use iommu_core::{Access, DomainId, Gpa, Pasid, Permissions, Request, StageTag, Tag};
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

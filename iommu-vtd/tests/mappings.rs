//! What hosts that keep copies are told of second-stage tables: the same that a request would find.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::ops::ControlFlow;

use iommu_core::{
    Access, Domain, Gpa, GuestMappings, Iova, IovaRange, Mapping, Permissions, Request, SourceId, Visit,
};
use iommu_vtd::rules::Rules;
use iommu_vtd::tables::{Context, pasid_domain};
use iommu_vtd::testkit::{PageSize, Tables, flags};
use iommu_vtd::translate::translate;
use iommu_vtd::{Capability, Profile, SecondStageMappings};
use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap;

const SOURCE: SourceId = SourceId(0x18);
const AREA: std::ops::Range<u64> = 0x10_0000..0x40_0000;
const RW: Permissions = Permissions::READ_WRITE;
const RO: Permissions = Permissions { read: true, write: false };

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap()
}

fn capability() -> Capability {
    Capability::new(&Profile::full(46).with_address_width(57)).unwrap()
}

/// The domain of requests without PASID.
fn domain(memory: &Memory, tables: &Tables<'_, Memory>) -> Domain {
    let rules = Rules::new(&capability());
    pasid_domain(&Context { memory, rules: &rules, root: tables.latch() }, SOURCE, None)
}

fn range(start: u64, last: u64) -> IovaRange {
    IovaRange::new(start, last).unwrap()
}

fn mapping(start: u64, last: u64, base: u64, permissions: Permissions) -> Mapping {
    Mapping { range: range(start, last), base: Gpa(base), permissions }
}

fn told(memory: &Memory, domain: &Domain, range: &IovaRange) -> (Visit, Vec<Mapping>) {
    let mut told = Vec::new();
    let mappings = SecondStageMappings::new(memory.clone(), &capability());
    let visit = mappings.visit(domain, range, &mut |mapping| {
        told.push(*mapping);
        ControlFlow::Continue(())
    });
    (visit, told)
}

#[test]
fn leaves_are_told_whole_and_in_order() {
    let memory = memory();
    let tables = Tables::new(&memory, AREA);
    let space = tables.second_space(4);
    tables.context(SOURCE).without_pasid().attach(5, &space);
    space.map(0x3000, 0x80_3000, PageSize::Size4K, flags::SECOND);
    space.map(0x1000, 0x80_1000, PageSize::Size4K, flags::SECOND);
    space.map(0x2000, 0x80_2000, PageSize::Size4K, flags::SECOND_READ);
    space.map(0x20_0000, 0x60_0000, PageSize::Size2M, flags::SECOND);
    space.map(0x40_0000, 0x80_0000, PageSize::Size4K, flags::SECOND);
    space.map(0x4000_0000, 0, PageSize::Size1G, flags::SECOND_WRITE);
    space.map(0x7fff_ffff_f000, 0x5000, PageSize::Size4K, flags::SECOND);
    let domain = domain(&memory, &tables);
    let wo = Permissions { read: false, write: true };
    let all = [
        mapping(0x1000, 0x1fff, 0x80_1000, RW),
        mapping(0x2000, 0x2fff, 0x80_2000, RO),
        mapping(0x3000, 0x3fff, 0x80_3000, RW),
        mapping(0x20_0000, 0x3f_ffff, 0x60_0000, RW),
        mapping(0x40_0000, 0x40_0fff, 0x80_0000, RW),
        mapping(0x4000_0000, 0x7fff_ffff, 0, wo),
        mapping(0x7fff_ffff_f000, 0x7fff_ffff_ffff, 0x5000, RW),
    ];
    let rows = [
        ("all", IovaRange::ALL, &all[..]),
        ("a part of a page", range(0x1800, 0x18ff), &all[0..1]),
        ("parts of two pages", range(0x2fff, 0x3000), &all[1..3]),
        ("inside a large page", range(0x21_0000, 0x21_ffff), &all[3..4]),
        ("from inside a large page", range(0x3f_ffff, 0x4000_0000), &all[3..6]),
        ("nothing", range(0x5000, 0x1f_ffff), &[]),
        ("the last address", range(u64::MAX, u64::MAX), &[]),
        ("up to the last address", range(0x7fff_ffff_ffff, u64::MAX), &all[6..]),
    ];
    for (name, range, expected) in rows {
        assert_eq!(told(&memory, &domain, &range), (Visit::Complete, expected.to_vec()), "{name}");
    }
}

#[test]
fn a_visitor_may_stop() {
    let memory = memory();
    let tables = Tables::new(&memory, AREA);
    let space = tables.second_space(3);
    tables.context(SOURCE).without_pasid().attach(5, &space);
    for page in 0..3 {
        space.map(page << 13, 0, PageSize::Size4K, flags::SECOND);
    }
    let domain = domain(&memory, &tables);
    for stop_at in 1..=3 {
        let mut count = 0;
        let mappings = SecondStageMappings::new(memory.clone(), &capability());
        let visit = mappings.visit(&domain, &IovaRange::ALL, &mut |_| {
            count += 1;
            if count == stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!((visit, count), (Visit::Stopped, stop_at));
    }
}

/// Every entry of a table leads to the table itself: 2^36 ways, at the end of which there is nothing.
#[test]
fn a_hostile_guest_ends_a_visit() {
    let memory = memory();
    let tables = Tables::new(&memory, AREA);
    let space = tables.second_space(5);
    tables.context(SOURCE).without_pasid().attach(5, &space);
    let empty = tables.allocate(1);
    for index in 0..512 {
        let next = if index < 511 { space.root() } else { empty };
        tables.set_word(Gpa(space.root().0 + index * 8), next.0 | 3);
    }
    // The lowest level takes them for pages, unless a reserved bit says otherwise.
    tables.set_word(space.root(), empty.0 | 3 | 1 << 62);
    let domain = domain(&memory, &tables);
    let mappings = SecondStageMappings::new(memory.clone(), &capability());
    let visit = mappings.visit(&domain, &IovaRange::ALL, &mut |_| ControlFlow::Continue(()));
    assert_eq!(visit, Visit::TooMuch);
    let mut count = 0;
    let visit = mappings.visit(&domain, &IovaRange::ALL, &mut |_| {
        count += 1;
        if count == 1000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(visit, Visit::Stopped, "a visitor's own bound comes first");
}

#[test]
fn other_domains_have_nothing_to_tell() {
    let memory = memory();
    let tables = Tables::new(&memory, AREA);
    let pasid = tables.context(SOURCE).without_pasid();
    assert_eq!(told(&memory, &domain(&memory, &tables), &IovaRange::ALL), (Visit::Unsupported, vec![]));
    pasid.pass_through(1);
    assert_eq!(told(&memory, &domain(&memory, &tables), &IovaRange::ALL), (Visit::Unsupported, vec![]));
    let _ = pasid.first_stage(1);
    assert_eq!(told(&memory, &domain(&memory, &tables), &IovaRange::ALL), (Visit::Unsupported, vec![]));
}

/// Tables that lie where there is no memory map nothing.
#[test]
fn wild_pointers_are_holes() {
    let memory = memory();
    let tables = Tables::new(&memory, AREA);
    let space = tables.second_space(4);
    tables.context(SOURCE).without_pasid().attach(5, &space);
    space.map(0x1000, 0x5000, PageSize::Size4K, flags::SECOND);
    for (index, wild) in [0x3fff_ffff_f000_u64, 0x100_0000, 0xff_f000].into_iter().enumerate() {
        tables.set_word(Gpa(space.root().0 + 8 * (index as u64 + 1)), wild | 3);
    }
    let expected = (Visit::Complete, vec![mapping(0x1000, 0x1fff, 0x5000, RW)]);
    assert_eq!(told(&memory, &domain(&memory, &tables), &IovaRange::ALL), expected);
}

/// A page of a random table: where, how large, what is allowed, what is spoilt.
fn pages() -> impl Strategy<Value = Vec<(u64, u8, u64, u64)>> {
    let page = (
        0_u64..24,
        1_u8..=2,
        0_u64..4,
        prop_oneof![8 => Just(0_u64), 1 => Just(1 << 62), 1 => Just(1 << 51)],
    );
    prop::collection::vec(page, 0..40)
}

proptest! {
    /// For every page, what is told is what an untranslated request would get.
    #[test]
    fn what_is_told_is_what_requests_find(pages in pages(), levels in 3_u32..=5, from in 0_u64..1100, pages_long in 1_u64..1500) {
        let memory = memory();
        let tables = Tables::new(&memory, AREA);
        let space = tables.second_space(levels);
        tables.context(SOURCE).without_pasid().attach(5, &space);
        for (number, size, allowed, spoilt) in pages {
            let size = if size == 1 { PageSize::Size4K } else { PageSize::Size2M };
            let iova = if size == PageSize::Size4K { number << 12 } else { (1 + number % 2) << 21 };
            space.map(iova, (number * 7 % 4) * size.bytes(), size, allowed);
            let slot = space.entry_at(iova, size.level());
            tables.set_word(slot, tables.word(slot) | spoilt);
        }
        let rules = Rules::new(&capability());
        let cx = Context { memory: &memory, rules: &rules, root: tables.latch() };
        let domain = pasid_domain(&cx, SOURCE, None);
        let asked = range(from << 12, ((from + pages_long) << 12) - 1);
        let (visit, told) = told(&memory, &domain, &asked);
        prop_assert_eq!(visit, Visit::Complete);
        prop_assert!(told.iter().all(|mapping| mapping.range.overlaps(&asked)));
        for pair in told.windows(2) {
            prop_assert!(pair[0].range.last() < pair[1].range.start());
        }
        for page in (0..32_u64).chain(505..520).chain(1020..1040).chain(1530..1540) {
            let address = page << 12;
            let found = told.iter().find(|mapping| mapping.range.contains(address));
            let found = found.map(|m| (m.base.0 + (address - m.range.start()), m.permissions));
            let ask = |access| translate(&cx, &Request::untranslated(SOURCE, None, Iova(address), access)).ok();
            let (read, write) = (ask(Access::Read), ask(Access::Write));
            let output = read.or(write).map(|t| t.gpa(Iova(address)).0);
            let permissions = Permissions { read: read.is_some(), write: write.is_some() };
            if !asked.contains(address) {
                continue;
            }
            let expected = output.map(|output| (output, permissions));
            prop_assert_eq!(found, expected, "page {:#x}", address);
        }
    }
}

//! Histories: whatever was changed and asked before, what an invalidation covers is not seen any more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use iommu_core::{Access, Gpa, Iova, Pasid, Request, Translator};
use iommu_vtd::Profile;
use iommu_vtd::rules::Rules;
use iommu_vtd::tables::Context;
use iommu_vtd::testkit::{AddressSpace, PageSize, PasidBuilder, Tables, flags};
use iommu_vtd::translate::translate;
use parking_lot::Mutex;
use proptest::prelude::*;

use crate::driver::{Driver, ENDPOINT, Machine, Memory, desc};

const ADDRESSES: [u64; 3] = [0x45_6780_0000, 0x45_6780_1000, 0x45_6780_0000 + (1 << 21)];
const PAGES: u64 = 0x80_0000;

fn machine() -> Machine {
    Machine::with(&Profile { interrupt_remapping: false, ..Profile::full(46) }.settled())
}

/// A PASID and its domain. 0 and 1 share a domain and have first stages, 2 has a second stage, 3 both.
const PASIDS: [(u32, u16); 4] = [(1, 1), (2, 1), (3, 2), (4, 3)];

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A page leads elsewhere, or nowhere.
    Leaf { pasid: usize, table: usize, address: usize, page: u64 },
    /// A table on the way is replaced by a copy with other pages, or comes back.
    Table { pasid: usize, table: usize, address: usize },
    /// The PASID gets the other of its two tables.
    Entry { pasid: usize, table: usize },
    /// Somebody asks.
    Ask { pasid: usize, address: usize, port: bool },
    /// Descriptors.
    Invalidate(Cover),
}

#[derive(Clone, Copy, Debug)]
enum Cover {
    PasidEntry { pasid: usize },
    AllPasidEntries,
    Everything,
    Domain { pasid: usize },
    Pasid { pasid: usize },
    Page { pasid: usize, address: usize, leaf_only: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let (pasid, table, address) = (0..4_usize, 0..2_usize, 0..3_usize);
    let cover =
        prop_oneof![
            pasid.clone().prop_map(|pasid| Cover::PasidEntry { pasid }),
            Just(Cover::AllPasidEntries),
            Just(Cover::Everything),
            pasid.clone().prop_map(|pasid| Cover::Domain { pasid }),
            pasid.clone().prop_map(|pasid| Cover::Pasid { pasid }),
            (pasid.clone(), address.clone(), any::<bool>())
                .prop_map(|(pasid, address, leaf_only)| Cover::Page { pasid, address, leaf_only }),
        ];
    prop_oneof![
        2 => (pasid.clone(), table.clone(), address.clone(), 0..8_u64)
            .prop_map(|(pasid, table, address, page)| Step::Leaf { pasid, table, address, page }),
        1 => (pasid.clone(), table.clone(), address.clone())
            .prop_map(|(pasid, table, address)| Step::Table { pasid, table, address }),
        1 => (pasid.clone(), table).prop_map(|(pasid, table)| Step::Entry { pasid, table }),
        6 => (pasid, address, any::<bool>())
            .prop_map(|(pasid, address, port)| Step::Ask { pasid, address, port }),
        4 => cover.prop_map(Step::Invalidate),
    ]
}

/// What of a (PASID, address) may still be cached as it was before.
#[derive(Clone, Copy, Default)]
struct Stale {
    entry: bool,
    tables: bool,
    leaf: bool,
}

impl Stale {
    fn clean(self) -> bool {
        !self.entry && !self.tables && !self.leaf
    }
}

struct World<'t, 'm> {
    machine: &'m Machine,
    driver: &'t Driver<'m>,
    tables: &'t Tables<'m, Memory>,
    entries: Vec<PasidBuilder<'t, 'm, Memory>>,
    spaces: Vec<[AddressSpace<'t, 'm, Memory>; 2]>,
    outer: AddressSpace<'t, 'm, Memory>,
    /// Page tables that are put in place of each other: `[pasid][table][address]`.
    spare: Vec<[[u64; 3]; 2]>,
    stale: [[Stale; 3]; 4],
}

impl<'t, 'm> World<'t, 'm> {
    fn new(driver: &'t Driver<'m>, tables: &'t Tables<'m, Memory>) -> Self {
        let context = tables.context(ENDPOINT);
        let outer = tables.second_space(4);
        for page in (0x10_0000..0x40_0000).step_by(4096).chain((0..16).map(|n| PAGES + (n << 12))) {
            outer.map(page, page, PageSize::Size4K, flags::SECOND);
        }
        let space = |pasid: usize, table: u64| {
            let (space, flags) = match pasid {
                0 | 1 => (tables.address_space(4), flags::READY),
                2 => (tables.second_space(4), flags::SECOND),
                _ => (tables.inner_space(4, 0), flags::READY),
            };
            for address in ADDRESSES {
                space.map(address, PAGES + (table << 12), PageSize::Size4K, flags);
            }
            space
        };
        let mut world = Self {
            machine: driver.machine,
            driver,
            tables,
            entries: PASIDS.iter().map(|(pasid, _)| context.pasid(*pasid)).collect(),
            spaces: (0..4).map(|pasid| [space(pasid, 0), space(pasid, 1)]).collect(),
            outer,
            spare: Vec::new(),
            stale: Default::default(),
        };
        for pasid in 0..4 {
            let spare = |table: usize| ADDRESSES.map(|address| world.copy_of_table(pasid, table, address));
            let spare = [spare(0), spare(1)];
            world.spare.push(spare);
            world.attach(pasid, 0);
        }
        world
    }

    /// A page table like the one at `address`, but for what it leads to.
    fn copy_of_table(&self, pasid: usize, table: usize, address: u64) -> u64 {
        let entry = self.spaces[pasid][table].entry_at(address, 1);
        let copy = self.tables.allocate(1).0;
        for offset in (0..4096).step_by(8) {
            let word = self.tables.word(Gpa((entry.0 & !0xfff) + offset));
            let elsewhere = if word == 0 { 0 } else { word ^ 8 << 12 };
            self.tables.set_word(Gpa(copy + offset), elsewhere);
        }
        copy
    }

    fn attach(&self, pasid: usize, table: usize) {
        let space = &self.spaces[pasid][table];
        let domain = PASIDS[pasid].1;
        if pasid == 3 {
            self.entries[pasid].nest(domain, space, &self.outer);
        } else {
            self.entries[pasid].attach(domain, space);
        }
    }

    fn each(&mut self, pasid: usize, change: impl Fn(usize, &mut Stale)) {
        for (address, stale) in self.stale[pasid].iter_mut().enumerate() {
            change(address, stale);
        }
    }

    fn change(&mut self, step: Step) {
        match step {
            Step::Leaf { pasid, table, address, page } => {
                let to = PAGES + (page << 12);
                self.spaces[pasid][table].edit(ADDRESSES[address], 1, |_| match page {
                    0 => 0,
                    _ if pasid == 2 => to | flags::SECOND,
                    _ => to | flags::READY | 1,
                });
                self.stale[pasid][address].leaf = true;
            }
            Step::Table { pasid, table, address } => {
                let at = self.spaces[pasid][table].entry_at(ADDRESSES[address], 2);
                let word = self.tables.word(at);
                let spare = std::mem::replace(&mut self.spare[pasid][table][address], word & !0xfff);
                self.tables.set_word(at, spare | word & 0xfff);
                let block = ADDRESSES[address] >> 21;
                self.each(pasid, |other, stale| {
                    if ADDRESSES[other] >> 21 == block {
                        (stale.tables, stale.leaf) = (true, true);
                    }
                });
            }
            Step::Entry { pasid, table } => {
                self.attach(pasid, table);
                self.each(pasid, |_, stale| *stale = Stale { entry: true, tables: true, leaf: true });
            }
            Step::Ask { .. } | Step::Invalidate(_) => {}
        }
    }

    /// Each cache is clean only if what it is filled from is.
    fn invalidate(&mut self, cover: Cover) {
        let (name, domain) = match cover {
            Cover::PasidEntry { pasid }
            | Cover::Domain { pasid }
            | Cover::Pasid { pasid }
            | Cover::Page { pasid, .. } => (u64::from(PASIDS[pasid].0), u64::from(PASIDS[pasid].1)),
            Cover::AllPasidEntries | Cover::Everything => (0, 0),
        };
        let descriptor = match cover {
            Cover::PasidEntry { .. } => desc::pasid_cache(domain, name),
            Cover::AllPasidEntries => desc::PASID_GLOBAL,
            Cover::Everything => desc::IOTLB_GLOBAL,
            Cover::Domain { .. } => (domain << 16 | 0x22, 0),
            Cover::Pasid { .. } => desc::pasid_iotlb_all(domain, name),
            Cover::Page { pasid: 2, address, leaf_only } => {
                (domain << 16 | 0x32, ADDRESSES[address] | u64::from(leaf_only) << 6)
            }
            Cover::Page { address, leaf_only, .. } => {
                desc::pasid_iotlb_page(domain, name, ADDRESSES[address] | u64::from(leaf_only) << 6)
            }
        };
        self.driver.submit(&[descriptor]);
        for (other, (other_name, other_domain)) in PASIDS.into_iter().enumerate() {
            let same_domain = u64::from(other_domain) == domain;
            let same = same_domain && u64::from(other_name) == name;
            self.each(other, |at, stale| {
                let (entry, tables, leaf) = match cover {
                    Cover::PasidEntry { .. } => (same, false, false),
                    Cover::AllPasidEntries => (true, false, false),
                    Cover::Everything => (false, true, true),
                    Cover::Domain { .. } => (false, same_domain, same_domain),
                    // Tables of a second stage do not go by PASID.
                    Cover::Pasid { .. } => (false, same && other != 2, same),
                    Cover::Page { address, leaf_only, .. } => {
                        (false, same && at == address && !leaf_only, same && at == address)
                    }
                };
                stale.entry &= !entry;
                stale.tables &= !tables || stale.entry;
                stale.leaf &= !leaf || stale.entry || stale.tables;
            });
        }
    }
}

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let machine = machine();
    let (driver, tables) = Driver::booted(&machine);
    let mut world = World::new(&driver, &tables);
    let rules = Rules::new(machine.unit.capability());
    let mut ports: Vec<_> = PASIDS.iter().map(|_| machine.dma().port()).collect();
    for step in steps {
        world.change(*step);
        match *step {
            Step::Invalidate(cover) => world.invalidate(cover),
            Step::Ask { pasid, address, port } => {
                let clean = world.stale[pasid][address].clean();
                let name = Some(Pasid::truncate(PASIDS[pasid].0));
                let address = Iova(ADDRESSES[address]);
                let request = Request::untranslated(ENDPOINT, name, address, Access::Read);
                let context = Context { memory: &world.machine.memory, rules: &rules, root: tables.latch() };
                let page = |found: iommu_core::Translation| Gpa(found.gpa(address).0);
                let live = translate(&context, &request).ok().map(page);
                let found = if port {
                    ports[pasid].session(name).translate(address, Access::Read).ok().map(|hit| hit.gpa)
                } else {
                    machine.unit.translate(&request).ok().map(page)
                };
                prop_assert!(found == live || !clean, "{step:?}: {found:?} in place of {live:?}");
            }
            Step::Leaf { .. } | Step::Table { .. } | Step::Entry { .. } => {}
        }
    }
    Ok(())
}

proptest! {
    /// After an invalidation and its wait nobody gets what it covers, whatever was asked and changed before.
    #[test]
    fn what_is_covered_is_not_seen_again(steps in proptest::collection::vec(step(), 1..120)) {
        run(&steps)?;
    }
}

/// Threads ask all the time, one through a port and one without, while in each round `write` puts the page of that
/// number in place and the descriptors follow. Each answer is one that was put in place after, or by, the last
/// invalidation that was complete when the question began.
fn race(driver: &Driver<'_>, pasid: u32, write: impl Fn(u64), descriptors: &[(u64, u64)]) {
    const ROUNDS: u64 = 60;
    let machine = driver.machine;
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let stale = Mutex::new(None);
    let pasid = Some(Pasid::truncate(pasid));
    let address = Iova(ADDRESSES[0]);
    let asked = AtomicU64::new(0);
    write(0);
    let ask = |answer: &mut dyn FnMut() -> Gpa| {
        while !stop.load(Ordering::Relaxed) {
            let since = done.load(Ordering::SeqCst);
            let found = (answer().0 - PAGES) >> 12;
            if found < since {
                *stale.lock() = Some((found, since));
                stop.store(true, Ordering::Relaxed);
            }
            asked.fetch_add(1, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut port = machine.dma().port();
            ask(&mut || port.session(pasid).translate(address, Access::Read).unwrap().gpa);
        });
        scope.spawn(|| {
            let request = Request::untranslated(ENDPOINT, pasid, address, Access::Read);
            ask(&mut || machine.unit.translate(&request).unwrap().gpa(address));
        });
        for round in 1..=ROUNDS {
            let before = asked.load(Ordering::Relaxed);
            while asked.load(Ordering::Relaxed) < before + 3 && !stop.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            write(round);
            driver.submit(descriptors);
            done.store(round, Ordering::SeqCst);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(stale.into_inner(), None, "an answer, and the round that was complete before it");
}

const ADDRESS: u64 = ADDRESSES[0];

/// The page of a round as a first-stage leaf.
fn leaf(round: u64) -> u64 {
    (PAGES + (round << 12)) | flags::READY | 1
}

fn turn(round: u64) -> usize {
    usize::from(!round.is_multiple_of(2))
}

#[test]
fn no_leaf_is_older_than_a_complete_invalidation() {
    let machine = machine();
    let (driver, tables) = Driver::booted(&machine);
    let space = tables.context(ENDPOINT).pasid(1).first_stage(1);
    space.map(ADDRESS, PAGES, PageSize::Size4K, flags::READY);
    let write = |round| tables.set_word(space.entry_at(ADDRESS, 1), leaf(round));
    race(&driver, 1, write, &[desc::pasid_iotlb_page(1, 1, ADDRESS | 1 << 6)]);
}

/// Of two page tables the one that is out of use is written, and then put in place of the other.
#[test]
fn no_table_is_older_than_a_complete_invalidation() {
    let second_stage = |round| (PAGES + (round << 12)) | flags::SECOND;
    type Row = (&'static str, bool, fn(u64) -> u64, (u64, u64));
    let rows: [Row; 2] = [
        ("first stage", true, leaf, desc::pasid_iotlb_page(1, 1, ADDRESS)),
        ("second stage", false, second_stage, (1 << 16 | 0x32, ADDRESS)),
    ];
    for (name, first, page, descriptor) in rows {
        let machine = machine();
        let (driver, tables) = Driver::booted(&machine);
        let space = if first { tables.address_space(4) } else { tables.second_space(4) };
        space.map(ADDRESS, PAGES, PageSize::Size4K, if first { flags::READY } else { flags::SECOND });
        tables.context(ENDPOINT).pasid(1).attach(1, &space);
        let pair = [tables.allocate(1), tables.allocate(1)];
        let write = |round| {
            let table = pair[turn(round)];
            tables.set_word(Gpa(table.0 + (ADDRESS >> 12 & 0x1ff) * 8), page(round));
            space.edit(ADDRESS, 2, |word| word & 0xfff | table.0);
        };
        println!("{name}");
        race(&driver, 1, write, &[descriptor]);
    }
}

/// The same with two trees and the PASID entry that leads to one of them.
#[test]
fn no_pasid_entry_is_older_than_a_complete_invalidation() {
    let machine = machine();
    let (driver, tables) = Driver::booted(&machine);
    let pair = [tables.address_space(4), tables.address_space(4)];
    for space in &pair {
        space.map(ADDRESS, PAGES, PageSize::Size4K, flags::READY);
    }
    let entry = tables.context(ENDPOINT).pasid(1);
    entry.attach(1, &pair[0]);
    let write = |round| {
        let space = &pair[turn(round)];
        space.edit(ADDRESS, 1, |_| leaf(round));
        entry.edit(2, |word| word & 0xfff | space.root().0);
    };
    race(&driver, 1, write, &[desc::pasid_cache(1, 1), desc::pasid_iotlb_all(1, 1)]);
}

//! A guest whose tables are anything: what is bound is what the tables say, and never more than is allowed.

use iommu_core::{Domain, Pasid, SourceId};
use iommu_vtd::rules::Rules;
use iommu_vtd::tables::{Context, RootLatch, pasid_domain};
use iommu_vtd::testkit::Tables;
use proptest::prelude::*;

use crate::driver::{Driver, ENDPOINT, FSTS, IQE, IQH, Memory, RING, STATUS, desc};
use crate::world::{OTHER, World};

/// Pages that hold tables, in the order in which the builder takes them.
const AREA: u64 = 0x10_0000;
const PAGES: u64 = 8;

/// A word that may stand in any table: a pointer to one of them, with random flags, or nothing of the kind.
fn word() -> impl Strategy<Value = u64> {
    let pointer = (0..PAGES, 0..0x1000_u64).prop_map(|(page, flags)| (AREA + (page << 12)) | flags);
    let present = (0..PAGES).prop_map(|page| (AREA + (page << 12)) | 0x41);
    prop_oneof![4 => pointer, 4 => present, 1 => any::<u64>(), 1 => Just(0), 1 => Just(0x101)]
}

/// A page of the tables, a word of it, near its start more often, and what is written there.
fn write() -> impl Strategy<Value = (u64, u64, u64)> {
    (0..PAGES, prop_oneof![3 => 0..32_u64, 1 => 0..512_u64], word())
}

fn descriptor() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        Just(desc::CONTEXT_GLOBAL),
        (0..4_u64, 0..200_u64).prop_map(|(did, pasid)| desc::pasid_cache(did, pasid)),
        (0..4_u64).prop_map(|did| (did << 16 | 7, 0)),
        any::<(u64, u64)>(),
    ]
}

fn wanted(cx: &Context<'_, Memory>, source: SourceId, pasid: u32) -> Domain {
    pasid_domain(cx, source, Pasid::new(pasid).filter(|_| pasid != 0))
}

/// The queue stops at what is no descriptor: the driver overwrites it and goes on.
fn submit(driver: &Driver<'_>, descriptor: (u64, u64)) {
    driver.put(descriptor.0, descriptor.1);
    driver.kick();
    let machine = driver.machine;
    if machine.read32(FSTS) & IQE != 0 {
        let head = u64::from(machine.read32(IQH));
        machine.set_word(RING + head, 2 << 32 | 0x25);
        machine.set_word(RING + head + 8, STATUS);
        machine.write32(FSTS, IQE);
    }
}

proptest! {
    #[test]
    fn anything_in_tables_is_bounded_and_told_as_it_is(
        rounds in prop::collection::vec(
            (prop::collection::vec(write(), 1..30), prop::collection::vec(descriptor(), 0..4)),
            1..8,
        ),
    ) {
        let world = World::new();
        let (driver, tables): (_, Tables<'_, Memory>) = world.boot();
        for source in [ENDPOINT, OTHER] {
            tables.context(source).pasid(1).pass_through(1);
        }
        let machine = &world.machine;
        let rules = Rules::new(machine.unit.capability());
        let root = RootLatch::new(tables.root_register().raw_value(), true);
        let cx = Context { memory: &machine.memory, rules: &rules, root };
        for (writes, descriptors) in rounds {
            for (page, index, word) in writes {
                machine.set_word(AREA + (page << 12) + index * 8, word);
            }
            for descriptor in descriptors {
                submit(&driver, descriptor);
            }
            driver.submit(&[desc::CONTEXT_GLOBAL, desc::PASID_GLOBAL]);
            let bound = world.host.bound.lock().clone();
            for ((source, pasid), domain) in &bound {
                prop_assert_eq!(*domain, wanted(&cx, *source, pasid.map_or(0, Pasid::get)), "{} {:?}", source, pasid);
            }
            for source in [ENDPOINT, OTHER] {
                let count = bound.keys().filter(|(of, _)| *of == source).count();
                prop_assert!(count <= 1024, "{}", count);
                // Below the bounds nothing is left out.
                for pasid in 0..if count < 1024 { 1024 } else { 0 } {
                    prop_assert_eq!(world.domain(source, pasid), wanted(&cx, source, pasid), "{} {:#x}", source, pasid);
                }
            }
        }
    }
}

//! The effect of every descriptor under scalable tables (§6.5.2).

use iommu_core::SourceId;
use iommu_vtd::Profile;
use iommu_vtd::testkit::{AddressSpace, PageSize, Tables, flags};

use super::world::{Probe, all_but, survivors, survivors_in_ports};
use crate::driver::{Driver, ENDPOINT, Machine, Memory, desc};

/// An address, and one in another 2 MiB block under the same tables above.
const HERE: u64 = 0x45_6780_0000;
const THERE: u64 = HERE + (1 << 21);
const PAGE: u64 = 0x80_0000;

const PROCESS_DOMAIN: u16 = 1;
const FIRST: u32 = 1;
const FIRST_TOO: u32 = 2;
const NESTED: u32 = 3;
const SECOND: u32 = 4;
const SECOND_TOO: u32 = 5;
const PASS: u32 = 6;
const NESTED_DOMAIN: u16 = 3;
const SECOND_DOMAIN: u16 = 2;
const OTHER_DOMAIN: u16 = 4;
const PASS_DOMAIN: u16 = 6;

fn machine() -> Machine {
    Machine::with(&Profile { interrupt_remapping: false, ..Profile::full(46) }.settled())
}

/// Two processes of one domain, a nested domain, two second stages of different domains, and a pass-through.
struct World<'t, 'm> {
    first: AddressSpace<'t, 'm, Memory>,
    first_too: AddressSpace<'t, 'm, Memory>,
    inner: AddressSpace<'t, 'm, Memory>,
    outer: AddressSpace<'t, 'm, Memory>,
    second: AddressSpace<'t, 'm, Memory>,
    second_too: AddressSpace<'t, 'm, Memory>,
}

impl<'t, 'm> World<'t, 'm> {
    fn new(tables: &'t Tables<'m, Memory>) -> Self {
        let world = Self {
            first: tables.address_space(4),
            first_too: tables.address_space(4),
            inner: tables.inner_space(4, 0),
            outer: tables.second_space(4),
            second: tables.second_space(4),
            second_too: tables.second_space(4),
        };
        for address in [HERE, THERE] {
            for space in [&world.first, &world.first_too, &world.inner] {
                space.map(address, PAGE, PageSize::Size4K, flags::READY);
            }
            for space in [&world.second, &world.second_too] {
                space.map(address, PAGE, PageSize::Size4K, flags::SECOND);
            }
        }
        for page in (0x10_0000..0x40_0000).step_by(4096).chain([PAGE]) {
            world.outer.map(page, page, PageSize::Size4K, flags::SECOND);
        }
        let context = tables.context(ENDPOINT);
        context.pasid(FIRST).attach(PROCESS_DOMAIN, &world.first);
        context.pasid(FIRST_TOO).attach(PROCESS_DOMAIN, &world.first_too);
        context.pasid(NESTED).nest(NESTED_DOMAIN, &world.inner, &world.outer);
        context.pasid(SECOND).attach(SECOND_DOMAIN, &world.second);
        context.pasid(SECOND_TOO).attach(OTHER_DOMAIN, &world.second_too);
        context.pasid(PASS).pass_through(PASS_DOMAIN);
        world
    }

    /// Requests that need an entry of this level at the two addresses.
    fn probes(&self, level: u32) -> Vec<Probe> {
        let rows = [
            ("first", FIRST, &self.first),
            ("first too", FIRST_TOO, &self.first_too),
            ("nested", NESTED, &self.inner),
            ("second", SECOND, &self.second),
            ("second too", SECOND_TOO, &self.second_too),
        ];
        let there = ["first there", "first too there", "nested there", "second there", "second too there"];
        let mut probes = Vec::new();
        for ((here, pasid, space), there) in rows.into_iter().zip(there) {
            for (name, address) in [(here, HERE), (there, THERE)] {
                probes.push(Probe::new(name, pasid, address, space.entry_at(address, level)));
            }
        }
        probes
    }
}

const HINT: u64 = 1 << 6;

fn iotlb_domain(domain: u16) -> (u64, u64) {
    (u64::from(domain) << 16 | 0x22, 0)
}

fn iotlb_page(domain: u16, address: u64) -> (u64, u64) {
    (u64::from(domain) << 16 | 0x32, address)
}

fn pasid_all(domain: u16, pasid: u32) -> (u64, u64) {
    desc::pasid_iotlb_all(domain.into(), pasid.into())
}

fn pasid_page(domain: u16, pasid: u32, address: u64) -> (u64, u64) {
    desc::pasid_iotlb_page(domain.into(), pasid.into(), address)
}

const ALL: &[&str] = &[
    "first",
    "first there",
    "first too",
    "first too there",
    "nested",
    "nested there",
    "second",
    "second there",
    "second too",
    "second too there",
];
const PROCESSES: &[&str] = &["first", "first there", "first too", "first too there"];
const BOTH_NESTED: &[&str] = &["nested", "nested there"];

/// (name, descriptor, what goes of the tables on the way, what goes of the translations in ports)
type Row = (&'static str, (u64, u64), &'static [&'static str], &'static [&'static str]);

fn rows() -> [Row; 19] {
    [
        ("nothing", desc::FENCE, &[], &[]),
        ("IOTLB global", desc::IOTLB_GLOBAL, ALL, ALL),
        ("IOTLB domain of processes", iotlb_domain(1), PROCESSES, PROCESSES),
        ("IOTLB domain nested", iotlb_domain(NESTED_DOMAIN), BOTH_NESTED, BOTH_NESTED),
        (
            "IOTLB domain",
            iotlb_domain(SECOND_DOMAIN),
            &["second", "second there"],
            &["second", "second there"],
        ),
        ("IOTLB domain, of nobody", iotlb_domain(9), &[], &[]),
        ("IOTLB page", iotlb_page(SECOND_DOMAIN, HERE), &["second"], &["second"]),
        ("IOTLB page, leaf only", iotlb_page(SECOND_DOMAIN, HERE | HINT), &[], &["second"]),
        (
            "IOTLB pages, 4 MiB",
            iotlb_page(SECOND_DOMAIN, HERE | 10),
            &["second", "second there"],
            &["second", "second there"],
        ),
        ("IOTLB page of processes", iotlb_page(PROCESS_DOMAIN, 0), PROCESSES, PROCESSES),
        ("IOTLB page nested", iotlb_page(NESTED_DOMAIN, 0), BOTH_NESTED, BOTH_NESTED),
        ("IOTLB page nested, leaf only", iotlb_page(NESTED_DOMAIN, HINT), BOTH_NESTED, BOTH_NESTED),
        ("PASID", pasid_all(PROCESS_DOMAIN, FIRST), &["first", "first there"], &["first", "first there"]),
        ("PASID nested", pasid_all(NESTED_DOMAIN, NESTED), BOTH_NESTED, BOTH_NESTED),
        ("PASID of a second stage", pasid_all(SECOND_DOMAIN, SECOND), &[], &["second", "second there"]),
        ("PASID in another domain", pasid_all(SECOND_DOMAIN, FIRST), &[], &[]),
        ("page of a PASID", pasid_page(PROCESS_DOMAIN, FIRST, HERE), &["first"], &["first"]),
        ("page of a PASID, leaf only", pasid_page(PROCESS_DOMAIN, FIRST, HERE | HINT), &[], &["first"]),
        ("page of a second stage's PASID", pasid_page(SECOND_DOMAIN, SECOND, HERE), &[], &[]),
    ]
}

/// Tables on the way: the entry that leads to the page table is cut off.
#[test]
fn tables_go_at_every_granularity() {
    for (name, descriptor, gone, _) in rows() {
        let machine = machine();
        let (driver, tables) = Driver::booted(&machine);
        let probes = World::new(&tables).probes(2);
        let left = survivors(&machine, &probes, || driver.submit(&[descriptor]));
        assert_eq!(left, all_but(&probes, gone), "{name}");
    }
}

/// Translations: the page itself is cut off.
#[test]
fn translations_go_at_every_granularity() {
    for (name, descriptor, _, gone) in rows() {
        let machine = machine();
        let (driver, tables) = Driver::booted(&machine);
        let probes = World::new(&tables).probes(1);
        let left = survivors_in_ports(&machine, &probes, || driver.submit(&[descriptor]));
        assert_eq!(left, all_but(&probes, gone), "{name}");
    }
}

/// A second-stage table under a nested first stage is found by the address of the second stage.
#[test]
fn tables_under_a_first_stage_go_by_their_own_addresses() {
    // (name, descriptor, does the table that leads to the output stay)
    let rows = [
        ("page", iotlb_page(NESTED_DOMAIN, PAGE), false),
        ("another page", iotlb_page(NESTED_DOMAIN, 0x10_0000), true),
        ("leaf only", iotlb_page(NESTED_DOMAIN, PAGE | HINT), true),
        ("domain", iotlb_domain(NESTED_DOMAIN), false),
        ("PASID", pasid_all(NESTED_DOMAIN, NESTED), true),
        ("page of a PASID", pasid_page(NESTED_DOMAIN, NESTED, HERE), true),
    ];
    for (name, descriptor, stays) in rows {
        let machine = machine();
        let (driver, tables) = Driver::booted(&machine);
        let world = World::new(&tables);
        let probes = [Probe::new("output", NESTED, HERE, world.outer.entry_at(PAGE, 2))];
        let left = survivors(&machine, &probes, || driver.submit(&[descriptor]));
        assert_eq!(!left.is_empty(), stays, "{name}");
    }
}

/// PASID entries: they lose "present".
#[test]
fn pasid_entries_go_at_every_granularity() {
    const TWO_PROCESSES: &[&str] = &["first", "first too"];
    let cache = |domain: u16, pasid: u32| desc::pasid_cache(domain.into(), pasid.into());
    let rows: [(_, _, &[&str]); 8] = [
        ("global", desc::PASID_GLOBAL, &["first", "first too", "nested", "second", "pass-through"]),
        ("domain of processes", (u64::from(PROCESS_DOMAIN) << 16 | 0x07, 0), TWO_PROCESSES),
        ("domain of nobody", (9 << 16 | 0x07, 0), &[]),
        ("PASID in its domain", cache(PROCESS_DOMAIN, FIRST), &["first"]),
        ("PASID in another domain", cache(SECOND_DOMAIN, FIRST), &[]),
        ("pass-through", cache(PASS_DOMAIN, PASS), &["pass-through"]),
        ("contexts", desc::CONTEXT_GLOBAL, &[]),
        ("translations", desc::IOTLB_GLOBAL, &[]),
    ];
    for (name, descriptor, gone) in rows {
        let machine = machine();
        let (driver, tables) = Driver::booted(&machine);
        let _world = World::new(&tables);
        let context = tables.context(ENDPOINT);
        let probes = [
            ("first", FIRST),
            ("first too", FIRST_TOO),
            ("nested", NESTED),
            ("second", SECOND),
            ("pass-through", PASS),
        ]
        .map(|(name, pasid)| Probe::new(name, pasid, HERE, context.pasid(pasid).at()));
        let left = survivors(&machine, &probes, || driver.submit(&[descriptor]));
        assert_eq!(left, all_but(&probes, gone), "{name}");
    }
}

/// Context entries: they lose "present". No domain-id is looked at, and domain-selective means global.
#[test]
fn context_entries_go_at_every_granularity() {
    const EVERY: &[&str] = &["03.0", "03.4", "03.2", "03.7", "04.0"];
    let device = |mask: u64, domain: u64| (mask << 48 | 0x18 << 32 | domain << 16 | 0x31, 0);
    let rows: [(_, _, &[&str]); 8] = [
        ("global", desc::CONTEXT_GLOBAL, EVERY),
        ("domain", (0x9_0021, 0), EVERY),
        ("function", device(0, 0), &["03.0"]),
        ("function, whatever domain", device(0, 77), &["03.0"]),
        ("2 functions", device(1, 0), &["03.0", "03.4"]),
        ("4 functions", device(2, 0), &["03.0", "03.4", "03.2"]),
        ("8 functions", device(3, 0), &["03.0", "03.4", "03.2", "03.7"]),
        ("PASID entries", desc::PASID_GLOBAL, &[]),
    ];
    for (name, descriptor, gone) in rows {
        let machine = machine();
        let (driver, tables) = Driver::booted(&machine);
        let probes: Vec<_> = EVERY
            .iter()
            .zip([0x18, 0x1c, 0x1a, 0x1f, 0x20])
            .map(|(name, source)| {
                let context = tables.context(SourceId(source));
                context.without_pasid().pass_through(PASS_DOMAIN);
                Probe { name, source: SourceId(source), pasid: None, address: HERE, entry: context.at() }
            })
            .collect();
        let left = survivors(&machine, &probes, || driver.submit(&[descriptor]));
        assert_eq!(left, all_but(&probes, gone), "{name}");
    }
}

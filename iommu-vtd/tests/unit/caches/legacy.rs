//! The effect of invalidations under legacy tables, by descriptor and by register (§6.5.1).

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use iommu_core::{Access, Gpa, Iova, SourceId};
use iommu_vtd::Profile;
use iommu_vtd::spec::context::LegacyTranslationType;
use iommu_vtd::testkit::{AddressSpace, PageSize, Tables, flags};

use super::world::{Probe, all_but, survivors, survivors_in_ports};
use crate::driver::{Driver, GCMD, GSTS, Machine, Memory, QIE, RING, SRTP, TE};

const CCMD: u64 = 0x28;
const IVA: u64 = 0xf0;
const IOTLB: u64 = 0xf8;

const HERE: u64 = 0x45_6780_0000;
const THERE: u64 = HERE + (1 << 21);
const PAGE: u64 = 0x80_0000;

/// Functions and their domains. The first three are functions of one device.
const FUNCTIONS: [(&str, u16, u16); 4] =
    [("03.0", 0x18, 1), ("03.4", 0x1c, 1), ("03.1", 0x19, 2), ("04.0", 0x20, 2)];

/// With the queue on, it has descriptors of 128 bits.
fn machine() -> Machine {
    Machine::with(&Profile { interrupt_remapping: false, ..Profile::legacy(46) }.settled())
}

/// A driver that has set its tables and enabled translation.
fn booted(machine: &Machine, queue: bool) -> (Driver<'_>, Tables<'_, Memory>) {
    let driver = Driver::new(machine);
    let tables = Tables::new(&machine.memory, 0x10_0000..0x40_0000);
    if queue {
        driver.enable_queue();
    }
    driver.set_root(tables.root().0);
    driver.level(TE, true);
    (driver, tables)
}

/// One second stage per domain.
fn spaces<'t, 'm>(tables: &'t Tables<'m, Memory>) -> [AddressSpace<'t, 'm, Memory>; 2] {
    let spaces = [tables.second_space(4), tables.second_space(4)];
    for space in &spaces {
        for address in [HERE, THERE] {
            space.map(address, PAGE, PageSize::Size4K, flags::SECOND);
        }
    }
    for (_, source, domain) in FUNCTIONS {
        let kind = LegacyTranslationType::Untranslated;
        tables.legacy_context(SourceId(source), kind, domain, &spaces[usize::from(domain) - 1]);
    }
    spaces
}

fn context_at(tables: &Tables<'_, Memory>, source: u16) -> Gpa {
    let root = tables.word(Gpa(tables.root().0 + u64::from(source >> 8) * 16));
    Gpa((root & !0xfff) + u64::from(source & 0xff) * 16)
}

/// (name, granularity, domain, function mask, source-id, what goes)
type ContextRow = (&'static str, u64, u64, u64, u64, &'static [&'static str]);

const CONTEXT_ROWS: [ContextRow; 8] = [
    ("global", 1, 0, 0, 0, &["03.0", "03.4", "03.1", "04.0"]),
    ("domain", 2, 1, 0, 0, &["03.0", "03.4"]),
    ("another domain", 2, 2, 0, 0, &["03.1", "04.0"]),
    ("domain 0, as caching mode has it", 2, 0, 0, 0, &[]),
    ("function", 3, 1, 0, 0x18, &["03.0"]),
    ("function, with domain 0", 3, 0, 0, 0x18, &["03.0"]),
    ("2 functions", 3, 1, 1, 0x18, &["03.0", "03.4"]),
    ("8 functions", 3, 1, 3, 0x18, &["03.0", "03.4", "03.1"]),
];

#[test]
fn context_entries_go_at_every_granularity() {
    for queue in [true, false] {
        for (name, granularity, domain, mask, source, gone) in CONTEXT_ROWS {
            let machine = machine();
            let (driver, tables) = booted(&machine, queue);
            let _spaces = spaces(&tables);
            let probes = FUNCTIONS.map(|(name, source, _)| Probe {
                name,
                source: SourceId(source),
                pasid: None,
                address: HERE,
                entry: context_at(&tables, source),
            });
            let left = survivors(&machine, &probes, || {
                if queue {
                    let low = mask << 48 | source << 32 | domain << 16 | granularity << 4 | 1;
                    driver.submit_narrow(&[(low, 0)]);
                } else {
                    let command = 1 << 63 | granularity << 61 | mask << 32 | source << 16 | domain;
                    machine.write64(CCMD, command);
                    assert_eq!(machine.read64(CCMD) >> 59, granularity << 2 | granularity, "{name}");
                }
            });
            assert_eq!(left, all_but(&probes, gone), "{name}, queue {queue}");
        }
    }
}

const ALL: &[&str] = &["1 here", "1 there", "2 here", "2 there"];

/// (name, granularity, domain, address with AM and hint, tables that go, translations that go)
type Row = (&'static str, u64, u64, u64, &'static [&'static str], &'static [&'static str]);

const ROWS: [Row; 7] = [
    ("global", 1, 0, 0, ALL, ALL),
    ("domain", 2, 1, 0, &["1 here", "1 there"], &["1 here", "1 there"]),
    ("domain, of nobody", 2, 0, 0, &[], &[]),
    ("page", 3, 1, HERE, &["1 here"], &["1 here"]),
    ("leaf only", 3, 1, HERE | 1 << 6, &[], &["1 here"]),
    ("4 MiB", 3, 2, HERE | 10, &["2 here", "2 there"], &["2 here", "2 there"]),
    ("page 0", 3, 1, 0, &[], &[]),
];

/// Requests that need an entry of this level: by the first function of either domain, at two addresses.
fn probes(spaces: &[AddressSpace<'_, '_, Memory>; 2], level: u32) -> Vec<Probe> {
    let rows = [
        ("1 here", 0x18, 0, HERE),
        ("1 there", 0x18, 0, THERE),
        ("2 here", 0x20, 1, HERE),
        ("2 there", 0x20, 1, THERE),
    ];
    let probe = |(name, source, space, address): (_, _, usize, _)| Probe {
        name,
        source: SourceId(source),
        pasid: None,
        address,
        entry: spaces[space].entry_at(address, level),
    };
    rows.map(probe).into()
}

fn invalidate(driver: &Driver<'_>, queue: bool, row: &Row) {
    let (name, granularity, domain, address, ..) = *row;
    if queue {
        return driver.submit_narrow(&[(domain << 16 | granularity << 4 | 2, address)]);
    }
    driver.machine.write64(IVA, address);
    driver.machine.write64(IOTLB, 1 << 63 | granularity << 60 | domain << 32);
    assert_eq!(driver.machine.read64(IOTLB) >> 57, granularity << 3 | granularity, "{name}");
}

#[test]
fn tables_go_at_every_granularity() {
    for (queue, row) in [true, false].into_iter().flat_map(|queue| ROWS.map(|row| (queue, row))) {
        let machine = machine();
        let (driver, tables) = booted(&machine, queue);
        let probes = probes(&spaces(&tables), 2);
        let left = survivors(&machine, &probes, || invalidate(&driver, queue, &row));
        assert_eq!(left, all_but(&probes, row.4), "{}, queue {queue}", row.0);
    }
}

#[test]
fn translations_go_at_every_granularity() {
    for (queue, row) in [true, false].into_iter().flat_map(|queue| ROWS.map(|row| (queue, row))) {
        let machine = machine();
        let (driver, tables) = booted(&machine, queue);
        let probes = probes(&spaces(&tables), 1);
        let left = survivors_in_ports(&machine, &probes, || invalidate(&driver, queue, &row));
        assert_eq!(left, all_but(&probes, row.5), "{}, queue {queue}", row.0);
    }
}

/// Linux leaves IVA as it is when it means page 0: what it wrote there before must not be taken for the address.
#[test]
fn an_address_serves_one_invalidation() {
    let machine = machine();
    let (_driver, tables) = booted(&machine, false);
    let spaces = spaces(&tables);
    spaces[0].map(0, PAGE, PageSize::Size4K, flags::SECOND);
    let page = |name, address| Probe {
        name,
        source: SourceId(0x18),
        pasid: None,
        address,
        entry: spaces[0].entry_at(address, 1),
    };
    let probes = [page("page 0", 0), page("here", HERE)];
    machine.write64(IVA, HERE);
    machine.write64(IOTLB, 1 << 63 | 3 << 60 | 1 << 32);
    let left = survivors_in_ports(&machine, &probes, || {
        machine.write64(IOTLB, 1 << 63 | 3 << 60 | 1 << 32);
    });
    assert_eq!(left, ["here"]);
}

/// What is refused drops nothing and says so; the trigger is taken back all the same.
#[test]
fn what_is_refused_drops_nothing() {
    type Row = (&'static str, fn(&Driver<'_>), u64, u64);
    let queue: fn(&Driver<'_>) = |driver| driver.level(QIE, true);
    let rows: [Row; 5] = [
        ("context, queue on", queue, CCMD, 1 << 63 | 1 << 61),
        ("IOTLB, queue on", queue, IOTLB, 1 << 63 | 1 << 60),
        ("context, no granularity", |_| (), CCMD, 1 << 63),
        ("IOTLB, no granularity", |_| (), IOTLB, 1 << 63),
        ("IOTLB, AM above MAMV", |driver| driver.machine.write64(IVA, 63), IOTLB, 1 << 63 | 3 << 60),
    ];
    for (name, prepare, register, value) in rows {
        let machine = machine();
        let (driver, tables) = booted(&machine, false);
        let probes = probes(&spaces(&tables), 2);
        let left = survivors(&machine, &probes, || {
            prepare(&driver);
            machine.write64(register, value);
        });
        assert_eq!(machine.read64(register), value & !(1 << 63), "{name}");
        assert_eq!(left, ALL, "{name}");
    }
}

/// A unit without a queue has none that could be enabled, and so registers always invalidate.
#[test]
fn without_a_queue_registers_invalidate() {
    let profile = Profile { queued_invalidation: false, ..Profile::legacy(46) }.settled();
    let machine = Machine::with(&profile);
    let (driver, tables) = booted(&machine, false);
    for (offset, value) in [(0x88, 0x20), (0x90, RING), (0xa0, 0)] {
        machine.write64(offset, value);
        assert_eq!(machine.read64(offset), 0, "{offset:#x}");
    }
    machine.write32(GCMD, TE | QIE);
    assert_eq!(machine.read32(GSTS), TE | SRTP);
    let probes = probes(&spaces(&tables), 2);
    let left = survivors(&machine, &probes, || invalidate(&driver, false, &ROWS[1]));
    assert_eq!(left, all_but(&probes, ROWS[1].4));
}

/// One CPU invalidates by register while another switches the queue. Each command completes, and is carried out or
/// refused as a whole.
#[test]
fn commands_and_register_invalidations_take_turns() {
    let machine = machine();
    let (_driver, tables) = booted(&machine, false);
    let space = &spaces(&tables)[0];
    let mut port = machine.dma_of(SourceId(0x18)).port();
    let mut cached = || port.session(None).translate(Iova(HERE), Access::Read).map(|hit| hit.gpa.0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for queue in (0..).map(|n| n % 2) {
                machine.write32(GCMD, TE | (QIE * queue));
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let (mut served, mut round) = (0, 0);
        while served < 200 {
            round += 1;
            let page = PAGE + ((round % 256) << 12);
            space.edit(HERE, 1, |_| page | flags::SECOND);
            machine.write64(IOTLB, 1 << 63 | 1 << 60);
            match machine.read64(IOTLB) {
                refused if refused == 1 << 60 => {}
                done => {
                    assert_eq!(done, 1 << 60 | 1 << 57);
                    assert_eq!(cached(), Ok(page));
                    served += 1;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

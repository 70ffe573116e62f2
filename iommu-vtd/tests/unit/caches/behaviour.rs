//! When caches are filled and emptied apart from invalidations, and what is never cached.

use iommu_core::{Access, DmaFault, Iova, Pasid, Request, Translator};
use iommu_vtd::Profile;
use iommu_vtd::testkit::{PageSize, Tables, flags};

use super::world::{Probe, survivors, survivors_in_ports};
use crate::driver::{Driver, ENDPOINT, FSTS, Machine, Memory, PQT, QIE, RTADDR, SRTP, TE, desc};
use crate::flows::page_request;

const PASID: u32 = 1;
const DOMAIN: u16 = 1;
const VIRTUAL: u64 = 0x7f12_3456_7000;
const PAGE: u64 = 0x80_0000;

fn profile() -> Profile {
    Profile { interrupt_remapping: false, ..Profile::full(46) }.settled()
}

fn process(tables: &Tables<'_, Memory>) -> [Probe; 3] {
    let context = tables.context(ENDPOINT);
    let entry = context.pasid(PASID);
    let space = entry.first_stage(DOMAIN);
    space.map(VIRTUAL, PAGE, PageSize::Size4K, flags::READY);
    [
        Probe::new("table", PASID, VIRTUAL, space.entry_at(VIRTUAL, 2)),
        Probe::new("PASID entry", PASID, VIRTUAL, entry.at()),
        Probe::new("context entry", PASID, VIRTUAL, context.at()),
    ]
}

fn asks(machine: &Machine, access: Access) -> bool {
    let pasid = Some(Pasid::truncate(PASID));
    machine.unit.translate(&Request::untranslated(ENDPOINT, pasid, Iova(VIRTUAL), access)).is_ok()
}

/// A driver announces nothing that was not there before, unless the unit is in caching mode; and there for first
/// stages neither.
#[test]
fn nothing_is_remembered_of_what_was_missing() {
    for caching_mode in [false, true] {
        let machine = Machine::with(&Profile { caching_mode, ..profile() });
        let (_driver, tables) = Driver::booted(&machine);
        assert!(!asks(&machine, Access::Read), "no context entry");
        let context = tables.context(ENDPOINT);
        assert!(!asks(&machine, Access::Read), "no PASID entry");
        let space = context.pasid(PASID).first_stage(DOMAIN);
        assert!(!asks(&machine, Access::Read), "no page");
        space.map(VIRTUAL, PAGE, PageSize::Size4K, flags::USER);
        assert!(asks(&machine, Access::Read) && !asks(&machine, Access::Write), "read-only");
        space.edit(VIRTUAL, 1, |word| word | flags::WRITE);
        assert!(asks(&machine, Access::Write));
        let space = context.pasid(PASID + 1).first_stage(DOMAIN);
        space.map(VIRTUAL, PAGE, PageSize::Size4K, flags::READY);
    }
}

/// What is cached can let a request go ahead for longer, but not stop it.
#[test]
fn a_request_that_fails_is_judged_by_memory() {
    let machine = Machine::with(&profile());
    let (driver, tables) = Driver::booted(&machine);
    let entry = tables.context(ENDPOINT).pasid(PASID);
    let space = entry.first_stage(DOMAIN);
    space.map(VIRTUAL, PAGE, PageSize::Size4K, flags::READY);
    space.edit(VIRTUAL, 2, |word| word & !flags::WRITE);
    assert!(asks(&machine, Access::Read) && !asks(&machine, Access::Write));
    space.edit(VIRTUAL, 2, |word| word | flags::WRITE);
    assert!(asks(&machine, Access::Write), "a table that allows more now");
    let other = tables.address_space(4);
    entry.attach(DOMAIN, &other);
    assert!(asks(&machine, Access::Write), "cached");
    space.unmap(VIRTUAL, PageSize::Size4K);
    other.map(VIRTUAL, PAGE, PageSize::Size4K, flags::READY);
    assert!(asks(&machine, Access::Write), "what is cached leads nowhere, memory does");
    driver.submit(&[desc::PASID_GLOBAL, desc::IOTLB_GLOBAL]);
    assert!(asks(&machine, Access::Write));
}

type Act = fn(&Driver<'_>, u64);

fn set_root(driver: &Driver<'_>, root: u64) {
    driver.set_root(root);
}

fn translation_off_and_on(driver: &Driver<'_>, _: u64) {
    driver.level(TE, false);
    driver.level(TE, true);
}

fn queue_off_and_on(driver: &Driver<'_>, _: u64) {
    driver.level(QIE, false);
    driver.enable_queue();
}

fn another_mode(driver: &Driver<'_>, root: u64) {
    driver.set_root(root & !0xc00 | 0xc00);
    driver.set_root(root);
}

/// (name, does setting the root invalidate, what is done, does what was cached stay)
#[test]
fn commands_drop_everything_or_nothing() {
    let rows: [(_, _, Act, _); 9] = [
        ("new root", true, set_root, false),
        ("new root without ESRTPS", false, set_root, true),
        ("another table mode without ESRTPS", false, another_mode, false),
        ("translation off and on", true, translation_off_and_on, false),
        ("translation off and on without ESRTPS", false, translation_off_and_on, false),
        ("queue off and on", true, queue_off_and_on, true),
        ("root address written, not set", true, |driver, _| driver.machine.write64(RTADDR, 0), true),
        ("levels of before", true, |driver, _| driver.level(TE, true), true),
        (
            "reset",
            true,
            |driver, root| {
                driver.machine.unit.reset();
                let again = Driver::new(driver.machine);
                again.enable_queue();
                again.set_root(root);
                again.level(TE, true);
            },
            false,
        ),
    ];
    for (name, root_invalidates, act, stays) in rows {
        let machine = Machine::with(&Profile { root_invalidates, ..profile() });
        let (driver, tables) = Driver::booted(&machine);
        let probes = process(&tables);
        let root = tables.root_register().raw_value();
        let left = survivors(&machine, &probes, || act(&driver, root));
        assert_eq!(left.len(), if stays { 3 } else { 0 }, "{name}: {left:?}");

        let machine = Machine::with(&Profile { root_invalidates, ..profile() });
        let (driver, tables) = Driver::booted(&machine);
        let root = tables.root_register().raw_value();
        let left = survivors_in_ports(&machine, &process(&tables), || act(&driver, root));
        assert_eq!(left.len(), if stays { 3 } else { 0 }, "ports, {name}: {left:?}");
    }
}

/// Without ESRTPS the driver's own invalidations do it, one cache each.
#[test]
fn without_the_promise_a_driver_invalidates_after_a_new_root() {
    let machine = Machine::with(&Profile { root_invalidates: false, ..profile() });
    let (driver, tables) = Driver::booted(&machine);
    let probes = process(&tables);
    let left = survivors(&machine, &probes, || {
        driver.set_root(tables.root_register().raw_value());
        driver.submit(&[desc::CONTEXT_GLOBAL]);
        driver.submit(&[desc::PASID_GLOBAL]);
        driver.submit(&[desc::IOTLB_GLOBAL]);
    });
    assert_eq!(left, [""; 0]);
}

/// A kernel that crashed left translation on; the next one takes over without switching it.
#[test]
fn a_crash_kernel_sets_its_root_under_way() {
    let machine = Machine::with(&profile());
    let (driver, tables) = Driver::booted(&machine);
    let probes = process(&tables);
    let other = Tables::new(&machine.memory, 0x40_0000..0x60_0000);
    let left = survivors(&machine, &probes, || {
        queue_off_and_on(&driver, 0);
        driver.set_root(other.root_register().raw_value());
    });
    assert_eq!(left, [""; 0]);
    let space = other.context(ENDPOINT).pasid(PASID).first_stage(DOMAIN);
    space.map(VIRTUAL, PAGE, PageSize::Size4K, flags::READY);
    assert!(asks(&machine, Access::Read), "copied contexts are found under the new root");
}

/// Requests without PASID go by the PASID that stands for none, and so do their invalidations, whatever its number.
#[test]
fn invalidations_of_rid_pasid_hit_requests_without_pasid() {
    let rows = [
        ("PASID entry", desc::pasid_cache(2, 9), 1),
        ("all of the PASID", desc::pasid_iotlb_all(2, 9), 0),
        ("page of the PASID", desc::pasid_iotlb_page(2, 9, VIRTUAL), 0),
    ];
    for (name, descriptor, kind) in rows {
        let machine = Machine::with(&profile());
        let (driver, tables) = Driver::booted(&machine);
        let context = tables.context(ENDPOINT);
        context.rid_pasid(9);
        let entry = context.without_pasid();
        let space = entry.first_stage(2);
        space.map(VIRTUAL, PAGE, PageSize::Size4K, flags::READY);
        let cuts = [space.entry_at(VIRTUAL, 2), entry.at()];
        let probe = Probe { pasid: None, ..Probe::new(name, 0, VIRTUAL, cuts[kind]) };
        let left = survivors(&machine, &[probe], || driver.submit(&[descriptor]));
        assert_eq!(left, [""; 0], "{name}");
    }
}

/// Before a page request is queued, what is cached of its page goes (§7.4.1): the retry finds the page that the
/// guest will have put there.
#[test]
fn a_page_request_invalidates_its_page() {
    let machine = Machine::with(&profile());
    let (_driver, tables) = Driver::booted(&machine);
    let probes = process(&tables);
    let left = survivors(&machine, &probes[..1], || {
        machine.unit.page_request(&page_request(VIRTUAL, 3));
    });
    assert_eq!((left.len(), machine.read64(PQT)), (0, 32));
}

/// Linux switches the keeping of dirty bits on in a live entry: PASID entry, then the domain, then the devices.
#[test]
fn dirty_bits_are_kept_from_the_invalidation_on() {
    let machine = Machine::with(&profile());
    let (driver, tables) = Driver::booted(&machine);
    let entry = tables.context(ENDPOINT).pasid(PASID);
    let space = tables.second_space(4);
    space.map(VIRTUAL, PAGE, PageSize::Size4K, flags::SECOND);
    entry.attach(DOMAIN, &space);
    assert!(asks(&machine, Access::Write));
    assert!(!space.second_entry(VIRTUAL, 1).dirty());
    entry.edit(0, |word| word | 1 << 9);
    driver.submit(&[desc::pasid_cache(1, 1)]);
    driver.submit(&[(u64::from(DOMAIN) << 16 | 0x22, 0)]);
    assert!(asks(&machine, Access::Write));
    assert!(space.second_entry(VIRTUAL, 1).dirty());
    for level in 1..=4 {
        assert!(space.second_entry(VIRTUAL, level).accessed(), "level {level}");
    }
}

/// What Linux sends for the upper half of an address space, and for PASIDs under a domain that is not theirs: it is
/// accepted, at once, and hits what it names and nothing else.
#[test]
fn odd_ranges_and_pairs_are_served() {
    let upper = 0xffff_8000_0000_0000;
    let rows = [
        ("upper half", desc::pasid_iotlb_page(1, 1, upper | 35), true),
        ("upper half, five levels", desc::pasid_iotlb_page(1, 1, 0xff00_0000_0000_0000 | 44), true),
        ("AM 51", desc::pasid_iotlb_page(1, 1, 51), false),
        ("AM 63", desc::pasid_iotlb_page(1, 1, 63), false),
        ("device-TLB, upper half", desc::device_tlb_page(1, upper | 0xbfff_ffff_f800), true),
        ("domain of the device's own buffers", desc::pasid_iotlb_all(2, 1), true),
    ];
    for (name, descriptor, stays) in rows {
        let machine = Machine::with(&profile());
        let (driver, tables) = Driver::booted(&machine);
        let probes = process(&tables);
        let left = survivors(&machine, &probes[..1], || driver.submit(&[descriptor]));
        assert_eq!(!left.is_empty(), stays, "{name}");
        assert_eq!(machine.read32(FSTS), 0, "{name}");
    }
}

/// The two ways a process ends: what was cached is gone with the sequence, and a stray access is refused.
#[test]
fn nothing_is_left_of_a_process() {
    let machine = Machine::with(&profile());
    let (driver, tables) = Driver::booted(&machine);
    let probes = process(&tables);
    let mut port = machine.dma().port();
    let pasid = Some(Pasid::truncate(PASID));
    assert!(port.session(pasid).translate(Iova(VIRTUAL), Access::Write).is_ok());
    let left = survivors(&machine, &probes[1..2], || {
        driver.submit(&[desc::pasid_cache(1, 1)]);
        driver.submit(&[desc::pasid_iotlb_all(1, 1)]);
        driver.submit(&[desc::device_tlb_all(1)]);
    });
    assert_eq!(left, [""; 0]);
    let session = port.session(pasid);
    let refused = session.translate(Iova(VIRTUAL), Access::Write);
    assert!(matches!(refused, Err(DmaFault::Refused(fault)) if fault.reason.code == 0x59), "{refused:?}");
}

/// What Linux sends in caching mode when it installs entries: domain 0 for contexts, the new domain for the rest.
#[test]
fn caching_mode_is_offered_and_its_invalidations_accepted() {
    let machine = Machine::with(&Profile { caching_mode: true, ..profile() });
    assert_ne!(machine.read64(8) & 1 << 7, 0, "CM");
    let (driver, tables) = Driver::booted(&machine);
    let probes = process(&tables);
    driver.submit(&[(0x18 << 32 | 0x31, 0)]);
    driver.submit(&[(0x22, 0)]);
    driver.submit(&[desc::pasid_cache(1, 1)]);
    driver.submit(&[desc::pasid_iotlb_all(1, 1)]);
    assert!(asks(&machine, Access::Read));
    // Domain 0 is a domain like any other: what belongs to another stays.
    let left = survivors(&machine, &probes, || driver.submit(&[(0x22, 0), (0x07, 0)]));
    assert_eq!(left.len(), 3);
}

/// One-shot commands come with all levels that are on.
#[test]
fn setting_the_root_leaves_the_levels() {
    let machine = Machine::with(&profile());
    let (_driver, tables) = Driver::booted(&machine);
    let probes = process(&tables);
    let left = survivors(&machine, &probes, || machine.write32(0x18, TE | QIE));
    assert_eq!(left.len(), 3);
    machine.write32(0x18, TE | QIE | SRTP);
    assert!(!asks(&machine, Access::Read), "ESRTPS");
}

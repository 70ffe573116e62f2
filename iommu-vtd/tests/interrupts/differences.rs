//! Where a widely used model is known to differ from the manual, and this one must not. One test per difference
//! that concerns interrupts.

use iommu_core::{Msi, SourceId};
use iommu_vtd::Profile;

use crate::bench::{ALL_ENTRIES, Bench, EIME, IRE, SOURCE, Seen, TABLE, arrives, entry, profile, to_entry};
use crate::conditions::for_source;

const EVENT: Msi = Msi { address: 0x0001_0000_fee0_100c, data: 0x41 };

#[test]
fn compatibility_format_is_blocked_while_remapping() {
    for extended in [false, true] {
        let bench = Bench::on(&profile(), extended);
        let msi = Msi { address: 0xfee0_1000, data: 0x31 };
        assert_eq!(bench.send(SOURCE, msi), Seen::Fault(0x25, SOURCE, 0));
    }
}

#[test]
fn a_range_of_buses_starts_with_the_high_byte() {
    let bench = Bench::on(&profile(), true);
    bench.set_entry(1, entry(0x31, 3) | 2 << 82 | 0x0205 << 64);
    assert_eq!(bench.send(SourceId::from_bdf(3, 0, 0), to_entry(1)), arrives(0x31, 3));
    bench.set_entry(2, entry(0x31, 3) | 2 << 82 | 0x0502 << 64);
    let source = SourceId::from_bdf(3, 0, 0);
    assert_eq!(bench.send(source, to_entry(2)), Seen::Fault(0x26, source, 2));
}

#[test]
fn the_source_is_checked_before_reserved_bits() {
    let bench = Bench::on(&profile(), true);
    bench.set_entry(1, entry(0x31, 3) | for_source(SourceId(0)) | 1 << 12);
    assert_eq!(bench.send(SOURCE, to_entry(1)), Seen::Fault(0x26, SOURCE, 1));
}

#[test]
fn reserved_source_validation_is_24h() {
    let bench = Bench::on(&profile(), true);
    bench.set_entry(1, entry(0x31, 3) | 3 << 82);
    assert_eq!(bench.send(SOURCE, to_entry(1)), Seen::Fault(0x24, SOURCE, 1));
}

#[test]
fn reserved_data_is_checked_before_the_entry() {
    let bench = Bench::on(&profile(), true);
    let msi = Msi { data: 0x1_0000, ..to_entry(1) };
    assert_eq!(bench.send(SOURCE, msi), Seen::Fault(0x20, SOURCE, 0), "the entry is not even present");
}

#[test]
fn entries_beyond_the_physical_width_are_21h() {
    let bench = Bench::new(&profile());
    bench.set_table(1 << 46 | EIME | ALL_ENTRIES, 0);
    bench.command(IRE);
    assert_eq!(bench.send(SOURCE, to_entry(0)), Seen::Fault(0x21, SOURCE, 0));
}

#[test]
fn a_wide_message_address_is_an_ordinary_write() {
    let bench = Bench::on(&profile(), true);
    bench.set_entry(1, entry(0x31, 3));
    let wide = Msi { address: 1 << 32 | to_entry(1).address, data: 0 };
    assert_eq!(bench.send(SOURCE, wide), Seen::Nothing);
}

/// Name, control register, what raises the event.
type Event = (&'static str, u64, fn(&Bench));

/// The upper address registers take part, or logical ids from cluster 1 on are not reached.
#[test]
fn event_addresses_are_64_bits_wide_and_never_remapped() {
    let rows: [Event; 2] = [
        ("fault", 0x38, |bench| assert!(matches!(bench.send(SOURCE, to_entry(1)), Seen::Fault(0x22, ..)))),
        ("invalidation completed", 0xa0, |bench| {
            bench.submit(0x15, IRE);
        }),
    ];
    for (name, control, raise) in rows {
        let bench = Bench::on(&profile(), true);
        assert_eq!(bench.read32(control), 1 << 31, "{name}: masked after reset");
        bench.write32(control + 4, EVENT.data);
        bench.write64(control + 8, EVENT.address);
        assert_eq!(bench.read64(control + 8), EVENT.address, "{name}");
        bench.write32(control, 0);
        raise(&bench);
        assert_eq!(bench.own.sent.lock().last().map(|(_, msi)| *msi), Some(EVENT), "{name}");
    }
}

/// Extended mode is the unit's own, whatever the rest of the profile.
#[test]
fn extended_mode_needs_nothing_but_remapping() {
    let bench = Bench::on(
        &Profile { interrupt_remapping: true, extended_interrupts: true, ..Profile::legacy(39) },
        true,
    );
    bench.set_entry(1, entry(0x31, 0x0001_0100));
    assert_eq!(bench.read64(0xb8), TABLE | EIME | ALL_ENTRIES);
    assert_eq!(bench.send(SOURCE, to_entry(1)), arrives(0x31, 0x0001_0100));
}

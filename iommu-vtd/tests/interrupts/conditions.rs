//! Every fault reason of §5.1.4, and the order of the checks.

use iommu_core::{Msi, SourceId};
use iommu_vtd::Profile;

use crate::bench::{
    ALL_ENTRIES, Bench, CFI, EIME, IRE, IRTA, SIRTP, SOURCE, Seen, TABLE, arrives, entry, profile, to_entry,
};
use crate::posting;

/// SVT 1: all bits of the source-id.
pub(crate) fn for_source(source: SourceId) -> u128 {
    u128::from(source.0) << 64 | 1 << 82
}

const FPD: u128 = 1 << 1;
/// Of an index that the record is to name.
const INDEX: u16 = 0x8005;

struct Row {
    name: &'static str,
    entry: u128,
    /// The reason; `None`: it arrives as the well-formed entry does.
    reason: Option<u8>,
}

const fn row(name: &'static str, entry: u128, reason: Option<u8>) -> Row {
    Row { name, entry, reason }
}

fn entry_rows() -> Vec<Row> {
    let good = entry(0x31, 0x102);
    let other = for_source(SourceId(SOURCE.0 ^ 8));
    let reserved = 1 << 12;
    vec![
        row("well-formed", good, None),
        row("available bits are ignored", good | 0xf << 8, None),
        row("22h: not present", good & !1, Some(0x22)),
        row("22h: all zero", 0, Some(0x22)),
        row("22h before 26h and 24h", (good & !1) | other | reserved, Some(0x22)),
        row("26h: another source", good | other, Some(0x26)),
        row("26h before 24h", good | other | reserved, Some(0x26)),
        row("24h: reserved source validation", good | 3 << 82, Some(0x24)),
        row("24h: bit 12", good | reserved, Some(0x24)),
        row("24h: bit 13", good | 1 << 13, Some(0x24)),
        row("24h: urgent without posting", good | 1 << 14, Some(0x24)),
        row("24h: bit 24", good | 1 << 24, Some(0x24)),
        row("24h: bit 31", good | 1 << 31, Some(0x24)),
        row("24h: bit 84", good | 1 << 84, Some(0x24)),
        row("24h: bit 96", good | 1 << 96, Some(0x24)),
        row("24h: bit 127", good | 1 << 127, Some(0x24)),
        row("24h: delivery mode 3", good | 3 << 5, Some(0x24)),
        row("24h: delivery mode 6", good | 6 << 5, Some(0x24)),
    ]
}

/// Each entry with and without FPD: it silences exactly these reasons.
#[test]
fn faults_of_entries() {
    for Row { name, entry, reason } in entry_rows() {
        for silent in [false, true] {
            let bench = Bench::on(&profile(), true);
            bench.set_entry(INDEX, entry | if silent { FPD } else { 0 });
            let expected = match reason {
                None => arrives(0x31, 0x102),
                Some(_) if silent => Seen::Nothing,
                Some(reason) => Seen::Fault(reason, SOURCE, INDEX),
            };
            assert_eq!(bench.send(SOURCE, to_entry(INDEX)), expected, "{name}, FPD={silent}");
        }
    }
}

#[test]
fn without_extended_mode_a_destination_has_eight_bits() {
    // (name, bits 63:32, reason)
    let rows = [
        ("47:40", 0xff00, None),
        ("24h: bit 32", 0x0101, Some(0x24)),
        ("24h: bit 39", 0x0180, Some(0x24)),
        ("24h: bit 48", 0x1_0100, Some(0x24)),
        ("24h: bit 63", 0x8000_0100, Some(0x24)),
    ];
    for (name, destination, reason) in rows {
        let bench = Bench::on(&profile(), false);
        bench.set_entry(INDEX, entry(0x31, destination));
        let expected = match reason {
            None => arrives(0x31, destination >> 8),
            Some(reason) => Seen::Fault(reason, SOURCE, INDEX),
        };
        assert_eq!(bench.send(SOURCE, to_entry(INDEX)), expected, "{name}");
    }
}

/// 24h: the posted format where posting is not offered.
#[test]
fn posted_entries_need_posting() {
    let without = Profile { posted_interrupts: false, ..profile() };
    let bench = Bench::on(&without, true);
    bench.set_entry(INDEX, posting::entry(0x5000, 0x31));
    assert_eq!(bench.send(SOURCE, to_entry(INDEX)), Seen::Fault(0x24, SOURCE, INDEX));
    let bench = Bench::on(&profile(), true);
    bench.set_entry(INDEX, posting::entry(0x5000, 0x31));
    assert_eq!(bench.send(SOURCE, to_entry(INDEX)), arrives(0, 0));
}

#[test]
fn faults_of_requests() {
    let with_data = |index, data| Msi { data, ..to_entry(index) };
    let plain = |address| Msi { address, data: 0x1_0000 };
    // (name, size field of IRTA, message, reason and index)
    let rows = [
        ("20h: data 31:16 with sub-handle", 0xf, with_data(INDEX, 0x1_0000), Some((0x20, 0))),
        ("20h: its top bit", 0xf, with_data(INDEX, 0x8000_0000), Some((0x20, 0))),
        ("20h before 21h", 0, with_data(INDEX, 0x1_0000), Some((0x20, 0))),
        ("data is ignored without sub-handle", 0xf, plain(0xfee0_00b4), None),
        ("21h: beyond the table", 0xe, to_entry(INDEX), Some((0x21, INDEX))),
        ("21h: smallest table", 0, to_entry(2), Some((0x21, 2))),
        ("21h: handle and sub-handle together", 0xf, with_data(0xffff, 6), Some((0x21, 5))),
        ("21h: carried over a smaller table", 2, with_data(7, 1), Some((0x21, 8))),
    ];
    for (name, size, msi, fault) in rows {
        let bench = Bench::new(&profile());
        bench.set_table(TABLE | EIME | size, 0);
        bench.command(IRE);
        bench.set_entry(INDEX, entry(0x31, 0x102));
        let expected = match fault {
            None => arrives(0x31, 0x102),
            Some((reason, index)) => Seen::Fault(reason, SOURCE, index),
        };
        assert_eq!(bench.send(SOURCE, msi), expected, "{name}");
    }
}

#[test]
fn faults_of_tables() {
    // (name, IRTA without flags, reason)
    let rows = [
        ("21h: the entry is beyond the physical width", 1 << 46, 0x21),
        ("21h: far beyond", u64::MAX << 12, 0x21),
        ("23h: no memory there", 1 << 45, 0x23),
        ("23h: the table is cut off by the end of memory", (16 << 20) - 0x1000, 0x23),
    ];
    for (name, base, reason) in rows {
        let bench = Bench::new(&profile());
        bench.set_table(base | EIME | ALL_ENTRIES, 0);
        bench.command(IRE);
        assert_eq!(bench.send(SOURCE, to_entry(0x1000)), Seen::Fault(reason, SOURCE, 0x1000), "{name}");
    }
}

/// 25h, and the table of §5.1.1: which way a message goes.
#[test]
fn compatibility_format() {
    let compat = Msi { address: 0xfee0_300c, data: 0x1_c031 };
    let passes = Seen::Arrived(compat);
    let blocked = Seen::Fault(0x25, SOURCE, 0);
    let remappable = to_entry(INDEX);
    let unchanged = Seen::Arrived(remappable);
    let remapped = arrives(0x31, 2);
    // (name, levels, EIME, expected for compatibility format, for remappable format)
    let rows = [
        ("off", 0, false, &passes, &unchanged),
        ("off, CFI", CFI, false, &passes, &unchanged),
        ("off, EIME", 0, true, &passes, &unchanged),
        ("on", IRE, false, &blocked, &remapped),
        ("on, CFI", IRE | CFI, false, &passes, &remapped),
        ("on, EIME", IRE, true, &blocked, &remapped),
        ("on, EIME, CFI", IRE | CFI, true, &blocked, &remapped),
    ];
    for (name, levels, extended, compatible, other) in rows {
        let bench = Bench::new(&profile());
        bench.set_table(TABLE | ALL_ENTRIES | if extended { EIME } else { 0 }, 0);
        bench.command(levels);
        bench.set_entry(INDEX, entry(0x31, if extended { 2 } else { 2 << 8 }));
        assert_eq!(bench.send(SOURCE, compat), *compatible, "{name}");
        assert_eq!(bench.send(SOURCE, remappable), *other, "{name}");
    }
}

/// Writes elsewhere are no interrupts, whatever the state: they are neither remapped nor recorded here.
#[test]
fn other_addresses_are_memory() {
    let rows = [
        ("below", 0xfedf_fff8),
        ("above", 0xfef0_0018),
        ("32 bits up", 0x1_fee0_0018),
        ("extended destination by hand", 0x0000_0100_fee0_0000),
        ("zero", 0),
        ("top", u64::MAX),
    ];
    for (name, address) in rows {
        for bench in [Bench::new(&profile()), Bench::on(&profile(), true)] {
            assert_eq!(bench.send(SOURCE, Msi { address, data: 0 }), Seen::Nothing, "{name}");
        }
    }
}

/// A record tells of its own source, and the fault event is sent past the remapping that blocks everything else.
#[test]
fn records_name_the_source_and_the_event_is_not_remapped() {
    let bench = Bench::on(&profile(), true);
    let event = Msi { address: 0x0001_0000_fee0_100c, data: 0x41 };
    bench.write32(0x3c, event.data);
    bench.write64(0x40, event.address);
    bench.write32(0x38, 0);
    let ioapic = SourceId::from_bdf(0xff, 0, 0);
    assert_eq!(bench.send(ioapic, to_entry(INDEX)), Seen::Fault(0x22, ioapic, INDEX));
    assert_eq!(*bench.own.sent.lock(), [(SourceId(0xfff8), event)]);
}

/// Without the capability nothing of it is there.
#[test]
fn a_unit_without_remapping_passes_everything() {
    let without = Profile { interrupt_remapping: false, ..profile() }.settled();
    let bench = Bench::new(&without);
    bench.write64(IRTA, TABLE | ALL_ENTRIES);
    bench.write32(0x18, IRE | SIRTP | CFI);
    assert_eq!((bench.read64(IRTA), bench.read32(0x1c)), (0, 0));
    for msi in [to_entry(INDEX), Msi { address: 0xfee0_300c, data: 0x31 }] {
        assert_eq!(bench.send(SOURCE, msi), Seen::Arrived(msi));
    }
}

//! Posted interrupts: the descriptor in memory, and its notification (§5.2.5, §9.11, §9.12).

use iommu_core::{InterruptRemapper, Msi};

use crate::bench::{Bench, SOURCE, Seen, arrives, block, profile, to_entry};

/// Where the descriptor is.
const DESCRIPTOR: u64 = 0x0051_0040;
const ON: u64 = 1;
const SN: u64 = 2;
/// Notification vector 0xf2, to 102h.
const CONTROL: u64 = 0x102 << 32 | 0xf2 << 16;

/// A posted entry for everyone.
pub(crate) fn entry(descriptor: u64, vector: u8) -> u128 {
    let low = u128::from(descriptor & 0xffff_ffc0) << 32;
    let high = u128::from(descriptor >> 32) << 96;
    high | low | u128::from(vector) << 16 | 1 << 15 | 1
}

const URGENT: u128 = 1 << 14;

fn bench(extended: bool, control: u64, flags: u128) -> Bench {
    let bench = Bench::on(&profile(), extended);
    bench.set_word(DESCRIPTOR + 32, control);
    bench.set_entry(7, entry(DESCRIPTOR, 0x91) | flags);
    bench
}

#[test]
fn notifications_are_sent_when_due() {
    let narrow = 0x0200 << 32 | 0xf2 << 16;
    // (name, extended, control, flags, what arrives, control afterwards)
    let rows = [
        ("first", true, CONTROL, 0, arrives(0xf2, 0x102), CONTROL | ON),
        ("xAPIC destination in 15:8", false, narrow, 0, arrives(0xf2, 2), narrow | ON),
        ("outstanding", true, CONTROL | ON, 0, Seen::Nothing, CONTROL | ON),
        ("suppressed", true, CONTROL | SN, 0, Seen::Nothing, CONTROL | SN),
        ("suppressed but urgent", true, CONTROL | SN, URGENT, arrives(0xf2, 0x102), CONTROL | SN | ON),
        ("outstanding and urgent", true, CONTROL | ON, URGENT, Seen::Nothing, CONTROL | ON),
    ];
    for (name, extended, control, flags, expected, after) in rows {
        let bench = bench(extended, control, flags);
        assert_eq!(bench.send(SOURCE, to_entry(7)), expected, "{name}");
        assert_eq!(bench.word(DESCRIPTOR + 32), after, "{name}");
        let requests = [0, 8, 16, 24].map(|at| bench.word(DESCRIPTOR + at));
        assert_eq!(requests, [0, 0, 1 << 0x11, 0], "{name}");
    }
}

#[test]
fn requests_add_up() {
    let bench = bench(true, CONTROL, 0);
    for vector in [0x00, 0x3f, 0x40, 0xff] {
        bench.set_entry(7, entry(DESCRIPTOR, vector));
        bench.submit(block(7, 0), crate::bench::IRE);
        let _ = bench.send(SOURCE, to_entry(7));
    }
    let requests = [0, 8, 16, 24].map(|at| bench.word(DESCRIPTOR + at));
    assert_eq!(requests, [1 << 63 | 1, 1, 0, 1 << 63]);
}

#[test]
fn faults_of_descriptors_leave_them_alone() {
    // (name, extended, offset of a word, its value, reason)
    let rows = [
        ("28h: control bit 2", true, 32, CONTROL | 1 << 2, 0x28),
        ("28h: control bit 15", true, 32, CONTROL | 1 << 15, 0x28),
        ("28h: control bit 24", true, 32, CONTROL | 1 << 24, 0x28),
        ("28h: wide destination in xAPIC mode", false, 32, CONTROL, 0x28),
        ("28h: word 5", true, 40, 1, 0x28),
        ("28h: word 6", true, 48, 1 << 63, 0x28),
        ("28h: word 7", true, 56, 1 << 63, 0x28),
    ];
    for (name, extended, at, word, reason) in rows {
        for silent in [false, true] {
            let bench = bench(extended, 0, if silent { 2 } else { 0 });
            bench.set_word(DESCRIPTOR + at, word);
            let expected = if silent { Seen::Nothing } else { Seen::Fault(reason, SOURCE, 7) };
            assert_eq!(bench.send(SOURCE, to_entry(7)), expected, "{name}, FPD={silent}");
            assert_eq!(bench.word(DESCRIPTOR + at), word, "{name}");
            assert_eq!(bench.word(DESCRIPTOR + 16), 0, "{name}: no request");
        }
    }
}

#[test]
fn faults_of_posted_entries() {
    let good = entry(DESCRIPTOR, 0x31);
    // (name, entry, reason)
    let rows = [
        ("27h: no memory there", entry(1 << 45, 0x31), 0x27),
        ("24h: descriptor beyond the physical width", entry(1 << 46, 0x31), 0x24),
        ("24h: bit 2", good | 1 << 2, 0x24),
        ("24h: bit 7", good | 1 << 7, 0x24),
        ("24h: bit 12", good | 1 << 12, 0x24),
        ("24h: bit 24", good | 1 << 24, 0x24),
        ("24h: bit 37", good | 1 << 37, 0x24),
        ("24h: bit 84", good | 1 << 84, 0x24),
        ("24h: bit 95", good | 1 << 95, 0x24),
        ("26h before them", good | 1 << 2 | 1 << 82, 0x26),
        ("22h before all", (good | 1 << 2 | 1 << 82) & !1, 0x22),
    ];
    for (name, entry, reason) in rows {
        for silent in [false, true] {
            let bench = bench(true, CONTROL, 0);
            bench.set_entry(7, entry | if silent { 2 } else { 0 });
            let expected = if silent { Seen::Nothing } else { Seen::Fault(reason, SOURCE, 7) };
            assert_eq!(bench.send(SOURCE, to_entry(7)), expected, "{name}, FPD={silent}");
        }
    }
}

/// A route cannot stand for a posted interrupt: each takes effect in memory.
#[test]
fn posted_entries_have_no_route() {
    let bench = bench(true, CONTROL, 0);
    assert_eq!(bench.unit.resolve(SOURCE, to_entry(7)), None::<Msi>);
    assert_eq!((bench.word(DESCRIPTOR + 16), bench.word(DESCRIPTOR + 32)), (0, CONTROL), "nobody sent one");
}

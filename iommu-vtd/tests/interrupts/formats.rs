//! Entries that are used: what they deliver, to whom they are open.

use iommu_core::{Msi, SourceId};

use crate::bench::{Bench, SOURCE, Seen, arrives, entry, profile, to_entry};

#[test]
fn entries_become_these_messages() {
    // (name, extended, entry, address, data)
    let rows = [
        ("physical 2", true, entry(0x31, 2), 0xfee0_2000, 0x4031),
        ("physical 102h", true, entry(0x31, 0x102), 0x100_fee0_2000, 0x4031),
        ("physical, all bits", true, entry(0xff, u32::MAX), 0xffff_ff00_feef_f000, 0x40ff),
        (
            "Linux with a cluster: logical, redirection hint",
            true,
            entry(0x23, 0x0001_0002) | 0b1100,
            0x0001_0000_fee0_200c,
            0x4023,
        ),
        ("xAPIC logical", false, entry(0x31, 0x8000) | 0b100, 0xfee8_0004, 0x4031),
        ("level", true, entry(0x31, 2) | 1 << 4, 0xfee0_2000, 0xc031),
        ("lowest priority", true, entry(0x31, 2) | 1 << 5, 0xfee0_2000, 0x4131),
        ("SMI", true, entry(0, 2) | 2 << 5, 0xfee0_2000, 0x4200),
        ("NMI", true, entry(0, 2) | 4 << 5, 0xfee0_2000, 0x4400),
        ("INIT", true, entry(0, 2) | 5 << 5, 0xfee0_2000, 0x4500),
        ("ExtINT", true, entry(0, 2) | 7 << 5, 0xfee0_2000, 0x4700),
    ];
    for (name, extended, entry, address, data) in rows {
        let bench = Bench::on(&profile(), extended);
        bench.set_entry(7, entry);
        assert_eq!(bench.send(SOURCE, to_entry(7)), Seen::Arrived(Msi { address, data }), "{name}");
    }
}

#[test]
fn handles_find_their_entries() {
    // (name, address, data, index)
    let rows = [
        ("handle", 0xfee0_00b0, 0, 5),
        ("handle with bit 15", 0xfee0_00b4, 0, 0x8005),
        ("last entry", 0xfeef_fff4, 0, 0xffff),
        ("data is ignored without SHV", 0xfee0_00b0, 0xffff_0002, 5),
        ("sub-handle", 0xfee0_00b8, 2, 7),
        ("sub-handle carries into bit 15", 0xfeef_fff8, 1, 0x8000),
        ("address bits 1:0 are ignored", 0xfee0_00b3, 0, 5),
    ];
    for (name, address, data, index) in rows {
        let bench = Bench::on(&profile(), true);
        bench.set_entry(index, entry(0x31, 9));
        assert_eq!(bench.send(SOURCE, Msi { address, data }), arrives(0x31, 9), "{name}");
    }
}

/// A function with eight vectors of plain MSI: one address, the vector's number in the data.
#[test]
fn multiple_message_msi() {
    let bench = Bench::on(&profile(), true);
    for vector in 0..8u8 {
        bench.set_entry(0x20 + u16::from(vector), entry(0x40 + vector, vector.into()));
    }
    for vector in 0..8u8 {
        let msi = Msi { data: vector.into(), ..to_entry(0x20) };
        assert_eq!(bench.send(SOURCE, msi), arrives(0x40 + vector, vector.into()));
    }
}

/// What an IOAPIC makes of an entry in remappable format (§5.1.5.1): trigger mode and vector need not be those of
/// the table entry, and Linux makes them differ.
#[test]
fn ioapic_messages() {
    let bench = Bench::on(&profile(), true);
    bench.set_entry(0x8005, entry(0x31, 2));
    let msi = Msi { address: 0xfee0_00b4, data: 0xc004 };
    assert_eq!(bench.send(SourceId::from_bdf(0xff, 0, 0), msi), arrives(0x31, 2));
}

#[test]
fn sources_are_validated() {
    let matching = |sq: u128, sid: u128| 1 << 82 | sq << 80 | sid << 64;
    let buses = |first: u128, last: u128| 2 << 82 | first << 72 | last << 64;
    // (name, bits 127:64, sources let in, sources kept out)
    let rows: [(&str, u128, &[u16], &[u16]); 8] = [
        ("no validation", 0xffff << 64 | 3 << 80, &[0, 0x18, 0xffff], &[]),
        ("all bits", matching(0, 0x0119), &[0x0119], &[0x0118, 0x011d, 0x0219, 0x0111]),
        ("but bit 2", matching(1, 0x0119), &[0x0119, 0x011d], &[0x011b, 0x0118, 0x0121]),
        ("but bits 2:1", matching(2, 0x0119), &[0x0119, 0x011b, 0x011d, 0x011f], &[0x0118, 0x0121]),
        ("but bits 2:0", matching(3, 0x0119), &[0x0118, 0x011f], &[0x0110, 0x0120, 0x0018]),
        ("buses 2 to 4", buses(2, 4), &[0x0200, 0x03ff, 0x04ff], &[0x01ff, 0x0500]),
        ("one bus, SQ ignored", buses(2, 2) | 3 << 80, &[0x0200, 0x02ff], &[0x01ff, 0x0300]),
        ("bytes the wrong way round let nobody in", buses(4, 2), &[], &[0x0200, 0x0300, 0x0400]),
    ];
    for (name, validation, inside, outside) in rows {
        let bench = Bench::on(&profile(), true);
        bench.set_entry(7, entry(0x31, 9) | validation);
        // Twice: from memory, and perhaps from the cache.
        for _ in 0..2 {
            for source in outside.iter().copied().map(SourceId) {
                let expected = Seen::Fault(0x26, source, 7);
                assert_eq!(bench.send(source, to_entry(7)), expected, "{name}: {source}");
            }
            for source in inside.iter().copied().map(SourceId) {
                assert_eq!(bench.send(source, to_entry(7)), arrives(0x31, 9), "{name}: {source}");
            }
        }
    }
}

//! Conditions of legacy mode. The function has a second stage of four levels and serves device-TLBs.

use iommu_core::{Access, Gpa, Request, SourceId};
use iommu_vtd::tables::RootLatch;
use iommu_vtd::testkit::flags;

use super::Gets::{All, Ca, No, Nothing, ReadOnly, Ur, WriteOnly};
use super::{Row, Start, row};
use crate::world::*;

pub(super) fn rows() -> Vec<Row> {
    let all =
        [root_rows(), context_rows(), programming_rows(), table_rows(), address_rows(), permission_rows()];
    all.into_iter().flatten().map(|row| row.start(Start::Legacy)).collect()
}

fn low(world: &World<'_>, change: impl FnOnce(u64) -> u64) {
    edit(world, world.legacy_at(), change);
}

fn high(world: &World<'_>, change: impl FnOnce(u64) -> u64) {
    edit(world, Gpa(world.legacy_at().0 + 8), change);
}

fn root(world: &World<'_>, word: u64, change: impl FnOnce(u64) -> u64) {
    edit(world, Gpa(world.root.get().table().0 + word * 8), change);
}

fn entry(world: &World<'_>, level: u32, change: impl FnOnce(u64) -> u64) {
    edit(world, legacy_second_at(world, PAGE, level), change);
}

/// TT.
fn kind(world: &World<'_>, kind: u64) {
    low(world, |word| word & !0b1100 | kind << 2);
}

fn root_rows() -> Vec<Row> {
    vec![
        row("LRT.1: no memory at the root", 0x08)
            .spoil(|w| w.root.set(RootLatch::new(NOWHERE, true)))
            .gets([Ur, Ca, Ur, No], 0),
        row("LRT.2: root entry not present", 0x01)
            .spoil(|w| root(w, 0, |word| word & !1))
            .gets([Ur, Ur, Ur, No], 0),
        row("LRT.2: other bus", 0x01)
            .request(|r| Request { source: SourceId(0x118), ..r })
            .gets([Ur, Ur, Ur, No], 0),
        row("LRT.3: reserved bit", 0x0a)
            .spoil(|w| root(w, 0, |word| word | 1 << 11))
            .gets([Ur, Ca, Ur, No], 0),
        row("LRT.3: the upper half is reserved", 0x0a).spoil(|w| root(w, 1, |_| 1)).gets([Ur, Ca, Ur, No], 0),
        row("LCT.1: no memory at the context table", 0x09)
            .spoil(|w| root(w, 0, |_| NOWHERE | 1))
            .gets([Ur, Ca, Ur, No], 0),
    ]
}

fn context_rows() -> Vec<Row> {
    vec![
        row("LCT.2: not present", 0x02).spoil(|w| low(w, |word| word & !1)).gets([Ur, Ur, Ur, No], 1),
        row("LCT.2: other function", 0x02)
            .request(|r| Request { source: SourceId(0x19), ..r })
            .gets([Ur, Ur, Ur, No], 0),
        row("LCT.3: reserved bit of the lower word", 0x0b)
            .spoil(|w| low(w, |word| word | 1 << 4))
            .gets([Ur, Ca, Ur, No], 1),
        row("LCT.3: reserved bit of the upper word", 0x0b)
            .spoil(|w| high(w, |word| word | 1 << 7))
            .gets([Ur, Ca, Ur, No], 1),
        row("LCT.5: untranslated requests only", 0x0d).spoil(|w| kind(w, 0)).gets([All, Ur, Ur, No], 1),
        row("LCT.5: pass-through", 0x0d)
            .spoil(|w| kind(w, 2))
            .request(|r| at(r, OUTPUT))
            .gets([All, Ur, Ur, No], 1),
        row("LCT.5: pass-through, for interrupts too", 0x0d)
            .spoil(|w| kind(w, 2))
            .request(|r| at(r, 0xfee0_1000))
            .gets([No, Ur, Ur, No], 1),
        row("RTA.2: PASID in legacy mode", 0x31)
            .request(|r| with_pasid(r, PROCESS))
            .gets([Ur, Ur, No, No], 0),
        row("RTA.3: page request in legacy mode", 0x32).gets([No, No, No, Ur], 0),
        row("29h: an interrupt address in legacy mode", 0x29)
            .request(|r| at(r, 0xfee0_1000))
            .gets([Ur, No, No, No], 0),
    ]
}

fn programming_rows() -> Vec<Row> {
    vec![
        row("LCT.4: reserved translation type", 0x03).spoil(|w| kind(w, 3)).gets([Ur, Ca, Ur, No], 1),
        row("LCT.4: device-TLBs not offered", 0x03)
            .spoil(|w| w.registers(CAP_ALL, ECAP_ALL & !(1 << 2 | 1 << 29)))
            .gets([Ur, Ca, Ur, No], 1),
        row("LCT.4: pass-through not offered", 0x03)
            .spoil(|w| {
                w.registers(CAP_ALL, ECAP_ALL & !(1 << 6));
                kind(w, 2);
            })
            .gets([Ur, Ca, Ur, No], 1),
        row("LCT.4: address width of 30 bits", 0x03)
            .spoil(|w| high(w, |word| word & !7))
            .gets([Ur, Ca, Ur, No], 1),
        row("LCT.4: address width not offered", 0x03)
            .spoil(|w| w.registers(CAP_ALL & !(1 << 10), ECAP_ALL))
            .gets([Ur, Ca, Ur, No], 1),
        row("LCT.4: address width of pass-through not offered", 0x03)
            .spoil(|w| {
                high(w, |word| word | 7);
                kind(w, 2);
            })
            .gets([Ur, Ca, Ur, No], 1),
        row("LCT.4: no memory at the root of the second stage", 0x03)
            .spoil(|w| low(w, |word| word & 0xfff | NOWHERE))
            .gets([Ur, Ca, No, No], 1),
    ]
}

fn table_rows() -> Vec<Row> {
    vec![
        row("LSS.1: no memory at a later table", 0x07)
            .spoil(|w| entry(w, 3, |word| NOWHERE | word & 0xfff))
            .gets([Ur, Ca, No, No], 1),
        row("LSS.2: reserved bit", 0x0c)
            .spoil(|w| entry(w, 2, |word| word | 1 << 11))
            .gets([Ur, Ca, No, No], 1),
        row("LSS.2: large page without being offered", 0x0c)
            .spoil(|w| {
                w.registers(CAP_ALL & !(3 << 34), ECAP_ALL);
                entry(w, 2, |word| word | 1 << 7);
            })
            .gets([Ur, Ca, No, No], 1),
    ]
}

fn address_rows() -> Vec<Row> {
    vec![
        row("LGN.1.1: beyond the address width", 0x04)
            .request(|r| at(r, 1 << 48))
            .gets([Ur, Nothing, No, No], 1),
        row("LGN.1.1: beyond the guest address width", 0x04)
            .spoil(|w| w.registers(CAP_ALL & !(63 << 16) | 45 << 16, ECAP_ALL))
            .request(|r| at(r, 1 << 46))
            .gets([Ur, Nothing, No, No], 1),
        row("LGN.1.2: translated, beyond the physical width", 0x04)
            .request(|r| at(r, 1 << HAW))
            .gets([No, No, Ur, No], 1),
        row("LGN.1.3: pass-through, beyond the physical width", 0x04)
            .spoil(|w| kind(w, 2))
            .request(|r| at(r, 1 << HAW))
            .gets([Ur, No, No, No], 1),
        row("LGN.4: page in the interrupt range", 0x0e)
            .spoil(|w| entry(w, 1, |word| word & 0xfff | 0xfee0_5000))
            .gets([Ur, Ca, No, No], 1),
        row("LGN.4: translated, to the interrupt range", 0x0e)
            .request(|r| at(r, 0xfee0_1000))
            .gets([No, No, Ur, No], 1),
    ]
}

fn permission_rows() -> Vec<Row> {
    let reads: fn(Request) -> Request = |r| Request { access: Access::Read, ..r };
    let atomic: fn(Request) -> Request = |r| Request { access: Access::Atomic, ..r };
    vec![
        row("LGN.2: read-only page", 0x05)
            .spoil(|w| entry(w, 1, |word| word & !flags::SECOND_WRITE))
            .gets([Ur, ReadOnly, No, No], 1),
        row("LGN.2: write to a page that is not present", 0x05)
            .spoil(|w| entry(w, 1, |_| 0))
            .gets([Ur, Nothing, No, No], 1),
        row("LGN.2: atomic on a read-only page", 0x05)
            .spoil(|w| entry(w, 1, |word| word & !flags::SECOND_WRITE))
            .request(atomic)
            .gets([Ur, ReadOnly, No, No], 1),
        row("LGN.3: write-only page", 0x06)
            .spoil(|w| entry(w, 1, |word| word & !flags::SECOND_READ))
            .request(reads)
            .gets([Ur, WriteOnly, No, No], 1),
        row("LGN.3: read of a page that is not present", 0x06)
            .spoil(|w| entry(w, 4, |_| 0))
            .request(reads)
            .gets([Ur, Nothing, No, No], 1),
        row("LGN.3: atomic on a write-only page", 0x06)
            .spoil(|w| entry(w, 1, |word| word & !flags::SECOND_READ))
            .request(atomic)
            .gets([Ur, WriteOnly, No, No], 1),
    ]
}

//! Conditions of a first stage over a second: who is blamed. The first-stage tables lie at second-stage addresses
//! that differ from where they are in memory by [`BIAS`].

use iommu_core::{Access, Gpa, Request};
use iommu_vtd::spec::pasid::{PasidWord0, PasidWord1};
use iommu_vtd::testkit::flags;

use super::Gets::{Ca, No, Nothing, ReadOnly, Recorded, Ur, WriteOnly};
use super::{Row, Start, entry_word, row};
use crate::world::*;

pub(super) fn rows() -> Vec<Row> {
    let all = [entry_rows(), first_rows(), blame_rows(), second_rows(), page_rows()];
    all.into_iter().flatten().map(|row| row.start(Start::Nested)).collect()
}

/// The first-stage entry of a level.
fn inner(world: &World<'_>, level: u32, change: impl FnOnce(u64) -> u64) {
    edit(world, first_at(world, PAGE, level), change);
}

/// The second-stage leaf that maps the first-stage table of a level.
fn table(world: &World<'_>, level: u32, change: impl FnOnce(u64) -> u64) {
    let address = first_at(world, PAGE, level).0 + BIAS;
    edit(world, second_at(world, address, 1), change);
}

/// The second-stage entry for the page.
fn outer(world: &World<'_>, level: u32, change: impl FnOnce(u64) -> u64) {
    edit(world, second_at(world, MIDDLE, level), change);
}

fn ssade(world: &World<'_>) {
    entry_word(world, 0, |word| word | PasidWord0::ssade_mask());
}

fn entry_rows() -> Vec<Row> {
    vec![
        row("SPT.4: nesting not offered", 0x5b)
            .spoil(|w| w.registers(CAP_ALL, ECAP_ALL & !(1 << 26)))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: five levels not offered, nested", 0x5b)
            .spoil(|w| {
                w.registers(CAP_ALL & !(1 << 60), ECAP_ALL);
                entry_word(w, 2, |word| word | 1 << 2);
            })
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: address width of the second stage not offered, nested", 0x5b)
            .spoil(|w| w.registers(CAP_ALL & !(1 << 10), ECAP_ALL))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4.4: root of the first stage beyond the guest address width", 0x5b)
            .spoil(|w| {
                w.registers(CAP_ALL & !(63 << 16) | 40 << 16, ECAP_ALL);
                entry_word(w, 2, |word| word & 0xfff | 1 << 41);
            })
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4.4: ... beyond the address width", 0x5b)
            .spoil(|w| {
                entry_word(w, 0, |word| word & !PasidWord0::aw_mask() | 1 << 2);
                entry_word(w, 2, |word| word & 0xfff | 1 << 39);
            })
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.6: privileged, SRE=0, nested", 0x5d)
            .request(|r| Request { privileged: true, ..r })
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.1: not canonical, nested", 0x80).request(|r| at(r, 1 << 47)).gets([Ur, Nothing, No, No], 3),
    ]
}

fn first_rows() -> Vec<Row> {
    vec![
        row("SFS.1: a table is mapped to no memory", 0x70)
            .spoil(|w| table(w, 2, |word| NOWHERE | word & 0xfff))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.4: the root table is mapped to no memory", 0x73)
            .spoil(|w| table(w, 4, |word| NOWHERE | word & 0xfff))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.2: not present, nested", 0x71)
            .spoil(|w| inner(w, 2, |word| word & !1))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.3: reserved bit, nested", 0x72)
            .spoil(|w| inner(w, 3, |word| word | 1 << HAW))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.5: table beyond the guest address width", 0x74)
            .spoil(|w| {
                w.registers(CAP_ALL & !(63 << 16) | 40 << 16, ECAP_ALL);
                inner(w, 3, |word| word | 1 << 41);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.5: page beyond the guest address width", 0x74)
            .spoil(|w| {
                w.registers(CAP_ALL & !(63 << 16) | 40 << 16, ECAP_ALL);
                inner(w, 1, |word| word | 1 << 41);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.2: supervisor page, nested", 0x81)
            .spoil(|w| inner(w, 1, |word| word & !flags::USER))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.9: dirty bit missing, walk not snooped, nested", 0x90)
            .spoil(|w| {
                entry_word(w, 1, |word| word & !PasidWord1::pwsnp_mask());
                inner(w, 1, |word| word & !flags::DIRTY);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.10: first-stage entries that never hold still, nested", 0x91)
            .spoil(|w| {
                inner(w, 1, |word| word & !flags::DIRTY);
                w.restless.set(true);
            })
            .gets([Ur, Recorded, No, No], 3),
    ]
}

/// The second stage lacks a permission that a first-stage table needs.
fn blame_rows() -> Vec<Row> {
    vec![
        row("SFS.6: root table not readable", 0x75)
            .spoil(|w| table(w, 4, |word| word & !flags::SECOND_READ))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.6: root table not writable, SSADE=1", 0x75)
            .spoil(|w| {
                ssade(w);
                table(w, 4, |word| word & !flags::SECOND_WRITE);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.7: later table not readable", 0x76)
            .spoil(|w| table(w, 3, |word| word & !flags::SECOND_READ))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.7: last table not readable", 0x76)
            .spoil(|w| table(w, 1, |word| word & !flags::SECOND_READ))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.7: later table not writable, SSADE=1", 0x76)
            .spoil(|w| {
                ssade(w);
                table(w, 2, |word| word & !flags::SECOND_WRITE);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.8: accessed bit in a table that is not writable", 0x77)
            .spoil(|w| {
                inner(w, 3, |word| word & !flags::ACCESSED);
                table(w, 3, |word| word & !flags::SECOND_WRITE);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.8: dirty bit in a table that is not writable", 0x77)
            .spoil(|w| {
                inner(w, 1, |word| word & !flags::DIRTY);
                table(w, 1, |word| word & !flags::SECOND_WRITE);
            })
            .gets([Ur, Nothing, No, No], 3),
    ]
}

/// The second stage itself is broken, on the way to a table or to the page.
fn second_rows() -> Vec<Row> {
    vec![
        row("SSS.4: no memory at the root of the second stage, nested", 0x7b)
            .spoil(|w| entry_word(w, 0, |word| word & 0xfff | NOWHERE))
            .gets([Ur, Ca, No, No], 3),
        row("SSS.1: no memory at a second-stage table for the page", 0x78)
            .spoil(|w| outer(w, 2, |word| NOWHERE | word & 0xfff))
            .gets([Ur, Ca, No, No], 3),
        row("SSS.2: page not present in the second stage", 0x79)
            .spoil(|w| outer(w, 1, |_| 0))
            .gets([Ur, Nothing, No, No], 3),
        row("SSS.2: first-stage root table not present in the second stage", 0x79)
            .spoil(|w| table(w, 4, |_| 0))
            .gets([Ur, Nothing, No, No], 3),
        row("SSS.2: first-stage table not present in the second stage", 0x79)
            .spoil(|w| table(w, 1, |_| 0))
            .gets([Ur, Nothing, No, No], 3),
        row("SSS.3: reserved bit for the page", 0x7a)
            .spoil(|w| outer(w, 1, |word| word | 1 << HAW))
            .gets([Ur, Ca, No, No], 3),
        row("SSS.3: reserved bit for a first-stage table", 0x7a)
            .spoil(|w| table(w, 2, |word| word | 1 << 62))
            .gets([Ur, Ca, No, No], 3),
        row("SSS.5: accessed bit missing, walk not snooped, nested", 0x7c)
            .spoil(|w| {
                ssade(w);
                entry_word(w, 1, |word| word & !PasidWord1::pwsnp_mask());
            })
            .gets([Ur, Ca, No, No], 3),
        row("SSS.6: second-stage entries that never hold still, nested", 0x7d)
            .spoil(|w| {
                ssade(w);
                w.restless.set(true);
            })
            .gets([Ur, Ca, No, No], 3),
        row("SSS.6: ... only that of the page", 0x7d)
            .spoil(|w| {
                ssade(w);
                assert_eq!(code(w.ask(&write())), 0, "all is marked now");
                outer(w, 1, |word| word & !flags::SECOND_ACCESSED);
                w.restless.set(true);
            })
            .gets([Ur, Ca, No, No], 3),
    ]
}

fn page_rows() -> Vec<Row> {
    vec![
        row("SGN.6: the first stage forbids writing", 0x85)
            .spoil(|w| inner(w, 1, |word| word & !flags::WRITE))
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.6: the second stage forbids writing", 0x85)
            .spoil(|w| outer(w, 1, |word| word & !flags::SECOND_WRITE))
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.7: the second stage forbids reading", 0x86)
            .spoil(|w| outer(w, 1, |word| word & !flags::SECOND_READ))
            .request(|r| Request { access: Access::Read, ..r })
            .gets([Ur, WriteOnly, No, No], 3),
        row("SGN.6: each stage forbids something", 0x85)
            .spoil(|w| {
                inner(w, 1, |word| word & !flags::WRITE);
                outer(w, 1, |word| word & !flags::SECOND_READ);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.8: output in the interrupt range, nested", 0x87)
            .spoil(|w| outer(w, 1, |word| word & 0xfff | 0xfee0_5000))
            .gets([Ur, Ca, No, No], 3),
        row("SPT.3: reserved bit, nested", 0x5a)
            .spoil(|w| {
                let at = w.pasid(PROCESS).at();
                edit(w, Gpa(at.0 + 56), |_| 1);
            })
            .gets([Ur, Ca, No, Ur], 3),
    ]
}

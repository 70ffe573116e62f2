//! Conditions of the second stage. It has four levels, and maps the page of the first-stage rows.

use iommu_core::{Access, Request};
use iommu_vtd::spec::pasid::{PasidWord0, PasidWord1};
use iommu_vtd::testkit::flags;

use super::Gets::{All, Ca, No, Nothing, ReadOnly, Ur, WriteOnly};
use super::{Row, Start, entry_word, row};
use crate::world::*;

pub(super) fn rows() -> Vec<Row> {
    let all = [table_rows(), marking_rows(), page_rows()];
    all.into_iter().flatten().map(|row| row.start(Start::Second)).collect()
}

fn entry(world: &World<'_>, level: u32, change: impl FnOnce(u64) -> u64) {
    edit(world, second_at(world, PAGE, level), change);
}

fn table_rows() -> Vec<Row> {
    vec![
        row("SPT.4: second stage not offered", 0x5b)
            .spoil(|w| {
                w.registers(CAP_ALL, ECAP_ALL & !(1 << 46 | 1 << 45));
                entry_word(w, 0, |word| word & 0xfff);
            })
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: address width not offered", 0x5b)
            .spoil(|w| w.registers(CAP_ALL & !(1 << 10), ECAP_ALL))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: address width of 30 bits", 0x5b)
            .spoil(|w| entry_word(w, 0, |word| word & !PasidWord0::aw_mask()))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: address width of 66 bits", 0x5b)
            .spoil(|w| {
                w.registers(CAP_ALL | 1 << 12, ECAP_ALL);
                entry_word(w, 0, |word| word & !PasidWord0::aw_mask() | 4 << 2);
            })
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.6: privileged, SRE=0, second stage", 0x5d)
            .request(|r| Request { privileged: true, ..r })
            .gets([Ur, Nothing, No, No], 3),
        row("SSS.4: no memory at the root table", 0x7b)
            .spoil(|w| entry_word(w, 0, |word| word & 0xfff | NOWHERE))
            .gets([Ur, Ca, No, No], 3),
        row("SSS.1: no memory at a later table", 0x78)
            .spoil(|w| entry(w, 3, |word| NOWHERE | word & 0xfff))
            .gets([Ur, Ca, No, No], 3),
        row("SSS.2: leaf not present", 0x79)
            .spoil(|w| entry(w, 1, |word| word & !flags::SECOND))
            .gets([Ur, Nothing, No, No], 3),
        row("SSS.2: root entry not present", 0x79)
            .spoil(|w| entry(w, 4, |word| word & !flags::SECOND))
            .gets([Ur, Nothing, No, No], 3),
        row("SSS.2: not present comes before reserved bits", 0x79)
            .spoil(|w| entry(w, 4, |word| word & !flags::SECOND | 1 << 62))
            .gets([Ur, Nothing, No, No], 3),
        row("SSS.2: a readable table, a writable page", 0x79)
            .spoil(|w| {
                entry(w, 3, |word| word & !flags::SECOND_WRITE);
                entry(w, 1, |word| word & !flags::SECOND_READ);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SSS.3: snoop bit in a table entry", 0x7a)
            .spoil(|w| entry(w, 2, |word| word | 1 << 11))
            .gets([Ur, Ca, No, No], 3),
        row("SSS.3: bit 62 of a leaf", 0x7a)
            .spoil(|w| entry(w, 1, |word| word | 1 << 62))
            .gets([Ur, Ca, No, No], 3),
    ]
}

fn marking_rows() -> Vec<Row> {
    let unsnooped: fn(&World<'_>) = |w| {
        entry_word(w, 0, |word| word | PasidWord0::ssade_mask());
        entry_word(w, 1, |word| word & !PasidWord1::pwsnp_mask());
    };
    vec![
        row("SSS.5: accessed bits missing, walk not snooped", 0x7c)
            .spoil(unsnooped)
            .gets([Ur, Ca, No, No], 3),
        row("SSS.5: dirty bit missing, walk not snooped", 0x7c)
            .spoil(|w| {
                entry_word(w, 0, |word| word | PasidWord0::ssade_mask());
                entry_word(w, 1, |word| word & !PasidWord1::pwsnp_mask());
                for level in 1..=4 {
                    entry(w, level, |word| word | flags::SECOND_ACCESSED);
                }
            })
            .gets([Ur, Ca, No, No], 3),
        row("SSS.6: entries that never hold still", 0x7d)
            .spoil(|w| {
                entry_word(w, 0, |word| word | PasidWord0::ssade_mask());
                w.restless.set(true);
            })
            .gets([Ur, Ca, No, No], 3),
    ]
}

fn page_rows() -> Vec<Row> {
    vec![
        row("SGN.5: beyond the address width", 0x84)
            .request(|r| at(r, 1 << 48))
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.5: the upper half", 0x84)
            .request(|r| at(r, 0xffff_8000_0000_0000))
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.5: beyond the guest address width", 0x84)
            .spoil(|w| w.registers(CAP_ALL & !(63 << 16) | 45 << 16, ECAP_ALL))
            .request(|r| at(r, 1 << 46))
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.6: read-only page", 0x85)
            .spoil(|w| entry(w, 1, |word| word & !flags::SECOND_WRITE))
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.6: atomic on a read-only table", 0x85)
            .spoil(|w| entry(w, 3, |word| word & !flags::SECOND_WRITE))
            .request(|r| Request { access: Access::Atomic, ..r })
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.7: read of a write-only page", 0x86)
            .spoil(|w| entry(w, 1, |word| word & !flags::SECOND_READ))
            .request(|r| Request { access: Access::Read, ..r })
            .gets([Ur, WriteOnly, No, No], 3),
        row("SGN.7: atomic on a write-only page", 0x86)
            .spoil(|w| entry(w, 1, |word| word & !flags::SECOND_READ))
            .request(|r| Request { access: Access::Atomic, ..r })
            .gets([Ur, WriteOnly, No, No], 3),
        row("SGN.7: zero-length read of a write-only page where ZLR is not offered", 0x86)
            .spoil(|w| {
                w.registers(CAP_ALL & !(1 << 22), ECAP_ALL);
                entry(w, 1, |word| word & !flags::SECOND_READ);
            })
            .request(|r| Request { access: Access::ZeroLengthRead, ..r })
            .gets([Ur, WriteOnly, No, No], 3),
        row("SGN.8: page in the interrupt range", 0x87)
            .spoil(|w| entry(w, 1, |word| word & 0xfff | 0xfee0_5000))
            .gets([Ur, Ca, No, No], 3),
        row("SCT.8: PRE=0 stops page requests only", 0x47)
            .spoil(|w| {
                w.context().edit(|low| low.with_pre(false));
            })
            .gets([All, All, No, Ur], 1),
    ]
}

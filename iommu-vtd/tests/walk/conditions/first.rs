//! Conditions of the first stage, and of addresses.

use iommu_core::{Access, Request};
use iommu_vtd::spec::pasid::{PasidWord1, PasidWord2};
use iommu_vtd::testkit::flags;

use super::Gets::{Ca, No, Nothing, ReadOnly, Recorded, Ur};
use super::{Row, entry_word, row};
use crate::world::*;

pub(super) fn rows() -> Vec<Row> {
    [table_rows, page_rows].into_iter().flat_map(|rows| rows()).collect()
}

fn leaf(world: &World<'_>, level: u32, change: impl FnOnce(u64) -> u64) {
    edit(world, first_at(world, PAGE, level), change);
}

fn table_rows() -> Vec<Row> {
    vec![
        row("SFS.1: no memory at a later table", 0x70)
            .spoil(|w| leaf(w, 3, |word| NOWHERE | word & 0xfff))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.2: leaf not present", 0x71).spoil(|w| leaf(w, 1, |_| 0)).gets([Ur, Nothing, No, No], 3),
        row("SFS.2: root entry not present", 0x71)
            .spoil(|w| leaf(w, 4, |word| word & !1))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.3: reserved bit", 0x72)
            .spoil(|w| leaf(w, 4, |word| word | 1 << 7))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.4: no memory at the root table", 0x73)
            .spoil(|w| entry_word(w, 2, |_| NOWHERE))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.4: ... of five levels", 0x73)
            .spoil(|w| entry_word(w, 2, |_| NOWHERE | 1 << 2))
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.1: ... below a five-level root", 0x70)
            .spoil(|w| {
                let space = w.tables.address_space(5);
                w.tables.set_word(space.entry_at(PAGE, 5), NOWHERE | flags::USER | 1);
                w.pasid(PROCESS).edit(2, |_| space.root().0 | 1 << 2);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.1: not canonical", 0x80).request(|r| at(r, 1 << 47)).gets([Ur, Nothing, No, No], 3),
        row("SGN.2: supervisor table entry", 0x81)
            .spoil(|w| leaf(w, 3, |word| word & !flags::USER))
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.2: supervisor page", 0x81)
            .spoil(|w| leaf(w, 1, |word| word & !flags::USER))
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.4: beyond the physical width", 0x83)
            .request(|r| at(with_pasid(r, IDENTITY), 1 << HAW))
            .gets([Ur, Nothing, No, No], 3),
        row("SGN.4.1: translated, beyond the physical width", 0x83)
            .request(|r| at(r, 1 << HAW))
            .gets([No, No, Ur, No], 1),
    ]
}

fn page_rows() -> Vec<Row> {
    vec![
        row("SGN.6: read-only page", 0x85)
            .spoil(|w| leaf(w, 1, |word| word & !flags::WRITE))
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.6: read-only table entry", 0x85)
            .spoil(|w| leaf(w, 2, |word| word & !flags::WRITE))
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.6: atomic", 0x85)
            .spoil(|w| leaf(w, 1, |word| word & !flags::WRITE))
            .request(|r| Request { access: Access::Atomic, ..r })
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.6: supervisor with WPE", 0x85)
            .spoil(|w| {
                entry_word(w, 2, |word| word | PasidWord2::wpe_mask() | PasidWord2::sre_mask());
                leaf(w, 1, |word| word & !flags::WRITE);
            })
            .request(|r| Request { privileged: true, ..r })
            .gets([Ur, ReadOnly, No, No], 3),
        row("SGN.8: page in the interrupt range", 0x87)
            .spoil(|w| leaf(w, 1, |word| word & 0xfff | 0xfee0_5000))
            .gets([Ur, Ca, No, No], 3),
        row("SGN.8: pass-through with PASID", 0x87)
            .request(|r| at(with_pasid(r, IDENTITY), 0xfee0_1000))
            .gets([Ur, Ca, No, No], 3),
        row("SGN.8.3: translated", 0x87).request(|r| at(r, 0xfee0_1000)).gets([No, No, Ur, No], 1),
        row("SFS.9: accessed bit missing, walk not snooped", 0x90)
            .spoil(|w| {
                entry_word(w, 1, |word| word & !PasidWord1::pwsnp_mask());
                leaf(w, 3, |word| word & !flags::ACCESSED);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.9: dirty bit missing, walk not snooped", 0x90)
            .spoil(|w| {
                entry_word(w, 1, |word| word & !PasidWord1::pwsnp_mask());
                leaf(w, 1, |word| word & !flags::DIRTY);
            })
            .gets([Ur, Nothing, No, No], 3),
        row("SFS.10: entries that never hold still", 0x91)
            .spoil(|w| {
                leaf(w, 1, |word| word & !flags::DIRTY);
                w.restless.set(true);
            })
            .gets([Ur, Recorded, No, No], 3),
    ]
}

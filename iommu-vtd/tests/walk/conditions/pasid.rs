//! Conditions of PASID directory and PASID entry.

use iommu_core::{Access, Gpa, Request};

use super::Gets::{Ca, No, Nothing, Ur};
use super::{Row, entry_word, row};
use crate::world::*;

pub(super) fn rows() -> Vec<Row> {
    [pasid_rows, entry_rows].into_iter().flat_map(|rows| rows()).collect()
}

fn pasid_rows() -> Vec<Row> {
    vec![
        row("SPD.1: no memory at the directory", 0x50)
            .spoil(|w| {
                let nowhere = arbitrary_int::u52::new(NOWHERE >> 12);
                w.context().edit(|low| low.with_directory(nowhere));
            })
            .gets([Ur, Ca, No, Ur], 1),
        row("SPD.2: not present", 0x51)
            .spoil(|w| {
                let at = w.pasid(PROCESS).directory_at();
                w.tables.set_word(at, w.tables.word(at) & !1);
            })
            .gets([Ur, Nothing, No, Ur], 2),
        row("SPD.3: reserved bit", 0x52)
            .spoil(|w| {
                let at = w.pasid(PROCESS).directory_at();
                w.tables.set_word(at, w.tables.word(at) | 1 << 2);
            })
            .gets([Ur, Ca, No, Ur], 2),
        row("SPT.1: no memory at the PASID table", 0x58)
            .spoil(|w| {
                let at = w.pasid(PROCESS).directory_at();
                w.tables.set_word(at, NOWHERE | w.tables.word(at) & 3);
            })
            .gets([Ur, Ca, No, Ur], 2),
        row("SPT.2: not present", 0x59)
            .spoil(|w| {
                w.pasid(PROCESS).clear();
            })
            .gets([Ur, Nothing, No, Ur], 3),
        row("SPT.3: reserved bit", 0x5a).spoil(|w| entry_word(w, 7, |_| 1 << 63)).gets([Ur, Ca, No, Ur], 3),
    ]
}

fn entry_rows() -> Vec<Row> {
    vec![
        row("SPT.4: second stage", 0x5b)
            .spoil(|w| entry_word(w, 0, |word| word & !(7 << 6) | 2 << 6))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: nested", 0x5b)
            .spoil(|w| entry_word(w, 0, |word| word & !(7 << 6) | 3 << 6))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: reserved translation type", 0x5b)
            .spoil(|w| entry_word(w, 0, |word| word & !(7 << 6) | 7 << 6))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: five levels not offered", 0x5b)
            .spoil(|w| {
                w.registers(CAP & !(1 << 60), ECAP);
                entry_word(w, 2, |word| word | 1 << 2);
            })
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: reserved paging mode", 0x5b)
            .spoil(|w| entry_word(w, 2, |word| word | 2 << 2))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.4: pass-through not offered", 0x5b)
            .spoil(|w| w.registers(CAP, ECAP & !(1 << 6)))
            .request(|r| with_pasid(r, IDENTITY))
            .gets([Ur, Ca, No, Ur], 3),
        row("SPT.5: execute", 0x5c)
            .request(|r| Request { execute: true, access: Access::Read, ..r })
            .gets([Ur, Nothing, No, No], 3),
        row("SPT.6: privileged, SRE=0", 0x5d)
            .request(|r| Request { privileged: true, ..r })
            .gets([Ur, Nothing, No, No], 3),
        row("SPT.6: ... of pass-through too", 0x5d)
            .request(|r| with_pasid(Request { privileged: true, ..r }, IDENTITY))
            .gets([Ur, Nothing, No, No], 3),
        row("SPT.6: RID_PRIV makes requests without PASID privileged", 0x5d)
            .spoil(|w| {
                let at = Gpa(w.context().at().0 + 8);
                w.tables.set_word(at, 1 << 20);
            })
            .request(without_pasid)
            .gets([Ur, Nothing, No, No], 3),
    ]
}

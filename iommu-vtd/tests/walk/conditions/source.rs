//! Conditions met before a PASID entry is looked for: registers, root and context entries.

use iommu_core::{Access, Gpa, Request, SourceId};
use iommu_vtd::tables::RootLatch;

use super::Gets::{All, Ca, No, Ur};
use super::{Row, row};
use crate::world::*;

pub(super) fn rows() -> Vec<Row> {
    [before_rows, root_rows, context_rows, service_rows].into_iter().flat_map(|rows| rows()).collect()
}

fn root_half(world: &World<'_>, change: impl FnOnce(u64) -> u64) {
    let at = world.tables.root();
    world.tables.set_word(at, change(world.tables.word(at)));
}

fn before_rows() -> Vec<Row> {
    vec![
        row("29h: an interrupt address that is read", 0x29)
            .request(|r| at(without_pasid(Request { access: Access::Read, ..r }), 0xfee0_1000))
            .gets([Ur, No, No, No], 0),
        row("29h: ... or written, which is no way to interrupt", 0x29)
            .request(|r| at(without_pasid(r), 0xfeef_fffc))
            .gets([Ur, No, No, No], 0),
        row("29h: ... or read and written at once", 0x29)
            .request(|r| at(without_pasid(Request { access: Access::Atomic, ..r }), 0xfee0_1000))
            .gets([Ur, No, No, No], 0),
        row("29h: ... with translation off, PASID or not", 0x29)
            .spoil(|w| w.root.set(RootLatch::default()))
            .request(|r| at(r, 0xfee0_1000))
            .gets([Ur, No, No, No], 0),
        row("RTA.1: reserved table mode", 0x30).spoil(|w| w.mode(2)).gets([Ur, Ca, Ur, Ur], 0),
        row("RTA.1: scalable mode not offered", 0x30)
            .spoil(|w| w.registers(CAP, ECAP & !(1 << 43)))
            .gets([Ur, Ca, Ur, Ur], 0),
        row("RTA.1: abort-DMA mode not offered", 0x30).spoil(|w| w.mode(3)).gets([Ur, Ca, Ur, Ur], 0),
        row("RTA.4: abort-DMA mode", 0x33)
            .spoil(|w| {
                w.registers(CAP, ECAP | 1 << 52);
                w.mode(3);
            })
            .gets([Ur, Ur, Ur, Ur], 0),
        row("RTA.5: execute, from version 8 on", 0x34)
            .spoil(|w| {
                w.registers(CAP, ECAP | 1 << 56);
                w.rules.set(iommu_vtd::rules::Rules { version: 8, ..w.rules.get() });
            })
            .request(|r| Request { execute: true, access: Access::Read, ..r })
            .translated_with_pasid()
            .gets([Ur, Ur, Ur, No], 0),
    ]
}

fn root_rows() -> Vec<Row> {
    vec![
        row("SRT.1: no memory at the root", 0x38)
            .spoil(|w| w.root.set(RootLatch::new(NOWHERE | 1 << 10, true)))
            .gets([Ur, Ca, Ur, Ur], 0),
        row("SRT.2: lower half not present", 0x39)
            .spoil(|w| root_half(w, |word| word & !1))
            .gets([Ur, Ur, Ur, Ur], 0),
        row("SRT.2: upper half not present", 0x39)
            .request(|r| Request { source: SourceId(0x80), ..r })
            .gets([Ur, Ur, Ur, Ur], 0),
        row("SRT.2: other bus", 0x39)
            .request(|r| Request { source: SourceId(0x118), ..r })
            .gets([Ur, Ur, Ur, Ur], 0),
        row("SRT.3: reserved bit", 0x3a)
            .spoil(|w| root_half(w, |word| word | 1 << 11))
            .gets([Ur, Ca, Ur, Ur], 0),
        row("SCT.1: no memory at the context table", 0x40)
            .spoil(|w| root_half(w, |_| NOWHERE | 1))
            .gets([Ur, Ca, Ur, Ur], 0),
    ]
}

fn context_rows() -> Vec<Row> {
    vec![
        row("SCT.2: not present", 0x41)
            .spoil(|w| {
                w.context().edit(|low| low.with_present(false));
            })
            .gets([Ur, Ur, Ur, Ur], 1),
        row("SCT.3: reserved bit", 0x42)
            .spoil(|w| w.tables.set_word(Gpa(w.context().at().0 + 24), 1 << 63))
            .gets([Ur, Ca, Ur, Ur], 1),
        row("SCT.4: PRE without DTE", 0x43)
            .spoil(|w| {
                w.context().edit(|low| low.with_dte(false));
            })
            .gets([Ur, Ca, Ur, Ur], 1),
        row("SCT.4: RID_PASID beyond the directory", 0x43)
            .spoil(|w| {
                w.context().rid_pasid(0x8000);
            })
            .gets([Ur, Ca, Ur, Ur], 1),
        row("SCT.4: EPTR without PASIDE", 0x43)
            .spoil(|w| {
                w.registers(CAP, ECAP | 1 << 56);
                w.context().edit(|low| low.with_eptr(true).with_paside(false));
            })
            .gets([Ur, Ca, Ur, Ur], 1),
    ]
}

/// What the context entry, as it stands, does not serve.
fn service_rows() -> Vec<Row> {
    vec![
        row("SCT.5: DTE=0", 0x44)
            .spoil(|w| {
                w.context().edit(|low| low.with_dte(false).with_pre(false));
            })
            .gets([All, Ur, Ur, No], 1),
        row("SCT.6: PASIDE=0", 0x45)
            .spoil(|w| {
                w.context().edit(|low| low.with_paside(false));
            })
            .gets([Ur, Ur, No, Ur], 1),
        row("SCT.7: PASID beyond the directory", 0x46)
            .request(|r| with_pasid(r, 0x8000))
            .gets([Ur, Ur, No, Ur], 1),
        row("SCT.7: ... of a translated request", 0x46)
            .spoil(|w| w.registers(CAP, ECAP | 1 << 56))
            .request(|r| with_pasid(r, 0x8000))
            .translated_with_pasid()
            .gets([Ur, Ur, Ur, Ur], 1),
        row("SCT.8: PRE=0", 0x47)
            .spoil(|w| {
                w.context().edit(|low| low.with_pre(false));
            })
            .gets([All, All, No, Ur], 1),
        row("SCT.9: the PASID that stands for none", 0x48)
            .request(|r| with_pasid(r, 0))
            .gets([Ur, Ur, No, Ur], 1),
        row("SCT.9: ... of a translated request", 0x48)
            .spoil(|w| w.registers(CAP, ECAP | 1 << 56))
            .request(|r| with_pasid(r, 0))
            .translated_with_pasid()
            .gets([Ur, Ur, Ur, Ur], 1),
        row("SCT.10: translated with PASID, EPTR=0", 0x49)
            .spoil(|w| w.registers(CAP, ECAP | 1 << 56))
            .translated_with_pasid()
            .gets([All, All, Ur, No], 1),
        row("SCT.10: ... and PASIDE=0", 0x49)
            .spoil(|w| {
                w.registers(CAP, ECAP | 1 << 56);
                w.context().edit(|low| low.with_paside(false));
            })
            .translated_with_pasid()
            .gets([No, No, Ur, No], 1),
        row("SGN.10: PASID wider than offered", 0x89)
            .spoil(|w| w.registers(CAP, ECAP & !(31 << 35) | 4 << 35))
            .request(|r| with_pasid(r, 32))
            .gets([Ur, Ur, No, No], 1),
        row("SGN.10: ... of a translated request", 0x89)
            .spoil(|w| w.registers(CAP, ECAP & !(31 << 35) | 4 << 35 | 1 << 56))
            .request(|r| with_pasid(r, 32))
            .translated_with_pasid()
            .gets([Ur, Ur, Ur, No], 1),
    ]
}

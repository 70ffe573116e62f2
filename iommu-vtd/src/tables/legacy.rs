//! Legacy mode (revision 5.10, §3.4.2): root and context tables of 128-bit entries.

use iommu_core::{DomainId, Pasid, SourceId, StageTag, Tag};

use super::{Blocked, PasidEntry, Stage, TableCache, reserved_set, second_stage, table_address};
use crate::lookup::Lookup;
use crate::memory::TableMemory;
use crate::spec::context::{LegacyContextHigh, LegacyContextLow, LegacyTranslationType};
use crate::spec::fault::Reason;
use crate::spec::root::RootHalf;

/// A legacy context entry that passed its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LegacyEntry {
    /// What it says, in the words of a PASID entry.
    pub(crate) binding: PasidEntry,
    /// Translation and translated requests are served.
    pub(crate) device_tlb: bool,
}

/// Looks the legacy context entry of `source` up.
pub(crate) fn legacy_entry<M: TableMemory, C: TableCache>(
    cx: &Lookup<'_, M, C>,
    source: SourceId,
) -> Result<LegacyEntry, Blocked> {
    if let Some(entry) = cx.caches.legacy_context(source) {
        return Ok(entry);
    }
    let entry = read_entry(cx, source)?;
    cx.caches.keep_legacy_context(source, &entry);
    Ok(entry)
}

fn read_entry<M: TableMemory, C>(cx: &Lookup<'_, M, C>, source: SourceId) -> Result<LegacyEntry, Blocked> {
    let root: [u64; 2] = cx
        .memory
        .load_words(RootHalf::locate_legacy(cx.root.table(), source))
        .ok_or(Blocked::open(Reason::Lrt1))?;
    if !RootHalf::new_with_raw_value(root[0]).present() {
        return Err(Blocked::open(Reason::Lrt2));
    }
    if reserved_set(&root, &[cx.rules.root, u64::MAX]) {
        return Err(Blocked::open(Reason::Lrt3));
    }
    let table = table_address(root[0]);
    let words: [u64; 2] =
        cx.memory.load_words(LegacyContextLow::locate(table, source)).ok_or(Blocked::open(Reason::Lct1))?;
    decode(cx, words)
}

fn decode<M: TableMemory, C>(cx: &Lookup<'_, M, C>, words: [u64; 2]) -> Result<LegacyEntry, Blocked> {
    let low = LegacyContextLow::new_with_raw_value(words[0]);
    let high = LegacyContextHigh::new_with_raw_value(words[1]);
    let fail = |reason| Err(Blocked::new(reason, low.fpd()));
    if !low.present() {
        return fail(Reason::Lct2);
    }
    let passes = low.tt() == LegacyTranslationType::PassThrough;
    let ignored = if passes { LegacyContextLow::second_stage_mask() } else { 0 };
    if reserved_set(&[words[0] & !ignored, words[1]], &cx.rules.legacy_context) {
        return fail(Reason::Lct3);
    }
    let domain = DomainId(u32::from(high.did()));
    // AW counts in pass-through too, though no table has it.
    let table = second_stage(cx.rules, high.aw(), table_address(words[0]), domain);
    let offered = match low.tt() {
        LegacyTranslationType::Untranslated => true,
        LegacyTranslationType::DeviceTlb => cx.rules.device_tlb,
        LegacyTranslationType::PassThrough => cx.rules.pass_through,
        LegacyTranslationType::Reserved => false,
    };
    let (Some(table), true) = (table, offered) else { return fail(Reason::Lct4) };
    let (stage, used) = if passes {
        (Stage::PassThrough, StageTag::PassThrough)
    } else {
        (Stage::Second(table), StageTag::Second)
    };
    Ok(LegacyEntry {
        binding: PasidEntry {
            stage,
            tag: Tag { domain, pasid: Pasid::ZERO, stage: used },
            silent: low.fpd(),
            supervisor: false,
        },
        device_tlb: low.tt() == LegacyTranslationType::DeviceTlb,
    })
}

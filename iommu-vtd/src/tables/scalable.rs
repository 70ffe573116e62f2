//! Scalable mode (revision 5.10, §3.4.3): root, context, PASID directory and PASID table.

use arbitrary_int::u3;
use iommu_core::{DomainId, Gpa, Pasid, SourceId, StageTag, Tag};

use super::{Blocked, Kind, PasidEntry, Stage, TableCache, reserved_set, table_address};
use crate::lookup::Lookup;
use crate::memory::TableMemory;
use crate::rules::Rules;
use crate::spec::context::{ContextHigh, ContextLow};
use crate::spec::fault::Reason;
use crate::spec::pasid::{
    self, DirectoryEntry, FirstStageMode, PASID_ENTRY_WORDS, PasidWord0, PasidWord1, PasidWord2,
    TranslationType,
};
use crate::spec::root::RootHalf;
use crate::walk::first::FirstStageTable;
use crate::walk::second::SecondStageTable;

/// A context entry that passed its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContextEntry {
    low: ContextLow,
    high: ContextHigh,
}

impl ContextEntry {
    /// The entry that [`Self::to_words`] gave.
    #[inline]
    pub(crate) fn from_words([low, high]: [u64; 2]) -> Self {
        Self { low: ContextLow::new_with_raw_value(low), high: ContextHigh::new_with_raw_value(high) }
    }

    /// Its two words; those that follow are reserved.
    pub(crate) fn to_words(self) -> [u64; 2] {
        [self.low.raw_value(), self.high.raw_value()]
    }

    pub(crate) fn silent(&self) -> bool {
        self.low.fpd()
    }

    /// Address of the PASID directory.
    pub(crate) fn directory(&self) -> Gpa {
        table_address(self.low.raw_value())
    }

    /// PASIDs below this lie in the directory.
    pub(crate) fn pasid_limit(&self) -> u32 {
        self.low.pasid_limit()
    }

    /// Requests without PASID are privileged.
    pub(crate) fn privileged(&self) -> bool {
        self.high.rid_priv()
    }

    /// Which PASID entry serves the request.
    #[inline]
    pub(crate) fn select(&self, kind: Kind, pasid: Option<Pasid>) -> Result<Pasid, Reason> {
        let rid_pasid = Pasid::truncate(self.high.rid_pasid().value());
        if matches!(kind, Kind::Translation | Kind::Translated) && !self.low.dte() {
            return Err(Reason::Sct5);
        }
        if let Some(pasid) = pasid {
            // EPTR needs PASIDE, so a translated request meets SCT.10 in its place.
            if !self.low.paside() && kind != Kind::Translated {
                return Err(Reason::Sct6);
            }
            if pasid.get() >= self.low.pasid_limit() {
                return Err(Reason::Sct7);
            }
            if pasid == rid_pasid {
                return Err(Reason::Sct9);
            }
            if kind == Kind::Translated && !self.low.eptr() {
                return Err(Reason::Sct10);
            }
        }
        if kind == Kind::PageRequest && !self.low.pre() {
            return Err(Reason::Sct8);
        }
        Ok(pasid.unwrap_or(rid_pasid))
    }
}

/// Looks the context entry of `source` up.
#[inline(always)]
pub(crate) fn context_entry<M: TableMemory, C: TableCache>(
    cx: &Lookup<'_, M, C>,
    source: SourceId,
) -> Result<ContextEntry, Blocked> {
    if let Some(entry) = cx.caches.context(source) {
        return Ok(entry);
    }
    let entry = read_context_entry(cx, source)?;
    cx.caches.keep_context(source, &entry);
    Ok(entry)
}

#[inline(always)]
fn read_context_entry<M: TableMemory, C>(
    cx: &Lookup<'_, M, C>,
    source: SourceId,
) -> Result<ContextEntry, Blocked> {
    let half =
        cx.memory.load(RootHalf::locate(cx.root.table(), source)).ok_or(Blocked::open(Reason::Srt1))?;
    let root = RootHalf::new_with_raw_value(half);
    if !root.present() {
        return Err(Blocked::open(Reason::Srt2));
    }
    if half & cx.rules.root != 0 {
        return Err(Blocked::open(Reason::Srt3));
    }
    let table = table_address(half);
    let words: [u64; 4] =
        cx.memory.load_words(ContextLow::locate(table, source)).ok_or(Blocked::open(Reason::Sct1))?;
    let low = ContextLow::new_with_raw_value(words[0]);
    let high = ContextHigh::new_with_raw_value(words[1]);
    if !low.present() {
        return Err(Blocked::new(Reason::Sct2, low.fpd()));
    }
    if reserved_set(&words, &cx.rules.context) {
        return Err(Blocked::new(Reason::Sct3, low.fpd()));
    }
    let contradicts = low.pre() && !low.dte() || low.eptr() && !low.paside();
    if contradicts || high.rid_pasid().value() >= low.pasid_limit() {
        return Err(Blocked::new(Reason::Sct4, low.fpd()));
    }
    Ok(ContextEntry { low, high })
}

/// Looks the entry of `pasid`, as [`ContextEntry::select`] chose it, up.
#[inline(always)]
pub(crate) fn pasid_entry<M: TableMemory, C: TableCache>(
    cx: &Lookup<'_, M, C>,
    context: &ContextEntry,
    source: SourceId,
    pasid: Pasid,
) -> Result<PasidEntry, Blocked> {
    if let Some(entry) = cx.caches.pasid(source, pasid) {
        return Ok(entry);
    }
    let entry = read_pasid_entry(cx, context, pasid)?;
    cx.caches.keep_pasid(source, pasid, &entry);
    Ok(entry)
}

#[inline(always)]
fn read_pasid_entry<M: TableMemory, C>(
    cx: &Lookup<'_, M, C>,
    context: &ContextEntry,
    pasid: Pasid,
) -> Result<PasidEntry, Blocked> {
    let silent = context.silent();
    let directory = context.directory();
    let raw =
        cx.memory.load(DirectoryEntry::locate(directory, pasid)).ok_or(Blocked::new(Reason::Spd1, silent))?;
    let entry = DirectoryEntry::new_with_raw_value(raw);
    let silent = silent | entry.fpd();
    if !entry.present() {
        return Err(Blocked::new(Reason::Spd2, silent));
    }
    if raw & cx.rules.directory != 0 {
        return Err(Blocked::new(Reason::Spd3, silent));
    }
    let words: [u64; PASID_ENTRY_WORDS] = cx
        .memory
        .load_words(pasid::locate(table_address(raw), pasid))
        .ok_or(Blocked::new(Reason::Spt1, silent))?;
    let word0 = PasidWord0::new_with_raw_value(words[0]);
    let silent = silent | word0.fpd();
    if !word0.present() {
        return Err(Blocked::new(Reason::Spt2, silent));
    }
    if reserved_set(&words, &cx.rules.pasid) {
        return Err(Blocked::new(Reason::Spt3, silent));
    }
    let domain = DomainId(u32::from(PasidWord1::new_with_raw_value(words[1]).did()));
    let tag = Tag { domain, pasid, stage: StageTag::PassThrough };
    let (stage, used) = stage(cx.rules, &words, tag).ok_or(Blocked::new(Reason::Spt4, silent))?;
    Ok(PasidEntry {
        stage,
        tag: Tag { stage: used, ..tag },
        silent,
        supervisor: PasidWord2::new_with_raw_value(words[2]).sre(),
    })
}

/// Decodes the translation type and what it needs. `None`: not supported.
#[inline(always)]
fn stage(rules: &Rules, words: &[u64; PASID_ENTRY_WORDS], tag: Tag) -> Option<(Stage, StageTag)> {
    let kind = PasidWord0::new_with_raw_value(words[0]).pgtt().ok()?;
    match kind {
        TranslationType::First if rules.first_stage => {
            let table = first_stage(rules, words, Tag { stage: StageTag::First, ..tag })?;
            Some((Stage::First(table), StageTag::First))
        }
        TranslationType::Second if rules.second_stage => {
            Some((Stage::Second(second_stage(rules, words, tag.domain)?), StageTag::Second))
        }
        TranslationType::Nested if rules.nested => {
            let first = first_stage(rules, words, Tag { stage: StageTag::Nested, ..tag })?;
            let second = second_stage(rules, words, tag.domain)?;
            let inside = first.root.0 >> second.limit_bits == 0;
            inside.then_some((Stage::Nested(first, second), StageTag::Nested))
        }
        TranslationType::PassThrough if rules.pass_through => {
            Some((Stage::PassThrough, StageTag::PassThrough))
        }
        TranslationType::First
        | TranslationType::Second
        | TranslationType::Nested
        | TranslationType::PassThrough => None,
    }
}

#[inline(always)]
fn first_stage(rules: &Rules, words: &[u64; PASID_ENTRY_WORDS], tag: Tag) -> Option<FirstStageTable> {
    let word2 = PasidWord2::new_with_raw_value(words[2]);
    let levels = match word2.fspm() {
        Ok(FirstStageMode::FourLevel) => 4,
        Ok(FirstStageMode::FiveLevel) if rules.five_level => 5,
        Ok(FirstStageMode::FiveLevel) | Err(_) => return None,
    };
    Some(FirstStageTable {
        root: table_address(words[2]),
        levels,
        write_protect: word2.wpe(),
        extended_accessed: word2.eafe(),
        snooped: PasidWord1::new_with_raw_value(words[1]).pwsnp(),
        tag,
    })
}

#[inline(always)]
fn second_stage(
    rules: &Rules,
    words: &[u64; PASID_ENTRY_WORDS],
    domain: DomainId,
) -> Option<SecondStageTable> {
    let word0 = PasidWord0::new_with_raw_value(words[0]);
    let aw: u3 = word0.aw();
    let mut table = super::second_stage(rules, aw, table_address(words[0]), domain)?;
    table.accessed_dirty = word0.ssade();
    table.snooped = PasidWord1::new_with_raw_value(words[1]).pwsnp();
    Some(table)
}

//! From a source id and a PASID to the PASID entry: root, context, PASID directory and PASID table in
//! scalable mode (revision 5.10, §3.4, §9).
//!
//! **Pure** but for the reads of memory. Everything is read anew each time; nothing here is cached.

use iommu_core::{Domain, DomainId, FirstStage, Gpa, Pasid, SourceId, StageTag, TableFormat, Tag};

use crate::memory::{Reader, TableMemory};
use crate::rules::Rules;
use crate::spec::context::{ContextHigh, ContextLow};
use crate::spec::fault::Reason;
use crate::spec::pasid::{
    self, DirectoryEntry, FirstStageMode, PasidWord0, PasidWord1, PasidWord2, TranslationType,
};
use crate::spec::registers::TranslationTableMode;
use crate::spec::root::RootHalf;
use crate::walk::first::FirstStageTable;

/// What the last "set root table pointer" latched, and whether translation is enabled.
///
/// One word, so that a unit can keep it in an atomic: bit 0 is TES, bits 11:10 TTM, bits 63:12 the address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootLatch(u64);

impl RootLatch {
    const ENABLED: u64 = 1;

    /// A latch. `register` is RTADDR: table mode and address are taken from it, the rest is dropped.
    #[must_use]
    pub const fn new(register: u64, enabled: bool) -> Self {
        Self(register & !0x3ff | if enabled { Self::ENABLED } else { 0 })
    }

    /// From [`Self::to_raw`].
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// As one word.
    #[must_use]
    pub const fn to_raw(self) -> u64 {
        self.0
    }

    /// Whether requests are translated at all.
    #[inline]
    #[must_use]
    pub const fn enabled(self) -> bool {
        self.0 & Self::ENABLED != 0
    }

    /// The same latch with translation enabled or not.
    #[must_use]
    pub const fn with_enabled(self, enabled: bool) -> Self {
        Self::new(self.0, enabled)
    }

    /// Translation table mode.
    #[inline]
    #[must_use]
    pub const fn mode(self) -> TranslationTableMode {
        crate::spec::registers::RootTableAddress::new_with_raw_value(self.0).ttm()
    }

    /// Address of the root table.
    #[inline]
    #[must_use]
    pub const fn table(self) -> Gpa {
        Gpa(self.0 & !0xfff)
    }
}

/// Everything that a look-up sees.
#[derive(Clone, Copy)]
pub struct Context<'a, M> {
    /// Where the tables lie.
    pub memory: &'a M,
    /// What the tables may hold.
    pub rules: &'a Rules,
    /// Where they start.
    pub root: RootLatch,
}

/// One look-up: what a [`Context`] holds, and where in memory it read last.
pub(crate) struct Lookup<'a, M: TableMemory> {
    pub(crate) memory: Reader<'a, M>,
    pub(crate) rules: &'a Rules,
    pub(crate) root: RootLatch,
}

impl<'a, M: TableMemory> Lookup<'a, M> {
    #[inline]
    pub(crate) fn new(cx: &Context<'a, M>) -> Self {
        Self { memory: Reader::new(cx.memory), rules: cx.rules, root: cx.root }
    }
}

/// A request that does not go ahead: why, and whether a structure on the path asks for silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    pub(crate) reason: Reason,
    /// FPD of any structure read so far.
    pub(crate) silent: bool,
}

impl Blocked {
    #[cold]
    pub(crate) const fn new(reason: Reason, silent: bool) -> Self {
        Self { reason, silent }
    }

    /// Nothing on the path asked for silence.
    #[cold]
    pub(crate) const fn open(reason: Reason) -> Self {
        Self::new(reason, false)
    }
}

/// What kind of request asks; decides which checks apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Untranslated,
    Translation,
    Translated,
    PageRequest,
}

/// A context entry that passed its checks.
#[derive(Clone, Copy)]
pub(crate) struct ContextEntry {
    low: ContextLow,
    high: ContextHigh,
}

impl ContextEntry {
    pub(crate) fn silent(&self) -> bool {
        self.low.fpd()
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
            if !self.low.paside() {
                return Err(Reason::Sct6);
            }
            if pasid.get() >= self.low.pasid_limit() {
                return Err(Reason::Sct7);
            }
            if pasid == rid_pasid {
                return Err(Reason::Sct9);
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
pub(crate) fn context_entry<M: TableMemory>(
    cx: &Lookup<'_, M>,
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
    if low.pre() && !low.dte() || high.rid_pasid().value() >= low.pasid_limit() {
        return Err(Blocked::new(Reason::Sct4, low.fpd()));
    }
    Ok(ContextEntry { low, high })
}

/// How a PASID entry translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    First(FirstStageTable),
    PassThrough,
}

/// A PASID entry that passed its checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PasidEntry {
    pub(crate) stage: Stage,
    pub(crate) tag: Tag,
    /// FPD of the context, directory or PASID entry.
    pub(crate) silent: bool,
    /// Privileged requests are served (SRE).
    pub(crate) supervisor: bool,
}

/// Looks the entry of `pasid`, as [`ContextEntry::select`] chose it, up.
#[inline(always)]
pub(crate) fn pasid_entry<M: TableMemory>(
    cx: &Lookup<'_, M>,
    context: &ContextEntry,
    pasid: Pasid,
) -> Result<PasidEntry, Blocked> {
    let silent = context.silent();
    let directory = table_address(context.low.raw_value());
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
    let words: [u64; pasid::PASID_ENTRY_WORDS] = cx
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
    let (stage, used) = stage(cx.rules, &words).ok_or(Blocked::new(Reason::Spt4, silent))?;
    let domain = DomainId(u32::from(PasidWord1::new_with_raw_value(words[1]).did()));
    Ok(PasidEntry {
        stage,
        tag: Tag { domain, pasid, stage: used },
        silent,
        supervisor: PasidWord2::new_with_raw_value(words[2]).sre(),
    })
}

/// Decodes the translation type and what it needs. `None`: not supported.
#[inline(always)]
fn stage(rules: &Rules, words: &[u64; pasid::PASID_ENTRY_WORDS]) -> Option<(Stage, StageTag)> {
    match PasidWord0::new_with_raw_value(words[0]).pgtt() {
        Ok(TranslationType::First) if rules.first_stage => {
            let word2 = PasidWord2::new_with_raw_value(words[2]);
            let levels = match word2.fspm() {
                Ok(FirstStageMode::FourLevel) => 4,
                Ok(FirstStageMode::FiveLevel) if rules.five_level => 5,
                Ok(FirstStageMode::FiveLevel) | Err(_) => return None,
            };
            let table = FirstStageTable {
                root: table_address(words[2]),
                levels,
                write_protect: word2.wpe(),
                extended_accessed: word2.eafe(),
                snooped: PasidWord1::new_with_raw_value(words[1]).pwsnp(),
            };
            Some((Stage::First(table), StageTag::First))
        }
        Ok(TranslationType::PassThrough) if rules.pass_through => {
            Some((Stage::PassThrough, StageTag::PassThrough))
        }
        Ok(_) | Err(_) => None,
    }
}

/// What the tables bind requests of `source` with `pasid` to; [`Domain::Blocked`] if they would fault.
/// While translation is disabled, pass-through under domain 0.
#[must_use]
pub fn pasid_domain<M: TableMemory>(cx: &Context<'_, M>, source: SourceId, pasid: Option<Pasid>) -> Domain {
    let cx = &Lookup::new(cx);
    if !cx.root.enabled() {
        return Domain::PassThrough { id: DomainId(0) };
    }
    if cx.root.mode() != TranslationTableMode::Scalable || !cx.rules.scalable {
        return Domain::Blocked;
    }
    let entry = context_entry(cx, source).and_then(|context| {
        let pasid = context.select(Kind::Untranslated, pasid).map_err(Blocked::open)?;
        pasid_entry(cx, &context, pasid)
    });
    let Ok(PasidEntry { stage, tag, supervisor, .. }) = entry else { return Domain::Blocked };
    match stage {
        Stage::PassThrough => Domain::PassThrough { id: tag.domain },
        Stage::First(table) => Domain::FirstStage {
            id: tag.domain,
            table: FirstStage {
                root: table.root,
                input_bits: table.input_bits(),
                format: TableFormat::X86FirstStage {
                    supervisor,
                    write_protect: table.write_protect,
                    extended_accessed: table.extended_accessed,
                },
            },
        },
    }
}

/// The table address in bits 63:12 of any structure; its reserved bits are known to be 0.
#[inline]
const fn table_address(word: u64) -> Gpa {
    Gpa(word & !0xfff)
}

#[inline]
fn reserved_set<const N: usize>(words: &[u64; N], reserved: &[u64; N]) -> bool {
    words.iter().zip(reserved).fold(0, |found, (word, mask)| found | word & mask) != 0
}

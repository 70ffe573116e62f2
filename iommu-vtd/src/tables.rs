//! From a source id and a PASID to what translates (revision 5.10, §3.4, §9): root and context tables, PASID
//! directories and PASID tables.
//!
//! **Pure** but for the reads of memory.

mod legacy;
mod scalable;

use std::fmt;

use arbitrary_int::u3;
use iommu_core::{Domain, DomainId, FirstStage, Gpa, Pasid, SecondStage, SourceId, TableFormat, Tag};

pub(crate) use self::legacy::{LegacyEntry, legacy_entry};
pub(crate) use self::scalable::{ContextEntry, context_entry, pasid_entry};
pub use crate::lookup::{Context, RootLatch};
use crate::lookup::{Lookup, NoCaches};
use crate::memory::TableMemory;
use crate::rules::Rules;
use crate::spec::fault::Reason;
use crate::spec::paging;
use crate::spec::registers::TranslationTableMode;
use crate::walk::StructureCache;
use crate::walk::first::FirstStageTable;
use crate::walk::second::SecondStageTable;

/// Context-cache and PASID-cache (§6.2): what look-ups tell of entries that passed their checks, and may be told.
pub(crate) trait TableCache: StructureCache {
    /// A context entry in scalable mode.
    #[inline]
    fn context(&self, _source: SourceId) -> Option<ContextEntry> {
        None
    }

    /// Tells of a context entry in scalable mode.
    #[inline]
    fn keep_context(&self, _source: SourceId, _entry: &ContextEntry) {}

    /// A context entry in legacy mode.
    #[inline]
    fn legacy_context(&self, _source: SourceId) -> Option<LegacyEntry> {
        None
    }

    /// Tells of a context entry in legacy mode.
    #[inline]
    fn keep_legacy_context(&self, _source: SourceId, _entry: &LegacyEntry) {}

    /// The PASID entry that serves `source` under the PASID that its context entry chose; the two kinds of requests
    /// that may reach one PASID entry, with PASID and without, see the same.
    #[inline]
    fn pasid(&self, _source: SourceId, _pasid: Pasid) -> Option<PasidEntry> {
        None
    }

    /// Tells of a PASID entry. Its `silent` includes that of the context entry.
    #[inline]
    fn keep_pasid(&self, _source: SourceId, _pasid: Pasid, _entry: &PasidEntry) {}
}

impl TableCache for NoCaches {}

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

/// How an entry translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    First(FirstStageTable),
    Second(SecondStageTable),
    Nested(FirstStageTable, SecondStageTable),
    PassThrough,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First(first) => write!(f, "first stage of {} levels", first.levels),
            Self::Second(second) => write!(f, "second stage of {} levels", second.levels),
            Self::Nested(first, second) => {
                write!(f, "first stage of {} levels over a second of {}", first.levels, second.levels)
            }
            Self::PassThrough => f.write_str("pass-through"),
        }
    }
}

/// A PASID entry that passed its checks, or what a legacy context entry says in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PasidEntry {
    pub(crate) stage: Stage,
    pub(crate) tag: Tag,
    /// FPD of the context, directory or PASID entry.
    pub(crate) silent: bool,
    /// Privileged requests are served (SRE).
    pub(crate) supervisor: bool,
}

/// What the tables bind requests of `source` with `pasid` to; [`Domain::Blocked`] if their entries refuse them. Whether
/// the unit takes PASIDs that wide is not looked at: it serves page requests of all, and accesses of some. While
/// translation is disabled, pass-through under domain 0.
#[must_use]
pub fn pasid_domain<M: TableMemory>(cx: &Context<'_, M>, source: SourceId, pasid: Option<Pasid>) -> Domain {
    let cx = &Lookup::new(cx, &NoCaches);
    if !cx.root.enabled() {
        return Domain::PassThrough { id: DomainId(0) };
    }
    binding(cx, source, pasid).map_or(Domain::Blocked, |(_, domain)| domain)
}

/// The same while translation is enabled, with the PASID whose entry says so. `None`: the requests would fault.
pub(crate) fn binding<M: TableMemory>(
    cx: &Lookup<'_, M, NoCaches>,
    source: SourceId,
    pasid: Option<Pasid>,
) -> Option<(Pasid, Domain)> {
    let entry = match cx.root.mode() {
        TranslationTableMode::Scalable if cx.rules.scalable => {
            context_entry(cx, source).and_then(|context| {
                let pasid = context.select(Kind::Untranslated, pasid).map_err(Blocked::open)?;
                pasid_entry(cx, &context, source, pasid)
            })
        }
        TranslationTableMode::Legacy if pasid.is_none() => {
            legacy_entry(cx, source).map(|entry| entry.binding)
        }
        _ => return None,
    };
    entry.ok().map(|entry| (entry.tag.pasid, domain(&entry)))
}

fn domain(entry: &PasidEntry) -> Domain {
    let id = entry.tag.domain;
    let first = |table: &FirstStageTable| FirstStage {
        root: table.root,
        input_bits: table.input_bits(),
        format: TableFormat::X86FirstStage {
            supervisor: entry.supervisor,
            write_protect: table.write_protect,
            extended_accessed: table.extended_accessed,
        },
    };
    let second = |table: &SecondStageTable| SecondStage {
        root: table.root,
        input_bits: table.input_bits(),
        format: TableFormat::VtdSecondStage { accessed_dirty: table.accessed_dirty },
    };
    match &entry.stage {
        Stage::PassThrough => Domain::PassThrough { id },
        Stage::First(table) => Domain::FirstStage { id, table: first(table) },
        Stage::Second(table) => Domain::SecondStage { id, table: second(table) },
        Stage::Nested(inner, outer) => Domain::Nested { id, first: first(inner), second: second(outer) },
    }
}

/// A second-stage table that keeps no accessed and dirty bits. `None`: its width is not supported.
#[inline(always)]
fn second_stage(rules: &Rules, width: u3, root: Gpa, domain: DomainId) -> Option<SecondStageTable> {
    let levels = rules.second_stage_levels(width)?;
    let limit_bits = paging::page_bits(levels + 1).min(rules.guest_bits);
    Some(SecondStageTable { root, levels, limit_bits, accessed_dirty: false, snooped: false, domain })
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

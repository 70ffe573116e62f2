//! Judging one request (revision 5.10, §3, §4): the front end, the order of the checks, and the answer.
//!
//! **Pure** but for memory: no lock, no log. It runs under a port's lock.

use iommu_core::{Access, AddressType, Fault, Gpa, Pasid, Permissions, Request, StageTag, Tag, Translation};

use crate::answer::{answer, empty, unchanged, unnamed};
use crate::ats;
use crate::cache::View;
use crate::lookup::{Lookup, NoCaches};
use crate::memory::TableMemory;
use crate::rules::Rules;
use crate::spec::fault::Reason;
use crate::spec::registers::TranslationTableMode;
use crate::tables::{
    Blocked, Context, Kind, LegacyEntry, PasidEntry, Stage, TableCache, context_entry, legacy_entry,
    pasid_entry,
};
use crate::walk::{Intent, Leaf, WriteIntent, first, nested, second};

/// The interrupt range: FEE0_0000h to FEEF_FFFFh.
const INTERRUPT_RANGE: u64 = 0xfee0_0000;
/// Logarithm of its size.
const INTERRUPT_RANGE_BITS: u32 = 20;
/// The major version from which on execute requests are refused before any table is read.
const EXECUTE_REFUSED_EARLY: u8 = 8;

/// Logarithm of the largest aligned block around `address` that keeps clear of the interrupt range; `None` for
/// an address inside.
#[inline]
pub(crate) const fn clear_of_interrupts(address: u64) -> Option<u32> {
    match (address ^ INTERRUPT_RANGE).checked_ilog2() {
        Some(bits) if bits >= INTERRUPT_RANGE_BITS => Some(bits),
        Some(_) | None => None,
    }
}

/// Judges a request against the tables as they stand.
///
/// What is returned may be used until it is invalidated: writes are allowed only where the leaf entry is
/// marked dirty already, and no block touches the interrupt range on its output side or, without PASID, on its
/// input side. A translation request that meets a recoverable condition gets no permissions. A zero-length
/// read of the interrupt range succeeds, but must not be kept: no permissions, and only untranslated. Nor may that
/// of a write-only page that is not yet dirty: no permissions.
///
/// # Errors
/// The request is blocked; the fault says what the device sees and whether a record is due.
pub fn translate<M: TableMemory>(cx: &Context<'_, M>, request: &Request) -> Result<Translation, Fault> {
    resolve(&Lookup::new(cx, &NoCaches), request).or_else(|blocked| answer(blocked, request))
}

/// The same with caches, which may know entries and tables that memory no longer holds. What they know can let a
/// request go ahead; one that does not is judged again by memory alone.
#[inline]
pub(crate) fn translate_cached<M: TableMemory>(
    cx: &Context<'_, M>,
    caches: &View<'_>,
    request: &Request,
) -> Result<Translation, Fault> {
    match resolve(&Lookup::new(cx, caches), request) {
        Ok(translation) => Ok(translation),
        Err(_) if caches.was_used() => translate_anew(cx, caches, request),
        Err(blocked) => answer(blocked, request),
    }
}

#[cold]
fn translate_anew<M: TableMemory>(
    cx: &Context<'_, M>,
    caches: &View<'_>,
    request: &Request,
) -> Result<Translation, Fault> {
    resolve(&Lookup::new(cx, &caches.unread()), request).or_else(|blocked| answer(blocked, request))
}

#[inline(always)]
fn resolve<M: TableMemory, C: TableCache>(
    cx: &Lookup<'_, M, C>,
    request: &Request,
) -> Result<Translation, Blocked> {
    let kind = match request.address_type {
        AddressType::Untranslated => Kind::Untranslated,
        AddressType::Translation { .. } => Kind::Translation,
        AddressType::Translated => Kind::Translated,
    };
    if let Some(translation) = before_tables(cx, kind, request)? {
        return Ok(translation);
    }
    if cx.root.mode() == TranslationTableMode::Legacy {
        return in_legacy_mode(cx, kind, request);
    }
    let context = context_entry(cx, request.source)?;
    let pasid =
        context.select(kind, request.pasid).map_err(|reason| Blocked::new(reason, context.silent()))?;
    if kind == Kind::Translated {
        let silent = context.silent();
        return identity(cx.rules, request, unnamed(request, StageTag::PassThrough))
            .map_err(|reason| Blocked::new(reason, silent));
    }
    if asks_for_interrupts(kind, request) {
        return Ok(ats::interrupt_range(cx.rules, request));
    }
    let entry = pasid_entry(cx, &context, request.source, pasid)?;
    let privileged = if request.pasid.is_some() { request.privileged } else { context.privileged() };
    check_entry(cx.rules, &entry, request, privileged)
        .and_then(|()| by_entry(cx, &entry, request, privileged))
        .map_err(|reason| Blocked::new(reason, entry.silent))
}

/// Legacy mode (§3.4.2): the context entry stands for a PASID entry, and conditions have codes of their own.
#[inline(never)]
fn in_legacy_mode<M: TableMemory, C: TableCache>(
    cx: &Lookup<'_, M, C>,
    kind: Kind,
    request: &Request,
) -> Result<Translation, Blocked> {
    let LegacyEntry { binding, device_tlb } = legacy_entry(cx, request.source)?;
    if kind != Kind::Untranslated && !device_tlb {
        return Err(Blocked::new(Reason::Lct5, binding.silent));
    }
    if asks_for_interrupts(kind, request) {
        return Ok(ats::interrupt_range(cx.rules, request));
    }
    let result = match kind {
        Kind::Translated => identity(cx.rules, request, unnamed(request, StageTag::PassThrough)),
        _ => by_entry(cx, &binding, request, false),
    };
    result.map_err(|reason| Blocked::new(legacy_reason(reason, request), binding.silent))
}

/// The legacy code of a condition. Legacy mode knows no "not present" in paging entries: what is missing is the
/// permission.
#[cold]
fn legacy_reason(reason: Reason, request: &Request) -> Reason {
    match reason {
        Reason::Sgn4 | Reason::Sgn5 => Reason::Lgn1,
        Reason::Sgn6 => Reason::Lgn2,
        Reason::Sgn7 => Reason::Lgn3,
        Reason::Sgn8 => Reason::Lgn4,
        Reason::Sss1 => Reason::Lss1,
        Reason::Sss2 if request.access.is_write() => Reason::Lgn2,
        Reason::Sss2 => Reason::Lgn3,
        Reason::Sss3 => Reason::Lss2,
        Reason::Sss4 => Reason::Lct4,
        other => other,
    }
}

/// Whether this is a translation request for the interrupt range. With a PASID such an address is like any other.
#[inline]
fn asks_for_interrupts(kind: Kind, request: &Request) -> bool {
    kind == Kind::Translation && request.pasid.is_none() && clear_of_interrupts(request.address.0).is_none()
}

/// What is decided without tables (§3.4, §3.14): `Some` answers the request.
#[inline(always)]
fn before_tables<M: TableMemory, C: TableCache>(
    cx: &Lookup<'_, M, C>,
    kind: Kind,
    request: &Request,
) -> Result<Option<Translation>, Blocked> {
    if kind == Kind::Translated && request.pasid.is_some() && !cx.rules.translated_pasid {
        return Err(Blocked::new(Reason::Refused, true));
    }
    if kind != Kind::Untranslated && !cx.root.enabled() {
        return Err(Blocked::new(Reason::Refused, true));
    }
    if kind == Kind::Untranslated && (request.pasid.is_none() || !cx.root.enabled()) {
        let Some(bits) = clear_of_interrupts(request.address.0) else {
            return interrupt_access(request).map(Some);
        };
        if !cx.root.enabled() {
            return Ok(Some(unchanged(request, bits.min(cx.rules.identity_bits))));
        }
    }
    check_mode(cx.rules, cx.root.mode(), request.pasid)?;
    if request.execute && request.pasid.is_some() && cx.rules.version >= EXECUTE_REFUSED_EARLY {
        return Err(Blocked::open(Reason::Rta5));
    }
    if request.pasid.is_some_and(|pasid| pasid.get() >> cx.rules.pasid_bits != 0) {
        return Err(too_wide(cx, request));
    }
    Ok(None)
}

/// SGN.10 is decided before tables are read, and yet qualified: the context entry may ask for silence.
#[cold]
fn too_wide<M: TableMemory, C: TableCache>(cx: &Lookup<'_, M, C>, request: &Request) -> Blocked {
    let silent =
        context_entry(cx, request.source).map_or_else(|blocked| blocked.silent, |context| context.silent());
    Blocked::new(Reason::Sgn10, silent)
}

/// Whether the latched table mode serves the request.
#[inline]
fn check_mode(rules: &Rules, mode: TranslationTableMode, pasid: Option<Pasid>) -> Result<(), Blocked> {
    let reason = match mode {
        TranslationTableMode::Scalable if rules.scalable => return Ok(()),
        TranslationTableMode::Legacy if pasid.is_none() => return Ok(()),
        TranslationTableMode::AbortDma if rules.abort_dma => Reason::Rta4,
        TranslationTableMode::Legacy => Reason::Rta2,
        TranslationTableMode::Scalable | TranslationTableMode::AbortDma | TranslationTableMode::Reserved => {
            Reason::Rta1
        }
    };
    Err(Blocked::open(reason))
}

/// An untranslated access to the interrupt range. A write of four bytes is an interrupt and takes another
/// way ([`MsiSink`](iommu_core::MsiSink)); what comes here is not one.
#[cold]
fn interrupt_access(request: &Request) -> Result<Translation, Blocked> {
    if request.access != Access::ZeroLengthRead {
        return Err(Blocked::open(Reason::InterruptRange));
    }
    Ok(Translation { untranslated_only: true, ..empty(request) })
}

/// Whether a PASID entry serves the request at all.
#[inline(always)]
fn check_entry(rules: &Rules, entry: &PasidEntry, request: &Request, privileged: bool) -> Result<(), Reason> {
    if request.execute && request.pasid.is_some() && rules.version < EXECUTE_REFUSED_EARLY {
        return Err(Reason::Spt5);
    }
    if privileged && !entry.supervisor { Err(Reason::Spt6) } else { Ok(()) }
}

/// Translates as an entry says (§3.6 to §3.9).
#[inline(always)]
fn by_entry<M: TableMemory, C: TableCache>(
    cx: &Lookup<'_, M, C>,
    entry: &PasidEntry,
    request: &Request,
    privileged: bool,
) -> Result<Translation, Reason> {
    let intent = intent(cx.rules, request, privileged);
    let address = request.address.0;
    let leaf = match &entry.stage {
        Stage::PassThrough => return identity(cx.rules, request, entry.tag),
        Stage::First(table) => first::walk(cx, table, address, intent)?,
        Stage::Second(table) => second::walk(cx, table, address, intent)?,
        Stage::Nested(inner, outer) => nested::walk(cx, inner, outer, address, intent)?,
    };
    let page_bits = clip(&leaf, request)?;
    let write = match request.address_type {
        AddressType::Translation { .. } => leaf.write && intent.write != WriteIntent::No,
        AddressType::Untranslated | AddressType::Translated => leaf.write,
    };
    Ok(Translation {
        iova: request.address,
        base: Gpa(leaf.output),
        page_bits,
        permissions: Permissions { read: leaf.read, write },
        untranslated_only: false,
        tag: entry.tag,
    })
}

/// What the request wants of a page.
#[inline]
fn intent(rules: &Rules, request: &Request, privileged: bool) -> Intent {
    let write = write_intent(rules, request);
    let read = match (request.address_type, request.access) {
        (AddressType::Translation { .. }, _) => write == WriteIntent::No,
        (_, Access::Read | Access::Atomic) => true,
        (_, Access::Write) => false,
        (_, Access::ZeroLengthRead) => !rules.zero_length_read,
    };
    Intent { read, write, privileged }
}

/// How the request means to write. A translation request asks for all there is, unless it waives writing.
#[inline]
fn write_intent(rules: &Rules, request: &Request) -> WriteIntent {
    match request.address_type {
        AddressType::Translation { no_write } if no_write && rules.no_write => WriteIntent::No,
        AddressType::Translation { .. } => WriteIntent::IfAllowed,
        AddressType::Untranslated | AddressType::Translated if request.access.is_write() => {
            WriteIntent::Needed
        }
        AddressType::Untranslated | AddressType::Translated => WriteIntent::No,
    }
}

/// The part of a page that may be returned: nothing of the interrupt range. An untranslated request minds only
/// its own address, a translation request the whole page.
#[inline(always)]
fn clip(leaf: &Leaf, request: &Request) -> Result<u32, Reason> {
    let output = clear_of_interrupts(leaf.output).ok_or(Reason::Sgn8)?;
    let input = if request.pasid.is_some() { None } else { clear_of_interrupts(request.address.0) };
    let asks = matches!(request.address_type, AddressType::Translation { .. });
    if asks && output < leaf.page_bits {
        return Err(Reason::Sgn8);
    }
    Ok(leaf.page_bits.min(output).min(input.unwrap_or(u32::MAX)))
}

/// Output equals input: pass-through, and translated requests.
#[inline(always)]
fn identity(rules: &Rules, request: &Request, tag: Tag) -> Result<Translation, Reason> {
    let address = request.address.0;
    if address >> rules.host_bits != 0 {
        return Err(Reason::Sgn4);
    }
    let bits = clear_of_interrupts(address).ok_or(Reason::Sgn8)?;
    let asks = matches!(request.address_type, AddressType::Translation { .. });
    let write = !asks || write_intent(rules, request) != WriteIntent::No;
    Ok(Translation {
        permissions: Permissions { read: true, write },
        tag,
        ..unchanged(request, bits.min(rules.identity_bits))
    })
}

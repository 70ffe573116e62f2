//! Judging one request (revision 5.10, §3, §4): the front end, the order of the checks, and the answer.
//!
//! **Pure** but for memory: no lock, no log. It runs under a port's lock.

use iommu_core::{Access, AddressType, Fault, Gpa, Pasid, Permissions, Request, StageTag, Tag, Translation};

use crate::answer::{answer, empty, unchanged, unnamed};
use crate::ats;
use crate::memory::TableMemory;
use crate::rules::Rules;
use crate::spec::fault::Reason;
use crate::spec::registers::TranslationTableMode;
use crate::tables::{
    Blocked, Context, ContextEntry, Kind, Lookup, PasidEntry, Stage, context_entry, pasid_entry,
};
use crate::walk::{Intent, Leaf, WriteIntent, first};

/// The interrupt range: FEE0_0000h to FEEF_FFFFh.
const INTERRUPT_RANGE: u64 = 0xfee0_0000;
/// Logarithm of its size.
const INTERRUPT_RANGE_BITS: u32 = 20;

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
/// read of the interrupt range succeeds, but must not be kept: no permissions, and only untranslated.
///
/// Not all of what the manual has is offered: a root in legacy mode blocks every request as a context entry of
/// an unsupported type would, and so does a PASID entry that wants a second stage.
///
/// # Errors
/// The request is blocked; the fault says what the device sees and whether a record is due.
pub fn translate<M: TableMemory>(cx: &Context<'_, M>, request: &Request) -> Result<Translation, Fault> {
    resolve(&Lookup::new(cx), request).or_else(|blocked| answer(blocked, request))
}

#[inline(always)]
fn resolve<M: TableMemory>(cx: &Lookup<'_, M>, request: &Request) -> Result<Translation, Blocked> {
    let kind = match request.address_type {
        AddressType::Untranslated => Kind::Untranslated,
        AddressType::Translation { .. } => Kind::Translation,
        AddressType::Translated => Kind::Translated,
    };
    if let Some(translation) = before_tables(cx, kind, request)? {
        return Ok(translation);
    }
    let context = context_entry(cx, request.source)?;
    let pasid =
        context.select(kind, request.pasid).map_err(|reason| Blocked::new(reason, context.silent()))?;
    if kind == Kind::Translated {
        let silent = context.silent();
        return identity(cx.rules, request, unnamed(request, StageTag::PassThrough))
            .map_err(|reason| Blocked::new(reason, silent));
    }
    if kind == Kind::Translation
        && request.pasid.is_none()
        && clear_of_interrupts(request.address.0).is_none()
    {
        return Ok(ats::interrupt_range(cx.rules, request));
    }
    let entry = pasid_entry(cx, &context, pasid)?;
    by_entry(cx, &context, &entry, request).map_err(|reason| Blocked::new(reason, entry.silent))
}

/// What is decided without tables (§3.4, §3.14): `Some` answers the request.
#[inline(always)]
fn before_tables<M: TableMemory>(
    cx: &Lookup<'_, M>,
    kind: Kind,
    request: &Request,
) -> Result<Option<Translation>, Blocked> {
    // A PASID on a translated request needs PTRS, which is never offered.
    if kind == Kind::Translated && request.pasid.is_some() {
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
    check_mode(cx, request.pasid)?;
    if request.pasid.is_some_and(|pasid| pasid.get() >> cx.rules.pasid_bits != 0) {
        return Err(too_wide(cx, request));
    }
    Ok(None)
}

/// SGN.10 is decided before tables are read, and yet qualified: the context entry may ask for silence.
#[cold]
fn too_wide<M: TableMemory>(cx: &Lookup<'_, M>, request: &Request) -> Blocked {
    let silent =
        context_entry(cx, request.source).map_or_else(|blocked| blocked.silent, |context| context.silent());
    Blocked::new(Reason::Sgn10, silent)
}

/// Whether the latched table mode serves the request.
#[inline]
fn check_mode<M: TableMemory>(cx: &Lookup<'_, M>, pasid: Option<Pasid>) -> Result<(), Blocked> {
    let reason = match cx.root.mode() {
        TranslationTableMode::Scalable if cx.rules.scalable => return Ok(()),
        TranslationTableMode::AbortDma if cx.rules.abort_dma => Reason::Rta4,
        TranslationTableMode::Legacy if pasid.is_some() => Reason::Rta2,
        TranslationTableMode::Legacy => Reason::Lct4,
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

/// Applies a PASID entry (§3.6, §3.8).
#[inline(always)]
fn by_entry<M: TableMemory>(
    cx: &Lookup<'_, M>,
    context: &ContextEntry,
    entry: &PasidEntry,
    request: &Request,
) -> Result<Translation, Reason> {
    let privileged = if request.pasid.is_some() { request.privileged } else { context.privileged() };
    if request.execute && request.pasid.is_some() {
        return Err(Reason::Spt5);
    }
    if privileged && !entry.supervisor {
        return Err(Reason::Spt6);
    }
    match &entry.stage {
        Stage::PassThrough => identity(cx.rules, request, entry.tag),
        Stage::First(table) => {
            let write = write_intent(cx.rules, request);
            let intent = Intent { write, privileged };
            let leaf = first::walk(&cx.memory, cx.rules, table, request.address.0, intent)?;
            let page_bits = clip(&leaf, request)?;
            let write = match request.address_type {
                AddressType::Translation { .. } => leaf.write && write != WriteIntent::No,
                AddressType::Untranslated | AddressType::Translated => leaf.write,
            };
            Ok(Translation {
                iova: request.address,
                base: Gpa(leaf.output),
                page_bits,
                permissions: Permissions { read: true, write },
                untranslated_only: false,
                tag: entry.tag,
            })
        }
    }
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

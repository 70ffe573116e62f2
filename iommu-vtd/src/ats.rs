//! What is peculiar to devices with a device-TLB (revision 5.10, §4, §7.4): translation requests to the
//! interrupt range, and the front check of page requests.

use iommu_core::{AddressType, Completion, Fault, PageRequest, Permissions, Request, Tag, Translation};

use crate::answer::{empty, fault};
use crate::lookup::{Lookup, NoCaches};
use crate::memory::TableMemory;
use crate::rules::Rules;
use crate::spec::fault::Reason;
use crate::spec::registers::TranslationTableMode;
use crate::tables::{Blocked, Context, Kind, TableCache, context_entry, pasid_entry};

/// Answers a translation request without PASID for an address in the interrupt range: the device is to send
/// such writes untranslated, as interrupts. One that waives writing gets nothing.
pub(crate) fn interrupt_range(rules: &Rules, request: &Request) -> Translation {
    let waives = matches!(request.address_type, AddressType::Translation { no_write: true });
    if waives && rules.no_write {
        return empty(request);
    }
    let permissions = Permissions { read: false, write: true };
    Translation { permissions, untranslated_only: true, ..empty(request) }
}

/// Checks a page request against root, context, PASID directory and PASID entry. `Ok` names what the implicit
/// invalidation before queuing it hits: the request's page under this tag (§7.4.1).
///
/// The caller has made sure that translation is enabled; while it is not, page requests are dropped without an
/// answer, and here they come back as a fault that is not to be recorded.
///
/// # Errors
/// The request is not to be queued; the last of its group is answered "Invalid Request". `completion` of the
/// fault means nothing, and its request is an untranslated access that stands for the page request.
pub fn admit_page_request<M: TableMemory>(cx: &Context<'_, M>, request: &PageRequest) -> Result<Tag, Fault> {
    admit_with(cx, &NoCaches, request)
}

/// The same with caches, which may know entries that memory no longer holds.
pub(crate) fn admit_with<M: TableMemory, C: TableCache>(
    cx: &Context<'_, M>,
    caches: &C,
    request: &PageRequest,
) -> Result<Tag, Fault> {
    check(&Lookup::new(cx, caches), request)
        .map_err(|blocked| fault(blocked, as_request(request), Completion::UnsupportedRequest))
}

fn check<M: TableMemory, C: TableCache>(
    cx: &Lookup<'_, M, C>,
    request: &PageRequest,
) -> Result<Tag, Blocked> {
    if !cx.root.enabled() {
        return Err(Blocked::new(Reason::Refused, true));
    }
    match cx.root.mode() {
        TranslationTableMode::Scalable if cx.rules.scalable => {}
        TranslationTableMode::Legacy => return Err(Blocked::open(Reason::Rta3)),
        TranslationTableMode::AbortDma if cx.rules.abort_dma => return Err(Blocked::open(Reason::Rta4)),
        TranslationTableMode::Scalable | TranslationTableMode::AbortDma | TranslationTableMode::Reserved => {
            return Err(Blocked::open(Reason::Rta1));
        }
    }
    let context = context_entry(cx, request.source)?;
    let pasid = context
        .select(Kind::PageRequest, request.pasid)
        .map_err(|reason| Blocked::new(reason, context.silent()))?;
    pasid_entry(cx, &context, request.source, pasid).map(|entry| entry.tag)
}

fn as_request(request: &PageRequest) -> Request {
    let access = if request.write { iommu_core::Access::Write } else { iommu_core::Access::Read };
    Request {
        privileged: request.privileged,
        execute: request.execute,
        ..Request::untranslated(request.source, request.pasid, request.address, access)
    }
}

//! What a device gets to see: the empty answer, the untranslated one, and a blocked request's (revision 5.10,
//! §4, §7).
//!
//! **Pure.**

use iommu_core::{
    AddressType, Completion, DomainId, Fault, FaultReason, Gpa, Pasid, Permissions, Request, StageTag, Tag,
    Translation,
};

use crate::spec::fault::Reply;
use crate::tables::Blocked;

/// A block of `2^bits` bytes that is not translated, under no particular name.
pub(crate) fn unchanged(request: &Request, bits: u32) -> Translation {
    Translation {
        iova: request.address,
        base: Gpa(request.address.0),
        page_bits: bits,
        permissions: Permissions::READ_WRITE,
        untranslated_only: false,
        tag: unnamed(request, StageTag::PassThrough),
    }
}

/// Success without permissions.
pub(crate) fn empty(request: &Request) -> Translation {
    Translation {
        iova: request.address,
        base: Gpa(0),
        page_bits: 12,
        permissions: Permissions::NONE,
        untranslated_only: false,
        tag: unnamed(request, StageTag::First),
    }
}

/// The tag of what no PASID entry names; only an invalidation of everything or of domain 0 hits it.
pub(crate) fn unnamed(request: &Request, stage: StageTag) -> Tag {
    Tag { domain: DomainId(0), pasid: request.pasid.unwrap_or(Pasid::ZERO), stage }
}

/// What the device gets of a blocked request.
#[cold]
pub(crate) fn answer(blocked: Blocked, request: &Request) -> Result<Translation, Fault> {
    let condition = blocked.reason.condition();
    let reply = match request.address_type {
        AddressType::Untranslated => Reply::Unsupported,
        AddressType::Translation { .. } => condition.translation,
        AddressType::Translated => condition.translated,
    };
    let completion = match reply {
        Reply::Empty | Reply::Effective => return Ok(empty(request)),
        Reply::Abort => Completion::CompleterAbort,
        Reply::EmptyRecorded => Completion::Empty,
        Reply::Unsupported | Reply::Invalid | Reply::Never => Completion::UnsupportedRequest,
    };
    Err(fault(blocked, *request, completion))
}

/// Adds the request to the reason.
pub(crate) fn fault(blocked: Blocked, request: Request, completion: Completion) -> Fault {
    let condition = blocked.reason.condition();
    Fault {
        request,
        reason: FaultReason { class: condition.class, code: condition.code.into() },
        completion,
        log: !(condition.qualified && blocked.silent),
    }
}

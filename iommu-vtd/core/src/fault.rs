//! Unrecoverable faults.
//!
//! The code that looks at tables returns a [`FaultReason`]; the border of the model adds the request and
//! makes a [`Fault`] of it. What can be recovered by the guest is not a fault but an empty
//! [`Translation`](crate::Translation), which the device may follow with a [`PageRequest`](crate::PageRequest).

use crate::request::Request;
use crate::types::{Iova, Pasid, SourceId};

/// The kind of a fault, for those who do not know the vendor's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultClass {
    /// The function is not (properly) known to the IOMMU, or may not do what it asks for.
    Source,
    /// The PASID is not (properly) known, or out of range.
    Pasid,
    /// No translation is present.
    NotPresent,
    /// There is one, but it does not allow the access.
    Permission,
    /// The address is outside what can be translated.
    Address,
    /// A table has reserved bits set, or could not be read or updated.
    Table,
    /// An access to the interrupt range of a form that is not an interrupt.
    Interrupt,
}

/// What a device sees of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Completion {
    /// Unsupported Request. On a translation request: ATS is to be switched off.
    UnsupportedRequest,
    /// Completer Abort.
    CompleterAbort,
    /// Success with no permission: the answer to a translation request whose fault is logged all the same.
    Empty,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FaultReason {
    /// Neutral kind.
    pub class: FaultClass,
    /// The vendor's code, as it stands in its manual.
    pub code: u16,
}

/// A failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The request.
    pub request: Request,
    /// Why.
    pub reason: FaultReason,
    /// What the device sees.
    pub completion: Completion,
    /// Whether the guest is told. `false` where it asked not to be, or where there is nobody to tell.
    pub log: bool,
}

/// An unrecoverable fault that happened elsewhere (a host IOMMU) and is handed to the guest's model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultEvent {
    /// Function.
    pub source: SourceId,
    /// PASID, if the request had one.
    pub pasid: Option<Pasid>,
    /// Address.
    pub address: Iova,
    /// It was a write.
    pub write: bool,
    /// Neutral kind; `code` is the vendor's, or 0 if unknown.
    pub reason: FaultReason,
}

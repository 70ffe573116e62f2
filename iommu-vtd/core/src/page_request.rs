//! Recoverable faults: page requests and their responses.

use crate::types::{Iova, Pasid, SourceId};
use crate::vendor::VendorData;

/// The index of a page request group: 9 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupIndex(u16);

impl GroupIndex {
    /// Number of distinct indices.
    pub const COUNT: u16 = 512;

    /// The low 9 bits of `value`.
    #[must_use]
    pub const fn truncate(value: u16) -> Self {
        Self(value % Self::COUNT)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// A device asks that a page be made accessible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The function.
    pub source: SourceId,
    /// Address space; `None` is not PASID 0.
    pub pasid: Option<Pasid>,
    /// Any address of the page.
    pub address: Iova,
    /// Read access is wanted.
    pub read: bool,
    /// Write access is wanted.
    pub write: bool,
    /// Execute access is wanted.
    pub execute: bool,
    /// For a privileged context.
    pub privileged: bool,
    /// Last of its group: a response is due.
    pub last: bool,
    /// Group.
    pub group: GroupIndex,
    /// What only the vendor's own backend understands; to be given back with the response.
    pub vendor: VendorData,
}

/// How a page request group was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseCode {
    /// Translate again.
    Success,
    /// Some page of the group is not accessible; page requests stay usable.
    Invalid,
    /// Page requests are broken for this function and are to be switched off.
    Failure,
}

/// The answer to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageResponse {
    /// The function.
    pub source: SourceId,
    /// Address space, if the requests had one.
    pub pasid: Option<Pasid>,
    /// Group.
    pub group: GroupIndex,
    /// Verdict.
    pub code: ResponseCode,
    /// As it came with the last request of the group.
    pub vendor: VendorData,
}

/// What became of a page request at the moment it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageRequestOutcome {
    /// The guest will answer (if it was the last of its group) through
    /// [`Endpoint::page_group_response`](crate::Endpoint::page_group_response).
    Queued,
    /// Dropped; no answer is due, because it was not the last of its group or nobody listens.
    Dropped,
    /// Dropped, and answered at once by the IOMMU itself. No other answer comes.
    Answered(ResponseCode),
}

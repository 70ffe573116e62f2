//! What a domain maps, for hosts that keep a copy of it.
//!
//! A host that can walk a guest's tables needs none of this. One that cannot keeps the mappings of a domain in
//! a table of its own (a *shadow*), and reads them again where an invalidation says that they changed.

use std::ops::ControlFlow;

use crate::domain::Domain;
use crate::request::Permissions;
use crate::types::{Gpa, IovaRange};

/// A range of addresses that leads to a range of guest-physical addresses of the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Input addresses.
    pub range: IovaRange,
    /// Where the first of them leads.
    pub base: Gpa,
    /// What is allowed; never [`Permissions::NONE`].
    pub permissions: Permissions,
}

impl Mapping {
    /// Whether `next` goes on where this one ends, in input and output, and allows the same.
    #[must_use]
    pub fn continues_in(&self, next: &Self) -> bool {
        let length = (self.range.last() - self.range.start()).wrapping_add(1);
        self.permissions == next.permissions
            && self.range.last().checked_add(1) == Some(next.range.start())
            && self.base.0.checked_add(length) == Some(next.base.0)
    }
}

/// How far a visit came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a visit that did not come to its end has told only a part"]
pub enum Visit {
    /// Everything in the range was told.
    Complete,
    /// The visitor ended it.
    Stopped,
    /// Looking for mappings took more work than any honest guest needs. What is left of the range was not looked
    /// at: whoever keeps a copy cannot, and blocks the domain.
    TooMuch,
    /// There are no mappings to be told of such a domain: it is blocked, passes addresses through, or goes through
    /// a first stage, whose growth no guest announces.
    Unsupported,
}

/// The mappings of a guest's domains, told by who knows their format: a model that reads a guest's second-stage
/// tables, or one that keeps them as an interval map.
///
/// A host is given one when it is made, and reads it in [`HostIommu::set_domain`](crate::HostIommu::set_domain),
/// and in [`sync`](crate::HostIommu::sync) for what invalidations named. Models call a host with none of the locks
/// held that this trait takes. What is told is the guest's at that moment, and hostile: outputs need not be memory.
pub trait GuestMappings: Send + Sync {
    /// Tells `visit` of the mappings of `domain` within `range`, clipped to it, in ascending order, without
    /// overlaps. Neighbours of which one [continues](Mapping::continues_in) in the other come as one.
    ///
    /// Its work is bounded, whatever the guest's tables hold ([`Visit::TooMuch`]). Addresses that the host has
    /// reserved for itself are told like any other.
    fn visit(
        &self,
        domain: &Domain,
        range: &IovaRange,
        visit: &mut dyn FnMut(&Mapping) -> ControlFlow<()>,
    ) -> Visit;
}

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
    /// Tells `visit` of the mappings of `domain` that share an address with `range`, in ascending order, without
    /// overlaps.
    ///
    /// Each is told as the guest made it, one leaf of its tables: whole, where it reaches beyond `range`, because a
    /// leaf is invalidated whole; and not merged with neighbours, because the guest may take it back without them
    /// while a device goes on using those.
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

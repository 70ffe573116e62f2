//! The doors between functions, models, hosts and interrupt delivery.

use crate::caps::Capabilities;
use crate::domain::Domain;
use crate::fault::Fault;
use crate::invalidation::{DeviceTlbCompletion, DeviceTlbInvalidation, Invalidation};
use crate::page_request::{PageRequest, PageRequestOutcome, PageResponse};
use crate::request::{Request, Translation};
use crate::types::{Pasid, SourceId};

/// The way into an IOMMU model. Called by ports and endpoints, from any thread.
///
/// No method may call an [`Endpoint`] or visit ports with a lock held that another method of this trait
/// takes: functions call in with their own locks held.
pub trait Translator: Send + Sync {
    /// Judges one request against the tables as they stand in memory.
    ///
    /// Called with a port's lock held: takes no lock that is held while ports are visited, never blocks,
    /// never logs. A recoverable miss of a translation request is `Ok` with no permissions.
    ///
    /// The caller may use what is returned until it is invalidated, without asking again: it allows writes
    /// only if everything that a write must leave behind in the tables (a dirty bit) is there already.
    ///
    /// # Errors
    /// A [`Fault`], complete with its request; the caller hands it to [`Self::report`] after its session ended.
    fn translate(&self, request: &Request) -> Result<Translation, Fault>;

    /// Records a fault for the guest, if `fault.log` says so. Takes leaf locks only. Not under a session.
    fn report(&self, fault: &Fault);

    /// Hands a page request to the guest. When this returns, the request is visible to the guest or its
    /// fate is known. Not under a session: ports may be visited.
    ///
    /// If it is the last of a group and [`PageRequestOutcome::Queued`], the answer comes through
    /// [`Endpoint::page_group_response`], perhaps before this call returns, on another thread.
    fn page_request(&self, request: &PageRequest) -> PageRequestOutcome;
}

/// A function that keeps translations of its own (ATS) and may ask for pages (PRI).
///
/// Called by a model with none of the locks held that a method of [`Translator`] takes. May call [`Translator`];
/// must not call anything that processes the guest's invalidations.
pub trait Endpoint: Send + Sync {
    /// Drops translations. On return nothing in flight uses one of them, and every page request made
    /// before is visible to the guest. Never waits for a guest: not for a page response, not for a doorbell.
    /// Completes also if ATS is off or the function is in reset.
    ///
    /// Returns within about a second ([`PortSet::invalidate_device_tlb`](crate::PortSet::invalidate_device_tlb)
    /// sees to it for ports): a guest CPU waits for it. A function that cannot keep the promise by then says
    /// so, and is asked again if the guest wants it.
    fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) -> DeviceTlbCompletion;

    /// Delivers the answer to a page request group. Unknown groups are ignored: guests send surplus answers.
    fn page_group_response(&self, response: &PageResponse);
}

/// A host IOMMU behind a model, for assigned devices.
pub trait HostIommu: Send + Sync {
    /// What the host offers for every device behind it.
    fn capabilities(&self) -> Capabilities;

    /// Binds (source, PASID) to a domain, replacing what was bound before; [`Domain::Blocked`] unbinds.
    /// `pasid: None` is the binding of requests without PASID.
    ///
    /// # Errors
    /// The host refused. The old binding is still in force, and the caller at once asks for
    /// [`Domain::Blocked`]: a device never stays on tables that the guest has taken back.
    fn set_domain(&self, source: SourceId, pasid: Option<Pasid>, domain: &Domain) -> Result<(), HostError>;

    /// Drops cached translations on the host. On return none of them is in use.
    ///
    /// # Errors
    /// Some could not be dropped; the caller blocks the domains concerned.
    fn invalidate(&self, batch: &[Invalidation]) -> Result<(), HostError>;

    /// Answers a page request group that the host reported.
    ///
    /// # Errors
    /// The host did not take the answer.
    fn respond(&self, response: &PageResponse) -> Result<(), HostError>;
}

/// A host operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on {object} failed")]
pub struct HostError {
    /// What was tried.
    pub operation: &'static str,
    /// On which host object.
    pub object: String,
    /// The host's reason.
    #[source]
    pub source: std::io::Error,
}

/// A message-signalled interrupt as a function writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Address: 0xFEEx_xxxx, with bits 63:32 for extended destinations.
    pub address: u64,
    /// Data.
    pub data: u32,
}

/// Where interrupts go. Never blocks; takes no lock of a function.
pub trait MsiSink: Send + Sync {
    /// Delivers an interrupt, or drops it where remapping blocks it.
    fn send(&self, source: SourceId, msi: Msi);
}

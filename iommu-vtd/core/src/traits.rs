//! The doors between functions, models, hosts and interrupt delivery.

use std::sync::{Arc, Weak};

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
    /// `Ok` of an untranslated request lets that request go ahead. The caller may use what is returned until it is
    /// invalidated, without asking again: it allows writes only if everything that a write must leave behind in
    /// the tables (a dirty bit) is there already. So it may allow less than was just judged.
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
///
/// Called by the model from the thread whose turn it is to process commands, with no lock held that a method of
/// [`Translator`] takes: an implementer may wait for a page request that it is handing in.
pub trait HostIommu: Send + Sync {
    /// What the host offers for every device behind it. Nothing while there is none.
    fn capabilities(&self) -> Capabilities;

    /// Binds (source, PASID) to a domain, replacing what was bound before; [`Domain::Blocked`] unbinds.
    /// `pasid: None` is the binding of requests without PASID, and so is PASID 0, which models use for them.
    /// A domain that is bound already costs nothing.
    ///
    /// On return no request that the host reported under the old binding is on its way to the guest any more,
    /// and each that was not answered is.
    ///
    /// # Errors
    /// The host refused. (source, PASID) is blocked, unless [`HostError::still_bound`] says otherwise: a device
    /// never stays on tables that the guest has taken back.
    fn set_domain(&self, source: SourceId, pasid: Option<Pasid>, domain: &Domain) -> Result<(), HostError>;

    /// Takes note of an invalidation, for what is bound at this moment. Some or all of it may be put off until
    /// [`Self::sync`].
    fn invalidate(&self, invalidation: &Invalidation);

    /// Carries out what was noted. On return none of the translations concerned is in use.
    ///
    /// # Errors
    /// Some could not be dropped. What they belong to is blocked, as by [`Self::set_domain`].
    fn sync(&self) -> Result<(), HostError>;

    /// Hands to `model` what the host has of page requests at this moment, as the event loop does when there are some:
    /// a guest waits for all of them. A device that never stops asking is not waited for. Called as the other methods
    /// are; calls [`Translator::page_request`].
    ///
    /// # Errors
    /// Some may be left, or some answer is kept.
    fn drain_page_requests(&self, model: &dyn Translator) -> Result<(), HostError>;

    /// Answers a page request group that the host reported. Unknown groups are ignored: guests send surplus
    /// answers.
    ///
    /// # Errors
    /// The host did not take the answer; it is kept and offered again.
    fn respond(&self, response: &PageResponse) -> Result<(), HostError>;
}

/// A host operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on {object} failed{}", if *.still_bound { "; the device may still use what it was bound to" } else { "" })]
pub struct HostError {
    /// What was tried.
    pub operation: &'static str,
    /// On which host object.
    pub object: String,
    /// The host did not even take the binding away that was to go. The caller has to stop the device.
    pub still_bound: bool,
    /// The host's reason.
    #[source]
    pub source: std::io::Error,
}

/// A message-signalled interrupt as a function writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Address: 0xFEEx_xxxx. A function's has nothing above; that of a remapped message holds bits 31:8 of the
    /// destination in 63:40.
    pub address: u64,
    /// Data.
    pub data: u32,
}

/// Where interrupts go. Never blocks; takes no lock of a function.
pub trait MsiSink: Send + Sync {
    /// Delivers an interrupt, or drops it where remapping blocks it.
    fn send(&self, source: SourceId, msi: Msi);
}

/// The way of interrupts through an IOMMU model that remaps them. Called from any thread, also by functions with
/// their own locks held.
///
/// Interrupts of the model itself do not take it: they are never remapped.
pub trait InterruptRemapper: Send + Sync {
    /// Hands to `sink` what the message `msi` of `source` becomes by the tables as they stand, or tells the guest
    /// why it is blocked. What an entry wants done in guest memory is done.
    ///
    /// Once an invalidation of remapping entries is complete, no delivery by older entries is under way.
    /// `sink` is called with a lock of the model held: it must not call the model.
    fn deliver(&self, source: SourceId, msi: Msi, sink: &dyn MsiSink);

    /// The message that every `msi` of `source` becomes now, for those who let others deliver it (a route in the
    /// kernel). Nobody is told of a fault. The answer holds until the next [`RouteListener::routes_changed`].
    ///
    /// `None`: it is blocked, or not a plain message by these tables; each has to go through [`Self::deliver`].
    fn resolve(&self, source: SourceId, msi: Msi) -> Option<Msi>;

    /// Adds a listener, for as long as it lives.
    fn add_listener(&self, listener: Weak<dyn RouteListener>);
}

/// Hears that messages may become others than before.
pub trait RouteListener: Send + Sync {
    /// Entries were invalidated, the table was replaced, or remapping was switched: everything that
    /// [`InterruptRemapper::resolve`] said before is to be asked anew. On return nothing old is used any more.
    ///
    /// Called inside the register write that caused it, with none of the locks held that `resolve` takes. Must not
    /// write registers of a model, and takes no lock that is held while that is done.
    fn routes_changed(&self);
}

/// A sink in front of another: what is sent goes through a remapper first.
pub struct RemappedMsi {
    remapper: Arc<dyn InterruptRemapper>,
    sink: Arc<dyn MsiSink>,
}

impl RemappedMsi {
    /// Messages go through `remapper` to `sink`.
    #[must_use]
    pub fn new(remapper: Arc<dyn InterruptRemapper>, sink: Arc<dyn MsiSink>) -> Self {
        Self { remapper, sink }
    }
}

impl MsiSink for RemappedMsi {
    fn send(&self, source: SourceId, msi: Msi) {
        self.remapper.deliver(source, msi, &*self.sink);
    }
}

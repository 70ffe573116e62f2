//! Assigned functions, as the machine sees them.

use std::sync::Arc;

use iommu_core::{HostError, HostIommu, Invalidation, SourceId};

use super::Unit;
use crate::host::Hosts;
use crate::memory::TableMemory;

/// Assigned functions ([`iommu_core::HostIommu`]). The callers of these methods hold no lock under which a host hands
/// page requests in, or a function serves the unit: they wait for register writes.
///
/// What a unit with assigned functions may offer its guest: [`Profile::behind`](crate::Profile::behind).
impl<M: TableMemory> Unit<M> {
    /// Has `host` carry out what the guest's tables say of `source`, in place of any host before. It is bound as
    /// they say now; before the guest programs anything, that is all of guest memory, so bus mastering is off.
    ///
    /// From now on answers to page requests of `source` go to `host`. Page requests come in by
    /// [`Translator::page_request`](iommu_core::Translator::page_request), as an endpoint's do. All functions of a
    /// unit should have the same host, which is told of every invalidation once.
    ///
    /// `stop` is called when the host could not take the function off tables that the guest has taken back
    /// ([`HostError::still_bound`]), inside the register write that took them; several times, if it stays so. It
    /// ends all DMA of the function (bus mastering off, reset). It must not write registers of the unit, nor call
    /// these methods.
    ///
    /// # Errors
    /// The host refused the first binding. The function has no host then, not even one that it had before.
    pub fn attach_host(
        &self,
        source: SourceId,
        host: Arc<dyn HostIommu>,
        stop: impl Fn(&HostError) + Send + 'static,
    ) -> Result<(), HostError> {
        let mut hosts = self.turn.lock();
        hosts.attach(&self.context(), source, host, Box::new(stop))
    }

    /// Blocks `source` on its host and forgets that it has one: for a function that is taken out. On return the
    /// unit does not call the host for it any more.
    pub fn detach_host(&self, source: SourceId) {
        self.turn.lock().detach(source);
    }

    /// Before a function is reset: until [`Self::release_host`], its host is only asked to block, which works while
    /// a device is being reset, and not to bind, which does not.
    pub fn hold_host(&self, source: SourceId) {
        self.turn.lock().hold(source);
    }

    /// After a reset, before bus mastering is on again: binds `source` as the tables say now.
    pub fn release_host(&self, source: SourceId) {
        let mut hosts = self.turn.lock();
        hosts.release(source);
        self.settle(&mut hosts);
    }

    /// Has hosts do what was noted. The caller holds `turn` and nothing else.
    pub(super) fn settle(&self, hosts: &mut Hosts) {
        hosts.settle(&self.context());
    }

    /// The same after a change that leaves nothing as it was.
    pub(super) fn rebind_all(&self, hosts: &mut Hosts) {
        hosts.note_all();
        hosts.invalidate(&Invalidation::ALL);
        self.settle(hosts);
    }
}

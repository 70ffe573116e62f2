//! The address translation cache of the function (ATS, section 5), and what counts its requests.
//!
//! The cache is a set of ports, one per queue; iommu-core fills, searches and drops. What remains here is when.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iommu_core::{
    AddressType, DeviceTlbCompletion, DeviceTlbInvalidation, Dma, Fault, PageRequest, PageRequestOutcome,
    Port, PortSet, Request, Translation, Translator,
};
use vm_memory::GuestMemoryBackend;

use super::stats::Counters;

/// The device-TLB.
#[derive(Default)]
pub struct DeviceTlb {
    ports: PortSet,
    /// Hits that do not count any more.
    forgotten: AtomicU64,
}

impl DeviceTlb {
    /// Drops translations. On return no access uses one of them, unless it says otherwise. Waits for open
    /// sessions, for nothing else.
    pub fn invalidate(&self, invalidation: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        self.ports.invalidate_device_tlb(invalidation)
    }

    /// Drops everything: ATS or PASID was switched, or the function is reset.
    pub fn flush(&self) {
        self.ports.clear();
    }

    /// Accesses served since the function was reset. Waits for open sessions.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.all_hits().wrapping_sub(self.forgotten.load(Ordering::Relaxed))
    }

    /// Accesses served since there are ports. Waits for open sessions.
    #[must_use]
    pub fn all_hits(&self) -> u64 {
        self.ports.looked_up().hits
    }

    /// Hits count from 0 again.
    pub fn forget_hits(&self) {
        self.forgotten.store(self.all_hits(), Ordering::Relaxed);
    }

    /// Translations held.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.ports.cached()
    }
}

/// The two ways to memory of one queue.
pub struct QueuePorts<M> {
    /// With ATS.
    pub translated: Port<M>,
    /// Without.
    pub untranslated: Port<M>,
}

impl<M: GuestMemoryBackend + Clone> QueuePorts<M> {
    /// Ports of one thread.
    pub fn new(dma: &Dma<M>, device_tlb: &DeviceTlb) -> Self {
        Self { translated: dma.device_tlb_port(&device_tlb.ports), untranslated: dma.port() }
    }
}

/// Passes on to the IOMMU and counts what is looked up. Hits in a port's cache never get here.
pub struct CountingTranslator {
    inner: Arc<dyn Translator>,
    counters: Arc<Counters>,
}

impl CountingTranslator {
    /// In front of `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Translator>, counters: Arc<Counters>) -> Self {
        Self { inner, counters }
    }
}

impl Translator for CountingTranslator {
    fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        match request.address_type {
            AddressType::Translation { .. } => self.counters.translation_requests.count(),
            AddressType::Untranslated => self.counters.untranslated_requests.count(),
            AddressType::Translated => {}
        }
        self.inner.translate(request)
    }

    fn report(&self, fault: &Fault) {
        self.inner.report(fault);
    }

    fn page_request(&self, request: &PageRequest) -> PageRequestOutcome {
        self.inner.page_request(request)
    }
}

//! What a unit has been asked to do, in numbers: for operators, and for tests that compare two units.

use std::collections::BTreeMap;

use iommu_core::sync::Mutex;
use iommu_core::sync::atomic::{AtomicU64, Ordering};
use iommu_core::{FaultReason, LookUps, PageRequest, Scope};
use serde::Serialize;

use crate::invalidation::Descriptor;
use crate::page_request::is_stop_marker;

/// What a unit has done since it was made. A reset of the unit leaves it alone.
///
/// While functions and CPUs run, the numbers are not of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnitCounts {
    /// Page requests that the guest found in its queue.
    pub page_requests: u64,
    /// Those of them that were the last of their group, so that an answer is due.
    pub page_request_groups: u64,
    /// Page requests that the guest did not see: refused by its tables, without room in the queue, or asked while
    /// translation was off.
    pub page_requests_unseen: u64,
    /// Answers to groups.
    pub page_group_responses: u64,
    /// Faults handed in to be recorded, also those for which there was no room.
    pub faults: u64,
    /// Invalidations of the context-cache.
    pub context_cache: u64,
    /// Invalidations of the PASID-cache.
    pub pasid_cache: u64,
    /// Invalidations of the IOTLB, with PASID and without.
    pub iotlb: u64,
    /// Those of them that name a range of addresses.
    pub iotlb_ranges: u64,
    /// Invalidations of device-TLBs, with PASID and without.
    pub device_tlb: u64,
    /// Invalidations of the interrupt entry cache.
    pub interrupt_entries: u64,
    /// Wait descriptors.
    pub waits: u64,
    /// Faults by their reason's code.
    pub fault_reasons: BTreeMap<u16, u64>,
    /// Look-ups in the IOTLBs of its ports. Those that found nothing came to the unit.
    pub look_ups: LookUps,
}

/// The numbers while they grow. Nothing else depends on them, so they are not ordered among each other.
#[derive(Default)]
pub(super) struct Counters {
    page_requests: AtomicU64,
    page_request_groups: AtomicU64,
    page_requests_unseen: AtomicU64,
    page_group_responses: AtomicU64,
    faults: AtomicU64,
    context_cache: AtomicU64,
    pasid_cache: AtomicU64,
    iotlb: AtomicU64,
    iotlb_ranges: AtomicU64,
    device_tlb: AtomicU64,
    interrupt_entries: AtomicU64,
    waits: AtomicU64,
    fault_reasons: Mutex<BTreeMap<u16, u64>>,
}

impl Counters {
    /// A descriptor was taken out of the queue.
    pub(super) fn descriptor(&self, descriptor: &Descriptor) {
        if let Descriptor::Translations(invalidation) = descriptor
            && matches!(invalidation.scope, Scope::PasidRange { .. } | Scope::DomainRange { .. })
        {
            add_one(&self.iotlb_ranges);
        }
        add_one(match descriptor {
            Descriptor::ContextCache(_) => &self.context_cache,
            Descriptor::PasidCache(_) => &self.pasid_cache,
            Descriptor::Translations(_) => &self.iotlb,
            Descriptor::DeviceTlb(_) => &self.device_tlb,
            Descriptor::InterruptEntries(_) => &self.interrupt_entries,
            Descriptor::Response(_) => &self.page_group_responses,
            Descriptor::Wait(_) => &self.waits,
        });
    }

    /// A page request came; whether the guest sees it.
    pub(super) fn page_request(&self, request: &PageRequest, seen: bool) {
        if !seen {
            return add_one(&self.page_requests_unseen);
        }
        add_one(&self.page_requests);
        if request.last && !is_stop_marker(request) {
            add_one(&self.page_request_groups);
        }
    }

    /// A fault is to be recorded.
    pub(super) fn fault(&self, reason: FaultReason) {
        add_one(&self.faults);
        *self.fault_reasons.lock().entry(reason.code).or_default() += 1;
    }

    /// The numbers as they stand, with those of the ports.
    pub(super) fn read(&self, look_ups: LookUps) -> UnitCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        UnitCounts {
            page_requests: of(&self.page_requests),
            page_request_groups: of(&self.page_request_groups),
            page_requests_unseen: of(&self.page_requests_unseen),
            page_group_responses: of(&self.page_group_responses),
            faults: of(&self.faults),
            context_cache: of(&self.context_cache),
            pasid_cache: of(&self.pasid_cache),
            iotlb: of(&self.iotlb),
            iotlb_ranges: of(&self.iotlb_ranges),
            device_tlb: of(&self.device_tlb),
            interrupt_entries: of(&self.interrupt_entries),
            waits: of(&self.waits),
            fault_reasons: self.fault_reasons.lock().clone(),
            look_ups,
        }
    }
}

fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

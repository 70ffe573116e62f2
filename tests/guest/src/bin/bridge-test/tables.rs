//! What the guest that this program plays has in its second-stage tables.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest::sys::PAGE_BYTES;
use iommu_core::{
    Domain, DomainId, Gpa, GuestMappings, IovaRange, Mapping, Permissions, SecondStage, TableFormat, Visit,
};

/// The only domain.
pub(crate) const DOMAIN: DomainId = DomainId(7);

/// It, with its table.
pub(crate) fn domain() -> Domain {
    let format = TableFormat::VtdSecondStage { accessed_dirty: false };
    Domain::SecondStage { id: DOMAIN, table: SecondStage { root: Gpa(0), input_bits: 48, format } }
}

/// Pages by the device's addresses: where each leads.
#[derive(Default)]
pub(crate) struct Tables(Mutex<BTreeMap<u64, u64>>);

impl Tables {
    fn pages(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn map(&self, iova: u64, gpa: u64) {
        self.pages().insert(iova, gpa);
    }

    pub(crate) fn unmap(&self, iova: u64) {
        self.pages().remove(&iova);
    }
}

impl GuestMappings for Tables {
    fn visit(
        &self,
        _: &Domain,
        range: &IovaRange,
        visit: &mut dyn FnMut(&Mapping) -> ControlFlow<()>,
    ) -> Visit {
        let first = range.start() / PAGE_BYTES * PAGE_BYTES;
        for (iova, gpa) in self.pages().range(first..=range.last()) {
            let mapping = Mapping {
                range: IovaRange::aligned(*iova, 12),
                base: Gpa(*gpa),
                permissions: Permissions::READ_WRITE,
            };
            if visit(&mapping).is_break() {
                return Visit::Stopped;
            }
        }
        Visit::Complete
    }
}

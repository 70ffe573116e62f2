//! A machine with two assigned functions behind one host, and a driver that has caching mode.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu_core::testkit::{HostCall, NESTING, RecordingHost};
use iommu_core::{Domain, DomainId, FirstStage, Gpa, Pasid, SourceId, TableFormat};
use iommu_vtd::Profile;
use iommu_vtd::testkit::Tables;

use crate::driver::{Driver, ENDPOINT, Machine, Memory};

pub(crate) const OTHER: SourceId = SourceId::from_bdf(0, 4, 0);
/// Domain-id of first-stage entries.
pub(crate) const DID: u16 = 7;

pub(crate) fn assigned() -> Profile {
    let full = Profile { interrupt_remapping: false, ..Profile::full(46) }.settled();
    full.behind(&NESTING).0
}

pub(crate) struct World {
    pub(crate) machine: Machine,
    pub(crate) host: Arc<RecordingHost>,
    /// How often a function was to be stopped.
    pub(crate) stops: Arc<AtomicUsize>,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self::empty(&assigned());
        world.attach(ENDPOINT);
        world.attach(OTHER);
        world
    }

    /// Without functions.
    pub(crate) fn empty(profile: &Profile) -> Self {
        let host = RecordingHost::new(NESTING);
        Self { machine: Machine::with(profile), host, stops: Arc::default() }
    }

    pub(crate) fn attach(&self, source: SourceId) {
        let stops = self.stops.clone();
        let stop = move |_: &_| {
            stops.fetch_add(1, Ordering::Relaxed);
        };
        self.machine.unit.attach_host(source, self.host.clone(), stop).unwrap();
    }

    /// A driver that has booted with empty tables. What the host was told so far is forgotten.
    pub(crate) fn boot(&self) -> (Driver<'_>, Tables<'_, Memory>) {
        let booted = Driver::booted(&self.machine);
        self.host.take_calls();
        booted
    }

    /// The bindings that the host was asked for since the last time, in order.
    pub(crate) fn sets(&self) -> Vec<(SourceId, u32, Domain)> {
        let set = |call| match call {
            HostCall::Set(source, pasid, domain) => {
                assert_ne!(pasid, Some(Pasid::ZERO), "PASID 0 is no PASID");
                Some((source, pasid.map_or(0, Pasid::get), domain))
            }
            _ => None,
        };
        self.host.take_calls().into_iter().filter_map(set).collect()
    }

    pub(crate) fn domain(&self, source: SourceId, pasid: u32) -> Domain {
        self.host.domain(source, Pasid::new(pasid).filter(|_| pasid != 0))
    }
}

/// A first-stage domain of four levels.
pub(crate) fn first(did: u16, root: Gpa) -> Domain {
    let format =
        TableFormat::X86FirstStage { supervisor: false, write_protect: false, extended_accessed: false };
    Domain::FirstStage { id: DomainId(did.into()), table: FirstStage { root, input_bits: 48, format } }
}

pub(crate) fn pass(did: u32) -> Domain {
    Domain::PassThrough { id: DomainId(did) }
}

//! A guest with second-stage domains, and hosts that keep copies of them.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex};

use iommu_core::{
    Domain, DomainId, Gpa, GuestMappings, HostError, HostIommu, IovaRange, Mapping, Permissions, SecondStage,
    TableFormat, Visit,
};
use rustix::io::Errno;
use vfio_bridge::testkit::FakeKernel;
use vfio_bridge::{ContainerIommu, ShadowIommu};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::source;

/// A second-stage domain whose table is at `root`.
pub(crate) fn second(id: u32, root: u64) -> Domain {
    let format = TableFormat::VtdSecondStage { accessed_dirty: false };
    let table = SecondStage { root: Gpa(root), input_bits: 48, format };
    Domain::SecondStage { id: DomainId(id), table }
}

/// The blocks of all domains, by domain and first address: logarithm of the size, output, permissions.
type Blocks = BTreeMap<(u32, u64), (u32, u64, Permissions)>;

/// What a guest has in its tables at this moment.
#[derive(Default)]
pub(crate) struct GuestTables(Mutex<Blocks>);

impl GuestTables {
    /// Maps a block of `2^bits` bytes in place of all that overlaps it.
    pub(crate) fn map(&self, domain: u32, iova: u64, bits: u32, (base, permissions): (u64, Permissions)) {
        self.unmap(domain, &IovaRange::aligned(iova, bits));
        self.put(domain, iova, bits, (base, permissions));
    }

    /// Maps a block where nothing is.
    pub(crate) fn put(&self, domain: u32, iova: u64, bits: u32, (base, permissions): (u64, Permissions)) {
        self.0.lock().unwrap().insert((domain, iova), (bits, base, permissions));
    }

    /// Takes back every block that overlaps `range`.
    pub(crate) fn unmap(&self, domain: u32, range: &IovaRange) {
        let overlaps = |iova, bits| IovaRange::aligned(iova, bits).overlaps(range);
        self.0.lock().unwrap().retain(|(of, iova), (bits, ..)| *of != domain || !overlaps(*iova, *bits));
    }

    /// The blocks that overlap `range`.
    pub(crate) fn blocks(&self, domain: u32, range: &IovaRange) -> Vec<IovaRange> {
        let blocks = self.0.lock().unwrap();
        let of_domain = blocks.iter().filter(|((of, _), _)| *of == domain);
        let all = of_domain.map(|((_, iova), (bits, ..))| IovaRange::aligned(*iova, *bits));
        all.filter(|block| block.overlaps(range)).collect()
    }

    /// Where an address leads.
    pub(crate) fn lookup(&self, domain: u32, iova: u64) -> Option<(u64, Permissions)> {
        let blocks = self.0.lock().unwrap();
        let ((_, start), (bits, base, permissions)) =
            blocks.range((domain, 0)..=(domain, iova)).next_back()?;
        IovaRange::aligned(*start, *bits).contains(iova).then(|| (base + (iova - start), *permissions))
    }
}

impl GuestMappings for GuestTables {
    fn visit(
        &self,
        domain: &Domain,
        range: &IovaRange,
        visit: &mut dyn FnMut(&Mapping) -> ControlFlow<()>,
    ) -> Visit {
        let Domain::SecondStage { id: DomainId(domain), .. } = domain else { return Visit::Unsupported };
        let blocks = self.0.lock().unwrap();
        let all = (Bound::Included((*domain, 0)), Bound::Included((*domain, range.last())));
        for ((_, iova), (bits, base, permissions)) in blocks.range(all) {
            let mapping = Mapping {
                range: IovaRange::aligned(*iova, *bits),
                base: Gpa(*base),
                permissions: *permissions,
            };
            if mapping.range.overlaps(range) && visit(&mapping).is_break() {
                return Visit::Stopped;
            }
        }
        Visit::Complete
    }
}

/// 4 MiB from 0 on and 2 MiB at 4 GiB.
pub(crate) fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20), (GuestAddress(1 << 32), 2 << 20)]).unwrap()
}

/// Where guest memory lies in this process.
pub(crate) fn host_address(ram: &GuestMemoryMmap, gpa: u64) -> Option<u64> {
    ram.get_host_address(GuestAddress(gpa)).ok().map(|address| address.addr() as u64)
}

/// Which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Iommufd,
    /// An iommufd that copies nothing.
    IommufdMaps,
    Container,
    /// Containers that are not emptied at once.
    ContainerRanges,
}

pub(crate) const KINDS: [Kind; 4] =
    [Kind::Iommufd, Kind::IommufdMaps, Kind::Container, Kind::ContainerRanges];

impl Kind {
    pub(crate) fn has_containers(self) -> bool {
        matches!(self, Self::Container | Self::ContainerRanges)
    }
}

/// One of the hosts.
pub(crate) enum Host {
    Iommufd(ShadowIommu),
    Container(ContainerIommu),
}

impl Host {
    pub(crate) fn new(kind: Kind, kernel: &FakeKernel, guest: Arc<GuestTables>) -> Result<Self, HostError> {
        if kind == Kind::IommufdMaps {
            kernel.without_copy();
        }
        if kind == Kind::ContainerRanges {
            kernel.without_unmap_all();
        }
        Ok(if kind.has_containers() {
            let host = ContainerIommu::default();
            host.set_mappings(guest);
            Self::Container(host)
        } else {
            let host = ShadowIommu::new(Arc::new(kernel.clone()))?;
            host.set_mappings(guest);
            Self::Iommufd(host)
        })
    }

    pub(crate) fn host(&self) -> &dyn HostIommu {
        match self {
            Self::Iommufd(host) => host,
            Self::Container(host) => host,
        }
    }

    /// Takes in a device; the number that the kernel knows it by, if it has it.
    pub(crate) fn add_device(&self, kernel: &FakeKernel, name: usize) -> (usize, Result<(), HostError>) {
        match self {
            Self::Iommufd(host) => {
                let file = kernel.add_device(0);
                (file.number(), host.add_device(source(name), Box::new(file)).map(drop))
            }
            Self::Container(host) => {
                let file = kernel.open_container();
                (file.number(), host.add_device(source(name), Box::new(file)).map(drop))
            }
        }
    }

    pub(crate) fn add_memory(&self, ram: &GuestMemoryMmap) -> Result<(), HostError> {
        match self {
            Self::Iommufd(host) => host.add_memory(ram),
            Self::Container(host) => host.add_memory(ram),
        }
    }

    pub(crate) fn remove_device(&self, name: usize) {
        match self {
            Self::Iommufd(host) => host.remove_device(source(name)),
            Self::Container(host) => host.remove_device(source(name)),
        }
    }

    /// Where an address of a device leads, by the number of [`Self::add_device`].
    pub(crate) fn lookup(&self, kernel: &FakeKernel, number: usize, iova: u64) -> Option<(u64, Permissions)> {
        match self {
            Self::Iommufd(_) => kernel.lookup(number, iova),
            Self::Container(_) => kernel.contained(number, iova),
        }
    }
}

pub(crate) fn errno(error: &HostError) -> Option<Errno> {
    Errno::from_io_error(&error.source)
}

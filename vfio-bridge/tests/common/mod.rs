//! A host with devices, and what is expected of it.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

pub(crate) mod copies;
pub(crate) mod shadow;

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu_core::testkit::ListTranslator;
use iommu_core::{
    Domain, DomainId, FirstStage, Gpa, GroupIndex, HostError, HostIommu, PageRequestOutcome, PageResponse,
    Pasid, ResponseCode, SourceId, TableFormat, VendorData,
};
use vfio_bridge::NestedIommu;
use vfio_bridge::sys::uapi::VtdS1;
use vfio_bridge::testkit::{FakeKernel, Hardware};
use vm_memory::{GuestAddress, GuestMemoryMmap};

pub(crate) type Pair = (usize, Option<u32>);

pub(crate) fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000), (GuestAddress(1 << 32), 0x10000)]).unwrap()
}

pub(crate) fn source(device: usize) -> SourceId {
    SourceId::from_bdf(0, u8::try_from(device).unwrap() + 1, 0)
}

pub(crate) fn format() -> TableFormat {
    TableFormat::X86FirstStage { supervisor: false, write_protect: false, extended_accessed: false }
}

/// A first-stage table of domain `id` at `root`, 48 bits wide.
pub(crate) fn first(id: u32, root: u64) -> Domain {
    Domain::FirstStage {
        id: DomainId(id),
        table: FirstStage { root: Gpa(root), input_bits: 48, format: format() },
    }
}

pub(crate) const PASS: Domain = Domain::PassThrough { id: DomainId(9) };

/// What the hardware does when a domain is bound.
pub(crate) fn expected(domain: &Domain) -> Hardware {
    match domain {
        Domain::PassThrough { .. } => Hardware::Parent,
        Domain::FirstStage { table, .. } => Hardware::Table(VtdS1 {
            flags: 0,
            pgtbl_addr: table.root.0,
            addr_width: table.input_bits,
            reserved: 0,
        }),
        _ => Hardware::Blocked,
    }
}

pub(crate) fn pasid(number: Option<u32>) -> Option<Pasid> {
    number.map(Pasid::truncate)
}

/// A host with devices behind one IOMMU, and a guest that answers no page request by itself.
pub(crate) struct Bench {
    pub(crate) kernel: FakeKernel,
    pub(crate) host: NestedIommu,
    pub(crate) guest: Arc<ListTranslator>,
}

pub(crate) fn guest() -> Arc<ListTranslator> {
    let guest = ListTranslator::new();
    guest.on_page_request(|_, _| PageRequestOutcome::Queued);
    guest
}

impl Bench {
    pub(crate) fn new(devices: usize) -> Self {
        let kernel = FakeKernel::new();
        let host = NestedIommu::new(Arc::new(kernel.clone())).unwrap();
        for device in 0..devices {
            host.add_device(source(device), Box::new(kernel.add_device(0))).unwrap();
        }
        host.add_memory(&memory()).unwrap();
        Self { kernel, host, guest: guest() }
    }

    pub(crate) fn set(&self, pair: Pair, domain: &Domain) -> Result<(), HostError> {
        self.host.set_domain(source(pair.0), pasid(pair.1), domain)
    }

    pub(crate) fn hardware(&self, pair: Pair) -> Hardware {
        self.kernel.hardware(pair.0, pair.1)
    }

    pub(crate) fn deliver(&self) -> usize {
        self.host.deliver_page_requests(&*self.guest).unwrap()
    }

    pub(crate) fn respond(&self, pair: Pair, group: u16, code: ResponseCode) -> Result<(), HostError> {
        self.host.respond(&response(pair, group, code))
    }

    /// Ends the machine; every object must be gone and every group answered once.
    pub(crate) fn finish(self) {
        let Self { kernel, host, .. } = self;
        drop(host);
        check_nothing_left(&kernel);
    }
}

pub(crate) fn response(pair: Pair, group: u16, code: ResponseCode) -> PageResponse {
    PageResponse {
        source: source(pair.0),
        pasid: pasid(pair.1),
        group: GroupIndex::truncate(group),
        code,
        vendor: VendorData::NONE,
    }
}

pub(crate) fn check_nothing_left(kernel: &FakeKernel) {
    let audit = kernel.audit();
    assert_eq!(audit.objects, BTreeMap::new(), "objects left");
    for (number, answers) in audit.groups.iter().enumerate() {
        assert_eq!(answers.len(), 1, "answers of group {number}: {answers:?}");
    }
    assert_eq!(audit.lost_fault_references, 0);
}

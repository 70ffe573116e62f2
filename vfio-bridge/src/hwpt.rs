//! Hardware page tables: the parent that holds guest memory, and one nested table per guest (domain, PASID entry).

use std::sync::Arc;

use iommu_core::{DomainId, FirstStage, HostError, Pasid, TableFormat};
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use crate::caps::Offer;
use crate::fault_queue::FaultQueue;
use crate::ioas::Ioas;
use crate::kernel::{HwptAlloc, ObjectId, Payload};
use crate::object::{Kind, Object, refused};
use crate::sys::uapi::{HWPT_DATA_VTD_S1, VtdS1};

/// A page table of the kernel's own that leads guest-physical addresses to memory: what a device translates
/// through while the guest lets it pass, and what nested tables stand on.
pub(crate) struct NestParent {
    object: Object,
    pasid: bool,
    _ioas: Arc<Ioas>,
}

impl NestParent {
    /// For the IOMMU before `device`. Linux before 6.15 knows no PASID flag: then without, and without PASIDs.
    pub(crate) fn new(ioas: &Arc<Ioas>, device: ObjectId, pasid: bool) -> Result<Self, Errno> {
        let kernel = ioas.objects().kernel();
        let request = |pasid| HwptAlloc {
            device,
            parent: ioas.id(),
            nest_parent: true,
            pasid,
            fault_queue: None,
            data: None,
        };
        let (made, pasid) = match kernel.hwpt_alloc(&request(pasid)) {
            Err(Errno::OPNOTSUPP) if pasid => (kernel.hwpt_alloc(&request(false)), false),
            made => (made, pasid),
        };
        Ok(Self { object: ioas.objects().own(Kind::NestParent, made?), pasid, _ioas: ioas.clone() })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.object.id()
    }

    /// May be used beside attachments by PASID.
    pub(crate) fn pasid(&self) -> bool {
        self.pasid
    }
}

/// The names that a nested table is shared and found by. Two devices whose guest entries agree in all of it use
/// one table, so that one system call flushes both.
///
/// Ordered by domain and PASID first: what an invalidation names is one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TableKey {
    /// The guest's domain.
    pub(crate) domain: DomainId,
    /// The guest's PASID; 0 stands for requests without.
    pub(crate) pasid: Pasid,
    /// The table as the host takes it.
    pub(crate) table: VtdS1,
    /// Faults are recoverable.
    pub(crate) faults: bool,
    /// Number of the parent.
    pub(crate) parent: usize,
}

/// A guest's first-stage table as the host takes it.
///
/// What the host checks late or never is checked here: on some kernels a refusal at the time of attaching leaves
/// the device without any translation, and nothing at all looks at the root's alignment.
///
/// # Errors
/// `EOPNOTSUPP`: the host has no such table; `EINVAL`: it would be malformed.
pub(crate) fn encode(table: &FirstStage, offer: &Offer) -> Result<VtdS1, Errno> {
    let TableFormat::X86FirstStage { supervisor, write_protect, extended_accessed } = table.format else {
        return Err(Errno::OPNOTSUPP);
    };
    // Write protection means something to supervisor requests only.
    let write_protect = write_protect && supervisor;
    let missing = table.input_bits > offer.capabilities.first_stage_bits
        || supervisor && !offer.capabilities.supervisor
        || write_protect && !offer.write_protect
        || extended_accessed && !offer.extended_accessed;
    if missing {
        return Err(Errno::OPNOTSUPP);
    }
    if !matches!(table.input_bits, 48 | 57) || table.root.0 & 0xfff != 0 {
        return Err(Errno::INVAL);
    }
    let flags = [(supervisor, VtdS1::SRE), (extended_accessed, VtdS1::EAFE), (write_protect, VtdS1::WPE)];
    Ok(VtdS1 {
        flags: flags.iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag),
        pgtbl_addr: table.root.0,
        addr_width: table.input_bits,
        reserved: 0,
    })
}

/// A nested table. Fields are dropped in this order: the object before what it stands on.
pub(crate) struct Nested {
    object: Object,
    _faults: Option<Arc<FaultQueue>>,
    _parent: Arc<NestParent>,
}

impl Nested {
    pub(crate) fn new(
        parent: &Arc<NestParent>,
        device: ObjectId,
        table: &VtdS1,
        faults: Option<Arc<FaultQueue>>,
    ) -> Result<Self, HostError> {
        let made = parent.object.kernel().hwpt_alloc(&HwptAlloc {
            device,
            parent: parent.id(),
            nest_parent: false,
            pasid: parent.pasid(),
            fault_queue: faults.as_ref().map(|queue| queue.id()),
            data: Some(Payload { kind: HWPT_DATA_VTD_S1, bytes: table.as_bytes() }),
        });
        let id = made.map_err(|errno| refused("nest a page table", &parent.object, errno))?;
        let object = parent.object.owner().own(Kind::Nested, id);
        Ok(Self { object, _faults: faults, _parent: parent.clone() })
    }

    pub(crate) fn object(&self) -> &Object {
        &self.object
    }
}

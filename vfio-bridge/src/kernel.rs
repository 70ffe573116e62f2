//! What the rest of the crate needs of the host's kernel.
//!
//! Three kinds of files: `/dev/iommu` ([`Kernel`]), a fault queue ([`FaultFile`]) and a VFIO device
//! ([`DeviceFile`]). [`crate::sys`] talks to the real ones; the testkit has some that live in memory.
//! Arguments are decoded as far as iommufd itself looks at them; what only the driver of one vendor's IOMMU reads
//! goes through as bytes, so that other vendors' and mock devices fit.

use std::fmt;
use std::os::fd::AsFd;

use iommu_core::{IovaRange, Permissions};
use rustix::io::Errno;

use crate::memory::{HostRange, SharedMemory};

/// A kernel's answer.
pub type Result<T> = std::result::Result<T, Errno>;

/// The number of an iommufd object. All kinds share one number space; 0 is never valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub u32);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// `/dev/iommu`.
///
/// Objects are destroyed by name; one that is still referenced by another, by an attachment or by an open file
/// answers `EBUSY`.
pub trait Kernel: Send + Sync {
    /// Destroys an object.
    ///
    /// # Errors
    /// `EBUSY` while something refers to it, `ENOENT` if there is none.
    fn destroy(&self, object: ObjectId) -> Result<()>;

    /// Makes an empty address space.
    ///
    /// # Errors
    /// As the host says.
    fn ioas_alloc(&self) -> Result<ObjectId>;

    /// Maps memory at exactly `iova`. It is pinned at once if a page table is fed by the address space, and when the
    /// first one is made otherwise.
    ///
    /// # Errors
    /// `EEXIST` on overlap, `EINVAL` on a reserved window, without permissions, and read-only below a nest parent;
    /// `ENOMEM` also if the limit of locked memory is hit.
    fn ioas_map(&self, ioas: ObjectId, iova: u64, memory: &HostRange, permissions: Permissions)
    -> Result<()>;

    /// Maps a device's memory at exactly `iova`. When the device is reset or its memory is switched off, nothing is
    /// found there any more, for good; the range is still to be unmapped then, and can be mapped again once the memory
    /// is on.
    ///
    /// # Errors
    /// As [`Self::ioas_map`]; `ENODEV` while the device's memory is off, `EOPNOTSUPP` for what is not one range of a
    /// PCI device's memory, `ENOTTY` before Linux 6.13 and others before 6.19.
    fn ioas_map_file(
        &self,
        ioas: ObjectId,
        iova: u64,
        memory: &SharedMemory,
        permissions: Permissions,
    ) -> Result<()>;

    /// Maps what another address space of the same iommufd has mapped. Its pages are pinned and charged once.
    ///
    /// # Errors
    /// As [`Self::ioas_map`]; `ENOENT` where the other has nothing, `EPERM` for more than it allows.
    fn ioas_copy(&self, copy: &IoasCopy) -> Result<()>;

    /// What may be mapped in an address space, as the devices that use it at this moment have it.
    ///
    /// # Errors
    /// As the host says.
    fn ioas_iova_ranges(&self, ioas: ObjectId) -> Result<Vec<IovaRange>>;

    /// Removes a mapping. `range` must be exactly that of one [`Self::ioas_map`], or of several adjacent ones.
    ///
    /// # Errors
    /// `ENOENT` if nothing is mapped or a mapping would be cut; mappings before the cut are gone then.
    fn ioas_unmap(&self, ioas: ObjectId, range: IovaRange) -> Result<()>;

    /// What the IOMMU before `device` can do.
    ///
    /// # Errors
    /// `ENOENT` if there is no such device.
    fn hw_info(&self, device: ObjectId) -> Result<HwInfo>;

    /// Makes a hardware page table.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the host lacks a flag or the format, `ENOENT` and `EINVAL` on bad objects.
    fn hwpt_alloc(&self, request: &HwptAlloc<'_>) -> Result<ObjectId>;

    /// Drops cached translations of a nested page table, in order. On return the hardware has completed all.
    ///
    /// # Errors
    /// [`Partial`]: entries before `done` are completed, the one at `done` is refused.
    fn hwpt_invalidate(&self, hwpt: ObjectId, entries: &Entries<'_>) -> std::result::Result<(), Partial>;

    /// Makes a fault queue and opens it.
    ///
    /// # Errors
    /// As the host says; `ENOTTY` before Linux 6.11.
    fn fault_queue_alloc(&self) -> Result<(ObjectId, Box<dyn FaultFile>)>;
}

/// The open file of a fault queue. Becomes readable for `poll` when a group is queued, and stays so until all are
/// read. Must be closed before the object can be destroyed.
pub trait FaultFile: AsFd + Send + Sync {
    /// Reads whole groups; never blocks. 0: there are none.
    ///
    /// # Errors
    /// `EINVAL` if `buffer` is too small for the first group.
    fn read(&self, buffer: &mut [u8]) -> Result<usize>;

    /// Writes responses and says how many bytes were taken.
    ///
    /// # Errors
    /// `EINVAL` if the first one's cookie is not (or no longer) waiting.
    fn write(&self, responses: &[u8]) -> Result<usize>;
}

/// The open file of a VFIO device. Closing it detaches the device from everything.
pub trait DeviceFile: Send + Sync {
    /// Binds the device to the iommufd; before that, everything else fails with `EINVAL`.
    ///
    /// # Errors
    /// `EPERM` without isolated interrupts or ownership of the group, `EBUSY` if it is in use, and more.
    fn bind(&self) -> Result<ObjectId>;

    /// Attaches requests with `pasid`, or those without, to a page table in place of what they were attached to.
    ///
    /// # Errors
    /// As the host says. The hardware then uses either what was attached before or nothing, while the kernel's
    /// own records still name what was before: only detaching makes the two agree again.
    fn attach(&self, pasid: Option<u32>, table: ObjectId) -> Result<()>;

    /// Detaches. What is not attached is detached already. On return nothing is in flight through the table, and
    /// all page request groups of the attachment are answered by the kernel.
    ///
    /// # Errors
    /// As the host says; none are known on a bound device.
    fn detach(&self, pasid: Option<u32>) -> Result<()>;

    /// Reads configuration space.
    ///
    /// # Errors
    /// As the host says.
    fn config_read(&self, offset: u16, buffer: &mut [u8]) -> Result<()>;
}

/// The open file of a VFIO container (type 1, version 2) that holds the group of one device. There is one address
/// space, and the device uses it at all times. Closing the file empties it.
pub trait ContainerFile: Send + Sync {
    /// Maps memory at exactly `iova`, and pins it.
    ///
    /// # Errors
    /// `EEXIST` on overlap, `EINVAL` on a reserved window, `ENOMEM` if the limit of locked memory is hit, `ENOSPC` if
    /// that of mappings is.
    fn map(&self, iova: u64, memory: &HostRange, permissions: Permissions) -> Result<()>;

    /// Removes all mappings in `range`; [`IovaRange::ALL`] empties the address space. Nothing is mapped there: done.
    /// On return nothing is in flight through them.
    ///
    /// # Errors
    /// `EINVAL` if a mapping would be cut, and for [`IovaRange::ALL`] by a kernel before 5.12: then none is removed.
    fn unmap(&self, range: IovaRange) -> Result<()>;

    /// What may be mapped.
    ///
    /// # Errors
    /// As the host says.
    fn iova_ranges(&self) -> Result<Vec<IovaRange>>;
}

/// Mappings to be taken over from another address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoasCopy {
    /// Where they are.
    pub from: ObjectId,
    /// At which input addresses.
    pub range: IovaRange,
    /// Where they are to be.
    pub to: ObjectId,
    /// At which input address the first.
    pub iova: u64,
    /// What is to be allowed.
    pub permissions: Permissions,
}

/// What `GET_HW_INFO` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HwInfo {
    /// The vendor's registers.
    pub vendor: VendorInfo,
    /// Width of PASIDs that the device and its IOMMU share; 0 without. Not 0 is no proof that they are on.
    pub max_pasid_log2: u8,
    /// Neutral capabilities, a mask of [`capability`].
    pub capabilities: u64,
}

/// The vendor's part of [`HwInfo`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VendorInfo {
    /// The host says nothing.
    #[default]
    None,
    /// Intel VT-d: registers of the unit, as the hardware has them.
    Vtd {
        /// Bit 0: no read-only mappings below a nested table.
        flags: u32,
        /// Capability register.
        cap: u64,
        /// Extended capability register.
        ecap: u64,
    },
    /// Another vendor's.
    Other(u32),
}

/// Bits of [`HwInfo::capabilities`].
pub mod capability {
    /// Page tables can track what is written.
    pub const DIRTY_TRACKING: u64 = 1;
    /// The device may send execute requests.
    pub const PASID_EXEC: u64 = 1 << 1;
    /// The device may send privileged requests.
    pub const PASID_PRIV: u64 = 1 << 2;
    /// ATS cannot be used; if clear, it perhaps can.
    pub const ATS_NOT_SUPPORTED: u64 = 1 << 3;
}

/// A page table to be made.
#[derive(Clone, Copy, Debug)]
pub struct HwptAlloc<'a> {
    /// For the IOMMU before this device.
    pub device: ObjectId,
    /// Fed by an address space, or nested on another page table.
    pub parent: ObjectId,
    /// May be the parent of nested tables.
    pub nest_parent: bool,
    /// May be attached by PASID, or to a device something else of which is.
    pub pasid: bool,
    /// Where recoverable faults go.
    pub fault_queue: Option<ObjectId>,
    /// The vendor's description of a guest's table.
    pub data: Option<Payload<'a>>,
}

/// A vendor's structure.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// Type number.
    pub kind: u32,
    /// The structure.
    pub bytes: &'a [u8],
}

/// An array of a vendor's structures.
#[derive(Clone, Copy, Debug)]
pub struct Entries<'a> {
    /// Type number.
    pub kind: u32,
    /// Length of one, in bytes.
    pub entry_len: usize,
    /// All, one after another.
    pub bytes: &'a [u8],
}

/// An invalidation was not carried out to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Number of entries completed.
    pub done: usize,
    /// Why the next was not.
    pub errno: Errno,
}

//! `/dev/iommu`.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;

use iommu_core::{HostError, IovaRange, Permissions};
use iommufd_bindings::iommufd as c;
use iommufd_ioctls::{IommuFd, IommufdError};
use rustix::io::Errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_io_nr;

use crate::kernel::{
    Entries, FaultFile, HwInfo, HwptAlloc, IoasCopy, Kernel, ObjectId, Partial, Result, VendorInfo,
};
use crate::memory::{HostRange, SharedMemory};
use crate::object::{OPEN_IOMMUFD, refused};
use crate::sys::done;

ioctl_io_nr!(IOMMU_IOAS_COPY, c::IOMMUFD_TYPE as u32, c::IOMMUFD_CMD_IOAS_COPY);
ioctl_io_nr!(IOMMU_IOAS_IOVA_RANGES, c::IOMMUFD_TYPE as u32, c::IOMMUFD_CMD_IOAS_IOVA_RANGES);
ioctl_io_nr!(IOMMU_FAULT_QUEUE_ALLOC, c::IOMMUFD_TYPE as u32, c::IOMMUFD_CMD_FAULT_QUEUE_ALLOC);

/// An open `/dev/iommu`. Clones share it.
#[derive(Clone)]
pub struct Iommufd(Arc<IommuFd>);

impl Iommufd {
    /// Opens the device node.
    ///
    /// # Errors
    /// `ENOENT` without the driver, `EACCES` without the right to.
    pub fn open() -> std::result::Result<Self, HostError> {
        let opened = IommuFd::new().map_err(|e| refused(OPEN_IOMMUFD, "/dev/iommu", errno_of(&e)))?;
        Ok(Self(Arc::new(opened)))
    }

    /// Takes over a file that somebody else opened.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(Arc::new(IommuFd::new_from_fd(File::from(fd))))
    }

    /// For the ioctl that binds a device to this.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The size of an argument, as its first word wants it.
const fn size<T>() -> u32 {
    assert!(size_of::<T>() < 4096, "arguments of ioctls are small");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let size = size_of::<T>() as u32;
    size
}

/// Every error of the ioctl crate has the kernel's, or the one of opening the file, as its source.
fn errno_of(error: &IommufdError) -> Errno {
    use std::error::Error as _;
    let source = error.source();
    let of_ioctl = source.and_then(|s| s.downcast_ref::<vmm_sys_util::errno::Error>()).map(|e| e.errno());
    let of_open = || source?.downcast_ref::<std::io::Error>()?.raw_os_error();
    Errno::from_raw_os_error(of_ioctl.or_else(of_open).unwrap_or_else(|| Errno::IO.raw_os_error()))
}

/// Ranges of usable addresses that are asked for at first: there are as many as reserved windows, and one more.
const RANGES: usize = 64;
/// And at most; no host has so many windows.
const RANGES_LIMIT: usize = 1 << 12;

fn map_flags(permissions: Permissions) -> u32 {
    let flags = [
        (permissions.read, c::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE),
        (permissions.write, c::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE),
    ];
    let fixed = c::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
    flags.iter().filter(|(wanted, _)| *wanted).fold(fixed, |all, (_, flag)| all | flag)
}

impl Kernel for Iommufd {
    fn destroy(&self, object: ObjectId) -> Result<()> {
        self.0.destroy_iommu_object(object.0).map_err(|e| errno_of(&e))
    }

    fn ioas_alloc(&self) -> Result<ObjectId> {
        let mut argument = c::iommu_ioas_alloc { size: size::<c::iommu_ioas_alloc>(), ..Default::default() };
        self.0.alloc_iommu_ioas(&mut argument).map_err(|e| errno_of(&e))?;
        Ok(ObjectId(argument.out_ioas_id))
    }

    fn ioas_map(
        &self,
        ioas: ObjectId,
        iova: u64,
        memory: &HostRange,
        permissions: Permissions,
    ) -> Result<()> {
        let argument = c::iommu_ioas_map {
            size: size::<c::iommu_ioas_map>(),
            flags: map_flags(permissions),
            ioas_id: ioas.0,
            user_va: memory.host_address(),
            length: memory.len_bytes(),
            iova,
            ..Default::default()
        };
        self.0.map_iommu_ioas(&argument).map_err(|e| errno_of(&e))
    }

    fn ioas_map_file(
        &self,
        ioas: ObjectId,
        iova: u64,
        memory: &SharedMemory,
        permissions: Permissions,
    ) -> Result<()> {
        let argument = c::iommu_ioas_map_file {
            size: size::<c::iommu_ioas_map_file>(),
            flags: map_flags(permissions),
            ioas_id: ioas.0,
            fd: memory.as_fd().as_raw_fd(),
            start: 0,
            length: memory.len_bytes(),
            iova,
        };
        self.0.map_iommu_ioas_file(&argument).map_err(|e| errno_of(&e))
    }

    fn ioas_unmap(&self, ioas: ObjectId, range: IovaRange) -> Result<()> {
        let mut argument = c::iommu_ioas_unmap {
            size: size::<c::iommu_ioas_unmap>(),
            ioas_id: ioas.0,
            iova: range.start(),
            length: (range.last() - range.start()).saturating_add(1),
        };
        self.0.unmap_iommu_ioas(&mut argument).map_err(|e| errno_of(&e))
    }

    fn ioas_copy(&self, copy: &IoasCopy) -> Result<()> {
        let mut argument = c::iommu_ioas_copy {
            size: size::<c::iommu_ioas_copy>(),
            flags: map_flags(copy.permissions),
            dst_ioas_id: copy.to.0,
            src_ioas_id: copy.from.0,
            length: (copy.range.last() - copy.range.start()).saturating_add(1),
            dst_iova: copy.iova,
            src_iova: copy.range.start(),
        };
        // SAFETY: the argument is of the type that this ioctl reads and writes.
        done(unsafe { ioctl_with_mut_ref(&*self.0, IOMMU_IOAS_COPY(), &mut argument) })
    }

    fn ioas_iova_ranges(&self, ioas: ObjectId) -> Result<Vec<IovaRange>> {
        let mut ranges = vec![c::iommu_iova_range { start: 0, last: 0 }; RANGES];
        loop {
            let mut argument = c::iommu_ioas_iova_ranges {
                size: size::<c::iommu_ioas_iova_ranges>(),
                ioas_id: ioas.0,
                num_iovas: u32::try_from(ranges.len()).map_err(|_| Errno::MSGSIZE)?,
                allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
                ..Default::default()
            };
            // SAFETY: the argument is of the type that this ioctl reads and writes, and leads to as many ranges as it
            // says.
            let asked =
                done(unsafe { ioctl_with_mut_ref(&*self.0, IOMMU_IOAS_IOVA_RANGES(), &mut argument) });
            let number = usize::try_from(argument.num_iovas).unwrap_or(0);
            match asked {
                // It says how many there are. Each time there must be more, so this ends.
                Err(Errno::MSGSIZE) if number > ranges.len() && number <= RANGES_LIMIT => {
                    ranges.resize(number, c::iommu_iova_range { start: 0, last: 0 });
                }
                Err(errno) => return Err(errno),
                Ok(()) => {
                    ranges.truncate(number);
                    return Ok(ranges
                        .iter()
                        .filter_map(|range| IovaRange::new(range.start, range.last))
                        .collect());
                }
            }
        }
    }

    fn hw_info(&self, device: ObjectId) -> Result<HwInfo> {
        let mut vtd = c::iommu_hw_info_vtd::default();
        let mut argument = c::iommu_hw_info {
            size: size::<c::iommu_hw_info>(),
            dev_id: device.0,
            data_len: size::<c::iommu_hw_info_vtd>(),
            data_uptr: (&raw mut vtd).expose_provenance() as u64,
            ..Default::default()
        };
        self.0.get_hw_info(&mut argument).map_err(|e| errno_of(&e))?;
        // SAFETY: both members of the union are the same integer.
        let kind = unsafe { argument.__bindgen_anon_1.out_data_type };
        Ok(HwInfo {
            vendor: match kind {
                c::iommu_hw_info_type_IOMMU_HW_INFO_TYPE_NONE => VendorInfo::None,
                c::iommu_hw_info_type_IOMMU_HW_INFO_TYPE_INTEL_VTD => {
                    VendorInfo::Vtd { flags: vtd.flags, cap: vtd.cap_reg, ecap: vtd.ecap_reg }
                }
                other => VendorInfo::Other(other),
            },
            max_pasid_log2: argument.out_max_pasid_log2,
            capabilities: argument.out_capabilities,
        })
    }

    fn hwpt_alloc(&self, request: &HwptAlloc<'_>) -> Result<ObjectId> {
        let flags = [
            (request.nest_parent, c::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT),
            (request.pasid, c::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID),
            (request.fault_queue.is_some(), c::iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID),
        ];
        let mut argument = c::iommu_hwpt_alloc {
            size: size::<c::iommu_hwpt_alloc>(),
            flags: flags.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, flag)| all | flag),
            dev_id: request.device.0,
            pt_id: request.parent.0,
            fault_id: request.fault_queue.map_or(0, |queue| queue.0),
            ..Default::default()
        };
        if let Some(data) = &request.data {
            argument.data_type = data.kind;
            argument.data_len = u32::try_from(data.bytes.len()).map_err(|_| Errno::INVAL)?;
            argument.data_uptr = data.bytes.as_ptr().expose_provenance() as u64;
        }
        self.0.alloc_iommu_hwpt(&mut argument).map_err(|e| errno_of(&e))?;
        Ok(ObjectId(argument.out_hwpt_id))
    }

    fn hwpt_invalidate(&self, hwpt: ObjectId, entries: &Entries<'_>) -> std::result::Result<(), Partial> {
        let number = entries.bytes.len().checked_div(entries.entry_len).unwrap_or(0);
        let refused = Partial { done: 0, errno: Errno::INVAL };
        let mut argument = c::iommu_hwpt_invalidate {
            size: size::<c::iommu_hwpt_invalidate>(),
            hwpt_id: hwpt.0,
            data_uptr: entries.bytes.as_ptr().expose_provenance() as u64,
            data_type: entries.kind,
            entry_len: u32::try_from(entries.entry_len).map_err(|_| refused)?,
            entry_num: u32::try_from(number).map_err(|_| refused)?,
            ..Default::default()
        };
        self.0.invalidate_hwpt(&mut argument).map_err(|e| {
            let done = usize::try_from(argument.entry_num).unwrap_or(0);
            // All done and yet an error: the kernel stopped before it looked at the first.
            Partial { done: if done < number { done } else { 0 }, errno: errno_of(&e) }
        })
    }

    fn fault_queue_alloc(&self) -> Result<(ObjectId, Box<dyn FaultFile>)> {
        let mut argument =
            c::iommu_fault_alloc { size: size::<c::iommu_fault_alloc>(), ..Default::default() };
        // SAFETY: the argument is of the type that this ioctl reads and writes.
        done(unsafe { ioctl_with_mut_ref(&*self.0, IOMMU_FAULT_QUEUE_ALLOC(), &mut argument) })?;
        let fd = RawFd::try_from(argument.out_fault_fd).map_err(|_| Errno::BADF)?;
        // SAFETY: the kernel just opened it for us, and nobody else knows its number.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok((ObjectId(argument.out_fault_id), Box::new(Faults(file))))
    }
}

/// The file of a fault queue.
struct Faults(File);

impl AsFd for Faults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The errno of an error of the standard library.
fn errno_of_io(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl FaultFile for Faults {
    fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        (&self.0).read(buffer).map_err(|e| errno_of_io(&e))
    }

    fn write(&self, responses: &[u8]) -> Result<usize> {
        (&self.0).write(responses).map_err(|e| errno_of_io(&e))
    }
}

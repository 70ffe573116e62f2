//! A VFIO device's character device, as far as the IOMMU is concerned.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use iommu_core::HostError;
use rustix::io::Errno;
use vfio_bindings::bindings::vfio as c;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::ioctl_io_nr;

use crate::kernel::{DeviceFile, ObjectId, Result};
use crate::object::{OPEN_DEVICE, refused};
use crate::sys::{FunctionHandle, Iommufd, done};

ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, c::VFIO_TYPE as u32, c::VFIO_BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_BIND_IOMMUFD, c::VFIO_TYPE as u32, c::VFIO_BASE + 18);
ioctl_io_nr!(VFIO_DEVICE_ATTACH_IOMMUFD_PT, c::VFIO_TYPE as u32, c::VFIO_BASE + 19);
ioctl_io_nr!(VFIO_DEVICE_DETACH_IOMMUFD_PT, c::VFIO_TYPE as u32, c::VFIO_BASE + 20);

/// The open `/dev/vfio/devices/vfioN` of a device, and the iommufd that it is for.
pub struct Cdev {
    file: Arc<File>,
    iommufd: Iommufd,
}

impl Cdev {
    /// Opens a device.
    ///
    /// # Errors
    /// `EACCES` without the right to, `EBUSY` while it is in use otherwise.
    pub fn open(path: &Path, iommufd: &Iommufd) -> std::result::Result<Self, HostError> {
        let file = File::options().read(true).write(true).open(path).map_err(|e| {
            refused(OPEN_DEVICE, path.display(), Errno::from_io_error(&e).unwrap_or(Errno::IO))
        })?;
        Ok(Self { file: Arc::new(file), iommufd: iommufd.clone() })
    }

    /// Takes over a file that somebody else opened.
    #[must_use]
    pub fn from_fd(fd: OwnedFd, iommufd: &Iommufd) -> Self {
        Self { file: Arc::new(File::from(fd)), iommufd: iommufd.clone() }
    }

    /// The function itself. The device's file is closed when this and all that come from it are gone.
    #[must_use]
    pub fn function(&self) -> FunctionHandle {
        FunctionHandle(self.file.clone())
    }

    /// Where the file shows configuration space.
    fn config_offset(&self) -> Result<u64> {
        let mut argument = c::vfio_region_info {
            argsz: REGION_INFO_BYTES,
            index: c::VFIO_PCI_CONFIG_REGION_INDEX,
            ..Default::default()
        };
        // SAFETY: the argument is of the type that this ioctl reads and writes.
        done(unsafe { ioctl_with_mut_ref(&*self.file, VFIO_DEVICE_GET_REGION_INFO(), &mut argument) })?;
        Ok(argument.offset)
    }
}

impl AsFd for Cdev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

const REGION_INFO_BYTES: u32 = 32;
const BIND_BYTES: u32 = 24;
/// Without the PASID, which kernels before 6.15 do not know.
const ATTACH_BYTES: u32 = 12;
const ATTACH_PASID_BYTES: u32 = 16;
const DETACH_BYTES: u32 = 8;
const DETACH_PASID_BYTES: u32 = 12;
const _: () = {
    assert!(size_of::<c::vfio_region_info>() == REGION_INFO_BYTES as usize);
    assert!(size_of::<c::vfio_device_bind_iommufd>() == BIND_BYTES as usize);
    assert!(size_of::<c::vfio_device_attach_iommufd_pt>() == ATTACH_PASID_BYTES as usize);
    assert!(size_of::<c::vfio_device_detach_iommufd_pt>() == DETACH_PASID_BYTES as usize);
};

impl DeviceFile for Cdev {
    fn bind(&self) -> Result<ObjectId> {
        let mut argument = c::vfio_device_bind_iommufd {
            argsz: BIND_BYTES,
            iommufd: self.iommufd.raw_fd(),
            ..Default::default()
        };
        // SAFETY: the argument is of the type that this ioctl reads and writes.
        done(unsafe { ioctl_with_mut_ref(&*self.file, VFIO_DEVICE_BIND_IOMMUFD(), &mut argument) })?;
        Ok(ObjectId(argument.out_devid))
    }

    fn attach(&self, pasid: Option<u32>, table: ObjectId) -> Result<()> {
        let mut argument = c::vfio_device_attach_iommufd_pt {
            argsz: if pasid.is_some() { ATTACH_PASID_BYTES } else { ATTACH_BYTES },
            flags: if pasid.is_some() { c::VFIO_DEVICE_ATTACH_PASID } else { 0 },
            pt_id: table.0,
            pasid: pasid.unwrap_or(0),
        };
        // SAFETY: the argument is of the type that this ioctl reads and writes.
        done(unsafe { ioctl_with_mut_ref(&*self.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT(), &mut argument) })
    }

    fn detach(&self, pasid: Option<u32>) -> Result<()> {
        let argument = c::vfio_device_detach_iommufd_pt {
            argsz: if pasid.is_some() { DETACH_PASID_BYTES } else { DETACH_BYTES },
            flags: if pasid.is_some() { c::VFIO_DEVICE_DETACH_PASID } else { 0 },
            pasid: pasid.unwrap_or(0),
        };
        // SAFETY: the argument is of the type that this ioctl reads.
        done(unsafe { ioctl_with_ref(&*self.file, VFIO_DEVICE_DETACH_IOMMUFD_PT(), &argument) })
    }

    fn config_read(&self, offset: u16, buffer: &mut [u8]) -> Result<()> {
        let start = self.config_offset()?.checked_add(u64::from(offset)).ok_or(Errno::OVERFLOW)?;
        self.file.read_exact_at(buffer, start).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    }
}

//! A VFIO device's own file (kernel header `linux/vfio.h`), one method for each ioctl.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::{Argument, Id, Iommufd, call, size};

/// Size and place of a region in the device's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Bytes.
    pub(crate) size: u64,
    /// Where it starts in the file.
    pub(crate) offset: u64,
}

#[repr(C)]
struct RegionInfo {
    size: u32,
    flags: u32,
    index: u32,
    capabilities: u32,
    length: u64,
    offset: u64,
}

#[repr(C)]
struct Bind {
    size: u32,
    flags: u32,
    iommufd: i32,
    out_device: u32,
}

#[repr(C)]
struct Attach {
    size: u32,
    flags: u32,
    table: u32,
    pasid: u32,
}

#[repr(C)]
struct Detach {
    size: u32,
    flags: u32,
    pasid: u32,
}

#[repr(C)]
struct Nothing;

// SAFETY: no pointers.
unsafe impl Argument for RegionInfo {}
// SAFETY: no pointers.
unsafe impl Argument for Bind {}
// SAFETY: no pointers.
unsafe impl Argument for Attach {}
// SAFETY: no pointers.
unsafe impl Argument for Detach {}
// SAFETY: the ioctl has no argument.
unsafe impl Argument for Nothing {}

/// A PASID is named in an attachment.
const PASID: u32 = 1;

/// A VFIO device, open and bound to an iommufd.
#[derive(Debug)]
pub(crate) struct Vfio {
    file: File,
    id: Id,
}

impl Vfio {
    /// Opens a device and binds it, which resets the function.
    pub(crate) fn bind(node: &Path, iommufd: &Iommufd) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(node)?;
        let iommufd = iommufd.file().as_raw_fd();
        let mut argument = Bind { size: size::<Bind>(), flags: 0, iommufd, out_device: 0 };
        call(&file, 0x76, &mut argument)?;
        Ok(Self { file, id: Id(argument.out_device) })
    }

    /// The device as its iommufd calls it.
    pub(crate) fn id(&self) -> Id {
        self.id
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// GET_REGION_INFO: 0 to 5 are BARs, 7 is configuration space.
    pub(crate) fn region(&self, index: u32) -> io::Result<Region> {
        let size = size::<RegionInfo>();
        let mut argument = RegionInfo { size, flags: 0, index, capabilities: 0, length: 0, offset: 0 };
        call(&self.file, 0x6c, &mut argument)?;
        Ok(Region { size: argument.length, offset: argument.offset })
    }

    /// RESET.
    pub(crate) fn reset(&self) -> io::Result<()> {
        call(&self.file, 0x6f, &mut Nothing).map(drop)
    }

    /// ATTACH_IOMMUFD_PT of a page table or an address space, to a PASID or to requests without one.
    pub(crate) fn attach(&self, table: Id, pasid: Option<u32>) -> io::Result<()> {
        let mut argument = Attach {
            size: size::<Attach>(),
            flags: pasid.map_or(0, |_| PASID),
            table: table.0,
            pasid: pasid.unwrap_or(0),
        };
        call(&self.file, 0x77, &mut argument).map(drop)
    }

    /// DETACH_IOMMUFD_PT.
    pub(crate) fn detach(&self, pasid: Option<u32>) -> io::Result<()> {
        let flags = pasid.map_or(0, |_| PASID);
        let mut argument = Detach { size: size::<Detach>(), flags, pasid: pasid.unwrap_or(0) };
        call(&self.file, 0x78, &mut argument).map(drop)
    }
}

//! The real kernel: the only place with unsafe code.
//!
//! Where an ioctl takes a pointer, the structure that holds it and what it points at outlive the call, and the
//! kernel writes to no memory that is not exclusively borrowed for it. That, and that file descriptors are owned,
//! is all there is to show.

mod container;
mod function;
mod iommufd;
mod mapping;
pub mod uapi;
mod vfio;

pub use container::{Container, VFIO};
pub use function::FunctionHandle;
pub use iommufd::Iommufd;
#[cfg(feature = "testkit")]
pub(crate) use mapping::map;
pub use vfio::Cdev;

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::{Errno, fcntl_dupfd_cloexec};

/// The outcome of an ioctl.
fn done(answer: i32) -> crate::kernel::Result<()> {
    if answer < 0 { Err(last_errno()) } else { Ok(()) }
}

/// The error of the system call that this thread made last.
fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// A file that this process was started with, by its number, which itself stays open. To be asked for before anything is
/// opened here: later the number might be that of another file.
///
/// # Errors
/// `EBADF` if no file has this number.
pub fn inherited(number: RawFd) -> crate::kernel::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the number goes to one system call only, which says whether there is such a file.
    let file = unsafe { BorrowedFd::borrow_raw(number) };
    // Out of the way of numbers that are still to be asked for.
    fcntl_dupfd_cloexec(file, 200).or_else(|_| fcntl_dupfd_cloexec(file, 3))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use iommu_core::{IovaRange, Permissions};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::kernel::{
        DeviceFile as _, Entries, HwptAlloc, IoasCopy, Kernel as _, ObjectId, Partial, Payload,
    };
    use crate::memory::{HostRange, SharedMemory};

    const ID: ObjectId = ObjectId(1);

    fn nothing() -> Iommufd {
        Iommufd::from_fd(File::options().read(true).write(true).open("/dev/null").unwrap().into())
    }

    /// A file that knows no ioctl: every call fails with the kernel's own errno, whichever way it went.
    #[test]
    fn errors_are_the_kernels() {
        let iommufd = nothing();
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let range = HostRange::of_memory(&memory).unwrap().remove(0);
        let data = Some(Payload { kind: uapi::HWPT_DATA_VTD_S1, bytes: &[0; 24] });
        let table = HwptAlloc {
            device: ID,
            parent: ID,
            nest_parent: false,
            pasid: true,
            fault_queue: Some(ID),
            data,
        };
        let page = IovaRange::aligned(0, 12);
        let shared = SharedMemory::new(File::open("/dev/null").unwrap().into(), 0x1000);
        let copy = IoasCopy { from: ID, range: page, to: ID, iova: 0, permissions: Permissions::READ_WRITE };
        let entries = Entries { kind: uapi::INVALIDATE_DATA_VTD_S1, entry_len: 24, bytes: &[0; 48] };
        let rows = [
            ("destroy", iommufd.destroy(ID).err()),
            ("IOAS", iommufd.ioas_alloc().err()),
            ("map", iommufd.ioas_map(ID, 0, &range, Permissions::READ_WRITE).err()),
            ("map a file", iommufd.ioas_map_file(ID, 0, &shared, Permissions::READ_WRITE).err()),
            ("unmap", iommufd.ioas_unmap(ID, IovaRange::aligned(0, 12)).err()),
            ("copy", iommufd.ioas_copy(&copy).err()),
            ("usable addresses", iommufd.ioas_iova_ranges(ID).err()),
            ("hardware information", iommufd.hw_info(ID).err()),
            ("HWPT", iommufd.hwpt_alloc(&table).err()),
            ("fault queue", iommufd.fault_queue_alloc().err()),
        ];
        for (name, errno) in rows {
            assert_eq!(errno, Some(Errno::NOTTY), "{name}");
        }
        // The count comes back as it went in, which would mean that all was done.
        let partial = Partial { done: 0, errno: Errno::NOTTY };
        assert_eq!(iommufd.hwpt_invalidate(ID, &entries), Err(partial));
    }

    #[test]
    fn inherited_files_are_found_by_number() {
        use std::os::fd::AsRawFd as _;
        let file = File::open("/dev/null").unwrap();
        let again = inherited(file.as_raw_fd()).unwrap();
        assert_ne!(again.as_raw_fd(), file.as_raw_fd());
        for number in [-1, 1 << 20] {
            assert_eq!(inherited(number).err(), Some(Errno::BADF), "{number}");
        }
    }

    #[test]
    fn errors_of_devices_are_the_kernels() {
        let iommufd = nothing();
        let error = Cdev::open(Path::new("/dev/null/none"), &iommufd).err().unwrap();
        assert_eq!(error.to_string(), "open a device on /dev/null/none failed");
        assert_eq!(Errno::from_io_error(&error.source), Some(Errno::NOTDIR));
        let device = Cdev::open(Path::new("/dev/null"), &iommufd).unwrap();
        let mut word = [0; 4];
        let rows = [
            ("bind", device.bind().err()),
            ("attach", device.attach(None, ID).err()),
            ("attach PASID", device.attach(Some(1), ID).err()),
            ("detach", device.detach(None).err()),
            ("detach PASID", device.detach(Some(1)).err()),
            ("configuration space", device.config_read(0, &mut word).err()),
        ];
        for (name, errno) in rows {
            assert_eq!(errno, Some(Errno::NOTTY), "{name}");
        }
    }
}

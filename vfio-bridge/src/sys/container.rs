//! A legacy VFIO container: `/dev/vfio/vfio` with one group, `/dev/vfio/GROUP`, in it.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use iommu_core::{HostError, IovaRange, Permissions};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio as c;
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};
use vmm_sys_util::ioctl_io_nr;

use crate::kernel::{ContainerFile, Result};
use crate::memory::HostRange;
use crate::object::{OPEN_CONTAINER, OPEN_GROUP, SET_UP_CONTAINER, refused};
use crate::sys::done;

ioctl_io_nr!(VFIO_GET_API_VERSION, c::VFIO_TYPE as u32, c::VFIO_BASE);
ioctl_io_nr!(VFIO_CHECK_EXTENSION, c::VFIO_TYPE as u32, c::VFIO_BASE + 1);
ioctl_io_nr!(VFIO_SET_IOMMU, c::VFIO_TYPE as u32, c::VFIO_BASE + 2);
ioctl_io_nr!(VFIO_GROUP_GET_STATUS, c::VFIO_TYPE as u32, c::VFIO_BASE + 3);
ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, c::VFIO_TYPE as u32, c::VFIO_BASE + 4);
ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, c::VFIO_TYPE as u32, c::VFIO_BASE + 6);
ioctl_io_nr!(VFIO_IOMMU_GET_INFO, c::VFIO_TYPE as u32, c::VFIO_BASE + 12);
ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, c::VFIO_TYPE as u32, c::VFIO_BASE + 13);
ioctl_io_nr!(VFIO_IOMMU_UNMAP_DMA, c::VFIO_TYPE as u32, c::VFIO_BASE + 14);

/// The node that makes containers.
pub const VFIO: &str = "/dev/vfio/vfio";

/// An open container and its group. Clones share it.
#[derive(Clone)]
pub struct Container(Arc<Files>);

/// Dropped in this order: the group leaves before its container goes.
struct Files {
    group: File,
    container: File,
}

impl Container {
    /// Opens a group in a container of its own.
    ///
    /// # Errors
    /// `ENOENT` and `EACCES` as of files, `EBUSY` if the group is in use, and what [`Self::from_fds`] says.
    pub fn open(group: &Path) -> std::result::Result<Self, HostError> {
        let open = |operation, path: &Path| {
            let opened = File::options().read(true).write(true).open(path);
            opened.map_err(|e| {
                refused(operation, path.display(), Errno::from_io_error(&e).unwrap_or(Errno::IO))
            })
        };
        let container = open(OPEN_CONTAINER, Path::new(VFIO))?;
        Self::from_fds(container.into(), open(OPEN_GROUP, group)?.into())
    }

    /// Puts a group into a container that somebody else opened.
    ///
    /// # Errors
    /// `EPERM` if a host driver holds a device of the group, `EOPNOTSUPP` if the kernel has no type 1 IOMMU (version
    /// 2), `EBUSY` if the group is in another container, and as the host says.
    pub fn from_fds(container: OwnedFd, group: OwnedFd) -> std::result::Result<Self, HostError> {
        let files = Files { group: group.into(), container: container.into() };
        files.join().map_err(|(what, errno)| refused(SET_UP_CONTAINER, what, errno))?;
        Ok(Self(Arc::new(files)))
    }

    /// Opens a device of the group by its address, `0000:00:03.0`.
    ///
    /// # Errors
    /// `ENODEV` if the group has no such device, `EINVAL` if `name` is none.
    pub fn device(&self, name: &str) -> std::result::Result<OwnedFd, HostError> {
        let device = || {
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            // SAFETY: the argument is a string that ends with 0 and is only read.
            let fd = unsafe { ioctl_with_ptr(&self.0.group, VFIO_GROUP_GET_DEVICE_FD(), name.as_ptr()) };
            done(fd)?;
            // SAFETY: the kernel just opened it for us, and nobody else knows its number.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        };
        device().map_err(|errno| refused("open in its group", format!("device {name}"), errno))
    }

    /// The group, for who has to tell others of it (KVM).
    #[must_use]
    pub fn group(&self) -> BorrowedFd<'_> {
        self.0.group.as_fd()
    }
}

impl Files {
    /// The group into the container, and the container to work. Which of the two refused.
    fn join(&self) -> std::result::Result<(), (&'static str, Errno)> {
        const CONTAINER: &str = "its file";
        const GROUP: &str = "the group";
        // SAFETY: no argument.
        let version = unsafe { ioctl(&self.container, VFIO_GET_API_VERSION()) };
        done(version).map_err(|errno| (CONTAINER, errno))?;
        // SAFETY: the argument is a number.
        let type1 = unsafe {
            ioctl_with_val(&self.container, VFIO_CHECK_EXTENSION(), u64::from(c::VFIO_TYPE1v2_IOMMU))
        };
        if version != 0 || type1 != 1 {
            return Err((CONTAINER, Errno::OPNOTSUPP));
        }
        let mut status = c::vfio_group_status { argsz: STATUS_BYTES, flags: 0 };
        // SAFETY: the argument is of the type that this ioctl reads and writes.
        done(unsafe { ioctl_with_mut_ref(&self.group, VFIO_GROUP_GET_STATUS(), &mut status) })
            .map_err(|errno| (GROUP, errno))?;
        if status.flags & c::VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err((GROUP, Errno::PERM));
        }
        let container = self.container.as_raw_fd();
        // SAFETY: the argument is the number of a file, which is only read.
        done(unsafe { ioctl_with_ref(&self.group, VFIO_GROUP_SET_CONTAINER(), &container) })
            .map_err(|errno| (GROUP, errno))?;
        // SAFETY: the argument is a number.
        done(unsafe { ioctl_with_val(&self.container, VFIO_SET_IOMMU(), u64::from(c::VFIO_TYPE1v2_IOMMU)) })
            .map_err(|errno| (CONTAINER, errno))
    }
}

const STATUS_BYTES: u32 = 8;
const MAP_BYTES: u32 = 32;
const UNMAP_BYTES: u32 = 24;
const _: () = {
    assert!(size_of::<c::vfio_group_status>() == STATUS_BYTES as usize);
    assert!(size_of::<c::vfio_iommu_type1_dma_map>() == MAP_BYTES as usize);
    assert!(size_of::<c::vfio_iommu_type1_dma_unmap>() == UNMAP_BYTES as usize);
};

impl ContainerFile for Container {
    fn map(&self, iova: u64, memory: &HostRange, permissions: Permissions) -> Result<()> {
        let flags =
            [(permissions.read, c::VFIO_DMA_MAP_FLAG_READ), (permissions.write, c::VFIO_DMA_MAP_FLAG_WRITE)];
        let argument = c::vfio_iommu_type1_dma_map {
            argsz: MAP_BYTES,
            flags: flags.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, flag)| all | flag),
            vaddr: memory.host_address(),
            iova,
            size: memory.len_bytes(),
        };
        // SAFETY: the argument is of the type that this ioctl reads. The memory it leads to stays mapped as long as
        // the owner of the mapping keeps its `HostRange`; pinned, it stays even longer.
        done(unsafe { ioctl_with_ref(&self.0.container, VFIO_IOMMU_MAP_DMA(), &argument) })
    }

    fn unmap(&self, range: IovaRange) -> Result<()> {
        let all = range == IovaRange::ALL;
        let mut argument = c::vfio_iommu_type1_dma_unmap {
            argsz: UNMAP_BYTES,
            flags: if all { c::VFIO_DMA_UNMAP_FLAG_ALL } else { 0 },
            iova: range.start(),
            size: if all { 0 } else { (range.last() - range.start()).saturating_add(1) },
            ..Default::default()
        };
        // SAFETY: the argument is of the type that this ioctl reads and writes.
        done(unsafe { ioctl_with_mut_ref(&self.0.container, VFIO_IOMMU_UNMAP_DMA(), &mut argument) })
    }

    fn iova_ranges(&self) -> Result<Vec<IovaRange>> {
        let mut words = [0_u32; INFO_WORDS];
        words[0] = INFO_BYTES;
        // SAFETY: the argument begins with its size, and is at least as large as the structure that this ioctl reads and
        // writes.
        let answer =
            unsafe { ioctl_with_mut_ptr(&self.0.container, VFIO_IOMMU_GET_INFO(), words.as_mut_ptr()) };
        done(answer)?;
        Ok(usable(&words))
    }
}

const INFO_BYTES: u32 = 4096;
const INFO_WORDS: usize = INFO_BYTES as usize / size_of::<u32>();

/// **Pure.** The usable ranges in `struct vfio_iommu_type1_info` and the capabilities after it. Ends on every chain.
///
/// A kernel that does not tell (before 5.4) is taken for one with 39-bit addresses, the least there is.
fn usable(info: &[u32]) -> Vec<IovaRange> {
    /// `VFIO_IOMMU_INFO_CAPS`: there are capabilities.
    const CAPS: u32 = 1 << 1;
    let word = |byte: u32| info.get(usize::try_from(byte / 4).ok()?).copied();
    let wide = |byte: u32| Some(u64::from(word(byte)?) | u64::from(word(byte.checked_add(4)?)?) << 32);
    let mut at = word(4).filter(|flags| flags & CAPS != 0).and_then(|_| word(16)).unwrap_or(0);
    // As many headers as fit.
    for _ in 0..info.len() / 2 {
        let (Some(header), Some(next)) = (word(at).filter(|_| at != 0), at.checked_add(4).and_then(word))
        else {
            break;
        };
        if header & 0xffff == c::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            let number = at.checked_add(8).and_then(word).unwrap_or(0);
            let first = at.saturating_add(16);
            let range = |n: u32| {
                let at = first.checked_add(n.checked_mul(16)?)?;
                IovaRange::new(wide(at)?, wide(at.checked_add(8)?)?)
            };
            return (0..number).map_while(range).collect();
        }
        at = next;
    }
    vec![IovaRange::aligned(0, 39)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that knows no ioctl.
    fn null() -> OwnedFd {
        File::options().read(true).write(true).open("/dev/null").unwrap().into()
    }

    #[test]
    fn errors_are_the_kernels() {
        let error = Container::from_fds(null(), null()).err().unwrap();
        assert_eq!(error.to_string(), "set up a container on its file failed");
        assert_eq!(Errno::from_io_error(&error.source), Some(Errno::NOTTY));
        let error = Container::open(Path::new("/dev/null/none")).err().unwrap();
        assert!(error.operation == OPEN_CONTAINER || error.operation == OPEN_GROUP);
        let container = Container(Arc::new(Files { group: null().into(), container: null().into() }));
        let error = container.device("0000:00:03.0").unwrap_err();
        assert_eq!(Errno::from_io_error(&error.source), Some(Errno::NOTTY));
        let memory: vm_memory::GuestMemoryMmap =
            vm_memory::GuestMemoryMmap::from_ranges(&[(vm_memory::GuestAddress(0), 0x1000)]).unwrap();
        let range = HostRange::of_memory(&memory).unwrap().remove(0);
        let rows = [
            ("map", container.map(0, &range, Permissions::READ_WRITE).err()),
            ("unmap", container.unmap(IovaRange::aligned(0, 12)).err()),
            ("unmap all", container.unmap(IovaRange::ALL).err()),
            ("information", container.iova_ranges().err()),
        ];
        for (name, errno) in rows {
            assert_eq!(errno, Some(Errno::NOTTY), "{name}");
        }
    }

    /// `words` of information; capabilities begin at byte 24.
    fn info(flags: u32, first: u32, capabilities: &[u32]) -> Vec<u32> {
        [&[INFO_BYTES, flags, 0, 0, first, 0], capabilities].concat()
    }

    #[test]
    fn usable_ranges_are_found_in_any_chain() {
        let none = vec![IovaRange::aligned(0, 39)];
        let ranges = [1 | 1 << 16, 0, 2, 0, 0, 0, 0xfedf_ffff, 0, 0xfef0_0000, 0, u32::MAX, 0xffff];
        let both = vec![
            IovaRange::new(0, 0xfedf_ffff).unwrap(),
            IovaRange::new(0xfef0_0000, (1 << 48) - 1).unwrap(),
        ];
        let after_other = [&[3 | 1 << 16, 36, 65535][..], &ranges].concat();
        let rows = [
            ("no capabilities", info(1, 24, &ranges), none.clone()),
            ("the only one", info(2, 24, &ranges), both.clone()),
            ("the second one", info(2, 24, &after_other), both),
            ("a loop", info(2, 24, &[3, 24, 0]), none.clone()),
            ("beyond the end", info(2, 4092, &ranges), none.clone()),
            ("at the end of the space", info(2, u32::MAX - 3, &ranges), none.clone()),
            ("more than there is", info(2, 24, &[1, 0, u32::MAX, 0, 0, 0]), vec![]),
            ("nothing at all", vec![], none),
        ];
        for (name, info, expected) in rows {
            assert_eq!(usable(&info), expected, "{name}");
        }
    }
}

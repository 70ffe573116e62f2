//! Everything that needs `unsafe`: the ioctls of `/dev/iommu` and of VFIO devices.
#![allow(unsafe_code, reason = "raw ioctls have no safe interface in std")]

mod iommufd;
mod vfio;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

pub(crate) use iommufd::{
    FaultRecord, HwInfo, HwptKind, Id, Iommufd, PageRights, Response, VtdS1, VtdS1Invalidate, hwpt_flags,
};
pub(crate) use vfio::Vfio;

/// An ioctl's argument: plain words, as the kernel's header lays them out.
///
/// # Safety
/// The kernel writes at most the type's own bytes, and memory that pointers in it name, which is valid for that.
unsafe trait Argument {}

fn call<T: Argument>(file: &File, number: u8, argument: &mut T) -> io::Result<libc::c_int> {
    // Both interfaces use the type `;` and encode neither size nor direction.
    let request = libc::c_ulong::from(0x3b00 | u32::from(number));
    // SAFETY: the argument is as large as the kernel believes, says the trait.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Size of a type for a size field.
const fn size<T>() -> u32 {
    // Arguments are far smaller than 4 GiB.
    #[allow(clippy::cast_possible_truncation, reason = "see above")]
    let size = size_of::<T>() as u32;
    size
}

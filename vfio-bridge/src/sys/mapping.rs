//! Memory of a device in this process.

use std::os::fd::AsFd;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::kernel::Result;
use crate::memory::DeviceMemory;

/// A mapping of a file, until it is dropped. Nothing in this process looks into it.
struct Mapping {
    /// Of the first byte; a number, because no reference is ever made of it.
    address: usize,
    len: usize,
}

/// Maps `len` bytes of a file from `offset` on, for reading and writing by a guest.
///
/// # Errors
/// As the kernel says; `EINVAL` also for no bytes.
pub(crate) fn map(file: impl AsFd, offset: u64, len: usize) -> Result<DeviceMemory> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: the kernel finds a free range of addresses, so no other memory changes, and nothing reads or writes the
    // new one by a reference.
    let start = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, file, offset) }?;
    let address = start.expose_provenance();
    Ok(DeviceMemory::new(address as u64, len as u64, Box::new(Mapping { address, len })))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let start = std::ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: the range is the mapping that this value made and owns; whoever showed it to a guest holds it for as
        // long as it is shown.
        if let Err(errno) = unsafe { munmap(start, self.len) } {
            log::warn!("a device's memory stays mapped: {errno}");
        }
    }
}

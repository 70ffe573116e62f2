//! Memory of a device in this process.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::kernel::Result;

/// A mapped part of a device's memory, until it is dropped. Nothing here looks into it: it is for a guest to see.
#[derive(Debug)]
pub struct DeviceMemory {
    /// Of the first byte; kept as a number, because no reference is ever made of it.
    address: usize,
    len: usize,
}

impl DeviceMemory {
    /// Maps `len` bytes of a file from `offset` on, for reading and writing.
    ///
    /// # Errors
    /// As the kernel says; `EINVAL` also for no bytes.
    pub fn map(file: impl AsFd, offset: u64, len: usize) -> Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel finds a free range of addresses, so no other memory changes, and nothing reads or
        // writes the new one by a reference.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, file, offset) }?;
        Ok(Self { address: start.expose_provenance(), len })
    }

    /// The address of the first byte in this process.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.address as u64
    }

    /// Size in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len as u64
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let start = std::ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: the range is the mapping that this value made and owns; whoever showed it to a guest holds the
        // value for as long as it is shown.
        let result = unsafe { munmap(start, self.len) };
        if let Err(errno @ (Errno::INVAL | Errno::NOMEM)) = result {
            log::warn!("a device's memory stays mapped: {errno}");
        }
    }
}

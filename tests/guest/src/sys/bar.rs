//! A device's registers, mapped.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::registers::Registers;

/// A mapped region of device registers.
pub struct Bar {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the region is plain registers; every access is one volatile load or store, and the
// device orders concurrent ones.
unsafe impl Send for Bar {}
// SAFETY: as above.
unsafe impl Sync for Bar {}

impl Bar {
    /// Maps `length` bytes from `offset` on that `file`, a uio or VFIO device or a PCI resource file, offers.
    ///
    /// # Errors
    /// It does not offer them.
    pub fn map(file: &File, offset: i64, length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn pointer<T>(&self, offset: usize) -> *mut T {
        assert!(offset.is_multiple_of(size_of::<T>()) && offset + size_of::<T>() <= self.length);
        // SAFETY: the offset is inside the mapping.
        unsafe { self.start.as_ptr().add(offset).cast() }
    }
}

impl Registers for Bar {
    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: `pointer` checked bounds and alignment.
        let value = unsafe { self.pointer::<u32>(offset).read_volatile() };
        compiler_fence(Ordering::SeqCst);
        value
    }

    fn read64(&self, offset: usize) -> u64 {
        // SAFETY: `pointer` checked bounds and alignment.
        let value = unsafe { self.pointer::<u64>(offset).read_volatile() };
        compiler_fence(Ordering::SeqCst);
        value
    }

    fn write32(&self, offset: usize, value: u32) {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: `pointer` checked bounds and alignment.
        unsafe { self.pointer::<u32>(offset).write_volatile(value) };
    }

    fn write64(&self, offset: usize, value: u64) {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: `pointer` checked bounds and alignment.
        unsafe { self.pointer::<u64>(offset).write_volatile(value) };
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

//! Memory whose missing pages a program brings itself: userfaultfd(2).

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::{Mapping, call};

/// `_IOWR(0xaa, number, bytes)`.
const fn request(number: u64, bytes: usize) -> u64 {
    3 << 30 | (bytes as u64) << 16 | 0xaa << 8 | number
}

const API: u64 = 0xaa;
const UFFDIO_REGISTER: u64 = request(0x00, 32);
const UFFDIO_COPY: u64 = request(0x03, 40);
const UFFDIO_WRITEPROTECT: u64 = request(0x06, 24);
const UFFDIO_API: u64 = request(0x3f, 24);

const MODE_MISSING: u64 = 1;
const MODE_WRITE_PROTECT: u64 = 1 << 1;
const PROTECT: u64 = 1;
/// A message: what it is about is in the first byte, the address in the third word.
const MESSAGE_BYTES: usize = 32;
const EVENT_PAGE_FAULT: u8 = 0x12;

/// The handler's end.
#[derive(Debug)]
pub struct UserFaults {
    file: File,
}

/// What is asked of the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Pages that are missing.
    Missing,
    /// Writes to pages that are protected.
    WriteProtected,
}

impl UserFaults {
    /// A handler of some pages.
    ///
    /// # Errors
    /// The kernel has no such thing, or this process may not.
    pub fn new(mapping: &Mapping, watch: Watch) -> io::Result<Self> {
        // SAFETY: the argument is an integer.
        let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        let raw = RawFd::try_from(raw).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        let faults = Self { file: unsafe { OwnedFd::from_raw_fd(raw) }.into() };
        faults.control(UFFDIO_API, &mut [API, 0, 0])?;
        let mode = if watch == Watch::Missing { MODE_MISSING } else { MODE_WRITE_PROTECT };
        faults.control(UFFDIO_REGISTER, &mut [mapping.address(), mapping.len() as u64, mode, 0])?;
        Ok(faults)
    }

    /// The address of the next page that somebody waits for; `None` if nobody does within `limit`.
    ///
    /// # Errors
    /// The message is strange.
    pub fn next(&mut self, limit: Duration) -> io::Result<Option<u64>> {
        let mut message = [0; MESSAGE_BYTES];
        if !call::poll_readable(&self.file, limit)? {
            return Ok(None);
        }
        self.file.read_exact(&mut message)?;
        let (words, _) = message.as_chunks::<8>();
        let address = u64::from_le_bytes(words[2]);
        if message[0] == EVENT_PAGE_FAULT {
            Ok(Some(address))
        } else {
            Err(io::Error::other("no page fault"))
        }
    }

    /// Brings missing pages with the bytes of another mapping, and wakes who waits for them.
    ///
    /// # Errors
    /// They are there.
    pub fn bring(&self, address: u64, source: &Mapping, range: Range<usize>) -> io::Result<()> {
        let length = range.len() as u64;
        self.control(UFFDIO_COPY, &mut [address, source.at(range.start), length, 0, 0])
    }

    /// Takes the right to write pages away, or gives it back and wakes who waits for it.
    ///
    /// # Errors
    /// They are not watched so.
    pub fn protect(&self, address: u64, length: usize, on: bool) -> io::Result<()> {
        let mode = if on { PROTECT } else { 0 };
        self.control(UFFDIO_WRITEPROTECT, &mut [address, length as u64, mode])
    }

    fn control(&self, request: u64, words: &mut [u64]) -> io::Result<()> {
        debug_assert_eq!((request >> 16 & 0x3fff) as usize, size_of_val(words));
        // SAFETY: the words are as many as the request says; addresses in them are of mappings that only
        // copies look at.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), request, words.as_mut_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

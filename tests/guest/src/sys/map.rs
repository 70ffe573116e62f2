//! Mappings whose pages come, go and move under a device.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Rights of a mapping.
#[derive(Clone, Copy, Debug)]
pub enum Protection {
    /// No access.
    None,
    /// Loads.
    Read,
    /// Loads and stores.
    ReadWrite,
}

impl Protection {
    fn flags(self) -> libc::c_int {
        match self {
            Self::None => libc::PROT_NONE,
            Self::Read => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// Who sees stores to a file mapping.
#[derive(Clone, Copy, Debug)]
pub enum Sharing {
    /// Only this process.
    Private,
    /// The file.
    Shared,
}

/// A mapping of whole pages, removed on drop. The CPU reaches it by copies in and out only, so no
/// reference to memory that a device may write ever exists.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is an address range of the process; accesses are copies through raw pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above; what concurrent copies of the same bytes yield is up to the test.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Fresh private pages: none is present yet.
    pub fn anonymous(length: usize) -> io::Result<Self> {
        Self::new(0, length, Protection::ReadWrite, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// Fresh private pages whose first address is a multiple of `alignment`, itself a multiple of the page size.
    ///
    /// # Errors
    /// There is no room.
    pub fn aligned(length: usize, alignment: usize) -> io::Result<Self> {
        let mut whole = Self::anonymous(length + alignment)?;
        let start = whole.start.as_ptr() as usize;
        let skipped = start.next_multiple_of(alignment) - start;
        whole.truncate(skipped + length)?;
        let aligned = whole.pointer(&(skipped..skipped));
        if skipped > 0 {
            // SAFETY: the range is ours and no longer part of the mapping afterwards.
            check(unsafe { libc::munmap(whole.start.as_ptr().cast(), skipped) })?;
        }
        whole.start = NonNull::new(aligned).unwrap_or(whole.start);
        whole.length = length;
        Ok(whole)
    }

    /// Fresh private pages at `address`, where nothing may be mapped yet.
    pub fn anonymous_at(address: u64, length: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        Self::new(address, length, Protection::ReadWrite, flags, -1)
    }

    /// Fresh pages that this process and its children share: none is present yet.
    pub fn shared(length: usize) -> io::Result<Self> {
        Self::new(0, length, Protection::ReadWrite, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
    }

    /// Fresh private pages of 2 MiB, out of those that the machine keeps for such mappings.
    ///
    /// # Errors
    /// It keeps too few.
    pub fn huge(length: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        Self::new(0, length, Protection::ReadWrite, flags, -1)
    }

    /// Fresh private pages at `address` or, where that cannot be, elsewhere. Above bit 47 the kernel maps
    /// nothing without being asked so.
    pub fn anonymous_near(address: u64, length: usize) -> io::Result<Self> {
        Self::new(address, length, Protection::ReadWrite, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// The first `length` bytes of a file.
    pub fn file(file: &File, length: usize, rights: Protection, sharing: Sharing) -> io::Result<Self> {
        let flags = match sharing {
            Sharing::Private => libc::MAP_PRIVATE,
            Sharing::Shared => libc::MAP_SHARED,
        };
        Self::new(0, length, rights, flags, file.as_raw_fd())
    }

    fn new(
        address: u64,
        length: usize,
        rights: Protection,
        flags: libc::c_int,
        file: libc::c_int,
    ) -> io::Result<Self> {
        let hint = usize::try_from(address).map_err(io::Error::other)? as *mut libc::c_void;
        // SAFETY: without MAP_FIXED no existing mapping is touched; MAP_FIXED_NOREPLACE refuses instead.
        let start = unsafe { libc::mmap(hint, length, rights.flags(), flags, file, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Where it starts.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Where byte `offset` is.
    pub fn at(&self, offset: usize) -> u64 {
        assert!(offset <= self.length);
        self.address() + offset as u64
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "no mapping is empty")]
    pub fn len(&self) -> usize {
        self.length
    }

    fn pointer(&self, range: &Range<usize>) -> *mut u8 {
        assert!(range.start <= range.end && range.end <= self.length, "{range:?} of {:#x}", self.length);
        // SAFETY: the offset is inside the mapping.
        unsafe { self.start.as_ptr().add(range.start) }
    }

    /// The CPU's view of a range.
    pub fn read(&self, range: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        fence(Ordering::SeqCst);
        // SAFETY: `pointer` checked the range; the vector is as long and elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(self.pointer(&range), bytes.as_mut_ptr(), range.len()) };
        bytes
    }

    /// The CPU's view of everything.
    pub fn read_all(&self) -> Vec<u8> {
        self.read(0..self.length)
    }

    /// Stores `bytes` at `offset` by the CPU.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let range = offset..offset + bytes.len();
        // SAFETY: `pointer` checked the range; the slice is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pointer(&range), bytes.len()) };
        fence(Ordering::SeqCst);
    }

    /// One aligned 64-bit load, ordered before everything after it.
    pub fn load(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Acquire)
    }

    /// One aligned 64-bit store, ordered after everything before it.
    pub fn store(&self, offset: usize, value: u64) {
        self.word(offset).store(value, Ordering::SeqCst);
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8));
        let pointer = self.pointer(&(offset..offset + 8)).cast();
        // SAFETY: in bounds and aligned; an atomic may be shared with whoever else writes it.
        unsafe { AtomicU64::from_ptr(pointer) }
    }

    /// Takes the pages away; private anonymous ones come back as zeros.
    pub fn discard(&self, range: Range<usize>) -> io::Result<()> {
        self.advise(&range, libc::MADV_DONTNEED)
    }

    /// Asks for huge pages.
    pub fn prefer_huge(&self) -> io::Result<()> {
        self.advise(&(0..self.length), libc::MADV_HUGEPAGE)
    }

    /// Asks for small pages only, until [`Mapping::collapse`].
    pub fn refuse_huge(&self) -> io::Result<()> {
        self.advise(&(0..self.length), libc::MADV_NOHUGEPAGE)
    }

    /// Makes huge pages of the small ones that are there, by copying them elsewhere.
    ///
    /// # Errors
    /// The kernel cannot, or some memory is in its way just now.
    pub fn collapse(&self) -> io::Result<()> {
        self.advise(&(0..self.length), libc::MADV_COLLAPSE)
    }

    /// Writes the pages out to swap, as far as the kernel likes to.
    pub fn page_out(&self, range: Range<usize>) -> io::Result<()> {
        self.advise(&range, libc::MADV_PAGEOUT)
    }

    /// Lets the kernel share pages that have the same bytes.
    pub fn mergeable(&self) -> io::Result<()> {
        self.advise(&(0..self.length), libc::MADV_MERGEABLE)
    }

    fn advise(&self, range: &Range<usize>, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is ours, and only copies look at it.
        check(unsafe { libc::madvise(self.pointer(range).cast(), range.len(), advice) })
    }

    /// Changes the rights of a range.
    pub fn protect(&self, range: Range<usize>, rights: Protection) -> io::Result<()> {
        // SAFETY: the range is ours; a copy that lacks the rights ends the program, not its soundness.
        check(unsafe { libc::mprotect(self.pointer(&range).cast(), range.len(), rights.flags()) })
    }

    /// Unmaps everything from `length` on.
    pub fn truncate(&mut self, length: usize) -> io::Result<()> {
        let range = length..self.length;
        // SAFETY: the range is ours and no longer part of the mapping afterwards.
        check(unsafe { libc::munmap(self.pointer(&range).cast(), range.len()) })?;
        self.length = length;
        Ok(())
    }

    /// Unmaps a range and maps fresh pages in its place, in one step as others see it.
    pub fn replace(&self, range: Range<usize>) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let (start, rights) = (self.pointer(&range), Protection::ReadWrite.flags());
        // SAFETY: replaces pages of this mapping only.
        let result = unsafe { libc::mmap(start.cast(), range.len(), rights, flags, -1, 0) };
        if result == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Makes the mapping longer, in place or at another address, which the kernel chooses.
    pub fn grow(self, length: usize) -> io::Result<Self> {
        let (old, flags) = (self.start.as_ptr(), libc::MREMAP_MAYMOVE);
        // SAFETY: the range is ours; the old one is given up below without a second unmap.
        let start = unsafe { libc::mremap(old.cast(), self.length, length, flags) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => {
                std::mem::forget(self);
                Ok(Self { start, length })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Moves the pages to another address, which the kernel chooses, and leaves nothing behind.
    pub fn relocate(self) -> io::Result<Self> {
        let target = Self::anonymous(self.length)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let (old, new) = (self.start.as_ptr(), target.start.as_ptr());
        // SAFETY: both ranges are ours; the old one is given up below without a second unmap.
        let result = unsafe { libc::mremap(old.cast(), self.length, self.length, flags, new) };
        if result == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        std::mem::forget(self);
        Ok(target)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

//! Where this process's pages are, as the kernel's page map shows it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Mapping, PAGE, PAGE_BYTES};

/// What the kernel says of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageState(u64);

impl PageState {
    /// Whether it is in memory.
    #[must_use]
    pub fn is_present(self) -> bool {
        self.0 >> 63 & 1 != 0
    }

    /// Whether it is in swap.
    #[must_use]
    pub fn is_swapped(self) -> bool {
        self.0 >> 62 & 1 != 0
    }

    /// Whether it is a file's, or shared memory.
    #[must_use]
    pub fn is_of_file(self) -> bool {
        self.0 >> 61 & 1 != 0
    }

    /// Whether a user's handler wants to be asked before it is written.
    #[must_use]
    pub fn is_watched(self) -> bool {
        self.0 >> 57 & 1 != 0
    }

    /// Whether nobody else maps it.
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        self.0 >> 56 & 1 != 0
    }

    /// Its page frame; 0 if it is in none, or this process may not know.
    #[must_use]
    pub fn frame(self) -> u64 {
        if self.is_present() { self.0 & ((1 << 55) - 1) } else { 0 }
    }
}

/// The page map.
#[derive(Debug)]
pub struct PageMap(File);

impl PageMap {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn open() -> io::Result<Self> {
        Ok(Self(File::open("/proc/self/pagemap")?))
    }

    /// The page at an address.
    ///
    /// # Errors
    /// No page can be there.
    pub fn page(&self, address: u64) -> io::Result<PageState> {
        let mut entry = [0; 8];
        self.0.read_exact_at(&mut entry, address / PAGE_BYTES * 8)?;
        Ok(PageState(u64::from_le_bytes(entry)))
    }

    /// All pages of a mapping.
    ///
    /// # Errors
    /// The kernel does not show them.
    pub fn pages(&self, mapping: &Mapping) -> io::Result<Vec<PageState>> {
        let mut entries = vec![0; mapping.len() / PAGE * 8];
        self.0.read_exact_at(&mut entries, mapping.address() / PAGE_BYTES * 8)?;
        let (entries, _) = entries.as_chunks::<8>();
        Ok(entries.iter().map(|entry| PageState(u64::from_le_bytes(*entry))).collect())
    }
}

//! Guest RAM: one memfd, mapped below and above the hole.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::layout::{HIGH_RAM_START, LOW_RAM_LIMIT};

/// The guest's memory as everything in the machine shares it.
pub(crate) type GuestRam = GuestMemoryMmap<()>;

/// The host did not give memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No file to back it.
    #[error("no memory file of {bytes} bytes")]
    File {
        /// Its size.
        bytes: u64,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
    /// No mapping.
    #[error("no mapping of {bytes} bytes")]
    Map {
        /// Size of the whole.
        bytes: u64,
        /// The host's reason.
        #[source]
        source: vm_memory::guest_memory::Error,
    },
}

/// The ranges of RAM for `bytes`, a multiple of a page: (start, length in bytes), ascending. **Pure.**
pub(crate) fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_LIMIT);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HIGH_RAM_START, bytes - low));
    }
    ranges
}

/// Allocates `bytes` of guest RAM; no page of it is touched.
///
/// # Errors
/// The host has no memory file or no address space for it.
pub(crate) fn allocate(bytes: u64) -> Result<Arc<GuestRam>, Error> {
    let file = memory_file(bytes).map_err(|source| Error::File { bytes, source })?;
    let file = Arc::new(file);
    let mut offset = 0;
    let mut parts = Vec::new();
    for (start, len) in ranges(bytes) {
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        parts.push((GuestAddress(start), size, Some(FileOffset::from_arc(file.clone(), offset))));
        offset += len;
    }
    let ram = GuestRam::from_ranges_with_files(&parts).map_err(|source| Error::Map {
        bytes,
        source: vm_memory::guest_memory::Error::IOError(std::io::Error::other(source)),
    })?;
    ram.iter().for_each(ask_for_huge_pages);
    Ok(Arc::new(ram))
}

fn memory_file(bytes: u64) -> std::io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("svmm-ram", MemfdFlags::CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(file)
}

/// Asks for transparent huge pages. Only advice: where shmem has them off, small pages serve as well.
fn ask_for_huge_pages(region: &GuestRegionMmap<()>) {
    let size = usize::try_from(region.len()).unwrap_or(0);
    let Ok(address) = region.get_host_address(vm_memory::MemoryRegionAddress(0)) else { return };
    // SAFETY: address and size are those of a mapping that `region` owns, and this advice changes no content.
    let result = unsafe { rustix::mm::madvise(address.cast(), size, rustix::mm::Advice::LinuxHugepage) };
    if let Err(error) = result {
        log::debug!("no transparent huge pages for guest memory: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn ram_goes_on_above_the_hole() {
        let mib = 1 << 20;
        for (name, bytes, expected) in [
            ("small", 256 * mib, vec![(0, 256 * mib)]),
            ("just fits", LOW_RAM_LIMIT, vec![(0, LOW_RAM_LIMIT)]),
            ("6 GiB", 6144 * mib, vec![(0, LOW_RAM_LIMIT), (HIGH_RAM_START, 6144 * mib - LOW_RAM_LIMIT)]),
        ] {
            assert_eq!(ranges(bytes), expected, "{name}");
        }
    }

    #[test]
    fn both_ends_are_there_and_the_hole_is_not() {
        let ram = allocate(6 << 30).unwrap();
        for address in [0, LOW_RAM_LIMIT - 8, HIGH_RAM_START, HIGH_RAM_START + (3 << 30) - 8] {
            ram.write_obj(address ^ 0x55, GuestAddress(address)).unwrap();
        }
        for address in [0, LOW_RAM_LIMIT - 8, HIGH_RAM_START, HIGH_RAM_START + (3 << 30) - 8] {
            assert_eq!(ram.read_obj::<u64>(GuestAddress(address)).unwrap(), address ^ 0x55);
        }
        assert!(ram.write_obj(0u8, GuestAddress(LOW_RAM_LIMIT)).is_err());
        assert!(ram.write_obj(0u8, GuestAddress(HIGH_RAM_START - 1)).is_err());
    }
}

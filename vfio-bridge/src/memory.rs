//! Guest memory as the host's IOMMU is told of it.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use iommu_core::IovaRange;
use rustix::io::Errno;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

/// Where x86 hosts take interrupt messages. Never memory for a device.
pub const INTERRUPT_WINDOW: IovaRange = IovaRange::aligned(0xfee0_0000, 20);

/// A mapped region of guest memory. It stays mapped as long as this lives.
#[derive(Clone)]
pub struct HostRange {
    /// Addresses in the guest.
    guest: IovaRange,
    /// Where this process has it.
    host_address: u64,
    _mapped: Arc<dyn Send + Sync>,
}

impl HostRange {
    /// All regions of guest memory, in order of address.
    ///
    /// # Errors
    /// `EFAULT` if a region has no address in this process.
    pub fn of_memory<B>(memory: &GuestMemoryMmap<B>) -> Result<Vec<Self>, Errno>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let mapped: Arc<dyn Send + Sync> = Arc::new(memory.clone());
        let range = |region: &vm_memory::GuestRegionMmap<B>| {
            let address = region.get_host_address(MemoryRegionAddress(0)).map_err(|_| Errno::FAULT)?;
            let guest = IovaRange::new(region.start_addr().raw_value(), region.last_addr().raw_value());
            Ok(Self {
                guest: guest.ok_or(Errno::FAULT)?,
                host_address: address.addr() as u64,
                _mapped: mapped.clone(),
            })
        };
        memory.iter().map(range).collect()
    }

    /// Addresses in the guest.
    #[must_use]
    pub fn guest(&self) -> IovaRange {
        self.guest
    }

    /// The first byte's address in this process.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.host_address
    }

    /// Size in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        (self.guest.last() - self.guest.start()).saturating_add(1)
    }
}

impl HostRange {
    /// A part of it, by addresses in the guest. `None` if it is not a part.
    #[must_use]
    pub fn part(&self, guest: &IovaRange) -> Option<Self> {
        let inside = self.guest.contains(guest.start()) && self.guest.contains(guest.last());
        inside.then(|| Self {
            guest: *guest,
            host_address: self.host_address + (guest.start() - self.guest.start()),
            _mapped: self._mapped.clone(),
        })
    }
}

/// Calls `tell` for the parts of a mapping, input `range` to guest memory from `base`, that lead to memory and whose
/// input is not that of interrupt messages: input addresses, and where the first of them leads. In ascending order
/// if `ram` is.
pub(crate) fn parts_in_memory(
    ram: &[HostRange],
    range: &IovaRange,
    base: u64,
    mut tell: impl FnMut(IovaRange, u64),
) {
    let length = range.last() - range.start();
    for memory in ram {
        let first = memory.guest.start().max(base);
        let last = memory.guest.last().min(base.saturating_add(length));
        let Some(there) = IovaRange::new(first, last) else { continue };
        let input = |address: u64| range.start() + (address - base);
        let (start, end) = (input(there.start()), input(there.last()));
        let below = IovaRange::new(start, end.min(INTERRUPT_WINDOW.start() - 1));
        let above = IovaRange::new(start.max(INTERRUPT_WINDOW.last() + 1), end);
        for part in [below, above].into_iter().flatten() {
            tell(part, base + (part.start() - range.start()));
        }
    }
}

/// Memory of a device, mapped into this process for a guest to see, for as long as this lives.
pub struct DeviceMemory {
    host_address: u64,
    len_bytes: u64,
    _mapping: Box<dyn Send + Sync>,
}

impl DeviceMemory {
    /// For who mapped it: `mapping` keeps it so.
    pub(crate) fn new(host_address: u64, len_bytes: u64, mapping: Box<dyn Send + Sync>) -> Self {
        Self { host_address, len_bytes, _mapping: mapping }
    }

    /// The first byte's address in this process.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.host_address
    }

    /// Size in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

/// A range of a device's memory as a file (a dma-buf) by which other devices can be let at it. Closing it takes nothing
/// back.
#[derive(Debug)]
pub struct SharedMemory {
    file: OwnedFd,
    len_bytes: u64,
}

impl SharedMemory {
    /// For who was given the file.
    pub(crate) fn new(file: OwnedFd, len_bytes: u64) -> Self {
        Self { file, len_bytes }
    }

    /// Size in bytes: whole pages.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes of a device", self.len_bytes)
    }
}

impl fmt::Debug for HostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest memory {:#x}-{:#x}", self.guest.start(), self.guest.last())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    /// (name, input, output, parts as input and output).
    #[test]
    fn only_memory_is_mapped_and_never_the_interrupt_window() {
        // Memory below 0x2_0000 and from 4 GiB on.
        let ranges = [(GuestAddress(0), 0x2_0000), (GuestAddress(1 << 32), 0x20_0000)];
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let ram = HostRange::of_memory(&memory).unwrap();
        let range = |start, last| IovaRange::new(start, last).unwrap();
        let four = 1_u64 << 32;
        let rows = [
            ("page", range(0x5000, 0x5fff), 0x1000, vec![(range(0x5000, 0x5fff), 0x1000)]),
            ("no memory", range(0x5000, 0x5fff), 0xfeb0_0000, vec![]),
            ("end of memory", range(0x5000, 0x6fff), 0x1_f000, vec![(range(0x5000, 0x5fff), 0x1_f000)]),
            (
                "over the hole",
                IovaRange::aligned(0, 40),
                0,
                vec![(range(0, 0x1_ffff), 0), (range(four, four + 0x1f_ffff), four)],
            ),
            ("within the window", range(0xfee0_0000, 0xfeef_ffff), 0, vec![]),
            (
                "around the window",
                range(0xfed8_0000, 0xfef7_ffff),
                four,
                vec![
                    (range(0xfed8_0000, 0xfedf_ffff), four),
                    (range(0xfef0_0000, 0xfef7_ffff), four + 0x18_0000),
                ],
            ),
        ];
        for (name, input, base, expected) in rows {
            let mut found = Vec::new();
            parts_in_memory(&ram, &input, base, |part, base| found.push((part, base)));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_part_is_where_it_was() {
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 0x4000)]).unwrap();
        let range = HostRange::of_memory(&memory).unwrap().remove(0);
        let part = range.part(&IovaRange::aligned(0x3000, 12)).unwrap();
        assert_eq!(part.host_address(), range.host_address() + 0x2000);
        assert_eq!((part.len_bytes(), part.guest().start()), (0x1000, 0x3000));
        assert!(range.part(&IovaRange::aligned(0x5000, 12)).is_none());
        assert!(range.part(&IovaRange::ALL).is_none());
    }
}

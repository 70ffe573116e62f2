//! Guest memory as the host's IOMMU is told of it.

use std::fmt;
use std::sync::Arc;

use iommu_core::IovaRange;
use rustix::io::Errno;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

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

impl fmt::Debug for HostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest memory {:#x}-{:#x}", self.guest.start(), self.guest.last())
    }
}

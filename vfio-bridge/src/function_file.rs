//! What is needed of the host's kernel for an assigned function itself: the open file of a VFIO PCI device, once it is
//! bound. The real one is in [`crate::sys`], one that lives in memory in the testkit.

use std::ops::Range;

use vmm_sys_util::eventfd::EventFd;

use crate::kernel::Result;
use crate::memory::{DeviceMemory, SharedMemory};

/// Number of a region of a VFIO PCI device: 0 to 5 are the BARs.
pub mod region {
    /// Number of BARs.
    pub const BARS: u32 = 6;
    /// Configuration space.
    pub const CONFIG: u32 = 7;
}

/// Kinds of interrupts of a VFIO PCI device, by their numbers.
pub mod irq {
    /// The interrupt line.
    pub const INTX: u32 = 0;
    /// MSI.
    pub const MSI: u32 = 1;
    /// MSI-X.
    pub const MSIX: u32 = 2;
    /// The device reported an uncorrectable error.
    pub const ERROR: u32 = 3;
    /// The host wants the device back.
    pub const REQUEST: u32 = 4;
}

/// A region of a device, as its file shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Size in bytes; 0: there is none.
    pub len: u64,
    /// Where it is in the file.
    pub file_offset: u64,
    /// What of it can be mapped into this process, as offsets into it. Ascending, without overlaps.
    pub mappable: Vec<Range<u64>>,
}

/// Interrupts of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Irqs {
    /// How many; 0: none of this kind.
    pub count: u32,
    /// More can be switched on while some are on.
    pub dynamic: bool,
}

/// The function behind the open file of a VFIO PCI device.
///
/// Every call fails on a device that is not bound.
pub trait FunctionFile: Send + Sync {
    /// Whether the device can be reset alone.
    ///
    /// # Errors
    /// `EINVAL` also if it is no PCI device.
    fn can_reset(&self) -> Result<bool>;

    /// Asks for a region; one that the device does not have has no bytes.
    ///
    /// # Errors
    /// As the host says.
    fn region(&self, index: u32) -> Result<Region>;

    /// Reads from a region. `data` is filled wholly, in one access if it has 1, 2, 4 or 8 bytes and is aligned.
    ///
    /// # Errors
    /// `EIO` while the device's memory is switched off, `EINVAL` beyond the end.
    fn read(&self, region: &Region, offset: u64, data: &mut [u8]) -> Result<()>;

    /// Writes to a region, as [`Self::read`] reads.
    ///
    /// # Errors
    /// As those of [`Self::read`].
    fn write(&self, region: &Region, offset: u64, data: &[u8]) -> Result<()>;

    /// Maps `range` of a region, which lies in what of it is mappable.
    ///
    /// # Errors
    /// As the host says.
    fn map(&self, region: &Region, range: Range<u64>) -> Result<DeviceMemory>;

    /// Makes whole pages of a BAR, `range` of region `index`, known to other devices of the same host. They find it only
    /// while the device's memory is on.
    ///
    /// # Errors
    /// `ENOTTY` before Linux 6.19 or without `CONFIG_VFIO_PCI_DMABUF`, `ENODEV` if the host does not have the BAR,
    /// `EINVAL` for a range that is not in it.
    fn share(&self, index: u32, range: Range<u64>) -> Result<SharedMemory>;

    /// Asks for the interrupts of one kind; a device that has none of it has a count of 0.
    ///
    /// # Errors
    /// As the host says.
    fn irqs(&self, kind: u32) -> Result<Irqs>;

    /// Lets interrupts of `kind` from number `start` on signal `events`; `None` takes one off. The first call for
    /// MSI or MSI-X switches that kind on, and the numbers that are given then are all unless more can be added.
    ///
    /// # Errors
    /// `ENOSPC` if the host has not as many, `EINVAL` while another kind is on.
    fn set_irqs(&self, kind: u32, start: u32, events: &[Option<&EventFd>]) -> Result<()>;

    /// Lets the interrupt line, which the host masks when it was asserted, be heard again. If it still is asserted, its
    /// event is signalled at once.
    ///
    /// # Errors
    /// `EINVAL` if it is not on, `ENOTTY` for other kinds.
    fn unmask_irqs(&self, kind: u32) -> Result<()>;

    /// Switches a kind off.
    ///
    /// # Errors
    /// As the host says.
    fn disable_irqs(&self, kind: u32) -> Result<()>;

    /// Resets the function. Mappings of its memory stay; what they show is undefined until memory is switched on
    /// again.
    ///
    /// # Errors
    /// `EINVAL` if it cannot be reset, `EAGAIN` while somebody else does.
    fn reset(&self) -> Result<()>;
}

//! What the host has to have so that its tables can be copies of a guest's.

use iommu_core::{HostError, IovaRange, SourceId};

use super::areas::Area;
use crate::memory::HostRange;

/// Address spaces of the host's, and the devices that use them. Called with one lock held; calls only the kernel.
pub trait AddressSpaces: Send {
    /// One address space. What is in it when it is dropped need not have been taken out.
    type Space: Send;

    /// Whether devices may share an address space. If not, each has one of its own that it always uses, and is
    /// blocked by emptying it: an address space is made and filled for a device that is detached.
    const SHARED: bool;

    /// Takes note of guest memory, and lets at it who is attached to memory as it is.
    ///
    /// # Errors
    /// The host refused.
    fn add_memory(&mut self, memory: &HostRange) -> Result<(), HostError>;

    /// An empty address space that a device can be attached to.
    ///
    /// # Errors
    /// The host refused.
    fn make(&mut self, source: SourceId) -> Result<Self::Space, HostError>;

    /// Maps an area, which overlaps none that is mapped. `memory` is the guest memory that it leads to.
    ///
    /// # Errors
    /// The host refused. Nothing is mapped.
    fn map(&mut self, space: &Self::Space, area: &Area, memory: &HostRange) -> Result<(), HostError>;

    /// Takes back areas that follow each other without a gap, and fill `range`. On return nothing is in flight
    /// through them.
    ///
    /// # Errors
    /// The host refused. Some may be gone.
    fn unmap(&mut self, space: &Self::Space, range: &IovaRange) -> Result<(), HostError>;

    /// Attaches a detached device to an address space.
    ///
    /// # Errors
    /// The host refused; whether the device is detached is unknown.
    fn attach(&mut self, source: SourceId, space: &Self::Space) -> Result<(), HostError>;

    /// Lets a detached device at guest memory as it is: all of `ram`.
    ///
    /// # Errors
    /// As [`Self::attach`].
    fn attach_memory(&mut self, source: SourceId, ram: &[HostRange]) -> Result<(), HostError>;

    /// Detaches a device. On return nothing of it is in flight.
    ///
    /// # Errors
    /// The device may still use what it was attached to: [`HostError::still_bound`].
    fn detach(&mut self, source: SourceId) -> Result<(), HostError>;

    /// Closes a device's file, which detaches it whatever happened before.
    fn remove(&mut self, source: SourceId);
}

//! Containers as address spaces.

use std::collections::BTreeMap;

use iommu_core::{HostError, IovaRange, Permissions, SourceId};
use rustix::io::Errno;

use crate::caps::Offer;
use crate::kernel::{self, ContainerFile};
use crate::memory::{HostRange, INTERRUPT_WINDOW};
use crate::object::{BIND, MAP, refused};
use crate::shadow::{AddressSpaces, Area, Shadow, width};

/// Devices of one guest whose second-stage tables are copied into legacy VFIO containers.
pub type ContainerIommu = Shadow<Containers>;

impl Default for ContainerIommu {
    fn default() -> Self {
        Self::over(Containers::default(), Vec::new())
    }
}

impl ContainerIommu {
    /// Takes a device in, blocked, and says what the guest may be offered. `source` is what the guest knows it by;
    /// the container holds its group and is empty.
    ///
    /// # Errors
    /// The host refused a step; the file is closed then. `EEXIST` if there is a device of this name.
    pub fn add_device(&self, source: SourceId, file: Box<dyn ContainerFile>) -> Result<Offer, HostError> {
        self.insert(source, |containers| containers.add(source, file))
    }
}

/// One container for each device.
#[derive(Default)]
pub struct Containers(BTreeMap<SourceId, Container>);

struct Container {
    file: Box<dyn ContainerFile>,
    /// All guest memory is mapped, as it is.
    passes_through: bool,
}

impl Containers {
    fn add(&mut self, source: SourceId, file: Box<dyn ContainerFile>) -> Result<u32, HostError> {
        let usable = file.iova_ranges();
        let usable = usable.map_err(|errno| refused("ask for usable addresses", name(source), errno))?;
        self.0.insert(source, Container { file, passes_through: false });
        Ok(width(&usable))
    }

    fn of(&mut self, source: SourceId) -> Result<&mut Container, HostError> {
        self.0.get_mut(&source).ok_or_else(|| refused(BIND, name(source), Errno::NODEV))
    }
}

impl Container {
    fn map(
        &self,
        source: SourceId,
        iova: u64,
        memory: &HostRange,
        permissions: Permissions,
    ) -> Result<(), HostError> {
        let mapped = self.file.map(iova, memory, permissions);
        mapped.map_err(|errno| refused(MAP, format!("{} at {iova:#x}", name(source)), errno))
    }

    fn map_memory(&self, source: SourceId, memory: &HostRange) -> Result<(), HostError> {
        self.map(source, memory.guest().start(), memory, Permissions::READ_WRITE)
    }

    /// Takes everything back; tried twice, because nothing else makes sure that the device is stopped.
    fn clear(&mut self, source: SourceId) -> Result<(), HostError> {
        self.passes_through = false;
        self.empty().or_else(|_| self.empty()).map_err(|errno| {
            let mut error = refused("empty", name(source), errno);
            error.still_bound = true;
            error
        })
    }

    /// At once where the host can. One before Linux 5.12 knows ranges only, and the length of all there is does not fit
    /// into a number; the half of it that such a kernel might miss is beyond what any IOMMU takes.
    fn empty(&self) -> kernel::Result<()> {
        match self.file.unmap(IovaRange::ALL) {
            Err(Errno::INVAL) => {
                [0, 1 << 63].iter().try_for_each(|start| self.file.unmap(IovaRange::aligned(*start, 63)))
            }
            done => done,
        }
    }
}

fn name(source: SourceId) -> String {
    format!("container of device {source}")
}

impl AddressSpaces for Containers {
    /// The container of this device.
    type Space = SourceId;

    const SHARED: bool = false;

    fn add_memory(&mut self, memory: &HostRange) -> Result<(), HostError> {
        if memory.guest().overlaps(&INTERRUPT_WINDOW) {
            return Err(refused(MAP, format!("containers at {memory:?}"), Errno::ADDRINUSE));
        }
        let passing = || self.0.iter().filter(|(_, container)| container.passes_through);
        for (number, (source, container)) in passing().enumerate() {
            if let Err(error) = container.map_memory(*source, memory) {
                // All of them or none. What cannot be taken back goes when the container is emptied.
                for (source, container) in passing().take(number) {
                    let unmapped = container.file.unmap(memory.guest());
                    let _ = unmapped
                        .inspect_err(|errno| log::warn!("{} keeps {memory:?}: {errno}", name(*source)));
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn make(&mut self, source: SourceId) -> Result<SourceId, HostError> {
        Ok(source)
    }

    fn map(&mut self, space: &SourceId, area: &Area, memory: &HostRange) -> Result<(), HostError> {
        self.of(*space)?.map(*space, area.iova.start(), memory, area.permissions)
    }

    fn unmap(&mut self, space: &SourceId, range: &IovaRange) -> Result<(), HostError> {
        let unmapped = self.of(*space)?.file.unmap(*range);
        unmapped.map_err(|errno| {
            let place = format!("{} at {:#x}-{:#x}", name(*space), range.start(), range.last());
            refused("unmap", place, errno)
        })
    }

    fn attach(&mut self, _: SourceId, _: &SourceId) -> Result<(), HostError> {
        // It always is.
        Ok(())
    }

    fn attach_memory(&mut self, source: SourceId, ram: &[HostRange]) -> Result<(), HostError> {
        let container = self.of(source)?;
        container.passes_through = true;
        ram.iter().try_for_each(|range| container.map_memory(source, range))
    }

    fn detach(&mut self, source: SourceId) -> Result<(), HostError> {
        self.of(source)?.clear(source)
    }

    fn remove(&mut self, source: SourceId) {
        self.0.remove(&source);
    }
}

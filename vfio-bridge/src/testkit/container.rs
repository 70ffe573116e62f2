//! Legacy containers, each with the group of one device in it.

use iommu_core::{IovaRange, Permissions};
use rustix::io::Errno;

use super::space::{Space, Target, usable};
use super::{Call, Damage, FakeKernel};
use crate::kernel::{ContainerFile, Result};
use crate::memory::HostRange;

/// How many mappings a container takes, as Linux has it.
pub const CONTAINER_LIMIT: usize = 65535;

/// The open file of a container.
pub struct FakeContainer {
    kernel: FakeKernel,
    index: usize,
}

impl FakeContainer {
    /// The number that [`FakeKernel::contained`] knows it by.
    #[must_use]
    pub fn number(&self) -> usize {
        self.index
    }
}

impl FakeKernel {
    /// Opens a container with a device in it. Containers are numbered from 0 in order.
    #[must_use]
    pub fn open_container(&self) -> FakeContainer {
        let mut world = self.world();
        world.containers.push(Some(Space::default()));
        FakeContainer { kernel: self.clone(), index: world.containers.len() - 1 }
    }

    /// Where an address of a container's device leads in this process. `None`: it is refused.
    #[must_use]
    pub fn contained(&self, container: usize, address: u64) -> Option<(u64, Permissions)> {
        self.world().containers.get(container)?.as_ref()?.lookup_memory(address)
    }
}

impl ContainerFile for FakeContainer {
    fn map(&self, iova: u64, memory: &HostRange, permissions: Permissions) -> Result<()> {
        let mut world = self.kernel.world();
        world.enter(Call::ContainerMap).map_err(|f| f.errno)?;
        let space = world.containers[self.index].as_mut().ok_or(Errno::BADF)?;
        if space.len() >= CONTAINER_LIMIT {
            return Err(Errno::NOSPC);
        }
        space.map(iova, memory.len_bytes(), (Target::Memory(memory.host_address()), permissions), true)
    }

    fn unmap(&self, range: IovaRange) -> Result<()> {
        let mut world = self.kernel.world();
        let failure = world.enter(Call::ContainerUnmap).err();
        if range == IovaRange::ALL && !world.supports_unmap_all {
            return Err(failure.map_or(Errno::INVAL, |failure| failure.errno));
        }
        let space = world.containers[self.index].as_mut().ok_or(Errno::BADF)?;
        if failure.is_none_or(|failure| failure.damage == Damage::Done) {
            if space.cuts(&range) {
                return Err(Errno::INVAL);
            }
            space.unmap(&range);
        }
        failure.map_or(Ok(()), |failure| Err(failure.errno))
    }

    fn iova_ranges(&self) -> Result<Vec<IovaRange>> {
        let mut world = self.kernel.world();
        world.enter(Call::ContainerInfo).map_err(|f| f.errno)?;
        Ok(usable())
    }
}

impl Drop for FakeContainer {
    fn drop(&mut self) {
        self.kernel.world().containers[self.index] = None;
    }
}

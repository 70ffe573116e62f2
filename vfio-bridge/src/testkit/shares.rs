//! Memory of devices that other devices are let at: dma-bufs, and mappings of them.

use std::ops::Range;
use std::os::fd::OwnedFd;

use iommu_core::Permissions;
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::io::Errno;

use super::space::Target;
use super::{FakeKernel, Object, World};
use crate::kernel::{ObjectId, Result};
use crate::memory::SharedMemory;

/// One dma-buf.
#[derive(Clone, Debug)]
pub(super) struct Share {
    /// What its file is told from others by.
    inode: u64,
    bar: u32,
    ranges: Vec<Range<u64>>,
    /// The device's memory is off.
    revoked: bool,
}

impl World {
    /// Makes a dma-buf, and says its number.
    pub(super) fn add_share(
        &mut self,
        bar: u32,
        ranges: &[Range<u64>],
        revoked: bool,
    ) -> Result<(usize, OwnedFd)> {
        let file = memfd_create("dma-buf", MemfdFlags::CLOEXEC)?;
        let inode = fstat(&file)?.st_ino;
        self.shares.push(Share { inode, bar, ranges: ranges.to_vec(), revoked });
        Ok((self.shares.len() - 1, file))
    }

    /// The memory behind dma-bufs is switched on or off. What is mapped goes for good.
    pub(super) fn revoke_shares(&mut self, numbers: &[usize], revoked: bool) {
        for &number in numbers {
            if let Some(share) = self.shares.get_mut(number) {
                share.revoked = revoked;
            }
            if revoked {
                let spaces = self.objects.values_mut().filter_map(|object| match object {
                    Object::Ioas(space) => Some(space),
                    _ => None,
                });
                spaces.for_each(|space| space.revoke(number));
            }
        }
    }

    pub(super) fn map_share(
        &mut self,
        ioas: ObjectId,
        iova: u64,
        memory: &SharedMemory,
        permissions: Permissions,
    ) -> Result<()> {
        let inode = fstat(memory).map_err(|_| Errno::BADF)?.st_ino;
        let number = self.shares.iter().position(|share| share.inode == inode).ok_or(Errno::OPNOTSUPP)?;
        let Share { ranges, revoked, .. } = &self.shares[number];
        if *revoked {
            return Err(Errno::NODEV);
        }
        let [range] = &ranges[..] else { return Err(Errno::OPNOTSUPP) };
        if memory.len_bytes() > range.end - range.start {
            return Err(Errno::INVAL);
        }
        if self.is_nest_parent(ioas.0) && !permissions.write {
            return Err(Errno::INVAL);
        }
        let used = self.is_used(ioas.0);
        let target = (Target::Device { share: number, offset: 0 }, permissions);
        self.space(ioas.0)?.map(iova, memory.len_bytes(), target, used)
    }
}

impl FakeKernel {
    /// Which BAR an address of a device's requests without PASID leads to, by the tables of the kernel's own, and at which
    /// offset. `None`: to none.
    #[must_use]
    pub fn lookup_bar(&self, device: usize, address: u64) -> Option<(u32, u64)> {
        let world = self.world();
        let (Target::Device { share, offset }, _) = world.space_of(device)?.lookup(address)? else {
            return None;
        };
        let share = world.shares.get(share)?;
        Some((share.bar, share.ranges.first()?.start + offset))
    }
}

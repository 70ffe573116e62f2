//! A kernel that says yes to everything and does nothing, for what is to be measured or counted without it.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use iommu_core::{IovaRange, Permissions};
use rustix::io::Errno;

use super::FULL_INFO;
use crate::kernel::{
    DeviceFile, Entries, FaultFile, HwInfo, HwptAlloc, IoasCopy, Kernel, ObjectId, Partial, Result,
};
use crate::memory::{HostRange, SharedMemory};

/// Says yes, but has no fault queues.
#[derive(Debug, Default)]
pub struct YesKernel {
    made: AtomicU32,
    flushes: AtomicUsize,
}

impl YesKernel {
    /// How many arrays of invalidations it was given.
    #[must_use]
    pub fn flushes(&self) -> usize {
        self.flushes.load(Ordering::Relaxed)
    }

    fn make(&self) -> ObjectId {
        ObjectId(self.made.fetch_add(1, Ordering::Relaxed).wrapping_add(1))
    }
}

impl Kernel for YesKernel {
    fn destroy(&self, _: ObjectId) -> Result<()> {
        Ok(())
    }

    fn ioas_alloc(&self) -> Result<ObjectId> {
        Ok(self.make())
    }

    fn ioas_map(&self, _: ObjectId, _: u64, _: &HostRange, _: Permissions) -> Result<()> {
        Ok(())
    }

    fn ioas_map_file(&self, _: ObjectId, _: u64, _: &SharedMemory, _: Permissions) -> Result<()> {
        Ok(())
    }

    fn ioas_copy(&self, _: &IoasCopy) -> Result<()> {
        Ok(())
    }

    fn ioas_iova_ranges(&self, _: ObjectId) -> Result<Vec<IovaRange>> {
        Ok(vec![IovaRange::ALL])
    }

    fn ioas_unmap(&self, _: ObjectId, _: IovaRange) -> Result<()> {
        Ok(())
    }

    fn hw_info(&self, _: ObjectId) -> Result<HwInfo> {
        Ok(FULL_INFO)
    }

    fn hwpt_alloc(&self, _: &HwptAlloc<'_>) -> Result<ObjectId> {
        Ok(self.make())
    }

    fn hwpt_invalidate(&self, _: ObjectId, _: &Entries<'_>) -> std::result::Result<(), Partial> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn fault_queue_alloc(&self) -> Result<(ObjectId, Box<dyn FaultFile>)> {
        Err(Errno::NOTTY)
    }
}

/// A device that can be attached to anything.
#[derive(Debug, Default)]
pub struct YesDevice;

impl DeviceFile for YesDevice {
    fn bind(&self) -> Result<ObjectId> {
        Ok(ObjectId(u32::MAX))
    }

    fn attach(&self, _: Option<u32>, _: ObjectId) -> Result<()> {
        Ok(())
    }

    fn detach(&self, _: Option<u32>) -> Result<()> {
        Ok(())
    }

    fn config_read(&self, _: u16, _: &mut [u8]) -> Result<()> {
        Err(Errno::IO)
    }
}

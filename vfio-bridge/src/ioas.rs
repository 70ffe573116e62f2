//! The address space that holds guest memory: input is a guest-physical address.

use iommu_core::sync::Mutex;
use iommu_core::{HostError, IovaRange, Permissions};
use rustix::io::Errno;
use std::sync::Arc;

use crate::kernel::ObjectId;
use crate::memory::{HostRange, INTERRUPT_WINDOW, SharedMemory};
use crate::object::{Kind, MAP, Object, Objects, SHARE, refused};

/// An IOAS.
///
/// Mappings are kept here too: the kernel takes them back whole only, and does not say how far it came when it
/// fails.
pub struct Ioas {
    object: Object,
    mapped: Mutex<Vec<HostRange>>,
    /// Device memory that the kernel did not take back.
    stale: Mutex<Vec<IovaRange>>,
}

/// Device memory that devices are let at, until this is dropped.
struct DeviceRange {
    ioas: Arc<Ioas>,
    range: IovaRange,
}

impl Drop for DeviceRange {
    fn drop(&mut self) {
        if let Err(errno) = self.ioas.take_back(&self.range) {
            let (start, last) = (self.range.start(), self.range.last());
            log::warn!("device memory at {start:#x}-{last:#x} is not taken back yet: {errno}");
            self.ioas.stale.lock().push(self.range);
        }
    }
}

impl Ioas {
    pub(crate) fn new(objects: &Arc<Objects>) -> Result<Self, HostError> {
        let made = objects.kernel().ioas_alloc();
        let id = made.map_err(|errno| refused("make", Kind::Ioas, errno))?;
        Ok(Self { object: objects.own(Kind::Ioas, id), mapped: Mutex::default(), stale: Mutex::default() })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.object.id()
    }

    pub(crate) fn objects(&self) -> &Arc<Objects> {
        self.object.owner()
    }

    /// Lets devices at a range of guest memory. It is pinned and stays so until [`Self::unmap`].
    ///
    /// # Errors
    /// The host refused, or the range reaches into [`INTERRUPT_WINDOW`] (`EADDRINUSE`). Nothing is mapped then.
    pub fn map(&self, memory: HostRange) -> Result<(), HostError> {
        let mut mapped = self.mapped.lock();
        let guest = memory.guest();
        let done = if guest.overlaps(&INTERRUPT_WINDOW) {
            Err(Errno::ADDRINUSE)
        } else {
            self.object.kernel().ioas_map(self.id(), guest.start(), &memory, Permissions::READ_WRITE)
        };
        done.map_err(|errno| refused(MAP, format!("{} at {memory:?}", self.object), errno))?;
        mapped.push(memory);
        Ok(())
    }

    /// Lets devices at another's memory, from guest address `start` on, until the answer is dropped. When the other is
    /// reset or its memory is switched off, they find nothing any more: that takes a new call.
    ///
    /// # Errors
    /// The host refused (`ENODEV`: the memory is off), or the range reaches into [`INTERRUPT_WINDOW`] (`EADDRINUSE`).
    pub(crate) fn share(
        self: &Arc<Self>,
        start: u64,
        memory: &SharedMemory,
    ) -> Result<Box<dyn Send + Sync>, HostError> {
        let last = memory.len_bytes().checked_sub(1).and_then(|more| start.checked_add(more));
        let range = last.and_then(|last| IovaRange::new(start, last));
        let map = |range: IovaRange| {
            if range.overlaps(&INTERRUPT_WINDOW) {
                return Err(Errno::ADDRINUSE);
            }
            self.stale.lock().retain(|range| self.take_back(range).is_err());
            self.object.kernel().ioas_map_file(self.id(), start, memory, Permissions::READ_WRITE)?;
            Ok(range)
        };
        match range.ok_or(Errno::OVERFLOW).and_then(map) {
            Ok(range) => Ok(Box::new(DeviceRange { ioas: self.clone(), range })),
            Err(errno) => Err(refused(SHARE, format!("{} at {start:#x}", self.object), errno)),
        }
    }

    /// Takes back what [`Self::share`] gave.
    fn take_back(&self, range: &IovaRange) -> Result<(), Errno> {
        match self.object.kernel().ioas_unmap(self.id(), *range) {
            // Whole ranges only are ever asked for, so "not there" means gone.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// What is mapped.
    pub(crate) fn mapped(&self) -> Vec<HostRange> {
        self.mapped.lock().clone()
    }

    /// Takes back what [`Self::map`] gave; `guest` must be a whole range of it.
    ///
    /// # Errors
    /// No such range (`ENOENT`), or the host refused and it is still mapped.
    pub fn unmap(&self, guest: IovaRange) -> Result<(), HostError> {
        let mut mapped = self.mapped.lock();
        let failed = |errno| {
            let place = format!("{} at {:#x}-{:#x}", self.object, guest.start(), guest.last());
            refused("unmap guest memory", place, errno)
        };
        let index = mapped.iter().position(|range| range.guest() == guest);
        let index = index.ok_or_else(|| failed(Errno::NOENT))?;
        self.take_back(&guest).map_err(failed)?;
        mapped.swap_remove(index);
        Ok(())
    }
}

//! The address space that holds guest memory: input is a guest-physical address.

use iommu_core::sync::Mutex;
use iommu_core::{HostError, IovaRange, Permissions};
use rustix::io::Errno;
use std::sync::Arc;

use crate::kernel::ObjectId;
use crate::memory::{HostRange, INTERRUPT_WINDOW};
use crate::object::{Kind, MAP, Object, Objects, refused};

/// An IOAS.
///
/// Mappings are kept here too: the kernel takes them back whole only, and does not say how far it came when it
/// fails.
pub struct Ioas {
    object: Object,
    mapped: Mutex<Vec<HostRange>>,
}

impl Ioas {
    pub(crate) fn new(objects: &Arc<Objects>) -> Result<Self, HostError> {
        let made = objects.kernel().ioas_alloc();
        let id = made.map_err(|errno| refused("make", Kind::Ioas, errno))?;
        Ok(Self { object: objects.own(Kind::Ioas, id), mapped: Mutex::default() })
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
        match self.object.kernel().ioas_unmap(self.id(), guest) {
            // Whole ranges only are ever asked for, so "not there" means gone.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        mapped.swap_remove(index);
        Ok(())
    }
}

//! Copies in address spaces of an iommufd. Pages are pinned and charged once, whatever number of domains lead to
//! them: mappings are copied from the address space that holds guest memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu_core::{HostError, IovaRange, SourceId};
use rustix::io::Errno;

use super::areas::Area;
use super::backend::Shadow;
use super::spaces::AddressSpaces;
use crate::caps::Offer;
use crate::device::Device;
use crate::ioas::Ioas;
use crate::kernel::{DeviceFile, HwptAlloc, IoasCopy, Kernel, ObjectId};
use crate::memory::HostRange;
use crate::object::{ATTACH, BIND, Kind, MAKE_PAGE_TABLE, MAP, Object, Objects, refused};

/// Devices of one guest whose second-stage tables are copied into address spaces of an iommufd. For hosts that cannot
/// nest; of any vendor.
pub type ShadowIommu = Shadow<IommufdSpaces>;

impl ShadowIommu {
    /// Without memory and devices.
    ///
    /// # Errors
    /// The host gives no address space.
    pub fn new(kernel: Arc<dyn Kernel>) -> Result<Self, HostError> {
        Ok(Self::beside(Arc::new(Ioas::new(&Objects::new(kernel))?)))
    }

    /// For the devices behind another unit of the same guest, by whatever way the first goes. Memory that
    /// `ioas` has is shared.
    pub(crate) fn beside(ioas: Arc<Ioas>) -> Self {
        let ram = ioas.mapped();
        Self::over(IommufdSpaces { devices: BTreeMap::new(), tables: Vec::new(), ioas, copies: true }, ram)
    }

    /// Takes a device in, blocked, and says what the guest may be offered. `source` is what the guest knows it by.
    ///
    /// The device's bus mastering has to be off: it is attached to guest memory for a moment, to see what of an
    /// address space it can use.
    ///
    /// # Errors
    /// The host refused a step; the device's file is closed then. `EEXIST` if there is one of this name.
    pub fn add_device(&self, source: SourceId, file: Box<dyn DeviceFile>) -> Result<Offer, HostError> {
        self.insert(source, |spaces| {
            let device = Device::bind(spaces.kernel(), source, file)?;
            spaces.add(device)
        })
    }

    /// The same for a device that is bound to the iommufd already.
    pub(crate) fn add_bound(&self, device: Device) -> Result<Offer, HostError> {
        self.insert(device.source(), |spaces| spaces.add(device))
    }

    /// The address space that holds guest memory.
    pub(crate) fn ioas(&self) -> Arc<Ioas> {
        self.look(|spaces| spaces.ioas.clone())
    }
}

/// The address spaces of an iommufd. Fields are dropped in this order: devices before what they are attached to.
pub struct IommufdSpaces {
    /// Each with the number of the table that leads it to guest memory.
    devices: BTreeMap<SourceId, (Device, usize)>,
    tables: Vec<MemoryTable>,
    ioas: Arc<Ioas>,
    /// The kernel copies mappings.
    copies: bool,
}

/// An IOAS with a domain's copy.
pub struct IommufdSpace(Object);

/// A page table of the kernel's own that leads guest-physical addresses to memory. As long as there is one, memory is
/// pinned.
struct MemoryTable(Object);

impl MemoryTable {
    fn new(ioas: &Arc<Ioas>, device: &Device) -> Result<Self, HostError> {
        let request = HwptAlloc {
            device: device.id(),
            parent: ioas.id(),
            nest_parent: false,
            pasid: false,
            fault_queue: None,
            data: None,
        };
        let made = ioas.objects().kernel().hwpt_alloc(&request);
        let id = made.map_err(|errno| refused(MAKE_PAGE_TABLE, device, errno))?;
        Ok(Self(ioas.objects().own(Kind::Paging, id)))
    }
}

impl IommufdSpaces {
    fn kernel(&self) -> &dyn Kernel {
        self.ioas.objects().kernel()
    }

    /// Takes a bound device in. The width of addresses that it can use, in bits.
    fn add(&mut self, device: Device) -> Result<u32, HostError> {
        let (table, bits) = self.find_table(&device)?;
        self.devices.insert(device.source(), (device, table));
        Ok(bits)
    }

    /// A table that the device's IOMMU can use, by number; one more is made if there is none. Devices behind
    /// different units may need different ones; only attaching tells.
    fn find_table(&mut self, device: &Device) -> Result<(usize, u32), HostError> {
        for (number, table) in self.tables.iter().enumerate() {
            match self.try_table(device, table.0.id()) {
                Ok(bits) => return Ok((number, bits)),
                Err(error) if Errno::from_io_error(&error.source) == Some(Errno::INVAL) => {}
                Err(error) => return Err(error),
            }
        }
        let table = MemoryTable::new(&self.ioas, device)?;
        let bits = self.try_table(device, table.0.id())?;
        self.tables.push(table);
        Ok((self.tables.len() - 1, bits))
    }

    /// Attaches for a moment. How wide addresses may be, in bits.
    fn try_table(&self, device: &Device, table: ObjectId) -> Result<u32, HostError> {
        let tried = device.attach(None, table).and_then(|()| {
            let usable = self.kernel().ioas_iova_ranges(self.ioas.id());
            usable.map_err(|errno| refused("ask for usable addresses", device, errno))
        });
        device.detach(None)?;
        Ok(width(&tried?))
    }

    fn device(&self, source: SourceId) -> Result<&(Device, usize), HostError> {
        self.devices.get(&source).ok_or_else(|| refused(BIND, format!("device {source}"), Errno::NODEV))
    }
}

/// **Pure.** All addresses of so many bits are usable, windows aside.
pub(crate) fn width(usable: &[IovaRange]) -> u32 {
    let last = usable.iter().map(IovaRange::last).max().unwrap_or(0);
    last.checked_add(1).map_or(u64::BITS, u64::ilog2)
}

impl AddressSpaces for IommufdSpaces {
    type Space = IommufdSpace;

    const SHARED: bool = true;

    fn add_memory(&mut self, memory: &HostRange) -> Result<(), HostError> {
        self.ioas.map(memory.clone())
    }

    fn make(&mut self, _: SourceId) -> Result<IommufdSpace, HostError> {
        let made = self.kernel().ioas_alloc();
        let id = made.map_err(|errno| refused("make", Kind::Ioas, errno))?;
        Ok(IommufdSpace(self.ioas.objects().own(Kind::Ioas, id)))
    }

    fn map(&mut self, space: &IommufdSpace, area: &Area, memory: &HostRange) -> Result<(), HostError> {
        if self.copies {
            let copied = self.kernel().ioas_copy(&IoasCopy {
                from: self.ioas.id(),
                range: memory.guest(),
                to: space.0.id(),
                iova: area.iova.start(),
                permissions: area.permissions,
            });
            match copied {
                Ok(()) => return Ok(()),
                Err(Errno::NOTTY | Errno::OPNOTSUPP) => self.copies = false,
                Err(_) => {}
            }
        }
        let mapped = self.kernel().ioas_map(space.0.id(), area.iova.start(), memory, area.permissions);
        mapped.map_err(|errno| refused(MAP, place(space, &area.iova), errno))
    }

    fn unmap(&mut self, space: &IommufdSpace, range: &IovaRange) -> Result<(), HostError> {
        let unmapped = self.kernel().ioas_unmap(space.0.id(), *range);
        unmapped.map_err(|errno| refused("unmap", place(space, range), errno))
    }

    fn attach(&mut self, source: SourceId, space: &IommufdSpace) -> Result<(), HostError> {
        self.device(source)?.0.attach(None, space.0.id())
    }

    fn attach_memory(&mut self, source: SourceId, _: &[HostRange]) -> Result<(), HostError> {
        let (device, table) = self.device(source)?;
        let table = self.tables.get(*table).ok_or_else(|| refused(ATTACH, device, Errno::NOENT))?;
        device.attach(None, table.0.id())
    }

    fn detach(&mut self, source: SourceId) -> Result<(), HostError> {
        self.device(source)?.0.detach(None)
    }

    fn remove(&mut self, source: SourceId) {
        self.devices.remove(&source);
    }
}

fn place(space: &IommufdSpace, range: &IovaRange) -> String {
    format!("{} at {:#x}-{:#x}", space.0, range.start(), range.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_of_what_can_be_used() {
        let range = |start, last| IovaRange::new(start, last).unwrap();
        let rows = [
            ("everything", vec![IovaRange::ALL], 64),
            ("48 bits and a window", vec![range(0, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1)], 48),
            ("the lower half of 48", vec![range(0, (1 << 47) - 1)], 47),
            ("not quite 39", vec![range(0, (1 << 39) - 0x1001)], 38),
            ("nothing", vec![], 0),
        ];
        for (name, usable, bits) in rows {
            assert_eq!(width(&usable), bits, "{name}");
        }
    }
}

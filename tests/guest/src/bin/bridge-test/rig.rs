//! The endpoint behind the bridge.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use guest::endpoint::{self, BAR_BYTES, Queue, QueueSetup, Records, Registers, global};
use guest::sys::{Bar, Mapping, PAGE, PAGE_BYTES, Protection, Sharing};
use iommu_core::{Domain, HostError, Invalidation, IovaRange, Scope, SourceId};
use vfio_bridge::choice::{Choice, Doors, Wanted};
use vfio_bridge::choose;
use vfio_bridge::kernel::{ContainerFile, DeviceFile, Kernel};
use vfio_bridge::sys::{Cdev, Container, FunctionHandle, Iommufd};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::tables::{DOMAIN, Tables};

/// What the guest calls the endpoint.
const SOURCE: SourceId = SourceId(8);
/// Pages of the guest's memory, from 0 on.
pub(crate) const PAGES: usize = 2048;
/// Where the guest has memory for completion records.
const RECORDS: u64 = 1 << 32;
/// What devices call it.
const RECORDS_IOVA: u64 = 0x7f_0000_0000;

/// Where the endpoint is found.
pub(crate) struct Place {
    name: String,
    node: PathBuf,
    group: PathBuf,
}

impl Place {
    /// Gives the endpoint to `vfio-pci`.
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        let node = guest::vfio::give_to_vfio(folder)?;
        let name = folder.file_name().context("no name")?.to_string_lossy().into_owned();
        let group = fs::read_link(folder.join("iommu_group")).context("no IOMMU group")?;
        let group = Path::new("/dev/vfio").join(group.file_name().context("no group")?);
        Ok(Self { name, node, group })
    }

    /// The endpoint's address on the bus.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Opens what the bridge asks for, and keeps the device's file.
struct Opener<'a> {
    place: &'a Place,
    iommufd: RefCell<Option<Iommufd>>,
    device: RefCell<Option<File>>,
}

/// Whatever the reason, as an error of the bridge's.
fn refused(operation: &'static str, object: &Path, source: std::io::Error) -> HostError {
    HostError { operation, object: object.display().to_string(), still_bound: false, source }
}

impl Doors for Opener<'_> {
    fn iommufd(&self) -> Result<Arc<dyn Kernel>, HostError> {
        let iommufd = Iommufd::open()?;
        *self.iommufd.borrow_mut() = Some(iommufd.clone());
        Ok(Arc::new(iommufd))
    }

    fn device(&self, _: SourceId) -> Result<Box<dyn DeviceFile>, HostError> {
        let node = &self.place.node;
        let opened = OpenOptions::new().read(true).write(true).open(node);
        let file = opened.map_err(|error| refused("open", node, error))?;
        let copy = file.try_clone().map_err(|error| refused("clone", node, error))?;
        *self.device.borrow_mut() = Some(file);
        let iommufd = self.iommufd.borrow().clone();
        let iommufd = iommufd.ok_or_else(|| refused("find", node, std::io::ErrorKind::NotFound.into()))?;
        Ok(Box::new(Cdev::from_fd(copy.into(), &iommufd)))
    }

    fn container(&self, _: SourceId) -> Result<Box<dyn ContainerFile>, HostError> {
        let container = Container::open(&self.place.group)?;
        let device = container.device(&self.place.name)?;
        *self.device.borrow_mut() = Some(device.into());
        Ok(Box::new(container))
    }
}

/// The endpoint, taken in by the bridge and blocked.
pub(crate) struct Rig {
    pub(crate) choice: Choice,
    pub(crate) tables: Arc<Tables>,
    /// The guest's memory.
    pub(crate) memory: Mapping,
    records: Arc<Mapping>,
    pub(crate) registers: Arc<dyn Registers>,
    pub(crate) device: File,
}

impl Rig {
    pub(crate) fn open(place: &Place, wanted: Wanted) -> Result<Self> {
        let opener = Opener { place, iommufd: RefCell::default(), device: RefCell::default() };
        let choice = choose(wanted, &[SOURCE], &opener, None).map_err(told)?;
        let tables = Arc::new(Tables::default());
        choice.bridge.set_mappings(tables.clone());
        let (ram, memory) = shared(PAGES)?;
        let (ring, records) = shared(1)?;
        let ranges = [(GuestAddress(0), PAGES * PAGE, Some(ram)), (GuestAddress(RECORDS), PAGE, Some(ring))];
        let guest = GuestMemoryMmap::<()>::from_ranges_with_files(ranges).context("no memory")?;
        choice.bridge.add_memory(&guest).map_err(told)?;
        let device = opener.device.take().context("no device was opened")?;
        let registers: Arc<dyn Registers> =
            Arc::new(Bar::map(&device, 0, BAR_BYTES).context("cannot map BAR0")?);
        master(&device)?;
        ensure!(registers.read32(global::STATUS) & global::BUS_MASTER != 0, "bus mastering stays off");
        endpoint::identify(registers.as_ref())?;
        endpoint::reset(registers.as_ref())?;
        Ok(Self { choice, tables, memory, records: Arc::new(records), registers, device })
    }

    /// The endpoint as an assigned function knows it.
    pub(crate) fn function(&self) -> Result<FunctionHandle> {
        Ok(FunctionHandle::from_fd(self.device.try_clone().context("no more files")?.into()))
    }

    /// Binds the endpoint.
    pub(crate) fn bind(&self, domain: &Domain) -> Result<()> {
        self.choice.bridge.iommu().set_domain(SOURCE, None, domain).map_err(told)
    }

    /// Announces `pages` pages, as a driver does that waits.
    pub(crate) fn announce(&self, iova: u64, pages: u64) -> Result<()> {
        let range = IovaRange::new(iova, iova + pages * PAGE_BYTES - 1).context("no pages")?;
        let iommu = self.choice.bridge.iommu();
        iommu.invalidate(&Invalidation::new(Scope::DomainRange { domain: DOMAIN, range }));
        iommu.sync().map_err(told)
    }

    /// Enables a queue whose records the domain shows.
    pub(crate) fn queue(&self) -> Result<Queue> {
        self.tables.map(RECORDS_IOVA, RECORDS);
        self.announce(RECORDS_IOVA, 1)?;
        Ok(self.queue_at(RECORDS_IOVA))
    }

    /// The same for a device that passes through.
    pub(crate) fn queue_past(&self) -> Queue {
        self.queue_at(RECORDS)
    }

    fn queue_at(&self, device_address: u64) -> Queue {
        let records = Records { memory: self.records.clone(), device_address };
        Queue::enable(self.registers.clone(), 0, QueueSetup { pasid: None, vector: None }, records)
    }
}

/// An error with its reason.
pub(crate) fn told(error: HostError) -> anyhow::Error {
    let advice = vfio_bridge::advice::advice(&error).unwrap_or("no advice");
    anyhow::anyhow!("{error}: {} ({advice})", error.source)
}

/// Memory that is mapped twice: as the guest's, and for this program to look at.
fn shared(pages: usize) -> Result<(FileOffset, Mapping)> {
    const NAME: &str = "/tmp/bridge-test";
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(NAME);
    let file = options.context(NAME)?;
    fs::remove_file(NAME)?;
    file.set_len((pages * PAGE) as u64)?;
    let mapping = Mapping::file(&file, pages * PAGE, Protection::ReadWrite, Sharing::Shared)?;
    Ok((FileOffset::new(file, 0), mapping))
}

/// Where VFIO has the command register: region 7.
pub(crate) const COMMAND: u64 = (7 << 40) + 4;
/// Its bits for memory space and bus mastering.
pub(crate) const MEMORY_AND_MASTER: u16 = 0b110;

/// Switches memory space and bus mastering on.
fn master(device: &File) -> Result<()> {
    let mut word = [0; 2];
    device.read_exact_at(&mut word, COMMAND).context("no configuration space")?;
    let command = u16::from_le_bytes(word) | MEMORY_AND_MASTER;
    device.write_all_at(&command.to_le_bytes(), COMMAND).context("no configuration space")
}

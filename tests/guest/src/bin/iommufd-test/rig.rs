//! The endpoint in the hands of this program: memory, an address space, queues.

use std::cell::Cell;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use guest::endpoint::{self, BAR_BYTES, Counters, Queue, QueueSetup, Records, Registers, global};
use guest::suite::Skip;
use guest::sys::{Bar, Mapping, PAGE_BYTES};

use crate::fault_queue::FaultQueue;
use crate::memory::Memory;
use crate::sys::{HwInfo, HwptKind, Id, Iommufd, Vfio, hwpt_flags};
use crate::tables::Tables;

/// What devices call the first byte of the memory.
pub(crate) const MEMORY: u64 = 0x1_0000_0000;
/// What devices call the completion records, a page for each queue, in every address space.
pub(crate) const RECORDS: u64 = 0x2_0000_0000;
const QUEUES: usize = 4;

/// Places for a function's features in what the unit says of itself.
const ECAP_NESTED: u64 = 1 << 26;
const CAP_FIRST_STAGE_FIVE_LEVELS: u64 = 1 << 60;
const CAP_FIRST_STAGE_1_GIB: u64 = 1 << 56;
const DIRTY_TRACKING: u64 = 1;

/// The endpoint, bound to an iommufd and enabled; nothing is attached yet.
pub(crate) struct Rig {
    /// Memory for devices.
    pub(crate) memory: Memory,
    /// Completion records, a page for each queue.
    pub(crate) records: Vec<Arc<Mapping>>,
    /// BAR0.
    pub(crate) registers: Arc<dyn Registers>,
    /// The function.
    pub(crate) vfio: Vfio,
    /// What all objects belong to.
    pub(crate) iommufd: Iommufd,
    /// The address space.
    pub(crate) ioas: Id,
    /// What the kernel says of the unit and the device.
    pub(crate) info: HwInfo,
    /// Page requests of this endpoint and those before; counted when this one goes, because the next reset makes
    /// the device forget them.
    asked: Rc<Cell<u64>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.asked.set(self.asked.get() + Counters::read(self.registers.as_ref()).page_requests);
    }
}

impl Rig {
    /// Binds the function and enables it. Page requests are to be added to `asked` in the end.
    pub(crate) fn open(node: &Path, asked: Rc<Cell<u64>>, memory: Memory) -> Result<Self> {
        let iommufd = Iommufd::open().context("cannot open /dev/iommu")?;
        let vfio = bind(node, &iommufd)?;
        let bar = vfio.region(0).context("no region for BAR0")?;
        ensure!(bar.size == BAR_BYTES as u64, "BAR0 has {:#x} bytes", bar.size);
        let offset = i64::try_from(bar.offset)?;
        let registers = Bar::map(vfio.file(), offset, BAR_BYTES).context("cannot map BAR0")?;
        let info = iommufd.hw_info(vfio.id()).context("GET_HW_INFO")?;
        let ioas = iommufd.ioas().context("IOAS_ALLOC")?;
        let page = || -> Result<Arc<Mapping>> {
            let page = Mapping::anonymous(guest::sys::PAGE)?;
            page.store(0, 0);
            Ok(Arc::new(page))
        };
        let records = (0..QUEUES).map(|_| page()).collect::<Result<_>>()?;
        let rig = Self { memory, records, registers: Arc::new(registers), vfio, iommufd, ioas, info, asked };
        rig.enable()?;
        endpoint::identify(rig.registers.as_ref())?;
        endpoint::reset(rig.registers.as_ref())?;
        Ok(rig)
    }

    /// Switches memory space and bus mastering on, which a reset switches off.
    pub(crate) fn enable(&self) -> Result<()> {
        const CONFIGURATION: u32 = 7;
        const COMMAND: u64 = 4;
        let region = self.vfio.region(CONFIGURATION).context("no configuration space")?;
        let mut word = [0; 2];
        self.vfio.file().read_exact_at(&mut word, region.offset + COMMAND)?;
        let command = u16::from_le_bytes(word) | 0b110;
        self.vfio.file().write_all_at(&command.to_le_bytes(), region.offset + COMMAND)?;
        ensure!(self.status() & global::BUS_MASTER != 0, "bus mastering stays off");
        Ok(())
    }

    /// The endpoint's STATUS register.
    pub(crate) fn status(&self) -> u32 {
        self.registers.read32(global::STATUS)
    }

    /// Shows the device memory and records.
    pub(crate) fn map_all(&self) -> Result<()> {
        self.iommufd.map(self.ioas, self.memory.mapping(), MEMORY, true).context("IOAS_MAP of the memory")?;
        for (page, address) in self.records.iter().zip(record_addresses()) {
            self.iommufd.map(self.ioas, page, address, true).context("IOAS_MAP of the records")?;
        }
        Ok(())
    }

    /// The kernel's own page table over the address space, with everything mapped.
    pub(crate) fn paging(&self, flags: u32, fault: Option<&FaultQueue>) -> Result<Id> {
        let kind = HwptKind::Paging(self.ioas);
        let hwpt = self.iommufd.hwpt(self.vfio.id(), kind, flags, fault.map(FaultQueue::id));
        let hwpt = hwpt.with_context(|| format!("HWPT_ALLOC with flags {flags:#x}"))?;
        self.map_all()?;
        Ok(hwpt)
    }

    /// A nest parent over the address space, with everything mapped, fit for PASIDs.
    pub(crate) fn parent(&self, more: u32) -> Result<Id> {
        if self.info.ecap & ECAP_NESTED == 0 {
            return Err(Skip("the unit has no nested translation").into());
        }
        self.paging(hwpt_flags::NEST_PARENT | hwpt_flags::PASID | more, None)
    }

    /// First-stage tables with the records mapped.
    pub(crate) fn space(&self) -> Result<Tables<'_>> {
        self.with_records(Tables::new(&self.memory, 4)?)
    }

    /// Maps the records.
    pub(crate) fn with_records<'a>(&self, mut tables: Tables<'a>) -> Result<Tables<'a>> {
        for address in record_addresses() {
            tables.map(address, address, crate::tables::READ_WRITE)?;
        }
        Ok(tables)
    }

    /// A nested page table, fit for PASIDs.
    pub(crate) fn nested(&self, parent: Id, tables: &Tables<'_>, fault: Option<&FaultQueue>) -> Result<Id> {
        let kind = HwptKind::Nested(parent, tables.describe());
        let hwpt = self.iommufd.hwpt(self.vfio.id(), kind, hwpt_flags::PASID, fault.map(FaultQueue::id));
        hwpt.context("HWPT_ALLOC of a nested table")
    }

    /// Attaches a page table.
    pub(crate) fn attach(&self, hwpt: Id, pasid: Option<u32>) -> Result<()> {
        self.vfio.attach(hwpt, pasid).with_context(|| format!("ATTACH to {}", target(pasid)))
    }

    /// Detaches what is attached.
    pub(crate) fn detach(&self, pasid: Option<u32>) -> Result<()> {
        self.vfio.detach(pasid).with_context(|| format!("DETACH from {}", target(pasid)))
    }

    /// Enables queue `index`, below 4, for requests with or without a PASID.
    pub(crate) fn queue(&self, index: usize, pasid: Option<u32>) -> Queue {
        let records = Records {
            memory: self.records[index].clone(),
            device_address: RECORDS + index as u64 * PAGE_BYTES,
        };
        Queue::enable(self.registers.clone(), index, QueueSetup { pasid, vector: None }, records)
    }

    /// The largest PASID that can be attached.
    pub(crate) fn last_pasid(&self) -> u32 {
        (1 << self.info.pasid_bits) - 1
    }

    /// PASIDs at both ends and in the middle, and none.
    pub(crate) fn targets(&self) -> Vec<Option<u32>> {
        vec![None, Some(1), Some(0x2_0041 & self.last_pasid()), Some(self.last_pasid())]
    }

    /// The unit has five levels in the first stage.
    pub(crate) fn has_five_levels(&self) -> bool {
        self.info.cap & CAP_FIRST_STAGE_FIVE_LEVELS != 0
    }

    /// The unit has pages of 1 GiB in the first stage.
    pub(crate) fn has_huge_leaves(&self) -> bool {
        self.info.cap & CAP_FIRST_STAGE_1_GIB != 0
    }

    /// The unit tracks dirty pages.
    pub(crate) fn tracks_dirty_pages(&self) -> bool {
        self.info.capabilities & DIRTY_TRACKING != 0
    }
}

/// What devices call the pages of records.
pub(crate) fn record_addresses() -> impl Iterator<Item = u64> {
    (0..QUEUES).map(|index| RECORDS + index as u64 * PAGE_BYTES)
}

/// A PASID, or the requests without one, for messages.
pub(crate) fn target(pasid: Option<u32>) -> String {
    pasid.map_or_else(|| "requests without PASID".to_owned(), |pasid| format!("PASID {pasid:#x}"))
}

/// Binds the function; where interrupts are not remapped, after saying that this is fine.
fn bind(node: &Path, iommufd: &Iommufd) -> Result<Vfio> {
    let refused = match Vfio::bind(node, iommufd) {
        Ok(vfio) => return Ok(vfio),
        Err(error) => error,
    };
    let about = || format!("cannot bind {}", node.display());
    let interrupts = refused.raw_os_error() == Some(1) && guest::vfio::accept_unsafe_interrupts()?;
    ensure!(interrupts, "{}: {refused}", about());
    println!("# interrupts are not remapped; accepted");
    Vfio::bind(node, iommufd).with_context(about)
}

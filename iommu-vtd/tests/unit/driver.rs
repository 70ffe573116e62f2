//! A machine with one unit, and a driver that speaks to it in the way Linux does.

use std::cell::Cell;
use std::sync::Arc;

use iommu_core::testkit::RecordingMsi;
use iommu_core::{Dma, Endpoint, Msi, SourceId};
use iommu_vtd::testkit::Tables;
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) type Memory = GuestMemoryMmap;

/// The invalidation queue: two pages, 256 descriptors of 256 bits.
pub(crate) const RING: u64 = 0x1_0000;
/// Where wait descriptors write their status.
pub(crate) const STATUS: u64 = 0x1_3000;
/// The page request queue: 16 pages, 2048 entries.
pub(crate) const PAGE_QUEUE: u64 = 0x2_0000;
pub(crate) const ENDPOINT: SourceId = SourceId::from_bdf(0, 3, 0);

pub(crate) const TE: u32 = 1 << 31;
pub(crate) const SRTP: u32 = 1 << 30;
pub(crate) const QIE: u32 = 1 << 26;
pub(crate) const IQE: u32 = 1 << 4;
pub(crate) const ITE: u32 = 1 << 6;

pub(crate) const GCMD: u64 = 0x18;
pub(crate) const GSTS: u64 = 0x1c;
pub(crate) const RTADDR: u64 = 0x20;
pub(crate) const FSTS: u64 = 0x34;
pub(crate) const IQH: u64 = 0x80;
pub(crate) const IQT: u64 = 0x88;
pub(crate) const IQA: u64 = 0x90;
pub(crate) const IQERCD: u64 = 0xb0;
pub(crate) const PQH: u64 = 0xc0;
pub(crate) const PQT: u64 = 0xc8;
pub(crate) const PQA: u64 = 0xd0;
pub(crate) const PRS: u64 = 0xdc;
pub(crate) const PAGE_EVENT: Msi = Msi { address: 0xfee0_1000, data: 0x51 };
pub(crate) const FAULT_EVENT: Msi = Msi { address: 0x1_0000_fee0_100c, data: 0x41 };

pub(crate) struct Machine {
    pub(crate) memory: Memory,
    pub(crate) unit: Arc<Unit<Memory>>,
    pub(crate) msi: Arc<RecordingMsi>,
}

impl Machine {
    /// Shared virtual memory, and interrupts as they are.
    pub(crate) fn new() -> Self {
        Self::with(&Profile { interrupt_remapping: false, ..Profile::svm(46) }.settled())
    }

    /// 16 MiB, and a unit that offers `profile`.
    pub(crate) fn with(profile: &Profile) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let msi = Arc::new(RecordingMsi::default());
        let config = UnitConfig { capability: Capability::new(profile).unwrap(), source: SourceId(0) };
        let unit = Arc::new(Unit::new(&config, memory.clone(), msi.clone()));
        Self { memory, unit, msi }
    }

    pub(crate) fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.unit.mmio_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn read64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.mmio_read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) {
        self.unit.mmio_write(offset, &value.to_le_bytes());
    }

    pub(crate) fn write64(&self, offset: u64, value: u64) {
        self.unit.mmio_write(offset, &value.to_le_bytes());
    }

    pub(crate) fn word(&self, gpa: u64) -> u64 {
        self.memory.read_obj(GuestAddress(gpa)).unwrap()
    }

    pub(crate) fn set_word(&self, gpa: u64, word: u64) {
        self.memory.write_obj(word, GuestAddress(gpa)).unwrap();
    }

    pub(crate) fn status(&self) -> u32 {
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    /// The unit's interrupts since the last call.
    pub(crate) fn interrupts(&self) -> Vec<Msi> {
        self.msi.sent.lock().drain(..).map(|(_, msi)| msi).collect()
    }

    pub(crate) fn dma(&self) -> Dma<Memory> {
        self.dma_of(ENDPOINT)
    }

    pub(crate) fn dma_of(&self, source: SourceId) -> Dma<Memory> {
        Dma::new(source, self.memory.clone(), self.unit.clone(), self.unit.ports())
    }

    pub(crate) fn attach(&self, endpoint: &Arc<impl Endpoint + 'static>) {
        let endpoint: Arc<dyn Endpoint> = endpoint.clone();
        self.unit.attach_endpoint(ENDPOINT, Arc::downgrade(&endpoint));
    }
}

/// A driver. Its methods assert what Linux would wait for.
pub(crate) struct Driver<'m> {
    pub(crate) machine: &'m Machine,
    /// Level bits of GCMD as the driver remembers them.
    shadow: Cell<u32>,
    /// Next free descriptor.
    tail: Cell<u64>,
}

impl<'m> Driver<'m> {
    pub(crate) fn new(machine: &'m Machine) -> Self {
        Self { machine, shadow: Cell::new(0), tail: Cell::new(0) }
    }

    /// A driver that has done all of the boot sequence, with tables that are empty.
    pub(crate) fn booted(machine: &'m Machine) -> (Self, Tables<'m, Memory>) {
        let driver = Self::new(machine);
        let tables = Tables::new(&machine.memory, 0x10_0000..0x40_0000);
        driver.enable_queue();
        driver.set_root(tables.root_register().raw_value());
        driver.enable_page_requests();
        driver.enable_fault_event();
        driver.level(TE, true);
        (driver, tables)
    }

    /// Changes a level and sees it in the status at once.
    pub(crate) fn level(&self, bit: u32, on: bool) {
        let shadow = if on { self.shadow.get() | bit } else { self.shadow.get() & !bit };
        self.shadow.set(shadow);
        self.machine.write32(GCMD, shadow);
        assert_eq!(self.machine.read32(GSTS) & bit != 0, on, "GSTS {bit:#x}");
    }

    pub(crate) fn enable_queue(&self) {
        self.machine.write32(IQT, 0);
        self.machine.write64(IQA, RING | 1 << 11 | 1);
        self.tail.set(0);
        self.level(QIE, true);
        assert_eq!(self.machine.read32(IQH), 0);
    }

    pub(crate) fn set_root(&self, register: u64) {
        self.machine.write64(RTADDR, register);
        self.machine.write32(GCMD, self.shadow.get() | SRTP);
        assert_ne!(self.machine.read32(GSTS) & SRTP, 0, "RTPS");
        assert_eq!(self.machine.read64(RTADDR), register);
    }

    pub(crate) fn enable_page_requests(&self) {
        self.program_event(0xe0, PAGE_EVENT);
        self.machine.write64(PQH, 0);
        self.machine.write64(PQT, 0);
        self.machine.write64(PQA, PAGE_QUEUE | 4);
    }

    pub(crate) fn enable_fault_event(&self) {
        self.program_event(0x38, FAULT_EVENT);
    }

    pub(crate) fn program_event(&self, control: u64, msi: Msi) {
        self.machine.write32(control + 4, msi.data);
        self.machine.write64(control + 8, msi.address);
        self.machine.write32(control, 0);
        assert_eq!(self.machine.read32(control), 0);
    }

    /// Puts a descriptor where the tail will pass it.
    pub(crate) fn put(&self, low: u64, high: u64) {
        let at = RING + 32 * self.tail.get();
        for (index, word) in [low, high, 0, 0].into_iter().enumerate() {
            self.machine.set_word(at + 8 * index as u64, word);
        }
        self.tail.set((self.tail.get() + 1) % 256);
    }

    pub(crate) fn kick(&self) {
        self.machine.write32(IQT, u32::try_from(self.tail.get() * 32).unwrap());
    }

    /// Submits descriptors and a wait, and finds the status written when the tail write is back.
    pub(crate) fn submit(&self, descriptors: &[(u64, u64)]) {
        self.submit_with(descriptors, 0);
    }

    /// The same, with additional flags for the wait.
    pub(crate) fn submit_with(&self, descriptors: &[(u64, u64)], flags: u64) {
        self.machine.set_word(STATUS, 1);
        for (low, high) in descriptors {
            self.put(*low, *high);
        }
        self.put(2 << 32 | 0x25 | flags, STATUS);
        self.kick();
        assert_eq!(self.machine.status(), 2, "wait after {descriptors:x?}");
        assert_eq!(self.machine.read32(FSTS) & IQE, 0);
    }
}

/// With a ring of 128-bit descriptors, under legacy tables.
impl Driver<'_> {
    /// Submits descriptors and a wait from the start of a ring of their own.
    pub(crate) fn submit_narrow(&self, descriptors: &[(u64, u64)]) {
        self.level(QIE, false);
        self.machine.write32(IQT, 0);
        self.machine.write64(IQA, RING);
        self.level(QIE, true);
        self.machine.set_word(STATUS, 1);
        let wait = (2 << 32 | 0x25, STATUS);
        let mut at = RING;
        for (low, high) in descriptors.iter().copied().chain([wait]) {
            self.machine.set_word(at, low);
            self.machine.set_word(at + 8, high);
            at += 16;
        }
        self.machine.write32(IQT, u32::try_from(at - RING).unwrap());
        assert_eq!(self.machine.status(), 2, "wait after {descriptors:x?}");
    }
}

/// Descriptors.
pub(crate) mod desc {
    use super::ENDPOINT;

    pub(crate) const CONTEXT_GLOBAL: (u64, u64) = (0x11, 0);
    pub(crate) const PASID_GLOBAL: (u64, u64) = (0x37, 0);
    /// With both drain bits.
    pub(crate) const IOTLB_GLOBAL: (u64, u64) = (0xd2, 0);
    /// A wait that only fences. Linux leaves its status data there.
    pub(crate) const FENCE: (u64, u64) = (2 << 32 | 0x45, 0);
    /// Flag of a wait: page-request drain.
    pub(crate) const DRAIN: u64 = 0x80;

    pub(crate) fn pasid_cache(domain: u64, pasid: u64) -> (u64, u64) {
        (pasid << 32 | domain << 16 | 0x17, 0)
    }

    pub(crate) fn pasid_iotlb_all(domain: u64, pasid: u64) -> (u64, u64) {
        (pasid << 32 | domain << 16 | 0x26, 0)
    }

    pub(crate) fn pasid_iotlb_page(domain: u64, pasid: u64, address: u64) -> (u64, u64) {
        (pasid << 32 | domain << 16 | 0x36, address)
    }

    pub(crate) fn device_tlb_page(pasid: u64, address: u64) -> (u64, u64) {
        (pasid << 32 | u64::from(ENDPOINT.0) << 16 | 0x108, address)
    }

    pub(crate) fn device_tlb_all(pasid: u64) -> (u64, u64) {
        (pasid << 32 | u64::from(ENDPOINT.0) << 16 | 0x108, 0x7fff_ffff_ffff_f800)
    }

    pub(crate) fn response(pasid: u64, group: u64, code: u64) -> (u64, u64) {
        (pasid << 32 | u64::from(ENDPOINT.0) << 16 | code << 12 | 0x19, group << 3)
    }
}

//! A guest with assigned devices behind a unit, on the kernel that lives in memory. For those who use a unit.
#![allow(dead_code, reason = "each test file uses a part")]

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu_core::testkit::RecordingMsi;
use iommu_core::{Gpa, HostIommu, SourceId};
use iommu_vtd::spec::context::LegacyTranslationType;
use iommu_vtd::testkit::{AddressSpace, Tables};
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vfio_bridge::NestedIommu;
use vfio_bridge::testkit::{Call, FakeKernel, Hardware};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::common::{check_nothing_left, source};

pub(crate) type Memory = GuestMemoryMmap;

const RING: u64 = 0x1_0000;
const STATUS: u64 = 0x1_3000;
const PAGE_QUEUE: u64 = 0x2_0000;
const PAGE_QUEUE_BYTES: u64 = 16 << 12;
// Registers.
const GCMD: u64 = 0x18;
const RTADDR: u64 = 0x20;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const PQH: u64 = 0xc0;
const PQT: u64 = 0xc8;
const PQA: u64 = 0xd0;
const PRS: u64 = 0xdc;
const QIE: u64 = 1 << 26;
const SRTP: u64 = 1 << 30;
const TE: u64 = 1 << 31;
/// Domain-id of all entries.
pub(crate) const DOMAIN: u16 = 7;

/// What the guest sees: memory, and a unit.
pub(crate) struct Board {
    pub(crate) memory: Memory,
    pub(crate) unit: Arc<Unit<Memory>>,
}

impl Board {
    /// Where the guest's memory for tables ends.
    pub(crate) const BUFFERS: u64 = 0x80_0000;

    /// Memory of a guest. Its upper half holds no tables.
    pub(crate) fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap()
    }

    /// A unit that offers all that the host has.
    pub(crate) fn new(memory: Memory, host: &dyn HostIommu) -> Self {
        let (profile, _) = Profile::full(46).behind(&host.capabilities());
        let profile = Profile { interrupt_remapping: false, ..profile }.settled();
        let config = UnitConfig { capability: Capability::new(&profile).unwrap(), source: SourceId(0) };
        let unit = Arc::new(Unit::new(&config, memory.clone(), Arc::new(RecordingMsi::default())));
        Self { memory, unit }
    }

    /// Switches translation off.
    pub(crate) fn translation_off(&self) {
        self.write(GCMD, QIE);
    }

    fn write(&self, register: u64, value: u64) {
        let len = if matches!(register, GCMD | PRS) { 4 } else { 8 };
        self.unit.mmio_write(register, &value.to_le_bytes()[..len]);
    }

    fn read(&self, register: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.mmio_read(register, &mut data);
        u64::from_le_bytes(data)
    }

    fn word(&self, gpa: u64) -> u64 {
        self.memory.read_obj(GuestAddress(gpa)).unwrap()
    }
}

pub(crate) struct Machine {
    pub(crate) kernel: FakeKernel,
    pub(crate) host: Arc<NestedIommu>,
    pub(crate) board: Board,
    pub(crate) unit: Arc<Unit<Memory>>,
    /// How often a device was to be stopped.
    pub(crate) stops: Arc<AtomicUsize>,
}

impl Machine {
    /// Devices 0 and 1, and a unit that offers what the host does.
    pub(crate) fn new() -> Self {
        let memory = Board::memory();
        let kernel = FakeKernel::new();
        let host = Arc::new(NestedIommu::new(Arc::new(kernel.clone())).unwrap());
        for device in 0..2 {
            host.add_device(source(device), Box::new(kernel.add_device(0))).unwrap();
        }
        host.add_memory(&memory).unwrap();
        let board = Board::new(memory, &*host);
        let unit = board.unit.clone();
        let stops = Arc::new(AtomicUsize::new(0));
        for device in 0..2 {
            let stops = stops.clone();
            let stop = move |_: &_| {
                stops.fetch_add(1, Ordering::Relaxed);
            };
            unit.attach_host(source(device), host.clone(), stop).unwrap();
        }
        Self { kernel, host, board, unit, stops }
    }

    /// All calls of the kernel so far.
    pub(crate) fn calls(&self) -> usize {
        self.kernel.audit().calls.values().sum()
    }

    pub(crate) fn count(&self, call: Call) -> usize {
        self.kernel.count(call)
    }

    pub(crate) fn hardware(&self, device: usize, pasid: u32) -> Hardware {
        self.kernel.hardware(device, Some(pasid).filter(|pasid| *pasid != 0))
    }

    /// The event loop, until there is nothing more to deliver.
    pub(crate) fn deliver(&self) {
        while self.host.deliver_page_requests(&*self.unit).unwrap() != 0 {}
    }

    /// Ends the machine; every object must be gone and every group answered once.
    pub(crate) fn finish(self) {
        let Self { kernel, host, board, unit, .. } = self;
        drop((board, unit));
        assert_eq!(Arc::strong_count(&host), 1);
        drop(host);
        check_nothing_left(&kernel);
    }
}

/// How the guest's driver works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Legacy,
    Scalable,
}

/// The guest's driver.
pub(crate) struct Guest<'m> {
    board: &'m Board,
    mode: Mode,
    pub(crate) tables: Tables<'m, Memory>,
    tail: Cell<u64>,
    head: Cell<u64>,
}

impl<'m> Guest<'m> {
    /// Switches everything on, with tables that bind nothing.
    pub(crate) fn boot(machine: &'m Machine) -> Self {
        let guest = Self::boot_on(&machine.board, Mode::Scalable);
        for device in 0..2 {
            // The directory is there from the start.
            guest.tables.context(source(device));
        }
        guest.submit(&[ALL_CONTEXTS]);
        guest
    }

    pub(crate) fn boot_on(board: &'m Board, mode: Mode) -> Self {
        let tables = Tables::new(&board.memory, 0x10_0000..Board::BUFFERS);
        let (root, ring) = match mode {
            Mode::Legacy => (tables.root().0, RING),
            Mode::Scalable => (tables.root_register().raw_value(), RING | 1 << 11 | 1),
        };
        board.write(IQA, ring);
        board.write(GCMD, QIE);
        board.write(RTADDR, root);
        board.write(GCMD, QIE | SRTP);
        board.write(PQA, PAGE_QUEUE | 4);
        board.write(GCMD, QIE | TE);
        Self { board, mode, tables, tail: Cell::new(0), head: Cell::new(0) }
    }

    /// Submits descriptors and a wait, and finds the wait complete.
    pub(crate) fn submit(&self, descriptors: &[(u64, u64)]) {
        let memory = &self.board.memory;
        let bytes = if self.mode == Mode::Scalable { 32 } else { 16 };
        for (low, high) in descriptors.iter().chain(&[(2 << 32 | 0x25, STATUS)]) {
            for (at, word) in (0..bytes).step_by(8).zip([*low, *high, 0, 0]) {
                memory.write_obj(word, GuestAddress(RING + bytes * self.tail.get() + at)).unwrap();
            }
            self.tail.set((self.tail.get() + 1) % 256);
        }
        memory.write_obj(0_u32, GuestAddress(STATUS)).unwrap();
        self.board.write(IQT, self.tail.get() * bytes);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(STATUS)).unwrap(), 2);
    }

    /// Gives device 0 a new, empty domain with a second stage, as Linux does under caching mode.
    pub(crate) fn attach_second_stage(&self) -> AddressSpace<'_, 'm, Memory> {
        let space = self.tables.second_space(4);
        let function = u64::from(source(0).0) << 32;
        let domain = u64::from(DOMAIN) << 16;
        match self.mode {
            Mode::Legacy => {
                let untranslated = LegacyTranslationType::Untranslated;
                self.tables.legacy_context(source(0), untranslated, DOMAIN, &space);
                self.submit(&[(function | 0x31, 0), (domain | 0x22, 0)]);
            }
            Mode::Scalable => {
                let context = self.tables.context(source(0));
                // None of it is offered.
                context.edit(|low| low.with_dte(false).with_paside(false).with_pre(false));
                context.pasid(0).attach(DOMAIN, &space);
                self.submit(&[(function | 0x31, 0), (domain | 0x17, 0), (domain | 0x26, 0)]);
            }
        }
        space
    }

    /// Announces `1 << order` pages of a second stage, or all of its domain.
    pub(crate) fn announce(&self, iova: u64, order: Option<u64>) -> (u64, u64) {
        let domain = u64::from(DOMAIN) << 16;
        match order {
            Some(order) => (domain | 0x32, iova >> (12 + order) << (12 + order) | order),
            None => (domain | 0x22, 0),
        }
    }

    /// Gives a PASID a new table, as a driver under caching mode does; the root of the table.
    pub(crate) fn bind(&self, device: usize, pasid: u32) -> Gpa {
        let root = self.install(device, pasid);
        self.submit(&[pasid_cache(pasid), iotlb_pasid(pasid)]);
        root
    }

    /// The same without saying so.
    pub(crate) fn install(&self, device: usize, pasid: u32) -> Gpa {
        self.tables.context(source(device)).pasid(pasid).first_stage(DOMAIN).root()
    }

    pub(crate) fn unbind(&self, device: usize, pasid: u32) {
        self.tables.context(source(device)).pasid(pasid).clear();
        self.submit(&[pasid_cache(pasid)]);
        self.submit(&[iotlb_pasid(pasid)]);
        self.submit(&[(
            u64::from(pasid) << 32 | u64::from(source(device).0) << 16 | 0x108,
            0x7fff_ffff_ffff_f800,
        )]);
    }

    /// The PASIDs of page requests that are in the queue; 0: without.
    pub(crate) fn asked(&self) -> Vec<u32> {
        let (mut head, tail) = (self.head.get(), self.board.read(PQT));
        let mut asked = Vec::new();
        while head != tail {
            let low = self.board.word(PAGE_QUEUE + head);
            asked.push(if low >> 8 & 1 == 0 { 0 } else { u32::try_from(low >> 32 & 0xf_ffff).unwrap() });
            head = (head + 32) % PAGE_QUEUE_BYTES;
        }
        asked
    }

    /// Answers all page requests that are in the queue. The addresses of those that were last of a group.
    pub(crate) fn serve(&self) -> Vec<u64> {
        self.serve_with(0)
    }

    /// The same with another response code than success.
    pub(crate) fn serve_with(&self, code: u64) -> Vec<u64> {
        let board = self.board;
        board.write(PRS, 1);
        let tail = board.read(PQT);
        let mut served = Vec::new();
        while self.head.get() != tail {
            let [low, high] = [0, 8].map(|word| board.word(PAGE_QUEUE + self.head.get() + word));
            if high & 4 != 0 {
                served.push(high & !0xfff);
                // PP, RID and PASID as they came.
                let answer = low & 0x000f_ffff_ffff_0000 | (low >> 8 & 1) << 4 | code << 12 | 9;
                self.submit(&[(answer, high & 0xff8)]);
            }
            self.head.set((self.head.get() + 32) % PAGE_QUEUE_BYTES);
        }
        board.write(PQH, self.head.get());
        // Overflow ends when there is room.
        board.write(PRS, 2);
        served
    }
}

pub(crate) fn pasid_cache(pasid: u32) -> (u64, u64) {
    (u64::from(pasid) << 32 | u64::from(DOMAIN) << 16 | 0x17, 0)
}

/// A wait that drains page requests.
pub(crate) const DRAIN: (u64, u64) = (2 << 32 | 0xa5, STATUS);
pub(crate) const ALL_PASIDS: (u64, u64) = (0x37, 0);
pub(crate) const ALL_CONTEXTS: (u64, u64) = (0x11, 0);

pub(crate) fn iotlb_pasid(pasid: u32) -> (u64, u64) {
    (u64::from(pasid) << 32 | u64::from(DOMAIN) << 16 | 0x26, 0)
}

pub(crate) fn iotlb_page(pasid: u32, address: u64) -> (u64, u64) {
    (u64::from(pasid) << 32 | u64::from(DOMAIN) << 16 | 0x36, address)
}

/// What the hardware does through a four-level table.
pub(crate) fn walks(root: Gpa) -> Hardware {
    Hardware::Table(vfio_bridge::sys::uapi::VtdS1 {
        flags: 0,
        pgtbl_addr: root.0,
        addr_width: 48,
        reserved: 0,
    })
}

//! An SVM endpoint behind a VT-d unit, and a driver of both.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::pci::PciFunction;
use devices::svm::misbehaviour::Plan;
use devices::svm::spec::{Descriptor, Opcode, Record};
use devices::svm::{SvmConfig, SvmFunction};
use iommu_core::testkit::RecordingMsi;
use iommu_core::{Dma, Endpoint, SourceId};
use iommu_vtd::testkit::{AddressSpace, PageSize, Tables, flags};
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) type Memory = GuestMemoryMmap;

pub(crate) const ENDPOINT: SourceId = SourceId::from_bdf(0, 3, 0);
pub(crate) const PASID: u32 = 5;
/// A process's addresses: a page of records, one that is there, one that is not.
pub(crate) const RECORDS: u64 = 0x7f12_3400_0000;
pub(crate) const PRESENT: u64 = 0x7f12_3456_0000;
pub(crate) const MISSING: u64 = 0x7f12_3457_0000;
/// What is behind the page that is there.
pub(crate) const FRAME: u64 = 0x80_1000;
const RECORDS_FRAME: u64 = 0x80_0000;

const RING: u64 = 0x1_0000;
const STATUS: u64 = 0x1_3000;
/// One page: 127 requests.
const PAGE_QUEUE: u64 = 0x2_0000;

pub(crate) const FSTS: u64 = 0x34;
pub(crate) const PRS: u64 = 0xdc;
pub(crate) const IQERCD: u64 = 0xb0;
pub(crate) const ITE: u32 = 1 << 6;
const PQT: u64 = 0xc8;

/// The machine.
pub(crate) struct Machine {
    pub(crate) memory: Memory,
    pub(crate) unit: Arc<Unit<Memory>>,
    pub(crate) svm: Arc<SvmFunction<Memory>>,
    /// Next free descriptor of the invalidation queue.
    tail: Cell<u64>,
}

/// A fault as it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) reason: u64,
    pub(crate) pasid: Option<u64>,
    /// 0 untranslated, 1 a translation request, 2 translated.
    pub(crate) address_type: u64,
    pub(crate) page: u64,
}

impl Machine {
    /// Powered on, with the misbehaviour of these texts.
    pub(crate) fn new(profile: &Profile, misbehaviour: &[&str]) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let msi = Arc::new(RecordingMsi::default());
        let config = UnitConfig { capability: Capability::new(profile).unwrap(), source: SourceId(0) };
        let unit = Arc::new(Unit::new(&config, memory.clone(), msi.clone()));
        let mut plan = Plan::default();
        misbehaviour.iter().for_each(|text| plan.add(text).unwrap());
        let dma = Dma::new(ENDPOINT, memory.clone(), unit.clone(), unit.ports());
        let config = SvmConfig { queues: 2, misbehaviour: plan, ..SvmConfig::default() };
        let svm = SvmFunction::new(config, &dma, msi).unwrap();
        let endpoint: Arc<dyn Endpoint> = svm.clone();
        unit.attach_endpoint(ENDPOINT, Arc::downgrade(&endpoint));
        Self { memory, unit, svm, tail: Cell::new(0) }
    }

    /// Tables of a process, a unit that uses them, and an endpoint with everything on.
    pub(crate) fn boot<'t, 'm>(&'m self, tables: &'t Tables<'m, Memory>) -> AddressSpace<'t, 'm, Memory> {
        let space = tables.context(ENDPOINT).pasid(PASID).first_stage(1);
        self.map(&space, RECORDS, RECORDS_FRAME);
        self.map(&space, PRESENT, FRAME);
        self.unit_write64(0x90, RING | 1 << 11 | 1);
        self.unit_write32(0x18, 1 << 26);
        self.unit_write64(0x20, tables.root_register().raw_value());
        self.unit_write32(0x18, 1 << 30 | 1 << 26);
        self.unit_write64(0xd0, PAGE_QUEUE);
        self.unit_write32(0x18, 1 << 31 | 1 << 26);
        self.start_function();
        space
    }

    pub(crate) fn map(&self, space: &AddressSpace<'_, '_, Memory>, iova: u64, gpa: u64) {
        space.map(iova, gpa, PageSize::Size4K, flags::USER | flags::WRITE);
    }

    /// What a driver of the endpoint does.
    pub(crate) fn start_function(&self) {
        self.config_write(4, 6);
        self.config_write(self.extended(0x1b) + 6, 1);
        self.config_write(self.extended(0xf) + 6, 0x8000);
        let pri = self.extended(0x13);
        self.config_write(pri + 12, 32);
        self.config_write(pri + 4, 1);
        for queue in 0..2 {
            self.write32(0x1_0008 + queue * 0x1000, 1 << 31 | PASID);
            self.write32(0x1_0000 + queue * 0x1000, 1);
        }
    }

    pub(crate) fn config_write(&self, offset: u16, value: u16) {
        self.svm.config_write(offset, &value.to_le_bytes());
    }

    pub(crate) fn config_read(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.svm.config_read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    pub(crate) fn extended(&self, id: u16) -> u16 {
        let mut at = 0x100;
        while self.config_read(at) != id {
            at = self.config_read(at + 2) >> 4;
            assert_ne!(at, 0, "capability {id:#x}");
        }
        at
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) {
        self.svm.bar_write(0, offset, &value.to_le_bytes());
    }

    pub(crate) fn read64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.svm.bar_read(0, offset, &mut data);
        u64::from_le_bytes(data)
    }

    pub(crate) fn unit_read(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.mmio_read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    pub(crate) fn unit_read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.unit.mmio_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn unit_write32(&self, offset: u64, value: u32) {
        self.unit.mmio_write(offset, &value.to_le_bytes());
    }

    fn unit_write64(&self, offset: u64, value: u64) {
        self.unit.mmio_write(offset, &value.to_le_bytes());
    }

    /// Submits a descriptor and a wait; whether the wait was done when the tail write was back.
    pub(crate) fn invalidate(&self, low: u64, high: u64) -> bool {
        self.memory.write_obj(0_u64, GuestAddress(STATUS)).unwrap();
        for [low, high] in [[low, high], [2 << 32 | 0x25, STATUS]] {
            let at = RING + 32 * self.tail.get();
            for (place, word) in (at..).step_by(8).zip([low, high, 0, 0]) {
                self.memory.write_obj(word, GuestAddress(place)).unwrap();
            }
            self.tail.set((self.tail.get() + 1) % 256);
        }
        self.unit_write64(0x88, self.tail.get() * 32);
        self.memory.read_obj::<u32>(GuestAddress(STATUS)).unwrap() == 2
    }

    /// Device-TLB of the process: everything.
    pub(crate) fn invalidate_device_tlb(&self) -> bool {
        let low = u64::from(PASID) << 32 | u64::from(ENDPOINT.0) << 16 | 0x108;
        self.invalidate(low, 0x7fff_ffff_ffff_f800)
    }

    /// Answers a page request group.
    pub(crate) fn respond(&self, group: u64, code: u64) {
        let low = u64::from(PASID) << 32 | u64::from(ENDPOINT.0) << 16 | code << 12 | 0x19;
        assert!(self.invalidate(low, group << 3));
    }

    /// The page requests that the guest finds, two words each.
    pub(crate) fn page_requests(&self) -> Vec<[u64; 2]> {
        (0..self.unit_read(PQT))
            .step_by(32)
            .map(|at| {
                let word = |offset| self.memory.read_obj(GuestAddress(PAGE_QUEUE + at + offset)).unwrap();
                [word(0), word(8)]
            })
            .collect()
    }

    /// The faults that are recorded, in order.
    pub(crate) fn faults(&self) -> Vec<Recorded> {
        let record = |index: u64| [0, 8].map(|half| self.unit_read(0x220 + 16 * index + half));
        (0..8)
            .map(record)
            .take_while(|[_, high]| high >> 63 != 0)
            .map(|[low, high]| Recorded {
                reason: high >> 32 & 0xff,
                pasid: (high >> 31 & 1 != 0).then_some(high >> 40 & 0xf_ffff),
                address_type: high >> 60 & 3,
                page: low,
            })
            .collect()
    }

    /// Starts to write 8 bytes of ones, with a record.
    pub(crate) fn start(&self, queue: u64, destination: u64) {
        let record = Self::record_of(queue);
        self.memory.write_slice(&[0; 32], GuestAddress(RECORDS_FRAME + record)).unwrap();
        self.submit(
            queue,
            Descriptor { flags: 1 | 4, record: (RECORDS + record).into(), ..fill(destination) },
        );
    }

    /// The same, but tells nobody.
    pub(crate) fn fill(&self, queue: u64, destination: u64) {
        self.submit(queue, fill(destination));
    }

    fn submit(&self, queue: u64, descriptor: Descriptor) {
        for (offset, word) in (0..).step_by(8).zip(descriptor.as_bytes().chunks(8)) {
            self.svm.bar_write(0, 0x2_0000 + queue * 0x1000 + offset, word);
        }
    }

    fn record_of(queue: u64) -> u64 {
        queue * 32
    }

    pub(crate) fn record(&self, queue: u64) -> Record {
        let mut bytes = [0; 32];
        self.memory.read_slice(&mut bytes, GuestAddress(RECORDS_FRAME + Self::record_of(queue))).unwrap();
        Record::read_from_bytes(&bytes).unwrap()
    }

    pub(crate) fn wait(&self, queue: u64) -> Record {
        until("a record", || self.record(queue).status != 0);
        self.record(queue)
    }

    /// Writes and waits; the status.
    pub(crate) fn run(&self, destination: u64) -> u8 {
        self.start(0, destination);
        self.wait(0).status
    }
}

fn fill(destination: u64) -> Descriptor {
    Descriptor {
        opcode: Opcode::Fill as u8,
        destination: destination.into(),
        length: 8.into(),
        operand: u64::MAX.into(),
        ..Descriptor::default()
    }
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "timed out: {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

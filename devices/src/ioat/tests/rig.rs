//! A machine of one engine, a list of pages as its IOMMU, and a driver.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iommu_core::testkit::{ListTranslator, Page, RecordingMsi};
use iommu_core::{Dma, PortSet, SourceId};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::IntoBytes;

use crate::ioat::spec::{Descriptor, DescriptorControl, Register, TransferStatus, command, global};
use crate::ioat::{IoatConfig, IoatFunction};
use crate::pci::PciFunction;

pub(super) type Memory = GuestMemoryMmap<()>;

pub(super) const SOURCE: SourceId = SourceId(0x10);
/// Where the pages begin, as the device sees them. The first ones are [`DESCRIPTORS`] and so on.
pub(super) const BASE: u64 = 0x7_0000_0000;
/// Pages that are there.
pub(super) const PAGES: u64 = 64;
/// Memory: the pages, and one before them.
const MEMORY_BYTES: usize = 0x4_1000;
/// A page for descriptors.
pub(super) const DESCRIPTORS: u64 = BASE;
/// A page for the completion.
pub(super) const COMPLETION: u64 = BASE + 0x1000;
/// The first page for data.
pub(super) const DATA: u64 = BASE + 0x2000;
/// A page that can only be read.
pub(super) const READ_ONLY: u64 = BASE + 0x1000 * (PAGES - 1);
/// Nothing is here.
pub(super) const NOWHERE: u64 = 0x9_0000_0000;

pub(super) struct Rig {
    pub(super) function: Arc<IoatFunction<Memory>>,
    pub(super) iommu: Arc<ListTranslator>,
    pub(super) memory: Memory,
    pub(super) msi: Arc<RecordingMsi>,
}

impl Rig {
    /// Powered on, nothing enabled.
    pub(super) fn cold(config: IoatConfig) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let iommu = ListTranslator::new();
        for page in 0..PAGES {
            let iova = BASE + 0x1000 * page;
            iommu.map(Page { pasid: None, iova, gpa: gpa(iova), write: iova != READ_ONLY });
        }
        let msi = Arc::new(RecordingMsi::default());
        let dma = Dma::new(SOURCE, memory.clone(), iommu.clone(), Arc::new(PortSet::default()));
        let function = Arc::new(IoatFunction::new(config, &dma, msi.clone()).unwrap());
        Self { function, iommu, memory, msi }
    }

    /// As a driver leaves it: bus master, interrupts on, vector `n` sends data `n`.
    pub(super) fn new() -> Self {
        let rig = Self::cold(IoatConfig { channels: 2, transfer_log2: 17 });
        rig.bring_up();
        rig
    }

    pub(super) fn bring_up(&self) {
        self.function.config_write(4, &6_u16.to_le_bytes());
        for vector in 0..2_u32 {
            let entry = [0xfee0_0000, 0, vector, 0];
            self.write(0x2000 + u64::from(vector) * 16, &entry[..2].as_bytes()[..8]);
            self.write(0x2008 + u64::from(vector) * 16, &entry[2..].as_bytes()[..8]);
        }
        let mut at = [0];
        self.function.config_read(0x34, &mut at);
        while self.config16(at[0].into()).to_le_bytes()[0] != 0x11 {
            at[0] = self.config16(at[0].into()).to_le_bytes()[1];
        }
        self.function.config_write(u16::from(at[0]) + 2, &0x8000_u16.to_le_bytes());
        self.write(global::INTRCTRL, &[9]);
    }

    pub(super) fn config16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.function.config_read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(0, offset, data);
    }

    /// Reads up to 8 bytes.
    pub(super) fn read(&self, offset: u64, bytes: usize) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(0, offset, &mut data[..bytes]);
        u64::from_le_bytes(data)
    }

    /// Writes a register of channel 0.
    pub(super) fn set(&self, register: Register, value: u64) {
        let (offset, bytes) = place(register);
        self.write(0x80 + offset, &value.to_le_bytes()[..bytes]);
    }

    /// Reads a register of channel 0.
    pub(super) fn get(&self, register: Register) -> u64 {
        let (offset, bytes) = place(register);
        self.read(0x80 + offset, bytes)
    }

    pub(super) fn status(&self) -> u64 {
        self.get(Register::Status) & 7
    }

    /// Waits until channel 0 is at something else than work, and tells what.
    pub(super) fn settle(&self) -> u64 {
        until("not at work", || self.status() != TransferStatus::Active as u64);
        self.status()
    }

    /// Puts descriptors one after the other, each leading to the next and the last to the first.
    pub(super) fn chain(&self, descriptors: &[Descriptor]) {
        for (index, descriptor) in (0..).zip(descriptors) {
            let next = DESCRIPTORS + 64 * ((index + 1) % descriptors.len() as u64);
            let descriptor = Descriptor { next: next.into(), ..*descriptor };
            self.memory
                .write_slice(descriptor.as_bytes(), GuestAddress(gpa(DESCRIPTORS + 64 * index)))
                .unwrap();
        }
    }

    /// Begins a chain with `count` descriptors; the completion is at its place.
    pub(super) fn start(&self, count: u16) {
        self.set(Register::CompletionAddress, COMPLETION);
        self.set(Register::ChainAddress, DESCRIPTORS);
        self.set(Register::Count, count.into());
    }

    pub(super) fn fill(&self, iova: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(gpa(iova))).unwrap();
    }

    pub(super) fn bytes(&self, iova: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(gpa(iova))).unwrap();
        bytes
    }

    pub(super) fn completion(&self) -> u64 {
        self.memory.read_obj(GuestAddress(gpa(COMPLETION))).unwrap()
    }

    /// Data of the interrupts sent so far.
    pub(super) fn interrupts(&self) -> Vec<u32> {
        self.msi.sent.lock().iter().map(|(_, msi)| msi.data).collect()
    }

    /// Resets channel 0 and copies something.
    pub(super) fn assert_alive(&self) {
        self.set(Register::Command, command::RESET.into());
        assert_eq!(self.status(), TransferStatus::Halted as u64);
        self.fill(DATA, &[0x5a; 100]);
        self.fill(DATA + 0x1000, &[0; 100]);
        self.chain(&[copy(DATA, DATA + 0x1000, 100)]);
        self.start(1);
        assert_eq!(self.settle(), TransferStatus::Done as u64);
        assert_eq!(self.bytes(DATA + 0x1000, 100), [0x5a; 100]);
    }
}

/// Waits until something is so.
pub(super) fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "never {what}");
        std::thread::yield_now();
    }
}

fn place(register: Register) -> (u64, usize) {
    let row = crate::ioat::spec::REGISTERS.iter().find(|row| row.0 == register).unwrap();
    (row.1 as u64, row.2)
}

/// Where a page of the rig lies.
pub(super) fn gpa(iova: u64) -> u64 {
    iova - BASE + 0x1000
}

pub(super) fn copy(source: u64, destination: u64, size: u32) -> Descriptor {
    Descriptor {
        size: size.into(),
        source: source.into(),
        destination: destination.into(),
        ..Descriptor::default()
    }
}

/// With other bits of the control word.
pub(super) fn with(descriptor: Descriptor, control: DescriptorControl) -> Descriptor {
    Descriptor { control: control.raw_value().into(), ..descriptor }
}

pub(super) const PLAIN: DescriptorControl = DescriptorControl::DEFAULT;

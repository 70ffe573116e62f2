//! A machine of one disk, a list of pages as its IOMMU, and a driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iommu_core::testkit::{ListTranslator, Page, RecordingMsi};
use iommu_core::{Access, Dma, Iova, PortSet, Request, SourceId, Translator};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::IntoBytes;

use crate::hooked::{Hook, Hooked};
use crate::irq::IrqLine;
use crate::pci::PciFunction;
use crate::virtio::blk::spec::Header;
use crate::virtio::blk::{Blk, Disk, MemoryDisk};
use crate::virtio::spec::feature;
use crate::virtio::{Interrupts, VirtioFunction};

pub(super) type Memory = GuestMemoryMmap<()>;

pub(super) const SOURCE: SourceId = SourceId(0x80);
pub(super) const SECTORS: u64 = 4096;
pub(super) const QUEUE: u16 = 16;
/// Where the rings are, as the device sees it; memory is elsewhere.
pub(super) const DESCRIPTORS: u64 = 0xffff_0000;
pub(super) const AVAILABLE: u64 = 0xffff_2000;
pub(super) const USED: u64 = 0xffff_4000;
/// Where buffers are: 128 pages, mapped in descending order.
pub(super) const BUFFERS: u64 = 0xfff0_0000;
pub(super) const BUFFER_PAGES: u64 = 128;
const MEMORY_BYTES: usize = 4 << 20;

/// Offsets in the common configuration.
pub(super) mod reg {
    pub(in crate::virtio::tests) const DEVICE_SELECT: u64 = 0x00;
    pub(in crate::virtio::tests) const DEVICE_FEATURE: u64 = 0x04;
    pub(in crate::virtio::tests) const DRIVER_SELECT: u64 = 0x08;
    pub(in crate::virtio::tests) const DRIVER_FEATURE: u64 = 0x0c;
    pub(in crate::virtio::tests) const CONFIG_VECTOR: u64 = 0x10;
    pub(in crate::virtio::tests) const QUEUES: u64 = 0x12;
    pub(in crate::virtio::tests) const STATUS: u64 = 0x14;
    pub(in crate::virtio::tests) const SELECT: u64 = 0x16;
    pub(in crate::virtio::tests) const SIZE: u64 = 0x18;
    pub(in crate::virtio::tests) const VECTOR: u64 = 0x1a;
    pub(in crate::virtio::tests) const ENABLE: u64 = 0x1c;
    pub(in crate::virtio::tests) const DESC: u64 = 0x20;
    pub(in crate::virtio::tests) const DRIVER: u64 = 0x28;
    pub(in crate::virtio::tests) const DEVICE: u64 = 0x30;
}

pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE_CONFIG: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const NEEDS_RESET: u8 = 0x40;

/// A buffer of a chain: address, length, the device writes it.
pub(super) type Buffer = (u64, u32, bool);

/// An interrupt line, and whether it is asserted.
#[derive(Default)]
pub(super) struct Line(AtomicBool);

impl Line {
    pub(super) fn is_asserted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl IrqLine for Line {
    fn set(&self, asserted: bool) {
        self.0.store(asserted, Ordering::Relaxed);
    }
}

pub(super) struct Rig {
    pub(super) function: Arc<VirtioFunction>,
    pub(super) iommu: Arc<ListTranslator>,
    pub(super) memory: Memory,
    pub(super) msi: Arc<RecordingMsi>,
    pub(super) line: Arc<Line>,
    pub(super) on_translate: Hook,
    ports: Arc<PortSet>,
    next_gpa: u64,
    /// The driver's half of the rings.
    next_descriptor: u16,
    available: u16,
    pub(super) used: u16,
}

impl Rig {
    /// Powered on, everything mapped, nothing set up.
    pub(super) fn cold(disk: impl Disk + 'static, read_only: bool) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let iommu = ListTranslator::new();
        let msi = Arc::new(RecordingMsi::default());
        let ports = Arc::new(PortSet::default());
        let on_translate = Hook::default();
        let hooked = Hooked::new(&iommu, &on_translate);
        let dma = Dma::new(SOURCE, memory.clone(), Arc::new(hooked), ports.clone());
        let blk = Blk::new(Box::new(disk), "a-disk", read_only);
        let line = Arc::new(Line::default());
        let interrupts = Interrupts { messages: msi.clone(), line: Some(line.clone()) };
        let function = VirtioFunction::new(blk.description(), blk, &dma, interrupts).unwrap();
        let mut rig = Self {
            function,
            iommu,
            memory,
            msi,
            line,
            on_translate,
            ports,
            next_gpa: 0x1_0000,
            next_descriptor: 0,
            available: 0,
            used: 0,
        };
        for address in [DESCRIPTORS, AVAILABLE, USED] {
            rig.map(address);
        }
        for page in (0..BUFFER_PAGES).rev() {
            rig.map(BUFFERS + page * 0x1000);
        }
        rig
    }

    /// As a driver leaves it that accepts everything, with a disk whose sectors hold their numbers.
    pub(super) fn new() -> Self {
        Self::with(disk(), false)
    }

    pub(super) fn with(disk: impl Disk + 'static, read_only: bool) -> Self {
        let mut rig = Self::cold(disk, read_only);
        rig.bring_up(u64::MAX);
        rig
    }

    /// Maps a fresh page.
    fn map(&mut self, iova: u64) {
        self.iommu.map(Page { pasid: None, iova, gpa: self.next_gpa, write: true });
        self.next_gpa += 0x1000;
    }

    pub(super) fn map_to(&self, iova: u64, gpa: u64, write: bool) {
        self.iommu.map(Page { pasid: None, iova, gpa, write });
        self.ports.clear();
    }

    pub(super) fn unmap(&self, iova: u64) {
        self.iommu.unmap(None, iova);
        self.ports.clear();
    }

    fn mapped(&self, iova: u64) -> Option<u64> {
        let request = Request::untranslated(SOURCE, None, Iova(iova), Access::Read);
        self.iommu.translate(&request).ok().map(|translation| translation.gpa(request.address).0)
    }

    pub(super) fn gpa(&self, iova: u64) -> u64 {
        self.mapped(iova).unwrap()
    }

    /// Bus mastering, MSI-X with data = vector, features (those offered), one queue, DRIVER_OK.
    pub(super) fn bring_up(&mut self, features: u64) {
        self.function.config_write(4, &[6, 0]);
        self.start(features);
    }

    /// The same without bus mastering.
    pub(super) fn start(&mut self, features: u64) {
        self.msix();
        self.write8(reg::STATUS, 0);
        (self.next_descriptor, self.available, self.used) = (0, 0, 0);
        for iova in [DESCRIPTORS, AVAILABLE, USED] {
            self.poke(iova, &[0; 0x1000]);
        }
        self.write8(reg::STATUS, 3);
        self.accept(features & self.offered());
        self.write8(reg::STATUS, 0xb);
        self.write16(reg::CONFIG_VECTOR, 0);
        self.queue(QUEUE);
        self.write8(reg::STATUS, 0xf);
    }

    /// Sets queue 0 up and enables it.
    pub(super) fn queue(&self, size: u16) {
        self.place(size, &[]);
    }

    /// The same with some 64-bit registers set otherwise.
    pub(super) fn place(&self, size: u16, otherwise: &[(u64, u64)]) {
        self.write16(reg::SELECT, 0);
        self.write16(reg::SIZE, size);
        self.write16(reg::VECTOR, 1);
        let places = [(reg::DESC, DESCRIPTORS), (reg::DRIVER, AVAILABLE), (reg::DEVICE, USED)];
        for (register, value) in places.iter().chain(otherwise) {
            self.function.bar_write(0, *register, &value.to_le_bytes());
        }
        self.write16(reg::ENABLE, 1);
    }

    fn msix(&self) {
        for vector in 0..2_u64 {
            self.function.bar_write(1, vector * 16, &0xfee0_0000_u64.to_le_bytes());
            self.function.bar_write(1, vector * 16 + 8, &vector.to_le_bytes());
        }
        self.function.config_write(self.capability(0x11, |_| true) + 2, &[0, 0x80]);
    }

    /// Offset of the first capability with this id that passes.
    pub(super) fn capability(&self, id: u8, passes: impl Fn(u16) -> bool) -> u16 {
        let mut at = u16::from(self.config8(0x34));
        while at != 0 {
            if self.config8(at) == id && passes(at) {
                return at;
            }
            at = self.config8(at + 1).into();
        }
        panic!("no capability {id:#x}");
    }

    pub(super) fn config8(&self, offset: u16) -> u8 {
        let mut data = [0];
        self.function.config_read(offset, &mut data);
        data[0]
    }

    pub(super) fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.write32(reg::DEVICE_SELECT, select);
            u64::from(self.read32(reg::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    pub(super) fn accept(&self, features: u64) {
        let [low, high] = [features, features >> 32].map(|half| u32::try_from(half & 0xffff_ffff).unwrap());
        for (select, half) in [(0, low), (1, high)] {
            self.write32(reg::DRIVER_SELECT, select);
            self.write32(reg::DRIVER_FEATURE, half);
        }
    }

    pub(super) fn write8(&self, offset: u64, value: u8) {
        self.function.bar_write(0, offset, &[value]);
    }
    pub(super) fn write16(&self, offset: u64, value: u16) {
        self.function.bar_write(0, offset, &value.to_le_bytes());
    }
    pub(super) fn write32(&self, offset: u64, value: u32) {
        self.function.bar_write(0, offset, &value.to_le_bytes());
    }
    pub(super) fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.function.bar_read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }
    pub(super) fn read16(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.function.bar_read(0, offset, &mut data);
        u16::from_le_bytes(data)
    }
    pub(super) fn read8(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.function.bar_read(0, offset, &mut data);
        data[0]
    }
    pub(super) fn status(&self) -> u8 {
        self.read8(reg::STATUS)
    }

    /// The pieces of a range that lie on one page each: address, and where in the range.
    fn pages(iova: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let address = iova.wrapping_add(at as u64);
            let room = usize::try_from(0x1000 - address % 0x1000).unwrap();
            let piece = at..len.min(at + room);
            at = piece.end;
            (!piece.is_empty()).then_some((address, piece))
        })
    }

    /// Writes memory as the device would see it.
    pub(super) fn poke(&self, iova: u64, data: &[u8]) {
        for (address, piece) in Self::pages(iova, data.len()) {
            self.memory.write_slice(&data[piece], GuestAddress(self.gpa(address))).unwrap();
        }
    }

    /// Bytes on pages that are not mapped are dropped.
    pub(super) fn poke_if_mapped(&self, iova: u64, data: &[u8]) {
        for (address, piece) in Self::pages(iova, data.len()) {
            if let Some(gpa) = self.mapped(address) {
                self.memory.write_slice(&data[piece], GuestAddress(gpa)).unwrap();
            }
        }
    }

    pub(super) fn peek(&self, iova: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        for (address, piece) in Self::pages(iova, len) {
            self.memory.read_slice(&mut data[piece], GuestAddress(self.gpa(address))).unwrap();
        }
        data
    }

    /// Writes one descriptor; `link` is flags and next.
    pub(super) fn descriptor(&self, table: u64, index: u16, (address, len, _): Buffer, link: (u16, u16)) {
        let at = table + u64::from(index) * 16;
        self.poke(at, &address.to_le_bytes());
        self.poke(at + 8, &len.to_le_bytes());
        self.poke(at + 12, &link.0.to_le_bytes());
        self.poke(at + 14, &link.1.to_le_bytes());
    }

    /// Writes a chain into a table, from `first` on.
    pub(super) fn chain(&self, table: u64, first: u16, size: u16, buffers: &[Buffer]) {
        for (n, buffer) in (0..).zip(buffers) {
            let last = usize::from(n) + 1 == buffers.len();
            let flags = u16::from(!last) | u16::from(buffer.2) << 1;
            self.descriptor(table, (first + n) % size, *buffer, (flags, (first + n + 1) % size));
        }
    }

    /// Makes a chain available and notifies.
    pub(super) fn submit(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor % QUEUE;
        self.chain(DESCRIPTORS, head, QUEUE, buffers);
        self.next_descriptor = (head + u16::try_from(buffers.len()).unwrap()) % QUEUE;
        self.offer(head);
        self.kick();
        head
    }

    pub(super) fn offer(&mut self, head: u16) {
        self.poke_if_mapped(AVAILABLE + 4 + u64::from(self.available % QUEUE) * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.poke_if_mapped(AVAILABLE + 2, &self.available.to_le_bytes());
    }

    pub(super) fn kick(&self) {
        self.write16(NOTIFY, 0);
    }

    pub(super) fn used_index(&self) -> u16 {
        u16::from_le_bytes(self.peek(USED + 2, 2).try_into().unwrap())
    }

    /// The next used element, as soon as it is there: head and length.
    pub(super) fn wait(&mut self) -> (u16, u32) {
        let used = self.used;
        until("used buffer", || self.used_index() != used);
        let at = USED + 4 + u64::from(used % QUEUE) * 8;
        self.used = used.wrapping_add(1);
        let element = u64::from_le_bytes(self.peek(at, 8).try_into().unwrap());
        let [a, b, _, _, c, d, e, f] = element.to_le_bytes();
        (u16::from_le_bytes([a, b]), u32::from_le_bytes([c, d, e, f]))
    }

    /// A request of three buffers: header at the first page, `data`, status behind the header. Its status.
    pub(super) fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u8 {
        let buffers = self.prepare(kind, sector, data);
        let head = self.submit(&buffers);
        assert_eq!(self.wait().0, head);
        self.peek(BUFFERS + 0x100, 1)[0]
    }

    pub(super) fn prepare(&self, kind: u32, sector: u64, data: &[Buffer]) -> Vec<Buffer> {
        self.poke(BUFFERS, header(kind, sector).as_bytes());
        self.poke(BUFFERS + 0x100, &[0xff]);
        let mut buffers = vec![(BUFFERS, 16, false)];
        buffers.extend(data);
        buffers.push((BUFFERS + 0x100, 1, true));
        buffers
    }

    pub(super) fn until_needs_reset(&self) {
        until("DEVICE_NEEDS_RESET", || self.status() & NEEDS_RESET != 0);
    }

    /// What a driver does with a device in an unknown state; then a request works.
    pub(super) fn assert_recovers(&mut self) {
        self.bring_up(u64::MAX);
        assert_eq!(self.status(), 0xf);
        self.msi.sent.lock().clear();
        assert_eq!(self.request(0, 3, &[(BUFFERS + 0x1000, 512, true)]), 0);
        assert_eq!(self.peek(BUFFERS + 0x1000, 512), sector(3));
        until("the interrupt of a used buffer", || self.interrupts() == [1]);
    }

    pub(super) fn interrupts(&self) -> Vec<u32> {
        self.msi.sent.lock().iter().map(|(_, msi)| msi.data).collect()
    }
}

pub(super) fn header(kind: u32, sector: u64) -> Header {
    Header { kind: kind.into(), sector: sector.into(), ..Header::default() }
}

/// The contents of a sector: its number, over and over.
pub(super) fn sector(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(64)
}

pub(super) fn disk() -> MemoryDisk {
    static CONTENTS: std::sync::LazyLock<Vec<u8>> =
        std::sync::LazyLock::new(|| (0..SECTORS).flat_map(sector).collect());
    MemoryDisk(CONTENTS.clone())
}

pub(super) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "timed out: {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

pub(super) const WITHOUT_EVENT_IDX: u64 = !feature::EVENT_IDX;

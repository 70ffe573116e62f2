//! The machine: 128 KiB of memory with rings and tables, and a unit that uses them.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iommu_core::testkit::{RecordingEndpoint, RecordingMsi};
use iommu_core::{Endpoint, SourceId};
use iommu_vtd::capability::LargestPage;
use iommu_vtd::spec::context::LegacyTranslationType;
use iommu_vtd::testkit::{AddressSpace, PageSize, Tables, flags};
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Watched;

/// Where things lie.
pub struct Layout {
    /// One page: 128 descriptors of 256 bits.
    pub ring: u64,
    /// One page: 128 page requests.
    pub page_queue: u64,
    /// Where wait descriptors write.
    pub status: u64,
    /// The interrupt remapping table: one page, 256 entries.
    pub interrupts: u64,
    /// A posted-interrupt descriptor.
    pub posted: u64,
    /// Root, context, PASID and page tables of scalable mode.
    pub tables: Range<u64>,
    /// Root, context and page tables of legacy mode.
    pub legacy_tables: Range<u64>,
    /// Mapped for PASID 1 by a first stage, for 2 by a second, for 3 by both, and in legacy mode without PASID.
    /// Two pages: one writable, one not.
    pub mapped: u64,
    /// The function that has tables.
    pub source: SourceId,
}

/// The layout of every [`Bench`].
pub const LAYOUT: Layout = Layout {
    ring: 0x1000,
    page_queue: 0x2000,
    status: 0x3000,
    interrupts: 0x4000,
    posted: 0x5000,
    tables: 0x6000..0x1_a000,
    legacy_tables: 0x1_a000..0x2_0000,
    mapped: 0x7f00_0000_5000,
    source: SourceId(0x18),
};

const MEMORY_BYTES: usize = 0x2_0000;

/// One of each descriptor that a driver writes, as 256-bit ones. They fill the ring before the first step.
const DESCRIPTORS: [[u64; 2]; 13] = [
    [0x11, 0],
    [0x37, 0],
    [0x12, 0],
    [0x1_0022, 0],
    [0x1_0032, 0x5000],
    [0x1_0001_0026, 0],
    [0x1_0001_0036, 0x7f00_0000_5000],
    [0x18_0000_0003, 0x7fff_ffff_ffff_f001],
    [0x1_0018_0008, 0x7fff_ffff_ffff_f800],
    [0x1_0018_0019, 3 << 3],
    [2 << 32 | 0x25, 0x3000],
    [2 << 32 | 0xf5, 0x3000],
    [2 << 32 | 0x35, 0x3000],
];

/// Interrupts that are delivered and posted, with and without validation of the source.
const ENTRIES: [[u64; 2]; 4] = [
    [0x17 << 32 | 0x41 << 16 | 1, 0],
    [0x18 << 8 | 0x42 << 16 | 0b1101, 1 << 18 | 0x18],
    [0x5000 << 32 | 0x43 << 16 | 1 << 15 | 1, 0],
    [0x5000 << 32 | 0x44 << 16 | 1 << 15 | 1 << 14 | 3, 2 << 18 | 0x0010],
];

/// Everything that a unit can offer.
pub fn profile() -> Profile {
    Profile {
        second_stage: true,
        nested: true,
        second_stage_pages: LargestPage::OneGib,
        second_stage_dirty: true,
        abort_dma: true,
        rid_priv: true,
        interrupt_remapping: true,
        extended_interrupts: true,
        posted_interrupts: true,
        ..Profile::svm(46)
    }
    .with_address_width(57)
}

/// A unit in use: translation, queue and page requests on.
pub struct Bench {
    /// The unit.
    pub unit: Unit<Watched>,
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    settable: Arc<AtomicU64>,
    /// The unit's own interrupts.
    pub msi: Arc<RecordingMsi>,
    /// The function with tables.
    pub endpoint: Arc<RecordingEndpoint>,
}

thread_local! {
    /// Made once: memory, and what it holds before the first step.
    static MACHINE: OnceCell<(GuestMemoryMmap, Vec<u8>)> = const { OnceCell::new() };
}

fn machine() -> (GuestMemoryMmap, Vec<u8>) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
    for (index, descriptor) in DESCRIPTORS.iter().cycle().take(128).enumerate() {
        for (word, value) in descriptor.iter().enumerate() {
            let at = LAYOUT.ring + 32 * index as u64 + 8 * word as u64;
            memory.write_obj(*value, GuestAddress(at)).unwrap();
        }
    }
    for (index, entry) in ENTRIES.iter().cycle().take(256).enumerate() {
        for (word, value) in entry.iter().enumerate() {
            let at = LAYOUT.interrupts + 16 * index as u64 + 8 * word as u64;
            memory.write_obj(*value, GuestAddress(at)).unwrap();
        }
    }
    lay_out_tables(&memory);
    let mut image = vec![0; MEMORY_BYTES];
    memory.read_slice(&mut image, GuestAddress(0)).unwrap();
    (memory, image)
}

fn lay_out_tables(memory: &GuestMemoryMmap) {
    let first = |space: &AddressSpace<'_, '_, GuestMemoryMmap>| {
        space.map(LAYOUT.mapped, 0x5000, PageSize::Size4K, flags::USER | flags::WRITE);
        space.map(LAYOUT.mapped + 0x1000, 0x6000, PageSize::Size4K, flags::USER);
    };
    let second = |space: &AddressSpace<'_, '_, GuestMemoryMmap>| {
        space.map(LAYOUT.mapped, 0x5000, PageSize::Size4K, flags::SECOND);
        space.map(LAYOUT.mapped + 0x1000, 0x6000, PageSize::Size4K, flags::SECOND_READ);
    };
    let tables = Tables::new(memory, LAYOUT.tables);
    let context = tables.context(LAYOUT.source);
    context.without_pasid().pass_through(1);
    first(&context.pasid(1).first_stage(1));
    let outer = tables.second_space(4);
    second(&outer);
    context.pasid(2).attach(2, &outer);
    outer.map(0, 0, PageSize::Size2M, flags::SECOND);
    let inner = tables.inner_space(4, 0);
    first(&inner);
    context.pasid(3).nest(3, &inner, &outer);
    let legacy = Tables::new(memory, LAYOUT.legacy_tables);
    let space = legacy.second_space(4);
    second(&space);
    legacy.legacy_context(LAYOUT.source, LegacyTranslationType::DeviceTlb, 4, &space);
}

impl Bench {
    /// Power on, and what a driver does at boot.
    pub fn new() -> Self {
        let memory = MACHINE.with(|cell| {
            let (memory, image) = cell.get_or_init(machine);
            memory.write_slice(image, GuestAddress(0)).unwrap();
            memory.clone()
        });
        let config = UnitConfig { capability: Capability::new(&profile()).unwrap(), source: SourceId(0) };
        let msi = Arc::new(RecordingMsi::default());
        let (watched, settable) = Watched::new(memory.clone());
        let unit = Unit::new(&config, watched, msi.clone());
        let endpoint = Arc::new(RecordingEndpoint::default());
        let door: Arc<dyn Endpoint> = endpoint.clone();
        unit.attach_endpoint(LAYOUT.source, Arc::downgrade(&door));
        let bench = Self { unit, memory, settable, msi, endpoint };
        bench.write64(0x20, LAYOUT.tables.start | 1 << 10);
        bench.write64(0x90, LAYOUT.ring | 1 << 11);
        bench.write64(0xd0, LAYOUT.page_queue);
        bench.write64(0xb8, LAYOUT.interrupts | 1 << 11 | 7);
        bench.write32(0x18, 0xc700_0000);
        bench
    }

    /// From now on the unit may also update posted-interrupt descriptors.
    pub fn memory_posts(&self) {
        self.settable.store(u64::MAX, Ordering::Relaxed);
    }

    /// Writes a register of 32 bits.
    pub fn write32(&self, offset: u64, value: u32) {
        self.unit.mmio_write(offset, &value.to_le_bytes());
    }

    /// Writes a register of 64 bits.
    pub fn write64(&self, offset: u64, value: u64) {
        self.unit.mmio_write(offset, &value.to_le_bytes());
    }

    /// Reads a register of 64 bits.
    pub fn read64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.mmio_read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    /// Reads a register of 32 bits.
    pub fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.unit.mmio_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// All registers.
    pub fn registers(&self) -> Vec<u8> {
        let mut page = vec![0; 0x1000];
        self.unit.mmio_read(0, &mut page);
        page
    }

    /// Reads a word of memory, at any address taken modulo the memory's size.
    pub fn word(&self, gpa: u64) -> u64 {
        self.memory.read_obj(GuestAddress(gpa % (MEMORY_BYTES as u64) & !7)).unwrap()
    }

    /// Writes a word of memory, at any address taken modulo the memory's size.
    pub fn poke(&self, gpa: u64, word: u64) {
        self.memory.write_obj(word, GuestAddress(gpa % (MEMORY_BYTES as u64) & !7)).unwrap();
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

//! One unit, its driver, and memory in which every table access is a point at which another thread may go on.

use std::sync::Arc;

use iommu_core::sync::atomic::{AtomicUsize, Ordering};
use iommu_core::testkit::RecordingMsi;
use iommu_core::{Gpa, SourceId};
use iommu_vtd::testkit::Tables;
use iommu_vtd::{Capability, Profile, TableMemory, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) type Memory = GuestMemoryMmap;

pub(crate) const ENDPOINT: SourceId = SourceId(0x18);
pub(crate) const TABLES: std::ops::Range<u64> = 0x1_0000..0x4_0000;
/// The interrupt remapping table.
pub(crate) const IRT: u64 = 0x4000;
const RING: u64 = 0x1000;
const STATUS: u64 = 0x2000;
const MEMORY_BYTES: usize = 0x4_0000;

/// Memory that lets others go on whenever it is used.
pub(crate) struct Yielding {
    memory: Memory,
    point: AtomicUsize,
}

impl Yielding {
    fn point(&self) {
        self.point.fetch_add(1, Ordering::SeqCst);
    }
}

impl TableMemory for Yielding {
    type Hint<'a> = <Memory as TableMemory>::Hint<'a>;

    fn load_words_near<'a, const N: usize>(
        &'a self,
        gpa: Gpa,
        hint: &mut Self::Hint<'a>,
    ) -> Option<[u64; N]> {
        self.point();
        self.memory.load_words_near(gpa, hint)
    }

    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>> {
        self.point();
        self.memory.compare_exchange(gpa, old, new)
    }

    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> bool {
        self.point();
        TableMemory::read(&self.memory, gpa, buffer)
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        self.point();
        TableMemory::write(&self.memory, gpa, bytes)
    }
}

pub(crate) struct World {
    pub(crate) memory: Memory,
    pub(crate) unit: Arc<Unit<Yielding>>,
    pub(crate) msi: Arc<RecordingMsi>,
}

impl World {
    /// Queue, translation and interrupt remapping on. `prepare` lays tables out before.
    pub(crate) fn new(prepare: impl FnOnce(&Tables<'_, Memory>)) -> Arc<Self> {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let tables = Tables::new(&memory, TABLES);
        prepare(&tables);
        let root = tables.root_register().raw_value();
        let msi = Arc::new(RecordingMsi::default());
        let profile = Profile { interrupt_remapping: true, ..Profile::full(46) };
        let config = UnitConfig { capability: Capability::new(&profile).unwrap(), source: SourceId(0) };
        let yielding = Yielding { memory: memory.clone(), point: AtomicUsize::new(0) };
        let world = Self { unit: Arc::new(Unit::new(&config, yielding, msi.clone())), memory, msi };
        world.write(0x20, root);
        world.write(0x90, RING | 1 << 11);
        world.write(0xb8, IRT | 3);
        let (enabled, latched) = (1_u32 << 31 | 1 << 26 | 1 << 25, 1 << 30 | 1 << 24);
        world.unit.mmio_write(0x18, &(enabled & !(1 << 31) | latched).to_le_bytes());
        world.unit.mmio_write(0x18, &enabled.to_le_bytes());
        Arc::new(world)
    }

    fn write(&self, offset: u64, value: u64) {
        self.unit.mmio_write(offset, &value.to_le_bytes());
    }

    pub(crate) fn set_word(&self, gpa: u64, word: u64) {
        assert!(TableMemory::write(&self.memory, Gpa(gpa), &word.to_le_bytes()));
    }

    /// Submits descriptors and a wait, once in a world's life. The wait has completed when this returns.
    pub(crate) fn submit(&self, descriptors: &[[u64; 2]]) {
        let wait = [2 << 32 | 0x25, STATUS];
        let all: Vec<_> = descriptors.iter().copied().chain([wait]).collect();
        for (index, [low, high]) in all.iter().enumerate() {
            let at = RING + 32 * index as u64;
            self.set_word(at, *low);
            self.set_word(at + 8, *high);
        }
        self.write(0x88, 32 * all.len() as u64);
        assert!(self.completed(), "the wait is done when the tail write is back");
    }

    /// What a driver polls: the status that the wait writes.
    pub(crate) fn completed(&self) -> bool {
        self.memory.read_obj::<u32>(GuestAddress(STATUS)).unwrap() == 2
    }
}

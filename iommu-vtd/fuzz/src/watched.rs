//! Guest memory that checks how tables are read and written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iommu_core::Gpa;
use iommu_vtd::TableMemory;
use vm_memory::GuestMemoryMmap;

/// Bits that hardware sets in page-table entries: accessed and dirty of either stage, extended accessed.
const MAINTAINED: u64 = 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10;

/// Memory in which no entry is read across its natural boundary, and an update only sets bits: in tables those
/// that are hardware's to set, in posted-interrupt descriptors any.
pub struct Watched {
    memory: GuestMemoryMmap,
    /// Bits that an update may set.
    settable: Arc<AtomicU64>,
}

impl Watched {
    /// Watches `memory`. Also yields which bits an update may set, to be changed.
    pub fn new(memory: GuestMemoryMmap) -> (Self, Arc<AtomicU64>) {
        let settable = Arc::new(AtomicU64::new(MAINTAINED));
        (Self { memory, settable: settable.clone() }, settable)
    }
}

impl TableMemory for Watched {
    type Hint<'a> = <GuestMemoryMmap as TableMemory>::Hint<'a>;

    fn load_words_near<'a, const N: usize>(
        &'a self,
        gpa: Gpa,
        hint: &mut Self::Hint<'a>,
    ) -> Option<[u64; N]> {
        // No entry or descriptor is larger than 64 bytes, and all are aligned to their size.
        let within = gpa.0 % 64 + 8 * N as u64;
        assert!(gpa.0 % 8 == 0 && within <= 64, "{N} words at {gpa} are not one entry");
        self.memory.load_words_near(gpa, hint)
    }

    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>> {
        let settable = self.settable.load(Ordering::Relaxed);
        assert!(old & !new == 0 && new & !old & !settable == 0, "{old:#x} became {new:#x}");
        self.memory.compare_exchange(gpa, old, new)
    }

    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> bool {
        TableMemory::read(&self.memory, gpa, buffer)
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        TableMemory::write(&self.memory, gpa, bytes)
    }
}

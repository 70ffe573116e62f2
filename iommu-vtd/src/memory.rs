//! Guest memory as the remapping hardware reads and updates it.
//!
//! The tables are the guest's: every address and every word is hostile, and other CPUs write them
//! while they are read. So entries are read and updated with atomic operations of their own width.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use iommu_core::Gpa;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, VolatileMemory,
    VolatileSlice,
};

/// Guest memory as tables are read from it. Words are 64 bits, little-endian in memory.
///
/// Called from any thread and with any lock of the unit held: an implementer takes no lock under which the unit
/// is called, blocks for nothing, and calls nobody. What lies at an address may change while it is read, by CPUs of
/// the guest or by another call of these methods; where there is memory at all does not change under a running guest.
/// There are no errors: an address without memory is an answer, and the guest's fault.
pub trait TableMemory: Send + Sync {
    /// Where the last read was. Tables of one guest lie close together, so a walk hands it from read to read.
    type Hint<'a>: Copy + Default
    where
        Self: 'a;

    /// Reads `N` words that follow each other. Each is read atomically and in ascending order, so what was
    /// written before the first word's "present" bit is seen with it. `hint` only makes it faster.
    ///
    /// `None`: no memory there, not all of it, or `gpa` is not a multiple of 8.
    fn load_words_near<'a, const N: usize>(&'a self, gpa: Gpa, hint: &mut Self::Hint<'a>)
    -> Option<[u64; N]>;

    /// Replaces one word if it still is `old`: `Ok(old)`, else `Err` with what is there.
    ///
    /// `None`: as for [`Self::load_words_near`].
    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>>;

    /// Copies bytes out of memory, without any promise of atomicity. `false`: not all of it is memory.
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> bool;

    /// Copies bytes into memory. `false`: not all of it is memory.
    ///
    /// Aligned writes of 4 and 8 bytes are one atomic store each, and whatever was written before is visible
    /// with them: a guest polls for such a word.
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool;

    /// The same for a single read.
    fn load_words<const N: usize>(&self, gpa: Gpa) -> Option<[u64; N]> {
        self.load_words_near(gpa, &mut Self::Hint::default())
    }

    /// Reads one word. `None`: as for [`Self::load_words_near`].
    fn load(&self, gpa: Gpa) -> Option<u64> {
        self.load_words::<1>(gpa).map(|[word]| word)
    }
}

/// A walk's view of memory: remembers where it read last.
pub(crate) struct Reader<'a, M: TableMemory> {
    memory: &'a M,
    hint: Cell<M::Hint<'a>>,
}

impl<'a, M: TableMemory> Reader<'a, M> {
    pub(crate) fn new(memory: &'a M) -> Self {
        Self { memory, hint: Cell::default() }
    }

    /// See [`TableMemory::load_words_near`].
    #[inline]
    pub(crate) fn load_words<const N: usize>(&self, gpa: Gpa) -> Option<[u64; N]> {
        let mut hint = self.hint.get();
        let words = self.memory.load_words_near(gpa, &mut hint);
        self.hint.set(hint);
        words
    }

    /// See [`TableMemory::load`].
    #[inline]
    pub(crate) fn load(&self, gpa: Gpa) -> Option<u64> {
        self.load_words::<1>(gpa).map(|[word]| word)
    }

    /// See [`TableMemory::read`].
    pub(crate) fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> bool {
        self.memory.read(gpa, buffer)
    }

    /// See [`TableMemory::compare_exchange`].
    pub(crate) fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>> {
        self.memory.compare_exchange(gpa, old, new)
    }
}

/// What a region's memory looks like to the methods of `VolatileMemory`.
type Slice<'a, M> =
    VolatileSlice<'a, vm_memory::bitmap::BS<'a, <<M as GuestMemoryBackend>::R as GuestMemoryRegion>::B>>;

/// `length` bytes at `gpa` within one region, which is tried first if it is the hint.
#[inline]
fn slice<'a, M: GuestMemoryBackend>(
    memory: &'a M,
    gpa: Gpa,
    length: usize,
    hint: &mut Option<&'a M::R>,
) -> Option<Slice<'a, M>> {
    let region = match *hint {
        Some(region) if gpa.0.wrapping_sub(region.start_addr().0) < region.len() => region,
        Some(_) | None => find(memory, gpa)?,
    };
    *hint = Some(region);
    let offset = gpa.0.wrapping_sub(region.start_addr().0);
    region.get_slice(MemoryRegionAddress(offset), length).ok()
}

#[inline(never)]
fn find<M: GuestMemoryBackend>(memory: &M, gpa: Gpa) -> Option<&M::R> {
    memory.find_region(GuestAddress(gpa.0))
}

impl<M: GuestMemoryBackend + Send + Sync> TableMemory for M {
    type Hint<'a>
        = Option<&'a M::R>
    where
        Self: 'a;

    #[inline]
    fn load_words_near<'a, const N: usize>(
        &'a self,
        gpa: Gpa,
        hint: &mut Self::Hint<'a>,
    ) -> Option<[u64; N]> {
        let slice = slice(self, gpa, N * size_of::<u64>(), hint)?;
        let mut words = [0; N];
        for (index, word) in words.iter_mut().enumerate() {
            let atomic = slice.get_atomic_ref::<AtomicU64>(index * size_of::<u64>()).ok()?;
            *word = u64::from_le(atomic.load(Ordering::Acquire));
        }
        Some(words)
    }

    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>> {
        let slice = slice(self, gpa, size_of::<u64>(), &mut None)?;
        let atomic = slice.get_atomic_ref::<AtomicU64>(0).ok()?;
        let result = atomic.compare_exchange(old.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire);
        if result.is_ok() {
            slice.bitmap().mark_dirty(0, size_of::<u64>());
        }
        Some(result.map(u64::from_le).map_err(u64::from_le))
    }

    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> bool {
        self.read_slice(buffer, GuestAddress(gpa.0)).is_ok()
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        let address = GuestAddress(gpa.0);
        if let Ok(word) = <[u8; 4]>::try_from(bytes) {
            if gpa.0.is_multiple_of(4) {
                return self.store(u32::from_ne_bytes(word), address, Ordering::Release).is_ok();
            }
        } else if let Ok(word) = <[u8; 8]>::try_from(bytes)
            && gpa.0.is_multiple_of(8)
        {
            return self.store(u64::from_ne_bytes(word), address, Ordering::Release).is_ok();
        }
        self.write_slice(bytes, address).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    /// Two regions with a hole between them: [0, 0x2000) and [0x3000, 0x4000).
    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000), (GuestAddress(0x3000), 0x1000)]).unwrap()
    }

    #[test]
    fn words_are_little_endian_and_stay_within_a_region() {
        let memory = memory();
        assert!(TableMemory::write(&memory, Gpa(0x3000), &[1, 2, 3, 4, 5, 6, 7, 8, 9]));
        assert_eq!(memory.load_words::<2>(Gpa(0x3000)), Some([0x0807_0605_0403_0201, 9]));
        let rows = [
            ("last word", 0x1ff8, true),
            ("hole", 0x2000, false),
            ("unaligned", 0x3004, false),
            ("beyond", 0x4000, false),
            ("top of the space", u64::MAX - 7, false),
        ];
        for (name, gpa, there) in rows {
            assert_eq!(TableMemory::load(&memory, Gpa(gpa)).is_some(), there, "{name}");
            assert_eq!(memory.compare_exchange(Gpa(gpa), 0, 0).is_some(), there, "{name}");
        }
        assert_eq!(memory.load_words::<2>(Gpa(0x1ff8)), None, "half of it in the hole");
    }

    #[test]
    fn a_hint_changes_nothing_but_time() {
        let memory = memory();
        let reader = Reader::new(&memory);
        assert!(TableMemory::write(&memory, Gpa(0x3ff8), &[3; 8]));
        for (gpa, there) in [(0, true), (0x2000, false), (0x3ff8, true), (0x1000, true), (0x4000, false)] {
            assert_eq!(reader.load(Gpa(gpa)), TableMemory::load(&memory, Gpa(gpa)));
            assert_eq!(reader.load(Gpa(gpa)).is_some(), there);
        }
    }

    #[test]
    fn compare_exchange_tells_what_is_there() {
        let memory = memory();
        assert_eq!(memory.compare_exchange(Gpa(0x10), 0, 7), Some(Ok(0)));
        assert_eq!(memory.compare_exchange(Gpa(0x10), 0, 8), Some(Err(7)));
        assert_eq!(TableMemory::load(&memory, Gpa(0x10)), Some(7));
    }

    #[test]
    fn bulk_copies_are_all_or_nothing_to_the_caller() {
        let memory = memory();
        let mut buffer = [0; 4];
        assert!(TableMemory::write(&memory, Gpa(0x1ffc), &[1, 2, 3, 4]));
        assert!(TableMemory::read(&memory, Gpa(0x1ffc), &mut buffer));
        assert_eq!(buffer, [1, 2, 3, 4]);
        assert!(TableMemory::write(&memory, Gpa(0x11), &[5, 6, 7, 8]), "unaligned is not atomic, but done");
        assert!(TableMemory::read(&memory, Gpa(0x11), &mut buffer) && buffer == [5, 6, 7, 8]);
        assert!(!TableMemory::write(&memory, Gpa(0x1ffc), &[0; 8]));
        assert!(!TableMemory::read(&memory, Gpa(0x1ffe), &mut buffer));
    }
}

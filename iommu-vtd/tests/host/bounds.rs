//! Guests that want more than a host should do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu_core::testkit::{HostCall, NESTING, RecordingHost, RecordingMsi};
use iommu_core::{Domain, Gpa, SourceId};
use iommu_vtd::testkit::Tables;
use iommu_vtd::{Capability, TableMemory, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{ENDPOINT, GCMD, IQA, IQT, Memory, QIE, RING, RTADDR, SRTP, TE, desc};
use crate::world::{DID, World, assigned, first};

/// Most bindings of a function, as documented.
const MOST_BINDINGS: usize = 1024;

fn bound(world: &World) -> usize {
    world.host.bound.lock().len()
}

/// Names a million PASIDs by way of one page; where the directory is.
fn lead_to_one_page(tables: &Tables<'_, Memory>) -> Gpa {
    let context = tables.context(ENDPOINT);
    context.edit(|low| low.with_pdts(arbitrary_int::u3::new(7)));
    let directory = tables.allocate(32);
    let at_directory = tables.word(context.at()) & 0xfff | directory.0;
    tables.set_word(context.at(), at_directory);
    for pasid in 0..64 {
        let _ = context.pasid(pasid).pass_through(1);
    }
    let page = tables.word(directory);
    for index in 0..1 << 14 {
        tables.set_word(Gpa(directory.0 + 8 * index), page);
    }
    directory
}

/// So many are bound, and no more.
#[test]
fn a_directory_that_leads_to_one_page_binds_a_bounded_number() {
    let world = World::new();
    let (driver, tables) = world.boot();
    let directory = lead_to_one_page(&tables);
    driver.submit(&vec![desc::PASID_GLOBAL; 100]);
    assert_eq!(bound(&world), MOST_BINDINGS);
    world.sets();
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(world.sets(), [], "the same ones stay");
    // An invalidation of its own gets no room either, but what goes makes room.
    driver.submit(&[desc::pasid_cache(1, 0x8_0001)]);
    assert_eq!(world.sets(), []);
    tables.set_word(directory, 0);
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(bound(&world), MOST_BINDINGS);
    assert_eq!(world.domain(ENDPOINT, 1), Domain::Blocked);
    // Everything goes at once.
    tables.context(ENDPOINT).edit(|low| low.with_present(false));
    driver.submit(&[desc::CONTEXT_GLOBAL]);
    assert_eq!(bound(&world), 0);
}

/// Memory that counts the words that are read of it.
struct Counted {
    memory: Memory,
    words: Arc<AtomicUsize>,
}

impl TableMemory for Counted {
    type Hint<'a> = <Memory as TableMemory>::Hint<'a>;

    fn load_words_near<'a, const N: usize>(
        &'a self,
        gpa: Gpa,
        hint: &mut Self::Hint<'a>,
    ) -> Option<[u64; N]> {
        self.words.fetch_add(N, Ordering::Relaxed);
        self.memory.load_words_near(gpa, hint)
    }

    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>> {
        self.memory.compare_exchange(gpa, old, new)
    }

    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> bool {
        self.words.fetch_add(buffer.len().div_ceil(8), Ordering::Relaxed);
        TableMemory::read(&self.memory, gpa, buffer)
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        TableMemory::write(&self.memory, gpa, bytes)
    }
}

/// A reading does not take for ever: of eight million words it looks at those of the tables that the first 2,048
/// present entries lie in, and at some words more for each, and that once for a hundred descriptors.
#[test]
fn a_reading_looks_at_a_bounded_number_of_words() {
    const WORDS: usize = 2048 * 32;
    let memory = Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    let tables = Tables::new(&memory, 0x10_0000..0x40_0000);
    lead_to_one_page(&tables);
    let words = Arc::new(AtomicUsize::new(0));
    let counted = Counted { memory: memory.clone(), words: words.clone() };
    let config = UnitConfig { capability: Capability::new(&assigned()).unwrap(), source: SourceId(0) };
    let unit = Unit::new(&config, counted, Arc::new(RecordingMsi::default()));
    let host = RecordingHost::new(NESTING);
    unit.attach_host(ENDPOINT, host.clone(), |_| ()).unwrap();
    let write = |offset, value: u64| unit.mmio_write(offset, &value.to_le_bytes());
    let command = |value: u32| unit.mmio_write(GCMD, &value.to_le_bytes());
    write(RTADDR, tables.root_register().raw_value());
    write(IQA, RING | 1 << 11 | 1);
    command(SRTP | QIE);
    command(TE | QIE);
    for at in (RING..).step_by(32).take(100) {
        memory.write_obj::<u64>(desc::PASID_GLOBAL.0, GuestAddress(at)).unwrap();
        memory.write_obj::<u64>(desc::PASID_GLOBAL.1, GuestAddress(at + 8)).unwrap();
    }
    words.store(0, Ordering::Relaxed);
    write(IQT, 32 * 100);
    assert_eq!(host.bound.lock().len(), MOST_BINDINGS);
    let read = words.load(Ordering::Relaxed);
    assert!((MOST_BINDINGS..WORDS).contains(&read), "{read} words");
}

/// Tables without entries are limited, too: what lies beyond is found when it is named.
#[test]
fn a_scan_ends_and_what_is_named_is_found() {
    let world = World::new();
    let (driver, tables) = world.boot();
    let context = tables.context(ENDPOINT);
    context.edit(|low| low.with_pdts(arbitrary_int::u3::new(7)));
    let directory = tables.allocate(32);
    let low = tables.word(context.at()) & 0xfff | directory.0;
    tables.set_word(context.at(), low);
    let empty = tables.allocate(1);
    for index in 0..2048 {
        tables.set_word(Gpa(directory.0 + 8 * index), empty.0 | 1);
    }
    let near = {
        tables.set_word(Gpa(directory.0 + 8 * 1023), 0);
        context.pasid(1023 * 64 + 7).first_stage(DID).root()
    };
    let far = context.pasid(3000 * 64).first_stage(DID).root();
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(world.sets(), [(ENDPOINT, 1023 * 64 + 7, first(DID, near))]);
    // Whether everything is looked at, too, or not.
    for also in [vec![], vec![desc::PASID_GLOBAL]] {
        driver.submit(&[&also[..], &[desc::pasid_cache(1, 3000 * 64)]].concat());
        assert_eq!(world.sets(), [(ENDPOINT, 3000 * 64, first(DID, far))]);
        context.pasid(3000 * 64).clear();
        driver.submit(&[desc::pasid_cache(1, 3000 * 64)]);
        assert_eq!(world.sets(), [(ENDPOINT, 3000 * 64, Domain::Blocked)]);
        context.pasid(3000 * 64).edit(0, |word| word | 1);
    }
    driver.submit(&[desc::pasid_cache(1, 3000 * 64)]);
    world.sets();
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(world.sets(), [], "what is bound is looked at wherever it lies");
}

/// Entries that are present and malformed bind nothing, and would take the longest to look at.
#[test]
fn malformed_entries_end_a_scan_too() {
    let world = World::new();
    let (driver, tables) = world.boot();
    let context = tables.context(ENDPOINT);
    let page = tables.word(context.pasid(0).directory_at());
    for pasid in 0..64 {
        tables.set_word(Gpa((page & !0xfff) + pasid * 64), 0x1c1);
    }
    // 2,048 entries in 32 tables.
    for index in 1..32 {
        tables.set_word(Gpa(context.pasid(0).directory_at().0 + 8 * index), page);
    }
    let beyond = context.pasid(32 * 64).first_stage(DID).root();
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(world.sets(), []);
    driver.submit(&[desc::pasid_cache(1, 32 * 64)]);
    assert_eq!(world.sets(), [(ENDPOINT, 32 * 64, first(DID, beyond))]);
}

/// More PASIDs before one wait than are remembered at once.
#[test]
fn many_named_pasids_are_all_found() {
    let world = World::new();
    let (driver, tables) = world.boot();
    for pasid in 1..=150 {
        let _ = tables.context(ENDPOINT).pasid(pasid).pass_through(1);
    }
    let named = (1..=150).map(|pasid| desc::pasid_cache(1, pasid));
    driver.submit(&[desc::IOTLB_GLOBAL].into_iter().chain(named).collect::<Vec<_>>());
    assert_eq!(bound(&world), 150);
    let calls = world.host.take_calls();
    let flushed = calls.iter().position(|call| *call == HostCall::Sync).unwrap();
    assert!(flushed + 1 < calls.len(), "some were done before all were known");
}

/// Tables where there is no memory.
#[test]
fn wild_pointers_block() {
    let world = World::new();
    let (driver, tables) = world.boot();
    let context = tables.context(ENDPOINT);
    let _ = context.pasid(1).first_stage(DID);
    driver.submit(&[desc::PASID_GLOBAL]);
    assert_eq!(bound(&world), 1);
    for wild in [0x3fff_ffff_f000_u64, 0xff_f000, 0x100_0000] {
        let low = tables.word(context.at());
        tables.set_word(context.at(), low & 0xfff | wild);
        driver.submit(&[desc::CONTEXT_GLOBAL, desc::pasid_cache(1, 1)]);
        assert_eq!(bound(&world), 0, "{wild:#x}");
        tables.set_word(context.at(), low);
        driver.submit(&[desc::CONTEXT_GLOBAL]);
        assert_eq!(bound(&world), 1);
    }
}

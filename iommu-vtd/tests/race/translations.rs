//! Translations: of IOTLBs, of device-TLBs, and of what lies above the leaves.

use std::sync::Arc;

use iommu_core::sync::atomic::{AtomicUsize, Ordering};
use iommu_core::{
    Access, DeviceTlbCompletion, DeviceTlbInvalidation, Dma, DmaFault, Endpoint, Iova, PageResponse, Pasid,
    Port, PortKind, PortSet,
};
use iommu_vtd::testkit::{AddressSpace, PageSize, Tables, flags};

use crate::explore;
use crate::world::{ENDPOINT, Memory, World};

const PASID: Option<Pasid> = Pasid::new(1);
const PAGE: u64 = 0x7f00_0000_5000;
/// Shares all tables with [`PAGE`], so that paging-structure caches serve both.
const NEIGHBOUR: u64 = PAGE + 0x1000;
const OLD: u64 = 0x8000;
const NEW: u64 = 0x9000;

/// Of domain 1 and PASID 1: everything, or the page.
const ALL_OF_PASID: [u64; 2] = [1 << 32 | 1 << 16 | 0x26, 0];
const ONE_PAGE: [u64; 2] = [1 << 32 | 1 << 16 | 0x36, PAGE];
const PASID_ENTRY: [u64; 2] = [1 << 32 | 1 << 16 | 0x17, 0];
const CONTEXT_ENTRIES: [u64; 2] = [0x11, 0];
const ALL_PASIDS: [u64; 2] = [0x37, 0];
const GLOBAL: [u64; 2] = [0x12, 0];
/// Of the endpoint and PASID 1: everything.
const DEVICE_TLB: [u64; 2] = [1 << 32 | 0x18 << 16 | 8, 0x7fff_ffff_ffff_f800];

/// What the driver does: a change of words in memory, and the descriptors for it.
#[derive(Clone, Copy, Debug)]
struct Change {
    kind: PortKind,
    what: What,
    descriptors: &'static [[u64; 2]],
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// The leaf of [`PAGE`].
    Leaf,
    /// The level-2 entry above it.
    Table,
    /// The PASID entry: another first stage.
    PasidEntry,
    /// The directory entry.
    Directory,
    /// The root entry: other context entries.
    Root,
}

/// A device-TLB that does as it is told.
struct Ats(PortSet);

impl Endpoint for Ats {
    fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) -> DeviceTlbCompletion {
        self.0.invalidate_device_tlb(invalidation)
    }

    fn page_group_response(&self, _: &PageResponse) {}
}

fn fill(space: &AddressSpace<'_, '_, Memory>, gpa: u64) {
    space.map(PAGE, gpa, PageSize::Size4K, flags::READY);
    space.map(NEIGHBOUR, gpa, PageSize::Size4K, flags::READY);
}

/// Lays out the tables that are in force and the ones that replace them. Yields (where, what) to write for the
/// change.
fn lay_out(tables: &Tables<'_, Memory>, what: What) -> (u64, u64) {
    let entry = tables.context(ENDPOINT).pasid(1);
    let before = entry.first_stage(1);
    fill(&before, OLD);
    let word = |gpa| tables.word(gpa);
    match what {
        What::Leaf => {
            let at = before.entry_at(PAGE, 1);
            (at.0, word(at) & !0xf_f000 | NEW)
        }
        What::Table => {
            let after = tables.address_space(4);
            fill(&after, NEW);
            (before.entry_at(PAGE, 2).0, word(after.entry_at(PAGE, 2)))
        }
        What::PasidEntry => {
            let after = tables.address_space(4);
            fill(&after, NEW);
            let at = iommu_core::Gpa(entry.at().0 + 16);
            (at.0, word(at) & 0xfff | after.root().0)
        }
        What::Directory => {
            let copy = copy_of(tables, word(entry.directory_at()));
            rebind(tables, copy + (entry.at().0 & 0xfff));
            (entry.directory_at().0, word(entry.directory_at()) & 0xfff | copy)
        }
        What::Root => {
            let context = tables.context(ENDPOINT).at();
            let contexts = copy_of(tables, context.0);
            let directory = copy_of(tables, entry.directory_at().0);
            let pasids = copy_of(tables, entry.at().0);
            rebind(tables, pasids + (entry.at().0 & 0xfff));
            let set = |at: u64, table: u64| {
                let at = iommu_core::Gpa(at);
                tables.set_word(at, word(at) & 0xfff | table);
            };
            set(directory + (entry.directory_at().0 & 0xfff), pasids);
            set(contexts + (context.0 & 0xfff), directory);
            let root = tables.root();
            (root.0, word(root) & 0xfff | contexts)
        }
    }
}

/// A copy of the page that holds the address.
fn copy_of(tables: &Tables<'_, Memory>, inside: u64) -> u64 {
    let page = inside & !0xfff;
    let copy = tables.allocate(1).0;
    for offset in (0..4096).step_by(8) {
        tables.set_word(iommu_core::Gpa(copy + offset), tables.word(iommu_core::Gpa(page + offset)));
    }
    copy
}

/// Gives the PASID entry at `entry` a new first stage.
fn rebind(tables: &Tables<'_, Memory>, entry: u64) {
    let after = tables.address_space(4);
    fill(&after, NEW);
    let at = iommu_core::Gpa(entry + 16);
    tables.set_word(at, tables.word(at) & 0xfff | after.root().0);
}

/// Accesses of a device, each in a session of its own.
fn device(world: &World, mut port: Port<Memory>) {
    let time = AtomicUsize::new(0);
    for address in [NEIGHBOUR, PAGE, PAGE] {
        let was_completed = world.completed();
        let session = port.session(PASID);
        let hit = session.translate(Iova(address), Access::Read);
        assert!(!matches!(hit, Err(DmaFault::Refused(_))), "{hit:?}");
        let old = hit.is_ok_and(|hit| hit.gpa.0 & !0xfff == OLD);
        if old && address == PAGE {
            assert!(!was_completed, "an old translation, found after the wait");
            // The access itself.
            time.fetch_add(1, Ordering::SeqCst);
            assert!(!world.completed(), "an old translation, in use after the wait");
        }
        drop(session);
    }
}

fn race(change: Change) {
    let mut word = (0, 0);
    let world = World::new(|tables| word = lay_out(tables, change.what));
    let ats = Arc::new(Ats(PortSet::default()));
    let door: Arc<dyn Endpoint> = ats.clone();
    world.unit.attach_endpoint(ENDPOINT, Arc::downgrade(&door));
    let dma = Dma::new(ENDPOINT, world.memory.clone(), world.unit.clone(), world.unit.ports());
    let devices: Vec<_> = (0..2)
        .map(|_| {
            let port = match change.kind {
                PortKind::Untranslated => dma.port(),
                PortKind::DeviceTlb => dma.device_tlb_port(&ats.0),
            };
            let world = world.clone();
            shuttle::thread::spawn(move || device(&world, port))
        })
        .collect();
    world.set_word(word.0, word.1);
    world.submit(change.descriptors);
    for device in devices {
        device.join().unwrap();
    }
}

macro_rules! races {
    ($($name:ident: $kind:ident $what:ident $descriptors:expr;)+) => {$(
        #[test]
        fn $name() {
            const CHANGE: Change =
                Change { kind: PortKind::$kind, what: What::$what, descriptors: &$descriptors };
            explore(|| race(CHANGE));
        }
    )+};
}

races! {
    a_page: Untranslated Leaf [ONE_PAGE];
    a_page_of_a_device_tlb: DeviceTlb Leaf [ONE_PAGE, DEVICE_TLB];
    a_page_by_its_pasid: Untranslated Leaf [ALL_OF_PASID];
    a_table: Untranslated Table [ALL_OF_PASID];
    a_table_by_a_page_in_it: Untranslated Table [ONE_PAGE];
    a_table_of_a_device_tlb: DeviceTlb Table [ALL_OF_PASID, DEVICE_TLB];
    a_pasid_entry: Untranslated PasidEntry [PASID_ENTRY, ALL_OF_PASID];
    a_pasid_entry_of_a_device_tlb: DeviceTlb PasidEntry [PASID_ENTRY, ALL_OF_PASID, DEVICE_TLB];
    a_directory_entry: Untranslated Directory [ALL_PASIDS, ALL_OF_PASID];
    a_root_entry: Untranslated Root [CONTEXT_ENTRIES, ALL_PASIDS, GLOBAL];
}

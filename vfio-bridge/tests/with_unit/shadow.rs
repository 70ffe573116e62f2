//! Hosts that copy: what a guest maps in second-stage tables and announces is what its device reaches.

use std::sync::Arc;

use iommu_core::{HostError, Permissions, SourceId};
use iommu_vtd::SecondStageMappings;
use iommu_vtd::testkit::{AddressSpace, PageSize, flags};
use proptest::prelude::*;
use vfio_bridge::choice::{Doors, Wanted};
use vfio_bridge::kernel::{ContainerFile, DeviceFile, Kernel};
use vfio_bridge::testkit::FakeKernel;
use vfio_bridge::{Bridge, choose};
use vm_memory::{Bytes as _, GuestAddress};

use crate::common::shadow::host_address;
use crate::common::{check_nothing_left, source};
use crate::machine::{Board, Guest, Memory, Mode};

/// Memory above what the guest's own tables take.
const BUFFERS: u64 = Board::BUFFERS;
const WAYS: [(Wanted, Mode); 4] = [
    (Wanted::Auto, Mode::Legacy),
    (Wanted::Auto, Mode::Scalable),
    (Wanted::Container, Mode::Legacy),
    (Wanted::Container, Mode::Scalable),
];

struct Host(FakeKernel);

impl Doors for Host {
    fn iommufd(&self) -> Result<Arc<dyn Kernel>, HostError> {
        Ok(Arc::new(self.0.clone()))
    }

    fn device(&self, _: SourceId) -> Result<Box<dyn DeviceFile>, HostError> {
        Ok(Box::new(self.0.add_device(0)))
    }

    fn container(&self, _: SourceId) -> Result<Box<dyn ContainerFile>, HostError> {
        Ok(Box::new(self.0.open_container()))
    }
}

/// One device, and how its addresses are looked up.
struct Rig {
    kernel: FakeKernel,
    bridge: Bridge,
    board: Board,
}

impl Rig {
    /// A device behind a unit that offers what the host does, which cannot nest.
    fn new(wanted: Wanted) -> Self {
        let memory = Board::memory();
        let kernel = FakeKernel::new();
        kernel.without_nesting();
        let bridge = choose(wanted, &[source(0)], &Host(kernel.clone()), None).unwrap().bridge;
        bridge.add_memory(&memory).unwrap();
        let board = Board::new(memory.clone(), &*bridge.iommu());
        bridge.set_mappings(Arc::new(SecondStageMappings::new(memory, board.unit.capability())));
        board.unit.attach_host(source(0), bridge.iommu(), |_| ()).unwrap();
        Self { kernel, bridge, board }
    }

    /// Where the device's address leads, in guest memory.
    fn lookup(&self, iova: u64) -> Option<(u64, Permissions)> {
        let found = match self.bridge {
            Bridge::Container(_) => self.kernel.contained(0, iova),
            Bridge::Nested(_) | Bridge::Shadow(_) => self.kernel.lookup(0, iova),
        };
        let zero = host_address(&self.board.memory, 0).unwrap();
        found.map(|(address, allowed)| (address - zero, allowed))
    }

    /// Where the tables lead, by a walk of their words.
    fn expected(&self, space: &AddressSpace<'_, '_, Memory>, iova: u64) -> Option<(u64, Permissions)> {
        let mut table = space.root().0;
        let mut all = 3;
        for level in (1..=space.levels()).rev() {
            let bits = 12 + 9 * (level - 1);
            let at = GuestAddress(table + (iova >> bits & 511) * 8);
            let entry: u64 = self.board.memory.read_obj(at).unwrap();
            all &= entry;
            if all & 3 == 0 {
                return None;
            }
            if level == 1 || entry & 0x80 != 0 {
                let low = (1 << bits) - 1;
                let gpa = entry & 0x000f_ffff_ffff_f000 & !low | iova & low;
                let permissions = Permissions { read: all & 1 != 0, write: all & 2 != 0 };
                return host_address(&self.board.memory, gpa).map(|_| (gpa, permissions));
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        None
    }

    /// Ends the machine; every object must be gone.
    fn finish(self) {
        let Self { kernel, bridge, board } = self;
        drop((board, bridge));
        check_nothing_left(&kernel);
    }
}

#[test]
fn second_stages_become_page_tables_of_the_host() {
    for (wanted, mode) in WAYS {
        let name = format!("{wanted:?} {mode:?}");
        let rig = Rig::new(wanted);
        let identical = Some((0x1000, Permissions::READ_WRITE));
        assert_eq!(rig.lookup(0x1000), identical, "{name}: not on yet");
        let guest = Guest::boot_on(&rig.board, mode);
        assert_eq!(rig.lookup(0x1000), None, "{name}: no entry");
        let space = guest.attach_second_stage();
        space.map(0x5000, BUFFERS, PageSize::Size4K, flags::SECOND);
        space.map(0x20_0000, BUFFERS + 0x20_0000, PageSize::Size2M, flags::SECOND_READ);
        guest.submit(&[guest.announce(0, Some(10))]);
        assert_eq!(rig.lookup(0x5004), Some((BUFFERS + 4, Permissions::READ_WRITE)), "{name}");
        let read = Permissions { read: true, write: false };
        assert_eq!(rig.lookup(0x3f_ffff), Some((BUFFERS + 0x3f_ffff, read)), "{name}");
        space.unmap(0x5000, PageSize::Size4K);
        guest.submit(&[guest.announce(0x5000, Some(0))]);
        assert_eq!(rig.lookup(0x5000), None, "{name}");
        assert!(rig.lookup(0x20_0000).is_some(), "{name}");
        let other = guest.attach_second_stage();
        assert_eq!(rig.lookup(0x20_0000), None, "{name}: a new domain");
        other.map(0x7000, BUFFERS, PageSize::Size4K, flags::SECOND);
        guest.submit(&[guest.announce(0x7000, Some(0))]);
        assert!(rig.lookup(0x7000).is_some(), "{name}");
        rig.board.translation_off();
        assert_eq!(rig.lookup(0x1000), identical, "{name}: off again");
        rig.board.unit.detach_host(source(0));
        assert_eq!(rig.lookup(0x1000), None, "{name}: taken out");
        rig.finish();
    }
}

/// Blocks of 2 MiB: of pages below this, whole ones from here on.
const LARGE: u64 = 2;
const BLOCKS: u64 = 4;
/// Pages at the start of a block that are used.
const PAGES: u64 = 40;

/// One use of the DMA API by a driver.
#[derive(Clone, Debug)]
enum Step {
    /// Maps pages of 4 KiB that follow each other: the first, their outputs, flags.
    Map(u64, Vec<u64>, u64),
    /// Takes some back.
    Unmap(u64, u64),
    /// A whole block.
    MapLarge(u64, u64),
    UnmapLarge(u64),
}

impl Step {
    fn take(&self, space: &AddressSpace<'_, '_, Memory>) {
        match self {
            Self::Map(first, outputs, allowed) => {
                for (page, output) in (*first..).zip(outputs) {
                    space.map(page << 12, output << 12, PageSize::Size4K, *allowed);
                }
            }
            Self::Unmap(first, count) => {
                for page in *first..first + count {
                    space.map(page << 12, 0, PageSize::Size4K, 0);
                }
            }
            Self::MapLarge(block, output) => {
                space.map(block << 21, output << 21, PageSize::Size2M, flags::SECOND);
            }
            Self::UnmapLarge(block) => {
                space.map(block << 21, 0, PageSize::Size2M, 0);
            }
        }
    }

    /// Address and size of the smallest block that holds it, as Linux has it.
    fn block(&self) -> (u64, u64) {
        let of = |first: u64, count: u64| {
            (first << 12, u64::from(u64::BITS - (first ^ (first + count - 1)).leading_zeros()))
        };
        match self {
            Self::Map(first, outputs, _) => of(*first, outputs.len() as u64),
            Self::Unmap(first, count) => of(*first, *count),
            Self::MapLarge(block, _) | Self::UnmapLarge(block) => (block << 21, 9),
        }
    }
}

/// Steps, and how they are announced: that much wider than need be, `None`: with the whole domain.
fn step() -> impl Strategy<Value = (Step, Option<u64>)> {
    // Memory that holds no tables, and some that is none.
    let output = prop_oneof![9 => 0x800_u64..0x900, 1 => Just(0x5_0000_u64)];
    let outputs = prop::collection::vec(output, 1..9);
    let allowed = prop_oneof![3 => Just(flags::SECOND), 1 => Just(flags::SECOND_READ)];
    let page = || (0..LARGE, 0..PAGES - 8).prop_map(|(block, page)| block << 9 | page);
    let step = prop_oneof![
        6 => (page(), outputs, allowed).prop_map(|(page, outputs, allowed)| Step::Map(page, outputs, allowed)),
        4 => (page(), 1..9_u64).prop_map(|(page, count)| Step::Unmap(page, count)),
        1 => (LARGE..BLOCKS, 4..6_u64).prop_map(|(block, output)| Step::MapLarge(block, output)),
        1 => (LARGE..BLOCKS).prop_map(Step::UnmapLarge),
    ];
    (step, prop_oneof![6 => Just(Some(0)), 2 => (1..4_u64).prop_map(Some), 1 => Just(None)])
}

fn check(steps: &[(Step, Option<u64>)], wanted: Wanted, mode: Mode) -> Result<(), TestCaseError> {
    let rig = Rig::new(wanted);
    let guest = Guest::boot_on(&rig.board, mode);
    let space = guest.attach_second_stage();
    // Two at a time before each wait.
    for pair in steps.chunks(2) {
        pair.iter().for_each(|(step, _)| step.take(&space));
        let announce = |(step, wider): &(Step, Option<u64>)| {
            let (address, order) = step.block();
            guest.announce(address, wider.map(|wider| order + wider))
        };
        guest.submit(&pair.iter().map(announce).collect::<Vec<_>>());
        for page in (0..BLOCKS).flat_map(|block| (0..PAGES + 1).map(move |page| block << 9 | page)) {
            let address = page << 12 | 0x10;
            let (found, expected) = (rig.lookup(address), rig.expected(&space, address));
            prop_assert_eq!(found, expected, "{:?} {:?} {:#x} after {:?}", wanted, mode, address, pair);
        }
    }
    rig.finish();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn copies_follow_the_guest(steps in prop::collection::vec(step(), 1..40)) {
        for (wanted, mode) in WAYS {
            check(&steps, wanted, mode)?;
        }
    }
}

//! Hosts that copy: what a guest maps in second-stage tables and announces is what its device reaches.

use std::sync::Arc;

use iommu_core::{HostIommu, Permissions};
use iommu_vtd::testkit::{AddressSpace, PageSize, flags};
use iommu_vtd::{Profile, SecondStageMappings};
use proptest::prelude::*;
use vfio_bridge::testkit::FakeKernel;
use vfio_bridge::{ContainerIommu, ShadowIommu};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::common::shadow::host_address;
use crate::common::source;
use crate::machine::{Board, Guest, Memory};

const DID: u16 = 5;
/// Blocks of 2 MiB, each of one page or of pages.
const BLOCKS: u64 = 4;

/// One device, and how its addresses are looked up.
struct Rig {
    kernel: FakeKernel,
    host: Arc<dyn HostIommu>,
    board: Board,
    number: usize,
    container: bool,
}

impl Rig {
    fn new(container: bool) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let kernel = FakeKernel::new();
        let profile = Profile::full(46);
        let attach = |host: &dyn HostIommu| {
            let board = Board::new(memory.clone(), profile, host);
            let mappings = SecondStageMappings::new(memory.clone(), board.unit.capability());
            (board, Arc::new(mappings))
        };
        let (host, board, number): (Arc<dyn HostIommu>, _, _) = if container {
            let host = Arc::new(ContainerIommu::default());
            let file = kernel.open_container();
            let number = file.number();
            host.add_device(source(0), Box::new(file)).unwrap();
            host.add_memory(&memory).unwrap();
            let (board, mappings) = attach(&*host);
            host.set_mappings(mappings);
            (host, board, number)
        } else {
            let host = Arc::new(ShadowIommu::new(Arc::new(kernel.clone())).unwrap());
            let file = kernel.add_device(0);
            let number = file.number();
            host.add_device(source(0), Box::new(file)).unwrap();
            host.add_memory(&memory).unwrap();
            let (board, mappings) = attach(&*host);
            host.set_mappings(mappings);
            (host, board, number)
        };
        board.unit.attach_host(source(0), host.clone(), |_| ()).unwrap();
        Self { kernel, host, board, number, container }
    }

    fn lookup(&self, iova: u64) -> Option<(u64, Permissions)> {
        if self.container {
            self.kernel.contained(self.number, iova)
        } else {
            self.kernel.lookup(self.number, iova)
        }
    }

    /// Where the tables lead, by a walk of their words.
    fn expected(&self, space: &AddressSpace<'_, '_, Memory>, iova: u64) -> Option<(u64, Permissions)> {
        let memory: &GuestMemoryMmap = &self.board.memory;
        let mut table = space.root().0;
        let mut all = 3;
        for level in (1..=space.levels()).rev() {
            let bits = 12 + 9 * (level - 1);
            let at = GuestAddress(table + (iova >> bits & 511) * 8);
            let entry: u64 = vm_memory::Bytes::read_obj(memory, at).unwrap();
            all &= entry;
            if all & 3 == 0 {
                return None;
            }
            if level == 1 || entry & 0x80 != 0 {
                let low = (1 << bits) - 1;
                let gpa = entry & 0x000f_ffff_ffff_f000 & !low | iova & low;
                let permissions = Permissions { read: all & 1 != 0, write: all & 2 != 0 };
                return host_address(memory, gpa).map(|address| (address, permissions));
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        None
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A page of 4 KiB: block, page of it, output, flags.
    Map(u64, u64, u64, u64),
    /// A whole block.
    MapLarge(u64, u64),
    Unmap(u64, u64),
    UnmapLarge(u64),
}

fn step() -> impl Strategy<Value = Step> {
    // Memory that holds no tables, some that is none, and all permissions.
    let output = prop_oneof![5 => 0x800_u64..0x900, 1 => Just(0x5_0000_u64)];
    let allowed = prop_oneof![3 => Just(flags::SECOND), 1 => Just(flags::SECOND_READ)];
    prop_oneof![
        6 => (0..BLOCKS / 2, 0..8_u64, output, allowed).prop_map(|(b, p, out, allowed)| Step::Map(b, p, out << 12, allowed)),
        1 => (BLOCKS / 2..BLOCKS, 4..6_u64).prop_map(|(b, out)| Step::MapLarge(b, out << 21)),
        3 => (0..BLOCKS / 2, 0..8_u64).prop_map(|(b, p)| Step::Unmap(b, p)),
        1 => (BLOCKS / 2..BLOCKS).prop_map(Step::UnmapLarge),
    ]
}

/// A page-selective invalidation under caching mode, of a page, of eight, or of a block; or of the whole domain.
fn announce(step: &Step, wide: bool) -> (u64, u64) {
    let (address, order) = match step {
        Step::Map(block, page, ..) | Step::Unmap(block, page) => {
            (block << 21 | page << 12, if wide { 3 } else { 0 })
        }
        Step::MapLarge(block, _) | Step::UnmapLarge(block) if !wide => (block << 21, 9),
        Step::MapLarge(..) | Step::UnmapLarge(_) => return (u64::from(DID) << 16 | 0x22, 0),
    };
    (u64::from(DID) << 16 | 0x32, address & !((4096 << order) - 1) | order)
}

fn check(steps: &[(Step, bool)], container: bool) -> Result<(), TestCaseError> {
    let rig = Rig::new(container);
    prop_assert_eq!(
        rig.lookup(0x80_0000),
        host_address(&rig.board.memory, 0x80_0000).map(|a| (a, Permissions::READ_WRITE))
    );
    let guest = Guest::boot_on(&rig.board);
    prop_assert_eq!(rig.lookup(0x80_0000), None);
    let space = guest.tables.second_space(4);
    // What such a unit does not offer is reserved.
    let context = guest.tables.context(source(0));
    context.edit(|low| low.with_dte(false).with_paside(false).with_pre(false));
    context.without_pasid().attach(DID, &space);
    guest.submit(&[(u64::from(DID) << 16 | 0x17, 0)]);
    // Two at a time before each wait.
    for pair in steps.chunks(2) {
        for (step, _) in pair {
            let (iova, gpa, size, allowed) = match *step {
                Step::Map(block, page, gpa, allowed) => {
                    (block << 21 | page << 12, gpa, PageSize::Size4K, allowed)
                }
                Step::MapLarge(block, gpa) => (block << 21, gpa, PageSize::Size2M, flags::SECOND),
                Step::Unmap(block, page) => (block << 21 | page << 12, 0, PageSize::Size4K, 0),
                Step::UnmapLarge(block) => (block << 21, 0, PageSize::Size2M, 0),
            };
            space.map(iova, gpa, size, allowed);
        }
        guest.submit(&pair.iter().map(|(step, wide)| announce(step, *wide)).collect::<Vec<_>>());
        for address in (0..BLOCKS).flat_map(|block| (0..9).map(move |page| block << 21 | page << 12 | 0x10)) {
            prop_assert_eq!(
                rig.lookup(address),
                rig.expected(&space, address),
                "{:#x} after {:?}",
                address,
                pair
            );
        }
    }
    context.without_pasid().clear();
    guest.submit(&[(u64::from(DID) << 16 | 0x17, 0)]);
    prop_assert_eq!(rig.lookup(0x10), None);
    rig.board.unit.detach_host(source(0));
    prop_assert_eq!(rig.lookup(0x80_0000), None);
    let Rig { host, .. } = rig;
    prop_assert_eq!(host.capabilities().first_stage_bits, 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn copies_in_an_iommufd_follow_the_guest(steps in prop::collection::vec((step(), any::<bool>()), 1..30)) {
        check(&steps, false)?;
    }

    #[test]
    fn copies_in_a_container_follow_the_guest(steps in prop::collection::vec((step(), any::<bool>()), 1..30)) {
        check(&steps, true)?;
    }
}

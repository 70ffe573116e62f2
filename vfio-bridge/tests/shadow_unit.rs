//! Behind a real model: what a guest puts into its second-stage tables and invalidation queue is what its devices reach.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use common::shadow::host_address;
use common::{check_nothing_left, source};
use iommu_core::testkit::RecordingMsi;
use iommu_core::{HostError, Permissions, SourceId};
use iommu_vtd::spec::context::LegacyTranslationType;
use iommu_vtd::testkit::{AddressSpace, PageSize, Tables, flags};
use iommu_vtd::{Capability, Profile, SecondStageMappings, Unit, UnitConfig};
use proptest::prelude::*;
use vfio_bridge::choice::{Doors, Wanted};
use vfio_bridge::kernel::{ContainerFile, DeviceFile, Kernel};
use vfio_bridge::testkit::FakeKernel;
use vfio_bridge::{Bridge, choose};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap;

const RING: u64 = 0x1_0000;
const STATUS: u64 = 0x1_3000;
const GCMD: u64 = 0x18;
const RTADDR: u64 = 0x20;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const QIE: u64 = 1 << 26;
const SRTP: u64 = 1 << 30;
const TE: u64 = 1 << 31;
const DOMAIN: u16 = 7;
/// Memory above what the guest's own tables take.
const BUFFERS: u64 = 0x80_0000;

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

/// How the guest's driver works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Legacy,
    Scalable,
}

struct Machine {
    kernel: FakeKernel,
    bridge: Bridge,
    memory: Memory,
    unit: Unit<Memory>,
}

impl Machine {
    /// A device behind a unit that offers what the host does.
    fn new(wanted: Wanted) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let kernel = FakeKernel::new();
        kernel.without_nesting();
        let bridge = choose(wanted, &[source(0)], &Host(kernel.clone()), None).unwrap().bridge;
        bridge.add_memory(&memory).unwrap();
        let (profile, _) = Profile::full(46).behind(&bridge.iommu().capabilities());
        let capability =
            Capability::new(&Profile { interrupt_remapping: false, ..profile }.settled()).unwrap();
        bridge.set_mappings(Arc::new(SecondStageMappings::new(memory.clone(), &capability)));
        let config = UnitConfig { capability, source: SourceId(0) };
        let unit = Unit::new(&config, memory.clone(), Arc::new(RecordingMsi::default()));
        unit.attach_host(source(0), bridge.iommu(), |_| {}).unwrap();
        Self { kernel, bridge, memory, unit }
    }

    fn write(&self, register: u64, value: u64) {
        let len = if register == GCMD { 4 } else { 8 };
        self.unit.mmio_write(register, &value.to_le_bytes()[..len]);
    }

    /// Where the device's address leads, in guest memory.
    fn lookup(&self, iova: u64) -> Option<(u64, Permissions)> {
        let found = match self.bridge {
            Bridge::Container(_) => self.kernel.contained(0, iova),
            _ => self.kernel.lookup(0, iova),
        };
        found.map(|(address, allowed)| (address - host_address(&self.memory, 0).unwrap(), allowed))
    }

    fn finish(self) {
        let Self { kernel, bridge, unit, .. } = self;
        drop((unit, bridge));
        check_nothing_left(&kernel);
    }
}

/// The guest's driver.
struct Guest<'m> {
    machine: &'m Machine,
    tables: &'m Tables<'m, Memory>,
    mode: Mode,
    tail: Cell<u64>,
}

impl<'m> Guest<'m> {
    /// Switches everything on, with tables that bind nothing.
    fn boot(machine: &'m Machine, tables: &'m Tables<'m, Memory>, mode: Mode) -> Self {
        let root = match mode {
            Mode::Legacy => tables.root().0,
            Mode::Scalable => tables.root_register().raw_value(),
        };
        machine.write(IQA, RING | if mode == Mode::Scalable { 1 << 11 | 1 } else { 0 });
        machine.write(GCMD, QIE);
        machine.write(RTADDR, root);
        machine.write(GCMD, QIE | SRTP);
        machine.write(GCMD, QIE | TE);
        Self { machine, tables, mode, tail: Cell::new(0) }
    }

    /// Submits descriptors and a wait, and finds the wait complete.
    fn submit(&self, descriptors: &[(u64, u64)]) {
        let memory = &self.machine.memory;
        let bytes = if self.mode == Mode::Scalable { 32 } else { 16 };
        for (low, high) in descriptors.iter().chain(&[(2 << 32 | 0x25, STATUS)]) {
            for (index, word) in [*low, *high, 0, 0].into_iter().take(bytes / 8).enumerate() {
                let at = RING + bytes as u64 * self.tail.get() + 8 * index as u64;
                memory.write_obj(word, GuestAddress(at)).unwrap();
            }
            self.tail.set((self.tail.get() + 1) % 256);
        }
        memory.write_obj(0_u32, GuestAddress(STATUS)).unwrap();
        self.machine.write(IQT, self.tail.get() * bytes as u64);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(STATUS)).unwrap(), 2);
    }

    /// Gives the device a new, empty domain, as Linux does under caching mode.
    fn attach(&self) -> AddressSpace<'m, 'm, Memory> {
        let space = self.tables.second_space(4);
        let function = u64::from(source(0).0) << 32;
        let domain = u64::from(DOMAIN) << 16;
        match self.mode {
            Mode::Legacy => {
                self.tables.legacy_context(source(0), LegacyTranslationType::Untranslated, DOMAIN, &space);
                self.submit(&[(function | 0x31, 0), (domain | 0x22, 0)]);
            }
            Mode::Scalable => {
                let context = self.tables.context(source(0));
                // None of it is offered.
                context.edit(|low| low.with_dte(false).with_paside(false).with_pre(false));
                context.pasid(0).attach(DOMAIN, &space);
                self.submit(&[(function | 0x31, 0), (domain | 0x17, 0), (domain | 0x26, 0)]);
            }
        }
        space
    }

    /// Announces `1 << bits` pages.
    fn announce(&self, iova: u64, bits: u64) {
        self.submit(&[(u64::from(DOMAIN) << 16 | 0x32, iova >> (12 + bits) << (12 + bits) | bits)]);
    }
}

const WAYS: [Wanted; 2] = [Wanted::Auto, Wanted::Container];
const MODES: [Mode; 2] = [Mode::Legacy, Mode::Scalable];

#[test]
fn second_stages_become_page_tables_of_the_host() {
    for (wanted, mode) in WAYS.into_iter().flat_map(|way| MODES.map(|mode| (way, mode))) {
        let machine = Machine::new(wanted);
        let name = format!("{wanted:?} {mode:?}");
        assert_eq!(machine.lookup(0x1000), Some((0x1000, Permissions::READ_WRITE)), "{name}: not on yet");
        let tables = Tables::new(&machine.memory, 0x10_0000..BUFFERS);
        let guest = Guest::boot(&machine, &tables, mode);
        assert_eq!(machine.lookup(0x1000), None, "{name}: no entry");
        let space = guest.attach();
        space.map(0x5000, BUFFERS, PageSize::Size4K, flags::SECOND);
        space.map(0x20_0000, BUFFERS + 0x20_0000, PageSize::Size2M, flags::SECOND_READ);
        guest.announce(0, 10);
        assert_eq!(machine.lookup(0x5004), Some((BUFFERS + 4, Permissions::READ_WRITE)), "{name}");
        let read = Permissions { read: true, write: false };
        assert_eq!(machine.lookup(0x3f_ffff), Some((BUFFERS + 0x3f_ffff, read)), "{name}");
        space.unmap(0x5000, PageSize::Size4K);
        guest.announce(0x5000, 0);
        assert_eq!(machine.lookup(0x5000), None, "{name}");
        assert!(machine.lookup(0x20_0000).is_some(), "{name}");
        let other = guest.attach();
        assert_eq!(machine.lookup(0x20_0000), None, "{name}: a new domain");
        other.map(0x7000, BUFFERS, PageSize::Size4K, flags::SECOND);
        guest.announce(0x7000, 0);
        assert!(machine.lookup(0x7000).is_some(), "{name}");
        machine.write(GCMD, QIE);
        assert_eq!(machine.lookup(0x1000), Some((0x1000, Permissions::READ_WRITE)), "{name}: off again");
        machine.finish();
    }
}

/// One use of the DMA API by a driver: pages that are mapped, used, and taken back together.
#[derive(Clone, Debug)]
enum Step {
    /// Maps pages from a slot on.
    Map(u64, Vec<u64>),
    /// Takes back the `n`th of what is mapped.
    Unmap(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pages = prop::collection::vec(0..256_u64, 1..9);
    let step = prop_oneof![
        3 => (0..512_u64, pages).prop_map(|(slot, pages)| Step::Map(slot, pages)),
        2 => any::<prop::sample::Index>().prop_map(Step::Unmap),
    ];
    prop::collection::vec(step, 1..60)
}

/// At every moment, a device finds exactly what its driver has mapped.
fn churn(wanted: Wanted, mode: Mode, steps: &[Step]) {
    let machine = Machine::new(wanted);
    let tables = Tables::new(&machine.memory, 0x10_0000..BUFFERS);
    let guest = Guest::boot(&machine, &tables, mode);
    let space = guest.attach();
    // What is mapped: first page to memory of all pages.
    let mut mapped: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for step in steps {
        let (first, count) = match step {
            Step::Map(slot, pages) => {
                let first = 0x1_0000 + slot * 8;
                if mapped.contains_key(&first) {
                    continue;
                }
                for (page, memory) in (first..).zip(pages) {
                    space.map(page << 12, BUFFERS + (memory << 12), PageSize::Size4K, flags::SECOND);
                }
                mapped.insert(first, pages.clone());
                (first, pages.len())
            }
            Step::Unmap(index) => {
                let Some(first) = mapped.keys().nth(index.index(mapped.len().max(1))).copied() else {
                    continue;
                };
                let pages = mapped.remove(&first).unwrap();
                for (page, _) in (first..).zip(&pages) {
                    space.unmap(page << 12, PageSize::Size4K);
                }
                (first, pages.len())
            }
        };
        // The smallest block that holds them all, as Linux has it.
        let last = first + count as u64 - 1;
        guest.announce(first << 12, u64::from(u64::BITS - (first ^ last).leading_zeros()));
        let expected: BTreeMap<u64, u64> =
            mapped.iter().flat_map(|(first, pages)| (*first..).zip(pages.iter().copied())).collect();
        for page in 0x1_0000 - 8..0x1_0000 + 520 * 8 {
            let found = machine.lookup(page << 12).map(|found| found.0);
            let memory = expected.get(&page).map(|page| BUFFERS + (page << 12));
            assert_eq!(found, memory, "{wanted:?} {mode:?} page {page:#x}");
        }
    }
    machine.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn drivers_that_map_and_unmap_are_served_exactly(steps in steps()) {
        for (wanted, mode) in WAYS.into_iter().flat_map(|way| MODES.map(|mode| (way, mode))) {
            churn(wanted, mode, &steps);
        }
    }
}

//! Legacy tables: invalidation by register, and what a host is told of second stages.

use iommu_core::testkit::{HostCall, HostOutcome};
use iommu_core::{Domain, DomainId, Invalidation, IovaRange, Scope, SecondStage, TableFormat};
use iommu_vtd::Profile;
use iommu_vtd::spec::context::LegacyTranslationType;
use iommu_vtd::testkit::Tables;

use crate::driver::{Driver, ENDPOINT, TE};
use crate::world::{OTHER, World, pass};

const CCMD: u64 = 0x28;
const IVA: u64 = 0xf0;
const IOTLB: u64 = 0xf8;

#[test]
fn registers_are_done_when_the_host_is() {
    let world = World::empty(&Profile { interrupt_remapping: false, ..Profile::legacy(46) }.settled());
    world.attach(ENDPOINT);
    world.attach(OTHER);
    let machine = &world.machine;
    let driver = Driver::new(machine);
    let tables = Tables::new(&machine.memory, 0x10_0000..0x40_0000);
    driver.set_root(tables.root().0);
    driver.level(TE, true);
    world.host.take_calls();
    let space = tables.second_space(4);
    tables.legacy_context(ENDPOINT, LegacyTranslationType::Untranslated, 5, &space);
    tables.legacy_context(OTHER, LegacyTranslationType::PassThrough, 6, &space);
    let unit = machine.unit.clone();
    world.host.on_call(move |call| {
        let pending = |register| {
            let mut data = [0; 8];
            unit.mmio_read(register, &mut data);
            u64::from_le_bytes(data) >> 63 != 0
        };
        assert!(pending(CCMD) || pending(IOTLB), "{call:?} comes too late");
        HostOutcome::Done
    });
    machine.write64(CCMD, 1 << 63 | 3 << 61 | u64::from(ENDPOINT.0) << 16);
    let table = SecondStage {
        root: space.root(),
        input_bits: 48,
        format: TableFormat::VtdSecondStage { accessed_dirty: false },
    };
    assert_eq!(world.sets(), [(ENDPOINT, 0, Domain::SecondStage { id: DomainId(5), table })]);
    machine.write64(CCMD, 1 << 63 | 2 << 61 | 77);
    assert_eq!(world.sets(), [(OTHER, 0, pass(6))], "an entry that was not there had no domain");
    machine.write64(IVA, 0x8000 | 1);
    machine.write64(IOTLB, 1 << 63 | 3 << 60 | 5 << 32);
    let range = IovaRange::aligned(0x8000, 13);
    let expected = Invalidation::new(Scope::DomainRange { domain: DomainId(5), range });
    assert_eq!(world.host.take_calls(), [HostCall::Invalidate(expected), HostCall::Sync]);
    machine.write64(IOTLB, 1 << 63);
    assert_eq!(world.host.take_calls(), [], "refused");
    assert_eq!(machine.read64(CCMD) >> 63 | machine.read64(IOTLB) >> 63, 0);
}

//! What a miss in the IOTLB costs: root, context, PASID directory and entry, and the walk, all read anew.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use iommu_core::testkit::RecordingMsi;
use iommu_core::{Access, Dma, Iova, Pasid, Request, SourceId};
use iommu_vtd::rules::Rules;
use iommu_vtd::tables::Context;
use iommu_vtd::testkit::{PageSize, Tables, flags};
use iommu_vtd::translate::translate;
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const SOURCE: SourceId = SourceId(0x18);

fn misses(c: &mut Criterion) {
    // As a PC has it: memory below and above the hole under 4 GiB. Tables lie in the upper part.
    let ranges = [(GuestAddress(0), 1 << 24), (GuestAddress(1 << 32), 1 << 24)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
    let rules = Rules::new(&Capability::new(&Profile::svm(46)).unwrap());
    let tables = Tables::new(&memory, 1 << 32..(1 << 32) + (1 << 24));
    let device = tables.context(SOURCE);
    let process = device.pasid(5).first_stage(1);
    for page in 0..512 {
        process.map(0x7f00_0000_0000 + (page << 12), page << 12, PageSize::Size4K, flags::READY);
    }
    let huge = device.pasid(6).first_stage(1);
    huge.map(0x7f00_0000_0000, 0, PageSize::Size2M, flags::READY);
    device.without_pasid().pass_through(1);
    let cx = Context { memory: &memory, rules: &rules, root: tables.latch() };

    let mut group = c.benchmark_group("miss");
    let rows =
        [("first stage, 4 KiB page", Some(5)), ("first stage, 2 MiB page", Some(6)), ("pass-through", None)];
    for (name, pasid) in rows {
        let pasid = pasid.map(Pasid::truncate);
        let base = if pasid.is_some() { 0x7f00_0000_0000 } else { 0 };
        let mut page = 0u64;
        group.bench_function(name, |b| {
            b.iter(|| {
                page = (page + 1) % 512;
                let address = Iova(base + (page << 12));
                let request = Request::untranslated(SOURCE, pasid, address, Access::Write);
                translate(&cx, black_box(&request)).unwrap()
            });
        });
    }
    group.finish();
}

/// The same as an endpoint meets it: through a session, whose IOTLB has room for a quarter of the pages.
fn session_misses(c: &mut Criterion) {
    const PAGES: u64 = 4096;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 25)]).unwrap();
    let tables = Tables::new(&memory, 1 << 24..1 << 25);
    let process = tables.context(SOURCE).pasid(5).first_stage(1);
    for page in 0..PAGES {
        process.map(0x7f00_0000_0000 + (page << 12), page << 12, PageSize::Size4K, flags::READY);
    }
    let capability = Capability::new(&Profile::svm(46)).unwrap();
    let config = UnitConfig { capability, source: SourceId(0) };
    let unit = Arc::new(Unit::new(&config, memory.clone(), Arc::new(RecordingMsi::default())));
    unit.mmio_write(0x20, &tables.root_register().raw_value().to_le_bytes());
    unit.mmio_write(0x18, &(1u32 << 30).to_le_bytes());
    unit.mmio_write(0x18, &(1u32 << 31).to_le_bytes());
    let ports = unit.ports();
    let mut port = Dma::new(SOURCE, memory.clone(), unit, ports).port();
    let session = port.session(Some(Pasid::truncate(5)));
    let mut page = 0;
    c.bench_function("miss/first stage, 4 KiB page, through a session", |b| {
        b.iter(|| {
            page = (page + 1) % PAGES;
            session.translate(black_box(Iova(0x7f00_0000_0000 + (page << 12))), Access::Read).unwrap()
        });
    });
}

criterion_group!(benches, misses, session_misses);
criterion_main!(benches);

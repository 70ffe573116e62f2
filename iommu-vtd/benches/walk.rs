//! What a miss in the IOTLB costs: root, context, PASID directory and entry, and the walk, all read anew.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use iommu_core::testkit::RecordingMsi;
use iommu_core::{Access, Dma, Iova, Pasid, Request, SourceId};
use iommu_vtd::rules::Rules;
use iommu_vtd::spec::context::LegacyTranslationType;
use iommu_vtd::spec::registers::{Cap, Ecap};
use iommu_vtd::tables::{Context, RootLatch};
use iommu_vtd::testkit::{PageSize, Tables, flags};
use iommu_vtd::translate::translate;
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const SOURCE: SourceId = SourceId(0x18);

/// ND=6, SAGAW=48 and 57, MGAW=57, large pages of both stages, FS5LP.
const CAP: u64 = 6 | 0b1100 << 8 | 56 << 16 | 0b11 << 34 | 1 << 56 | 1 << 60;
/// DT, PT, SC, NEST, PSS=19, PASID, PRS, SMTS, SSADS, SSTS, FSTS, SMPWCS, RPS.
const ECAP: u64 = 1 << 2
    | 1 << 6
    | 1 << 7
    | 1 << 26
    | 1 << 29
    | 19 << 35
    | 1 << 40
    | 1 << 43
    | 1 << 45
    | 1 << 46
    | 1 << 47
    | 1 << 48
    | 1 << 49;

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

/// Legacy mode, a second stage, and a first stage over a second, of four levels each. A first-stage entry costs a
/// walk of the second stage: 24 paging entries for one page.
fn second_stage_misses(c: &mut Criterion) {
    const MIDDLE: u64 = 0x12_3400_0000;
    const BIAS: u64 = 0x20_0000_0000;
    let ranges = [(GuestAddress(0), 1 << 24), (GuestAddress(1 << 32), 1 << 25)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
    let rules = Rules::from_registers(46, Cap::new_with_raw_value(CAP), Ecap::new_with_raw_value(ECAP));
    let tables = Tables::new(&memory, 1 << 32..(1 << 32) + (1 << 24));
    let device = tables.context(SOURCE);
    let second = tables.second_space(4);
    let inner = tables.inner_space(4, BIAS);
    for page in 0..512 {
        second.map(MIDDLE + (page << 12), page << 12, PageSize::Size4K, flags::SECOND);
        inner.map(0x7f00_0000_0000 + (page << 12), MIDDLE + (page << 12), PageSize::Size4K, flags::READY);
    }
    for level in 1..=4 {
        let table = inner.entry_at(0x7f00_0000_0000, level).0 & !0xfff;
        second.map(table + BIAS, table, PageSize::Size4K, flags::SECOND);
    }
    device.pasid(7).attach(1, &second);
    device.pasid(8).nest(2, &inner, &second);
    let legacy = Tables::new(&memory, (1 << 32) + (1 << 24)..(1 << 32) + (1 << 25));
    legacy.legacy_context(SOURCE, LegacyTranslationType::Untranslated, 3, &second);
    let legacy = Context { memory: &memory, rules: &rules, root: RootLatch::new(legacy.root().0, true) };
    let scalable = Context { memory: &memory, rules: &rules, root: tables.latch() };

    let mut group = c.benchmark_group("miss");
    let rows = [
        ("second stage, 4 KiB page", &scalable, Some(7), MIDDLE),
        ("nested 4x4, 4 KiB page", &scalable, Some(8), 0x7f00_0000_0000),
        ("legacy mode, 4 KiB page", &legacy, None, MIDDLE),
    ];
    for (name, cx, pasid, base) in rows {
        let pasid = pasid.map(Pasid::truncate);
        let mut page = 0u64;
        group.bench_function(name, |b| {
            b.iter(|| {
                page = (page + 1) % 512;
                let address = Iova(base + (page << 12));
                let request = Request::untranslated(SOURCE, pasid, address, Access::Write);
                translate(cx, black_box(&request)).unwrap()
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

criterion_group!(benches, misses, second_stage_misses, session_misses);
criterion_main!(benches);

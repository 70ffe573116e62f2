//! What forwarding costs beside the host's system calls: these answer at once here.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use iommu_core::testkit::ListTranslator;
use iommu_core::{
    Domain, DomainId, FirstStage, Gpa, GroupIndex, HostIommu, Invalidation, IovaRange, PageRequestOutcome,
    PageResponse, Pasid, ResponseCode, Scope, SourceId, TableFormat, VendorData,
};
use vfio_bridge::NestedIommu;
use vfio_bridge::testkit::{FakeKernel, YesDevice, YesKernel};

const SOURCE: SourceId = SourceId(0x100);

fn table(root: u64) -> Domain {
    let format =
        TableFormat::X86FirstStage { supervisor: false, write_protect: false, extended_accessed: false };
    let table = FirstStage { root: Gpa(root << 12), input_bits: 48, format };
    Domain::FirstStage { id: DomainId(1), table }
}

fn host(pasids: u32) -> NestedIommu {
    let host = NestedIommu::new(Arc::new(YesKernel::default())).unwrap();
    host.add_device(SOURCE, Box::new(YesDevice)).unwrap();
    for pasid in 1..=pasids {
        host.set_domain(SOURCE, Pasid::new(pasid), &table(u64::from(pasid))).unwrap();
    }
    host
}

fn forward(c: &mut Criterion) {
    for (pasids, pages) in [(1, 1), (1, 32), (1000, 1), (1000, 32)] {
        let host = host(pasids);
        c.bench_function(&format!("{pages} page(s), wait; {pasids} PASID(s)"), |b| {
            b.iter(|| {
                for page in 0..pages {
                    let range = IovaRange::aligned(black_box(page * 2) << 12, 12);
                    let scope = Scope::PasidRange { domain: DomainId(1), pasid: Pasid::truncate(1), range };
                    host.invalidate(&Invalidation::new(scope));
                }
                host.sync().unwrap();
            });
        });
    }
    let host = host(1000);
    c.bench_function("a binding that changes nothing; 1000 PASIDs", |b| {
        b.iter(|| host.set_domain(SOURCE, Pasid::new(black_box(500)), &table(500)).unwrap());
    });
}

fn page_request(c: &mut Criterion) {
    let kernel = FakeKernel::new();
    let host = NestedIommu::new(Arc::new(kernel.clone())).unwrap();
    host.add_device(SOURCE, Box::new(kernel.add_device(0))).unwrap();
    host.set_domain(SOURCE, Pasid::new(1), &table(1)).unwrap();
    let guest = ListTranslator::new();
    guest.on_page_request(|guest, _| {
        guest.page_requests.lock().clear();
        PageRequestOutcome::Queued
    });
    let response = PageResponse {
        source: SOURCE,
        pasid: Pasid::new(1),
        group: GroupIndex::truncate(3),
        code: ResponseCode::Success,
        vendor: VendorData::NONE,
    };
    c.bench_function("a page request, there and back", |b| {
        b.iter(|| {
            kernel.request_pages(0, Some(1), 3, &[0x1000]);
            host.deliver_page_requests(&*guest).unwrap();
            host.respond(&response).unwrap();
        });
    });
}

criterion_group!(benches, forward, page_request);
criterion_main!(benches);

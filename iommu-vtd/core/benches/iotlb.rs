//! What an access costs that hits the port's IOTLB.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use iommu_core::testkit::{ListTranslator, Page};
use iommu_core::{Access, Dma, Iova, SourceId};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fn hits(c: &mut Criterion) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 24)]).unwrap();
    let model = ListTranslator::new();
    for page in 0..64 {
        model.map(Page { pasid: None, iova: 0x10_0000 + (page << 12), gpa: page << 12, write: true });
    }
    let mut port = Dma::new(SourceId(8), memory, model, Arc::default()).port();
    let session = port.session(None);
    let mut group = c.benchmark_group("iotlb");
    group.bench_function("hit, same page", |b| {
        b.iter(|| session.translate(black_box(Iova(0x10_0010)), Access::Read).unwrap());
    });
    let mut page = 0u64;
    group.bench_function("hit, 64 pages in turn", |b| {
        b.iter(|| {
            page = (page + 1) % 64;
            session.translate(black_box(Iova(0x10_0010 + (page << 12))), Access::Read).unwrap()
        });
    });
    group.bench_function("hit and 8-byte load", |b| {
        b.iter(|| session.read_obj::<u64>(black_box(GuestAddress(0x10_0010))).unwrap());
    });
    group.finish();
}

criterion_group!(benches, hits);
criterion_main!(benches);

//! What the SVM endpoint's data path costs: a session's worth of copying over scattered pages, against a plain
//! copy of the same memory, and a descriptor from the portal to its record.

#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use devices::pci::PciFunction;
use devices::svm::engine::Engine;
use devices::svm::spec::{CONTROL_PAGES, Descriptor, Opcode, PORTAL_PAGES};
use devices::svm::{SvmConfig, SvmFunction};
use iommu_core::testkit::{ListTranslator, Page, RecordingMsi};
use iommu_core::{Dma, NoTranslation, PortSet, SESSION_LIMIT_BYTES, SourceId};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::IntoBytes;

type Memory = GuestMemoryMmap<()>;

const BYTES: usize = SESSION_LIMIT_BYTES;

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap_or_default()
}

fn copies(c: &mut Criterion) {
    let iommu = ListTranslator::new();
    for page in 0..BYTES as u64 / 4096 {
        for (space, first) in [(0x1000_0000_u64, 1_u64), (0x2000_0000, 513)] {
            // 37 and 64 have no common divisor: neighbours are apart.
            let gpa = (first + page * 37 % 64) * 4096;
            iommu.map(Page { pasid: None, iova: space + page * 4096, gpa, write: true });
        }
    }
    let dma = Dma::new(SourceId(8), memory(), iommu, Arc::new(PortSet::default()));
    let mut port = dma.device_tlb_port(&PortSet::default());
    let descriptor = Descriptor {
        opcode: Opcode::Copy as u8,
        source: 0x1000_0000.into(),
        destination: 0x2000_0000.into(),
        length: (BYTES as u64).into(),
        ..Descriptor::default()
    };
    let mut group = c.benchmark_group("copy 256 KiB");
    group.throughput(Throughput::Bytes(BYTES as u64));
    group.bench_function("through the device-TLB, 4 KiB pages", |b| {
        b.iter(|| {
            if let Ok(operation) = black_box(&descriptor).operation() {
                let mut engine = Engine::new(operation);
                black_box(engine.step(&port.session(None)));
            }
        });
    });
    let (source, mut destination) = (vec![1_u8; BYTES], vec![2_u8; BYTES]);
    group.bench_function("plain", |b| {
        b.iter(|| black_box(&mut destination).copy_from_slice(black_box(&source)));
    });
    group.finish();
}

fn round_trip(c: &mut Criterion) {
    let memory = memory();
    let dma = Dma::new(SourceId(8), memory.clone(), Arc::new(NoTranslation), Arc::new(PortSet::default()));
    let Ok(function) = SvmFunction::new(SvmConfig::default(), &dma, Arc::new(RecordingMsi::default())) else {
        return;
    };
    function.config_write(4, &6_u16.to_le_bytes());
    function.bar_write(0, CONTROL_PAGES, &1_u32.to_le_bytes());
    let record = GuestAddress(0x1000);
    let descriptor = Descriptor { flags: 1, record: record.0.into(), ..Descriptor::default() };
    c.bench_function("no-op, portal to record", |b| {
        b.iter(|| {
            let _ = memory.store(0_u64, record, Ordering::Relaxed);
            for (at, word) in (PORTAL_PAGES..).step_by(8).zip(descriptor.as_bytes().chunks(8)) {
                function.bar_write(0, at, word);
            }
            while matches!(memory.load::<u64>(record, Ordering::Acquire), Ok(0)) {
                std::hint::spin_loop();
            }
        });
    });
}

criterion_group!(benches, copies, round_trip);
criterion_main!(benches);

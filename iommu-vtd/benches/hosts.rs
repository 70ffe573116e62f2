//! What it costs to look whether an assigned function's tables changed.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use iommu_core::testkit::{NESTING, RecordingMsi};
use iommu_core::{
    Capabilities, Domain, Gpa, HostError, HostIommu, Invalidation, PageResponse, Pasid, SourceId, Translator,
};
use iommu_vtd::testkit::Tables;
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap;

const RING: u64 = 0x1_0000;
const STATUS: u64 = 0x1_3000;
const SOURCE: SourceId = SourceId(0x18);

/// A host that costs nothing.
struct Free;

impl HostIommu for Free {
    fn capabilities(&self) -> Capabilities {
        NESTING
    }

    fn set_domain(&self, _: SourceId, _: Option<Pasid>, domain: &Domain) -> Result<(), HostError> {
        black_box(domain);
        Ok(())
    }

    fn invalidate(&self, invalidation: &Invalidation) {
        black_box(invalidation);
    }

    fn sync(&self) -> Result<(), HostError> {
        Ok(())
    }

    fn drain_page_requests(&self, _: &dyn Translator) -> Result<(), HostError> {
        Ok(())
    }

    fn respond(&self, _: &PageResponse) -> Result<(), HostError> {
        Ok(())
    }
}

struct Machine {
    memory: Memory,
    unit: Unit<Memory>,
    tail: u64,
}

impl Machine {
    /// Tables are laid out by `lay`, and everything is on.
    fn new(lay: impl FnOnce(&Tables<'_, Memory>)) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        let (profile, _) = Profile::full(46).behind(&NESTING);
        let config = UnitConfig { capability: Capability::new(&profile).unwrap(), source: SourceId(0) };
        let unit = Unit::new(&config, memory.clone(), Arc::new(RecordingMsi::default()));
        unit.attach_host(SOURCE, Arc::new(Free), |_| ()).unwrap();
        let tables = Tables::new(&memory, 0x10_0000..0x300_0000);
        // A directory for all PASIDs, as Linux makes it.
        let context = tables.context(SOURCE);
        let directory = tables.allocate(32);
        context.edit(|low| low.with_pdts(arbitrary_int::u3::new(7)));
        tables.set_word(context.at(), tables.word(context.at()) & 0xfff | directory.0);
        lay(&tables);
        let root = tables.root_register().raw_value();
        unit.mmio_write(0x90, &(RING | 1 << 11 | 1).to_le_bytes());
        unit.mmio_write(0x18, &(1_u32 << 26).to_le_bytes());
        unit.mmio_write(0x20, &root.to_le_bytes());
        unit.mmio_write(0x18, &(1_u32 << 26 | 1 << 30).to_le_bytes());
        unit.mmio_write(0x18, &(1_u32 << 26 | 1 << 31).to_le_bytes());
        Self { memory, unit, tail: 0 }
    }

    /// A descriptor and a wait.
    fn submit(&mut self, descriptor: (u64, u64)) {
        for (low, high) in [descriptor, (2 << 32 | 0x25, STATUS)] {
            let words = [low, high, 0, 0];
            for (word, at) in words.into_iter().zip((RING + 32 * self.tail..).step_by(8)) {
                self.memory.write_obj(word, GuestAddress(at)).unwrap();
            }
            self.tail = (self.tail + 1) % 256;
        }
        self.unit.mmio_write(0x88, &(self.tail * 32).to_le_bytes());
    }
}

fn processes(count: u32) -> impl FnOnce(&Tables<'_, Memory>) {
    move |tables| {
        for pasid in 0..count {
            let _ = tables.context(SOURCE).pasid(pasid).first_stage(1);
        }
    }
}

/// As many PASID tables as are looked at, and all of their entries present but malformed.
fn hostile(tables: &Tables<'_, Memory>) {
    let entry = tables.context(SOURCE).pasid(0);
    let (directory, page) = (entry.directory_at(), tables.word(entry.directory_at()));
    for pasid in 0..64 {
        tables.set_word(Gpa((page & !0xfff) + pasid * 64), 0x1c1);
    }
    for index in 0..1 << 14 {
        tables.set_word(Gpa(directory.0 + 8 * index), page);
    }
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("look again, nothing changed");
    let mut few = Machine::new(processes(16));
    group.bench_function("a wait alone", |b| b.iter(|| few.submit((2 << 32 | 0x45, 0))));
    group.bench_function("one PASID", |b| b.iter(|| few.submit((5 << 32 | 1 << 16 | 0x17, 0))));
    group.bench_function("all, 16 processes", |b| b.iter(|| few.submit((0x37, 0))));
    let mut many = Machine::new(processes(1024));
    group.bench_function("all, 1024 processes", |b| b.iter(|| many.submit((0x37, 0))));
    let mut worst = Machine::new(hostile);
    group.bench_function("all, hostile tables", |b| b.iter(|| worst.submit((0x37, 0))));
    group.finish();
}

criterion_group!(hosts, benches);
criterion_main!(hosts);

//! What a miss in the IOTLB costs while the unit knows the way to the page, whether threads are in each other's
//! way, and what an invalidation costs.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use iommu_core::testkit::RecordingMsi;
use iommu_core::{Access, Dma, Iova, Pasid, Port, Request, SourceId, Translator};
use iommu_vtd::rules::Rules;
use iommu_vtd::tables::Context;
use iommu_vtd::testkit::{PageSize, Tables, flags};
use iommu_vtd::translate::translate;
use iommu_vtd::{Capability, Profile, Unit, UnitConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap<()>;

const SOURCE: SourceId = SourceId(0x18);
const RING: u64 = 0x1000;
const TABLES: u64 = 32 << 20;
const END: u64 = 64 << 20;
/// Four times what a port's IOTLB holds.
const PAGES: u64 = 4096;
const INPUT: u64 = 0x7f00_0000_0000;
const FIRST: u32 = 5;
const SECOND: u32 = 6;
const NESTED: u32 = 7;

struct Machine {
    memory: Memory,
    unit: Arc<Unit<Memory>>,
    rules: Rules,
}

impl Machine {
    /// The same pages under three PASIDs: through a first stage, a second stage, and both.
    fn new() -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        let profile = Profile { second_stage: true, nested: true, ..Profile::svm(46) };
        let capability = Capability::new(&profile).unwrap();
        let tables = Tables::new(&memory, TABLES..END);
        let device = tables.context(SOURCE);
        let process = device.pasid(FIRST).first_stage(1);
        let buffers = tables.second_space(4);
        let outer = tables.second_space(4);
        let inner = tables.inner_space(4, 0);
        for page in 0..PAGES {
            let address = INPUT + (page << 12);
            process.map(address, page << 12, PageSize::Size4K, flags::READY);
            inner.map(address, page << 12, PageSize::Size4K, flags::READY);
            buffers.map(address, page << 12, PageSize::Size4K, flags::SECOND);
        }
        for page in (0..END).step_by(4096) {
            outer.map(page, page, PageSize::Size4K, flags::SECOND);
        }
        device.pasid(SECOND).attach(2, &buffers);
        device.pasid(NESTED).nest(3, &inner, &outer);
        let config = UnitConfig { capability, source: SourceId(0) };
        let unit = Arc::new(Unit::new(&config, memory.clone(), Arc::new(RecordingMsi::default())));
        let command = |value: u32| unit.mmio_write(0x18, &value.to_le_bytes());
        unit.mmio_write(0x20, &tables.root_register().raw_value().to_le_bytes());
        unit.mmio_write(0x90, &(RING | 1 << 11).to_le_bytes());
        command(1 << 30 | 1 << 26);
        command(1 << 31 | 1 << 26);
        let rules = Rules::new(&capability);
        Self { memory, unit, rules }
    }

    fn context(&self) -> Context<'_, Memory> {
        let root = iommu_vtd::tables::RootLatch::new(TABLES | 1 << 10, true);
        Context { memory: &self.memory, rules: &self.rules, root }
    }

    fn port(&self) -> Port<Memory> {
        Dma::new(SOURCE, self.memory.clone(), self.unit.clone(), self.unit.ports()).port()
    }
}

const ROWS: [(&str, u32); 3] = [("first stage", FIRST), ("second stage", SECOND), ("nested 4x4", NESTED)];

fn request(pasid: u32, page: u64) -> Request {
    Request::untranslated(SOURCE, Some(Pasid::truncate(pasid)), Iova(INPUT + (page << 12)), Access::Write)
}

/// Prints the best of many short runs: what it costs when nothing else is in the way.
fn best(name: &str, mut work: impl FnMut(u64)) {
    const COUNT: u64 = 2000;
    let mut time = || {
        let start = Instant::now();
        (0..COUNT).for_each(&mut work);
        start.elapsed()
    };
    let best = (0..3000).map(|_| time()).min().unwrap_or_default();
    println!("{name}: best {:.1} ns", best.as_secs_f64() * 1e9 / COUNT as f64);
}

fn quiet(_: &mut Criterion) {
    let machine = Machine::new();
    let context = machine.context();
    for (name, pasid) in ROWS {
        let request = |page| black_box(request(pasid, page % PAGES));
        best(&format!("{name}, cold"), |page| {
            black_box(translate(&context, &request(page))).unwrap();
        });
        best(&format!("{name}, warm"), |page| {
            black_box(machine.unit.translate(&request(page))).unwrap();
        });
    }
}

fn misses(c: &mut Criterion) {
    let machine = Machine::new();
    let context = machine.context();
    for (name, pasid) in ROWS {
        let mut page = 0;
        let mut next = || {
            page = (page + 1) % PAGES;
            black_box(request(pasid, page))
        };
        let mut group = c.benchmark_group(name);
        group.bench_function("cold", |b| b.iter(|| translate(&context, &next()).unwrap()));
        group.bench_function("warm", |b| b.iter(|| machine.unit.translate(&next()).unwrap()));
        let mut port = machine.port();
        let session = port.session(Some(Pasid::truncate(pasid)));
        group.bench_function("warm, through a session", |b| {
            b.iter(|| session.translate(next().address, Access::Write).unwrap());
        });
        group.finish();
    }
}

/// The time from a common start until each of `threads` has translated `count` pages, all misses, through a port of
/// its own.
fn race(machine: &Machine, threads: usize, count: u64) -> Duration {
    let waiting = AtomicUsize::new(threads);
    let run = || {
        let mut port = machine.port();
        let session = port.session(Some(Pasid::truncate(NESTED)));
        waiting.fetch_sub(1, Ordering::SeqCst);
        while waiting.load(Ordering::SeqCst) > 0 {
            spin_loop();
        }
        let start = Instant::now();
        for page in 0..count {
            let address = Iova(INPUT + ((page % PAGES) << 12));
            black_box(session.translate(address, Access::Write)).unwrap();
        }
        (start, Instant::now())
    };
    let times: Vec<_> = thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let start = times.iter().map(|(start, _)| *start).min().unwrap();
    times.iter().map(|(_, end)| end.duration_since(start)).max().unwrap()
}

/// Prints how much two threads do in the time in which one does 1; the best of many short races, because what else
/// runs on the machine only makes it worse.
fn scaling(_: &mut Criterion) {
    const COUNT: u64 = 20_000;
    let machine = Machine::new();
    race(&machine, 1, COUNT);
    let best = |threads| (0..400).map(|_| race(&machine, threads, COUNT)).min().unwrap_or_default();
    let (one, two) = (best(1), best(2));
    println!("two threads: {:.2} x ({one:?} and {two:?})", 2.0 * one.as_secs_f64() / two.as_secs_f64());
}

/// A page-selective invalidation from the write of the tail to its return, with ports whose IOTLBs are full.
fn invalidations(c: &mut Criterion) {
    let rows = [
        ("page of a PASID", FIRST, [u64::from(FIRST) << 32 | 1 << 16 | 0x36, INPUT]),
        ("page of a second stage", SECOND, [2 << 16 | 0x32, INPUT]),
    ];
    for (name, pasid, descriptor) in rows {
        let mut group = c.benchmark_group(name);
        for count in [1, 16, 256] {
            let machine = Machine::new();
            let mut ports: Vec<_> = (0..count).map(|_| machine.port()).collect();
            for port in &mut ports {
                let session = port.session(Some(Pasid::truncate(pasid)));
                for page in 0..PAGES {
                    session.translate(Iova(INPUT + (page << 12)), Access::Write).unwrap();
                }
            }
            let mut tail = 0;
            let mut submit = || {
                let words = [descriptor[0], descriptor[1], 0, 0].map(u64::to_le);
                machine.memory.write_obj(words, GuestAddress(RING + tail)).unwrap();
                tail = (tail + 32) % 4096;
                machine.unit.mmio_write(0x88, &tail.to_le_bytes());
            };
            group.bench_function(BenchmarkId::from_parameter(count), |b| b.iter(&mut submit));
        }
        group.finish();
    }
}

criterion_group!(benches, quiet, misses, scaling, invalidations);
criterion_main!(benches);

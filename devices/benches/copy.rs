//! Copies through the whole endpoint, from the portal to the record, beside plain copies of the same lengths between
//! the same pages in the same run: their ratio holds also on a machine that has other things to do.
//!
//! Either side streams its copies, and is measured after it did the same once to get under way: the endpoint from the
//! end of a first half of its queue to the end of the second, while the thread that submitted them sleeps. So neither
//! what it takes to wake a thread nor what a waiting one takes away is in the figures. Each row is the best of rounds
//! that take turns, which is what neither was disturbed in.

#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use devices::pci::PciFunction;
use devices::svm::spec::{CONTROL_PAGES, Descriptor, Opcode, PAGE_BYTES, PORTAL_PAGES, control};
use devices::svm::{SvmConfig, SvmFunction};
use iommu_core::testkit::{Computed, RecordingMsi};
use iommu_core::{Dma, Gpa, Iova, PortSet, SourceId};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};
use zerocopy::IntoBytes;

type Memory = GuestMemoryMmap<()>;

/// Sources, then as much for destinations; behind them a page of records.
const HALF: u64 = 8 << 20;
const RECORDS: u64 = 2 * HALF;
const MEMORY: u64 = RECORDS + PAGE_BYTES;
const ROUNDS: u64 = 500;
const DEPTH_LOG2: u8 = 10;

/// What one row measures.
#[derive(Clone, Copy)]
struct Row {
    length: u64,
    /// Each turn goes through so many bytes of sources, and of destinations, over and over.
    footprint: u64,
    page_bits: u32,
}

impl Row {
    /// Copies that are measured at once.
    fn count(&self) -> u64 {
        (HALF / self.length).min(1 << (DEPTH_LOG2 - 1))
    }

    /// Each page lies somewhere else in the footprint of its half. `done` is told when a page of records is asked for:
    /// then all copies before that record are done.
    fn place(&self, address: Iova, done: &Sender<Instant>) -> (Gpa, u32) {
        let (address, page_bits) = (address.0, self.page_bits);
        if address >= RECORDS {
            let _ = done.send(Instant::now());
            return (Gpa(RECORDS), 12);
        }
        let (half, page) = (address / HALF, (address % HALF) >> page_bits);
        // An odd factor, so that every page is hit once; neighbours are apart.
        let scattered = ((page * 27) << page_bits) % self.footprint.max(1 << page_bits);
        (Gpa(half * HALF + scattered), page_bits)
    }

    /// Sources and destinations, in turn.
    fn parts(&self) -> impl Iterator<Item = (u64, u64)> {
        let Self { length, footprint, .. } = *self;
        (0..self.count()).map(move |index| index * length % footprint).map(|at| (at, HALF + at))
    }
}

struct Bench {
    row: Row,
    function: Arc<SvmFunction<Memory>>,
    memory: Memory,
    done: Receiver<Instant>,
}

impl Bench {
    fn new(memory: &Memory, row: Row) -> Option<Self> {
        let (sender, done) = channel();
        let translator = Arc::new(Computed(move |address| row.place(address, &sender)));
        let dma = Dma::new(SourceId(8), memory.clone(), translator, Arc::new(PortSet::default()));
        let config = SvmConfig { depth_log2: DEPTH_LOG2, ..SvmConfig::default() };
        let function = SvmFunction::new(config, &dma, Arc::new(RecordingMsi::default())).ok()?;
        function.config_write(4, &6_u16.to_le_bytes());
        // ATS, so that the device-TLB is in the way, as for a process's memory.
        let mut at = 0x100_u16;
        let word = |at: u16| {
            let mut data = [0; 2];
            function.config_read(at, &mut data);
            u16::from_le_bytes(data)
        };
        while at != 0 && word(at) != 0xf {
            at = word(at + 2) >> 4;
        }
        function.config_write(at + 6, &0x8000_u16.to_le_bytes());
        function.bar_write(0, CONTROL_PAGES, &1_u32.to_le_bytes());
        Some(Self { row, function, memory: memory.clone(), done })
    }

    /// How long it takes the endpoint.
    fn copies(&self, round: u64) -> Option<Duration> {
        for half in 0..2 {
            let last = self.row.count() - 1;
            for (index, (source, destination)) in (0..).zip(self.row.parts()) {
                self.submit(&Descriptor {
                    opcode: Opcode::Copy as u8,
                    flags: u8::from(index == last),
                    // No two in the same page, so that each is asked for.
                    record: (RECORDS + (2 * round + half) * PAGE_BYTES).into(),
                    source: source.into(),
                    destination: destination.into(),
                    length: self.row.length.into(),
                    ..Descriptor::default()
                });
            }
        }
        let (under_way, end) = (self.done.recv().ok()?, self.done.recv().ok()?);
        Some(end - under_way)
    }

    fn submit(&self, descriptor: &Descriptor) {
        for (at, word) in (PORTAL_PAGES..).step_by(8).zip(descriptor.as_bytes().chunks(8)) {
            self.function.bar_write(0, at, word);
        }
    }

    /// Bytes copied by the endpoint so far.
    fn copied(&self) -> u64 {
        let mut bytes = [0; 8];
        self.function.bar_read(0, CONTROL_PAGES + control::BYTES, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// How long it takes this thread.
    fn plain(&self) -> Option<Duration> {
        let length = usize::try_from(self.row.length).ok()?;
        let part = |at| {
            let mut slices = self.memory.get_slices(GuestAddress(at), length, Permissions::ReadWrite).ok()?;
            slices.next()?.ok()
        };
        let mut start = Instant::now();
        for _ in 0..2 {
            start = Instant::now();
            for (source, destination) in self.row.parts() {
                black_box(part(source)?).copy_to_volatile_slice(part(destination)?);
            }
        }
        Some(start.elapsed())
    }
}

fn main() {
    let Ok(memory) = Memory::from_ranges(&[(GuestAddress(0), usize::try_from(MEMORY).unwrap_or(0))]) else {
        return;
    };
    let touch = vec![1_u8; usize::try_from(MEMORY).unwrap_or(0)];
    let _ = memory.write_slice(&touch, GuestAddress(0));
    println!("{:>9} {:>9} {:>11} {:>11} {:>6}", "copies of", "pages of", "endpoint", "memcpy", "ratio");
    for (page_name, page_bits) in [("4 KiB", 12), ("2 MiB", 21)] {
        // The device-TLB reaches as far as 1 MiB on each side in small pages.
        for (name, length, footprint) in
            [("4 KiB", 4_u64 << 10, 256 << 10), ("64 KiB", 64 << 10, 512 << 10), ("1 MiB", 1 << 20, HALF)]
        {
            let Some(bench) = Bench::new(&memory, Row { length, footprint, page_bits }) else { return };
            let mut best = (Duration::MAX, Duration::MAX);
            for round in 0..ROUNDS {
                let (Some(endpoint), Some(plain)) = (bench.copies(round), bench.plain()) else { return };
                best = (best.0.min(endpoint), best.1.min(plain));
            }
            let turn = bench.row.count() * length;
            if bench.copied() != 2 * ROUNDS * turn {
                println!("the endpoint left copies out");
                return;
            }
            let (endpoint, plain) = (best.0.as_secs_f64(), best.1.as_secs_f64());
            #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
            let gigabytes = turn as f64 / 1e9;
            let (endpoint_speed, plain_speed) = (gigabytes / endpoint, gigabytes / plain);
            println!(
                "{name:>9} {page_name:>9} {endpoint_speed:>6.2} GB/s {plain_speed:>6.2} GB/s {:>6.2}",
                plain / endpoint
            );
        }
    }
}

//! Copies through the whole endpoint, from the portal to the record, beside plain copies of the same lengths over the
//! same footprint in the same run: their ratio holds also on a machine that has other things to do.
//!
//! Each row is the best of rounds that take turns, which is what neither was disturbed in. "memory" is one buffer of
//! guest memory, so both sides meet the same caches and pages of the host.

#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::pci::PciFunction;
use devices::svm::spec::{CONTROL_PAGES, Descriptor, Opcode, PAGE_BYTES, PORTAL_PAGES};
use devices::svm::{SvmConfig, SvmFunction};
use iommu_core::testkit::RecordingMsi;
use iommu_core::{
    Dma, DomainId, Fault, Gpa, PageRequest, PageRequestOutcome, Pasid, Permissions, PortSet, Request,
    SourceId, StageTag, Tag, Translation, Translator,
};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};
use zerocopy::IntoBytes;

type Memory = GuestMemoryMmap<()>;

const HALF: u64 = 64 << 20;
/// Source and destination; behind them a page of records.
const MEMORY: u64 = 2 * HALF + 0x1000;
const RECORD: u64 = 2 * HALF;
const ROUNDS: usize = 300;
const DEPTH: u64 = 64;

/// Pages of one size, each somewhere else in its half of memory.
struct Scattered {
    page_bits: u32,
}

impl Translator for Scattered {
    fn translate(&self, request: &Request) -> Result<Translation, Fault> {
        let address = request.address.0;
        let page_bits = if address < RECORD { self.page_bits } else { 12 };
        let (half, page) = (address / HALF, (address % HALF) >> page_bits);
        // An odd factor, so that every page is hit once; neighbours are apart.
        let scattered = if address < RECORD {
            half * HALF + (((page * 37) % (HALF >> page_bits)) << page_bits)
        } else {
            RECORD
        };
        Ok(Translation {
            iova: request.address,
            base: Gpa(scattered),
            page_bits,
            permissions: Permissions::READ_WRITE,
            untranslated_only: false,
            tag: Tag { domain: DomainId(1), pasid: Pasid::ZERO, stage: StageTag::First },
        })
    }

    fn report(&self, _: &Fault) {}

    fn page_request(&self, _: &PageRequest) -> PageRequestOutcome {
        PageRequestOutcome::Dropped
    }
}

struct Bench {
    function: Arc<SvmFunction<Memory>>,
    memory: Memory,
}

impl Bench {
    fn new(memory: &Memory, page_bits: u32) -> Option<Self> {
        let translator = Arc::new(Scattered { page_bits });
        let dma = Dma::new(SourceId(8), memory.clone(), translator, Arc::new(PortSet::default()));
        let function =
            SvmFunction::new(SvmConfig::default(), &dma, Arc::new(RecordingMsi::default())).ok()?;
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
        Some(Self { function, memory: memory.clone() })
    }

    /// So many copies, one after the other, each of the next part of memory; how long they take together.
    fn copies(&self, length: u64, count: u64) -> Duration {
        let record = GuestAddress(RECORD);
        let _ = self.memory.store(0_u64, record, Ordering::Relaxed);
        let start = Instant::now();
        for index in 0..count {
            let last = index + 1 == count;
            let at = index * length % HALF;
            let descriptor = Descriptor {
                opcode: Opcode::Copy as u8,
                flags: u8::from(last),
                record: record.0.into(),
                source: at.into(),
                destination: (HALF + at).into(),
                length: length.into(),
                ..Descriptor::default()
            };
            for (at, word) in
                (PORTAL_PAGES..PORTAL_PAGES + PAGE_BYTES).step_by(8).zip(descriptor.as_bytes().chunks(8))
            {
                self.function.bar_write(0, at, word);
            }
        }
        while matches!(self.memory.load::<u64>(record, Ordering::Acquire), Ok(0)) {
            // Not the spinning of a thread that wants to be first: on a busy machine it would take the time it measures.
            std::thread::yield_now();
        }
        start.elapsed()
    }

    fn plain(&self, length: u64, count: u64) -> Duration {
        let length = usize::try_from(length).unwrap_or(0);
        let start = Instant::now();
        for index in 0..count {
            let at = index * length as u64 % HALF;
            let part =
                |at: u64| self.memory.get_slices(GuestAddress(at), length, vm_memory::Permissions::ReadWrite);
            let (Ok(mut from), Ok(mut to)) = (part(at), part(HALF + at)) else { return Duration::ZERO };
            if let (Some(Ok(from)), Some(Ok(to))) = (from.next(), to.next()) {
                black_box(from).copy_to_volatile_slice(to);
            }
        }
        start.elapsed()
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
        let Some(bench) = Bench::new(&memory, page_bits) else { return };
        // Small pages of up to 1 MiB on each side are within the reach of the device-TLB.
        for (name, length, count) in
            [("4 KiB", 4_u64 << 10, DEPTH), ("64 KiB", 64 << 10, 16), ("1 MiB", 1 << 20, 8)]
        {
            let mut best = (Duration::MAX, Duration::MAX);
            for _ in 0..ROUNDS {
                best.0 = best.0.min(bench.copies(length, count));
                best.1 = best.1.min(bench.plain(length, count));
            }
            let (endpoint, plain) = (best.0.as_secs_f64(), best.1.as_secs_f64());
            #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
            let gigabytes = (length * count) as f64 / 1e9;
            let (endpoint_speed, plain_speed) = (gigabytes / endpoint, gigabytes / plain);
            println!(
                "{name:>9} {page_name:>9} {endpoint_speed:>6.2} GB/s {plain_speed:>6.2} GB/s {:>6.2}",
                plain / endpoint
            );
        }
    }
}

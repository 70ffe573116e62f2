//! The invalidation queue: any descriptors, rings of any size, width and place, errors and their repair.
#![no_main]

use arbitrary::Arbitrary;
use iommu_vtd_fuzz::{Bench, LAYOUT, Offset};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    /// Words into a slot of the ring.
    Put {
        slot: u8,
        words: [u64; 4],
    },
    /// One bit of a slot of the ring.
    Flip {
        slot: u8,
        bit: u8,
    },
    /// The tail some slots further.
    Advance(u8),
    Tail(u32),
    Ring {
        page: u8,
        size: u8,
        wide: bool,
    },
    RingAt(u64),
    Command(u32),
    Enable(bool),
    Root(u64),
    /// A good wait at the head, the error cleared.
    Repair,
    Clear(u32),
    Other {
        offset: Offset,
        data: u32,
    },
}

const QIE: u32 = 1 << 26;
const TES: u32 = 1 << 31;

fn take(bench: &Bench, step: &Step) {
    match step {
        Step::Put { slot, words } => {
            for (index, word) in words.iter().enumerate() {
                bench.poke(LAYOUT.ring + 32 * u64::from(slot % 128) + 8 * index as u64, *word);
            }
        }
        Step::Flip { slot, bit } => {
            let gpa = LAYOUT.ring + 32 * u64::from(slot % 128) + 8 * u64::from(bit / 64);
            bench.poke(gpa, bench.word(gpa) ^ 1 << (bit % 64));
        }
        Step::Advance(slots) => {
            let tail = (bench.read64(0x88) + 32 * u64::from(*slots)) % 4096;
            bench.write64(0x88, tail);
        }
        Step::Tail(tail) => bench.write64(0x88, (*tail).into()),
        Step::Ring { page, size, wide } => {
            bench.write64(0x90, u64::from(page % 32) << 12 | u64::from(*wide) << 11 | u64::from(size % 8));
        }
        Step::RingAt(address) => bench.write64(0x90, *address),
        Step::Command(command) => bench.write32(0x18, *command),
        Step::Enable(on) => bench.write32(0x18, bench.read32(0x1c) & TES | if *on { QIE } else { 0 }),
        Step::Root(root) => bench.write64(0x20, *root),
        Step::Repair => {
            let head = bench.read64(0x80) % 4096;
            for (index, word) in [2 << 32 | 0x25, LAYOUT.status, 0, 0].into_iter().enumerate() {
                bench.poke(LAYOUT.ring + head + 8 * index as u64, word);
            }
            bench.write32(0x34, 0x70);
        }
        Step::Clear(bits) => bench.write32(0x34, *bits),
        Step::Other { offset, data } => bench.unit.mmio_write(offset.get(), &data.to_le_bytes()),
    }
}

/// What holds whenever no write is under way.
fn promises(bench: &Bench) {
    let (head, tail) = (bench.read64(0x80), bench.read64(0x88));
    let (status, error) = (bench.read32(0x34), bench.read64(0xb0) & 0xf);
    let enabled = bench.read32(0x1c) & QIE != 0;
    assert!(head < 4096 << 7 && head % 16 == 0, "head {head:#x} lies outside any ring");
    assert_eq!(status & 1 << 4 != 0, error != 0, "IQE {status:#x}, IQEI {error}");
    if !enabled {
        assert_eq!(head, 0, "the head of a queue that is off");
    } else if status & 0x50 == 0 {
        assert_eq!(head, tail, "a queue without an error is empty when the write is back");
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let bench = Bench::new();
    for step in steps.iter().take(64) {
        take(&bench, step);
        promises(&bench);
    }
});

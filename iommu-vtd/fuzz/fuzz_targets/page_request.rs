//! Page requests against a queue whose registers a guest keeps moving.
#![no_main]

use arbitrary::Arbitrary;
use iommu_core::{PageRequestOutcome, Translator};
use iommu_vtd_fuzz::{Bench, LAYOUT, PageRequestInput};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Request(PageRequestInput),
    /// The guest has read all that is there.
    Consume,
    Head(u32),
    Tail(u32),
    Address(u64),
    /// A page of memory, and a size.
    Queue {
        page: u8,
        size: u8,
    },
    Clear(u8),
    Mask(bool),
    Poke {
        gpa: u16,
        word: u64,
    },
    /// A page group response, then a wait that drains.
    Answer {
        low: u64,
        high: u64,
    },
    Command(u32),
}

const TES: u32 = 1 << 31;

fn request(bench: &Bench, input: PageRequestInput) {
    let request = input.get();
    let (tail, status) = (bench.read64(0xc8), bench.read32(0xdc));
    let outcome = bench.unit.page_request(&request);
    let moved = bench.read64(0xc8) != tail;
    assert_eq!(
        moved,
        outcome == PageRequestOutcome::Queued,
        "the tail moves with what is queued: {outcome:?}"
    );
    if outcome == PageRequestOutcome::Queued {
        assert_eq!(status & 2, 0, "queued in spite of PRO");
        assert_eq!(bench.read32(0xdc) & 1, 1, "queued, and PPR is not set");
    }
    if let PageRequestOutcome::Answered(_) = outcome {
        assert!(request.last, "an answer to a request that is not the last of its group");
    }
    if bench.read32(0x1c) & TES == 0 {
        assert_eq!(outcome, PageRequestOutcome::Dropped, "translation is off");
    }
}

fn take(bench: &Bench, step: &Step) {
    match step {
        Step::Request(input) => request(bench, *input),
        Step::Consume => bench.write64(0xc0, bench.read64(0xc8)),
        Step::Head(head) => bench.write64(0xc0, (*head).into()),
        Step::Tail(tail) => bench.write64(0xc8, (*tail).into()),
        Step::Address(address) => bench.write64(0xd0, *address),
        Step::Queue { page, size } => bench.write64(0xd0, u64::from(page % 32) << 12 | u64::from(size % 8)),
        Step::Clear(bits) => bench.write32(0xdc, (*bits).into()),
        Step::Mask(on) => bench.write32(0xe0, u32::from(*on) << 31),
        Step::Poke { gpa, word } => bench.poke((*gpa).into(), *word),
        Step::Answer { low, high } => {
            let response = [low & !0xfff | 9 | low & 0x10, *high, 0, 0, 2 << 32 | 0xa5, LAYOUT.status, 0, 0];
            let tail = bench.read64(0x88) % 4096 & !31;
            for (index, word) in response.into_iter().enumerate() {
                bench.poke(LAYOUT.ring + (tail + 8 * index as u64) % 4096, word);
            }
            bench.write64(0x88, (tail + 64) % 4096);
        }
        Step::Command(command) => bench.write32(0x18, *command),
    }
}

/// What holds whenever no call is under way.
fn promises(bench: &Bench) {
    let (control, status) = (bench.read32(0xe0), bench.read32(0xdc));
    let pending = control & 1 << 30 != 0;
    assert!(!pending || control & 1 << 31 != 0, "a message waits although nothing masks it");
    assert!(!pending || status != 0, "a message waits for nothing");
}

fuzz_target!(|steps: Vec<Step>| {
    let bench = Bench::new();
    for step in steps.iter().take(160) {
        take(&bench, step);
        promises(&bench);
    }
});

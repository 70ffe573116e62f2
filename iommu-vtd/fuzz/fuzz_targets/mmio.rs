//! Registers, written and read at any offset and width, with devices that go on asking.
#![no_main]

use arbitrary::Arbitrary;
use iommu_core::Translator;
use iommu_vtd_fuzz::{Bench, Offset, PageRequestInput, RequestInput};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Step {
    Write { offset: Offset, data: u64, bytes: u8 },
    Burst { offset: Offset, data: [u8; 24] },
    Read { offset: Offset, bytes: u8 },
    Poke { gpa: u16, word: u64 },
    Request(RequestInput),
    PageRequest(PageRequestInput),
    Reset,
}

fn take(bench: &Bench, step: &Step) {
    match step {
        Step::Write { offset, data, bytes } => {
            bench.unit.mmio_write(offset.get(), &data.to_le_bytes()[..usize::from(bytes % 9)]);
        }
        Step::Burst { offset, data } => bench.unit.mmio_write(offset.get(), data),
        Step::Read { offset, bytes } => {
            bench.unit.mmio_read(offset.get(), &mut [0; 32][..usize::from(bytes % 33)])
        }
        Step::Poke { gpa, word } => bench.poke((*gpa).into(), *word),
        Step::Request(request) => {
            if let Err(fault) = bench.unit.translate(&request.get()) {
                bench.unit.report(&fault);
            }
        }
        Step::PageRequest(request) => {
            bench.unit.page_request(&request.get());
        }
        Step::Reset => bench.unit.reset(),
    }
}

/// The reset values, seen once.
fn after_reset() -> &'static [u8] {
    static PAGE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    PAGE.get_or_init(|| {
        let bench = Bench::new();
        bench.unit.reset();
        bench.registers()
    })
}

fuzz_target!(|steps: Vec<Step>| {
    let expected = after_reset();
    let bench = Bench::new();
    for step in steps.iter().take(64) {
        take(&bench, step);
    }
    let seen = bench.registers();
    assert_eq!(seen, bench.registers(), "reading changes nothing");
    assert_eq!(seen[8..0x18], expected[8..0x18], "capabilities are constant");
    bench.unit.reset();
    assert_eq!(bench.registers(), expected, "reset leaves something behind");
});

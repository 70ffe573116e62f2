//! States that nobody saved: refused, or as good as any that was.
#![no_main]

use arbitrary::Arbitrary;
use iommu_core::Translator;
use iommu_vtd::UnitState;
use iommu_vtd_fuzz::{Bench, PageRequestInput, RequestInput};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Change {
    Register { index: u8, value: u64 },
    RegisterBit { index: u8, bit: u8 },
    Record { index: u8, half: bool, value: u64 },
    NextRecord(u16),
    Root { table: u64, mode: u8, enabled: bool },
    Interrupts { table: u64, size: u8, extended: bool, enabled: bool, compatibility: bool },
    NoQueue,
    Queue { base: u64, size: u8, wide: bool },
}

#[derive(Arbitrary, Debug)]
enum Step {
    Request(RequestInput),
    PageRequest(PageRequestInput),
    Write { offset: u16, value: u32 },
}

#[derive(Arbitrary, Debug)]
struct Input {
    before: Vec<Step>,
    changes: Vec<Change>,
    after: Vec<Step>,
}

fn register(state: &mut UnitState, index: u8) -> &mut u64 {
    let count = state.registers.len();
    state.registers.values_mut().nth(usize::from(index) % count).expect("not empty")
}

fn change(state: &mut UnitState, change: &Change) {
    match *change {
        Change::Register { index, value } => *register(state, index) = value,
        Change::RegisterBit { index, bit } => *register(state, index) ^= 1 << (bit % 64),
        Change::Record { index, half, value } => {
            state.fault_records[usize::from(index % 8)][usize::from(half)] = value;
        }
        Change::NextRecord(next) => state.next_fault_record = next,
        Change::Root { table, mode, enabled } => {
            (state.root.table, state.root.mode, state.root.enabled) = (table, mode, enabled);
        }
        Change::Interrupts { table, size, extended, enabled, compatibility } => {
            let interrupts = &mut state.interrupts;
            (interrupts.table, interrupts.size, interrupts.extended) = (table, size, extended);
            (interrupts.enabled, interrupts.compatibility) = (enabled, compatibility);
        }
        Change::NoQueue => state.queue = None,
        Change::Queue { base, size, wide } => {
            if let Some(queue) = &mut state.queue {
                (queue.base, queue.size, queue.wide) = (base, size, wide);
            }
        }
    }
}

fn take(bench: &Bench, step: &Step) {
    match step {
        Step::Request(request) => {
            if let Err(fault) = bench.unit.translate(&request.get()) {
                bench.unit.report(&fault);
            }
        }
        Step::PageRequest(request) => {
            bench.unit.page_request(&request.get());
        }
        Step::Write { offset, value } => bench.write32((offset & 0xfff).into(), *value),
    }
}

fuzz_target!(|input: Input| {
    let bench = Bench::new();
    for step in input.before.iter().take(32) {
        take(&bench, step);
    }
    let saved = bench.unit.save();
    let mut state = saved.clone();
    for edit in input.changes.iter().take(16) {
        change(&mut state, edit);
    }
    match bench.unit.restore(&state) {
        Ok(()) => assert_eq!(bench.unit.save(), state, "what was put in comes out again"),
        Err(error) => {
            assert_ne!(state, saved, "a state of its own: {error}");
            assert_eq!(bench.unit.save(), saved, "{error}, and changed");
        }
    }
    bench.unit.resume();
    for step in input.after.iter().take(32) {
        take(&bench, step);
    }
    let again = bench.unit.save();
    assert_eq!(bench.unit.restore(&again), Ok(()), "a state of its own");
});

//! Every opcode on resident memory: no page is asked for.

use anyhow::{Result, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, requests, same, success};
use crate::endpoint::{Device, NO_DIFFERENCE, Operation, Status};
use crate::model;
use crate::sys::PAGE;

pub(super) const CASES: &[Case] = &[
    Case::new("no-operation", Needs::Translation, no_operation),
    Case::new("copy-resident", Needs::Translation, copy_resident),
    Case::new("copy-overlapping-downwards", Needs::Translation, copy_overlapping_downwards),
    Case::new("fill", Needs::Translation, fill),
    Case::new("compare", Needs::Translation, compare),
    Case::new("crc-32c", Needs::Translation, crc),
    Case::new("pointer-chase", Needs::Translation, chase),
    Case::new("zero-length-touches-nothing", Needs::Translation, zero_length),
    Case::new("invalid-descriptors", Needs::Translation, invalid_descriptors),
];

/// Offsets and lengths that start, end and cross where it matters.
const SHAPES: &[(usize, usize, usize)] = &[
    (0, 0, 1),
    (0, 0, PAGE),
    (1, 0, PAGE),
    (0, 7, PAGE + 1),
    (PAGE - 1, 3, 2),
    (PAGE - 3, PAGE - 5, 3 * PAGE),
    (5, 11, 7 * PAGE + 13),
    (0, 0, 15 * PAGE),
];

fn no_operation(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    let before = lane.device.counters();
    for _ in 0..100 {
        requests(lane.counted(&Operation::nop(), 0)?, 0)?;
    }
    let completed = lane.device.counters().completed - before.completed;
    ensure!(completed == 100, "the device counted {completed} of 100 descriptors");
    Ok(())
}

fn copy_resident(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    for &(from, to, length) in SHAPES {
        let (source, bytes) = bench.resident(16)?;
        let (destination, mut expected) = bench.resident(16)?;
        let operation = Operation::copy(source.at(from), destination.at(to), length);
        requests(lane.counted(&operation, length)?, 0)?;
        expected[to..to + length].copy_from_slice(&bytes[from..from + length]);
        let shape = format!("destination of {length:#x} bytes from {from:#x} to {to:#x}");
        same(&shape, &destination.read_all(), &expected)?;
        same("source", &source.read_all(), &bytes)?;
    }
    Ok(())
}

fn copy_overlapping_downwards(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    for distance in [1, 63, PAGE, PAGE + 9] {
        let (memory, mut expected) = bench.resident(8)?;
        let length = memory.len() - distance;
        requests(lane.counted(&Operation::copy(memory.at(distance), memory.address(), length), length)?, 0)?;
        expected.copy_within(distance.., 0);
        same(&format!("moved down by {distance:#x}"), &memory.read_all(), &expected)?;
    }
    Ok(())
}

fn fill(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    for &(_, to, length) in SHAPES {
        let (destination, mut expected) = bench.resident(16)?;
        let pattern = bench.random.bits();
        requests(lane.counted(&Operation::fill(destination.at(to), length, pattern), length)?, 0)?;
        expected[to..to + length].copy_from_slice(&model::fill(pattern, length));
        same(&format!("{length:#x} bytes at {to:#x}"), &destination.read_all(), &expected)?;
    }
    Ok(())
}

fn compare(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    let (left, bytes) = bench.resident(4)?;
    let (right, _) = bench.resident(4)?;
    let differences =
        [None, Some(0), Some(7), Some(PAGE - 1), Some(PAGE), Some(3 * PAGE + 1), Some(4 * PAGE - 1)];
    for difference in differences {
        right.write(0, &bytes);
        if let Some(at) = difference {
            right.write(at, &[bytes[at] ^ 0x80]);
        }
        let operation = Operation::compare(left.address(), right.address(), bytes.len());
        let completion = lane.queue.run(&operation)?;
        success(&completion, difference.unwrap_or(bytes.len()))?;
        let expected = difference.map_or(NO_DIFFERENCE, |at| at as u64);
        ensure!(completion.result == expected, "{difference:?}: the result is {:#x}", completion.result);
    }
    Ok(())
}

fn crc(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    let (source, bytes) = bench.resident(16)?;
    for &(from, before, length) in SHAPES {
        let before = u32::try_from(before)?;
        let completion = lane.queue.run(&Operation::crc(source.at(from), length, before))?;
        success(&completion, length)?;
        let expected = model::crc32c(&bytes[from..from + length], before);
        ensure!(
            completion.result == u64::from(expected),
            "{length:#x} bytes at {from:#x}: {:#x}, expected {expected:#x}",
            completion.result
        );
    }
    Ok(())
}

/// A list in random order over several pages; whole, cut short, and empty.
fn chase(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    let (memory, _) = bench.resident(8)?;
    let nodes = model::random_list(&mut bench.random, memory.len());
    for (node, next) in nodes.iter().zip(nodes.iter().skip(1)) {
        memory.store(*node, memory.at(*next));
    }
    let (first, last) = (nodes[0], nodes[nodes.len() - 1]);
    memory.store(last, 0);
    let address = |node: usize| memory.at(node);
    let hops = nodes.len() - 1;
    let rows =
        [("whole", usize::MAX >> 40, hops, last), ("cut short", 10, 10, nodes[10]), ("no hop", 0, 0, first)];
    for (name, limit, hops, end) in rows {
        let completion = lane.queue.run(&Operation::chase(address(first), limit))?;
        // With the last node's null pointer the chase ends; whether reading it is a hop is all
        // that the limit decides.
        success(&completion, hops).map_err(|error| error.context(name))?;
        ensure!(completion.result == address(end), "{name}: the last node is {:#x}", completion.result);
        ensure!(completion.page_requests == 0, "{name}: {} page requests", completion.page_requests);
    }
    let nothing = lane.queue.run(&Operation::chase(0, 5))?;
    success(&nothing, 0)?;
    ensure!(nothing.result == 0, "a chase from nowhere ends at {:#x}", nothing.result);
    Ok(())
}

/// Addresses that nothing could read or write do not matter then.
fn zero_length(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    for operation in [Operation::copy(8, 16, 0), Operation::fill(8, 0, 1), Operation::crc(8, 0, 0)] {
        requests(lane.counted(&operation, 0)?, 0)?;
    }
    Ok(())
}

fn invalid_descriptors(bench: &mut Bench<'_>) -> Result<()> {
    const TOO_LONG: usize = (1 << 30) + 1;
    let (memory, bytes) = bench.resident(1)?;
    let at = memory.address();
    let strange = |change: fn(&mut Operation)| {
        let mut operation = Operation::fill(at, 8, 0);
        change(&mut operation);
        operation
    };
    let rows = [
        ("opcode", strange(|operation| operation.opcode = 9)),
        ("opcode 255", strange(|operation| operation.opcode = 255)),
        ("flag", strange(|operation| operation.flags |= 1 << 4)),
        ("flag 7", strange(|operation| operation.flags |= 1 << 7)),
        ("reserved field", strange(|operation| operation.reserved = 1)),
        ("length", Operation::fill(at, TOO_LONG, 0)),
        ("hops", Operation::chase(at, TOO_LONG)),
        ("wraps around", Operation::fill(u64::MAX - 7, 16, 0)),
    ];
    let device = Device::open(bench.endpoint)?;
    let queue = device.queue(0)?;
    for (name, operation) in rows {
        let completion = queue.run(&operation)?;
        ensure!(completion.status == Status::Invalid, "{name}: {:?}", completion.status);
        success(&queue.run(&Operation::nop())?, 0)?;
    }
    same("memory", &memory.read_all(), &bytes)
}

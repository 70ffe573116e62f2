//! Batches, fences, drains.

use anyhow::{Context, Result, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, Lane, fresh, requests, same, success};
use crate::endpoint::{Completion, DESCRIPTOR_WORDS, Operation, Status, Ticket};
use crate::sys::{Mapping, PAGE};

use Needs::{PageRequests, Translation};

/// A batch's result if all succeeded.
const ALL_SUCCEEDED: u64 = u64::MAX;
const DESCRIPTOR_BYTES: usize = DESCRIPTOR_WORDS * 8;

pub(super) const CASES: &[Case] = &[
    Case::new("batch-does-each", Translation, does_each),
    Case::new("batch-tells-first-failure", Translation, tells_first_failure),
    Case::new("batch-array-faults-in", PageRequests, array_faults_in),
    Case::new("batch-array-not-there", Translation, array_not_there),
    Case::new("fence-stops-after-failure", Translation, fence_stops_after_failure),
    Case::new("drain-tells-failures", Translation, drain_tells_failures),
];

/// An array of descriptors with records of the lane's queue.
fn array(lane: &Lane, operations: &[Operation]) -> Result<(Mapping, Vec<Ticket>)> {
    let memory = Mapping::anonymous((operations.len() * DESCRIPTOR_BYTES).next_multiple_of(PAGE).max(PAGE))?;
    let mut tickets = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        let (ticket, words) = lane.queue.prepare(operation);
        for (word, value) in words.into_iter().enumerate() {
            memory.store(index * DESCRIPTOR_BYTES + word * 8, value);
        }
        tickets.push(ticket);
    }
    Ok((memory, tickets))
}

fn statuses(lane: &Lane, tickets: Vec<Ticket>) -> Result<Vec<Status>> {
    let record = |ticket| lane.queue.poll(ticket).context("a descriptor of a batch that ended has no record");
    tickets.into_iter().map(|ticket| Ok(record(ticket)?.status)).collect()
}

/// A copy that cannot be read, and is not asked for.
fn fails(memory: &Mapping) -> Operation {
    Operation::copy(8, memory.address(), 8).without_block()
}

fn check(name: &str, found: &Completion, expected: (Status, u64, u64)) -> Result<()> {
    let ended = (found.status, found.completed, found.result);
    ensure!(ended == expected, "{name}: {ended:?}, expected {expected:?}");
    Ok(())
}

/// Each copy reads what the one before it wrote; all records are there before the batch's own.
fn does_each(bench: &mut Bench<'_>) -> Result<()> {
    const STEPS: usize = 200;
    let (memory, bytes) = bench.resident(STEPS + 1)?;
    let lane = bench.lane()?;
    let step = |index: usize| Operation::copy(memory.at(index * PAGE), memory.at((index + 1) * PAGE), PAGE);
    let operations: Vec<_> = (0..STEPS).map(step).collect();
    let (array, tickets) = array(&lane, &operations)?;
    let before = lane.device.counters().completed;
    let batch = lane.queue.run(&Operation::batch(array.address(), STEPS))?;
    check("batch", &batch, (Status::Success, STEPS as u64, ALL_SUCCEEDED))?;
    let done = statuses(&lane, tickets)?;
    ensure!(done.iter().all(|status| *status == Status::Success), "descriptors ended as {done:?}");
    let counted = lane.device.counters().completed - before;
    ensure!(counted == STEPS as u64 + 1, "the device counted {counted} descriptors");
    same("memory", &memory.read_all(), &bytes[..PAGE].repeat(STEPS + 1))
}

fn tells_first_failure(bench: &mut Bench<'_>) -> Result<()> {
    let (memory, _) = bench.resident(1)?;
    let lane = bench.lane()?;
    let nop = Operation::nop();
    let operations =
        [nop, nop, fails(&memory), Operation::batch(memory.address(), 1), Operation::drain(), nop];
    let (array, tickets) = array(&lane, &operations)?;
    let batch = lane.queue.run(&Operation::batch(array.address(), operations.len()))?;
    check("batch", &batch, (Status::Incomplete, operations.len() as u64, 2))?;
    let expected =
        [Status::Success, Status::Success, Status::Fault, Status::Invalid, Status::Invalid, Status::Success];
    let found = statuses(&lane, tickets)?;
    ensure!(found == expected, "descriptors ended as {found:?}");
    Ok(())
}

/// The pages of the array are not there; descriptors of zeros are no-operations.
fn array_faults_in(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 16;
    let lane = bench.lane()?;
    let count = PAGES * PAGE / DESCRIPTOR_BYTES;
    for ahead in [0, 5] {
        let array = fresh(PAGES)?;
        let operation = Operation::batch(array.address(), count).with_ahead(ahead);
        let (batch, asked) = lane.run_counted(&operation)?;
        check("batch", &batch, (Status::Success, count as u64, ALL_SUCCEEDED))?;
        requests(asked, PAGES)?;
    }
    Ok(())
}

fn array_not_there(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    let count = PAGE / DESCRIPTOR_BYTES;
    let (array, _) = array(&lane, &vec![Operation::nop(); count])?;
    // The second page of this mapping is not there, and nobody asks.
    let whole = fresh(2)?;
    whole.write(0, &array.read_all());
    let batch = lane.queue.run(&Operation::batch(whole.address(), count + 1).without_block())?;
    check("batch", &batch, (Status::Fault, count as u64, ALL_SUCCEEDED))?;
    ensure!(batch.fault_address == whole.at(PAGE), "it faulted at {:#x}", batch.fault_address);
    success(&lane.queue.run(&Operation::nop())?, 0)
}

fn fence_stops_after_failure(bench: &mut Bench<'_>) -> Result<()> {
    let (memory, bytes) = bench.resident(1)?;
    let lane = bench.lane()?;
    let fill = Operation::fill(memory.address(), PAGE, 3).with_fence();
    let (array, tickets) =
        array(&lane, &[Operation::nop().with_fence(), fails(&memory), fill, Operation::nop()])?;
    let batch = lane.queue.run(&Operation::batch(array.address(), 4))?;
    check("batch", &batch, (Status::Incomplete, 4, 1))?;
    let found = statuses(&lane, tickets)?;
    let expected = [Status::Success, Status::Fault, Status::Fenced, Status::Success];
    ensure!(found == expected, "descriptors ended as {found:?}");
    let status = lane.queue.run(&fill)?.status;
    ensure!(status == Status::Fenced, "after a batch that failed: {status:?}");
    same("memory", &memory.read_all(), &bytes)
}

fn drain_tells_failures(bench: &mut Bench<'_>) -> Result<()> {
    let (memory, _) = bench.resident(1)?;
    let lane = bench.lane()?;
    let tickets =
        [fails(&memory), Operation::nop(), Operation::nop().with_fence()].map(|one| lane.queue.start(&one));
    for expected in [2, 0] {
        let drain = lane.queue.run(&Operation::drain())?;
        check("drain", &drain, (Status::Success, 0, expected))?;
    }
    let ends = tickets.map(|ticket| lane.queue.poll(ticket).map(|end| end.status));
    let expected = [Status::Fault, Status::Success, Status::Fenced].map(Some);
    ensure!(ends == expected, "before the drain: {ends:?}");
    success(&lane.queue.run(&Operation::nop().with_fence())?, 0)
}

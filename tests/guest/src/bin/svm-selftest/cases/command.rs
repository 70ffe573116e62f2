//! Shared queues, commands, priorities.

use anyhow::{Context, Result, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, Skip, fresh, same, success};
use crate::endpoint::{Device, Operation, Status, Ticket, global, portal};
use crate::model;
use crate::sys::{Mapping, PAGE};
use crate::wait::{patience, wait_until};

use Needs::{PageRequests, Translation};

pub(super) const CASES: &[Case] = &[
    Case::new("shared-queue-serves-windows", Translation, shared_queue_serves_windows).provoking(),
    Case::new("shared-queue-tells-when-full", PageRequests, shared_queue_tells_when_full),
    Case::new("drain-of-a-queue", PageRequests, drain_of_a_queue),
    Case::new("abort-of-a-pasid", PageRequests, abort_of_a_pasid),
    Case::new("priorities-share-the-engine", Translation, priorities_share_the_engine),
];

/// A PASID that names nothing.
const NOBODY: u32 = 0xf_fff0;

/// Several submitters, each through a window of its own; one of them is bound to nothing.
fn shared_queue_serves_windows(bench: &mut Bench<'_>) -> Result<()> {
    let device = Device::open(bench.endpoint)?;
    let queue = device.shared_queue(0)?;
    let windows = [0, 1, 2]
        .map(|index| device.window(index, &queue, device.pasid()))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let stranger = device.window(3, &queue, NOBODY)?;
    let (memory, bytes) = bench.resident(1)?;
    let mut work = Vec::new();
    for _ in 0..8 {
        for window in &windows {
            let (destination, _) = bench.resident(1)?;
            let ticket = window.start(&Operation::copy(memory.address(), destination.address(), PAGE));
            ensure!(window.outcome().0 == portal::ACCEPTED, "not accepted: {:?}", window.outcome());
            work.push((window, ticket, destination));
        }
        let before = (stranger.outcome().1, device.counters().records_lost);
        let refused = stranger.start(&Operation::fill(memory.address(), PAGE, 0).without_block());
        let told = stranger.outcome();
        ensure!(told == (portal::ACCEPTED, before.0 + 1), "the stranger was told {told:?}");
        wait_until(patience(), || device.counters().records_lost > before.1)?;
        ensure!(stranger.poll(refused).is_none(), "a record was written for nobody");
    }
    for (window, ticket, destination) in work {
        success(&window.wait(ticket)?, PAGE)?;
        same("destination", &destination.read_all(), &bytes)?;
    }
    let own = queue.start(&Operation::nop());
    ensure!(queue.outcome().0 == portal::DISABLED, "the portal of a shared queue took a descriptor");
    ensure!(queue.poll(own).is_none(), "a descriptor that was not taken has a record");
    same("source", &memory.read_all(), &bytes)
}

/// One submitter fills the queue; both are told.
fn shared_queue_tells_when_full(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 256;
    let device = Device::open(bench.endpoint)?;
    let queue = device.shared_queue(0)?;
    let greedy = device.window(0, &queue, device.pasid())?;
    let other = device.window(1, &queue, device.pasid())?;
    let destination = fresh(PAGES)?;
    let asked = queue.page_requests();
    // For certain: its place is free only after its last page was asked for, and a moment before its record is there.
    let first_is_at_work = || queue.page_requests() - asked < PAGES as u64;
    let first = greedy.start(&Operation::fill(destination.address(), destination.len(), 1));
    let mut accepted: Vec<Ticket> = Vec::new();
    for _ in 0..2 * device.depth() {
        let ticket = greedy.start(&Operation::nop());
        match greedy.outcome().0 {
            portal::ACCEPTED => accepted.push(ticket),
            code => {
                ensure!(code == portal::FULL, "outcome {code}");
                break;
            }
        }
    }
    // The first one waits for its pages, which takes far longer than these stores.
    if first_is_at_work() {
        ensure!(accepted.len() + 1 == device.depth(), "{} descriptors were accepted", accepted.len() + 1);
        let late = other.start(&Operation::nop());
        let told = other.outcome().0;
        ensure!(told == portal::FULL || !first_is_at_work(), "the other one was told {told}");
        ensure!(told == portal::ACCEPTED || other.poll(late).is_none(), "a dropped descriptor has a record");
    } else {
        bench.notes.push("the queue was too fast to be filled".to_owned());
    }
    success(&greedy.wait(first)?, destination.len())?;
    for ticket in accepted {
        success(&greedy.wait(ticket)?, 0)?;
    }
    queue.rest()?;
    success(&other.run(&Operation::nop())?, 0)
}

fn drain_of_a_queue(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 32;
    let lane = bench.lane()?;
    for by_pasid in [false, true] {
        let destinations: Vec<Mapping> = (0..8).map(|_| fresh(PAGES)).collect::<Result<_>>()?;
        let fill = |memory: &Mapping| Operation::fill(memory.address(), memory.len(), 4);
        let tickets: Vec<_> = destinations.iter().map(|memory| lane.queue.start(&fill(memory))).collect();
        let operand = if by_pasid { lane.device.pasid() } else { 0 };
        lane.device.command(global::DRAIN | if by_pasid { global::BY_PASID } else { 0 }, operand)?;
        for (ticket, memory) in tickets.into_iter().zip(&destinations) {
            let completion = lane.queue.poll(ticket).context("not ended when the drain was done")?;
            success(&completion, memory.len())?;
            same("memory", &memory.read_all(), &model::fill(4, PAGES * PAGE))?;
        }
    }
    let refused = lane.device.command(global::DRAIN, 0xf_ffff);
    ensure!(refused.is_err(), "a queue that does not exist was drained");
    Ok(())
}

/// What this process has under way ends, in every queue; queues stay enabled.
fn abort_of_a_pasid(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 64;
    let device = Device::open(bench.endpoint)?;
    ensure!(device.queues() >= 2, "the endpoint has one queue only");
    let queues = [device.queue(0)?, device.queue(1)?];
    let asked = device.counters().page_requests;
    let mut work = Vec::new();
    for queue in &queues {
        for _ in 0..4 {
            let memory = fresh(PAGES)?;
            work.push((
                queue,
                queue.start(&Operation::fill(memory.address(), memory.len(), u64::MAX)),
                memory,
            ));
        }
    }
    // The abort is to meet a descriptor that has begun to ask for pages.
    let (queue, first, _) = &work[0];
    wait_until(patience(), || device.counters().page_requests > asked || queue.poll(*first).is_some())?;
    device.command(global::ABORT | global::BY_PASID, device.pasid())?;
    let mut aborted = 0;
    for (queue, ticket, memory) in work {
        let completion = queue.poll(ticket).context("not ended when the abort was done")?;
        aborted += usize::from(completion.status == Status::Aborted);
        let known = matches!(completion.status, Status::Aborted | Status::Success);
        ensure!(known, "a descriptor ended as {:?}", completion.status);
        let mut expected = vec![0xff; usize::try_from(completion.completed)?];
        expected.resize(memory.len(), 0);
        same("memory", &memory.read_all(), &expected)?;
    }
    ensure!(aborted > 0, "nothing was aborted");
    bench.notes.push(format!("{aborted} of 8 descriptors were aborted"));
    for queue in &queues {
        success(&queue.run(&Operation::nop())?, 0)?;
    }
    Ok(())
}

/// With one engine for two queues of different weight, both get their part, to the byte: the lighter one has a turn
/// although the other one is kept at work. By how much that is ahead is only told: where submitting takes longer than the
/// work, no queue is ever busy.
fn priorities_share_the_engine(bench: &mut Bench<'_>) -> Result<()> {
    /// A quarter of a megabyte, one turn of an engine.
    const PAGES: usize = 64;
    /// Most descriptors that keep the first queue at work; fewer than there are records.
    const MORE: usize = 1024;
    let device = Device::open(bench.endpoint)?;
    if device.engines() == 0 {
        return Err(Skip("the endpoint has an engine for every queue").into());
    }
    let queues = [device.queue(0)?, device.queue(1)?];
    let (source, bytes) = bench.resident(PAGES)?;
    let expected = u64::from(model::crc32c(&bytes, 0));
    let work = Operation::crc(source.address(), source.len(), 0);
    let whole = (device.depth() * source.len()) as u64;
    let start = queues.each_ref().map(|queue| queue.bytes());
    let done = || [0, 1].map(|index: usize| queues[index].bytes() - start[index]);
    device.use_engines(1);
    queues[0].set_priority(2);
    let mut tickets = Vec::new();
    for _ in 0..device.depth() {
        for queue in &queues {
            tickets.push((queue, queue.start(&work)));
        }
    }
    let mut more = 0;
    let turn = wait_until(patience(), || {
        let had = done()[1] > 0;
        for _ in 0..if had { 0 } else { queues[0].free() } {
            tickets.push((&queues[0], queues[0].start(&work)));
            more += 1;
        }
        had || more > MORE
    });
    if turn.is_err() {
        // So that it ends.
        queues[0].set_priority(0);
    }
    turn.context("the queue of lower priority starves")?;
    ensure!(more <= MORE, "the queue of lower priority had no turn in {more} of the other one's descriptors");
    let whole = [whole + (more * source.len()) as u64, whole];
    // The last look at both while both have work.
    let mut seen = [0, 0];
    for (queue, ticket) in tickets {
        let now = done();
        if now[0] < whole[0] && now[1] < whole[1] {
            seen = now;
        }
        let completion = queue.wait(ticket)?;
        success(&completion, source.len())?;
        ensure!(completion.result == expected, "a wrong CRC");
    }
    device.use_engines(device.engines());
    queues[0].set_priority(0);
    ensure!(done() == whole, "{:?} bytes were counted, {whole:?} moved", done());
    let parts = [0, 1].map(|index: usize| seen[index] * 100 / whole[index]);
    bench.notes.push(format!("{}% and {}% of their work was done when last seen", parts[0], parts[1]));
    Ok(())
}

//! Queues: order, independence, overflow, abort.

use anyhow::{Context, Result, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, copy_all, fresh, same, success};
use crate::endpoint::{Completion, Device, Operation, Status};
use crate::sys::{Mapping, PAGE};
use crate::wait::{patience, wait_until};

use Needs::{PageRequests, Translation};

pub(super) const CASES: &[Case] = &[
    Case::new("queue-keeps-order", Translation, queue_keeps_order),
    Case::new("full-depth", Translation, full_depth),
    Case::new("disabled-queue-drops", Translation, disabled_queue_drops),
    Case::new("all-queues-at-once", PageRequests, all_queues_at_once),
    Case::new("waiting-queue-holds-up-no-other", PageRequests, waiting_queue_holds_up_no_other),
    Case::new("abort-ends-everything", PageRequests, abort_ends_everything),
];

/// Each copy reads what the one before it wrote.
fn queue_keeps_order(bench: &mut Bench<'_>) -> Result<()> {
    const STEPS: usize = 32;
    let (memory, bytes) = bench.resident(STEPS + 1)?;
    let lane = bench.lane()?;
    let step = |index: usize| Operation::copy(memory.at(index * PAGE), memory.at((index + 1) * PAGE), PAGE);
    let tickets: Vec<_> = (0..STEPS).map(|index| lane.queue.start(&step(index))).collect();
    for ticket in tickets {
        success(&lane.queue.wait(ticket)?, PAGE)?;
    }
    same("memory", &memory.read_all(), &bytes[..PAGE].repeat(STEPS + 1))
}

/// As many descriptors as a queue says it holds, none dropped.
fn full_depth(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    let dropped = lane.queue.dropped();
    let free = usize::try_from(lane.queue.free())?;
    ensure!(free == lane.device.depth(), "{free} descriptors are free of {}", lane.device.depth());
    let (memory, _) = bench.resident(free)?;
    let fill = |index: usize| Operation::fill(memory.at(index * PAGE), PAGE, index as u64);
    let tickets: Vec<_> = (0..free).map(|index| lane.queue.start(&fill(index))).collect();
    for ticket in tickets {
        success(&lane.queue.wait(ticket)?, PAGE)?;
    }
    for index in 0..free {
        let page = memory.read(index * PAGE..(index + 1) * PAGE);
        same("page", &page, &crate::model::fill(index as u64, PAGE))?;
    }
    ensure!(lane.queue.dropped() == dropped, "the queue dropped descriptors");
    Ok(())
}

fn disabled_queue_drops(bench: &mut Bench<'_>) -> Result<()> {
    let (memory, bytes) = bench.resident(1)?;
    let device = Device::open(bench.endpoint)?;
    let queue = device.queue(0)?;
    queue.disable()?;
    let before = (queue.dropped(), device.counters().dropped);
    let ticket = queue.start(&Operation::fill(memory.address(), PAGE, 3));
    ensure!(queue.free() == 0 && queue.occupancy() == 0, "a disabled queue took a descriptor");
    let after = (queue.dropped(), device.counters().dropped);
    let counted = (after.0.wrapping_sub(before.0), after.1 - before.1);
    ensure!(counted == (1, 1), "portal and device counted {counted:?} dropped descriptors");
    ensure!(queue.poll(ticket).is_none(), "a dropped descriptor has a record");
    same("memory", &memory.read_all(), &bytes)
}

/// Every queue faults its own pages in, all at the same time.
fn all_queues_at_once(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 24;
    let device = Device::open(bench.endpoint)?;
    let before = device.counters().page_requests;
    let mut work = Vec::new();
    for index in 0..device.queues() {
        let (source, bytes) = bench.resident(PAGES)?;
        work.push((device.queue(index)?, source, bytes, fresh(PAGES)?));
    }
    let start = |(queue, source, _, destination): &(crate::endpoint::Queue, Mapping, Vec<u8>, Mapping)| {
        queue.start(&copy_all(source, destination))
    };
    let tickets: Vec<_> = work.iter().map(start).collect();
    for (index, ((queue, _, bytes, destination), ticket)) in work.iter().zip(tickets).enumerate() {
        let completion = queue.wait(ticket)?;
        success(&completion, bytes.len()).with_context(|| format!("queue {index}"))?;
        crate::bench::requests(completion.page_requests.into(), PAGES)?;
        same(&format!("destination of queue {index}"), &destination.read_all(), bytes)?;
    }
    let asked = device.counters().page_requests - before;
    crate::bench::requests(asked, PAGES * device.queues())
}

/// While one queue waits for hundreds of pages, another one works through its own.
fn waiting_queue_holds_up_no_other(bench: &mut Bench<'_>) -> Result<()> {
    const SLOW_PAGES: usize = 192;
    let device = Device::open(bench.endpoint)?;
    ensure!(device.queues() >= 2, "the endpoint has one queue only");
    let (slow, quick) = (device.queue(0)?, device.queue(1)?);
    let destination = fresh(SLOW_PAGES)?;
    let (memory, _) = bench.resident(2)?;
    let slow_ticket = slow.start(&Operation::fill(destination.address(), destination.len(), 1));
    wait_until(patience(), || slow.is_waiting() || slow.poll(slow_ticket).is_some())?;
    let mut done = 0;
    for _ in 0..16 {
        let copy = Operation::copy(memory.address(), memory.at(PAGE), PAGE);
        success(&quick.run(&copy)?, PAGE)?;
        if slow.poll(slow_ticket).is_some() {
            break;
        }
        done += 1;
    }
    let completion = slow.wait(slow_ticket)?;
    success(&completion, destination.len())?;
    bench.notes.push(format!("{done} of 16 copies passed a waiting queue"));
    ensure!(done > 0, "no copy was done before the {SLOW_PAGES} page requests of another queue");
    Ok(())
}

/// Every descriptor gets its record, and what one did stands in it.
fn abort_ends_everything(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 16;
    let lane = bench.lane()?;
    let destinations: Vec<Mapping> =
        (0..lane.device.depth().min(64)).map(|_| fresh(PAGES)).collect::<Result<_>>()?;
    let fill = |memory: &Mapping| Operation::fill(memory.address(), memory.len(), u64::MAX);
    let asked = lane.queue.page_requests();
    let tickets: Vec<_> = destinations.iter().map(|memory| lane.queue.start(&fill(memory))).collect();
    // The abort is to meet a descriptor that has begun to ask for pages.
    wait_until(patience(), || lane.queue.page_requests() > asked || lane.queue.poll(tickets[0]).is_some())?;
    lane.queue.disable()?;
    let mut ends: Vec<Completion> = Vec::new();
    for (ticket, memory) in tickets.into_iter().zip(&destinations) {
        let completion = lane.queue.poll(ticket).context("a descriptor without a record")?;
        let done = usize::try_from(completion.completed)?;
        let mut expected = vec![0xff; done];
        expected.resize(memory.len(), 0);
        same("aborted", &memory.read_all(), &expected)?;
        ends.push(completion);
    }
    let aborted = ends.iter().position(|end| end.status == Status::Aborted).context("nothing was aborted")?;
    let (before, after) = ends.split_at(aborted);
    ensure!(before.iter().all(|end| end.status == Status::Success), "before the abort: {before:?}");
    ensure!(after.iter().all(|end| end.status == Status::Aborted), "after the abort: {after:?}");
    ensure!(after.iter().skip(1).all(|end| end.completed == 0), "a queued descriptor did something");
    bench.notes.push(format!("{aborted} of {} descriptors done before the abort", ends.len()));
    Ok(())
}

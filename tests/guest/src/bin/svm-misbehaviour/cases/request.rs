//! Page requests that should not be, and answers that are not listened to.

use anyhow::{Context, Result, ensure};
use guest::endpoint::{Completion, Endpoint, Operation, Reason, Status, global};
use guest::expect::{describe, success};
use guest::sys::PAGE;

use super::{Case, Needs::PageRequests};
use crate::bench::{Bench, fresh, soon};
use crate::board::{How, Kind};

pub(super) const CASES: &[Case] = &[
    Case::new("wrong-group", PageRequests, wrong_group),
    Case::new("ignored-response", PageRequests, |bench| waits_for_ever(bench, Kind::IgnoredResponse)),
    Case::new("unfinished-group", PageRequests, |bench| waits_for_ever(bench, Kind::UnfinishedGroup)),
    Case::new("excess-request", PageRequests, excess),
    Case::new("privileged-request", PageRequests, |bench| {
        refused(bench, Kind::PrivilegedRequest, "Page request in Privilege Mode")
    })
    .provoking(),
    Case::new("execute-request", PageRequests, |bench| {
        refused(bench, Kind::ExecuteRequest, "Execution request not supported")
    })
    .provoking(),
    Case::new("strange-address", PageRequests, |bench| {
        refused(bench, Kind::StrangeAddress, "Address is not canonical")
    })
    .provoking(),
    Case::new("request-flood", PageRequests, flood),
];

/// PRI status: a response came that nobody waits for.
const UNEXPECTED: u16 = 1 << 1;
/// PRI credits that Linux gives.
const CREDITS: u32 = 32;

/// Linux answers the group that it was asked for; the device takes it for nobody's.
fn wrong_group(bench: &mut Bench<'_>) -> Result<()> {
    waits_for_ever(bench, Kind::WrongGroup)?;
    Ok(())
}

/// A descriptor whose answer never comes waits until its queue is disabled. Everything else works meanwhile, and the
/// process can leave. What is outstanding stays so until the function is reset.
fn waits_for_ever(bench: &mut Bench<'_>, kind: Kind) -> Result<()> {
    let lane = bench.lane()?;
    let memory = fresh(1)?;
    bench.board.switch(kind, How::Count(1));
    let ticket = lane.queue.start(&Operation::fill(memory.address(), PAGE, 7));
    let board = bench.board.clone();
    lane.until("it happens", || board.happened(kind) == 1 && lane.queue.is_waiting())?;
    if kind == Kind::WrongGroup {
        let unexpected = || bench.pri_status().is_ok_and(|status| status & UNEXPECTED != 0);
        lane.until("the answer is unexpected", unexpected)?;
    }
    let second = lane.device.queue(1)?;
    let other = fresh(1)?;
    success(&second.run(&Operation::fill(other.address(), PAGE, 7))?, PAGE).context("another queue")?;
    ensure!(lane.queue.poll(ticket).is_none(), "it ended");
    lane.queue.disable()?;
    let completion = lane.queue.wait(ticket)?;
    ensure!(completion.status == Status::Aborted, "expected an abort: {}", describe(&completion));
    drop((second, lane));
    bench.reset_function()
}

/// One request more than there are credits is served like any other: the IOMMU does not count.
fn excess(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    let board = bench.board.clone();
    board.switch(Kind::IgnoredResponse, How::Count(CREDITS));
    drop(lane.queue);
    for used in 1..=CREDITS {
        let queue = lane.device.queue(0)?;
        let memory = fresh(1)?;
        let _ticket = queue.start(&Operation::fill(memory.address(), PAGE, 7));
        let ignored = || board.happened(Kind::IgnoredResponse) == used;
        guest::wait::wait_until(soon(), ignored).context("a response is ignored")?;
    }
    board.switch(Kind::ExcessRequest, How::Always);
    let queue = lane.device.queue(0)?;
    let memory = fresh(1)?;
    let completion = queue.run(&Operation::fill(memory.address(), PAGE, 7))?;
    success(&completion, PAGE)?;
    ensure!(board.happened(Kind::ExcessRequest) > 0, "credits were left");
    drop((queue, lane.device));
    bench.reset_function()
}

/// Linux says what it does not like, and answers "invalid request".
fn refused(bench: &mut Bench<'_>, kind: Kind, text: &str) -> Result<()> {
    let lane = bench.lane()?;
    let memory = fresh(1)?;
    bench.board.switch(kind, How::Count(1));
    let completion = lane.faults(&Operation::fill(memory.address(), PAGE, 7))?;
    let Completion { reason, page_requests, .. } = completion;
    ensure!(reason == Reason::NotAccessible && page_requests == 1, "{}", describe(&completion));
    bench.log.wait(&[text], soon())?;
    success(&lane.queue.run(&Operation::fill(memory.address(), PAGE, 7))?, PAGE).context("the next")
}

/// More requests than the queue of the IOMMU holds: all are answered, by Linux or, on overflow, by the IOMMU.
fn flood(bench: &mut Bench<'_>) -> Result<()> {
    const REQUESTS: u32 = 6000;
    let registers = bench.endpoint.peek()?;
    let answers = || {
        let counter = |index: usize| registers.read64(global::PAGE_REQUESTS + index * 8);
        (counter(0), counter(1) + counter(2) + counter(3))
    };
    let lane = bench.lane()?;
    let (memory, _) = bench.resident(1)?;
    let before = answers();
    bench.board.switch_with(Kind::RequestFlood, How::Count(1), REQUESTS);
    success(&lane.queue.run(&Operation::fill(memory.address(), PAGE, 7))?, PAGE)?;
    let sent = answers().0 - before.0;
    ensure!(sent == u64::from(REQUESTS), "{sent} page requests");
    let all = || answers().1 - before.1 == sent;
    lane.until("all are answered", all).with_context(|| format!("{:?} of {sent}", answers()))?;
    // That it is cleared, Linux says without ending the line. The requests that follow need it to be.
    bench.log.wait(&["PRQ overflow detected"], soon())
}

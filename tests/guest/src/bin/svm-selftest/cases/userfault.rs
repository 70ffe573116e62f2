//! Memory whose pages another part of the program brings, through userfaultfd(2).

use std::io;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, ExpectedFault, Lane, Skip, copy_all, faulted, fresh, requests, same, success};
use crate::endpoint::{Operation, Status, Ticket};
use crate::model;
use crate::sys::{Mapping, PAGE, UserFaults, Watch};

use Needs::{PageRequests, Translation};

pub(super) const CASES: &[Case] = &[
    Case::new("userfault-handler-is-asked", PageRequests, handler_is_asked),
    Case::new("userfault-filled-on-report", Translation, filled_on_report),
    Case::new("userfault-write-protected", Translation, write_protected),
];

const PAGES: usize = 4;

/// A handler, where the kernel offers that.
fn watch(memory: &Mapping, what: Watch) -> Result<UserFaults> {
    UserFaults::new(memory, what).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Skip("this process may not handle the kernel's faults").into(),
        io::ErrorKind::Unsupported => Skip("the kernel has no userfaultfd").into(),
        _ => anyhow::Error::new(error).context("userfaultfd"),
    })
}

/// The device's page request should wait until the program's handler has brought the page. Linux (seen in 7.3.4)
/// serves page requests with faults that may not wait, which userfaultfd refuses: the device is told so then.
fn handler_is_asked(bench: &mut Bench<'_>) -> Result<()> {
    let (source, bytes) = bench.resident(PAGES)?;
    let (fillers, filled) = bench.resident(PAGES)?;
    let memory = fresh(PAGES)?;
    let mut handler = watch(&memory, Watch::Missing)?;
    let lane = bench.lane()?;
    let sum = Operation::crc(memory.address(), memory.len(), 0);
    let ticket = lane.queue.start(&sum);
    let brought = serve(&lane, ticket, &mut handler, &memory, &fillers)?;
    let completion = lane.queue.wait(ticket)?;
    if completion.status == Status::Fault && brought == 0 {
        faulted(&completion, ExpectedFault { address: memory.address(), write: false, completed: 0 })?;
        requests(completion.page_requests.into(), 1)?;
        return Err(Skip("the kernel does not let the device's page requests wait for a handler").into());
    }
    success(&completion, memory.len())?;
    ensure!(brought == PAGES, "the handler was asked for {brought} of {PAGES} pages");
    let expected = u64::from(model::crc32c(&filled, 0));
    ensure!(completion.result == expected, "CRC {:#x}, expected {expected:#x}", completion.result);
    requests(lane.counted(&copy_all(&source, &memory), bytes.len())?, 0).context("once all is there")?;
    same("memory", &memory.read_all(), &bytes)
}

/// Brings what is asked for until the descriptor ends; returns how many pages.
fn serve(
    lane: &Lane,
    ticket: Ticket,
    handler: &mut UserFaults,
    memory: &Mapping,
    fillers: &Mapping,
) -> Result<usize> {
    const TURN: Duration = Duration::from_millis(5);
    let mut brought = 0;
    let limit = std::time::Instant::now() + crate::wait::patience();
    while lane.queue.poll(ticket).is_none() && std::time::Instant::now() < limit {
        if let Some(address) = handler.next(TURN)? {
            let offset = usize::try_from(address - memory.address())? / PAGE * PAGE;
            handler.bring(memory.at(offset), fillers, offset..offset + PAGE)?;
            brought += 1;
        }
    }
    Ok(brought)
}

/// Fault in completion: the record says which page is missing, the program brings it, and goes on from there.
fn filled_on_report(bench: &mut Bench<'_>) -> Result<()> {
    let (fillers, filled) = bench.resident(PAGES)?;
    let (back, _) = bench.resident(PAGES)?;
    let memory = fresh(PAGES)?;
    let mut handler = watch(&memory, Watch::Missing)?;
    let lane = bench.lane()?;
    for page in 0..PAGES {
        let start = page * PAGE;
        let rest = Operation::copy(memory.at(start), back.at(start), memory.len() - start).without_block();
        let completion = lane.queue.run(&rest)?;
        faulted(&completion, ExpectedFault { address: memory.at(start), write: false, completed: 0 })?;
        handler.bring(memory.at(start), &fillers, start..start + PAGE)?;
        let one = Operation::copy(memory.at(start), back.at(start), PAGE).without_block();
        success(&lane.queue.run(&one)?, PAGE).context("a page that was brought")?;
    }
    same("what the device read", &back.read_all(), &filled)?;
    ensure!(handler.next(Duration::ZERO)?.is_none(), "the handler was asked for what was only reported");
    Ok(())
}

/// The handler takes the right to write from pages that the device writes, and gives it back.
fn write_protected(bench: &mut Bench<'_>) -> Result<()> {
    let (memory, _) = bench.resident(PAGES)?;
    let handler = match watch(&memory, Watch::WriteProtected) {
        Err(error) if error.root_cause().downcast_ref::<io::Error>().is_some() => {
            return Err(Skip("the kernel watches no writes").into());
        }
        other => other?,
    };
    let lane = bench.lane()?;
    for round in 0..3_u64 {
        let fill = Operation::fill(memory.address(), memory.len(), round).without_block();
        lane.counted(&fill, memory.len())?;
        handler.protect(memory.at(PAGE), 2 * PAGE, true)?;
        let refused =
            lane.queue.run(&Operation::fill(memory.address(), memory.len(), !round).without_block())?;
        faulted(&refused, ExpectedFault { address: memory.at(PAGE), write: true, completed: PAGE as u64 })?;
        let mut expected = model::fill(round, memory.len());
        expected[..PAGE].copy_from_slice(&model::fill(!round, PAGE));
        same("protected", &memory.read_all(), &expected)?;
        handler.protect(memory.at(PAGE), 2 * PAGE, false)?;
        (0..PAGES).for_each(|page| memory.store(page * PAGE, 1));
    }
    Ok(())
}

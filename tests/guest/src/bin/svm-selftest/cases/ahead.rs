//! Several pages asked for at once, and pages asked for ahead of need.

use anyhow::{Result, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, ExpectedFault, faulted, fresh, requests, same, success};
use crate::endpoint::{Operation, Status};
use crate::model;
use crate::sys::{Mapping, PAGE};
use crate::wait::{patience, wait_until};

use Needs::{PageRequests, Translation};

pub(super) const CASES: &[Case] = &[
    Case::new("ahead-asks-in-groups", PageRequests, asks_in_groups),
    Case::new("ahead-leaves-out-what-is-there", PageRequests, leaves_out_what_is_there),
    Case::new("ahead-of-the-end", PageRequests, ahead_of_the_end),
    Case::new("prefetch-brings-pages-in", PageRequests, prefetch_brings_pages_in),
    Case::new("prefetch-without-waiting", PageRequests, prefetch_without_waiting),
    Case::new("prefetch-of-nothing", Translation, prefetch_of_nothing),
];

fn asks_in_groups(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 64;
    let lane = bench.lane()?;
    for pages in [1, 4, 8, 16] {
        let destination = fresh(PAGES)?;
        let before = lane.device.counters().page_groups;
        let ahead = u8::try_from(pages - 1)?;
        let fill = Operation::fill(destination.address(), destination.len(), 5).with_ahead(ahead);
        requests(lane.counted(&fill, destination.len())?, PAGES)?;
        let groups = lane.device.counters().page_groups - before;
        let expected = (PAGES / pages) as u64;
        ensure!(groups == expected, "{groups} groups of at most {pages} pages, expected {expected}");
        same("destination", &destination.read_all(), &model::fill(5, PAGES * PAGE))?;
    }
    Ok(())
}

/// Every other page is there already.
fn leaves_out_what_is_there(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 32;
    let lane = bench.lane()?;
    let destination = fresh(PAGES)?;
    for page in (0..PAGES).step_by(2) {
        destination.store(page * PAGE, 1);
    }
    let fill = Operation::fill(destination.address(), destination.len(), 6).with_ahead(15);
    requests(lane.counted(&fill, destination.len())?, PAGES / 2)?;
    same("destination", &destination.read_all(), &model::fill(6, PAGES * PAGE))
}

/// The group reaches beyond what is mapped: that harms nothing before.
fn ahead_of_the_end(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    for mapped in [1, 3, 7] {
        let mut memory = fresh(mapped + 4)?;
        let end = memory.at(mapped * PAGE);
        memory.truncate(mapped * PAGE)?;
        let fill = Operation::fill(memory.address(), (mapped + 4) * PAGE, 7).with_ahead(15);
        let completion = lane.queue.run(&fill)?;
        let completed = (mapped * PAGE) as u64;
        faulted(&completion, ExpectedFault { address: end, write: true, completed })?;
        same("memory", &memory.read_all(), &model::fill(7, mapped * PAGE))?;
        success(&lane.queue.run(&Operation::nop())?, 0)?;
    }
    Ok(())
}

fn prefetch(memory: &Mapping, write: bool) -> Operation {
    Operation::prefetch(memory.address(), memory.len(), write)
}

fn prefetch_brings_pages_in(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 40;
    let lane = bench.lane()?;
    for ahead in [0, 15] {
        let memory = fresh(PAGES)?;
        let (completion, asked) = lane.run_counted(&prefetch(&memory, true).with_ahead(ahead))?;
        success(&completion, memory.len())?;
        ensure!(completion.result == 0, "{} pages are missing", completion.result);
        requests(asked, PAGES)?;
        let fill = Operation::fill(memory.address(), memory.len(), 8);
        requests(lane.counted(&fill, memory.len())?, 0)?;
        requests(lane.counted(&prefetch(&memory, true), memory.len())?, 0)?;
    }
    Ok(())
}

fn prefetch_without_waiting(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 8;
    let lane = bench.lane()?;
    let memory = fresh(PAGES)?;
    let hint = prefetch(&memory, true).with_ahead(15).without_block();
    let (completion, asked) = lane.run_counted(&hint)?;
    success(&completion, memory.len())?;
    ensure!(completion.result == PAGES as u64, "{} of {PAGES} pages were missing", completion.result);
    requests(asked, PAGES)?;
    // In the end they are there, although nobody needs them.
    let mut last = None;
    wait_until(patience(), || {
        last = lane.queue.run(&Operation::fill(memory.address(), memory.len(), 9).without_block()).ok();
        last.is_none_or(|end| end.status == Status::Success)
    })?;
    same("memory", &memory.read_all(), &model::fill(9, PAGES * PAGE))
}

fn prefetch_of_nothing(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    for length in [0, 1, PAGE, 9 * PAGE] {
        let hint = Operation::prefetch(PAGE as u64, length, false).without_block();
        let completion = lane.queue.run(&hint)?;
        success(&completion, length)?;
        let pages = length.div_ceil(PAGE) as u64;
        ensure!(completion.result == pages, "{} of {pages} pages were missing", completion.result);
    }
    Ok(())
}

//! What must be at the end as it was before: memory, PASIDs, page requests.

use std::fs;

use anyhow::{Context, Result, ensure};
use guest::{cpus, diagnosis};

use super::super::crowd::Crowd;
use super::SETTLED;
use crate::bench::Bench;
use crate::wait::{patience, wait_until};

/// This program needs no more memory than it did early on.
pub(super) fn flat(bench: &mut Bench<'_>, early: Option<u64>, done: u64) -> Result<()> {
    /// What a heap may be unsteady by, and pages of the arenas that may be there or not.
    const SLACK_KIB: u64 = 2048;
    let (Some(early), late) = (early, resident_kib()?) else { return Ok(()) };
    bench
        .notes
        .push(format!("resident {early} KiB after {SETTLED} rounds, {late} KiB after {done} operations"));
    ensure!(late <= early + SLACK_KIB, "the program grew from {early} to {late} KiB");
    Ok(())
}

/// Memory of this process that is resident, its mappings under test included.
pub(super) fn resident_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// The PASID that a new process gets: the kernel gives the lowest one that is free, so that one that was leaked
/// shows. `None` where the number says nothing of the kind.
pub(super) fn next_pasid(bench: &Bench<'_>) -> Result<Option<u32>> {
    if !bench.endpoint.is_shared() {
        return Ok(None);
    }
    cpus::visit_all()?;
    let mut crowd = Crowd::new(bench.endpoint)?;
    ensure!(crowd.join()?, "the kernel binds no process");
    let pasid = crowd.pasids().first().copied();
    crowd.leave()?;
    Ok(pasid)
}

/// A process that is bound now has the PASID that one had before, or a lower one, and the kernel has answered all page
/// requests. Who was bound has ended, and the kernel may take a moment to let go of the address spaces.
pub(super) fn pasids_as_before(bench: &mut Bench<'_>, before: Option<u32>) -> Result<()> {
    let mut after = Ok(None);
    let settled = wait_until(patience(), || {
        after = next_pasid(bench);
        after.as_ref().map_or(true, |after| *after <= before)
    });
    let after = after?;
    settled
        .with_context(|| format!("the next process had PASID {before:?} before, and has {after:?} now"))?;
    // The kernel answers a page request first, and moves the queue's head when it has been through with all it saw.
    let mut requests = None;
    let emptied = wait_until(patience(), || {
        requests = diagnosis::waiting_requests();
        requests.is_none_or(|bytes| bytes == 0)
    });
    emptied
        .with_context(|| format!("{requests:?} bytes of page requests are still in the kernel's queues"))?;
    if requests.is_some() {
        bench.notes.push("PASIDs as before, no page request left".to_owned());
    }
    Ok(())
}

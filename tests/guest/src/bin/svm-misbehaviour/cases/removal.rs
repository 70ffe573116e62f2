//! The function leaves the bus.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use guest::endpoint::Operation;
use guest::sys::PAGE;
use guest::uio::give_to_uio;
use guest::wait::wait_until;

use super::{Case, Needs::PageRequests};
use crate::bench::{Bench, folder, fresh, soon};
use crate::board::{How, Kind};

pub(super) const CASES: &[Case] = &[Case::new("surprise-removal", PageRequests, surprise).provoking()];

/// Looks at the vendor until the function is back: more than Linux needs to take its leave.
const LOOKS: u32 = 100;

/// Parts with the function, and looks for it until it is there again, with its driver. Yields what the kernel warns of.
fn find_again(bench: &mut Bench<'_>) -> Result<BTreeSet<String>> {
    let folder = folder()?;
    fs::write(folder.join("remove"), "1").context("the kernel does not part with it")?;
    ensure!(!folder.exists(), "the kernel keeps it");
    let found = || fs::write("/sys/bus/pci/rescan", "1").is_ok() && folder.exists();
    wait_until(2 * soon(), found).context("it does not come back")?;
    give_to_uio(&folder)?;
    bench.log.warnings()
}

/// The function goes while one descriptor waits for a page and another is due. The process leaves, the kernel takes its
/// leave of a function that is not there, finds it again, and everything works as before. Of what the driver does not
/// clean up, the kernel warns without misbehaviour too; it warns of nothing else.
fn surprise(bench: &mut Bench<'_>) -> Result<()> {
    let honest = find_again(bench)?;
    bench.renew()?;
    let lane = bench.lane()?;
    let (waiting, due) = (fresh(1)?, fresh(1)?);
    let board = bench.board.clone();
    board.switch(Kind::UnfinishedGroup, How::Count(1));
    let waits = lane.queue.start(&Operation::fill(waiting.address(), PAGE, 7));
    lane.until("one waits", || lane.queue.is_waiting())?;
    board.switch_with(Kind::SurpriseRemoval, How::Count(1), LOOKS);
    let second = lane.device.queue(1)?;
    let is_due = second.start(&Operation::fill(due.address(), PAGE, 7));
    lane.until("it is gone", || board.is_gone())?;
    board.off();
    ensure!(board.is_gone(), "a function that is gone took a command");
    let config = folder()?.join("config");
    let bytes = fs::read(&config).context("the configuration space of a function that is gone")?;
    ensure!(
        bytes[4..64].iter().all(|&byte| byte == 0xff),
        "its configuration space is there: {:x?}",
        &bytes[..64]
    );
    // Pages that the device knew, as a process takes them away while it does not know yet.
    due.discard(0..PAGE)?;
    let none = second.poll(is_due).is_none() && lane.queue.poll(waits).is_none();
    ensure!(none, "a descriptor ended though the function was gone");
    // Nothing of them can be waited for.
    second.abandon();
    lane.queue.abandon();
    drop(lane.device);
    let warnings = find_again(bench)?;
    let time_outs = bench.log.count(&["Invalidation Time-out Error (ITE) cleared"])?;
    bench.notes.push(format!("{time_outs} time-outs cleared; warnings {warnings:?}"));
    ensure!(warnings.is_subset(&honest), "more than of an honest removal, {honest:?}");
    Ok(())
}

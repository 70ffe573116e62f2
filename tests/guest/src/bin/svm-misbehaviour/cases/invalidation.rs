//! Device-TLB invalidations that are late, lost or not done.

use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest::cpus::{self, pin};
use guest::endpoint::Operation;
use guest::expect::{same, success};
use guest::suite::Skip;
use guest::sys::{Mapping, PAGE, Protection, Sharing};

use super::{Case, Needs::PageRequests};
use crate::bench::{Bench, Lane, soon};
use crate::board::{Board, How, Kind};

pub(super) const CASES: &[Case] = &[
    Case::new("late-invalidation", PageRequests, late),
    Case::new("lost-invalidation", PageRequests, lost).provoking(),
    Case::new("lost-invalidation-until-off", PageRequests, lost_until_off).provoking(),
    Case::new("stale-translation", PageRequests, stale),
];

/// What Linux says each time that it lets the queue go on.
const CLEARED: &str = "Invalidation Time-out Error (ITE) cleared";

/// Takes away a page that the device knows; `during` may look meanwhile. The device then finds the new one.
fn take_away<R>(bench: &mut Bench<'_>, lane: &Lane, during: impl FnOnce(&Mapping) -> Result<R>) -> Result<R> {
    let (memory, _) = bench.resident(1)?;
    success(&lane.queue.run(&Operation::fill(memory.address(), PAGE, 1))?, PAGE)?;
    let result = during(&memory)?;
    let completion = lane.queue.run(&Operation::fill(memory.address(), 8, 0x22))?;
    success(&completion, 8)?;
    let mut expected = vec![0; PAGE];
    expected[0] = 0x22;
    same("the new page", &memory.read_all(), &expected)?;
    Ok(result)
}

/// Linux waits, and nothing else happens.
fn late(bench: &mut Bench<'_>) -> Result<()> {
    /// Three quarters of what the device takes: its clock is the host's, which another host may have measured in a hurry.
    const WAIT: Duration = Duration::from_millis(90);
    let lane = bench.lane()?;
    let board = bench.board.clone();
    board.switch_with(Kind::LateInvalidation, How::Count(2), 120);
    let elapsed = take_away(bench, &lane, |memory| {
        let start = Instant::now();
        memory.discard(0..PAGE)?;
        Ok(start.elapsed())
    })?;
    ensure!(elapsed >= WAIT, "the page was gone after {elapsed:?}, before the device had let go");
    ensure!(board.happened(Kind::LateInvalidation) > 0, "no invalidation was late");
    ensure!(bench.log.count(&[CLEARED])? == 0, "the queue was stopped");
    Ok(())
}

/// Linux clears the time-out and asks again until it is told that it is done.
fn lost(bench: &mut Bench<'_>) -> Result<()> {
    let lane = bench.lane()?;
    let board = bench.board.clone();
    board.switch_with(Kind::LostInvalidation, How::Count(3), 5);
    take_away(bench, &lane, |memory| Ok(memory.discard(0..PAGE)?))?;
    let lost = board.happened(Kind::LostInvalidation);
    ensure!(lost == 3, "{lost} completions were lost");
    bench.log.wait(&[CLEARED], soon())?;
    let cleared = bench.log.count(&[CLEARED])?;
    ensure!(cleared == 3, "Linux cleared {cleared} time-outs");
    bench.notes.push(format!("{cleared} time-outs cleared"));
    Ok(())
}

/// A device that is there and never answers keeps a CPU busy until another makes it answer.
fn lost_until_off(bench: &mut Bench<'_>) -> Result<()> {
    let helped = cpus::and_back(|all| {
        if all.count() < 2 {
            bail!(Skip("one CPU has nobody to help it"));
        }
        take_away_helped(bench)
    })?;
    let lost = helped?;
    bench.log.wait(&[CLEARED], soon())?;
    bench.notes.push(format!("{lost} completions lost until it was switched off"));
    Ok(())
}

/// Has every completion lost on one CPU while the helper waits for it on another; how many were lost.
fn take_away_helped(bench: &mut Bench<'_>) -> Result<u32> {
    let lane = bench.lane()?;
    let board = bench.board.clone();
    let on = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Neither thread may need the other's CPU while one of them spins with interrupts off.
        pin(0)?;
        let helper = scope.spawn(|| helper(&board, &on));
        while !on.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let outcome = take_away(bench, &lane, |memory| Ok(memory.discard(0..PAGE)?));
        let helped = helper.join().ok().context("the helper panicked")?;
        outcome.and(helped)
    })
}

/// Switches lost completions on, says so, and off again when Linux has met some.
fn helper(board: &Board, on: &AtomicBool) -> Result<u32> {
    let pinned = pin(1);
    board.switch_with(Kind::LostInvalidation, How::Always, 2);
    on.store(true, Ordering::Release);
    let start = Instant::now();
    let lost = loop {
        let lost = board.happened(Kind::LostInvalidation);
        if lost >= 5 || start.elapsed() > soon() {
            break lost;
        }
    };
    board.off();
    pinned?;
    ensure!(lost >= 5, "{lost} completions were lost within {:?}", soon());
    Ok(lost)
}

/// Nobody notices: the device writes to where the page was. Here that is a file's page, so nothing is destroyed.
fn stale(bench: &mut Bench<'_>) -> Result<()> {
    let path = "/tmp/stale";
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    fs::remove_file(path)?;
    file.set_len(PAGE as u64)?;
    let (seen, other) = (map(&file)?, map(&file)?);
    seen.write(0, &[1; PAGE]);
    let lane = bench.lane()?;
    let fill = |pattern| Operation::fill(seen.address(), 8, pattern);
    success(&lane.queue.run(&fill(0x33))?, 8)?;
    bench.board.switch(Kind::StaleTranslation, How::Always);
    seen.protect(0..PAGE, Protection::None)?;
    success(&lane.queue.run(&fill(0x44))?, 8).context("through a stale translation")?;
    let happened = bench.board.happened(Kind::StaleTranslation);
    ensure!(happened > 0 && other.load(0) == 0x44, "{happened} invalidations not done, {:#x}", other.load(0));
    bench.board.off();
    drop(lane);
    // Unbinding drops everything.
    let lane = bench.lane()?;
    lane.faults(&fill(0x55))?;
    ensure!(other.load(0) == 0x44, "the page was written to again");
    Ok(())
}

fn map(file: &File) -> Result<Mapping> {
    Ok(Mapping::file(file, PAGE, Protection::ReadWrite, Sharing::Shared)?)
}

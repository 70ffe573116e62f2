//! Random work against a model, while mappings come and go.

mod arena;
mod helper;
mod leak;
mod share;

use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, Soak, copy_all, same, success};
use crate::endpoint::{Counters, Device};
use crate::model::Random;
use crate::sys::PAGE;
use helper::Helper;
use share::Share;

pub(super) const CASES: &[Case] = &[
    Case::new("discard-under-way", Needs::PageRequests, discard_under_way),
    Case::new("soak", Needs::PageRequests, soak),
];

/// The kernel takes destination pages away while the device writes them: each byte is the old
/// page's loss or the new value, and once it is quiet, everything works.
fn discard_under_way(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 64;
    const ROUNDS: usize = 4;
    let (source, bytes) = bench.resident(PAGES)?;
    let (destination, _) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    for round in 0..ROUNDS {
        destination.discard(0..PAGE)?;
        let ticket = lane.queue.start(&copy_all(&source, &destination));
        let mut random = Random::new(bench.random.bits());
        while lane.queue.poll(ticket).is_none() {
            let page = random.below(PAGES);
            let pages = page * PAGE..(page + 1 + random.below(PAGES - page)) * PAGE;
            if random.below(4) == 0 { destination.replace(pages)? } else { destination.discard(pages)? }
        }
        success(&lane.queue.wait(ticket)?, bytes.len())?;
        let seen = destination.read_all();
        let strange = seen.iter().zip(&bytes).position(|(seen, new)| *seen != 0 && seen != new);
        ensure!(strange.is_none(), "round {round}: byte {strange:?} is neither lost nor new");
        success(&lane.queue.run(&copy_all(&source, &destination))?, bytes.len())?;
        same(&format!("quiet after round {round}"), &destination.read_all(), &bytes)?;
    }
    Ok(())
}

/// Queues at work at the same time.
const QUEUES: usize = 4;
/// The longest batch of a long run.
const LONGEST_BATCH: u64 = 512;
/// Most chores of the helper for a queue in a round.
const CHORES: usize = 3;
/// The fewest rounds for which there is work: pages go once a round.
const ROUNDS: u64 = 32;
/// Rounds after which the program has all the memory that it is going to use.
const SETTLED: u64 = 16;

/// What was done so far.
#[derive(Default)]
struct Done {
    rounds: u64,
    operations: u64,
    /// Descriptors that held others.
    batches: u64,
    pages_taken: usize,
    /// Memory of this program when it had settled.
    settled_kib: Option<u64>,
}

/// Queues work on arenas of their own, each in one half of its arena while a second thread takes pages of the other half
/// away. What is said of every operation, and every byte of the half afterwards, must be what the model has.
fn soak(bench: &mut Bench<'_>) -> Result<()> {
    let goal = bench.soak;
    // This process has its PASID from now on, and keeps it: it is not one that the next process could get.
    drop(Device::open(bench.endpoint)?);
    let pasid = leak::next_pasid(bench)?;
    let device = Device::open(bench.endpoint)?;
    let before = device.counters();
    let count = QUEUES.min(device.queues());
    let share = |index| Share::new(device.queue(index)?, Random::new(bench.random.bits()));
    let mut shares = (0..count).map(share).collect::<Result<Vec<_>>>()?;
    let (mut done, started) = (Done::default(), Instant::now());
    thread::scope(|scope| {
        let helper = Helper::start(scope);
        while done.operations < goal.operations || started.elapsed() < goal.time {
            round(&mut shares, &helper, longest_batch(goal), &mut done)
                .with_context(|| format!("round {}, after {} operations", done.rounds, done.operations))?;
            done.rounds += 1;
            if done.rounds == SETTLED {
                done.settled_kib = Some(leak::resident_kib()?);
            }
        }
        Ok::<(), anyhow::Error>(())
    })?;
    let seconds = started.elapsed().as_secs_f64();
    shares.iter().try_for_each(Share::rest)?;
    let counted = accounts(&device, before, &done)?;
    let Done { operations, rounds, pages_taken, .. } = done;
    #[allow(clippy::cast_precision_loss, reason = "for reading")]
    let rate = operations as f64 / seconds;
    bench.notes.push(format!(
        "{operations} operations on {count} queues in {seconds:.0} s, {rate:.0} a second; {rounds} rounds, \
         {pages_taken} pages taken away meanwhile"
    ));
    bench.notes.push(counted);
    drop((shares, device));
    leak::flat(bench, done.settled_kib, operations)?;
    leak::pasids_as_before(bench, pasid)
}

/// Short runs take pages away often, too.
fn longest_batch(goal: Soak) -> u64 {
    if goal.time.is_zero() { (goal.operations / ROUNDS / 4).clamp(1, LONGEST_BATCH) } else { LONGEST_BATCH }
}

/// Each queue does some operations while pages go that none of them needs.
fn round(shares: &mut [Share], helper: &Helper, longest: u64, done: &mut Done) -> Result<()> {
    let mut asked = 0;
    for share in &mut *shares {
        share.start(longest);
        for chore in share.chores(CHORES) {
            helper.ask(chore)?;
            asked += 1;
        }
    }
    for _ in 0..asked {
        done.pages_taken += helper.report()?;
    }
    for (index, share) in shares.iter_mut().enumerate() {
        let (operations, batches) = share.finish().with_context(|| format!("queue {index}"))?;
        done.operations += operations;
        done.batches += batches;
    }
    Ok(())
}

/// The device has counted every descriptor once, and every page request that it sent is answered.
fn accounts(device: &Device, before: Counters, done: &Done) -> Result<String> {
    let after = device.counters();
    let ended = after.completed - before.completed;
    let submitted = done.operations + done.batches;
    ensure!(ended == submitted, "the device counted {ended} descriptors of {submitted}");
    let (asked, groups) =
        (after.page_requests - before.page_requests, after.page_groups - before.page_groups);
    let answered = after.responses - before.responses;
    // More: what others left behind was answered late.
    ensure!(answered >= groups, "{groups} groups of page requests were sent, {answered} answered");
    Ok(format!("{asked} page requests in {groups} groups, all answered"))
}

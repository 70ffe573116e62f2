//! Random work against a model, while mappings come and go.

use std::fs;
use std::io;
use std::ops::Range;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::crowd::Crowd;
use super::{Case, Needs};
use crate::bench::{Bench, Lane, Soak, copy_all, fresh, same, success};
use crate::endpoint::{NO_DIFFERENCE, Operation, Ticket};
use crate::model::{self, Random};
use crate::sys::{Mapping, PAGE};

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

const ARENA_PAGES: usize = 64;
/// An operation works in one half while a helper takes pages of the other half away.
const HALF: usize = ARENA_PAGES / 2;
/// When the program has all the memory that it is going to use.
const SETTLED: u64 = 500;
const LONGEST: usize = 5 * PAGE;

/// An arena of pages, and what must be in it.
struct Arena<'a> {
    memory: &'a Mapping,
    model: Vec<u8>,
    random: Random,
}

/// What the helper thread is asked to do, and with which bytes.
enum Chore {
    Discard(Range<usize>),
    Replace(Range<usize>),
}

fn soak(bench: &mut Bench<'_>) -> Result<()> {
    let goal = bench.soak;
    let pasid = next_pasid(bench)?;
    let lane = bench.lane()?;
    let memory = fresh(ARENA_PAGES)?;
    let random = Random::new(bench.random.bits());
    let mut arena = Arena { memory: &memory, model: vec![0; memory.len()], random };
    let before = lane.device.counters();
    let (mut done, mut early) = (0, None);
    let started = Instant::now();
    thread::scope(|scope| {
        let (chores, reports) = helper(scope, &memory);
        while !reached(goal, done, started) {
            let half = arena.random.below(2) * HALF * PAGE;
            let ticket = arena.start(&lane, half);
            chores.send(arena.chore(HALF * PAGE - half))?;
            reports.recv()??;
            arena.finish(&lane, ticket).with_context(|| format!("operation {done}"))?;
            done += 1;
            if done == SETTLED {
                early = Some(resident_kib()?);
            }
        }
        Ok::<(), anyhow::Error>(())
    })?;
    same("arena", &memory.read_all(), &arena.model)?;
    let asked = lane.device.counters().page_requests - before.page_requests;
    bench.notes.push(format!("{done} operations, {asked} page requests"));
    lane.queue.rest()?;
    drop(lane);
    flat(bench, early, done)?;
    let after = next_pasid(bench)?;
    ensure!(after == pasid, "the next process had PASID {pasid:?} before, and {after:?} after");
    if let Some(requests) = requests_in_queues() {
        ensure!(requests == 0, "{requests} page requests are still in the kernel's queues");
        bench.notes.push("PASIDs as before, no page request left".to_owned());
    }
    Ok(())
}

/// A thread that takes pages away when it is told to.
fn helper<'scope>(scope: &'scope thread::Scope<'scope, '_>, memory: &'scope Mapping) -> Helper {
    let (chores, work) = mpsc::channel();
    let (report, reports) = mpsc::channel();
    scope.spawn(move || {
        for chore in work {
            let outcome = match chore {
                Chore::Discard(range) => memory.discard(range),
                Chore::Replace(range) => memory.replace(range),
            };
            if report.send(outcome).is_err() {
                break;
            }
        }
    });
    (chores, reports)
}

type Helper = (mpsc::Sender<Chore>, mpsc::Receiver<io::Result<()>>);

fn reached(goal: Soak, done: u64, started: Instant) -> bool {
    match goal {
        Soak::Operations(count) => done >= count,
        Soak::For(time) => started.elapsed() >= time,
    }
}

/// This program needs no more memory than it did early on.
fn flat(bench: &mut Bench<'_>, early: Option<u64>, done: u64) -> Result<()> {
    /// What a heap may be unsteady by.
    const SLACK_KIB: u64 = 1024;
    let (Some(early), late) = (early, resident_kib()?) else { return Ok(()) };
    bench.notes.push(format!("resident {early} KiB after {SETTLED} operations, {late} KiB after {done}"));
    ensure!(late <= early + SLACK_KIB, "the program grew from {early} to {late} KiB");
    Ok(())
}

/// Memory of this process that is resident, its mappings under test included.
fn resident_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// The PASID that a new process gets: the kernel gives the lowest one that is free, so that one that was leaked
/// shows. `None` where the number says nothing of the kind.
fn next_pasid(bench: &Bench<'_>) -> Result<Option<u32>> {
    if !bench.endpoint.is_shared() {
        return Ok(None);
    }
    let mut crowd = Crowd::new(bench.endpoint)?;
    ensure!(crowd.join()?, "the kernel binds no process");
    let pasid = crowd.pasids().first().copied();
    crowd.leave()?;
    Ok(pasid)
}

/// Page requests between head and tail of all units' queues, in bytes, where debugfs shows their registers.
fn requests_in_queues() -> Option<u64> {
    let text = fs::read_to_string("/sys/kernel/debug/iommu/intel/iommu_regset").ok()?;
    let register = |name: &str| {
        let values = text.lines().filter(|line| line.split_ascii_whitespace().next() == Some(name));
        values.map(|line| u64::from_str_radix(line.rsplit("0x").next().unwrap_or("").trim(), 16)).collect()
    };
    let (heads, tails): (Result<Vec<u64>, _>, Result<Vec<u64>, _>) = (register("PQH"), register("PQT"));
    let (heads, tails) = (heads.ok()?, tails.ok()?);
    Some(heads.iter().zip(&tails).map(|(head, tail)| head.abs_diff(*tail)).sum())
}

/// An operation under way and what it must say.
struct UnderWay {
    ticket: Ticket,
    completed: usize,
    result: u64,
}

impl Arena<'_> {
    /// Submits a random operation in the half that starts at `base`, and does it to the model.
    fn start(&mut self, lane: &Lane, base: usize) -> UnderWay {
        let random = &mut self.random;
        let length = 1 + random.below(LONGEST);
        let source = base + random.below(HALF * PAGE - 2 * length);
        let destination = source + length + random.below(base + HALF * PAGE - source - 2 * length);
        let (from, to) = (self.memory.at(source), self.memory.at(destination));
        let (operation, completed, result) = match random.below(6) {
            0 | 1 => {
                self.model.copy_within(source..source + length, destination);
                (Operation::copy(from, to, length), length, 0)
            }
            2 | 3 => {
                let pattern = random.bits();
                self.model[destination..destination + length].copy_from_slice(&model::fill(pattern, length));
                (Operation::fill(to, length, pattern), length, 0)
            }
            4 => {
                let (left, right) =
                    (&self.model[source..source + length], &self.model[destination..destination + length]);
                let difference = model::first_difference(left, right);
                let result = difference.map_or(NO_DIFFERENCE, |at| at as u64);
                (Operation::compare(from, to, length), difference.unwrap_or(length), result)
            }
            _ => {
                let sum = model::crc32c(&self.model[source..source + length], 0);
                (Operation::crc(from, length, 0), length, u64::from(sum))
            }
        };
        UnderWay { ticket: lane.queue.start(&operation), completed, result }
    }

    /// Something for the helper in the half that starts at `base`.
    fn chore(&mut self, base: usize) -> Chore {
        let page = self.random.below(HALF);
        let pages = 1 + self.random.below((HALF - page).min(8));
        let range = base + page * PAGE..base + (page + pages) * PAGE;
        self.model[range.clone()].fill(0);
        if self.random.below(3) == 0 { Chore::Replace(range) } else { Chore::Discard(range) }
    }

    /// Waits, compares what was said, and now and then what is there.
    fn finish(&mut self, lane: &Lane, under_way: UnderWay) -> Result<()> {
        let completion = lane.queue.wait(under_way.ticket)?;
        success(&completion, under_way.completed)?;
        let expected = under_way.result;
        ensure!(completion.result == expected, "result {:#x}, expected {expected:#x}", completion.result);
        let length = 1 + self.random.below(LONGEST);
        let start = self.random.below(ARENA_PAGES * PAGE - length);
        match self.random.below(8) {
            0 => same("memory", &self.memory.read(start..start + length), &self.model[start..start + length]),
            1 => {
                let bytes = self.random.bytes(length);
                self.memory.write(start, &bytes);
                self.model[start..start + length].copy_from_slice(&bytes);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

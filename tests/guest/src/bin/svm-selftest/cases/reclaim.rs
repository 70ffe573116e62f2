//! Pages that the kernel takes, moves or merges for its own reasons while the device works.

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, Lane, Setting, Skip, copy_all, fresh, requests, same, success};
use crate::endpoint::{Device, Operation};
use crate::model;
use crate::sys::{self, Mapping, PAGE, PageMap, Swap};
use crate::wait::{patience, wait_until};

use Needs::PageRequests;

pub(super) const CASES: &[Case] = &[
    Case::new("swap-out-under-way", PageRequests, swap_out_under_way),
    Case::new("migration-under-way", PageRequests, migration_under_way),
    Case::new("merged-pages", PageRequests, merged_pages),
    Case::new("memory-limit", PageRequests, memory_limit),
    Case::new("suspended-while-reclaimed", PageRequests, suspended_while_reclaimed),
];

/// Whether the kernel looks for equal pages: 1 or 0.
const KSM_RUN: &str = "/sys/kernel/mm/ksm/run";

/// What the kernel swaps to: a disk in memory that holds nothing else.
fn swap(bench: &Bench<'_>) -> Result<Swap> {
    const SECTOR: usize = 512;
    bench.change_machine()?;
    let sectors = fs::read_to_string("/sys/block/ram0/size").ok().and_then(|text| text.trim().parse().ok());
    let Some(sectors) = sectors.filter(|sectors: &usize| *sectors > 0) else {
        return Err(Skip("there is no disk in memory, /dev/ram0, to swap to").into());
    };
    Swap::on(Path::new("/dev/ram0"), sectors * SECTOR).context("cannot swap to /dev/ram0")
}

/// Pushes pages out to swap; returns how many are there. Some the kernel holds for a moment.
fn push_out(memory: &Mapping) -> Result<usize> {
    const ATTEMPTS: usize = 10;
    let map = PageMap::open()?;
    let mut out = 0;
    for _ in 0..ATTEMPTS {
        memory.page_out(0..memory.len())?;
        out = map.pages(memory)?.iter().filter(|page| page.is_swapped()).count();
        if out == memory.len() / PAGE {
            break;
        }
        // Pages that one processor keeps to itself until it has enough of them.
        let _ = fs::write("/proc/sys/vm/compact_memory", "1");
    }
    Ok(out)
}

/// Pages go to swap while the device writes them, and come back when it wants them.
fn swap_out_under_way(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 64;
    let swap = swap(bench)?;
    let (memory, _) = bench.resident(PAGES)?;
    let (back, _) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    let mut swapped = 0;
    for round in 0..3_u64 {
        let ticket = lane.queue.start(&Operation::fill(memory.address(), memory.len(), round));
        memory.page_out(0..memory.len())?;
        success(&lane.queue.wait(ticket)?, memory.len())?;
        same("written while it was swapped out", &memory.read_all(), &model::fill(round, memory.len()))?;
        let out = push_out(&memory)?;
        let asked = lane.counted(&copy_all(&memory, &back), memory.len())?;
        ensure!(out == 0 || asked > 0, "{out} pages were in swap, and nobody was asked for them");
        same("what came back", &back.read_all(), &model::fill(round, memory.len()))?;
        swapped += out;
    }
    drop((lane, memory, back));
    drop(swap);
    if swapped == 0 {
        return Err(Skip("the kernel swapped nothing out").into());
    }
    bench.notes.push(format!("{swapped} pages were swapped out"));
    Ok(())
}

/// Compaction moves pages to other frames while the device writes them.
fn migration_under_way(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 256;
    const ROUNDS: u64 = 3;
    bench.change_machine()?;
    let map = PageMap::open()?;
    let (memory, ballast) = scattered(PAGES)?;
    let marker = fresh(1)?;
    let lane = bench.lane()?;
    requests(lane.counted(&Operation::fill(marker.address(), PAGE, 1), PAGE)?, 1)?;
    let mut moved = 0;
    for round in 0..ROUNDS {
        lane.counted(&Operation::fill(memory.address(), memory.len(), 9), memory.len())?;
        let before = map.pages(&memory)?;
        let ticket = lane.queue.start(&Operation::fill(memory.address(), memory.len(), round));
        fs::write("/proc/sys/vm/compact_memory", "1").context("cannot ask for compaction")?;
        success(&lane.queue.wait(ticket)?, memory.len())?;
        let after = map.pages(&memory)?;
        moved += before.iter().zip(&after).filter(|(before, after)| before.frame() != after.frame()).count();
        same("written while it moved", &memory.read_all(), &model::fill(round, memory.len()))?;
        lane.counted(&Operation::fill(memory.address(), memory.len(), 5), memory.len())?;
        same("where it is now", &memory.read_all(), &model::fill(5, memory.len()))?;
    }
    drop(ballast);
    if moved == 0 {
        return Err(Skip("compaction moved nothing").into());
    }
    bench.notes.push(format!("{moved} pages moved"));
    Ok(())
}

/// Pages with free ones around each, which compaction likes to gather elsewhere; and what holds them apart.
fn scattered(pages: usize) -> Result<(Mapping, Mapping)> {
    const APART: usize = 16;
    let (memory, ballast) = (fresh(pages)?, fresh(pages * APART)?);
    for mapping in [&memory, &ballast] {
        // Refused by a kernel without huge pages, which makes none either.
        let _ = mapping.refuse_huge();
    }
    for page in 0..pages * APART {
        ballast.store(page * PAGE, 1);
        if page % APART == 0 {
            memory.store(page / APART * PAGE, 1);
        }
    }
    for page in (0..pages * APART).filter(|page| page % APART > 1) {
        ballast.discard(page * PAGE..(page + 1) * PAGE)?;
    }
    Ok((memory, ballast))
}

/// The kernel shares pages with the same bytes, and parts them again when the device writes one.
fn merged_pages(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 8;
    bench.change_machine()?;
    let settings = [
        Setting::change("/sys/kernel/mm/ksm/pages_to_scan", "4096")?,
        Setting::change("/sys/kernel/mm/ksm/sleep_millisecs", "1")?,
        Setting::change(KSM_RUN, "1")?,
    ];
    let (left, right) = (fresh(PAGES)?, fresh(PAGES)?);
    let lane = bench.lane()?;
    for memory in [&left, &right] {
        requests(lane.counted(&Operation::fill(memory.address(), memory.len(), 0x51), memory.len())?, PAGES)?;
        memory.mergeable().context("madvise")?;
    }
    let map = PageMap::open()?;
    let frames = |memory: &Mapping| map.pages(memory).unwrap_or_default();
    let one = |memory: &Mapping, frame: u64| frames(memory).iter().all(|page| page.frame() == frame);
    let merged = || {
        let first = frames(&left).first().map_or(0, |page| page.frame());
        one(&left, first) && one(&right, first)
    };
    if wait_until(patience(), merged).is_err() {
        return Err(Skip("the kernel merged nothing").into());
    }
    // What is merged stays so, and nothing is merged any more: else a page that was parted could be merged again before the
    // device writes it, and be asked for twice. The kernel ends the scan under way before it takes this.
    fs::write(KSM_RUN, "0").context("the kernel goes on merging")?;
    // The device wrote both: it must have lost that right.
    let fill = Operation::fill(left.address(), left.len(), 0x52);
    requests(lane.counted(&fill, left.len())?, PAGES).context("merged pages")?;
    same("the page that was written", &left.read_all(), &model::fill(0x52, left.len()))?;
    same("the page that was not", &right.read_all(), &model::fill(0x51, right.len()))?;
    let (summed, _) = lane.run_counted(&Operation::crc(right.address(), right.len(), 0))?;
    success(&summed, right.len())?;
    let expected = u64::from(model::crc32c(&model::fill(0x51, right.len()), 0));
    ensure!(summed.result == expected, "the device reads {:#x}, not {expected:#x}", summed.result);
    drop(settings);
    Ok(())
}

/// A group of processes that may have little memory; this process is in it until it is dropped.
struct Group {
    root: PathBuf,
}

impl Group {
    fn join(limit: usize) -> Result<Self> {
        let root = std::env::temp_dir().join(format!("svm-selftest-{}-groups", std::process::id()));
        fs::create_dir(&root)?;
        if sys::mount("cgroup2", &root).is_err() {
            let _ = fs::remove_dir(&root);
            return Err(Skip("the kernel has no groups of processes, or has them in use").into());
        }
        let group = Self { root };
        if fs::write(group.root.join("cgroup.subtree_control"), "+memory").is_err() {
            return Err(Skip("the kernel limits no memory").into());
        }
        fs::create_dir(group.folder()).context("cannot make a group")?;
        fs::write(group.folder().join("memory.max"), limit.to_string()).context("memory.max")?;
        fs::write(group.folder().join("cgroup.procs"), "0").context("cannot join the group")?;
        Ok(group)
    }

    fn folder(&self) -> PathBuf {
        self.root.join("svm-selftest")
    }

    /// How often the limit was met.
    fn met(&self) -> Result<u64> {
        let text = fs::read_to_string(self.folder().join("memory.events"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("max "));
        Ok(line.context("memory.events says nothing of the limit")?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.root.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(self.folder());
        if let Err(error) = sys::unmount(&self.root) {
            println!("# cannot unmount {}: {error}", self.root.display());
        }
        let _ = fs::remove_dir(&self.root);
    }
}

/// The device wants twice the memory that its process may have: page for page another one has to go.
fn memory_limit(bench: &mut Bench<'_>) -> Result<()> {
    const PIECE: usize = 64 * PAGE;
    // Each processor holds back some pages from reclaim, and may leave nothing else of a smaller group.
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    let limit = (512 << 10) * cpus.min(16);
    let swap = swap(bench)?;
    let group = Group::join(limit)?;
    let lane = bench.lane()?;
    let memory = fresh(2 * limit / PAGE)?;
    // In pieces: where each page costs another one, a descriptor over all of it takes long.
    let pieces = || (0..memory.len()).step_by(PIECE);
    let mut asked = 0;
    for at in pieces() {
        asked += lane.counted(&Operation::fill(memory.at(at), PIECE, 2), PIECE)?;
    }
    // By now the beginning has gone, and comes back while the end goes.
    let mut sum = 0;
    for at in pieces() {
        let (summed, again) = lane.run_counted(&Operation::crc(memory.at(at), PIECE, sum))?;
        success(&summed, PIECE)?;
        sum = u32::try_from(summed.result)?;
        asked += again;
    }
    let expected = model::crc32c(&model::fill(2, memory.len()), 0);
    ensure!(sum == expected, "CRC {sum:#x}, expected {expected:#x}");
    same("memory", &memory.read_all(), &model::fill(2, memory.len()))?;
    let met = group.met()?;
    ensure!(met > 0, "the limit was never met");
    bench
        .notes
        .push(format!("{asked} page requests for {} pages, the limit met {met} times", 2 * limit / PAGE));
    drop((lane, memory));
    drop(group);
    drop(swap);
    Ok(())
}

/// The queue is disabled in the middle of its work; meanwhile the kernel takes pages away, and the work that is
/// given again finds what is there then.
fn suspended_while_reclaimed(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 32;
    let swap = swap(bench)?;
    let (memory, bytes) = bench.resident(PAGES)?;
    let destination = fresh(PAGES)?;
    let device = Device::open(bench.endpoint)?;
    let queue = device.queue(0)?;
    let ticket = queue.start(&copy_all(&memory, &destination));
    wait_until(patience(), || queue.page_requests() > 0 || queue.poll(ticket).is_some())?;
    queue.disable()?;
    let done = usize::try_from(queue.wait(ticket)?.completed)?;
    same("what was done", &destination.read(0..done), &bytes[..done])?;
    drop(queue);

    let out = push_out(&memory)? + push_out(&destination)?;
    destination.discard(0..PAGES / 2 * PAGE)?;
    let lane = Lane { queue: device.queue(0)?, device };
    let asked = lane.counted(&copy_all(&memory, &destination), bytes.len())?;
    ensure!(asked >= PAGES as u64 / 2, "{asked} page requests after {out} pages were swapped out");
    same("destination", &destination.read_all(), &bytes)?;
    bench.notes.push(format!("{done} bytes done before, {out} pages swapped out meanwhile"));
    drop((lane, memory, destination));
    drop(swap);
    Ok(())
}

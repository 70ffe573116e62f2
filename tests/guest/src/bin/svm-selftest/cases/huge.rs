//! Huge pages: made, used, merged and split while the device works.

use std::fs;
use std::io::{self, ErrorKind};

use anyhow::{Context, Result, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, ExpectedFault, Lane, Setting, Skip, faulted, requests, same, success};
use crate::endpoint::Operation;
use crate::model;
use crate::sys::{Mapping, PAGE, PageMap, Protection};

use Needs::PageRequests;

pub(super) const CASES: &[Case] = &[
    Case::new("huge-page-of-the-pool", PageRequests, huge_page_of_the_pool),
    Case::new("collapse-under-way", PageRequests, collapse_under_way),
    Case::new("split-under-way", PageRequests, split_under_way),
];

const HUGE: usize = 2 << 20;

/// Pages of hugetlbfs: one page request each, and no hole is smaller than they are.
fn huge_page_of_the_pool(bench: &mut Bench<'_>) -> Result<()> {
    const PAGES: usize = 2;
    bench.change_machine()?;
    let pool = Setting::change("/proc/sys/vm/nr_hugepages", "2")?;
    let Ok(memory) = Mapping::huge(PAGES * HUGE) else {
        return Err(Skip("the machine has no huge pages to spare").into());
    };
    let lane = bench.lane()?;
    for pattern in [0x1111, 0x2222] {
        let asked = if pattern == 0x1111 { PAGES } else { 0 };
        let fill = Operation::fill(memory.address(), memory.len(), pattern);
        requests(lane.counted(&fill, memory.len())?, asked)?;
        same("filled", &memory.read_all(), &model::fill(pattern, memory.len()))?;
    }
    memory.discard(0..HUGE)?;
    let (summed, asked) = lane.run_counted(&Operation::crc(memory.address(), HUGE, 0))?;
    success(&summed, HUGE)?;
    requests(asked, 1).context("a page that was discarded")?;
    let zeros = u64::from(model::crc32c(&vec![0; HUGE], 0));
    ensure!(summed.result == zeros, "a discarded page's CRC is {:#x}, not that of zeros", summed.result);
    drop((lane, memory));
    drop(pool);
    Ok(())
}

/// The kernel copies 512 small pages into a huge one while the device writes them.
fn collapse_under_way(bench: &mut Bench<'_>) -> Result<()> {
    const ROUNDS: u64 = 1;
    let map = PageMap::open()?;
    let lane = bench.lane()?;
    let mut collapsed = 0;
    for round in 0..ROUNDS {
        let memory = Mapping::aligned(HUGE, HUGE)?;
        memory.refuse_huge()?;
        let small = Operation::fill(memory.address(), HUGE, round);
        requests(lane.counted(&small, HUGE)?, HUGE / PAGE).context("small pages")?;
        // Of page after page, the frames follow one another afterwards.
        let ticket = lane.queue.start(&Operation::fill(memory.address(), HUGE, !round));
        memory.prefer_huge()?;
        collapse(&memory)?;
        success(&lane.queue.wait(ticket)?, HUGE)?;
        same("collapsed under way", &memory.read_all(), &model::fill(!round, HUGE))?;
        let (first, last) = (map.page(memory.address())?, map.page(memory.at(HUGE - PAGE))?);
        let pages = (HUGE / PAGE - 1) as u64;
        collapsed += u32::from(last.frame() == first.frame() + pages);
        lane.counted(&Operation::fill(memory.address(), HUGE, 7).without_block(), HUGE)
            .context("without asking, once it is quiet")?;
        same("collapsed", &memory.read_all(), &model::fill(7, HUGE))?;
    }
    bench.notes.push(format!("{collapsed} of {ROUNDS} regions are one page afterwards"));
    Ok(())
}

/// Collapses, or says why that cannot be seen here.
fn collapse(memory: &Mapping) -> Result<()> {
    const ATTEMPTS: usize = 20;
    for _ in 0..ATTEMPTS {
        match memory.collapse() {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Err(Skip("the kernel does not collapse pages when asked").into());
            }
            Err(_) => std::thread::yield_now(),
        }
    }
    Err(Skip("the kernel found no huge page to collapse into").into())
}

/// A reason for a huge page to fall into small ones.
struct Split {
    name: &'static str,
    /// The page that changes.
    at: usize,
    change: fn(&Mapping, usize) -> io::Result<()>,
}

const SPLITS: [Split; 3] = [
    Split {
        name: "protected",
        at: 300 * PAGE,
        change: |memory, at| memory.protect(at..at + PAGE, Protection::Read),
    },
    Split { name: "replaced", at: 400 * PAGE, change: |memory, at| memory.replace(at..at + PAGE) },
    Split { name: "discarded", at: 511 * PAGE, change: |memory, at| memory.discard(at..at + PAGE) },
];

/// A huge page that the device writes falls into small ones, because something happens to one of them.
fn split_under_way(bench: &mut Bench<'_>) -> Result<()> {
    const WRITTEN: usize = 256 * PAGE;
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if !setting.contains("[madvise]") && !setting.contains("[always]") {
        return Err(Skip("the kernel has no transparent huge pages").into());
    }
    let lane = bench.lane()?;
    for Split { name, at, change } in SPLITS {
        let memory = Mapping::aligned(HUGE, HUGE)?;
        memory.prefer_huge()?;
        requests(lane.counted(&Operation::fill(memory.address(), HUGE, 1), HUGE)?, 1)?;
        let ticket = lane.queue.start(&Operation::fill(memory.address(), WRITTEN, 2));
        change(&memory, at)?;
        success(&lane.queue.wait(ticket)?, WRITTEN)?;
        let mut expected = model::fill(1, HUGE);
        expected[..WRITTEN].copy_from_slice(&model::fill(2, WRITTEN));
        if name == "protected" {
            still_protected(&lane, &memory, at)?;
            expected[at - PAGE..at].copy_from_slice(&model::fill(3, PAGE));
        } else {
            expected[at..at + PAGE].fill(0);
        }
        same(name, &memory.read_all(), &expected)?;
    }
    Ok(())
}

fn still_protected(lane: &Lane, memory: &Mapping, at: usize) -> Result<()> {
    let over = Operation::fill(memory.at(at - PAGE), 3 * PAGE, 3).without_block();
    let refused = lane.queue.run(&over)?;
    faulted(&refused, ExpectedFault { address: memory.at(at), write: true, completed: PAGE as u64 })
}

//! Dirty tracking in the second stage: exactly the pages that were written.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use guest::endpoint::{Operation, Queue};
use guest::expect::success;
use guest::suite::Skip;
use guest::sys::{PAGE, PAGE_BYTES};

use super::{Case, Needs};
use crate::bench::{Bench, DESTINATION, SOURCE};
use crate::memory::Memory;
use crate::rig::{MEMORY, RECORDS, Rig};
use crate::sys::{Id, hwpt_flags};
use crate::tables::Tables;
use crate::view::View;

pub(super) const CASES: &[Case] = &[
    Case::new("dirty-second-stage", Needs::Translation, second_stage),
    Case::new("dirty-nested", Needs::Translation, nested),
    Case::new("dirty-nested-tables", Needs::Translation, nested_tables),
    Case::new("dirty-large-pages", Needs::Translation, large_pages),
    Case::new("dirty-kept-until-cleared", Needs::Translation, kept_until_cleared),
    Case::new("dirty-off", Needs::Translation, off),
    Case::new("dirty-while-running", Needs::Translation, while_running),
];

/// Pages that descriptors write in a round, and how many descriptors.
const TARGETS: usize = 128;
const WRITES: usize = 40;

/// A parent that tracks dirty pages, by 4 KiB unless `large`.
fn parent(rig: &Rig, large: bool) -> Result<Id> {
    if !rig.tracks_dirty_pages() {
        return Err(Skip("the unit does not track dirty pages").into());
    }
    if !large {
        rig.iommufd.small_pages(rig.ioas).context("OPTION")?;
    }
    rig.parent(hwpt_flags::DIRTY_TRACKING)
}

/// Indexes of the memory's dirty pages.
fn dirty(rig: &Rig, parent: Id, clear: bool) -> Result<BTreeSet<usize>> {
    let bits = rig.iommufd.dirty(parent, MEMORY, rig.memory.pages(), clear).context("GET_DIRTY_BITMAP")?;
    Ok(bits.iter().enumerate().filter(|(_, dirty)| **dirty).map(|(index, _)| index).collect())
}

fn exactly(what: &str, actual: &BTreeSet<usize>, expected: &BTreeSet<usize>) -> Result<()> {
    let missing: Vec<_> = expected.difference(actual).collect();
    let surplus: Vec<_> = actual.difference(expected).collect();
    ensure!(
        missing.is_empty() && surplus.is_empty(),
        "{what}: dirty are {} pages, expected {}; not dirty: {missing:x?}; not written: {surplus:x?}",
        actual.len(),
        expected.len()
    );
    Ok(())
}

/// Index of a page in the memory.
fn index(address: u64) -> usize {
    usize::try_from((address - MEMORY) / PAGE_BYTES).unwrap_or(usize::MAX)
}

/// Writes to some pages of `view` and reads from others; returns the indexes of the written ones in the memory.
fn writes(bench: &mut Bench<'_>, queue: &Queue, view: &View) -> Result<BTreeSet<usize>> {
    let mut written = BTreeSet::new();
    for _ in 0..WRITES {
        let (page, other) = (bench.random.below(view.pages.len()), bench.random.below(view.pages.len()));
        let length = 1 + bench.random.below(PAGE);
        let fill = Operation::fill(view.page(page), length, bench.random.bits());
        success(&queue.run(&fill)?, length)?;
        written.insert(index(view.pages[page].address));
        // What is read does not become dirty.
        let read = Operation::crc(view.page(other), PAGE, 0);
        success(&queue.run(&read)?, PAGE)?;
    }
    Ok(written)
}

/// Pages of first-stage tables. Reading one in a nested walk counts as writing it, so that it is dirty before its
/// accessed and dirty bits are; which are read depends on what the unit has cached.
fn table_pages(tables: &Tables<'_>) -> BTreeSet<usize> {
    tables.tables().iter().map(|page| index(page.address)).collect()
}

/// Round after round: dirty is what was written, but for `tables`, of which any may be dirty.
fn rounds(
    bench: &mut Bench<'_>,
    target: (&Rig, Id, Option<u32>),
    view: &View,
    tables: &BTreeSet<usize>,
) -> Result<()> {
    let (rig, parent, pasid) = target;
    let queue = rig.queue(0, pasid);
    for round in 0..3 {
        let written = writes(bench, &queue, view)?;
        exactly(&format!("round {round}"), &(&dirty(rig, parent, true)? - tables), &written)?;
        // The completion records are written too: those of this queue, on a page of their own.
        let records = rig.iommufd.dirty(parent, RECORDS, 2, true)?;
        ensure!(records == [true, false], "round {round}: records are {records:?}");
        exactly("nothing was written", &dirty(rig, parent, true)?, &BTreeSet::new())?;
    }
    Ok(())
}

fn second_stage(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = parent(&rig, false)?;
    let view = View::plain(&rig.memory, TARGETS, &mut bench.random)?;
    rig.iommufd.track_dirty(parent, true).context("SET_DIRTY_TRACKING")?;
    for pasid in [None, Some(2)] {
        rig.attach(parent, pasid)?;
        rounds(bench, (&rig, parent, pasid), &view, &BTreeSet::new())?;
    }
    Ok(())
}

fn nested(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = parent(&rig, false)?;
    let mut tables = rig.with_records(Tables::settled(&rig.memory, 4)?)?;
    let view = View::random(&rig.memory, DESTINATION, TARGETS, &mut bench.random)?;
    view.show(&mut tables)?;
    let hwpt = rig.nested(parent, &tables, None)?;
    rig.iommufd.track_dirty(parent, true).context("SET_DIRTY_TRACKING")?;
    for pasid in [None, Some(2)] {
        rig.attach(hwpt, pasid)?;
        rounds(bench, (&rig, parent, pasid), &view, &table_pages(&tables))?;
    }
    Ok(())
}

/// Tables are memory like any other: setting accessed and dirty in them makes them dirty.
fn nested_tables(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = parent(&rig, false)?;
    let mut tables = rig.space()?;
    let source = View::random(&rig.memory, SOURCE, 1, &mut bench.random)?;
    let destination = View::random(&rig.memory, DESTINATION, 1, &mut bench.random)?;
    source.show(&mut tables)?;
    destination.show(&mut tables)?;
    rig.iommufd.track_dirty(parent, true).context("SET_DIRTY_TRACKING")?;
    rig.attach(rig.nested(parent, &tables, None)?, Some(2))?;
    let queue = rig.queue(0, Some(2));
    let page = BTreeSet::from([index(destination.pages[0].address)]);
    success(&queue.run(&Operation::copy(SOURCE, DESTINATION, PAGE))?, PAGE)?;
    // Every table leads to an address that was used, and had its bits clear.
    let expected = page.union(&table_pages(&tables)).copied().collect();
    exactly("page and tables", &dirty(&rig, parent, true)?, &expected)?;
    success(&queue.run(&Operation::copy(SOURCE, DESTINATION, PAGE))?, PAGE)?;
    exactly("the page again", &(&dirty(&rig, parent, true)? - &table_pages(&tables)), &page)
}

/// A leaf of 2 MiB is dirty as a whole.
fn large_pages(bench: &mut Bench<'_>) -> Result<()> {
    const LARGE: usize = 512;
    let rig = bench.rig_with(Memory::new(2 * LARGE, MEMORY, true)?)?;
    let parent = parent(&rig, true)?;
    rig.iommufd.track_dirty(parent, true).context("SET_DIRTY_TRACKING")?;
    rig.attach(parent, None)?;
    let queue = rig.queue(0, None);
    rig.memory.take(LARGE)?;
    let page = rig.memory.take(LARGE)?;
    success(&queue.run(&Operation::fill(page.address + 7 * PAGE_BYTES, PAGE, 1))?, PAGE)?;
    let dirty = dirty(&rig, parent, true)?;
    if dirty.len() == 1 {
        return Err(Skip("the kernel made no huge pages").into());
    }
    exactly("a large page", &dirty, &(LARGE..2 * LARGE).collect())
}

fn kept_until_cleared(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = parent(&rig, false)?;
    let view = View::plain(&rig.memory, TARGETS, &mut bench.random)?;
    rig.attach(parent, None)?;
    rig.iommufd.track_dirty(parent, true).context("SET_DIRTY_TRACKING")?;
    let queue = rig.queue(0, None);
    let mut written = writes(bench, &queue, &view)?;
    for _ in 0..2 {
        exactly("looked at", &dirty(&rig, parent, false)?, &written)?;
    }
    written.extend(writes(bench, &queue, &view)?);
    exactly("looked at, more written", &dirty(&rig, parent, true)?, &written)?;
    exactly("cleared", &dirty(&rig, parent, true)?, &BTreeSet::new())
}

/// What is written while nothing is tracked does not count, neither before nor between.
fn off(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = parent(&rig, false)?;
    let view = View::plain(&rig.memory, TARGETS, &mut bench.random)?;
    rig.attach(parent, None)?;
    let queue = rig.queue(0, None);
    writes(bench, &queue, &view)?;
    rig.iommufd.track_dirty(parent, true).context("SET_DIRTY_TRACKING on")?;
    exactly("before", &dirty(&rig, parent, true)?, &BTreeSet::new())?;
    let written = writes(bench, &queue, &view)?;
    exactly("tracked", &dirty(&rig, parent, true)?, &written)?;
    rig.iommufd.track_dirty(parent, false).context("SET_DIRTY_TRACKING off")?;
    writes(bench, &queue, &view)?;
    rig.iommufd.track_dirty(parent, true).context("SET_DIRTY_TRACKING on again")?;
    exactly("between", &dirty(&rig, parent, true)?, &BTreeSet::new())
}

/// Tracking starts while the device writes; nothing written from then on is lost.
fn while_running(bench: &mut Bench<'_>) -> Result<()> {
    const DESCRIPTORS: usize = 30;
    let rig = bench.rig()?;
    let parent = parent(&rig, false)?;
    let mut tables = rig.with_records(Tables::settled(&rig.memory, 4)?)?;
    let busy = View::random(&rig.memory, SOURCE, TARGETS, &mut bench.random)?;
    let view = View::random(&rig.memory, DESTINATION, TARGETS, &mut bench.random)?;
    busy.show(&mut tables)?;
    view.show(&mut tables)?;
    rig.attach(rig.nested(parent, &tables, None)?, Some(2))?;
    let (queue, other) = (rig.queue(0, Some(2)), rig.queue(1, Some(2)));
    let all: BTreeSet<usize> = busy.pages.iter().map(|page| index(page.address)).collect();
    for round in 0..4 {
        let fill = Operation::fill(SOURCE, busy.len(), round);
        let tickets: Vec<_> = (0..DESCRIPTORS).map(|_| other.start(&fill)).collect();
        rig.iommufd.track_dirty(parent, true).context("SET_DIRTY_TRACKING on")?;
        let written = writes(bench, &queue, &view)?;
        for ticket in tickets {
            success(&other.wait(ticket)?, busy.len())?;
        }
        let last = other.start(&fill);
        success(&other.wait(last)?, busy.len())?;
        let expected: BTreeSet<usize> = written.union(&all).copied().collect();
        let dirty = &dirty(&rig, parent, true)? - &table_pages(&tables);
        exactly(&format!("round {round}"), &dirty, &expected)?;
        rig.iommufd.track_dirty(parent, false).context("SET_DIRTY_TRACKING off")?;
    }
    Ok(())
}

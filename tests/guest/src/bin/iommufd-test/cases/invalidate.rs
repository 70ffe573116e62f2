//! HWPT_INVALIDATE: what is invalidated is walked anew, and nothing else.

use anyhow::{Context, Result, ensure};
use guest::endpoint::{Operation, Queue};
use guest::expect::{same, success};
use guest::sys::PAGE;

use super::{Case, Needs};
use crate::bench::{Bench, DESTINATION, SOURCE};
use crate::rig::{Rig, target};
use crate::sys::{Id, VtdS1Invalidate};
use crate::tables::{READ_WRITE, Tables};
use crate::view::View;

pub(super) const CASES: &[Case] = &[
    Case::new("invalidate-page", Needs::Translation, page),
    Case::new("invalidate-everything", Needs::Translation, everything),
    Case::new("invalidate-leaf-only", Needs::Translation, leaf_only),
    Case::new("invalidate-range", Needs::Translation, range),
    Case::new("invalidate-upper-level", Needs::Translation, upper_level),
    Case::new("invalidate-spares-others", Needs::Translation, spares_others),
    Case::new("invalidate-stops-at-a-bad-entry", Needs::Translation, stops_at_bad_entry),
];

/// Translation requests of the device, and untranslated requests that the unit had to look up.
const MISSES: [usize; 2] = [0x48, 0x78];
const LEAF: u32 = 1;

fn one_page(address: u64) -> VtdS1Invalidate {
    VtdS1Invalidate { address, pages: 1, ..VtdS1Invalidate::default() }
}

/// Two views that are mapped, attached and warm.
struct Warm<'a> {
    rig: &'a Rig,
    tables: Tables<'a>,
    hwpt: Id,
    source: View,
    destination: View,
    queue: Queue,
}

const WARM_PAGES: usize = 4;

impl<'a> Warm<'a> {
    fn new(bench: &mut Bench<'_>, rig: &'a Rig, parent: Id, pasid: Option<u32>) -> Result<Self> {
        let mut tables = rig.space()?;
        let source = View::random(&rig.memory, SOURCE, WARM_PAGES, &mut bench.random)?;
        let destination = View::random(&rig.memory, DESTINATION, WARM_PAGES, &mut bench.random)?;
        source.show(&mut tables)?;
        destination.show(&mut tables)?;
        let hwpt = rig.nested(parent, &tables, None)?;
        rig.attach(hwpt, pasid)?;
        let warm = Self { rig, tables, hwpt, source, destination, queue: rig.queue(0, pasid) };
        warm.yields("at first", &warm.source.read(&rig.memory))?;
        Ok(warm)
    }

    /// The device reads these bytes.
    fn yields(&self, when: &str, expected: &[u8]) -> Result<()> {
        let copy = Operation::copy(SOURCE, DESTINATION, self.source.len()).without_block();
        success(&self.queue.run(&copy)?, self.source.len()).context(when.to_owned())?;
        same(when, &self.destination.read(&self.rig.memory), expected)
    }

    /// Puts fresh pages in the place of some, and sees that the device goes on with the old ones: it is by
    /// invalidation that it learns. Returns the bytes that it reads when it knows.
    fn swap(&mut self, bench: &mut Bench<'_>, pages: std::ops::Range<usize>) -> Result<Vec<u8>> {
        let old = self.source.read(&self.rig.memory);
        for index in pages {
            let (new, _) = self.rig.memory.random(1, &mut bench.random)?;
            self.tables.map(self.source.page(index), new.address, READ_WRITE)?;
            self.source.pages[index] = new;
        }
        self.yields("not invalidated yet", &old)?;
        Ok(self.source.read(&self.rig.memory))
    }

    fn invalidate(&self, entries: &[VtdS1Invalidate]) -> Result<()> {
        let (done, outcome) = self.rig.iommufd.invalidate(self.hwpt, entries);
        outcome.context("HWPT_INVALIDATE")?;
        ensure!(usize::try_from(done)? == entries.len(), "{done} of {} entries are done", entries.len());
        Ok(())
    }

    fn misses(&self) -> u64 {
        MISSES.iter().map(|register| self.rig.registers.read64(*register)).sum()
    }
}

fn page(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    for pasid in rig.targets() {
        let mut warm = Warm::new(bench, &rig, parent, pasid)?;
        let expected = warm.swap(bench, 1..2)?;
        warm.invalidate(&[one_page(warm.source.page(1))])?;
        warm.yields("invalidated", &expected).with_context(|| target(pasid))?;
    }
    Ok(())
}

fn everything(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    for pasid in rig.targets() {
        let mut warm = Warm::new(bench, &rig, parent, pasid)?;
        let expected = warm.swap(bench, 0..WARM_PAGES)?;
        warm.invalidate(&[VtdS1Invalidate { pages: u64::MAX, ..VtdS1Invalidate::default() }])?;
        warm.yields("invalidated", &expected).with_context(|| target(pasid))?;
    }
    Ok(())
}

fn leaf_only(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut warm = Warm::new(bench, &rig, parent, Some(2))?;
    let expected = warm.swap(bench, 2..3)?;
    warm.invalidate(&[VtdS1Invalidate { flags: LEAF, ..one_page(warm.source.page(2)) }])?;
    warm.yields("invalidated", &expected)
}

/// Several pages in one entry, and several entries.
fn range(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut warm = Warm::new(bench, &rig, parent, Some(2))?;
    let expected = warm.swap(bench, 0..3)?;
    warm.invalidate(&[VtdS1Invalidate { pages: 3, ..one_page(SOURCE) }])?;
    warm.yields("invalidated by one entry", &expected)?;
    let expected = warm.swap(bench, 1..WARM_PAGES)?;
    let entries: Vec<_> = (1..WARM_PAGES).map(|index| one_page(warm.source.page(index))).collect();
    warm.invalidate(&entries)?;
    warm.yields("invalidated by three", &expected)
}

/// An entry above the leaf leads elsewhere.
fn upper_level(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut warm = Warm::new(bench, &rig, parent, Some(2))?;
    let old = warm.source.read(&rig.memory);
    let source = View::random(&rig.memory, SOURCE, WARM_PAGES, &mut bench.random)?;
    warm.tables.renew_table(SOURCE)?;
    source.show(&mut warm.tables)?;
    warm.yields("not invalidated yet", &old)?;
    warm.invalidate(&[VtdS1Invalidate { pages: WARM_PAGES as u64, ..one_page(SOURCE) }])?;
    warm.yields("invalidated", &source.read(&rig.memory))
}

/// The device keeps what was not invalidated: it asks once more for the one page only.
fn spares_others(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut warm = Warm::new(bench, &rig, parent, Some(2))?;
    let old = warm.source.read(&rig.memory);
    let before = warm.misses();
    warm.yields("warm", &old)?;
    ensure!(warm.misses() == before, "{} misses although all is warm", warm.misses() - before);
    let expected = warm.swap(bench, 1..2)?;
    // Aligned to a page and not to more, so the kernel invalidates this page only.
    warm.invalidate(&[one_page(warm.source.page(1))])?;
    let before = warm.misses();
    warm.yields("invalidated", &expected)?;
    ensure!(warm.misses() == before + 1, "{} misses, expected one", warm.misses() - before);
    Ok(())
}

/// Entries before the bad one are done, the others are not.
fn stops_at_bad_entry(bench: &mut Bench<'_>) -> Result<()> {
    const EINVAL: i32 = 22;
    const EOPNOTSUPP: i32 = 95;
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut warm = Warm::new(bench, &rig, parent, Some(2))?;
    let rows = [
        ("misaligned", VtdS1Invalidate { address: SOURCE + 8, ..one_page(0) }, EINVAL),
        ("everything, but not from 0", VtdS1Invalidate { pages: u64::MAX, ..one_page(SOURCE) }, EINVAL),
        ("unknown flag", VtdS1Invalidate { flags: 2, ..one_page(SOURCE) }, EOPNOTSUPP),
        ("reserved field", VtdS1Invalidate { reserved: 1, ..one_page(SOURCE) }, EOPNOTSUPP),
    ];
    for (name, bad, code) in rows {
        let old = warm.source.read(&rig.memory);
        let mut expected = warm.swap(bench, 0..2)?;
        let entries = [one_page(warm.source.page(0)), bad, one_page(warm.source.page(1))];
        let (done, outcome) = rig.iommufd.invalidate(warm.hwpt, &entries);
        let error = outcome.as_ref().err().and_then(std::io::Error::raw_os_error);
        ensure!(done == 1 && error == Some(code), "{name}: {done} entries are done, {outcome:?}");
        let new = expected.clone();
        expected[PAGE..].copy_from_slice(&old[PAGE..]);
        warm.yields(&format!("{name}: the first invalidated, the second not"), &expected)?;
        warm.invalidate(&entries[2..])?;
        warm.yields("both", &new)?;
    }
    warm.invalidate(&[])
}

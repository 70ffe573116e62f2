//! A first stage of this program's on a second stage of the kernel's.

use anyhow::{Context, Result, ensure};
use guest::endpoint::{Operation, Queue};
use guest::expect::{same, success};
use guest::suite::Skip;
use guest::sys::{PAGE, PAGE_BYTES};

use super::{Case, Needs};
use crate::bench::{Bench, DESTINATION, SOURCE, VIEW, lost, refusal, refused};
use crate::memory::Memory;
use crate::rig::{MEMORY, Rig, target};
use crate::sys::{HwptKind, VtdS1, hwpt_flags};
use crate::tables::{ACCESSED, DIRTY, Leaf, READ_ONLY, READ_WRITE, Tables};
use crate::view::View;

pub(super) const CASES: &[Case] = &[
    Case::new("nested", Needs::Translation, nested),
    Case::new("nested-on-two-pasids", Needs::Translation, two_pasids),
    Case::new("nested-page-sizes", Needs::Translation, page_sizes),
    Case::new("nested-page-sizes-over-large-pages", Needs::Translation, page_sizes_over_large_pages),
    Case::new("nested-five-levels", Needs::Translation, five_levels),
    Case::new("nested-read-only", Needs::Translation, read_only).provoking(),
    Case::new("nested-missing", Needs::Translation, missing).provoking(),
    Case::new("nested-second-stage-hole", Needs::Translation, second_stage_hole).provoking(),
    Case::new("nested-root-nowhere", Needs::Translation, root_nowhere).provoking(),
    Case::new("nested-accessed-dirty", Needs::Translation, accessed_dirty),
    Case::new("nested-replace", Needs::Translation, replace),
    Case::new("nested-detach", Needs::Translation, detach).provoking(),
    Case::new("parent-unmap-reaches-nested", Needs::Translation, parent_unmap).provoking(),
    Case::new("nested-strange-width", Needs::Translation, strange_width),
];

fn nested(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut tables = rig.space()?;
    let hwpt = rig.nested(parent, &tables, None)?;
    for pasid in rig.targets() {
        rig.attach(hwpt, pasid)?;
        let source = View::random(&rig.memory, SOURCE, VIEW, &mut bench.random)?;
        let destination = View::random(&rig.memory, DESTINATION, VIEW, &mut bench.random)?;
        source.show(&mut tables)?;
        destination.show(&mut tables)?;
        let everything = crate::sys::VtdS1Invalidate { pages: u64::MAX, ..Default::default() };
        rig.iommufd.invalidate(hwpt, &[everything]).1.context("HWPT_INVALIDATE")?;
        let queue = rig.queue(0, pasid);
        bench.copies_between(&rig.memory, &queue, &source, &destination).context(target(pasid))?;
    }
    Ok(())
}

/// The same addresses mean other pages under another PASID.
fn two_pasids(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let (mut first, mut second) = (rig.space()?, rig.space()?);
    let views = [(); 4].map(|()| View::random(&rig.memory, SOURCE, VIEW, &mut bench.random));
    let [a, b, c, d] = views;
    let at = |view: View, address| View { address, ..view };
    let (a, b, c, d) = (a?, at(b?, DESTINATION), c?, at(d?, DESTINATION));
    for (tables, source, destination) in [(&mut first, &a, &b), (&mut second, &c, &d)] {
        source.show(tables)?;
        destination.show(tables)?;
    }
    rig.attach(rig.nested(parent, &first, None)?, Some(7))?;
    rig.attach(rig.nested(parent, &second, None)?, Some(8))?;
    let (left, right) = (rig.queue(0, Some(7)), rig.queue(1, Some(8)));
    for _ in 0..3 {
        let untouched = d.read(&rig.memory);
        bench.copies_between(&rig.memory, &left, &a, &b).context("the first")?;
        same("the second's destination", &d.read(&rig.memory), &untouched)?;
        bench.copies_between(&rig.memory, &right, &c, &d).context("the second")?;
    }
    Ok(())
}

fn page_sizes(bench: &mut Bench<'_>) -> Result<()> {
    leaves(bench, false)
}

fn page_sizes_over_large_pages(bench: &mut Bench<'_>) -> Result<()> {
    leaves(bench, true)
}

/// Leaves of every size in the first stage over memory in 4 KiB or 2 MiB leaves of the second.
fn leaves(bench: &mut Bench<'_>, large_below: bool) -> Result<()> {
    const LARGE: usize = 512;
    let rig = bench.rig_with(Memory::new(3 * LARGE, MEMORY, large_below)?)?;
    if !large_below {
        rig.iommufd.small_pages(rig.ioas).context("OPTION")?;
    }
    let parent = rig.parent(0)?;
    let mut tables = rig.space()?;
    let mut sizes = vec![Leaf::Small, Leaf::Large];
    if rig.has_huge_leaves() {
        sizes.push(Leaf::Huge);
    }
    let large = rig.memory.take_aligned(LARGE, LARGE)?;
    let destination = View::random(&rig.memory, DESTINATION, VIEW, &mut bench.random)?;
    destination.show(&mut tables)?;
    rig.attach(rig.nested(parent, &tables, None)?, Some(2))?;
    let queue = rig.queue(0, Some(2));
    for (index, leaf) in sizes.into_iter().enumerate() {
        let at = (SOURCE & !(Leaf::Huge.bytes() - 1)) + index as u64 * Leaf::Huge.bytes();
        let to = if leaf == Leaf::Huge { MEMORY } else { large.address };
        let pages: Vec<_> = large.each().skip(200).take(VIEW).collect();
        let source = View { address: at + (pages[0].address - to), pages };
        if leaf == Leaf::Small {
            source.show(&mut tables)?;
        } else {
            tables.map_leaf(at, to, leaf, READ_WRITE)?;
        }
        bench
            .copies_between(&rig.memory, &queue, &source, &destination)
            .with_context(|| format!("{leaf:?}"))?;
    }
    Ok(())
}

fn five_levels(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    if !rig.has_five_levels() {
        return Err(Skip("the unit's first stage has four levels").into());
    }
    let mut tables = rig.with_records(Tables::new(&rig.memory, 5)?)?;
    let source = View::random(&rig.memory, 0x00ab_cdef_1234_5000, VIEW, &mut bench.random)?;
    let destination = View::random(&rig.memory, DESTINATION, VIEW, &mut bench.random)?;
    source.show(&mut tables)?;
    destination.show(&mut tables)?;
    rig.attach(rig.nested(parent, &tables, None)?, Some(2))?;
    let queue = rig.queue(0, Some(2));
    bench.copies_between(&rig.memory, &queue, &source, &destination)
}

/// A page each at [`SOURCE`] and [`DESTINATION`], shown to the device under PASID 2.
struct Pair<'a> {
    tables: Tables<'a>,
    source: View,
    destination: View,
    copy: Operation,
}

impl<'a> Pair<'a> {
    fn new(bench: &mut Bench<'_>, rig: &'a Rig) -> Result<Self> {
        let mut tables = rig.space()?;
        let source = View::random(&rig.memory, SOURCE, 1, &mut bench.random)?;
        let destination = View::random(&rig.memory, DESTINATION, 1, &mut bench.random)?;
        source.show(&mut tables)?;
        destination.show(&mut tables)?;
        let copy = Operation::copy(SOURCE, DESTINATION, PAGE).without_block();
        Ok(Self { tables, source, destination, copy })
    }

    fn succeeds(&self, rig: &Rig, queue: &Queue) -> Result<()> {
        success(&queue.run(&self.copy)?, PAGE)?;
        same("destination", &self.destination.read(&rig.memory), &self.source.read(&rig.memory))
    }
}

fn read_only(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut pair = Pair::new(bench, &rig)?;
    pair.tables.map(DESTINATION, pair.destination.pages[0].address, READ_ONLY)?;
    rig.attach(rig.nested(parent, &pair.tables, None)?, Some(2))?;
    let queue = rig.queue(0, Some(2));
    let before = pair.destination.read(&rig.memory);
    refused(&queue.run(&pair.copy)?, refusal(&rig), DESTINATION, true)?;
    same("destination", &pair.destination.read(&rig.memory), &before)?;
    // It can be read.
    success(&queue.run(&Operation::compare(DESTINATION, DESTINATION, PAGE).without_block())?, PAGE)
}

fn missing(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut pair = Pair::new(bench, &rig)?;
    pair.tables.unmap(SOURCE)?;
    rig.attach(rig.nested(parent, &pair.tables, None)?, Some(2))?;
    let queue = rig.queue(0, Some(2));
    refused(&queue.run(&pair.copy)?, refusal(&rig), SOURCE, false)?;
    // Entries that were not present are not cached: no invalidation is needed.
    pair.source.show(&mut pair.tables)?;
    pair.succeeds(&rig, &queue)
}

fn second_stage_hole(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut pair = Pair::new(bench, &rig)?;
    let hole = MEMORY + rig.memory.mapping().len() as u64;
    pair.tables.map(DESTINATION, hole, READ_WRITE)?;
    rig.attach(rig.nested(parent, &pair.tables, None)?, Some(2))?;
    let queue = rig.queue(0, Some(2));
    refused(&queue.run(&pair.copy)?, refusal(&rig), DESTINATION, true)
}

/// The kernel does not look at the root table's address: the device faults.
fn root_nowhere(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let root = MEMORY + rig.memory.mapping().len() as u64;
    let s1 = VtdS1 { root, address_width: 48, ..VtdS1::default() };
    let hwpt = rig.iommufd.hwpt(rig.vfio.id(), HwptKind::Nested(parent, s1), hwpt_flags::PASID, None)?;
    rig.attach(hwpt, Some(2))?;
    let queue = rig.queue(0, Some(2));
    lost(&rig, &queue, &Operation::nop())
}

/// Accessed is set on the way to what was used, dirty in what was written, and nowhere else.
fn accessed_dirty(bench: &mut Bench<'_>) -> Result<()> {
    const USED: u64 = ACCESSED | DIRTY;
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut tables = rig.space()?;
    let source = View::random(&rig.memory, SOURCE, 2, &mut bench.random)?;
    let destination = View::random(&rig.memory, DESTINATION, 2, &mut bench.random)?;
    source.show(&mut tables)?;
    destination.show(&mut tables)?;
    rig.attach(rig.nested(parent, &tables, None)?, Some(2))?;
    let queue = rig.queue(0, Some(2));
    success(&queue.run(&Operation::copy(source.page(1), destination.page(0), PAGE))?, PAGE)?;
    let rows = [
        ("read page", source.page(1), 1, ACCESSED),
        ("page beside it", source.page(0), 1, 0),
        ("written page", destination.page(0), 1, USED),
        ("page beside it", destination.page(1), 1, 0),
        ("table of the read page", source.page(1), 2, ACCESSED),
        ("root entry of the read page", source.page(1), 4, ACCESSED),
        ("table of the written page", destination.page(0), 3, ACCESSED),
    ];
    for (name, at, level, expected) in rows {
        let entry = tables.entry(at, level)?;
        ensure!(entry & USED == expected, "{name}: the entry is {entry:#x}");
    }
    Ok(())
}

fn replace(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    for pasid in [Some(2), None] {
        let (first, second) = (Pair::new(bench, &rig)?, Pair::new(bench, &rig)?);
        let old = rig.nested(parent, &first.tables, None)?;
        rig.attach(old, pasid)?;
        let queue = rig.queue(0, pasid);
        first.succeeds(&rig, &queue)?;
        rig.attach(rig.nested(parent, &second.tables, None)?, pasid)?;
        let untouched = first.destination.read(&rig.memory);
        second.succeeds(&rig, &queue).with_context(|| format!("replaced, {}", target(pasid)))?;
        same("the old destination", &first.destination.read(&rig.memory), &untouched)?;
        rig.iommufd.destroy(old).context("DESTROY of what was replaced")?;
        rig.attach(parent, pasid)?;
        let (from, to) = (&first.source.pages[0], &second.source.pages[0]);
        success(&queue.run(&Operation::copy(from.address, to.address, PAGE).without_block())?, PAGE)
            .context("the parent in its place")?;
    }
    Ok(())
}

fn detach(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    for pasid in [Some(2), None] {
        let pair = Pair::new(bench, &rig)?;
        rig.attach(rig.nested(parent, &pair.tables, None)?, pasid)?;
        let queue = rig.queue(0, pasid);
        pair.succeeds(&rig, &queue)?;
        rig.detach(pasid)?;
        lost(&rig, &queue, &pair.copy).with_context(|| target(pasid))?;
    }
    Ok(())
}

/// What is taken from the parent is gone for the nested tables on it, at once.
fn parent_unmap(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let extra = guest::sys::Mapping::anonymous(2 * PAGE)?;
    let bytes = bench.random.bytes(extra.len());
    extra.write(0, &bytes);
    let at = 0x3_0000_0000;
    rig.iommufd.map(rig.ioas, &extra, at, true)?;
    let mut pair = Pair::new(bench, &rig)?;
    pair.tables.map(SOURCE, at + PAGE_BYTES, READ_WRITE)?;
    for pasid in [Some(2), None] {
        rig.attach(rig.nested(parent, &pair.tables, None)?, pasid)?;
    }
    let queues = [rig.queue(0, Some(2)), rig.queue(1, None)];
    for queue in &queues {
        success(&queue.run(&pair.copy)?, PAGE)?;
        same("destination", &pair.destination.read(&rig.memory), &bytes[PAGE..])?;
    }
    rig.iommufd.unmap(rig.ioas, at, extra.len() as u64)?;
    for queue in &queues {
        refused(&queue.run(&pair.copy)?, refusal(&rig), SOURCE, false)?;
    }
    rig.iommufd.map(rig.ioas, &extra, at, true)?;
    success(&queues[0].run(&pair.copy)?, PAGE).context("mapped again")
}

/// Refused at the attachment, which leaves the PASID without translation.
fn strange_width(bench: &mut Bench<'_>) -> Result<()> {
    const EINVAL: i32 = 22;
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let s1 = VtdS1 { root: MEMORY, address_width: 39, ..VtdS1::default() };
    let hwpt = rig.iommufd.hwpt(rig.vfio.id(), HwptKind::Nested(parent, s1), hwpt_flags::PASID, None)?;
    let refused = rig.vfio.attach(hwpt, Some(2));
    let code = refused.as_ref().err().and_then(std::io::Error::raw_os_error);
    ensure!(code == Some(EINVAL), "attached: {refused:?}");
    Ok(())
}

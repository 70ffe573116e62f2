//! A nest parent on its own: the second stage.

use anyhow::{Context, Result, ensure};
use guest::sys::{Mapping, PAGE};

use super::{Case, Needs};
use crate::bench::{Bench, VIEW};
use crate::memory::Memory;
use crate::rig::{MEMORY, target};
use crate::view::View;

pub(super) const CASES: &[Case] = &[
    Case::new("second-stage", Needs::Translation, second_stage),
    Case::new("second-stage-large-pages", Needs::Translation, large_pages),
    Case::new("parent-refuses-read-only", Needs::Translation, refuses_read_only),
];

fn second_stage(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let source = View::plain(&rig.memory, VIEW, &mut bench.random)?;
    let destination = View::plain(&rig.memory, VIEW, &mut bench.random)?;
    for pasid in rig.targets() {
        rig.attach(parent, pasid)?;
        let queue = rig.queue(0, pasid);
        bench.copies_between(&rig.memory, &queue, &source, &destination).context(target(pasid))?;
    }
    Ok(())
}

/// Memory of huge pages at an aligned address: the kernel uses leaves of 2 MiB. The copies cross from one to the
/// next.
fn large_pages(bench: &mut Bench<'_>) -> Result<()> {
    const LARGE: usize = 512;
    let rig = bench.rig_with(Memory::new(3 * LARGE, MEMORY, true)?)?;
    let parent = rig.parent(0)?;
    rig.attach(parent, None)?;
    let queue = rig.queue(0, None);
    rig.memory.take(LARGE - 2)?;
    let source = View::plain(&rig.memory, VIEW, &mut bench.random)?;
    rig.memory.take(LARGE - VIEW)?;
    let destination = View::plain(&rig.memory, VIEW, &mut bench.random)?;
    bench.copies_between(&rig.memory, &queue, &source, &destination)
}

/// Hardware exists on which read-only leaves under a first stage are unsafe; the kernel refuses them everywhere.
fn refuses_read_only(bench: &mut Bench<'_>) -> Result<()> {
    const EINVAL: i32 = 22;
    let rig = bench.rig()?;
    rig.parent(0)?;
    let page = Mapping::anonymous(PAGE)?;
    let refused = rig.iommufd.map(rig.ioas, &page, 0x3_0000_0000, false);
    let code = refused.as_ref().err().and_then(std::io::Error::raw_os_error);
    ensure!(code == Some(EINVAL), "mapped read-only: {refused:?}");
    Ok(())
}

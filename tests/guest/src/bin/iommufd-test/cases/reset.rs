//! Resets: what is attached stays attached.

use anyhow::{Context, Result};
use guest::endpoint;

use super::{Case, Needs};
use crate::bench::{Bench, DESTINATION, SOURCE, VIEW};
use crate::view::View;

pub(super) const CASES: &[Case] =
    &[Case::new("reset-keeps-what-is-attached", Needs::Translation, keeps_what_is_attached)];

fn keeps_what_is_attached(bench: &mut Bench<'_>) -> Result<()> {
    let rig = bench.rig()?;
    let parent = rig.parent(0)?;
    let mut tables = rig.space()?;
    let source = View::random(&rig.memory, SOURCE, VIEW, &mut bench.random)?;
    let destination = View::random(&rig.memory, DESTINATION, VIEW, &mut bench.random)?;
    source.show(&mut tables)?;
    destination.show(&mut tables)?;
    let hwpt = rig.nested(parent, &tables, None)?;
    rig.attach(hwpt, None)?;
    rig.attach(hwpt, Some(2))?;
    for round in 0..2 {
        for pasid in [None, Some(2)] {
            let queue = rig.queue(0, pasid);
            bench
                .copies_between(&rig.memory, &queue, &source, &destination)
                .with_context(|| format!("after {round} resets"))?;
        }
        rig.vfio.reset().context("RESET")?;
        rig.enable()?;
        endpoint::reset(rig.registers.as_ref())?;
    }
    Ok(())
}

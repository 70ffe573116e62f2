//! The bond ends, and the driver goes, while the device works.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use guest::uio::give_to_uio;

use super::process::{all_ended, keep_busy, worker};
use super::{Case, Needs::PageRequests};
use crate::bench::{Bench, Skip};
use crate::endpoint::{self, Counters, Device};
use crate::sys::Mapping;
use crate::wait::{patience, wait_until};

pub(super) const CASES: &[Case] = &[
    Case::new("unbind-with-requests-outstanding", PageRequests, unbind).provoking(),
    Case::new("driver-unbound-with-work-in-flight", PageRequests, driver_unbound).provoking(),
];

/// Ends the bond while a queue waits for a page, and leaves the queues at work; what must stay mapped for them.
fn close_at_work(bench: &Bench<'_>) -> Result<Vec<Mapping>> {
    let device = Device::open(bench.endpoint)?;
    let (queues, memory) = keep_busy(&device)?;
    wait_until(patience(), || queues.iter().any(|queue| queue.is_waiting())).context("no queue waits")?;
    for queue in queues {
        queue.abandon();
    }
    drop(device);
    Ok(memory)
}

/// The kernel drains the requests, the device comes to rest, and a process can be bound again.
fn unbind(bench: &mut Bench<'_>) -> Result<()> {
    for _ in 0..3 {
        let before = Counters::read(bench.endpoint.peek()?.as_ref());
        let memory = close_at_work(bench)?;
        all_ended(bench.endpoint, before, memory.len() as u64)?;
        worker(bench.endpoint).context("in the same process, afterwards")?;
    }
    Ok(())
}

/// The driver goes too, as soon as the bond has ended: before that, the kernel warns of a bond that nobody is there to
/// end. The device may no longer reach memory then, and what it still had to do ends.
fn driver_unbound(bench: &mut Bench<'_>) -> Result<()> {
    if !bench.endpoint.is_shared() {
        bail!(Skip("a model has no driver"));
    }
    let folder = endpoint::find()?;
    if has_interrupts(&folder) {
        bail!(Skip("this driver never gives interrupts back; where the function has none, it can go"));
    }
    for _ in 0..3 {
        let before = Counters::read(bench.endpoint.peek()?.as_ref());
        let memory = close_at_work(bench)?;
        unbind_driver(&folder)?;
        ensure!(!folder.join("uio").exists(), "the driver has left its node behind");
        all_ended(bench.endpoint, before, memory.len() as u64)?;
        drop(memory);
        give_to_uio(&folder).context("the driver does not come back")?;
        worker(bench.endpoint).context("with the driver back")?;
    }
    Ok(())
}

fn has_interrupts(folder: &Path) -> bool {
    fs::read_dir(folder.join("msi_irqs")).is_ok_and(|mut vectors| vectors.next().is_some())
}

fn unbind_driver(folder: &Path) -> Result<()> {
    let name = folder.file_name().context("a function without a name")?;
    fs::write(folder.join("driver/unbind"), name.as_encoded_bytes()).context("the driver does not go")
}

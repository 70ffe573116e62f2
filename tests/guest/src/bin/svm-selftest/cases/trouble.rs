//! Page requests when the queue for them is full.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::process::worker;
use super::{Case, Needs};
use crate::bench::{Bench, Skip, copy_all, fresh, same, success};
use crate::endpoint::{Device, Operation, Registers};
use crate::model;
use crate::sys::PAGE;

use Needs::PageRequests;

pub(super) const CASES: &[Case] =
    &[Case::new("page-request-overflow", PageRequests, page_request_overflow).provoking()];

/// The endpoint's switchboard for misbehaviour (devices/src/svm/misbehaviour/README.md); dropping it puts
/// everything off.
struct Switchboard {
    registers: Arc<dyn Registers>,
    /// Floods before this one.
    before: u32,
}

impl Switchboard {
    const KINDS: usize = 0x400;
    const SELECT: usize = 0x40c;
    const ARGUMENT: usize = 0x410;
    const HOW: usize = 0x414;
    const HAPPENED: usize = 0x418;
    const COMMAND: usize = 0x41c;
    const ALL_OFF: u32 = 1;
    const REQUEST_FLOOD: u32 = 9;

    /// One flood of `requests` page requests with the next descriptor that asks for a page.
    fn flood_once(registers: Arc<dyn Registers>, requests: u32) -> Result<Self> {
        const COUNTED: u32 = 2;
        const ONCE: u32 = 1 << 8;
        if registers.read32(Self::KINDS) >> Self::REQUEST_FLOOD & 1 == 0 {
            return Err(Skip("this endpoint makes no flood of page requests").into());
        }
        registers.write32(Self::SELECT, Self::REQUEST_FLOOD);
        let before = registers.read32(Self::HAPPENED);
        registers.write32(Self::ARGUMENT, requests);
        registers.write32(Self::HOW, COUNTED | ONCE);
        Ok(Self { registers, before })
    }

    fn happened(&self) -> u32 {
        self.registers.write32(Self::SELECT, Self::REQUEST_FLOOD);
        self.registers.read32(Self::HAPPENED).wrapping_sub(self.before)
    }
}

impl Drop for Switchboard {
    fn drop(&mut self) {
        self.registers.write32(Self::COMMAND, Self::ALL_OFF);
    }
}

/// One queue asks for a page thousands of times at once, more than the kernel's queue holds, while all the others
/// ask for theirs. Every descriptor still gets its pages.
fn page_request_overflow(bench: &mut Bench<'_>) -> Result<()> {
    const FLOOD: u32 = 4096;
    const PAGES: usize = 8;
    let device = Device::open(bench.endpoint)?;
    let switchboard = Switchboard::flood_once(bench.endpoint.peek()?, FLOOD)?;
    let flooded = fresh(1)?;
    let flooder = device.queue(0)?;
    let mut parts = Vec::new();
    for index in 1..device.queues() {
        let (source, bytes) = bench.resident(PAGES)?;
        parts.push((device.queue(index)?, source, bytes, fresh(PAGES)?));
    }
    let flood = flooder.start(&Operation::fill(flooded.address(), PAGE, 0xf1));
    let tickets: Vec<_> =
        parts.iter().map(|(queue, source, _, target)| queue.start(&copy_all(source, target))).collect();
    success(&flooder.wait(flood)?, PAGE).context("the flood's own descriptor")?;
    same("the flood's own page", &flooded.read_all(), &model::fill(0xf1, PAGE))?;
    for ((queue, _, bytes, target), ticket) in parts.iter().zip(tickets) {
        success(&queue.wait(ticket)?, bytes.len())?;
        same("destination", &target.read_all(), bytes)?;
    }
    let happened = switchboard.happened();
    ensure!(happened == 1, "{happened} floods");
    bench.notes.push(format!("{} page requests sent", device.counters().page_requests));
    drop((flooder, parts, switchboard, device));
    worker(bench.endpoint).context("afterwards")
}

//! What every case works with.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use guest::endpoint::{Completion, Counters, Operation, Queue, Reason, Status};
use guest::expect::{describe, same, success};
use guest::model::Random;
use guest::sys::PAGE;

use crate::memory::Memory;
use crate::rig::{MEMORY, Rig};
use crate::view::View;

/// Pages of an ordinary case's memory.
const PAGES: usize = 1024;
/// Where copies read, in a device's address space.
pub(crate) const SOURCE: u64 = 0x1234_5678_9000;
/// Where copies write: two pages below a multiple of 1 GiB, so that a view crosses tables of every level.
pub(crate) const DESTINATION: u64 = 0x7fff_3fff_e000;
/// Pages of a view.
pub(crate) const VIEW: usize = 5;
/// Offsets and lengths that start, end and cross where it matters.
const SHAPES: &[(usize, usize, usize)] =
    &[(0, 0, VIEW * PAGE), (1, 0, PAGE), (PAGE - 3, PAGE - 5, 3 * PAGE), (5, 2 * PAGE - 1, 2)];

/// The surroundings of a case.
pub(crate) struct Bench<'a> {
    /// The device's node.
    pub(crate) node: &'a Path,
    /// Random numbers of this case.
    pub(crate) random: Random,
    /// Lines for whoever reads the output, without the leading `# `.
    pub(crate) notes: &'a mut Vec<String>,
    /// Page requests so far.
    pub(crate) asked: Rc<Cell<u64>>,
}

impl Bench<'_> {
    /// The endpoint, freshly bound.
    pub(crate) fn rig(&self) -> Result<Rig> {
        self.rig_with(Memory::new(PAGES, MEMORY, false)?)
    }

    /// The endpoint, freshly bound, with memory of the case's own.
    pub(crate) fn rig_with(&self, memory: Memory) -> Result<Rig> {
        Rig::open(self.node, self.asked.clone(), memory)
    }

    /// Copies of every shape between two views that the device sees already. No page may be asked for.
    pub(crate) fn copies_between(
        &mut self,
        memory: &Memory,
        queue: &Queue,
        source: &View,
        destination: &View,
    ) -> Result<()> {
        for &(from, to, length) in SHAPES {
            let bytes = self.random.bytes(source.len());
            source.write(memory, &bytes);
            let mut expected = destination.read(memory);
            let operation =
                Operation::copy(source.address + from as u64, destination.address + to as u64, length);
            let shape = format!("{length:#x} bytes from {from:#x} to {to:#x}");
            let completion = queue.run(&operation)?;
            success(&completion, length).with_context(|| shape.clone())?;
            ensure!(completion.page_requests == 0, "{shape}: {} page requests", completion.page_requests);
            expected[to..to + length].copy_from_slice(&bytes[from..from + length]);
            same(&format!("destination of {shape}"), &destination.read(memory), &expected)?;
            same(&format!("source of {shape}"), &source.read(memory), &bytes)?;
        }
        Ok(())
    }
}

/// The reason of a fault at a translation that does not allow the access: of the endpoint if it asked for the
/// translation, of the unit if the access itself was refused.
pub(crate) fn refusal(rig: &Rig) -> Reason {
    if rig.status() & guest::endpoint::global::ATS_ENABLED != 0 {
        Reason::NotAccessible
    } else {
        Reason::Refused
    }
}

/// The operation faulted in the page of `address`.
pub(crate) fn refused(completion: &Completion, reason: Reason, address: u64, write: bool) -> Result<()> {
    let page = |address: u64| address / PAGE as u64;
    let good = completion.status == Status::Fault
        && completion.reason == reason
        && completion.write == write
        && page(completion.fault_address) == page(address);
    let access = if write { "write" } else { "read" };
    ensure!(good, "expected {reason:?} at the {access} of {address:#x}: {}", describe(completion));
    Ok(())
}

/// Starts an operation that cannot even leave a record, and sees that it does not.
pub(crate) fn lost(rig: &Rig, queue: &Queue, operation: &Operation) -> Result<()> {
    let before = Counters::read(rig.registers.as_ref()).records_lost;
    let ticket = queue.start(operation);
    queue.rest()?;
    ensure!(queue.poll(ticket).is_none(), "the device reached memory: {:?}", queue.poll(ticket));
    let lost = Counters::read(rig.registers.as_ref()).records_lost - before;
    ensure!(lost == 1, "{lost} records are lost, expected one");
    ensure!(
        queue.record_lost() == queue.record_address(ticket),
        "another record is lost: {:#x}",
        queue.record_lost()
    );
    Ok(())
}

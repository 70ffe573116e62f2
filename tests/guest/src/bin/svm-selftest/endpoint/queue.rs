//! One queue: a portal to submit to, and records to wait for.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Registers;
use super::descriptor::{Completion, DESCRIPTOR_WORDS, Operation, RECORD_BYTES};
use super::regs::{control, portal};
use crate::sys::{Mapping, PAGE};
use crate::wait::{patience, wait_until};

/// Records are used in turn; more than any queue holds at once.
const RECORDS: usize = 2048;
/// How long an aborted queue may take to rest.
const REST: Duration = Duration::from_secs(20);

/// How a queue is set up before it is enabled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueSetup {
    /// PASID of its requests; without one they carry none.
    pub(crate) pasid: Option<u32>,
    /// MSI-X vector of its interrupts.
    pub(crate) vector: Option<u32>,
}

/// A descriptor under way.
#[derive(Clone, Copy, Debug)]
#[must_use = "a descriptor that nobody waits for may outlive its buffers"]
pub(crate) struct Ticket {
    slot: usize,
    tag: u32,
}

/// An enabled queue. Dropping it disables it and waits until the device has let go of all memory.
pub(crate) struct Queue {
    registers: Arc<dyn Registers>,
    index: usize,
    records: Arc<Mapping>,
    next: Cell<u32>,
    abandoned: bool,
}

impl Queue {
    pub(super) fn enable(registers: Arc<dyn Registers>, index: usize, setup: QueueSetup) -> Result<Self> {
        let records = Mapping::anonymous(RECORDS * RECORD_BYTES).context("no memory for records")?;
        // The records' pages are there and writable from the start: only what a case means to
        // fault in is asked for.
        for page in (0..records.len()).step_by(PAGE) {
            records.store(page, 0);
        }
        let records = Arc::new(records);
        let queue = Self { registers, index, records, next: Cell::new(0), abandoned: false };
        let valid = |value: Option<u32>| value.map_or(0, |value| value | control::VALID);
        queue.write_control(control::PASID, valid(setup.pasid));
        queue.write_control(control::IRQ, valid(setup.vector));
        queue.write_control(control::CTRL, 1);
        Ok(queue)
    }

    /// Submits an operation.
    pub(crate) fn start(&self, operation: &Operation) -> Ticket {
        let tag = self.next.get();
        self.next.set(tag.wrapping_add(1));
        let slot = usize::try_from(tag).unwrap_or(0) % RECORDS;
        self.records.write(slot * RECORD_BYTES, &[0; RECORD_BYTES]);
        self.submit(&operation.encode(tag, self.records.at(slot * RECORD_BYTES)));
        Ticket { slot, tag }
    }

    /// Submits the words of a descriptor, whatever they say.
    pub(crate) fn submit(&self, words: &[u64; DESCRIPTOR_WORDS]) {
        for (index, word) in words.iter().enumerate() {
            self.registers.write64(portal::offset(self.index, portal::DESCRIPTOR) + index * 8, *word);
        }
    }

    /// How a descriptor ended, if it did.
    pub(crate) fn poll(&self, ticket: Ticket) -> Option<Completion> {
        poll_record(&self.records, ticket.slot * RECORD_BYTES)
    }

    /// Where a descriptor's record is.
    pub(crate) fn record_address(&self, ticket: Ticket) -> u64 {
        self.records.at(ticket.slot * RECORD_BYTES)
    }

    /// Waits until a descriptor ends.
    pub(crate) fn wait(&self, ticket: Ticket) -> Result<Completion> {
        let mut end = None;
        wait_until(patience(), || {
            end = self.poll(ticket);
            end.is_some()
        })
        .with_context(|| format!("queue {}, descriptor {} does not end", self.index, ticket.tag))?;
        let completion = end.context("no record")?;
        ensure!(completion.tag == ticket.tag, "the record of {} says {completion:?}", ticket.tag);
        Ok(completion)
    }

    /// Submits and waits.
    pub(crate) fn run(&self, operation: &Operation) -> Result<Completion> {
        self.wait(self.start(operation))
    }

    /// Whether the descriptor at work waits for a page.
    pub(crate) fn is_waiting(&self) -> bool {
        self.read_control(control::STATUS) & control::WAITING != 0
    }

    /// Waits until everything submitted has ended, its record included: a descriptor's place is free
    /// a moment before.
    pub(crate) fn rest(&self) -> Result<()> {
        wait_until(patience(), || self.read_control(control::STATUS) & control::ACTIVE == 0)
            .with_context(|| format!("queue {} does not come to rest", self.index))
    }

    /// Descriptors under way.
    pub(crate) fn occupancy(&self) -> u32 {
        self.read_control(control::OCCUPANCY)
    }

    /// Page requests of this queue.
    pub(crate) fn page_requests(&self) -> u64 {
        self.registers.read64(control::offset(self.index, control::PAGE_REQUESTS))
    }

    /// Address of the last record that could not be written.
    pub(crate) fn record_lost(&self) -> u64 {
        self.registers.read64(control::offset(self.index, control::RECORD_LOST))
    }

    /// Descriptors that can be submitted now.
    pub(crate) fn free(&self) -> u32 {
        self.registers.read32(portal::offset(self.index, portal::FREE))
    }

    /// Submissions dropped since power-on.
    pub(crate) fn dropped(&self) -> u32 {
        self.registers.read32(portal::offset(self.index, portal::DROPPED))
    }

    /// Disables the queue, which aborts what is under way.
    pub(crate) fn disable(&self) -> Result<()> {
        self.write_control(control::CTRL, 0);
        wait_until(REST, || self.read_control(control::STATUS) == 0)
            .with_context(|| format!("queue {} does not come to rest", self.index))
    }

    /// Lets go of the queue and leaves the device at work, as a program without manners does. The
    /// records stay mapped for ever, since the device may still write them.
    pub(crate) fn abandon(mut self) {
        self.abandoned = true;
        std::mem::forget(self.records.clone());
    }

    fn read_control(&self, register: usize) -> u32 {
        self.registers.read32(control::offset(self.index, register))
    }

    fn write_control(&self, register: usize, value: u32) {
        self.registers.write32(control::offset(self.index, register), value);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if !self.abandoned
            && let Err(error) = self.disable()
        {
            println!("# {error:#}");
        }
    }
}

/// Reads the record at `offset` of `memory`, if it is complete.
pub(crate) fn poll_record(memory: &Mapping, offset: usize) -> Option<Completion> {
    let first = memory.load(offset);
    let status_is_there = first & 0xff != 0;
    let word = |index: usize| memory.load(offset + index * 8);
    status_is_there.then(|| Completion::decode([first, word(1), word(2), word(3)])).flatten()
}

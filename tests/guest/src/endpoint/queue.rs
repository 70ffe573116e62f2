//! Queues, and the pages through which they get their work.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Registers;
use super::descriptor::{Completion, DESCRIPTOR_WORDS, Operation, RECORD_BYTES};
use super::regs::{control, portal, window};
use crate::sys::{Mapping, PAGE};
use crate::wait::{patience, wait_until};

/// Records of a queue with memory of its own; more than any queue holds at once.
const RECORDS: usize = 2048;
/// How long an aborted queue may take to rest.
const REST: Duration = Duration::from_secs(60);

/// How a queue is set up before it is enabled.
#[derive(Clone, Copy, Debug)]
pub struct QueueSetup {
    /// PASID of its requests; without one they carry none.
    pub pasid: Option<u32>,
    /// MSI-X vector of its interrupts.
    pub vector: Option<u32>,
}

/// Where a queue's completion records go. They are used in turn.
#[derive(Clone, Debug)]
pub struct Records {
    /// The memory, whole records only; more of them than descriptors are ever under way.
    pub memory: Arc<Mapping>,
    /// What the device calls its first byte.
    pub device_address: u64,
}

impl Records {
    /// Fresh memory that the device calls by the same addresses as this process. The pages are there and
    /// writable from the start: only what a case means to fault in is asked for.
    ///
    /// # Errors
    /// There is no memory.
    pub fn own() -> Result<Self> {
        let memory = Mapping::anonymous(RECORDS * RECORD_BYTES).context("no memory for records")?;
        let records = Self { device_address: memory.address(), memory: Arc::new(memory) };
        records.touch();
        Ok(records)
    }

    fn touch(&self) {
        for page in (0..self.memory.len()).step_by(PAGE) {
            self.memory.store(page, 0);
        }
    }
}

/// A descriptor under way.
#[derive(Clone, Copy, Debug)]
#[must_use = "a descriptor that nobody waits for may outlive its buffers"]
pub struct Ticket {
    slot: usize,
    tag: u32,
}

/// A portal or window page: where descriptors go in, and records to wait for.
pub struct Portal {
    registers: Arc<dyn Registers>,
    /// Of the page, in BAR0.
    page: usize,
    records: Records,
    next: Cell<u32>,
}

impl Portal {
    fn new(registers: Arc<dyn Registers>, page: usize, records: Records) -> Self {
        Self { registers, page, records, next: Cell::new(0) }
    }

    /// Submits an operation.
    pub fn start(&self, operation: &Operation) -> Ticket {
        let (ticket, words) = self.prepare(operation);
        self.submit(&words);
        ticket
    }

    /// A descriptor with a record of its own, for somebody else to submit.
    pub fn prepare(&self, operation: &Operation) -> (Ticket, [u64; DESCRIPTOR_WORDS]) {
        let tag = self.next.get();
        self.next.set(tag.wrapping_add(1));
        let slot = usize::try_from(tag).unwrap_or(0) % (self.records.memory.len() / RECORD_BYTES);
        self.records.memory.write(slot * RECORD_BYTES, &[0; RECORD_BYTES]);
        let ticket = Ticket { slot, tag };
        (ticket, operation.encode(tag, self.record_address(ticket)))
    }

    /// Brings the records' pages back after something took them away or made them shared, as a fork does.
    pub fn touch_records(&self) {
        self.records.touch();
    }

    /// Submits the words of a descriptor, whatever they say.
    pub fn submit(&self, words: &[u64; DESCRIPTOR_WORDS]) {
        for (index, word) in words.iter().enumerate() {
            self.registers.write64(self.page + portal::DESCRIPTOR + index * 8, *word);
        }
    }

    /// How a descriptor ended, if it did.
    pub fn poll(&self, ticket: Ticket) -> Option<Completion> {
        poll_record(&self.records.memory, ticket.slot * RECORD_BYTES)
    }

    /// What the device calls the place of a descriptor's record.
    pub fn record_address(&self, ticket: Ticket) -> u64 {
        self.records.device_address + (ticket.slot * RECORD_BYTES) as u64
    }

    /// Waits until a descriptor ends.
    pub fn wait(&self, ticket: Ticket) -> Result<Completion> {
        let mut end = None;
        wait_until(patience(), || {
            end = self.poll(ticket);
            end.is_some()
        })
        .with_context(|| format!("page {:#x}, descriptor {} does not end", self.page, ticket.tag))?;
        let completion = end.context("no record")?;
        ensure!(completion.tag == ticket.tag, "the record of {} says {completion:?}", ticket.tag);
        Ok(completion)
    }

    /// Submits and waits.
    pub fn run(&self, operation: &Operation) -> Result<Completion> {
        self.wait(self.start(operation))
    }

    /// Descriptors that can be submitted now.
    pub fn free(&self) -> u32 {
        self.registers.read32(self.page + portal::FREE)
    }

    /// Submissions dropped since power-on.
    pub fn dropped(&self) -> u32 {
        self.registers.read32(self.page + portal::DROPPED)
    }

    /// What became of the last submission: a code of [`portal`], and its number.
    pub fn outcome(&self) -> (u32, u32) {
        let outcome = self.registers.read32(self.page + portal::OUTCOME);
        (outcome & 0xff, outcome >> 8)
    }
}

/// An enabled window to a shared queue. Dropping it disables it; what came through it is left to the queue.
pub struct Window {
    portal: Portal,
    index: usize,
}

impl Window {
    /// Binds window `index` to a shared queue and a PASID.
    #[must_use]
    pub fn enable(
        registers: Arc<dyn Registers>,
        index: usize,
        queue: usize,
        pasid: u32,
        records: Records,
    ) -> Self {
        registers.write32(window::control(index), 0);
        registers.write32(window::pasid(index), pasid | control::VALID);
        // Lossless: fewer than 16 queues.
        registers.write32(window::control(index), 1 | u32::try_from(queue).unwrap_or(0) << 8);
        Self { portal: Portal::new(registers, window::offset(index, 0), records), index }
    }
}

impl Deref for Window {
    type Target = Portal;

    fn deref(&self) -> &Portal {
        &self.portal
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.portal.registers.write32(window::control(self.index), 0);
    }
}

/// An enabled queue. Dropping it disables it and waits until the device has let go of all memory.
pub struct Queue {
    portal: Portal,
    index: usize,
    abandoned: bool,
}

impl Deref for Queue {
    type Target = Portal;

    fn deref(&self) -> &Portal {
        &self.portal
    }
}

impl Queue {
    /// Enables queue `index`.
    #[must_use]
    pub fn enable(registers: Arc<dyn Registers>, index: usize, setup: QueueSetup, records: Records) -> Self {
        let queue = Self::new(registers, index, records);
        let valid = |value: Option<u32>| value.map_or(0, |value| value | control::VALID);
        queue.write_control(control::PASID, valid(setup.pasid));
        queue.write_control(control::IRQ, valid(setup.vector));
        queue.write_control(control::CTRL, control::ENABLE);
        queue
    }

    /// Enables queue `index` for windows; its own portal takes nothing.
    #[must_use]
    pub fn share(registers: Arc<dyn Registers>, index: usize, records: Records) -> Self {
        let queue = Self::new(registers, index, records);
        queue.write_control(control::IRQ, 0);
        queue.write_control(control::CTRL, control::ENABLE | control::SHARED);
        queue
    }

    fn new(registers: Arc<dyn Registers>, index: usize, records: Records) -> Self {
        let portal = Portal::new(registers, portal::offset(index, 0), records);
        Self { portal, index, abandoned: false }
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether the descriptor at work waits for a page.
    pub fn is_waiting(&self) -> bool {
        self.read_control(control::STATUS) & control::WAITING != 0
    }

    /// Waits until everything submitted has ended, its record included: a descriptor's place is free
    /// a moment before.
    pub fn rest(&self) -> Result<()> {
        wait_until(patience(), || self.read_control(control::STATUS) & control::ACTIVE == 0)
            .with_context(|| format!("queue {} does not come to rest", self.index))
    }

    /// Descriptors under way.
    pub fn occupancy(&self) -> u32 {
        self.read_control(control::OCCUPANCY)
    }

    /// Page requests of this queue.
    pub fn page_requests(&self) -> u64 {
        self.registers.read64(control::offset(self.index, control::PAGE_REQUESTS))
    }

    /// Bytes that its descriptors completed.
    pub fn bytes(&self) -> u64 {
        self.registers.read64(control::offset(self.index, control::BYTES))
    }

    /// Gives it a share of the engines in proportion to `priority + 1`.
    pub fn set_priority(&self, priority: u32) {
        self.write_control(control::PRIORITY, priority);
    }

    /// Address of the last record that could not be written.
    pub fn record_lost(&self) -> u64 {
        self.registers.read64(control::offset(self.index, control::RECORD_LOST))
    }

    /// Disables the queue, which aborts what is under way.
    pub fn disable(&self) -> Result<()> {
        self.write_control(control::CTRL, 0);
        wait_until(REST, || self.read_control(control::STATUS) == 0)
            .with_context(|| format!("queue {} does not come to rest", self.index))
    }

    /// Lets go of the queue and leaves the device at work, as a program without manners does. The
    /// records stay mapped for ever, since the device may still write them.
    pub fn abandon(mut self) {
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
pub fn poll_record(memory: &Mapping, offset: usize) -> Option<Completion> {
    let first = memory.load(offset);
    let status_is_there = first & 0xff != 0;
    let word = |index: usize| memory.load(offset + index * 8);
    status_is_there.then(|| Completion::decode([first, word(1), word(2), word(3)])).flatten()
}

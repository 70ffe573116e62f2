//! The endpoint, opened by this process.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::queue::{Queue, QueueSetup, Records, Window};
use super::regs::{ID, control, global};
use super::{Endpoint, Registers, Session};
use crate::sys;
use crate::wait::wait_until;

/// How long a queue may take to come to rest.
const REST: Duration = Duration::from_secs(60);

/// Counters of the whole function since power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Descriptors that ended.
    pub completed: u64,
    /// Page requests sent.
    pub page_requests: u64,
    /// Submissions dropped.
    pub dropped: u64,
    /// Completion records that could not be written.
    pub records_lost: u64,
    /// Page request groups sent.
    pub page_groups: u64,
    /// Responses to them, of all kinds.
    pub responses: u64,
}

impl Counters {
    /// Reads them.
    pub fn read(registers: &dyn Registers) -> Self {
        Self {
            completed: registers.read64(global::COMPLETED),
            page_requests: registers.read64(global::PAGE_REQUESTS),
            dropped: registers.read64(global::DROPPED),
            records_lost: registers.read64(global::RECORDS_LOST),
            page_groups: registers.read64(global::PAGE_GROUPS),
            responses: global::RESPONSES.map(|register| registers.read64(register)).iter().sum(),
        }
    }
}

/// One page request from end to end, in nanoseconds of the device's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// Miss, sent, queued, response, retry.
    pub moments: [u64; 5],
    /// The page.
    pub address: u64,
    /// The queue that asked.
    pub queue: u32,
    /// Counts such page requests.
    pub sequence: u32,
}

/// The endpoint while this process is bound to it.
pub struct Device {
    registers: Arc<dyn Registers>,
    pasid: u32,
    interrupts: File,
}

impl Device {
    /// Opens and resets the endpoint. What an earlier process left behind is stopped before this
    /// one's address space is bound, since PASIDs are used again.
    pub fn open(endpoint: &dyn Endpoint) -> Result<Self> {
        reset(endpoint.peek()?.as_ref()).context("before binding")?;
        let Session { registers, pasid, interrupts } = endpoint.open()?;
        identify(registers.as_ref())?;
        Ok(Self { registers, pasid, interrupts })
    }

    /// What names this process's address space.
    pub fn pasid(&self) -> u32 {
        self.pasid
    }

    /// How many queues there are.
    pub fn queues(&self) -> usize {
        queues(self.registers.as_ref())
    }

    /// Descriptors that a queue holds.
    pub fn depth(&self) -> usize {
        1 << ((self.registers.read32(global::CAPS) >> 8) & 0xff)
    }

    /// The open file that holds the bond.
    pub fn file(&self) -> RawFd {
        self.interrupts.as_raw_fd()
    }

    /// The global STATUS register.
    pub fn status(&self) -> u32 {
        self.registers.read32(global::STATUS)
    }

    /// The function's counters.
    pub fn counters(&self) -> Counters {
        Counters::read(self.registers.as_ref())
    }

    /// Enables a queue for this process's address space.
    pub fn queue(&self, index: usize) -> Result<Queue> {
        self.queue_with(index, QueueSetup { pasid: Some(self.pasid), vector: None })
    }

    /// Enables a queue.
    pub fn queue_with(&self, index: usize, setup: QueueSetup) -> Result<Queue> {
        ensure!(index < self.queues(), "the endpoint has no queue {index}");
        Ok(Queue::enable(self.registers.clone(), index, setup, Records::own()?))
    }

    /// Enables a queue for windows.
    pub fn shared_queue(&self, index: usize) -> Result<Queue> {
        ensure!(index < self.queues(), "the endpoint has no queue {index}");
        Ok(Queue::share(self.registers.clone(), index, Records::own()?))
    }

    /// Opens a window to a shared queue, for any PASID.
    pub fn window(&self, index: usize, queue: &Queue, pasid: u32) -> Result<Window> {
        Ok(Window::enable(self.registers.clone(), index, queue.index(), pasid, Records::own()?))
    }

    /// Engines that the endpoint has.
    pub fn engines(&self) -> u32 {
        self.registers.read32(global::LIMITS) & 0xff
    }

    /// Leaves this many engines in use.
    pub fn use_engines(&self, engines: u32) {
        self.registers.write32(global::ENGINES, engines);
    }

    /// Starts a command about a queue or, with `BY_PASID`, a PASID.
    pub fn start_command(&self, operation: u32, operand: u32) {
        self.registers.write32(global::COMMAND, operation | operand << 8);
    }

    /// How the last command stands: one of `COMMAND_ACTIVE`, `COMMAND_DONE`, `COMMAND_REFUSED`.
    pub fn command_state(&self) -> u32 {
        self.registers.read32(global::COMMAND_STATUS) & global::STATE
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It does not end, or was refused.
    pub fn command(&self, operation: u32, operand: u32) -> Result<()> {
        self.start_command(operation, operand);
        wait_until(REST, || self.command_state() != global::COMMAND_ACTIVE)
            .with_context(|| format!("command {operation:#x} of {operand} does not end"))?;
        let state = self.command_state();
        ensure!(state == global::COMMAND_DONE, "command {operation:#x} of {operand} ended in state {state}");
        Ok(())
    }

    /// The most recent page request that ended well; `None` before the first.
    pub fn timeline(&self) -> Result<Option<Timeline>> {
        for _ in 0..100 {
            let before = self.registers.read64(global::SEQUENCE);
            let moments = std::array::from_fn(|index| self.registers.read64(global::MISS + index * 8));
            let address = self.registers.read64(global::ADDRESS);
            if before == self.registers.read64(global::SEQUENCE) {
                let half = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or_default();
                let (queue, sequence) = (half(before), half(before >> 32));
                return Ok((sequence != 0).then_some(Timeline { moments, address, queue, sequence }));
            }
        }
        bail!("the timeline never stood still")
    }

    /// Waits for an interrupt that has not been seen yet; returns how many there were so far.
    pub fn interrupt(&mut self, limit: Duration) -> Result<Option<u32>> {
        if !sys::poll_readable(&self.interrupts, limit)? {
            return Ok(None);
        }
        let mut count = [0; 4];
        self.interrupts.read_exact(&mut count).context("cannot read the interrupt count")?;
        Ok(Some(u32::from_ne_bytes(count)))
    }
}

/// Checks that the registers are those of an SVM endpoint.
///
/// # Errors
/// They are not, or are of another version.
pub fn identify(registers: &dyn Registers) -> Result<()> {
    let (id, version) = (registers.read32(global::ID), registers.read32(global::VERSION));
    ensure!(id == ID && (1..=2).contains(&version), "unknown endpoint: id {id:#x}, version {version}");
    Ok(())
}

/// Stops all queues and waits until they rest.
///
/// # Errors
/// They do not.
pub fn reset(registers: &dyn Registers) -> Result<()> {
    registers.write32(global::CTRL, 1);
    rest(registers)
}

/// Waits until no queue has anything under way.
pub fn rest(registers: &dyn Registers) -> Result<()> {
    for queue in 0..queues(registers) {
        let active = || registers.read32(control::offset(queue, control::STATUS)) & control::ACTIVE != 0;
        wait_until(REST, || !active()).with_context(|| format!("queue {queue} does not come to rest"))?;
    }
    Ok(())
}

fn queues(registers: &dyn Registers) -> usize {
    let count = registers.read32(global::CAPS) & 0xff;
    usize::try_from(count).unwrap_or(0)
}

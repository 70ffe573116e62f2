//! Commands of privileged software: drain and abort (section 8.1).
//!
//! A command notes, for each queue, the number of the last descriptor that it is about. Queues end their descriptors
//! in order, so it is done when every queue has got so far.

use std::sync::atomic::{AtomicBool, Ordering};

use arbitrary_int::u4;
use iommu_core::Pasid;
use parking_lot::Mutex;

use super::device::Device;
use super::queue::Selection;
use super::spec::{Command, CommandOperation, CommandState, CommandStatus, MAX_QUEUES};

#[derive(Default)]
struct State {
    command: Command,
    state: CommandState,
    overrun: bool,
    /// Per queue, what it has to have finished.
    targets: [u64; MAX_QUEUES as usize],
}

/// The command register.
#[derive(Default)]
pub struct Commands {
    state: Mutex<State>,
    /// One is under way. What workers look at after each descriptor.
    active: AtomicBool,
}

fn decode(command: Command, queues: usize) -> Option<(CommandOperation, Selection)> {
    let operation = [CommandOperation::Drain, CommandOperation::Abort]
        .into_iter()
        .find(|&operation| operation as u8 == command.operation().value())?;
    let operand = command.operand().value();
    if command.by_pasid() {
        return Some((operation, Selection::Pasid(Pasid::truncate(operand))));
    }
    let queue = u8::try_from(operand).ok().filter(|&queue| usize::from(queue) < queues)?;
    Some((operation, Selection::Queue(queue)))
}

impl Commands {
    /// COMMAND.
    #[must_use]
    pub fn command(&self) -> u32 {
        self.state.lock().command.raw_value()
    }

    /// COMMAND_STATUS.
    #[must_use]
    pub fn status(&self) -> u32 {
        let state = self.state.lock();
        let status =
            CommandStatus::DEFAULT.with_state(u4::new(state.state as u8)).with_overrun(state.overrun);
        status.raw_value()
    }

    /// Writes COMMAND: starts one, unless one is under way.
    pub fn start(&self, device: &Device, value: u32) {
        let mut state = self.state.lock();
        if state.state == CommandState::Active {
            state.overrun = true;
            return;
        }
        let command = Command::new_with_raw_value(value & Command::WRITABLE);
        *state = State { command, ..State::default() };
        let Some((operation, selection)) = decode(command, device.queues.len()) else {
            state.state = CommandState::Refused;
            drop(state);
            return device.command_ended(command.interrupt());
        };
        state.state = CommandState::Active;
        // Before the queues are looked at: a descriptor that ends after that is looked for by its worker.
        self.active.store(true, Ordering::SeqCst);
        let abort = operation == CommandOperation::Abort;
        for (target, queue) in state.targets.iter_mut().zip(&device.queues) {
            *target = queue.select(selection, abort);
        }
        drop(state);
        if abort {
            device.pri.wake();
        }
        self.progress(device);
    }

    /// A descriptor has ended: perhaps the command has, too.
    pub fn progress(&self, device: &Device) {
        if !self.active.load(Ordering::SeqCst) {
            return;
        }
        let mut state = self.state.lock();
        let mut pairs = state.targets.iter().zip(&device.queues);
        if state.state != CommandState::Active
            || !pairs.all(|(target, queue)| queue.finished_up_to() >= *target)
        {
            return;
        }
        state.state = CommandState::Done;
        self.active.store(false, Ordering::SeqCst);
        let interrupt = state.command.interrupt();
        drop(state);
        device.command_ended(interrupt);
    }

    /// As at power-on.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        *state = State::default();
        self.active.store(false, Ordering::SeqCst);
    }
}

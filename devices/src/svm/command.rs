//! Commands of privileged software: drain and abort (section 8.1).
//!
//! A command notes, for each queue, the number of the last descriptor that it is about. Queues end their descriptors
//! in order, so it is done when every queue has got so far.

use std::sync::atomic::{AtomicBool, Ordering};

use arbitrary_int::u4;
use iommu_core::Pasid;
use parking_lot::Mutex;

use super::queue::{Queue, Selection};
use super::spec::{Command, CommandOperation, CommandState, CommandStatus, MAX_QUEUES};

#[derive(Default)]
struct State {
    command: Command,
    state: CommandState,
    overrun: bool,
    /// Per queue, what it has to have finished.
    targets: [u64; MAX_QUEUES as usize],
}

/// A command has ended, or was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Send vector 0.
    pub interrupt: bool,
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

    /// Writes COMMAND: starts one, unless one is under way. The caller wakes who waits for a page response, then looks
    /// for [`Self::progress`].
    pub fn start(&self, value: u32, queues: &[Queue]) -> Option<Ended> {
        let mut state = self.state.lock();
        if state.state == CommandState::Active {
            state.overrun = true;
            return None;
        }
        let command = Command::new_with_raw_value(value & Command::WRITABLE);
        *state = State { command, ..State::default() };
        let Some((operation, selection)) = decode(command, queues.len()) else {
            state.state = CommandState::Refused;
            return Some(Ended { interrupt: command.interrupt() });
        };
        state.state = CommandState::Active;
        // Before the queues are looked at: a descriptor that ends after that is looked for by its worker.
        self.active.store(true, Ordering::SeqCst);
        let abort = operation == CommandOperation::Abort;
        for (target, queue) in state.targets.iter_mut().zip(queues) {
            *target = queue.select(selection, abort);
        }
        None
    }

    /// A descriptor has ended: perhaps the command has, too.
    pub fn progress(&self, queues: &[Queue]) -> Option<Ended> {
        if !self.active.load(Ordering::SeqCst) {
            return None;
        }
        let mut state = self.state.lock();
        let mut pairs = state.targets.iter().zip(queues);
        let ended = pairs.all(|(target, queue)| queue.finished_up_to() >= *target);
        if state.state != CommandState::Active || !ended {
            return None;
        }
        state.state = CommandState::Done;
        self.active.store(false, Ordering::SeqCst);
        Some(Ended { interrupt: state.command.interrupt() })
    }

    /// As at power-on.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        *state = State::default();
        self.active.store(false, Ordering::SeqCst);
    }
}

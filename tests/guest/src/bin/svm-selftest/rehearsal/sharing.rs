//! Windows to shared queues and commands, as the model has them.

use super::Flaw;
use super::page::Page;
use super::queue::QueueState;
use crate::endpoint::{global, window};

#[derive(Clone, Copy, Default)]
struct Window {
    page: Page,
    control: u32,
    pasid: u32,
}

/// Windows and the command register.
#[derive(Default)]
pub(super) struct Sharing {
    windows: [Window; window::COUNT],
    /// What queues have to have ended for the command to be done; `None`: it was refused.
    targets: Option<Vec<u64>>,
}

impl Sharing {
    pub(super) fn page(&mut self, number: usize) -> &mut Page {
        &mut self.windows[number].page
    }

    pub(super) fn pasid(&self, number: usize) -> u32 {
        self.windows[number].pasid
    }

    /// The queue that an enabled window belongs to.
    pub(super) fn queue(&self, number: usize) -> Option<usize> {
        let Window { control, .. } = self.windows[number];
        (control & 1 != 0).then_some(usize::try_from(control >> 8 & 0xf).ok()?)
    }

    pub(super) fn read(&self, number: usize, register: usize, queues: &[QueueState], depth: u32) -> u32 {
        let queue = self.queue(number).and_then(|queue| queues.get(queue)).filter(|queue| queue.shared);
        let free = queue.map_or(0, |queue| depth - queue.occupancy());
        self.windows[number].page.read(register, free)
    }

    /// Writes a window's privileged register, if this is one.
    pub(super) fn write(&mut self, offset: usize, value: u32) -> bool {
        for (number, window) in self.windows.iter_mut().enumerate() {
            if offset == window::control(number) {
                window.control = value;
                return true;
            }
            if offset == window::pasid(number) {
                window.pasid = value;
                return true;
            }
        }
        false
    }

    pub(super) fn close(&mut self) {
        self.windows.iter_mut().for_each(|window| window.control = 0);
    }

    pub(super) fn command(&mut self, value: u32, queues: &mut [QueueState]) {
        let operand = usize::try_from(value >> 8).unwrap_or(usize::MAX);
        let by_pasid = value & global::BY_PASID != 0;
        self.targets = (by_pasid || operand < queues.len()).then(Vec::new);
        for (index, queue) in queues.iter_mut().enumerate() {
            let meant = by_pasid || index == operand;
            if meant && value & 0xf == global::ABORT {
                queue.aborted = queue.submitted;
            }
            if let Some(targets) = &mut self.targets {
                targets.push(if meant { queue.submitted } else { 0 });
            }
        }
    }

    pub(super) fn command_state(&self, queues: &[QueueState], flaw: Flaw) -> u32 {
        let Some(targets) = &self.targets else { return global::COMMAND_REFUSED };
        let done = targets.iter().zip(queues).all(|(target, queue)| queue.finished >= *target);
        if done || flaw == Flaw::HastyCommands { global::COMMAND_DONE } else { global::COMMAND_ACTIVE }
    }
}

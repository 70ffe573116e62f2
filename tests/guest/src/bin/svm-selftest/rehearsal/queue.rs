//! The model's queues.

use std::collections::VecDeque;

use super::page::Page;
use crate::endpoint::{DESCRIPTOR_WORDS, control, window};

/// A descriptor under way.
#[derive(Clone, Copy)]
pub(super) struct Job {
    pub(super) words: [u64; DESCRIPTOR_WORDS],
    /// Where it came in: 0 the queue's portal, else a window.
    pub(super) page: usize,
    /// Whether its PASID is one, and this process's.
    pub(super) pasid: Option<bool>,
    pub(super) number: u64,
    pub(super) generation: u64,
}

#[derive(Default)]
pub(super) struct QueueState {
    pub(super) enabled: bool,
    pub(super) shared: bool,
    /// Counts disables; what was submitted before the last one is aborted.
    pub(super) generation: u64,
    pub(super) pasid: u32,
    pub(super) irq: u32,
    pub(super) priority: u32,
    pub(super) portal: Page,
    pub(super) pending: VecDeque<Job>,
    pub(super) at_work: bool,
    pub(super) waiting: bool,
    /// Numbers of the last job taken in, ended, aborted by command.
    pub(super) submitted: u64,
    pub(super) finished: u64,
    pub(super) aborted: u64,
    /// By page, what did not succeed.
    pub(super) failures: [u64; 1 + window::COUNT],
    pub(super) page_requests: u64,
    pub(super) bytes: u64,
    pub(super) record_lost: u64,
}

impl QueueState {
    pub(super) fn occupancy(&self) -> u32 {
        u32::try_from(self.pending.len()).unwrap_or(u32::MAX) + u32::from(self.at_work)
    }

    pub(super) fn status(&self) -> u32 {
        let active = if self.occupancy() > 0 { control::ACTIVE } else { 0 };
        let waiting = if self.waiting { control::WAITING } else { 0 };
        u32::from(self.enabled) | active | waiting | u32::from(self.shared) << 3
    }

    pub(super) fn enable(&mut self, on: bool) {
        if self.enabled && !on {
            self.generation += 1;
            self.shared = false;
        }
        if on && !self.enabled {
            self.failures = Default::default();
        }
        self.enabled = on;
    }
}

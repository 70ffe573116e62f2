//! The pages through which descriptors come (sections 2.3 and 3): portals of queues, and windows to shared queues.

use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary_int::u24;
use parking_lot::Mutex;
use zerocopy::{FromZeros, IntoBytes};

use super::queue::{Queue, Via};
use super::spec::{Descriptor, Outcome, OutcomeCode, PasidRegister, WINDOWS, WindowControl};

/// A portal or window page.
#[derive(Default)]
pub struct Portal {
    /// One descriptor as it is being written.
    staging: Mutex<Descriptor>,
    dropped: AtomicU32,
    outcome: Mutex<Outcome>,
}

impl Portal {
    /// As at power-on.
    pub fn clear(&self) {
        self.staging.lock().zero();
        self.dropped.store(0, Ordering::Relaxed);
        *self.outcome.lock() = Outcome::DEFAULT;
    }

    /// Writes bytes, of which those behind the staging area count for nothing. The descriptor, if the last byte of it
    /// is among them, which submits it.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Option<Descriptor> {
        let mut staged = self.staging.lock();
        let area = staged.as_mut_bytes().get_mut(offset..).filter(|area| !area.is_empty())?;
        let (length, submits) = (area.len().min(bytes.len()), area.len() <= bytes.len());
        area[..length].copy_from_slice(&bytes[..length]);
        submits.then(|| std::mem::take(&mut *staged))
    }

    /// Notes what became of a submission; says whether it was dropped.
    pub fn note(&self, code: OutcomeCode) -> bool {
        let mut outcome = self.outcome.lock();
        let sequence = u24::new(outcome.sequence().value().wrapping_add(1) & 0xff_ffff);
        *outcome = Outcome::DEFAULT.with_code(code as u8).with_sequence(sequence);
        let dropped = code != OutcomeCode::Accepted;
        if dropped {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        dropped
    }

    /// DROPPED.
    #[must_use]
    pub fn dropped(&self) -> u32 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// OUTCOME.
    #[must_use]
    pub fn outcome(&self) -> u32 {
        self.outcome.lock().raw_value()
    }
}

#[derive(Clone, Copy, Default)]
struct Binding {
    control: WindowControl,
    pasid: u32,
    generation: u64,
}

/// A window: a portal that privileged software binds to a shared queue and a PASID.
#[derive(Default)]
pub struct Window {
    /// The page.
    pub portal: Portal,
    binding: Mutex<Binding>,
}

/// As many as there are.
#[must_use]
pub fn windows() -> Vec<Window> {
    (0..WINDOWS).map(|_| Window::default()).collect()
}

impl Window {
    /// Submits to the window's queue. The window cannot be disabled meanwhile.
    pub fn submit(&self, number: usize, descriptor: Descriptor, queues: &[Queue]) -> OutcomeCode {
        let binding = self.binding.lock();
        let Binding { control, pasid, generation } = *binding;
        match queue_of(control, queues) {
            Some(queue) => queue.submit(descriptor, Via::Window { number, pasid, generation }),
            None => OutcomeCode::Disabled,
        }
    }

    /// FREE.
    #[must_use]
    pub fn free(&self, queues: &[Queue]) -> u32 {
        let control = self.binding.lock().control;
        queue_of(control, queues).map_or(0, |queue| queue.free(true))
    }

    /// WINDOW_CTRL.
    #[must_use]
    pub fn control(&self) -> u32 {
        self.binding.lock().control.raw_value()
    }

    /// Writes WINDOW_CTRL. On return, if it disables, nothing more comes through.
    pub fn set_control(&self, value: u32) {
        let mut binding = self.binding.lock();
        let value = WindowControl::new_with_raw_value(value);
        let stays = binding.control.enable() && value.enable();
        let queue = if stays { binding.control.queue() } else { value.queue() };
        if value.enable() && !binding.control.enable() {
            binding.generation += 1;
        }
        binding.control = WindowControl::DEFAULT.with_enable(value.enable()).with_queue(queue);
    }

    /// WINDOW_PASID.
    #[must_use]
    pub fn pasid(&self) -> u32 {
        self.binding.lock().pasid
    }

    /// Writes WINDOW_PASID; ignored while enabled.
    pub fn set_pasid(&self, value: u32) {
        let mut binding = self.binding.lock();
        if !binding.control.enable() {
            binding.pasid = value & PasidRegister::WRITABLE;
        }
    }

    /// CTRL.RESET.
    pub fn disable(&self) {
        let mut binding = self.binding.lock();
        binding.control = binding.control.with_enable(false);
    }

    /// As at power-on.
    pub fn clear(&self) {
        let mut binding = self.binding.lock();
        *binding = Binding { generation: binding.generation, ..Binding::default() };
        drop(binding);
        self.portal.clear();
    }
}

fn queue_of(control: WindowControl, queues: &[Queue]) -> Option<&Queue> {
    queues.get(usize::from(control.queue().value())).filter(|_| control.enable())
}

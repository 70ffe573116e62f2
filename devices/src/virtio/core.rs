//! What registers and worker share: whether the device runs, what it is to look at, its interrupts, its end.
//!
//! Each start has an epoch of its own. A worker does DMA and sends interrupts inside the gate only, after having looked
//! there whether its epoch still counts; a reset ends the epoch and then takes the gate once, so that nothing of
//! before follows it.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::common::Setup;
use super::spec::{IsrStatus, NO_VECTOR};
use super::stop::Gone;
use crate::pci::FunctionBase;

/// The permission to touch memory or to interrupt. Never held while waiting.
pub type Gate<'a> = MutexGuard<'a, ()>;

/// What the worker is to do.
pub struct Work {
    /// How the device was started.
    pub setup: Arc<Setup>,
    /// Which start it was.
    pub epoch: u64,
    /// A bit for each queue to look at.
    pub queues: u64,
}

struct State {
    epoch: u64,
    exiting: bool,
    bus_master: bool,
    /// The driver runs the device like this.
    setup: Option<Arc<Setup>>,
    needs_reset: bool,
    kicked: u64,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

impl State {
    fn counts(&self, epoch: u64) -> bool {
        self.epoch == epoch && !self.exiting && !self.needs_reset
    }
}

/// The shared half of a device.
pub struct Core {
    base: Arc<FunctionBase>,
    /// What the driver has not read yet, and so whether the interrupt line is asserted. A leaf but for the function's.
    isr: Mutex<u8>,
    gate: Mutex<()>,
    /// A leaf.
    state: Mutex<State>,
    wake: Condvar,
}

impl Core {
    /// A device that is not started, with this many queues, at most 64.
    #[must_use]
    pub fn new(base: Arc<FunctionBase>, queues: usize) -> Self {
        let state = State {
            epoch: 0,
            exiting: false,
            bus_master: false,
            setup: None,
            needs_reset: false,
            kicked: 0,
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues],
        };
        let (gate, wake) = (Mutex::default(), Condvar::new());
        Self { base, isr: Mutex::new(0), gate, state: Mutex::new(state), wake }
    }

    /// The driver runs. All queues are looked at once: a driver may have filled them before.
    pub fn start(&self, setup: Setup) {
        let mut state = self.state.lock();
        state.setup = Some(Arc::new(setup));
        state.kicked = u64::MAX;
        self.wake.notify_all();
    }

    /// A notification. Ignored for what is not there, and while the device does not run.
    pub fn kick(&self, queue: usize) {
        let mut state = self.state.lock();
        if queue < state.queue_vectors.len() && state.setup.is_some() {
            state.kicked |= 1 << queue;
            self.wake.notify_all();
        }
    }

    /// Reset. On return no DMA is under way, none follows, and no interrupt.
    pub fn reset(&self) {
        {
            let mut state = self.state.lock();
            state.epoch += 1;
            state.setup = None;
            state.needs_reset = false;
            state.kicked = 0;
            state.config_vector = NO_VECTOR;
            state.queue_vectors.fill(NO_VECTOR);
            self.wake.notify_all();
        }
        drop(self.gate.lock());
        self.take_isr();
    }

    /// Bus mastering was switched. Off: on return no DMA is under way.
    pub fn set_bus_master(&self, on: bool) {
        self.state.lock().bus_master = on;
        self.wake.notify_all();
        drop(self.gate.lock());
    }

    /// The function goes away: the worker ends. The caller joins it.
    pub fn exit(&self) {
        self.state.lock().exiting = true;
        self.wake.notify_all();
    }

    /// The vector of configuration changes.
    pub fn set_config_vector(&self, vector: u16) {
        self.state.lock().config_vector = vector;
    }

    /// The vector of a queue.
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.state.lock().queue_vectors.get_mut(usize::from(queue)) {
            *slot = vector;
        }
    }

    /// DEVICE_NEEDS_RESET.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.state.lock().needs_reset
    }

    /// ISR status; reading clears it, and lowers the interrupt line (§4.1.4.5).
    pub fn take_isr(&self) -> u8 {
        let mut isr = self.isr.lock();
        self.base.set_interrupt(false);
        std::mem::take(&mut *isr)
    }

    /// Sets ISR status, and with it the interrupt line; a vector that is there takes the place of both.
    fn tell(&self, why: IsrStatus, vector: u16) {
        {
            let mut isr = self.isr.lock();
            *isr |= why.raw_value();
            self.base.set_interrupt(true);
        }
        self.base.trigger(vector);
    }

    /// The next thing to do, as soon as there is one. `None`: the worker is to end.
    pub fn next(&self) -> Option<Work> {
        let mut state = self.state.lock();
        loop {
            if state.exiting {
                return None;
            }
            if let Some(setup) = state.setup.clone().filter(|_| state.kicked != 0 && !state.needs_reset) {
                let queues = std::mem::take(&mut state.kicked);
                return Some(Work { setup, epoch: state.epoch, queues });
            }
            self.wake.wait(&mut state);
        }
    }

    /// Enters the gate, as soon as the function may master the bus.
    ///
    /// # Errors
    /// The epoch is over.
    pub fn enter(&self, epoch: u64) -> Result<Gate<'_>, Gone> {
        loop {
            {
                let mut state = self.state.lock();
                while state.counts(epoch) && !state.bus_master {
                    self.wake.wait(&mut state);
                }
            }
            let gate = self.gate.lock();
            let state = self.state.lock();
            if !state.counts(epoch) {
                return Err(Gone);
            }
            if state.bus_master {
                return Ok(gate);
            }
        }
    }

    /// A queue has used buffers.
    ///
    /// # Errors
    /// The epoch is over.
    pub fn interrupt(&self, epoch: u64, queue: u16) -> Result<(), Gone> {
        let _gate = self.enter(epoch)?;
        let vector = self.state.lock().queue_vectors.get(usize::from(queue)).copied();
        self.tell(IsrStatus::DEFAULT.with_queue(true), vector.unwrap_or(NO_VECTOR));
        Ok(())
    }

    /// The worker gives up until the device is reset, and tells the driver. Nothing, if the epoch is over.
    pub fn give_up(&self, epoch: u64) {
        if let Ok(_gate) = self.enter(epoch) {
            // A reset may have come in between; it waits for the gate before it is done.
            self.set_needs_reset(|state| state.epoch == epoch);
        }
    }

    /// There is nobody to serve the device as it was just started. Not for the worker.
    pub fn give_up_at_once(&self) {
        self.set_needs_reset(|_| true);
    }

    fn set_needs_reset(&self, holds: impl FnOnce(&State) -> bool) {
        let vector = {
            let mut state = self.state.lock();
            state.needs_reset = holds(&state);
            state.config_vector
        };
        self.tell(IsrStatus::DEFAULT.with_configuration(true), vector);
    }
}

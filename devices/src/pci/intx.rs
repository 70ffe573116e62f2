//! The interrupt line of an emulated function, PCI Local Bus 3.0 §2.2.6 and PCIe §7.5.1.1: asserted as long as there is a
//! reason, and neither the command register nor MSI-X keeps it down.
//!
//! What keeps it up or down is one atomic word. Who changes it tells the line under a lock, but only if the change was
//! one of the level: a function with messages takes no lock for its interrupts here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use crate::irq::IrqLine;

/// INTA.
pub(super) const PIN: u8 = 1;

/// The function has a reason to interrupt.
const PENDING: u8 = 1 << 0;
/// By the command register.
const DISABLED: u8 = 1 << 1;
/// Messages take its place.
const MESSAGES: u8 = 1 << 2;

fn is_asserted(state: u8) -> bool {
    state & (PENDING | DISABLED | MESSAGES) == PENDING
}

/// The line.
pub(super) struct Intx {
    line: Arc<dyn IrqLine>,
    state: AtomicU8,
    /// The level that the line was told. A leaf but for the line.
    told: Mutex<bool>,
}

impl Intx {
    /// Not asserted.
    pub(super) fn new(line: Arc<dyn IrqLine>) -> Self {
        Self { line, state: AtomicU8::new(0), told: Mutex::new(false) }
    }

    /// The function has a reason to interrupt, or none any more. No lock while the switches keep the line down.
    pub(super) fn set_pending(&self, pending: bool) {
        self.change(PENDING, if pending { PENDING } else { 0 });
    }

    /// The status register's bit: a reason, whatever the command register says. Lock-free.
    pub(super) fn is_pending(&self) -> bool {
        self.state.load(Ordering::Acquire) & (PENDING | MESSAGES) == PENDING
    }

    /// The switches in configuration space.
    pub(super) fn set_switches(&self, disabled: bool, messages: bool) {
        let switches = [(disabled, DISABLED), (messages, MESSAGES)];
        let bits = switches.into_iter().filter(|(on, _)| *on).fold(0, |bits, (_, bit)| bits | bit);
        self.change(DISABLED | MESSAGES, bits);
    }

    /// As at power-on.
    pub(super) fn reset(&self) {
        self.change(PENDING | DISABLED | MESSAGES, 0);
    }

    /// Sets the bits of `mask` to those of `bits`. Changes may come from several threads at once: each that turns the
    /// level tells what it is by then, so that the last one tells the truth.
    fn change(&self, mask: u8, bits: u8) {
        let change = |state: u8| Some(state & !mask | bits);
        let (Ok(before) | Err(before)) = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        if is_asserted(before) == is_asserted(before & !mask | bits) {
            return;
        }
        let mut told = self.told.lock();
        let asserted = is_asserted(self.state.load(Ordering::Acquire));
        if std::mem::replace(&mut *told, asserted) != asserted {
            self.line.set(asserted);
        }
    }
}

#[cfg(test)]
#[path = "intx_tests.rs"]
mod tests;
